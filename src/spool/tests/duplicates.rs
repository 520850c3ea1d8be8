//! Which events are recognised when they are sent again: all that are stored and can be read.

use super::damage::layout;
use super::*;

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

    let few = Config { dedup_capacity: 3, ..config() };
    let mut life = Life::begin(&machine, &few, &["analytics"]).unwrap();
    assert_eq!(life.store(vec![event(23, 300), event(24, 300), event(30, 10)]).unwrap().duplicates, 3);
    assert_eq!(life.store(vec![event(22, 300)]).unwrap().stored, 1, "no more than three are held");
    machine.kill();

    let off = Config { dedup_window: Duration::ZERO, ..config() };
    let mut life = Life::begin(&machine, &off, &["analytics"]).unwrap();
    assert_eq!(life.store(twice), Ok(Appended { stored: 2, duplicates: 0 }));
}

/// Twelve events, the sixth of which cannot be read any more.
fn with_damage(machine: &Machine) -> Life {
    let mut life = Life::begin(machine, &config(), &["analytics"]).unwrap();
    for number in 0..12 {
        life.store(vec![event(number, 900)]).unwrap();
    }
    let places = layout(machine, 4, 8);
    machine.flip(&segment::name(4), places[1].1.start + 70, 1);
    life
}

#[test]
fn what_is_damaged_can_be_mended_by_sending_it_again() {
    let machine = Machine::new(0);
    let mut life = with_damage(&machine);
    assert_eq!(life.store(vec![event(5, 900)]).unwrap().duplicates, 1, "nobody has come upon it yet");
    assert_eq!(offsets(&life.read_from(0)), [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]);
    assert_eq!(life.store(events(4..7, 900)), Ok(Appended { stored: 1, duplicates: 2 }));
    assert_eq!(life.events_from(12), [event(5, 900)]);
    assert_eq!(life.store(events(4..7, 900)), Ok(Appended { stored: 0, duplicates: 3 }));
    let places = layout(&machine, 0, 4);
    machine.flip(&segment::name(0), places[2].1.start + 70, 1);
    life.read_from(0);
    life.settle(12);
    assert_eq!(life.start(), 12, "the damaged ones are out of the way");
    assert_eq!(life.store(events(0..12, 900)), Ok(Appended { stored: 1, duplicates: 11 }));
    machine.kill();
    let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
    assert_eq!(life.store(events(0..12, 900)), Ok(Appended { stored: 0, duplicates: 12 }));
}

#[test]
fn what_is_damaged_is_not_taken_for_known_when_its_segment_has_gone() {
    let machine = Machine::new(0);
    let mut life = with_damage(&machine);
    assert_eq!(life.read_from(0).len(), 11);
    life.settle(12);
    machine.kill();
    let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
    assert_eq!(life.store(events(0..12, 900)), Ok(Appended { stored: 1, duplicates: 11 }));
}

#[test]
fn where_an_event_was_stored_is_known_also_after_a_restart() {
    let machine = Machine::new(0);
    let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
    let place = |life: &mut Life, events: Vec<Event>| {
        let (done, mut answer) = oneshot::channel();
        life.writer.commit(&mut [Append::new(events, Purpose::Webhook, None, done)].into());
        answer.try_recv().unwrap().unwrap()
    };
    assert_eq!(place(&mut life, events(0..12, 900)), Placed { fresh: 0..12, earlier: vec![] });
    let mixed = vec![event(3, 900), event(20, 10), event(20, 10), event(11, 900), event(21, 10)];
    assert_eq!(place(&mut life, mixed.clone()), Placed { fresh: 12..14, earlier: vec![3, 12, 11] });
    machine.kill();
    let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
    assert_eq!(place(&mut life, mixed.clone()), Placed { fresh: 14..14, earlier: vec![3, 12, 12, 11, 13] });
    life.writer.seal();
    life.settle(14);
    assert_eq!(life.start(), 14, "all is delivered and removed");
    machine.kill();
    let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
    let Placed { fresh, earlier } = place(&mut life, mixed);
    assert!(fresh.is_empty() && earlier.len() == 5 && earlier.iter().all(|offset| *offset < 14), "{earlier:?}");
}
