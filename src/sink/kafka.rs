//! Publishes to Kafka with librdkafka's idempotent producer.
//!
//! A message waits for its topic's partitions ([`topics`]), for its share of librdkafka's queue ([`partition`]), and for the broker's
//! acknowledgement ([`producer`]). While the whole cluster is away it waits in librdkafka, which has no timeout here, and further
//! messages wait for a share: memory stays bounded. While only its topic or partition is away, `publish` answers so.
//!
//! A broker that refuses one message of a batch refuses the whole batch. Such messages are sent a second time, each in a batch of its
//! own, and only a message that is refused then is rejected.

mod config;
mod partition;
mod partitioner;
mod producer;
mod properties;
mod schema_registry;
mod status;
mod supervisor;
#[cfg(test)]
mod tests;
mod topics;

pub use config::{Compression, Config, Mechanism, Sasl, Tls};
pub use properties::Properties;
pub use schema_registry::Config as SchemaRegistry;

use crate::route::{Format, Route};
use crate::sink::{Failure, Message, SetupError, Sink, SinkConfig};
use futures_util::future::BoxFuture;
use partition::{Partition, Queue};
use producer::{Answer, Producers};
use rdkafka::error::RDKafkaErrorCode;
use schema_registry::Schemas;
use status::Status;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use topics::Topics;

/// Memory that a message takes in librdkafka beside payload and key, headers included.
const MESSAGE_OVERHEAD: usize = 1024;
/// How long messages that librdkafka has sent may take at the end.
const GRACE: Duration = Duration::from_secs(1);

/// A Kafka cluster.
pub struct KafkaSink {
    /// The topic, where all messages have the same.
    topic: Option<String>,
    status: Arc<Status>,
    producers: Arc<Producers>,
    topics: Arc<Topics>,
    queue: Arc<Queue>,
    /// Of the format `json-schema`.
    schemas: Option<Schemas>,
    /// Aborted when the sink is dropped.
    _tasks: JoinSet<()>,
}

impl KafkaSink {
    /// The sink called `name`. Checks all settings and connects in the background; needs a tokio runtime. `topic` is the topic of every
    /// message, if that is known: [`Sink::probe`] then reports it missing before the first event does.
    pub fn new(name: &str, config: &Config, topic: Option<&str>) -> Result<Self, SetupError> {
        let status = Arc::new(Status::new(name, config.bootstrap_servers()));
        // Before they are read, so that no change in between is missed.
        let files = supervisor::fingerprint(config);
        let producers = Arc::new(Producers::new(config.clone(), Arc::clone(&status))?);
        let topics = Topics::new(Arc::clone(&status), Arc::clone(&producers));
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&topics).run());
        tasks.spawn(supervisor::run(files, Arc::clone(&producers), Arc::clone(&topics)));
        Ok(Self {
            topic: topic.map(str::to_owned),
            status,
            producers,
            topics,
            queue: Queue::new(),
            schemas: None,
            _tasks: tasks,
        })
    }
}

impl Sink for KafkaSink {
    fn publish<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(self.deliver(message))
    }

    fn probe(&self) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(async {
            if let (Some(schemas), Some(topic)) = (&self.schemas, &self.topic) {
                schemas.id(topic).await?;
            }
            let answer = self.topics.probe(self.topic.as_deref()).await;
            // Brokers that throttle a client delay all of its requests.
            if self.status.is_throttled() { Ok(()) } else { answer }
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.producers.close(GRACE))
    }
}

/// Why a message was not delivered.
enum Undelivered {
    /// The broker refused it, or librdkafka did.
    Refused(RDKafkaErrorCode),
    Failed(Failure),
}

impl From<Failure> for Undelivered {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl KafkaSink {
    async fn deliver(&self, message: &Message) -> Result<(), Failure> {
        if !is_topic(message.topic()) {
            return Err(Failure::rejected(format!("`{}` is not a legal name of a topic", message.topic())));
        }
        let framed;
        let message = match &self.schemas {
            Some(schemas) => {
                framed = schemas.frame(message).await?;
                &framed
            }
            None => message,
        };
        let partitions = self.topics.partitions(message.topic()).await?;
        let number = partitioner::partition(message.partition_by(), partitions.len());
        let partition = partitions.get(number).ok_or_else(|| Failure::unavailable("the topic has no partitions"))?;
        let sent = match partition.reclaim(message.id()) {
            Some(answer) => self.acknowledgement(message, partition, answer).await,
            None => self.send(message, partition, false).await,
        };
        let sent = match sent {
            Err(Undelivered::Refused(code)) if is_purged(code) => self.send(message, partition, false).await,
            sent => sent,
        };
        let sent = match sent {
            Err(Undelivered::Refused(code)) if blames_the_batch(code) => self.send(message, partition, true).await,
            sent => sent,
        };
        sent.map_err(|undelivered| match undelivered {
            Undelivered::Refused(code) => self.classify(code, message),
            Undelivered::Failed(failure) => failure,
        })
    }

