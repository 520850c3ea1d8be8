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

    /// Adds a stored event, and lets go of those that have become too old or too many.
    pub fn insert(&mut self, id: EventId, arrival: Arrival, offset: u64) {
        self.expire(arrival);
        if self.capacity == 0 {
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

    #[test]
    fn forgets_by_age_and_by_number() {
        let mut recent = Recent::new(Duration::from_secs(10), 3);
        for n in 0..4 {
            recent.insert(id(n), Arrival(1_000 * n as u64), n.into());
        }
        assert_eq!([0, 1, 2, 3].map(|n| recent.offset(&id(n))), [None, Some(1), Some(2), Some(3)]);
        recent.insert(id(9), Arrival(12_500), 9);
        assert_eq!([1, 2, 3, 9].map(|n| recent.offset(&id(n))), [None, None, Some(3), Some(9)]);
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_make_the_window_longer() {
        let mut recent = Recent::new(Duration::from_secs(10), 100);
        recent.insert(id(1), Arrival(90_000), 1);
        recent.insert(id(2), Arrival(50_000), 2);
        assert_eq!([1, 2].map(|n| recent.offset(&id(n))), [None, Some(2)]);
        recent.insert(id(3), Arrival(60_001), 3);
        assert_eq!([2, 3].map(|n| recent.offset(&id(n))), [None, Some(3)]);
    }

    #[test]
    fn no_window_means_no_memory() {
        let mut recent = Recent::new(Duration::ZERO, 100);
        recent.insert(id(1), Arrival(5), 1);
        assert_eq!(recent.offset(&id(1)), None);
    }

    #[test]
    fn of_an_event_stored_again_the_later_place_counts() {
        let mut recent = Recent::new(Duration::from_secs(10), 2);
        recent.insert(id(1), Arrival(5), 1);
        recent.insert(id(1), Arrival(6), 7);
        assert_eq!((recent.offset(&id(1)), recent.len()), (Some(7), 1));
    }
}
