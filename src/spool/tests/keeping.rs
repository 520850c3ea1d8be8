//! What is kept, for how long, and where it is found again.

use super::*;
use crate::spool::disk::simulated::Operation;
use std::time::Instant;

#[test]
fn duplicates_are_recognised_across_a_restart() {
    let machine = Machine::new(0);
    let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
    for number in 0..20 {
        life.store(vec![event(number, 900)]).unwrap();
    }
    assert_eq!(life.store(events(0..20, 900)), Ok(Appended { stored: 0, duplicates: 20 }));
    machine.crash();
    let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
    assert_eq!(life.store(events(15..25, 300)), Ok(Appended { stored: 5, duplicates: 5 }));
    let twice = vec![event(30, 10), event(30, 10)];
    assert_eq!(life.store(twice.clone()), Ok(Appended { stored: 1, duplicates: 1 }));
    machine.kill();

    let few = Config { duplicate_capacity: 3, ..config() };
    let mut life = Life::begin(&machine, &few, &["analytics"]).unwrap();
    assert_eq!(life.store(vec![event(23, 300), event(24, 300), event(30, 10)]).unwrap().duplicates, 3);
    assert_eq!(life.store(vec![event(22, 300)]).unwrap().stored, 1, "no more than three are held");
    machine.kill();

    let off = Config { duplicate_window: Duration::ZERO, ..config() };
    let mut life = Life::begin(&machine, &off, &["analytics"]).unwrap();
    assert_eq!(life.store(twice), Ok(Appended { stored: 2, duplicates: 0 }));
}

#[test]
fn a_start_reads_the_end_of_a_backlog_and_not_all_of_it() {
    let machine = Machine::new(0);
    let config = Config { max_size: ByteSize::mib(1), duplicate_capacity: 10, ..config() };
    let mut life = Life::begin(&machine, &config, &["analytics"]).unwrap();
    for number in 0..800 {
        life.store(vec![event(number, 900)]).unwrap();
    }
    machine.kill();
    let before = machine.count(Operation::Read);
    let life = Life::begin(&machine, &config, &["analytics"]).unwrap();
    let segments = life.shared.log().segments.len() as u64;
    let reads = machine.count(Operation::Read) - before;
    assert!(segments == 200 && reads <= 3 * segments + 50, "{reads} reads for {segments} segments");
}

#[test]
fn memory_and_disk_give_the_same_records() {
    let machine = Machine::new(0);
    let config = Config { memory: ByteSize::kib(6), ..config() };
    let mut life = Life::begin(&machine, &config, &["analytics"]).unwrap();
    for number in 0..12 {
        life.store(events(number * 3..number * 3 + 3, 200)).unwrap();
    }
    let remembered = life.shared.log().tail.first().unwrap();
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
    life.shared.cursors[0].set(12);
    life.keeper.round(true);
    assert_eq!(life.start(), 0);
    life.shared.cursors[1].set(7);
    life.keeper.round(false);
    assert_eq!(life.start(), 0, "a position that may be lost removes nothing");
    machine.fail(Operation::Sync, 1);
    life.keeper.round(true);
    assert_eq!(life.start(), 0);
    life.keeper.round(true);
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
fn the_space_of_a_segment_is_given_back_a_part_at_a_time_once_it_is_gone_for_good() {
    for retained in [false, true] {
        let machine = Machine::new(0);
        let retain = retained.then_some(Retain { age: Duration::ZERO, size: None });
        let large = Config { max_size: ByteSize::mib(8), segment_size: Some(ByteSize::mib(1)), retain, ..config() };
        let large = Config { duplicate_window: Duration::ZERO, ..large };
        let mut life = Life::begin(&machine, &large, &["analytics"]).unwrap();
        for number in 0..2 {
            life.store(vec![event(number, 700_000)]).unwrap();
            life.keeper.round(false);
        }
        let resized = machine.count(Operation::Resize);
        machine.fail(Operation::SyncDirectory, 1);
        life.settle(1);
        assert_eq!((life.start(), machine.count(Operation::Resize) - resized), (1, 0), "its name may come back");
        machine.mend();
        life.settle(1);
        // A reader from before, who replays what was retained, can go on.
        let steps = if retained { 0 } else { 3 };
        assert_eq!(machine.count(Operation::Resize) - resized, steps);
    }
}

#[test]
fn a_reader_that_was_overtaken_takes_nothing_for_damage() {
    // Full segments become others, the rest is given back.
    for size in [900, 9_000] {
        let machine = Machine::new(0);
        let larger = Config { max_size: ByteSize::mib(1), segment_size: Some(ByteSize::kib(32)), ..config() };
        let mut life = Life::begin(&machine, &larger, &["analytics"]).unwrap();
        let store = |life: &mut Life, numbers: Range<u64>| {
            for number in numbers {
                life.store(vec![event(number, size)]).unwrap();
                life.keeper.round(false);
            }
        };
        store(&mut life, 0..100);
        let mut disk = life.reader(0).on_disk();
        assert_eq!(offsets(&disk.read(1).unwrap()), [0]);
        life.settle(100);
        store(&mut life, 100..200);
        while !disk.read(1_000).unwrap().is_empty() {}
        // What it comes upon that was in the midst of it.
        life.shared.lose(0, 20..21);
        assert_eq!((life.damaged_records(), life.shared.is_gone(20)), (0, false), "{size}");
        assert_eq!(offsets(&life.read_from(100)), (100..200).collect::<Vec<_>>());
    }
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
        assert_eq!(life.shared.cursors[1].position(), 5, "seed {seed}");
    }
}

#[test]
fn a_keeper_in_trouble_cannot_be_hurried() {
    let janitor = Janitor::default();
    janitor.hurry();
    let begun = Instant::now();
    assert!(!janitor.wait(Duration::from_secs(3600), true));
    janitor.hurry();
    assert!(!janitor.wait(Duration::from_millis(30), false));
    assert!(begun.elapsed() >= Duration::from_millis(30));
    janitor.close();
    assert!(janitor.wait(Duration::from_secs(3600), false));
}
