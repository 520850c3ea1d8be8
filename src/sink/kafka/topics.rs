//! Metadata of the topics in use: whether they exist, and where their partitions are.
//!
//! librdkafka asks the cluster in a blocking call. One task makes these calls, for all topics that were asked for meanwhile: for few of
//! them topic by topic, for many in one request for all topics of the cluster.

use super::notified;
use super::partition::{Leadership, Partition};
use super::producer::{Client, Producers, code};
use super::status::Status;
use crate::sink::Failure;
use parking_lot::Mutex;
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::{Metadata, MetadataTopic};
use rdkafka::producer::Producer as _;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How long the cluster may take to answer.
const TIMEOUT: Duration = Duration::from_secs(3);
/// How long the names for one request are gathered.
const BATCH_DELAY: Duration = Duration::from_millis(5);
/// Up to so many topics are asked for one by one, more in one request for all topics of the cluster.
const MAX_SINGLE_TOPICS: usize = 4;
/// The least time between two requests for all topics of the cluster.
const ALL_TOPICS_INTERVAL: Duration = Duration::from_secs(1);
/// Partitions found longer ago are asked for again, while they still serve.
const REFRESH_AFTER: Duration = Duration::from_secs(60);
/// For how long an answer counts that a topic is missing, or that the cluster does not answer.
const FAULT_TTL: Duration = Duration::from_secs(1);
/// How many topics are remembered: a template can name any number.
const MAX_TOPICS: usize = 4096;
/// The metadata of a partition that has acknowledged nothing for so long is asked for.
const SUSPECT_AFTER: Duration = Duration::from_secs(1);
/// A partition that has acknowledged nothing for so long is away, if the cluster answers.
const AWAY_AFTER: Duration = Duration::from_secs(3);
/// A producer that got no acknowledgement for so long hangs.
const HANGING_AFTER: Duration = Duration::from_secs(15);
/// A producer that does not know a partition which the metadata has for so long hangs as well.
const UNKNOWN_AFTER: Duration = Duration::from_secs(4);

/// The partitions of a topic, by number.
pub(super) type Partitions = Arc<[Arc<Partition>]>;

/// See the module.
pub(super) struct Topics {
    status: Arc<Status>,
    table: Mutex<Table>,
    wanted: Notify,
    answered: Notify,
}

#[derive(Default)]
struct Table {
    topics: HashMap<Arc<str>, Topic>,
    /// To be asked for.
    wanted: HashSet<Arc<str>>,
    /// When the cluster answered last, and when it did not.
    answered: Option<Instant>,
    silent: Option<(Instant, Failure)>,
    /// Since when, and when last, librdkafka did not know a partition that the metadata has.
    unknown: Option<(Instant, Instant)>,
}

impl Table {
    /// The result of a request that ended after `asked`.
    fn result_since(&self, asked: Instant, topic: &str) -> Option<Result<(), Failure>> {
        if let Some((_, failure)) = self.silent.as_ref().filter(|(since, _)| *since >= asked) {
            return Some(Err(failure.clone()));
        }
        let Some(found) = self.topics.get(topic).filter(|found| found.fetched >= asked) else {
            return self.answered.filter(|answered| topic.is_empty() && *answered >= asked).map(|_| Ok(()));
        };
        let failing: Option<Vec<_>> = found.partitions.iter().map(|partition| partition.failing()).collect();
        let all_fail = failing.and_then(|failing| failing.into_iter().next());
        Some(found.fault.clone().or(all_fail).map_or(Ok(()), Err))
    }
}

struct Topic {
    partitions: Partitions,
    /// Why the topic cannot be used.
    fault: Option<Failure>,
    /// When the cluster answered last.
    fetched: Instant,
    /// Asked for when too few replicas may be in sync, and `None` inside if the cluster does not tell.
    min_in_sync: Option<Option<usize>>,
}

type Answer = Result<Vec<Leadership>, RDKafkaErrorCode>;

