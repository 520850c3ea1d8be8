//! A signature over the body, and maybe a timestamp, in a header field. GitHub's and Shopify's are presets of it.

use super::Head;
use super::config::{Algorithm, Encoding, Hmac, Problem, SecretSource};
use super::secrets::Secrets;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::header::HeaderName;
use std::time::Duration;

/// How far a timestamp may be from now unless configured otherwise.
pub const TOLERANCE: Duration = Duration::from_secs(300);

/// One part of the signed text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part<'a> {
    Text(&'a str),
    Timestamp,
    Body,
}

impl Hmac {
    /// <https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries>
    pub fn github(source: SecretSource) -> Self {
        Self::preset("x-hub-signature-256", Encoding::Hex, "sha256=", source)
    }

    /// <https://shopify.dev/docs/apps/build/webhooks/subscribe/https#step-2-validate-the-origin-of-your-webhook>
    pub fn shopify(source: SecretSource) -> Self {
        Self::preset("x-shopify-hmac-sha256", Encoding::Base64, "", source)
    }

    fn preset(header: &'static str, encoding: Encoding, prefix: &str, source: SecretSource) -> Self {
        Self {
            header: HeaderName::from_static(header),
            algorithm: Algorithm::Sha256,
            encoding,
            prefix: prefix.to_owned(),
            signed: None,
            timestamp_header: None,
            tolerance: None,
            secrets: source.secrets,
            secret_files: source.secret_files,
        }
    }

    /// Checks `signed` and `tolerance` against `timestamp_header`.
    pub fn check(&self) -> Result<(), Problem> {
        if self.tolerance.is_some() && self.timestamp_header.is_none() {
            return Err(Problem::new("tolerance", "has no meaning without `timestamp_header`"));
        }
        let text = self.signed_text();
        self.parts().map(drop).map_err(|problem| {
            Problem::new("signed", format!("found {text:?}: {problem}; for example \"{{timestamp}}.{{body}}\""))
        })
    }

    pub fn check_head(&self, head: &Head<'_>, now: u64) -> Result<(), &'static str> {
        self.signature(head)?;
        match &self.timestamp_header {
            Some(name) => within_tolerance(head.only_text(name), self.tolerance.unwrap_or(TOLERANCE), now),
            None => Ok(()),
        }
    }

    pub fn check_body(&self, head: &Head<'_>, body: &[u8], secrets: &Secrets) -> Result<(), &'static str> {
        let signature = self.signature(head)?;
        let timestamp = self.timestamp_header.as_ref().and_then(|name| head.only(name)).unwrap_or_default();
        let signed = secrets.signed(&[&self.signed_bytes(timestamp, body)?], &[signature]);
        if signed { Ok(()) } else { Err("the signature is wrong") }
    }

    /// The signed text of a request.
    pub fn signed_bytes(&self, timestamp: &[u8], body: &[u8]) -> Result<Vec<u8>, &'static str> {
        let parts = self.parts()?.into_iter().map(|part| match part {
            Part::Text(text) => text.as_bytes(),
            Part::Timestamp => timestamp,
            Part::Body => body,
        });
        Ok(parts.collect::<Vec<_>>().concat())
    }

    fn signature(&self, head: &Head<'_>) -> Result<Vec<u8>, &'static str> {
        let written = head.only_text(&self.header).ok_or("there is no signature")?;
        let written = written.strip_prefix(&self.prefix).ok_or("the signature does not begin with the prefix")?;
        let decoded = match self.encoding {
            Encoding::Hex => hex(written),
            Encoding::Base64 => STANDARD.decode(written).ok(),
        };
        decoded.ok_or("the signature is not encoded as configured")
    }

    fn signed_text(&self) -> &str {
        let default = if self.timestamp_header.is_some() { "{timestamp}.{body}" } else { "{body}" };
        self.signed.as_deref().unwrap_or(default)
    }

    /// Splits the signed text at its placeholders.
    fn parts(&self) -> Result<Vec<Part<'_>>, &'static str> {
        let timestamp = self.timestamp_header.is_some();
        let mut parts = Vec::new();
        let mut rest = self.signed_text();
        while let Some((before, behind)) = rest.split_once('{') {
            let (name, behind) = behind.split_once('}').ok_or("a brace is not closed")?;
            parts.push(Part::Text(before));
            parts.push(match name {
                "body" => Part::Body,
                "timestamp" if timestamp => Part::Timestamp,
                "timestamp" => return Err("{timestamp} needs a `timestamp_header`"),
                _ => return Err("there are only {timestamp} and {body}"),
            });
            rest = behind;
        }
        parts.push(Part::Text(rest));
        let count = |wanted: Part<'_>| parts.iter().filter(|part| **part == wanted).count();
        match (count(Part::Body), count(Part::Timestamp)) {
            (1, 0) if timestamp => Err("{timestamp} has to be signed too, otherwise anybody can set it"),
            (1, _) => Ok(parts),
            _ => Err("{body} has to appear once"),
        }
    }
}

/// Whether these seconds since 1970 are close enough to `now`.
pub fn within_tolerance(timestamp: Option<&str>, tolerance: Duration, now: u64) -> Result<(), &'static str> {
    let digits = timestamp.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let timestamp: u64 = digits.and_then(|digits| digits.parse().ok()).ok_or("there is no timestamp")?;
    if timestamp.abs_diff(now) <= tolerance.as_secs() { Ok(()) } else { Err("the timestamp is too far from now") }
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
