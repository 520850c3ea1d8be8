//! Requests that wait for the writer, and what they are told.

use super::Shared;
use crate::event::Events;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio::task::yield_now;

/// How often the spool looks by itself whether it can take records again.
const LOOK: Duration = Duration::from_secs(1);

/// The writer takes so many requests without waiting whether more come.
const ENOUGH: usize = 64;
/// Nor when all that is ready to run has had its turn so often and no request came of it.
const IN_VAIN: usize = 2;

/// How many events of a request were stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Appended {
    /// Stored and durable.
    pub stored: usize,
    /// Durable already.
    pub duplicates: usize,
}

/// Where the events of one request are in the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placed {
    /// Those that were stored.
    pub fresh: Range<u64>,
    /// Those that were durable already; for one whose segment has been removed, any offset in that segment.
    pub earlier: Vec<u64>,
}

impl Placed {
    /// How many events there are of each kind.
    pub fn count(&self) -> Appended {
        let stored = self.fresh.end.saturating_sub(self.fresh.start) as usize;
        Appended { stored, duplicates: self.earlier.len() }
    }
}

/// Why nothing of a request was acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// No room until sinks have caught up.
    #[error("the spool is full")]
    Full {
        /// When there should be room again, from how fast the slowest sink drains it.
        retry_after: Duration,
    },
    /// There will never be room.
    #[error("the events of the request take {needed} bytes and the spool holds {max_size}")]
    TooLarge {
        /// What they take on disk.
        needed: u64,
        /// `spool.max_size`.
        max_size: u64,
    },
    /// The disk refused a write or a sync.
    #[error("the spool cannot write: {cause}")]
    Failed {
        /// What the system said.
        cause: String,
    },
    /// The bridge is stopping.
    #[error("the spool is closed")]
    Closed,
}

/// The events of one request and whom to tell.
#[derive(Debug)]
pub struct Append {
    pub events: Events,
    /// The only sink they are for. Such events are stored even if they were before.
    pub target: Option<Box<str>>,
    /// What their memory is accounted for with, until they are stored.
    pub held: Option<OwnedSemaphorePermit>,
    pub done: oneshot::Sender<Result<Placed, AppendError>>,
}

/// A commit whose requests can be answered and whose records can be read.
#[derive(Debug)]
pub struct Release {
    /// Whether there are any records.
    pub appended: bool,
    pub waiting: Vec<(oneshot::Sender<Result<Placed, AppendError>>, Placed)>,
}

impl Release {
    /// Wakes the readers and answers the requests.
    pub fn carry_out(self, end: &watch::Sender<u64>) {
        if self.appended {
            end.send_modify(|_| {});
        }
        for (done, placed) in self.waiting {
            let _ = done.send(Ok(placed));
        }
    }
}

/// Carries out releases where those who wait are: the writer would wake them one by one, and the first would take its
/// processor away.
pub async fn carry_out(mut releases: mpsc::UnboundedReceiver<Release>, end: watch::Sender<u64>) {
    while let Some(release) = releases.recv().await {
        release.carry_out(&end);
    }
}

/// Requests that wait for the next group commit.
#[derive(Debug, Default)]
pub struct Queue {
    state: Mutex<Waiting>,
    arrived: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    requests: VecDeque<Append>,
    closed: bool,
    trouble: Option<String>,
    /// Those that were ready to come have come.
    gathered: bool,
    /// The writer sleeps.
    asleep: bool,
}

impl Waiting {
    /// Whether the writer is to take what there is.
    fn are_due(&self) -> bool {
        self.closed || self.gathered && !self.requests.is_empty()
    }
}

/// Tells the writer when dropped that there is something to take: also when whoever undertook that is gone.
#[must_use = "the writer waits for it"]
pub struct Gathering<'a>(&'a Queue);

impl Gathering<'_> {
    /// Ends when no more come, or enough have: all tasks that are ready to run have their turn, and again those that have become ready
    /// meanwhile. Their requests go into the same commit, and a commit costs more than many records.
    pub async fn end(self) {
        let (mut waiting, mut in_vain) = (self.0.waiting(), 0);
        while in_vain < IN_VAIN && waiting < ENOUGH {
            yield_now().await;
            let before = std::mem::replace(&mut waiting, self.0.waiting());
            in_vain = if before == waiting { in_vain + 1 } else { 0 };
        }
    }
}

impl Drop for Gathering<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.gathered = true;
        let asleep = std::mem::take(&mut state.asleep);
        // Who is woken may run at once, and would meet the lock.
        drop(state);
        if asleep {
            self.0.arrived.notify_one();
        }
    }
}

impl Queue {
    /// Adds a request; it learns at once if the queue is closed. The writer takes what waits when the first of them has gathered the
    /// others, which is returned for that.
    pub fn push(&self, append: Append) -> Option<Gathering<'_>> {
        let mut state = self.state();
        if state.closed {
            let _ = append.done.send(Err(AppendError::Closed));
            return None;
        }
        let first = state.requests.is_empty();
        state.requests.push_back(append);
        first.then(|| Gathering(self))
    }

    /// How many requests wait.
    fn waiting(&self) -> usize {
        self.state().requests.len()
    }

    /// No more requests; those that wait are still written.
    pub fn close(&self) {
        self.state().closed = true;
        self.arrived.notify_all();
    }

    /// Why the last append failed, if it did.
    pub fn trouble(&self) -> Option<String> {
        self.state().trouble.clone()
    }

    pub fn set_trouble(&self, trouble: Option<String>) {
        self.state().trouble = trouble;
    }

    /// Refuses what waits and all that is to come: no thread is left to do it.
    pub fn abandon(&self, cause: &str) {
        let mut state = self.state();
        state.closed = true;
        state.trouble = Some(cause.to_owned());
        state.requests.clear();
        drop(state);
        self.arrived.notify_all();
    }

    /// The requests that wait; none at all if it is time to look whether the trouble is over, `None` at the end.
    pub fn take(&self) -> Option<VecDeque<Append>> {
        let mut state = self.state();
        while !state.are_due() {
            state.asleep = true;
            if state.trouble.is_none() {
                state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let (waited, timeout) = self.arrived.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner);
            state = waited;
            if timeout.timed_out() {
                return Some(std::mem::take(&mut state.requests));
            }
        }
        (state.gathered, state.asleep) = (false, false);
        if state.requests.is_empty() {
            return None;
        }
        // As many may come again.
        let room = VecDeque::with_capacity(state.requests.len());
        Some(std::mem::replace(&mut state.requests, room))
    }

    fn state(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A spool without one of its threads takes nothing more, and says so.
pub struct AbandonOnPanic(pub Arc<Shared>);

impl Drop for AbandonOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.queue.abandon("a thread of the spool panicked; restart the bridge");
            self.0.abandoned.send_replace(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Waker};

    fn append() -> Append {
        Append { events: Events::new(), target: None, held: None, done: oneshot::channel().0 }
    }

    #[tokio::test]
    async fn what_waits_is_due_once_those_that_are_ready_have_come_or_the_first_has_gone() {
        let queue = Queue::default();
        for goes in [false, true, false] {
            {
                let mut first = pin!(queue.push(append()).expect("nobody gathers yet").end());
                assert!(first.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
                assert!(queue.push(append()).is_none());
                assert!(!queue.state().are_due(), "the first one is gathering");
                if !goes {
                    first.await;
                }
            }
            assert!(queue.state().are_due());
            assert_eq!(queue.take().map(|requests| requests.len()), Some(2));
        }
    }
}
