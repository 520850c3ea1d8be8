//! Room for the next segment: how much there is, who gives way for it, and whose the file is that is made ahead.
//!
//! The writer asks for that file and takes it, the janitor makes it. Whoever takes it out of the log has it for himself.

use super::Shared;
use super::active::Active;
use super::queue::AppendError;
use super::spare::{self, Spare};
use std::sync::PoisonError;

/// The file of the segment that comes next.
#[derive(Debug, Default)]
pub enum Next {
    /// Nobody needs it yet.
    #[default]
    Unasked,
    /// The janitor is to make it.
    Asked,
    /// It is there for the writer to take.
    Made(Spare),
}

impl Next {
    fn made(self) -> Option<Spare> {
        if let Self::Made(spare) = self { Some(spare) } else { None }
    }

    /// Its bytes on disk.
    pub fn size(&self) -> u64 {
        if let Self::Made(spare) = self { spare.size } else { 0 }
    }

    fn is_of(&self, size: u64) -> bool {
        matches!(self, Self::Made(spare) if spare.size == size)
    }
}

impl Shared {
    /// Sees to it that there is room for a segment of `size` bytes, and if it can be, for another.
    pub(super) fn room_for(&self, size: u64) -> Result<(), AppendError> {
        let wanted = || {
            let log = self.log();
            log.bytes() + if log.next.is_of(size) { 0 } else { size }
        };
        if wanted() + size > self.max_size {
            self.seal_full();
            if !self.log().next.is_of(size) {
                self.discard_spare();
            }
        }
        if wanted() + size > self.max_size {
            self.relieve(wanted() + size - self.max_size);
        }
        if wanted() > self.max_size {
            return Err(AppendError::Full { retry_after: self.until_free(size) });
        }
        Ok(())
    }

    /// Has the file of the next segment made.
    pub(super) fn ask_for_spare(&self) {
        let mut log = self.log();
        if matches!(log.next, Next::Unasked) {
            log.next = Next::Asked;
        }
        drop(log);
        self.janitor.wake();
    }

    /// Whether the file of the next segment has been asked for, and there is room for it.
    pub(super) fn wants_spare(&self) -> bool {
        let log = self.log();
        matches!(log.next, Next::Asked) && log.bytes() + self.segment_size <= self.max_size
    }

    /// Keeps the file for the next segment, if there is still room.
    pub(super) fn offer(&self, spare: Spare) {
        let mut log = self.log();
        log.next = Next::Made(spare);
        let fits = log.bytes() <= self.max_size;
        drop(log);
        if !fits {
            self.discard_spare();
        }
    }

    /// Removes what there is of a file for the next segment that has not been offered.
    pub(super) fn withdraw(&self) {
        self.log().next = Next::Unasked;
        if let Err(error) = spare::remove_unfinished(&*self.disk) {
            tracing::debug!(%error, "the file for the next segment of the spool stays");
        }
    }

    /// Whether the segment at `base` is of use as the next one.
    pub(super) fn is_reusable(&self, base: u64) -> bool {
        let log = self.log();
        let segment = log.segments.get(&base);
        // Who replays what is retained may be reading it.
        self.retain.is_none()
            && !matches!(log.next, Next::Made(_))
            && segment.is_some_and(|segment| segment.reusable && !segment.damaged && segment.bytes == self.segment_size)
    }

    /// The file for a segment of `size` bytes, if it has been made.
    pub(super) fn take_spare(&self, size: u64) -> Option<Spare> {
        let mut log = self.log();
        let next = std::mem::take(&mut log.next);
        if next.is_of(size) {
            return next.made();
        }
        if matches!(next, Next::Made(_)) {
            log.next = next;
        }
        None
    }

    /// Removes the file for the next segment, if it has been made and nobody has taken it.
    pub(super) fn discard_spare(&self) {
        let made = std::mem::take(&mut self.log().next).made();
        if let Some(Err(error)) = made.map(|spare| spare.discard(&*self.disk)) {
            tracing::debug!(%error, "the file for the next segment of the spool stays");
        }
    }

    /// Sees to it that about `bytes` of old segments can be removed, as far as required sinks have passed them: sinks that
    /// are not required skip their records.
    fn relieve(&self, bytes: u64) {
        let end = *self.end.borrow();
        let passed = self.cursors.iter().filter(|cursor| !cursor.is_optional()).map(|cursor| cursor.position()).min();
        let passed = passed.unwrap_or(end);
        let log = self.log();
        let mut freed = 0;
        let mut until = 0;
        for (index, (base, segment)) in log.segments.iter().enumerate() {
            let limit = log.segments.keys().nth(index + 1).copied().unwrap_or(end);
            if freed >= bytes || limit > passed || log.active == Some(*base) {
                break;
            }
            freed += segment.bytes;
            until = limit;
        }
        drop(log);
        for cursor in self.cursors.iter().filter(|cursor| cursor.is_optional()) {
            let skipped = cursor.skip(until);
            if skipped > 0 {
                self.metrics.skipped(cursor.sink()).inc_by(skipped);
                tracing::error!(
                    sink = cursor.sink(),
                    records = skipped,
                    "spool full: records skipped for a sink that is not required"
                );
            }
        }
        self.janitor.hurry();
    }

    /// Cuts full segments off, or waits until another thread has done so.
    pub(super) fn seal_full(&self) {
        let _sealing = self.sealing.lock().unwrap_or_else(PoisonError::into_inner);
        let full = std::mem::take(&mut self.log().full);
        for (segment, next) in full {
            self.seal(&segment, next);
        }
    }

    /// Ends a segment. If that fails nothing is lost but disk space: readers stop at the base of the next segment.
    pub(super) fn seal(&self, segment: &Active, next: u64) {
        let sealed = segment.seal(&*self.disk, next);
        let mut log = self.log();
        match sealed {
            Ok(_) if segment.is_empty() => drop(log.segments.remove(&segment.base)),
            Ok(bytes) => {
                if let Some(sealed) = log.segments.get_mut(&segment.base) {
                    sealed.bytes = bytes;
                    sealed.reusable = !segment.failed;
                }
            }
            Err(error) => tracing::warn!(%error, segment = segment.base, "a segment of the spool could not be trimmed"),
        }
    }
}
