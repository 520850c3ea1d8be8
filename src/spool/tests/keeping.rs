//! What is kept, for how long, and where it is found again.

use super::*;
use crate::spool::disk::simulated::Operation;

#[test]
fn a_start_reads_the_end_of_a_backlog_and_not_all_of_it() {
    let off = Duration::ZERO;
    let hour = Duration::from_secs(3600);
    for (names_window, kept, segments_read) in [(off, false, 3), (hour, true, 4), (hour, false, 200)] {
        let machine = Machine::new(0);
        let config =
            Config { max_size: ByteSize::mib(1), dedup_capacity: 10, names_window, legs_window: off, ..config() };
        let mut life = Life::begin(&machine, &config, &["analytics"]).unwrap();
        for number in 0..800 {
            life.store(vec![event(number, 900)]).unwrap();
            if kept {
                life.maintenance.round(false);
            }
        }
        machine.kill();
        let before = machine.count(Operation::Read);
        let life = Life::begin(&machine, &config, &["analytics"]).unwrap();
        let segments = life.shared.log.status().segments as u64;
        let reads = machine.count(Operation::Read) - before;
        // Three to list each, and three more for each that is read.
        let most = 3 * (segments + segments_read) + 50;
        assert!(segments == 200 && reads <= most, "{reads} reads for {segments} segments with {names_window:?} {kept}");
    }
}

#[test]
fn memory_and_disk_give_the_same_records() {
    let machine = Machine::new(0);
    let config = Config { read_cache: ByteSize::kib(6), ..config() };
    let mut life = Life::begin(&machine, &config, &["analytics"]).unwrap();
    for number in 0..12 {
        life.store(events(number * 3..number * 3 + 3, 200)).unwrap();
    }
    let remembered = (0..36).find(|offset| !life.shared.log.cached(*offset, 0).is_empty()).unwrap();
    assert!((1..35).contains(&remembered), "part of it is in memory, from {remembered} on");
    let from_disk = |mut reader: Reader| {
        let mut records = Vec::new();
        while reader.position() < 36 {
            read_from_disk(&mut reader, 700).unwrap();
            records.extend(reader.hand_out(usize::MAX));
        }
        records
    };
    assert_eq!(from_disk(life.reader(0)), life.read_from(0));
    assert_eq!(life.events_from(0), events(0..36, 200));
}

#[test]
fn a_reader_that_pauses_in_a_segment_sees_what_was_written_meanwhile() {
    let machine = Machine::new(0);
    let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
    life.store(events(0..4, 50)).unwrap();
    let mut reader = life.reader(0);
    let mut records = read(&mut reader, 1).unwrap();
    assert_eq!(records.len(), 1, "the others are in its buffer, and behind them zeros");
    life.store(events(4..8, 50)).unwrap();
    while reader.position() < 8 {
        records.extend(read(&mut reader, 1).unwrap());
    }
    let found: Vec<Event> = records.iter().map(|record| record.event.clone()).collect();
    assert_eq!((found, life.damaged_records()), (events(0..8, 50), 0));
}

#[test]
fn a_segment_goes_when_the_last_sink_has_durably_passed_it() {
    let machine = Machine::new(0);
    let mut life = Life::begin(&machine, &config(), &["fast", "slow"]).unwrap();
    for number in 0..12 {
        life.store(vec![event(number, 900)]).unwrap();
    }
    life.shared.cursors.read()[0].set(12);
    life.maintenance.round(true);
    assert_eq!(life.start(), 0);
    life.shared.cursors.read()[1].set(7);
    life.maintenance.round(false);
    assert_eq!(life.start(), 0, "a position that may be lost removes nothing");
    machine.fail(Operation::Sync, 1);
    life.maintenance.round(true);
    assert_eq!(life.start(), 0);
    life.maintenance.round(true);
    assert_eq!(life.start(), 4);
    machine.fail(Operation::Remove, 1);
    life.settle(12);
    life.settle(12);
    assert_eq!(life.start(), 8, "the segment that is written to stays");
    let mut late = life.reader(2);
    assert_eq!(read(&mut late, 10_000).unwrap().len(), 4, "a reader from before goes on with what there is");
    life.writer.seal();
    life.settle(12);
    let mut late = life.reader(2);
    assert_eq!((read(&mut late, 10_000).unwrap().len(), late.position()), (0, 12));
    assert_eq!(life.damaged_records(), 0);
}

