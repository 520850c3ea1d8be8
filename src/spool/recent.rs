//! The identities of lately stored events, so that a resent webhook is not stored twice.

use crate::event::{Arrival, EventId};
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// A window bounded in time and in number. An entry takes about 70 bytes of memory.
#[derive(Debug)]
pub struct Recent {
    window: Duration,
    capacity: usize,
    /// Where each event is in the log.
    ids: HashMap<EventId, u64>,
    order: VecDeque<(Arrival, EventId)>,
}

impl Recent {
    /// An empty window; with no length or no capacity it never knows anything.
    pub fn new(window: Duration, capacity: usize) -> Self {
        let capacity = if window.is_zero() { 0 } else { capacity };
        Self { window, capacity, ids: HashMap::new(), order: VecDeque::new() }
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

    /// The offset of the event with this identity, if it was stored within the window. Of one whose segment has been
    /// removed since, the offset of some record in that segment.
    pub fn offset(&self, id: &EventId) -> Option<u64> {
        self.ids.get(id).copied()
    }

    /// Adds an event that was stored at `now`, and lets go of those that have become too old or too many. One that arrived
    /// long before, in a body that could not be decoded then, is held as if it came now.
    pub fn insert(&mut self, id: EventId, arrival: Arrival, offset: u64, now: Arrival) {
        let arrival = if arrival < self.since(now) { now } else { arrival };
        self.recall(id, arrival, offset, now);
    }

    /// Adds an event that is known at `now` to have been stored, if it arrived within the window.
    pub fn recall(&mut self, id: EventId, arrival: Arrival, offset: u64, now: Arrival) {
        self.expire(now);
        if self.capacity == 0 || arrival < self.since(now) {
            return;
        }
        if let Some(known) = self.ids.get_mut(&id) {
            *known = offset;
            return;
        }
        // Gone before it comes: one entry over the capacity could double what the containers hold.
        if self.order.len() == self.capacity {
            self.forget_oldest();
        }
        self.ids.insert(id, offset);
        self.order.push_back((arrival, id));
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
        recent.insert(id(n), Arrival(at), n.into(), Arrival(at));
    }

    #[test]
    fn forgets_by_age_and_by_number() {
        let mut recent = Recent::new(Duration::from_secs(10), 3);
        for n in 0..4 {
            insert(&mut recent, n, 1_000 * u64::from(n));
        }
        assert_eq!([0, 1, 2, 3].map(|n| recent.offset(&id(n)).is_some()), [false, true, true, true]);
        insert(&mut recent, 9, 12_500);
        assert_eq!([1, 2, 3, 9].map(|n| recent.offset(&id(n)).is_some()), [false, false, true, true]);
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_make_the_window_longer() {
        let mut recent = Recent::new(Duration::from_secs(10), 100);
        insert(&mut recent, 1, 90_000);
        insert(&mut recent, 2, 50_000);
        assert_eq!([1, 2].map(|n| recent.offset(&id(n)).is_some()), [false, true]);
        insert(&mut recent, 3, 60_001);
        assert_eq!([2, 3].map(|n| recent.offset(&id(n)).is_some()), [false, true]);
    }

    #[test]
    fn what_is_stored_long_after_its_arrival_is_known_from_then_on_and_takes_nothing_with_it() {
        let mut recent = Recent::new(Duration::from_secs(10), 100);
        insert(&mut recent, 1, 90_000);
        recent.insert(id(2), Arrival(5_000), 2, Arrival(92_000));
        recent.recall(id(3), Arrival(5_000), 3, Arrival(92_000));
        insert(&mut recent, 4, 100_000);
        assert_eq!([1, 2, 3, 4].map(|n| recent.offset(&id(n)).is_some()), [true, true, false, true]);
        insert(&mut recent, 5, 102_001);
        assert_eq!([1, 2, 4, 5].map(|n| recent.offset(&id(n)).is_some()), [false, false, true, true]);
    }

    #[test]
    fn no_window_means_no_memory() {
        let mut recent = Recent::new(Duration::ZERO, 100);
        insert(&mut recent, 1, 5);
        assert_eq!(recent.offset(&id(1)), None);
    }

    #[test]
    fn of_an_event_stored_again_the_later_place_counts() {
        let mut recent = Recent::new(Duration::from_secs(10), 2);
        recent.insert(id(1), Arrival(5), 1, Arrival(5));
        recent.insert(id(1), Arrival(6), 7, Arrival(6));
        assert_eq!((recent.offset(&id(1)), recent.len()), (Some(7), 1));
    }
}
