//! Dead letters: messages that a destination refused for good, synced before their records count as settled; and request
//! bodies that could not be decoded, see [`rejected`]. Both lie in a bounded [`store`].

pub mod rejected;
pub mod store;

use crate::event::Arrival;
use crate::log_throttle::LogThrottle;
use crate::metrics::DeadLetterMetrics;
use crate::setting::Size;
use crate::sink::Message;
use crate::spool::Record;
use bytesize::ByteSize;
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use store::{AtBound, Dir, Found, Line, Reader, Store};
use tokio::sync::oneshot;

/// `[dead_letters]`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How many bytes the dead letters of one sink may take on disk. A sink whose dead letters take that much holds.
    #[schemars(with = "Size")]
    pub max_size: ByteSize,
}

impl Default for Config {
    fn default() -> Self {
        Self { max_size: ByteSize::mib(256) }
    }
}

/// The directory within the spool's.
const DIRECTORY: &str = "dead-letters";
/// How often the metrics look at the directory, which commands change too.
const MEASURE: Duration = Duration::from_secs(10);

/// Keeps the dead letters of one sink.
#[derive(Clone, Debug)]
pub struct DeadLetters(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    sink: String,
    dir: Dir,
    /// In bytes. A reload changes it.
    max_size: AtomicU64,
    store: Arc<tokio::sync::Mutex<Store>>,
    waiting: Mutex<Vec<Waiting>>,
    log: LogThrottle,
    metrics: DeadLetterMetrics,
}

type Waiting = (DeadLetter, oneshot::Sender<Result<(), KeepError>>);

/// Why a dead letter was not kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeepError {
    /// There is no space for it.
    #[error(
        "the dead letters of the sink fill `dead_letters.max_size`, {max_size}; replay and prune them, or raise it"
    )]
    Full {
        /// The bound.
        max_size: ByteSize,
    },
    /// The disk refused it.
    #[error("a dead letter cannot be written: {cause}")]
    Failed {
        /// The system's error.
        cause: String,
    },
}

impl DeadLetters {
    /// Dead letters of `sink` beside the spool in `spool`.
    pub fn new(spool: &Path, sink: &str, config: &Config, metrics: DeadLetterMetrics) -> Self {
        let dir = directory(spool, sink);
        let store = Store::new(dir.clone(), config.max_size.as_u64(), AtBound::Refuse);
        let letters = Self(Arc::new(Inner {
            sink: sink.to_owned(),
            dir,
            max_size: AtomicU64::new(config.max_size.as_u64()),
            store: Arc::new(tokio::sync::Mutex::new(store)),
            waiting: Mutex::default(),
            log: LogThrottle::default(),
            metrics,
        }));
        letters.set_max_size(config.max_size);
        letters.measure();
        letters
    }

    /// Changes how many bytes they may take.
    pub fn set_max_size(&self, max_size: ByteSize) {
        self.0.max_size.store(max_size.as_u64(), Ordering::Relaxed);
        self.0.metrics.max_bytes.set(max_size.as_u64() as i64);
    }

    /// Keeps a message that was refused because of `cause`, and returns once that is durable. Messages that come while
    /// others are written share one sync.
    pub async fn keep(&self, record: &Record, message: &Message, cause: &str) -> Result<(), KeepError> {
        let letter = DeadLetter::new(&self.0.sink, record, message, cause);
        let (done, kept) = oneshot::channel();
        self.0.waiting.lock().push((letter, done));
        // Another call may have written it by the time that the store is free.
        let store = self.0.store.clone().lock_owned().await;
        let this = self.clone();
        tokio::task::spawn_blocking(move || this.commit(store));
        let result = kept.await;
        result.unwrap_or_else(|_| Err(KeepError::Failed { cause: "the writer has gone".into() }))?;
        if let Some(messages) = self.0.log.should_log() {
            let (sink, id) = (&self.0.sink, message.id());
            tracing::error!(sink, cause, offset = record.offset, %id, messages, "message refused; kept as a dead letter");
        }
        Ok(())
    }

