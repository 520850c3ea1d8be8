//! The format of a segment file: header, records, and finding the records again, damaged or not.

use super::Record;
use super::disk::DiskFile;
use super::index::Indexed;
use crate::event::{Arrival, CallName, DEFAULT_INGRESS, Event, EventId, LegKey, MAX_NAME};
use std::borrow::Cow;
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// Bytes before the first record.
pub const HEADER: usize = 32;
/// Bytes of a record before its body.
pub const FRAME: usize = 88;
const MAGIC: &[u8; 8] = b"CDRSPOOL";
const VERSION: u32 = 3;
/// Bytes of a name or a leg in a record's body.
const KEY: usize = 16;
/// How a NUL is stored.
const NUL: [u8; 2] = [0xC0, 0x80];
/// How much of a file is read at once, and how much at a new position, where maybe one record is wanted.
const CHUNK: usize = 256 << 10;
const FIRST_CHUNK: usize = 4 << 10;

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
    let mut fields = MAGIC.to_vec();
    fields.extend(VERSION.to_le_bytes());
    fields.extend([0; 4]);
    fields.extend(base.to_le_bytes());
    fields.extend(crc32c::crc32c(&fields).to_le_bytes());
    let mut header = [0; HEADER];
    header.iter_mut().zip(fields).for_each(|(slot, byte)| *slot = byte);
    header
}

/// Whether `bytes` are the header of this segment; another version is an error, for its file must not be touched.
pub fn check_header(bytes: &[u8], base: u64) -> io::Result<bool> {
    let field = |at: usize| bytes.get(at..).and_then(|rest| rest.first_chunk()).map(|raw| u32::from_le_bytes(*raw));
    // A version under a wrong checksum is a flipped bit.
    let genuine = bytes.starts_with(MAGIC) && field(24) == bytes.get(..24).map(crc32c::crc32c);
    let advice = match field(8).filter(|_| genuine) {
        Some(version) if version > VERSION => "start the newer cdrelay that wrote it".to_owned(),
        Some(version) if version < VERSION => {
            "let the older cdrelay that wrote it deliver what it holds, or move the spool aside".to_owned()
        }
        _ => return Ok(bytes.get(..HEADER) == Some(&header(base))),
    };
    let version = field(8).unwrap_or_default();
    let text = format!("{} has format version {version}, this cdrelay reads version {VERSION}: {advice}", name(base));
    Err(io::Error::new(io::ErrorKind::Unsupported, text))
}

/// When the first record was stored of a segment that begins with these bytes; `None` without an intact record.
pub fn begun(start: &[u8]) -> Option<Arrival> {
    start.get(HEADER..).and_then(Frame::read).map(|frame| frame.stored)
}

/// The fixed part of a stored record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The record's offset in the log.
    pub offset: u64,
    /// The first offset of the group commit that wrote the record: all records below were durable by then.
    pub batch: u64,
    /// How many records of the same request come after this one.
    pub follows: u32,
    /// When the event arrived.
    pub arrival: Arrival,
    /// When the record was stored.
    pub stored: Arrival,
    /// The event's identity.
    pub id: EventId,
    /// CRC-32C of the body.
    sum: u32,
    /// Lengths of conversation, target, ingress, query, names and legs.
    lengths: [u32; 6],
    /// Length of the body.
    body: u32,
}

impl Frame {
    /// Bytes on disk, body included.
    pub fn size(&self) -> usize {
        FRAME + self.body as usize
    }

