//! A load whose every event is accounted for: conversations that each send their next event once the one before was acknowledged, and
//! the verdict on what came out at the other end.
//!
//! ```ignore
//! let load = Load { conversations: 50, events: 20, ..Load::new("ordering") }.start(&bridge.ingress_url());
//! let sent = load.finish().await;
//! settled(&bridge, &["kafka"]).await;
//! sent.check_kafka(&consume_all(&shared(), &topic, PATIENCE).await);
//! ```

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use cdrelay::soak::oracle::{Delivery, Oracle, Position, Verdict};
use fastrand::Rng;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use serde::Deserialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::bridge::{Bridge, Client, client};
use super::kafka::Consumed;
use super::nats::Received;
use super::{PATIENCE, eventually};

/// What to send. Everything follows from the seed.
#[derive(Debug, Clone)]
pub struct Load {
    pub name: &'static str,
    pub seed: u64,
    pub conversations: usize,
    /// How many events a conversation sends, unless it is stopped before.
    pub events: usize,
    /// How long a conversation waits after an acknowledgement, on average.
    pub pause: Duration,
    /// Over one connection of HTTP/2.
    pub http2: bool,
}

/// A load under way.
pub struct Running {
    load: Load,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<[AtomicUsize]>,
    conversations: JoinSet<(usize, Conversation)>,
}

/// What was acknowledged.
pub struct Sent {
    load: Load,
    /// How many events of each conversation.
    acknowledged: Vec<usize>,
    /// How many of them a destination may have lost again, see [`Self::emptied_at`].
    gone: Vec<usize>,
    /// Answers other than 200, and requests without an answer. Each was sent again.
    pub refused: usize,
    pub slowest: Duration,
}

#[derive(Default)]
struct Conversation {
    acknowledged: usize,
    refused: usize,
    slowest: Duration,
}

/// The fields by which an event is recognised.
#[derive(Deserialize)]
struct Mark {
    conversation_uuid: String,
    number: usize,
}

/// Sends an event until it is acknowledged, and returns how often it was refused.
pub async fn send_until_acknowledged(client: &Client, url: &str, event: &str) -> usize {
    let begun = Instant::now();
    let mut refused = 0;
    loop {
        let request = Request::post(url).body(Full::from(event.to_owned())).unwrap();
        let status = match client.request(request).await {
            Ok(answer) => {
                let status = answer.status().as_u16();
                // Read to its end, so that the connection can serve the next one.
                answer.into_body().collect().await.map_or(0, |_| status)
            }
            Err(_) => 0,
        };
        match status {
            200 => return refused,
            0 | 503 => refused += 1,
            other => panic!("{other} for {event}"),
        }
        assert!(begun.elapsed() < PATIENCE, "never acknowledged: {event}");
        sleep(Duration::from_millis(20)).await;
    }
}

impl Load {
    pub fn new(name: &'static str) -> Self {
        Self { name, seed: fastrand::u64(..), conversations: 50, events: 20, pause: Duration::ZERO, http2: false }
    }

    /// As a call would: the first event names no team, and neither do some of the others.
    pub fn event(&self, conversation: usize, number: usize) -> String {
        let mut random = Rng::with_seed(self.seed ^ ((conversation as u64) << 32) ^ number as u64);
        let team = if number == 0 || random.bool() { "" } else { "\"team\":\"Sales_2222223\"," };
        let custom = "x".repeat(random.usize(100..500));
        let conversation = self.conversation(conversation);
        format!(
            r#"{{"type":"event","appid":2222223,"direction":"inbound","status":"started",{team}"conversation_uuid":"{conversation}","number":{number},"custom":"{custom}"}}"#
        )
    }

    fn conversation(&self, conversation: usize) -> String {
        format!("{:016x}-{conversation}", self.seed)
    }

    /// Starts all conversations at once. Refused events are sent again until they are acknowledged, whoever listens at the URL then.
    pub fn start(self, url: &str) -> Running {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged: Arc<[_]> = (0..self.conversations).map(|_| AtomicUsize::new(0)).collect();
        let client = client(self.http2);
        let conversations = (0..self.conversations).map(|conversation| {
            let (load, url, client) = (self.clone(), url.to_owned(), client.clone());
            let (stop, acknowledged) = (stop.clone(), acknowledged.clone());
            async move {
                let mut random = Rng::with_seed(load.seed ^ conversation as u64);
                let mut sent = Conversation::default();
                while sent.acknowledged < load.events && !stop.load(Ordering::Relaxed) {
                    sleep(load.pause.mul_f64(2.0 * random.f64())).await;
                    let event = load.event(conversation, sent.acknowledged);
                    let begun = Instant::now();
                    sent.refused += send_until_acknowledged(&client, &url, &event).await;
                    sent.slowest = sent.slowest.max(begun.elapsed());
                    sent.acknowledged += 1;
                    acknowledged[conversation].store(sent.acknowledged, Ordering::Relaxed);
                }
                (conversation, sent)
            }
        });
        let conversations = conversations.collect();
        Running { load: self, stop, acknowledged, conversations }
    }
}

impl Running {
    pub fn seed(&self) -> u64 {
        self.load.seed
    }