impl Topics {
    pub(super) fn new(status: Arc<Status>) -> Arc<Self> {
        Arc::new(Self { status, table: Mutex::default(), wanted: Notify::new(), answered: Notify::new() })
    }

    /// The partitions of `topic`: at once where they are known, or where the topic has been missing a moment ago.
    pub(super) async fn partitions(&self, topic: &str) -> Result<Partitions, Failure> {
        notified(&self.answered, || self.cached(topic)).await
    }

    fn cached(&self, topic: &str) -> Option<Result<Partitions, Failure>> {
        let mut table = self.table.lock();
        let now = Instant::now();
        let found = table.topics.get(topic).and_then(|known| {
            let age = now.saturating_duration_since(known.fetched);
            match &known.fault {
                Some(fault) if age < FAULT_TTL => Some((Err(fault.clone()), false)),
                None if !known.partitions.is_empty() => Some((Ok(Arc::clone(&known.partitions)), age > REFRESH_AFTER)),
                _ => None,
            }
        });
        if let Some((known, false)) = found {
            return Some(known);
        }
        let silent = table.silent.as_ref().filter(|(since, _)| now.saturating_duration_since(*since) < FAULT_TTL);
        if let (None, Some((_, failure))) = (&found, silent) {
            return Some(Err(failure.clone()));
        }
        if !table.wanted.contains(topic) {
            table.wanted.insert(Arc::from(topic));
            self.wanted.notify_one();
        }
        found.map(|(known, _)| known)
    }

    /// Asks the cluster for `topic`, or else for one that is in use, or else whether it answers at all.
    pub(super) async fn probe(&self, topic: Option<&str>) -> Result<(), Failure> {
        let asked = Instant::now();
        let topic = {
            let mut table = self.table.lock();
            let used =
                || table.topics.iter().find(|(_, topic)| topic.fault.is_none()).map(|(name, _)| Arc::clone(name));
            let topic: Arc<str> = topic.map(Arc::from).or_else(used).unwrap_or_default();
            table.wanted.insert(Arc::clone(&topic));
            topic
        };
        self.wanted.notify_one();
        notified(&self.answered, || self.table.lock().result_since(asked, &topic)).await
    }

    /// A broker answered a message with `code`: the topic cannot be used as it was thought to be. Returns what to answer.
    pub(super) fn refused(&self, topic: &str, code: RDKafkaErrorCode) -> Failure {
        let (fault, now) = (self.fault(topic, code), Instant::now());
        let mut table = self.table.lock();
        if let Some(known) = table.topics.get_mut(topic) {
            known.fault = Some(fault.clone());
            known.fetched = now;
        }
        if code == RDKafkaErrorCode::UnknownPartition {
            let lately = table.unknown.filter(|(_, last)| now.saturating_duration_since(*last) < 3 * FAULT_TTL);
            table.unknown = Some((lately.map_or(now, |(since, _)| since), now));
        }
        fault
    }

    /// Finds partitions that do not acknowledge the messages they were given. Returns a topic that a new producer might help: the
    /// metadata has nothing against it.
    pub(super) fn watch(&self) -> Option<Arc<str>> {
        let (now, up, throttled) = (Instant::now(), self.status.is_up(), self.status.is_throttled());
        let mut table = self.table.lock();
        let unknown =
            table.unknown.take_if(|(since, last)| last.saturating_duration_since(*since) >= UNKNOWN_AFTER).is_some();
        let (mut wanted, mut hanging) = (HashSet::new(), None);
        for (name, topic) in &table.topics {
            if unknown && topic.fault.is_some() {
                hanging = Some(Arc::clone(name));
            }
            for partition in topic.partitions.iter() {
                let stalled = partition.stalled_for(now);
                if stalled < SUSPECT_AFTER && !partition.is_away() {
                    continue;
                }
                wanted.insert(Arc::clone(name));
                let leadership = partition.leadership();
                if leadership.is_broken() || stalled < AWAY_AFTER || throttled {
                    continue;
                }
                if up {
                    partition.declare_away(&self.status.complaint_of(leadership.leader.as_deref()));
                }
                let in_sync = leadership.in_sync == leadership.replicas.len();
                if in_sync && stalled >= HANGING_AFTER && !self.status.acknowledged_within(HANGING_AFTER) {
                    hanging = Some(Arc::clone(name));
                }
            }
        }
        if !wanted.is_empty() {
            table.wanted.extend(wanted);
            self.wanted.notify_one();
        }
        hanging
    }

