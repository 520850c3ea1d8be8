//! One partition of a topic: its share of librdkafka's queue, and whether it takes messages.

use super::notified;
use super::producer::Answer;
use crate::event::EventId;
use crate::sink::Failure;
use parking_lot::Mutex;
use rdkafka::error::RDKafkaErrorCode;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Bytes that librdkafka may hold at once. It copies each message; the process is meant to fit in 64 MiB.
const QUEUE_BYTES: usize = 8 << 20;

/// The metadata of a partition that has acknowledged nothing for so long is asked for.
const STALLED_AFTER: Duration = Duration::from_secs(1);
/// A partition that has acknowledged nothing for so long is away, if the cluster answers.
const AWAY_AFTER: Duration = Duration::from_secs(3);
/// A producer that gets no acknowledgement from a partition for so long hangs, if the metadata has nothing against the partition.
const HANGING_AFTER: Duration = Duration::from_secs(15);

/// Answers that a partition keeps for messages that are retried later.
const MAX_ABANDONED: usize = 4096;

/// The bytes of the messages that librdkafka holds: bounded in all, and for each partition.
///
/// A partition may hold as many bytes as are free for everybody ("Dynamic Queue Length Thresholds", Choudhury and Hahne, 1998): one that
/// is away takes half of the queue at most, several take equal parts, and some of the queue is always left for the others.
pub(super) struct Queue {
    held_bytes: Mutex<usize>,
    freed: Notify,
}

/// A message's part of the [`Queue`], given back when dropped: when librdkafka has answered for the message.
pub(super) struct Share {
    queue: Arc<Queue>,
    partition: Arc<Partition>,
    bytes: usize,
}

impl Queue {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { held_bytes: Mutex::default(), freed: Notify::new() })
    }

    /// Waits until librdkafka may hold so many bytes more of this partition; fails as soon as the partition is away.
    pub(super) async fn share(self: &Arc<Self>, partition: &Arc<Partition>, bytes: usize) -> Result<Share, Failure> {
        tokio::select! {
            biased;
            failure = partition.until_away() => Err(failure),
            share = notified(&self.freed, || self.try_share(partition, bytes)) => Ok(share),
        }
    }

    /// A partition may always hold one message, however large.
    fn try_share(self: &Arc<Self>, partition: &Arc<Partition>, bytes: usize) -> Option<Share> {
        let mut state = partition.state.lock();
        let mut held_bytes = self.held_bytes.lock();
        if state.queued > 0 && state.queued_bytes + bytes > QUEUE_BYTES.saturating_sub(*held_bytes) {
            return None;
        }
        *held_bytes += bytes;
        if state.queued == 0 {
            state.progress = Instant::now();
        }
        state.queued += 1;
        state.queued_bytes += bytes;
        Some(Share { queue: Arc::clone(self), partition: Arc::clone(partition), bytes })
    }
}

impl Share {
    /// The partition has stored a message: it is not away.
    pub(super) fn acknowledged(&self) {
        self.partition.state.lock().away = None;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut state = self.partition.state.lock();
        state.queued -= 1;
        state.queued_bytes -= self.bytes;
        state.progress = Instant::now();
        drop(state);
        *self.queue.held_bytes.lock() -= self.bytes;
        self.queue.freed.notify_waiters();
    }
}

/// See the module.
pub(super) struct Partition {
    topic: Arc<str>,
    pub(super) id: i32,
    state: Mutex<State>,
    went_away: Notify,
}

struct State {
    /// Messages of this partition in librdkafka, and their bytes.
    queued: usize,
    queued_bytes: usize,
    /// When librdkafka last answered for one of them, or got the first.
    progress: Instant,
    /// When the cluster or its metadata last explained why there is no answer, or a new producer began.
    explained: Instant,
    leadership: Leadership,
    /// Why the partition acknowledges nothing, until it acknowledges a message.
    away: Option<Away>,
    /// Messages that librdkafka holds although their `publish` is over: [`Partition::abandon`].
    abandoned: HashMap<EventId, Answer>,
}

/// A partition, by how long it has acknowledged nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Condition {
    Good,
    /// Its metadata should be asked for.
    Suspect,
    /// The whole cluster is silent. A new producer should be tried: this one may keep to addresses that are no longer the cluster's.
    Silent,
    /// The producer should be replaced.
    Hanging,
}

/// What the producer hears from the cluster.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Cluster {
    Answers,
    /// Answers are delayed because of a quota.
    Throttles,
    Silent,
}

impl State {
    /// For how long librdkafka has got no answer for the messages it holds.
    fn stalled_for(&self, now: Instant) -> Duration {
        if self.queued == 0 { Duration::ZERO } else { now.saturating_duration_since(self.progress) }
    }
}

