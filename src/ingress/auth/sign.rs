//! The sender's side of the checks: puts secrets and signatures into a request, for `cdrelay send`.

use super::config::{Algorithm, Config, Encoding, Hmac, Twilio};
use super::secrets::{signing_key, standard_webhooks_key};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use ring::digest::{SHA256, digest};
use ring::hmac;

/// A request that is to be authenticated.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Path and query; the path may hold `{secret}`.
    pub target: String,
    /// The header fields.
    pub headers: HeaderMap,
    /// The body, JSON.
    pub body: String,
}

/// Adds secrets and signatures for these checks. `now` is in seconds since 1970. Does not set addresses and `appid`.
pub fn sign(checks: &[Config], draft: &mut Draft, now: u64) -> Result<(), String> {
    // Twilio signs the URL, so that has to be complete before.
    let (last, first): (Vec<_>, Vec<_>) = checks.iter().partition(|check| matches!(check, Config::Twilio(_)));
    first.into_iter().chain(last).try_for_each(|check| add(check, draft, now))
}

fn add(check: &Config, draft: &mut Draft, now: u64) -> Result<(), String> {
    let Some(secret) = first_secret(check)? else { return Ok(()) };
    match check {
        Config::Path(_) => draft.target = draft.target.replacen("{secret}", &secret, 1),
        Config::Query(own) => add_parameter(&mut draft.target, &own.parameter, &secret),
        Config::Header(own) => insert(draft, own.header.clone(), &secret)?,
        Config::Bearer(_) => insert(draft, AUTHORIZATION, &format!("Bearer {secret}"))?,
        Config::Basic(own) => {
            let credentials = STANDARD.encode(format!("{}:{secret}", own.username));
            insert(draft, AUTHORIZATION, &format!("Basic {credentials}"))?;
        }
        Config::Hmac(own) | Config::Github(own) | Config::Shopify(own) => add_hmac(own, &secret, draft, now)?,
        Config::StandardWebhooks(_) => {
            let id = format!("msg_{:016x}", fastrand::u64(..));
            let key = standard_webhooks_key(&secret)?;
            let signature = hmac::sign(&key, format!("{id}.{now}.{}", draft.body).as_bytes());
            insert(draft, super::standard_webhooks::ID, &id)?;
            insert(draft, super::standard_webhooks::TIMESTAMP, &now.to_string())?;
            let signature = format!("v1,{}", STANDARD.encode(signature));
            insert(draft, super::standard_webhooks::SIGNATURE, &signature)?;
        }
        Config::Twilio(own) => add_twilio(own, &secret, draft)?,
        Config::AppId(_) | Config::Cidr(_) => {}
    }
    Ok(())
}

/// One of the secrets of a check that has any.
fn first_secret(check: &Config) -> Result<Option<String>, String> {
    let Some((inline, files)) = check.secrets() else { return Ok(None) };
    if let Some(secret) = inline.0.first() {
        return Ok(Some(secret.reveal().to_owned()));
    }
    let Some(path) = files.0.first() else { return Ok(None) };
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let secret = text.lines().find(|line| !line.is_empty());
    secret.map(|secret| Some(secret.to_owned())).ok_or_else(|| format!("{}: holds no secret", path.display()))
}

fn insert(draft: &mut Draft, name: HeaderName, value: &str) -> Result<(), String> {
    let value = HeaderValue::from_str(value).map_err(|_| format!("the secret cannot be sent in the header {name}"))?;
    draft.headers.insert(name, value);
    Ok(())
}

fn add_parameter(target: &mut String, name: &str, value: &str) {
    let parameter = form_urlencoded::Serializer::new(String::new()).append_pair(name, value).finish();
    target.push(if target.contains('?') { '&' } else { '?' });
    target.push_str(&parameter);
}

fn add_hmac(own: &Hmac, secret: &str, draft: &mut Draft, now: u64) -> Result<(), String> {
    let timestamp = now.to_string();
    let text = own.signed_bytes(timestamp.as_bytes(), draft.body.as_bytes())?;
    let signature = hmac::sign(&signing_key(secret, own.algorithm), &text);
    let written = match own.encoding {
        Encoding::Hex => hex(signature.as_ref()),
        Encoding::Base64 => STANDARD.encode(signature),
    };
    if let Some(name) = &own.timestamp_header {
        insert(draft, name.clone(), &timestamp)?;
    }
    insert(draft, own.header.clone(), &format!("{}{written}", own.prefix))
}

fn add_twilio(own: &Twilio, secret: &str, draft: &mut Draft) -> Result<(), String> {
    let body = hex(digest(&SHA256, draft.body.as_bytes()).as_ref());
    add_parameter(&mut draft.target, super::twilio::BODY_DIGEST, &body);
    let key = signing_key(secret, Algorithm::Sha1);
    let signature = hmac::sign(&key, format!("{}{}", own.urls.first(), draft.target).as_bytes());
    insert(draft, super::twilio::SIGNATURE, &STANDARD.encode(signature))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
