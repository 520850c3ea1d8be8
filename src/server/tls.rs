//! The TLS handshake of a server's connections.

use super::socket::Socket;
use super::{PROBLEM, problem};
use crate::metrics::TlsMetrics;
use hyper::StatusCode;
use std::io;
use std::sync::Arc;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;

/// Bytes that a client may send for a handshake, certificates included.
const MAX_HANDSHAKE: usize = 32 << 10;
/// Encrypted bytes that wait for a client that does not read: one record.
const MAX_UNSENT: usize = 16 << 10;

/// Encryption for the connections of a server.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The configuration of the next handshake. Connections keep the one they began with.
    pub config: watch::Receiver<Arc<ServerConfig>>,
    /// Counts handshakes.
    pub metrics: TlsMetrics,
}

impl Tls {
    /// Performs the handshake.
    pub(super) async fn accept(&self, mut socket: Socket) -> io::Result<TlsStream<Socket>> {
        // An HTTP method begins with a letter, and a TLS handshake with the byte 0x16.
        if socket.peek().await?.is_some_and(|first| first.is_ascii_uppercase()) {
            refuse_plain_http(&mut socket).await?;
            return Err(io::Error::new(io::ErrorKind::InvalidData, "plain HTTP on a port that takes TLS only"));
        }
        socket.limit_reads(MAX_HANDSHAKE);
        let acceptor = TlsAcceptor::from(self.config.borrow().clone());
        let accepting = acceptor.accept_with(socket, |session| session.set_buffer_limit(Some(MAX_UNSENT)));
        match accepting.into_fallible().await {
            Ok(mut stream) => {
                let (socket, session) = stream.get_mut();
                let unread = session.process_new_packets().is_ok_and(|state| state.plaintext_bytes_to_read() > 0);
                socket.limit_reads(usize::MAX);
                socket.activity().pass_preamble(unread);
                Ok(stream)
            }
            Err((error, mut socket)) => {
                // The client was sent an alert, and may be sending already: it gets to read the alert.
                if error.kind() == io::ErrorKind::InvalidData {
                    socket.shutdown().await?;
                }
                Err(error)
            }
        }
    }

    /// Counts the handshake that ended so.
    pub(super) fn count<T>(&self, handshake: &io::Result<T>) {
        if handshake.is_ok() { &self.metrics.succeeded } else { &self.metrics.failed }.inc();
    }
}

async fn refuse_plain_http(socket: &mut Socket) -> io::Result<()> {
    let refusal =
        problem(StatusCode::BAD_REQUEST, "only TLS is spoken here; use https:// in the URL", None).into_body();
    let head = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: {PROBLEM}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        refusal.len()
    );
    socket.write_all(&[head.as_bytes(), refusal.as_bytes()].concat()).await?;
    socket.shutdown().await
}
