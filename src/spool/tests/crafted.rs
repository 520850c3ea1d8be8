//! Files made up by somebody who wants reading them to take for ever: it takes a time that grows with their size alone, and gives what is
//! intact.

use super::*;
use crate::spool::disk::DiskFile;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

const SIZE: usize = 1 << 20;
/// How many times the size of a file may be read in all. It is thousands of times if whatever claims to be a record is read whole.
const TIMES: u64 = 300;

/// A file that counts the bytes that are read.
#[derive(Debug)]
struct Counted(Box<dyn DiskFile>, Arc<AtomicU64>);

impl DiskFile for Counted {
    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let count = self.0.read_at(buffer, at)?;
        self.1.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
    fn write_at(&self, _bytes: &[u8], _at: u64) -> io::Result<()> {
        unreachable!()
    }
    fn resize(&self, _size: u64) -> io::Result<()> {
        unreachable!()
    }
    fn sync(&self) -> io::Result<()> {
        unreachable!()
    }
}

/// The offsets of the intact records, and how many bytes were read to find them.
fn read_counting(bytes: &[u8], base: u64) -> (Vec<u64>, u64) {
    let machine = Machine::new(0);
    machine.put("file", bytes);
    let count = Arc::new(AtomicU64::new(0));
    let mut scan = Scan::new(Box::new(Counted(machine.mount().open("file").unwrap(), count.clone()))).unwrap();
    let (mut found, mut expected) = (Vec::new(), base);
    loop {
        expected = match scan.next(expected, u64::MAX).unwrap() {
            Found::Record(frame, _) => {
                found.push(frame.offset);
                frame.offset + 1
            }
            Found::Damage(frame) => frame.offset,
            Found::End => break,
        };
    }
    (found, count.load(Ordering::Relaxed))
}

fn stored(offset: u64, batch: u64, size: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    segment::write_record(&Record { offset, target: None, event: event(offset, size) }, batch, 0, &mut bytes);
    bytes
}

/// The fixed part of a record that claims to have a body of this length.
fn claim(offset: u64, body: usize) -> Vec<u8> {
    let mut bytes = stored(offset, 0, 0)[..segment::FRAME].to_vec();
    bytes[4..8].copy_from_slice(&(body as u32).to_le_bytes());
    bytes
}

#[test]
fn claims_every_eight_bytes_are_not_all_believed() {
    for claimed in [100, SIZE / 100, SIZE / 2] {
        let unit = ((claimed as u64) << 32 | 1).to_le_bytes();
        let base = u64::from_le_bytes(unit) - 1;
        let mut bytes = segment::header(base).to_vec();
        bytes.extend(unit.repeat(SIZE / unit.len()));
        // One that is as large as they claim, and one that is not.
        bytes.extend(stored(base + 2, base, claimed));
        bytes.extend(stored(base + 3, base, 10));
        let (found, read) = read_counting(&bytes, base);
        println!("claims of {claimed} bytes: {} times the file read", read / bytes.len() as u64);
        assert_eq!(found, [base + 2, base + 3]);
        assert!(read < TIMES * bytes.len() as u64, "{read} bytes read of {}", bytes.len());
    }
}

#[test]
fn claims_between_records_are_not_all_believed() {
    let (mut bytes, mut offset) = (segment::header(0).to_vec(), 0);
    while bytes.len() < SIZE {
        bytes.extend(stored(offset, 0, 0));
        bytes.extend(claim(offset + 1, SIZE / 2));
        offset += 2;
    }
    bytes.resize(2 * SIZE, 7);
    let (found, read) = read_counting(&bytes, 0);
    println!("{} times the file read", read / bytes.len() as u64);
    assert!(found.into_iter().eq((0..offset).step_by(2)));
    assert!(read < TIMES * bytes.len() as u64, "{read} bytes read of {}", bytes.len());
}

/// A file in which every other record is damaged, all of them written by one group commit.
fn every_other_damaged(count: u64) -> Vec<u8> {
    let mut bytes = segment::header(0).to_vec();
    for offset in 0..count {
        let mut record = stored(offset, 0, 0);
        record[0] ^= (offset % 2) as u8;
        bytes.extend(record);
    }
    bytes
}

#[test]
fn a_damaged_record_costs_no_more_than_what_is_around_it() {
    let bytes = every_other_damaged(10_001);
    let (found, read) = read_counting(&bytes, 0);
    println!("{} times the file read", read / bytes.len() as u64);
    assert!(found.into_iter().eq((0..10_001).step_by(2)));
    assert!(read < TIMES * bytes.len() as u64, "{read} bytes read of {}", bytes.len());
}

/// What is kept of each is not looked through for the next.
#[test]
fn fifty_thousand_damaged_records_are_told_in_time() {
    const RECORDS: u64 = 100_000;
    let machine = Machine::new(0);
    let mut bytes = every_other_damaged(RECORDS);
    bytes.extend(stored(RECORDS, RECORDS, 0));
    machine.put(&segment::name(0), &bytes);
    let begun = Instant::now();
    let config = Config { max_size: ByteSize::mib(64), duplicate_window: Duration::ZERO, ..config() };
    let life = Life::begin(&machine, &config, &["analytics"]).unwrap();
    assert_eq!((life.end(), life.damaged_records()), (RECORDS + 1, RECORDS / 2));
    assert!(offsets(&life.read_from(0)).into_iter().eq((0..=RECORDS).step_by(2)));
    assert_eq!(life.damaged_records(), RECORDS / 2, "told once");
    println!("{:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
}
