//! What is there after a start: the extent of the log, and the end of its last segment put in order.

use super::disk::Disk;
use super::segment::{self, Found, Scan};
use crate::event::Arrival;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::ops::Range;

/// One segment file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Its size on disk in bytes.
    pub bytes: u64,
    /// Whether part of it could not be read; such a file is kept aside instead of removed.
    pub damaged: bool,
    /// Whether its file may become another segment's: it was begun and ended by this process, and nothing has failed meanwhile.
    pub reusable: bool,
    /// When its first record arrived.
    pub begun: Arrival,
    /// Offsets of acknowledged records that could not be read, as far as they were come upon: the first of each gap by its end.
    pub gone: BTreeMap<u64, u64>,
}

impl Segment {
    /// Takes note of unreadable records; says how many of them are news.
    pub fn lose(&mut self, gone: Range<u64>) -> u64 {
        self.damaged = true;
        // However far in front of a gap readers begin, they leave it at the same end.
        let known = self.gone.entry(gone.end).or_insert(gone.end);
        let news = known.saturating_sub(gone.start);
        *known = gone.start.min(*known);
        news
    }
}

/// What a start found.
#[derive(Debug, PartialEq, Eq)]
pub struct Recovered {
    /// All segments by their base offset.
    pub segments: BTreeMap<u64, Segment>,
    /// The offset after the last record.
    pub end: u64,
    /// Bytes of unacknowledged records that were cut off.
    pub torn: u64,
    /// Offsets of acknowledged records that are unreadable in the last segment. Damage in other segments is found when
    /// they are read.
    pub damaged: Vec<Range<u64>>,
}

/// Lists the segments and changes nothing. A segment of a newer format version is an error, and so is a last segment that the
/// disk refuses to read: without it nobody knows which offsets have been given. Of the others the readers will tell; webhooks
/// need not wait for them.
pub fn list(disk: &dyn Disk) -> io::Result<BTreeMap<u64, Segment>> {
    let mut segments = BTreeMap::new();
    let bases: BTreeSet<u64> = disk.list()?.iter().filter_map(|name| segment::base(name)).collect();
    for &base in &bases {
        match begin(disk, base) {
            // Removed meanwhile, by the bridge that runs on this spool, when somebody else looks at it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::Unsupported => return Err(error),
            Err(error) if bases.last() != Some(&base) => {
                tracing::error!(%error, file = segment::name(base), "a segment of the spool cannot be read now");
                segments.insert(base, Segment::default());
            }
            Err(error) => return Err(io::Error::new(error.kind(), format!("{}: {error}", segment::name(base)))),
            Ok(segment) => drop(segments.insert(base, segment)),
        }
    }
    Ok(segments)
}

/// Looks at the beginning of a segment.
fn begin(disk: &dyn Disk, base: u64) -> io::Result<Segment> {
    let file = disk.open(&segment::name(base))?;
    let mut start = [0; segment::HEADER + segment::FRAME];
    let read = file.read_at(&mut start, 0)?;
    let start = start.get(..read).unwrap_or_default();
    let intact = segment::check_header(start, base)?;
    let begun = segment::first_arrival(start).unwrap_or_default();
    Ok(Segment { bytes: file.size()?, damaged: !intact, begun, ..Segment::default() })
}

/// The end of the log as [`recover`] would find it; changes nothing.
pub fn look(disk: &dyn Disk, segments: &mut BTreeMap<u64, Segment>, settled: u64) -> io::Result<u64> {
    let mut settled = settled;
    while let Some((&base, last)) = segments.iter_mut().next_back() {
        let file = match disk.open(&segment::name(base)) {
            // Removed since it was listed: the log goes at least so far.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                settled = settled.max(base);
                segments.remove(&base);
                continue;
            }
            other => other?,
        };
        let proven = settled.max(segment::sealed_end(&*file)?.unwrap_or_default());
        let tail = read_tail(Scan::new(file)?, base, proven)?;
        if tail.end > base {
            last.damaged |= !tail.damaged.is_empty();
            return Ok(tail.end);
        }
        segments.remove(&base);
        if segments.is_empty() {
            return Ok(settled.max(base));
        }
    }
    Ok(settled)
}

