//! Publishes to Kafka with librdkafka's idempotent producer.
//!
//! A message waits for its topic's number of partitions, then for room, then for the brokers' answer. While the cluster is away it
//! waits in librdkafka, which has no timeout here, and those behind it wait for room: memory stays flat and nothing spins.
//!
//! A broker that finds one message of a batch unfit refuses the whole batch. Such messages are therefore sent a second time, each in
//! a batch of its own by a second producer, and only what is refused then is rejected.

mod config;
mod partitioner;
mod producer;
mod topics;

pub use config::{Compression, Config, Mechanism, Properties, Sasl, Tls};

use crate::sink::{Failure, Message, SetupError, Sink};
use futures_util::future::BoxFuture;
use producer::{Link, Producer, Undelivered};
use rdkafka::ClientConfig;
use rdkafka::error::RDKafkaErrorCode;
use std::sync::Arc;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};
use topics::Topics;

/// Bytes that librdkafka may hold at once. It copies what it is given; the process is meant to fit in 64 MiB.
const ROOM: usize = 8 << 20;
/// What librdkafka keeps beside the payload and the texts of a message, the names of its headers included.
const OVERHEAD: usize = 512;

/// A Kafka cluster.
pub struct KafkaSink {
    /// The topic, where all messages have the same.
    topic: Option<String>,
    link: Arc<Link>,
    topics: Topics,
    batching: Arc<Producer>,
    /// Made when it is first needed, for clusters that refuse messages.
    alone: OnceCell<Producer>,
    alone_config: ClientConfig,
    room: Arc<Semaphore>,
}

impl KafkaSink {
    /// The sink called `name`. Checks all settings and connects in the background. `topic` is the topic of every message, if that
    /// is known: [`Sink::probe`] then reports it missing before the first event does.
    pub fn new(name: &str, config: &Config, topic: Option<&str>) -> Result<Self, SetupError> {
        let client = config.client()?;
        let mut alone_config = client.clone();
        alone_config.set("batch.num.messages", "1").set("linger.ms", "0");
        let link = Arc::new(Link::new(name, config.brokers.join(",")));
        let batching = Arc::new(Producer::start(client, Arc::clone(&link))?);
        Ok(Self {
            topic: topic.map(str::to_owned),
            topics: Topics::new(Arc::clone(&batching), Arc::clone(&link)),
            link,
            batching,
            alone: OnceCell::new(),
            alone_config,
            room: Arc::new(Semaphore::new(ROOM)),
        })
    }

    async fn deliver(&self, message: &Message) -> Result<(), Failure> {
        if !is_topic(message.topic()) {
            return Err(Failure::rejected(format!(
                "`{}` is not a name that Kafka allows for a topic",
                message.topic()
            )));
        }
        let partitions = self.topics.partitions(message.topic()).await?;
        let partition = partitioner::partition(message.partition_by(), partitions);
        let room = self.room(message).await?;
        let result = match self.batching.send(message, partition, room).await {
            Err(Undelivered::Failed(code)) if blames_the_batch(code) => {
                let room = self.room(message).await?;
                self.alone().await?.send(message, partition, room).await
            }
            result => result,
        };
        result.map_err(|undelivered| {
            let failure = classify(undelivered, message);
            if matches!(failure, Failure::Unavailable { .. }) {
                self.topics.doubt(message.topic());
            }
            failure
        })
    }

    /// Waits until librdkafka may hold `message` too. One that is larger than all the room takes all of it.
    async fn room(&self, message: &Message) -> Result<OwnedSemaphorePermit, Failure> {
        let room = Arc::clone(&self.room).acquire_many_owned(needed_room(message)).await;
        room.map_err(|_| Failure::unavailable("the sink is closed"))
    }

    async fn alone(&self) -> Result<&Producer, Failure> {
        let start = || async {
            let (config, link) = (self.alone_config.clone(), Arc::clone(&self.link));
            let started = tokio::task::spawn_blocking(move || Producer::start(config, link)).await;
            started.map_err(Failure::unavailable)?.map_err(Failure::unavailable)
        };
        self.alone.get_or_try_init(start).await
    }

    async fn finish(&self) {
        // All the room is free once every message has been answered for.
        let all = u32::try_from(ROOM).unwrap_or(u32::MAX);
        if let Ok(idle) = self.room.acquire_many(all).await {
            idle.forget();
        }
        self.room.close();
        self.batching.stop().await;
        if let Some(alone) = self.alone.get() {
            alone.stop().await;
        }
    }
}

impl Sink for KafkaSink {
    fn publish<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(self.deliver(message))
    }

    fn probe(&self) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(self.topics.probe(self.topic.as_deref()))
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.finish())
    }
}

fn needed_room(message: &Message) -> u32 {
    let bytes = message.size() + OVERHEAD;
    u32::try_from(bytes.min(ROOM)).unwrap_or(u32::MAX)
}

/// Whether the broker may have meant another message of the same batch.
fn blames_the_batch(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::{InvalidDifferentRecord, InvalidRecord, MessageSizeTooLarge};
    matches!(code, MessageSizeTooLarge | InvalidRecord | InvalidDifferentRecord)
}

