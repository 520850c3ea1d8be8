//! `[ingress.proxy_protocol]`: what a proxy that passes bytes on, and adds nothing to them, tells of a connection before its first byte.
//!
//! Nothing is guessed. With the setting every connection has to come from a trusted proxy and to begin with a header of version 1 or 2; without
//! it none is read. Else anybody could claim to be somebody else.

mod header;

use super::socket::{Socket, Watcher};
use crate::log_throttle::LogThrottle;
use crate::metrics::ProxyProtocolMetrics;
use crate::setting::{List, Network};
use header::{Fault, decode, extent};
use serde::Deserialize;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;

/// How long the header may take at the most. The proxy has it ready when it connects.
const HEADER: Duration = Duration::from_secs(10);
/// How much is looked at in one go: more than all headers have but those with many further fields.
const LOOK: usize = 256;

/// `[ingress.proxy_protocol]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The proxies, which are the only ones that may connect.
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

impl ProxyProtocol {
    /// As configured, counting what it refuses in `metrics`.
    pub fn new(config: &Config, metrics: ProxyProtocolMetrics) -> Self {
        Self {
            trusted: config.trusted_proxies.0.clone(),
            metrics,
            untrusted: LogThrottle::default(),
            refused: LogThrottle::default(),
        }
    }

    /// Whether connections from there are wanted.
    pub fn trusts(&self, proxy: IpAddr) -> bool {
        let trusted = Network::any_holds(&self.trusted, proxy);
        if !trusted {
            self.metrics.untrusted.inc();
            if let Some(count) = self.untrusted.should_log() {
                tracing::warn!(
                    count,
                    address = %proxy,
                    "connections were closed that do not come from `ingress.proxy_protocol.trusted_proxies`"
                );
            }
        }
        trusted
    }

    /// Reads the header. Returns the client's address, or that of the connection where the proxy tells none.
    pub async fn read(
        &self,
        socket: &mut Socket,
        watcher: &Watcher,
        proxy: SocketAddr,
        patience: Duration,
    ) -> io::Result<SocketAddr> {
        let read = timeout(patience.min(HEADER), read(socket)).await;
        let (reason, counter) = match read.unwrap_or_else(|_| Err(Broken::Io(io::ErrorKind::TimedOut.into()))) {
            Ok(told) => {
                // What has come so far is no request that wants an answer.
                watcher.answered(false);
                let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
                return Ok(told.map_or(proxy, canonical));
            }
            // The socket is no more patient than we are.
            Err(Broken::Io(error)) if error.kind() == io::ErrorKind::TimedOut => {
                ("the header did not come in time", &self.metrics.timeout)
            }
            // Nobody can tell whose fault that is; a proxy that only looks whether the port is open does the same.
            Err(Broken::Io(error)) => return Err(error),
            Err(Broken::Ended) => ("the connection ended within the header", &self.metrics.incomplete),
            Err(Broken::Not(Fault::Missing)) => ("there is no header", &self.metrics.missing),
            Err(Broken::Not(Fault::Invalid(reason))) => (reason, &self.metrics.invalid),
        };
        counter.inc();
        if let Some(count) = self.refused.should_log() {
            tracing::warn!(count, reason, %proxy, "connections were closed that did not begin as the PROXY protocol demands");
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, reason))
    }
}

/// Why there is no header.
enum Broken {
    Not(Fault),
    Ended,
    Io(io::Error),
}

/// Takes from the socket what belongs to the header, and not one byte more: what is behind it is for others to read.
async fn read(socket: &mut Socket) -> Result<Option<SocketAddr>, Broken> {
    let mut header = Vec::new();
    loop {
        if let Some(told) = decode(&header).map_err(Broken::Not)? {
            return Ok(told);
        }
        let known = header.len();
        header.resize(known + LOOK, 0);
        let room = header.get_mut(known..).unwrap_or_default();
        let count = socket.peek(room).await.map_err(Broken::Io)?;
        if count == 0 {
            let ended = Broken::Io(io::ErrorKind::UnexpectedEof.into());
            return Err(if known > 0 { Broken::Ended } else { ended });
        }
        header.truncate(known + count);
        header.truncate(extent(&header));
        let room = header.get_mut(known..).unwrap_or_default();
        socket.read_exact(room).await.map_err(Broken::Io)?;
    }
}
