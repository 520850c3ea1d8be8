//! A signature over the body, and maybe over a time, in a header field.

use super::Head;
use super::secrets::{Kind, Secrets};
use super::settings::{Algorithm, Config, Encoding, Problem, Type, header_name};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::header::HeaderName;
use std::sync::Arc;
use std::time::Duration;

/// How far a timestamp may be from now unless configured otherwise.
pub const TOLERANCE: Duration = Duration::from_secs(300);

#[derive(Debug)]
pub struct Hmac {
    header: HeaderName,
    encoding: Encoding,
    prefix: String,
    signed: Vec<Part>,
    timestamp: Option<(HeaderName, Duration)>,
    secrets: Arc<Secrets>,
}

/// A part of what is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Timestamp,
    Body,
}

impl Hmac {
    pub fn open(config: &Config, secrets: impl FnOnce(Kind) -> Result<Arc<Secrets>, Problem>) -> Result<Self, Problem> {
        let (header, encoding, prefix) = form(config);
        let timestamp = config.timestamp_header.as_deref().map(|name| header_name("timestamp_header", name));
        let timestamp = timestamp.transpose()?.map(|name| (name, config.tolerance.unwrap_or(TOLERANCE)));
        if config.tolerance.is_some() && timestamp.is_none() {
            return Err(Problem::new("tolerance", "has no meaning without `timestamp_header`"));
        }
        let text = signed(config);
        let signed = parts(text, timestamp.is_some()).map_err(|problem| {
            Problem::new("signed", format!("found {text:?}: {problem}; for example \"{{timestamp}}.{{body}}\""))
        })?;
        let secrets = secrets(Kind::Hmac(config.algorithm.unwrap_or(Algorithm::Sha256)))?;
        Ok(Self { header: config.header(header)?, encoding, prefix: prefix.to_owned(), signed, timestamp, secrets })
    }

    pub fn secrets(&self) -> &Arc<Secrets> {
        &self.secrets
    }

    pub fn check_head(&self, head: &Head<'_>, now: u64) -> Result<(), &'static str> {
        self.signature(head)?;
        match &self.timestamp {
            Some((name, tolerance)) => fresh(head.only_text(name), *tolerance, now),
            None => Ok(()),
        }
    }

    pub fn check_body(&self, head: &Head<'_>, body: &[u8]) -> Result<(), &'static str> {
        let signature = self.signature(head)?;
        let timestamp = self.timestamp.as_ref().and_then(|(name, _)| head.only(name)).unwrap_or_default();
        let texts = self.signed.iter().map(|part| match part {
            Part::Text(text) => text.as_bytes(),
            Part::Timestamp => timestamp,
            Part::Body => body,
        });
        let signed = self.secrets.signed(&texts.collect::<Vec<_>>(), &[signature]);
        if signed { Ok(()) } else { Err("the signature is wrong") }
    }

    fn signature(&self, head: &Head<'_>) -> Result<Vec<u8>, &'static str> {
        let written = head.only_text(&self.header).ok_or("there is no signature")?;
        let written = written.strip_prefix(&self.prefix).ok_or("the signature does not begin with the prefix")?;
        let decoded = match self.encoding {
            Encoding::Hex => hex(written),
            Encoding::Base64 => STANDARD.decode(written).ok(),
        };
        decoded.ok_or("the signature is not written as configured")
    }
}

/// The header field of the signature if the type says it, how the signature is written there, and what stands before it.
pub fn form(config: &Config) -> (Option<&'static str>, Encoding, &str) {
    match config.r#type {
        Type::Github => (Some("x-hub-signature-256"), Encoding::Hex, "sha256="),
        Type::Shopify => (Some("x-shopify-hmac-sha256"), Encoding::Base64, ""),
        _ => (None, config.encoding.unwrap_or(Encoding::Hex), config.prefix.as_deref().unwrap_or_default()),
    }
}

/// What is signed.
pub fn signed(config: &Config) -> &str {
    let default = if config.timestamp_header.is_some() { "{timestamp}.{body}" } else { "{body}" };
    config.signed.as_deref().unwrap_or(default)
}

/// Whether these seconds since 1970 are near enough to `now`.
pub fn fresh(timestamp: Option<&str>, tolerance: Duration, now: u64) -> Result<(), &'static str> {
    let digits = timestamp.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let timestamp: u64 = digits.and_then(|digits| digits.parse().ok()).ok_or("there is no timestamp")?;
    if timestamp.abs_diff(now) <= tolerance.as_secs() { Ok(()) } else { Err("the timestamp is too far from now") }
}

/// Splits what is signed.
fn parts(template: &str, timestamp: bool) -> Result<Vec<Part>, &'static str> {
    let mut parts = Vec::new();
    let mut rest = template;
    while let Some((before, behind)) = rest.split_once('{') {
        let (name, behind) = behind.split_once('}').ok_or("a brace is not closed")?;
        if !before.is_empty() {
            parts.push(Part::Text(before.to_owned()));
        }
        parts.push(match name {
            "body" => Part::Body,
            "timestamp" if timestamp => Part::Timestamp,
            "timestamp" => return Err("{timestamp} needs a `timestamp_header`"),
            _ => return Err("there are only {timestamp} and {body}"),
        });
        rest = behind;
    }
    if !rest.is_empty() {
        parts.push(Part::Text(rest.to_owned()));
    }
    let count = |wanted: &Part| parts.iter().filter(|part| *part == wanted).count();
    match (count(&Part::Body), count(&Part::Timestamp)) {
        (1, 0) if timestamp => Err("{timestamp} has to be signed too, else anybody could set it"),
        (1, _) => Ok(parts),
        _ => Err("{body} has to be there once"),
    }
}

/// The bytes of hexadecimal digits, all of one case: a changed letter is a changed signature.
fn hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    let mixed = digits.iter().any(u8::is_ascii_lowercase) && digits.iter().any(u8::is_ascii_uppercase);
    let digit = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
    let (pairs, []) = digits.as_chunks::<2>() else { return None };
    let bytes = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?));
    if mixed { None } else { bytes.collect() }
}
