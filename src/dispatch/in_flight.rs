//! What is under way: one record at a time per conversation, and how far everything is settled.

use crate::event::Arrival;
use crate::spool::Record;
use foldhash::quality::RandomState;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::sync::Arc;

/// Lets one record of each conversation through at a time. Conversations are told apart by a keyed 64-bit hash: should two
/// ever collide, they wait for each other, which costs time and never order.
#[derive(Debug, Default)]
pub struct Gate {
    hasher: RandomState,
    busy: HashMap<u64, VecDeque<Arc<Record>>, RandomState>,
}

impl Gate {
    /// Gives the record back if it may start now, or keeps it until those before it in its conversation are settled.
    pub fn enter(&mut self, record: Arc<Record>) -> Option<Arc<Record>> {
        match self.busy.entry(self.hasher.hash_one(record.event.conversation_bytes())) {
            Entry::Occupied(mut waiting) => {
                waiting.get_mut().push_back(record);
                None
            }
            Entry::Vacant(free) => {
                free.insert(VecDeque::new());
                Some(record)
            }
        }
    }

    /// The records that may start now that `window` has settled those before them.
    pub fn released(&mut self, window: &mut Window) -> Vec<Arc<Record>> {
        let mut released = Vec::new();
        for settled in window.take_settled() {
            if let Entry::Occupied(mut waiting) =
                self.busy.entry(self.hasher.hash_one(settled.event.conversation_bytes()))
            {
                match waiting.get_mut().pop_front() {
                    Some(next) => released.push(next),
                    None => drop(waiting.remove()),
                }
            }
        }
        released
    }
}

/// The records that were read and are not settled. What is settled behind one of them takes no memory: a record that waits
/// for days must not cost more the more others pass it.
#[derive(Debug, Default)]
pub struct Window {
    /// By offset, those that are not settled and some that are. The first one is not.
    places: VecDeque<Place>,
    open: usize,
    settled: Vec<Arc<Record>>,
    bytes: usize,
}

/// Where a record was added.
#[derive(Debug)]
struct Place {
    offset: u64,
    since: Arrival,
    open: bool,
}

/// There may be more places of settled records than of others by so many.
const SPARE: usize = 64;

impl Window {
    /// How many bytes the records that are not settled take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds the next record.
    pub fn push(&mut self, record: &Record) {
        self.bytes += size(record);
        // Who asks for an event of last week again is not a week behind.
        let since = if record.target.is_some() { Arrival::now() } else { record.event.arrival() };
        self.places.push_back(Place { offset: record.offset, since, open: true });
        self.open += 1;
    }

    /// Whether the record at `offset` was added and is not settled.
    pub fn is_open(&self, offset: u64) -> bool {
        self.index(offset).and_then(|index| self.places.get(index)).is_some_and(|place| place.open)
    }

    /// Marks a record as settled.
    pub fn settle(&mut self, record: Arc<Record>) {
        let place = self.index(record.offset).and_then(|index| self.places.get_mut(index));
        let Some(place) = place.filter(|place| place.open) else { return };
        place.open = false;
        self.open -= 1;
        while self.places.front().is_some_and(|first| !first.open) {
            self.places.pop_front();
        }
        if self.places.len() > 2 * self.open + SPARE {
            self.places.retain(|place| place.open);
        }
        self.bytes = self.bytes.saturating_sub(size(&record));
        self.settled.push(record);
    }

    /// The offset below which everything is settled and since when the record there waits; `None` if all is settled.
    pub fn watermark(&self) -> Option<(u64, Arrival)> {
        self.places.front().map(|first| (first.offset, first.since))
    }

    /// Where the place of the record at `offset` is. Mostly none is missing before it.
    fn index(&self, offset: u64) -> Option<usize> {
        let behind = offset.checked_sub(self.places.front()?.offset)? as usize;
        if self.places.get(behind).is_some_and(|place| place.offset == offset) {
            return Some(behind);
        }
        self.places.binary_search_by_key(&offset, |place| place.offset).ok()
    }

    fn take_settled(&mut self) -> Vec<Arc<Record>> {
        std::mem::take(&mut self.settled)
    }
}

/// The record's places in the window and in its conversation's queue.
const PLACES: usize = 128;

fn size(record: &Record) -> usize {
    record.event.memory() + PLACES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;

    fn record(offset: u64, conversation: &str) -> Arc<Record> {
        let text = format!("{{\"conversation_uuid\":\"{conversation}\",\"n\":{offset}}}");
        Arc::new(Record { offset, target: None, event: Event::parse(&text, 9, Arrival(offset)).unwrap() })
    }

    #[test]
    fn a_conversation_goes_one_by_one_and_others_pass() {
        let (mut gate, mut window) = (Gate::default(), Window::default());
        let records: Vec<_> =
            [(0, "a"), (1, "a"), (2, "b"), (3, "a")].map(|(offset, conversation)| record(offset, conversation)).into();
        records.iter().for_each(|record| window.push(record));
        let started: Vec<_> =
            records.iter().filter_map(|record| gate.enter(record.clone())).map(|record| record.offset).collect();
        assert_eq!(started, [0, 2]);

        window.settle(records[2].clone());
        assert!(gate.released(&mut window).is_empty());
        assert_eq!(window.watermark(), Some((0, Arrival(0))));

        window.settle(records[0].clone());
        assert_eq!(gate.released(&mut window), [records[1].clone()]);
        assert_eq!(window.watermark(), Some((1, Arrival(1))));

        window.settle(records[1].clone());
        assert_eq!(gate.released(&mut window), [records[3].clone()]);
        window.settle(records[3].clone());
        assert!(gate.released(&mut window).is_empty());
        assert_eq!((window.watermark(), window.bytes()), (None, 0));
        assert!(gate.busy.is_empty());
    }

    #[test]
    fn what_passes_a_record_that_waits_takes_no_memory() {
        let mut window = Window::default();
        window.push(&record(0, "stuck"));
        for offset in 1..1000 {
            let passing = record(offset, "a");
            window.push(&passing);
            window.settle(passing);
            window.take_settled();
        }
        assert_eq!((window.open, window.settled.len()), (1, 0));
        assert!(window.places.len() <= 2 + SPARE, "{}", window.places.len());
        assert_eq!(window.watermark(), Some((0, Arrival(0))));
    }

    #[test]
    fn a_replayed_record_waits_since_its_replay() {
        let event = Event::parse("{}", 9, Arrival(1)).unwrap();
        let before = Arrival::now();
        let mut window = Window::default();
        window.push(&Record { offset: 5, target: Some("a".into()), event });
        assert!(window.watermark().is_some_and(|(_, since)| since >= before));
    }

    #[test]
    fn the_watermark_never_passes_an_unsettled_record() {
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..200 {
            let mut window = Window::default();
            let mut open = Vec::new();
            let mut offset = 0;
            for _ in 0..100 {
                if open.is_empty() || random.bool() {
                    offset += random.u64(1..4);
                    let record = record(offset, "a");
                    window.push(&record);
                    open.push(record);
                } else {
                    let settled = open.swap_remove(random.usize(0..open.len()));
                    window.settle(settled.clone());
                    window.settle(settled);
                }
                let oldest = open.iter().map(|record| record.offset).min();
                assert_eq!(window.watermark().map(|(offset, _)| offset), oldest);
                assert_eq!(window.bytes(), open.iter().map(|record| size(record)).sum::<usize>());
            }
        }
    }
}
