//! Serves HTTP/1.1 and HTTP/2 on a listener until told to stop. The ingress and the admin port share it.
//!
//! A connection takes a slot, passes the preamble (PROXY header, TLS handshake), and is then served by hyper. Everything that a client
//! can occupy before it is authenticated has a bound here: connections, header bytes, streams, time.

mod connections;
mod http;
mod problem;
pub mod proxy_protocol;
mod request;
mod socket;
mod target;
mod tls;

pub use http::MALFORMED;
pub use problem::{PROBLEM, problem, response};
pub use proxy_protocol::ProxyProtocol;
pub use request::RequestBody;
pub use tls::Tls;

use crate::log_throttle::LogThrottle;
use crate::metrics::LimitMetrics;
use connections::{Connections, Slot};
use http::REQUEST_MEMORY;
use hyper::Response;
use hyper::http::request::Parts;
use hyper_util::rt::TokioExecutor;
use hyper_util::server::conn::auto::Builder;
use parking_lot::RwLock;
use socket::Socket;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Pause after a failed accept, for example when there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
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

/// The settings that can change while a server runs. Connections keep the preamble and the timeouts that they began with.
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
    let connections = Arc::new(Connections::new(settings.clone(), request_memory.clone()));
    let current = settings.borrow_and_update().clone();
    let mut server = Arc::new(Server::new(current, Arc::new(service), request_memory, Arc::default()));
    let mut tasks = JoinSet::new();
    loop {
        let (stream, peer) = tokio::select! {
            biased;
            () = stopped(&mut stop) => break,
            accepted = accept(&listener) => accepted,
        };
        while tasks.try_join_next().is_some() {}
        if settings.has_changed().unwrap_or(false) {
            server = Arc::new(server.with(settings.borrow_and_update().clone()));
        }
        let slot = tokio::select! {
            biased;
            () = stopped(&mut stop) => break,
            slot = server.admit(&connections, peer) => slot,
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

async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
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

impl<S: Service> Server<S> {
    fn new(settings: Settings, service: Arc<S>, request_memory: Arc<Semaphore>, malformed: Arc<LogThrottle>) -> Self {
        let Settings { limits, preamble } = settings;
        let builder = http::builder(preamble.tls.is_some(), limits.idle_timeout);
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
        let mut slot = connections.admit().await;
        slot.set_peer(peer.ip()).then_some(slot)
    }

    async fn serve_connection(
        self: Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        mut slot: Slot,
        mut stop: watch::Receiver<bool>,
    ) {
        let activity = slot.activity().clone();
        let _ = stream.set_nodelay(true);
        let socket = Socket::new(stream, activity.clone());
        let served = match self.pass_preamble(socket, peer, &mut slot, &mut stop).await {
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
        slot: &mut Slot,
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
}
