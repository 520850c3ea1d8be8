//! The identities of lately stored events, so that a resent webhook is not stored twice.
//!
//! After a restart they are read from the segments; identities of segments that have been removed come from the file `dedup`. It begins
//! with `CDRDEDUP`; for each event follow the id (16 bytes), the arrival in milliseconds and the offset (u64 each); at its end stands the
//! CRC-32C of all that (u32). It is written anew before segments are removed. Losing it loses no event: an event that is resent after a
//! restart is then stored again.

use super::disk::{Disk, missing_is_ok};
use super::log::Segment;
use super::segment::{self, Found, Scan};
use crate::event::{Arrival, EventId};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::ops::Range;
use std::time::Duration;

const NAME: &str = "dedup";
const NEW: &str = "dedup-new";
const MAGIC: &[u8; 8] = b"CDRDEDUP";
const ENTRY: usize = 32;

/// A window of events, bounded in time and in number.
#[derive(Debug)]
pub struct Dedup {
    window: Duration,
    capacity: usize,
    offsets: HashMap<EventId, u64>,
    /// In the order of the offsets. An event that has been stored again since has another offset in `offsets`.
    entries: VecDeque<Entry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    id: EventId,
    arrival: Arrival,
    offset: u64,
}

impl Dedup {
    /// An empty window; with no length or no capacity it never recognises an event.
    pub fn new(window: Duration, capacity: usize) -> Self {
        let capacity = if window.is_zero() { 0 } else { capacity };
        Self { window, capacity, offsets: HashMap::new(), entries: VecDeque::new() }
    }

    /// Whether it recognises any events.
    pub fn is_on(&self) -> bool {
        self.capacity > 0
    }

