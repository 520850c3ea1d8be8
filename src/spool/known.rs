//! What is left of a removed segment for as long as its events may be resent: their identities.
//!
//! `known-<base>` holds for each event in `segment-<base>` that was still recognised the event id (16 bytes) and the arrival in
//! milliseconds (u64), and at its end the CRC-32C of all that (u32). It is written before the segment is removed. Losing it costs no
//! event: one that is resent after a restart is then published again.

use super::disk::Disk;
use super::segment::{self, Found, Scan};
use crate::event::{Arrival, EventId};
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::time::Duration;

const ENTRY: usize = 24;

/// The identities in one segment, in the order of its records.
pub type Identities = Vec<(EventId, Arrival)>;

/// The files, oldest first. Only as many are kept as the window of recent events can hold.
#[derive(Debug)]
pub struct Known {
    window: Duration,
    capacity: usize,
    files: VecDeque<File>,
}

#[derive(Debug)]
struct File {
    base: u64,
    count: usize,
    newest: Arrival,
}

fn name(base: u64) -> String {
    format!("known-{base:020}")
}

impl Known {
    /// For a window of this length and capacity; knows of no file yet.
    pub fn new(window: Duration, capacity: usize) -> Self {
        Self { window, capacity, files: VecDeque::new() }
    }

    /// Reads the files that are there and shows what they hold, with the base of the segment, oldest first; removes those that are of no more use.
    pub fn load(&mut self, disk: &dyn Disk, mut show: impl FnMut(EventId, Arrival, u64)) -> io::Result<()> {
        let names = disk.list()?;
        let mut bases: Vec<u64> = names.iter().filter_map(|name| name.strip_prefix("known-")?.parse().ok()).collect();
        bases.sort_unstable();
        for base in bases {
            let file = disk.open(&name(base))?;
            let mut bytes = vec![0; file.size()? as usize];
            file.read_at(&mut bytes, 0)?;
            // A torn file is one whose segment is still there.
            let identities = decode(&bytes).unwrap_or_default();
            let newest = newest(&identities).unwrap_or_default();
            self.files.push_back(File { base, count: identities.len(), newest });
            // Which of the segment's offsets is whose is not known; every sink had passed all of them.
            identities.into_iter().for_each(|(id, arrival)| show(id, arrival, base));
        }
        self.expire(disk)
    }

    /// Keeps what is recognised of the segment with this base, which is about to be removed.
    pub fn keep(&mut self, disk: &dyn Disk, base: u64, identities: &[(EventId, Arrival)]) -> io::Result<()> {
        let Some(newest) = newest(identities) else { return Ok(()) };
        let bytes = encode(identities);
        let file = match disk.create(&name(base), bytes.len() as u64) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => disk.open(&name(base))?,
            other => other?,
        };
        file.resize(bytes.len() as u64)?;
        file.write_at(&bytes, 0)?;
        file.sync()?;
        self.files.retain(|file| file.base != base);
        self.files.push_back(File { base, count: identities.len(), newest });
        self.expire(disk)
    }

    /// Removes the files that hold nothing young enough, or nothing that younger ones leave room for.
    fn expire(&mut self, disk: &dyn Disk) -> io::Result<()> {
        let since = Arrival(Arrival::now().0.saturating_sub(self.window.as_millis() as u64));
        let mut count: usize = self.files.iter().map(|file| file.count).sum();
        while let Some(oldest) = self.files.front() {
            count -= oldest.count;
            if oldest.newest >= since && count < self.capacity {
                break;
            }
            disk.remove(&name(oldest.base))?;
            self.files.pop_front();
        }
        Ok(())
    }
}

/// Not always that of the last one: a body that could not be decoded may have waited for long.
fn newest(identities: &[(EventId, Arrival)]) -> Option<Arrival> {
    identities.iter().map(|(_, arrival)| *arrival).max()
}

/// Shows the identities and offsets of the records in the segment with these offsets, as far as they can be read.
pub fn identities(disk: &dyn Disk, offsets: Range<u64>, mut show: impl FnMut(EventId, Arrival, u64)) -> io::Result<()> {
    let mut scan = Scan::new(disk.open(&segment::name(offsets.start))?)?;
    let mut expected = offsets.start;
    loop {
        expected = match scan.next(expected, offsets.end)? {
            Found::Record(frame, _) => {
                show(frame.id(), frame.arrival(), frame.offset);
                frame.offset + 1
            }
            Found::Damage(frame) => frame.offset,
            Found::End => return Ok(()),
        };
    }
}

fn encode(identities: &[(EventId, Arrival)]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(identities.len() * ENTRY + 4);
    for (id, arrival) in identities {
        bytes.extend_from_slice(&id.0);
        bytes.extend_from_slice(&arrival.0.to_le_bytes());
    }
    let sum = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<Identities> {
    let (entries, sum) = bytes.split_last_chunk()?;
    let (entries, rest) = entries.as_chunks::<ENTRY>();
    let intact = rest.is_empty() && u32::from_le_bytes(*sum) == crc32c::crc32c(entries.as_flattened());
    let entry = |entry: &[u8; ENTRY]| {
        let (id, arrival) = entry.split_first_chunk()?;
        Some((EventId(*id), Arrival(u64::from_le_bytes(*arrival.first_chunk()?))))
    };
    intact.then(|| entries.iter().filter_map(entry).collect())
}

#[cfg(test)]
mod tests {
    use super::super::disk::Directory;
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    /// Has the identities of a segment of events kept that arrived at these times.
    fn removed(known: &mut Known, disk: &dyn Disk, base: u64, arrivals: &[Arrival]) -> Identities {
        let identities: Identities =
            (base as u8..).zip(arrivals).map(|(offset, arrival)| (EventId([offset; 16]), *arrival)).collect();
        known.keep(disk, base, &identities).unwrap();
        identities
    }

    fn load(disk: &dyn Disk, capacity: usize) -> (Known, Identities) {
        let mut shown = Vec::new();
        let mut known = Known::new(HOUR, capacity);
        known.load(disk, |id, arrival, _| shown.push((id, arrival))).unwrap();
        (known, shown)
    }

    #[test]
    fn identities_survive_their_segment_until_they_are_too_old_or_too_many() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Directory::lock(dir.path()).unwrap();
        let now = Arrival::now();
        let (mut known, _) = load(&disk, 4);
        removed(&mut known, &disk, 0, &[Arrival(1), Arrival(2)]);
        assert!(load(&disk, 4).1.is_empty(), "too old");
        let first = removed(&mut known, &disk, 2, &[now; 3]);
        let second = removed(&mut known, &disk, 5, &[now; 3]);
        assert_eq!(load(&disk, 4).1, [first, second.clone()].concat());
        let third = removed(&mut known, &disk, 8, &[now; 1]);
        removed(&mut known, &disk, 9, &[]);
        let (_, shown) = load(&disk, 4);
        assert_eq!(shown, [second, third].concat(), "the first is not needed any more");
        assert!(load(&disk, 0).1.len() == 4 && load(&disk, 4).1.is_empty(), "without a capacity nothing is kept");
    }

    #[test]
    fn a_torn_file_counts_for_nothing_and_is_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Directory::lock(dir.path()).unwrap();
        let (mut known, _) = load(&disk, 4);
        let identities = removed(&mut known, &disk, 0, &[Arrival::now(); 3]);
        let file = disk.open(&name(0)).unwrap();
        file.resize(40).unwrap();
        let (mut known, shown) = load(&disk, 4);
        assert!(shown.is_empty());
        known.keep(&disk, 0, &identities).unwrap();
        assert_eq!(load(&disk, 4).1, identities);
    }
}
