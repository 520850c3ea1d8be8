//! Authentication: the checks that a route makes of a request before it is taken.
//!
//! All checks of a route have to pass. Checks that need no body are made before the body is read, and nothing of a refused request is
//! kept. The answer never tells which check failed; the log does, without any value.

mod cidr;
mod config;
mod hmac;
mod secrets;
mod sign;
mod standard_webhooks;
mod token;
mod twilio;

pub use config::{Config, Problem};
pub use secrets::{Secrets, watch};
pub use sign::{Draft, sign};
pub use token::strip;

use crate::event::Event;
use crate::metrics::SecretMetrics;
use config::Algorithm;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use secrets::Kind;
use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// The parts of a request that checks look at, besides the body.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// Request line and header fields.
    pub request: &'a Parts,
    /// The segment of the path where the route's path has `{secret}`.
    pub path_secret: Option<&'a str>,
    /// The other end of the connection.
    pub peer: IpAddr,
}

impl<'a> Head<'a> {
    /// The path and the query as they are written.
    fn target(&self) -> &'a str {
        self.request.uri.path_and_query().map_or("/", |target| target.as_str())
    }

    fn query(&self) -> Option<&'a str> {
        self.request.uri.query()
    }

    /// The values of the header fields with this name, in their order.
    fn values(&self, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
        self.request.headers.get_all(name).iter().map(HeaderValue::as_bytes)
    }

    /// The value of a header field that came exactly once: of several, each reader might take another.
    fn only(&self, name: &HeaderName) -> Option<&'a [u8]> {
        let mut values = self.values(name);
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
    /// The reason; no part of the request.
    pub reason: &'static str,
}

/// The checks of one route.
#[derive(Debug, Default)]
pub struct Auth {
    checks: Vec<Check>,
    /// The query parameters that hold secrets.
    secret_parameters: Vec<String>,
    /// The `type` of a check that leaves the query unsigned, if there is one.
    unsigned_query: Option<&'static str>,
}

#[derive(Debug)]
struct Check {
    config: Config,
    secrets: Arc<Secrets>,
}

impl Auth {
    /// Makes the checks, which reads the files of secrets. Errors name the setting, which stands under `at`.
    pub fn open(configs: &[Config], at: &str, metrics: &SecretMetrics) -> Result<Self, String> {
        let mut auth = Self::default();
        for (index, config) in configs.iter().enumerate() {
            let at = format!("{at}.{index}");
            let problem = |problem: Problem| format!("`{at}.{}`: {}", problem.key, problem.text);
            auth.checks.push(Check::open(config, &at, metrics).map_err(problem)?);
            auth.secret_parameters.extend(config.secret_parameter().cloned());
            if config.leaves_query_unsigned() {
                auth.unsigned_query = Some(config.name());
            }
        }
        Ok(auth)
    }

    /// The secrets that are in files.
    pub fn watched(&self) -> impl Iterator<Item = Arc<Secrets>> {
        self.checks.iter().map(|check| &check.secrets).filter(|secrets| secrets.are_in_files()).cloned()
    }

    /// Checks the secret in the path. With a wrong one there is nothing at that path.
    pub fn check_path(&self, path_secret: Option<&str>) -> Result<(), Denied> {
        self.all(|check| match &check.config {
            Config::Path(_) => token::path(path_secret, &check.secrets),
            _ => Ok(()),
        })
    }

    /// Makes the checks that need no body.
    pub fn check_head(&self, head: &Head<'_>) -> Result<(), Denied> {
        if self.checks.is_empty() {
            return Ok(());
        }
        let now = now();
        self.all(|check| check.head(head, now))
    }

    /// Makes the checks that need the body, as it came.
    pub fn check_body(&self, head: &Head<'_>, body: &[u8]) -> Result<(), Denied> {
        self.all(|check| check.body(head, body))
    }

    /// Makes the checks that need the decoded events, all of which have to pass. `query` is the request's, without secrets.
    pub fn check_events(&self, query: Option<&str>, events: &[Event]) -> Result<(), Denied> {
        // Nothing would be stored of it, and the sender would take that for an acknowledgement.
        if let (Some(check), Some(query)) = (self.unsigned_query, query)
            && events.is_empty()
            && !self.strip(query).is_empty()
        {
            return Err(Denied { check, reason: "the fields are in the query, which the signature does not cover" });
        }
        self.all(|check| match &check.config {
            Config::AppId(own) => check_appids(events, &own.appids.0),
            _ => Ok(()),
        })
    }

