//! Serving connections until told to stop: what ingress and admin have in common.

mod answer;
mod arriving;
mod beginning;
mod connection;
mod places;
pub mod proxy_protocol;
mod request;
mod socket;
mod tls;
mod turns;
mod waking;
mod whole;

pub use answer::Answer;
pub use arriving::Arriving;
pub use beginning::Beginning;
pub use proxy_protocol::ProxyProtocol;
pub use request::{Head, Request, text};
pub use tls::Tls;

use crate::metrics::LimitMetrics;
use beginning::Spoken;
use connection::{Connection, Server};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::server::conn::auto;
use places::Places;
use socket::Socket;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

/// How large the header of a request may be, how much of its body a connection holds, and what a client may send for a handshake.
const BUFFER: usize = 32 << 10;
/// Over HTTP/2. A connection's window has room for all its streams, so that streams which wait for their turn cannot keep from
/// those whose turn it is the bytes that they need to finish.
const MAX_STREAMS: u32 = 100;
const STREAM_WINDOW: u32 = 16 << 10;
/// Of the headers of one request over HTTP/2, 32 counted on top for each: about 400 at the most.
const HEADER_LIST: u32 = 16 << 10;
/// How many streams a client may take back before they are accepted, and how many it may have us take back, until it has to connect
/// anew (rapid reset, CVE-2023-44487 and RUSTSEC-2024-0003).
const RESETS: usize = 20;
const OWN_RESETS: usize = 128;
/// After a failed accept, for example when there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// Its address, or that which a trusted proxy tells; one of IPv4 is one of IPv4, also where the listener takes both kinds.
    pub address: SocketAddr,
    /// Whether this request is one too many, of those that share a connection.
    pub crowded: bool,
}

/// What connections are allowed.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How long a connection may take for the next request's header, the time it stays idle included, and to read an answer.
    pub header_timeout: Duration,
    /// How many connections there may be; for a further one, that which has kept us waiting longest has to end.
    pub max_connections: usize,
    /// How many of them may come from one address.
    pub max_connections_per_peer: Option<usize>,
    /// How many requests there may be that are not stored yet, besides one for each connection.
    pub max_requests: usize,
    /// Counts what was refused.
    pub metrics: LimitMetrics,
}

/// How what is spoken is served.
struct Builders {
    http1: http1::Builder,
    http2: auto::Builder<TokioExecutor>,
    either: auto::Builder<TokioExecutor>,
}

impl Builders {
    fn new(limits: &Limits) -> Self {
        let mut http1 = http1::Builder::new();
        // A client may close its sending side behind its last request and still wants the answer.
        http1.half_close(true);
        // The socket sees to it that a header comes in time.
        http1.header_read_timeout(None).max_buf_size(BUFFER);
        // Answers are short: to copy one behind its header costs less than a call with two pieces.
        http1.writev(false);
        let mut either = auto::Builder::new(TokioExecutor::new());
        // As above.
        either.http1().half_close(true).header_read_timeout(None).max_buf_size(BUFFER).writev(false);
        either
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(HEADER_LIST)
            .max_pending_accept_reset_streams(RESETS)
            .max_local_error_reset_streams(OWN_RESETS)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(MAX_STREAMS * STREAM_WINDOW)
            .keep_alive_interval(limits.header_timeout);
        Self { http1, http2: either.clone().http2_only(), either }
    }

    /// What is sure to be HTTP/1 is served by `http1` where it is not encrypted.
    fn of(&self, spoken: Spoken) -> &auto::Builder<TokioExecutor> {
        match spoken {
            Spoken::Http2 => &self.http2,
            Spoken::Http1 | Spoken::Either => &self.either,
        }
    }
}

/// Answers requests over HTTP/1.1 and HTTP/2, with prior knowledge or as agreed by TLS, until `stop` turns true; then takes no
/// more connections and lets the requests that have begun finish. The caller bounds that wait by dropping the future.
pub async fn serve<A, F>(
    listener: TcpListener,
    limits: Limits,
    beginning: Beginning,
    stop: watch::Receiver<bool>,
    answer: A,
) where
    A: Fn(Request, Peer) -> F + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let server = Arc::new(Server::new(answer, beginning, limits));
    tokio::select! {
        () = serve_all(listener, &server, stop) => {}
        never = server.turns.watch() => match never {},
    }
}

/// Serves connections as they come until told to stop, and then those that are there.
async fn serve_all<A, F>(listener: TcpListener, server: &Arc<Server<A>>, mut stop: watch::Receiver<bool>)
where
    A: Fn(Request, Peer) -> F + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let Server { beginning, limits, .. } = &**server;
    let places = Places::new(limits.max_connections, limits.max_connections_per_peer);
    // Connections hold a sender each: when all are gone, they have ended.
    let (serving, mut served) = mpsc::channel::<Infallible>(1);
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            accepted = accept(&listener) => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            // The client was gone before we came to it.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => {
                if !failing {
                    tracing::error!(%error, "connections cannot be accepted; trying again");
                }
                failing = true;
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        failing = false;
        let owner = match &beginning.proxy_protocol {
            Some(proxies) if !proxies.trusts(peer.address.ip()) => continue,
            // It is not known yet.
            Some(_) => None,
            None if places.are_taken_by(peer.address.ip()) => {
                limits.metrics.connections_per_peer.inc();
                continue;
            }
            None => Some(peer.address.ip()),
        };
        let _ = stream.set_nodelay(true);
        let (socket, watcher) = Socket::new(stream, limits.header_timeout);
        let evicted = || {
            limits.metrics.connections.inc();
        };
        let place = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            place = places.take(owner, &watcher, evicted) => place,
        };
        let (server, serving) = (server.clone(), serving.clone());
        let connection = Connection { socket: Box::new(socket), watcher, peer, place, stop: stop.clone() };
        tokio::spawn(async move {
            server.serve(connection).await;
            drop(serving);
        });
    }
    drop((listener, serving));
    served.recv().await;
}

async fn accept(listener: &TcpListener) -> io::Result<(TcpStream, Peer)> {
    let (stream, address) = listener.accept().await?;
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    Ok((stream, Peer { address, crowded: false }))
}
