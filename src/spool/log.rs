//! The segments of the log: where its records are, on disk and in the read cache, and how much room there is for more.

use super::cursor::PositionFile;
use super::disk::{Disk, DiskFile, missing_is_ok};
use super::read_cache::ReadCache;
use super::segment::{self, Scan};
use super::segments::{Segment, with_offsets};
use super::{Config, Record, Retain, Status};
use crate::event::Arrival;
use parking_lot::Mutex;
use std::collections::BTreeMap;
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
/// How much of a preallocated segment is filled with zeros at once: a larger write would hold up the syncs of records.
const FILL: usize = 256 << 10;

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
    retain: Option<Retain>,
    state: Mutex<State>,
    /// The offset after the last durable record.
    end: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    /// Only the last one is active.
    segments: BTreeMap<u64, Segment>,
    /// Whether the active segment is half full, and the next one was not preallocated since.
    preallocation_due: bool,
    preallocated: Option<Arc<dyn DiskFile>>,
    cache: ReadCache,
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
            retain: config.retain,
            state: Mutex::new(State {
                segments,
                preallocation_due: false,
                preallocated: None,
                cache: ReadCache::new(config.read_cache.as_u64() as usize),
            }),
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
        let state = self.state.lock();
        let bytes = |(offsets, segment): (Range<u64>, &Segment)| {
            let used = segment.active.as_ref().map_or(segment.bytes, |active| active.used);
            let wanted = offsets.end.saturating_sub(offset.max(offsets.start));
            let share = wanted as f64 / offsets.end.saturating_sub(offsets.start).max(1) as f64;
            (used.saturating_sub(segment::HEADER as u64) as f64 * share) as u64
        };
        self.segments(&state).map(bytes).sum()
    }

    fn bytes(&self, state: &State) -> u64 {
        state.bytes() + if state.preallocated.is_some() { self.segment_size } else { 0 }
    }

    fn segments<'a>(&self, state: &'a State) -> impl Iterator<Item = (Range<u64>, &'a Segment)> {
        with_offsets(&state.segments, self.end())
    }

    /// When the segment with the record at `offset` was begun.
    pub fn begun(&self, offset: u64) -> Option<Arrival> {
        let state = self.state.lock();
        // A segment that cannot be read at all is older than the next one.
        let segments = self.segments(&state).filter(|(offsets, _)| offset < offsets.end);
        segments.map(|(_, segment)| segment.begun).find(|begun| *begun != Arrival::default())
    }

    /// The offsets of the segment that holds `offset`, or of the next one behind it.
    pub fn segment_of(&self, offset: u64) -> Option<Range<u64>> {
        let state = self.state.lock();
        self.segments(&state).map(|(offsets, _)| offsets).find(|offsets| offset < offsets.end)
    }

    /// Opens the segment at `base`, at the last record up to `offset` whose position is known; also returns that record's offset.
    pub fn scan(&self, base: u64, offset: u64) -> io::Result<(Scan, u64)> {
        let state = self.state.lock();
        let segment = state.segments.get(&base);
        let open = segment.and_then(|segment| segment.active.as_ref()).map(|active| active.file.clone());
        let known = segment.and_then(|segment| segment.position(offset));
        let (next, position) = known.unwrap_or((base, segment::HEADER as u64));
        drop(state);
        let file = open.map_or_else(|| self.disk.open(&segment::name(base)), Ok)?;
        Ok((Scan::from(file, position)?, next))
    }

    /// Keeps the position of an intact record for [`Self::scan`].
    pub fn add_position(&self, base: u64, offset: u64, position: u64) {
        if let Some(segment) = self.state.lock().segments.get_mut(&base) {
            segment.add_position(offset, position);
        }
    }

    /// The records from `offset` on that are in memory, about `bytes` of them and at least one if `offset` is in memory.
    pub fn cached(&self, offset: u64, bytes: usize) -> Vec<Arc<Record>> {
        self.state.lock().cache.read(offset, bytes)
    }

    /// Drops cached records below `offset`, which every sink has passed.
    pub fn trim_cache(&self, offset: u64) {
        self.state.lock().cache.trim(offset);
    }

    /// Takes note of records that became durable in the active segment, from `position` to `until` in its file.
    pub fn append(&self, records: Vec<Arc<Record>>, position: Range<u64>) {
        let Some(last) = records.last() else { return };
        let (first, end) = (self.end(), last.offset + 1);
        let mut state = self.state.lock();
        if let Some(mut segment) = state.segments.last_entry() {
            segment.get_mut().add_position(first, position.start);
            if let Some(active) = &mut segment.get_mut().active {
                active.used = position.end;
            }
        }
        state.preallocation_due |= position.contains(&(self.segment_size / 2));
        state.cache.extend(records);
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
        segment.is_some_and(|(_, segment)| segment.is_lost(offset))
    }

    /// The size of a segment for a request of `needed` bytes.
    pub fn size_for(&self, needed: u64) -> u64 {
        self.segment_size.max(needed + segment::HEADER as u64)
    }

    /// How many bytes the segments would take too many with a new one of `size` bytes and so many `further` bytes. A preallocated
    /// segment of another size is discarded then.
    pub fn excess(&self, size: u64, further: u64) -> u64 {
        let excess = || {
            let state = self.state.lock();
            let is_preallocated = state.preallocated.is_some() && size == self.segment_size;
            let new = if is_preallocated { 0 } else { size };
            (self.bytes(&state) + new + further).saturating_sub(self.max_size)
        };
        if excess() > 0 && size != self.segment_size {
            self.discard_preallocated();
        }
        excess()
    }

    /// Up to which offset segments would have to be removed, oldest first, to free `bytes`; no further than `passed`.
    pub fn oldest(&self, bytes: u64, passed: u64) -> u64 {
        let state = self.state.lock();
        let (mut freed, mut until) = (0, 0);
        for (offsets, segment) in self.segments(&state) {
            if freed >= bytes || offsets.end > passed || segment.active.is_some() {
                break;
            }
            freed += segment.bytes;
            until = offsets.end;
        }
        until
    }

    /// Begins the segment at `base` with room for `size` bytes, durably. Its name is never durable before its header.
    pub fn begin(&self, base: u64, size: u64) -> io::Result<Arc<dyn DiskFile>> {
        let name = segment::name(base);
        let preallocated = (size == self.segment_size).then(|| self.state.lock().preallocated.take()).flatten();
        let begin = || {
            let file = match &preallocated {
                Some(file) => file.clone(),
                None => {
                    // An earlier attempt may have left a file that could not be removed: nothing in it was acknowledged.
                    missing_is_ok(self.disk.remove(&name))?;
                    self.disk.create(&name, size)?
                }
            };
            file.write_at(&segment::header(base), 0)?;
            file.sync()?;
            if preallocated.is_some() {
                self.disk.rename(PREALLOCATED, &name)?;
            }
            self.disk.sync()?;
            Ok(file)
        };
        let file: io::Result<Arc<dyn DiskFile>> = begin();
        let file = file.inspect_err(|_| {
            let _ = self.disk.remove(&name);
            if preallocated.is_some() {
                let _ = self.disk.remove(PREALLOCATED);
            }
        })?;
        let mut state = self.state.lock();
        state.segments.insert(base, Segment::begin(file.clone(), size));
        state.preallocation_due = false;
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
        state.preallocation_due = false;
        let Some(segment) = state.segments.get_mut(&base) else { return };
        segment.active = None;
        match sealed {
            Ok(()) if empty => drop(state.segments.remove(&base)),
            Ok(()) => segment.bytes = position,
            Err(error) => tracing::warn!(%error, segment = base, "a segment of the spool could not be trimmed"),
        }
    }

    /// Makes the file of the next segment if the active one is half full and there is room; once, even if that fails. Its bytes are
    /// written once, since a sync in space that was only reserved also has to wait for the file system's journal. Gives up when `stop`
    /// says so.
    pub fn preallocate(&self, stop: impl Fn() -> bool) -> io::Result<()> {
        let mut state = self.state.lock();
        let fits = state.preallocated.is_none() && self.bytes(&state) + self.segment_size <= self.max_size;
        if !fits || !std::mem::take(&mut state.preallocation_due) {
            return Ok(());
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
        let preallocated = self.state.lock().preallocated.take();
        if preallocated.is_some() {
            clean_up(&*self.disk);
        }
    }

    /// The offsets of the segments that are not written to any more, from those with offset `from` on.
    pub fn sealed(&self, from: u64) -> Vec<Range<u64>> {
        let state = self.state.lock();
        let sealed = self.segments(&state).filter(|(offsets, segment)| offsets.end > from && segment.active.is_none());
        sealed.map(|(offsets, _)| offsets).collect()
    }

    /// The offsets of the segments that can be removed, oldest first: all below `passed`, but for those that are retained.
    pub fn removable(&self, passed: u64) -> Vec<Range<u64>> {
        let state = self.state.lock();
        let mut bytes = state.bytes();
        let mut removable = Vec::new();
        let mut segments = self.segments(&state).peekable();
        while let Some((offsets, segment)) = segments.next() {
            // No record of a segment was stored after the first one of the next.
            let newest = segments.peek().map_or(Arrival::now(), |(_, next)| next.begun);
            if offsets.end > passed || segment.active.is_some() || self.is_retained(bytes, newest) {
                break;
            }
            bytes -= segment.bytes;
            removable.push(offsets);
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

    /// Whether the next segment is there already.
    #[cfg(test)]
    pub fn is_preallocated(&self) -> bool {
        self.state.lock().preallocated.is_some()
    }
}

/// Removes a preallocated segment, which nothing needs.
pub fn clean_up(disk: &dyn Disk) {
    if let Err(error) = missing_is_ok(disk.remove(PREALLOCATED)) {
        tracing::debug!(%error, "a preallocated segment of the spool stays");
    }
}