    /// How many events have been acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        self.marks().iter().sum()
    }

    /// How many events of each conversation have been acknowledged so far.
    pub fn marks(&self) -> Vec<usize> {
        self.acknowledged.iter().map(|acknowledged| acknowledged.load(Ordering::Relaxed)).collect()
    }

    /// Waits until this many further events have been acknowledged.
    pub async fn progress(&self, events: usize) {
        let goal = self.acknowledged() + events;
        eventually(PATIENCE, "the load is being acknowledged", async || self.acknowledged() >= goal).await;
    }

    /// Ends the load with the event that each conversation is just sending.
    pub async fn stop(self) -> Sent {
        self.stop.store(true, Ordering::Relaxed);
        self.finish().await
    }

    /// Waits until all is sent.
    pub async fn finish(self) -> Sent {
        let mut sent = Sent {
            acknowledged: vec![0; self.load.conversations],
            gone: vec![0; self.load.conversations],
            load: self.load,
            refused: 0,
            slowest: Duration::ZERO,
        };
        for (number, conversation) in self.conversations.join_all().await {
            sent.acknowledged[number] = conversation.acknowledged;
            sent.refused += conversation.refused;
            sent.slowest = sent.slowest.max(conversation.slowest);
        }
        sent
    }
}

impl Sent {
    pub fn seed(&self) -> u64 {
        self.load.seed
    }

    pub fn count(&self) -> usize {
        self.acknowledged.iter().sum()
    }

    /// For a destination that lost what it had, when `marks` were acknowledged: of each conversation, those events and the one that was
    /// then on its way may be gone. What came later may not, nor anything after the first event that is there.
    pub fn emptied_at(mut self, marks: &[usize]) -> Self {
        self.gone = marks.iter().zip(&self.acknowledged).map(|(&mark, &all)| all.min(mark + 1)).collect();
        self
    }

    /// Every conversation in one partition, complete and in order. Returns the number of duplicates.
    pub fn check_kafka(&self, consumed: &[Consumed]) -> usize {
        self.check("Kafka", in_kafka(consumed))
    }

    /// What is lost, duplicated and out of order. Messages of other loads may lie in the same topic.
    pub fn judge_kafka(&self, consumed: &[Consumed]) -> Verdict {
        let mark = format!("\"conversation_uuid\":\"{:016x}-", self.load.seed);
        let own = |message: &&Consumed| String::from_utf8_lossy(&message.payload).contains(&mark);
        let own: Vec<_> = consumed.iter().filter(own).cloned().collect();
        self.judge("Kafka", in_kafka(&own))
    }

    /// Every conversation complete and in order. Returns the number of duplicates.
    pub fn check_nats(&self, received: &[Received]) -> usize {
        let place = |message: &Received| Position { place: 0, offset: message.sequence };
        self.check("JetStream", received.iter().map(|message| (message.payload.as_slice(), place(message))))
    }

    /// Every conversation complete and in order. Returns the number of duplicates.
    pub fn check_stdout(&self, lines: &[String]) -> usize {
        // A killed process can leave a torn line behind.
        let whole = lines.iter().filter(|line| serde_json::from_str::<serde_json::Value>(line).is_ok());
        let events = whole.map(|line| line.split_once(",\"event\":").unwrap().1.strip_suffix('}').unwrap());
        let place = |line: usize| Position { place: 0, offset: line as u64 };
        self.check("stdout", events.enumerate().map(|(line, event)| (event.as_bytes(), place(line))))
    }

    fn check<'a>(&self, sink: &str, payloads: impl Iterator<Item = (&'a [u8], Position)>) -> usize {
        let verdict = self.judge(sink, payloads);
        assert!(verdict.is_clean(), "seed {}: {verdict:?}", self.load.seed);
        verdict.duplicated.try_into().unwrap()
    }

    /// The verdict is that of `cdrelay soak`.
    fn judge<'a>(&self, sink: &str, payloads: impl Iterator<Item = (&'a [u8], Position)>) -> Verdict {
        let Load { name, seed, .. } = &self.load;
        let mut oracle = Oracle::default();
        for (conversation, (&acknowledged, &gone)) in self.acknowledged.iter().zip(&self.gone).enumerate() {
            for _ in 0..acknowledged {
                oracle.sent(conversation, true);
                oracle.acknowledged(conversation);
            }
            oracle.emptied(conversation, gone);
        }
        let numbers: HashMap<_, _> = (0..self.load.conversations).map(|n| (self.load.conversation(n), n)).collect();
        for (payload, at) in payloads {
            let Mark { conversation_uuid, number } = serde_json::from_slice(payload).unwrap();
            let conversation = numbers[&conversation_uuid];
            assert_eq!(payload, self.load.event(conversation, number).as_bytes(), "seed {seed}");
            oracle.arrived(Delivery { conversation, number, sequence: 0, at });
        }
        let verdict = oracle.verdict();
        println!(
            "{name}: {sink}: {} events of {} conversations (seed {seed}), {} duplicates, {} out of order, {} lost; {} refused and sent again, slowest answer {:?}",
            self.count(),
            self.load.conversations,
            verdict.duplicated,
            verdict.reordered,
            verdict.lost.len(),
            self.refused,
            self.slowest,
        );
        verdict
    }
}

fn in_kafka(consumed: &[Consumed]) -> impl Iterator<Item = (&[u8], Position)> {
    consumed.iter().map(|message| {
        let (place, offset) = (message.partition.try_into().unwrap(), message.offset.try_into().unwrap());
        (message.payload.as_slice(), Position { place, offset })
    })
}

/// Waits until these sinks have delivered everything that was acknowledged.
pub async fn settled(bridge: &Bridge, sinks: &[&str]) {
    for sink in sinks {
        let lag = format!("cdrelay_sink_lag_records{{sink=\"{sink}\"}}");
        let what = format!("{sink} has got everything");
        eventually(PATIENCE, &what, async || bridge.metric(&lag).await == Some(0.0)).await;
    }
}
