//! Torn tails, flipped bits and lost files: what is gone is told, all the rest is delivered.

use super::*;

/// Where each record of a segment lies in its file.
pub(super) fn layout(machine: &Machine, base: u64, limit: u64) -> Vec<(u64, Range<usize>)> {
    let mut scan = Scan::new(machine.mount().open(&segment::name(base)).unwrap()).unwrap();
    let (mut records, mut expected, mut at) = (Vec::new(), base, scan.position());
    while let Found::Record(frame, _) = scan.next(expected, limit).unwrap() {
        expected = frame.offset + 1;
        let end = at + frame.size() as u64;
        records.push((frame.offset, at as usize..end as usize));
        at = end;
    }
    records
}

/// A spool of these requests, each a group commit, whose process was killed.
fn killed_after(machine: &Machine, requests: &[Vec<Event>]) {
    let mut life = Life::begin(machine, &config(), &["analytics"]).unwrap();
    for request in requests {
        life.store(request.clone()).unwrap();
    }
    machine.kill();
}

/// The same, but nobody was told that the last request is stored.
fn killed_before_the_answer(machine: &Machine, requests: &[Vec<Event>]) {
    let mut life = Life::begin(machine, &config(), &["analytics"]).unwrap();
    let (last, answered) = requests.split_last().unwrap();
    for request in answered {
        life.store(request.clone()).unwrap();
    }
    let acknowledged = machine.bytes(log::ACKNOWLEDGED).unwrap();
    life.store(last.clone()).unwrap();
    machine.kill();
    machine.put(log::ACKNOWLEDGED, &acknowledged);
}

#[test]
fn an_unacknowledged_tail_torn_at_any_byte_costs_the_last_request_alone() {
    let machine = Machine::new(0);
    killed_before_the_answer(&machine, &[events(0..2, 30), events(2..5, 30)]);
    let name = segment::name(0);
    let [whole, acknowledged] = [&name, log::ACKNOWLEDGED].map(|name| machine.bytes(name).unwrap());
    let records = layout(&machine, 0, 5);
    let (begin, end) = (records[2].1.start, records[4].1.end);
    for cut in begin..end {
        let mut torn = whole.clone();
        torn[cut..].fill(0);
        machine.put(&name, &torn);
        machine.put(log::ACKNOWLEDGED, &acknowledged);
        let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
        assert_eq!(life.events_from(0), events(0..2, 30), "torn at {cut}");
        assert_eq!((life.end(), life.damaged_records()), (2, 0));
        life.store(vec![event(9, 30)]).unwrap();
        let mut expected = events(0..2, 30);
        expected.push(event(9, 30));
        assert_eq!(life.events_from(0), expected);
        machine.kill();
        assert_eq!(Life::begin(&machine, &config(), &["analytics"]).unwrap().events_from(0), expected);
        machine.kill();
        machine.take(&segment::name(2));
    }
}

/// The newest file zeroed from any byte on, or cut off there, after all of it was acknowledged.
#[test]
fn an_acknowledged_tail_lost_at_any_byte_is_told_and_kept_aside() {
    let machine = Machine::new(0);
    killed_after(&machine, &[events(0..1, 30), events(1..2, 30), events(2..5, 30)]);
    let files: Vec<_> = machine.files().into_keys().map(|name| (machine.bytes(&name).unwrap(), name)).collect();
    let name = segment::name(0);
    let whole = machine.bytes(&name).unwrap();
    let records = layout(&machine, 0, 5);
    for cut in 0..records[4].1.end {
        for zeroed in [true, false] {
            files.iter().for_each(|(bytes, name)| machine.put(name, bytes));
            let mut damaged = whole.clone();
            damaged[cut..].fill(0);
            if !zeroed {
                damaged.truncate(cut);
            }
            machine.put(&name, &damaged);
            let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
            let left = records.iter().filter(|(_, place)| place.end <= cut).count() as u64;
            assert_eq!(life.events_from(0), events(0..left, 30), "lost from {cut} on");
            assert_eq!((life.end(), life.damaged_records()), (5, 5 - left), "lost from {cut} on");
            life.store(vec![event(9, 30)]).unwrap();
            assert_eq!(life.events_from(left), [event(9, 30)]);
            life.writer.seal();
            life.settle(6);
            let aside = machine.bytes("damaged-00000000000000000000");
            // A file cut off between two records is whole, what is missing behind it is not in it.
            let between = !zeroed && left > 0 && records[left as usize - 1].1.end == cut;
            assert_eq!(aside, (!between).then_some(damaged), "lost from {cut} on");
            machine.kill();
            machine.files().into_keys().for_each(|name| machine.take(&name));
        }
    }
}

