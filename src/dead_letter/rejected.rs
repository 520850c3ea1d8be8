//! Request bodies that could not be decoded, kept so that a sender's bug, or a setting too narrow, costs no call.
//!
//! The sender does not wait for the write. One thread writes the bodies of a bounded queue; bodies that find the queue full are
//! counted and dropped, and the share of the disk is bounded, so that a flood of garbage holds up nothing.

use super::store::{AtBound, Dir, Line, Reader, Store};
use crate::event::Arrival;
use crate::log_throttle::LogThrottle;
use crate::metrics::RejectedMetrics;
use crate::setting::Size;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytesize::ByteSize;
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// `[ingress.rejected]`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How many bytes the bodies may take on disk; 0 keeps none.
    #[schemars(with = "Size")]
    pub max_size: ByteSize,
}

impl Default for Config {
    fn default() -> Self {
        Self { max_size: ByteSize::mib(16) }
    }
}

/// The directory within the spool's.
const DIRECTORY: &str = "rejected";
/// Bytes that may wait to be written. A larger body is taken if it is the only one.
const QUEUE_BYTES: usize = 2 << 20;
/// The memory that a body takes besides its own bytes, near enough.
const OVERHEAD_BYTES: usize = 256;
/// There is one sync in this time at the most,
const SYNC_PERIOD: Duration = Duration::from_secs(1);
/// and about so many bytes are written between two of them at the most: the disk is left to the spool.
const BURST_BYTES: u64 = 2 << 20;

/// A request that was refused because of its content, and came complete.
#[derive(Clone, Copy, Debug)]
pub struct RejectedRequest<'a> {
    /// When it was complete.
    pub arrival: Arrival,
    /// The status of the answer.
    pub status: u16,
    /// Why it was refused.
    pub reason: &'a str,
    /// Line and column of the error in the text, both from 1.
    pub place: Option<(usize, usize)>,
    /// The route that it came by.
    pub ingress: &'a str,
    /// The method.
    pub method: &'a str,
    /// The Content-Type.
    pub content_type: Option<&'a str>,
    /// The query string, percent-encoded, without secrets.
    pub query: Option<&'a str>,
    /// The body.
    pub body: &'a [u8],
}

/// One line: a body, and the request it came with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedBody {
    /// Its number.
    pub number: u64,
    /// When it was complete, RFC 3339.
    pub arrival: String,
    /// The status of the answer.
    pub status: u16,
    /// Why it was refused.
    pub reason: String,
    /// The line of the error, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// The column of the error, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<usize>,
    /// The route that it came by.
    pub ingress: String,
    /// The request's method.
    pub method: String,
    /// The request's Content-Type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// The request's query string, percent-encoded, without secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
    /// The body, if it is a text without control characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    /// The body otherwise: control characters would take six bytes each in JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
}

impl RejectedBody {
    fn new(request: &RejectedRequest<'_>) -> Self {
        let readable = |text: &&str| text.bytes().all(|byte| byte >= b' ' || b"\t\r\n".contains(&byte));
        let text = str::from_utf8(request.body).ok().filter(readable);
        Self {
            number: 0,
            arrival: request.arrival.to_string(),
            status: request.status,
            reason: request.reason.into(),
            line: request.place.map(|(line, _)| line),
            column: request.place.map(|(_, column)| column),
            ingress: request.ingress.into(),
            method: request.method.into(),
            content_type: request.content_type.map(Into::into),
            query: request.query.map(Into::into),
            body: text.map(Into::into),
            body_base64: text.is_none().then(|| STANDARD.encode(request.body)),
        }
    }

    /// The exact bytes that came; `None` if they are damaged.
    pub fn body(&self) -> Option<Vec<u8>> {
        match &self.body {
            Some(text) => Some(text.clone().into_bytes()),
            None => STANDARD.decode(self.body_base64.as_ref()?).ok(),
        }
    }
}

impl Line for RejectedBody {
    fn number(&self) -> u64 {
        self.number
    }

    fn set_number(&mut self, number: u64) {
        self.number = number;
    }
}

/// Where the bodies are.
pub fn directory(spool: &Path) -> Dir {
    Dir::new(spool, DIRECTORY)
}

/// The bodies that are kept beside the spool in `spool`, oldest first.
pub fn read(spool: &Path) -> io::Result<Reader<RejectedBody>> {
    Reader::new(directory(spool))
}

