//! <https://www.twilio.com/docs/usage/webhooks/webhooks-security>: HMAC-SHA1 over the URL that was called, followed by names and
//! values of the form fields, sorted; or, for other bodies, over a URL that holds the body's SHA-256.

use super::Head;
use super::secrets::Secrets;
use super::settings::{Config, Problem};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{self, HeaderName};
use hyper::http::uri::{Authority, Uri};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use subtle::ConstantTimeEq;

pub const SIGNATURE: HeaderName = HeaderName::from_static("x-twilio-signature");
/// The query parameter with the body's SHA-256 in hexadecimal digits.
const BODY: &str = "bodySHA256";

#[derive(Debug)]
pub struct Twilio {
    /// What stands before the path, with the port and without, since Twilio signs either.
    bases: Vec<String>,
    secrets: Arc<Secrets>,
}

impl Twilio {
    pub fn open(config: &Config, secrets: Arc<Secrets>) -> Result<Self, Problem> {
        let url = config.required("url", config.url.as_deref(), "url = \"https://cdr.example.com\"")?;
        let problem = || {
            let allowed = "what the sender calls, without path and query, such as \"https://cdr.example.com\"";
            Problem::new("url", format!("found {url:?}; allowed is {allowed}"))
        };
        let parsed: Uri = url.parse().map_err(|_| problem())?;
        let (Some(scheme @ ("http" | "https")), Some(authority)) = (parsed.scheme_str(), parsed.authority()) else {
            return Err(problem());
        };
        if parsed.query().is_some() || !matches!(parsed.path(), "" | "/") || authority.as_str().contains('@') {
            return Err(problem());
        }
        Ok(Self { bases: bases(scheme, authority), secrets })
    }

    pub fn secrets(&self) -> &Arc<Secrets> {
        &self.secrets
    }

    pub fn check_head(&self, head: &Head<'_>) -> Result<(), &'static str> {
        signature(head).map(drop)
    }

    pub fn check_body(&self, head: &Head<'_>, body: &[u8]) -> Result<(), &'static str> {
        let signature = [signature(head)?];
        let content_type = head.only_text(&header::CONTENT_TYPE).unwrap_or_default().trim_start();
        let form = content_type.to_ascii_lowercase().starts_with("application/x-www-form-urlencoded");
        let fields = match body {
            [] => String::new(),
            // Its fields would not be what is read of it: that is the JSON.
            body if form && matches!(body.trim_ascii_start().first(), Some(b'{' | b'[')) => {
                return Err("a form cannot be JSON");
            }
            body if form => sorted_fields(body).ok_or("a form field has no value")?,
            body => {
                check_digest(head, body)?;
                String::new()
            }
        };
        let path = head.request.target();
        let signed =
            |base: &String| self.secrets.signed(&[base.as_bytes(), path.as_bytes(), fields.as_bytes()], &signature);
        if self.bases.iter().any(signed) { Ok(()) } else { Err("the signature is wrong") }
    }
}

fn bases(scheme: &str, authority: &Authority) -> Vec<String> {
    let default = if scheme == "https" { 443 } else { 80 };
    let host = authority.host();
    match authority.port_u16() {
        Some(port) => vec![format!("{scheme}://{host}:{port}"), format!("{scheme}://{host}")],
        None => vec![format!("{scheme}://{host}"), format!("{scheme}://{host}:{default}")],
    }
}

fn signature(head: &Head<'_>) -> Result<Vec<u8>, &'static str> {
    let written = head.only_text(&SIGNATURE).ok_or("there is no signature")?;
    STANDARD.decode(written).map_err(|_| "the signature is not Base64")
}

/// Each name with each of its values, as Twilio's own libraries have it: a value that is there twice counts once. What is signed
/// does not tell where a name ends, so a field that does not either is none of Twilio's.
fn sorted_fields(body: &[u8]) -> Option<String> {
    if body.split(|byte| *byte == b'&').any(|field| !field.is_empty() && !field.contains(&b'=')) {
        return None;
    }
    let mut fields: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for (name, value) in form_urlencoded::parse(body) {
        fields.entry(name).or_default().insert(value);
    }
    let mut text = String::with_capacity(body.len());
    for (name, values) in &fields {
        values.iter().for_each(|value| text.extend([name.as_ref(), value.as_ref()]));
    }
    Some(text)
}

fn check_digest(head: &Head<'_>, body: &[u8]) -> Result<(), &'static str> {
    let query = form_urlencoded::parse(head.request.query().unwrap_or_default().as_bytes());
    let mut given = query.filter(|(name, _)| name == BODY);
    let (Some((_, given)), None) = (given.next(), given.next()) else {
        return Err("nothing in the URL says what the body is");
    };
    let digest = Sha256::digest(body);
    let written: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    if bool::from(written.as_bytes().ct_eq(given.as_bytes())) { Ok(()) } else { Err("the body is another one") }
}
