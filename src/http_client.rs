//! An HTTP/1.1 client that speaks TLS by rustls, follows no redirect, and bounds the answers it reads.

use http_body_util::BodyExt as _;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
pub use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::client::WantsClientCert;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::{ConfigBuilder, RootCertStore};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A client that keeps its connections.
pub struct HttpClient {
    client: legacy::Client<HttpsConnector<HttpConnector>, String>,
    authorization: Option<HeaderValue>,
}

/// An answer with its complete body.
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The header fields.
    pub headers: HeaderMap,
    /// The body.
    pub body: Vec<u8>,
}

/// Why there is no complete answer.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// The server cannot be reached, or the connection broke.
    #[error("{0}")]
    Failed(String),
    /// The body exceeds the bound.
    #[error("the answer has more than {0} bytes")]
    TooLarge(usize),
}

impl HttpClient {
    /// A client that keeps this many idle connections.
    pub fn new(tls: ClientConfig, idle_connections: usize) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.enforce_http(false);
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(connector);
        let client = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(idle_connections)
            .build(connector);
        Self { client, authorization: None }
    }

    /// The same client, whose requests carry this login.
    #[must_use]
    pub fn with_authorization(self, authorization: Option<HeaderValue>) -> Self {
        Self { authorization, ..self }
    }

    /// Posts JSON with [`Self::send`].
    pub async fn post(&self, url: &Uri, json: String, max_bytes: usize) -> Result<Answer, PostError> {
        let mut request = Request::new(json);
        *request.method_mut() = Method::POST;
        *request.uri_mut() = url.clone();
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        request.headers_mut().extend(self.authorization.clone().map(|login| (AUTHORIZATION, login)));
        self.send(request, max_bytes).await
    }

    /// Sends a request as it is, and reads the answer to its end, so that the connection can serve the next request. Without a deadline.
    pub async fn send(&self, request: Request<String>, max_bytes: usize) -> Result<Answer, PostError> {
        let answered = self.client.request(request).await.map_err(|error| PostError::Failed(innermost(&error)))?;
        let (head, mut incoming) = answered.into_parts();
        let mut body = Vec::new();
        while let Some(frame) = incoming.frame().await {
            let data = frame.map_err(|error| PostError::Failed(innermost(&error)))?.into_data().unwrap_or_default();
            if body.len() + data.len() > max_bytes {
                return Err(PostError::TooLarge(max_bytes));
            }
            body.extend_from_slice(&data);
        }
        Ok(Answer { status: head.status, headers: head.headers, body })
    }
}

/// Which servers a client trusts.
#[derive(Clone, Copy, Debug)]
pub enum Trust<'a> {
    /// None: for a client that speaks no TLS.
    Nobody,
    /// Those with a certificate of the system's authorities.
    System,
    /// Those with a certificate of an authority in this PEM file.
    File(&'a Path),
}

impl Trust<'_> {
    /// The configuration of TLS, to which a certificate of the client can be added.
    pub fn tls(self) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, String> {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
        let mut authorities = RootCertStore::empty();
        match self {
            Self::Nobody => {}
            Self::System => {
                let unusable = |error| format!("the system names no authorities to trust ({error})");
                return builder.with_native_roots().map_err(unusable);
            }
            Self::File(path) => {
                for certificate in certificates(path)? {
                    authorities.add(certificate).map_err(|error| format!("{}: {error}", path.display()))?;
                }
            }
        }
        Ok(builder.with_root_certificates(authorities))
    }
}

/// The certificates in a PEM file, one at least.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = match found {
        Ok(found) if found.is_empty() => Err(pem::Error::NoItemsFound),
        found => found,
    };
    found.map_err(|error| format!("{}: {error}", path.display()))
}

/// The library's outer errors say no more than that something failed.
fn innermost(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
