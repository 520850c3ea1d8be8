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
mod topics;

pub use config::{Compression, Config, Mechanism, Sasl, Tls};
pub use properties::Properties;
pub use schema_registry::Config as SchemaRegistry;

use crate::route::{Format, Route};
use crate::sink::{Failure, Message, SetupError, Sink, SinkConfig};
use futures_util::future::BoxFuture;
use partition::{Partition, Queue};
use producer::{Answer, Grace, Producers};
use rdkafka::error::RDKafkaErrorCode;
use schema_registry::Schemas;
use status::Status;
use std::sync::Arc;
use std::time::Duration;
use supervisor::Supervisor;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use topics::Topics;

/// What librdkafka keeps beside payload and key of a message, headers included.
const MESSAGE_OVERHEAD: usize = 1024;
/// How long messages that librdkafka still has at the end may take.
const GRACE: Grace = Grace { unsent: Duration::from_secs(1), sent: Duration::from_secs(1) };

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
    tasks: [JoinHandle<()>; 2],
}

impl KafkaSink {
    /// The sink called `name`. Checks all settings and connects in the background; needs a tokio runtime. `topic` is the topic of every
    /// message, if that is known: [`Sink::probe`] then reports it missing before the first event does.
    pub fn new(name: &str, config: &Config, topic: Option<&str>) -> Result<Self, SetupError> {
        let status = Arc::new(Status::new(name, config.bootstrap_servers()));
        let producers = Arc::new(Producers::new(config.clone(), Arc::clone(&status))?);
        let topics = Topics::new(Arc::clone(&status));
        let asking = tokio::spawn(Arc::clone(&topics).run(Arc::clone(&producers)));
        let supervisor =
            Supervisor::new(config.clone(), Arc::clone(&status), Arc::clone(&producers), Arc::clone(&topics));
        let tasks = [asking, tokio::spawn(supervisor.run())];
        Ok(Self {
            topic: topic.map(str::to_owned),
            status,
            producers,
            topics,
            queue: Queue::new(),
            schemas: None,
            tasks,
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
        Box::pin(async {
            self.tasks.iter().for_each(JoinHandle::abort);
            self.producers.close(GRACE).await;
        })
    }
}

impl Drop for KafkaSink {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
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
            Some(answer) => match self.acknowledgement(message, partition, answer).await {
                Err(Undelivered::Refused(code)) if is_purged(code) => self.send(message, partition, false).await,
                answered => answered,
            },
            None => self.send(message, partition, false).await,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventId;
    use rdkafka::bindings::rd_kafka_resp_err_t as Error;
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::DefaultProducerContext;
    use rdkafka::types::RDKafkaApiKey;
    use tokio::time::{Instant, sleep};

    /// For errors that a real broker answers with only when it is broken.
    type Cluster = MockCluster<'static, DefaultProducerContext>;

    fn cluster() -> (Cluster, KafkaSink) {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("present", 12, 1).unwrap();
        let sink = sink(&cluster.bootstrap_servers(), None);
        (cluster, sink)
    }

    fn sink(brokers: &str, topic: Option<&str>) -> KafkaSink {
        let config: Config = serde_json::from_value(serde_json::json!({ "brokers": brokers })).unwrap();
        KafkaSink::new("test", &config, topic).unwrap()
    }

    fn message(topic: &str) -> Message {
        Message::of(EventId([0; 16]), *b"{}", topic, "team/conversation", "conversation").with_header("ce_id", "1")
    }

    /// Publishes until the message is through, as the dispatcher does while the destination or a place is at fault.
    async fn insist(sink: &KafkaSink, message: &Message) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Err(failure) = sink.publish(message).await {
            assert!(!matches!(failure, Failure::Rejected { .. }), "{failure}");
            assert!(Instant::now() < deadline, "{failure}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    #[tokio::test]
    async fn a_fatal_error_rebuilds_the_producer_and_answers_for_every_message() {
        let (cluster, sink) = cluster();
        sink.publish(&message("present")).await.unwrap();
        // A producer whose sequence the broker does not continue cannot go on.
        cluster.request_errors(RDKafkaApiKey::Produce, &[Error::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER]);
        let message = message("present");
        let failures = futures_util::future::join_all((0..50).map(|_| sink.publish(&message))).await;
        assert!(failures.iter().any(|result| matches!(result, Err(Failure::Unavailable { .. }))), "{failures:?}");
        insist(&sink, &message).await;
        sink.close().await;
    }

    #[tokio::test]
    async fn a_refusal_of_the_batch_is_not_a_refusal_of_the_message() {
        use Error::{RD_KAFKA_RESP_ERR_INVALID_RECORD as INVALID, RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE as TOO_LARGE};
        let (cluster, sink) = cluster();
        for error in [TOO_LARGE, INVALID] {
            cluster.request_errors(RDKafkaApiKey::Produce, &[error]);
            sink.publish(&message("present")).await.unwrap();
            cluster.request_errors(RDKafkaApiKey::Produce, &[error, error]);
            assert!(matches!(sink.publish(&message("present")).await, Err(Failure::Rejected { .. })));
        }
        sink.publish(&message("present")).await.unwrap();
    }

    #[tokio::test]
    async fn an_error_that_may_pass_is_no_rejection() {
        use Error::*;
        let (cluster, sink) = cluster();
        for (error, expires) in [
            (RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP, Some(false)),
            (RD_KAFKA_RESP_ERR_POLICY_VIOLATION, Some(false)),
            (RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, Some(true)),
            (RD_KAFKA_RESP_ERR_UNKNOWN, None),
        ] {
            cluster.request_errors(RDKafkaApiKey::Produce, &[error]);
            let failure = sink.publish(&message("present")).await.unwrap_err();
            match (&failure, expires) {
                (Failure::Place { place, expires, .. }, Some(expected)) => {
                    assert_eq!((place.as_str(), *expires), ("topic present", expected), "{error:?}");
                }
                (Failure::Unavailable { .. }, None) => {}
                _ => panic!("{error:?}: {failure:?}"),
            }
            insist(&sink, &message("present")).await;
        }
    }

    /// Most of these never get here: librdkafka has no timeout of its own, and asks again. Should it ever give one up, the
    /// message must not be given up with it.
    #[tokio::test]
    async fn a_timeout_says_nothing_about_the_message() {
        use RDKafkaErrorCode::*;
        let (_cluster, sink) = cluster();
        for code in
            [MessageTimedOut, RequestTimedOut, OperationTimedOut, TimedOutQueue, BrokerTransportFailure, Unknown]
        {
            let failure = sink.classify(code, &message("present"));
            assert!(matches!(failure, Failure::Unavailable { .. }), "{code:?}: {failure}");
        }
    }

    #[tokio::test]
    async fn a_missing_topic_is_named_until_it_exists() {
        let (cluster, sink) = cluster();
        cluster.topic_error("absent", Error::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART).unwrap();
        let failure = sink.publish(&message("absent")).await.unwrap_err();
        assert!(failure.to_string().contains("topic absent: does not exist"), "{failure}");
        sink.publish(&message("present")).await.unwrap();
        cluster.topic_error("absent", Error::RD_KAFKA_RESP_ERR_NO_ERROR).unwrap();
        insist(&sink, &message("absent")).await;
        sink.probe().await.unwrap();
    }

    #[tokio::test]
    async fn a_topic_that_kafka_does_not_allow_is_rejected() {
        let (_cluster, sink) = cluster();
        for topic in ["", ".", "a b", "a\0", "தமிழ்", &"x".repeat(250)] {
            assert!(matches!(sink.publish(&message(topic)).await, Err(Failure::Rejected { .. })), "{topic:?}");
        }
    }

    #[tokio::test]
    async fn an_unreachable_cluster_is_named_with_the_cause() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let sink = sink(&address, Some("present"));
        let (probe, publish) = (sink.probe().await.unwrap_err(), sink.publish(&message("present")).await.unwrap_err());
        for failure in [probe, publish] {
            let text = failure.to_string();
            assert!(matches!(failure, Failure::Unavailable { .. }));
            assert!(text.contains(&address) && text.contains("refused"), "{text}");
        }
        sink.close().await;
    }

    #[tokio::test]
    async fn publishes_wait_for_their_share_of_the_queue_and_closing_ends_them() {
        let (cluster, sink) = cluster();
        sink.publish(&message("present")).await.unwrap();
        let free = sink.queue.free_bytes();
        cluster.broker_down(1).unwrap();
        let large = message("present").with_payload(vec![b' '; 1 << 20]);
        let mut publishes: futures_util::stream::FuturesUnordered<_> = (0..100).map(|_| sink.publish(&large)).collect();
        use futures_util::{FutureExt, StreamExt};
        let deadline = Instant::now() + Duration::from_secs(20);
        // One partition may hold half of the queue.
        while sink.queue.free_bytes() > free / 2 + (2 << 20) {
            assert!(publishes.next().now_or_never().is_none());
            assert!(Instant::now() < deadline, "{} bytes are free", sink.queue.free_bytes());
            sleep(Duration::from_millis(5)).await;
        }
        assert!(publishes.next().now_or_never().is_none());
        assert!(sink.queue.free_bytes() >= free / 2 - (2 << 20), "{} bytes are free", sink.queue.free_bytes());
        cluster.broker_up(1).unwrap();
        let mut delivered = 0;
        while let Some(result) = publishes.next().await {
            result.unwrap();
            delivered += 1;
        }
        assert_eq!(delivered, 100);
        drop(publishes);
        sink.close().await;
        assert!(matches!(sink.publish(&large).await, Err(Failure::Unavailable { .. })));
    }
}
