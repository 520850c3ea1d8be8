//! A client's socket, closed so that the client can read the last answer, and not waited on for ever.

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

/// For how long, and for how many bytes, a client that was refused is listened to after the answer was sent. A socket closed
/// with bytes unread resets the connection, and a reset takes away an answer that the client has not read yet.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 64 << 20;

/// The socket as hyper sees it, or as TLS below hyper does.
pub struct Socket {
    stream: TcpStream,
    watcher: Arc<Watcher>,
    patience: Duration,
    /// The number of the request whose header is waited for, until when it has to be complete, and what wakes us about then. One
    /// timer serves all requests, as it is rarely in time: hyper's own would be made anew for each, and begins only once it
    /// knows which version is spoken.
    awaited: usize,
    until: Instant,
    timer: Option<Pin<Box<Sleep>>>,
    /// When that goes off.
    rings: Option<Instant>,
    /// Until when the client has to read something, while there is more than the system takes for it.
    writable: Option<Pin<Box<Sleep>>>,
    closing: Option<Pin<Box<Sleep>>>,
    discarded: usize,
    /// How many bytes may still be read, about.
    allowance: usize,
    /// What was read and given back, which is to be read again.
    returned: Bytes,
}

/// What the service, the socket and the places tell each other.
#[derive(Debug)]
pub struct Watcher {
    begun: Instant,
    /// How many requests have begun, how many of them have no answer yet, and of how many of these more of the body is waited for.
    requests: AtomicUsize,
    open: AtomicUsize,
    incomplete: AtomicUsize,
    http2: AtomicBool,
    /// Bytes came that no answer has accounted for.
    unanswered: AtomicBool,
    /// The client has not read all of an answer.
    unread: AtomicBool,
    /// The socket outlives what is spoken on it.
    kept: AtomicBool,
    /// Whether it is the client's turn, to send or to read, and since when it was: since more of its last request's body was waited for
    /// first or that was answered, in milliseconds after `begun`. A byte now and then does not begin it anew.
    waiting: AtomicBool,
    since: AtomicU64,
    evicted: AtomicBool,
    /// Whom to wake for that.
    task: AtomicWaker,
}

/// A request without an answer.
pub struct Open(Arc<Watcher>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
        self.0.moves_on();
    }
}

impl Watcher {
    fn new() -> Self {
        Self {
            begun: Instant::now(),
            requests: AtomicUsize::default(),
            open: AtomicUsize::default(),
            incomplete: AtomicUsize::default(),
            http2: AtomicBool::default(),
            unanswered: AtomicBool::default(),
            unread: AtomicBool::default(),
            kept: AtomicBool::default(),
            waiting: AtomicBool::default(),
            since: AtomicU64::default(),
            evicted: AtomicBool::default(),
            task: AtomicWaker::new(),
        }
    }

