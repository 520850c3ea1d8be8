//! How a soak speaks TLS to the bridge.

use hyper::Uri;
use hyper_rustls::ConfigBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
pub use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// The files it takes.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// Authorities to trust instead of the system's.
    pub ca: Option<PathBuf>,
    /// The client's certificate, and its key.
    pub own: Option<(PathBuf, PathBuf)>,
}

/// Why TLS cannot be spoken.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unusable(String);

fn unusable(flag: &str, path: &Path, problem: impl ToString) -> Unusable {
    Unusable(format!("--{flag} {}: {}", path.display(), problem.to_string()))
}

/// The configuration for this URL; of no use, and without files, if that does not ask for TLS.
pub fn config(url: &Uri, files: &Files) -> Result<ClientConfig, Unusable> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| Unusable(error.to_string()))?;
    let builder = match &files.ca {
        _ if url.scheme_str() != Some("https") => builder.with_root_certificates(RootCertStore::empty()),
        Some(path) => {
            let mut authorities = RootCertStore::empty();
            for certificate in certificates("ca", path)? {
                authorities.add(certificate).map_err(|error| unusable("ca", path, error))?;
            }
            builder.with_root_certificates(authorities)
        }
        None => builder.with_native_roots().map_err(|error| {
            Unusable(format!("the system names no authorities to trust ({error}); name the bridge's with --ca FILE"))
        })?,
    };
    let Some((certificate, key)) = &files.own else { return Ok(builder.with_no_client_auth()) };
    let chain = certificates("cert", certificate)?;
    let own = PrivateKeyDer::from_pem_file(key).map_err(|error| unusable("key", key, error))?;
    builder.with_client_auth_cert(chain, own).map_err(|error| unusable("key", key, error))
}

fn certificates(flag: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match found {
        Ok(found) if found.is_empty() => Err(unusable(flag, path, pem::Error::NoItemsFound)),
        found => found.map_err(|error| unusable(flag, path, error)),
    }
}
