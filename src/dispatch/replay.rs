//! Replayed records: the sink that publishes them, and the counts of their outcomes.

use crate::spool::Record;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::sync::{Mutex, MutexGuard, watch};
use tokio::time::timeout;

/// Ends the target of a record that the destination is to store even if it has the event. No sink's name holds it.
const FORCED: char = '!';

/// The target of records that `sink` alone publishes once more.
pub fn target(sink: &str, forced: bool) -> String {
    if forced { format!("{sink}{FORCED}") } else { sink.to_owned() }
}

impl Record {
    /// Whether the sink called `sink` publishes it.
    pub fn is_for(&self, sink: &str) -> bool {
        self.target.as_deref().is_none_or(|target| target.trim_end_matches(FORCED) == sink)
    }

    /// The id that the destination deduplicates by, if that is not the event's.
    pub fn forced_id(&self) -> Option<String> {
        let is_forced = self.target.as_deref().is_some_and(|target| target.ends_with(FORCED));
        is_forced.then(|| format!("{}-{}", self.event.id(), self.offset))
    }
}

/// How many replayed records had which outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayCounts {
    /// Stored by the destination.
    pub delivered: usize,
    /// Not stored by the destination, which had them already.
    pub duplicates: usize,
    /// Not wanted by the sink.
    pub filtered: usize,
    /// Refused once more.
    pub dead_lettered: usize,
}

impl ReplayCounts {
    /// All of them.
    pub fn total(&self) -> usize {
        self.delivered + self.duplicates + self.filtered + self.dead_lettered
    }

    /// Adds other counts.
    pub fn add(&mut self, other: Self) {
        self.delivered += other.delivered;
        self.duplicates += other.duplicates;
        self.filtered += other.filtered;
        self.dead_lettered += other.dead_lettered;
    }
}

/// Counts the replayed records of one sink, for one replay at a time.
#[derive(Debug)]
pub struct Replays {
    turn: Mutex<()>,
    /// The first offset that is counted, and the counts.
    state: watch::Sender<(u64, ReplayCounts)>,
}

impl Default for Replays {
    fn default() -> Self {
        Self { turn: Mutex::default(), state: watch::Sender::new((u64::MAX, ReplayCounts::default())) }
    }
}

impl Replays {
    /// Counts a replayed record with `add`; other records are not counted.
    pub fn ended(&self, record: &Record, add: impl FnOnce(&mut ReplayCounts)) {
        if record.target.is_none() {
            return;
        }
        self.state.send_if_modified(|(first, counts)| {
            let counted = record.offset >= *first;
            if counted {
                add(counts);
            }
            counted
        });
    }

    /// Waits until no other replay is counted.
    pub async fn begin(&self) -> CountedReplay<'_> {
        CountedReplay { replays: self, _turn: self.turn.lock().await }
    }
}

/// A replay whose records are counted.
#[derive(Debug)]
pub struct CountedReplay<'a> {
    replays: &'a Replays,
    _turn: MutexGuard<'a, ()>,
}

impl CountedReplay<'_> {
    /// Counts records from offset `first` on.
    pub fn count_from(&self, first: u64) {
        self.replays.state.send_replace((first, ReplayCounts::default()));
    }

    /// The counts once there are `total` outcomes, or when `patience` is over.
    pub async fn counts(&self, total: usize, patience: Duration) -> ReplayCounts {
        let mut state = self.replays.state.subscribe();
        // The sender lives as long as this.
        let _ = timeout(patience, state.wait_for(|(_, counts)| counts.total() >= total)).await;
        self.replays.state.borrow().1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Arrival, Event};
    use std::sync::Arc;

    fn record(offset: u64, target: Option<&str>) -> Record {
        Record { offset, target: target.map(Into::into), event: Event::parse("{\"x\":1}", 9, Arrival(1)).unwrap() }
    }

    #[test]
    fn a_forced_record_is_for_its_sink_and_has_an_id_of_its_own() {
        let (plain, forced) = (target("nats", false), target("nats", true));
        let id = record(7, None).event.id().to_string();
        for (target, own) in [(None, None), (Some(&*plain), None), (Some(&*forced), Some(format!("{id}-7")))] {
            let record = record(7, target);
            assert!(record.is_for("nats"));
            assert_eq!(record.is_for("nat"), target.is_none());
            assert_eq!(record.forced_id(), own);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn outcomes_are_counted_for_one_replay_and_awaited_no_longer_than_asked() {
        let replays = Arc::new(Replays::default());
        replays.ended(&record(1, Some("nats")), |counts| counts.delivered += 1);
        let replay = replays.begin().await;
        replay.count_from(5);
        replays.ended(&record(4, Some("nats")), |counts| counts.delivered += 1);
        replays.ended(&record(5, None), |counts| counts.delivered += 1);
        replays.ended(&record(6, Some("nats")), |counts| counts.duplicates += 1);
        let waiting = tokio::spawn({
            let replays = replays.clone();
            async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                replays.ended(&record(7, Some("nats!")), |counts| counts.dead_lettered += 1);
            }
        });
        let counts = ReplayCounts { duplicates: 1, dead_lettered: 1, ..ReplayCounts::default() };
        assert_eq!(replay.counts(2, Duration::from_secs(9)).await, counts);
        waiting.await.unwrap();
        assert_eq!(replay.counts(3, Duration::from_secs(9)).await, counts);
    }
}
