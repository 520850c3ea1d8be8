//! The next segment, whose file is made while the last one fills.

use super::*;
use crate::spool::disk::simulated::Operation;
use crate::spool::spare::Filling;

fn begin(config: &Config) -> (Machine, Life) {
    let machine = Machine::new(0);
    let life = Life::begin(&machine, config, &["analytics"]).unwrap();
    (machine, life)
}

/// As many bytes as the spool says it holds.
fn bytes_on_disk(machine: &Machine) -> u64 {
    let files = machine.files();
    files.iter().filter(|(name, _)| !name.starts_with("cursor-")).map(|(_, size)| *size as u64).sum()
}

#[test]
fn a_roll_takes_the_file_that_is_there_and_leaves_the_last_one_for_later() {
    let (machine, mut life) = begin(&config());
    life.store(events(0..1, 1000)).unwrap();
    life.keeper.round(false);
    assert!(!machine.files().contains_key("spare"), "it is not asked for before half is used");
    life.store(events(1..3, 1000)).unwrap();
    life.keeper.round(false);
    assert_eq!(machine.files().get("spare"), Some(&4096));
    let count = |operation| machine.count(operation);
    let before = [Operation::Create, Operation::Resize, Operation::SyncDirectory, Operation::Sync].map(count);
    life.store(events(3..5, 1000)).unwrap();
    let after = [Operation::Create, Operation::Resize, Operation::SyncDirectory, Operation::Sync].map(count);
    // The header and the records are what is synced.
    assert_eq!(after, [before[0], before[1], before[2] + 1, before[3] + 2]);
    assert!(!machine.files().contains_key("spare"));
    assert_eq!(machine.files()[&segment::name(0)], 4096);
    life.keeper.round(false);
    assert!(machine.files()[&segment::name(0)] < 4096);
    machine.crash();
    let life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
    assert_eq!((life.events_from(0), life.damaged_records()), (events(0..5, 1000), 0));
}

/// The names of files that were segments.
fn former(machine: &Machine) -> Vec<String> {
    machine.files().into_keys().filter(|name| name.starts_with("spare-")).collect()
}

#[test]
fn segments_that_every_sink_has_passed_take_turns() {
    let (machine, mut life) = begin(&Config { duplicate_window: Duration::ZERO, ..config() });
    for number in 0..200 {
        life.store(vec![event(number, 900)]).unwrap();
        life.settle(number);
    }
    assert_eq!((machine.count(Operation::Create), former(&machine).len()), (3, 1), "two segments and a cursor");
    assert_eq!((life.events_from(life.start()), life.end()), (events(life.start()..200, 900), 200));
    // Of a start, what it holds is what its name is worth: nothing.
    machine.kill();
    let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
    assert_eq!((former(&machine), life.damaged_records()), (Vec::new(), 0));
    assert_eq!((life.events_from(life.start()), life.end()), (events(life.start()..200, 900), 200));
    // And what another process has left may hold anything.
    life.settle(200);
    assert!(former(&machine).is_empty());
}

#[test]
fn whenever_the_power_goes_former_records_stay_former() {
    let mut turns = 0;
    for seed in seeds(1000) {
        let case = Case(seed);
        let machine = Machine::new(seed);
        let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
        machine.cut_power_after(20 + seed % 200);
        let (mut stored, mut settled, size) = (0, 0, 700 + seed as usize % 300);
        while life.store(vec![event(stored, size)]).is_ok() {
            stored += 1;
            settled = stored - stored % (1 + seed % 7);
            life.settle(settled);
            turns += former(&machine).len();
            assert!(stored < 200, "the power is still there");
        }
        machine.crash();
        let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
        let (start, end) = (life.start(), life.end());
        assert!(start <= settled && (stored..=stored + 1).contains(&end), "{start}..{end} of {settled}..{stored}");
        assert_eq!(life.events_from(start), events(start..end, size));
        assert_eq!(life.damaged_records(), 0);
        assert!(machine.files().keys().all(|name| !name.starts_with("damaged")));
        life.store(vec![event(1000, 700)]).unwrap();
        assert_eq!(life.events_from(end), [event(1000, 700)]);
        drop(case);
    }
    assert!(turns > 1000, "{turns}");
}