/// Keeps bodies; one thread writes them.
#[derive(Debug)]
pub struct RejectedBodies {
    /// `None` if none are kept, or no more.
    queue: Mutex<Option<Sender<Queued>>>,
    budget: Arc<Semaphore>,
    losses: Arc<Losses>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// A body, and its share of the queue's memory.
type Queued = (RejectedBody, OwnedSemaphorePermit);

/// Counts bodies, and tells of lost ones.
#[derive(Debug)]
struct Losses {
    metrics: RejectedMetrics,
    log: LogThrottle,
}

impl Losses {
    fn tell(&self, error: Option<&io::Error>) {
        if self.log.should_log().is_some() {
            let RejectedMetrics { busy, too_large, failed, oldest, .. } = &self.metrics;
            let bodies = busy.get() + too_large.get() + failed.get() + oldest.get();
            let error = error.map(ToString::to_string);
            tracing::warn!(
                bodies,
                error,
                "rejected bodies are lost; `ingress.rejected.max_size` bounds how many are kept"
            );
        }
    }
}

impl RejectedBodies {
    /// Keeps bodies beside the spool in `spool`, within the bounds of `config`.
    pub fn start(config: &Config, spool: &Path, metrics: RejectedMetrics) -> io::Result<Self> {
        let max_size = config.max_size.as_u64();
        let losses = Arc::new(Losses { metrics, log: LogThrottle::default() });
        let (mut queue, mut thread) = (None, None);
        if max_size > 0 {
            let (sender, receiver) = channel();
            let store = Store::new(directory(spool), max_size, AtBound::RemoveOldest);
            let burst = BURST_BYTES.min(max_size);
            let writer = Writer { store, burst, losses: losses.clone(), unsynced: 0, unsynced_bytes: 0 };
            thread = Some(std::thread::Builder::new().name("rejected".into()).spawn(move || writer.run(&receiver))?);
            queue = Some(sender);
        }
        let budget = Arc::new(Semaphore::new(QUEUE_BYTES));
        Ok(Self { queue: Mutex::new(queue), budget, losses, thread: Mutex::new(thread) })
    }

    /// Has the request written soon, unless too many wait.
    pub fn keep(&self, request: &RejectedRequest<'_>) {
        let queue = self.queue.lock().clone();
        let Some(queue) = queue else { return };
        let texts = [Some(request.reason), request.content_type, request.query].into_iter().flatten();
        let bytes = OVERHEAD_BYTES + request.body.len() + texts.map(str::len).sum::<usize>();
        match self.budget.clone().try_acquire_many_owned(bytes.min(QUEUE_BYTES) as u32) {
            // The thread outlives the queue.
            Ok(permit) => drop(queue.send((RejectedBody::new(request), permit))),
            Err(_) => {
                self.losses.metrics.busy.inc();
                self.losses.tell(None);
            }
        }
    }

    /// Writes what waits, and takes nothing more.
    pub fn close(&self) {
        self.queue.lock().take();
        let thread = self.thread.lock().take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that writes rejected bodies panicked");
        }
    }
}

impl Drop for RejectedBodies {
    fn drop(&mut self) {
        self.close();
    }
}

struct Writer {
    store: Store,
    burst: u64,
    losses: Arc<Losses>,
    /// Bodies and bytes written since the last sync.
    unsynced: u64,
    unsynced_bytes: u64,
}

impl Writer {
    fn run(mut self, queue: &Receiver<Queued>) {
        let (mut due, mut pending) = (Instant::now(), Vec::new());
        loop {
            let received = match self.unsynced {
                0 => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
                _ => queue.recv_timeout(due.saturating_duration_since(Instant::now())),
            };
            let closed = matches!(received, Err(RecvTimeoutError::Disconnected));
            pending.extend(received.ok().into_iter().chain(queue.try_iter()));
            let is_due = closed || Instant::now() >= due;
            if is_due || self.unsynced_bytes < self.burst {
                self.write(std::mem::take(&mut pending));
            }
            if is_due {
                self.sync();
                due = Instant::now() + SYNC_PERIOD;
            }
            if closed {
                return;
            }
        }
    }

    fn write(&mut self, queued: Vec<Queued>) {
        if queued.is_empty() {
            return;
        }
        let (mut bodies, _permits): (Vec<_>, Vec<_>) = queued.into_iter().unzip();
        let metrics = &self.losses.metrics;
        match self.store.append(&mut bodies) {
            Ok(appended) => {
                self.unsynced += appended.written as u64;
                self.unsynced_bytes += appended.bytes;
                metrics.too_large.inc_by(appended.too_large);
                metrics.oldest.inc_by(appended.removed);
                if appended.too_large + appended.removed > 0 {
                    self.losses.tell(None);
                }
            }
            Err(error) => {
                metrics.failed.inc_by(bodies.len() as u64);
                self.losses.tell(Some(&error));
            }
        }
    }

    fn sync(&mut self) {
        let count = std::mem::take(&mut self.unsynced);
        self.unsynced_bytes = 0;
        let metrics = &self.losses.metrics;
        match self.store.sync() {
            Ok(()) => drop(metrics.kept.inc_by(count)),
            Err(error) => {
                metrics.failed.inc_by(count);
                self.losses.tell(Some(&error));
            }
        }
    }
}

#[cfg(test)]
mod tests;
