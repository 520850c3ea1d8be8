//! The port for Kubernetes and Prometheus: probes, metrics, and the description of the HTTP API.

use crate::dispatch::Health;
use crate::metrics::Metrics;
use crate::server::{RequestBody, Service, problem, response};
use crate::spool::Spool;
use hyper::header::{self, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The media type of `/metrics`.
const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The description of the HTTP API, OpenAPI 3.1. It is written by hand; the tests hold it against a running bridge.
pub const OPENAPI: &str = include_str!("admin/openapi.json");

/// The service behind the admin listener.
#[derive(Debug)]
pub struct AdminService {
    metrics: Metrics,
    spool: Arc<Spool>,
    sinks: Vec<Arc<Health>>,
    stopping: AtomicBool,
}

impl Service for Arc<AdminService> {
    async fn handle(&self, head: Parts, _body: &mut RequestBody, _peer: SocketAddr) -> Response<String> {
        self.answer(&head.method, head.uri.path())
    }
}

impl AdminService {
    /// A service that reports on these.
    pub fn new(metrics: Metrics, spool: Arc<Spool>, sinks: Vec<Arc<Health>>) -> Self {
        Self { metrics, spool, sinks, stopping: AtomicBool::new(false) }
    }

    /// From now on nothing is ready.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    fn answer(&self, method: &Method, path: &str) -> Response<String> {
        let is_head = *method == Method::HEAD;
        if !is_head && *method != Method::GET {
            let mut refused = problem(StatusCode::METHOD_NOT_ALLOWED, "use GET or HEAD", None);
            refused.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refused;
        }
        let mut response = match path {
            "/livez" => response(StatusCode::OK, "text/plain", "ok\n"),
            "/readyz" => {
                let (ready, state) = self.readiness();
                report(ready, &state)
            }
            "/readyz/ingress" => {
                let ingress = self.ingress();
                report(ingress.is_ok(), &verdict(ingress))
            }
            "/metrics" => {
                self.refresh();
                response(StatusCode::OK, METRICS, self.metrics.render())
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

    /// Whether everything is as it should be, and the details.
    fn readiness(&self) -> (bool, Value) {
        let ingress = self.ingress();
        let mut ready = ingress.is_ok();
        let mut sinks = serde_json::Map::new();
        for sink in &self.sinks {
            let check = sink.check();
            ready &= check.is_ok() || !sink.required();
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
        (ready, json!({ "ready": ready, "ingress": verdict(ingress), "sinks": sinks }))
    }

    /// Sets the gauges that are worked out when they are asked for.
    fn refresh(&self) {
        let status = self.spool.status();
        let spool = &self.metrics.spool;
        spool.bytes.set(status.bytes as i64);
        spool.max_bytes.set(self.spool.max_size() as i64);
        spool.records.set((status.end - status.start) as i64);
        spool.segments.set(status.segments as i64);
        for health in &self.sinks {
            let sink = self.metrics.sink(health.sink());
            let position = self.spool.cursor(health.sink()).map_or(status.end, |cursor| cursor.position());
            let behind = status.end.saturating_sub(position);
            sink.lag_records.set(behind as i64);
            sink.lag_seconds.set(if behind == 0 { 0.0 } else { health.lag().as_secs_f64() });
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