struct Away {
    cause: String,
    /// Whether a message may be tried again all the same.
    is_open: bool,
}

/// A partition according to the cluster's metadata.
#[derive(Clone, Default)]
pub(super) struct Leadership {
    pub(super) error: Option<RDKafkaErrorCode>,
    /// Host and port of the broker that leads, if it is known.
    pub(super) leader: Option<String>,
    /// Ids of the brokers that have a replica.
    pub(super) replicas: Vec<i32>,
    /// How many of the replicas are in sync.
    pub(super) in_sync: usize,
    /// The topic's `min.insync.replicas`, where it had to be known and may be.
    pub(super) min_in_sync: Option<usize>,
}

impl Partition {
    pub(super) fn new(topic: &Arc<str>, id: i32) -> Arc<Self> {
        let state = State {
            queued: 0,
            queued_bytes: 0,
            progress: Instant::now(),
            explained: Instant::now(),
            leadership: Leadership::default(),
            away: None,
            abandoned: HashMap::new(),
        };
        Arc::new(Self { topic: Arc::clone(topic), id, state: Mutex::new(state), went_away: Notify::new() })
    }

    /// Resolves with the failure to answer when the partition is away.
    pub(super) async fn until_away(&self) -> Failure {
        notified(&self.went_away, || self.away(|away| !away.is_open)).await
    }

    /// Why the partition has acknowledged nothing since it was away, if so.
    pub(super) fn failing(&self) -> Option<Failure> {
        self.away(|_| true)
    }

    fn away(&self, which: impl Fn(&Away) -> bool) -> Option<Failure> {
        let state = self.state.lock();
        let away = state.away.as_ref().filter(|away| which(away))?;
        let place = format!("topic {} partition {}", self.topic, self.id);
        Some(Failure::Place { place, cause: away.cause.clone(), expires: false })
    }

    /// Whether librdkafka holds messages of the partition.
    pub(super) fn is_busy(&self) -> bool {
        self.state.lock().queued > 0
    }

    /// Whether librdkafka has got no answer for a while for the messages it holds.
    pub(super) fn is_stalled(&self, now: Instant) -> bool {
        self.state.lock().stalled_for(now) >= STALLED_AFTER
    }

    /// Declares the partition away if it does not answer although its cluster does. `complaint_of` tells the last word of librdkafka on
    /// the broker with this host and port.
    pub(super) fn watch(
        &self,
        now: Instant,
        cluster: Cluster,
        complaint_of: impl FnOnce(Option<&str>) -> String,
    ) -> Condition {
        let mut state = self.state.lock();
        let stalled = state.stalled_for(now);
        if stalled < STALLED_AFTER && state.away.as_ref().is_none_or(|away| away.is_open) {
            return Condition::Good;
        }
        if cluster != Cluster::Answers || state.leadership.is_broken() {
            state.explained = now;
            let is_silent = cluster == Cluster::Silent && stalled >= HANGING_AFTER;
            return if is_silent { Condition::Silent } else { Condition::Suspect };
        }
        if stalled < AWAY_AFTER {
            return Condition::Suspect;
        }
        let cause = state.leadership.cause(&complaint_of(state.leadership.leader.as_deref()));
        self.set_away(&mut state, cause);
        let unexplained = stalled.min(now.saturating_duration_since(state.explained));
        if unexplained < HANGING_AFTER || state.leadership.in_sync < state.leadership.replicas.len() {
            return Condition::Suspect;
        }
        // A new producer gets as much time.
        state.explained = now;
        Condition::Hanging
    }

    /// Keeps the answer for a message that librdkafka holds, while the message is retried later: the idempotent producer cannot
    /// give up one message, and sends those it has when the partition is back.
    pub(super) fn abandon(&self, id: EventId, answer: Answer) {
        let mut state = self.state.lock();
        // A record may never be retried: a sink that is not required can skip it. To forget an answer costs a duplicate.
        if state.abandoned.len() >= MAX_ABANDONED {
            state.abandoned.clear();
        }
        state.abandoned.insert(id, answer);
    }

    /// The answer for a message that is retried and that librdkafka holds already.
    pub(super) fn reclaim(&self, id: EventId) -> Option<Answer> {
        self.state.lock().abandoned.remove(&id)
    }

    /// Takes over metadata. A partition that cannot take messages is away; another one may be tried again as soon as librdkafka
    /// holds none of its messages, and is back when it acknowledges one.
    pub(super) fn observe(&self, leadership: Leadership) {
        let broken = leadership.is_broken().then(|| leadership.cause(""));
        let mut state = self.state.lock();
        state.leadership = leadership;
        match broken {
            Some(cause) => self.set_away(&mut state, cause),
            None if state.queued == 0 => state.away.iter_mut().for_each(|away| away.is_open = true),
            None => {}
        }
    }

