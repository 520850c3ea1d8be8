//! Observes one sink during the run: expected events, arrived events, latencies.

use super::generator::{self, Generator, Recognised};
use super::latency::{Latency, Percentiles};
use super::oracle::{Delivery, Fault, Finding, Oracle, Position};
use crate::config::Sink;
use crate::dead_letter::Letters;
use crate::event::Event;
use crate::route::{Route, RouteError, Routed};
use crate::spool::Record;
use parking_lot::Mutex;
use serde::Serialize;
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::Arc;
use tokio::time::Instant;

/// Observes one sink. The load reports sent events, a consumer reports arrivals.
pub struct Observer {
    name: String,
    route: Route,
    order: Order,
    generator: Arc<Generator>,
    began: Instant,
    state: Mutex<State>,
}

/// The scope within which the events of a conversation are ordered.
#[derive(Clone, Copy, Debug)]
enum Order {
    /// Stdout: everything.
    Always,
    /// NATS: the stream.
    Stream,
    /// Kafka: that topic and text to choose the partition by are the same.
    Partition,
}

struct State {
    oracle: Oracle,
    latency: Latency,
    filtered: u64,
    refused: u64,
    refusal: Option<String>,
    /// Names of the places that the oracle knows by number.
    places: Vec<String>,
    /// Why nothing can be read at the moment.
    last_error: Option<String>,
}

/// The result for one sink.
#[derive(Clone, Debug, Serialize)]
pub struct SinkReport {
    /// The sink's name.
    pub name: String,
    /// Events that arrived, each counted once.
    pub delivered: u64,
    /// Acknowledged events that did not.
    pub lost: u64,
    /// Arrivals of events that were there already.
    pub duplicated: u64,
    /// Arrivals out of order.
    pub reordered: u64,
    /// Arrivals with other content than was sent.
    pub altered: u64,
    /// Arrivals of events that were never sent, or that `when` should have kept away.
    pub unexpected: u64,
    /// Events that are not delivered because they are dead letters.
    pub dead_lettered: u64,
    /// Why the first of them is one.
    pub dead_letter_reason: Option<String>,
    /// Events that `when` keeps from the sink.
    pub filtered: u64,
    /// From the first attempt to send an event to its arrival here.
    pub latency: Percentiles,
    /// The first faults, in words.
    pub findings: Vec<String>,
    /// Why the destination could not be read, at the end.
    pub last_error: Option<String>,
}

impl SinkReport {
    /// Everything that was acknowledged is there, in order and unchanged.
    pub fn is_clean(&self) -> bool {
        self.lost + self.reordered + self.altered + self.unexpected + self.dead_lettered == 0
    }
}

impl Observer {
    /// Compiles the sink's route.
    pub fn new(name: &str, sink: &Sink, generator: Arc<Generator>, began: Instant) -> Result<Self, RouteError> {
        Ok(Self {
            name: name.to_owned(),
            route: Route::compile(&sink.route, sink.destination.dialect())?,
            order: match sink.destination.type_name() {
                "kafka" => Order::Partition,
                "nats" => Order::Stream,
                _ => Order::Always,
            },
            generator,
            began,
            state: Mutex::new(State {
                oracle: Oracle::default(),
                latency: Latency::default(),
                filtered: 0,
                refused: 0,
                refusal: None,
                places: Vec::new(),
                last_error: None,
            }),
        })
    }

    /// The sink's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The sink's route.
    pub fn route(&self) -> &Route {
        &self.route
    }

    /// The next event of `conversation` is about to be sent.
    pub fn sent(&self, conversation: usize, event: &Event) {
        let routed = self.routed(event);
        let mut state = self.state.lock();
        state.oracle.sent(conversation, matches!(routed, Routed::Message(_)));
        match routed {
            Routed::Message(_) => {}
            Routed::Filtered => state.filtered += 1,
            Routed::Refused { cause, .. } => {
                state.refused += 1;
                state.refusal.get_or_insert(cause);
            }
        }
    }

    /// That event has been acknowledged.
    pub fn acknowledged(&self, conversation: usize) {
        self.state.lock().oracle.acknowledged(conversation);
    }

    /// The number under which a partition or stream goes.
    pub fn place(&self, name: &str) -> u32 {
        let mut state = self.state.lock();
        let known = state.places.iter().position(|known| known == name);
        let index = known.unwrap_or_else(|| {
            state.places.push(name.to_owned());
            state.places.len() - 1
        });
        u32::try_from(index).unwrap_or(u32::MAX)
    }

