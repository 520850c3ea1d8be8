//! The HTTP service for webhooks: request → events → append → status.
//!
//! A 2xx is sent only after the spool has said that the events are durable. Errors are problem details (RFC 9457).

pub mod decode;

use crate::event::Arrival;
use crate::metrics::{IngressMetrics, StatusLabel};
use crate::spool::{AppendError, Spool};
use bytes::{Bytes, BytesMut};
use bytesize::ByteSize;
use decode::DecodeError;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde::Deserialize;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};

/// `[ingress]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The path of the webhook.
    pub path: String,
    /// How large a body may be.
    pub max_body: ByteSize,
    /// How many bytes of bodies may be in memory; further requests wait for their turn, up to `body_timeout`.
    pub max_bodies: ByteSize,
    /// How long a body may take to arrive.
    #[serde(with = "crate::setting::period")]
    pub body_timeout: Duration,
    /// How long a connection may take for the next request's header, the time it stays idle included.
    #[serde(with = "crate::setting::period")]
    pub header_timeout: Duration,
    /// How bodies are read.
    pub decode: decode::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            path: "/webhook/cdr".into(),
            max_body: ByteSize::mib(1),
            max_bodies: ByteSize::mib(8),
            body_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(75),
            decode: decode::Config::default(),
        }
    }
}

/// The service behind the ingress listener.
#[derive(Debug)]
pub struct Ingress {
    config: Config,
    spool: Arc<Spool>,
    metrics: IngressMetrics,
    /// A permit for every byte of body that may be in memory.
    memory: Semaphore,
}

type Answer = Response<Full<Bytes>>;

/// Why a request was not accepted.
struct Refusal {
    status: StatusCode,
    detail: String,
    place: Option<(usize, usize)>,
    header: Option<(header::HeaderName, HeaderValue)>,
}

impl Ingress {
    /// A service that stores what it takes in `spool`.
    pub fn new(config: Config, spool: Arc<Spool>, metrics: IngressMetrics) -> Self {
        let memory = Semaphore::new((config.max_bodies.as_u64() as usize).min(Semaphore::MAX_PERMITS));
        Self { config, spool, metrics, memory }
    }

    /// Answers one request.
    pub async fn answer(&self, request: Request<Incoming>) -> Answer {
        self.metrics.in_flight.inc();
        let in_flight = InFlight(self);
        let head = request.method() == Method::HEAD;
        let mut answer = match self.accept(request).await {
            Ok(answer) => answer,
            Err(refusal) => refusal.answer(),
        };
        drop(in_flight);
        self.metrics.requests.get_or_create(&StatusLabel { status: answer.status().as_u16() }).inc();
        if head {
            *answer.body_mut() = Full::default();
        }
        answer
    }

    async fn accept(&self, request: Request<Incoming>) -> Result<Answer, Refusal> {
        if request.uri().path() != self.config.path {
            return Err(refusal(StatusCode::NOT_FOUND, format!("webhooks are taken at {}", self.config.path)));
        }
        let (parts, body) = request.into_parts();
        let is_post = match parts.method {
            Method::POST => true,
            Method::GET => false,
            Method::HEAD => return Ok(success(0, 0)),
            _ => {
                return Err(Refusal {
                    header: Some((header::ALLOW, HeaderValue::from_static("GET, HEAD, POST"))),
                    ..refusal(StatusCode::METHOD_NOT_ALLOWED, "webhooks come by POST or GET")
                });
            }
        };
        if let Some(encoding) = parts.headers.get(header::CONTENT_ENCODING).filter(|encoding| *encoding != "identity") {
            return Err(Refusal {
                header: Some((header::ACCEPT_ENCODING, HeaderValue::from_static("identity"))),
                ..refusal(
                    StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    format!("bodies encoded as {encoding:?} are not taken; send them plain"),
                )
            });
        }
        let (bytes, _memory) = self.read(&parts.headers, body).await?;
        let arrival = Arrival::now();
        let events = if is_post || !bytes.is_empty() {
            let content_type = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
            decode::body(&bytes, content_type, &self.config.decode, arrival)
        } else {
            decode::fields(parts.uri.query().unwrap_or_default(), &self.config.decode, arrival)
        }?;
        drop(bytes);
        if events.is_empty() {
            return Ok(success(0, 0));
        }
        let appended = self.spool.append(events).await?;
        self.metrics.accepted.inc_by(appended.stored as u64);
        self.metrics.duplicates.inc_by(appended.duplicates as u64);
        Ok(success(appended.stored, appended.duplicates))
    }

