//! Keys that were stored lately, bounded in time and in number.
//!
//! The content follows from the log alone: a key is added with the time at which its record was stored, it is found for the length of the
//! window from then on, and only further keys push it out. So a restart, which reads the log backwards until the window is full, restores
//! it exactly.
//!
//! # On disk
//! The keys of a segment that are still within a window go into a file, so that a start need not read the segment for them, which may also
//! have been removed. The file is called `<window>-<base>`, the first offset it covers in twenty decimal digits. It holds the eight bytes
//! `CDRINDEX` and the offset behind the last one it covers (u64); for each key its 16 bytes, the offset (u64), the time at which the record
//! was stored, in milliseconds since 1970 (u64), the length of a text (u32) and the text; the CRC-32C of all that (u32). A small file is
//! replaced by one that covers the next segment too. A file is removed when the window has passed it.

use super::disk::{Disk, missing_is_ok};
use crate::event::Arrival;
use hashbrown::HashTable;
use hashbrown::hash_table;
use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// A file until it is complete.
const NEW: &str = "index-new";
const MAGIC: &[u8; 8] = b"CDRINDEX";
/// Bytes of an entry on disk before its text.
const ENTRY: usize = 36;
/// A file with fewer keys takes those of the next segment too.
const SMALL: usize = 1000;

/// 128 bits of a hash.
pub type Key = [u8; 16];

/// The value that a window holds for each key, as a text.
pub trait Value: Clone {
    /// The value with this [`text`](Self::text).
    fn of(text: &str) -> Self;
    /// The value as it stands in a file.
    fn text(&self) -> &str;
}

impl Value for () {
    fn of(_: &str) -> Self {}

    fn text(&self) -> &str {
        ""
    }
}

impl Value for Arc<str> {
    fn of(text: &str) -> Self {
        text.into()
    }

    fn text(&self) -> &str {
        self
    }
}

/// A key of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<V> {
    pub key: Key,
    /// The offset of the record.
    pub offset: u64,
    /// When the record was stored.
    pub stored: Arrival,
    pub value: V,
}

/// The files to be written and removed.
#[derive(Debug, Default)]
pub struct Changes {
    passed: Vec<String>,
    pub new: Vec<(String, Vec<u8>)>,
}

impl Changes {
    /// Makes the changes, durably. To lose a file loses no event.
    pub fn make(self, disk: &dyn Disk) -> io::Result<()> {
        for (name, bytes) in &self.new {
            missing_is_ok(disk.remove(NEW))?;
            let file = disk.create(NEW, bytes.len() as u64)?;
            file.write_at(bytes, 0)?;
            file.sync()?;
            disk.rename(NEW, name)?;
        }
        self.passed.iter().try_for_each(|name| missing_is_ok(disk.remove(name)))?;
        disk.sync()
    }
}

/// A window of keys.
#[derive(Debug)]
pub struct Window<V> {
    name: &'static str,
    length: Duration,
    capacity: usize,
    /// In the order of the offsets. A key that was added again stands here twice, and only the later one counts.
    entries: VecDeque<Entry<V>>,
    /// The number of the first entry; those after it are numbered on, without regard to overflows.
    first: u32,
    /// The number of the latest entry of each key. The keys stand in the entries alone: a map of them takes four times the memory.
    latest: HashTable<u32>,
    hasher: RandomState,
    /// The offsets that each file covers.
    files: VecDeque<Range<u64>>,
}

impl<V: Value> Window<V> {
    /// An empty window, whose files are called `name`. With no length or no capacity it holds nothing.
    pub fn new(name: &'static str, length: Duration, capacity: usize) -> Self {
        let capacity = if length.is_zero() { 0 } else { capacity };
        let (entries, files, hasher) = Default::default();
        Self { name, length, capacity, entries, first: 0, latest: HashTable::new(), hasher, files }
    }

    /// Whether it can hold anything.
    pub fn is_on(&self) -> bool {
        self.capacity > 0
    }

    fn is_full(&self) -> bool {
        self.entries.len() >= self.capacity
    }

    /// Whether it lacks keys of records below offset `limit`, which were stored at `newest` or before.
    pub fn lacks(&self, limit: u64, newest: Arrival, now: Arrival) -> bool {
        !self.is_full() && limit > self.covered() && self.is_within(newest, now)
    }

    /// From when on every key that was added is found at `now`; `None` if it holds nothing.
    pub fn complete_since(&self, now: Arrival) -> Option<Arrival> {
        let oldest = self.entries.front().filter(|_| self.is_full()).map(|oldest| oldest.stored);
        let begin = Arrival(now.0.saturating_sub(self.length.as_millis() as u64));
        self.is_on().then(|| oldest.map_or(begin, |oldest| oldest.max(begin)))
    }

