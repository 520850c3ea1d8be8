//! The HTTP service for webhooks: request → events → append → status.
//!
//! A 2xx is sent only after the spool has said that the events are durable; with `ack = "delivered"` a 200 only after the
//! required sinks have them. Errors are problem details (RFC 9457).

pub mod auth;
pub mod decode;
mod delivery;
mod refusal;
pub mod routes;
pub mod tls;

pub use delivery::Delivery;

use crate::dead_letter::undecodable::{self, Refused, Undecodable};
use crate::event::Arrival;
use crate::http::{Answer, Limits, Peer};
use crate::metrics::{IngressMetrics, StatusLabel};
use crate::spool::{AppendError, Appended, Placed, Spool};
use auth::Head;
use bytes::{Bytes, BytesMut};
use bytesize::ByteSize;
use decode::Content;
use delivery::Delivered;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use refusal::{Refusal, refusal, unauthorized};
use routes::{Route, Routes};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};

/// `[ingress]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The path of the route `default`, which there is only with it if there are others.
    pub path: Option<String>,
    /// The methods of the route `default`.
    pub methods: Vec<routes::Taken>,
    /// What the route `default` asks of a request.
    pub auth: Vec<auth::Config>,
    /// The labels of the route `default`.
    pub labels: BTreeMap<String, String>,
    /// The CloudEvents source of the route `default`.
    pub source: Option<String>,
    /// Further routes.
    pub routes: BTreeMap<String, routes::Config>,
    /// How large a body may be.
    pub max_body: ByteSize,
    /// How many bytes of large bodies may be in memory, and about as many for decoded events that are not stored yet;
    /// further requests wait for their turn, up to `body_timeout`.
    pub max_bodies: ByteSize,
    /// How many connections there may be; further ones wait until one ends.
    pub max_connections: usize,
    /// How long a body may take to arrive.
    #[serde(with = "crate::setting::period")]
    pub body_timeout: Duration,
    /// How long a connection may take for the next request's header, the time it stays idle included, and to read an answer.
    #[serde(with = "crate::setting::period")]
    pub header_timeout: Duration,
    /// What a 200 says.
    pub ack: Ack,
    /// With `ack = "delivered"`, how long a stored request waits for the sinks.
    #[serde(with = "crate::setting::period")]
    pub delivery_timeout: Duration,
    /// Encryption, if the ingress is to speak it.
    pub tls: Option<tls::Config>,
    /// How bodies are read.
    pub decode: decode::Config,
    /// How many bodies are kept that could not be read.
    pub undecodable: undecodable::Config,
}

/// What a 200 says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ack {
    /// The events are durable and will reach every sink.
    Stored,
    /// They have reached every required sink.
    Delivered,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            path: None,
            methods: routes::default_methods(),
            auth: Vec::new(),
            labels: BTreeMap::new(),
            source: None,
            routes: BTreeMap::new(),
            max_body: ByteSize::mib(1),
            max_bodies: ByteSize::mib(4),
            max_connections: 512,
            body_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(75),
            ack: Ack::Stored,
            delivery_timeout: Duration::from_secs(10),
            tls: None,
            decode: decode::Config::default(),
            undecodable: undecodable::Config::default(),
        }
    }
}

impl Config {
    /// What connections are allowed.
    pub fn limits(&self) -> Limits {
        Limits { header_timeout: self.header_timeout, max_connections: self.max_connections }
    }
}

/// The service behind the ingress listener.
#[derive(Debug)]
pub struct Ingress {
    config: Config,
    routes: Routes,
    spool: Arc<Spool>,
    undecodable: Arc<Undecodable>,
    metrics: IngressMetrics,
    /// Who waits for the sinks, if anybody is to.
    delivery: Option<Delivery>,
    /// A permit for every byte of large body that may be in memory.
    bodies: Arc<Semaphore>,
    /// A permit for every byte that decoding and the decoded events may take, `budget` of them.
    events: Arc<Semaphore>,
    budget: usize,
}

/// A body may have as many bytes as this without waiting for memory, which is less than its connection holds anyway: webhooks
/// are small, and do not wait behind slow clients with large bodies.
const SMALL_BODY: usize = 16 << 10;

/// A body and the memory it takes.
type Held = (Bytes, Option<OwnedSemaphorePermit>);

impl Ingress {
    /// A service that stores what it takes in `spool`, and hands over to `undecodable` what it cannot take.
    pub fn new(
        config: Config,
        routes: Routes,
        spool: Arc<Spool>,
        undecodable: Arc<Undecodable>,
        metrics: IngressMetrics,
    ) -> Self {
        let budget = (config.max_bodies.as_u64() as usize).min(Semaphore::MAX_PERMITS);
        let [bodies, events] = [budget, budget].map(|bytes| Arc::new(Semaphore::new(bytes)));
        Self { config, routes, spool, undecodable, metrics, delivery: None, bodies, budget, events }
    }

