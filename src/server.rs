//! Serves HTTP/1.1 and HTTP/2 on a listener until told to stop. The ingress and the admin port share it.
//!
//! A connection takes a slot, passes the preamble (PROXY header, TLS handshake), and is then served by hyper. Everything that a client
//! can make the bridge hold before it has shown who it is has a bound here: connections, header bytes, streams, time.

mod connections;
mod problem;
pub mod proxy_protocol;
mod request;
mod socket;
mod target;
mod tls;

pub use problem::{PROBLEM, problem, response};
pub use proxy_protocol::ProxyProtocol;
pub use request::RequestBody;
pub use tls::Tls;

use crate::log_throttle::LogThrottle;
use crate::metrics::LimitMetrics;
use connections::{Activity, Connections, OpenRequest, Slot};
use futures_util::future::{Either, ready};
use hyper::body::{Body as _, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use parking_lot::RwLock;
use socket::Socket;
use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use target::TargetEncoder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Bytes of one request's header, and bytes of a body that hyper reads ahead.
const MAX_HEADER: usize = 16 << 10;
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
const REQUEST_MEMORY: usize = 8 << 20;
/// One request of each connection with no larger header than this needs no share of that: hyper's buffers hold as much anyway.
const SMALL_HEADER: usize = 4 << 10;
/// Memory of a header field beside its name and value.
const FIELD_OVERHEAD: usize = 128;
/// Pause after a failed accept, for example when there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
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
/// Why a connection ended, for the log.
const EVICTED: &str = "closed to make room for another connection";

/// Answers the requests of a server.
pub trait Service: Send + Sync + 'static {
    /// Answers one request of the client at `peer`. The future is dropped when the client resets the request.
    fn handle(
        &self,
        head: Parts,
        body: &mut RequestBody,
        peer: SocketAddr,
    ) -> impl Future<Output = Response<String>> + Send;
}

/// Bounds of a server's connections.
#[derive(Clone, Debug)]
pub struct Limits {
    /// From the first byte of a request, or from the accept, to the end of the header; TLS handshake and PROXY header included.
    pub header_timeout: Duration,
    /// From the end of a request to the next one, the time to read the response included.
    pub idle_timeout: Duration,
    /// Connections at once. For a further one, the connection that has waited for its client longest is closed.
    pub max_connections: usize,
    /// How many of them may come from one address; further ones are closed.
    pub max_connections_per_peer: Option<usize>,
    /// A connection is not closed for another one before it has waited this long for its client.
    pub eviction_age: Duration,
    /// Counts refused and closed connections.
    pub metrics: LimitMetrics,
}

/// A service that can be replaced. Requests that it is answering are finished by the former one.
#[derive(Debug)]
pub struct Replaceable<S>(RwLock<Arc<S>>);

impl<S: Service> Replaceable<S> {
    /// Answers with `service`.
    pub fn new(service: S) -> Self {
        Self(RwLock::new(Arc::new(service)))
    }

    /// Answers requests from now on with `service`.
    pub fn replace(&self, service: S) {
        *self.0.write() = Arc::new(service);
    }
}

impl<S: Service> Service for Arc<Replaceable<S>> {
    async fn handle(&self, head: Parts, body: &mut RequestBody, peer: SocketAddr) -> Response<String> {
        let service = self.0.read().clone();
        service.handle(head, body, peer).await
    }
}

/// What a server can be told to do otherwise while it runs. Connections keep the settings that they began with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Bounds of connections.
    pub limits: Limits,
    /// The parts before HTTP.
    pub preamble: Preamble,
}

/// The parts of a connection before HTTP, in this order.
#[derive(Clone, Debug, Default)]
pub struct Preamble {
    /// The header with the client's address, if a proxy sends it.
    pub proxy_protocol: Option<Arc<ProxyProtocol>>,
    /// The handshake, if the connection is encrypted.
    pub tls: Option<Tls>,
}

/// A byte stream, encrypted or not.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// State that connections of a listener share, as long as the settings do not change.
struct Server<S> {
    service: Arc<S>,
    preamble: Preamble,
    limits: Limits,
    builder: Builder<TokioExecutor>,
    request_memory: Arc<Semaphore>,
    malformed: Arc<LogThrottle>,
}

/// Serves connections until `stop` turns true, then accepts no more and lets open requests finish. Dropping the future closes all of
/// them, which is how the caller bounds that wait.
pub async fn serve<S: Service>(
    listener: TcpListener,
    mut settings: watch::Receiver<Settings>,
    mut stop: watch::Receiver<bool>,
    service: S,
) {
    let request_memory = Arc::new(Semaphore::new(REQUEST_MEMORY));
    let current = settings.borrow_and_update().clone();
    let connections = Arc::new(Connections::new(&current.limits, request_memory.clone()));
    let (service, malformed) = (Arc::new(service), Arc::default());
    let mut server = Arc::new(Server::new(current, service, request_memory, malformed));
    let mut tasks = JoinSet::new();
    'serving: loop {
        if settings.has_changed().unwrap_or(false) {
            server = Arc::new(server.with(settings.borrow_and_update().clone()));
            connections.set_limits(&server.limits);
        }
        let (stream, peer) = tokio::select! {
            biased;
            () = stopped(&mut stop) => break,
            () = changed(&mut settings) => continue,
            accepted = accept(&listener) => accepted,
        };
        while tasks.try_join_next().is_some() {}
        // An accepted connection is served with the settings that it was admitted by. Only the bounds may change while it waits.
        let mut bounds = settings.clone();
        let mut admission = pin!(server.admit(&connections, peer));
        let slot = loop {
            tokio::select! {
                biased;
                () = stopped(&mut stop) => break 'serving,
                () = changed(&mut bounds) => connections.set_limits(&bounds.borrow_and_update().limits),
                slot = &mut admission => break slot,
            }
        };
        if let Some(slot) = slot {
            tasks.spawn(server.clone().serve_connection(stream, peer, slot, stop.clone()));
        }
    }
    drop(listener);
    while tasks.join_next().await.is_some() {}
}

