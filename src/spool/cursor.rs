//! The durable position of one sink, and the file that keeps a position.

use super::disk::{Disk, DiskFile};
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const SECTOR: u64 = 4096;
const SLOT: usize = 12;

/// A file that keeps a position which only grows.
///
/// It has three slots in sectors of their own, each a position (u64) and the CRC-32C of these bytes (u32); the highest intact one counts.
/// Slot 0 is written often and never synced: that survives the end of the process. Slots 1 and 2 are written in turn and synced: that
/// survives the end of the machine.
#[derive(Debug)]
pub struct PositionFile {
    file: Arc<dyn DiskFile>,
    synced: Mutex<Synced>,
}

#[derive(Debug)]
struct Synced {
    /// The slot to be written next.
    slot: u64,
    /// The position that is durable; `None` before the first sync, since slot 0 may not have reached the disk.
    position: Option<u64>,
}

impl PositionFile {
    /// Opens or makes the file. Also returns its position; `None` if the file is new or unreadable.
    pub fn open(disk: &dyn Disk, name: &str) -> io::Result<(Self, Option<u64>)> {
        let file = match disk.open(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Synced with its size: a full disk must not keep it from being written later.
                let made = disk.create(name, 3 * SECTOR).and_then(|file| file.sync().map(|()| file));
                let made = made.and_then(|file| disk.sync().map(|()| file));
                made.map_err(|error| io::Error::new(error.kind(), format!("cannot make {name}: {error}")))?
            }
            Err(error) => return Err(io::Error::new(error.kind(), format!("cannot open {name}: {error}"))),
            Ok(file) => file,
        };
        let slots @ [_, first, second] = read_slots(&*file)?;
        let position = slots.into_iter().max().flatten();
        // The better one of the synced slots is kept until the other one is durable.
        let synced = Mutex::new(Synced { slot: if first > second { 2 } else { 1 }, position: None });
        Ok((Self { file, synced }, position))
    }

    /// Writes the position without waiting for the disk.
    pub fn note(&self, position: u64) -> io::Result<()> {
        self.write(0, position)
    }

    /// Makes the position durable.
    pub fn sync(&self, position: u64) -> io::Result<()> {
        let mut synced = self.synced.lock();
        if synced.position == Some(position) {
            return Ok(());
        }
        self.write(synced.slot, position)?;
        self.file.sync()?;
        *synced = Synced { slot: 3 - synced.slot, position: Some(position) };
        Ok(())
    }

    /// The position that is durable.
    pub fn durable(&self) -> u64 {
        self.synced.lock().position.unwrap_or_default()
    }

    fn write(&self, slot: u64, position: u64) -> io::Result<()> {
        let mut bytes = position.to_le_bytes().to_vec();
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        self.file.write_at(&bytes, slot * SECTOR)
    }
}

/// Reads the position of a file without writing to it; `None` if there is none.
pub fn peek(disk: &dyn Disk, name: &str) -> io::Result<Option<u64>> {
    match disk.open(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        file => Ok(read_slots(&*file?)?.into_iter().max().flatten()),
    }
}

fn read_slots(file: &dyn DiskFile) -> io::Result<[Option<u64>; 3]> {
    let mut slots = [None; 3];
    for (slot, at) in slots.iter_mut().zip([0, SECTOR, 2 * SECTOR]) {
        let mut bytes = [0; SLOT];
        if file.read_at(&mut bytes, at)? == SLOT
            && let Some((position, sum)) = bytes.split_first_chunk()
            && sum == crc32c::crc32c(position).to_le_bytes()
        {
            *slot = Some(u64::from_le_bytes(*position));
        }
    }
    Ok(slots)
}

/// Everything below its position is settled.
#[derive(Debug)]
pub struct Cursor {
    sink: String,
    file: PositionFile,
    position: AtomicU64,
    optional: AtomicBool,
}

/// The name of a sink's cursor file.
pub fn name(sink: &str) -> String {
    format!("cursor-{sink}")
}

/// The sink that a cursor file belongs to; `None` for other files.
pub fn sink(name: &str) -> Option<&str> {
    name.strip_prefix("cursor-")
}

impl Cursor {
    /// Opens or makes the cursor of `sink`, which is at 0 if it is new or unreadable: events are then delivered again.
    pub fn open(disk: &dyn Disk, sink: &str) -> io::Result<Self> {
        let (file, position) = PositionFile::open(disk, &name(sink))?;
        let position = AtomicU64::new(position.unwrap_or_default());
        Ok(Self { sink: sink.to_owned(), file, position, optional: AtomicBool::new(false) })
    }

    /// The sink's name.
    pub fn sink(&self) -> &str {
        &self.sink
    }

    /// Everything below this offset is settled.
    pub fn position(&self) -> u64 {
        self.position.load(Ordering::Acquire)
    }

    /// Whether the sink's oldest records may be skipped from now on when the spool is full.
    pub fn set_optional(&self, optional: bool) {
        self.optional.store(optional, Ordering::Relaxed);
    }

    /// Whether records may be skipped.
    pub(super) fn is_optional(&self) -> bool {
        self.optional.load(Ordering::Relaxed)
    }

    /// Moves the position up to `until` and returns how many records that leaves out.
    pub(super) fn skip(&self, until: u64) -> u64 {
        until.saturating_sub(self.position.fetch_max(until, Ordering::AcqRel))
    }

    /// Moves the position. The file follows with [`Cursor::note`] and [`Cursor::sync`].
    pub(super) fn set(&self, position: u64) {
        self.position.fetch_max(position, Ordering::AcqRel);
    }

    /// Writes the position without waiting for the disk.
    pub(super) fn note(&self) -> io::Result<()> {
        self.file.note(self.position())
    }

    /// Makes the position durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync(self.position())
    }

    /// The position that is durable.
    pub(super) fn durable(&self) -> u64 {
        self.file.durable()
    }
}
