//! The thread that writes cursors, removes segments that every sink has passed, and preallocates the next segment.

use super::shared::{AbandonOnPanic, Shared};
use parking_lot::{Condvar, Mutex};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often cursors are written, which bounds the duplicates after `kill -9`.
const NOTE: Duration = Duration::from_millis(50);
/// How often cursors are synced, which bounds the duplicates after a power cut. The spool directory is checked for existence as often.
const SYNC: Duration = Duration::from_secs(1);
/// `Retry-After` when nothing drains.
const UNKNOWN: Duration = Duration::from_secs(60);
/// `Retry-After` when everything is drained and only has to be removed.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Wakes the thread, and holds its measurements.
#[derive(Debug, Default)]
pub struct Signal {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    dirty: bool,
    closed: bool,
    /// Bytes per second that sinks passed lately, and when that was measured.
    drained: Option<(f64, Instant)>,
}

impl Signal {
    /// A cursor moved, or records were stored.
    pub fn wake(&self) {
        let was_dirty = std::mem::replace(&mut self.state.lock().dirty, true);
        if !was_dirty {
            self.changed.notify_one();
        }
    }

    /// Ends the thread after one more round.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_one();
    }

    fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Waits up to [`SYNC`] for a change and then up to `gather` for more of them; `true` if the next round is the last one.
    fn wait(&self, gather: Duration) -> bool {
        let mut state = self.state.lock();
        let idle = Instant::now() + SYNC;
        while !state.dirty && !state.closed {
            if self.changed.wait_until(&mut state, idle).timed_out() {
                break;
            }
        }
        let until = Instant::now() + gather;
        while !state.closed {
            if self.changed.wait_until(&mut state, until).timed_out() {
                break;
            }
        }
        state.dirty = false;
        state.closed
    }
}

/// The maintenance thread.
pub struct Maintenance {
    shared: Arc<Shared>,
    synced_at: Option<Instant>,
    measured: (u64, Instant),
    /// The last round did not do everything.
    failing: bool,
}

impl Maintenance {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let measured = (shared.slowest(), Instant::now());
        Self { shared, synced_at: None, measured, failing: false }
    }

    /// Works until [`Signal::close`].
    pub(super) fn run(mut self) {
        let _abandon = AbandonOnPanic(self.shared.clone());
        self.round(true);
        loop {
            // A disk that fails is not asked more often than once a second, nor is the log filled with it.
            let gather = if self.failing { SYNC } else { NOTE };
            let last = self.shared.maintenance.wait(gather);
            let due = self.synced_at.is_none_or(|at| at.elapsed() >= SYNC);
            if !self.shared.log.disk.exists() {
                self.shared.lose_directory();
            }
            self.round(last || due || !self.shared.log.removable(self.shared.slowest()).is_empty());
            if last {
                return self.shared.log.discard_preallocated();
            }
        }
    }

    /// Writes the cursors; with `sync` makes them durable and removes the segments that all of them have passed. Preallocates the next
    /// segment.
    pub(super) fn round(&mut self, sync: bool) {
        if self.shared.is_directory_lost() {
            return;
        }
        self.shared.log.trim_cache(self.shared.slowest());
        self.keep_calls();
        match self.write_cursors(sync) {
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
        let signal = &self.shared.maintenance;
        if !self.failing
            && !signal.is_closed()
            && let Err(error) = self.shared.log.preallocate(|| signal.is_closed())
        {
            tracing::warn!(%error, "the next segment of the spool cannot be preallocated; webhooks will wait for it longer");
        }
    }

    fn write_cursors(&mut self, sync: bool) -> io::Result<()> {
        let cursors = self.shared.cursors.read().clone();
        if !sync {
            return cursors.iter().try_for_each(|cursor| cursor.note());
        }
        // One cursor's failure must not keep the others from moving.
        let synced = cursors.iter().map(|cursor| cursor.sync()).fold(Ok(()), io::Result::and);
        self.synced_at = Some(Instant::now());
        self.measure();
        synced?;
        self.shared.log.acknowledged.sync(self.shared.log.end())?;
        self.remove()
    }

    /// Removes the segments that the durable cursors have passed, oldest first, each removal durable before the next: a crash can bring
    /// back the last of them, never an earlier one without it, so that the log has no gaps.
    fn remove(&mut self) -> io::Result<()> {
        let log = &self.shared.log;
        // Held to the end: a sink that is added meanwhile must not begin in a segment that is being removed.
        let cursors = self.shared.cursors.read();
        let durable = cursors.iter().map(|cursor| cursor.durable()).min().unwrap_or_default();
        let removable = log.removable(durable);
        let Some(until) = removable.last().map(|offsets| offsets.end) else { return Ok(()) };
        log.removed.sync(until)?;
        for offsets in &removable {
            let changes = self.shared.index.lock().keep_ids(offsets);
            if let Err(error) = changes.make(&*log.disk) {
                tracing::warn!(%error, "events that are resent after a restart may be stored twice");
            }
            log.remove(offsets.start)?;
        }
        Ok(())
    }

    /// Writes the names of calls and the legs in segments that are full, so that a start need not read these.
    fn keep_calls(&self) {
        let log = &self.shared.log;
        let kept = self.shared.index.lock().kept();
        for offsets in log.sealed(kept) {
            let changes = self.shared.index.lock().keep_calls(&offsets);
            if let Err(error) = changes.make(&*log.disk) {
                tracing::warn!(%error, "call detail records may not find the conversation of their call after a restart");
            }
        }
    }

    /// Measures how fast the slowest sink advances.
    fn measure(&mut self) {
        let (from, at) = self.measured;
        let slowest = self.shared.slowest();
        let seconds = at.elapsed().as_secs_f64();
        if slowest > from && seconds >= 0.2 {
            let rate = (slowest - from) as f64 * self.shared.log.bytes_per_record() / seconds;
            self.measured = (slowest, Instant::now());
            self.shared.maintenance.state.lock().drained = Some((rate, Instant::now()));
        }
    }
}

impl Shared {
    /// When `bytes` should have come free, from how fast the slowest sink advances.
    pub(super) fn until_free(&self, bytes: u64) -> Duration {
        if self.slowest() >= self.log.end() {
            return AT_ONCE;
        }
        match self.maintenance.state.lock().drained {
            Some((rate, at)) if rate > 0.0 && at.elapsed() < UNKNOWN => {
                Duration::from_secs_f64((bytes as f64 / rate).clamp(1.0, 600.0))
            }
            _ => UNKNOWN,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_gathered_and_a_close_waits_for_no_more() {
        let signal = Signal::default();
        signal.wake();
        let begun = Instant::now();
        assert!(!signal.wait(Duration::from_millis(30)));
        assert!(begun.elapsed() >= Duration::from_millis(30));
        signal.close();
        assert!(signal.wait(Duration::from_secs(3600)));
    }
}
