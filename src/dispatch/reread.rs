//! Reads parked records again.

use super::gate::Parked;
use crate::spool::{Reader, Record, Spool};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

/// The spool is read through a gap of up to so many records. To jump over a longer one costs the search in a segment.
const MAX_READ_THROUGH: u64 = 4096;

/// Passes over the spool from the lowest wanted offset to the highest: thousands of records cost little more than one.
pub struct Rereader {
    spool: Arc<Spool>,
    sink: String,
    reader: Option<Reader>,
}

/// The next of the wanted records.
#[derive(Debug, Default)]
pub struct Found {
    pub records: Vec<Arc<Record>>,
    /// Records that the spool no longer holds.
    pub lost: Vec<Parked>,
}

impl Rereader {
    pub fn new(spool: Arc<Spool>, sink: &str) -> Self {
        Self { spool, sink: sink.to_owned(), reader: None }
    }

    /// Reads about `max_bytes` of the spool and takes the records found there out of `wanted`, which maps offsets to hashes
    /// of conversations.
    pub async fn next(&mut self, wanted: &mut BTreeMap<u64, u64>, max_bytes: usize) -> io::Result<Found> {
        let position = self.reader.as_ref().map_or(0, Reader::position);
        let ahead = wanted.range(position..).next();
        let Some(target) = ahead.or_else(|| wanted.first_key_value()).map(|(offset, _)| *offset) else {
            return Ok(Found::default());
        };
        let near = |reader: &Reader| target.checked_sub(reader.position()).is_some_and(|gap| gap <= MAX_READ_THROUGH);
        let reader = match self.reader.take().filter(near) {
            Some(reader) => self.reader.insert(reader),
            None => {
                // The dispatcher exists, so the spool knows the sink.
                let reader = self.reader.insert(self.spool.reader(&self.sink).ok_or(io::ErrorKind::NotFound)?);
                reader.advance(target);
                reader
            }
        };
        let records = reader.read(max_bytes).await?;
        // It may not have come to the target yet.
        let passed = reader.position().max(target);
        let records = records.into_iter().filter(|record| wanted.remove(&record.offset).is_some()).collect();
        let lost: Vec<_> = wanted.range(target..passed).map(|(&offset, &key)| Parked { offset, key }).collect();
        for lost in &lost {
            wanted.remove(&lost.offset);
        }
        if wanted.is_empty() {
            // An idle reader would keep records behind it in the spool's cache.
            self.reader = None;
        }
        Ok(Found { records, lost })
    }
}
