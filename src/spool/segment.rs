//! The framing of records in a segment file, and finding them again, damaged or not.

use super::Record;
use super::disk::DiskFile;
use super::sums::Sums;
use crate::event::{Arrival, Event, EventId};
use std::borrow::Cow;
use std::io;
use std::ops::Range;

/// Bytes before the first record.
pub const HEADER: usize = 32;
/// Bytes before a record's conversation, target and payload.
pub const FRAME: usize = 60;
/// Bytes behind the last record of a segment that was ended in order.
pub const FOOTER: usize = 20;
const MAGIC: &[u8; 8] = b"CDRSPOOL";
const SEAL: &[u8; 8] = b"CDRSEALD";
const VERSION: u32 = 1;
/// How a NUL in a conversation is stored.
const NUL: [u8; 2] = [0xC0, 0x80];
/// Stands between a record's target and the route it came by. No text holds this byte: a target cannot pass for a route, and a
/// cdrelay that knows of no routes takes such a record for damage, which is loud, instead of for another sink's.
const ROUTE: u8 = 0xFF;
const CHUNK: usize = 256 << 10;
/// How much of the file is read where it is not read on.
const FIRST_CHUNK: usize = 4 << 10;
/// So many bytes are read and summed up for records that turn out to be none, before it takes more than their word.
const BELIEVED: u64 = 16 << 20;

/// The name of the segment file whose first record has offset `base`.
pub fn name(base: u64) -> String {
    format!("segment-{base:020}")
}

/// The base offset in a segment file's name; `None` for other files.
pub fn base(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("segment-")?;
    digits.parse().ok().filter(|base| digits == format!("{base:020}"))
}

/// The first bytes of a segment file.
pub fn header(base: u64) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    let fields = MAGIC.iter().copied().chain(VERSION.to_le_bytes()).chain([0; 4]).chain(base.to_le_bytes());
    bytes.iter_mut().zip(fields).for_each(|(slot, byte)| *slot = byte);
    let sum = crc32c::crc32c(bytes.first_chunk::<24>().map_or(&[], |covered| covered.as_slice()));
    bytes.iter_mut().skip(24).zip(sum.to_le_bytes()).for_each(|(slot, byte)| *slot = byte);
    bytes
}

/// Whether `bytes` are the header of this segment; an unknown version is an error, for it must not be touched.
pub fn check_header(bytes: &[u8], base: u64) -> io::Result<bool> {
    let field = |at: usize| bytes.get(at..).and_then(|rest| rest.first_chunk()).map(|raw| u32::from_le_bytes(*raw));
    // Without the right sum a strange version is a flipped bit.
    let genuine = bytes.starts_with(MAGIC) && field(24) == bytes.get(..24).map(crc32c::crc32c);
    match field(8) {
        Some(version) if genuine && version > VERSION => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("{} has format version {version}, this cdrelay reads {VERSION}: start the newer one", name(base)),
        )),
        _ => Ok(bytes.get(..HEADER) == Some(&header(base))),
    }
}

/// When the first record arrived of a segment that begins with these bytes; not checked.
pub fn first_arrival(start: &[u8]) -> Option<Arrival> {
    start.get(HEADER..).and_then(Frame::read).map(|frame| frame.arrival)
}

/// The last bytes of a segment that was ended in order: all records below `end` were durable then.
pub fn footer(end: u64) -> [u8; FOOTER] {
    let mut bytes = [0; FOOTER];
    let covered: Vec<u8> = SEAL.iter().copied().chain(end.to_le_bytes()).collect();
    let fields = covered.iter().copied().chain(crc32c::crc32c(&covered).to_le_bytes());
    bytes.iter_mut().zip(fields).for_each(|(slot, byte)| *slot = byte);
    bytes
}

/// The end that a segment file's footer tells; `None` if it was not ended in order.
pub fn sealed_end(file: &dyn DiskFile) -> io::Result<Option<u64>> {
    let mut bytes = [0; FOOTER];
    let at = file.size()?.saturating_sub(FOOTER as u64);
    file.read_at(&mut bytes, at)?;
    let end = bytes.get(SEAL.len()..).and_then(|rest| rest.first_chunk()).map(|raw| u64::from_le_bytes(*raw));
    Ok(end.filter(|end| footer(*end) == bytes))
}

