//! The conversations of events: whatever happens to the process, the disk and the segments, the same events in the same order get the
//! same ones.

use super::*;
use crate::event::CallName;
use crate::spool::disk::simulated::Operation;
use std::collections::HashMap;

const APPIDS: u64 = 2;

/// A webhook in the form of the documents: a message of one of a few calls, as it carries ids.
fn webhook(random: &mut fastrand::Rng, number: u64) -> Event {
    let call = random.u64(0..12);
    let leg = random.choice(["A", "B"]).unwrap();
    let appid = random.u64(0..APPIDS);
    let id = |kind: &str| format!("\"{kind}-{call}\"");
    let mut fields = vec![format!("\"n\":{number}"), format!("\"appid\":{appid}")];
    let mut add = |name: &str, value: String| fields.push(format!("\"{name}\":{value}"));
    match random.u32(0..8) {
        0 | 1 => {
            add("conversation_uuid", id("A"));
            add("cmiuuid", id(leg));
        }
        2 | 3 => {
            add("conversation_uuid", id("A"));
            add("cmiuuid", id(leg));
            add("call_id", id("K"));
            add("request_id", id("R"));
        }
        4 => add("cmiuid", id(leg)),
        5 | 6 => {
            add("type", "\"cdr\"".into());
            add(random.choice(["cmiuuid", "cmiuid"]).unwrap(), id(leg));
            add("call_id", id("K"));
        }
        // Another conversation for a name that is known.
        _ => {
            add("conversation_uuid", id("X"));
            add("call_id", id("K"));
        }
    }
    add("custom", format!("\"{}\"", "x".repeat(random.usize(0..400))));
    Event::parse(&format!("{{{}}}", fields.join(",")), 9, Arrival(number)).unwrap()
}

/// What the index has to do, without bounds in number: the conversations of events, one after another.
#[derive(Default)]
struct Expected(HashMap<CallName, (u64, Arc<str>)>);

impl Expected {
    fn conversation(&mut self, event: &Event, now: u64, window: u64) -> String {
        let call = event.call().unwrap();
        let mut names = call.names.iter().flatten();
        let known = |names: &HashMap<CallName, (u64, Arc<str>)>, name: &CallName| {
            names.get(name).filter(|(stored, _)| now - stored <= window).cloned()
        };
        if !call.has_conversation {
            let found = names.find_map(|name| known(&self.0, name));
            return found.map_or(event.conversation().to_owned(), |(_, conversation)| conversation.to_string());
        }
        for name in names {
            let stored = match known(&self.0, name) {
                Some((_, conversation)) if *conversation != *event.conversation() => continue,
                Some((stored, _)) if now - stored <= window / 8 => stored,
                _ => now,
            };
            self.0.insert(*name, (stored, event.shared_conversation().clone()));
        }
        event.conversation().to_owned()
    }
}

#[derive(Default)]
struct Outcome {
    conversations: Vec<String>,
    failed: u32,
    restarts: u32,
    removed: u64,
    by_index: u64,
}

