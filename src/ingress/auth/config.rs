//! `[[ingress.auth]]` and `[[ingress.routes.NAME.auth]]`: one table for each check, with the keys of its `type`.

use super::twilio::BaseUrls;
use crate::setting::{List, Network, Period, Secret};
use hyper::header::HeaderName;
use schemars::JsonSchema;
use serde::de::{Error as _, Unexpected};
use serde::{Deserialize, Deserializer, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// One check of a request.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Config {
    /// A secret in place of `{secret}` in the route's path.
    Path(SecretSource),
    /// A secret in a query parameter.
    Query(Query),
    /// A secret in a header field.
    Header(Header),
    /// `Authorization: Bearer …`
    Bearer(SecretSource),
    /// `Authorization: Basic …`
    Basic(Basic),
    /// A signature over the body.
    Hmac(Hmac),
    /// GitHub's signature over the body.
    Github(
        #[serde(deserialize_with = "github")]
        #[schemars(with = "SecretSource")]
        Hmac,
    ),
    /// Shopify's signature over the body.
    Shopify(
        #[serde(deserialize_with = "shopify")]
        #[schemars(with = "SecretSource")]
        Hmac,
    ),
    /// <https://www.standardwebhooks.com>
    StandardWebhooks(StandardWebhooks),
    /// Twilio's signature over URL and parameters.
    Twilio(Twilio),
    /// The `appid` of every event.
    #[serde(rename = "appid")]
    AppId(AppIds),
    /// The address of the sender.
    Cidr(Cidr),
}

/// Where secrets come from; each of them is valid.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SecretSource {
    /// The secrets themselves.
    pub secrets: List<Secret>,
    /// Files with one secret a line, read again when they change.
    pub secret_files: List<PathBuf>,
}

/// `type = "query"`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// The parameter with the secret.
    #[serde(deserialize_with = "non_empty")]
    pub parameter: String,
    #[serde(default)]
    secrets: List<Secret>,
    #[serde(default)]
    secret_files: List<PathBuf>,
}

/// `type = "header"`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// The header field with the secret.
    #[serde(deserialize_with = "header_name")]
    #[schemars(with = "String")]
    pub header: HeaderName,
    #[serde(default)]
    secrets: List<Secret>,
    #[serde(default)]
    secret_files: List<PathBuf>,
}

/// `type = "basic"`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Basic {
    /// The user whose passwords the secrets are.
    #[serde(deserialize_with = "username")]
    pub username: String,
    #[serde(default)]
    secrets: List<Secret>,
    #[serde(default)]
    secret_files: List<PathBuf>,
}

/// `type = "hmac"`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Hmac {
    /// The header field with the signature.
    #[serde(deserialize_with = "header_name")]
    #[schemars(with = "String")]
    pub header: HeaderName,
    /// The hash function.
    #[serde(default)]
    pub algorithm: Algorithm,
    /// How the signature is written.
    #[serde(default)]
    pub encoding: Encoding,
    /// Text in front of the signature.
    #[serde(default)]
    pub prefix: String,
    /// The signed text, with `{timestamp}` and `{body}` in it. Default: `{timestamp}.{body}`, or `{body}` without `timestamp_header`.
    #[serde(default)]
    pub signed: Option<String>,
    /// The header field with the seconds since 1970 at which the request was made.
    #[serde(default, deserialize_with = "optional_header_name")]
    #[schemars(with = "Option<String>")]
    pub timestamp_header: Option<HeaderName>,
    /// How far the timestamp may be from now.
    #[serde(default, with = "Period")]
    pub tolerance: Option<Duration>,
    #[serde(default)]
    pub(super) secrets: List<Secret>,
    #[serde(default)]
    pub(super) secret_files: List<PathBuf>,
}

/// `type = "standard-webhooks"`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StandardWebhooks {
    /// How far the timestamp may be from now.
    #[serde(default, with = "Period")]
    pub tolerance: Option<Duration>,
    #[serde(default)]
    secrets: List<Secret>,
    #[serde(default)]
    secret_files: List<PathBuf>,
}

/// `type = "twilio"`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Twilio {
    /// Scheme and host that Twilio calls.
    #[serde(rename = "url")]
    #[schemars(with = "List<String>")]
    pub urls: BaseUrls,
    #[serde(default)]
    secrets: List<Secret>,
    #[serde(default)]
    secret_files: List<PathBuf>,
}

/// `type = "appid"`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AppIds {
    /// The applications whose events are taken.
    pub appids: List<String>,
}

/// `type = "cidr"`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cidr {
    /// The networks that may send.
    pub networks: List<Network>,
    /// The proxies that report where a request came from.
    #[serde(default)]
    pub trusted_proxies: List<Network>,
    /// The header field in which they report it. Default: `x-forwarded-for`.
    #[serde(default)]
    pub header: Option<ForwardingHeader>,
}

/// A header field in which proxies report the address of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ForwardingHeader {
    /// The usual one.
    #[serde(rename = "x-forwarded-for", alias = "X-Forwarded-For")]
    XForwardedFor,
    /// RFC 7239
    #[serde(rename = "forwarded", alias = "Forwarded")]
    Forwarded,
}

