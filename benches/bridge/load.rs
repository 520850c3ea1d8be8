//! The load: webhooks, as many as are answered (closed loop) or at a fixed rate (open loop).

mod body;
mod client;
mod event;
mod pace;

pub use body::{Bodies, SECRET, Shape};
pub use client::Over;

use crate::support::tls;
use client::Client;
use http_body_util::BodyExt;
use pace::Due;
use ring::hmac;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, sleep_until};

/// How long it runs before it is measured.
pub const WARM_UP: Duration = Duration::from_secs(1);

/// What came of it while it was measured.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    pub events: u64,
    pub seconds: f64,
    /// How long answers took, in microseconds, ascending. In an open loop they count from when the request was due.
    pub latencies: Vec<u32>,
    /// By how much requests came late to the connections in an open loop, in microseconds, ascending.
    pub late: Vec<u32>,
}

impl Measured {
    pub fn rate(&self) -> f64 {
        self.events as f64 / self.seconds
    }

    /// The latency that this share of the answers did not exceed, in milliseconds.
    pub fn percentile(&self, share: f64) -> f64 {
        percentile(&self.latencies, share)
    }
}

/// What this share of the times, ascending in microseconds, does not exceed: in milliseconds.
pub fn percentile(micros: &[u32], share: f64) -> f64 {
    let last = micros.len().saturating_sub(1);
    micros.get((last as f64 * share) as usize).map_or(f64::NAN, |micros| f64::from(*micros) / 1000.0)
}

/// Clients that send.
pub struct Load {
    shape: Shape,
    bodies: Rc<Bodies>,
    clients: Vec<Client>,
    local: LocalSet,
}

impl Load {
    /// Connects the clients, by TLS if there is somebody who speaks it.
    pub async fn connect(address: &str, shape: Shape, tls: Option<&tls::Client>) -> Self {
        let local = LocalSet::new();
        let clients = Client::connect(address, shape.clients, shape.over, tls, &local).await;
        Self { shape, bodies: Rc::new(Bodies::new(shape)), clients, local }
    }

    /// Each client sends its next request as soon as the last one was answered. What `begin` returns after `warm_up` and
    /// `end` after `measure` is returned along with what was measured in between.
    pub async fn closed<T>(self, warm_up: Duration, measure: Duration, mark: impl Fn() -> T) -> (Measured, T, T) {
        let begin = Instant::now() + warm_up;
        let end = begin + measure;
        let counts = move |_, answered| answered >= begin && answered < end;
        self.run(begin, end, mark, counts, |mut sending| {
            Box::pin(async move {
                while Instant::now() < end {
                    sending.send(Instant::now()).await;
                }
            })
        })
        .await
    }

    /// All clients together send `rate` requests in a second, whether or not earlier ones were answered in time.
    pub async fn open<T>(
        self,
        rate: f64,
        warm_up: Duration,
        measure: Duration,
        mark: impl Fn() -> T,
    ) -> (Measured, T, T) {
        let start = Instant::now();
        let (begin, end) = (start + warm_up, start + warm_up + measure);
        let due = Rc::new(Due::new());
        let pace = self.local.spawn_local({
            let due = due.clone();
            async move { due.bring(rate, start, end).await }
        });
        // By when they were due: what is answered late must not be left out for that.
        let counts = move |since, _| since >= begin && since < end;
        let (mut measured, first, last) = self
            .run(begin, end, mark, counts, move |mut sending| {
                let due = due.clone();
                Box::pin(async move {
                    while let Some(since) = due.next().await {
                        sending.send(since).await;
                    }
                })
            })
            .await;
        measured.late = pace.await.unwrap();
        (measured, first, last)
    }

    async fn run<T>(
        self,
        begin: Instant,
        end: Instant,
        mark: impl Fn() -> T,
        counts: impl Fn(Instant, Instant) -> bool + 'static,
        sends: impl Fn(Sending) -> std::pin::Pin<Box<dyn Future<Output = ()>>>,
    ) -> (Measured, T, T) {
        let latencies = Rc::new(RefCell::new(Vec::with_capacity(1 << 20)));
        let Self { shape, bodies, clients, local } = self;
        let counts: Rc<dyn Fn(Instant, Instant) -> bool> = Rc::new(counts);
        let mut tasks = JoinSet::new();
        for client in clients {
            let sending = Sending {
                key: shape.signed.then(|| hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes())),
                client,
                bodies: bodies.clone(),
                latencies: latencies.clone(),
                counts: counts.clone(),
            };
            tasks.spawn_local_on(sends(sending), &local);
        }
        let marks = local
            .run_until(async {
                sleep_until(begin).await;
                let first = mark();
                sleep_until(end).await;
                let marks = (first, mark());
                while let Some(done) = tasks.join_next().await {
                    done.unwrap();
                }
                marks
            })
            .await;
        let mut latencies = latencies.take();
        latencies.sort_unstable();
        let events = (latencies.len() * shape.events) as u64;
        let seconds = (end - begin).as_secs_f64();
        let measured = Measured { events, seconds, latencies, late: Vec::new() };
        (measured, marks.0, marks.1)
    }
}

/// One client at work.
struct Sending {
    key: Option<hmac::Key>,
    client: Client,
    bodies: Rc<Bodies>,
    latencies: Rc<RefCell<Vec<u32>>>,
    /// Whether a request counts that began, or was due, and was answered at these times.
    counts: Rc<dyn Fn(Instant, Instant) -> bool>,
}

impl Sending {
    async fn send(&mut self, since: Instant) {
        let body = self.bodies.next();
        let signature = self.key.as_ref().map(|key| {
            let tag = hmac::sign(key, &body);
            let digits: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
            format!("sha256={digits}")
        });
        let answer = self.client.post(body, signature).await;
        assert_eq!(answer.status(), 200);
        answer.into_body().collect().await.unwrap();
        let now = Instant::now();
        if (self.counts)(since, now) {
            self.latencies.borrow_mut().push((now - since).as_micros() as u32);
        }
    }
}