/// Cuts a torn end off the last segment, which is never written to again. Everything below `settled` was acknowledged.
pub fn recover(disk: &dyn Disk, segments: BTreeMap<u64, Segment>, settled: u64) -> io::Result<Recovered> {
    let mut recovered = Recovered { segments, end: settled, torn: 0, damaged: Vec::new() };
    while let Some((&base, last)) = recovered.segments.iter_mut().next_back() {
        let name = segment::name(base);
        let file = disk.open(&name)?;
        let proven = recovered.end.max(segment::sealed_end(&*file)?.unwrap_or_default());
        let tail = read_tail(Scan::new(file)?, base, proven)?;
        recovered.torn += tail.written.saturating_sub(tail.position);
        if tail.end > base {
            last.bytes = make_durable(disk, &name, &tail)?;
            recovered.end = tail.end;
            for gone in &tail.damaged {
                last.lose(gone.clone());
            }
            recovered.damaged = tail.damaged;
            break;
        }
        // Without a record it tells one thing: it was begun when everything below its base was durable.
        recovered.end = recovered.end.max(base);
        disk.remove(&name)?;
        disk.sync()?;
        recovered.segments.remove(&base);
    }
    Ok(recovered)
}

/// Records that a killed process wrote may not have been synced, and a sync that failed may have left them in memory only,
/// where the next sync passes over them: so the last group commit is written again before anything is made of it. Returns the
/// size of the file, which is ended behind it.
///
/// A full disk must not keep the spool from opening, so this needs no room that the file does not have: the footer takes the place
/// of what is then cut off. Where there is nothing to cut off and no room, the file does without: a footer tells no more than that
/// what stands in front of it was durable.
fn make_durable(disk: &dyn Disk, name: &str, tail: &Tail) -> io::Result<u64> {
    let file = disk.open(name)?;
    let mut last = vec![0; tail.position.saturating_sub(tail.batch_position) as usize];
    let read = file.read_at(&mut last, tail.batch_position)?;
    file.write_at(last.get(..read).unwrap_or_default(), tail.batch_position)?;
    file.sync()?;
    let end = match file.write_at(&segment::footer(tail.end), tail.position) {
        Ok(()) => tail.position + segment::FOOTER as u64,
        Err(error) => {
            tracing::warn!(%error, file = name, "a segment of the spool stays without its end mark");
            tail.position
        }
    };
    file.resize(end)?;
    file.sync()?;
    Ok(end)
}

#[derive(Debug, Default)]
struct Tail {
    /// The offset after the last record that counts.
    end: u64,
    /// Where in the file that record ends.
    position: u64,
    /// Where the last group commit begins of which a record was seen.
    batch_position: u64,
    /// Where the last record of any kind ends.
    written: u64,
    damaged: Vec<Range<u64>>,
}

/// A record knows the first offset of its group commit, and a group commit begins only after the one before was durable.
/// So unreadable bytes are damage if a record of a later group commit stands behind them, or if what they held is settled;
/// and a torn write otherwise. A request's records are taken whole or not at all.
fn read_tail(mut scan: Scan, base: u64, settled: u64) -> io::Result<Tail> {
    let begin = scan.position();
    let mut tail = Tail { end: base, position: begin, batch_position: begin, written: begin, damaged: Vec::new() };
    let mut expected = base;
    let mut batch = None;
    // Everything below was durable.
    let mut proven = settled.max(base);
    let mut gaps = VecDeque::new();
    let limit = base.saturating_add(scan.most_records());
    loop {
        let at = scan.position();
        match scan.next(expected, limit)? {
            Found::Record(frame, _) => {
                if batch.replace(frame.batch) != Some(frame.batch) {
                    tail.batch_position = at;
                }
                proven = proven.max(frame.batch);
                tail.split(&mut gaps, proven, at);
                expected = frame.offset.saturating_add(1);
                tail.written = scan.position();
                if gaps.is_empty() && (frame.follows == 0 || frame.offset < proven) {
                    (tail.end, tail.position) = (expected, tail.written);
                }
            }
            Found::Damage(frame) => {
                gaps.push_back(expected..frame.offset);
                expected = frame.offset;
                tail.split(&mut gaps, proven, scan.position());
            }
            Found::End => break,
        }
    }
    if tail.end < proven {
        tail.damaged.push(tail.end..proven);
        tail.end = proven;
    }
    Ok(tail)
}

impl Tail {
    /// Moves what is known to be damage out of `gaps`: all below `proven`. The next intact record is at `position`.
    fn split(&mut self, gaps: &mut VecDeque<Range<u64>>, proven: u64, position: u64) {
        while let Some(gap) = gaps.front_mut() {
            let damaged = gap.start..gap.end.min(proven);
            if damaged.is_empty() {
                break;
            }
            (self.end, self.position) = (damaged.end, position);
            gap.start = damaged.end;
            if gap.is_empty() {
                gaps.pop_front();
            }
            self.damaged.push(damaged);
        }
    }
}
