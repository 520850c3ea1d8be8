//! The HTTP service for webhooks: request → events → append → status.
//!
//! A 2xx is sent only after the spool has said that the events are durable; with `ack = "delivered"` a 200 only after the
//! required sinks have them. Errors are problem details (RFC 9457).

pub mod auth;
mod body;
mod config;
pub mod decode;
pub mod decompress;
mod delivery;
mod problem;
pub mod routes;
pub mod tls;

pub use config::{Ack, Config};
pub use delivery::Delivery;

use crate::dead_letter::rejected::{RejectedBodies, RejectedBody};
use crate::event::{Arrival, Event};
use crate::log_throttle::LogThrottle;
use crate::metrics::IngressMetrics;
use crate::server::{RequestBody, Service, response};
use crate::spool::{Appended, Placed, Spool};
use auth::Head;
use body::{Body, BodyReader, SMALL_BODY};
use decode::Content;
use decompress::ContentEncoding;
use delivery::Delivered;
use hyper::body::Bytes;
use hyper::header::{self, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode};
use parking_lot::Mutex;
use problem::Problem;
use prometheus_client::metrics::gauge::Gauge;
use routes::{Route, Routes};
use std::borrow::Cow;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

/// The service behind the ingress listener.
#[derive(Debug)]
pub struct Ingress {
    decode: Arc<decode::Config>,
    routes: Routes,
    spool: Arc<Spool>,
    rejected: Arc<RejectedBodies>,
    metrics: IngressMetrics,
    /// Waits for the sinks, with `ack = "delivered"`.
    delivery: Option<Delivery>,
    bodies: BodyReader,
    /// A throttle for each status of refused requests.
    refusals: Mutex<HashMap<StatusCode, LogThrottle>>,
}

impl Ingress {
    /// A service that stores events in `spool`, and hands bodies that it cannot decode to `rejected`.
    pub fn new(
        config: Config,
        routes: Routes,
        spool: Arc<Spool>,
        rejected: Arc<RejectedBodies>,
        metrics: IngressMetrics,
    ) -> Self {
        let bodies = BodyReader::new(&config, metrics.limits.clone());
        let max_event = usize::try_from(config.largest_body().as_u64()).unwrap_or(usize::MAX);
        let decode = Arc::new(decode::Config { max_event, ..config.decode });
        Self { decode, routes, spool, rejected, metrics, delivery: None, bodies, refusals: Mutex::default() }
    }

    /// The same, and requests wait for `delivery`.
    pub fn waiting_for(self, delivery: Delivery) -> Self {
        Self { delivery: Some(delivery), ..self }
    }

    /// Route → authenticate → read the body → decompress → decode → append.
    async fn accept(&self, head: &Parts, body: &mut RequestBody, peer: SocketAddr) -> Result<Placed, Problem> {
        let (route, path_secret) = self.routes.find(head.uri.path()).ok_or_else(Problem::not_found)?;
        let credentials = Head { request: head, path_secret, peer: peer.ip() };
        authenticate(route, &credentials)?;
        let encoding = head.headers.get_all(header::CONTENT_ENCODING).iter().map(HeaderValue::as_bytes);
        let encoding = ContentEncoding::parse(encoding).map_err(|name| Problem::unsupported_encoding(&name));
        let unauthorized = |denied| Problem::unauthorized(route, denied, peer.ip());
        if head.method == Method::HEAD {
            route.auth.check_body(&credentials, &[]).map_err(unauthorized)?;
            return encoding.map(|_| Placed::default());
        }
        let identity = ContentEncoding::default();
        let received = match (self.bodies.read(body, encoding.as_ref().unwrap_or(&identity)).await, &encoding) {
            (Err(_), Err(_)) => return encoding.map(|_| Placed::default()),
            (received, _) => received?,
        };
        route.auth.check_body(&credentials, &received.bytes).map_err(unauthorized)?;
        let request = Request::new(&self.routes, route, head, received.bytes.clone());
        let body = match encoding {
            Ok(encoding) if encoding.is_identity() || received.bytes.is_empty() => Ok(received),
            Ok(encoding) => self.bodies.decompress(received, encoding).await,
            Err(unsupported) => Err(unsupported),
        };
        // Not a body that is too large, nor one that the sender is asked to send again.
        let Body { bytes, permit } = body.inspect_err(|problem| {
            if matches!(problem.status, StatusCode::BAD_REQUEST | StatusCode::UNSUPPORTED_MEDIA_TYPE) {
                self.keep(&request, problem);
            }
        })?;
        let request = Request { body: bytes, ..request };
        if decode::says_nothing(&request.body) {
            // Fields in a query that the signature does not cover are left out before the body is found to be empty.
            route.auth.check_events(head.uri.query(), &[]).map_err(unauthorized)?;
        }
        let (request, events) = self.decode(request).await?;
        let events = events.map_err(Problem::from).inspect_err(|problem| self.keep(&request, problem))?;
        route.auth.check_events(head.uri.query(), &events).map_err(unauthorized)?;
        if events.is_empty() {
            return Ok(Placed::default());
        }
        let events = route.mark(events);
        drop(request);
        // The memory stays reserved until the events are stored, even if the client is gone by then.
        Ok(self.spool.place(events, permit).await?)
    }

