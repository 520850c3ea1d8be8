//! The thread that writes cursors down, removes what every sink has passed, cuts full segments off, and makes the file of the next
//! one. It sleeps while nothing changes.

use super::cursor::Written;
use super::disk::{DiskFile, free};
use super::known::{Identities, Known};
use super::queue::AbandonOnPanic;
use super::spare::{Filling, Spare};
use super::{Log, Shared, segment};
use crate::event::Arrival;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often cursors are handed to the system, which bounds what is delivered again after `kill -9`.
const NOTE: Duration = Duration::from_millis(50);
/// By how much this thread's work is less urgent than the others': it gets a tenth of a processor that is wanted all the time.
const NICE: i32 = 10;
/// How often cursors are synced, which bounds what is delivered again after a power cut.
const SYNC: Duration = Duration::from_secs(1);
/// What a client is told when nothing drains.
const UNKNOWN: Duration = Duration::from_secs(60);
/// What a client is told when all is drained and only has to be removed.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Wakes the thread and tells what it has seen.
#[derive(Debug, Default)]
pub struct Janitor {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    dirty: bool,
    hurry: bool,
    closed: bool,
    /// Bytes per second that came free lately, and when that was measured.
    drained: Option<(f64, Instant)>,
}

impl Janitor {
    /// A cursor moved, a segment is full, or the file of the next one is wanted.
    pub fn wake(&self) {
        // Let go of before anybody is woken, who may run at once and would meet the lock.
        let dirty = std::mem::replace(&mut self.state().dirty, true);
        if !dirty {
            self.changed.notify_one();
        }
    }

    /// Room is needed now.
    pub fn hurry(&self) {
        let mut state = self.state();
        (state.dirty, state.hurry) = (true, true);
        drop(state);
        self.changed.notify_one();
    }

    /// Writes everything down once more and ends the thread.
    pub fn close(&self) {
        self.state().closed = true;
        self.changed.notify_one();
    }

    fn is_closed(&self) -> bool {
        self.state().closed
    }

    fn take_hurry(&self) -> bool {
        std::mem::take(&mut self.state().hurry)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a change and then for more of them, up to `gather`; `true` if it was the last one.
    pub(super) fn wait(&self, gather: Duration, may_hurry: bool) -> bool {
        let mut state = self.state();
        while !state.dirty && !state.closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let until = Instant::now() + gather;
        while !(state.closed || state.hurry && may_hurry) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        (state.dirty, state.hurry) = (false, false);
        state.closed
    }
}

/// The one that tidies up.
pub struct Keeper {
    shared: Arc<Shared>,
    written: Vec<Written>,
    known: Known,
    synced_at: Option<Instant>,
    measured: (u64, Instant),
    /// A removal is not durable yet.
    removed: bool,
    /// The file of a removed segment, to be offered when that is durable.
    recycled: Option<Spare>,
    /// The same, to be freed then.
    unnamed: Option<Box<dyn DiskFile>>,
    /// The file of the next segment is being filled.
    filling: bool,
    /// The last round did not do all it should have.
    failing: bool,
}

impl Keeper {
    /// A keeper of cursors of which this has been written.
    pub(super) fn new(shared: Arc<Shared>, written: Vec<Written>, known: Known) -> Self {
        let measured = (shared.slowest(), Instant::now());
        Self {
            shared,
            written,
            known,
            synced_at: None,
            measured,
            removed: false,
            recycled: None,
            unnamed: None,
            filling: false,
            failing: false,
        }
    }

    /// Works until [`Janitor::close`].
    pub(super) fn run(mut self) {
        let _abandon = AbandonOnPanic(self.shared.clone());
        // To read a segment before it goes, and to fill another, takes some milliseconds of a processor that requests wait for. On
        // Linux this is about the thread alone.
        let _ = rustix::process::nice(NICE);
        self.round(true);
        loop {
            // A disk that fails is not asked more often than once a second, nor is the log filled with it.
            let gather = if self.failing { SYNC } else { NOTE };
            let last = self.shared.janitor.wait(gather, !self.failing);
            self.tend(last);
            if last {
                self.shared.discard_spare();
                return;
            }
            self.make_spare();
            if self.failing || self.behind() {
                self.shared.janitor.wake();
            }
        }
    }

