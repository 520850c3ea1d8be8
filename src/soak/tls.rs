//! How a soak speaks TLS to the bridge.

pub use crate::http_client::ClientConfig;
use crate::http_client::{Trust, certificates};
use hyper::Uri;
use std::path::PathBuf;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;

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

/// The configuration for this URL; of no use, and without files, if that does not ask for TLS.
pub fn config(url: &Uri, files: &Files) -> Result<ClientConfig, Unusable> {
    let unusable = |flag: &str| {
        let flag = flag.to_owned();
        move |problem: String| Unusable(format!("--{flag} {problem}"))
    };
    let builder = match &files.ca {
        _ if url.scheme_str() != Some("https") => Trust::Nobody.tls().map_err(Unusable)?,
        Some(path) => Trust::File(path).tls().map_err(unusable("ca"))?,
        None => Trust::System
            .tls()
            .map_err(|problem| Unusable(format!("{problem}; name the bridge's authority with --ca FILE")))?,
    };
    let Some((certificate, key)) = &files.own else { return Ok(builder.with_no_client_auth()) };
    let chain = certificates(certificate).map_err(unusable("cert"))?;
    let of_key = |problem: String| Unusable(format!("--key {}: {problem}", key.display()));
    let own = PrivateKeyDer::from_pem_file(key).map_err(|error| of_key(error.to_string()))?;
    builder.with_client_auth_cert(chain, own).map_err(|error| of_key(error.to_string()))
}
