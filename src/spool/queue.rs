//! Requests that wait for the next group commit.

use super::segment;
use crate::event::Events;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// The writer takes no more requests at once when they take so many bytes.
pub const COMMIT_BYTES: usize = 1 << 20;
/// How often the writer tries by itself whether the spool can take records again.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// When an append that is not done makes the spool unhealthy.
const HANGING: Duration = Duration::from_secs(3);
/// A request whose client has gone is still stored, unless it has waited for longer than this, or the disk hangs for longer: memory must
/// not fill up with such requests. Some senders never wait for the answer.
const ABANDONED: Duration = Duration::from_secs(1);

/// How many events of a request were stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Appended {
    /// Stored and durable.
    pub stored: usize,
    /// Durable already.
    pub duplicates: usize,
}

/// The offsets of the events of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placed {
    /// Events that were stored.
    pub fresh: Range<u64>,
    /// Events that were durable already.
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
        /// Bytes of the events on disk.
        needed: u64,
        /// `spool.max_size`.
        max_size: u64,
    },
    /// The disk refused a write or a sync.
    #[error("the spool cannot write: {cause}")]
    Failed {
        /// The system's error.
        cause: String,
    },
    /// The disk took longer than `spool.append_timeout`. It may store the events later: they are duplicates if they are sent again.
    #[error("the disk has not stored the events within {after:?}; send them again")]
    TimedOut {
        /// `spool.append_timeout`.
        after: Duration,
    },
    /// The bridge is stopping.
    #[error("the spool is closed")]
    Closed,
}

/// The answer to a request.
pub type Answer = oneshot::Sender<Result<Placed, AppendError>>;

/// Which events of a request are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Those that were not stored before.
    Webhook,
    /// Of these, those whose leg has no CDR yet.
    Missing,
    /// All of them, for this sink alone.
    Replay(Box<str>),
}

impl Purpose {
    /// The only sink that the events are for.
    pub fn target(&self) -> Option<&str> {
        if let Self::Replay(target) = self { Some(target) } else { None }
    }
}

/// The events of one request.
#[derive(Debug)]
pub struct Append {
    /// The events, in order.
    pub events: Events,
    /// Which of them are stored.
    pub purpose: Purpose,
    /// A permit for their memory, held until they are stored.
    pub held: Option<OwnedSemaphorePermit>,
    /// Takes the result.
    pub done: Answer,
    /// How many bytes they take on disk at the most.
    pub size: usize,
    queued: Instant,
}

impl Append {
    /// A request that is queued now.
    pub fn new(events: Events, purpose: Purpose, held: Option<OwnedSemaphorePermit>, done: Answer) -> Self {
        let size = events.iter().map(|event| segment::size_of_record(event, purpose.target())).sum();
        Self { events, purpose, held, done, size, queued: Instant::now() }
    }
}

/// The writer's next step.
pub enum Work {
    /// To store these requests.
    Commit(VecDeque<Append>),
    /// To find out whether the trouble is over.
    Probe,
    /// To end: the queue is closed and empty.
    Stop,
}

/// Requests in the order of their arrival.
#[derive(Debug, Default)]
pub struct Queue {
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// By ticket number.
    requests: VecDeque<(u64, Append)>,
    next_ticket: u64,
    closed: bool,
    /// Why the last append failed, if it did.
    trouble: Option<String>,
    /// When the writer took the requests that it is storing.
    writing_since: Option<Instant>,
}

/// A request's place in the queue, for as long as its caller waits.
#[must_use]
pub struct Ticket {
    number: u64,
    queue: Arc<Queue>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.queue.abandon(self.number);
    }
}

impl Queue {
    /// Adds a request; it is refused at once if the queue is closed.
    pub fn push(self: &Arc<Self>, append: Append) -> Ticket {
        let mut state = self.state.lock();
        let number = state.next_ticket;
        state.next_ticket += 1;
        if state.closed {
            let _ = append.done.send(Err(AppendError::Closed));
        } else {
            state.requests.push_back((number, append));
        }
        drop(state);
        self.arrived.notify_one();
        Ticket { number, queue: self.clone() }
    }

    /// Waits for requests, and takes about [`COMMIT_BYTES`] of them.
    pub fn take(&self) -> Work {
        let mut state = self.state.lock();
        state.writing_since = None;
        while state.requests.is_empty() {
            if state.closed {
                return Work::Stop;
            }
            if state.trouble.is_none() {
                self.arrived.wait(&mut state);
            } else if self.arrived.wait_for(&mut state, PROBE_INTERVAL).timed_out() {
                state.writing_since = Some(Instant::now());
                return Work::Probe;
            }
        }
        state.writing_since = Some(Instant::now());
        // Lets threads that are handling requests finish them: where processors are scarce, every request would get a commit of its own.
        MutexGuard::unlocked(&mut state, std::thread::yield_now);
        let mut left = COMMIT_BYTES;
        let fits = |(_, append): &&(u64, Append)| {
            let fits = left > 0;
            left = left.saturating_sub(append.size);
            fits
        };
        let count = state.requests.iter().take_while(fits).count();
        Work::Commit(state.requests.drain(..count).map(|(_, append)| append).collect())
    }

    /// The client of the request has gone.
    fn abandon(&self, number: u64) {
        let mut state = self.state.lock();
        let Ok(index) = state.requests.binary_search_by_key(&number, |(number, _)| *number) else { return };
        let waited = state.requests.get(index).map(|(_, append)| append.queued.elapsed());
        let stuck = waited.max(state.writing_since.map(|since| since.elapsed()));
        if stuck > Some(ABANDONED) {
            state.requests.remove(index);
        }
    }

    /// No more requests; those in the queue are still stored.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.arrived.notify_all();
    }

    /// Refuses all requests from now on: no thread is left to store them.
    pub fn break_off(&self, cause: &str) {
        let mut state = self.state.lock();
        state.closed = true;
        state.trouble = Some(cause.to_owned());
        state.requests.clear();
        drop(state);
        self.arrived.notify_all();
    }

    /// Why the next append is likely to fail: the last one did, or one has waited for too long.
    pub fn trouble(&self) -> Option<String> {
        let state = self.state.lock();
        let oldest = state.requests.front().map(|(_, append)| append.queued);
        let since = oldest.into_iter().chain(state.writing_since).min();
        let waited = since.map(|since| since.elapsed()).filter(|waited| *waited > HANGING);
        state
            .trouble
            .clone()
            .or_else(|| waited.map(|waited| format!("the disk hangs: an append has waited for {} s", waited.as_secs())))
    }

    /// Sets the reason of [`Self::trouble`].
    pub fn set_trouble(&self, trouble: Option<String>) {
        self.state.lock().trouble = trouble;
    }

    /// How many requests wait.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.state.lock().requests.len()
    }
}
