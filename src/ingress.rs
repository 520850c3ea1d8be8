//! The HTTP service for webhooks: request → events → append → status.
//!
//! A 2xx is sent only after the spool has said that the events are durable; with `ack = "delivered"` a 200 only after the
//! required sinks have them. Errors are problem details (RFC 9457).

pub mod auth;
mod body;
pub mod decode;
mod delivery;
mod refusal;
pub mod routes;
pub mod tls;
pub(crate) mod unpack;

pub use delivery::Delivery;
pub use refusal::{PROBLEM, Reason};
pub use unpack::TAKEN as PACKINGS;

use crate::dead_letter::rejected::{self, RejectedBodies, RejectedRequest};
use crate::event::Arrival;
use crate::http::{self, Answer, Arriving, Limits, Peer, Request, proxy_protocol};
use crate::metrics::{IngressMetrics, LimitMetrics, StatusLabel};
use crate::spool::{AppendError, Appended, Placed, Spool};
use auth::Head;
use body::{Bodies, Held, reserve};
use bytes::Bytes;
use bytesize::ByteSize;
use decode::Content;
use delivery::Delivered;
use hyper::header::{self, HeaderValue};
use hyper::{Method, StatusCode};
use prometheus_client::metrics::counter::Counter;
use refusal::{Refusal, refusal, unauthorized, unavailable};
use routes::{Route, Routes};
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use unpack::Packing;

/// `[ingress]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The path of the route `default`, which there is only with it if there are others.
    pub path: Option<String>,
    /// The methods of the route `default`.
    pub methods: Option<Vec<routes::Taken>>,
    /// What the route `default` asks of a request.
    pub auth: Vec<auth::Config>,
    /// The labels of the route `default`.
    pub labels: BTreeMap<String, String>,
    /// The CloudEvents source of the route `default`.
    pub source: Option<String>,
    /// Further routes.
    pub routes: BTreeMap<String, routes::Config>,
    /// How large a body may be, as it comes.
    pub max_body: ByteSize,
    /// How large a compressed body may be when it is unpacked; as `max_body` if nothing is said.
    pub max_unpacked_body: Option<ByteSize>,
    /// How many bytes of large bodies may be in memory, and about as many for decoded events that are not stored yet;
    /// further requests wait for their turn, up to `body_timeout`.
    pub max_bodies: ByteSize,
    /// How many connections there may be; for a further one, that which has kept us waiting longest has to end.
    pub max_connections: usize,
    /// How many of them may come from one address.
    pub max_connections_per_peer: Option<usize>,
    /// How many requests may be on their way to the spool, besides one for each connection.
    pub max_requests: usize,
    /// How long a body may take to arrive.
    #[serde(with = "crate::setting::period")]
    pub body_timeout: Duration,
    /// How many bytes a second a body has to bring, once some seconds have passed; 0 for no such bound.
    pub min_body_rate: ByteSize,
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
    /// Which proxies say where connections come from, if any are to.
    pub proxy_protocol: Option<proxy_protocol::Config>,
    /// How bodies are read.
    pub decode: decode::Config,
    /// How many bodies are kept that could not be read.
    pub rejected: rejected::Config,
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
            methods: None,
            auth: Vec::new(),
            labels: BTreeMap::new(),
            source: None,
            routes: BTreeMap::new(),
            max_body: ByteSize::mib(1),
            max_unpacked_body: None,
            max_bodies: ByteSize::mib(4),
            max_connections: 512,
            max_connections_per_peer: None,
            max_requests: 2048,
            body_timeout: Duration::from_secs(10),
            min_body_rate: ByteSize::kib(1),
            header_timeout: Duration::from_secs(75),
            ack: Ack::Stored,
            delivery_timeout: Duration::from_secs(10),
            tls: None,
            proxy_protocol: None,
            decode: decode::Config::default(),
            rejected: rejected::Config::default(),
        }
    }
}

impl Config {
    /// How large a body may be, compressed or not, when it is read for events.
    pub fn largest_body(&self) -> ByteSize {
        self.max_unpacked_body.unwrap_or(self.max_body)
    }

    /// What connections are allowed, counted in `metrics`.
    pub fn limits(&self, metrics: LimitMetrics) -> Limits {
        Limits {
            header_timeout: self.header_timeout,
            max_connections: self.max_connections,
            max_connections_per_peer: self.max_connections_per_peer,
            max_requests: self.max_requests,
            metrics,
        }
    }
}

