//! The durable position of one sink.
//!
//! A cursor file has three slots in sectors of their own; the intact slot with the highest sequence number counts. Slot 0
//! is overwritten often and never waited for, which survives the end of the process; slots 1 and 2 are written in turn and
//! synced, which survives the end of the machine. Losing all of it means delivering again what the spool still holds.

use super::disk::{Disk, DiskFile};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const SECTOR: u64 = 4096;
const SLOT: usize = 20;

/// Everything below its position is settled.
#[derive(Debug)]
pub struct Cursor {
    sink: String,
    file: Box<dyn DiskFile>,
    position: AtomicU64,
    optional: AtomicBool,
}

/// What has been written of a cursor; belongs to the thread that writes.
#[derive(Debug, Default)]
pub struct Written {
    sequence: u64,
    turn: u64,
    noted: u64,
    /// The position that is durable.
    pub synced: u64,
}

/// The name of a sink's cursor file.
pub fn name(sink: &str) -> String {
    format!("cursor-{sink}")
}

/// The sink that a cursor file belongs to; `None` for other files.
pub fn sink(name: &str) -> Option<&str> {
    name.strip_prefix("cursor-")
}

/// The position of a sink that is not to be written.
pub fn peek(disk: &dyn Disk, sink: &str) -> io::Result<u64> {
    let slots = read_slots(&*disk.open(&name(sink))?)?;
    Ok(slots.into_iter().max().map_or(0, |(_, position)| position))
}

impl Cursor {
    /// Opens or makes the cursor of `sink`, which is at 0 if it is new or unreadable.
    pub fn open(disk: &dyn Disk, sink: &str) -> io::Result<(Self, Written)> {
        let name = name(sink);
        let file = match disk.open(&name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Synced with its size: on a full disk it could not grow again, and without it nothing delivered is let go.
                let made = disk.create(&name, 3 * SECTOR).and_then(|file| file.sync().map(|()| file));
                let made = made.and_then(|file| disk.sync().map(|()| file));
                made.map_err(|error| io::Error::new(error.kind(), format!("cannot make {name}: {error}")))?
            }
            other => other?,
        };
        let slots = read_slots(&*file)?;
        let [_, first, second] = slots;
        let (sequence, position) = slots.into_iter().max().unwrap_or_default();
        // What slot 0 says may not have reached the disk: it is written anew before anything is removed on its account.
        // The better one of the others is kept until then.
        let written = Written { sequence, turn: u64::from(first > second), noted: position, synced: 0 };
        Ok((
            Self { sink: sink.to_owned(), file, position: AtomicU64::new(position), optional: AtomicBool::new(false) },
            written,
        ))
    }

    /// The sink's name.
    pub fn sink(&self) -> &str {
        &self.sink
    }

    /// Everything below this offset is settled.
    pub fn position(&self) -> u64 {
        self.position.load(Ordering::Acquire)
    }

    /// From now on the sink's oldest records may be skipped when the spool is full.
    pub fn make_optional(&self) {
        self.optional.store(true, Ordering::Relaxed);
    }

    /// Whether records may be skipped.
    pub(super) fn is_optional(&self) -> bool {
        self.optional.load(Ordering::Relaxed)
    }

    /// Moves the position up to `until` and returns how many records that leaves out.
    pub(super) fn skip(&self, until: u64) -> u64 {
        until.saturating_sub(self.position.fetch_max(until, Ordering::AcqRel))
    }

    /// Moves the position; what is on disk follows when [`Cursor::note`] or [`Cursor::sync`] is called.
    pub(super) fn set(&self, position: u64) {
        self.position.fetch_max(position, Ordering::AcqRel);
    }

    /// Writes the position without waiting for the disk.
    pub(super) fn note(&self, written: &mut Written) -> io::Result<()> {
        let position = self.position();
        if position == written.noted {
            return Ok(());
        }
        self.write(0, position, written)?;
        written.noted = position;
        Ok(())
    }

    /// Makes the position durable.
    pub(super) fn sync(&self, written: &mut Written) -> io::Result<()> {
        let position = self.position();
        if position == written.synced {
            return Ok(());
        }
        self.write(1 + written.turn, position, written)?;
        self.file.sync()?;
        written.turn ^= 1;
        (written.noted, written.synced) = (position, position);
        Ok(())
    }

    fn write(&self, slot: u64, position: u64, written: &mut Written) -> io::Result<()> {
        written.sequence += 1;
        let mut bytes = Vec::with_capacity(SLOT);
        bytes.extend_from_slice(&written.sequence.to_le_bytes());
        bytes.extend_from_slice(&position.to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        self.file.write_at(&bytes, slot * SECTOR)
    }
}

/// Sequence number and position of each slot, zero where it is not intact.
fn read_slots(file: &dyn DiskFile) -> io::Result<[(u64, u64); 3]> {
    let mut slots = [(0, 0); 3];
    for (index, slot) in slots.iter_mut().enumerate() {
        let mut bytes = [0; SLOT];
        if file.read_at(&mut bytes, index as u64 * SECTOR)? == SLOT {
            *slot = read_slot(&bytes).unwrap_or_default();
        }
    }
    Ok(slots)
}

fn read_slot(bytes: &[u8; SLOT]) -> Option<(u64, u64)> {
    let (covered, sum) = bytes.split_last_chunk()?;
    (u32::from_le_bytes(*sum) == crc32c::crc32c(covered)).then_some(())?;
    Some((u64::from_le_bytes(*covered.first_chunk()?), u64::from_le_bytes(*covered.last_chunk()?)))
}
