//! The thread that writes cursors down and removes what every sink has passed. It sleeps while nothing changes.

use super::cursor::Written;
use super::known::Known;
use super::{Log, Shared, segment};
use crate::event::Arrival;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often cursors are handed to the system, which bounds what is delivered again after `kill -9`.
const NOTE: Duration = Duration::from_millis(50);
/// How often cursors are synced, which bounds what is delivered again after a power cut.
const SYNC: Duration = Duration::from_secs(1);
/// What a client is told when nothing drains.
const UNKNOWN: Duration = Duration::from_secs(60);

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
    /// A cursor moved or a segment was sealed.
    pub fn wake(&self) {
        let mut state = self.state();
        if !state.dirty {
            state.dirty = true;
            self.changed.notify_one();
        }
    }

    /// Room is needed now.
    pub fn hurry(&self) {
        let mut state = self.state();
        (state.dirty, state.hurry) = (true, true);
        self.changed.notify_one();
    }

    /// Writes everything down once more and ends the thread.
    pub fn close(&self) {
        self.state().closed = true;
        self.changed.notify_one();
    }

    /// When `bytes` should have come free, from how fast the slowest sink advances.
    pub fn until_free(&self, bytes: u64) -> Duration {
        match self.state().drained {
            Some((rate, at)) if rate > 0.0 && at.elapsed() < UNKNOWN => {
                Duration::from_secs_f64((bytes as f64 / rate).clamp(1.0, 600.0))
            }
            _ => UNKNOWN,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a change; `true` if it is the last one.
    fn wait(&self) -> bool {
        let mut state = self.state();
        while !state.dirty && !state.closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        // Changes come in thousands a second: let them gather.
        while !state.closed && !state.hurry {
            let (next, timeout) = self.changed.wait_timeout(state, NOTE).unwrap_or_else(PoisonError::into_inner);
            state = next;
            if timeout.timed_out() {
                break;
            }
        }
        (state.dirty, state.hurry) = (false, false);
        state.closed
    }
}

/// Starts the thread, which ends after [`Janitor::close`].
pub fn start(shared: Arc<Shared>, written: Vec<Written>, known: Known) -> io::Result<JoinHandle<()>> {
    let slowest = slowest(&shared);
    let mut keeper = Keeper { shared, written, known, synced_at: None, measured: (slowest, Instant::now()) };
    std::thread::Builder::new().name("spool-janitor".into()).spawn(move || keeper.run())
}

struct Keeper {
    shared: Arc<Shared>,
    written: Vec<Written>,
    known: Known,
    synced_at: Option<Instant>,
    measured: (u64, Instant),
}

impl Keeper {
    fn run(&mut self) {
        self.round(true);
        loop {
            let last = self.shared.janitor.wait();
            let due = self.synced_at.is_none_or(|at| at.elapsed() >= SYNC);
            let removable = self.removable(slowest(&self.shared)).is_some();
            self.round(last || due || removable);
            if last {
                return;
            }
            if self.written.iter().zip(&self.shared.cursors).any(|(written, cursor)| written.synced < cursor.position())
            {
                self.shared.janitor.wake();
            }
        }
    }

    fn round(&mut self, sync: bool) {
        for (cursor, written) in self.shared.cursors.iter().zip(&mut self.written) {
            let kept = if sync { cursor.sync(written) } else { cursor.note(written) };
            if let Err(error) = kept {
                tracing::warn!(%error, sink = cursor.sink(), "a cursor could not be written; a crash now would deliver again");
            }
        }
        if sync {
            self.synced_at = Some(Instant::now());
            self.measure();
            self.remove();
        }
    }

    fn measure(&mut self) {
        let (from, at) = self.measured;
        let slowest = slowest(&self.shared);
        let seconds = at.elapsed().as_secs_f64();
        if slowest <= from || seconds < 0.2 {
            return;
        }
        self.measured = (slowest, Instant::now());
        let end = *self.shared.end.borrow();
        let log = self.shared.log();
        let held = log.segments.first_key_value().map_or(0, |(base, _)| end - base).max(1);
        let record = log.bytes() as f64 / held as f64;
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
        let bytes = log.bytes();
        let pressed = bytes + 2 * self.shared.segment_size > self.shared.max_size;
        let too_large = retain.size.is_some_and(|size| bytes > size.as_u64());
        // No record of a segment is younger than the first one of the next.
        let newest = log.segments.values().nth(1).map_or(Arrival::now(), |next| next.begun);
        let too_old = Arrival::now().0.saturating_sub(newest.0) > retain.age.as_millis() as u64;
        !(pressed || too_large || too_old)
    }

    fn remove(&mut self) {
        let durable = self.written.iter().map(|written| written.synced).min().unwrap_or_default();
        let mut removed = false;
        while let Some(offsets) = self.removable(durable) {
            let base = offsets.start;
            let name = segment::name(base);
            if let Err(error) = self.known.keep(&*self.shared.disk, offsets) {
                tracing::warn!(%error, file = name, "its events would not be recognised if they were resent after a restart");
            }
            let damaged = self.shared.log().segments.get(&base).is_some_and(|segment| segment.damaged);
            let gone = if damaged {
                let aside = name.replace("segment", "damaged");
                tracing::warn!(file = aside, "keeping a damaged segment of the spool aside");
                self.shared.disk.rename(&name, &aside)
            } else {
                self.shared.disk.remove(&name)
            };
            if let Err(error) =
                gone.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
            {
                tracing::warn!(%error, file = name, "a segment of the spool could not be removed");
                break;
            }
            self.shared.log().segments.remove(&base);
            removed = true;
        }
        if removed && let Err(error) = self.shared.disk.sync() {
            tracing::warn!(%error, "the removal of segments could not be made durable");
        }
    }
}

/// The position of the sink that is furthest behind.
fn slowest(shared: &Shared) -> u64 {
    shared.cursors.iter().map(|cursor| cursor.position()).min().unwrap_or_default()
}
