//! Reads Kafka topics from where they end, without a group and without commits.
//!
//! Topics and partitions that appear later are read from their beginning: they hold nothing that was there before.

use super::{Consumer, END, Ended, START, unreadable};
use crate::sink::kafka::Config;
use crate::soak::observer::Observer;
use crate::soak::oracle::Position;
use crate::soak::{SoakError, setup};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Message, Offset, TopicPartitionList};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::spawn_blocking;

const POLL: Duration = Duration::from_millis(100);
/// How long the cluster may take for one answer.
const ANSWER: Duration = Duration::from_secs(3);
/// How often to look for new topics and partitions.
const LOOK: Duration = Duration::from_secs(1);
/// Between two attempts to find out where a topic ends.
const AGAIN: Duration = Duration::from_millis(500);

type Partition = (String, i32);

/// Receives the errors of librdkafka.
struct Context {
    observer: Arc<Observer>,
}

impl ClientContext for Context {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}

    fn error(&self, _: KafkaError, reason: &str) {
        self.observer.failed(reason);
    }
}

impl ConsumerContext for Context {}

type Reader = BaseConsumer<Context>;

pub async fn consume(observer: Arc<Observer>, config: &Config) -> Result<Consumer, SoakError> {
    let client = config.consumer().map_err(|error| setup(observer.name(), error))?;
    let context = Context { observer: observer.clone() };
    let reader: Arc<Reader> =
        Arc::new(client.create_with_context(context).map_err(|error| setup(observer.name(), error))?);
    let (starter, watched) = (reader.clone(), observer.clone());
    let started = spawn_blocking(move || start(&starter, &watched)).await;
    let known = started.map_err(|error| unreadable(&observer, error))?.map_err(|cause| unreadable(&observer, cause))?;
    let ended = Ended::default();
    let (for_finding, for_reading) = (ended.clone(), ended.clone());
    let (finder, finding) = (reader.clone(), observer.clone());
    let tasks = vec![
        spawn_blocking(move || find_partitions(&finder, &finding, known, &for_finding)),
        spawn_blocking(move || read(&reader, &observer, &for_reading)),
    ];
    Ok(Consumer { ended, tasks })
}

/// Begins at the end of all partitions that there are.
fn start(reader: &Reader, observer: &Observer) -> Result<HashSet<Partition>, String> {
    let deadline = Instant::now() + START;
    let mut offsets = HashMap::new();
    loop {
        match position(reader, observer, &mut offsets) {
            Ok(partitions) => {
                let ends: Vec<_> = partitions
                    .iter()
                    .filter_map(|partition| Some((partition, Offset::Offset(*offsets.get(partition)?))))
                    .collect();
                assign(reader, &ends).map_err(|error| error.to_string())?;
                return Ok(partitions);
            }
            Err(cause) if Instant::now() > deadline => {
                return Err(observer.last_error().map_or(cause.clone(), |last_error| format!("{cause}: {last_error}")));
            }
            Err(_) => std::thread::sleep(AGAIN),
        }
    }
}

fn position(
    reader: &Reader,
    observer: &Observer,
    offsets: &mut HashMap<Partition, i64>,
) -> Result<HashSet<Partition>, String> {
    let partitions = partitions(reader, observer)?;
    for partition in &partitions {
        if !offsets.contains_key(partition) {
            let (topic, number) = partition;
            let (_, end) = reader.fetch_watermarks(topic, *number, ANSWER).map_err(|error| {
                format!("cannot find the end of topic `{topic}`, partition {number}: {}", code(&error))
            })?;
            offsets.insert(partition.clone(), end);
        }
    }
    Ok(partitions)
}

/// The partitions of all topics that the sink may publish to.
fn partitions(reader: &Reader, observer: &Observer) -> Result<HashSet<Partition>, String> {
    let topic = observer.route().constant_topic();
    let metadata = reader.fetch_metadata(topic, ANSWER).map_err(|error| format!("no answer: {}", code(&error)))?;
    let mut all = HashSet::new();
    for found in metadata.topics() {
        if found.name().starts_with("__") || !observer.route().may_name(found.name()) {
            continue;
        }
        match found.error().map(RDKafkaErrorCode::from) {
            None => {}
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => continue,
            Some(RDKafkaErrorCode::TopicAuthorizationFailed) => {
                return Err(format!("no permission for topic `{}`; allow DESCRIBE and READ", found.name()));
            }
            Some(code) => return Err(format!("topic `{}`: {code}", found.name())),
        }
        all.extend(found.partitions().iter().map(|partition| (found.name().to_owned(), partition.id())));
    }
    Ok(all)
}

fn assign(reader: &Reader, partitions: &[(&Partition, Offset)]) -> Result<(), KafkaError> {
    if partitions.is_empty() {
        return Ok(());
    }
    let mut list = TopicPartitionList::new();
    for ((topic, partition), offset) in partitions {
        list.add_partition_offset(topic, *partition, *offset)?;
    }
    reader.incremental_assign(&list)
}

/// Takes up topics and partitions that were not there before.
fn find_partitions(reader: &Reader, observer: &Observer, mut known: HashSet<Partition>, ended: &Ended) {
    let mut last = Instant::now();
    while !ended.is_set() {
        if last.elapsed() < LOOK {
            std::thread::sleep(POLL.min(END));
            continue;
        }
        last = Instant::now();
        match partitions(reader, observer) {
            Ok(now) => {
                let new: Vec<_> = now.difference(&known).map(|partition| (partition, Offset::Beginning)).collect();
                match assign(reader, &new) {
                    Ok(()) => {
                        let new: Vec<_> = new.into_iter().map(|(partition, _)| partition.clone()).collect();
                        known.extend(new);
                    }
                    Err(error) => observer.failed(error.to_string()),
                }
                if known.is_empty() {
                    observer.failed("there is no topic for it yet");
                }
            }
            Err(cause) => observer.failed(cause),
        }
    }
}

fn read(reader: &Reader, observer: &Observer, ended: &Ended) {
    let mut places: HashMap<Partition, u32> = HashMap::new();
    while !ended.is_set() {
        match reader.poll(POLL) {
            Some(Ok(message)) => {
                let partition = (message.topic().to_owned(), message.partition());
                let place = *places.entry(partition).or_insert_with(|| {
                    observer.place(&format!("in {} partition {} at offset", message.topic(), message.partition()))
                });
                let at = Position { place, offset: message.offset().unsigned_abs() };
                observer.arrived(message.payload().unwrap_or_default(), at);
            }
            Some(Err(error)) => match code(&error) {
                RDKafkaErrorCode::TopicAuthorizationFailed => {
                    observer.failed("no permission to read the topic; allow READ");
                }
                code => observer.failed(code.to_string()),
            },
            None => {}
        }
    }
}

fn code(error: &KafkaError) -> RDKafkaErrorCode {
    error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail)
}