#[test]
fn a_segment_of_which_a_write_has_failed_becomes_no_other() {
    for operation in [Operation::Write, Operation::Sync] {
        for fails in [false, true] {
            let (machine, mut life) = begin(&config());
            life.store(events(0..3, 1120)).unwrap();
            if fails {
                machine.fail(operation, 1);
                // What is in it now has the offset of what comes next.
                life.store(vec![event(3, 200)]).unwrap_err();
                machine.mend();
            }
            life.store(vec![event(4, 900)]).unwrap();
            life.settle(3);
            assert_eq!((former(&machine).is_empty(), life.start()), (fails, 3), "{operation:?}");
        }
    }
}

#[test]
fn a_former_segment_is_no_other_before_it_is_gone_for_good() {
    let (machine, mut life) = begin(&config());
    life.store(events(0..4, 900)).unwrap();
    life.store(events(4..5, 900)).unwrap();
    machine.fail(Operation::SyncDirectory, 1);
    life.settle(4);
    let taken = |life: &Life| life.shared.take_spare(4096).is_some();
    assert_eq!((former(&machine).len(), taken(&life)), (1, false));
    machine.mend();
    life.settle(4);
    assert!(taken(&life));
}

#[test]
fn a_segment_that_is_not_nearly_full_or_of_another_size_or_retained_becomes_no_other() {
    let retain = Some(Retain { age: Duration::ZERO, size: None });
    let cases = [(config(), 900, true), (config(), 1000, false), (Config { retain, ..config() }, 900, false)];
    for (config, size, becomes) in cases {
        let (machine, mut life) = begin(&config);
        let mut seen = false;
        for number in 0..20 {
            life.store(vec![event(number, size)]).unwrap();
            life.settle(number);
            seen |= !former(&machine).is_empty();
        }
        assert_eq!(seen, becomes, "{size} {:?}", config.retain);
    }
    let (machine, mut life) = begin(&config());
    life.store(vec![event(0, 9000)]).unwrap();
    life.store(vec![event(1, 900)]).unwrap();
    life.settle(1);
    assert!(former(&machine).is_empty() && life.start() == 1);
}

#[test]
fn whenever_the_power_goes_nothing_is_lost_and_nothing_is_taken_for_damage() {
    for seed in seeds(300) {
        let case = Case(seed);
        let machine = Machine::new(seed);
        let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
        machine.cut_power_after(seed % 150);
        let mut stored = 0;
        while life.store(vec![event(stored, 700)]).is_ok() {
            stored += 1;
            life.keeper.round(stored % 3 == 0);
            assert!(stored < 100, "the power is still there");
        }
        machine.crash();
        let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
        let found = life.events_from(0);
        assert!(found == events(0..stored, 700) || found == events(0..stored + 1, 700), "{} of {stored}", found.len());
        assert_eq!(life.damaged_records(), 0);
        assert!(!machine.files().contains_key("spare"), "one that was left is of no use");
        life.store(vec![event(1000, 700)]).unwrap();
        drop(case);
    }
}

#[test]
fn what_is_made_ahead_counts_and_takes_no_room_from_records() {
    let fill = |ahead: bool| {
        let (machine, mut life) = begin(&config());
        let mut stored = 0;
        while life.store(vec![event(stored, 900)]).is_ok() {
            stored += 1;
            if ahead {
                life.keeper.round(false);
            }
            let held = life.shared.log().bytes();
            assert!(held <= config().max_size.as_u64() && bytes_on_disk(&machine) <= held, "{held} bytes");
        }
        stored
    };
    let stored = fill(true);
    assert!(stored > 50 && stored == fill(false), "{stored} events");
}

