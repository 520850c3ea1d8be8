//! A whole spool of files of which any may be damaged, torn or made up.

use super::input::Input;
use super::memory_disk::MemoryDisk;
use bytesize::ByteSize;
use cdrelay::event::{Arrival, Event, EventId};
use cdrelay::metrics::SpoolMetrics;
use cdrelay::spool::{AppendError, Config, Indexed, Record, Spool, cursor, segment};
use std::io;
use std::ops::Range;
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().enable_time().build().expect("a runtime needs nothing but memory"));

/// A file in the making.
struct File {
    name: String,
    bytes: Vec<u8>,
    /// What a record has to be next to be in order.
    next: u64,
    batch: u64,
}

/// The spool opens, gives what is intact and nothing else, takes an event, gives it back, and gives the same after a restart.
pub fn recovery(data: &[u8]) {
    let disk = MemoryDisk::default();
    let files = files(&mut Input(data));
    for file in &files {
        disk.put(&file.name, &file.bytes);
    }
    let Some((first, end, killed)) = life(disk, &files, 1) else { return };
    let Some((second, next, _)) = life(killed, &files, 2) else { panic!("it opened before") };
    assert_eq!(next, end + 1, "an offset was given twice, or left out");
    let kept = second.get(..first.len()).unwrap_or_default();
    assert_eq!(kept, first, "not all is there after a restart");
}

/// Opens the spool, appends an event and reads all records. Returns them, the end before the append, and the disk as `kill -9` leaves
/// it; `None` if the spool is not one for this version to touch.
fn life(disk: MemoryDisk, files: &[File], number: u8) -> Option<(Vec<Arc<Record>>, u64, MemoryDisk)> {
    let config = Config {
        max_size: ByteSize::mib(1),
        segment_size: Some(ByteSize::kib(4)),
        dedup_window: Duration::ZERO,
        read_cache: ByteSize::b(0),
        ..Config::default()
    };
    let event = new(number);
    RUNTIME.block_on(async {
        let spool = match Spool::on(Box::new(disk.clone()), &config, &["old", "new"], SpoolMetrics::default()) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => return None,
            spool => spool.expect("a spool opens whatever is in it"),
        };
        let before = spool.status();
        assert!(before.start <= before.end);
        match spool.append([event.clone()]).await {
            Ok(appended) => assert_eq!((appended.stored, appended.duplicates), (1, 0)),
            Err(AppendError::Full { .. }) => return None,
            Err(error) => panic!("{error}"),
        }
        assert_eq!(spool.status().end, before.end + 1);
        let mut reader = spool.reader("new").expect("the sink has a cursor");
        let mut records = Vec::new();
        while reader.position() <= before.end {
            records.extend(reader.read(1 << 16).await.expect("it can be read"));
        }
        assert!(records.is_sorted_by(|one, other| one.offset < other.offset));
        let last = records.last().expect("there is at least the new one");
        assert_eq!((last.offset, &last.event), (before.end, &event));
        for record in &records {
            let known =
                (1..=number).any(|number| record.event == new(number)) || files.iter().any(|file| file.holds(record));
            assert!(known, "{record:?} was never written");
        }
        Some((records, before.end, disk.snapshot()))
    })
}

/// What is stored in this life.
fn new(number: u8) -> Event {
    Event::restore("{\"new\":1}", EventId([number; 16]), "new", Arrival(u64::from(number)))
}

impl File {
    /// Whether the record stands in it, of whatever group commit.
    fn holds(&self, record: &Record) -> bool {
        let mut stored = Vec::new();
        segment::write_record(record, &Indexed::of(record, Arrival(1)), 0, 0, &mut stored);
        let same = |place: &[u8], part: Range<usize>| place.get(part.clone()) == stored.get(part);
        // All but the frame's checksum, the number of records that follow, and the group commit.
        let parts = [4..12, 16..24, 32..stored.len()];
        let mut places = self.bytes.windows(stored.len());
        places.any(|place| parts.iter().all(|part| same(place, part.clone())))
    }
}

/// Each byte is an instruction: what to write next, or to begin another file.
fn files(input: &mut Input<'_>) -> Vec<File> {
    let mut files = vec![segment_file(0)];
    while !input.is_empty() && files.len() < 8 {
        let Some(file) = files.last_mut() else { break };
        let instruction = input.byte();
        let argument = usize::from(instruction >> 3);
        match instruction & 7 {
            0 | 1 => {
                if argument & 1 != 0 {
                    file.batch = file.next;
                }
                let record = a_record(file.next + u64::from(instruction & 1), argument, input);
                let follows = u32::try_from(argument >> 3).unwrap_or_default();
                let indexed = Indexed::of(&record, Arrival(1));
                segment::write_record(&record, &indexed, file.batch, follows, &mut file.bytes);
                file.next = record.offset + 1;
            }
            2 => file.bytes.extend_from_slice(input.take(argument)),
            3 => file.bytes.resize(file.bytes.len() + 16 * argument, 0),
            4 => {
                let name = if argument & 1 != 0 { "acknowledged" } else { "removed" };
                let (next, batch) = (file.next, file.batch);
                let bytes = position_bytes(input, next);
                files.push(File { name: name.to_owned(), bytes, next, batch });
            }
            5 => file.bytes.truncate(file.bytes.len().saturating_sub(1 + argument)),
            6 => {
                let at = usize::from(input.word());
                if let Some(byte) = file.bytes.get_mut(at) {
                    *byte ^= input.byte();
                }
            }
            _ => {
                let next = file.next + argument as u64 / 4;
                files.push(match argument & 3 {
                    0 | 1 => segment_file(next),
                    2 => File { name: cursor::name("old"), bytes: position_bytes(input, next), next, batch: next },
                    _ => File { name: format!("names-{next:020}"), bytes: Vec::new(), next, batch: next },
                });
            }
        }
    }
    files
}

fn segment_file(base: u64) -> File {
    File { name: segment::name(base), bytes: segment::header(base).to_vec(), next: base, batch: base }
}

/// A position in the first slot, somewhere below or beyond the records.
fn position_bytes(input: &mut Input<'_>, next: u64) -> Vec<u8> {
    let position = (next + u64::from(input.byte())).saturating_sub(128);
    let mut bytes = position.to_le_bytes().to_vec();
    bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
    bytes
}

fn a_record(offset: u64, argument: usize, input: &mut Input<'_>) -> Record {
    let length = usize::from(input.byte());
    let text = String::from_utf8_lossy(input.take(length)).into_owned();
    let id = EventId(u128::from(offset).to_be_bytes());
    let conversation = if argument & 4 != 0 { &text } else { "conversation" };
    let event = Event::restore(&format!("{{{text}}}"), id, conversation, Arrival(offset));
    let event = event.by((argument & 2 != 0).then(|| "route".into()));
    Record { offset, target: (argument & 16 != 0).then(|| "old".into()), event }
}
