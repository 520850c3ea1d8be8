//! From the files to what rustls works with.

use super::{Certificate, ClientAuth, Config, Loaded, Version};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::server::{NoClientAuth, WebPkiClientVerifier};
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{Error, InconsistentKeys, RootCertStore, ServerConfig};

/// More than any chain or bundle of authorities has.
const MOST: u64 = 4 << 20;

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// One cannot be read.
    #[error("`ingress.tls.{key}`: cannot read {}: {cause}", path.display())]
    Unreadable {
        /// The setting.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: String,
    },
    /// One does not hold what it should.
    #[error("`ingress.tls.{key}`: {} {problem}", path.display())]
    Content {
        /// The setting.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong, and what helps.
        problem: String,
    },
    /// They are sound, and no use now.
    #[error("{0}")]
    NotValid(String),
}

/// What tells one content of the files from another, without holding a key.
pub(super) type Digest = [u8; 32];

/// The content of the files at one moment, or nearly so.
pub(super) struct Files {
    chain: Content,
    key: Content,
    client_ca: Option<Content>,
}

struct Content {
    setting: &'static str,
    path: PathBuf,
    bytes: Result<Vec<u8>, String>,
}

impl Files {
    pub(super) fn read(config: &Config) -> Self {
        Self {
            chain: Content::read("cert_file", &config.cert_file),
            key: Content::read("key_file", &config.key_file),
            client_ca: config.client_ca_file.as_ref().map(|path| Content::read("client_ca_file", path)),
        }
    }

    pub(super) fn digest(&self) -> Digest {
        let mut digest = Sha256::new();
        for content in [Some(&self.chain), Some(&self.key), self.client_ca.as_ref()].into_iter().flatten() {
            let (kind, bytes) = match &content.bytes {
                Ok(bytes) => (0_u8, bytes.as_slice()),
                Err(cause) => (1, cause.as_bytes()),
            };
            digest.update([kind]);
            digest.update((bytes.len() as u64).to_le_bytes());
            digest.update(bytes);
        }
        digest.finalize().into()
    }

    pub(super) fn load(&self, config: &Config) -> Result<Loaded, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let chain = self.chain.certificates()?;
        let own = chain.first().and_then(|own| Certificate::parse(own, self.chain.path.clone()));
        let certificate =
            own.ok_or_else(|| self.chain.problem("does not begin with a certificate that can be read"))?;
        let key = self.certified_key(chain, &provider)?;
        let clients = match &self.client_ca {
            Some(authorities) => authorities.verifier(config.client_auth, &provider)?,
            None => Arc::new(NoClientAuth),
        };
        let versions: &[_] = match config.min_version {
            Version::Tls12 => &[&TLS13, &TLS12],
            Version::Tls13 => &[&TLS13],
        };
        let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(versions);
        let builder = builder.map_err(|error| self.chain.problem(&format!("cannot be used: {error}")))?;
        // Sessions can be resumed, from a small memory that ends with this certificate: no client gets around authorities that
        // have changed, and there is no key for tickets that could get out.
        let mut server =
            builder.with_client_cert_verifier(clients).with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
        server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Loaded { server: Arc::new(server), certificate })
    }

    fn certified_key(
        &self,
        chain: Vec<CertificateDer<'static>>,
        provider: &CryptoProvider,
    ) -> Result<CertifiedKey, TlsError> {
        let key = provider.key_provider.load_private_key(self.key.private_key()?).map_err(|_| {
            self.key.problem("holds a key of a kind that is not supported; use ECDSA P-256 or P-384, Ed25519, or RSA with 2048 to 4096 bits")
        })?;
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(certified),
            Err(Error::InconsistentKeys(_)) => Err(self.key.problem(&format!(
                "holds a key that does not belong to the first certificate in {}; that one has to be the server's own",
                self.chain.path.display()
            ))),
            Err(error) => Err(self.chain.problem(&format!("holds a certificate that cannot be used: {error}"))),
        }
    }
}

impl Content {
    fn read(setting: &'static str, path: &Path) -> Self {
        Self { setting, path: path.to_owned(), bytes: read(path).map_err(|error| error.to_string()) }
    }

    fn bytes(&self) -> Result<&[u8], TlsError> {
        self.bytes.as_deref().map_err(|cause| TlsError::Unreadable {
            key: self.setting,
            path: self.path.clone(),
            cause: cause.clone(),
        })
    }

    fn problem(&self, problem: &str) -> TlsError {
        TlsError::Content { key: self.setting, path: self.path.clone(), problem: problem.to_owned() }
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(self.bytes()?).collect();
        let found = found.map_err(|error| self.problem(&format!("is not sound PEM: {error}")))?;
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

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MOST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST {
        return Err(io::Error::other("it has more than 4 MiB; is it the right file?"));
    }
    Ok(bytes)
}