#[test]
fn a_flipped_bit_in_the_last_group_commit_costs_one_record_of_a_thousand() {
    for at in [segment::FRAME - 1, segment::FRAME + 20] {
        for hit in [0, 500, 999] {
            let machine = Machine::new(0);
            let large = Config { max_size: ByteSize::mib(8), segment_size: Some(ByteSize::mib(1)), ..config() };
            let mut life = Life::begin(&machine, &large, &["analytics"]).unwrap();
            life.store(events(0..1000, 30)).unwrap();
            machine.kill();
            let places = layout(&machine, 0, 1000);
            machine.flip(&segment::name(0), places[hit].1.start + at, 4);
            let life = Life::begin(&machine, &large, &["analytics"]).unwrap();
            assert_eq!((life.end(), life.damaged_records()), (1000, 1));
            let left: Vec<u64> = (0..1000).filter(|offset| *offset != hit as u64).collect();
            assert_eq!(offsets(&life.read_from(0)), left);
            assert_eq!(life.damaged_records(), 1, "told once");
        }
    }
}

#[test]
fn a_missing_segment_is_told_wherever_it_was() {
    for (missing, lost) in [(vec![0], 0..4), (vec![8], 8..12), (vec![4, 8], 4..12), (vec![0, 4, 8], 0..12)] {
        let machine = Machine::new(0);
        let mut life = Life::begin(&machine, &config(), &["analytics", "billing"]).unwrap();
        for number in 0..12 {
            life.store(vec![event(number, 900)]).unwrap();
        }
        machine.kill();
        missing.iter().for_each(|base| machine.take(&segment::name(*base)));
        let mut life = Life::begin(&machine, &config(), &["analytics", "billing"]).unwrap();
        let left: Vec<u64> = (0..12).filter(|offset| !lost.contains(offset)).collect();
        assert_eq!((life.end(), life.damaged_records()), (12, lost.end - lost.start), "{missing:?}");
        assert_eq!(offsets(&life.read_from(0)), left, "{missing:?}");
        assert_eq!(life.damaged_records(), lost.end - lost.start, "told once");
        life.store(vec![event(20, 10)]).unwrap();
        assert_eq!(life.events_from(12), [event(20, 10)]);
        life.writer.seal();
        life.settle(13);
        assert_eq!(life.start(), 13);
        machine.kill();
        let life = Life::begin(&machine, &config(), &["analytics", "billing", "new"]).unwrap();
        assert_eq!((life.start(), life.end(), life.damaged_records()), (13, 13, 0), "delivered and removed");
    }
}

#[test]
fn damage_in_a_sealed_segment_costs_the_damaged_records_alone() {
    let machine = Machine::new(0);
    let mut life = Life::begin(&machine, &config(), &["analytics", "billing"]).unwrap();
    for number in 0..12 {
        life.store(vec![event(number, 900)]).unwrap();
    }
    machine.kill();
    let places = layout(&machine, 4, 8);
    let name = segment::name(4);
    let whole = machine.bytes(&name).unwrap();
    // Every field of the frame, the conversation, the payload, and both ends.
    for at in (0..80).chain([200, 900]) {
        machine.put(&name, &whole);
        machine.flip(&name, places[1].1.start + at, 0x20);
        let life = Life::begin(&machine, &config(), &["analytics", "billing"]).unwrap();
        let readable: Vec<u64> = (0..12).filter(|offset| *offset != 5).collect();
        assert_eq!(offsets(&life.read_from(0)), readable, "damaged at {at}");
        assert_eq!(offsets(&life.read_from(5)), readable[5..], "damaged at {at}");
        assert_eq!(life.damaged_records(), 1, "told once, whoever reads it");
        machine.kill();
    }
    machine.flip(&name, places[3].1.start, 1);
    machine.flip(&name, places[3].1.end - 1, 1);
    let mut life = Life::begin(&machine, &config(), &["analytics", "billing"]).unwrap();
    assert_eq!(offsets(&life.read_from(0)), [0, 1, 2, 3, 4, 6, 8, 9, 10, 11]);
    assert_eq!(life.damaged_records(), 2);
    life.settle(12);
    let damaged = machine.bytes("damaged-00000000000000000004").unwrap();
    assert!(Some(damaged.len()) == Some(whole.len()) && damaged != whole, "the damaged file is kept aside as it was");
    assert!(!machine.files().keys().any(|name| name.starts_with("segment")));
}

#[test]
fn a_damaged_header_costs_no_record() {
    let machine = Machine::new(0);
    killed_after(&machine, &[events(0..3, 900), events(3..5, 900), events(5..7, 900)]);
    for at in 0..segment::HEADER {
        machine.flip(&segment::name(0), at, 0xff);
        let life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
        assert_eq!(life.events_from(0), events(0..7, 900));
        machine.kill();
        machine.flip(&segment::name(0), at, 0xff);
    }
}

