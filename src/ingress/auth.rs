//! Who may send: what a route of the ingress asks of a request before it is taken.
//!
//! All checks of a route have to pass. What can be said without the body is said before the body is read, and nothing of a
//! refused request is kept. The sender never learns which check failed; the log tells the operator, without any value.

mod appid;
mod cidr;
mod credential;
mod hmac;
mod secrets;
mod settings;
mod standard_webhooks;
mod token;
mod twilio;

pub use credential::{Credential, Place};
pub use secrets::{Secrets, watch};
pub use settings::{Algorithm, Config, Encoding, Problem, Type};

use crate::event::Event;
use crate::http;
use crate::metrics::SecretMetrics;
use cidr::Cidr;
use hmac::Hmac;
use hyper::header::{self, HeaderName, HeaderValue};
use standard_webhooks::StandardWebhooks;
use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use twilio::Twilio;

/// A request's header, as the checks see it.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// Request line and header fields.
    pub request: &'a http::Head,
    /// What stands in the path where `{secret}` does in the route's.
    pub path_secret: Option<&'a str>,
    /// The other end of the connection.
    pub peer: IpAddr,
}

impl<'a> Head<'a> {
    /// The value of a header field that came exactly once: of several, each reader might take another.
    fn only(&self, name: &HeaderName) -> Option<&'a [u8]> {
        let mut values = self.request.values(name);
        values.next().filter(|_| values.next().is_none())
    }

    /// The same as text.
    fn only_text(&self, name: &HeaderName) -> Option<&'a str> {
        self.only(name).and_then(|value| str::from_utf8(value).ok())
    }
}

/// Why a request is refused, for the log alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denied {
    /// The `type` of the check.
    pub check: &'static str,
    /// What is wrong; no part of the request.
    pub reason: &'static str,
}

/// All checks of one route.
#[derive(Debug, Default)]
pub struct Auth {
    checks: Vec<Check>,
    /// The query parameters that hold secrets.
    parameters: Vec<String>,
}

#[derive(Debug)]
enum Check {
    Path(Arc<Secrets>),
    Query(String, Arc<Secrets>),
    Header(HeaderName, Arc<Secrets>),
    Bearer(Arc<Secrets>),
    Basic(Arc<Secrets>),
    Hmac(Hmac),
    StandardWebhooks(StandardWebhooks),
    Twilio(Twilio),
    AppId(Vec<String>),
    Cidr(Cidr),
}

impl Auth {
    /// Puts the checks together; reads the secrets from their files. Errors name the setting, which stands under `at`.
    pub fn open(configs: &[Config], at: &str, metrics: &SecretMetrics) -> Result<Self, String> {
        let open = |(index, config): (usize, &Config)| {
            let at = format!("{at}.{index}");
            Check::open(config, &at, metrics).map_err(|problem| format!("`{at}.{}`: {}", problem.key, problem.text))
        };
        let checks = configs.iter().enumerate().map(open).collect::<Result<Vec<_>, _>>()?;
        let parameters = checks.iter().filter_map(|check| match check {
            Check::Query(parameter, _) => Some(parameter.clone()),
            _ => None,
        });
        Ok(Self { parameters: parameters.collect(), checks })
    }

    /// The secrets that lie in files.
    pub fn watched(&self) -> impl Iterator<Item = Arc<Secrets>> {
        self.checks.iter().filter_map(Check::secrets).filter(|secrets| secrets.are_watched()).cloned()
    }

    /// Whether anybody may send.
    pub fn is_open(&self) -> bool {
        self.checks.is_empty()
    }

    /// Whether the secret in the path is the right one; without it there is nothing at that path.
    pub fn check_path(&self, path_secret: Option<&str>) -> Result<(), Denied> {
        self.all(|check| match check {
            Check::Path(secrets) => token::path(path_secret, secrets),
            _ => Ok(()),
        })
    }

    /// What can be said without the body.
    pub fn check_head(&self, head: &Head<'_>) -> Result<(), Denied> {
        if self.checks.is_empty() {
            return Ok(());
        }
        let now = now();
        self.all(|check| check.head(head, now))
    }

    /// What can be said only with the body, as it came.
    pub fn check_body(&self, head: &Head<'_>, body: &[u8]) -> Result<(), Denied> {
        self.all(|check| check.body(head, body))
    }

    /// What can be said only of what is in the body: all of the events have to pass.
    pub fn check_events(&self, events: &[Event]) -> Result<(), Denied> {
        self.all(|check| match check {
            Check::AppId(allowed) => appid::check(events, allowed),
            _ => Ok(()),
        })
    }