    async fn send(&self, message: &Message, partition: &Arc<Partition>, single: bool) -> Result<(), Undelivered> {
        let share = self.queue.share(partition, queued_bytes(message)).await?;
        let producer = if single { self.producers.single().await? } else { self.producers.batching()? };
        let answer = producer.send(message, partition.id, share).map_err(Undelivered::Refused)?;
        drop(producer);
        self.acknowledgement(message, partition, answer).await
    }

    /// Waits until the broker has answered for the message, or until its partition is away.
    async fn acknowledgement(
        &self,
        message: &Message,
        partition: &Partition,
        mut answer: Answer,
    ) -> Result<(), Undelivered> {
        tokio::select! {
            biased;
            answer = &mut answer => answer.unwrap_or(Err(RDKafkaErrorCode::PurgeInflight)).map_err(Undelivered::Refused),
            failure = partition.until_away() => {
                partition.abandon(message.id(), answer);
                Err(failure.into())
            }
        }
    }

    /// Rejected is a message that a broker refused in a batch of its own. Everything else may pass later: an invalid timestamp is a
    /// wrong clock, a policy or a permission is the operator's.
    fn classify(&self, code: RDKafkaErrorCode, message: &Message) -> Failure {
        use RDKafkaErrorCode as Code;
        let (topic, bytes) = (message.topic(), message.payload().len());
        match code {
            Code::MessageSizeTooLarge => Failure::rejected(format!(
                "the message, {bytes} bytes of payload, exceeds `max.message.bytes` of topic `{topic}`, or `message.max.bytes` of this client"
            )),
            Code::InvalidRecord => {
                Failure::rejected(format!("the broker refused the message as invalid for topic `{topic}`"))
            }
            Code::PurgeQueue | Code::PurgeInflight => {
                Failure::unavailable("the producer was replaced before the message was delivered")
            }
            Code::TopicAuthorizationFailed
            | Code::UnknownTopicOrPartition
            | Code::UnknownTopic
            | Code::UnknownPartition
            | Code::InvalidTimestamp
            | Code::PolicyViolation => self.topics.refused(topic, code),
            code => Failure::unavailable(format!("topic `{topic}`: {code}")),
        }
    }
}

/// The first result of `check`, which is made now and at each notification.
async fn notified<T>(changed: &Notify, mut check: impl FnMut() -> Option<T>) -> T {
    loop {
        let mut notified = std::pin::pin!(changed.notified());
        // Before the check, so that no notification in between is missed.
        notified.as_mut().enable();
        if let Some(found) = check() {
            return found;
        }
        notified.await;
    }
}

fn queued_bytes(message: &Message) -> usize {
    message.payload().len() + message.key().len() + MESSAGE_OVERHEAD
}

/// The producer was replaced before the broker answered.
fn is_purged(code: RDKafkaErrorCode) -> bool {
    matches!(code, RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight)
}

/// Whether the broker may have meant another message of the same batch.
fn blames_the_batch(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::{InvalidDifferentRecord, InvalidRecord, MessageSizeTooLarge};
    matches!(code, MessageSizeTooLarge | InvalidRecord | InvalidDifferentRecord)
}

/// `org.apache.kafka.common.internals.Topic.validate`, which the broker would answer with an error that no waiting mends.
fn is_topic(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=249).contains(&name.len()) && name.bytes().all(legal) && name != "." && name != ".."
}

impl SinkConfig for Config {
    const TYPE: &'static str = "kafka";

    fn build(&self, name: &str, route: &Route) -> Result<Arc<dyn Sink>, SetupError> {
        let mut sink = KafkaSink::new(name, self, route.constant_topic())?;
        sink.schemas = match (route.format(), &self.schema_registry) {
            (Format::JsonSchema, Some(registry)) => Some(Schemas::new(registry)?),
            (Format::JsonSchema, None) => {
                return Err(SetupError("`format = \"json-schema\"` needs a `schema_registry` with its `url`".into()));
            }
            (_, Some(_)) => return Err(SetupError("`schema_registry` needs `format = \"json-schema\"`".into())),
            (_, None) => None,
        };
        Ok(Arc::new(sink))
    }
}
