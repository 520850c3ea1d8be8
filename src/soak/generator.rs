//! Generates the synthetic events, and recognises them at the destinations.
//!
//! They look like the webhooks of inbound calls: live events and call detail records mixed, the first one without a team. A member
//! `soak` marks them. A filter can tell them from real events: `has(event.soak)`.

use crate::event::{Event, MAX_DEPTH};
use fastrand::Rng;
use serde::Deserialize;

const TEAMS: [&str; 3] = ["Sales_2222223", "Support_2222223", "Billing_2222223"];
/// The statuses of the agent's leg, in turns.
const AGENT: [&str; 3] = ["started", "answered", "hangup"];

/// Everything about the events of one run. The same generator writes the same event for the same conversation, number and time.
#[derive(Clone, Debug)]
pub struct Generator {
    seed: u64,
    /// How the ids of all conversations of this run begin, and no others.
    run: String,
    /// Milliseconds since the Unix epoch at which the run began.
    began: u64,
    /// The last of so many events is a call detail record of the conversation.
    events: usize,
}

/// Whether a message at a destination belongs to this run.
#[derive(Debug, PartialEq, Eq)]
pub enum Recognised {
    /// An event of this run.
    Ours {
        /// Its conversation.
        conversation: usize,
        /// Its number in that.
        number: usize,
        /// Microseconds after the beginning of the run at which it was sent.
        at: u64,
        /// Whether its bytes are exactly the sent ones.
        intact: bool,
    },
    /// It bears the mark of this run, and no more can be told.
    Damaged,
    /// Of another sender.
    Foreign,
}

#[derive(Deserialize)]
struct Mark {
    number: usize,
    at: u64,
}

impl Generator {
    /// `run` has to be another number for each run.
    pub fn new(seed: u64, run: u64, began: u64, events: usize) -> Self {
        let run = format!("{:08x}-{:04x}-4{:03x}-8000-", run >> 32, (run >> 16) & 0xffff, run & 0xfff);
        Self { seed, run, began, events }
    }

    /// How the ids of this run's conversations begin.
    pub fn run(&self) -> &str {
        &self.run
    }

    /// The id of a conversation, a UUID as the real ones are.
    pub fn conversation(&self, index: usize) -> String {
        format!("{}{index:012x}", self.run)
    }

