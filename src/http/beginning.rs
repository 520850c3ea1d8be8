//! What comes before HTTP on a connection.

use super::places::Place;
use super::proxy_protocol::ProxyProtocol;
use super::socket::{Socket, Watcher};
use super::tls::{Stream, Tls};
use super::{Limits, Peer};
use std::io;

/// What a connection begins with before HTTP is spoken on it, in this order.
#[derive(Debug, Default)]
pub struct Beginning {
    /// Who the client is, if proxies are to say it.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Encryption, if it is spoken.
    pub tls: Option<Tls>,
}

impl Beginning {
    /// Makes a connection of the socket, and says what is spoken on it, and whose it is; or ends it.
    pub(super) async fn pass(
        &self,
        mut socket: Box<Socket>,
        watcher: &Watcher,
        peer: &mut Peer,
        place: &Place,
        limits: &Limits,
    ) -> io::Result<(Stream, Spoken)> {
        if let Some(proxies) = &self.proxy_protocol {
            peer.address = proxies.read(&mut socket, watcher, peer.address, limits.header_timeout).await?;
            if !place.is_of(peer.address.ip()) {
                limits.metrics.connections_per_peer.inc();
                return Err(io::Error::other("its address has all connections that it may have"));
            }
        }
        let Some(tls) = &self.tls else {
            let spoken = spoken(&mut socket).await?;
            return Ok((Stream::Plain(socket), spoken));
        };
        // Boxed, so that other connections have no room for it.
        let stream = Box::pin(tls.shake_hands(*socket, watcher, limits.header_timeout)).await?;
        let spoken = if stream.speaks_http2() { Spoken::Http2 } else { Spoken::Either };
        Ok((stream, spoken))
    }
}

/// What is spoken on a connection.
#[derive(Clone, Copy, Debug)]
pub(super) enum Spoken {
    Http1,
    Http2,
    /// Not clear yet, or not agreed on.
    Either,
}

/// What HTTP/2 begins with (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Looks at what comes without taking it. What hyper would have taken to find that out, it would keep, in a buffer twice as large.
async fn spoken(socket: &mut Socket) -> io::Result<Spoken> {
    let mut room = [0; PREFACE.len()];
    let count = socket.peek(&mut room).await?;
    Ok(match room.get(..count).unwrap_or_default() {
        whole if whole == PREFACE => Spoken::Http2,
        part if PREFACE.starts_with(part) => Spoken::Either,
        _ => Spoken::Http1,
    })
}
