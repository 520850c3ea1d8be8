//! Sends the events: an open loop at a rate over many conversations, each of which sends one event at a time.
//!
//! An event that was not acknowledged is sent again until it is, so that a bridge may be away for a while. When all conversations
//! wait for an acknowledgement, the moments at which something should have been sent pass unused; they are counted, not made up for.

use super::generator::{self, Generator};
use super::latency::Latency;
use super::observer::Observer;
use crate::http_client::{Answer, ClientConfig, HttpClient};
use hyper::{StatusCode, Uri};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// An answer that takes longer counts as none.
const ANSWER: Duration = Duration::from_secs(10);
/// Between two attempts to send an event, doubled each time.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// The number of idle connections that are kept. A bridge limits its connections, so connections opened during a stall are closed again.
const IDLE_CONNECTIONS: usize = 64;
/// More of an answer than is ever needed.
const ANSWER_BYTES: usize = 64 << 10;

/// How much to send where.
#[derive(Clone, Debug)]
pub struct Load {
    /// The bridge's webhook.
    pub url: Uri,
    /// How TLS is spoken, if the URL asks for it.
    pub tls: ClientConfig,
    /// Events per second.
    pub rate: f64,
    /// For how long.
    pub duration: Duration,
    /// How many conversations are under way at once.
    pub conversations: usize,
    /// After how many events a conversation ends and a new one takes its place.
    pub events: usize,
}

/// Counts sent events.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Counts {
    /// Conversations that were begun.
    pub conversations: u64,
    /// Events that were acknowledged.
    pub accepted: u64,
    /// Those among them that the bridge had from an earlier attempt whose answer did not come through.
    pub known: u64,
    /// Attempts that were not acknowledged. The event was sent again.
    pub refused: u64,
    /// Events that were given up without an acknowledgement: they may be stored or not.
    pub unacknowledged: u64,
    /// Moments at which an event was due.
    #[serde(skip)]
    pub due: u64,
    /// Those among them at which every conversation waited for an acknowledgement.
    #[serde(skip)]
    pub missed: u64,
}

/// The progress of sending.
#[derive(Default)]
pub struct Sent {
    /// How many events there were of each kind.
    pub counts: Counts,
    /// Why the last attempt was not acknowledged, if so.
    pub last_error: Option<String>,
    /// From the first attempt to the acknowledgement.
    pub latency: Latency,
}

/// The bridge answers in a way that sending again does not mend.
#[derive(Debug, thiserror::Error)]
#[error("{url} answered {status}: {detail}")]
pub struct Unusable {
    url: Uri,
    status: StatusCode,
    detail: String,
}

/// How far sending may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// New events are sent.
    Sending,
    /// No new events; requests in flight may still be acknowledged.
    Finishing,
    /// Nothing more is tried.
    Over,
}

#[derive(Clone, Copy)]
struct Conversation {
    index: usize,
    number: usize,
}

#[derive(Deserialize)]
struct Stored {
    #[serde(default)]
    duplicates: u64,
}

struct Sender {
    load: Load,
    client: HttpClient,
    generator: Arc<Generator>,
    observers: Vec<Arc<Observer>>,
    began: Instant,
    sent: Arc<Mutex<Sent>>,
    phase: watch::Receiver<Phase>,
}

/// Sends for the duration, or until `phase` says otherwise, and returns when nothing is on its way any more.
pub async fn send(
    load: Load,
    generator: Arc<Generator>,
    observers: Vec<Arc<Observer>>,
    began: Instant,
    sent: Arc<Mutex<Sent>>,
    phase: watch::Receiver<Phase>,
) -> Result<(), Unusable> {
    let client = HttpClient::new(load.tls.clone(), IDLE_CONNECTIONS);
    Arc::new(Sender { load, client, generator, observers, began, sent, phase }).run().await
}

