//! The latest records in memory, for sinks that keep up.

use super::Record;
use std::collections::VecDeque;
use std::sync::Arc;

/// Consecutive records up to the end of the log.
#[derive(Debug)]
pub struct ReadCache {
    records: VecDeque<Arc<Record>>,
    bytes: usize,
    max_bytes: usize,
}

impl ReadCache {
    /// An empty cache of up to `max_bytes`.
    pub fn new(max_bytes: usize) -> Self {
        Self { records: VecDeque::new(), bytes: 0, max_bytes }
    }

    /// The records from `offset` on, about `bytes` of them and at least one if `offset` is cached.
    pub fn read(&self, offset: u64, bytes: usize) -> Vec<Arc<Record>> {
        let Some(skip) = self.records.front().and_then(|first| offset.checked_sub(first.offset)) else {
            return Vec::new();
        };
        self.records.iter().skip(skip as usize).take_while(fitting(bytes)).cloned().collect()
    }

    /// Adds the next records, and drops the oldest ones beyond the bound.
    pub fn extend(&mut self, records: Vec<Arc<Record>>) {
        self.bytes += records.iter().map(|record| record.event.memory()).sum::<usize>();
        self.records.extend(records);
        while self.bytes > self.max_bytes {
            self.pop();
        }
    }

    /// Drops the records below `offset`.
    pub fn trim(&mut self, offset: u64) {
        while self.records.front().is_some_and(|first| first.offset < offset) {
            self.pop();
        }
    }

    fn pop(&mut self) {
        if let Some(record) = self.records.pop_front() {
            self.bytes -= record.event.memory();
        }
    }
}

/// Takes records until they hold `bytes` of memory, and at least one.
pub fn fitting(bytes: usize) -> impl FnMut(&&Arc<Record>) -> bool {
    let mut left = Some(bytes);
    move |record| {
        let first = left == Some(bytes);
        left = left.and_then(|left| left.checked_sub(record.event.memory()));
        left.is_some() || first
    }
}
