//! Answers, and how they are written.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use std::cell::Cell;
use std::io::Write as _;
use std::time::{Duration, SystemTime};

/// A complete answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// What became of the request.
    pub status: StatusCode,
    /// What the body is.
    pub media_type: &'static str,
    /// One more header.
    pub header: Option<(HeaderName, HeaderValue)>,
    /// The body.
    pub body: Bytes,
    /// It was given without reading the request's body to its end: if there is more to come, the connection is closed behind it, gently, so
    /// that a client that is still sending gets to read it.
    pub body_unread: bool,
}

impl Answer {
    /// An answer without anything unusual.
    pub fn new(status: StatusCode, media_type: &'static str, body: impl Into<Bytes>) -> Self {
        Self { status, media_type, header: None, body: body.into(), body_unread: false }
    }

    /// As hyper sends it; `closes` if nothing more may be sent over a connection of HTTP/1.
    pub(super) fn response(self, closes: bool) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(self.body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.media_type));
        headers.extend(self.header);
        if closes {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// Appends it as it is sent over HTTP/1.1; `closes` if no other follows on the connection.
    pub(super) fn write(&self, closes: bool, out: &mut Vec<u8>) {
        let mut put = |pieces: &[&[u8]]| pieces.iter().for_each(|piece| out.extend_from_slice(piece));
        let reason = self.status.canonical_reason().unwrap_or_default();
        put(&[b"HTTP/1.1 ", self.status.as_str().as_bytes(), b" ", reason.as_bytes()]);
        put(&[b"\r\ncontent-type: ", self.media_type.as_bytes()]);
        if let Some((name, value)) = &self.header {
            put(&[b"\r\n", name.as_str().as_bytes(), b": ", value.as_bytes()]);
        }
        if closes {
            put(&[b"\r\nconnection: close"]);
        }
        put(&[b"\r\ndate: ", &date()]);
        // A vector takes all.
        let _ = write!(out, "\r\ncontent-length: {}\r\n\r\n", self.body.len());
        out.extend_from_slice(&self.body);
    }
}

/// As in `Sun, 06 Nov 1994 08:49:37 GMT`.
type Date = [u8; 29];

thread_local! {
    /// The second that an answer was dated last, counted from 1970, and how.
    static DATED: Cell<(u64, Date)> = const { Cell::new((u64::MAX, [b' '; 29])) };
}

/// Now, as an answer tells it.
fn date() -> Date {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let (second, text) = DATED.get();
    if second == now {
        return text;
    }
    let date = httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(now));
    let text = date.as_bytes().try_into().unwrap_or(text);
    DATED.set((now, text));
    text
}