/// The service behind the ingress listener.
#[derive(Debug)]
pub struct Ingress {
    config: Config,
    routes: Routes,
    spool: Arc<Spool>,
    rejected: Arc<RejectedBodies>,
    metrics: IngressMetrics,
    /// The one of those metrics that nearly every request counts in, once it is there.
    succeeded: OnceLock<Counter>,
    /// Who waits for the sinks, if anybody is to.
    delivery: Option<Delivery>,
    bodies: Bodies,
    /// A permit for every byte that decoding and the decoded events may take, `budget` of them.
    events: Arc<Semaphore>,
    budget: usize,
}

impl Ingress {
    /// A service that stores what it takes in `spool`, and hands over to `rejected` what it cannot take.
    pub fn new(
        config: Config,
        routes: Routes,
        spool: Arc<Spool>,
        rejected: Arc<RejectedBodies>,
        metrics: IngressMetrics,
    ) -> Self {
        let budget = (config.max_bodies.as_u64() as usize).min(Semaphore::MAX_PERMITS);
        let bodies = Bodies::new(&config, budget, metrics.limits.clone());
        let events = Arc::new(Semaphore::new(budget));
        let succeeded = OnceLock::new();
        Self { config, routes, spool, rejected, metrics, succeeded, delivery: None, bodies, budget, events }
    }

    /// The same, and requests wait for `delivery`.
    pub fn waiting_for(self, delivery: Delivery) -> Self {
        Self { delivery: Some(delivery), ..self }
    }

    /// Answers one request. What is done at once is done before there is a future, which would have room for it until the end.
    pub fn answer(self: &Arc<Self>, request: Request, peer: Peer) -> impl Future<Output = Answer> + use<> {
        self.metrics.in_flight.inc();
        let in_flight = InFlight(self.clone());
        let Request { head, body } = request;
        async move {
            let ingress = &in_flight.0;
            let bodiless = head.method() == Method::HEAD;
            let accepted = ingress.accept(&head, body, peer).await;
            // With them goes the permit of a request that is stored now, and may wait for the sinks yet.
            drop(head);
            let mut answer = match accepted {
                Ok(placed) => ingress.acknowledge(placed).await,
                Err(refusal) => refusal.answer(),
            };
            ingress.count(answer.status);
            if bodiless {
                answer.body = Bytes::new();
            }
            answer
        }
    }

    fn count(&self, status: StatusCode) {
        let counter = || self.metrics.requests.get_or_create_owned(&StatusLabel { status: status.as_u16() });
        let _ = match status {
            StatusCode::OK => self.succeeded.get_or_init(counter).inc(),
            _ => counter().inc(),
        };
    }

    async fn accept(&self, request: &http::Head, body: Arriving, peer: Peer) -> Result<Placed, Refusal> {
        let unread = |refusal| Refusal { body_unread: true, ..refusal };
        if peer.crowded {
            return Err(unread(unavailable(1, "too many requests are on their way")));
        }
        let (route, path_secret) = self.routes.find(request.path()).ok_or_else(|| unread(not_found()))?;
        let head = Head { request, path_secret, peer: peer.address.ip() };
        let packing = self.check(route, &head).map_err(unread)?;
        if request.method() == Method::HEAD {
            route.auth.check_body(&head, &[]).map_err(|denied| unauthorized(route, denied, head.peer))?;
            return Ok(Placed::default());
        }
        let (bytes, held) = self.bodies.read(body).await.map_err(unread)?;
        route.auth.check_body(&head, &bytes).map_err(|denied| unauthorized(route, denied, head.peer))?;
        let arrival = Arrival::now();
        let (bytes, held) = if packing.is_none() {
            (bytes, held)
        } else {
            Box::pin(self.unpack(route, request, packing, (bytes, held), arrival)).await?
        };
        let query = query(route, request);
        let content = content(request, query.as_deref(), &bytes);
        let memory = reserve(&self.events, content.memory(&self.config.decode).min(self.budget)).await?;
        // What takes room is done with before what is waited for.
        let placing = self.place(route, &head, &content, arrival, memory)?;
        drop((query, bytes, held));
        match placing {
            Some(placing) => placing.await.map_err(Refusal::from),
            None => Ok(Placed::default()),
        }
    }