    /// A message lies at the destination. Those of others do not count.
    pub fn arrived(&self, payload: &[u8], at: Position) {
        let now = self.now();
        let recognised = self.generator.recognise(payload);
        let Recognised::Ours { conversation, number, at: sent, intact } = recognised else {
            if recognised == Recognised::Damaged {
                let mut state = self.state.lock();
                state.oracle.altered(usize::MAX, usize::MAX, at);
            }
            return;
        };
        let sequence = self.sequence(conversation, number, sent, at);
        let mut state = self.state.lock();
        state.last_error = None;
        let before = state.oracle.delivered();
        state.oracle.arrived(Delivery { conversation, number, sequence, at });
        if state.oracle.delivered() > before {
            state.latency.record(now.saturating_sub(sent));
        }
        if !intact {
            state.oracle.altered(conversation, number, at);
        }
    }

    /// The destination cannot be read for this reason, which the next arrival disproves.
    pub fn failed(&self, reason: impl Into<String>) {
        self.state.lock().last_error = Some(reason.into());
    }

    /// The destination can be read.
    pub fn recovered(&self) {
        self.state.lock().last_error = None;
    }

    /// Why the destination cannot be read, if so.
    pub fn last_error(&self) -> Option<String> {
        self.state.lock().last_error.clone()
    }

    /// How many acknowledged events are not there yet.
    pub fn missing(&self) -> u64 {
        self.state.lock().oracle.missing()
    }

    /// How many events are there.
    pub fn delivered(&self) -> u64 {
        self.state.lock().oracle.delivered()
    }

    /// Microseconds since the run began.
    pub fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// The final result: nothing more arrives. Lost events are looked up among the dead letters, if the bridge's spool is on this machine.
    pub fn report(&self, spool: &Path) -> SinkReport {
        let state = self.state.lock();
        let verdict = state.oracle.verdict();
        let (mut dead, mut reason) = (HashSet::new(), state.refusal.clone());
        if !verdict.lost.is_empty() {
            let mut letters = Letters::of(spool, &self.name).ok();
            while let Some(found) = letters.as_mut().and_then(|letters| letters.read_next().ok().flatten()) {
                let letter = found.item;
                if let Recognised::Ours { conversation, number, .. } =
                    self.generator.recognise(letter.payload.as_bytes())
                {
                    dead.insert((conversation, number));
                    reason.get_or_insert(letter.reason);
                }
            }
        }
        let lost = verdict.lost.iter().filter(|event| !dead.contains(event)).count();
        let told = verdict
            .findings
            .iter()
            .filter(|finding| finding.fault != Fault::Lost || !dead.contains(&(finding.conversation, finding.number)));
        SinkReport {
            name: self.name.clone(),
            delivered: verdict.delivered,
            lost: lost as u64,
            duplicated: verdict.duplicated,
            reordered: verdict.reordered,
            altered: verdict.altered,
            unexpected: verdict.unexpected,
            dead_lettered: state.refused + (verdict.lost.len() - lost) as u64,
            dead_letter_reason: reason,
            filtered: state.filtered,
            latency: state.latency.percentiles(),
            findings: told.map(|finding| self.describe(finding, &state.places)).collect(),
            last_error: state.last_error.clone(),
        }
    }

    fn describe(&self, finding: &Finding, places: &[String]) -> String {
        let place = |at: Position| places.get(at.place as usize).map_or("", String::as_str);
        let lies = |at: Position| format!("{} {}", place(at), at.offset);
        let here = finding.at.map(lies).unwrap_or_default();
        if finding.conversation == usize::MAX {
            return format!("a message with the mark of this run is no event of it: {here}");
        }
        let event =
            format!("conversation {} number {}", self.generator.conversation(finding.conversation), finding.number);
        match finding.fault {
            Fault::Lost if finding.at.is_some() => {
                format!("lost: {event}; the last that came of the conversation is {here}")
            }
            Fault::Lost => format!("lost: {event}; nothing came of the conversation"),
            Fault::Overtaken { later } => format!("reordered: {event} came after number {later}: {here}"),
            Fault::Skipped { last } => {
                format!("reordered: {event} came again right after number {last}: {here}")
            }
            Fault::Elsewhere { before } => format!("reordered: {event} is {here}, the one before it {}", lies(before)),
            Fault::Altered => format!("altered: {event} is not what was sent: {here}"),
            Fault::Unexpected => format!("unexpected: {event} should not be there: {here}"),
        }
    }

    fn sequence(&self, conversation: usize, number: usize, sent: u64, at: Position) -> u64 {
        match self.order {
            Order::Always => 0,
            Order::Stream => u64::from(at.place),
            Order::Partition => {
                let event = generator::parse(&self.generator.event(conversation, number, sent));
                let Some(Routed::Message(message)) = event.map(|event| self.routed(&event)) else { return 0 };
                let mut hasher = DefaultHasher::new();
                (message.topic(), message.partition_by()).hash(&mut hasher);
                hasher.finish()
            }
        }
    }

    fn routed(&self, event: &Event) -> Routed {
        self.route.render(&Record { offset: 0, target: None, event: event.clone() }, drop)
    }
}