    /// How many keys it holds.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.latest.len()
    }

    /// The latest entry of the key, if it is within the window at `now`.
    pub fn get(&self, key: &Key, now: Arrival) -> Option<&Entry<V>> {
        self.latest_entry(key).filter(|entry| self.is_within(entry.stored, now))
    }

    fn latest_entry(&self, key: &Key) -> Option<&Entry<V>> {
        let has_key = |number: &u32| self.numbered(*number).is_some_and(|entry| entry.key == *key);
        self.latest.find(self.hasher.hash_one(key), has_key).and_then(|number| self.numbered(*number))
    }

    fn numbered(&self, number: u32) -> Option<&Entry<V>> {
        self.entries.get(number.wrapping_sub(self.first) as usize)
    }

    /// Whether a key that was stored at this time is within the window at `now`. A clock that was set back leaves times in the future;
    /// these keys must not stay until the clock gets there.
    pub fn is_within(&self, stored: Arrival, now: Arrival) -> bool {
        stored.0.abs_diff(now.0) <= self.length.as_millis() as u64
    }

    /// Whether a part of the window has passed since then, so that the key is worth another entry.
    pub fn is_worn(&self, stored: Arrival, now: Arrival) -> bool {
        now.0.saturating_sub(stored.0) > self.length.as_millis() as u64 / 8
    }

    /// Adds a key of the latest record, and drops keys that have become too old or too many.
    pub fn insert(&mut self, entry: Entry<V>) {
        if !self.is_on() {
            return;
        }
        while let Some(oldest) = self.entries.front() {
            if self.entries.len() < self.capacity && self.is_within(oldest.stored, entry.stored) {
                break;
            }
            self.unlist(self.first);
            self.first = self.first.wrapping_add(1);
            self.entries.pop_front();
        }
        let (key, number) = (entry.key, self.first.wrapping_add(self.entries.len() as u32));
        self.grow();
        self.entries.push_back(entry);
        self.listed(&key).insert(number);
    }

    /// The place of this key in `latest`.
    fn listed(&mut self, key: &Key) -> hash_table::Entry<'_, u32> {
        let Self { entries, first, hasher, latest, .. } = self;
        let key_of = |number: &u32| entries.get(number.wrapping_sub(*first) as usize).map(|entry| &entry.key);
        let hash_of = |number: &u32| key_of(number).map_or(0, |key| hasher.hash_one(key));
        latest.entry(hasher.hash_one(key), |number| key_of(number) == Some(key), hash_of)
    }

    /// No longer finds the entry with this number.
    fn unlist(&mut self, number: u32) {
        let Some(entry) = self.numbered(number) else { return };
        if let Ok(listed) = self.latest.find_entry(self.hasher.hash_one(entry.key), |latest| *latest == number) {
            listed.remove();
        }
    }

    /// Sees to it that there is memory for one more entry, and never for more than `capacity`.
    fn grow(&mut self) {
        let count = self.entries.len();
        if count == self.entries.capacity() {
            self.entries.reserve_exact((count / 4).clamp(16, (self.capacity - count).max(16)));
        }
    }

    /// Adds a key of a record before all others, unless it is in a file, which is read later.
    pub fn recall(&mut self, entry: Entry<V>, now: Arrival) {
        if entry.offset >= self.covered() {
            self.prepend(entry, now);
        }
    }

    /// Adds a key of a record before all others, if it is within the window at `now` and the window is not full.
    fn prepend(&mut self, entry: Entry<V>, now: Arrival) {
        if !self.is_full() && self.is_within(entry.stored, now) {
            self.first = self.first.wrapping_sub(1);
            let (key, number) = (entry.key, self.first);
            self.grow();
            self.entries.push_front(entry);
            self.listed(&key).or_insert(number);
        }
    }

    /// No longer finds the keys of the records at these offsets.
    pub fn forget(&mut self, lost: &Range<u64>) {
        self.range(lost).for_each(|index| self.unlist(self.first.wrapping_add(index as u32)));
    }

    /// The offset behind the last one that a file covers.
    pub fn covered(&self) -> u64 {
        self.files.back().map_or(0, |last| last.end)
    }

    /// Hands over the entries of a segment for a file, and the files that the window has passed.
    pub fn keep(&mut self, segment: &Range<u64>, changes: &mut Changes) {
        if !self.is_on() || segment.end <= self.covered() {
            return;
        }
        let oldest = self.entries.front().map_or(segment.end, |oldest| oldest.offset);
        while let Some(passed) = self.files.front().filter(|file| file.end <= oldest) {
            changes.passed.push(self.file(passed.start));
            self.files.pop_front();
        }
        let start = match self.files.back() {
            Some(last) if self.range(&(last.start..segment.end)).len() < SMALL => last.start,
            Some(last) => last.end,
            None => segment.start,
        };
        if self.files.back().is_some_and(|last| last.start == start) {
            self.files.pop_back();
        }
        let covers = start..segment.end;
        changes.new.push((self.file(start), self.encode(&covers)));
        self.files.push_back(covers);
    }

    /// The indices of the entries with these offsets.
    fn range(&self, offsets: &Range<u64>) -> Range<usize> {
        let [from, until] =
            [offsets.start, offsets.end].map(|at| self.entries.partition_point(|entry| entry.offset < at));
        from..until
    }

    /// The content of the file that covers these offsets.
    fn encode(&self, offsets: &Range<u64>) -> Vec<u8> {
        // Entries that a later one has replaced are written too: they count for the capacity.
        let entries = self.entries.range(self.range(offsets)).filter(|entry| self.latest_entry(&entry.key).is_some());
        let mut bytes = MAGIC.to_vec();
        bytes.extend(offsets.end.to_le_bytes());
        for Entry { key, offset, stored, value } in entries {
            let text = value.text();
            bytes.extend(key);
            bytes.extend([*offset, stored.0].map(u64::to_le_bytes).as_flattened());
            bytes.extend((text.len() as u32).to_le_bytes());
            bytes.extend(text.as_bytes());
        }
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    /// Finds the window's files in a log that ends at `end`. A last one that cannot be read covers nothing.
    pub fn find_files(&mut self, disk: &dyn Disk, end: u64) -> io::Result<()> {
        let names = disk.list()?;
        let digits = |name: &String| name.strip_prefix(self.name)?.strip_prefix('-').map(str::to_owned);
        let bases = names.iter().filter_map(digits).filter(|digits| digits.len() == 20);
        let mut bases: Vec<u64> = bases.filter_map(|digits| digits.parse().ok()).collect();
        bases.sort_unstable();
        let mut problem = Ok(());
        while let Some(last) = bases.pop() {
            match read::<V>(disk, &self.file(last)) {
                Ok((covered, _)) => {
                    bases.extend([last, covered.min(end)]);
                    self.files =
                        bases.windows(2).filter_map(<[u64]>::first_chunk).map(|[start, end]| *start..*end).collect();
                    break;
                }
                Err(error) => problem = Err(error),
            }
        }
        problem
    }

    /// Adds the keys in the files before all others. A file that cannot be read is left out.
    pub fn load(&mut self, disk: &dyn Disk, now: Arrival) -> io::Result<()> {
        let mut problem = Ok(());
        for index in (0..self.files.len()).rev() {
            let Some(covers) = self.files.get(index).filter(|_| !self.is_full()) else { break };
            match read::<V>(disk, &self.file(covers.start)) {
                Ok((_, entries)) => entries.into_iter().rev().for_each(|entry| self.prepend(entry, now)),
                Err(error) => problem = Err(error),
            }
        }
        problem
    }

    fn file(&self, base: u64) -> String {
        format!("{}-{base:020}", self.name)
    }
}