    async fn unpack(
        &self,
        route: &Route,
        request: &http::Head,
        packing: Packing,
        (packed, held): Held,
        arrival: Arrival,
    ) -> Result<Held, Refusal> {
        let unpacked = self.bodies.unpack(packing, packed.clone(), held).await;
        if let Err(refusal) = &unpacked
            && refusal.reason == Reason::Malformed
        {
            // What cannot be unpacked may be a call too, and is kept as it came. What is too large is not kept, packed or not.
            let query = query(route, request);
            self.keep(route, &content(request, query.as_deref(), &packed), arrival, refusal);
        }
        unpacked
    }

    /// Puts the events of a request before the spool, if there are any. `memory` is what they take.
    fn place<'a>(
        &'a self,
        route: &Route,
        head: &Head<'_>,
        content: &Content<'_>,
        arrival: Arrival,
        memory: OwnedSemaphorePermit,
    ) -> Result<Option<impl Future<Output = Result<Placed, AppendError>> + use<'a>>, Refusal> {
        let events = content.decode(&self.config.decode, arrival).map_err(|error| {
            let refusal = Refusal::from(error);
            self.keep(route, content, arrival, &refusal);
            refusal
        })?;
        let denied = route.auth.check_events(head.request.query(), &events);
        denied.map_err(|denied| unauthorized(route, denied, head.peer))?;
        if events.is_empty() {
            return Ok(None);
        }
        Ok(Some(self.spool.place_holding(route.mark(events), memory)))
    }

    /// Keeps what came, which may be a call, if anything came.
    fn keep(&self, route: &Route, content: &Content<'_>, arrival: Arrival, refusal: &Refusal) {
        let empty = content.body.trim_ascii().is_empty();
        let query = content.query.filter(|query| !query.is_empty());
        if empty && query.is_none() {
            return;
        }
        self.rejected.keep(&RejectedRequest {
            arrival,
            status: refusal.reason.status().as_u16(),
            reason: &refusal.detail,
            place: refusal.place,
            ingress: route.name(),
            method: content.method,
            content_type: content
                .content_type
                .and_then(|value| str::from_utf8(value).ok())
                .filter(|value| value.is_ascii()),
            query,
            body: content.body,
        });
    }

    /// What can be said without the body: whether it is wanted, and how it is packed.
    fn check(&self, route: &Route, head: &Head<'_>) -> Result<Packing, Refusal> {
        let request = head.request;
        if let Err(denied) = route.auth.check_path(head.path_secret) {
            route.denied(denied, head.peer);
            return Err(not_found());
        }
        if !route.takes(request.method()) {
            let (methods, allow) = route.methods();
            return Err(Refusal {
                remedy: Some(allow),
                ..refusal(Reason::Method, format!("webhooks come by {methods}"))
            });
        }
        route.auth.check_head(head).map_err(|denied| unauthorized(route, denied, head.peer))?;
        Packing::of(request.values(&header::CONTENT_ENCODING)).map_err(|encoding| Refusal {
            remedy: Some(HeaderValue::from_static(unpack::TAKEN)),
            ..refusal(
                Reason::Packing,
                format!("bodies encoded as {encoding} are not taken; use {}, or send them plain", unpack::TAKEN),
            )
        })
    }

    /// What is stored is acknowledged, at once or when it is delivered.
    async fn acknowledge(&self, placed: Placed) -> Answer {
        let appended = placed.count();
        let Some(delivery) = &self.delivery else { return success(StatusCode::OK, appended, "") };
        let Delivered { complete, dead_letters } = Box::pin(delivery.wait(placed)).await;
        let status = if complete { StatusCode::OK } else { StatusCode::ACCEPTED };
        success(status, appended, &format!(",\"delivered\":{complete},\"dead_letters\":{dead_letters}"))
    }
}

fn not_found() -> Refusal {
    refusal(Reason::NotFound, "no webhooks are taken at this path")
}

/// The query of a request as far as it may be used.
fn query<'a>(route: &Route, request: &'a http::Head) -> Option<Cow<'a, str>> {
    route.auth.trusted_query(request.query())
}

/// The parts of a request with this query and this body that say what it holds.
fn content<'a>(request: &'a http::Head, query: Option<&'a str>, body: &'a [u8]) -> Content<'a> {
    Content { method: request.method().as_str(), query, content_type: request.value(&header::CONTENT_TYPE), body }
}

struct InFlight(Arc<Ingress>);

impl Drop for InFlight {
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
    Answer::new(status, "application/json", body)
}
