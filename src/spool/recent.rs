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

    /// When an event has to have arrived to be held at `now`.
    pub fn since(&self, now: Arrival) -> Arrival {
        Arrival(now.0.saturating_sub(self.window.as_millis() as u64))
    }

    /// Whether an event with this identity was stored within the window.
    pub fn contains(&self, id: &EventId) -> bool {
        self.ids.contains(id)
    }

    /// Adds a stored event, and lets go of those that have become too old or too many.
    pub fn insert(&mut self, id: EventId, arrival: Arrival) {
        self.expire(arrival);
        if self.capacity > 0 && self.ids.insert(id) {
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
        let since = self.since(now);
        while self.order.front().is_some_and(|(arrival, _)| *arrival < since) {
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
            recent.insert(id(n), Arrival(1_000 * n as u64));
        }
        assert_eq!([0, 1, 2, 3].map(|n| recent.contains(&id(n))), [false, true, true, true]);
        recent.insert(id(9), Arrival(12_500));
        assert_eq!([1, 2, 3, 9].map(|n| recent.contains(&id(n))), [false, false, true, true]);
    }

    #[test]
    fn no_window_means_no_memory() {
        let mut recent = Recent::new(Duration::ZERO, 100);
        recent.insert(id(1), Arrival(5));
        assert!(!recent.contains(&id(1)));
    }
}