    /// A request's header has been read. Says how many others of the connection have no answer yet.
    pub fn request_begins(self: &Arc<Self>, http2: bool) -> (Open, usize) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.http2.store(http2, Ordering::Relaxed);
        let others = self.open.fetch_add(1, Ordering::Relaxed);
        (Open(self.clone()), others)
    }

    /// Whether more of a request's body is waited for has changed.
    pub fn body_is_awaited(&self, awaited: bool) {
        if awaited {
            self.incomplete.fetch_add(1, Ordering::Relaxed);
        } else {
            self.incomplete.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// A request, or a handshake, has its answer; `unread` if the client may still be sending a body, or has sent a request since.
    pub fn answered(&self, unread: bool) {
        self.unanswered.store(unread, Ordering::Relaxed);
    }

    /// Whether the client has had an answer to any request.
    pub fn was_answered(&self) -> bool {
        self.requests.load(Ordering::Relaxed) > self.open.load(Ordering::Relaxed)
    }

    /// Whether all requests have their answers, which are with the client's system, and nothing has come since.
    pub fn rests(&self) -> bool {
        self.was_answered()
            && self.open.load(Ordering::Relaxed) == 0
            && !self.unanswered.load(Ordering::Relaxed)
            && !self.unread.load(Ordering::Relaxed)
    }

    /// Whether it is the client's turn.
    pub fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Whether the socket is to stay open when it is told to shut down.
    pub fn keep(&self, keep: bool) {
        self.kept.store(keep, Ordering::Relaxed);
    }

    /// For how long a header or a body has been waited for, or that an answer is read; `None` if it is we who are to do something. Over
    /// HTTP/2, where there is always something that may come, that is while there is a request with all of its body. One that is to end
    /// already is no help either.
    pub fn keeps_waiting(&self) -> Option<Duration> {
        let complete = self.open.load(Ordering::Relaxed) > self.incomplete.load(Ordering::Relaxed);
        let ours = self.http2.load(Ordering::Relaxed) && complete;
        let since = self.since();
        let evicted = self.evicted.load(Ordering::Relaxed);
        (self.waiting.load(Ordering::Relaxed) && !ours && !evicted).then(|| self.begun.elapsed().saturating_sub(since))
    }

    /// Has the connection end unless something has come meanwhile. Says whether this is news.
    pub fn evict(&self) -> bool {
        let news = !self.evicted.swap(true, Ordering::Relaxed);
        self.task.wake();
        news
    }

    /// It is the client's turn. Fails if the connection is to end.
    fn waits(&self, cx: &Context<'_>) -> io::Result<()> {
        self.task.register(cx.waker());
        self.waiting.store(true, Ordering::Relaxed);
        if self.evicted.load(Ordering::Relaxed) {
            return Err(io::Error::other("others need the connection's place"));
        }
        Ok(())
    }

    /// Since when it is the client's turn, or was, counted from `begun`.
    fn since(&self) -> Duration {
        Duration::from_millis(self.since.load(Ordering::Relaxed))
    }

    /// It is the client's turn from now on, when it is.
    pub fn moves_on(&self) {
        let since = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.since.store(since, Ordering::Relaxed);
    }
}

impl Socket {
    /// A socket that fails when the client lets `patience` pass without the header of its next request, or without reading. Over
    /// HTTP/2 only the first request is waited for like that.
    pub fn new(stream: TcpStream, patience: Duration) -> (Self, Arc<Watcher>) {
        let watcher = Arc::new(Watcher::new());
        let kept = watcher.clone();
        (
            Self {
                stream,
                watcher,
                patience,
                awaited: 0,
                until: Instant::now() + patience,
                timer: None,
                rings: None,
                writable: None,
                closing: None,
                discarded: 0,
                allowance: usize::MAX,
                returned: Bytes::new(),
            },
            kept,
        )
    }

    /// From now on reading fails when the client has sent about as many bytes as this.
    pub fn allow(&mut self, bytes: usize) {
        self.allowance = bytes;
    }

    /// Has these bytes read again, which were read last: before what was given back and not been read again yet.
    pub fn give_back(&mut self, bytes: Bytes) {
        self.returned = match self.returned.as_ref() {
            [] => bytes,
            behind => [&bytes, behind].concat().into(),
        };
    }

    /// Ready when there is something to read, or the client has ended its side.
    pub fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.returned.is_empty() {
            return Poll::Ready(Ok(()));
        }
        match self.stream.poll_read_ready(cx) {
            Poll::Ready(ready) => {
                self.watcher.waiting.store(false, Ordering::Relaxed);
                Poll::Ready(ready)
            }
            Poll::Pending => self.poll_waiting(cx).map(Err),
        }
    }

    /// Waits until something comes, which stays to be read, and says how much of it is now in `room`; nothing if the client has
    /// ended its side.
    pub async fn peek(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let mut room = ReadBuf::new(room);
        poll_fn(|cx| match self.stream.poll_peek(cx, &mut room) {
            Poll::Ready(peeked) => {
                self.watcher.waiting.store(false, Ordering::Relaxed);
                Poll::Ready(peeked)
            }
            Poll::Pending => self.poll_waiting(cx).map(Err),
        })
        .await
    }

    /// It is the client's turn. Resolves when it has taken too long, or the connection is to end.
    fn poll_waiting(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if let Err(error) = self.watcher.waits(cx) {
            return Poll::Ready(error);
        }
        self.poll_patience(cx).map(|()| io::ErrorKind::TimedOut.into())
    }

    /// Resolves when the next request's header has been waited for too long.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let requests = self.watcher.requests.load(Ordering::Relaxed);
        if requests > 0 && (self.watcher.open.load(Ordering::Relaxed) > 0 || self.watcher.http2.load(Ordering::Relaxed))
        {
            return Poll::Pending;
        }
        if self.awaited != requests {
            self.awaited = requests;
            self.until = self.watcher.begun + self.watcher.since() + self.patience;
        }
        // Asked for already, by this very task. The timer is far from the processor where there are many.
        if self.rings.is_some_and(|rings| Instant::now() < rings) {
            return Poll::Pending;
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(self.until)));
        loop {
            if timer.as_mut().poll(cx).is_pending() {
                self.rings = Some(timer.deadline());
                return Poll::Pending;
            }
            if timer.deadline() >= self.until {
                return Poll::Ready(());
            }
            timer.as_mut().reset(self.until);
        }
    }

    /// What writing came to, or that it takes too long.
    fn written(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let unread = written.is_pending();
        if unread || self.writable.is_some() {
            self.watcher.unread.store(unread, Ordering::Relaxed);
        }
        if !unread {
            self.writable = None;
            return written;
        }
        self.watcher.waits(cx)?;
        let deadline = self.writable.get_or_insert_with(|| Box::pin(sleep(self.patience)));
        deadline.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.allowance == 0 {
            return Poll::Ready(Err(io::Error::other("the client sends too much")));
        }
        let before = buffer.filled().len();
        let read = if self.returned.is_empty() {
            pin!(&mut self.stream).poll_read(cx, buffer)
        } else {
            let count = self.returned.len().min(buffer.remaining());
            buffer.put_slice(&self.returned.split_to(count));
            Poll::Ready(Ok(()))
        };
        if let Poll::Ready(result) = read {
            self.allowance = self.allowance.saturating_sub(buffer.filled().len() - before);
            if buffer.filled().len() > before {
                self.watcher.unanswered.store(true, Ordering::Relaxed);
            }
            self.watcher.waiting.store(false, Ordering::Relaxed);
            return Poll::Ready(result);
        }
        self.poll_waiting(cx).map(Err)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = pin!(&mut self.stream).poll_write(cx, bytes);
        self.written(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = pin!(&mut self.stream).poll_write_vectored(cx, slices);
        self.written(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        pin!(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.watcher.kept.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        if self.closing.is_none() {
            ready!(pin!(&mut self.stream).poll_shutdown(cx))?;
            self.closing = Some(Box::pin(sleep(LINGER)));
        }
        let watcher = &self.watcher;
        let evicted = watcher.evicted.load(Ordering::Relaxed);
        if evicted || watcher.http2.load(Ordering::Relaxed) || !watcher.unanswered.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        while self.discarded < LINGER_BYTES {
            if self.closing.as_mut().is_none_or(|closing| closing.as_mut().poll(cx).is_ready()) {
                break;
            }
            let mut bytes = [0; 16 << 10];
            let mut buffer = ReadBuf::new(&mut bytes);
            let read = ready!(pin!(&mut self.stream).poll_read(cx, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                break;
            }
            self.discarded += buffer.filled().len();
        }
        Poll::Ready(Ok(()))
    }
}
