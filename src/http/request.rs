//! A request, however it came.

use super::Arriving;
use hyper::Method;
use hyper::header::{HeaderName, HeaderValue};
use hyper::http::request::Parts;
use smallvec::SmallVec;
use std::ops::Range;

/// A request whose header is there.
#[derive(Debug)]
pub struct Request {
    /// Request line and header fields.
    pub head: Head,
    /// The body, or what is there of it.
    pub body: Arriving,
}

/// Request line and header fields.
#[derive(Clone, Debug)]
pub struct Head(Form);

#[derive(Clone, Debug)]
enum Form {
    /// As hyper reads them. With them goes what holds on to a request's place.
    Parts(Box<Parts>),
    Text(Text),
}

/// As they came, checked. Most requests are asked for a field or two: to look for these costs less than a table of all.
#[derive(Clone, Debug)]
pub(super) struct Text {
    pub method: Method,
    /// All of it.
    pub text: Box<str>,
    /// Where the path lies in it, and where the query ends behind the question mark, if there is one.
    pub path: Range<usize>,
    pub target_end: usize,
    pub fields: SmallVec<[Field; USUAL]>,
}

/// How many fields a header has at the most, usually.
pub(super) const USUAL: usize = 12;

/// Where a field lies.
#[derive(Clone, Debug)]
pub(super) struct Field {
    pub name: Range<u16>,
    pub value: Range<u16>,
}

impl From<Parts> for Head {
    fn from(parts: Parts) -> Self {
        Self(Form::Parts(parts.into()))
    }
}

impl From<Text> for Head {
    fn from(text: Text) -> Self {
        Self(Form::Text(text))
    }
}

impl Head {
    /// The method.
    pub fn method(&self) -> &Method {
        match &self.0 {
            Form::Parts(parts) => &parts.method,
            Form::Text(text) => &text.method,
        }
    }

    /// The path and the query as they are written.
    pub fn target(&self) -> &str {
        match &self.0 {
            Form::Parts(parts) => parts.uri.path_and_query().map_or("/", |target| target.as_str()),
            Form::Text(text) => text.part(text.path.start..text.target_end),
        }
    }

    /// The path.
    pub fn path(&self) -> &str {
        match &self.0 {
            Form::Parts(parts) => parts.uri.path(),
            Form::Text(text) => text.part(text.path.clone()),
        }
    }

    /// The query, if there is one.
    pub fn query(&self) -> Option<&str> {
        match &self.0 {
            Form::Parts(parts) => parts.uri.query(),
            Form::Text(text) => {
                (text.path.end < text.target_end).then(|| text.part(text.path.end + 1..text.target_end))
            }
        }
    }

    /// The values of the fields with this name, in their order.
    pub fn values<'a>(&'a self, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
        (0..).map_while(|index| self.nth(name, index))
    }

    /// The first of them.
    pub fn value(&self, name: &HeaderName) -> Option<&[u8]> {
        self.nth(name, 0)
    }

    fn nth(&self, name: &HeaderName, index: usize) -> Option<&[u8]> {
        match &self.0 {
            Form::Parts(parts) => parts.headers.get_all(name).iter().nth(index).map(HeaderValue::as_bytes),
            Form::Text(text) => text.values(name.as_str()).nth(index),
        }
    }
}

impl Text {
    fn part(&self, range: Range<usize>) -> &str {
        self.text.get(range).unwrap_or_default()
    }

    fn values(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        let bytes = |range: &Range<u16>| self.text.as_bytes().get(usize::from(range.start)..usize::from(range.end));
        let named = move |field: &&Field| {
            field.name.len() == name.len()
                && bytes(&field.name).is_some_and(|own| own.eq_ignore_ascii_case(name.as_bytes()))
        };
        self.fields.iter().filter(named).filter_map(move |field| bytes(&field.value))
    }
}

/// A field's value as text, if it is one: ASCII that can be seen, blanks and tabs.
pub fn text(value: &[u8]) -> Option<&str> {
    let is_text = value.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~'));
    str::from_utf8(value).ok().filter(|_| is_text)
}
