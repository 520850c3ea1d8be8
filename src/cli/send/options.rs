//! Options that `send`, `soak` and others share: where webhooks are sent, how TLS is spoken there, rates and periods.

use crate::cli::CommandError;
use crate::http_client::{ClientConfig, Trust, certificates};
use crate::ingress;
use clap::Args;
use hyper::Uri;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;

/// Where webhooks are sent.
#[derive(Debug, Args)]
pub struct Target {
    /// Where the bridge takes webhooks, if not where its configuration says.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// PEM of the authorities to trust if the bridge speaks TLS, instead of the system's.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// PEM of a certificate to show if the bridge asks for one.
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// PEM of its key.
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
}

impl Target {
    /// The URL that is given, or else this path at the bridge's own address.
    pub fn url(&self, ingress: &ingress::Config, path: Option<&str>) -> Result<Uri, CommandError> {
        let usage = |problem: &str| Err(CommandError::Usage(problem.to_owned()));
        match (&self.url, path) {
            (Some(url), _) => parse_url("--url", url),
            _ if ingress.listen.port() == 0 => {
                usage("`ingress.listen` lets the system choose the port; tell with --url where the bridge listens")
            }
            (None, None) => {
                usage("`ingress.path` is not set or holds a secret; tell with --url where the events are to be sent")
            }
            (None, Some(path)) => {
                let scheme = if ingress.tls.is_some() { "https" } else { "http" };
                parse_url("`path`", &format!("{scheme}://{}{path}", reachable(ingress.listen)))
            }
        }
    }

    /// The configuration of TLS for this URL; of no use, and without files, if that does not ask for TLS.
    pub fn tls(&self, url: &Uri) -> Result<ClientConfig, CommandError> {
        let of_flag = |flag: &'static str| move |problem: String| CommandError::Usage(format!("--{flag} {problem}"));
        let builder = match &self.ca {
            _ if url.scheme_str() != Some("https") => Trust::Nobody.tls().map_err(CommandError::Usage)?,
            Some(path) => Trust::File(path).tls().map_err(of_flag("ca"))?,
            None => Trust::System.tls().map_err(|problem| {
                CommandError::Usage(format!("{problem}; name the bridge's authority with --ca FILE"))
            })?,
        };
        let Some((certificate, key)) = self.cert.as_ref().zip(self.key.as_ref()) else {
            return Ok(builder.with_no_client_auth());
        };
        let chain = certificates(certificate).map_err(of_flag("cert"))?;
        let of_key = |problem: String| CommandError::Usage(format!("--key {}: {problem}", key.display()));
        let own = PrivateKeyDer::from_pem_file(key).map_err(|error| of_key(error.to_string()))?;
        builder.with_client_auth_cert(chain, own).map_err(|error| of_key(error.to_string()))
    }
}

/// The URL of a webhook; `origin` is the setting that it comes from.
fn parse_url(origin: &str, text: &str) -> Result<Uri, CommandError> {
    let problem = |problem: &str| {
        CommandError::Usage(format!(
            "{origin} {text}: {problem}; expected something like http://127.0.0.1:8080/webhook/cdr"
        ))
    };
    let url: Uri = text.parse().map_err(|error| problem(&format!("{error}")))?;
    match (url.scheme_str(), url.host()) {
        (Some("http" | "https"), Some(_)) => Ok(url),
        _ => Err(problem("not a URL that begins with http:// or https://")),
    }
}

/// An address to connect to: a listener on all addresses is reached by the loopback one.
fn reachable(listen: SocketAddr) -> SocketAddr {
    match listen {
        SocketAddr::V4(all) if all.ip().is_unspecified() => (Ipv4Addr::LOCALHOST, all.port()).into(),
        SocketAddr::V6(all) if all.ip().is_unspecified() => (Ipv6Addr::LOCALHOST, all.port()).into(),
        one => one,
    }
}

pub fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (0.001..=100_000.0).contains(&rate) => Ok(rate),
        _ => Err("expected a number of events a second, from 0.001 to 100000".to_owned()),
    }
}

pub fn period(text: &str) -> Result<Duration, String> {
    let period = text.parse::<jiff::SignedDuration>().ok().and_then(|period| Duration::try_from(period).ok());
    period.ok_or_else(|| "expected a period such as 60s, 10m or \"1h 30m\"".to_owned())
}