    /// The event that is first sent `at` microseconds after the run began.
    pub fn event(&self, conversation: usize, number: usize, at: u64) -> String {
        let mut random = Rng::with_seed(self.seed ^ (conversation as u64).rotate_left(32) ^ number as u64);
        let team = TEAMS.get(conversation % TEAMS.len()).copied().unwrap_or_default();
        let id = self.conversation(conversation);
        let from = 440_000_000_000_u64 + conversation as u64 % 1_000_000_000;
        let time = self.began + at / 1000;
        let seconds = random.u32(1..600);
        let custom = "x".repeat(random.usize(0..200));
        let custom = format!(r#""custom":"{{\"crm\":\"true\",\"note\":\"{custom}\"}}""#);
        let mark = format!(r#""soak":{{"number":{number},"at":{at}}}"#);
        let (last, turn) = (number + 1 == self.events, number % (AGENT.len() + 1));
        match AGENT.get(turn.wrapping_sub(1)) {
            _ if number == 0 => format!(
                r#"{{"type":"event","direction":"inbound","conversation_uuid":"{id}","cmiuuid":"{id}","from":"{from}","app_id":2222223,"time":{time},"to":"440000000001",{custom},"status":"waiting",{mark}}}"#
            ),
            Some(status) if !last => format!(
                r#"{{"leg":"b","type":"event","team":"{team}","user":"204_2222223","conversation_uuid":"{id}","cmiuuid":"{leg}","direction":"outbound","from":"{from}","app_id":2222223,"time":{time},{custom},"status":"{status}",{mark}}}"#,
                leg = uuid(&mut random),
            ),
            _ => format!(
                r#"{{"virtual_number":440000000001,{custom},"appid":2222223,"type":"cdr","direction":"inbound","cmiuuid":"{leg}","user":"204_2222223","status":"answered","to":440000000009,"from":{from},"time":{time},"answeredsec":{seconds},"team":"{team}","hangup_reason":"recv_bye","record":false,"conversation_uuid":"{id}","ivr_name":"salesivr",{mark}}}"#,
                leg = uuid(&mut random),
            ),
        }
    }

    /// Whether a payload, an event or a CloudEvents envelope around one, is of this run, and which it is. The id of a schema may precede it.
    pub fn recognise(&self, payload: &[u8]) -> Recognised {
        let payload = match payload {
            [0, _, _, _, _, event @ ..] => event,
            payload => payload,
        };
        let Ok(text) = std::str::from_utf8(payload) else { return Recognised::Foreign };
        if !text.contains(&self.run) {
            return Recognised::Foreign;
        }
        self.ours(text).unwrap_or(Recognised::Damaged)
    }

    fn ours(&self, text: &str) -> Option<Recognised> {
        let event = parse(text)?;
        if event.text("soak").is_none() {
            return self.ours(&event.text("data")?);
        }
        let Mark { number, at } = serde_json::from_str(&event.text("soak")?).ok()?;
        let id = event.text("conversation_uuid")?;
        let conversation = usize::from_str_radix(id.strip_prefix(&self.run)?, 16).ok()?;
        let intact = self.event(conversation, number, at) == text;
        Some(Recognised::Ours { conversation, number, at, intact })
    }
}

/// Reads an event of a generator.
pub fn parse(text: &str) -> Option<Event> {
    Event::parse(text, MAX_DEPTH, Default::default()).ok()
}

fn uuid(random: &mut Rng) -> String {
    format!("{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}", random.u32(..), random.u16(..), 0xabc, 0xdef, random.u64(..) >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generator() -> Generator {
        Generator::new(7, 0x0123_4567_89ab_cdef, 1_634_721_099_442, 10)
    }

    #[test]
    fn every_event_is_recognised_and_every_change_of_one_is_noticed() {
        let generator = generator();
        for (conversation, number, at) in [(0, 0, 0), (5, 1, 17), (5, 9, 3_600_000_000), (70_000, 123_456, 1)] {
            let event = generator.event(conversation, number, at);
            let ours = |intact| Recognised::Ours { conversation, number, at, intact };
            assert_eq!(generator.recognise(event.as_bytes()), ours(true), "{event}");
            let envelope = format!(r#"{{"specversion":"1.0","subject":"{}","data":{event}}}"#, generator.run());
            assert_eq!(generator.recognise(envelope.as_bytes()), ours(true));
            assert_eq!(generator.recognise(event.replace("4400", "4500").as_bytes()), ours(false));
            assert_eq!(generator.recognise(&event.as_bytes()[1..]), Recognised::Damaged);
        }
    }

    #[test]
    fn events_of_other_runs_are_foreign() {
        let other = Generator::new(7, 0x0123_4567_89ab_cdee, 1_634_721_099_442, 10);
        for foreign in
            [other.event(0, 0, 0).as_str(), "", "{}", "not JSON", include_str!("../../tests/support/payloads.ndjson")]
        {
            assert_eq!(generator().recognise(foreign.as_bytes()), Recognised::Foreign);
        }
        assert_eq!(generator().recognise(b"\xff"), Recognised::Foreign);
    }

    #[test]
    fn a_conversation_looks_like_a_call() {
        let generator = generator();
        let events: Vec<Event> = (0..10).map(|number| parse(&generator.event(3, number, 5)).unwrap()).collect();
        assert_eq!(events[0].text("team"), None);
        assert!(events[1..].iter().all(|event| event.text("team").as_deref() == Some("Sales_2222223")));
        assert!(events.iter().all(|event| event.conversation() == generator.conversation(3)));
        let types: Vec<_> = events.iter().map(|event| event.text("type").unwrap()).collect();
        assert_eq!(types.iter().filter(|kind| *kind == "cdr").count(), 3, "{types:?}");
        assert_eq!((types[0].as_str(), types[9].as_str()), ("event", "cdr"));
        let mut ids: Vec<_> = events.iter().map(Event::id).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 10);
    }
}
