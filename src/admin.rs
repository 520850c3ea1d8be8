//! The port for Kubernetes and Prometheus: probes, metrics, and the description of the HTTP API.

use crate::dispatch::Healths;
use crate::metrics::{Exposition, Metrics};
use crate::server::{RequestBody, Service, problem, response};
use crate::spool::Spool;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode, Uri};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The description of the HTTP API, OpenAPI 3.1. It is written by hand; the tests hold it against a running bridge.
pub const OPENAPI: &str = include_str!("admin/openapi.json");

/// The service behind the admin listener.
#[derive(Debug)]
pub struct AdminService {
    metrics: Arc<Metrics>,
    spool: Arc<Spool>,
    sinks: Healths,
    stopping: AtomicBool,
}

impl Service for Arc<AdminService> {
    async fn handle(&self, head: Parts, _body: &mut RequestBody, _peer: SocketAddr) -> Response<String> {
        self.answer(&head.method, &head.uri, &head.headers)
    }
}

impl AdminService {
    /// A service that reports on these.
    pub fn new(metrics: Arc<Metrics>, spool: Arc<Spool>, sinks: Healths) -> Self {
        Self { metrics, spool, sinks, stopping: AtomicBool::new(false) }
    }

    /// From now on nothing is ready.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    fn answer(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Response<String> {
        let is_head = *method == Method::HEAD;
        if !is_head && *method != Method::GET {
            let mut refused = problem(StatusCode::METHOD_NOT_ALLOWED, "use GET or HEAD", None);
            refused.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refused;
        }
        let mut response = match uri.path() {
            "/livez" => response(StatusCode::OK, "text/plain", "ok\n"),
            "/readyz" => self.readiness(uri.query()),
            "/readyz/ingress" => {
                let ingress = self.ingress();
                report(ingress.is_ok(), &verdict(ingress))
            }
            "/metrics" => {
                self.refresh();
                let exposition = Exposition::accepted_by(headers);
                response(StatusCode::OK, exposition.media_type(), self.metrics.render(exposition))
            }
            "/openapi.json" => response(StatusCode::OK, "application/json", OPENAPI),
            _ => {
                response(StatusCode::NOT_FOUND, "text/plain", "/livez /readyz /readyz/ingress /metrics /openapi.json\n")
            }
        };
        if is_head {
            *response.body_mut() = String::new();
        }
        response
    }

    /// Whether webhooks can be stored.
    fn ingress(&self) -> Result<(), String> {
        if self.stopping.load(Ordering::Relaxed) {
            return Err("shutting down".into());
        }
        self.spool.health()
    }

    /// Whether webhooks can be stored and sinks take messages: those that the query names (`sinks=a,b`), or else the required ones.
    fn readiness(&self, query: Option<&str>) -> Response<String> {
        let named = query.and_then(|query| form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "sinks"));
        let named: Option<Vec<&str>> = named.as_ref().map(|(_, names)| names.split(',').collect());
        let running = self.sinks.borrow();
        let is_configured = |name: &str| running.iter().any(|sink| sink.sink() == name);
        if !named.iter().flatten().all(|name| is_configured(name)) {
            let sinks: Vec<_> = running.iter().map(|sink| sink.sink()).collect();
            let detail = format!("`sinks` names a sink that is not configured; there are: {}", sinks.join(", "));
            return problem(StatusCode::NOT_FOUND, &detail, None);
        }
        let ingress = self.ingress();
        let mut ready = ingress.is_ok();
        let mut sinks = serde_json::Map::new();
        for sink in running.iter() {
            let check = sink.check();
            let counts = named.as_ref().map_or(sink.required(), |named| named.contains(&sink.sink()));
            ready &= check.is_ok() || !counts;
            let places = sink.places();
            let named: Vec<_> =
                places.named.iter().map(|(place, cause)| json!({ "place": place, "cause": cause })).collect();
            let state = json!({
                "ready": check.is_ok(),
                "required": sink.required(),
                "reason": check.err(),
                "places_unavailable": places.count,
                "places": named,
            });
            sinks.insert(sink.sink().to_owned(), state);
        }
        report(ready, &json!({ "ready": ready, "ingress": verdict(ingress), "sinks": sinks }))
    }

    /// Sets the gauges that are worked out when they are asked for.
    fn refresh(&self) {
        let status = self.spool.status();
        let spool = &self.metrics.spool;
        self.metrics.ingress.up.set(self.ingress().is_ok().into());
        spool.bytes.set(status.bytes as i64);
        spool.max_bytes.set(self.spool.max_size() as i64);
        spool.records.set((status.end - status.start) as i64);
        spool.segments.set(status.segments as i64);
        for health in self.sinks.borrow().iter() {
            let sink = self.metrics.sink(health.sink());
            let position = self.spool.cursor(health.sink()).map_or(status.end, |cursor| cursor.position());
            let undelivered = health.undelivered(&status);
            sink.lag_records.set(undelivered as i64);
            sink.lag_bytes.set(self.spool.bytes_from(position) as i64);
            sink.lag_seconds.set(if undelivered == 0 { 0.0 } else { health.lag().as_secs_f64() });
            // Parked records wait to be tried again too.
            sink.retrying.set(health.count_retrying() as i64 + sink.parked_records.get());
            sink.up.set(health.check().is_ok() as i64);
        }
    }
}

fn verdict(check: Result<(), String>) -> Value {
    json!({ "ready": check.is_ok(), "reason": check.err() })
}

fn report(ready: bool, state: &Value) -> Response<String> {
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    response(status, "application/json", format!("{state:#}\n"))
}
