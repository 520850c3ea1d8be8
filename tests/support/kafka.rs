//! Kafka: the shared broker that `tests/run` starts, private ones for tests that break them, topics, and two consumers.
//!
//! ```ignore
//! let topic = unique_topic("ordering");
//! create_topic(&shared(), &topic, 12).await;
//! let consumed = consume(&shared(), &topic, 5, PATIENCE).await;
//!
//! let mut broker = Broker::start(&[("message.max.bytes", "2000")]).await;
//! broker.kill();
//! broker.start_again().await; // same port, same data
//!
//! let mut cluster = Cluster::start().await; // three nodes
//! ```

mod broker;
mod cluster;
mod java;
mod plain;

use std::env;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use tokio::task::spawn_blocking;

pub use broker::{Broker, PASSWORD, USER, plain_login};
pub use cluster::Cluster;
pub use java::{allow, allow_writing, java_consume, limit_producer};
pub use plain::PlainProducer;

use super::{PATIENCE, eventually};

/// One message as it lies in the topic. A null value or header value is an empty one here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consumed {
    pub partition: i32,
    pub offset: i64,
    pub key: Option<Vec<u8>>,
    /// In the order of the message.
    pub headers: Vec<(String, Vec<u8>)>,
    pub payload: Vec<u8>,
}

/// The address of the broker that all tests share. They keep apart by their [`unique_topic`]s.
pub fn shared() -> String {
    env::var("CDRELAY_TEST_KAFKA").expect("CDRELAY_TEST_KAFKA names no Kafka: run tests/run, which starts one")
}

/// A topic name that no test and no earlier run has used.
pub fn unique_topic(prefix: &str) -> String {
    format!("{prefix}.{:016x}", fastrand::u64(..))
}

pub async fn create_topic(address: &str, name: &str, partitions: i32) {
    create_topic_with(address, name, partitions, &[]).await;
}

/// Creates a topic with topic settings, such as `("max.message.bytes", "2000")`, and waits until it takes messages.
pub async fn create_topic_with(address: &str, name: &str, partitions: i32, settings: &[(&str, &str)]) {
    create(address, name, partitions, 1, settings).await;
}

async fn create(address: &str, name: &str, partitions: i32, replicas: i32, settings: &[(&str, &str)]) {
    create_replicated(address, name, partitions, TopicReplication::Fixed(replicas), settings).await;
}

async fn create_replicated(
    address: &str,
    name: &str,
    partitions: i32,
    replication: TopicReplication<'_>,
    settings: &[(&str, &str)],
) {
    let topic = NewTopic::new(name, partitions, replication);
    let topic = settings.iter().fold(topic, |topic, (key, value)| topic.set(key, value));
    let admin = admin(address);
    let results = admin.create_topics([&topic], &AdminOptions::new()).await.unwrap();
    results.into_iter().collect::<Result<Vec<_>, _>>().unwrap();
    let led = usize::try_from(partitions).unwrap();
    eventually(PATIENCE, "the new topic has leaders", async || leaders(&admin, name) == led).await;
}

/// Replaces the topic's settings by these.
pub async fn alter_topic(address: &str, name: &str, settings: &[(&str, &str)]) {
    let alter = AlterConfig::new(ResourceSpecifier::Topic(name));
    let alter = settings.iter().fold(alter, |alter, (key, value)| alter.set(key, value));
    let results = admin(address).alter_configs([&alter], &AdminOptions::new()).await.unwrap();
    results.into_iter().collect::<Result<Vec<_>, _>>().unwrap();
}

/// Deletes a topic and waits until the broker no longer knows it.
pub async fn delete_topic(address: &str, name: &str) {
    let admin = admin(address);
    let results = admin.delete_topics(&[name], &AdminOptions::new()).await.unwrap();
    results.into_iter().collect::<Result<Vec<_>, _>>().unwrap();
    eventually(PATIENCE, "the topic is gone", async || leaders(&admin, name) == 0).await;
}

/// Reads the topic from its beginning until `count` messages have come. Panics with those it has when time is up. Messages of one
/// partition are in their order.
pub async fn consume(address: &str, topic: &str, count: usize, within: Duration) -> Vec<Consumed> {
    read(address, topic, Some(count), within).await
}

/// Reads all that the topic holds now.
pub async fn consume_all(address: &str, topic: &str, within: Duration) -> Vec<Consumed> {
    read(address, topic, None, within).await
}

async fn read(address: &str, topic: &str, count: Option<usize>, within: Duration) -> Vec<Consumed> {
    let (address, topic) = (address.to_owned(), topic.to_owned());
    spawn_blocking(move || read_blocking(&address, &topic, count, within)).await.unwrap()
}

