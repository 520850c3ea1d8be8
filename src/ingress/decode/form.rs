//! Fields of forms, query strings and multipart bodies, as exact texts.

use super::{Config, DecodeError};
use crate::event::json;
use encoding_rs::{Encoding, UTF_8};
use futures_util::{FutureExt, stream};
use hyper::body::Bytes;
use percent_encoding::percent_decode;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::convert::Infallible;

const FORM: &str = "application/x-www-form-urlencoded";
const MULTIPART: &str = "multipart/form-data";

/// The declared charset of a body, UTF-8 unless another is named.
#[derive(Clone, Copy)]
pub struct Charset(&'static Encoding);

impl Charset {
    /// The charset that a Content-Type names.
    pub fn of(content_type: &[u8]) -> Self {
        let mut parameters = content_type.split(|byte| *byte == b';').skip(1).map(|parameter| parameter.trim_ascii());
        let label = parameters.find_map(|parameter| {
            let (name, value) = parameter.split_at_checked("charset=".len())?;
            name.eq_ignore_ascii_case(b"charset=").then_some(value)
        });
        Self::named(label.and_then(|label| str::from_utf8(label).ok()).unwrap_or("utf-8"))
    }

    /// The charset with this label of the Encoding Standard.
    fn named(label: &str) -> Self {
        Self(Encoding::for_label(label.trim_matches('"').as_bytes()).unwrap_or(UTF_8))
    }

    fn name(self) -> &'static str {
        self.0.name()
    }

    /// The exact text of these bytes; `None` if they are not of this charset.
    fn text(self, bytes: &[u8]) -> Option<Cow<'_, str>> {
        self.0.decode_without_bom_handling_and_without_replacement(bytes)
    }

    /// JSON is UTF-8 (RFC 8259, section 8.1) whatever is declared; only if it is not, the declared charset counts.
    pub fn json(self, bytes: &[u8]) -> Result<Cow<'_, str>, DecodeError> {
        match str::from_utf8(bytes) {
            Ok(text) => Ok(text.into()),
            Err(error) => self.text(bytes).filter(|_| self.0 != UTF_8).ok_or_else(|| {
                let valid = String::from_utf8_lossy(bytes.get(..error.valid_up_to()).unwrap_or_default());
                json::Error::at(&valid, valid.len(), "not valid UTF-8").into()
            }),
        }
    }
}

/// The problem of an event with too many fields.
pub fn too_many_fields(limit: usize) -> String {
    format!("more than {limit} fields in one event")
}

fn is_of_type(content_type: &[u8], expected: &str) -> bool {
    let essence = content_type.split(|byte| *byte == b';').next().unwrap_or_default();
    essence.trim_ascii().eq_ignore_ascii_case(expected.as_bytes())
}

/// Whether the body is declared as multipart/form-data.
pub fn is_multipart(content_type: &[u8]) -> bool {
    is_of_type(content_type, MULTIPART)
}

/// Whether a body is a form: declared as one, or nothing else by its characters.
pub fn is_form(body: &[u8], content_type: &[u8], json_fields: &[String]) -> bool {
    let declared = is_of_type(content_type, FORM);
    let characters = |byte: &u8| byte.is_ascii_graphic() && !b"<>{}\"'".contains(byte);
    let plain = body.first().is_some_and(|first| first.is_ascii_alphanumeric() || matches!(first, b'_' | b'%'))
        && body.iter().all(characters);
    let holds_json = || {
        let names = json_fields.iter().map(String::as_bytes);
        names.filter_map(|name| body.strip_prefix(name)?.strip_prefix(b"=")).any(is_json_start)
    };
    body.contains(&b'=') && (declared || plain || holds_json()) || declared && body.starts_with(b"%")
}

fn is_json_start(value: &[u8]) -> bool {
    matches!(value.first(), Some(b'{' | b'['))
}