    /// The reason of the first check that fails. The others are made all the same: the time must not tell which one failed.
    fn all(&self, verdict: impl Fn(&Check) -> Result<(), &'static str>) -> Result<(), Denied> {
        let denied = |check: &Check, reason| Denied { check: check.config.name(), reason };
        let verdicts = self.checks.iter().map(|check| verdict(check).map_err(|reason| denied(check, reason)));
        verdicts.fold(Ok(()), Result::and)
    }

    /// The query parameters that hold secrets.
    pub fn secret_parameters(&self) -> &[String] {
        &self.secret_parameters
    }

    /// The query without the parameters that hold secrets.
    fn strip<'a>(&self, query: &'a str) -> Cow<'a, str> {
        token::strip(query, &self.secret_parameters)
    }

    /// The query as far as it may be used: without secrets, and not at all if a check leaves it unsigned.
    pub fn trusted_query<'a>(&self, query: Option<&'a str>) -> Option<Cow<'a, str>> {
        query.filter(|_| self.unsigned_query.is_none()).map(|query| self.strip(query))
    }

    /// The value of `WWW-Authenticate`, if the sender authenticates by `Authorization`.
    pub fn challenge(&self) -> Option<HeaderValue> {
        self.checks.iter().find_map(|check| match check.config {
            Config::Bearer(_) => Some(HeaderValue::from_static("Bearer")),
            Config::Basic(_) => Some(HeaderValue::from_static("Basic realm=\"cdrelay\", charset=\"UTF-8\"")),
            _ => None,
        })
    }
}

impl Config {
    /// Whether events of these applications are taken.
    pub fn takes(&self, events: &[Event]) -> bool {
        match self {
            Self::AppId(own) => check_appids(events, &own.appids.0).is_ok(),
            _ => true,
        }
    }
}

impl Check {
    fn open(config: &Config, at: &str, metrics: &SecretMetrics) -> Result<Self, Problem> {
        config.check()?;
        let kind = match config {
            Config::Basic(basic) => Kind::Password(basic.username.clone()),
            Config::Hmac(hmac) | Config::Github(hmac) | Config::Shopify(hmac) => Kind::Signature(hmac.algorithm),
            Config::StandardWebhooks(_) => Kind::StandardWebhooks,
            Config::Twilio(_) => Kind::Signature(Algorithm::Sha1),
            _ => Kind::Token,
        };
        Ok(Self { config: config.clone(), secrets: Arc::new(Secrets::open(config, &kind, at, metrics)?) })
    }

    fn head(&self, head: &Head<'_>, now: u64) -> Result<(), &'static str> {
        match &self.config {
            Config::Query(own) => token::query(head.query(), &own.parameter, &self.secrets),
            Config::Header(own) => token::header(head.only(&own.header), &self.secrets),
            Config::Bearer(_) => token::bearer(head.only(&header::AUTHORIZATION), &self.secrets),
            Config::Basic(_) => token::basic(head.only(&header::AUTHORIZATION), &self.secrets),
            Config::Hmac(hmac) | Config::Github(hmac) | Config::Shopify(hmac) => hmac.check_head(head, now),
            Config::StandardWebhooks(own) => own.check_head(head, now),
            Config::Twilio(twilio) => twilio.check_head(head),
            Config::Cidr(cidr) => cidr.check(head),
            Config::Path(_) | Config::AppId(_) => Ok(()),
        }
    }

    fn body(&self, head: &Head<'_>, body: &[u8]) -> Result<(), &'static str> {
        match &self.config {
            Config::Hmac(hmac) | Config::Github(hmac) | Config::Shopify(hmac) => {
                hmac.check_body(head, body, &self.secrets)
            }
            Config::StandardWebhooks(own) => own.check_body(head, body, &self.secrets),
            Config::Twilio(twilio) => twilio.check_body(head, body, &self.secrets),
            _ => Ok(()),
        }
    }
}

/// All events have to be of one of these applications.
fn check_appids(events: &[Event], allowed: &[String]) -> Result<(), &'static str> {
    let is_allowed = |event: &Event| event.text("appid").is_some_and(|appid| allowed.contains(&appid));
    if events.iter().all(is_allowed) { Ok(()) } else { Err("an event has another appid, or none") }
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests;
