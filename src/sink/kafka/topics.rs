//! Metadata of the topics in use: whether they exist, and where their partitions are.
//!
//! librdkafka asks the cluster in a blocking call. One task makes these calls, for all topics that publishes want meanwhile: for few of
//! them topic by topic, for many in one request for all topics of the cluster.

use super::notified;
use super::partition::{Cluster, Condition, Leadership, Partition};
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

/// The partitions of a topic, by number.
pub(super) type Partitions = Arc<[Arc<Partition>]>;

/// See the module.
pub(super) struct Topics {
    status: Arc<Status>,
    producers: Arc<Producers>,
    table: Mutex<Table>,
    wanted: Notify,
    answered: Notify,
}

#[derive(Default)]
struct Table {
    topics: HashMap<Arc<str>, Topic>,
    /// To be asked for.
    wanted: HashSet<Arc<str>>,
    /// When the cluster was asked last, if it did not answer.
    silent: Option<(Instant, Failure)>,
}

struct Topic {
    partitions: Partitions,
    /// Why the topic cannot be used.
    fault: Option<Failure>,
    /// When the cluster answered last.
    fetched: Instant,
    /// Asked for when too few replicas may be in sync; 0 if the cluster does not tell.
    min_in_sync: Option<usize>,
}

type Answer = Result<Vec<Leadership>, RDKafkaErrorCode>;

impl Topics {
    pub(super) fn new(status: Arc<Status>, producers: Arc<Producers>) -> Arc<Self> {
        let (table, wanted, answered) = (Mutex::default(), Notify::new(), Notify::new());
        Arc::new(Self { status, producers, table, wanted, answered })
    }

    /// The partitions of `topic`: at once where they are known, or where the topic has been missing a moment ago.
    pub(super) async fn partitions(&self, topic: &str) -> Result<Partitions, Failure> {
        notified(&self.answered, || self.cached(topic)).await
    }

    fn cached(&self, topic: &str) -> Option<Result<Partitions, Failure>> {
        let mut table = self.table.lock();
        let known = table.topics.get(topic).map(|known| match &known.fault {
            None => (known.fetched, Ok(Arc::clone(&known.partitions))),
            Some(fault) => (known.fetched, Err(fault.clone())),
        });
        let silent = table.silent.clone().map(|(since, failure)| (since, Err(failure)));
        let (answer, is_fresh) = match (known, silent) {
            (Some((fetched, Ok(partitions))), _) => (Some(Ok(partitions)), fetched.elapsed() < REFRESH_AFTER),
            (Some((since, fault)), _) | (_, Some((since, fault))) if since.elapsed() < FAULT_TTL => (Some(fault), true),
            _ => (None, false),
        };
        if !is_fresh && !table.wanted.contains(topic) {
            table.wanted.insert(Arc::from(topic));
            self.wanted.notify_one();
        }
        answer
    }

    /// Asks the cluster for `topic`, or else for one that is in use, or else whether it answers at all.
    pub(super) async fn probe(&self, topic: Option<&str>) -> Result<(), Failure> {
        let used = || {
            let table = self.table.lock();
            table.topics.iter().find(|(_, topic)| topic.fault.is_none()).map(|(name, _)| Arc::clone(name))
        };
        let topic = topic.map(Arc::from).or_else(used);
        self.ask(topic.iter().cloned().collect()).await?;
        let table = self.table.lock();
        let Some(found) = topic.and_then(|topic| table.topics.get(&topic)) else { return Ok(()) };
        let failing: Option<Vec<_>> = found.partitions.iter().map(|partition| partition.failing()).collect();
        let all_fail = failing.and_then(|failing| failing.into_iter().next());
        found.fault.clone().or(all_fail).map_or(Ok(()), Err)
    }

    /// A broker refused a message with `code` because of its topic. Returns the failure of the publish.
    pub(super) fn refused(&self, topic: &str, code: RDKafkaErrorCode) -> Failure {
        let fault = self.fault(topic, code);
        if let Some(known) = self.table.lock().topics.get_mut(topic) {
            known.fault = Some(fault.clone());
            known.fetched = Instant::now();
        }
        fault
    }