    /// The events in a request. A large one is decoded on a thread of its own.
    async fn decode(&self, request: Request) -> Result<(Request, Result<Vec<Event>, decode::DecodeError>), Problem> {
        let config = self.decode.clone();
        let size = request.body.len();
        let decode = move || {
            let events = request.content().decode(&config, request.arrival);
            (request, events)
        };
        if size > SMALL_BODY { self.bodies.run_large(decode).await } else { Ok(decode()) }
    }

    /// Keeps a body that may be a call, if anything came.
    fn keep(&self, request: &Request, problem: &Problem) {
        let empty = request.body.trim_ascii().is_empty();
        if empty && request.query.is_none() {
            return;
        }
        let content_type = request.content_type.as_ref().and_then(|value| str::from_utf8(value.as_bytes()).ok());
        let (line, column) = problem.position.unzip();
        let refused = RejectedBody {
            arrival: request.arrival.to_string(),
            status: problem.status.as_u16(),
            reason: problem.detail.clone(),
            line,
            column,
            ingress: request.route.to_string(),
            method: request.method.to_string(),
            content_type: content_type.filter(|value| value.is_ascii()).map(Into::into),
            query: request.query.as_deref().map(Into::into),
            ..RejectedBody::default()
        };
        self.rejected.keep(refused, &request.body);
    }

    /// A stored request is acknowledged, at once or when it is delivered.
    async fn acknowledge(&self, placed: Placed) -> Response<String> {
        let appended = placed.count();
        let Some(delivery) = &self.delivery else { return success(StatusCode::OK, appended, "") };
        let Delivered { complete, dead_letters } = delivery.wait(placed).await;
        let status = if complete { StatusCode::OK } else { StatusCode::ACCEPTED };
        success(status, appended, &format!(",\"delivered\":{complete},\"dead_letters\":{dead_letters}"))
    }

    /// Logs a refused request, throttled for each status. A route logs those that it could not authenticate itself.
    fn log(&self, problem: &Problem, peer: SocketAddr) {
        let status = problem.status;
        if status == StatusCode::UNAUTHORIZED {
            return;
        }
        let count = self.refusals.lock().entry(status).or_default().should_log();
        if let Some(count) = count {
            tracing::warn!(count, status = status.as_u16(), %peer, detail = problem.detail, "webhooks were refused");
        }
    }
}

impl Service for Ingress {
    async fn handle(&self, head: Parts, body: &mut RequestBody, peer: SocketAddr) -> Response<String> {
        let _in_flight = InFlight::begin(&self.metrics.in_flight);
        let begun = Instant::now();
        let is_head = head.method == Method::HEAD;
        let accepted = self.accept(&head, body, peer).await;
        // The header takes memory, and the sinks may take their time.
        drop(head);
        let mut response = match accepted {
            Ok(placed) => self.acknowledge(placed).await,
            Err(problem) => {
                self.log(&problem, peer);
                problem.response()
            }
        };
        if response.status().is_success() {
            self.metrics.acknowledgements.observe(begun.elapsed());
        }
        self.metrics.requests.get_or_create(&[("status", response.status().as_u16())]).inc();
        if is_head {
            *response.body_mut() = String::new();
        }
        response
    }
}

/// The checks that need no body.
fn authenticate(route: &Route, head: &Head<'_>) -> Result<(), Problem> {
    route.auth.check_path(head.path_secret).map_err(|denied| {
        route.denied(denied, head.peer);
        Problem::not_found()
    })?;
    if !route.takes(&head.request.method) {
        return Err(Problem::method_not_allowed(route));
    }
    route.auth.check_head(head).map_err(|denied| Problem::unauthorized(route, denied, head.peer))
}

/// The parts of an authenticated request that hold its events.
#[derive(Debug)]
struct Request {
    arrival: Arrival,
    route: String,
    method: Method,
    content_type: Option<HeaderValue>,
    /// Without secrets; `None` if it is empty.
    query: Option<String>,
    body: Bytes,
}

impl Request {
    fn new(routes: &Routes, route: &Route, head: &Parts, body: Bytes) -> Self {
        let query = route.auth.trusted_query(head.uri.query());
        // Only without a body does the query hold fields of the event, which may have the name of another route's secret.
        let strip = |query: Cow<'_, str>| match body.trim_ascii() {
            b"" | b"{}" | b"[]" | b"null" => query.into_owned(),
            _ => routes.strip_secrets(&query).into_owned(),
        };
        let query = query.map(strip);
        Self {
            arrival: Arrival::now(),
            route: route.name().to_owned(),
            method: head.method.clone(),
            content_type: head.headers.get(header::CONTENT_TYPE).cloned(),
            query: query.filter(|query| !query.is_empty()),
            body,
        }
    }

    fn content(&self) -> Content<'_> {
        Content {
            method: self.method.as_str(),
            query: self.query.as_deref(),
            content_type: self.content_type.as_ref().map(HeaderValue::as_bytes),
            body: &self.body,
        }
    }
}

/// Counts a request as being in flight.
struct InFlight<'a>(&'a Gauge);

impl<'a> InFlight<'a> {
    fn begin(gauge: &'a Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn success(status: StatusCode, Appended { stored, duplicates }: Appended, more: &str) -> Response<String> {
    let body = format!("{{\"stored\":{stored},\"duplicates\":{duplicates}{more}}}\n");
    response(status, "application/json", body)
}