    /// What the first check says that fails. The others are made all the same: the time must not tell which one it was.
    fn all(&self, verdict: impl Fn(&Check) -> Result<(), &'static str>) -> Result<(), Denied> {
        let denied = |check: &Check, reason| Denied { check: check.kind(), reason };
        let verdicts = self.checks.iter().map(|check| verdict(check).map_err(|reason| denied(check, reason)));
        verdicts.fold(Ok(()), Result::and)
    }

    /// The query without the parameters that hold secrets.
    pub fn strip<'a>(&self, query: &'a str) -> Cow<'a, str> {
        if self.parameters.is_empty() { Cow::Borrowed(query) } else { token::strip(query, &self.parameters) }
    }

    /// How the sender may say who it is, if that is by the header field `Authorization`.
    pub fn challenge(&self) -> Option<HeaderValue> {
        self.checks.iter().find_map(|check| match check {
            Check::Bearer(_) => Some(HeaderValue::from_static("Bearer")),
            Check::Basic(_) => Some(HeaderValue::from_static("Basic realm=\"cdrelay\", charset=\"UTF-8\"")),
            _ => None,
        })
    }
}

impl Check {
    fn open(config: &Config, at: &str, metrics: &SecretMetrics) -> Result<Self, Problem> {
        config.check()?;
        let secrets = |kind| Secrets::open(config, kind, at, metrics).map(Arc::new);
        Ok(match config.r#type {
            Type::Path => Self::Path(secrets(secrets::Kind::Token)?),
            Type::Query => Self::Query(config.parameter()?.to_owned(), secrets(secrets::Kind::Token)?),
            Type::Header => Self::Header(config.header(None)?, secrets(secrets::Kind::Token)?),
            Type::Bearer => Self::Bearer(secrets(secrets::Kind::Token)?),
            Type::Basic => Self::Basic(secrets(secrets::Kind::Password(config.username()?.to_owned()))?),
            Type::Hmac | Type::Github | Type::Shopify => Self::Hmac(Hmac::open(config, secrets)?),
            Type::StandardWebhooks => {
                Self::StandardWebhooks(StandardWebhooks::new(config, secrets(secrets::Kind::StandardWebhooks)?))
            }
            Type::Twilio => Self::Twilio(Twilio::open(config, secrets(secrets::Kind::Hmac(Algorithm::Sha1))?)?),
            Type::AppId => Self::AppId(config.appids.0.clone()),
            Type::Cidr => Self::Cidr(Cidr::open(config)?),
        })
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Path(_) => "path",
            Self::Query(..) => "query",
            Self::Header(..) => "header",
            Self::Bearer(_) => "bearer",
            Self::Basic(_) => "basic",
            Self::Hmac(_) => "hmac",
            Self::StandardWebhooks(_) => "standard-webhooks",
            Self::Twilio(_) => "twilio",
            Self::AppId(_) => "appid",
            Self::Cidr(_) => "cidr",
        }
    }

    fn secrets(&self) -> Option<&Arc<Secrets>> {
        match self {
            Self::Path(secrets)
            | Self::Query(_, secrets)
            | Self::Header(_, secrets)
            | Self::Bearer(secrets)
            | Self::Basic(secrets) => Some(secrets),
            Self::Hmac(hmac) => Some(hmac.secrets()),
            Self::StandardWebhooks(check) => Some(check.secrets()),
            Self::Twilio(twilio) => Some(twilio.secrets()),
            Self::AppId(_) | Self::Cidr(_) => None,
        }
    }

    fn head(&self, head: &Head<'_>, now: u64) -> Result<(), &'static str> {
        match self {
            Self::Query(parameter, secrets) => token::query(head.request.query(), parameter, secrets),
            Self::Header(name, secrets) => token::header(head.only(name), secrets),
            Self::Bearer(secrets) => token::bearer(head.only(&header::AUTHORIZATION), secrets),
            Self::Basic(secrets) => token::basic(head.only(&header::AUTHORIZATION), secrets),
            Self::Hmac(hmac) => hmac.check_head(head, now),
            Self::StandardWebhooks(check) => check.check_head(head, now),
            Self::Twilio(twilio) => twilio.check_head(head),
            Self::Cidr(cidr) => cidr.check(head),
            Self::Path(_) | Self::AppId(_) => Ok(()),
        }
    }

    fn body(&self, head: &Head<'_>, body: &[u8]) -> Result<(), &'static str> {
        match self {
            Self::Hmac(hmac) => hmac.check_body(head, body),
            Self::StandardWebhooks(check) => check.check_body(head, body),
            Self::Twilio(twilio) => twilio.check_body(head, body),
            _ => Ok(()),
        }
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests;