/// The next connection. Failures are logged once in a row, and tried again after a pause.
async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let mut failing = false;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => return (stream, canonical(peer)),
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::error!(%error, "connections cannot be accepted; trying again");
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// An IPv4 client has an IPv4 address on a socket for both families too.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Resolves when there are settings that have not been looked at; never if there will be none.
async fn changed(settings: &mut watch::Receiver<Settings>) {
    if settings.changed().await.is_err() {
        std::future::pending().await
    }
    settings.mark_changed();
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// The response to a request that is refused before its route is known.
fn refuse(status: StatusCode) -> Response<String> {
    match status {
        StatusCode::BAD_REQUEST => problem(
            status,
            "a `#` came before a pipelined request, which it may belong to; encode it as %23, or send one request at a time",
            None,
        ),
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
            problem(status, &format!("a request may have {MAX_HEADER_FIELDS} header fields"), None)
        }
        _ => {
            let mut refused = problem(status, "too many requests are open", None);
            refused.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            refused
        }
    }
}

/// Closes the connection behind a response. The rest of the request's body would be taken for the next request.
fn close(response: &mut Response<String>) {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
}

/// Waits for a part of the preamble, unless the connection has to end.
async fn unless_closed<T>(
    slot: &Slot,
    stop: &mut watch::Receiver<bool>,
    part: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    tokio::select! {
        done = Box::pin(part) => done,
        () = slot.activity().evicted() => Err(io::Error::other(EVICTED)),
        () = stopped(stop) => Err(io::Error::other("the server stops")),
    }
}

fn builder(tls: bool, idle_timeout: Duration) -> Builder<TokioExecutor> {
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

impl<S: Service> Server<S> {
    fn new(settings: Settings, service: Arc<S>, request_memory: Arc<Semaphore>, malformed: Arc<LogThrottle>) -> Self {
        let Settings { limits, preamble } = settings;
        let builder = builder(preamble.tls.is_some(), limits.idle_timeout);
        Self { service, preamble, limits, builder, request_memory, malformed }
    }

    /// The same server with other settings.
    fn with(&self, settings: Settings) -> Self {
        Self::new(settings, self.service.clone(), self.request_memory.clone(), self.malformed.clone())
    }

    /// Takes a slot for a connection; `None` if its address has no right to another one.
    async fn admit(&self, connections: &Arc<Connections>, peer: SocketAddr) -> Option<Slot> {
        if let Some(proxies) = &self.preamble.proxy_protocol {
            // Connections of a proxy are counted when it has named the client.
            return if proxies.trusts(peer.ip()) { Some(connections.admit().await) } else { None };
        }
        if connections.is_full_for(peer.ip()) {
            self.limits.metrics.connections_per_peer.inc();
            return None;
        }
        let slot = connections.admit().await;
        slot.set_peer(peer.ip()).then_some(slot)
    }

    async fn serve_connection(
        self: Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        slot: Slot,
        mut stop: watch::Receiver<bool>,
    ) {
        let activity = slot.activity().clone();
        let _ = stream.set_nodelay(true);
        let socket = Socket::new(stream, activity.clone());
        let served = match self.pass_preamble(socket, peer, &slot, &mut stop).await {
            Ok((stream, peer)) => self.serve_http(stream, peer, &activity, stop).await,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = served {
            self.report(&*error, peer);
        }
    }

    /// Returns the stream that carries HTTP, and the address of the client.
    async fn pass_preamble(
        &self,
        mut socket: Socket,
        mut peer: SocketAddr,
        slot: &Slot,
        stop: &mut watch::Receiver<bool>,
    ) -> io::Result<(Box<dyn Stream>, SocketAddr)> {
        let limit = self.limits.header_timeout;
        if let Some(proxies) = &self.preamble.proxy_protocol {
            peer = unless_closed(slot, stop, proxies.read_header(&mut socket, peer, limit)).await?;
            if !slot.set_peer(peer.ip()) {
                self.limits.metrics.connections_per_peer.inc();
                return Err(io::Error::other("too many connections of the same address"));
            }
        }
        let Some(tls) = &self.preamble.tls else { return Ok((Box::new(socket), peer)) };
        let accepted =
            async { timeout(limit, tls.accept(socket)).await.unwrap_or(Err(io::ErrorKind::TimedOut.into())) };
        let stream = unless_closed(slot, stop, accepted).await;
        tls.count(&stream);
        Ok((Box::new(stream?), peer))
    }

    async fn serve_http(
        self: &Arc<Self>,
        stream: Box<dyn Stream>,
        peer: SocketAddr,
        activity: &Arc<Activity>,
        mut stop: watch::Receiver<bool>,
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        let service = service_fn(|request| self.answer(request, peer, activity));
        let mut connection =
            pin!(self.builder.serve_connection(TokioIo::new(TargetEncoder::new(stream, activity.clone())), service));
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
                let mut refused = refuse(status);
                match status {
                    StatusCode::BAD_REQUEST => self.malformed("uri", "a `#` before a pipelined request", peer),
                    StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
                        self.malformed("header_too_large", "too many header fields", peer);
                    }
                    _ => {
                        self.limits.metrics.requests.inc();
                    }
                }
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

    /// Counts and logs a request that hyper has refused by itself.
    fn report(&self, error: &(dyn Error + Send + Sync + 'static), peer: SocketAddr) {
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