impl Sender {
    async fn run(self: Arc<Self>) -> Result<(), Unusable> {
        let start = Instant::now();
        let total = (self.load.rate * self.load.duration.as_secs_f64()).ceil() as u64;
        let moment = |tick: u64| start + Duration::from_secs_f64(tick as f64 / self.load.rate);
        let mut phase = self.phase.clone();
        let mut idle: VecDeque<Conversation> =
            (0..self.load.conversations).map(|index| Conversation { index, number: 0 }).collect();
        let mut begun = self.load.conversations;
        let mut on_their_way = JoinSet::new();
        let mut tick = 0;
        while tick < total {
            tokio::select! {
                () = sleep_until(moment(tick)) => {
                    tick += 1;
                    self.sent.lock().counts.due += 1;
                    match idle.pop_front() {
                        Some(conversation) => drop(on_their_way.spawn(self.clone().advance(conversation))),
                        None => self.sent.lock().counts.missed += 1,
                    }
                }
                Some(done) = on_their_way.join_next() => {
                    // A task that panicked has lost its conversation; nothing here panics.
                    let Ok(advanced) = done else { continue };
                    let Some(mut conversation) = advanced? else { continue };
                    if conversation.number == self.load.events {
                        conversation = Conversation { index: begun, number: 0 };
                        begun += 1;
                    }
                    idle.push_back(conversation);
                }
                _ = phase.wait_for(|phase| *phase != Phase::Sending) => break,
            }
        }
        while let Some(done) = on_their_way.join_next().await {
            done.map_or(Ok(None), |advanced| advanced)?;
        }
        Ok(())
    }

    /// Sends the conversation's next event until it is acknowledged; `None` if it is given up.
    async fn advance(self: Arc<Self>, conversation: Conversation) -> Result<Option<Conversation>, Unusable> {
        let Conversation { index, number } = conversation;
        let first = Instant::now();
        let at = u64::try_from(first.duration_since(self.began).as_micros()).unwrap_or(u64::MAX);
        let text = self.generator.event(index, number, at);
        if let Some(event) = generator::parse(&text) {
            self.observers.iter().for_each(|observer| observer.sent(index, &event));
        }
        self.sent.lock().counts.conversations += u64::from(number == 0);
        let mut phase = self.phase.clone();
        let mut pause = PAUSE;
        loop {
            let over = phase.wait_for(|phase| *phase == Phase::Over);
            let answer = tokio::select! {
                answer = self.post(text.clone()) => answer,
                _ = over => {
                    self.sent.lock().counts.unacknowledged += 1;
                    return Ok(None);
                }
            };
            match answer? {
                Ok(duplicates) => {
                    self.observers.iter().for_each(|observer| observer.acknowledged(index));
                    let mut sent = self.sent.lock();
                    sent.counts.accepted += 1;
                    sent.counts.known += duplicates;
                    sent.latency.record(u64::try_from(first.elapsed().as_micros()).unwrap_or(u64::MAX));
                    sent.last_error = None;
                    return Ok(Some(Conversation { index, number: number + 1 }));
                }
                Err(last_error) => {
                    let mut sent = self.sent.lock();
                    sent.counts.refused += 1;
                    sent.last_error = Some(last_error);
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// How many events of the request the bridge had already, or why it did not take it.
    async fn post(&self, body: String) -> Result<Result<u64, String>, Unusable> {
        let exchange = self.client.post(&self.load.url, body, ANSWER_BYTES);
        let Answer { status, body, .. } = match timeout(ANSWER, exchange).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(last_error)) => return Ok(Err(last_error.to_string())),
            Err(_) => return Ok(Err(format!("no answer within {ANSWER:?}"))),
        };
        let detail = || String::from_utf8_lossy(&body).trim().chars().take(200).collect::<String>();
        match status {
            _ if status.is_success() => {
                Ok(Ok(serde_json::from_slice(&body).map_or(0, |stored: Stored| stored.duplicates)))
            }
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Ok(Err(format!("{status}: {}", detail()))),
            _ if status.is_server_error() => Ok(Err(format!("{status}: {}", detail()))),
            _ => Err(Unusable { url: self.load.url.clone(), status, detail: detail() }),
        }
    }
}
