//! TLS between hyper and the socket.

use super::BUFFER;
use super::socket::{Socket, Watcher};
use crate::metrics::TlsMetrics;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;

/// How long a handshake may take. Until then a client costs no more than its connection's place.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How much encrypted answer waits for a client that does not read: one record.
const UNSENT: usize = 16 << 10;
/// What a client is told that speaks HTTP without it.
const PLAIN: &str =
    "{\"title\":\"Bad Request\",\"status\":400,\"detail\":\"only TLS is spoken here; use https:// in the URL\"}\n";

/// Encryption for the connections of a server.
#[derive(Clone, Debug)]
pub struct Tls {
    /// What the next handshake is done with. Connections keep what they began with.
    pub config: watch::Receiver<Arc<ServerConfig>>,
    /// Counts handshakes.
    pub metrics: TlsMetrics,
}

impl Tls {
    /// Makes a connection of the socket, or ends it.
    pub async fn shake_hands(&self, socket: Socket, watcher: &Watcher, patience: Duration) -> io::Result<Stream> {
        let shaken = timeout(patience.min(HANDSHAKE), self.try_to(socket, watcher)).await;
        let shaken = shaken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        if shaken.is_ok() { &self.metrics.shaken } else { &self.metrics.failed }.inc();
        shaken
    }

    async fn try_to(&self, mut socket: Socket, watcher: &Watcher) -> io::Result<Stream> {
        // A method begins with a letter, and TLS with the byte 0x16.
        let mut first = [0];
        if socket.peek(&mut first).await? > 0 && first[0].is_ascii_uppercase() {
            watcher.answered(true);
            let head = "HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\nconnection: close\r\n";
            socket.write_all(format!("{head}content-length: {}\r\n\r\n{PLAIN}", PLAIN.len()).as_bytes()).await?;
            socket.shutdown().await?;
            return Err(io::Error::new(io::ErrorKind::InvalidData, "plain HTTP came where only TLS is spoken"));
        }
        socket.allow(BUFFER);
        let acceptor = TlsAcceptor::from(self.config.borrow().clone());
        let handshake = acceptor.accept_with(socket, |session| session.set_buffer_limit(Some(UNSENT)));
        match handshake.into_fallible().await {
            Ok(mut stream) => {
                stream.get_mut().0.allow(usize::MAX);
                let state = stream.get_mut().1.process_new_packets();
                watcher.answered(state.is_ok_and(|state| state.plaintext_bytes_to_read() > 0));
                Ok(Stream::Tls(Box::new(stream)))
            }
            Err((error, mut socket)) => {
                // The client was told why, and may be sending already: it gets to read that, as it gets to read an answer.
                if error.kind() == io::ErrorKind::InvalidData {
                    socket.shutdown().await?;
                }
                Err(error)
            }
        }
    }
}

/// What hyper reads from and writes to. The socket is below the encryption, so that its deadlines hold for both.
pub enum Stream {
    /// Without encryption.
    Plain(Box<Socket>),
    /// With it.
    Tls(Box<TlsStream<Socket>>),
}

impl Stream {
    /// Whether both sides have agreed on HTTP/2 already.
    pub fn speaks_http2(&self) -> bool {
        matches!(self, Self::Tls(stream) if stream.get_ref().1.alpn_protocol() == Some(b"h2"))
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(socket) => Pin::new(&mut **socket).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(socket) => Pin::new(&mut **socket).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(socket) => Pin::new(&mut **socket).poll_write_vectored(cx, slices),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(socket) => socket.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(socket) => Pin::new(&mut **socket).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(socket) => Pin::new(&mut **socket).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
