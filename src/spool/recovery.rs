//! Recovery at a start: finds the extent of the log and repairs the end of its last segment.

use super::disk::Disk;
use super::segment::{self, Found, Scan};
use super::segments::Segment;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::ops::Range;

/// The log as it was found.
#[derive(Debug, Default)]
pub struct Recovered {
    /// All segments by their base offset. One without a file stands for acknowledged records that are missing.
    pub segments: BTreeMap<u64, Segment>,
    /// The offset after the last record.
    pub end: u64,
    /// Bytes of unacknowledged records at the end.
    pub torn: u64,
    /// Offsets of acknowledged records at the beginning or the end of the log that are unreadable or missing. Damage in between is
    /// found when it is read.
    pub lost: Vec<Range<u64>>,
}

/// How far the log is known to have been durable, from other files than its segments.
#[derive(Clone, Copy, Debug, Default)]
pub struct Proven {
    /// Segments were removed below this offset because every sink had passed them; `None` if unknown.
    pub removed: Option<u64>,
    /// All records below this offset were acknowledged.
    pub acknowledged: u64,
}

/// Lists the segments and changes nothing. A segment of another format version is an error, and so is a last segment that the disk
/// refuses to read: without it the next offset is unknown. Unreadable segments before it are left to the readers; webhooks need not
/// wait for them.
pub fn list(disk: &dyn Disk) -> io::Result<BTreeMap<u64, Segment>> {
    let mut segments = BTreeMap::new();
    let bases: BTreeSet<u64> = disk.list()?.iter().filter_map(|name| segment::base(name)).collect();
    for &base in &bases {
        match read_header(disk, base) {
            // Removed meanwhile by the bridge that uses this spool, when another process inspects it.
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

fn read_header(disk: &dyn Disk, base: u64) -> io::Result<Segment> {
    let file = disk.open(&segment::name(base))?;
    let mut start = [0; segment::HEADER + segment::FRAME];
    let read = file.read_at(&mut start, 0)?;
    let start = start.get(..read).unwrap_or_default();
    let damaged = !segment::check_header(start, base)?;
    let begun = segment::begun(start).unwrap_or_default();
    Ok(Segment::new(file.size()?, damaged, begun))
}

/// Finds the end of the log and the records that are missing. With `repair`, cuts torn records off the last segment, which is never written to
/// again; without, changes nothing.
pub fn recover(
    disk: &dyn Disk,
    segments: BTreeMap<u64, Segment>,
    proven: Proven,
    repair: bool,
) -> io::Result<Recovered> {
    let end = proven.acknowledged.max(proven.removed.unwrap_or_default());
    let mut recovered = Recovered { segments, end, ..Recovered::default() };
    while let Some((&base, last)) = recovered.segments.iter_mut().next_back() {
        let name = segment::name(base);
        let file = match disk.open(&name) {
            // Removed since it was listed: the log goes at least so far.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !repair => {
                recovered.end = recovered.end.max(base);
                recovered.segments.remove(&base);
                continue;
            }
            file => file?,
        };
        let size = file.size()?;
        let mut tail = read_tail(Scan::new(file)?, base, recovered.end)?;
        recovered.torn += tail.written.saturating_sub(tail.position);
        if tail.end == base {
            // Without a record it tells one thing: it was begun when everything below its base was durable.
            recovered.end = recovered.end.max(base);
            if repair {
                disk.remove(&name)?;
                disk.sync()?;
            }
            recovered.segments.remove(&base);
            continue;
        }
        // A segment is cut off behind its last record when it is full. So nothing is missing from one that ends there.
        let missing = tail.lost.pop_if(|lost| lost.start > base && lost.end == tail.end && size == tail.position);
        for lost in &tail.lost {
            last.lose(lost.clone());
        }
        recovered.end = tail.end;
        if missing.is_none() && tail.lost.last().is_none_or(|lost| lost.end < tail.end) {
            last.bytes = tail.position;
            if repair {
                make_durable(disk, &name, &tail)?;
            }
        }
        recovered.lost = tail.lost;
        if let Some(missing) = missing {
            recovered.add_missing(missing);
        }
        break;
    }
    let start = recovered.segments.first_key_value().map_or(recovered.end, |(base, _)| *base);
    if let Some(removed) = proven.removed.filter(|removed| *removed < start) {
        recovered.add_missing(removed..start);
    }
    Ok(recovered)
}

impl Recovered {
    /// A segment that is not there, for the readers to pass over.
    fn add_missing(&mut self, offsets: Range<u64>) {
        let mut segment = Segment::default();
        segment.lose(offsets.clone());
        self.segments.insert(offsets.start, segment);
        self.lost.push(offsets);
    }
}

/// Records that a killed process wrote may not have been synced, and a sync that failed may have left them in memory only, where the
/// next sync passes over them: so the last group commit is written again before it counts. The file is cut off behind it. All of
/// this needs no room that the file does not have: a full disk must not keep the spool from opening.
fn make_durable(disk: &dyn Disk, name: &str, tail: &Tail) -> io::Result<()> {
    let file = disk.open(name)?;
    let mut last = vec![0; tail.position.saturating_sub(tail.batch_position) as usize];
    let read = file.read_at(&mut last, tail.batch_position)?;
    file.write_at(last.get(..read).unwrap_or_default(), tail.batch_position)?;
    file.sync()?;
    file.resize(tail.position)?;
    file.sync()
}

#[derive(Debug)]
struct Tail {
    /// The offset after the last record that counts.
    end: u64,
    /// The position in the file behind the last intact record that counts.
    position: u64,
    /// The position of the first record that was seen of the last group commit.
    batch_position: u64,
    /// The position behind the last intact record of any kind.
    written: u64,
    lost: Vec<Range<u64>>,
}

/// Reads a segment to its end. Every record names the first offset of its group commit, and a group commit begins only after the one
/// before was durable. So unreadable bytes are damage if a record of a later group commit stands behind them, or if they are below
/// `acknowledged`; and a torn write otherwise. A request's records count all or none.
fn read_tail(mut scan: Scan, base: u64, acknowledged: u64) -> io::Result<Tail> {
    let begin = scan.position();
    let mut tail = Tail { end: base, position: begin, batch_position: begin, written: begin, lost: Vec::new() };
    let mut expected = base;
    let mut batch = None;
    // Everything below was durable.
    let mut proven = acknowledged.max(base);
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
            Found::Damage(next) => {
                gaps.push_back(expected..next);
                expected = next;
            }
            Found::End => break,
        }
    }
    if tail.end < proven {
        tail.lost.push(tail.end..proven);
        tail.end = proven;
    }
    Ok(tail)
}

impl Tail {
    /// Moves known damage out of `gaps`: everything below `proven`. The next intact record is at `position`.
    fn split(&mut self, gaps: &mut VecDeque<Range<u64>>, proven: u64, position: u64) {
        while let Some(gap) = gaps.front_mut() {
            let lost = gap.start..gap.end.min(proven);
            if lost.is_empty() {
                break;
            }
            (self.end, self.position) = (lost.end, position);
            gap.start = lost.end;
            if gap.is_empty() {
                gaps.pop_front();
            }
            self.lost.push(lost);
        }
    }
}