    /// Reads the fixed part; `None` if its checksum is wrong or it cannot be that of a record.
    fn read(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; FRAME] = bytes.first_chunk()?;
        let (sum, covered) = bytes.split_first_chunk()?;
        let number = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let long = |at: usize| Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let frame = Self {
            sum: number(4)?,
            body: number(8)?,
            follows: number(12)?,
            offset: long(16)?,
            batch: long(24)?,
            arrival: Arrival(long(32)?),
            stored: Arrival(long(40)?),
            id: EventId(*bytes.get(48..)?.first_chunk()?),
            lengths: [number(64)?, number(68)?, number(72)?, number(76)?, number(80)?, number(84)?],
        };
        let parts: u64 = frame.lengths.map(u64::from).iter().sum();
        let plausible = frame.body > 0 && parts <= u64::from(frame.body) && frame.batch <= frame.offset;
        (plausible && *sum == crc32c::crc32c(covered).to_le_bytes()).then_some(frame)
    }

    /// The parts of the body in `bytes`, which begin with this frame, in their order on disk, and the payload.
    fn parts<'a>(&self, bytes: &'a [u8]) -> Option<([&'a [u8]; 6], &'a [u8])> {
        let mut rest = bytes.get(FRAME..self.size())?;
        let mut parts = [rest; 6];
        for (part, length) in parts.iter_mut().zip(self.lengths) {
            (*part, rest) = rest.split_at_checked(length as usize)?;
        }
        Some((parts, rest))
    }

    /// The record in `bytes`, which begin with this frame.
    pub fn record(&self, bytes: &[u8]) -> Option<Record> {
        let ([conversation, target, ingress, query, _, _], payload) = self.parts(bytes)?;
        let (conversation, query) = (revealed(conversation)?, revealed(query)?);
        let (target, ingress) = (str::from_utf8(target).ok()?, str::from_utf8(ingress).ok()?);
        let event = Event::restore(str::from_utf8(payload).ok()?, self.id, &conversation, self.arrival)
            .by((!ingress.is_empty()).then(|| ingress.into()))
            .with_query((!query.is_empty()).then(|| query.into()));
        Some(Record { offset: self.offset, target: (!target.is_empty()).then(|| target.into()), event })
    }

    /// The index entries of the record in `bytes`, which begin with this frame.
    pub fn indexed(&self, bytes: &[u8]) -> Option<Indexed> {
        let ([conversation, target, _, _, names, legs], _) = self.parts(bytes)?;
        Some(Indexed {
            offset: self.offset,
            stored: self.stored,
            id: target.is_empty().then_some(self.id),
            conversation: revealed(conversation)?.into(),
            names: names.as_chunks().0.iter().map(|key| CallName(*key)).collect(),
            legs: legs.as_chunks().0.iter().map(|key| LegKey(*key)).collect(),
        })
    }
}

/// The texts at the beginning of a record's body, in their order on disk.
fn texts<'a>(event: &'a Event, target: Option<&'a str>) -> [Cow<'a, [u8]>; 4] {
    let ingress = if event.ingress() == DEFAULT_INGRESS { "" } else { event.ingress() };
    [
        concealed(event.conversation()),
        Cow::Borrowed(target.unwrap_or_default().as_bytes()),
        Cow::Borrowed(ingress.as_bytes()),
        concealed(event.query().unwrap_or_default()),
    ]
}

/// How many bytes a record of `event` for `target` takes; at the most, if its conversation is not resolved yet.
pub fn size_of_record(event: &Event, target: Option<&str>) -> usize {
    let texts = texts(event, target);
    let size = FRAME + texts.iter().map(|text| text.len()).sum::<usize>() + event.payload().len();
    let Some(call) = event.call() else { return size };
    let keys =
        call.names.iter().flatten().count() * usize::from(call.has_conversation) + call.legs.iter().flatten().count();
    // A NUL in a conversation takes two bytes.
    let longer = if call.has_conversation { 0 } else { (2 * MAX_NAME).saturating_sub(event.conversation().len()) };
    size + KEY * keys + longer
}

/// The text with every NUL as two bytes that no text holds.
fn concealed(text: &str) -> Cow<'_, [u8]> {
    if !text.contains('\0') {
        return Cow::Borrowed(text.as_bytes());
    }
    let bytes = text.bytes().flat_map(|byte| if byte == 0 { NUL.to_vec() } else { vec![byte] });
    Cow::Owned(bytes.collect())
}

