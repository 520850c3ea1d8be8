//! `[ingress.tls]`: the certificate of the ingress, and the authorities of client certificates.
//!
//! The files are read again every second, see [`Reloaded`]. New ones are used from the next handshake on.

mod certificate;
mod files;

pub use certificate::Certificate;
pub use files::TlsError;

use crate::metrics::TlsMetrics;
use crate::reloaded::{Change, Content, Reloaded};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio_rustls::rustls::ServerConfig;

const POLL: Duration = Duration::from_secs(1);

/// `[ingress.tls]`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClientAuth {
    /// None without.
    #[default]
    Required,
    /// It can do without.
    Optional,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Version {
    /// RFC 5246
    #[default]
    #[serde(rename = "1.2")]
    Tls12,
    /// RFC 8446
    #[serde(rename = "1.3")]
    Tls13,
}

/// The content of the files, ready for use.
#[derive(Debug)]
struct Loaded {
    server: Arc<ServerConfig>,
    certificate: Certificate,
}

/// Reads the files once. Fails if they cannot be used.
pub fn check(config: &Config) -> Result<Certificate, TlsError> {
    Ok(Files::open(config)?.0.current().certificate.clone())
}

/// The files of a listener.
pub struct Files(Arc<Reloaded<Loaded, TlsError>>);

impl Files {
    /// Reads the files. Fails if they cannot be used.
    pub fn open(config: &Config) -> Result<Self, TlsError> {
        let paths = [Some(&config.cert_file), Some(&config.key_file), config.client_ca_file.as_ref()];
        let config = config.clone();
        let load = move |contents: &[Content]| files::load(&config, contents);
        Ok(Self(Arc::new(Reloaded::open(paths.into_iter().flatten().cloned().collect(), load)?)))
    }

    /// Returns the configuration of the next handshake, and the task that keeps it up to date.
    pub fn start(
        self,
        metrics: TlsMetrics,
    ) -> (watch::Receiver<Arc<ServerConfig>>, impl Future<Output = ()> + Send + use<>) {
        let loaded = self.0.current();
        tracing::info!(certificate = %loaded.certificate, "the ingress speaks TLS");
        if let Some(problem) = loaded.certificate.problem() {
            tracing::warn!("{problem}");
        }
        metrics.not_after.set(loaded.certificate.not_after());
        let (sender, receiver) = watch::channel(loaded.server.clone());
        (receiver, reload(self.0, sender, metrics))
    }
}

async fn reload(
    files: Arc<Reloaded<Loaded, TlsError>>,
    handshakes: watch::Sender<Arc<ServerConfig>>,
    metrics: TlsMetrics,
) {
    let mut warned = files.current().certificate.problem().is_some();
    loop {
        tokio::time::sleep(POLL).await;
        let polled = files.clone();
        let Ok(change) = spawn_blocking(move || polled.poll(Loaded::valid_now)).await else { return };
        let Loaded { server, certificate } = &*files.current();
        metrics.unusable.set(files.is_unusable().into());
        match change {
            Change::None => {}
            Change::Replaced => {
                handshakes.send_replace(server.clone());
                metrics.reloaded.inc();
                metrics.not_after.set(certificate.not_after());
                tracing::info!(%certificate, "the TLS files of the ingress were reloaded");
                warned = false;
            }
            Change::Unusable(error) => {
                metrics.reload_failed.inc();
                tracing::error!(%error, "the TLS files of the ingress have changed and cannot be used; the former certificate stays in use");
            }
        }
        if let (false, Some(problem)) = (warned, certificate.problem()) {
            tracing::warn!("{problem}");
            warned = true;
        }
    }
}

impl Loaded {
    /// At the start there is nothing better than an expired certificate. Later there is.
    fn valid_now(&self) -> Result<(), TlsError> {
        self.certificate.problem().map_or(Ok(()), |problem| Err(TlsError(problem)))
    }
}

#[cfg(test)]
mod tests;
