//! One connection, from what comes before HTTP to its end.
//!
//! Over HTTP/1 without TLS, requests that come whole are answered here, see `whole.rs`, until one does not: then hyper has the connection.
//! For each, hyper holds 16 KiB of buffers and the room for an answer's future, also while the connection
//! waits for the next request. One in a crowd is taken out of hyper whenever it does, and nothing is left of it but the socket; and
//! those whose requests have come take turns.

use super::beginning::Spoken;
use super::places::Place;
use super::socket::{Socket, Watcher};
use super::tls::Stream;
use super::turns::{Turn, Turns};
use super::waking::Waking;
use super::whole::{self, Whole};
use super::{Answer, Arriving, Beginning, Builders, Limits, Peer, Request};
use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::Full;
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1::Parts;
use hyper::service::{Service, service_fn};
use hyper::{Response, Version};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{Semaphore, watch};

/// What all connections of a server have in common.
pub(super) struct Server<A> {
    pub beginning: Beginning,
    pub limits: Limits,
    answer: A,
    builders: Builders,
    /// For requests that share a connection.
    requests: Arc<Semaphore>,
    /// Of connections in a crowd. One ends when it is the client's turn again.
    pub turns: Turns,
}

/// An accepted connection that has its place.
pub(super) struct Connection {
    /// Boxed, as it is handed on several times.
    pub socket: Box<Socket>,
    pub watcher: Arc<Watcher>,
    pub peer: Peer,
    pub place: Place,
    pub stop: watch::Receiver<bool>,
}

