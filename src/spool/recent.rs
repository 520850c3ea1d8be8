//! The identities of lately stored events, so that a resent webhook is not stored twice.

use crate::event::{Arrival, EventId};
use foldhash::quality::RandomState;
use hashbrown::HashTable;
use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::ops::Range;
use std::time::Duration;

/// How many entries are looked through at once: requests wait meanwhile.
const AT_ONCE: usize = 4096;

/// A window bounded in time and in number. An entry takes about 40 bytes of memory.
#[derive(Debug)]
pub struct Recent {
    window: Duration,
    capacity: usize,
    /// In the order in which they came.
    entries: VecDeque<Entry>,
    /// How many entries have come and gone.
    gone: u32,
    /// For each entry how many had come before it, by its identity. Counted modulo 2³², as `gone` is: there are never so many at
    /// once that two could be taken for each other.
    numbers: HashTable<u32>,
    hasher: RandomState,
}

#[derive(Debug)]
struct Entry {
    id: EventId,
    arrival: Arrival,
    /// Where the event is in the log.
    offset: u64,
}

/// How many entries had come before the one to be looked at next, counted as [`Recent::numbers`] are.
#[derive(Clone, Copy, Debug)]
pub struct Looking(u32);

impl Recent {
    /// An empty window; with no length or no capacity it never knows anything.
    pub fn new(window: Duration, capacity: usize) -> Self {
        let capacity = if window.is_zero() { 0 } else { capacity.min(i32::MAX as usize) };
        let (entries, numbers, hasher) = (VecDeque::new(), HashTable::new(), RandomState::default());
        Self { window, capacity, entries, gone: 0, numbers, hasher }
    }

    /// How many events it can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many events it holds.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// When an event has to have arrived to be held at `now`.
    pub fn since(&self, now: Arrival) -> Arrival {
        Arrival(now.0.saturating_sub(self.window.as_millis() as u64))
    }

    /// The offset of the event with this identity, if it was stored within the window. Of one whose segment has been
    /// removed since, the offset of some record in that segment.
    pub fn offset(&self, id: &EventId) -> Option<u64> {
        self.entries.get(self.find(id)?).map(|entry| entry.offset)
    }

    /// Looks through some of the entries, from `place` on or from the first, for the events that lie at these offsets, and adds them with
    /// identity, arrival and offset. Returns the place to go on from; `None` after the last.
    pub fn look_for(
        &self,
        offsets: &Range<u64>,
        place: Option<Looking>,
        found: &mut Vec<(EventId, Arrival, u64)>,
    ) -> Option<Looking> {
        // Negative once what comes first there has gone meanwhile.
        let from = place.map_or(0, |Looking(number)| number.wrapping_sub(self.gone) as i32).max(0) as usize;
        let until = self.entries.len().min(from + AT_ONCE);
        let entries = self.entries.range(from.min(until)..until).filter(|entry| offsets.contains(&entry.offset));
        found.extend(entries.map(|entry| (entry.id, entry.arrival, entry.offset)));
        (until < self.entries.len()).then(|| Looking(self.gone.wrapping_add(until as u32)))
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
        if let Some(known) = self.find(&id).and_then(|index| self.entries.get_mut(index)) {
            known.offset = offset;
            return;
        }
        // Gone before it comes: one entry over the capacity could double what the containers hold.
        if self.entries.len() == self.capacity {
            self.forget_oldest();
        }
        let Self { entries, gone, numbers, hasher, .. } = self;
        let number = gone.wrapping_add(entries.len() as u32);
        entries.push_back(Entry { id, arrival, offset });
        let hash = |number: &u32| {
            entries.get(number.wrapping_sub(*gone) as usize).map_or(0, |entry| hasher.hash_one(entry.id.0))
        };
        numbers.insert_unique(hash(&number), number, hash);
    }

    /// Lets go of the oldest, so that there is room for so many more. What they take lies all over memory, and is fetched
    /// at the same time if it is asked for without anything between.
    pub fn make_room(&mut self, more: usize) {
        let room = self.capacity - self.entries.len().min(self.capacity);
        for _ in room..more.min(self.capacity) {
            self.forget_oldest();
        }
    }