/// The offset behind the last one that a file covers, and its entries.
type Content<V> = (u64, Vec<Entry<V>>);

fn read<V: Value>(disk: &dyn Disk, name: &str) -> io::Result<Content<V>> {
    let file = disk.open(name)?;
    let mut bytes = vec![0; file.size()? as usize];
    file.read_at(&mut bytes, 0)?;
    decode(&bytes).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{name} is corrupt")))
}

fn decode<V: Value>(bytes: &[u8]) -> Option<Content<V>> {
    let (covered, sum) = bytes.split_last_chunk()?;
    let rest = covered.strip_prefix(MAGIC).filter(|_| crc32c::crc32c(covered).to_le_bytes() == *sum)?;
    let (end, mut rest) = rest.split_first_chunk()?;
    let mut entries = Vec::new();
    while let Some((fixed, behind)) = rest.split_first_chunk::<ENTRY>() {
        let long = |at: usize| fixed.get(at..)?.first_chunk().map(|raw| u64::from_le_bytes(*raw));
        let length = fixed.last_chunk().map(|raw| u32::from_le_bytes(*raw))?;
        let (text, behind) = behind.split_at_checked(length as usize)?;
        let value = V::of(str::from_utf8(text).ok()?);
        entries.push(Entry { key: *fixed.first_chunk()?, offset: long(16)?, stored: Arrival(long(24)?), value });
        rest = behind;
    }
    rest.is_empty().then(|| (u64::from_le_bytes(*end), entries))
}

#[cfg(test)]
mod tests;