/// The hash function of an HMAC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// Only for senders that offer nothing better.
    Sha1,
    /// The usual one.
    #[default]
    Sha256,
    /// The longest one.
    Sha512,
}

/// How a signature is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// Digits of one case.
    #[default]
    Hex,
    /// The alphabet with `+` and `/`, padded.
    Base64,
}

/// A problem of a check's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key.
    pub key: String,
    /// The problem and the allowed values; no secret.
    pub text: String,
}

impl Problem {
    /// Of the setting `key`.
    pub fn new(key: impl Into<String>, text: impl Into<String>) -> Self {
        Self { key: key.into(), text: text.into() }
    }
}

impl Config {
    /// The type as it is written.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Path(_) => "path",
            Self::Query(_) => "query",
            Self::Header(_) => "header",
            Self::Bearer(_) => "bearer",
            Self::Basic(_) => "basic",
            Self::Hmac(_) => "hmac",
            Self::Github(_) => "github",
            Self::Shopify(_) => "shopify",
            Self::StandardWebhooks(_) => "standard-webhooks",
            Self::Twilio(_) => "twilio",
            Self::AppId(_) => "appid",
            Self::Cidr(_) => "cidr",
        }
    }

    /// Whether the check covers the body alone, so that an overheard request can be sent with another query.
    pub fn leaves_query_unsigned(&self) -> bool {
        matches!(self, Self::Hmac(_) | Self::Github(_) | Self::Shopify(_) | Self::StandardWebhooks(_))
    }

    /// The query parameter with the secret, if it comes in one.
    pub fn secret_parameter(&self) -> Option<&String> {
        match self {
            Self::Query(query) => Some(&query.parameter),
            _ => None,
        }
    }

    /// Whether the secret comes in the header field Authorization.
    pub fn uses_authorization(&self) -> bool {
        matches!(self, Self::Bearer(_) | Self::Basic(_))
    }

    /// Inline secrets and files of secrets, of a check that has any.
    pub fn secrets(&self) -> Option<(&List<Secret>, &List<PathBuf>)> {
        Some(match self {
            Self::Path(own) | Self::Bearer(own) => (&own.secrets, &own.secret_files),
            Self::Query(own) => (&own.secrets, &own.secret_files),
            Self::Header(own) => (&own.secrets, &own.secret_files),
            Self::Basic(own) => (&own.secrets, &own.secret_files),
            Self::Hmac(own) | Self::Github(own) | Self::Shopify(own) => (&own.secrets, &own.secret_files),
            Self::StandardWebhooks(own) => (&own.secrets, &own.secret_files),
            Self::Twilio(own) => (&own.secrets, &own.secret_files),
            Self::AppId(_) | Self::Cidr(_) => return None,
        })
    }

    /// Checks each setting against the others. Files are not read.
    pub fn check(&self) -> Result<(), Problem> {
        if let Some((secrets, files)) = self.secrets()
            && secrets.0.is_empty()
            && files.0.is_empty()
        {
            let example = "secret_files = [\"/etc/cdrelay/secrets/webhook\"]; `secrets` holds them inline";
            return Err(Problem::new("secret_files", format!("is missing; for example {example}")));
        }
        match self {
            Self::Hmac(hmac) => hmac.check(),
            Self::AppId(AppIds { appids }) if appids.0.is_empty() => {
                Err(Problem::new("appids", "is empty; for example appids = [2222223]"))
            }
            Self::Cidr(Cidr { networks, .. }) if networks.0.is_empty() => {
                Err(Problem::new("networks", "is empty; for example networks = [\"192.0.2.0/24\"]"))
            }
            Self::Cidr(Cidr { header: Some(_), trusted_proxies, .. }) if trusted_proxies.0.is_empty() => {
                Err(Problem::new("trusted_proxies", "is missing; `header` is believed only from these proxies"))
            }
            _ => Ok(()),
        }
    }
}

fn non_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() { Err(D::Error::invalid_value(Unexpected::Str(&text), &"a name")) } else { Ok(text) }
}

fn username<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = non_empty(deserializer)?;
    let allowed = "a name without `:`, which would end it";
    if name.contains(':') { Err(D::Error::invalid_value(Unexpected::Str(&name), &allowed)) } else { Ok(name) }
}

fn header_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<HeaderName, D::Error> {
    let name = String::deserialize(deserializer)?;
    let allowed = "the name of a header field, such as \"x-signature\"";
    name.parse().map_err(|_| D::Error::invalid_value(Unexpected::Str(&name), &allowed))
}

fn github<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Hmac, D::Error> {
    SecretSource::deserialize(deserializer).map(Hmac::github)
}

fn shopify<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Hmac, D::Error> {
    SecretSource::deserialize(deserializer).map(Hmac::shopify)
}

fn optional_header_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<HeaderName>, D::Error> {
    header_name(deserializer).map(Some)
}