/// Stores these events, and lets happen what `troubles` bring.
fn run(seed: u64, config: &Config, requests: &[(u64, Vec<Event>)], troubles: bool) -> Outcome {
    let mut random = fastrand::Rng::with_seed(seed);
    let machine = Machine::new(seed);
    let mut outcome = Outcome::default();
    let mut life = Life::begin_at(Arrival(requests[0].0), &machine, config, &["analytics"]).unwrap();
    let mut reader = life.reader(0);
    let mut stored = 0;
    for (now, events) in requests {
        let now = *now;
        life.writer.clock = Box::new(move || Arrival(now));
        if troubles && random.u32(0..8) == 0 {
            machine.fail(random.choice([Operation::Write, Operation::Sync]).unwrap(), 1);
        }
        // A commit that fails teaches nothing, and the sender sends again.
        let first = life.store(events.clone());
        machine.mend();
        outcome.failed += u32::from(first.is_err());
        assert_eq!(first.or_else(|_| life.store(events.clone())).unwrap().stored, events.len());
        stored += events.len() as u64;
        while reader.position() < stored {
            let records = read(&mut reader, 3000).unwrap();
            outcome.conversations.extend(records.iter().map(|record| record.event.conversation().to_owned()));
        }
        if !troubles {
            continue;
        }
        match random.u32(0..10) {
            0 => life.writer.seal(),
            1 => life.maintenance.round(false),
            2 | 3 => life.settle(random.u64(0..=stored)),
            4 => {
                // A record for one sink alone teaches nothing and keeps the conversation that it had.
                let kept = webhook(&mut random, now).resolved(Some("kept".into()));
                let (done, mut answer) = oneshot::channel();
                let append = Append::new(vec![kept], Purpose::Replay("analytics".into()), None, done);
                life.writer.commit(&mut [append].into());
                answer.try_recv().unwrap().unwrap();
                stored += 1;
                let records = read(&mut reader, 1).unwrap();
                assert_eq!(*records[0].event.shared_conversation(), "kept".into());
            }
            5 | 6 => {
                outcome.by_index += life.shared.metrics.conversations("index").get();
                if random.bool() {
                    machine.kill()
                } else {
                    machine.crash()
                }
                life = Life::begin_at(Arrival(now), &machine, config, &["analytics"]).unwrap();
                reader = life.reader(stored);
                outcome.restarts += 1;
            }
            _ => {}
        }
        outcome.removed = outcome.removed.max(life.start());
        assert_eq!(life.end(), stored);
        assert_eq!(life.damaged_records(), 0);
    }
    outcome.by_index += life.shared.metrics.conversations("index").get();
    outcome
}

#[test]
fn the_same_events_get_the_same_conversations_whatever_happens() {
    let (mut failed, mut restarts, mut removed, mut by_index, mut limited) = (0, 0, 0, 0, 0);
    for seed in seeds(60) {
        let _case = Case(seed);
        let mut random = fastrand::Rng::with_seed(seed);
        let window = random.u64(500..20_000);
        let few = random.bool();
        let config = Config {
            max_size: ByteSize::mib(1),
            segment_size: Some(ByteSize::b(random.u64(4096..8192))),
            dedup_capacity: random.usize(0..100),
            names_window: Duration::from_millis(window),
            names_capacity: if few { random.usize(1..30) } else { 10_000 },
            read_cache: ByteSize::b(random.choice([0, 100_000]).unwrap()),
            ..config()
        };
        let (mut now, mut number) = (1_000_000, 0);
        let requests: Vec<(u64, Vec<Event>)> = (0..random.usize(20..120))
            .map(|_| {
                now += random.u64(0..window / 10);
                let count = random.u64(1..4);
                let events = (number..number + count).map(|number| webhook(&mut random, number)).collect();
                number += count;
                (now, events)
            })
            .collect();
        let calm = run(seed, &config, &requests, false);
        let troubled = run(seed, &config, &requests, true);
        assert_eq!(troubled.conversations, calm.conversations);
        let mut expected = Expected::default();
        let all = requests.iter().flat_map(|(now, events)| events.iter().map(move |event| (*now, event)));
        let expected: Vec<_> = all.map(|(now, event)| expected.conversation(event, now, window)).collect();
        if few {
            limited += u32::from(calm.conversations != expected);
        } else {
            assert_eq!(calm.conversations, expected);
        }
        failed += troubled.failed;
        restarts += troubled.restarts;
        removed += troubled.removed;
        by_index += troubled.by_index;
    }
    println!(
        "{by_index} conversations found by a name over {restarts} restarts, {failed} failed commits and {removed} removed records; \
         {limited} cases felt `names_capacity`"
    );
}

fn parsed(payload: &str) -> Event {
    Event::parse(payload, 9, *START).unwrap()
}

fn conversations(life: &Life, from: u64) -> Vec<String> {
    life.events_from(from).iter().map(|event| event.conversation().to_owned()).collect()
}

