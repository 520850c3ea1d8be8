//! The port for Kubernetes, Prometheus and whoever wants to know the API: [`Page::ALL`].

use crate::dispatch::Health;
use crate::http::{Answer, Head};
use crate::metrics::Metrics;
use crate::spool::Spool;
use bytes::Bytes;
use hyper::header::{self, HeaderValue};
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

/// The media type of `/metrics`.
pub const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The methods that every page takes.
pub const METHODS: [Method; 2] = [Method::GET, Method::HEAD];
/// The same for the header field Allow.
const ALLOW: &str = "GET, HEAD";

/// What there is to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// Whether the process answers.
    Live,
    /// Whether everything is as it should be.
    Ready,
    /// Whether webhooks can be stored.
    IngressReady,
    /// The metrics.
    Metrics,
    /// The description of the API.
    OpenApi,
}

impl Page {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Live, Self::Ready, Self::IngressReady, Self::Metrics, Self::OpenApi];

    /// Where it is.
    pub fn path(self) -> &'static str {
        match self {
            Self::Live => "/livez",
            Self::Ready => "/readyz",
            Self::IngressReady => "/readyz/ingress",
            Self::Metrics => "/metrics",
            Self::OpenApi => "/openapi.json",
        }
    }
}

/// The description of the API, which few ask for and which is large: it is made when somebody does.
pub type Api = LazyLock<Bytes, Box<dyn FnOnce() -> Bytes + Send>>;

/// The service behind the admin listener.
#[derive(Debug)]
pub struct AdminService {
    metrics: Metrics,
    spool: Arc<Spool>,
    sinks: Vec<Arc<Health>>,
    api: Api,
    stopping: AtomicBool,
}

impl AdminService {
    /// A service that reports on these, and shows `api`.
    pub fn new(metrics: Metrics, spool: Arc<Spool>, sinks: Vec<Arc<Health>>, api: Api) -> Self {
        Self { metrics, spool, sinks, api, stopping: AtomicBool::new(false) }
    }

    /// From now on nothing is ready.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Answers one request.
    pub fn answer(&self, request: &Head) -> Answer {
        if !METHODS.contains(request.method()) {
            let header = Some((header::ALLOW, HeaderValue::from_static(ALLOW)));
            return Answer {
                header,
                ..Answer::new(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET and HEAD\n")
            };
        }
        let path = request.path();
        let Some(page) = Page::ALL.into_iter().find(|page| page.path() == path) else {
            let paths = Page::ALL.map(Page::path).join(" ");
            return Answer::new(StatusCode::NOT_FOUND, "text/plain", format!("{paths}\n"));
        };
        match page {
            Page::Live => Answer::new(StatusCode::OK, "text/plain", "ok\n"),
            Page::Ready => {
                let (ready, state) = self.readiness();
                report(ready, &state)
            }
            Page::IngressReady => {
                let ingress = self.ingress();
                report(ingress.is_ok(), &verdict(ingress))
            }
            Page::Metrics => {
                self.refresh();
                Answer::new(StatusCode::OK, METRICS, self.metrics.render())
            }
            Page::OpenApi => Answer::new(StatusCode::OK, "application/json", Bytes::clone(&self.api)),
        }
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
            sink.retrying.set(health.count_retrying() as i64);
            sink.up.set(health.check().is_ok() as i64);
        }
    }
}

fn verdict(check: Result<(), String>) -> Value {
    json!({ "ready": check.is_ok(), "reason": check.err() })
}

fn report(ready: bool, state: &Value) -> Answer {
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Answer::new(status, "application/json", format!("{state:#}\n"))
}
