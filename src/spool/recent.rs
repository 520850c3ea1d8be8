//! The identities of lately stored events, so that a resent webhook is not stored twice.

use crate::event::{Arrival, EventId};
use std::collections::{HashSet, VecDeque};
use std::time::Duration;

/// A window bounded in time and in number. An entry takes about 60 bytes of memory.
#[derive(Debug)]
pub struct Recent {
    window: Duration,
    capacity: usize,
    ids: HashSet<EventId>,
    order: VecDeque<(Arrival, EventId)>,
}

impl Recent {
    /// An empty window; with no length or no capacity it never knows anything.
    pub fn new(window: Duration, capacity: usize) -> Self {
        let capacity = if window.is_zero() { 0 } else { capacity };
        Self { window, capacity, ids: HashSet::new(), order: VecDeque::new() }
    }

    /// How many events it can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many events it holds.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// When an event has to have arrived to be held at `now`.
    pub fn since(&self, now: Arrival) -> Arrival {
        Arrival(now.0.saturating_sub(self.window.as_millis() as u64))
    }

    /// Whether an event with this identity was stored within the window.
    pub fn contains(&self, id: &EventId) -> bool {
        self.ids.contains(id)
    }

    /// Adds an event that was stored at `now`, and lets go of those that have become too old or too many. One that arrived
    /// long before, in a body that could not be decoded then, is held as if it came now.
    pub fn insert(&mut self, id: EventId, arrival: Arrival, now: Arrival) {
        let arrival = if arrival < self.since(now) { now } else { arrival };
        self.recall(id, arrival, now);
    }

    /// Adds an event that is known at `now` to have been stored, if it arrived within the window.
    pub fn recall(&mut self, id: EventId, arrival: Arrival, now: Arrival) {
        self.expire(now);
        if self.capacity > 0 && arrival >= self.since(now) && self.ids.insert(id) {
            // Gone before it comes: one entry over the capacity could double what the containers hold.
            if self.order.len() == self.capacity {
                self.forget_oldest();
            }
            self.order.push_back((arrival, id));
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, id)) = self.order.pop_front() {
            self.ids.remove(&id);
        }
    }

    /// Lets go of everything that is outside the window at `now`.
    pub fn expire(&mut self, now: Arrival) {
        // A clock that was set back leaves arrivals in the future, which are not to stay until the clock gets there.
        let window = self.since(now)..=Arrival(now.0.saturating_add(self.window.as_millis() as u64));
        while self.order.front().is_some_and(|(arrival, _)| !window.contains(arrival)) {
            self.forget_oldest();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> EventId {
        EventId([n; 16])
    }

    /// Stores an event as soon as it has arrived.
    fn insert(recent: &mut Recent, n: u8, at: u64) {
        recent.insert(id(n), Arrival(at), Arrival(at));
    }

    #[test]
    fn forgets_by_age_and_by_number() {
        let mut recent = Recent::new(Duration::from_secs(10), 3);
        for n in 0..4 {
            insert(&mut recent, n, 1_000 * u64::from(n));
        }
        assert_eq!([0, 1, 2, 3].map(|n| recent.contains(&id(n))), [false, true, true, true]);
        insert(&mut recent, 9, 12_500);
        assert_eq!([1, 2, 3, 9].map(|n| recent.contains(&id(n))), [false, false, true, true]);
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_make_the_window_longer() {
        let mut recent = Recent::new(Duration::from_secs(10), 100);
        insert(&mut recent, 1, 90_000);
        insert(&mut recent, 2, 50_000);
        assert_eq!([1, 2].map(|n| recent.contains(&id(n))), [false, true]);
        insert(&mut recent, 3, 60_001);
        assert_eq!([2, 3].map(|n| recent.contains(&id(n))), [false, true]);
    }

    #[test]
    fn what_is_stored_long_after_its_arrival_is_known_from_then_on_and_takes_nothing_with_it() {
        let mut recent = Recent::new(Duration::from_secs(10), 100);
        insert(&mut recent, 1, 90_000);
        recent.insert(id(2), Arrival(5_000), Arrival(92_000));
        recent.recall(id(3), Arrival(5_000), Arrival(92_000));
        insert(&mut recent, 4, 100_000);
        assert_eq!([1, 2, 3, 4].map(|n| recent.contains(&id(n))), [true, true, false, true]);
        insert(&mut recent, 5, 102_001);
        assert_eq!([1, 2, 4, 5].map(|n| recent.contains(&id(n))), [false, false, true, true]);
    }

    #[test]
    fn no_window_means_no_memory() {
        let mut recent = Recent::new(Duration::ZERO, 100);
        insert(&mut recent, 1, 5);
        assert!(!recent.contains(&id(1)));
    }
}