    /// The index among the entries.
    fn find(&self, id: &EventId) -> Option<usize> {
        let index = |number: &u32| number.wrapping_sub(self.gone) as usize;
        let is_it = |number: &u32| self.entries.get(index(number)).is_some_and(|entry| entry.id == *id);
        self.numbers.find(self.hasher.hash_one(id.0), is_it).map(index)
    }

    fn forget_oldest(&mut self) {
        if let Some(oldest) = self.entries.pop_front() {
            let gone = self.gone;
            if let Ok(entry) = self.numbers.find_entry(self.hasher.hash_one(oldest.id.0), |number| *number == gone) {
                entry.remove();
            }
            self.gone = gone.wrapping_add(1);
        }
    }

    /// Lets go of everything that is outside the window at `now`.
    pub fn expire(&mut self, now: Arrival) {
        // A clock that was set back leaves arrivals in the future, which are not to stay until the clock gets there.
        let window = self.since(now)..=Arrival(now.0.saturating_add(self.window.as_millis() as u64));
        while self.entries.front().is_some_and(|entry| !window.contains(&entry.arrival)) {
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
    fn it_knows_what_a_plain_list_knows_also_when_its_count_begins_anew() {
        let mut random = fastrand::Rng::with_seed(41);
        for capacity in [1, 2, 7, 100] {
            let mut recent = Recent::new(Duration::from_secs(10), capacity);
            recent.gone = u32::MAX - 150;
            let mut plain: Vec<(EventId, u64, u64)> = Vec::new();
            let mut now = 100_000;
            for offset in 0..3_000 {
                now += random.u64(0..400);
                let wanted = EventId([random.u8(0..120); 16]);
                plain.retain(|(_, arrival, _)| arrival + 10_000 >= now);
                if plain.iter().all(|(known, ..)| *known != wanted) && random.bool() {
                    recent.make_room(1);
                    assert!(recent.len() < capacity);
                }
                match plain.iter_mut().find(|(id, ..)| *id == wanted) {
                    Some((.., known)) => *known = offset,
                    None => {
                        if plain.len() == capacity {
                            plain.remove(0);
                        }
                        plain.push((wanted, now, offset));
                    }
                }
                recent.insert(wanted, Arrival(now), offset, Arrival(now));
                assert_eq!((recent.len(), recent.numbers.len()), (plain.len(), plain.len()));
                for n in 0..120 {
                    let known = plain.iter().find(|(known, ..)| *known == id(n)).map(|(.., offset)| *offset);
                    assert_eq!(recent.offset(&id(n)), known);
                }
            }
        }
    }

    #[test]
    fn what_lies_at_some_offsets_is_found_a_part_at_a_time_while_others_come_and_go() {
        let numbered = |offset: u64| EventId(u128::from(offset).to_be_bytes());
        for gone in [0, u32::MAX - 6_000] {
            let mut recent = Recent::new(Duration::from_secs(10), 3 * AT_ONCE);
            recent.gone = gone;
            let add = |recent: &mut Recent, offset| recent.insert(numbered(offset), Arrival(5), offset, Arrival(5));
            (0..3 * AT_ONCE as u64).for_each(|offset| add(&mut recent, offset));
            let (mut found, mut place) = (Vec::new(), None);
            // After the first part some of it go, after the second more than that.
            let come = [50_000..50_500, 60_000..69_000].into_iter().chain(std::iter::repeat_n(0..0, 100));
            for offsets in come {
                place = recent.look_for(&(100..10_000), place, &mut found);
                if place.is_none() {
                    break;
                }
                offsets.for_each(|offset| add(&mut recent, offset));
            }
            assert!(place.is_none());
            let expected = (100..2 * AT_ONCE as u64).chain(9_500..10_000);
            assert!(found.iter().map(|(id, ..)| *id).eq(expected.map(numbered)), "{} found", found.len());
        }
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
