//! A client's socket, closed so that the client can read the last answer, and not waited on for ever.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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
    /// Until when the client has to read something, while there is more than the system takes for it.
    writable: Option<Pin<Box<Sleep>>>,
    closing: Option<Pin<Box<Sleep>>>,
    discarded: usize,
    /// How many bytes may still be read, about.
    allowance: usize,
}

/// What the service tells the socket.
#[derive(Debug, Default)]
pub struct Watcher {
    /// How many requests have begun, and whether the last of them still has no answer.
    requests: AtomicUsize,
    busy: AtomicBool,
    http2: AtomicBool,
    /// Bytes came that no answer has accounted for.
    unanswered: AtomicBool,
}

impl Watcher {
    /// A request's header has been read.
    pub fn request_begins(&self, http2: bool) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.busy.store(true, Ordering::Relaxed);
        self.http2.store(http2, Ordering::Relaxed);
    }

    /// A request, or a handshake, has its answer; `unread` if the client may still be sending a body, or has sent a request since.
    pub fn answered(&self, unread: bool) {
        self.unanswered.store(unread, Ordering::Relaxed);
        self.busy.store(false, Ordering::Relaxed);
    }
}

impl Socket {
    /// A socket that fails when the client lets `patience` pass without the header of its next request, or without reading. Over
    /// HTTP/2 only the first request is waited for like that.
    pub fn new(stream: TcpStream, patience: Duration) -> (Self, Arc<Watcher>) {
        let watcher = Arc::new(Watcher::default());
        let kept = watcher.clone();
        (
            Self {
                stream,
                watcher,
                patience,
                awaited: 0,
                until: Instant::now() + patience,
                timer: None,
                writable: None,
                closing: None,
                discarded: 0,
                allowance: usize::MAX,
            },
            kept,
        )
    }

    /// From now on reading fails when the client has sent about as many bytes as this.
    pub fn allow(&mut self, bytes: usize) {
        self.allowance = bytes;
    }

    /// The first byte that comes, which stays to be read; `None` if the client has ended its side.
    pub async fn peek(&self) -> io::Result<Option<u8>> {
        let mut first = [0];
        let count = self.stream.peek(&mut first).await?;
        Ok(first.into_iter().take(count).next())
    }

    /// Resolves when the next request's header has been waited for too long.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let requests = self.watcher.requests.load(Ordering::Relaxed);
        if requests > 0 && (self.watcher.busy.load(Ordering::Relaxed) || self.watcher.http2.load(Ordering::Relaxed)) {
            return Poll::Pending;
        }
        if self.awaited != requests {
            self.awaited = requests;
            self.until = Instant::now() + self.patience;
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(self.until)));
        loop {
            ready!(timer.as_mut().poll(cx));
            if timer.deadline() >= self.until {
                return Poll::Ready(());
            }
            timer.as_mut().reset(self.until);
        }
    }

    /// What writing came to, or that it takes too long.
    fn written(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.writable = None;
            return written;
        }
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
        if let Poll::Ready(result) = pin!(&mut self.stream).poll_read(cx, buffer) {
            self.allowance = self.allowance.saturating_sub(buffer.filled().len() - before);
            if buffer.filled().len() > before {
                self.watcher.unanswered.store(true, Ordering::Relaxed);
            }
            return Poll::Ready(result);
        }
        self.poll_patience(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
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
        if self.closing.is_none() {
            ready!(pin!(&mut self.stream).poll_shutdown(cx))?;
            self.closing = Some(Box::pin(sleep(LINGER)));
        }
        let watcher = &self.watcher;
        if watcher.http2.load(Ordering::Relaxed) || !watcher.unanswered.load(Ordering::Relaxed) {
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
