//! The events to send: built-in samples of each kind, or those of a file.
//!
//! The samples have the form of TeleCMI's own examples (<https://doc.telecmi.com/chub/docs/webhooks>), with numbers that nobody has. Each
//! round over the kinds is one call: it has a conversation of its own, and the present time.

use crate::event::Arrival;
use clap::ValueEnum;
use std::io;
use std::path::Path;

const SAMPLES: &str = include_str!("samples.ndjson");

/// A kind of event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// A caller waits.
    Waiting,
    /// An agent's phone rings.
    Started,
    /// An agent has answered.
    Answered,
    /// An agent's leg has ended.
    Hangup,
    /// The record of an answered call.
    CdrAnswered,
    /// The record of a missed call, with a voicemail.
    CdrMissed,
    /// The record of a click-to-call call, the agent's leg.
    ClickToCallA,
    /// The same of the customer's leg.
    ClickToCallB,
}

/// The source of the bodies to send.
#[derive(Debug)]
pub enum Source {
    /// Samples of these kinds, in turns.
    Samples {
        /// The kinds.
        kinds: Vec<Kind>,
        /// The value of `appid`.
        appid: String,
    },
    /// These bodies, in turns.
    Bodies(Vec<String>),
}

impl Source {
    /// The bodies in a file: each line, if it is NDJSON, or else all of it.
    pub fn read(path: &Path) -> io::Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        let is_json = |text: &str| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
        let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let by_line = lines.len() > 1 && lines.iter().all(|line| is_json(line));
        Ok(Self::Bodies(if by_line { lines.into_iter().map(str::to_owned).collect() } else { vec![text] }))
    }

    /// How many different bodies there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Samples { kinds, .. } => kinds.len(),
            Self::Bodies(bodies) => bodies.len(),
        }
    }

    /// The body with this number. `run` tells the calls of one run from those of another.
    pub fn body(&self, number: usize, run: u64) -> String {
        let (round, turn) = (number / self.len().max(1), number % self.len().max(1));
        match self {
            Self::Samples { kinds, appid } => {
                kinds.get(turn).map_or_else(String::new, |kind| sample(*kind, round, run, appid))
            }
            Self::Bodies(bodies) => bodies.get(turn).cloned().unwrap_or_default(),
        }
    }
}

fn sample(kind: Kind, round: usize, run: u64, appid: &str) -> String {
    let id = |part: u16| format!("{:08x}-{part:04x}-4{:03x}-8000-{round:012x}", run >> 32, run & 0xfff);
    let appid = if appid.bytes().all(|byte| byte.is_ascii_digit()) {
        appid.to_owned()
    } else {
        crate::event::json::quote(appid)
    };
    let template = SAMPLES.lines().nth(kind as usize).unwrap_or_default();
    template
        .replace("CONVERSATION", &id(0))
        .replace("AGENT", &id(1))
        .replace("CALL", &id(2))
        .replace("TIME", &Arrival::now().0.to_string())
        .replace("APPID", &appid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;

    #[test]
    fn every_kind_has_a_sample_and_a_round_is_one_call() {
        let kinds = Kind::value_variants().to_vec();
        assert_eq!(kinds.len(), SAMPLES.lines().count());
        let source = Source::Samples { kinds, appid: "7".into() };
        let mut ids = Vec::new();
        for round in 0..2 {
            let events = (0..source.len())
                .map(|turn| Event::parse(&source.body(round * source.len() + turn, 1 << 40), 9, Arrival(0)).unwrap());
            let events: Vec<_> = events.collect();
            // The others find their conversation by their ids when they are stored.
            let own = events.iter().filter(|event| event.call().is_some_and(|call| call.has_conversation));
            let own: Vec<_> = own.map(Event::conversation).collect();
            assert!(own.len() == 6 && own.iter().all(|conversation| *conversation == own[0]), "{own:?}");
            assert!(events.iter().all(|event| event.text("appid").as_deref() == Some("7")));
            ids.extend(events.iter().map(Event::id));
            ids.sort();
        }
        let count = ids.len();
        ids.dedup();
        assert_eq!(ids.len(), count);
        let missed = Source::Samples { kinds: vec![Kind::CdrMissed], appid: "a\"b".into() }.body(0, 0);
        let missed = Event::parse(&missed, 9, Arrival(0)).unwrap();
        assert_eq!((missed.text("status").as_deref(), missed.text("appid").as_deref()), (Some("missed"), Some("a\"b")));
    }

    #[test]
    fn a_file_has_a_body_on_each_line_or_is_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bodies");
        for (text, expected) in [("{\"a\":1}\n\n{\"a\":2}\n", 2), ("{\"a\":\n1}", 1), ("a=1&b=2", 1)] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(Source::read(&path).unwrap().len(), expected, "{text}");
        }
    }
}
