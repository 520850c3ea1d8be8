//! The load: webhooks over keep-alive connections, as many as are answered (closed loop) or at a fixed rate (open loop).

use crate::support::tls::Client;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use ring::hmac;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, sleep_until};

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub connections: usize,
    /// About how many bytes an event has.
    pub bytes: usize,
    /// Events in one request; more than one are sent as an array.
    pub events: usize,
    /// All in one conversation, or each in its own.
    pub one_conversation: bool,
    /// With a signature over the body, as GitHub makes it.
    pub signed: bool,
}

/// What signs.
pub const SECRET: &str = "a secret of the usual length, in 32+";

impl Default for Shape {
    fn default() -> Self {
        Self { connections: 64, bytes: 480, events: 1, one_conversation: false, signed: false }
    }
}

/// What came of it while it was measured.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    pub events: u64,
    pub seconds: f64,
    /// How long answers took, in microseconds, ascending. In an open loop they count from when the request was due.
    pub latencies: Vec<u32>,
}

impl Measured {
    pub fn rate(&self) -> f64 {
        self.events as f64 / self.seconds
    }

    /// The latency that this share of the answers did not exceed, in milliseconds.
    pub fn percentile(&self, share: f64) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        self.latencies.get((last as f64 * share) as usize).map_or(f64::NAN, |micros| f64::from(*micros) / 1000.0)
    }
}

/// Bodies that were never sent before, in this run or an earlier one.
struct Bodies {
    shape: Shape,
    run: u64,
    next: Cell<u64>,
}

impl Bodies {
    fn next(&self) -> Bytes {
        let Shape { events, .. } = self.shape;
        let event = || self.event(self.next.replace(self.next.get() + 1));
        if events == 1 {
            return event().into();
        }
        format!("[{}]", (0..events).map(|_| event()).collect::<Vec<_>>().join(",")).into()
    }

    /// A call detail record as TeleCMI documents it.
    fn event(&self, number: u64) -> String {
        let call = format!("{:016x}-{number:08x}", self.run);
        let conversation = if self.shape.one_conversation { "one" } else { &call };
        let mut text = format!(
            "{{\"virtual_number\":440000000001,\"appid\":2222223,\"type\":\"cdr\",\"direction\":\"inbound\",\"cmiuuid\":\"{call}\",\
             \"status\":\"missed\",\"from\":440000000000,\"time\":1634721099442,\"waitedsec\":127,\"hangup_reason\":\"recv_bye\",\
             \"voicemail\":true,\"voicename\":\"1634721220656289350027_2222223.mp3\",\"conversation_uuid\":\"{conversation}\",\
             \"team\":\"Sales_2222223\",\"ivr_name\":\"salesivr\",\"custom\":\""
        );
        text.extend(std::iter::repeat_n('x', self.shape.bytes.saturating_sub(text.len() + 2)));
        text + "\"}"
    }
}

/// Connections that send.
pub struct Load {
    shape: Shape,
    bodies: Rc<Bodies>,
    senders: Vec<SendRequest<Full<Bytes>>>,
    host: String,
    local: LocalSet,
}

impl Load {
    /// Connects as often as `shape` says, by TLS if there is a client for it.
    pub async fn connect(address: &str, shape: Shape, tls: Option<&Client>) -> Self {
        let local = LocalSet::new();
        let mut senders = Vec::new();
        for _ in 0..shape.connections {
            let stream = TcpStream::connect(address).await.unwrap();
            stream.set_nodelay(true).unwrap();
            senders.push(match tls {
                None => sender(stream, &local).await,
                Some(client) => sender(client.shake_hands(stream).await.unwrap(), &local).await,
            });
        }
        let bodies = Rc::new(Bodies { shape, run: fastrand::u64(..), next: Cell::new(0) });
        Self { shape, bodies, senders, host: address.to_owned(), local }
    }

    /// Each connection sends its next request as soon as the last one was answered. What `begin` returns after `warm_up` and
    /// `end` after `measure` is returned along with what was measured in between.
    pub async fn closed<T>(self, warm_up: Duration, measure: Duration, mark: impl Fn() -> T) -> (Measured, T, T) {
        let begin = Instant::now() + warm_up;
        let end = begin + measure;
        self.run(begin, end, mark, |mut sending| {
            Box::pin(async move {
                while Instant::now() < end {
                    sending.send(Instant::now()).await;
                }
            })
        })
        .await
    }

    /// All connections together send `rate` requests in a second, whether or not earlier ones were answered in time.
    pub async fn open<T>(
        self,
        rate: f64,
        warm_up: Duration,
        measure: Duration,
        mark: impl Fn() -> T,
    ) -> (Measured, T, T) {
        let start = Instant::now();
        let (begin, end) = (start + warm_up, start + warm_up + measure);
        let next = Rc::new(Cell::new(0_u64));
        self.run(begin, end, mark, move |mut sending| {
            let next = next.clone();
            Box::pin(async move {
                loop {
                    let number = next.replace(next.get() + 1);
                    let due = start + Duration::from_secs_f64(number as f64 / rate);
                    if due >= end {
                        break;
                    }
                    sleep_until(due).await;
                    sending.send(due).await;
                }
            })
        })
        .await
    }

    async fn run<T>(
        self,
        begin: Instant,
        end: Instant,
        mark: impl Fn() -> T,
        connection: impl Fn(Sending) -> std::pin::Pin<Box<dyn Future<Output = ()>>>,
    ) -> (Measured, T, T) {
        let latencies = Rc::new(std::cell::RefCell::new(Vec::with_capacity(1 << 20)));
        let Self { shape, bodies, senders, host, local } = self;
        let mut tasks = JoinSet::new();
        for sender in senders {
            let sending = Sending {
                key: shape.signed.then(|| hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes())),
                sender,
                bodies: bodies.clone(),
                host: host.clone(),
                latencies: latencies.clone(),
                begin,
                end,
            };
            tasks.spawn_local_on(connection(sending), &local);
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
        let measured = Measured { events, seconds: (end - begin).as_secs_f64(), latencies };
        (measured, marks.0, marks.1)
    }
}

async fn sender(stream: impl AsyncRead + AsyncWrite + Unpin + 'static, local: &LocalSet) -> SendRequest<Full<Bytes>> {
    let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
    local.spawn_local(connection);
    sender
}

/// One connection.
struct Sending {
    key: Option<hmac::Key>,
    sender: SendRequest<Full<Bytes>>,
    bodies: Rc<Bodies>,
    host: String,
    latencies: Rc<std::cell::RefCell<Vec<u32>>>,
    begin: Instant,
    end: Instant,
}

impl Sending {
    async fn send(&mut self, since: Instant) {
        let body = self.bodies.next();
        let mut request =
            Request::post("/webhook/cdr").header("host", &self.host).header("content-type", "application/json");
        if let Some(key) = &self.key {
            let tag = hmac::sign(key, &body);
            let digits: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
            request = request.header("x-hub-signature-256", format!("sha256={digits}"));
        }
        let request = request.body(Full::new(body)).unwrap();
        self.sender.ready().await.unwrap();
        let answer = self.sender.send_request(request).await.unwrap();
        assert_eq!(answer.status(), 200);
        answer.into_body().collect().await.unwrap();
        let now = Instant::now();
        if now >= self.begin && now < self.end {
            self.latencies.borrow_mut().push((now - since).as_micros() as u32);
        }
    }
}