    /// How many events it holds.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.offsets.len()
    }

    /// The offset of the event with this identity, if it was stored within the window.
    pub fn offset(&self, id: &EventId) -> Option<u64> {
        self.offsets.get(id).copied()
    }

    /// Adds an event that was stored at `now`, and drops events that have become too old or too many. An event that arrived long
    /// before, in a body that could not be decoded then, is held as if it came now.
    pub fn insert(&mut self, id: EventId, arrival: Arrival, offset: u64, now: Arrival) {
        let arrival = if arrival < self.since(now) { now } else { arrival };
        self.recall(id, arrival, offset, now);
    }

    /// Adds an event that was stored before, if it arrived within the window.
    fn recall(&mut self, id: EventId, arrival: Arrival, offset: u64, now: Arrival) {
        self.expire(now);
        if self.capacity == 0 || arrival < self.since(now) || self.offsets.get(&id) == Some(&offset) {
            return;
        }
        if self.entries.len() == self.capacity {
            self.drop_oldest();
        }
        self.offsets.insert(id, offset);
        self.entries.push_back(Entry { id, arrival, offset });
    }

    /// No longer recognises the events at these offsets: they turned out to be unreadable, and sending them again mends that.
    pub fn forget(&mut self, lost: &Range<u64>) {
        let from = self.entries.partition_point(|entry| entry.offset < lost.start);
        let until = self.entries.partition_point(|entry| entry.offset < lost.end);
        for entry in self.entries.drain(from..until) {
            if self.offsets.get(&entry.id) == Some(&entry.offset) {
                self.offsets.remove(&entry.id);
            }
        }
    }

    /// Drops everything that is outside the window at `now`.
    pub fn expire(&mut self, now: Arrival) {
        // A clock that was set back leaves arrivals in the future, which are not to stay until the clock gets there.
        let window = self.since(now)..=Arrival(now.0.saturating_add(self.window.as_millis() as u64));
        while self.entries.front().is_some_and(|entry| !window.contains(&entry.arrival)) {
            self.drop_oldest();
        }
    }

    fn since(&self, now: Arrival) -> Arrival {
        Arrival(now.0.saturating_sub(self.window.as_millis() as u64))
    }

    fn drop_oldest(&mut self) {
        if let Some(Entry { id, offset, .. }) = self.entries.pop_front()
            && self.offsets.get(&id) == Some(&offset)
        {
            self.offsets.remove(&id);
        }
    }

    /// The content of the file for segments that are removed up to the offset `until`; `None` if there is nothing to keep.
    pub fn snapshot(&self, until: u64) -> Option<Vec<u8>> {
        let entries = self.entries.range(..self.entries.partition_point(|entry| entry.offset < until));
        let entries = entries.filter(|entry| self.offsets.get(&entry.id) == Some(&entry.offset));
        let mut bytes = MAGIC.to_vec();
        for Entry { id, arrival, offset } in entries {
            bytes.extend(id.0);
            bytes.extend([arrival.0, *offset].map(u64::to_le_bytes).as_flattened());
        }
        (bytes.len() > MAGIC.len()).then(|| {
            bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
            bytes
        })
    }

    /// Fills the window with the events that earlier processes stored.
    pub fn load(&mut self, disk: &dyn Disk, segments: &BTreeMap<u64, Segment>, end: u64) {
        let now = Arrival::now();
        if !self.is_on() {
            return;
        }
        let unread = |error: &io::Error| {
            tracing::warn!(%error, "not all of the latest events could be read; a resent one may be stored twice");
        };
        let removed = read(disk).inspect_err(unread).unwrap_or_default();
        let start = segments.first_key_value().map_or(end, |(base, _)| *base);
        for Entry { id, arrival, offset } in removed.into_iter().filter(|entry| entry.offset < start) {
            self.recall(id, arrival, offset, now);
        }
        // Backwards, no further than the window reaches.
        let (mut newest_first, mut limit) = (Vec::new(), end);
        for &base in segments.keys().rev() {
            if newest_first.len() >= self.capacity {
                break;
            }
            let Ok(mut entries) = entries_of(disk, base..limit).inspect_err(unread) else { break };
            limit = base;
            // Not the last one's arrival: an undecodable body may have waited for long before it was replayed.
            let newest = entries.iter().map(|entry| entry.arrival).max();
            entries.reverse();
            newest_first.append(&mut entries);
            if newest.is_some_and(|newest| newest < self.since(now)) {
                break;
            }
        }
        newest_first.truncate(self.capacity);
        for Entry { id, arrival, offset } in newest_first.into_iter().rev() {
            self.recall(id, arrival, offset, now);
        }
    }
}

/// Writes a [`Dedup::snapshot`], durably, in place of the one before.
pub fn write(disk: &dyn Disk, snapshot: &[u8]) -> io::Result<()> {
    missing_is_ok(disk.remove(NEW))?;
    let file = disk.create(NEW, snapshot.len() as u64)?;
    file.write_at(snapshot, 0)?;
    file.sync()?;
    disk.rename(NEW, NAME)?;
    disk.sync()
}

fn read(disk: &dyn Disk) -> io::Result<Vec<Entry>> {
    let file = match disk.open(NAME) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file?,
    };
    let mut bytes = vec![0; file.size()? as usize];
    file.read_at(&mut bytes, 0)?;
    let corrupt = || io::Error::new(io::ErrorKind::InvalidData, format!("{NAME} is corrupt"));
    decode(&bytes).ok_or_else(corrupt)
}

fn decode(bytes: &[u8]) -> Option<Vec<Entry>> {
    let (covered, sum) = bytes.split_last_chunk()?;
    let entries = covered.strip_prefix(MAGIC).filter(|_| crc32c::crc32c(covered).to_le_bytes() == *sum)?;
    let entry = |bytes: &[u8; ENTRY]| {
        let (id, rest) = bytes.split_first_chunk()?;
        let (arrival, offset) = rest.split_first_chunk()?;
        let offset = u64::from_le_bytes(*offset.first_chunk()?);
        Some(Entry { id: EventId(*id), arrival: Arrival(u64::from_le_bytes(*arrival)), offset })
    };
    entries.as_chunks().0.iter().map(entry).collect()
}

