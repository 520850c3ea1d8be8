//! Secrets that are presented as they are: in the path, the query, a header field, or `Authorization`.

use super::secrets::Secrets;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;
use std::borrow::Cow;

const MISSING: &str = "the secret is missing";
const WRONG: &str = "the secret is wrong";

pub fn path(segment: Option<&str>, secrets: &Secrets) -> Result<(), &'static str> {
    let presented: Cow<'_, [u8]> = percent_decode_str(segment.ok_or(MISSING)?).into();
    compare(&presented, secrets)
}

pub fn query(query: Option<&str>, parameter: &str, secrets: &Secrets) -> Result<(), &'static str> {
    let mut values = form_urlencoded::parse(query.unwrap_or_default().as_bytes()).filter(|(name, _)| name == parameter);
    let (_, value) = values.next().ok_or(MISSING)?;
    match values.next() {
        None => compare(value.as_bytes(), secrets),
        Some(_) => Err("the parameter appears more than once"),
    }
}

pub fn header(value: Option<&[u8]>, secrets: &Secrets) -> Result<(), &'static str> {
    compare(value.ok_or(MISSING)?, secrets)
}

pub fn bearer(authorization: Option<&[u8]>, secrets: &Secrets) -> Result<(), &'static str> {
    compare(credentials(authorization, b"bearer")?, secrets)
}

pub fn basic(authorization: Option<&[u8]>, secrets: &Secrets) -> Result<(), &'static str> {
    let decoded = STANDARD.decode(credentials(authorization, b"basic")?);
    compare(&decoded.map_err(|_| "the credentials are not Base64")?, secrets)
}

/// The credentials behind the name of the scheme, which may be written in any case.
fn credentials<'a>(authorization: Option<&'a [u8]>, scheme: &[u8]) -> Result<&'a [u8], &'static str> {
    let (name, rest) = authorization.ok_or(MISSING)?.split_at_checked(scheme.len()).ok_or(MISSING)?;
    if !name.eq_ignore_ascii_case(scheme) || rest.first() != Some(&b' ') {
        return Err(MISSING);
    }
    Ok(rest.trim_ascii())
}

fn compare(presented: &[u8], secrets: &Secrets) -> Result<(), &'static str> {
    if secrets.contain(presented) { Ok(()) } else { Err(WRONG) }
}

/// The query without the parameters of these names, however they are encoded.
pub fn strip<'a>(query: &'a str, names: &[String]) -> Cow<'a, str> {
    let is_secret = |pair: &&str| {
        let mut parsed = form_urlencoded::parse(pair.as_bytes());
        parsed.next().is_some_and(|(name, _)| names.iter().any(|secret| *secret == name))
    };
    if names.is_empty() || !query.split('&').any(|pair| is_secret(&pair)) {
        return Cow::Borrowed(query);
    }
    query.split('&').filter(|pair| !is_secret(pair)).collect::<Vec<_>>().join("&").into()
}