#[test]
fn a_reader_that_was_overtaken_takes_nothing_for_damage() {
    let machine = Machine::new(0);
    let larger = Config { max_size: ByteSize::mib(1), segment_size: Some(ByteSize::kib(32)), ..config() };
    let mut life = Life::begin(&machine, &larger, &["analytics"]).unwrap();
    let store = |life: &mut Life, numbers: Range<u64>| {
        for number in numbers {
            life.store(vec![event(number, 900)]).unwrap();
            life.maintenance.round(false);
        }
    };
    store(&mut life, 0..100);
    let mut disk = life.reader(0).disk_reader();
    assert_eq!(offsets(&disk.read(1).unwrap()), [0]);
    life.settle(100);
    store(&mut life, 100..200);
    while !disk.read(1_000).unwrap().is_empty() {}
    // A range that it comes upon where a segment was.
    life.shared.lose(0, 20..21);
    assert_eq!((life.damaged_records(), life.shared.log.is_lost(20)), (0, false));
    assert_eq!(offsets(&life.read_from(100)), (100..200).collect::<Vec<_>>());
}

#[test]
fn the_next_segment_is_preallocated_counts_and_takes_no_room_from_records() {
    let fill = |ahead: bool| {
        let machine = Machine::new(0);
        let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
        let (mut stored, mut preallocated) = (0, 0);
        while life.store(vec![event(stored, 900)]).is_ok() {
            stored += 1;
            if ahead {
                life.maintenance.round(false);
            }
            let held = life.shared.log.status().bytes;
            let files = machine.files();
            let on_disk = files.iter().filter(|(name, _)| name.starts_with("segment") || *name == "preallocated");
            let on_disk: usize = on_disk.map(|(_, size)| size).sum();
            assert!(held <= config().max_size.as_u64() && on_disk as u64 <= held, "{on_disk} of {held} bytes");
            preallocated += u64::from(files.contains_key("preallocated"));
        }
        (stored, preallocated > 0)
    };
    assert_eq!(fill(false), (64, false));
    assert_eq!(fill(true), (64, true));
}

#[test]
fn a_roll_takes_the_preallocated_segment_and_a_failure_to_make_one_costs_nothing() {
    for failing in [None, Some(Operation::Create), Some(Operation::Write), Some(Operation::Sync)] {
        let machine = Machine::new(0);
        let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
        life.store(events(0..3, 900)).unwrap();
        failing.into_iter().for_each(|operation| machine.fail(operation, 1));
        life.maintenance.round(false);
        machine.mend();
        assert_eq!(life.shared.log.is_preallocated(), failing.is_none(), "{failing:?}");
        let created = machine.count(Operation::Create);
        life.store(events(3..6, 900)).unwrap();
        assert_eq!(machine.count(Operation::Create) - created, u64::from(failing.is_some()));
        assert!(!machine.files().contains_key("preallocated"));
        machine.crash();
        let life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
        assert_eq!((life.events_from(0), life.damaged_records()), (events(0..6, 900), 0));
    }
}

#[test]
fn a_large_segment_that_cannot_begin_leaves_the_preallocated_one() {
    let machine = Machine::new(0);
    let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
    life.store(events(0..3, 900)).unwrap();
    life.maintenance.round(false);
    assert!(life.shared.log.is_preallocated());
    machine.fail(Operation::Create, 1);
    life.store(vec![event(3, 9000)]).unwrap_err();
    life.store(events(3..6, 900)).unwrap();
}

#[test]
fn the_position_of_a_new_sink_survives_a_power_cut() {
    for seed in 0..50 {
        let machine = Machine::new(seed);
        Life::begin(&machine, &config(), &["analytics"]).unwrap().store(events(0..9, 100)).unwrap();
        machine.kill();
        let mut life = Life::begin(&machine, &config(), &["analytics", "billing"]).unwrap();
        life.settle(5);
        machine.crash();
        let life = Life::begin(&machine, &config(), &["analytics", "billing"]).unwrap();
        assert_eq!(life.shared.cursors.read()[1].position(), 5, "seed {seed}");
    }
}