/// What `mend` does to the log between the live events of a call and its CDR.
fn cdr_after(mend: impl FnOnce(&Machine, &mut Life)) -> String {
    let machine = Machine::new(0);
    let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
    life.store(vec![parsed(r#"{"type":"event","app_id":7,"conversation_uuid":"A","cmiuuid":"A","call_id":"K"}"#)])
        .unwrap();
    mend(&machine, &mut life);
    drop(life);
    let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
    life.store(vec![parsed(r#"{"type":"cdr","appid":"7","cmiuuid":"B","call_id":"K"}"#)]).unwrap();
    conversations(&life, life.end() - 1).remove(0)
}

#[test]
fn a_cdr_finds_the_conversation_of_its_call_after_a_restart_and_the_removal_of_its_segment() {
    assert_eq!(cdr_after(|machine, _| machine.crash()), "A");
    let remove = |life: &mut Life| {
        life.writer.seal();
        life.settle(1);
        assert_eq!(life.start(), life.end());
    };
    assert_eq!(cdr_after(|_, life| remove(life)), "A");
    let lost = cdr_after(|machine, life| {
        remove(life);
        machine.take("names-00000000000000000000");
    });
    assert_eq!(lost, "K", "the file is where it comes from");
}

#[test]
fn names_that_would_join_two_conversations_are_counted_and_join_none() {
    let machine = Machine::new(0);
    let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
    life.store(vec![
        parsed(r#"{"appid":7,"conversation_uuid":"A","call_id":"K","cmiuuid":"A"}"#),
        parsed(r#"{"appid":7,"conversation_uuid":"X","call_id":"K","cmiuuid":"B"}"#),
        parsed(r#"{"appid":7,"call_id":"K"}"#),
        parsed(r#"{"appid":7,"cmiuuid":"B"}"#),
        parsed(r#"{"appid":8,"cmiuuid":"B"}"#),
    ])
    .unwrap();
    assert_eq!(conversations(&life, 0), ["A", "X", "A", "X", "B"]);
    let metrics = &life.shared.metrics;
    assert_eq!(metrics.conversation_conflicts.get(), 1);
    assert_eq!(["field", "index", "fallback"].map(|by| metrics.conversations(by).get()), [2, 2, 1]);
}

#[test]
fn a_missing_cdr_is_stored_once_and_not_beside_its_webhook() {
    let machine = Machine::new(0);
    let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
    let store = |life: &mut Life, purpose: Purpose, payloads: &[&str]| {
        let (done, mut answer) = oneshot::channel();
        let events = payloads.iter().map(|payload| parsed(payload)).collect();
        life.writer.commit(&mut [Append::new(events, purpose, None, done)].into());
        answer.try_recv().unwrap().unwrap().count()
    };
    let webhook = r#"{"type":"cdr","appid":7,"cmiuuid":"L","status":"missed"}"#;
    let listed = r#"{"type":"cdr","appid":7,"cmiuid":"L","from":1,"to":2,"time":1654507446464}"#;
    let changed = r#"{"type":"cdr","appid":7,"cmiuid":"M","from":1,"to":2,"time":1654507446464,"notes":[]}"#;
    let live = r#"{"type":"event","appid":7,"cmiuuid":"M"}"#;
    assert_eq!(store(&mut life, Purpose::Webhook, &[webhook, live]).stored, 2);
    assert_eq!(store(&mut life, Purpose::Missing, &[listed]), Appended { stored: 0, duplicates: 1 });
    let twice = [changed, &changed.replace("[]", "[1]")];
    assert_eq!(store(&mut life, Purpose::Missing, &twice), Appended { stored: 1, duplicates: 1 });
    machine.crash();
    let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
    assert_eq!(store(&mut life, Purpose::Missing, &twice), Appended { stored: 0, duplicates: 2 });
    assert_eq!(store(&mut life, Purpose::Webhook, &[listed]).stored, 1, "a webhook is stored whatever is known");
    let of_leg =
        |life: &Life| parsed(webhook).legs().find_map(|leg| life.shared.index.lock().leg(&leg, Arrival::now()));
    assert_eq!(of_leg(&life), Some(3));
    life.shared.lose(0, 3..4);
    assert_eq!(of_leg(&life), None, "a record that is lost is no CDR");
}
