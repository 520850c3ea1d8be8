//! The bytes of a segment file.

use super::input::Input;
use super::memory_disk::MemoryFile;
use cdrelay::event::{Arrival, Event, EventId};
use cdrelay::spool::segment::{self, FRAME, Found, HEADER, Scan};
use cdrelay::spool::{Indexed, Record};
use std::sync::Arc;

/// One byte says where the segment begins and which of its records come before the limit, the rest is what stands behind its header.
pub fn segment(data: &[u8]) {
    let mut input = Input(data);
    let choice = input.byte();
    let (base, readable) = (u64::from(choice & 7), u64::from(choice >> 3));
    let mut bytes = segment::header(base).to_vec();
    bytes.extend_from_slice(input.0);
    read(&bytes, base, base + readable);
    // What stands behind anything else is found. The bytes of a record that is lost lie in between.
    let last = read(&bytes, base, u64::MAX).last().copied().unwrap_or(base);
    if let Some(next) = last.checked_add(2).filter(|next| *next < u64::MAX) {
        bytes.resize(bytes.len() + FRAME, 0);
        let record = a_record(next, input.0);
        segment::write_record(&record, &Indexed::of(&record, Arrival(1)), next, 0, &mut bytes);
        assert_eq!(read(&bytes, base, next + 1).last(), Some(&next));
    }
    whatever_stands_at_the_front(input.0, base);
}

/// The offsets of the intact records.
fn read(bytes: &[u8], base: u64, limit: u64) -> Vec<u64> {
    let mut scan = Scan::new(Arc::new(MemoryFile::new(bytes))).expect("it can be read");
    let (mut expected, mut at, mut offsets) = (base, HEADER as u64, Vec::new());
    loop {
        let position = match scan.next(expected, limit).expect("it can be read") {
            Found::Record(frame, stored) => {
                let (sum, covered) = stored.split_first_chunk().expect("a record begins with its checksum");
                let covered = covered.get(..FRAME - 4).expect("the frame is there");
                assert_eq!(u32::from_le_bytes(*sum), crc32c::crc32c(covered));
                assert!((base..limit).contains(&frame.offset) && frame.offset == expected && frame.batch <= expected);
                if let Some(record) = frame.record(stored) {
                    assert_eq!((record.offset, record.event.id()), (frame.offset, frame.id));
                    comes_back(&record, frame.batch, frame.follows);
                }
                offsets.push(frame.offset);
                expected += 1;
                at + frame.size() as u64
            }
            Found::Damage(next) => {
                assert!(next > expected && next <= limit);
                expected = next;
                scan.position()
            }
            Found::End => break,
        };
        assert!(position >= at && position <= bytes.len() as u64, "{position} of {}", bytes.len());
        assert!(offsets.len() as u64 <= scan.most_records());
        at = position;
    }
    offsets
}

/// A record that is written is read as the same one.
fn comes_back(record: &Record, batch: u64, follows: u32) {
    let mut stored = Vec::new();
    segment::write_record(record, &Indexed::of(record, Arrival(1)), batch, follows, &mut stored);
    assert_eq!(stored.len(), segment::size_of_record(&record.event, record.target.as_deref()));
    let file = MemoryFile::new(&[&segment::header(0)[..], &stored].concat());
    let mut scan = Scan::new(Arc::new(file)).expect("it can be read");
    let Ok(Found::Record(frame, stored)) = scan.next(record.offset, record.offset + 1) else { panic!("{record:?}") };
    assert_eq!((frame.batch, frame.follows), (batch, follows));
    assert_eq!(frame.record(stored).as_ref(), Some(record));
}

/// A record of any text, for any sink, by any route.
fn a_record(offset: u64, text: &[u8]) -> Record {
    let text = String::from_utf8_lossy(text.get(..text.len().min(300)).unwrap_or_default());
    let mut parts = text.splitn(4, '\n').map(str::to_owned);
    let mut part = || parts.next().filter(|part| !part.is_empty());
    let (conversation, target, route) = (part().unwrap_or("c".into()), part(), part());
    let payload = part().unwrap_or("{}".into());
    let event = Event::restore(&payload, EventId([7; 16]), &conversation, Arrival(1));
    Record { offset, target: target.map(Into::into), event: event.by(route.map(Into::into)) }
}

fn whatever_stands_at_the_front(bytes: &[u8], base: u64) {
    let intact = segment::check_header(bytes, base);
    assert!(!intact.is_ok_and(|intact| intact) || bytes.starts_with(&segment::header(base)));
    let _ = segment::begun(bytes);
    if let Ok(name) = std::str::from_utf8(bytes)
        && let Some(base) = segment::base(name)
    {
        assert_eq!(segment::name(base), name);
    }
}