/// Goes through all that the topic holds now, without keeping it: each payload, those of one partition in their order.
pub async fn fold_all<T: Send + 'static>(
    address: &str,
    topic: &str,
    within: Duration,
    mut state: T,
    visit: impl Fn(&mut T, &[u8]) + Send + 'static,
) -> T {
    let (address, topic) = (address.to_owned(), topic.to_owned());
    let go = move || {
        let complete = visit_blocking(&address, &topic, within, |message, unread| {
            if let Some(message) = message {
                visit(&mut state, message.payload().unwrap_or_default());
            }
            unread > 0
        });
        assert!(complete, "not within {within:?}: all of {topic}");
        state
    };
    spawn_blocking(go).await.unwrap()
}

/// Each payload that the topic holds now, with its partition and its timestamp in milliseconds since 1970: when the broker appended
/// it, if the topic has `message.timestamp.type=LogAppendTime`.
pub async fn consume_times(address: &str, topic: &str, within: Duration) -> Vec<(i32, i64, Vec<u8>)> {
    let (address, topic) = (address.to_owned(), topic.to_owned());
    let go = move || {
        let mut found = Vec::new();
        let complete = visit_blocking(&address, &topic, within, |message, unread| {
            found.extend(message.map(|message| {
                let payload = message.payload().unwrap_or_default().to_vec();
                (message.partition(), message.timestamp().to_millis().unwrap(), payload)
            }));
            unread > 0
        });
        assert!(complete, "not within {within:?}: all of {topic}");
        found
    };
    spawn_blocking(go).await.unwrap()
}

/// Reads up to `count`, or else to the end of every partition.
fn read_blocking(address: &str, topic: &str, count: Option<usize>, within: Duration) -> Vec<Consumed> {
    let mut consumed = Vec::new();
    if count == Some(0) {
        return consumed;
    }
    let complete = visit_blocking(address, topic, within, |message, unread| {
        consumed.extend(message.map(to_consumed));
        count.map_or(unread > 0, |count| consumed.len() < count)
    });
    let wanted = count.map_or("all".to_owned(), |count| count.to_string());
    assert!(complete, "not within {within:?}: {wanted} messages of {topic}, only {consumed:#?}");
    consumed
}

/// Shows messages from the beginning of every partition on, and how many partitions have not been read to their end, for as long as
/// `visit` wants more. Says whether that was within the time.
fn visit_blocking(
    address: &str,
    topic: &str,
    within: Duration,
    mut visit: impl FnMut(Option<&BorrowedMessage>, usize) -> bool,
) -> bool {
    let deadline = Instant::now() + within;
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", address)
        .set("group.id", "unused, yet required")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .create()
        .unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), within).unwrap();
    let partitions = metadata.topics().first().unwrap().partitions();
    assert!(!partitions.is_empty(), "there is no topic {topic}");
    let mut unread = partitions.len();
    let mut assignment = TopicPartitionList::new();
    for partition in partitions {
        assignment.add_partition_offset(topic, partition.id(), Offset::Beginning).unwrap();
    }
    consumer.assign(&assignment).unwrap();
    loop {
        let message = match consumer.poll(deadline.saturating_duration_since(Instant::now())) {
            Some(Ok(message)) => Some(message),
            Some(Err(KafkaError::PartitionEOF(_))) => {
                unread = unread.saturating_sub(1);
                None
            }
            // The client mends its connections by itself, and says so.
            Some(Err(KafkaError::MessageConsumption(_))) | None => None,
            Some(Err(error)) => panic!("cannot read {topic}: {error}"),
        };
        if !visit(message.as_ref(), unread) {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
    }
}

fn to_consumed(message: &BorrowedMessage) -> Consumed {
    let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
    Consumed {
        partition: message.partition(),
        offset: message.offset(),
        key: message.key().map(<[u8]>::to_vec),
        headers: headers.map(|header| (header.key.to_owned(), header.value.unwrap_or_default().to_vec())).collect(),
        payload: message.payload().unwrap_or_default().to_vec(),
    }
}

fn admin(address: &str) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", address).create().unwrap()
}

/// The number of partitions that have a leader; none when there is no such topic.
fn leaders(admin: &AdminClient<DefaultClientContext>, topic: &str) -> usize {
    let metadata = admin.inner().fetch_metadata(Some(topic), PATIENCE).unwrap();
    let partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
    partitions.filter(|partition| partition.leader() >= 0).count()
}
