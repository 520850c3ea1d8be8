//! The latest records, in memory for the sinks that keep up.
//!
//! What every reader has passed is let go of: while it is under way it counts where it is, and here is room for those who are behind.

use super::Record;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Records without gaps up to the end of the log.
#[derive(Debug, Default)]
pub struct Tail {
    records: VecDeque<Arc<Record>>,
    bytes: usize,
    readers: Vec<Arc<AtomicU64>>,
}

/// Where a reader is; it counts until it is dropped.
#[derive(Debug)]
pub struct Place(Arc<AtomicU64>);

impl Place {
    /// The offset of the record to be read next.
    pub fn next(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Goes on at `next`.
    pub fn go_to(&self, next: u64) {
        self.0.store(next, Ordering::Relaxed);
    }
}

impl Tail {
    /// A place for a reader that begins at `next`.
    pub fn join(&mut self, next: u64) -> Place {
        let place = Arc::new(AtomicU64::new(next));
        self.readers.push(place.clone());
        Place(place)
    }

    /// The offset of the oldest record in memory.
    pub fn first(&self) -> Option<u64> {
        self.records.front().map(|record| record.offset)
    }

    /// Adds the next records and lets go of the oldest while there are more than `memory` bytes; the last one stays.
    pub fn extend(&mut self, records: Vec<Arc<Record>>, memory: usize) {
        for record in records {
            self.bytes += record.event.memory();
            self.records.push_back(record);
        }
        self.let_go(memory);
    }

    fn let_go(&mut self, memory: usize) {
        self.readers.retain(|reader| Arc::strong_count(reader) > 1);
        // As long as nobody reads, somebody may begin to.
        let read = self.readers.iter().map(|reader| reader.load(Ordering::Relaxed)).min().unwrap_or_default();
        while let Some(oldest) = self.records.front().filter(|_| self.records.len() > 1) {
            if self.bytes <= memory && oldest.offset >= read {
                break;
            }
            self.bytes -= oldest.event.memory();
            self.records.pop_front();
        }
    }

    /// The records at `place`, about `bytes` of them and at least one, and moves it behind them; none if they have left the memory
    /// or are not there yet.
    pub fn read(&self, place: &Place, bytes: usize) -> Vec<Arc<Record>> {
        let skip = self.first().and_then(|first| place.next().checked_sub(first));
        let Some(skip) = skip else { return Vec::new() };
        let records: Vec<_> = self.records.iter().skip(skip as usize).take_while(fitting(bytes)).cloned().collect();
        if let Some(last) = records.last() {
            place.go_to(last.offset + 1);
        }
        records
    }
}

/// Takes records until they are more than `bytes`, and at least one.
pub fn fitting(bytes: usize) -> impl FnMut(&&Arc<Record>) -> bool {
    let mut held = 0;
    move |record| {
        let first = held == 0;
        held += record.event.memory();
        first || held <= bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Arrival, Event};

    fn records(offsets: std::ops::Range<u64>) -> Vec<Arc<Record>> {
        let event =
            |offset| Event::parse(&format!("{{\"conversation_uuid\":\"a\",\"n\":{offset}}}"), 9, Arrival(offset));
        offsets.map(|offset| Arc::new(Record { offset, target: None, event: event(offset).unwrap() })).collect()
    }

    fn held(tail: &Tail) -> Vec<u64> {
        let bytes: usize = tail.records.iter().map(|record| record.event.memory()).sum();
        assert_eq!(tail.bytes, bytes);
        tail.records.iter().map(|record| record.offset).collect()
    }

    #[test]
    fn what_every_reader_has_passed_is_let_go() {
        let mut tail = Tail::default();
        tail.extend(records(0..4), usize::MAX);
        assert_eq!(held(&tail), [0, 1, 2, 3], "nobody reads yet");
        let (fast, slow) = (tail.join(0), tail.join(2));
        assert_eq!(tail.read(&fast, usize::MAX), records(0..4));
        tail.extend(records(4..5), usize::MAX);
        assert_eq!(held(&tail), [2, 3, 4]);
        drop(slow);
        tail.extend(records(5..6), usize::MAX);
        assert_eq!(held(&tail), [4, 5], "who is gone needs nothing");
        fast.go_to(9);
        tail.extend(records(6..7), usize::MAX);
        assert_eq!(held(&tail), [6], "one stays, for whoever asks where the memory begins");
    }

    #[test]
    fn who_is_behind_has_as_much_as_there_is_memory_for() {
        let mut tail = Tail::default();
        let place = tail.join(0);
        let each = records(0..1).remove(0).event.memory();
        tail.extend(records(0..10), 3 * each);
        assert_eq!(held(&tail), [7, 8, 9]);
        assert!(tail.read(&place, usize::MAX).is_empty(), "it has to read from disk");
        place.go_to(7);
        assert_eq!(tail.read(&place, 2 * each), records(7..9));
        assert_eq!(tail.read(&place, 0), records(9..10), "at least one");
        assert!(tail.read(&place, usize::MAX).is_empty(), "and no more than there are");
    }
}
