//! A client's socket: told apart from a client that is gone, and closed so that the client can read the last response.

use super::connections::Activity;
use hyper::body::{Buf as _, Bytes};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

/// A client that has closed its sending side is taken to be gone when its response takes longer than this.
const HALF_CLOSED: Duration = Duration::from_secs(5);
/// How long a client that was refused is read from after the response. A socket closed with bytes unread resets the connection, and
/// the reset takes away the response that the client has not read yet.
const LINGER: Duration = Duration::from_secs(5);
/// How many bytes are read meanwhile: a client that sends more is a flood.
const LINGER_BYTES: usize = 16 << 20;

/// A socket as hyper or TLS sees it.
#[derive(Debug)]
pub struct Socket {
    stream: TcpStream,
    activity: Arc<Activity>,
    /// Bytes that came along with a PROXY header.
    read_ahead: Bytes,
    /// Bytes that may still be read.
    read_limit: usize,
    half_closed: Option<Pin<Box<Sleep>>>,
    lingering: Option<Pin<Box<Sleep>>>,
    /// Bytes that are still read while it lingers.
    linger_bytes: usize,
}

impl Socket {
    pub fn new(stream: TcpStream, activity: Arc<Activity>) -> Self {
        Self {
            stream,
            activity,
            read_ahead: Bytes::new(),
            read_limit: usize::MAX,
            half_closed: None,
            lingering: None,
            linger_bytes: LINGER_BYTES,
        }
    }

    /// The activity of the connection.
    pub fn activity(&self) -> &Activity {
        &self.activity
    }

    /// Fails reads after about so many further bytes.
    pub fn limit_reads(&mut self, bytes: usize) {
        self.read_limit = bytes;
    }

    /// Has these bytes read again.
    pub fn unread(&mut self, bytes: Bytes) {
        self.read_ahead = bytes;
    }

    /// The first byte that is to be read, which stays to be read; `None` if the client sends nothing more.
    pub async fn peek(&mut self) -> io::Result<Option<u8>> {
        if self.read_ahead.is_empty() {
            let mut first = [0; 1];
            let count = self.stream.read(&mut first).await?;
            self.read_ahead = Bytes::copy_from_slice(first.get(..count).unwrap_or_default());
        }
        Ok(self.read_ahead.first().copied())
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.read_limit == 0 {
            return Poll::Ready(Err(io::Error::other("the client sends too much")));
        }
        let before = buffer.filled().len();
        if self.read_ahead.has_remaining() {
            let count = self.read_ahead.len().min(buffer.remaining());
            buffer.put_slice(&self.read_ahead.split_to(count));
        } else {
            ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        }
        let count = buffer.filled().len() - before;
        if count > 0 {
            self.read_limit = self.read_limit.saturating_sub(count);
            self.activity.receive(count)?;
        } else if buffer.remaining() > 0 && self.activity.owes_response() {
            let half_closed = self.half_closed.get_or_insert_with(|| Box::pin(sleep(HALF_CLOSED)));
            ready!(half_closed.as_mut().poll(cx));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let socket = &mut *self;
        let lingering = match &mut socket.lingering {
            Some(lingering) => lingering,
            None => {
                ready!(Pin::new(&mut socket.stream).poll_shutdown(cx))?;
                socket.lingering.insert(Box::pin(sleep(LINGER)))
            }
        };
        while socket.activity.has_unread() && lingering.as_mut().poll(cx).is_pending() {
            let mut bytes = [0; 4096];
            let mut buffer = ReadBuf::new(&mut bytes);
            let read = ready!(Pin::new(&mut socket.stream).poll_read(cx, &mut buffer));
            let count = buffer.filled().len();
            if read.is_err() || count == 0 || count > socket.linger_bytes {
                break;
            }
            socket.linger_bytes -= count;
        }
        Poll::Ready(Ok(()))
    }
}