    fn commit(&self, mut store: impl std::ops::DerefMut<Target = Store>) {
        let waiting = std::mem::take(&mut *self.0.waiting.lock());
        let (mut letters, done): (Vec<_>, Vec<_>) = waiting.into_iter().unzip();
        if letters.is_empty() {
            return;
        }
        let max_size = self.0.max_size.load(Ordering::Relaxed);
        store.max_size = max_size;
        let written = store.append(&mut letters).and_then(|appended| store.sync().map(|()| appended.written));
        self.measure();
        for (index, done) in done.into_iter().enumerate() {
            // A publish that was cancelled meanwhile does not wait for this.
            let _ = done.send(match &written {
                Ok(written) if index < *written => Ok(()),
                Ok(_) => Err(KeepError::Full { max_size: ByteSize(max_size) }),
                Err(error) => Err(KeepError::Failed { cause: error.to_string() }),
            });
        }
    }

    fn measure(&self) {
        if let Ok(size) = self.0.dir.size() {
            self.0.metrics.bytes.set(size as i64);
        }
    }
}

/// Keeps the metrics up to date.
pub async fn measure(letters: DeadLetters) {
    loop {
        tokio::time::sleep(MEASURE).await;
        let letters = letters.clone();
        let _ = tokio::task::spawn_blocking(move || letters.measure()).await;
    }
}

/// One line: a refused message, and why it was refused.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Its number among the sink's dead letters.
    pub number: u64,
    /// When it was written, RFC 3339.
    pub time: String,
    /// The sink whose destination refused the message.
    pub sink: String,
    /// Why.
    pub reason: String,
    /// The topic or subject of the message.
    pub topic: String,
    /// Its key.
    pub key: String,
    /// The event's id.
    pub id: String,
    /// The event's conversation.
    pub conversation: String,
    /// When the event arrived, RFC 3339.
    pub arrival: String,
    /// The route that the event came by.
    pub ingress: String,
    /// The query string that stood beside the event's body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
    /// The record's offset.
    pub offset: u64,
    /// The message's headers.
    pub headers: BTreeMap<String, String>,
    /// The event's exact text.
    pub payload: String,
}

impl Line for DeadLetter {
    fn number(&self) -> u64 {
        self.number
    }

    fn set_number(&mut self, number: u64) {
        self.number = number;
    }
}

/// The record and the event of a dead letter. A crash may have it written twice.
pub type Identity = (u64, u128);

impl DeadLetter {
    fn new(sink: &str, record: &Record, message: &Message, reason: &str) -> Self {
        let event = &record.event;
        Self {
            number: 0,
            time: Arrival::now().to_string(),
            sink: sink.to_owned(),
            reason: reason.to_owned(),
            topic: message.topic().to_owned(),
            key: message.key().to_owned(),
            id: event.id().to_string(),
            conversation: event.conversation().to_owned(),
            arrival: event.arrival().to_string(),
            ingress: event.ingress().to_owned(),
            query: event.query().map(Into::into),
            offset: record.offset,
            headers: message.headers().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
            payload: event.payload().to_string(),
        }
    }

    /// The record and the event.
    pub fn identity(&self) -> Identity {
        (self.offset, u128::from_str_radix(&self.id, 16).unwrap_or_default())
    }
}

/// The dead letters of one sink, oldest first, each of them once.
#[derive(Debug)]
pub struct Letters {
    reader: Reader<DeadLetter>,
    seen: HashSet<Identity>,
}

impl Letters {
    /// The dead letters that `sink` has at this moment.
    pub fn of(spool: &Path, sink: &str) -> io::Result<Self> {
        Ok(Self { reader: Reader::new(directory(spool, sink))?, seen: HashSet::new() })
    }

    /// The next one.
    pub fn read_next(&mut self) -> io::Result<Option<Found<DeadLetter>>> {
        while let Some(found) = self.reader.read_next()? {
            if self.seen.insert(found.item.identity()) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// How many unreadable ones it has met.
    pub fn damaged(&self) -> u64 {
        self.reader.damaged()
    }
}

/// Where the dead letters of a sink are.
pub fn directory(spool: &Path, sink: &str) -> Dir {
    Dir::new(spool, Path::new(DIRECTORY).join(sink))
}

/// The sinks that have dead letters.
pub fn sinks(spool: &Path) -> io::Result<Vec<String>> {
    let mut sinks = Vec::new();
    let entries = match std::fs::read_dir(spool.join(DIRECTORY)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(sinks),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sinks.extend(entry.file_name().into_string());
        }
    }
    sinks.sort();
    Ok(sinks)
}

#[cfg(test)]
mod tests;