    /// The same, and requests wait for `delivery`.
    pub fn waiting_for(self, delivery: Delivery) -> Self {
        Self { delivery: Some(delivery), ..self }
    }

    /// Answers one request.
    pub async fn answer(&self, request: Request<Incoming>, peer: Peer) -> Answer {
        self.metrics.in_flight.inc();
        let in_flight = InFlight(self);
        let head = request.method() == Method::HEAD;
        let mut answer = match self.accept(request, peer).await {
            Ok(placed) => self.acknowledge(placed).await,
            Err(refusal) => refusal.answer(),
        };
        drop(in_flight);
        self.metrics.requests.get_or_create(&StatusLabel { status: answer.status().as_u16() }).inc();
        if head {
            *answer.body_mut() = Full::default();
        }
        answer
    }

    async fn accept(&self, request: Request<Incoming>, peer: Peer) -> Result<Placed, Refusal> {
        let unread = |refusal| Refusal { body_unread: true, ..refusal };
        let (parts, body) = request.into_parts();
        let (route, path_secret) = self.routes.find(parts.uri.path()).ok_or_else(|| unread(self.not_found()))?;
        let head = Head { parts: &parts, path_secret, peer: peer.address.ip() };
        self.check(route, &head).map_err(unread)?;
        if parts.method == Method::HEAD {
            route.auth.check_body(&head, &[]).map_err(|denied| unauthorized(route, denied))?;
            return Ok(Placed::default());
        }
        let (bytes, held) = self.read(body).await.map_err(unread)?;
        route.auth.check_body(&head, &bytes).map_err(|denied| unauthorized(route, denied))?;
        let arrival = Arrival::now();
        let query = parts.uri.query().map(|query| route.auth.strip(query));
        let content = Content {
            method: parts.method.as_str(),
            query: query.as_deref(),
            content_type: parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()),
            body: &bytes,
        };
        let memory = decode::memory(content.text(), &self.config.decode);
        let memory = reserve(&self.events, memory.min(self.budget)).await?;
        let events = match content.decode(&self.config.decode, arrival) {
            Ok(events) => events,
            Err(error) => {
                let refusal = Refusal::from(error);
                self.keep(route, &content, arrival, &refusal);
                return Err(refusal);
            }
        };
        drop((bytes, held));
        route.auth.check_events(&events).map_err(|denied| unauthorized(route, denied))?;
        if events.is_empty() {
            return Ok(Placed::default());
        }
        self.spool.place_holding(route.mark(events), memory).await.map_err(Refusal::from)
    }

    /// Keeps what came, which may be a call, if anything came.
    fn keep(&self, route: &Route, content: &Content<'_>, arrival: Arrival, refusal: &Refusal) {
        let empty = content.body.trim_ascii().is_empty();
        // Beside a body, the query may hold a secret and nothing that is needed.
        let query = content.query.filter(|query| empty && !query.is_empty());
        if empty && query.is_none() {
            return;
        }
        self.undecodable.keep(Refused {
            arrival,
            status: refusal.status.as_u16(),
            reason: refusal.detail.as_str().into(),
            place: refusal.place,
            ingress: route.name().into(),
            method: content.method.into(),
            content_type: content.content_type.map(Into::into),
            query: query.map(Into::into),
            body: content.body.into(),
        });
    }

    /// What can be said without the body.
    fn check(&self, route: &Route, head: &Head<'_>) -> Result<(), Refusal> {
        let parts = head.parts;
        if let Err(denied) = route.auth.check_path(head.path_secret) {
            route.denied(denied);
            return Err(self.not_found());
        }
        if !route.takes(&parts.method) {
            let (methods, allow) = route.methods();
            return Err(Refusal {
                header: Some(Box::new((header::ALLOW, allow))),
                ..refusal(StatusCode::METHOD_NOT_ALLOWED, format!("webhooks come by {methods}"))
            });
        }
        route.auth.check_head(head).map_err(|denied| unauthorized(route, denied))?;
        let encoding = parts.headers.get_all(header::CONTENT_ENCODING).iter();
        match encoding.into_iter().find(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
            None => Ok(()),
            Some(encoding) => Err(Refusal {
                header: Some(Box::new((header::ACCEPT_ENCODING, HeaderValue::from_static("identity")))),
                ..refusal(
                    StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    format!("bodies encoded as {encoding:?} are not taken; send them plain"),
                )
            }),
        }
    }

    /// Reads the body within the bounds of size, time and memory.
    async fn read(&self, mut body: Incoming) -> Result<Held, Refusal> {
        if body.is_end_stream() {
            return Ok((Bytes::new(), None));
        }
        let declared = body.size_hint().exact().map(|size| usize::try_from(size).unwrap_or(usize::MAX));
        let most = self.config.max_body.as_u64() as usize;
        if declared.is_some_and(|size| size > most) {
            return Err(self.too_large());
        }
        let mut held = None;
        if declared.is_some_and(|size| size > SMALL_BODY) {
            held = Some(self.reserve_body(declared.unwrap_or(most)).await?);
        }
        let timeout = self.config.body_timeout;
        let mut deadline = Instant::now() + timeout;
        let mut first = Bytes::new();
        let mut all = BytesMut::new();
        while let Some(frame) = timeout_at(deadline, body.frame()).await.map_err(|_| too_slow(timeout))? {
            let frame =
                frame.map_err(|_| refusal(StatusCode::BAD_REQUEST, "the body broke off or is not framed well"))?;
            let Ok(data) = frame.into_data() else { continue };
            let size = first.len() + all.len() + data.len();
            if size > most {
                return Err(self.too_large());
            }
            if size > SMALL_BODY && held.is_none() {
                // All that it may come to, at once: bodies that grow side by side could each lack the rest for ever.
                held = Some(self.reserve_body(most).await?);
                deadline = Instant::now() + timeout;
            }
            // Most bodies come in one piece, which needs no copy.
            if size == data.len() {
                first = data;
            } else {
                if all.is_empty() {
                    all.reserve(declared.unwrap_or(if held.is_some() { most } else { SMALL_BODY }));
                }
                all.extend_from_slice(&std::mem::take(&mut first));
                all.extend_from_slice(&data);
            }
        }
        let bytes = if all.is_empty() { first } else { all.freeze() };
        if let Some(held) = &mut held {
            drop(held.split(held.num_permits().saturating_sub(bytes.len())));
        }
        Ok((bytes, held))
    }

    async fn reserve_body(&self, size: usize) -> Result<OwnedSemaphorePermit, Refusal> {
        timeout(self.config.body_timeout, reserve(&self.bodies, size)).await.unwrap_or_else(|_| {
            Err(Refusal {
                header: Some(Box::new((header::RETRY_AFTER, HeaderValue::from_static("1")))),
                ..refusal(StatusCode::SERVICE_UNAVAILABLE, "too many large bodies are on their way")
            })
        })
    }

    /// What is stored is acknowledged, at once or when it is delivered.
    async fn acknowledge(&self, placed: Placed) -> Answer {
        let appended = placed.count();
        let Some(delivery) = &self.delivery else { return success(StatusCode::OK, appended, "") };
        let Delivered { complete, dead_letters } = delivery.wait(placed).await;
        let status = if complete { StatusCode::OK } else { StatusCode::ACCEPTED };
        success(status, appended, &format!(",\"delivered\":{complete},\"dead_letters\":{dead_letters}"))
    }

    fn not_found(&self) -> Refusal {
        let detail = match self.routes.only_path() {
            Some(path) => format!("webhooks are taken at {path}"),
            None => "no webhooks are taken at this path".into(),
        };
        refusal(StatusCode::NOT_FOUND, detail)
    }

    fn too_large(&self) -> Refusal {
        refusal(StatusCode::PAYLOAD_TOO_LARGE, format!("a body may have {} bytes", self.config.max_body.as_u64()))
    }
}

async fn reserve(memory: &Arc<Semaphore>, bytes: usize) -> Result<OwnedSemaphorePermit, Refusal> {
    let permit = memory.clone().acquire_many_owned(u32::try_from(bytes).unwrap_or(u32::MAX)).await;
    permit.map_err(|_| AppendError::Closed.into())
}

fn too_slow(timeout: Duration) -> Refusal {
    let seconds = timeout.as_secs_f64();
    refusal(StatusCode::REQUEST_TIMEOUT, format!("the body was not complete within {seconds} s"))
}

struct InFlight<'a>(&'a Ingress);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.metrics.in_flight.dec();
    }
}

fn success(status: StatusCode, Appended { stored, duplicates }: Appended, more: &str) -> Answer {
    let body = match (stored, duplicates, more) {
        // Nearly every answer.
        (1, 0, "") => Bytes::from_static(b"{\"stored\":1,\"duplicates\":0}\n"),
        _ => format!("{{\"stored\":{stored},\"duplicates\":{duplicates}{more}}}\n").into(),
    };
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}
