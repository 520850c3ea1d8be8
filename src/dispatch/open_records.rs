//! A file that tells which records of a sink are open.
//!
//! The cursor stands still at the oldest open record, which may wait for its place for days. This file keeps the next process from
//! publishing everything behind it once more. An old, missing or damaged file costs duplicates and no record: a settled record stays
//! settled, and no offset is used twice.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// The records that a former process settled behind the cursor: all below `until`, except the open ones.
#[derive(Debug, Default)]
pub struct Settled {
    until: u64,
    /// Sorted.
    open: Vec<u64>,
}

impl Settled {
    /// Whether the record at this offset, which is not below the cursor, is settled.
    pub fn contains(&self, offset: u64) -> bool {
        offset < self.until && self.open.binary_search(&offset).is_err()
    }

    /// Forgets everything once nothing below `until` is left to be read.
    pub fn is_over(&mut self, position: u64) -> bool {
        if position >= self.until {
            *self = Self::default();
        }
        self.until == 0
    }
}

/// The file: the offset behind the last record it tells of, and the offsets of the open records (u64, little endian); then the CRC-32C
/// of all that (u32).
#[derive(Clone, Debug)]
pub struct OpenRecords(PathBuf);

impl OpenRecords {
    /// The file of `sink` in the spool's directory.
    pub fn of(directory: &Path, sink: &str) -> Self {
        Self(directory.join(format!("open-{sink}")))
    }

    /// Reads the file for a sink whose cursor is at `cursor` in a spool that ends at `end`. Removes the file if it is damaged, or does
    /// not fit because the cursor was set back or the spool began anew: its offsets may then be those of other records.
    pub fn load(&self, cursor: u64, end: u64) -> Settled {
        let settled = fs::read(&self.0).ok().and_then(|bytes| decode(&bytes));
        let fits =
            |settled: &Settled| settled.until <= end && settled.open.first().is_some_and(|oldest| *oldest <= cursor);
        settled.filter(fits).unwrap_or_else(|| {
            let _ = fs::remove_file(&self.0);
            Settled::default()
        })
    }

    /// Replaces the file. It need not survive a power cut, so it is not synced.
    pub fn save(&self, until: u64, open: impl Iterator<Item = u64>) -> io::Result<()> {
        let mut bytes: Vec<u8> = std::iter::once(until).chain(open).flat_map(u64::to_le_bytes).collect();
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        let new = self.0.with_extension("new");
        // A file of this name is left from a crash. To make it anew follows no symbolic link.
        let _ = fs::remove_file(&new);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(&bytes)?;
        fs::rename(&new, &self.0)
    }
}

fn decode(bytes: &[u8]) -> Option<Settled> {
    let (bytes, sum) = bytes.split_last_chunk()?;
    let (offsets, rest) = bytes.as_chunks();
    if u32::from_le_bytes(*sum) != crc32c::crc32c(bytes) || !rest.is_empty() {
        return None;
    }
    let mut offsets = offsets.iter().map(|bytes| u64::from_le_bytes(*bytes));
    Some(Settled { until: offsets.next()?, open: offsets.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_tells_the_settled_records_unless_cursor_and_spool_do_not_fit_it() {
        let directory = tempfile::tempdir().unwrap();
        let file = OpenRecords::of(directory.path(), "a.b");
        file.save(9, [3, 5].into_iter()).unwrap();
        file.save(10, [3, 5, 8].into_iter()).unwrap();
        let mut settled = file.load(3, 10);
        let contained: Vec<_> = (3..12).filter(|offset| settled.contains(*offset)).collect();
        assert_eq!(contained, [4, 6, 7, 9]);
        assert!(!settled.is_over(9) && settled.contains(4));
        assert!(settled.is_over(10) && !settled.contains(4));
        for (cursor, end) in [(2, 10), (3, 9)] {
            file.save(10, [3, 5, 8].into_iter()).unwrap();
            assert!(!file.load(cursor, end).contains(4), "{cursor} {end}");
            assert!(!file.load(3, 100).contains(4), "its offsets may be those of other records by now");
        }
        assert!(!OpenRecords::of(directory.path(), "other").load(3, 10).contains(4));
    }

    #[test]
    fn a_damaged_file_calls_no_open_record_settled() {
        let directory = tempfile::tempdir().unwrap();
        let file = OpenRecords::of(directory.path(), "a");
        let open = [3, 5, 8, 700, 70_000];
        file.save(100_000, open.into_iter()).unwrap();
        let whole = fs::read(&file.0).unwrap();
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..3000 {
            let mut bytes = whole.clone();
            match random.u8(0..3) {
                0 => bytes.truncate(random.usize(0..bytes.len())),
                1 => bytes.extend(std::iter::repeat_with(|| random.u8(..)).take(8)),
                _ => bytes[random.usize(0..whole.len())] ^= 1 << random.u8(0..8),
            }
            fs::write(&file.0, bytes).unwrap();
            let settled = file.load(3, 200_000);
            assert!(open.iter().all(|offset| !settled.contains(*offset)));
        }
    }
}
