//! librdkafka producers: one that batches, one that sends messages alone, and their successors.

use super::config::{Config, refused};
use super::partition::Share;
use super::status::Status;
use crate::sink::{Failure, Message, SetupError};
use parking_lot::Mutex;
use rdkafka::ClientConfig;
use rdkafka::admin::AdminClient;
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext, PurgeConfig};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How long the thread waits in librdkafka when nothing happens, and so the delay of a stop. rdkafka spins through the last
/// millisecond of every such wait: ten a second would cost an idle process a percent of a core.
const POLL: Duration = Duration::from_secs(1);
/// How long purged messages may take to be answered for, unless a name server holds librdkafka's threads.
const PURGE: Duration = Duration::from_secs(10);

pub(super) type Client = BaseProducer<Reports>;
/// Resolves when the broker has answered for a message.
pub(super) type Answer = oneshot::Receiver<Result<(), RDKafkaErrorCode>>;

/// A librdkafka producer and the thread that serves its delivery reports.
pub(super) struct Producer {
    pub(super) client: Client,
    /// When it gives up the messages it has sent, once it has a successor.
    ends_at: Mutex<Option<Instant>>,
}

impl Producer {
    /// Connects in the background.
    fn start(config: &ClientConfig, status: &Arc<Status>) -> Result<(Arc<Self>, JoinHandle<()>), SetupError> {
        let client = config.create_with_context(Reports(Arc::clone(status))).map_err(|error| refused(&error))?;
        let producer = Arc::new(Self { client, ends_at: Mutex::default() });
        let serving = Arc::clone(&producer);
        let thread = std::thread::Builder::new().name("kafka".to_owned()).spawn(move || serving.serve());
        let thread = thread.map_err(|error| SetupError(format!("cannot start a thread: {error}")))?;
        Ok((producer, thread))
    }

    /// Hands `message` to librdkafka, whose copy occupies `share` until the broker has answered.
    pub(super) fn send(&self, message: &Message, partition: i32, share: Share) -> Result<Answer, RDKafkaErrorCode> {
        let (sender, answer) = oneshot::channel();
        let headers =
            message.headers().fold(OwnedHeaders::new_with_capacity(message.headers().len()), |all, (key, value)| {
                all.insert(Header { key, value: Some(value) })
            });
        let record = BaseRecord::with_opaque_to(message.topic(), Box::new(Delivery { sender, share }))
            .partition(partition)
            .key(message.key().as_bytes())
            .payload(&**message.payload())
            .headers(headers);
        self.client.send(record).map_err(|(error, _)| code(&error))?;
        Ok(answer)
    }

    /// The thread.
    fn serve(&self) {
        loop {
            self.client.poll(POLL);
            let Some(ends_at) = *self.ends_at.lock() else { continue };
            self.client.purge(PurgeConfig::default().queue());
            if self.client.in_flight_count() == 0 || Instant::now() >= ends_at {
                break;
            }
        }
        let deadline = Instant::now() + PURGE;
        while Instant::now() < deadline {
            self.client.purge(PurgeConfig::default().queue().inflight());
            if self.client.flush(POLL).is_ok() {
                break;
            }
        }
    }

    /// Fails the unsent messages at once and the sent ones after `grace`: a broker may have stored those, so that giving them up costs
    /// duplicates. The thread ends when none is left.
    pub(super) fn retire(&self, grace: Duration) {
        self.ends_at.lock().get_or_insert(Instant::now() + grace);
    }
}

/// The producers in use. A producer is replaced after a fatal error, when it hangs, and when a file it was made from has changed.
pub(super) struct Producers {
    pub(super) settings: Config,
    pub(super) status: Arc<Status>,
    current: Mutex<Current>,
    /// Sends each message in a batch of its own. Made when a broker refuses a batch.
    single: tokio::sync::Mutex<Option<Arc<Producer>>>,
}

struct Current {
    /// `None` when closed.
    batching: Option<Arc<Producer>>,
    threads: Vec<JoinHandle<()>>,
}

/// How long the cluster may take to answer a new client.
const TRIAL_TIMEOUT: Duration = Duration::from_secs(5);

impl Producers {
    pub(super) fn new(settings: Config, status: Arc<Status>) -> Result<Self, SetupError> {
        let (batching, thread) = Producer::start(&settings.client()?, &status)?;
        let current = Mutex::new(Current { batching: Some(batching), threads: vec![thread] });
        Ok(Self { settings, status, current, single: tokio::sync::Mutex::default() })
    }

    /// The producer for all messages. Not to be kept.
    pub(super) fn batching(&self) -> Result<Arc<Producer>, Failure> {
        self.current.lock().batching.clone().ok_or_else(closed)
    }

