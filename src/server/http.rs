//! Serves the requests of one connection. hyper parses them; bounds of header memory and malformed requests are looked after here.

use super::connections::{Activity, OpenRequest};
use super::target::TargetEncoder;
use super::{EVICTED, RequestBody, Server, Service, Stream, problem, stopped};
use futures_util::future::{Either, ready};
use hyper::body::{Body as _, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use std::convert::Infallible;
use std::error::Error;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::timeout;

/// Bytes of one request's header, and bytes of a body that hyper reads ahead.
pub const MAX_HEADER: usize = 16 << 10;
/// Header fields of one request: hyper's default over HTTP/1, applied to HTTP/2 too.
const MAX_HEADER_FIELDS: usize = 100;
/// Over HTTP/2: as many streams as clients open before they know the bound. The connection's window has room for all its streams: a stream that waits for memory must not hold up one that has it.
const MAX_STREAMS: u32 = 100;
const STREAM_WINDOW: u32 = 16 << 10;
/// Streams that a client may reset before they are accepted, and that it may make us reset (rapid reset, CVE-2023-44487).
const MAX_RESET_STREAMS: usize = 20;
const MAX_LOCAL_RESET_STREAMS: usize = 128;
/// Bytes of headers and receive windows that requests may hold in all: streams that share a connection, and large headers, complete
/// or not.
pub const REQUEST_MEMORY: usize = 8 << 20;
/// One request of each connection with no larger header than this needs no share of that: hyper's buffers hold as much anyway.
pub const SMALL_HEADER: usize = 4 << 10;
/// Memory of a header field beside its name and value.
const FIELD_OVERHEAD: usize = 128;
/// Time for a connection that was idle for too long to close cleanly.
const CLOSING: Duration = Duration::from_secs(1);

/// Words of hyper's errors, and the reasons that malformed requests are counted by.
pub const MALFORMED: [(&str, &str); 9] = [
    ("too large", "header_too_large"),
    ("too long", "uri_too_long"),
    ("URI", "uri"),
    ("content-length", "framing"),
    ("transfer-encoding", "framing"),
    ("header", "header"),
    ("method", "method"),
    ("version", "version"),
    ("", "other"),
];

/// The protocols, with their bounds.
pub fn builder(tls: bool, idle_timeout: Duration) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    // `Activity` times headers out on both protocols. `Socket` tells a client that is gone from one that closes its sending side,
    // but cannot see the latter within TLS.
    builder.http1().header_read_timeout(None).half_close(tls).max_buf_size(MAX_HEADER).timer(TokioTimer::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER as u32)
        .max_pending_accept_reset_streams(MAX_RESET_STREAMS)
        .max_local_error_reset_streams(MAX_LOCAL_RESET_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(MAX_STREAMS * STREAM_WINDOW)
        .keep_alive_interval(idle_timeout);
    builder
}

/// Closes the connection behind a response. The rest of the request's body would be taken for the next request.
fn close(response: &mut Response<String>) {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
}

impl<S: Service> Server<S> {
    /// Serves requests until the client leaves, is too slow, or has to make room.
    pub(super) async fn serve_http(
        self: &Arc<Self>,
        stream: Box<dyn Stream>,
        peer: SocketAddr,
        activity: &Arc<Activity>,
        mut stop: watch::Receiver<bool>,
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        let service = service_fn(|request| self.answer(request, peer, activity));
        let (reader, writer) = tokio::io::split(stream);
        let stream = tokio::io::join(TargetEncoder::new(reader, activity.clone()), writer);
        let mut connection = pin!(self.builder.serve_connection(TokioIo::new(stream), service));
        let mut draining = false;
        loop {
            tokio::select! {
                biased;
                () = stopped(&mut stop), if !draining => {
                    draining = true;
                    connection.as_mut().graceful_shutdown();
                }
                served = connection.as_mut() => return served,
                () = activity.evicted() => return Err(EVICTED.into()),
                () = activity.timed_out(&self.limits) => {
                    connection.as_mut().graceful_shutdown();
                    return timeout(CLOSING, connection).await.unwrap_or(Err("timed out".into()));
                }
            }
        }
    }

    fn answer(
        self: &Arc<Self>,
        request: Request<Incoming>,
        peer: SocketAddr,
        activity: &Arc<Activity>,
    ) -> impl Future<Output = Result<Response<String>, Infallible>> + Send + use<S> {
        let version = request.version();
        let open = activity.begin_request(version == Version::HTTP_2);
        // Refused here rather than in the future: the header of a refused request is gone before the next one is decoded.
        let permit = match self.reserve(&request, &open) {
            Ok(permit) => permit,
            Err(status) => {
                let mut refused = self.refuse(status, peer);
                if version != Version::HTTP_2 {
                    close(&mut refused);
                }
                open.end(request.body().is_end_stream());
                return Either::Left(ready(Ok(refused)));
            }
        };
        let server = self.clone();
        // Boxed: hyper keeps room for the future on every connection, idle ones included.
        Either::Right(Box::pin(async move {
            let (mut head, body) = request.into_parts();
            // Given back with the header.
            permit.map(|permit| head.extensions.insert(Arc::new(permit)));
            let mut body = RequestBody::new(body, open.activity().clone());
            let mut response = server.service.handle(head, &mut body, peer).await;
            let complete = body.discard().await;
            if !complete && version != Version::HTTP_2 {
                close(&mut response);
            }
            open.end(complete);
            Ok(response)
        }))
    }

    /// Reserves memory for the header of a request, and for the part of its body that arrives unasked. Fails with the status of the
    /// refusal.
    fn reserve(
        &self,
        request: &Request<Incoming>,
        open: &OpenRequest,
    ) -> Result<Option<OwnedSemaphorePermit>, StatusCode> {
        if open.is_cut_off() {
            return Err(StatusCode::BAD_REQUEST);
        }
        let headers = request.headers();
        if headers.len() > MAX_HEADER_FIELDS {
            return Err(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
        }
        let fields = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD_OVERHEAD);
        let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
        let header = target + fields.sum::<usize>();
        if open.others() == 0 && header <= SMALL_HEADER {
            return Ok(None);
        }
        let mut bytes = header as u32;
        if request.version() == Version::HTTP_2 && !request.body().is_end_stream() {
            let unread = request.body().size_hint().upper().unwrap_or(u64::MAX);
            bytes += unread.min(u64::from(STREAM_WINDOW)) as u32;
        }
        let permit = self.request_memory.clone().try_acquire_many_owned(bytes);
        permit.map(Some).map_err(|_| StatusCode::SERVICE_UNAVAILABLE)
    }

    /// Counts a request that is refused before its route is known, and returns the response to it.
    fn refuse(&self, status: StatusCode, peer: SocketAddr) -> Response<String> {
        match status {
            StatusCode::BAD_REQUEST => {
                self.malformed("uri", "a `#` before a pipelined request", peer);
                let detail = "a `#` came before a pipelined request, which it may belong to; encode it as %23, or send one request at a time";
                problem(status, detail, None)
            }
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
                self.malformed("header_too_large", "too many header fields", peer);
                problem(status, &format!("a request may have {MAX_HEADER_FIELDS} header fields"), None)
            }
            _ => {
                self.limits.metrics.requests.inc();
                let mut refused = problem(status, "too many requests are open", None);
                refused.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
                refused
            }
        }
    }

    /// Counts and logs a request that hyper has refused by itself.
    pub(super) fn report(&self, error: &(dyn Error + Send + Sync + 'static), peer: SocketAddr) {
        let Some(malformed) = error.downcast_ref::<hyper::Error>().filter(|error| error.is_parse()) else {
            tracing::debug!(%peer, error, "connection ended");
            return;
        };
        let text = malformed.to_string();
        let reason = MALFORMED.iter().find(|(words, _)| text.contains(words)).map_or("other", |(_, reason)| reason);
        self.malformed(reason, &text, peer);
    }

    fn malformed(&self, reason: &'static str, error: &str, peer: SocketAddr) {
        self.limits.metrics.malformed(reason).inc();
        if let Some(count) = self.malformed.should_log() {
            tracing::warn!(count, %peer, reason, error, "malformed HTTP requests were refused");
        }
    }
}