/// The fixed part of a stored record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The record's place in the log.
    pub offset: u64,
    /// The first offset of the group commit that wrote the record: all below had been durable by then.
    pub batch: u64,
    /// How many records of the same request come after this one.
    pub follows: u32,
    arrival: Arrival,
    id: EventId,
    conversation: u32,
    target: u32,
    body: u32,
}

impl Frame {
    /// Bytes on disk, frame included.
    pub fn size(&self) -> usize {
        FRAME + self.body as usize
    }

    /// The event's identity.
    pub fn id(&self) -> EventId {
        self.id
    }

    /// When the event arrived.
    pub fn arrival(&self) -> Arrival {
        self.arrival
    }

    /// Reads the fixed part; the checksum is not looked at.
    fn read(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            body: u32::from_le_bytes(*bytes.get(4..)?.first_chunk()?),
            offset: u64::from_le_bytes(*bytes.get(8..)?.first_chunk()?),
            batch: u64::from_le_bytes(*bytes.get(16..)?.first_chunk()?),
            arrival: Arrival(u64::from_le_bytes(*bytes.get(24..)?.first_chunk()?)),
            id: EventId(*bytes.get(32..)?.first_chunk()?),
            conversation: u32::from_le_bytes(*bytes.get(48..)?.first_chunk()?),
            follows: u32::from_le_bytes(*bytes.get(52..)?.first_chunk()?),
            target: u32::from_le_bytes(*bytes.get(56..)?.first_chunk()?),
        })
    }

    fn plausible(&self, room: u64) -> bool {
        self.body > 0
            && u64::from(self.conversation) + u64::from(self.target) <= u64::from(self.body)
            && self.batch <= self.offset
            && self.size() as u64 <= room
    }

    /// The record in `bytes`, which begin with this frame.
    pub fn record(&self, bytes: &[u8]) -> Option<Record> {
        let body = bytes.get(FRAME..self.size())?;
        let (conversation, rest) = body.split_at_checked(self.conversation as usize)?;
        let (target, payload) = rest.split_at_checked(self.target as usize)?;
        let conversation = revealed(conversation)?;
        let (target, ingress) = match target.iter().position(|byte| *byte == ROUTE) {
            Some(at) => (target.get(..at)?, Some(std::str::from_utf8(target.get(at + 1..)?).ok()?.into())),
            None => (target, None),
        };
        let target = std::str::from_utf8(target).ok()?;
        let event = Event::restore(std::str::from_utf8(payload).ok()?, self.id, &conversation, self.arrival);
        Some(Record {
            offset: self.offset,
            target: (!target.is_empty()).then(|| target.into()),
            event: event.by(ingress),
        })
    }
}

/// How many bytes a record of `event` for `target` will take.
pub fn size_of_record(event: &Event, target: Option<&str>) -> usize {
    let route = event.other_ingress().map_or(0, |name| 1 + name.len());
    FRAME + concealed(event.conversation_bytes()).len() + target.map_or(0, str::len) + route + event.payload().len()
}

/// The text with every NUL as two bytes that no text holds.
fn concealed(text: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr(0, text).is_none() {
        return Cow::Borrowed(text);
    }
    let bytes = text.iter().flat_map(|byte| if *byte == 0 { NUL.to_vec() } else { vec![*byte] });
    Cow::Owned(bytes.collect())
}

/// The text that was concealed.
fn revealed(mut bytes: &[u8]) -> Option<Cow<'_, str>> {
    let mut text = Cow::Borrowed("");
    while let Some(at) = bytes.windows(NUL.len()).position(|window| window == NUL) {
        let (before, rest) = bytes.split_at_checked(at)?;
        text.to_mut().push_str(std::str::from_utf8(before).ok()?);
        text.to_mut().push('\0');
        bytes = rest.get(NUL.len()..)?;
    }
    let rest = std::str::from_utf8(bytes).ok()?;
    Some(if text.is_empty() { Cow::Borrowed(rest) } else { text + rest })
}

