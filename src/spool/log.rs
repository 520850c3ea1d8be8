//! The segments of the log: where its records are, on disk and in the read cache, and how much room there is for more.

use super::cursor::PositionFile;
use super::disk::{Disk, DiskFile, missing_is_ok};
use super::segment::{self, Scan};
use super::{Config, Record, Retain, Status};
use crate::event::Arrival;
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::watch;

/// The file that keeps the offset after the last acknowledged record.
pub const ACKNOWLEDGED: &str = "acknowledged";
/// The file that keeps the offset below which segments have been removed because every sink had passed them.
pub const REMOVED: &str = "removed";
/// The file of the next segment until it becomes one.
const PREALLOCATED: &str = "preallocated";
/// The position of one record in so many bytes of a segment is kept in memory.
const INDEX_STRIDE: u64 = 64 << 10;
/// How much of a preallocated segment is filled with zeros at once: a larger write would hold up the syncs of records.
const FILL: usize = 256 << 10;

/// One segment file.
#[derive(Clone, Debug, Default)]
pub struct Segment {
    /// Its size on disk in bytes.
    pub bytes: u64,
    /// Whether part of it cannot be read; such a file is kept aside instead of removed.
    pub damaged: bool,
    /// When its first record was stored.
    pub begun: Arrival,
    /// Lost ranges that have been reported: the offset behind each by its first offset.
    lost: BTreeMap<u64, u64>,
    /// The positions in the file of some records, by offset.
    index: BTreeMap<u64, u64>,
    /// The open file while it is being written to: it can be read even after somebody has deleted it.
    file: Option<Arc<dyn DiskFile>>,
}

impl Segment {
    /// A segment that is not being written to.
    pub fn new(bytes: u64, damaged: bool, begun: Arrival) -> Self {
        Self { bytes, damaged, begun, ..Self::default() }
    }

    /// Takes note of unreadable records; returns how many of them were not known before.
    pub fn lose(&mut self, lost: Range<u64>) -> u64 {
        self.damaged = true;
        let mut merged = lost.clone();
        let mut known = 0;
        let touching = |lost: &BTreeMap<u64, u64>, merged: &Range<u64>| {
            let (start, end) = lost.range(..=merged.end).next_back()?;
            (*end >= merged.start).then_some(*start..*end)
        };
        while let Some(other) = touching(&self.lost, &merged) {
            self.lost.remove(&other.start);
            known += other.end.min(lost.end).saturating_sub(other.start.max(lost.start));
            merged = merged.start.min(other.start)..merged.end.max(other.end);
        }
        self.lost.insert(merged.start, merged.end);
        lost.end - lost.start - known
    }
}

/// The segments, from their recovery on.
#[derive(Debug)]
pub struct Log {
    /// The directory.
    pub disk: Box<dyn Disk>,
    /// See [`ACKNOWLEDGED`].
    pub acknowledged: PositionFile,
    /// See [`REMOVED`].
    pub removed: PositionFile,
    /// How many bytes the segments may take.
    pub max_size: u64,
    segment_size: u64,
    read_cache: usize,
    retain: Option<Retain>,
    state: Mutex<State>,
    /// The offset after the last durable record.
    end: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    segments: BTreeMap<u64, Segment>,
    /// The base of the segment that is being written to, and whether the next one is to be preallocated.
    active: Option<(u64, bool)>,
    /// Bytes of the active segment up to the last durable record.
    used: u64,
    preallocated: Option<Arc<dyn DiskFile>>,
    cache: VecDeque<Arc<Record>>,
    cached_bytes: usize,
}

impl State {
    fn bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.bytes).sum()
    }
}