    /// Does all there is to do; with `sync` makes the cursors durable and removes what all of them have passed.
    pub(super) fn round(&mut self, sync: bool) {
        self.shared.seal_full();
        self.keep(sync);
        self.make_spare();
    }

    /// Does what is due, and all of it if it is the `last` time.
    fn tend(&mut self, last: bool) {
        self.shared.seal_full();
        let due = self.synced_at.is_none_or(|at| at.elapsed() >= SYNC);
        let removable = self.removable(self.shared.slowest()).is_some();
        self.keep(last || due || removable);
    }

    /// Writes the cursors; with `sync` makes them durable and removes what all of them have passed.
    fn keep(&mut self, sync: bool) {
        match self.write_down(sync) {
            Ok(()) if self.failing => {
                self.failing = false;
                tracing::info!("the spool's cursors and segments are kept again");
            }
            Err(error) if !self.failing => {
                self.failing = true;
                tracing::warn!(
                    %error,
                    "cursors or segments of the spool cannot be kept; trying again; a crash now would deliver again"
                );
            }
            _ => {}
        }
    }

    /// Makes the file of the next segment, if that has been asked for and fits.
    fn make_spare(&mut self) {
        if self.failing || !self.shared.wants_spare() {
            return;
        }
        self.filling = true;
        let made = self.fill_spare();
        self.filling = false;
        if let Err(error) = &made {
            tracing::warn!(%error, "the next segment of the spool cannot be made ahead of time; webhooks will wait for it longer");
        }
        match made {
            Ok(Some(spare)) => self.shared.offer(spare),
            _ => self.shared.withdraw(),
        }
    }

    /// Fills it, and does meanwhile what is due; `None` if there is no more need.
    fn fill_spare(&mut self) -> io::Result<Option<Spare>> {
        let shared = self.shared.clone();
        let mut filling = Filling::begin(&*shared.disk, shared.segment_size)?;
        let mut tended = Instant::now();
        loop {
            filling = match filling.step()? {
                Ok(spare) => return Ok(Some(spare)),
                Err(filling) => filling,
            };
            if shared.janitor.take_hurry() || tended.elapsed() >= NOTE {
                self.tend(false);
                tended = Instant::now();
            }
            if self.failing || shared.janitor.is_closed() {
                return Ok(None);
            }
        }
    }

    /// How far each cursor is durable.
    #[cfg(test)]
    pub(super) fn durable(&self) -> Vec<u64> {
        self.written.iter().map(|written| written.synced).collect()
    }

    fn behind(&self) -> bool {
        self.written.iter().zip(&self.shared.cursors).any(|(written, cursor)| written.synced < cursor.position())
    }

    fn write_down(&mut self, sync: bool) -> io::Result<()> {
        let mut result = Ok(());
        for (cursor, written) in self.shared.cursors.iter().zip(&mut self.written) {
            let kept = if sync { cursor.sync(written) } else { cursor.note(written) };
            result = result.and(kept);
        }
        if sync {
            self.synced_at = Some(Instant::now());
            self.measure();
            result = result.and(self.remove());
        }
        result
    }

    fn measure(&mut self) {
        let (from, at) = self.measured;
        let slowest = self.shared.slowest();
        let seconds = at.elapsed().as_secs_f64();
        if slowest <= from || seconds < 0.2 {
            return;
        }
        self.measured = (slowest, Instant::now());
        let end = *self.shared.end.borrow();
        let log = self.shared.log();
        let held = log.segments.first_key_value().map_or(0, |(base, _)| end - base).max(1);
        let record = log.segment_bytes() as f64 / held as f64;
        drop(log);
        self.shared.janitor.state().drained = Some(((slowest - from) as f64 * record / seconds, Instant::now()));
    }

    /// The offsets of the first segment if all of them lie below `passed`.
    fn removable(&self, passed: u64) -> Option<Range<u64>> {
        let end = *self.shared.end.borrow();
        let log = self.shared.log();
        let mut bases = log.segments.keys();
        let first = *bases.next()?;
        let limit = bases.next().map_or(end, |next| *next);
        (limit <= passed && log.active != Some(first) && !self.is_retained(&log)).then_some(first..limit)
    }

