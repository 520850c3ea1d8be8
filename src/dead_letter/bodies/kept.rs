//! One line: a body, and what came with it.

use crate::event::Arrival;
use base64::Engine;
use base64::display::Base64Display;
use base64::engine::general_purpose::{GeneralPurpose, STANDARD};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::io::{self, Write};

/// What a body takes in memory besides its own bytes, near enough.
const OVERHEAD: usize = 256;

/// A request that was refused because of what it held, and came complete.
#[derive(Clone, Debug)]
pub struct Refused<'a> {
    /// When it was complete.
    pub arrival: Arrival,
    /// The status that it was answered with.
    pub status: u16,
    /// Why.
    pub reason: Cow<'a, str>,
    /// Line and column where the text stops making sense.
    pub place: Option<(usize, usize)>,
    /// The route that it came by.
    pub ingress: Cow<'a, str>,
    /// The method.
    pub method: Cow<'a, str>,
    /// The Content-Type.
    pub content_type: Option<Cow<'a, str>>,
    /// The query string, percent-encoded, where it stands in for a body.
    pub query: Option<Cow<'a, str>>,
    /// The body.
    pub body: Cow<'a, [u8]>,
}

impl Refused<'_> {
    /// How many bytes of memory it takes.
    pub fn memory(&self) -> usize {
        let texts = [&self.content_type, &self.query].into_iter().flatten().map(|text| text.len());
        OVERHEAD + self.reason.len() + self.ingress.len() + self.method.len() + self.body.len() + texts.sum::<usize>()
    }

    /// The same with texts of its own.
    pub fn into_owned(self) -> Refused<'static> {
        let owned = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
        Refused {
            reason: owned(self.reason),
            ingress: owned(self.ingress),
            method: owned(self.method),
            content_type: self.content_type.map(owned),
            query: self.query.map(owned),
            body: Cow::Owned(self.body.into_owned()),
            ..self
        }
    }
}

/// A body as it is read back.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Kept {
    /// Its number.
    pub id: u64,
    /// When it was complete, RFC 3339.
    pub arrival: String,
    /// The status that the request was answered with.
    pub status: u16,
    /// Why.
    pub reason: String,
    /// The route that it came by.
    #[serde(default = "crate::dead_letter::default_ingress")]
    pub ingress: String,
    /// The request's method.
    pub method: String,
    /// The request's Content-Type, if it had one.
    pub content_type: Option<String>,
    /// The request's query string, percent-encoded, if there was no body.
    pub query: Option<String>,
    /// The body if it is a plain text,
    body: Option<String>,
    /// and if it is not.
    body_base64: Option<String>,
}

impl Kept {
    /// The exact bytes that came; `None` if they were damaged.
    pub fn body(&self) -> Option<Vec<u8>> {
        match (&self.body, &self.body_base64) {
            (Some(text), _) => Some(text.clone().into_bytes()),
            (None, Some(encoded)) => STANDARD.decode(encoded).ok(),
            (None, None) => None,
        }
    }
}

/// A body as it is written.
#[derive(Serialize)]
pub(super) struct Line<'a> {
    id: u64,
    arrival: String,
    status: u16,
    reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<usize>,
    ingress: &'a str,
    method: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    query: Option<&'a str>,
    #[serde(flatten)]
    body: Body<'a>,
}

/// Text stays readable. Control characters would take six bytes each, so a body with them counts as binary.
#[derive(Serialize)]
enum Body<'a> {
    #[serde(rename = "body")]
    Text(&'a str),
    #[serde(rename = "body_base64")]
    Binary(#[serde(serialize_with = "as_text")] Base64Display<'a, 'static, GeneralPurpose>),
}

fn as_text<S: serde::Serializer>(value: &impl std::fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

impl<'a> Line<'a> {
    pub fn new(id: u64, refused: &'a Refused<'_>) -> Self {
        let plain = |text: &&str| text.bytes().all(|byte| byte >= b' ' || b"\t\r\n".contains(&byte));
        let body = match std::str::from_utf8(&refused.body).ok().filter(plain) {
            Some(text) => Body::Text(text),
            None => Body::Binary(Base64Display::new(&refused.body, &STANDARD)),
        };
        Self {
            id,
            arrival: refused.arrival.to_string(),
            status: refused.status,
            reason: &refused.reason,
            line: refused.place.map(|(line, _)| line),
            column: refused.place.map(|(_, column)| column),
            ingress: &refused.ingress,
            method: &refused.method,
            content_type: refused.content_type.as_deref(),
            query: refused.query.as_deref(),
            body,
        }
    }

    /// How many bytes it takes in the file, line break included.
    pub fn length(&self) -> io::Result<u64> {
        let mut length = Length(1);
        serde_json::to_writer(&mut length, self)?;
        Ok(length.0)
    }
}

/// Counts what is written.
struct Length(u64);

impl Write for Length {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
