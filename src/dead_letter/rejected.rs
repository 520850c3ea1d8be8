//! Request bodies that could not be decoded, kept so that a sender's bug, or a setting too narrow, costs no call.
//!
//! The sender does not wait for the write, which follows within a second. One thread writes the bodies of a bounded queue; bodies that
//! find the queue full are counted and dropped, and the share of the disk is bounded, so that a flood of garbage holds up nothing.

use super::store::{Appended, AtBound, Dir, Line, Reader, Store};
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
use std::sync::mpsc::{Receiver, Sender, channel};
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
/// Minimum time between two writes, each with one sync: the disk is left to the spool.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);

/// One line: the body of a request that was refused because of its content and came complete.
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
    #[serde(rename = "body", default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The body otherwise: control characters would take six bytes each in JSON.
    #[serde(rename = "body_base64", default, skip_serializing_if = "Option::is_none")]
    pub base64: Option<String>,
}

impl RejectedBody {
    fn set_body(&mut self, body: &[u8]) {
        let readable = |text: &&str| text.bytes().all(|byte| byte >= b' ' || b"\t\r\n".contains(&byte));
        match str::from_utf8(body).ok().filter(readable) {
            Some(text) => self.text = Some(text.into()),
            None => self.base64 = Some(STANDARD.encode(body)),
        }
    }

    /// The exact bytes that came; `None` if they are damaged.
    pub fn body(&self) -> Option<Vec<u8>> {
        match &self.text {
            Some(text) => Some(text.clone().into_bytes()),
            None => STANDARD.decode(self.base64.as_ref()?).ok(),
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
            let writer = Writer { store, losses: losses.clone() };
            thread = Some(std::thread::Builder::new().name("rejected".into()).spawn(move || writer.run(&receiver))?);
            queue = Some(sender);
        }
        let budget = Arc::new(Semaphore::new(QUEUE_BYTES));
        Ok(Self { queue: Mutex::new(queue), budget, losses, thread: Mutex::new(thread) })
    }

    /// Has the request written soon with its body, unless too many wait.
    pub fn keep(&self, mut request: RejectedBody, body: &[u8]) {
        let queue = self.queue.lock().clone();
        let Some(queue) = queue else { return };
        let texts = [Some(&request.reason), request.content_type.as_ref(), request.query.as_ref()];
        let bytes = OVERHEAD_BYTES + body.len() + texts.into_iter().flatten().map(String::len).sum::<usize>();
        match self.budget.clone().try_acquire_many_owned(bytes.min(QUEUE_BYTES) as u32) {
            Ok(permit) => {
                request.set_body(body);
                // The thread outlives the queue.
                let _ = queue.send((request, permit));
            }
            Err(_) => {
                self.losses.metrics.busy.inc();
                self.losses.tell(None);
            }
        }
    }

    /// Writes the queued bodies, and takes no more.
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
    losses: Arc<Losses>,
}

impl Writer {
    /// Writes until the queue is closed and empty.
    fn run(mut self, queue: &Receiver<Queued>) {
        let mut due = Instant::now();
        while let Ok(first) = queue.recv() {
            let mut batch = vec![first];
            while let Ok(next) = queue.recv_timeout(due.saturating_duration_since(Instant::now())) {
                batch.push(next);
            }
            self.write(batch);
            due = Instant::now() + WRITE_INTERVAL;
        }
    }

    fn write(&mut self, batch: Vec<Queued>) {
        let (mut bodies, _permits): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        let metrics = &self.losses.metrics;
        match self.store.append(&mut bodies).and_then(|appended| self.store.sync().map(|()| appended)) {
            Ok(Appended { written, too_large, removed }) => {
                metrics.kept.inc_by(written as u64);
                metrics.too_large.inc_by(too_large);
                metrics.oldest.inc_by(removed);
                if too_large + removed > 0 {
                    self.losses.tell(None);
                }
            }
            Err(error) => {
                metrics.failed.inc_by(bodies.len() as u64);
                self.losses.tell(Some(&error));
            }
        }
    }
}

#[cfg(test)]
mod tests;