    /// Whether the first segment is still wanted although every sink has it.
    fn is_retained(&self, log: &Log) -> bool {
        let Some(retain) = self.shared.retain else { return false };
        let bytes = log.segment_bytes();
        let pressed = bytes + 2 * self.shared.segment_size > self.shared.max_size;
        let too_large = retain.size.is_some_and(|size| bytes > size.as_u64());
        // No record of a segment is younger than the first one of the next.
        let newest = log.segments.values().nth(1).map_or(Arrival::now(), |next| next.begun);
        let too_old = Arrival::now().0.saturating_sub(newest.0) > retain.age.as_millis() as u64;
        !(pressed || too_large || too_old)
    }

    /// Removes what the durable cursors have passed, oldest first, each removal durable before the next: a crash can bring
    /// back the latest of them, never an earlier one without it, so that the log has no gaps.
    fn remove(&mut self) -> io::Result<()> {
        let durable = self.written.iter().map(|written| written.synced).min().unwrap_or_default();
        loop {
            if self.removed {
                self.shared.disk.sync()?;
                self.removed = false;
            }
            if let Some(spare) = self.recycled.take() {
                self.shared.offer(spare);
            }
            if let Some(file) = self.unnamed.take() {
                // What is left is freed when it is closed.
                let _ = free(&*file);
            }
            let Some(offsets) = self.removable(durable) else { return Ok(()) };
            let base = offsets.start;
            let name = segment::name(base);
            let identities = self.shared.identities(&offsets);
            if let Err(error) = self.known.keep(&*self.shared.disk, base, &identities) {
                tracing::warn!(%error, file = name, "its events would not be recognised if they were resent after a restart");
            }
            let damaged = self.shared.log().segments.get(&base).is_some_and(|segment| segment.damaged);
            let gone = if damaged {
                let aside = name.replace("segment", "damaged");
                tracing::warn!(file = aside, "keeping a damaged segment of the spool aside");
                self.shared.disk.rename(&name, &aside)
            } else {
                self.remove_or_recycle(base)
            };
            match gone {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => self.removed = true,
            }
            self.shared.log().segments.remove(&base);
        }
    }

    fn remove_or_recycle(&mut self, base: u64) -> io::Result<()> {
        if !self.filling && !self.shared.janitor.is_closed() && self.shared.is_reusable(base) {
            self.recycled = Some(Spare::recycle(&*self.shared.disk, base, self.shared.segment_size)?);
            return Ok(());
        }
        let name = segment::name(base);
        // Who replays what is retained may be reading it. One that cannot be opened is freed along with its name.
        let file = self.shared.retain.is_none().then(|| self.shared.disk.open(&name).ok()).flatten();
        self.shared.disk.remove(&name)?;
        self.unnamed = file;
        Ok(())
    }
}

impl Shared {
    /// The identities of what lies at these offsets and may be sent again; not of what could not be read, which is stored anew then.
    fn identities(&self, offsets: &Range<u64>) -> Identities {
        let (mut found, mut place) = (Vec::new(), None);
        // Who has the lock for long, and little of the processor, lets the writer wait for even longer.
        loop {
            place = self.recent().look_for(offsets, place, &mut found);
            if place.is_none() {
                break;
            }
        }
        let gone = self.log().gone.below(offsets.end);
        found.retain(|(.., offset)| !gone.contains(*offset));
        found.into_iter().map(|(id, arrival, _)| (id, arrival)).collect()
    }

    /// The position of the sink that is furthest behind.
    pub(super) fn slowest(&self) -> u64 {
        self.cursors.iter().map(|cursor| cursor.position()).min().unwrap_or_default()
    }

    /// When `bytes` should have come free, from how fast the slowest sink advances.
    pub(super) fn until_free(&self, bytes: u64) -> Duration {
        if self.slowest() >= *self.end.borrow() {
            return AT_ONCE;
        }
        match self.janitor.state().drained {
            Some((rate, at)) if rate > 0.0 && at.elapsed() < UNKNOWN => {
                Duration::from_secs_f64((bytes as f64 / rate).clamp(1.0, 600.0))
            }
            _ => UNKNOWN,
        }
    }
}
