//! The format of version 3, as it was first written.

use super::*;
use crate::event::CallName;

const SEGMENTS: [&str; 2] = ["segment-00000000000000000000", "segment-00000000000000000004"];

/// When the fixture was written.
const THEN: Arrival = Arrival(1_634_721_100_000);

/// The events whose conversation is resolved as they are stored: the second one's is that of the first.
const CALL: [&str; 2] = [
    r#"{"type":"event","app_id":7,"conversation_uuid":"A","cmiuuid":"A","call_id":"K"}"#,
    r#"{"type":"cdr","appid":7,"cmiuuid":"B","call_id":"K","from":1,"to":2,"time":1634721099}"#,
];

fn call() -> [Event; 2] {
    CALL.map(|payload| Event::parse(payload, 9, THEN).unwrap())
}

/// What the fixture holds. Its four requests were `[0, 1]`, `[2, 3]` and, after a roll, `[4, 5, 6]` and `[7, 8]`; the sink `analytics`
/// had settled three records.
fn fixed() -> Vec<Event> {
    let texts = [
        ("call-1", r#"{"type":"cdr","conversation_uuid":"call-1","team":"sales","duration":63}"#),
        ("call-2", r#"{ "type" : "live", "conversation_uuid":"call-2", "team": null }"#),
        ("அழைப்பு", r#"{"conversation_uuid":"அழைப்பு","team":"விற்பனை"}"#),
        ("a\0b", r#"{"conversation_uuid":"a\u0000b","n":12345678901234567890.10}"#),
        ("call-1", r#"{"conversation_uuid":"call-1","n":1,"n":2}"#),
        ("call-2", "{}"),
        ("\0", r#"{"conversation_uuid":"\u0000"}"#),
    ];
    let event = |(number, (conversation, payload)): (u8, (&str, &'static str))| {
        let arrival = Arrival(1_634_721_099_442 + u64::from(number));
        let event = Event::restore(payload, EventId([number + 1; 16]), conversation, arrival);
        match number {
            4 => event.by(Some("east".into())),
            5 => event.with_query(Some("team=Sales%20%26%20Co&a".into())),
            _ => event,
        }
    };
    (0..).zip(texts).map(event).chain(call().map(|event| event.resolved(Some("A".into())))).collect()
}

fn write(machine: &Machine) {
    let config = Config { dedup_window: Duration::ZERO, ..config() };
    let mut life = Life::begin_at(THEN, machine, &config, &["analytics"]).unwrap();
    let events = fixed();
    life.store(events[..2].to_vec()).unwrap();
    life.store(events[2..4].to_vec()).unwrap();
    life.writer.seal();
    life.store(events[4..7].to_vec()).unwrap();
    life.store(call().to_vec()).unwrap();
    life.writer.seal();
    life.settle(3);
}

/// The files of the fixture, in the order of their names.
fn fixture() -> Vec<(&'static str, Vec<u8>)> {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/spool-v3");
    let read = |name: &'static str| (name, std::fs::read(directory.join(name)).unwrap());
    ["acknowledged", "cursor-analytics", "removed"].into_iter().chain(SEGMENTS).map(read).collect()
}

#[test]
fn a_spool_of_version_3_is_read() {
    let machine = Machine::new(0);
    fixture().iter().for_each(|(name, bytes)| machine.put(name, bytes));
    let mut life = Life::begin(&machine, &config(), &["analytics", "new"]).unwrap();
    assert_eq!(life.events_from(0), fixed());
    let positions: Vec<u64> = life.shared.cursors.read().iter().map(|cursor| cursor.position()).collect();
    assert_eq!(positions, [3, 0]);
    assert_eq!((life.start(), life.end(), life.damaged_records()), (0, 9, 0));
    assert_eq!(life.store(vec![event(1, 10)]), Ok(Appended { stored: 1, duplicates: 0 }));

    let machine = Machine::new(0);
    fixture().iter().for_each(|(name, bytes)| machine.put(name, bytes));
    let mut life = Life::begin_at(THEN, &machine, &config(), &["analytics"]).unwrap();
    let legs: Vec<_> = call()[1].legs().collect();
    assert_eq!(legs.len(), 2);
    assert!(legs.iter().all(|leg| life.shared.index.lock().leg(leg, THEN) == Some(8)));
    assert_eq!(life.store(call().to_vec()), Ok(Appended { stored: 0, duplicates: 2 }));
    let by_name = Event::parse(r#"{"appid":7,"cmiuuid":"A"}"#, 9, THEN).unwrap();
    life.store(vec![by_name]).unwrap();
    assert_eq!(life.events_from(life.end() - 1)[0].conversation(), "A");
}

/// Compares a new spool byte for byte with one written by an earlier build of the same format version.
///
/// `CDRELAY_WRITE_FIXTURE` names a directory to write the files to, for the first fixture of a new version.
#[test]
fn version_3_is_still_written_as_it_was() {
    let machine = Machine::new(0);
    write(&machine);
    if let Ok(directory) = std::env::var("CDRELAY_WRITE_FIXTURE") {
        for name in machine.files().keys() {
            std::fs::write(std::path::Path::new(&directory).join(name), machine.bytes(name).unwrap()).unwrap();
        }
    }
    for (name, bytes) in fixture() {
        assert!(machine.bytes(name).as_ref() == Some(&bytes), "{name} has changed");
    }
}

/// The bytes behind the frame are conversation, target, ingress, query, names, legs and payload.
#[test]
fn every_part_of_a_record_comes_back_and_none_passes_for_another() {
    let texts = [None, Some("kafka"), Some("a\0b"), Some("\0")];
    for target in [None, Some("kafka")] {
        for ingress in [None, Some("east")] {
            for (query, conversation) in texts.iter().zip(["c", "a\0b", "\0", "call"]) {
                let event = Event::restore("{}", EventId([9; 16]), conversation, Arrival(5));
                let event = event.by(ingress.map(Into::into)).with_query(query.map(Into::into));
                let record = Record { offset: 7, target: target.map(Into::into), event };
                let mut bytes = Vec::new();
                let indexed = Indexed {
                    names: vec![CallName([1; 16]), CallName([0xC0; 16])],
                    legs: vec![LegKey([2; 16])],
                    ..Indexed::of(&record, Arrival(6))
                };
                segment::write_record(&record, &indexed, 7, 0, &mut bytes);
                assert_eq!(bytes.len(), segment::size_of_record(&record.event, target) + 3 * 16);
                assert!(!bytes[segment::FRAME..].contains(&0), "offsets have a zero byte, bodies have none");

                let machine = Machine::new(0);
                machine.put(&segment::name(7), &[segment::header(7).to_vec(), bytes].concat());
                let mut scan = Scan::new(machine.mount().open(&segment::name(7)).unwrap()).unwrap();
                let Found::Record(frame, bytes) = scan.next(7, 8).unwrap() else { panic!("no record") };
                assert_eq!(frame.indexed(bytes), Some(indexed));
                assert_eq!(frame.record(bytes), Some(record));
            }
        }
    }
}

#[test]
fn another_version_is_refused_and_left_alone() {
    let cases = [
        (2, "let the older cdrelay that wrote it deliver what it holds, or move the spool aside"),
        (4, "start the newer cdrelay that wrote it"),
    ];
    for (version, advice) in cases {
        let machine = Machine::new(0);
        let mut other = segment::header(4);
        other[8..12].copy_from_slice(&u32::to_le_bytes(version));
        let sum = crc32c::crc32c(&other[..24]);
        other[24..28].copy_from_slice(&sum.to_le_bytes());
        write(&machine);
        let mut bytes = machine.bytes(SEGMENTS[1]).unwrap();
        bytes.splice(..other.len(), other);
        bytes.extend(b"what only that cdrelay understands");
        machine.put(SEGMENTS[1], &bytes);
        machine.take("cursor-analytics");
        let files = machine.files();

        let error = Life::begin(&machine, &config(), &["analytics"]).err().unwrap();
        assert_eq!(
            error.to_string(),
            format!(
                "segment-00000000000000000004 has format version {version}, this cdrelay reads version 3: {advice}"
            )
        );
        assert_eq!(machine.files(), files);
        assert!(machine.bytes(SEGMENTS[1]) == Some(bytes));
    }
}

#[test]
fn a_flipped_bit_in_the_version_is_damage_and_no_newer_version() {
    let machine = Machine::new(0);
    write(&machine);
    machine.flip(SEGMENTS[1], 9, 0x10);
    let life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
    assert_eq!(life.events_from(0), fixed());
}

#[test]
fn files_that_are_no_segments_are_left_alone() {
    let machine = Machine::new(0);
    let strangers = ["segment-+0000000000000000001", "segment-1", "segment-99999999999999999999", "notes", "damaged-1"];
    strangers.iter().for_each(|name| machine.put(name, b"mine"));
    let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
    life.store(vec![event(1, 10)]).unwrap();
    life.settle(1);
    assert!(strangers.iter().all(|name| machine.bytes(name).as_deref() == Some(b"mine")));
}