    fn set_away(&self, state: &mut State, cause: String) {
        state.away = Some(Away { cause, is_open: false });
        self.went_away.notify_waiters();
    }
}

impl Leadership {
    /// Whether the partition cannot take messages: it has no leader, or fewer replicas in sync than `min.insync.replicas`.
    pub(super) fn is_broken(&self) -> bool {
        self.error.is_some() || self.min_in_sync.is_some_and(|minimum| self.in_sync < minimum)
    }

    fn cause(&self, complaint: &str) -> String {
        let (in_sync, replicas) = (self.in_sync, self.replicas.len());
        match (self.error, &self.leader, self.min_in_sync) {
            (Some(error), ..) => format!("{error}; its replicas are on brokers {:?}", self.replicas),
            (None, _, Some(minimum)) if in_sync < minimum => format!(
                "{}; {in_sync} of {replicas} replicas in sync, `min.insync.replicas` is {minimum}",
                RDKafkaErrorCode::NotEnoughReplicas
            ),
            (None, leader, _) => {
                let leader = leader.as_deref().unwrap_or("its leader");
                let text = format!("no acknowledgement from {leader}, {in_sync} of {replicas} replicas in sync");
                if complaint.is_empty() { text } else { format!("{text}: {complaint}") }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    fn partition(id: i32) -> Arc<Partition> {
        Partition::new(&Arc::from("cdr"), id)
    }

    #[tokio::test]
    async fn partitions_that_do_not_answer_leave_room_for_the_others() {
        let (queue, live) = (Queue::new(), partition(0));
        let mut shares = Vec::new();
        for id in 1..=9 {
            let stuck = partition(id);
            while let Some(share) = queue.try_share(&stuck, 1000) {
                shares.push(share);
            }
        }
        let left = (0..).map_while(|_| queue.try_share(&live, 1000)).collect::<Vec<_>>();
        assert!(left.len() > 1, "{}", left.len());
        drop((left, shares));
        assert_eq!(*queue.held_bytes.lock(), 0);
    }

    #[tokio::test]
    async fn a_partition_may_always_hold_one_message() {
        let (queue, other) = (Queue::new(), partition(0));
        let _share = queue.share(&other, QUEUE_BYTES).await.unwrap();
        let large = queue.share(&partition(1), 2 * QUEUE_BYTES).await.unwrap();
        assert!(queue.try_share(&other, 1).is_none());
        drop(large);
        assert!(queue.try_share(&other, 1).is_none(), "a large message has made the queue larger");
    }

    #[tokio::test]
    async fn silence_that_nothing_explains_calls_for_a_new_producer() {
        let (queue, partition) = (Queue::new(), partition(0));
        let _share = queue.share(&partition, 10).await.unwrap();
        let begun = Instant::now();
        let at = |second, cluster| partition.watch(begun + Duration::from_secs(second), cluster, |_| String::new());
        assert!(at(0, Cluster::Answers) == Condition::Good);
        assert!(at(50, Cluster::Throttles) == Condition::Suspect);
        assert!(at(60, Cluster::Silent) == Condition::Silent, "the whole cluster is away");
        assert!(at(70, Cluster::Answers) == Condition::Suspect);
        assert!(at(76, Cluster::Answers) == Condition::Hanging);
        assert!(at(77, Cluster::Answers) == Condition::Suspect, "the new producer gets as much time");
    }

    #[tokio::test]
    async fn a_partition_is_away_until_it_acknowledges_or_holds_nothing_and_has_a_leader() {
        let (queue, partition) = (Queue::new(), partition(3));
        let leaderless = Leadership { error: Some(RDKafkaErrorCode::LeaderNotAvailable), ..Leadership::default() };
        let share = queue.share(&partition, 10).await.unwrap();
        partition.observe(leaderless.clone());
        let failure = queue.share(&partition, 10).await.err().unwrap();
        assert_eq!(failure, partition.until_away().await);
        assert!(failure.to_string().starts_with("topic cdr partition 3: LeaderNotAvailable"), "{failure}");
        partition.observe(Leadership::default());
        let is_away = || partition.until_away().now_or_never().is_some();
        assert!(is_away(), "what librdkafka holds will tell");
        share.acknowledged();
        assert!(!is_away() && partition.failing().is_none());
        drop(share);

        partition.observe(leaderless);
        partition.observe(Leadership::default());
        assert!(!is_away());
        assert_eq!(partition.failing(), Some(failure));
    }
}