    /// Reads the body within the bounds of size, time and memory.
    async fn read(&self, headers: &HeaderMap, body: Incoming) -> Result<(Bytes, Option<SemaphorePermit<'_>>), Refusal> {
        if body.is_end_stream() {
            return Ok((Bytes::new(), None));
        }
        let declared = body.size_hint().exact();
        if declared.is_some_and(|size| size > self.config.max_body.as_u64()) {
            return Err(self.too_large());
        }
        let read = tokio::time::timeout(self.config.body_timeout, self.read_on(declared, body)).await;
        match read {
            Ok(result) => result,
            Err(_) if self.memory.available_permits() == 0 => Err(Refusal {
                header: Some((header::RETRY_AFTER, HeaderValue::from_static("1"))),
                ..refusal(StatusCode::SERVICE_UNAVAILABLE, "too many bytes of other requests are waiting")
            }),
            Err(_) => {
                let what = if headers.contains_key(header::EXPECT) {
                    "the body did not follow"
                } else {
                    "the body was not complete"
                };
                let seconds = self.config.body_timeout.as_secs_f64();
                Err(refusal(StatusCode::REQUEST_TIMEOUT, format!("{what} within {seconds} s")))
            }
        }
    }

    async fn read_on(
        &self,
        declared: Option<u64>,
        mut body: Incoming,
    ) -> Result<(Bytes, Option<SemaphorePermit<'_>>), Refusal> {
        let closed = |_| refusal(StatusCode::SERVICE_UNAVAILABLE, "shutting down");
        let mut permit = self.memory.acquire_many(declared.unwrap_or_default() as u32).await.map_err(closed)?;
        let mut first = Bytes::new();
        let mut all = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| refusal(StatusCode::BAD_REQUEST, "the body broke off"))?;
            let Ok(data) = frame.into_data() else { continue };
            let size = first.len() + all.len() + data.len();
            if size as u64 > self.config.max_body.as_u64() {
                return Err(self.too_large());
            }
            if size > permit.num_permits() {
                permit.merge(self.memory.acquire_many((size - permit.num_permits()) as u32).await.map_err(closed)?);
            }
            // Most bodies come in one piece, which needs no copy.
            if size == data.len() {
                first = data;
            } else {
                all.extend_from_slice(&std::mem::take(&mut first));
                all.extend_from_slice(&data);
            }
        }
        let bytes = if all.is_empty() { first } else { all.freeze() };
        Ok((bytes, Some(permit)))
    }

    fn too_large(&self) -> Refusal {
        refusal(StatusCode::PAYLOAD_TOO_LARGE, format!("a body may have {} bytes", self.config.max_body.as_u64()))
    }
}

struct InFlight<'a>(&'a Ingress);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.metrics.in_flight.dec();
    }
}

fn refusal(status: StatusCode, detail: impl Into<String>) -> Refusal {
    Refusal { status, detail: detail.into(), place: None, header: None }
}

fn success(stored: usize, duplicates: usize) -> Answer {
    let mut answer = Response::new(Full::new(format!("{{\"stored\":{stored},\"duplicates\":{duplicates}}}\n").into()));
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

impl From<DecodeError> for Refusal {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::Malformed { detail, place } => Refusal { place, ..refusal(StatusCode::BAD_REQUEST, detail) },
            DecodeError::TooMany { .. } => refusal(StatusCode::PAYLOAD_TOO_LARGE, error.to_string()),
        }
    }
}

impl From<AppendError> for Refusal {
    fn from(error: AppendError) -> Self {
        let seconds = match &error {
            AppendError::TooLarge { .. } => return refusal(StatusCode::PAYLOAD_TOO_LARGE, error.to_string()),
            AppendError::Full { retry_after } => retry_after.as_secs().max(1),
            AppendError::Failed { .. } | AppendError::Closed => 5,
        };
        Refusal {
            header: Some((header::RETRY_AFTER, HeaderValue::from(seconds))),
            ..refusal(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
        }
    }
}

impl Refusal {
    fn answer(self) -> Answer {
        tracing::debug!(status = self.status.as_u16(), detail = self.detail, "request refused");
        let mut problem = serde_json::json!({
            "title": self.status.canonical_reason().unwrap_or_default(),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        if let (Some((line, column)), Some(members)) = (self.place, problem.as_object_mut()) {
            members.insert("line".into(), line.into());
            members.insert("column".into(), column.into());
        }
        let mut answer = Response::new(Full::new(format!("{problem}\n").into()));
        *answer.status_mut() = self.status;
        answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        answer.headers_mut().extend(self.header.map(|(name, value)| (Some(name), value)));
        answer
    }
}
