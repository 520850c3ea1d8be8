//! How many partitions each topic has, and whether it exists at all.
//!
//! librdkafka asks the cluster in a blocking call, so there is one per topic at a time, shared by all who wait for it, and few at once.

use super::producer::{Link, Producer, code, lock};
use crate::sink::Failure;
use foldhash::quality::RandomState;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::Producer as _;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// How long the cluster may take to answer.
const TIMEOUT: Duration = Duration::from_secs(3);
/// A count older than this is asked for again, while it still serves.
const REFRESH: Duration = Duration::from_secs(60);
/// How long a failure stands: the dispatcher retries every waiting conversation on its own.
const FAILURE: Duration = Duration::from_millis(500);
/// Threads that may wait for the cluster.
const FETCHES: usize = 4;
/// Topics remembered at once; a template can name any number of them.
const REMEMBERED: usize = 4096;
/// Missing topics that one probe asks for.
const PROBED: usize = 4;

type Lookup = Shared<BoxFuture<'static, Result<i32, Failure>>>;

/// See the module.
#[derive(Clone)]
pub(super) struct Topics(Arc<Inner>);

struct Inner {
    producer: Arc<Producer>,
    link: Arc<Link>,
    entries: Mutex<Entries>,
    /// Milliseconds since `begun`, when the clock was asked last: not for every message.
    now: AtomicU64,
    begun: Instant,
    /// The last time the cluster did not answer: those who queue for a fetch then need not wait for the same.
    silent: Mutex<Option<(Instant, Failure)>>,
    fetches: Semaphore,
}

type Entries = HashMap<String, Entry, RandomState>;

struct Entry {
    /// The last known number, kept while the cluster cannot be asked.
    partitions: Option<i32>,
    /// Why the number is not known.
    failure: Option<Failure>,
    asked: Instant,
    /// The question being asked.
    lookup: Option<Lookup>,
}

impl Topics {
    pub(super) fn new(producer: Arc<Producer>, link: Arc<Link>) -> Self {
        Self(Arc::new(Inner {
            producer,
            link,
            entries: Mutex::default(),
            now: AtomicU64::default(),
            begun: Instant::now(),
            silent: Mutex::default(),
            fetches: Semaphore::new(FETCHES),
        }))
    }

    /// The number of partitions of `topic`, if it is known.
    fn known(&self, topic: &str) -> Option<i32> {
        let mut entries = lock(&self.0.entries);
        let entry = entries.get(topic)?;
        let partitions = entry.partitions?;
        let now = self.0.begun + Duration::from_millis(self.0.now.load(Ordering::Relaxed));
        if entry.lookup.is_none() && now.saturating_duration_since(entry.asked) > REFRESH {
            drop(self.ask(&mut entries, topic));
        }
        Some(partitions)
    }

    /// Has [`Self::known`] find out what is to be asked for again.
    fn look_at_the_clock(&self) {
        let passed = u64::try_from(self.0.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.now.store(passed, Ordering::Relaxed);
    }

    /// The number of partitions of `topic`: at once where it is known.
    pub(super) async fn partitions(&self, topic: &str) -> Result<i32, Failure> {
        self.look_at_the_clock();
        if let Some(partitions) = self.known(topic) {
            return Ok(partitions);
        }
        let lookup = {
            let mut entries = lock(&self.0.entries);
            match entries.get(topic) {
                Some(Entry { failure: Some(failure), asked, lookup: None, .. }) if asked.elapsed() < FAILURE => {
                    return Err(failure.clone());
                }
                _ => self.ask(&mut entries, topic),
            }
        };
        lookup.await
    }

    /// Asks the cluster whether `topic`, or else what was lately published to, exists.
    pub(super) async fn probe(&self, topic: Option<&str>) -> Result<(), Failure> {
        let topics = match topic {
            Some(topic) => vec![topic.to_owned()],
            None => self.of_interest(),
        };
        if topics.is_empty() {
            return self.0.fetch(None).await.map(drop).map_err(Failure::from);
        }
        for topic in topics {
            let lookup = self.ask(&mut lock(&self.0.entries), &topic);
            lookup.await?;
        }
        Ok(())
    }

    /// Asks again before the next use: a message for `topic` failed, and this may be why.
    pub(super) fn doubt(&self, topic: &str) {
        if let Some(entry) = lock(&self.0.entries).get_mut(topic) {
            entry.partitions = None;
        }
    }

    /// The topics that were missing, and one that was not.
    fn of_interest(&self) -> Vec<String> {
        let entries = lock(&self.0.entries);
        let missing = entries.iter().filter(|(_, entry)| entry.failure.is_some()).take(PROBED);
        let present = entries.iter().filter(|(_, entry)| entry.failure.is_none()).take(1);
        missing.chain(present).map(|(topic, _)| topic.clone()).collect()
    }

    fn ask(&self, entries: &mut Entries, topic: &str) -> Lookup {
        if entries.len() >= REMEMBERED && !entries.contains_key(topic) {
            entries.retain(|_, entry| entry.lookup.is_some() || entry.asked.elapsed() < REFRESH);
        }
        let entry = entries.entry(topic.to_owned()).or_insert_with(|| Entry {
            partitions: None,
            failure: None,
            asked: Instant::now(),
            lookup: None,
        });
        let inner = Arc::clone(&self.0);
        let topic = topic.to_owned();
        // A task of its own: a lookup that nobody polls any more must not keep its permit.
        let lookup = || {
            let task = tokio::spawn(inner.look_up(topic));
            task.map(|result| result.unwrap_or_else(|error| Err(Failure::unavailable(error)))).boxed().shared()
        };
        entry.lookup.get_or_insert_with(lookup).clone()
    }
}

impl Inner {
    async fn look_up(self: Arc<Self>, topic: String) -> Result<i32, Failure> {
        let result = self.fetch(Some(topic.clone())).await;
        let mut entries = lock(&self.entries);
        let Some(entry) = entries.get_mut(&topic) else {
            return result.map_err(Unknown::into);
        };
        entry.asked = Instant::now();
        entry.lookup = None;
        entry.failure = None;
        match result {
            Ok(partitions) => {
                entry.partitions = Some(partitions);
                Ok(partitions)
            }
            Err(unknown) => {
                if matches!(unknown, Unknown::Topic(_)) {
                    entry.partitions = None;
                }
                let failure = Failure::from(unknown);
                entry.failure = Some(failure.clone());
                Err(failure)
            }
        }
    }

