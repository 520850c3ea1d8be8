//! Replaces a producer that is of no more use: after a fatal error, when it hangs, and when a file it was made from has changed.

use super::config::Config;
use super::producer::{Grace, Producers};
use super::status::Status;
use super::topics::Topics;
use rdkafka::producer::Producer as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often producer and partitions are checked.
const TICK: Duration = Duration::from_millis(500);
/// The least time between two producers, so that an error which greets every new one cannot keep the process busy.
const REPLACE_INTERVAL: Duration = Duration::from_secs(5);
/// How often the files of certificates and passwords are read.
const FILE_INTERVAL: Duration = Duration::from_secs(5);
/// How often a new producer is tried in place of one that hangs.
const CANDIDATE_INTERVAL: Duration = Duration::from_secs(15);
/// How long a new producer may take to reach the cluster.
const CANDIDATE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a producer may go on with messages it has sent: librdkafka gives up the connection after `socket.timeout.ms`.
const SENT_GRACE: Duration = Duration::from_secs(35);
/// How long a producer with outdated files may go on.
const OUTDATED_GRACE: Grace = Grace { unsent: Duration::from_secs(10), sent: SENT_GRACE };
const HUNG_GRACE: Grace = Grace { unsent: Duration::ZERO, sent: SENT_GRACE };

pub(super) struct Supervisor {
    settings: Config,
    status: Arc<Status>,
    producers: Arc<Producers>,
    topics: Arc<Topics>,
    /// When a producer was replaced last after a fatal error.
    replaced_at: Instant,
    /// When a successor of a hanging producer was tried last.
    candidate_at: Instant,
    /// When the files of certificates and passwords were read last.
    files_read_at: Instant,
    /// Fingerprint of the files that the producer in use was made from.
    files: u64,
    /// Fingerprint of changed files that no producer can be made from.
    unusable_files: Option<u64>,
}

impl Supervisor {
    pub(super) fn new(settings: Config, status: Arc<Status>, producers: Arc<Producers>, topics: Arc<Topics>) -> Self {
        let (now, files) = (Instant::now(), fingerprint(&settings));
        Self {
            settings,
            status,
            producers,
            topics,
            replaced_at: now,
            candidate_at: now,
            files_read_at: now,
            files,
            unusable_files: None,
        }
    }

    pub(super) async fn run(mut self) {
        let mut ticks = tokio::time::interval(TICK);
        loop {
            ticks.tick().await;
            let hanging = self.topics.watch();
            self.replace_failed().await;
            self.replace_hanging(hanging).await;
            self.replace_outdated().await;
        }
    }

    /// An idempotent producer that cannot say whether a broker has a message declares itself unusable.
    async fn replace_failed(&mut self) {
        let Some(reason) = self.producers.fatal_error().filter(|_| self.replaced_at.elapsed() >= REPLACE_INTERVAL)
        else {
            return;
        };
        self.replaced_at = Instant::now();
        tracing::error!(
            sink = self.status.sink,
            reason,
            "kafka producer failed for good, a new one sends its messages again"
        );
        match self.producers.candidate().await {
            Ok(producer) => self.producers.replace(producer, Grace::default()).await,
            Err(cause) => tracing::error!(sink = self.status.sink, %cause, "kafka producer cannot be rebuilt"),
        }
    }

    /// librdkafka can keep to brokers, addresses and partitions that are no longer the cluster's, such as `advertised.listeners` that
    /// were wrong (librdkafka#5088). A new producer takes over if it reaches the cluster.
    async fn replace_hanging(&mut self, topic: Option<Arc<str>>) {
        let Some(topic) = topic.filter(|_| self.candidate_at.elapsed() >= CANDIDATE_INTERVAL) else { return };
        self.candidate_at = Instant::now();
        let Ok(candidate) = self.producers.candidate().await else { return };
        let asked = Arc::clone(&candidate);
        let ask = move || asked.client.client().fetch_metadata(Some(&topic), CANDIDATE_TIMEOUT).is_ok();
        if tokio::task::spawn_blocking(ask).await.unwrap_or(false) {
            self.status.warn("replaced", "kafka producer replaced: it delivers nothing although the cluster answers");
            self.producers.replace(candidate, HUNG_GRACE).await;
        } else {
            candidate.retire(Grace::default());
        }
    }

    /// librdkafka reads files when a producer is made. The former producer goes on with the messages it has.
    async fn replace_outdated(&mut self) {
        if self.files_read_at.elapsed() < FILE_INTERVAL {
            return;
        }
        self.files_read_at = Instant::now();
        let settings = self.settings.clone();
        let Ok(files) = tokio::task::spawn_blocking(move || fingerprint(&settings)).await else { return };
        if files == self.files {
            return;
        }
        match self.producers.candidate().await {
            Ok(producer) => {
                self.files = files;
                tracing::info!(sink = self.status.sink, "kafka producer replaced: its files have changed");
                self.producers.replace(producer, OUTDATED_GRACE).await;
            }
            Err(cause) if self.unusable_files != Some(files) => {
                self.unusable_files = Some(files);
                tracing::error!(sink = self.status.sink, %cause, "kafka's changed files cannot be used, the former ones stay");
            }
            Err(_) => {}
        }
    }
}

/// Changes with the content of any file.
fn fingerprint(settings: &Config) -> u64 {
    let mut hasher = DefaultHasher::new();
    for file in settings.files() {
        std::fs::read(file).ok().hash(&mut hasher);
    }
    hasher.finish()
}