#[test]
fn one_that_cannot_be_made_or_used_is_done_without() {
    for operation in [Operation::Create, Operation::Write, Operation::Sync, Operation::Rename] {
        let (machine, mut life) = begin(&config());
        let mut stored = 0;
        for number in 0..20 {
            stored += u64::from(life.store(vec![event(number, 900)]).is_ok());
            if operation != Operation::Rename {
                machine.fail(operation, 1);
            }
            life.keeper.round(false);
            machine.mend();
            if operation == Operation::Rename {
                machine.fail(operation, 1);
            }
        }
        let refused = if operation == Operation::Rename { 1..6 } else { 0..1 };
        assert!(refused.contains(&(20 - stored)), "{stored} stored although {operation:?} fails");
        assert_eq!((life.events_from(0).len() as u64, life.damaged_records()), (stored, 0));
    }
}

#[test]
fn a_request_that_needs_a_larger_segment_leaves_it_for_the_next() {
    let (machine, mut life) = begin(&config());
    life.store(events(0..3, 900)).unwrap();
    life.keeper.round(false);
    life.store(vec![event(3, 9000)]).unwrap();
    assert!(machine.files().contains_key("spare"));
    life.store(events(4..6, 900)).unwrap();
    assert!(!machine.files().contains_key("spare"));
    assert_eq!(life.end(), 6);
    assert_eq!(life.events_from(4), events(4..6, 900));
}

#[test]
fn one_that_is_of_no_use_makes_room() {
    let (machine, mut life) = begin(&config());
    // Of 64 KiB, 11 segments and half of another, and then one more has been made: 12 KiB are left.
    for number in 0..11 * 4 + 3 {
        life.store(vec![event(number, 900)]).unwrap();
        life.keeper.round(false);
    }
    assert!(machine.files().contains_key("spare"));
    let stored = life.store(vec![event(100, 14_000)]);
    assert_eq!(stored, Ok(Appended { stored: 1, duplicates: 0 }));
    assert!(!machine.files().contains_key("spare"));
    assert!(life.shared.log().bytes() <= config().max_size.as_u64());
}

/// One that takes several steps to fill.
fn large() -> Config {
    Config { max_size: ByteSize::mib(8), segment_size: Some(ByteSize::mib(1)), ..config() }
}

#[test]
fn what_is_urgent_is_done_while_one_is_filled() {
    for urgent in [false, true] {
        let (machine, mut life) = begin(&large());
        life.store(vec![event(0, 900_000)]).unwrap();
        life.keeper.round(true);
        life.store(vec![event(1, 900_000)]).unwrap();
        life.shared.cursors[0].set(1);
        if urgent {
            life.shared.janitor.hurry();
        }
        // This alone removes nothing.
        life.keeper.round(false);
        assert!(machine.files().contains_key("spare"));
        assert_eq!(life.start(), u64::from(urgent));
    }
}

#[test]
fn who_stops_does_not_wait_for_one() {
    let (machine, mut life) = begin(&large());
    life.store(vec![event(0, 900_000)]).unwrap();
    life.shared.janitor.close();
    let before = machine.count(Operation::Write);
    life.keeper.round(true);
    assert!(machine.count(Operation::Write) - before < 4, "it is not filled");
    assert!(!machine.files().contains_key("spare"));
    life.store(vec![event(1, 900_000)]).unwrap();
    assert_eq!(life.events_from(0).len(), 2);
}

#[test]
fn the_last_room_is_the_writers() {
    let (machine, mut life) = begin(&config());
    let filling = Filling::begin(&*machine.mount(), config().segment_size()).unwrap();
    let Ok(spare) = filling.step().unwrap() else { panic!("it takes one step") };
    let mut stored = 0;
    while life.store(vec![event(stored, 900)]).is_ok() {
        stored += 1;
    }
    life.shared.offer(spare);
    assert!(!machine.files().contains_key("spare"));
    assert!(life.shared.log().bytes() <= config().max_size.as_u64());
    life.settle(stored);
    life.store(vec![event(stored, 900)]).unwrap();
}

#[tokio::test]
async fn an_orderly_end_leaves_none() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let spool =
        Spool::open(&Config { path: path.into(), ..config() }, &["analytics"], SpoolMetrics::default()).unwrap();
    spool.append(events(0..3, 900)).await.unwrap();
    let spare = path.join("spare");
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while !spare.exists() {
        assert!(std::time::Instant::now() < deadline, "none is made");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    spool.close();
    assert!(!spare.exists());
}
