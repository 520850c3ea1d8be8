//! `[ingress.proxy_protocol]`: the header in which a proxy names the client before the first byte of a connection.
//!
//! Nothing is guessed. With the setting, every connection has to come from a trusted proxy and to begin with a header of version 1 or 2;
//! without it, none is read. Otherwise a sender could claim any address.

use super::canonical;
use super::socket::Socket;
use crate::log_throttle::LogThrottle;
use crate::metrics::ProxyProtocolMetrics;
use crate::setting::{List, Network};
use hyper::body::Bytes;
use proxy_header::{ParseConfig, Protocol, ProxyHeader};
use schemars::JsonSchema;
use serde::Deserialize;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;

/// Bytes of a header. The addresses need 216, further fields little more; nginx takes as much.
const MAX_HEADER: usize = 4096;
/// The first bytes of version 1, and of version 2.
const VERSION_1: &[u8] = b"PROXY ";
const VERSION_2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// The type of the field that holds a checksum of the header, and the length of the checksum.
const CRC32C: [u8; 3] = [3, 0, 4];

/// `[ingress.proxy_protocol]`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The proxies. Connections from other addresses are closed.
    pub trusted_proxies: List<Network>,
}

/// Reads the headers of a server's connections.
#[derive(Debug)]
pub struct ProxyProtocol {
    trusted: Vec<Network>,
    metrics: ProxyProtocolMetrics,
    untrusted: LogThrottle,
    refused: LogThrottle,
}

/// Why there is no header.
enum HeaderError {
    Missing,
    Invalid,
    Incomplete,
    Io(io::Error),
}

impl ProxyProtocol {
    /// As configured. Counts refused connections in `metrics`.
    pub fn new(config: &Config, metrics: ProxyProtocolMetrics) -> Self {
        Self {
            trusted: config.trusted_proxies.0.clone(),
            metrics,
            untrusted: LogThrottle::default(),
            refused: LogThrottle::default(),
        }
    }

    /// Whether a connection may come from this address.
    pub(super) fn trusts(&self, proxy: IpAddr) -> bool {
        let trusted = Network::any_holds(&self.trusted, proxy);
        if !trusted {
            self.metrics.untrusted.inc();
            if let Some(count) = self.untrusted.should_log() {
                tracing::warn!(count, address = %proxy, "connections from outside `ingress.proxy_protocol.trusted_proxies` were closed");
            }
        }
        trusted
    }

    /// Reads the header within `limit`. Returns the address of the client, or of the proxy where the header names none.
    pub(super) async fn read_header(
        &self,
        socket: &mut Socket,
        proxy: SocketAddr,
        limit: Duration,
    ) -> io::Result<SocketAddr> {
        let read = timeout(limit, read(socket)).await;
        let (reason, counter) = match read.unwrap_or_else(|_| Err(HeaderError::Io(io::ErrorKind::TimedOut.into()))) {
            Ok(client) => {
                socket.activity().pass_preamble(false);
                return Ok(client.map_or(proxy, canonical));
            }
            Err(HeaderError::Io(error)) if error.kind() == io::ErrorKind::TimedOut => {
                ("timeout", &self.metrics.timeout)
            }
            // A proxy that only probes the port does the same.
            Err(HeaderError::Io(error)) => return Err(error),
            Err(HeaderError::Incomplete) => ("incomplete", &self.metrics.incomplete),
            Err(HeaderError::Missing) => ("missing", &self.metrics.missing),
            Err(HeaderError::Invalid) => ("invalid", &self.metrics.invalid),
        };
        counter.inc();
        if let Some(count) = self.refused.should_log() {
            tracing::warn!(count, reason, %proxy, "connections without a valid PROXY protocol header were closed");
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, reason))
    }
}

/// Reads the header. The bytes behind it stay unread.
async fn read(socket: &mut Socket) -> Result<Option<SocketAddr>, HeaderError> {
    let mut bytes = Vec::with_capacity(256);
    loop {
        let room = MAX_HEADER - bytes.len();
        let count = (&mut *socket).take(room as u64).read_buf(&mut bytes).await.map_err(HeaderError::Io)?;
        if count == 0 && bytes.is_empty() {
            return Err(HeaderError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        if let Some((client, length)) = parse(&bytes)? {
            socket.unread(Bytes::from(bytes).slice(length..));
            return Ok(client);
        }
        if count == 0 {
            return Err(if room == 0 { HeaderError::Invalid } else { HeaderError::Incomplete });
        }
    }
}

/// The client's address, if the header names one, and the length of the header; `None` if there has to come more of it.
fn parse(bytes: &[u8]) -> Result<Option<(Option<SocketAddr>, usize)>, HeaderError> {
    let begins = |first: &[u8]| bytes.iter().zip(first).all(|(byte, first)| byte == first);
    if !begins(VERSION_1) && !begins(VERSION_2) {
        return Err(HeaderError::Missing);
    }
    if let Some([high, low]) = bytes.get(14..16).filter(|_| begins(VERSION_2))
        && usize::from(u16::from_be_bytes([*high, *low])) > MAX_HEADER - 16
    {
        return Err(HeaderError::Invalid);
    }
    let (header, length) = match ProxyHeader::parse(bytes, ParseConfig::default()) {
        Ok(parsed) => parsed,
        Err(proxy_header::Error::BufferTooShort) => return Ok(None),
        Err(_) => return Err(HeaderError::Invalid),
    };
    // Nothing else counts in a header that names no client.
    let Some(addresses) = header.proxied_address() else { return Ok(Some((None, length))) };
    if header.tlvs().any(|field| field.is_err()) || !checksum_matches(&header, bytes.get(..length).unwrap_or_default())
    {
        return Err(HeaderError::Invalid);
    }
    let client = Some(addresses.source).filter(|_| addresses.protocol == Protocol::Stream);
    Ok(Some((client, length)))
}

/// Verifies the checksum, if there is one, as the specification asks of receivers. It was made with zeros in its own place.
fn checksum_matches(header: &ProxyHeader<'_>, bytes: &[u8]) -> bool {
    let Some(checksum) = header.crc32c() else { return true };
    let field = [&CRC32C[..], &checksum.to_be_bytes()].concat();
    let Some(at) = bytes.windows(field.len()).rposition(|window| window == field) else { return false };
    let (before, rest) = bytes.split_at(at + CRC32C.len());
    let sum = crc32c::crc32c_append(crc32c::crc32c(before), &[0; 4]);
    crc32c::crc32c_append(sum, rest.get(4..).unwrap_or_default()) == checksum
}