/// The identities of the records in the segment with these offsets, as far as they can be read.
fn entries_of(disk: &dyn Disk, offsets: Range<u64>) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let file = match disk.open(&segment::name(offsets.start)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(entries),
        file => file?,
    };
    let (mut scan, mut expected) = (Scan::new(file)?, offsets.start);
    loop {
        expected = match scan.next(expected, offsets.end)? {
            Found::Record(frame, _) => {
                entries.push(Entry { id: frame.id, arrival: frame.arrival, offset: frame.offset });
                frame.offset + 1
            }
            Found::Damage(next) => next,
            Found::End => return Ok(entries),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> EventId {
        EventId([n; 16])
    }

    /// Stores an event as soon as it has arrived.
    fn insert(dedup: &mut Dedup, n: u8, at: u64) {
        dedup.insert(id(n), Arrival(at), n.into(), Arrival(at));
    }

    #[test]
    fn events_are_forgotten_by_age_and_by_number() {
        let mut dedup = Dedup::new(Duration::from_secs(10), 3);
        for n in 0..4 {
            insert(&mut dedup, n, 1_000 * u64::from(n));
        }
        assert_eq!([0, 1, 2, 3].map(|n| dedup.offset(&id(n)).is_some()), [false, true, true, true]);
        insert(&mut dedup, 9, 12_500);
        assert_eq!([1, 2, 3, 9].map(|n| dedup.offset(&id(n)).is_some()), [false, false, true, true]);
        assert_eq!(dedup.entries.len(), dedup.len());
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_make_the_window_longer() {
        let mut dedup = Dedup::new(Duration::from_secs(10), 100);
        insert(&mut dedup, 1, 90_000);
        dedup.expire(Arrival(1_000));
        assert_eq!(dedup.offset(&id(1)), None);
        insert(&mut dedup, 2, 1_000);
        dedup.expire(Arrival(10_999));
        assert!(dedup.offset(&id(2)).is_some());
        dedup.expire(Arrival(11_001));
        assert_eq!(dedup.offset(&id(2)), None);
    }

    #[test]
    fn an_event_that_waited_for_long_before_it_was_stored_is_recognised_all_the_same() {
        let mut dedup = Dedup::new(Duration::from_secs(10), 100);
        dedup.insert(id(1), Arrival(5), 1, Arrival(100_000));
        assert_eq!(dedup.offset(&id(1)), Some(1));
        dedup.recall(id(2), Arrival(5), 2, Arrival(100_000));
        assert_eq!(dedup.offset(&id(2)), None, "it may have been resent long ago");
    }

    #[test]
    fn an_event_that_was_forgotten_and_stored_again_outlives_its_first_copy() {
        let mut dedup = Dedup::new(Duration::from_secs(10), 3);
        for n in 0..3 {
            insert(&mut dedup, n, 1_000);
        }
        dedup.forget(&(1..2));
        assert_eq!([0, 1, 2].map(|n| dedup.offset(&id(n))), [Some(0), None, Some(2)]);
        dedup.insert(id(1), Arrival(1_000), 7, Arrival(1_000));
        for n in 8..10 {
            insert(&mut dedup, n, 1_000);
        }
        assert_eq!([0, 1, 2, 8, 9].map(|n| dedup.offset(&id(n))), [None, Some(7), None, Some(8), Some(9)]);
    }

    #[test]
    fn a_snapshot_comes_back_whole_or_not_at_all() {
        let mut dedup = Dedup::new(Duration::from_secs(10), 10);
        assert_eq!(dedup.snapshot(100), None);
        for n in 0..5 {
            insert(&mut dedup, n, 1_000);
        }
        let bytes = dedup.snapshot(3).unwrap();
        assert_eq!(decode(&bytes).unwrap(), dedup.entries.range(..3).copied().collect::<Vec<_>>());
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!((decode(&damaged), decode(&bytes[..at])), (None, None));
        }
    }
}