/// Appends the stored form of a record to `out`.
pub fn write_record(record: &Record, batch: u64, follows: u32, out: &mut Vec<u8>) {
    let event = &record.event;
    let start = out.len();
    let (conversation, payload) = (concealed(event.conversation_bytes()), event.payload());
    let target = record.target.as_deref().unwrap_or_default().as_bytes();
    let (mark, route) = event.other_ingress().map_or((&[][..], &[][..]), |name| (&[ROUTE], name.as_bytes()));
    let target_length = target.len() + mark.len() + route.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&((conversation.len() + target_length + payload.len()) as u32).to_le_bytes());
    out.extend_from_slice(&record.offset.to_le_bytes());
    out.extend_from_slice(&batch.to_le_bytes());
    out.extend_from_slice(&event.arrival().0.to_le_bytes());
    out.extend_from_slice(&event.id().0);
    out.extend_from_slice(&(conversation.len() as u32).to_le_bytes());
    out.extend_from_slice(&follows.to_le_bytes());
    out.extend_from_slice(&(target_length as u32).to_le_bytes());
    out.extend_from_slice(&conversation);
    out.extend_from_slice(target);
    out.extend_from_slice(mark);
    out.extend_from_slice(route);
    out.extend_from_slice(payload.as_bytes());
    let sum = crc32c::crc32c(out.get(start + 4..).unwrap_or_default());
    out.iter_mut().skip(start).zip(sum.to_le_bytes()).for_each(|(slot, byte)| *slot = byte);
}

/// What a [`Scan`] finds next.
#[derive(Debug)]
pub enum Found<'a> {
    /// An intact record, with its bytes on disk.
    Record(Frame, &'a [u8]),
    /// Bytes that are no record, followed by the record with this frame, which comes next.
    Damage(Frame),
    /// No further record.
    End,
}

/// Reads the records of one segment file in order, a chunk at a time, in a time that grows with its size alone, whatever is in it.
#[derive(Debug)]
pub struct Scan {
    file: Box<dyn DiskFile>,
    size: u64,
    buffer: Vec<u8>,
    /// How many bytes of the buffer are the file's.
    held: usize,
    /// Where in the file the buffer begins.
    start: u64,
    /// The next unread byte in the buffer.
    at: usize,
    /// How much is read at once.
    chunk: usize,
    /// How many more bytes are believed to be a record without looking at `sums` first.
    believed: u64,
    /// What is known of the file as it was when the first record was looked for below `limit`: what is below is durable by then.
    sums: Sums,
    limit: u64,
}

impl Scan {
    /// Reads `file` from its first record on.
    pub fn new(file: Box<dyn DiskFile>) -> io::Result<Self> {
        Ok(Self {
            size: file.size()?,
            file,
            buffer: Vec::new(),
            held: 0,
            start: HEADER as u64,
            at: 0,
            chunk: FIRST_CHUNK,
            believed: BELIEVED,
            sums: Sums::default(),
            limit: 0,
        })
    }

    /// One that believes nothing, as it otherwise does only in badly damaged files.
    #[cfg(any(test, fuzzing))]
    pub fn distrustful(file: Box<dyn DiskFile>) -> io::Result<Self> {
        Ok(Self { believed: 0, ..Self::new(file)? })
    }

    /// No segment of this size can hold more records than this.
    pub fn most_records(&self) -> u64 {
        self.size / FRAME as u64
    }

    /// Where in the file the next record begins.
    pub fn position(&self) -> u64 {
        self.start + self.at as u64
    }