impl<A, F> Server<A>
where
    A: Fn(Request, Peer) -> F + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    pub fn new(answer: A, beginning: Beginning, limits: Limits) -> Self {
        let requests = Arc::new(Semaphore::new(limits.max_requests.min(Semaphore::MAX_PERMITS)));
        let builders = Builders::new(&limits);
        Self { beginning, limits, answer, builders, requests, turns: Turns::new() }
    }

    /// Serves a connection until the client or an error ends it, or the server stops and the requests that have begun have their
    /// answers.
    pub async fn serve(self: Arc<Self>, connection: Connection) {
        let Connection { socket, watcher, mut peer, place, mut stop } = connection;
        let begun = tokio::select! {
            () = told_to_stop(&mut stop) => Err(io::ErrorKind::ConnectionAborted.into()),
            // Boxed, so that the connection has no room for it afterwards.
            begun = Box::pin(self.beginning.pass(socket, &watcher, &mut peer, &place, &self.limits)) => begun,
        };
        let served = match begun {
            Ok((Stream::Plain(socket), Spoken::Http1)) => self.serve_http1(socket, &watcher, peer, &place, stop).await,
            Ok((stream, spoken)) => Box::pin(self.serve_any(stream, spoken, &watcher, peer, stop)).await,
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = served {
            tracing::debug!(error, peer = %peer.address, "a connection broke off");
        }
    }

    async fn serve_any(
        self: &Arc<Self>,
        stream: Stream,
        spoken: Spoken,
        watcher: &Arc<Watcher>,
        peer: Peer,
        mut stop: watch::Receiver<bool>,
    ) -> Result<(), String> {
        let service = self.service(watcher.clone(), peer);
        let mut connection = pin!(self.builders.of(spoken).serve_connection(TokioIo::new(stream), service));
        let served = tokio::select! {
            biased;
            () = told_to_stop(&mut stop) => None,
            served = connection.as_mut() => Some(served),
        };
        let served = match served {
            Some(served) => served,
            None => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        served.map_err(|error| error.to_string())
    }

    async fn serve_http1(
        self: &Arc<Self>,
        mut socket: Box<Socket>,
        watcher: &Arc<Watcher>,
        peer: Peer,
        place: &Place,
        mut stop: watch::Receiver<bool>,
    ) -> Result<(), String> {
        let told = stop.clone();
        let mut stopped = pin!(told_to_stop(&mut stop));
        let mut stopping = Stopping { told, stopped: stopped.as_mut(), awaited: false, begun: false };
        loop {
            let served = self.serve_whole(&mut socket, watcher, peer, place, &mut stopping).await;
            let Some(mut turn) = served.map_err(|error| error.to_string())? else { return Ok(()) };
            stopping.awaited = false;
            let service = self.service(watcher.clone(), peer);
            let mut connection = Box::new(self.builders.http1.serve_connection(TokioIo::new(socket), service));
            let mut waking = Waking::default();
            let mut begun = false;
            let served = poll_fn(|cx| {
                let cx = &mut Context::from_waker(waking.by(cx.waker()));
                let mut connection = Pin::new(&mut *connection);
                // What was taken from the socket has begun, before anything is to stop: hyper is to know of it.
                if !std::mem::replace(&mut begun, true)
                    && let Poll::Ready(served) = connection.as_mut().poll(cx)
                {
                    return Poll::Ready(Some(served));
                }
                if !stopping.begun && stopping.poll(cx).is_ready() {
                    connection.as_mut().graceful_shutdown();
                }
                if let Poll::Ready(served) = connection.as_mut().poll(cx) {
                    return Poll::Ready(Some(served));
                }
                if watcher.is_waiting() {
                    turn = None;
                }
                if stopping.begun || !place.is_in_a_crowd() || !watcher.rests() {
                    return Poll::Pending;
                }
                // It ends now if hyper agrees that it rests; else behind its next answer, which tells the client so.
                watcher.keep(true);
                connection.as_mut().graceful_shutdown();
                let ended = connection.poll(cx);
                watcher.keep(false);
                ended.map(|ended| ended.err().map(Err))
            });
            if let Some(served) = served.await {
                return served.map_err(|error| error.to_string());
            }
            let Parts { io, read_buf, .. } = connection.into_parts();
            socket = io.into_inner();
            // Copied, as it lies in a buffer that is larger.
            socket.give_back(Bytes::copy_from_slice(&read_buf));
            stopping.awaited = false;
        }
    }

    /// Serves requests that come whole. What is left of the turn when another comes, which is to be read again; nothing if the
    /// connection is at its end.
    async fn serve_whole(
        &self,
        socket: &mut Socket,
        watcher: &Arc<Watcher>,
        peer: Peer,
        place: &Place,
        stopping: &mut Stopping<'_>,
    ) -> io::Result<Option<Option<Turn<'_>>>> {
        loop {
            let mut turn = None;
            if place.is_in_a_crowd() {
                let Some(readable) = stopping.or(|cx| socket.poll_readable(cx)).await else { return Ok(None) };
                readable?;
                turn = Some(self.turns.take().await);
            }
            let read = stopping.or(|cx| {
                let read = whole::poll_read(Pin::new(&mut *socket), cx);
                turn = turn.take().filter(|_| read.is_ready());
                read
            });
            let Some(read) = read.await else { return Ok(None) };
            let Whole { request, closes } = match read? {
                Ok(whole) => whole,
                Err(bytes) if bytes.is_empty() => return Ok(None),
                Err(bytes) => {
                    socket.give_back(bytes);
                    if turn.is_none() && place.is_in_a_crowd() {
                        turn = Some(self.turns.take().await);
                    }
                    return Ok(Some(turn));
                }
            };
            let (open, _) = watcher.request_begins(false);
            let answer = Box::pin((self.answer)(request, peer)).await;
            watcher.answered(false);
            drop((open, turn));
            let closes = closes || stopping.told();
            whole::write(socket, answer, closes).await?;
            if closes {
                return socket.shutdown().await.map(|()| None);
            }
        }
    }

    fn service(
        self: &Arc<Self>,
        watcher: Arc<Watcher>,
        peer: Peer,
    ) -> impl Service<hyper::Request<Incoming>, Response = Response<Full<Bytes>>, Error = Infallible, Future: Send>
    + Send
    + use<A, F> {
        let server = self.clone();
        service_fn(move |mut request: hyper::Request<Incoming>| {
            let watcher = watcher.clone();
            let (version, has_body) = (request.version(), !request.body().is_end_stream());
            let (open, others) = watcher.request_begins(version == Version::HTTP_2);
            let mut peer = peer;
            if others > 0 {
                match server.requests.clone().try_acquire_owned() {
                    // Given back with the request, when its events are stored.
                    Ok(permit) => drop(request.extensions_mut().insert(Arc::new(permit))),
                    Err(_) => peer.crowded = true,
                }
                server.limits.metrics.requests.inc_by(u64::from(peer.crowded));
            }
            let (parts, body) = request.into_parts();
            let request = Request { head: parts.into(), body: Arriving::new(body, watcher.clone()) };
            // Mapped and not awaited, as this future would then have room for that one twice.
            (server.answer)(request, peer).map(move |answer| {
                let unread = has_body && answer.body_unread;
                watcher.answered(unread);
                drop(open);
                Ok::<_, Infallible>(answer.response(unread && version != Version::HTTP_2))
            })
        })
    }
}

/// Whether the server is to stop. Asked for once, which has the task woken, and again when there is news: not with every piece of every
/// request.
struct Stopping<'a> {
    told: watch::Receiver<bool>,
    stopped: Pin<&'a mut (dyn Future<Output = ()> + Send)>,
    /// The task is woken for it.
    awaited: bool,
    /// It is.
    begun: bool,
}

impl Stopping<'_> {
    /// Whether there is news.
    fn told(&self) -> bool {
        self.begun || self.told.has_changed().unwrap_or(true)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.begun && (!self.awaited || self.told()) {
            self.awaited = true;
            self.begun = self.stopped.as_mut().poll(cx).is_ready();
        }
        if self.begun { Poll::Ready(()) } else { Poll::Pending }
    }

    /// What is waited for, unless the server is to stop before.
    async fn or<T>(&mut self, mut awaited: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Option<T> {
        poll_fn(|cx| match awaited(cx) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending => self.poll(cx).map(|()| None),
        })
        .await
    }
}

/// Resolves when the server is to stop.
async fn told_to_stop(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}
