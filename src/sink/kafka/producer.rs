//! A librdkafka producer that outlives its own fatal errors.
//!
//! One thread owns it from start to end: it serves the delivery reports, and when an idempotent producer declares itself unusable,
//! it takes it away, waits until every message in it is answered for, and builds another.

use super::config::refused;
use crate::sink::{Failure, Message, SetupError};
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext, PurgeConfig};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// How long the thread sleeps in librdkafka when nothing happens, and so the delay of a stop and of a rebuild. rdkafka spins through the
/// last millisecond of every such sleep: ten a second would cost an idle process a percent of a core.
const POLL: Duration = Duration::from_secs(1);
/// The least time between two builds, so that an error which greets every new producer cannot keep the process busy.
const REBUILD: Duration = Duration::from_secs(5);
/// How often one kind of librdkafka's log lines is shown as a warning; the others are for `debug`.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

pub(super) type Client = BaseProducer<Reports>;

/// See the module.
pub(super) struct Producer {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    config: ClientConfig,
    link: Arc<Link>,
    /// `None` between a fatal error and the next build, and after the end.
    current: Mutex<Option<Arc<Client>>>,
    stop: AtomicBool,
}

/// What became of a message that was not delivered.
#[derive(Debug)]
pub(super) enum Undelivered {
    /// librdkafka did not take it.
    NotTaken(RDKafkaErrorCode),
    /// The broker refused it, or librdkafka gave it up.
    Failed(RDKafkaErrorCode),
    /// There is no producer at the moment.
    NoProducer(Failure),
}

/// Travels through librdkafka with its message.
pub(super) struct Delivery {
    waiting: oneshot::Sender<Result<(), RDKafkaErrorCode>>,
    /// Freed with the message's copy in librdkafka, not when the caller loses interest.
    _room: OwnedSemaphorePermit,
}

impl Producer {
    /// Makes the producer and its thread. Connects in the background. Needs a tokio runtime.
    pub(super) fn start(config: ClientConfig, link: Arc<Link>) -> Result<Self, SetupError> {
        let client = build(&config, &link).map_err(|error| refused(&error))?;
        let shared = Arc::new(Shared {
            config,
            link,
            current: Mutex::new(Some(Arc::clone(&client))),
            stop: AtomicBool::new(false),
        });
        let thread = std::thread::Builder::new()
            .name("kafka".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.keep(client)
            })
            .map_err(|error| SetupError(format!("cannot start a thread: {error}")))?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// The producer of the moment. Not to be kept: it must be gone before the next one is built.
    pub(super) fn client(&self) -> Result<Arc<Client>, Failure> {
        let current = lock(&self.shared.current).clone();
        current.ok_or_else(|| {
            let reason = self.shared.link.cause().unwrap_or_else(|| "no longer usable".to_owned());
            Failure::unavailable(format!("the producer is being rebuilt after a fatal error: {reason}"))
        })
    }

    /// Resolves when the broker has answered for `message`, whose copy occupies `room` until then.
    pub(super) async fn send(
        &self,
        message: &Message,
        partition: i32,
        room: OwnedSemaphorePermit,
    ) -> Result<(), Undelivered> {
        let (waiting, answer) = oneshot::channel();
        let headers = OwnedHeaders::new_with_capacity(message.headers().len());
        let headers =
            message.headers().fold(headers, |headers, (key, value)| headers.insert(Header { key, value: Some(value) }));
        let record = BaseRecord::with_opaque_to(message.topic(), Box::new(Delivery { waiting, _room: room }))
            .partition(partition)
            .key(message.key().as_bytes())
            .payload(&**message.payload())
            .headers(headers);
        let client = self.client().map_err(Undelivered::NoProducer)?;
        client.send(record).map_err(|(error, _)| Undelivered::NotTaken(code(&error)))?;
        match answer.await {
            Ok(result) => result.map_err(Undelivered::Failed),
            Err(_) => Err(Undelivered::Failed(RDKafkaErrorCode::PurgeInflight)),
        }
    }