/// The text that [`concealed`] was given.
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

/// Appends the stored form of a record to `out`, with its part of the index.
pub fn write_record(record: &Record, indexed: &Indexed, batch: u64, follows: u32, out: &mut Vec<u8>) {
    let event = &record.event;
    let texts = texts(event, record.target.as_deref());
    let start = out.len();
    out.resize(start + FRAME, 0);
    texts.iter().for_each(|text| out.extend_from_slice(text));
    indexed.names.iter().for_each(|name| out.extend(name.0));
    indexed.legs.iter().for_each(|leg| out.extend(leg.0));
    out.extend_from_slice(event.payload().as_bytes());
    let body = out.get(start + FRAME..).unwrap_or_default();
    let [names, legs] = [indexed.names.len(), indexed.legs.len()].map(|count| (KEY * count) as u32);
    let mut frame = Vec::with_capacity(FRAME);
    frame.extend([0; 4]);
    frame.extend([crc32c::crc32c(body), body.len() as u32, follows].map(u32::to_le_bytes).as_flattened());
    frame.extend([record.offset, batch, event.arrival().0, indexed.stored.0].map(u64::to_le_bytes).as_flattened());
    frame.extend(event.id().0);
    frame.extend(texts.map(|text| (text.len() as u32).to_le_bytes()).as_flattened());
    frame.extend([names, legs].map(u32::to_le_bytes).as_flattened());
    let sum = crc32c::crc32c(frame.get(4..).unwrap_or_default());
    frame.splice(..4, sum.to_le_bytes());
    out.iter_mut().skip(start).zip(frame).for_each(|(slot, byte)| *slot = byte);
}

/// The next finding of a [`Scan`].
#[derive(Debug)]
pub enum Found<'a> {
    /// An intact record, with its bytes on disk.
    Record(Frame, &'a [u8]),
    /// Bytes that are no record, in the place of all records below this offset; the frame of the record with this offset follows.
    Damage(u64),
    /// No further record.
    End,
}

/// Reads the records of one segment file in order, a chunk at a time, in a time that grows with the file's size alone.
#[derive(Debug)]
pub struct Scan {
    file: Arc<dyn DiskFile>,
    size: u64,
    buffer: Vec<u8>,
    /// The position of the buffer in the file.
    start: u64,
    /// The next unread byte in the buffer.
    at: usize,
    /// How much is read next.
    chunk: usize,
}

impl Scan {
    /// Reads `file` from its first record on.
    pub fn new(file: Arc<dyn DiskFile>) -> io::Result<Self> {
        Self::from(file, HEADER as u64)
    }

    /// Reads `file` from the record at this position on.
    pub fn from(file: Arc<dyn DiskFile>, position: u64) -> io::Result<Self> {
        let size = file.size()?;
        Ok(Self { file, size, buffer: Vec::new(), start: position, at: 0, chunk: FIRST_CHUNK })
    }

    /// No segment of this size can hold more records than this.
    pub fn most_records(&self) -> u64 {
        self.size / FRAME as u64
    }

    /// The position in the file of the next record.
    pub fn position(&self) -> u64 {
        self.start + self.at as u64
    }