    /// The producer for messages of a batch that a broker refused.
    pub(super) async fn single(&self) -> Result<Arc<Producer>, Failure> {
        let mut single = self.single.lock().await;
        match &*single {
            Some(producer) if producer.client.client().fatal_error().is_none() => return Ok(Arc::clone(producer)),
            Some(failed) => failed.retire(Duration::ZERO),
            None => {}
        }
        let mut config = self.settings.client().map_err(Failure::unavailable)?;
        config.set("batch.num.messages", "1").set("linger.ms", "0");
        let producer = self.start(config).await.map_err(Failure::unavailable)?;
        *single = Some(Arc::clone(&producer));
        Ok(producer)
    }

    /// Why the producer is of no more use, if so. Its error event does not tell: it carries the code of what led there.
    pub(super) fn fatal_error(&self) -> Option<String> {
        let batching = self.batching().ok()?;
        batching.client.client().fatal_error().map(|(_, reason)| reason)
    }

    /// Whether the cluster answers a new client, which asks for this topic.
    pub(super) async fn would_reach(&self, topic: Arc<str>) -> bool {
        let Some(client) = self.admin() else { return false };
        let ask = move || client.inner().fetch_metadata(Some(&topic), TRIAL_TIMEOUT).is_ok();
        tokio::task::spawn_blocking(ask).await.unwrap_or(false)
    }

    /// Lets a new producer take over, made from the settings and files as they are now.
    pub(super) async fn replace(&self, grace: Duration) -> Result<(), SetupError> {
        let successor = self.start(self.settings.client()?).await?;
        let former = match &mut self.current.lock().batching {
            Some(batching) => std::mem::replace(batching, successor),
            None => successor,
        };
        former.retire(grace);
        if let Some(single) = self.single.lock().await.take() {
            single.retire(grace);
        }
        Ok(())
    }

    /// A client for questions about settings of topics.
    pub(super) fn admin(&self) -> Option<AdminClient<DefaultClientContext>> {
        self.settings.client().ok()?.create().ok()
    }

    /// Ends all producers, and waits for their threads.
    pub(super) async fn close(&self, grace: Duration) {
        let former = self.current.lock().batching.take();
        let single = self.single.lock().await.take();
        for producer in former.into_iter().chain(single) {
            producer.retire(grace);
        }
        let threads = std::mem::take(&mut self.current.lock().threads);
        // An error here is a panic of a thread, which has been printed.
        let join = move || threads.into_iter().for_each(|thread| drop(thread.join()));
        let _ = tokio::task::spawn_blocking(join).await;
    }

    async fn start(&self, config: ClientConfig) -> Result<Arc<Producer>, SetupError> {
        let status = Arc::clone(&self.status);
        let started = tokio::task::spawn_blocking(move || Producer::start(&config, &status)).await;
        let (producer, thread) = started.map_err(|error| SetupError(error.to_string()))??;
        let mut current = self.current.lock();
        current.threads.retain(|thread| !thread.is_finished());
        current.threads.push(thread);
        Ok(producer)
    }
}

impl Drop for Producers {
    /// Without [`Self::close`] the threads end by themselves.
    fn drop(&mut self) {
        let single = self.single.get_mut().take();
        for producer in self.current.get_mut().batching.take().into_iter().chain(single) {
            producer.retire(Duration::ZERO);
        }
    }
}

fn closed() -> Failure {
    Failure::unavailable("the sink is closed")
}

/// Travels through librdkafka with its message.
pub(super) struct Delivery {
    sender: oneshot::Sender<Result<(), RDKafkaErrorCode>>,
    share: Share,
}

/// Called by librdkafka in the thread that polls it.
pub(super) struct Reports(Arc<Status>);

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Delivery>;

    fn delivery(&self, result: &DeliveryResult<'_>, delivery: Box<Delivery>) {
        let Delivery { sender, share } = *delivery;
        let result = match result {
            Ok(_) => {
                self.0.answered();
                share.acknowledged();
                Ok(())
            }
            Err((error, _)) => Err(code(error)),
        };
        drop(share);
        // The publish may have been dropped at shutdown.
        let _ = sender.send(result);
    }
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.0.log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        match code(&error) {
            RDKafkaErrorCode::AllBrokersDown => self.0.all_brokers_down(reason),
            _ => self.0.complain(reason),
        }
    }

    fn stats_raw(&self, statistics: &[u8]) {
        self.0.statistics(statistics);
    }
}

pub(super) fn code(error: &KafkaError) -> RDKafkaErrorCode {
    error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail)
}