/// Rejected is what a broker refused in a batch of its own, or what exceeds the limit set on our side. Everything else may pass later:
/// an invalid timestamp is a wrong clock, a policy or a permission is the operator's.
fn classify(undelivered: Undelivered, message: &Message) -> Failure {
    let (topic, bytes) = (message.topic(), message.payload().len());
    match undelivered {
        Undelivered::NoProducer(failure) => failure,
        Undelivered::NotTaken(RDKafkaErrorCode::MessageSizeTooLarge) => Failure::rejected(format!(
            "the message, {bytes} bytes of payload, exceeds `message.max.bytes` of this client"
        )),
        Undelivered::Failed(RDKafkaErrorCode::MessageSizeTooLarge) => Failure::rejected(format!(
            "the message, {bytes} bytes of payload, exceeds `max.message.bytes` of topic `{topic}`"
        )),
        Undelivered::Failed(RDKafkaErrorCode::InvalidRecord) => {
            Failure::rejected(format!("the broker refused the message as invalid for topic `{topic}`"))
        }
        Undelivered::Failed(RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight) => {
            Failure::unavailable("the producer was closed before the message was delivered")
        }
        Undelivered::Failed(RDKafkaErrorCode::TopicAuthorizationFailed) => {
            Failure::unavailable(format!("no permission to write to topic `{topic}`"))
        }
        Undelivered::Failed(code) | Undelivered::NotTaken(code) => {
            Failure::unavailable(format!("topic `{topic}`: {code}"))
        }
    }
}

/// `org.apache.kafka.common.internals.Topic.validate`, which the broker would answer with an error that no waiting mends.
fn is_topic(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=249).contains(&name.len()) && name.bytes().all(legal) && name != "." && name != ".."
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventId;
    use rdkafka::bindings::rd_kafka_resp_err_t as Error;
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::DefaultProducerContext;
    use rdkafka::types::RDKafkaApiKey;

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

    #[tokio::test]
    async fn a_fatal_error_rebuilds_the_producer_and_answers_for_every_message() {
        let (cluster, sink) = cluster();
        sink.publish(&message("present")).await.unwrap();
        // A producer whose sequence the broker does not continue cannot go on.
        cluster.request_errors(RDKafkaApiKey::Produce, &[Error::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER]);
        let message = message("present");
        let failures = futures_util::future::join_all((0..50).map(|_| sink.publish(&message))).await;
        assert!(failures.iter().any(|result| matches!(result, Err(Failure::Unavailable { .. }))), "{failures:?}");
        let deadline = tokio::time::Instant::now() + 4 * std::time::Duration::from_secs(5);
        while let Err(failure) = sink.publish(&message).await {
            assert!(matches!(failure, Failure::Unavailable { .. }), "{failure}");
            assert!(tokio::time::Instant::now() < deadline, "{failure}");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
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
    async fn what_may_pass_later_is_unavailable() {
        use Error::*;
        let (cluster, sink) = cluster();
        for error in [
            RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP,
            RD_KAFKA_RESP_ERR_POLICY_VIOLATION,
            RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
            RD_KAFKA_RESP_ERR_UNKNOWN,
        ] {
            cluster.request_errors(RDKafkaApiKey::Produce, &[error]);
            let result = sink.publish(&message("present")).await;
            assert!(matches!(result, Err(Failure::Unavailable { .. })), "{error:?}: {result:?}");
            sink.publish(&message("present")).await.unwrap();
        }
    }

    /// Most of these never get here: librdkafka has no timeout of its own, and asks again. Should it ever give one up, the
    /// message must not be given up with it.
    #[test]
    fn a_timeout_says_nothing_about_the_message() {
        use RDKafkaErrorCode::*;
        for code in
            [MessageTimedOut, RequestTimedOut, OperationTimedOut, TimedOutQueue, BrokerTransportFailure, Unknown]
        {
            for undelivered in [Undelivered::Failed(code), Undelivered::NotTaken(code)] {
                let failure = classify(undelivered, &message("present"));
                assert!(matches!(failure, Failure::Unavailable { .. }), "{code:?}: {failure}");
            }
        }
    }

    #[tokio::test]
    async fn a_missing_topic_is_unavailable_until_it_exists() {
        let (cluster, sink) = cluster();
        cluster.topic_error("absent", Error::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART).unwrap();
        let failure = sink.publish(&message("absent")).await.unwrap_err();
        assert!(failure.to_string().contains("`absent` does not exist"), "{failure}");
        assert_eq!(sink.probe().await.unwrap_err(), failure);
        sink.publish(&message("present")).await.unwrap();
        cluster.topic_error("absent", Error::RD_KAFKA_RESP_ERR_NO_ERROR).unwrap();
        sink.probe().await.unwrap();
        sink.publish(&message("absent")).await.unwrap();
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
            assert!(text.contains(&address) && text.contains("refused"), "{text}");
        }
        sink.close().await;
    }

    #[tokio::test]
    async fn publishes_wait_for_room_and_closing_ends_them() {
        let (cluster, sink) = cluster();
        sink.publish(&message("present")).await.unwrap();
        cluster.broker_down(1).unwrap();
        let large = message("present").with_payload(vec![b' '; 1 << 20]);
        let mut publishes: futures_util::stream::FuturesUnordered<_> = (0..100).map(|_| sink.publish(&large)).collect();
        use futures_util::{FutureExt, StreamExt};
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
        loop {
            assert!(publishes.next().now_or_never().is_none());
            let room = sink.room.available_permits();
            if room < large.payload().len() {
                break;
            }
            assert!(tokio::time::Instant::now() < deadline, "{room} bytes of room are left");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
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
