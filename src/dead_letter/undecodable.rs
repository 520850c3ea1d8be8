//! Request bodies that hold no events as far as we can tell: kept, so that a sender's bug costs no call.
//!
//! The sender does not wait until its body is written. Whoever sends garbage gets no hold of the bridge by it: there is one
//! writer, whose share of the disk is bounded, and so is its queue; what finds that full is counted and let go.

mod writer;

pub use super::bodies::{Config, Refused};

use crate::metrics::UndecodableMetrics;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;
use writer::Writer;

/// Bytes that may wait to be written. A body larger than that is taken if it is the only one.
const QUEUE: usize = 2 << 20;
/// Takes bodies to be kept; one thread writes them.
#[derive(Debug)]
pub struct Undecodable {
    /// `None` if none are kept.
    queue: Option<Arc<Queue>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Queue {
    metrics: UndecodableMetrics,
    /// Bytes that wait or are being written.
    held: AtomicUsize,
    state: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    bodies: Vec<Refused<'static>>,
    closed: bool,
}

impl Undecodable {
    /// Keeps bodies beside the spool in `spool`, within the bounds of `config`.
    pub fn start(config: &Config, spool: &Path, metrics: UndecodableMetrics) -> io::Result<Self> {
        if config.max_size.as_u64() == 0 || config.max_count == 0 {
            return Ok(Self { queue: None, thread: Mutex::default() });
        }
        let queue = Arc::new(Queue {
            metrics,
            held: AtomicUsize::default(),
            state: Mutex::default(),
            changed: Condvar::default(),
        });
        let writer = Writer::new(queue.clone(), config.clone(), spool.to_owned())?;
        let thread = std::thread::Builder::new().name("undecodable".into()).spawn(move || writer.run())?;
        Ok(Self { queue: Some(queue), thread: Mutex::new(Some(thread)) })
    }

    /// Sees to it that the body is written soon, and does not wait for that.
    pub fn keep(&self, refused: Refused<'_>) {
        let Some(queue) = &self.queue else { return };
        let size = refused.memory();
        let room = |held: usize| (held == 0 || held + size <= QUEUE).then_some(held + size);
        if queue.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_err() {
            queue.metrics.busy.inc();
            return;
        }
        // A piece of a connection's buffer, as it may be, would keep all of that in memory.
        let refused = refused.into_owned();
        let mut state = queue.state();
        if !state.closed {
            state.bodies.push(refused);
            drop(state);
            queue.changed.notify_one();
        }
    }

    /// Writes what waits, and takes nothing more.
    pub fn close(&self) {
        let Some(queue) = &self.queue else { return };
        queue.state().closed = true;
        queue.changed.notify_all();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that keeps undecodable bodies panicked");
        }
    }
}

impl Drop for Undecodable {
    fn drop(&mut self) {
        self.close();
    }
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that waits, as soon as anything does; nothing from `until` on, or at the end.
    fn take(&self, until: Option<Instant>) -> Vec<Refused<'static>> {
        let waiting = |state: &mut Waiting| state.bodies.is_empty() && !state.closed;
        let mut state = match until {
            None => self.changed.wait_while(self.state(), waiting).unwrap_or_else(PoisonError::into_inner),
            Some(until) => {
                let rest = until.saturating_duration_since(Instant::now());
                let waited = self.changed.wait_timeout_while(self.state(), rest, waiting);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        std::mem::take(&mut state.bodies)
    }

    fn pause(&self, until: Instant) {
        let rest = until.saturating_duration_since(Instant::now());
        drop(self.changed.wait_timeout_while(self.state(), rest, |state| !state.closed));
    }
}
