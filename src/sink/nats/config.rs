//! The settings of a `[sinks.<name>]` table of type `nats`.

use super::StreamConfig;
use crate::setting::{List, Period, Secret, Size};
use bytesize::ByteSize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// Where and how to publish.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct Config {
    /// One server or several, as `nats://host:4222` or `tls://host:4222`, as a list or as one text with commas. Further
    /// servers of a cluster are learnt from the first one that answers. Default: `nats://127.0.0.1:4222`.
    #[serde(default = "this_machine")]
    pub servers: List<String>,
    /// `jetstream` (default) waits until a stream has stored the message; `core` only until the server has processed it.
    #[serde(default)]
    pub mode: Mode,
    /// User name, with `password`.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<Secret>,
    /// A file that holds the password. Secret files are read again at each connect.
    pub password_file: Option<PathBuf>,
    /// A token, instead of a user.
    pub token: Option<Secret>,
    /// A file that holds the token.
    pub token_file: Option<PathBuf>,
    /// The seed of a user nkey (`SU…`), instead of a user.
    pub nkey: Option<Secret>,
    /// A file that holds the seed.
    pub nkey_file: Option<PathBuf>,
    /// A `.creds` file with user JWT and seed, as `nsc` writes it, instead of a user.
    pub credentials_file: Option<PathBuf>,
    /// TLS. Its presence demands an encrypted connection.
    pub tls: Option<TlsConfig>,
    /// How long to wait for an acknowledgement before the message is sent again. Default: 10 s.
    #[serde(default = "ten_seconds", with = "Period")]
    pub ack_timeout: Duration,
    /// The stream that must store the messages. Default: any stream that takes the subject.
    pub stream: Option<StreamConfig>,
    /// JetStream domain, where the streams live behind a leaf node.
    pub domain: Option<String>,
    /// The name under which the server lists this connection. Default: `cdrelay`.
    pub client_name: Option<String>,
    /// Where replies arrive, for accounts that may not subscribe below `_INBOX`.
    pub inbox_prefix: Option<String>,
    /// Refuse messages over this size even though the server announces more: for users whose JWT allows less than the server.
    #[schemars(with = "Option<Size>")]
    pub max_payload: Option<ByteSize>,
}

/// When a message counts as delivered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Stored by a stream.
    #[default]
    Jetstream,
    /// Processed by the server: best effort.
    Core,
}

/// TLS to the servers. Files are PEM, checked at load and read again at each connect.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// Refuse a server that offers no TLS. Default: true.
    #[serde(default = "yes")]
    pub required: bool,
    /// Begin with the TLS handshake, for servers with `handshake_first`. Default: false.
    #[serde(default)]
    pub handshake_first: bool,
    /// The authorities to trust, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// The certificate that identifies this client, with `key_file`.
    pub cert_file: Option<PathBuf>,
    /// The key of that certificate.
    pub key_file: Option<PathBuf>,
}

fn this_machine() -> List<String> {
    List(vec!["nats://127.0.0.1:4222".to_owned()])
}

fn ten_seconds() -> Duration {
    Duration::from_secs(10)
}

fn yes() -> bool {
    true
}
