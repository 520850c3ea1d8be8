//! Which of the records that were read are settled, and up to which offset all are.

use crate::event::Arrival;
use crate::spool::Record;
use std::collections::BTreeMap;
use std::time::Duration;

/// The open records: since when each waits, by offset.
#[derive(Debug, Default)]
pub struct AckTracker(BTreeMap<u64, Arrival>);

impl AckTracker {
    /// How many records are open.
    pub fn open(&self) -> usize {
        self.0.len()
    }

    /// The offsets of the open records, in order.
    pub fn open_offsets(&self) -> impl Iterator<Item = u64> {
        self.0.keys().copied()
    }

    /// Adds a record as open.
    pub fn push(&mut self, record: &Record) {
        // A replayed event waits since its replay.
        let since = if record.target.is_some() { Arrival::now() } else { record.event.arrival() };
        self.0.insert(record.offset, since);
    }

    /// Whether the record at `offset` was added and is not settled.
    pub fn is_open(&self, offset: u64) -> bool {
        self.0.contains_key(&offset)
    }

    /// How long the record at `offset` has waited.
    pub fn age(&self, offset: u64) -> Duration {
        let since = self.0.get(&offset);
        since.map_or(Duration::ZERO, |since| Duration::from_millis(Arrival::now().0.saturating_sub(since.0)))
    }

    /// The record at `offset` is settled.
    pub fn ack(&mut self, offset: u64) {
        self.0.remove(&offset);
    }

    /// The offset below which everything is settled, and since when the record there waits; `None` if all is settled.
    pub fn low_watermark(&self) -> Option<(u64, Arrival)> {
        self.0.first_key_value().map(|(offset, since)| (*offset, *since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;

    fn record(offset: u64) -> Record {
        Record { offset, target: None, event: Event::parse("{\"a\":1}", 9, Arrival(offset)).unwrap() }
    }

    #[test]
    fn a_replayed_record_waits_since_its_replay() {
        let before = Arrival::now();
        let mut acks = AckTracker::default();
        acks.push(&Record { target: Some("a".into()), ..record(5) });
        assert!(acks.low_watermark().is_some_and(|(_, since)| since >= before));
    }

    #[test]
    fn the_watermark_never_passes_an_open_record() {
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..200 {
            let (mut acks, mut open, mut offset) = (AckTracker::default(), Vec::new(), 0);
            for _ in 0..100 {
                if open.is_empty() || random.bool() {
                    offset += random.u64(1..4);
                    acks.push(&record(offset));
                    open.push(offset);
                } else {
                    let settled = open.swap_remove(random.usize(0..open.len()));
                    acks.ack(settled);
                    acks.ack(settled);
                    assert!(!acks.is_open(settled));
                }
                assert_eq!(acks.low_watermark().map(|(offset, _)| offset), open.iter().min().copied());
                assert_eq!(acks.open(), open.len());
                assert!(acks.open_offsets().is_sorted() && acks.open_offsets().count() == open.len());
                assert!(open.iter().all(|offset| acks.is_open(*offset)));
            }
        }
    }
}