    /// Ends the thread and everything in librdkafka. What was not delivered fails.
    pub(super) async fn stop(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            // An error here is a panic of the thread, which has been printed.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }
}

impl Drop for Producer {
    /// librdkafka's threads should not run into the end of the process, but a name server that does not answer can hold them.
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let deadline = Instant::now() + 2 * POLL;
        if let Some(thread) = lock(&self.thread).take() {
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

impl Shared {
    /// The thread.
    fn keep(&self, mut client: Arc<Client>) {
        loop {
            let built = Instant::now();
            while !self.stopped() && !self.failed(&client) {
                client.poll(POLL);
            }
            lock(&self.current).take();
            self.drain(&client);
            drop(client);
            self.sleep_until(built + REBUILD);
            client = loop {
                if self.stopped() {
                    return;
                }
                match build(&self.config, &self.link) {
                    Ok(client) => break client,
                    Err(error) => {
                        tracing::error!(sink = self.link.sink, cause = %refused(&error), "kafka producer cannot be rebuilt");
                        self.sleep_until(Instant::now() + REBUILD);
                    }
                }
            };
            tracing::warn!(sink = self.link.sink, "kafka producer rebuilt, its messages are sent again");
            *lock(&self.current) = Some(Arc::clone(&client));
        }
    }

    /// Whether `client` is of no more use. Its error event does not tell: it carries the code of what led there.
    fn failed(&self, client: &Client) -> bool {
        let Some((code, reason)) = client.client().fatal_error() else { return false };
        tracing::error!(sink = self.link.sink, %code, reason, "kafka producer failed for good");
        self.link.remember(&reason);
        true
    }

    /// Fails what is left in `client`, so that every message is answered for.
    fn drain(&self, client: &Client) {
        loop {
            client.purge(PurgeConfig::default().queue().inflight());
            if client.flush(POLL).is_ok() || self.stopped() {
                return;
            }
        }
    }

    fn sleep_until(&self, deadline: Instant) {
        while !self.stopped() && Instant::now() < deadline {
            std::thread::sleep(POLL);
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

fn build(config: &ClientConfig, link: &Arc<Link>) -> Result<Arc<Client>, KafkaError> {
    let reports = Reports { link: Arc::clone(link) };
    config.create_with_context::<_, Client>(reports).map(Arc::new)
}

/// What librdkafka tells us, in the thread that polls it.
pub(super) struct Reports {
    link: Arc<Link>,
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Delivery>;

    fn delivery(&self, result: &DeliveryResult<'_>, delivery: Box<Delivery>) {
        let result = match result {
            Ok(_) => {
                self.link.up();
                Ok(())
            }
            Err((error, _)) => Err(code(error)),
        };
        // Whoever waited may be gone.
        let _ = delivery.waiting.send(result);
    }
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        let grave = (level as i32) <= (RDKafkaLogLevel::Warning as i32);
        if grave && self.link.may_warn(facility) {
            tracing::warn!(sink = self.link.sink, facility, "{line}");
        } else {
            tracing::debug!(sink = self.link.sink, facility, "{line}");
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        match code(&error) {
            RDKafkaErrorCode::AllBrokersDown => self.link.down(reason),
            _ => {
                tracing::debug!(sink = self.link.sink, reason, "kafka error");
                self.link.remember(reason);
            }
        }
    }

    fn stats_raw(&self, statistics: &[u8]) {
        tracing::debug!(sink = self.link.sink, "{}", String::from_utf8_lossy(statistics));
    }
}

/// What is known of the way to the cluster; shared by all producers of a sink.
pub(super) struct Link {
    pub(super) sink: String,
    pub(super) brokers: String,
    /// Whether there is anything for [`Link::up`] to do: deliveries should not take a lock for nothing.
    troubled: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    down: bool,
    /// librdkafka's last complaint since anything worked.
    reason: Option<String>,
    /// When each kind of log line was last shown. librdkafka has a fixed set of them.
    warned: HashMap<String, Instant>,
}

impl Link {
    pub(super) fn new(sink: &str, brokers: String) -> Self {
        Self { sink: sink.to_owned(), brokers, troubled: AtomicBool::new(false), state: Mutex::default() }
    }

    /// Why the cluster does not answer, as far as known.
    pub(super) fn cause(&self) -> Option<String> {
        lock(&self.state).reason.clone()
    }

    /// Something worked.
    pub(super) fn up(&self) {
        if self.troubled.load(Ordering::Relaxed) && self.troubled.swap(false, Ordering::Relaxed) {
            let mut state = lock(&self.state);
            state.reason = None;
            if std::mem::take(&mut state.down) {
                tracing::info!(sink = self.sink, brokers = self.brokers, "kafka is reachable again");
            }
        }
    }

    fn remember(&self, reason: &str) {
        lock(&self.state).reason = Some(reason.to_owned());
        self.troubled.store(true, Ordering::Relaxed);
    }

    /// No broker is connected. The reason given here says no more than that, so an earlier one is kept.
    fn down(&self, reason: &str) {
        let mut state = lock(&self.state);
        let reason = state.reason.get_or_insert_with(|| reason.to_owned()).clone();
        if !std::mem::replace(&mut state.down, true) {
            tracing::warn!(
                sink = self.sink,
                brokers = self.brokers,
                reason,
                "kafka is not reachable, events wait in the spool"
            );
        }
        drop(state);
        self.troubled.store(true, Ordering::Relaxed);
    }

    fn may_warn(&self, facility: &str) -> bool {
        let now = Instant::now();
        let mut state = lock(&self.state);
        let due = state.warned.get(facility).is_none_or(|last| now.duration_since(*last) >= LOG_INTERVAL);
        if due {
            state.warned.insert(facility.to_owned(), now);
        }
        due
    }
}

pub(super) fn code(error: &KafkaError) -> RDKafkaErrorCode {
    error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail)
}

/// No invariant spans these locks, so what a panicking thread left is as good as before.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