    /// Asks the cluster for the topics that are wanted, again and again.
    pub(super) async fn run(self: Arc<Self>, producers: Arc<Producers>) {
        let mut next_of_all = Instant::now();
        loop {
            self.wanted.notified().await;
            tokio::time::sleep(BATCH_DELAY).await;
            if self.table.lock().wanted.len() > MAX_SINGLE_TOPICS {
                tokio::time::sleep_until(next_of_all.into()).await;
                next_of_all = Instant::now() + ALL_TOPICS_INTERVAL;
            }
            let names: Vec<_> = std::mem::take(&mut self.table.lock().wanted).into_iter().collect();
            match self.fetch(&producers, names).await {
                Ok(answers) => {
                    self.status.answered();
                    for (name, answer) in answers {
                        let min_in_sync = self.min_in_sync(&producers, &name, &answer).await;
                        self.learn(&name, answer, min_in_sync);
                    }
                    let mut table = self.table.lock();
                    (table.answered, table.silent) = (Some(Instant::now()), None);
                }
                Err(failure) => self.table.lock().silent = Some((Instant::now(), failure)),
            }
            self.answered.notify_waiters();
        }
    }

    async fn fetch(&self, producers: &Producers, names: Vec<Arc<str>>) -> Result<Vec<(Arc<str>, Answer)>, Failure> {
        let producer = producers.batching()?;
        let answer = tokio::task::spawn_blocking(move || fetch(&producer.client, &names)).await;
        answer.map_err(Failure::unavailable)?.map_err(|error| self.status.unreachable(&error))
    }

    /// The topic's `min.insync.replicas`, asked for when a replica is missing where nothing is acknowledged. The metadata does not
    /// tell, and librdkafka retries `NOT_ENOUGH_REPLICAS` for ever without a word.
    async fn min_in_sync(&self, producers: &Producers, name: &Arc<str>, answer: &Answer) -> Option<Option<usize>> {
        let missing = |found: &Leadership| found.error.is_none() && found.in_sync < found.replicas.len();
        if !answer.as_ref().is_ok_and(|found| found.iter().any(missing)) {
            return None;
        }
        let now = Instant::now();
        let stalls = |partition: &Arc<Partition>| partition.stalled_for(now) >= SUSPECT_AFTER;
        match self.table.lock().topics.get(name) {
            Some(known) if known.min_in_sync.is_none() && known.partitions.iter().any(stalls) => {}
            known => return known.and_then(|known| known.min_in_sync),
        }
        Some(describe(producers, name).await)
    }

    fn learn(&self, name: &Arc<str>, answer: Answer, min_in_sync: Option<Option<usize>>) {
        let mut table = self.table.lock();
        if table.topics.len() >= MAX_TOPICS && !table.topics.contains_key(name) {
            table.topics.retain(|_, topic| topic.fault.is_none());
            if table.topics.len() >= MAX_TOPICS {
                table.topics.retain(|_, topic| topic.partitions.iter().any(|partition| partition.is_busy()));
            }
        }
        let mut partitions: Vec<_> = table.topics.get(name).map(|known| known.partitions.to_vec()).unwrap_or_default();
        let fault = match answer {
            Ok(found) => {
                let ids = (0..).take(found.len());
                partitions.extend(ids.skip(partitions.len()).map(|id| Partition::new(name, id)));
                partitions.truncate(found.len());
                for (partition, leadership) in partitions.iter().zip(found) {
                    partition.observe(Leadership { min_in_sync: min_in_sync.flatten(), ..leadership });
                }
                None
            }
            Err(code) => Some(self.fault(name, code)),
        };
        let topic = Topic { partitions: partitions.into(), fault, fetched: Instant::now(), min_in_sync };
        table.topics.insert(Arc::clone(name), topic);
    }

