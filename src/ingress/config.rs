//! `[ingress]`

use super::{auth, decode, routes, tls};
use crate::dead_letter::rejected;
use crate::metrics::LimitMetrics;
use crate::server::{Limits, proxy_protocol};
use crate::setting::{Period, Size};
use bytesize::ByteSize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

/// A connection may wait this long for its client before it can be closed for another one.
const EVICTION_AGE: Duration = Duration::from_secs(1);
/// Open files beside the connections of clients: about 25 of the runtime, the log and the spool, some connections to brokers and to the
/// admin port.
const RESERVED_FILES: usize = 48;

/// `[ingress]`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The path of the route `default`, which there is only with it if there are others.
    pub path: Option<String>,
    /// The methods of the route `default`.
    pub methods: Option<Vec<routes::Method>>,
    /// Authentication of the route `default`.
    pub auth: Vec<auth::Config>,
    /// The labels of the route `default`.
    pub labels: BTreeMap<String, String>,
    /// The CloudEvents source of the route `default`.
    pub source: Option<String>,
    /// Further routes.
    pub routes: BTreeMap<String, routes::Config>,
    /// How large a body may be, as it comes.
    #[schemars(with = "Size")]
    pub max_body: ByteSize,
    /// How large a compressed body may be when it is decompressed; by default as `max_body`.
    #[schemars(with = "Option<Size>")]
    pub max_decompressed_body: Option<ByteSize>,
    /// Bytes of memory for large bodies and their events. Further bodies wait, up to `body_timeout`.
    #[schemars(with = "Size")]
    pub body_memory: ByteSize,
    /// Connections at once. For a further one, the connection that has waited for its client longest is closed.
    pub max_connections: usize,
    /// How many of them may come from one address.
    pub max_connections_per_peer: Option<usize>,
    /// How long a body may take to arrive.
    #[serde(with = "Period")]
    pub body_timeout: Duration,
    /// How long the header of a request may take to arrive, and a TLS handshake.
    #[serde(with = "Period")]
    pub header_timeout: Duration,
    /// How long a connection may be idle between two requests.
    #[serde(with = "Period")]
    pub idle_timeout: Duration,
    /// The meaning of a 200.
    pub ack: Ack,
    /// With `ack = "delivered"`, how long a stored request waits for the sinks.
    #[serde(with = "Period")]
    pub delivery_timeout: Duration,
    /// Encryption, if the ingress is to speak it.
    pub tls: Option<tls::Config>,
    /// Which proxies say where connections come from, if any are to.
    pub proxy_protocol: Option<proxy_protocol::Config>,
    /// How bodies are read.
    pub decode: decode::Config,
    /// How many bodies are kept that could not be read.
    pub rejected: rejected::Config,
}

/// The meaning of a 200.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Ack {
    /// The events are durable and will reach every sink.
    Stored,
    /// They have reached every required sink.
    Delivered,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            path: None,
            methods: None,
            auth: Vec::new(),
            labels: BTreeMap::new(),
            source: None,
            routes: BTreeMap::new(),
            // With key and headers, less than a message that Kafka and NATS take by default.
            max_body: ByteSize::kib(1000),
            max_decompressed_body: None,
            body_memory: ByteSize::mib(4),
            max_connections: 2176,
            max_connections_per_peer: Some(2048),
            body_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            ack: Ack::Stored,
            delivery_timeout: Duration::from_secs(10),
            tls: None,
            proxy_protocol: None,
            decode: decode::Config::default(),
            rejected: rejected::Config::default(),
        }
    }
}

impl Config {
    /// How large a body may be, compressed or not, when it is read for events.
    pub fn largest_body(&self) -> ByteSize {
        self.max_decompressed_body.unwrap_or(self.max_body)
    }

    /// How many connections a process with this limit of open files takes. Further files are set aside for brokers, segments, the admin
    /// port and the runtime.
    pub fn connections_within(&self, open_files: Option<u64>) -> usize {
        let left = open_files.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        self.max_connections.min(left.saturating_sub(RESERVED_FILES).max(1))
    }

    /// The bounds of connections. Counts in `metrics`.
    pub fn limits(&self, metrics: LimitMetrics) -> Limits {
        Limits {
            header_timeout: self.header_timeout,
            idle_timeout: self.idle_timeout,
            max_connections: self.max_connections,
            max_connections_per_peer: self.max_connections_per_peer,
            eviction_age: EVICTION_AGE,
            metrics,
        }
    }
}
