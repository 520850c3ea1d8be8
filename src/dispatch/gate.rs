//! One message in flight per conversation.

use crate::spool::Record;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

/// Memory of a record in the gate and the ack tracker, beside the event.
const ENTRY_BYTES: usize = 128;

/// Lets one record of each conversation through at a time. Conversations are told apart by a keyed 64-bit hash: two that
/// collide wait for each other, which costs time and never order.
#[derive(Debug, Default)]
pub struct KeyGate {
    hasher: RandomState,
    /// Conversations with a record in flight or parked.
    conversations: HashMap<u64, Conversation>,
    resident_bytes: usize,
    on_disk: usize,
}

#[derive(Debug, Default)]
struct Conversation {
    /// The record whose turn it is is parked, or about to be read again.
    head_on_disk: bool,
    /// In order; records on disk come first.
    waiting: VecDeque<Waiting>,
}

/// A record that waits for its turn.
#[derive(Debug, PartialEq)]
pub enum Waiting {
    /// It is in memory.
    Resident(Arc<Record>),
    /// It has to be read again.
    OnDisk(Parked),
}

/// A record that only offset and conversation are kept of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parked {
    pub offset: u64,
    /// Hash of the conversation.
    pub key: u64,
}

impl KeyGate {
    /// Memory of the records that are in flight or wait in memory.
    pub fn resident_bytes(&self) -> usize {
        self.resident_bytes
    }

    /// How many records are parked.
    pub fn on_disk(&self) -> usize {
        self.on_disk
    }

    /// Gives the record back if it may start now, or keeps it until those before it in its conversation are settled.
    pub fn enter(&mut self, record: Arc<Record>) -> Option<Arc<Record>> {
        let key = self.key(&record);
        let Some(conversation) = self.conversations.get_mut(&key) else {
            self.conversations.insert(key, Conversation::default());
            self.resident_bytes += bytes(&record);
            return Some(record);
        };
        // A record in memory never waits for one on disk: the memory that is needed to read that one could be taken up by
        // records behind it.
        if conversation.head_on_disk || matches!(conversation.waiting.back(), Some(Waiting::OnDisk(_))) {
            conversation.waiting.push_back(Waiting::OnDisk(Parked { offset: record.offset, key }));
            self.on_disk += 1;
        } else {
            self.resident_bytes += bytes(&record);
            conversation.waiting.push_back(Waiting::Resident(record));
        }
        None
    }

    /// The record is settled. Returns the next of its conversation.
    pub fn finish(&mut self, record: &Record) -> Option<Waiting> {
        self.resident_bytes = self.resident_bytes.saturating_sub(bytes(record));
        self.next(self.key(record))
    }

    /// The parked record, whose turn it is, is settled without having been read again. Returns the next of its conversation.
    pub fn finish_parked(&mut self, record: Parked) -> Option<Waiting> {
        self.on_disk = self.on_disk.saturating_sub(1);
        self.next(record.key)
    }

    fn next(&mut self, key: u64) -> Option<Waiting> {
        let conversation = self.conversations.get_mut(&key)?;
        let next = conversation.waiting.pop_front();
        conversation.head_on_disk = matches!(next, Some(Waiting::OnDisk(_)));
        if next.is_none() {
            self.conversations.remove(&key);
        }
        next
    }

    /// The record stays the next of its conversation and leaves memory, with all behind it.
    pub fn park(&mut self, record: &Record) -> Parked {
        let key = self.key(record);
        let conversation = self.conversations.entry(key).or_default();
        let mut freed = bytes(record);
        self.on_disk += 1;
        conversation.head_on_disk = true;
        for waiting in &mut conversation.waiting {
            if let Waiting::Resident(behind) = waiting {
                freed += bytes(behind);
                self.on_disk += 1;
                *waiting = Waiting::OnDisk(Parked { offset: behind.offset, key });
            }
        }
        self.resident_bytes = self.resident_bytes.saturating_sub(freed);
        Parked { offset: record.offset, key }
    }

    /// A parked record, whose turn it is, has been read again.
    pub fn resume(&mut self, record: &Record) {
        let key = self.key(record);
        self.resident_bytes += bytes(record);
        self.on_disk = self.on_disk.saturating_sub(1);
        if let Some(conversation) = self.conversations.get_mut(&key) {
            conversation.head_on_disk = false;
        }
    }

    fn key(&self, record: &Record) -> u64 {
        self.hasher.hash_one(record.event.conversation())
    }
}

fn bytes(record: &Record) -> usize {
    record.event.memory() + ENTRY_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Arrival, Event};

    fn record(offset: u64, conversation: &str) -> Arc<Record> {
        let text = format!("{{\"conversation_uuid\":\"{conversation}\",\"n\":{offset}}}");
        Arc::new(Record { offset, target: None, event: Event::parse(&text, 9, Arrival(offset)).unwrap() })
    }

    fn offset(waiting: Option<Waiting>) -> Option<u64> {
        waiting.map(|waiting| match waiting {
            Waiting::Resident(record) => record.offset,
            Waiting::OnDisk(parked) => parked.offset,
        })
    }

    #[test]
    fn a_conversation_goes_one_by_one_and_others_pass() {
        let mut gate = KeyGate::default();
        let records =
            [(0, "a"), (1, "a"), (2, "b"), (3, "a")].map(|(offset, conversation)| record(offset, conversation));
        let started: Vec<_> =
            records.iter().filter_map(|record| gate.enter(record.clone())).map(|record| record.offset).collect();
        assert_eq!(started, [0, 2]);
        assert_eq!(gate.finish(&records[2]), None);
        assert_eq!(gate.finish(&records[0]), Some(Waiting::Resident(records[1].clone())));
        assert_eq!(gate.finish(&records[1]), Some(Waiting::Resident(records[3].clone())));
        assert_eq!(gate.finish(&records[3]), None);
        assert_eq!((gate.resident_bytes(), gate.conversations.len()), (0, 0));
    }

    #[test]
    fn a_parked_conversation_takes_no_memory_for_its_records_and_keeps_their_order() {
        let mut gate = KeyGate::default();
        let records: Vec<_> = (0..6).map(|offset| record(offset, "a")).collect();
        assert!(gate.enter(records[0].clone()).is_some());
        assert!(gate.enter(records[1].clone()).is_none());
        let parked = gate.park(&records[0]);
        assert!(gate.enter(records[2].clone()).is_none());
        assert_eq!((parked.offset, gate.resident_bytes(), gate.on_disk()), (0, 0, 3));

        gate.resume(&records[0]);
        // Behind records on disk there are none in memory.
        assert!(gate.enter(records[3].clone()).is_none());
        assert_eq!((gate.resident_bytes(), gate.on_disk()), (bytes(&records[0]), 3));
        assert_eq!(offset(gate.finish(&records[0])), Some(1));
        // Record 1 is damaged by now.
        assert_eq!(offset(gate.finish_parked(Parked { offset: 1, key: parked.key })), Some(2));
        gate.resume(&records[2]);
        assert_eq!(offset(gate.finish(&records[2])), Some(3));
        assert!(gate.enter(records[4].clone()).is_none(), "record 3 is still on disk");
        gate.resume(&records[3]);
        assert_eq!(offset(gate.finish(&records[3])), Some(4));
        gate.resume(&records[4]);
        assert!(gate.enter(records[5].clone()).is_none());
        assert_eq!(gate.finish(&records[4]), Some(Waiting::Resident(records[5].clone())));
        assert_eq!(gate.finish(&records[5]), None);
        assert_eq!((gate.resident_bytes(), gate.on_disk(), gate.conversations.len()), (0, 0, 0));
    }
}