#[test]
fn a_lost_segment_costs_its_own_records_alone() {
    let machine = Machine::new(0);
    let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
    for number in 0..12 {
        life.store(vec![event(number, 900)]).unwrap();
    }
    // Under a running bridge, then before a start.
    machine.take(&segment::name(4));
    assert_eq!(offsets(&life.read_from(0)), [0, 1, 2, 3, 8, 9, 10, 11]);
    assert_eq!(life.damaged_records(), 4);
    machine.kill();
    let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
    assert_eq!(offsets(&life.read_from(0)), [0, 1, 2, 3, 8, 9, 10, 11]);
    assert_eq!(life.damaged_records(), 4);
    life.settle(12);
    assert!(!machine.files().keys().any(|name| name.starts_with("segment")));
}

#[test]
fn damage_before_a_later_group_commit_is_no_torn_tail() {
    let machine = Machine::new(0);
    killed_after(&machine, &[events(0..2, 30), events(2..4, 30), events(4..6, 30)]);
    let places = layout(&machine, 0, 6);
    machine.flip(&segment::name(0), places[2].1.start + 70, 1);
    let life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
    assert_eq!(life.damaged_records(), 1, "told at the start");
    assert_eq!(offsets(&life.read_from(0)), [0, 1, 3, 4, 5]);
    assert_eq!(life.damaged_records(), 1);
    machine.kill();
    let life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
    assert_eq!(offsets(&life.read_from(0)), [0, 1, 3, 4, 5]);
}

#[test]
fn damage_next_to_a_torn_tail_is_told_from_it() {
    let machine = Machine::new(0);
    killed_before_the_answer(&machine, &[events(0..4, 30), events(4..8, 30)]);
    let places = layout(&machine, 0, 8);
    // 2 and 3 were acknowledged; of the request 4 to 7 only the last two reached the disk.
    machine.flip(&segment::name(0), places[2].1.start + 10, 1);
    machine.flip(&segment::name(0), places[3].1.start + 10, 1);
    machine.flip(&segment::name(0), places[4].1.start + 10, 1);
    machine.flip(&segment::name(0), places[5].1.start + 10, 1);
    let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
    assert_eq!((life.end(), life.damaged_records()), (4, 2), "no offset is given twice, no request comes in part");
    life.store(vec![event(9, 30)]).unwrap();
    assert_eq!(offsets(&life.read_from(0)), [0, 1, 4]);
    assert_eq!(life.events_from(4), [event(9, 30)]);
}

#[test]
fn damage_in_the_last_group_commit_is_known_by_what_was_settled() {
    let machine = Machine::new(0);
    let mut life = Life::begin(&machine, &config(), &["analytics", "billing"]).unwrap();
    life.store(events(0..5, 30)).unwrap();
    life.shared.cursors.read()[0].set(4);
    life.maintenance.round(true);
    machine.kill();
    machine.take(log::ACKNOWLEDGED);
    let places = layout(&machine, 0, 5);
    machine.flip(&segment::name(0), places[1].1.start + 60, 1);
    let life = Life::begin(&machine, &config(), &["analytics", "billing"]).unwrap();
    assert_eq!(offsets(&life.read_from(0)), [0, 2, 3, 4]);
    assert_eq!((life.end(), life.damaged_records()), (5, 1));
}

#[test]
fn a_record_inside_of_an_event_is_never_taken_for_one() {
    let machine = Machine::new(0);
    let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
    let mut forged = Vec::new();
    // The conversation is the only part with arbitrary characters; most checksums would not be text, these are made to be.
    let forged = (0u64..).find_map(|number| {
        let payload = format!("event {number}");
        let fake = Event::restore(&payload, EventId([7; 16]), "call", Arrival(number % 128));
        forged.clear();
        let fake = Record { offset: 1, target: None, event: fake };
        segment::write_record(&fake, &Indexed::of(&fake, Arrival(1)), 1, 0, &mut forged);
        String::from_utf8(forged.clone()).ok()
    });
    let carrier = Event::restore("{}", EventId([8; 16]), &format!("x{}", forged.unwrap()), Arrival::now());
    life.store(vec![carrier.clone()]).unwrap();
    life.store(vec![event(1, 30)]).unwrap();
    life.store(vec![event(2, 30)]).unwrap();
    assert_eq!(life.events_from(0), [carrier, event(1, 30), event(2, 30)]);
    machine.kill();
    machine.flip(&segment::name(0), segment::HEADER + 12, 1);
    let life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
    assert_eq!(life.events_from(0), [event(1, 30), event(2, 30)]);
}

