//! Certificates for servers on loopback and for their clients, made by authorities that live as long as the test, and a client.

use std::fs::write;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion, version};

use super::Bridge;
use super::raw::Raw;

/// Files in PEM, in the directory that [`issue`] was given.
pub struct Files {
    /// The certificate of the authority: what a client has to trust.
    pub authority: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// The key and the certificate in one file, as Kafka wants them.
    pub key_and_certificate: PathBuf,
}

/// Makes an authority, and a certificate by it for `127.0.0.1` and `localhost`.
pub fn issue(directory: &Path) -> Files {
    let authority = Authority::new("authority");
    let pair = authority.issue();
    let file = |name: &str, content: &str| {
        let path = directory.join(name);
        write(&path, content).unwrap();
        path
    };
    Files {
        authority: file("authority.pem", &authority.pem()),
        certificate: file("certificate.pem", &pair.certificate),
        key: file("key.pem", &pair.key),
        key_and_certificate: file("key-and-certificate.pem", &(pair.key.clone() + &pair.certificate)),
    }
}

/// Who issues certificates.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    /// OpenSSL takes a certificate whose issuer has its own name for self-signed, and rcgen gives all the same name unless told one.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for `127.0.0.1` and `localhost`, or for a client there.
    pub fn issue(&self) -> Pair {
        self.issue_until(4096)
    }

    /// One that is valid until the beginning of that year.
    pub fn issue_until(&self, year: i32) -> Pair {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        params.not_after = date_time_ymd(year, 1, 1);
        Pair { certificate: params.signed_by(&key, &self.0).unwrap().pem(), key: key.serialize_pem() }
    }
}

/// How a client speaks TLS. Sessions are resumed among the connections of one and its clones.
#[derive(Clone)]
pub struct Client(Arc<ClientConfig>);

impl Client {
    /// Trusts the authority, shows a certificate if it is asked for one, and speaks these versions; TLS 1.2 and 1.3 if there are none.
    pub fn new(
        trusted: &Authority,
        own: Option<&Pair>,
        protocol: &str,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(trusted.pem().as_bytes()).unwrap()).unwrap();
        let both: &[_] = &[&version::TLS12, &version::TLS13];
        let versions = if versions.is_empty() { both } else { versions };
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_protocol_versions(versions).unwrap().with_root_certificates(roots);
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some(own) => {
                let certificate = CertificateDer::from_pem_slice(own.certificate.as_bytes()).unwrap();
                let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap();
                builder.with_client_auth_cert(vec![certificate], key).unwrap()
            }
        };
        config.alpn_protocols =
            Some(protocol.as_bytes().to_vec()).into_iter().filter(|name| !name.is_empty()).collect();
        Self(Arc::new(config))
    }

    /// One that only trusts the authority.
    pub fn trusting(trusted: &Authority) -> Self {
        Self::new(trusted, None, "http/1.1", &[])
    }

    /// Shakes hands with the ingress. With TLS 1.3 a client learns that it was refused only from what it reads then.
    pub async fn connect(&self, bridge: &Bridge) -> io::Result<TlsStream<TcpStream>> {
        self.shake_hands(TcpStream::connect(bridge.ingress()).await?).await
    }

    /// The same on a connection that is there already.
    pub async fn shake_hands(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(self.0.clone()).connect(name, stream).await
    }

    /// The same, for HTTP by hand.
    pub async fn raw(&self, bridge: &Bridge) -> io::Result<Raw<TlsStream<TcpStream>>> {
        Ok(Raw::over(self.connect(bridge).await?))
    }

    /// Posts on a connection of its own. Returns the status, or what went wrong.
    pub async fn post(&self, bridge: &Bridge, body: &str) -> Result<u16, String> {
        let mut raw = self.raw(bridge).await.map_err(|error| error.to_string())?;
        raw.exchange(body).await
    }
}
