//! <https://www.twilio.com/docs/usage/webhooks/webhooks-security>: HMAC-SHA1 over the URL that was called, followed by names and values of
//! the form fields, sorted; or, for other bodies, over a URL that holds the body's SHA-256.
//!
//! The signed text does not tell where the URL, a name or a value ends. With one signed request in hand, its text can be cut into other
//! fields (`To=1`, `T=o1` and a URL that ends in `To1` have one signature), and no receiver can tell: only TLS keeps requests from being
//! seen. JSON in a form is refused, because then the fields that are signed are not the fields that are read.

use super::Head;
use super::config::Twilio;
use super::secrets::Secrets;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{self, HeaderName};
use hyper::http::uri::{Scheme, Uri};
use ring::digest::{SHA256, digest};
use serde::de::{Error as _, Unexpected};
use serde::{Deserialize, Deserializer};
use std::collections::{BTreeMap, BTreeSet};

pub const SIGNATURE: HeaderName = HeaderName::from_static("x-twilio-signature");
/// The query parameter with the body's SHA-256 in hexadecimal digits.
pub const BODY_DIGEST: &str = "bodySHA256";

/// Scheme and host, with the port and without, because Twilio signs either.
#[derive(Clone, Debug)]
pub struct BaseUrls(Vec<String>);

impl<'de> Deserialize<'de> for BaseUrls {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let allowed = "the URL that Twilio calls, without path and query, such as \"https://cdr.example.com\"";
        base_urls(&text).map(Self).ok_or_else(|| D::Error::invalid_value(Unexpected::Str(&text), &allowed))
    }
}

impl BaseUrls {
    /// Scheme and host, with a port only where it is written.
    pub fn first(&self) -> &str {
        self.0.first().map_or("", String::as_str)
    }
}

impl Twilio {
    pub fn check_head(&self, head: &Head<'_>) -> Result<(), &'static str> {
        signature(head).map(drop)
    }

    pub fn check_body(&self, head: &Head<'_>, body: &[u8], secrets: &Secrets) -> Result<(), &'static str> {
        let signature = [signature(head)?];
        let content_type = head.only_text(&header::CONTENT_TYPE).unwrap_or_default().trim_start();
        let form = content_type.to_ascii_lowercase().starts_with("application/x-www-form-urlencoded");
        let fields = match body {
            [] => String::new(),
            body if form => sorted_fields(body)?,
            body => {
                check_digest(head, body)?;
                String::new()
            }
        };
        let signed =
            |base: &String| secrets.signed(&[base.as_bytes(), head.target().as_bytes(), fields.as_bytes()], &signature);
        if self.urls.0.iter().any(signed) { Ok(()) } else { Err("the signature is wrong") }
    }
}

fn base_urls(text: &str) -> Option<Vec<String>> {
    let url: Uri = text.parse().ok()?;
    let (scheme, authority) = (url.scheme()?, url.authority()?);
    let default_port = if *scheme == Scheme::HTTPS { 443 } else { 80 };
    let is_base = url.query().is_none() && matches!(url.path(), "" | "/") && !authority.as_str().contains('@');
    if !is_base || ![Scheme::HTTP, Scheme::HTTPS].contains(scheme) {
        return None;
    }
    let host = authority.host();
    let port = authority.port_u16().unwrap_or(default_port);
    Some(vec![format!("{scheme}://{host}"), format!("{scheme}://{host}:{port}")])
}

fn signature(head: &Head<'_>) -> Result<Vec<u8>, &'static str> {
    let written = head.only_text(&SIGNATURE).ok_or("there is no signature")?;
    STANDARD.decode(written).map_err(|_| "the signature is not Base64")
}

/// Each name with each of its values, as in Twilio's own libraries: a value that appears twice counts once.
fn sorted_fields(body: &[u8]) -> Result<String, &'static str> {
    if body.split(|byte| *byte == b'&').any(|field| !field.is_empty() && !field.contains(&b'=')) {
        return Err("a form field has no value");
    }
    // RFC 3986 has these bytes percent-encoded. Unencoded JSON has them, also behind a byte order mark.
    if body.iter().any(|byte| !byte.is_ascii_graphic() || b"\"<>[\\]^`{|}".contains(byte)) {
        return Err("the form is not percent-encoded");
    }
    let is_json = |text: &str| text.trim_start_matches(['\u{feff}', ' ', '\t', '\r', '\n']).starts_with(['{', '[']);
    let pairs: Vec<_> = form_urlencoded::parse(body).collect();
    if pairs.iter().any(|(name, value)| is_json(name) || (pairs.len() == 1 && is_json(value))) {
        return Err("a form cannot be JSON");
    }
    let mut fields: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for (name, value) in pairs {
        fields.entry(name).or_default().insert(value);
    }
    let pairs = fields.iter().flat_map(|(name, values)| values.iter().flat_map(move |value| [&**name, &**value]));
    Ok(pairs.collect())
}

/// The digest is part of the signed URL, and no secret.
fn check_digest(head: &Head<'_>, body: &[u8]) -> Result<(), &'static str> {
    let query = form_urlencoded::parse(head.query().unwrap_or_default().as_bytes());
    let mut given = query.filter(|(name, _)| name == BODY_DIGEST);
    let (Some((_, given)), None) = (given.next(), given.next()) else {
        return Err("the URL does not hold the digest of the body");
    };
    let written: String = digest(&SHA256, body).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    if written == given { Ok(()) } else { Err("the digest in the URL is of another body") }
}
