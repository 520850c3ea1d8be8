//! From the files to the configuration of rustls.

use super::{Certificate, ClientAuth, Config, Loaded, Version};
use crate::reloaded::Content;
use std::sync::Arc;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::server::{NoClientAuth, WebPkiClientVerifier};
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{Error, InconsistentKeys, RootCertStore, ServerConfig};

/// Why the files cannot be used: setting, file, cause and remedy.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(pub String);

/// A file, and the setting that names it.
#[derive(Clone, Copy)]
struct File<'a> {
    setting: &'static str,
    content: &'a Content,
}

/// `contents` are those of the certificate, the key, and the authorities of clients, if there are any.
pub(super) fn load(config: &Config, contents: &[Content]) -> Result<Loaded, TlsError> {
    let names = ["cert_file", "key_file", "client_ca_file"];
    let mut files = names.into_iter().zip(contents).map(|(setting, content)| File { setting, content });
    let (Some(cert), Some(key)) = (files.next(), files.next()) else {
        return Err(TlsError("a defect: there are two files at least".into()));
    };
    let provider = Arc::new(ring::default_provider());
    let chain = cert.certificates()?;
    let own = chain.first().and_then(|own| Certificate::parse(own, cert.content.path.clone()));
    let certificate = own.ok_or_else(|| cert.problem("does not begin with a certificate that can be read"))?;
    let certified = certified_key(cert, key, chain, &provider)?;
    let clients = match files.next() {
        Some(authorities) => authorities.verifier(config.client_auth, &provider)?,
        None => Arc::new(NoClientAuth),
    };
    let versions: &[_] = match config.min_version {
        Version::Tls12 => &[&TLS13, &TLS12],
        Version::Tls13 => &[&TLS13],
    };
    let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(versions);
    let builder = builder.map_err(|error| cert.problem(&format!("cannot be used: {error}")))?;
    // Sessions can be resumed, from a small memory that ends with this certificate: no client gets around authorities that
    // have changed, and there is no key for tickets that could get out.
    let mut server =
        builder.with_client_cert_verifier(clients).with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Loaded { server: Arc::new(server), certificate })
}

fn certified_key(
    cert: File<'_>,
    key: File<'_>,
    chain: Vec<CertificateDer<'static>>,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, TlsError> {
    let private_key = provider.key_provider.load_private_key(key.private_key()?).map_err(|_| {
        key.problem("holds a key of a kind that is not supported; use ECDSA P-256 or P-384, Ed25519, or RSA with 2048 to 4096 bits")
    })?;
    let certified = CertifiedKey::new(chain, private_key);
    match certified.keys_match() {
        Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(certified),
        Err(Error::InconsistentKeys(_)) => Err(key.problem(&format!(
            "holds a key that does not belong to the first certificate in {}; that one has to be the server's own",
            cert.content.path.display()
        ))),
        Err(error) => Err(cert.problem(&format!("holds a certificate that cannot be used: {error}"))),
    }
}

impl File<'_> {
    /// The content, without a byte order mark: the parser would take the first line for a comment.
    fn bytes(&self) -> Result<&[u8], TlsError> {
        let bytes: &[u8] = self.content.bytes.as_deref().map_err(|cause| self.problem(cause))?;
        Ok(bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes))
    }

    fn problem(&self, problem: &str) -> TlsError {
        TlsError(format!("`ingress.tls.{}`: {} {problem}", self.setting, self.content.path.display()))
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";
        let bytes = self.bytes()?;
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
        let found = found.map_err(|error| self.problem(&format!("is not sound PEM: {error}")))?;
        let begun = bytes.windows(BEGIN.len()).filter(|window| *window == BEGIN).count();
        if found.len() < begun {
            // The parser skips lines that begin in another way.
            return Err(self.problem("holds a certificate whose first line is not -----BEGIN CERTIFICATE----- alone"));
        }
        if found.is_empty() {
            return Err(self.problem("holds no certificate; expected PEM, with -----BEGIN CERTIFICATE-----"));
        }
        Ok(found)
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        let bytes = self.bytes()?;
        let key = PrivateKeyDer::pem_slice_iter(bytes).next();
        if let Some(key) = key {
            return key.map_err(|error| self.problem(&format!("is not sound PEM: {error}")));
        }
        if bytes.windows(9).any(|window| window == b"ENCRYPTED") {
            return Err(self.problem("holds an encrypted key; decrypt it with `openssl pkey -in FILE -out NEW`"));
        }
        Err(self.problem(
            "holds no private key; expected PEM, with -----BEGIN PRIVATE KEY-----, RSA PRIVATE KEY or EC PRIVATE KEY",
        ))
    }

    fn verifier(
        &self,
        auth: ClientAuth,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
        let mut authorities = RootCertStore::empty();
        for (index, certificate) in self.certificates()?.into_iter().enumerate() {
            authorities.add(certificate).map_err(|error| {
                self.problem(&format!("holds a certificate, number {}, that cannot be used: {error}", index + 1))
            })?;
        }
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), provider.clone());
        let builder = if auth == ClientAuth::Optional { builder.allow_unauthenticated() } else { builder };
        builder.build().map_err(|error| self.problem(&format!("cannot be used: {error}")))
    }
}
