//! Format version 1 as it was first written: it can be read for ever.

use super::*;

const SEGMENTS: [&str; 2] = ["segment-00000000000000000000", "segment-00000000000000000004"];

/// What the fixture holds. Its three requests were `[0, 1]`, `[2, 3]` and, after a roll, `[4, 5, 6]`; the sink `analytics` had
/// settled three records.
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
        Event::restore(payload, EventId([number + 1; 16]), conversation, arrival)
    };
    (0..).zip(texts).map(event).collect()
}

fn write(machine: &Machine) {
    let config = Config { duplicate_window: Duration::ZERO, ..config() };
    let mut life = Life::begin(machine, &config, &["analytics"]).unwrap();
    let events = fixed();
    life.store(events[..2].to_vec()).unwrap();
    life.store(events[2..4].to_vec()).unwrap();
    life.writer.seal();
    life.store(events[4..].to_vec()).unwrap();
    life.writer.seal();
    life.settle(3);
}

/// The files of the fixture, in the order of their names.
fn fixture() -> Vec<(&'static str, Vec<u8>)> {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/spool-v1");
    let read = |name: &'static str| (name, std::fs::read(directory.join(name)).unwrap());
    ["cursor-analytics"].into_iter().chain(SEGMENTS).map(read).collect()
}

#[test]
fn a_spool_of_version_1_is_read_for_ever() {
    let machine = Machine::new(0);
    fixture().iter().for_each(|(name, bytes)| machine.put(name, bytes));
    let mut life = Life::begin(&machine, &config(), &["analytics", "new"]).unwrap();
    assert_eq!(life.events_from(0), fixed());
    let positions: Vec<u64> = life.shared.cursors.iter().map(|cursor| cursor.position()).collect();
    assert_eq!(positions, [3, 0]);
    assert_eq!((life.start(), life.end(), life.damaged_records()), (0, 7, 0));
    assert_eq!(life.store(vec![event(1, 10)]), Ok(Appended { stored: 1, duplicates: 0 }));
}

/// What is written now is byte for byte what was written then, so version 1 has not changed behind its number.
///
/// `CDRELAY_WRITE_FIXTURE` names a directory to write the files to. That is for the first fixture of a new version: these here
/// stay what they are.
#[test]
fn version_1_is_still_written_as_it_was() {
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

/// Version 1 was first written without routes. What came by another route than the default one comes back with its name.
#[test]
fn a_record_remembers_its_route_and_those_without_one_are_stored_as_ever() {
    let machine = Machine::new(0);
    fixture().iter().for_each(|(name, bytes)| machine.put(name, bytes));
    let by = |number, route: &str| event(number, 10).by(Some(route.into()));
    let routed = [by(1, "east"), event(2, 10), by(3, "west"), by(4, "default")];
    let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
    life.store(routed.to_vec()).unwrap();
    let life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
    let events = life.events_from(0);
    assert_eq!(events[..7], fixed());
    assert_eq!(events[7..], routed);
    let names: Vec<&str> = events.iter().map(Event::ingress).collect();
    assert_eq!(names[..7], ["default"; 7]);
    assert_eq!(names[7..], ["east", "default", "west", "default"]);
}

/// The bytes behind the frame are conversation, target and payload, as they lie on disk.
#[test]
fn target_and_route_are_told_apart_and_neither_passes_for_the_other() {
    for (target, route, stored) in [
        (None, None, &b""[..]),
        (Some("kafka"), None, b"kafka"),
        (None, Some("east"), b"\xffeast"),
        (Some("kafka"), Some("east"), b"kafka\xffeast"),
    ] {
        let event = event(1, 10).by(route.map(Into::into));
        let record = Record { offset: 7, target: target.map(Into::into), event };
        let mut bytes = Vec::new();
        segment::write_record(&record, 7, 0, &mut bytes);
        assert_eq!(bytes.len(), segment::size_of_record(&record.event, target));
        let from = segment::FRAME + record.event.conversation().len();
        assert_eq!(&bytes[from..from + stored.len()], stored);
        assert_eq!(u32::from_le_bytes(bytes[56..60].try_into().unwrap()) as usize, stored.len());

        let file = [segment::header(7).to_vec(), bytes].concat();
        let machine = Machine::new(0);
        machine.put(&segment::name(7), &file);
        let mut scan = segment::Scan::new(machine.mount().open(&segment::name(7)).unwrap()).unwrap();
        let segment::Found::Record(frame, bytes) = scan.next(7, 8).unwrap() else { panic!("no record") };
        assert_eq!(frame.record(bytes), Some(record));
        // What knows of no routes takes only a text for a target.
        assert_eq!(std::str::from_utf8(stored).is_ok(), route.is_none());
    }
}

#[test]
fn a_newer_version_is_refused_and_left_alone() {
    let machine = Machine::new(0);
    let mut newer = segment::header(4);
    newer[8..12].copy_from_slice(&2u32.to_le_bytes());
    let sum = crc32c::crc32c(&newer[..24]);
    newer[24..28].copy_from_slice(&sum.to_le_bytes());
    write(&machine);
    let mut bytes = machine.bytes(SEGMENTS[1]).unwrap();
    bytes.splice(..newer.len(), newer);
    bytes.extend(b"what only a newer cdrelay understands");
    machine.put(SEGMENTS[1], &bytes);
    machine.take("cursor-analytics");
    let files = machine.files();

    let error = Life::begin(&machine, &config(), &["analytics"]).err().unwrap();
    assert_eq!(
        error.to_string(),
        "segment-00000000000000000004 has format version 2, this cdrelay reads 1: start the newer one"
    );
    assert_eq!(machine.files(), files);
    assert!(machine.bytes(SEGMENTS[1]) == Some(bytes));
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
