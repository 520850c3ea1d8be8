//! Places of a destination that are away: topics, subjects, streams, partitions; and the records that wait for them.

use super::gate::Parked;
use super::health::{Health, PlacesAway};
use super::publish::Away;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// How many places are told apart. A sender may be able to choose their names, so beyond that all others count as one.
const MAX_PLACES: usize = 4096;
const OTHERS: &str = "other places";
/// The pause before a place is tried again doubles up to the longest one.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const MAX_RETRY: Duration = Duration::from_secs(5);
/// Where many places are away their pauses are longer, so that one is tried in this time on average.
const RETRY_INTERVAL: Duration = Duration::from_millis(5);
/// How long a place that no record waits for any more is remembered as away.
const FORGET_AFTER: Duration = Duration::from_secs(60);
/// How many places readiness names.
const NAMED: usize = 5;

/// All places that are away.
#[derive(Debug)]
pub struct Places {
    by_name: HashMap<Arc<str>, Place>,
    /// Records whose publish shows whether their place is back, by offset.
    trials: HashMap<u64, Arc<str>>,
    /// Whether all messages of the sink go to one topic.
    single_topic: bool,
    changed: bool,
    health: Arc<Health>,
}

#[derive(Debug)]
struct Place {
    cause: String,
    expires: bool,
    since: Instant,
    /// The first record of each conversation that waits, by offset.
    heads: VecDeque<Parked>,
    failures: u32,
    retry_at: Instant,
    trying: bool,
}

impl Places {
    /// `single_topic` tells whether all messages of the sink go to one topic.
    pub fn new(single_topic: bool, health: Arc<Health>) -> Self {
        let (by_name, trials) = (HashMap::new(), HashMap::new());
        Self { by_name, trials, single_topic, changed: false, health }
    }

    /// How many places are away.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// The publish of the record at `offset` failed because of its place. Returns for how long the place has been away.
    pub fn failed(&mut self, offset: u64, away: &Away) -> Duration {
        let now = Instant::now();
        let name = self.name(&away.place);
        let tried = self.trials.remove(&offset);
        if let Some(other) = tried.as_ref().filter(|tried| **tried != name) {
            self.try_next(other, now);
        }
        let shortest = RETRY_INTERVAL.saturating_mul(u32::try_from(self.by_name.len()).unwrap_or(u32::MAX));
        let (health, changed) = (&self.health, &mut self.changed);
        let place = self.by_name.entry(name.clone()).or_insert_with(|| {
            health.place_is_away(&away.place, &away.cause);
            *changed = true;
            let cause = away.cause.clone();
            let (heads, retry_at) = (VecDeque::new(), now + jittered(FIRST_RETRY.max(shortest)));
            Place { cause, expires: away.expires, since: now, heads, failures: 0, retry_at, trying: false }
        });
        if place.cause != away.cause || place.expires != away.expires {
            place.cause.clone_from(&away.cause);
            place.expires = away.expires;
            self.changed = true;
        }
        if tried.is_some_and(|tried| tried == name) {
            place.trying = false;
            place.failures += 1;
            let pause = FIRST_RETRY.saturating_mul(1 << place.failures.min(16));
            place.retry_at = now + jittered(pause.min(MAX_RETRY).max(shortest));
        }
        now.duration_since(place.since)
    }

    /// The record waits for its place, which has [`failed`](Self::failed).
    pub fn park(&mut self, record: Parked, place: &str) {
        let name = self.name(place);
        if let Some(place) = self.by_name.get_mut(&name) {
            let index = place.heads.partition_point(|head| head.offset < record.offset);
            place.heads.insert(index, record);
        }
    }

    /// Takes the records of the place that are `old`.
    pub fn take_expired(&mut self, place: &str, old: impl Fn(u64) -> bool) -> Vec<Parked> {
        let name = self.name(place);
        let Some(place) = self.by_name.get_mut(&name) else { return Vec::new() };
        let expired: Vec<_> = place.heads.iter().copied().filter(|head| old(head.offset)).collect();
        place.heads.retain(|head| !old(head.offset));
        self.trials.extend(expired.iter().map(|head| (head.offset, name.clone())));
        expired
    }

    /// Resolves when it is time to try a place again, or to forget one.
    pub async fn retry_due(&self) {
        match self.by_name.values().filter_map(Place::due).min() {
            Some(due) => sleep_until(due).await,
            None => std::future::pending().await,
        }
    }

    /// One record of each place that is to be tried now.
    pub fn take_due(&mut self) -> Vec<Parked> {
        let now = Instant::now();
        let mut due = Vec::new();
        let before = self.by_name.len();
        self.by_name.retain(|name, place| {
            if place.due().is_none_or(|due| now < due) {
                return true;
            }
            let Some(head) = place.heads.pop_front() else { return false };
            place.trying = true;
            self.trials.insert(head.offset, name.clone());
            due.push(head);
            true
        });
        self.changed |= self.by_name.len() < before;
        due
    }

    /// The record at `offset` is settled. If it was acknowledged and shows that a place is back, returns the records that
    /// wait for that place.
    pub fn settled(&mut self, offset: u64, acked: bool) -> Vec<Parked> {
        let Some(name) = self.trials.remove(&offset) else { return Vec::new() };
        if !acked {
            self.try_next(&name, Instant::now());
            return Vec::new();
        }
        let Some(place) = self.by_name.remove(&name) else { return Vec::new() };
        self.health.place_is_back(&name);
        self.changed = true;
        place.heads.into()
    }

    /// The places for readiness, if they have changed. `parked` records wait, and none is read beyond `max_parked`.
    pub fn changes(&mut self, parked: usize, max_parked: usize) -> Option<PlacesAway> {
        if !std::mem::take(&mut self.changed) && parked < max_parked {
            return None;
        }
        // Thousands of places can go away one by one: only the oldest are sorted.
        let mut oldest: Vec<_> = self.by_name.iter().collect();
        if oldest.len() > NAMED {
            oldest.select_nth_unstable_by_key(NAMED, |(_, place)| place.since);
            oldest.truncate(NAMED);
        }
        oldest.sort_by_key(|(_, place)| place.since);
        let named: Vec<_> = oldest.iter().map(|(name, place)| (name.to_string(), place.cause.clone())).collect();
        let expiring = self.by_name.iter().filter(|(_, place)| self.single_topic && place.expires);
        let all_away = expiring.min_by_key(|(_, place)| place.since);
        let blocked = match (all_away, named.first()) {
            (Some((name, place)), _) => Some(format!("{name}: {}", place.cause)),
            (None, Some((name, cause))) if parked >= max_parked => {
                Some(format!("{parked} records wait for places that are away, no more are read; {name}: {cause}"))
            }
            _ => None,
        };
        Some(PlacesAway { count: self.by_name.len(), named, blocked })
    }

    /// The trial of this place said nothing: the next record tries.
    fn try_next(&mut self, name: &str, now: Instant) {
        if let Some(place) = self.by_name.get_mut(name) {
            place.trying = false;
            place.retry_at = now;
        }
    }

    fn name(&self, place: &str) -> Arc<str> {
        match self.by_name.get_key_value(place) {
            Some((name, _)) => name.clone(),
            None if self.by_name.len() < MAX_PLACES => place.into(),
            None => OTHERS.into(),
        }
    }
}

impl Place {
    /// When it is tried again, or forgotten if nothing waits for it; `None` while it is being tried.
    fn due(&self) -> Option<Instant> {
        let due = if self.heads.is_empty() { self.retry_at + FORGET_AFTER } else { self.retry_at };
        (!self.trying).then_some(due)
    }
}

/// Between half of the pause and all of it.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
}
