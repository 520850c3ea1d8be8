//! The state of each segment file in memory.

use super::disk::DiskFile;
use super::segment;
use crate::event::Arrival;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// The position of one record in so many bytes of a segment is kept in memory.
const POSITION_STRIDE: u64 = 64 << 10;

/// One segment file.
#[derive(Clone, Debug, Default)]
pub struct Segment {
    /// Its size on disk in bytes.
    pub bytes: u64,
    /// Whether part of it cannot be read; such a file is kept aside instead of removed.
    pub damaged: bool,
    /// When its first record was stored.
    pub begun: Arrival,
    /// Lost ranges that have been reported; no two of them touch.
    lost: Vec<Range<u64>>,
    /// The positions in the file of some records, by offset.
    positions: BTreeMap<u64, u64>,
    /// While it is being written to.
    pub active: Option<Active>,
}

/// The part of a segment that changes while it is being written to.
#[derive(Clone, Debug)]
pub struct Active {
    /// The open file, which can be read even after its name was deleted.
    pub file: Arc<dyn DiskFile>,
    /// Its bytes up to the last durable record.
    pub used: u64,
}

impl Segment {
    /// A segment that is not being written to.
    pub fn new(bytes: u64, damaged: bool, begun: Arrival) -> Self {
        Self { bytes, damaged, begun, ..Self::default() }
    }

    /// A segment of `bytes` bytes that is being written to from now on.
    pub fn begin(file: Arc<dyn DiskFile>, bytes: u64) -> Self {
        let active = Some(Active { file, used: segment::HEADER as u64 });
        Self { active, ..Self::new(bytes, false, Arrival::now()) }
    }

    /// Takes note of unreadable records; returns how many of them were not known before.
    pub fn lose(&mut self, lost: Range<u64>) -> u64 {
        self.damaged = true;
        let (mut merged, mut known) = (lost.clone(), 0);
        self.lost.retain(|other| {
            let apart = other.end < lost.start || lost.end < other.start;
            if !apart {
                known += other.end.min(lost.end).saturating_sub(other.start.max(lost.start));
                merged = merged.start.min(other.start)..merged.end.max(other.end);
            }
            apart
        });
        self.lost.push(merged);
        lost.end - lost.start - known
    }

    /// Whether the record at `offset` was found to be unreadable.
    pub fn is_lost(&self, offset: u64) -> bool {
        self.lost.iter().any(|lost| lost.contains(&offset))
    }

    /// Keeps the position of an intact record, unless that of another one is near.
    pub fn add_position(&mut self, offset: u64, position: u64) {
        let before = self.position(offset).map_or(0, |(_, position)| position);
        if before + POSITION_STRIDE <= position {
            self.positions.insert(offset, position);
        }
    }

    /// The last record up to `offset` whose position is kept: its offset and position.
    pub fn position(&self, offset: u64) -> Option<(u64, u64)> {
        self.positions.range(..=offset).next_back().map(|(offset, position)| (*offset, *position))
    }
}

/// Segments by their base, each with its offsets, in a log that ends at `end`.
pub fn with_offsets(segments: &BTreeMap<u64, Segment>, end: u64) -> impl Iterator<Item = (Range<u64>, &Segment)> {
    let limits = segments.keys().skip(1).copied().chain([end]);
    segments.iter().zip(limits).map(|((base, segment), limit)| (*base..limit, segment))
}