    /// Asks the cluster for `topic`'s number of partitions; without a topic, only whether it answers.
    async fn fetch(&self, topic: Option<String>) -> Result<i32, Unknown> {
        let _permit = self.fetches.acquire().await;
        if let Some((when, failure)) = &*lock(&self.silent)
            && when.elapsed() < FAILURE
        {
            return Err(Unknown::Cluster(failure.clone()));
        }
        let client = self.producer.client().map_err(Unknown::Cluster)?;
        let asked = topic.clone();
        let answer = tokio::task::spawn_blocking(move || {
            let metadata = client.client().fetch_metadata(asked.as_deref(), TIMEOUT)?;
            let Some(asked) = asked else { return Ok(Ok(0)) };
            let topic = metadata.topics().iter().find(|topic| topic.name() == asked);
            Ok(match topic.map(|topic| (topic.error(), topic.partitions().len())) {
                None => Err(RDKafkaErrorCode::UnknownTopicOrPartition),
                Some((Some(error), _)) => Err(RDKafkaErrorCode::from(error)),
                Some((None, 0)) => Err(RDKafkaErrorCode::LeaderNotAvailable),
                Some((None, partitions)) => Ok(i32::try_from(partitions).unwrap_or(i32::MAX)),
            })
        });
        match answer.await {
            Ok(Ok(answer)) => {
                self.link.up();
                lock(&self.silent).take();
                answer.map_err(|code| Unknown::Topic(self.unusable(topic.as_deref().unwrap_or_default(), code)))
            }
            Ok(Err(error)) => Err(self.silent(&error)),
            Err(error) => Err(Unknown::Cluster(Failure::unavailable(error))),
        }
    }

    fn silent(&self, error: &KafkaError) -> Unknown {
        let cause = self.link.cause().unwrap_or_else(|| code(error).to_string());
        let failure = Failure::unavailable(format!("kafka at {} does not answer: {cause}", self.link.brokers));
        *lock(&self.silent) = Some((Instant::now(), failure.clone()));
        Unknown::Cluster(failure)
    }

    fn unusable(&self, topic: &str, code: RDKafkaErrorCode) -> Failure {
        let brokers = &self.link.brokers;
        Failure::unavailable(match code {
            RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic => {
                format!("topic `{topic}` does not exist on {brokers}; create it or correct `topic`")
            }
            RDKafkaErrorCode::TopicAuthorizationFailed => {
                format!("no permission for topic `{topic}` on {brokers}; allow DESCRIBE and WRITE")
            }
            code => format!("topic `{topic}` on {brokers} cannot be used: {code}"),
        })
    }
}

/// Why a number of partitions is not known.
enum Unknown {
    Topic(Failure),
    Cluster(Failure),
}

impl From<Unknown> for Failure {
    fn from(unknown: Unknown) -> Self {
        match unknown {
            Unknown::Topic(failure) | Unknown::Cluster(failure) => failure,
        }
    }
}