    /// Finds partitions that do not acknowledge the messages they were given. Returns the worst condition, and a topic of which a
    /// partition is in it. librdkafka can keep to a former leader or address for ever, for example to the leader of a topic that was
    /// made anew since, because the new one's epoch is lower.
    pub(super) fn watch(&self) -> Option<(Condition, Arc<str>)> {
        let now = Instant::now();
        let cluster = match (self.status.is_throttled(), self.status.is_up()) {
            (true, _) => Cluster::Throttles,
            (false, true) => Cluster::Answers,
            (false, false) => Cluster::Silent,
        };
        let mut table = self.table.lock();
        let Table { topics, wanted, .. } = &mut *table;
        let mut worst = None;
        for (name, topic) in topics.iter() {
            for partition in topic.partitions.iter() {
                let condition = partition.watch(now, cluster, |leader| self.status.complaint_of(leader));
                if condition != Condition::Good {
                    wanted.insert(Arc::clone(name));
                    self.wanted.notify_one();
                    worst = worst.max(Some((condition, Arc::clone(name))));
                }
            }
        }
        worst
    }

    /// Asks the cluster for the topics that are wanted, again and again.
    pub(super) async fn run(self: Arc<Self>) {
        let mut next_of_all = Instant::now();
        loop {
            self.wanted.notified().await;
            tokio::time::sleep(BATCH_DELAY).await;
            if self.table.lock().wanted.len() > MAX_SINGLE_TOPICS {
                tokio::time::sleep_until(next_of_all.into()).await;
                next_of_all = Instant::now() + ALL_TOPICS_INTERVAL;
            }
            let names: Vec<_> = std::mem::take(&mut self.table.lock().wanted).into_iter().collect();
            if !names.is_empty() {
                // Publishes find a failure in the table.
                let _ = self.ask(names).await;
            }
        }
    }

    /// Asks the cluster for topics, or with no topic whether it answers.
    async fn ask(&self, names: Vec<Arc<str>>) -> Result<(), Failure> {
        let asked = match self.fetch(names).await {
            Ok(answers) => {
                self.status.answered();
                for (name, answer) in answers {
                    let min_in_sync = self.min_in_sync(&name, &answer).await;
                    self.learn(&name, answer, min_in_sync);
                }
                self.table.lock().silent = None;
                Ok(())
            }
            Err(failure) => {
                self.table.lock().silent = Some((Instant::now(), failure.clone()));
                Err(failure)
            }
        };
        self.answered.notify_waiters();
        asked
    }

    async fn fetch(&self, names: Vec<Arc<str>>) -> Result<Vec<(Arc<str>, Answer)>, Failure> {
        let producer = self.producers.batching()?;
        let answer = tokio::task::spawn_blocking(move || fetch(&producer.client, &names)).await;
        answer.map_err(Failure::unavailable)?.map_err(|error| self.status.unreachable(&error))
    }

    /// The topic's `min.insync.replicas`, asked for when a replica is missing where nothing is acknowledged. The metadata does not
    /// tell, and librdkafka retries `NOT_ENOUGH_REPLICAS` for ever without a word.
    async fn min_in_sync(&self, name: &Arc<str>, answer: &Answer) -> Option<usize> {
        let missing = |found: &Leadership| found.error.is_none() && found.in_sync < found.replicas.len();
        if !answer.as_ref().is_ok_and(|found| found.iter().any(missing)) {
            return None;
        }
        let now = Instant::now();
        match self.table.lock().topics.get(name) {
            Some(known) if known.min_in_sync.is_none() && known.partitions.iter().any(|it| it.is_stalled(now)) => {}
            known => return known.and_then(|known| known.min_in_sync),
        }
        Some(describe(&self.producers, name).await.unwrap_or(0))
    }

    fn learn(&self, name: &Arc<str>, answer: Answer, min_in_sync: Option<usize>) {
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
                    partition.observe(Leadership { min_in_sync, ..leadership });
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
    if (1..=MAX_SINGLE_TOPICS).contains(&names.len()) {
        for name in names {
            let metadata = client.fetch_metadata(Some(name), TIMEOUT)?;
            let topic = metadata.topics().iter().find(|topic| topic.name() == &**name);
            answers.push((Arc::clone(name), read(&metadata, topic)));
        }
    } else {
        let metadata = client.fetch_metadata(None, TIMEOUT)?;
        let topics: HashMap<_, _> = metadata.topics().iter().map(|topic| (topic.name(), topic)).collect();
        for name in names {
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