    /// The next record, which has to have the offset `expected`; records with offsets of `limit` and above are none.
    pub fn next(&mut self, expected: u64, limit: u64) -> io::Result<Found<'_>> {
        if expected >= limit {
            return Ok(Found::End);
        }
        if self.limit != limit {
            (self.sums, self.limit) = (Sums::default(), limit);
        }
        let mut frame = self.record(expected..expected.saturating_add(1))?;
        if frame.is_none() {
            // The buffer may be older than the record: it is no evidence of damage.
            self.go_to(self.position());
            frame = self.record(expected..expected.saturating_add(1))?;
        }
        if let Some(frame) = frame {
            let from = self.at;
            self.at += frame.size();
            return Ok(Found::Record(frame, self.buffer.get(from..self.at).unwrap_or_default()));
        }
        Ok(match self.seek(expected, limit)? {
            Some(frame) => Found::Damage(frame),
            None => Found::End,
        })
    }

    /// Moves on to the next intact record with an offset above `expected` and below `limit`, if there is any.
    fn seek(&mut self, expected: u64, limit: u64) -> io::Result<Option<Frame>> {
        let from = self.position();
        loop {
            self.at += 1;
            if self.fill(FRAME)? < FRAME {
                self.go_to(from);
                return Ok(None);
            }
            // Passing over the zeros of a preallocated file has to be fast.
            let ahead = self.buffer.get(self.at..self.held).unwrap_or_default();
            let zeros = ahead.iter().position(|byte| *byte != 0).unwrap_or(ahead.len());
            if zeros > FRAME {
                self.at += zeros - FRAME;
                continue;
            }
            if let Some(frame) = self.record(expected.saturating_add(1)..limit)? {
                return Ok(Some(frame));
            }
        }
    }

    /// The frame of the intact record that begins at the position, if its offset is one of these.
    fn record(&mut self, offsets: Range<u64>) -> io::Result<Option<Frame>> {
        if self.fill(FRAME)? < FRAME {
            return Ok(None);
        }
        let room = self.size.saturating_sub(self.position());
        let frame = self.ahead(FRAME).and_then(Frame::read);
        let Some(frame) = frame.filter(|frame| offsets.contains(&frame.offset) && frame.plausible(room)) else {
            return Ok(None);
        };
        if self.believed == 0 && !self.seems_intact(frame)? {
            return Ok(None);
        }
        if self.fill(frame.size())? < frame.size() {
            return Ok(None);
        }
        let Some((sum, covered)) = self.ahead(frame.size()).and_then(<[u8]>::split_first_chunk) else {
            return Ok(None);
        };
        if u32::from_le_bytes(*sum) != crc32c::crc32c(covered) {
            self.believed = self.believed.saturating_sub(frame.size() as u64);
            return Ok(None);
        }
        Ok(Some(frame))
    }

    /// Whether the checksum of the record at the position is right, at little cost however long it is.
    fn seems_intact(&mut self, frame: Frame) -> io::Result<bool> {
        let stored = self.ahead(FRAME).and_then(|bytes| bytes.first_chunk()).map(|sum| u32::from_le_bytes(*sum));
        let covered = self.position() + 4..self.position() + frame.size() as u64;
        let sum = self.sums.of(&*self.file, covered)?;
        Ok(sum.is_some() && sum == stored)
    }

    /// So many bytes from the position on, if they are in the buffer.
    fn ahead(&self, count: usize) -> Option<&[u8]> {
        self.buffer.get(self.at..self.held)?.get(..count)
    }

    /// Goes on at another place, or at the same with what the file holds now.
    fn go_to(&mut self, position: u64) {
        (self.start, self.at, self.held, self.chunk) = (position, 0, 0, FIRST_CHUNK);
    }

    /// Sees to it that `wanted` bytes after the position are in the buffer; returns how many there are.
    fn fill(&mut self, wanted: usize) -> io::Result<usize> {
        let held = self.held.saturating_sub(self.at);
        if held >= wanted {
            return Ok(held);
        }
        (self.start, self.at, self.held) = (self.position(), 0, 0);
        // A larger one was for a record of unusual size.
        if self.buffer.len() != wanted.max(CHUNK) {
            self.buffer = vec![0; wanted.max(CHUNK)];
        }
        let room = self.buffer.get_mut(..wanted.max(self.chunk)).unwrap_or_default();
        let count = self.file.read_at(room, self.start)?;
        (self.held, self.chunk) = (count, (2 * self.chunk).min(CHUNK));
        Ok(count)
    }
}