#[test]
fn a_lost_or_broken_cursor_means_delivery_again() {
    let machine = Machine::new(0);
    let mut life = Life::begin(&machine, &config(), &["analytics", "billing"]).unwrap();
    life.store(events(0..9, 300)).unwrap();
    life.settle(5);
    machine.kill();
    machine.take("cursor-analytics");
    let positions =
        |life: &Life| -> Vec<u64> { life.shared.cursors.read().iter().map(|cursor| cursor.position()).collect() };
    let life = Life::begin(&machine, &config(), &["analytics", "billing"]).unwrap();
    assert_eq!(positions(&life), [0, 5]);
    assert_eq!(life.events_from(0), events(0..9, 300));
    machine.kill();
    machine.put("cursor-billing", &[0xff; 100]);
    let life = Life::begin(&machine, &config(), &["analytics", "billing"]).unwrap();
    assert_eq!(positions(&life), [0, 0]);
}

#[test]
fn a_torn_cursor_slot_leaves_the_one_before() {
    let machine = Machine::new(0);
    let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
    life.store(events(0..9, 100)).unwrap();
    let mut durable = Vec::new();
    for position in [3, 4, 6] {
        life.settle(position);
        durable.push(machine.bytes("cursor-analytics").unwrap());
    }
    machine.kill();
    // The first thing a new life writes must not go over the best that there is.
    let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
    life.settle(7);
    durable.push(machine.bytes("cursor-analytics").unwrap());
    machine.kill();
    for (earlier, later) in [(0, 1), (1, 2), (2, 3)] {
        // While the later position was written, any number of its bytes had reached the disk.
        let changed: Vec<usize> =
            (0..durable[0].len()).filter(|at| durable[earlier][*at] != durable[later][*at]).collect();
        for count in 0..changed.len() {
            let mut torn = durable[earlier].clone();
            changed[..count].iter().for_each(|at| torn[*at] = durable[later][*at]);
            machine.put("cursor-analytics", &torn);
            let life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
            let position = life.shared.cursors.read()[0].position();
            assert_eq!(position, [3, 4, 6][earlier], "torn after {count} bytes");
            machine.kill();
        }
    }
}

#[test]
fn the_cursor_of_a_sink_that_is_not_configured_keeps_offsets_from_being_reused() {
    let machine = Machine::new(0);
    let mut life = Life::begin(&machine, &config(), &["old"]).unwrap();
    life.store(events(0..5, 30)).unwrap();
    life.writer.seal();
    life.settle(5);
    machine.kill();
    let mut life = Life::begin(&machine, &config(), &["new"]).unwrap();
    life.store(vec![event(9, 30)]).unwrap();
    assert_eq!(offsets(&life.read_from(life.start())), [5]);
    machine.kill();
    let life = Life::begin(&machine, &config(), &["old", "new"]).unwrap();
    assert!(life.shared.cursors.read().iter().all(|cursor| cursor.position() == 5));
}

/// Flips bits anywhere in the segments, and asks for everything that they did not hit.
#[test]
fn whatever_bits_flip_the_rest_is_delivered() {
    for seed in seeds(400) {
        let case = Case(seed);
        let mut random = fastrand::Rng::with_seed(seed);
        let machine = Machine::new(seed);
        let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
        let (mut next, mut commits) = (0, Vec::new());
        for _ in 0..random.u64(1..12) {
            let size = random.usize(0..900);
            let count = random.u64(1..5);
            life.store(events(next..next + count, size)).unwrap();
            commits.push(next..next + count);
            next += count;
        }
        let sent = life.events_from(0);
        machine.kill();
        let bases: Vec<u64> = machine.files().keys().filter_map(|name| segment::base(name)).collect();
        let places: Vec<_> = bases.iter().map(|base| layout(&machine, *base, next)).collect();
        let mut hit = std::collections::HashSet::new();
        let mut flipped = std::collections::HashSet::new();
        for _ in 0..random.u32(1..4) {
            let at = random.usize(0..bases.len());
            let Some((_, last)) = places[at].last() else { continue };
            let (byte, bit) = (random.usize(0..last.end), random.u32(0..8));
            // A bit that is flipped twice is as it was.
            if !flipped.insert((at, byte, bit)) {
                continue;
            }
            machine.flip(&segment::name(bases[at]), byte, 1 << bit);
            hit.extend(places[at].iter().filter(|(_, place)| place.contains(&byte)).map(|(offset, _)| *offset));
        }
        let life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
        let records = life.read_from(0);
        let mut found = records.iter().map(|record| record.offset).peekable();
        for offset in 0..life.end() {
            let delivered = found.next_if_eq(&offset).is_some();
            assert!(delivered || hit.contains(&offset), "{offset} was not damaged and not delivered");
        }
        assert_eq!(found.next(), None, "in order, each once");
        assert!(records.iter().all(|record| sent[record.offset as usize] == record.event), "nothing but what was sent");
        assert_eq!((life.end(), life.damaged_records()), (next, hit.len() as u64), "all that is missing is told");
        drop(case);
    }
}
