//! What is there after a start: the extent of the log, and the end of its last segment put in order.

use super::disk::Disk;
use super::segment::{self, Found, Scan};
use crate::event::Arrival;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

/// One segment file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its size on disk in bytes.
    pub bytes: u64,
    /// Whether part of it could not be read; such a file is kept aside instead of removed.
    pub damaged: bool,
    /// When its first record arrived.
    pub begun: Arrival,
}

/// What a start found.
#[derive(Debug, PartialEq, Eq)]
pub struct Recovered {
    /// All segments by their base offset.
    pub segments: BTreeMap<u64, Segment>,
    /// The offset after the last record.
    pub end: u64,
    /// Bytes of the last segment behind its last acknowledged record.
    pub surplus: u64,
    /// Bytes of unacknowledged records that were cut off.
    pub torn: u64,
    /// Offsets of acknowledged records that are unreadable in the last segment. Damage in other segments is found when
    /// they are read.
    pub damaged: Vec<Range<u64>>,
}

/// Cuts a torn end off the last segment, so that it is never written to again.
pub fn recover(disk: &dyn Disk) -> io::Result<Recovered> {
    let mut recovered = look(disk)?;
    let Some((&base, last)) = recovered.segments.last_key_value() else { return Ok(recovered) };
    let name = segment::name(base);
    if recovered.end == base {
        recovered.segments.remove(&base);
        disk.remove(&name)?;
        disk.sync()?;
        return Ok(recovered);
    }
    let bytes = last.bytes - recovered.surplus;
    if recovered.surplus > 0 {
        let file = disk.open(&name)?;
        file.resize(bytes)?;
        file.sync()?;
    }
    if let Some(last) = recovered.segments.get_mut(&base) {
        last.bytes = bytes;
    }
    Ok(recovered)
}

/// Lists the segments and finds the end of the log, and changes nothing.
pub fn look(disk: &dyn Disk) -> io::Result<Recovered> {
    let mut segments = BTreeMap::new();
    for base in disk.list()?.iter().filter_map(|name| segment::base(name)) {
        let file = match disk.open(&segment::name(base)) {
            // Removed meanwhile, by the bridge that runs on this spool.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        let mut header = [0; segment::HEADER];
        let read = file.read_at(&mut header, 0)?;
        let intact = segment::check_header(header.get(..read).unwrap_or_default(), base)?;
        let bytes = file.size()?;
        let begun = Scan::new(file)?.first_arrival()?.unwrap_or(Arrival(0));
        segments.insert(base, Segment { bytes, damaged: !intact, begun });
    }
    let mut found = Recovered { segments, end: 0, surplus: 0, torn: 0, damaged: Vec::new() };
    let Some((&base, last)) = found.segments.iter_mut().next_back() else { return Ok(found) };
    let tail = read_tail(Scan::new(disk.open(&segment::name(base))?)?, base)?;
    last.damaged |= !tail.damaged.is_empty();
    found.end = tail.end;
    found.surplus = last.bytes.saturating_sub(tail.position);
    found.torn = tail.written.saturating_sub(tail.position);
    found.damaged = tail.damaged;
    Ok(found)
}

struct Tail {
    /// The offset after the last acknowledged record.
    end: u64,
    /// Where in the file that record ends.
    position: u64,
    /// Where the last record of any kind ends.
    written: u64,
    damaged: Vec<Range<u64>>,
}

/// A record knows the first offset of its group commit, and a group commit begins only after the one before was durable.
/// So unreadable bytes are damage if a record of a later group commit stands behind them, and a torn write if none does.
/// A request's records are taken whole or not at all.
fn read_tail(mut scan: Scan, base: u64) -> io::Result<Tail> {
    let mut tail = Tail { end: base, position: scan.position(), written: scan.position(), damaged: Vec::new() };
    let mut expected = base;
    let mut gap: Option<Range<u64>> = None;
    let limit = base + scan.most_records();
    loop {
        match scan.next(expected, limit)? {
            Found::Record(frame, _) => {
                expected = frame.offset + 1;
                tail.written = scan.position();
                if let Some(torn) = gap.take_if(|gap| frame.batch > gap.start) {
                    tail.damaged.push(torn);
                }
                if frame.follows == 0 && gap.is_none() {
                    (tail.end, tail.position) = (expected, scan.position());
                }
            }
            Found::Damage(frame) => {
                // An earlier gap that is still open swallows what lies between.
                let start = gap.as_ref().map_or(expected, |gap| gap.start);
                gap = Some(start..frame.offset);
                expected = frame.offset;
            }
            Found::End => return Ok(tail),
        }
    }
}