    /// The next record, which has to have the offset `expected`; bytes with offsets of `limit` and above are no records.
    pub fn next(&mut self, expected: u64, limit: u64) -> io::Result<Found<'_>> {
        if expected >= limit {
            return Ok(Found::End);
        }
        let mut frame = self.record(expected)?;
        if frame.is_none() {
            // The buffer may be older than the record: it is no evidence of damage.
            self.go_to(self.position());
            frame = self.record(expected)?;
        }
        let Some(frame) = frame else {
            return Ok(self.seek(expected, limit)?.map_or(Found::End, Found::Damage));
        };
        let from = self.at;
        self.at += frame.size();
        Ok(Found::Record(frame, self.buffer.get(from..self.at).unwrap_or_default()))
    }

    /// Passes the intact records with these offsets to `each`, and returns the offsets of the others.
    pub fn read_all(
        &mut self,
        offsets: Range<u64>,
        mut each: impl FnMut(Frame, &[u8]) -> io::Result<()>,
    ) -> io::Result<Vec<Range<u64>>> {
        let (mut expected, mut lost) = (offsets.start, Vec::new());
        while expected < offsets.end {
            let lost_until = match self.next(expected, offsets.end)? {
                Found::Record(frame, bytes) => {
                    each(frame, bytes)?;
                    expected = frame.offset + 1;
                    continue;
                }
                Found::Damage(next) => next,
                Found::End => offsets.end,
            };
            lost.push(expected..lost_until);
            expected = lost_until;
        }
        Ok(lost)
    }

    /// The frame of the intact record at the position, if it has this offset.
    fn record(&mut self, offset: u64) -> io::Result<Option<Frame>> {
        let Some(frame) = self.frame(&(offset..offset.saturating_add(1)))? else { return Ok(None) };
        let size = frame.size();
        if size as u64 > self.size.saturating_sub(self.position()) || self.fill(size)? < size {
            return Ok(None);
        }
        let body = self.ahead().get(FRAME..size);
        Ok(body.is_some_and(|body| crc32c::crc32c(body) == frame.sum).then_some(frame))
    }

    /// Moves on to the next intact frame with an offset above `expected` and below `limit`; returns its offset.
    fn seek(&mut self, expected: u64, limit: u64) -> io::Result<Option<u64>> {
        let from = self.position();
        let wanted = expected.saturating_add(1)..limit;
        loop {
            self.at += 1;
            if self.fill(FRAME)? < FRAME {
                self.go_to(from);
                return Ok(None);
            }
            // Passing over the zeros of a preallocated file has to be fast.
            let ahead = self.ahead();
            let zeros = ahead.iter().position(|byte| *byte != 0).unwrap_or(ahead.len());
            if zeros > FRAME {
                self.at += zeros - FRAME;
            } else if let Some(frame) = self.frame(&wanted)? {
                return Ok(Some(frame.offset));
            }
        }
    }

    /// The frame at the position, if its offset is one of these.
    fn frame(&mut self, offsets: &Range<u64>) -> io::Result<Option<Frame>> {
        if self.fill(FRAME)? < FRAME {
            return Ok(None);
        }
        let ahead = self.ahead();
        // Most positions have no such offset, which is quicker to see than a wrong checksum.
        let offset = ahead.get(16..).and_then(|bytes| bytes.first_chunk()).map(|raw| u64::from_le_bytes(*raw));
        Ok(if offset.is_some_and(|offset| offsets.contains(&offset)) { Frame::read(ahead) } else { None })
    }

    /// Goes on at another position, or at the same with the file's present content.
    fn go_to(&mut self, position: u64) {
        (self.start, self.at, self.chunk) = (position, 0, FIRST_CHUNK);
        self.buffer.clear();
    }

    /// The bytes in the buffer from the position on.
    fn ahead(&self) -> &[u8] {
        self.buffer.get(self.at..).unwrap_or_default()
    }

    /// Sees to it that `wanted` bytes after the position are in the buffer; returns how many there are.
    fn fill(&mut self, wanted: usize) -> io::Result<usize> {
        if self.ahead().len() < wanted {
            let (position, mut buffer) = (self.position(), vec![0; wanted.max(self.chunk)]);
            let read = self.file.read_at(&mut buffer, position)?;
            buffer.truncate(read);
            (self.buffer, self.start, self.at) = (buffer, position, 0);
            self.chunk = (2 * self.chunk).min(CHUNK);
        }
        Ok(self.ahead().len())
    }
}
