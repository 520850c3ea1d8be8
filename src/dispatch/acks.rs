//! Which of the records that were read are settled, and up to which offset all are.

use crate::event::Arrival;
use crate::spool::Record;
use std::collections::VecDeque;
use std::time::Duration;

/// Settled entries are removed once there are this many more of them than of open ones.
const COMPACT_ABOVE: usize = 64;

/// The open records. Settled ones behind an open one are compacted, so a record that waits for days does not make this grow.
#[derive(Debug, Default)]
pub struct AckTracker {
    /// By offset: all open records and some settled ones. The first is open.
    entries: VecDeque<Entry>,
    open: usize,
}

#[derive(Debug)]
struct Entry {
    offset: u64,
    since: Arrival,
    open: bool,
}

impl AckTracker {
    /// How many records are open.
    pub fn open(&self) -> usize {
        self.open
    }

    /// The offsets of the open records, in order.
    pub fn open_offsets(&self) -> impl Iterator<Item = u64> {
        self.entries.iter().filter(|entry| entry.open).map(|entry| entry.offset)
    }

    /// Adds the next record as open.
    pub fn push(&mut self, record: &Record) {
        // A replayed event waits since its replay.
        let since = if record.target.is_some() { Arrival::now() } else { record.event.arrival() };
        self.entries.push_back(Entry { offset: record.offset, since, open: true });
        self.open += 1;
    }

    /// Whether the record at `offset` was added and is not settled.
    pub fn is_open(&self, offset: u64) -> bool {
        self.index(offset).and_then(|index| self.entries.get(index)).is_some_and(|entry| entry.open)
    }

    /// How long the record at `offset` has waited.
    pub fn age(&self, offset: u64) -> Duration {
        let since = self.index(offset).and_then(|index| self.entries.get(index)).map(|entry| entry.since);
        since.map_or(Duration::ZERO, |since| Duration::from_millis(Arrival::now().0.saturating_sub(since.0)))
    }

    /// Marks the record at `offset` as settled.
    pub fn ack(&mut self, offset: u64) {
        let entry = self.index(offset).and_then(|index| self.entries.get_mut(index));
        let Some(entry) = entry.filter(|entry| entry.open) else { return };
        entry.open = false;
        self.open -= 1;
        while self.entries.front().is_some_and(|first| !first.open) {
            self.entries.pop_front();
        }
        if self.entries.len() > 2 * self.open + COMPACT_ABOVE {
            self.entries.retain(|entry| entry.open);
        }
    }

    /// The offset below which everything is settled, and since when the record there waits; `None` if all is settled.
    pub fn low_watermark(&self) -> Option<(u64, Arrival)> {
        self.entries.front().map(|first| (first.offset, first.since))
    }

    /// Where the entry of `offset` is. Mostly none is missing before it.
    fn index(&self, offset: u64) -> Option<usize> {
        let behind = usize::try_from(offset.checked_sub(self.entries.front()?.offset)?).ok()?;
        if self.entries.get(behind).is_some_and(|entry| entry.offset == offset) {
            return Some(behind);
        }
        self.entries.binary_search_by_key(&offset, |entry| entry.offset).ok()
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
    fn records_that_pass_an_open_one_take_no_memory() {
        let mut acks = AckTracker::default();
        acks.push(&record(0));
        for offset in 1..1000 {
            acks.push(&record(offset));
            acks.ack(offset);
        }
        assert_eq!(acks.open(), 1);
        assert!(acks.entries.len() <= 2 + COMPACT_ABOVE, "{}", acks.entries.len());
        assert_eq!(acks.low_watermark(), Some((0, Arrival(0))));
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
