//! `[ingress.tls]`: which certificate webhooks are taken with, and who may send them.
//!
//! The files are read again every second, by their content: how they are replaced, by renaming, by writing over them, or by the
//! symbolic links of a mounted Kubernetes secret, makes no difference. What two readings in a row agree on is taken to be
//! complete. If it can be used it is used, from the next handshake on; if not, everything stays as it was.

mod certificate;
mod files;

pub use certificate::Certificate;
pub use files::TlsError;

use crate::metrics::TlsMetrics;
use files::{Digest, Files};
use serde::Deserialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio_rustls::rustls::ServerConfig;

const POLL: Duration = Duration::from_secs(1);

/// `[ingress.tls]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// PEM, the server's own certificate first, then the intermediate ones.
    pub cert_file: PathBuf,
    /// PEM of its key: PKCS#8, PKCS#1 or SEC1.
    pub key_file: PathBuf,
    /// PEM of the authorities whose clients are taken. Without it, clients are not asked for a certificate.
    #[serde(default)]
    pub client_ca_file: Option<PathBuf>,
    /// Whether a client without a certificate is taken, where they are asked for one.
    #[serde(default)]
    pub client_auth: ClientAuth,
    /// The oldest version spoken.
    #[serde(default)]
    pub min_version: Version,
}

/// Whether a client needs a certificate. One that cannot be verified is refused either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientAuth {
    /// None without.
    #[default]
    Required,
    /// It can do without.
    Optional,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum Version {
    /// RFC 5246
    #[default]
    #[serde(rename = "1.2")]
    Tls12,
    /// RFC 8446
    #[serde(rename = "1.3")]
    Tls13,
}

/// The files' content, ready for use.
struct Loaded {
    server: Arc<ServerConfig>,
    certificate: Certificate,
}

/// Reads the files, and tells whether they can be used.
pub fn check(config: &Config) -> Result<Certificate, TlsError> {
    Ok(Files::read(config).load(config)?.certificate)
}

/// Reads the files. Returns what handshakes are to be done with, and the task that keeps it up to date.
pub fn start(
    config: &Config,
    metrics: TlsMetrics,
) -> Result<(watch::Receiver<Arc<ServerConfig>>, impl Future<Output = ()> + Send + use<>), TlsError> {
    let files = Files::read(config);
    let Loaded { server, certificate } = files.load(config)?;
    tracing::info!(%certificate, "the ingress speaks TLS");
    if let Some(problem) = certificate.problem() {
        tracing::warn!("{problem}");
    }
    metrics.not_after.set(certificate.not_after());
    let (sender, receiver) = watch::channel(server);
    Ok((receiver, keep_up(Watch::new(config.clone(), files.digest()), certificate, sender, metrics)))
}

async fn keep_up(
    mut watch: Watch,
    mut certificate: Certificate,
    handshakes: watch::Sender<Arc<ServerConfig>>,
    metrics: TlsMetrics,
) {
    let mut warned = certificate.problem().is_some();
    loop {
        tokio::time::sleep(POLL).await;
        // A disk may take its time.
        let looked = spawn_blocking(move || {
            let seen = watch.look();
            (watch, seen)
        });
        let Ok((returned, seen)) = looked.await else { return };
        watch = returned;
        match seen {
            Seen::Nothing => {}
            Seen::New(loaded) => {
                handshakes.send_replace(loaded.server);
                certificate = loaded.certificate;
                metrics.reloaded.inc();
                metrics.not_after.set(certificate.not_after());
                tracing::info!(%certificate, "the ingress's new certificate and authorities are in use");
                warned = false;
            }
            Seen::Unusable(error) => {
                metrics.reload_failed.inc();
                tracing::error!(%error, "the files of the ingress's TLS have changed and cannot be used; what they held before is");
            }
        }
        if let (false, Some(problem)) = (warned, certificate.problem()) {
            tracing::warn!("{problem}");
            warned = true;
        }
    }
}

/// Watches the files.
struct Watch {
    config: Config,
    /// What is in use.
    used: Digest,
    /// What the last look has seen.
    seen: Digest,
    /// What cannot be used, and that has been said.
    refused: Option<Digest>,
}

/// What a look at the files has brought.
enum Seen {
    Nothing,
    New(Loaded),
    Unusable(TlsError),
}

impl Watch {
    fn new(config: Config, used: Digest) -> Self {
        Self { config, seen: used, used, refused: None }
    }

    fn look(&mut self) -> Seen {
        let files = Files::read(&self.config);
        let digest = files.digest();
        let settled = std::mem::replace(&mut self.seen, digest) == digest;
        if digest == self.used {
            self.refused = None;
            return Seen::Nothing;
        }
        if !settled {
            return Seen::Nothing;
        }
        // Also what was refused: a certificate that is not valid yet will be.
        match files.load(&self.config).and_then(Loaded::valid_now) {
            Ok(loaded) => {
                self.used = digest;
                self.refused = None;
                Seen::New(loaded)
            }
            Err(_) if self.refused == Some(digest) => Seen::Nothing,
            Err(error) => {
                self.refused = Some(digest);
                Seen::Unusable(error)
            }
        }
    }
}

impl Loaded {
    /// At the start there is nothing better than an expired certificate. Later there is.
    fn valid_now(self) -> Result<Self, TlsError> {
        match self.certificate.problem() {
            None => Ok(self),
            Some(problem) => Err(TlsError::NotValid(problem)),
        }
    }
}

#[cfg(test)]
mod tests;