impl Log {
    /// A log of recovered segments that ends at `end`.
    pub fn new(
        disk: Box<dyn Disk>,
        config: &Config,
        [acknowledged, removed]: [PositionFile; 2],
        segments: BTreeMap<u64, Segment>,
        end: u64,
    ) -> Self {
        Self {
            disk,
            acknowledged,
            removed,
            max_size: config.max_size.as_u64(),
            segment_size: config.segment_size(),
            read_cache: config.read_cache.as_u64() as usize,
            retain: config.retain,
            state: Mutex::new(State { segments, ..State::default() }),
            end: watch::Sender::new(end),
        }
    }

    /// The offset after the last durable record.
    pub fn end(&self) -> u64 {
        *self.end.borrow()
    }

    /// Tells of new records.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.end.subscribe()
    }

    /// The extent of the log now.
    pub fn status(&self) -> Status {
        let end = self.end();
        let state = self.state.lock();
        let start = state.segments.first_key_value().map_or(end, |(base, _)| *base);
        Status { bytes: self.bytes(&state), segments: state.segments.len(), start, end }
    }

    /// About how many bytes the records from `offset` on take: those of one segment count as equally large.
    pub fn bytes_from(&self, offset: u64) -> u64 {
        let end = self.end();
        let state = self.state.lock();
        let limits = state.segments.keys().skip(1).copied().chain([end]);
        let segments = state.segments.iter().zip(limits);
        let bytes = |((base, segment), limit): ((&u64, &Segment), u64)| {
            let used = if state.is_active(*base) { state.used } else { segment.bytes };
            let (records, wanted) = (limit.saturating_sub(*base), limit.saturating_sub(offset.max(*base)));
            let share = wanted as f64 / records.max(1) as f64;
            (used.saturating_sub(segment::HEADER as u64) as f64 * share) as u64
        };
        segments.map(bytes).sum()
    }

    fn bytes(&self, state: &State) -> u64 {
        state.bytes() + if state.preallocated.is_some() { self.segment_size } else { 0 }
    }

    /// When the segment with the record at `offset` was begun.
    pub fn begun(&self, offset: u64) -> Option<Arrival> {
        let state = self.state.lock();
        let base = *state.segments.range(..=offset).next_back()?.0;
        // A segment that cannot be read at all is older than the next one.
        state.segments.range(base..).map(|(_, segment)| segment.begun).find(|begun| *begun != Arrival::default())
    }

    /// The offsets of the segment that holds `offset`, or of the next one behind it.
    pub fn segment_of(&self, offset: u64) -> Option<Range<u64>> {
        let end = self.end();
        let state = self.state.lock();
        let segments = &state.segments;
        let base = *segments.range(..=offset).next_back().or_else(|| segments.range(offset..).next())?.0;
        let limit = segments.range(base + 1..).next().map_or(end, |(next, _)| *next);
        Some(base..limit)
    }

    /// Opens the segment at `base`, at the last record up to `offset` whose position is known; also returns that record's offset.
    pub fn scan(&self, base: u64, offset: u64) -> io::Result<(Scan, u64)> {
        let state = self.state.lock();
        let segment = state.segments.get(&base);
        let open = segment.and_then(|segment| segment.file.clone());
        let known = segment.and_then(|segment| segment.index.range(..=offset).next_back());
        let (next, position) = known.map_or((base, segment::HEADER as u64), |(offset, position)| (*offset, *position));
        drop(state);
        let file = open.map_or_else(|| self.disk.open(&segment::name(base)), Ok)?;
        Ok((Scan::from(file, position)?, next))
    }

    /// Keeps the position of an intact record for [`Self::scan`].
    pub fn index(&self, base: u64, offset: u64, position: u64) {
        if let Some(segment) = self.state.lock().segments.get_mut(&base) {
            let before = segment.index.range(..=offset).next_back().map_or(0, |(_, position)| *position);
            if before + INDEX_STRIDE <= position {
                segment.index.insert(offset, position);
            }
        }
    }

    /// The records from `offset` on that are in memory, about `bytes` of them and at least one if `offset` is in memory.
    pub fn cached(&self, offset: u64, bytes: usize) -> Vec<Arc<Record>> {
        let state = self.state.lock();
        let Some(skip) = state.cache.front().and_then(|first| offset.checked_sub(first.offset)) else {
            return Vec::new();
        };
        state.cache.iter().skip(skip as usize).take_while(fitting(bytes)).cloned().collect()
    }

    /// Drops cached records below `offset`, which every sink has passed.
    pub fn trim_cache(&self, offset: u64) {
        let mut state = self.state.lock();
        while state.cache.front().is_some_and(|first| first.offset < offset) {
            state.pop_cached();
        }
    }

    /// Takes note of records that became durable in the active segment, from `position` to `until` in its file.
    pub fn append(&self, records: Vec<Arc<Record>>, position: Range<u64>) {
        let Some((first, end)) =
            records.first().zip(records.last()).map(|(first, last)| (first.offset, last.offset + 1))
        else {
            return;
        };
        let mut state = self.state.lock();
        state.used = position.end;
        if let Some((base, preallocate)) = &mut state.active {
            // Once half of the segment is full.
            *preallocate |= (position.start..position.end).contains(&(self.segment_size / 2));
            let base = *base;
            drop(state);
            self.index(base, first, position.start);
            state = self.state.lock();
        }
        for record in records {
            state.cached_bytes += record.event.memory();
            state.cache.push_back(record);
        }
        while state.cached_bytes > self.read_cache {
            state.pop_cached();
        }
        drop(state);
        self.end.send_replace(end);
    }

    /// Takes note of acknowledged records that cannot be read. Returns how many of them were not known to be lost.
    pub fn lose(&self, base: u64, lost: Range<u64>) -> u64 {
        match self.state.lock().segments.get_mut(&base) {
            Some(segment) => segment.lose(lost),
            None => 0,
        }
    }

    /// Whether the record at `offset` was found to be unreadable.
    pub fn is_lost(&self, offset: u64) -> bool {
        let state = self.state.lock();
        let segment = state.segments.range(..=offset).next_back();
        let lost = segment.and_then(|(_, segment)| segment.lost.range(..=offset).next_back());
        lost.is_some_and(|(_, end)| offset < *end)
    }

    /// The size of a segment for a request of `needed` bytes.
    pub fn size_for(&self, needed: u64) -> u64 {
        self.segment_size.max(needed + segment::HEADER as u64)
    }

    /// How many bytes are missing for a segment of `size` bytes, and for that one and another. A preallocated segment of another size
    /// makes room.
    pub fn missing_room(&self, size: u64) -> [u64; 2] {
        let wanted = || {
            let state = self.state.lock();
            let fits = state.preallocated.is_some() && size == self.segment_size;
            self.bytes(&state) + if fits { 0 } else { size }
        };
        if wanted() + size > self.max_size && size != self.segment_size {
            self.discard_preallocated();
        }
        let wanted = wanted();
        [wanted, wanted + size].map(|wanted| wanted.saturating_sub(self.max_size))
    }

    /// Up to which offset segments would have to be removed, oldest first, to free `bytes`; no further than `passed`.
    pub fn oldest(&self, bytes: u64, passed: u64) -> u64 {
        let end = self.end();
        let state = self.state.lock();
        let (mut freed, mut until) = (0, 0);
        let limits = state.segments.keys().skip(1).copied().chain([end]);
        for ((base, segment), limit) in state.segments.iter().zip(limits) {
            if freed >= bytes || limit > passed || state.is_active(*base) {
                break;
            }
            freed += segment.bytes;
            until = limit;
        }
        until
    }

    /// Begins the segment at `base` with room for `size` bytes, durably. Its name is never durable before its header.
    pub fn begin(&self, base: u64, size: u64) -> io::Result<Arc<dyn DiskFile>> {
        let name = segment::name(base);
        let preallocated = (size == self.segment_size).then(|| self.state.lock().preallocated.take()).flatten();
        let begin = || {
            let file = match preallocated {
                Some(file) => {
                    file.write_at(&segment::header(base), 0)?;
                    file.sync()?;
                    self.disk.rename(PREALLOCATED, &name)?;
                    file
                }
                None => {
                    // An earlier attempt may have left a file that could not be removed: nothing in it was acknowledged.
                    missing_is_ok(self.disk.remove(&name))?;
                    let file = self.disk.create(&name, size)?;
                    file.write_at(&segment::header(base), 0)?;
                    file.sync()?;
                    file
                }
            };
            self.disk.sync()?;
            Ok(file)
        };
        let file: io::Result<Arc<dyn DiskFile>> = begin();
        let file = file.inspect_err(|_| {
            let _ = self.disk.remove(&name);
            let _ = self.disk.remove(PREALLOCATED);
        })?;
        let mut state = self.state.lock();
        let segment = Segment { bytes: size, begun: Arrival::now(), file: Some(file.clone()), ..Segment::default() };
        state.segments.insert(base, segment);
        (state.active, state.used) = (Some((base, false)), segment::HEADER as u64);
        Ok(file)
    }

    /// Ends the active segment: its file is cut off at `position`, behind its last durable record, or removed if it has none. If that
    /// fails nothing is lost but disk space, since readers stop at the base of the next segment.
    pub fn seal(&self, base: u64, file: &dyn DiskFile, position: u64) {
        let empty = position == segment::HEADER as u64;
        let sealed = match empty {
            true => self.disk.remove(&segment::name(base)).and_then(|()| self.disk.sync()),
            false => file.resize(position).and_then(|()| file.sync()),
        };
        let mut state = self.state.lock();
        state.active = None;
        if let Some(segment) = state.segments.get_mut(&base) {
            segment.file = None;
        }
        match sealed {
            Ok(()) if empty => drop(state.segments.remove(&base)),
            Ok(()) => {
                if let Some(segment) = state.segments.get_mut(&base) {
                    segment.bytes = position;
                }
            }
            Err(error) => tracing::warn!(%error, segment = base, "a segment of the spool could not be trimmed"),
        }
    }

    /// Makes the file of the next segment if the active one is half full and there is room; once, even if that fails. Its bytes are written once, since a sync in
    /// space that was only reserved also has to wait for the file system's journal. Gives up when `stop` says so.
    pub fn preallocate(&self, stop: impl Fn() -> bool) -> io::Result<()> {
        let mut state = self.state.lock();
        let fits = state.preallocated.is_none() && self.bytes(&state) + self.segment_size <= self.max_size;
        match &mut state.active {
            Some((_, wanted)) if *wanted && fits => *wanted = false,
            _ => return Ok(()),
        }
        drop(state);
        let file = self.fill(stop).inspect_err(|_| drop(self.disk.remove(PREALLOCATED)))?;
        let mut state = self.state.lock();
        state.preallocated = file;
        let fits = self.bytes(&state) <= self.max_size;
        drop(state);
        if !fits {
            self.discard_preallocated();
        }
        Ok(())
    }

    fn fill(&self, stop: impl Fn() -> bool) -> io::Result<Option<Arc<dyn DiskFile>>> {
        missing_is_ok(self.disk.remove(PREALLOCATED))?;
        let file = self.disk.create(PREALLOCATED, self.segment_size)?;
        let zeros = vec![0; FILL.min(self.segment_size as usize)];
        for at in (0..self.segment_size).step_by(FILL) {
            if stop() {
                self.disk.remove(PREALLOCATED)?;
                return Ok(None);
            }
            let left = (self.segment_size - at) as usize;
            file.write_at(zeros.get(..left).unwrap_or(&zeros), at)?;
            file.sync()?;
        }
        Ok(Some(file))
    }

    /// Removes the preallocated segment.
    pub fn discard_preallocated(&self) {
        if self.state.lock().preallocated.take().is_some()
            && let Err(error) = self.disk.remove(PREALLOCATED)
        {
            tracing::debug!(%error, "the preallocated segment of the spool stays");
        }
    }

    /// The offsets of the segments that are not written to any more, from those with offset `from` on.
    pub fn sealed(&self, from: u64) -> Vec<Range<u64>> {
        let end = self.end();
        let state = self.state.lock();
        let limits = state.segments.keys().skip(1).copied().chain([end]);
        let segments = state.segments.keys().copied().zip(limits);
        segments
            .filter(|(base, limit)| *limit > from && !state.is_active(*base))
            .map(|(base, limit)| base..limit)
            .collect()
    }

    /// The offsets of the segments that can be removed, oldest first: all below `passed`, but for those that are retained.
    pub fn removable(&self, passed: u64) -> Vec<Range<u64>> {
        let end = self.end();
        let state = self.state.lock();
        let mut bytes = state.bytes();
        let mut removable = Vec::new();
        let mut segments = state.segments.iter().peekable();
        while let Some((base, segment)) = segments.next() {
            let limit = segments.peek().map_or(end, |(next, _)| **next);
            // No record of a segment was stored after the first one of the next.
            let newest = segments.peek().map_or(Arrival::now(), |(_, next)| next.begun);
            if limit > passed || state.is_active(*base) || self.is_retained(bytes, newest) {
                break;
            }
            bytes -= segment.bytes;
            removable.push(*base..limit);
        }
        removable
    }

    /// Whether a segment is still wanted although every sink has passed it, if all segments take so many bytes.
    fn is_retained(&self, bytes: u64, newest: Arrival) -> bool {
        let Some(retain) = self.retain else { return false };
        let pressed = bytes + 2 * self.segment_size > self.max_size;
        let too_large = retain.size.is_some_and(|size| bytes > size.as_u64());
        let too_old = Arrival::now().0.saturating_sub(newest.0) > retain.age.as_millis() as u64;
        !(pressed || too_large || too_old)
    }

    /// Removes the segment at `base`, durably, or keeps it aside if it is damaged.
    pub fn remove(&self, base: u64) -> io::Result<()> {
        let name = segment::name(base);
        if self.state.lock().segments.get(&base).is_some_and(|segment| segment.damaged) {
            let aside = name.replace("segment", "damaged");
            missing_is_ok(self.disk.rename(&name, &aside).inspect(|()| {
                tracing::warn!(file = aside, "keeping a damaged segment of the spool aside");
            }))?;
        } else {
            missing_is_ok(self.disk.remove(&name))?;
        }
        self.disk.sync()?;
        self.state.lock().segments.remove(&base);
        Ok(())
    }

    /// Average bytes of a record on disk.
    pub fn bytes_per_record(&self) -> f64 {
        let Status { start, end, .. } = self.status();
        self.state.lock().bytes() as f64 / (end - start).max(1) as f64
    }

    /// Removes a preallocated segment that another process has left.
    pub fn clean_up(disk: &dyn Disk) {
        if let Err(error) = missing_is_ok(disk.remove(PREALLOCATED)) {
            tracing::debug!(%error, "a preallocated segment of the spool stays");
        }
    }

    /// Whether the next segment is there already.
    #[cfg(test)]
    pub fn is_preallocated(&self) -> bool {
        self.state.lock().preallocated.is_some()
    }
}

impl State {
    fn is_active(&self, base: u64) -> bool {
        self.active.is_some_and(|(active, _)| active == base)
    }

    fn pop_cached(&mut self) {
        if let Some(record) = self.cache.pop_front() {
            self.cached_bytes -= record.event.memory();
        }
    }
}

/// Takes records until they hold `bytes` of memory, and at least one.
pub fn fitting(bytes: usize) -> impl FnMut(&&Arc<Record>) -> bool {
    let mut left = Some(bytes);
    move |record| {
        let first = left == Some(bytes);
        left = left.and_then(|left| left.checked_sub(record.event.memory()));
        left.is_some() || first
    }
}