/// The fields of a form or query string (WHATWG URL, section 5.1). A value that is JSON without any encoding is taken as it is,
/// up to the `&` behind it, also where there is one in a text of it.
pub fn fields(form: &[u8], charset: Charset, config: &Config) -> Result<Vec<(String, String)>, DecodeError> {
    let mut fields = Vec::new();
    let mut rest = form;
    while !rest.is_empty() {
        let (pair, mut behind) = split(rest, b'&');
        let (name, encoded) = split(pair, b'=');
        let name = decode(name, charset)?;
        let raw = rest.get(pair.len() - encoded.len()..).unwrap_or_default();
        let value = match unencoded_json(raw) {
            Some(json) => {
                behind = split(raw.get(json.len()..).unwrap_or_default(), b'&').1;
                json.to_owned()
            }
            // An encoder would have encoded the quote.
            None if is_json_start(raw) && encoded.contains(&b'"') && config.json_fields.contains(&name) => {
                return Err(broken_json(raw).in_field(&name));
            }
            None => decode(encoded, charset)?,
        };
        if !pair.is_empty() {
            push(&mut fields, name, value, config)?;
        }
        rest = behind;
    }
    Ok(fields)
}

/// The bytes before and behind the first `separator`.
fn split(bytes: &[u8], separator: u8) -> (&[u8], &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == separator);
    (parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
}

fn decode(encoded: &[u8], charset: Charset) -> Result<String, DecodeError> {
    let spaced: Vec<u8> = encoded.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    let bytes: Cow<'_, [u8]> = percent_decode(&spaced).into();
    let text = charset.text(&bytes).map(Cow::into_owned);
    text.ok_or_else(|| DecodeError::malformed(format!("a form field is not valid {}", charset.name())))
}

fn push(fields: &mut Vec<(String, String)>, name: String, value: String, config: &Config) -> Result<(), DecodeError> {
    if fields.len() == config.max_fields {
        return Err(DecodeError::malformed(too_many_fields(config.max_fields)));
    }
    fields.push((name, value));
    Ok(())
}

/// The JSON object or array that the bytes begin with, if nothing but another field is behind it.
fn unencoded_json(bytes: &[u8]) -> Option<&str> {
    if !is_json_start(bytes) {
        return None;
    }
    let mut values = serde_json::Deserializer::from_slice(bytes).into_iter::<&RawValue>();
    let json = values.next()?.ok()?.get();
    let behind = bytes.get(json.len()..)?;
    (behind.starts_with(b"&") || behind.trim_ascii().is_empty()).then_some(json)
}

fn broken_json(bytes: &[u8]) -> DecodeError {
    let text = String::from_utf8_lossy(bytes);
    match serde_json::from_str::<&RawValue>(&text) {
        Err(error) => json::Error::from_parser(&error, &text).into(),
        Ok(_) => DecodeError::malformed("not valid UTF-8"),
    }
}

/// The texts of the parts of a multipart body (RFC 7578).
pub fn multipart(body: &[u8], content_type: &[u8], config: &Config) -> Result<Vec<(String, String)>, DecodeError> {
    let broken = |error: multer::Error| DecodeError::malformed(format!("not valid multipart/form-data: {error}"));
    let boundary = multer::parse_boundary(String::from_utf8_lossy(content_type)).map_err(broken)?;
    let body = Bytes::copy_from_slice(body);
    let mut parts = multer::Multipart::new(stream::iter([Ok::<_, Infallible>(body)]), boundary);
    let mut fields = Vec::new();
    // The body is complete, so nothing is ever waited for.
    while let Some(part) = parts.next_field().now_or_never().ok_or_else(incomplete)?.map_err(broken)? {
        let name = part.name().ok_or_else(|| DecodeError::malformed("a part of the multipart body has no name"))?;
        let name = name.to_owned();
        let charset = part.content_type().and_then(|content_type| content_type.get_param("charset"));
        let charset = Charset::named(charset.map_or("utf-8", |charset| charset.as_str()));
        let value = part.bytes().now_or_never().ok_or_else(incomplete)?.map_err(broken)?;
        let text = charset.text(&value).map(Cow::into_owned);
        let text = text.ok_or_else(|| {
            DecodeError::malformed(format!("the part `{name}` of the multipart body is not valid {}", charset.name()))
        })?;
        push(&mut fields, name, text, config)?;
    }
    Ok(fields)
}

fn incomplete() -> DecodeError {
    DecodeError::malformed("the multipart body is not complete")
}
