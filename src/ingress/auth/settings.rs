//! `[[ingress.auth]]` and `[[ingress.routes.NAME.auth]]`: one flat table of keys, so that a mistake is told with its key, and for each
//! type those that belong to it.

use super::appid;
use crate::event::Event;
use crate::setting::{List, Secret, optional_period};
use hyper::header::HeaderName;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// One check.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What is checked.
    pub r#type: Type,
    /// The secrets, each of which is valid.
    #[serde(default)]
    pub secrets: List<Secret>,
    /// Files with a secret on each line, all of which are valid; read again when they change.
    #[serde(default)]
    pub secret_files: List<PathBuf>,
    /// The query parameter that holds the secret.
    pub parameter: Option<String>,
    /// The header field that holds secret, signature, or where the request came from.
    pub header: Option<String>,
    /// Who logs in.
    pub username: Option<String>,
    /// How the signature is made.
    pub algorithm: Option<Algorithm>,
    /// How it is written.
    pub encoding: Option<Encoding>,
    /// What stands before it.
    pub prefix: Option<String>,
    /// What is signed, with `{timestamp}` and `{body}` in it.
    pub signed: Option<String>,
    /// The header field with the seconds since 1970 when the request was made.
    pub timestamp_header: Option<String>,
    /// How far that may be from now.
    #[serde(default, with = "optional_period")]
    pub tolerance: Option<Duration>,
    /// Where the sender sends to, without path and query.
    pub url: Option<String>,
    /// The applications whose events are taken.
    #[serde(default)]
    pub appids: List<String>,
    /// The networks that may send.
    #[serde(default)]
    pub networks: List<String>,
    /// The networks of proxies that tell where a request came from.
    #[serde(default)]
    pub trusted_proxies: List<String>,
}

/// What is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Type {
    /// A secret in place of `{secret}` in the route's path.
    Path,
    /// A secret in a query parameter.
    Query,
    /// A secret in a header field.
    Header,
    /// `Authorization: Bearer …`
    Bearer,
    /// `Authorization: Basic …`
    Basic,
    /// A signature over the body.
    Hmac,
    /// The same as GitHub makes it.
    Github,
    /// The same as Shopify makes it.
    Shopify,
    /// <https://www.standardwebhooks.com>
    #[serde(rename = "standard-webhooks")]
    StandardWebhooks,
    /// Twilio's signature over URL and parameters.
    Twilio,
    /// The `appid` of every event.
    AppId,
    /// The address of the sender.
    Cidr,
}

/// The hash function of an HMAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// Only for senders that know no better.
    Sha1,
    /// The usual one.
    Sha256,
    /// The longest one.
    Sha512,
}

/// How a signature is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// Hexadecimal digits, all of them lowercase or all of them uppercase.
    Hex,
    /// The alphabet with `+` and `/`, padded.
    Base64,
}

/// What is wrong with a check's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The setting.
    pub key: String,
    /// What is wrong and what would be right; no secret.
    pub text: String,
}

impl Problem {
    /// Of the setting `key`.
    pub fn new(key: &str, text: impl Into<String>) -> Self {
        Self { key: key.to_owned(), text: text.into() }
    }
}

impl Config {
    /// Whether events of these applications are taken.
    pub fn takes(&self, events: &[Event]) -> bool {
        self.r#type != Type::AppId || appid::check(events, &self.appids.0).is_ok()
    }

    /// The keys that are set and those that belong to the type.
    pub fn check(&self) -> Result<(), Problem> {
        let secret = ["secrets", "secret_files"];
        let own: &[&str] = match self.r#type {
            Type::Path | Type::Bearer | Type::Github | Type::Shopify => &[],
            Type::Query => &["parameter"],
            Type::Header => &["header"],
            Type::Basic => &["username"],
            Type::Hmac => &["header", "algorithm", "encoding", "prefix", "signed", "timestamp_header", "tolerance"],
            Type::StandardWebhooks => &["tolerance"],
            Type::Twilio => &["url"],
            Type::AppId => &["appids"],
            Type::Cidr => &["networks", "trusted_proxies", "header"],
        };
        let with_secret = !matches!(self.r#type, Type::AppId | Type::Cidr);
        let known: Vec<&str> = secret.iter().filter(|_| with_secret).chain(own).copied().collect();
        for (key, set) in self.set() {
            if set && !known.contains(&key) {
                let allowed = known.join(", ");
                let problem = format!("does not belong to the type {}; allowed are type, {allowed}", self.name());
                return Err(Problem::new(key, problem));
            }
        }
        let missing = |key: &str, example: &str| Err(Problem::new(key, format!("is missing; for example {example}")));
        match self.r#type {
            _ if with_secret && self.secrets.0.is_empty() && self.secret_files.0.is_empty() => missing(
                "secret_files",
                "secret_files = [\"/etc/cdrelay/secrets/webhook\"]; `secrets` holds them inline",
            ),
            Type::AppId if self.appids.0.is_empty() => missing("appids", "appids = [2222223]"),
            Type::Cidr if self.networks.0.is_empty() => missing("networks", "networks = [\"192.0.2.0/24\"]"),
            _ => Ok(()),
        }
    }

    fn set(&self) -> [(&'static str, bool); 15] {
        [
            ("secrets", !self.secrets.0.is_empty()),
            ("secret_files", !self.secret_files.0.is_empty()),
            ("parameter", self.parameter.is_some()),
            ("header", self.header.is_some()),
            ("username", self.username.is_some()),
            ("algorithm", self.algorithm.is_some()),
            ("encoding", self.encoding.is_some()),
            ("prefix", self.prefix.is_some()),
            ("signed", self.signed.is_some()),
            ("timestamp_header", self.timestamp_header.is_some()),
            ("tolerance", self.tolerance.is_some()),
            ("url", self.url.is_some()),
            ("appids", !self.appids.0.is_empty()),
            ("networks", !self.networks.0.is_empty()),
            ("trusted_proxies", !self.trusted_proxies.0.is_empty()),
        ]
    }

    /// The type as it is written.
    pub fn name(&self) -> String {
        serde_json::to_string(&self.r#type).unwrap_or_default()
    }

    /// The query parameter.
    pub fn parameter(&self) -> Result<&str, Problem> {
        self.required("parameter", self.parameter.as_deref(), "parameter = \"token\"")
    }

    /// The user.
    pub fn username(&self) -> Result<&str, Problem> {
        let name = self.required("username", self.username.as_deref(), "username = \"telecmi\"")?;
        if name.contains(':') { Err(Problem::new("username", "cannot hold a `:`, which ends it")) } else { Ok(name) }
    }

    /// The header field.
    pub fn header(&self, default: Option<&str>) -> Result<HeaderName, Problem> {
        let name = self.header.as_deref().or(default);
        header_name("header", self.required("header", name, "header = \"x-webhook-token\"")?)
    }

    /// A setting that has to be there.
    pub fn required<'a>(&self, key: &str, value: Option<&'a str>, example: &str) -> Result<&'a str, Problem> {
        match value {
            Some("") => Err(Problem::new(key, format!("is empty; expected for example {example}"))),
            Some(value) => Ok(value),
            None => {
                Err(Problem::new(key, format!("is missing; the type {} needs it, for example {example}", self.name())))
            }
        }
    }
}

/// The name of a header field.
pub fn header_name(key: &str, name: &str) -> Result<HeaderName, Problem> {
    let problem =
        || Problem::new(key, format!("found {name:?}; allowed is the name of a header field, such as \"x-signature\""));
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| problem())
}