    fn fault(&self, topic: &str, code: RDKafkaErrorCode) -> Failure {
        use RDKafkaErrorCode::{InvalidTopic, TopicAuthorizationFailed, UnknownTopic, UnknownTopicOrPartition};
        let brokers = &self.status.brokers;
        let cause = match code {
            UnknownTopicOrPartition | UnknownTopic => {
                format!(
                    "does not exist on {brokers}, or this user may not see it; create it, allow DESCRIBE, or correct `topic`"
                )
            }
            TopicAuthorizationFailed => format!("no permission on {brokers}; allow DESCRIBE and WRITE: {code}"),
            code => format!("cannot be used on {brokers}: {code}"),
        };
        let expires = matches!(code, InvalidTopic | TopicAuthorizationFailed | UnknownTopic | UnknownTopicOrPartition);
        Failure::Place { place: format!("topic {topic}"), cause, expires }
    }
}

/// Blocks.
fn fetch(client: &Client, names: &[Arc<str>]) -> Result<Vec<(Arc<str>, Answer)>, KafkaError> {
    let client = client.client();
    let mut answers = Vec::new();
    if (1..=MAX_SINGLE_TOPICS).contains(&names.len()) && names.iter().all(|name| !name.is_empty()) {
        for name in names {
            let metadata = client.fetch_metadata(Some(name), TIMEOUT)?;
            let topic = metadata.topics().iter().find(|topic| topic.name() == &**name);
            answers.push((Arc::clone(name), read(&metadata, topic)));
        }
    } else {
        let metadata = client.fetch_metadata(None, TIMEOUT)?;
        let topics: HashMap<_, _> = metadata.topics().iter().map(|topic| (topic.name(), topic)).collect();
        for name in names.iter().filter(|name| !name.is_empty()) {
            answers.push((Arc::clone(name), read(&metadata, topics.get(&**name).copied())));
        }
    }
    Ok(answers)
}

fn read(metadata: &Metadata, topic: Option<&MetadataTopic>) -> Answer {
    let topic = topic.ok_or(RDKafkaErrorCode::UnknownTopicOrPartition)?;
    if let Some(error) = topic.error() {
        return Err(error.into());
    }
    let mut partitions: Vec<_> = topic.partitions().iter().collect();
    if partitions.is_empty() {
        return Err(RDKafkaErrorCode::LeaderNotAvailable);
    }
    partitions.sort_by_key(|partition| partition.id());
    let leadership = |partition: &&rdkafka::metadata::MetadataPartition| {
        let leader = metadata.brokers().iter().find(|broker| broker.id() == partition.leader());
        // A replica that is away is no error of the partition: the leader takes messages.
        let error = partition.error().map(RDKafkaErrorCode::from);
        let error = error.filter(|error| *error != RDKafkaErrorCode::ReplicaNotAvailable);
        let leaderless = (partition.leader() < 0).then_some(RDKafkaErrorCode::LeaderNotAvailable);
        Leadership {
            error: error.or(leaderless),
            leader: leader.map(|broker| format!("{}:{}", broker.host(), broker.port())),
            replicas: partition.replicas().to_vec(),
            in_sync: partition.isr().len(),
            min_in_sync: None,
        }
    };
    Ok(partitions.iter().map(leadership).collect())
}

async fn describe(producers: &Producers, topic: &str) -> Option<usize> {
    let admin: AdminClient<DefaultClientContext> = producers.admin()?;
    let options = AdminOptions::new().request_timeout(Some(TIMEOUT));
    let answer = admin.describe_configs([&ResourceSpecifier::Topic(topic)], &options).await;
    let config = answer.map_err(|error| code(&error)).ok()?.into_iter().next()?.ok()?;
    config.get("min.insync.replicas")?.value.as_ref()?.parse().ok()
}
