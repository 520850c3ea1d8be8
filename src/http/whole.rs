//! Requests that come whole.
//!
//! Nearly every webhook is a few hundred bytes that are there at once, and an answer needs none of what a connection may ask for
//! besides. Such a request is read, answered and forgotten here: between two of them nothing is left but the socket. Whatever is in
//! any way out of the ordinary, a body of which more is to come, another version, chunks, an expectation, a second request behind the
//! first, is not judged here but left to hyper with all that came of it.

use super::request::{Field, Text};
use super::{Answer, Arriving, Request};
use bytes::Bytes;
use httparse::Status;
use hyper::Method;
use smallvec::SmallVec;
use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};

/// How large a request is read here, body included.
const ROOM: usize = 8 << 10;
/// How many header fields it may have.
const FIELDS: usize = 32;

/// What says that there is more to a request than its body.
const UNUSUAL: [&str; 3] = ["expect", "upgrade", "transfer-encoding"];

thread_local! {
    /// Where all connections of a thread read to, one after another: what they read is small, and near the processor like this.
    static READ: RefCell<[u8; ROOM]> = const { RefCell::new([0; ROOM]) };
    /// Where they write from, likewise.
    static WRITTEN: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A request and what becomes of its connection.
#[derive(Debug)]
pub struct Whole {
    pub request: Request,
    /// The client wants no more.
    pub closes: bool,
}

/// Reads what there is: a request and nothing else, or what is anything else, which is nothing once the client has ended its side.
pub fn poll_read(socket: Pin<&mut impl AsyncRead>, cx: &mut Context<'_>) -> Poll<io::Result<Result<Whole, Bytes>>> {
    READ.with_borrow_mut(|room| {
        let mut read = ReadBuf::new(room);
        ready!(socket.poll_read(cx, &mut read))?;
        let bytes = read.filled();
        // Where there is no more room there may be more to read.
        let whole = if bytes.len() < ROOM { Whole::parse(bytes) } else { None };
        Poll::Ready(Ok(whole.ok_or_else(|| Bytes::copy_from_slice(bytes))))
    })
}

/// Sends an answer; `closes` if no other follows on the connection.
pub async fn write(socket: &mut (impl AsyncWrite + Unpin), answer: Answer, closes: bool) -> io::Result<()> {
    let mut answer = Some(answer);
    let unsent = poll_fn(|cx| {
        let Some(answer) = answer.take() else { return Poll::Ready(Ok(Vec::new())) };
        WRITTEN.with_borrow_mut(|bytes| {
            bytes.clear();
            answer.write(closes, bytes);
            let sent = match Pin::new(&mut *socket).poll_write(cx, bytes) {
                Poll::Ready(sent) => sent?,
                Poll::Pending => 0,
            };
            // What a socket does not take at once is rare.
            let unsent = bytes.split_off(sent.min(bytes.len()));
            bytes.shrink_to(ROOM);
            Poll::Ready(Ok::<_, io::Error>(unsent))
        })
    });
    let unsent = unsent.await?;
    if unsent.is_empty() { Ok(()) } else { socket.write_all(&unsent).await }
}

impl Whole {
    /// The request that `bytes` are, if they are one from the first to the last, and nothing about it is unusual.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut fields = [const { MaybeUninit::uninit() }; FIELDS];
        let mut head = httparse::Request::new(&mut []);
        let Ok(Status::Complete(end)) = head.parse_with_uninit_headers(bytes, &mut fields) else { return None };
        let method = match (head.method, head.version) {
            (Some("POST"), Some(1)) => Method::POST,
            (Some("GET"), Some(1)) => Method::GET,
            _ => return None,
        };
        let (mut length, mut closes) = (None, false);
        let mut places = SmallVec::new();
        for field in &*head.headers {
            places.push(Field { name: place(field.name.as_bytes(), bytes), value: place(field.value, bytes) });
            // By their lengths, as hardly any is one of these.
            match field.name.len() {
                14 if field.name.eq_ignore_ascii_case("content-length") => {
                    let first = length.replace(digits(field.value)?).is_none();
                    first.then_some(())?;
                }
                10 if field.name.eq_ignore_ascii_case("connection") => {
                    let close = field.value.eq_ignore_ascii_case(b"close");
                    (close || field.value.eq_ignore_ascii_case(b"keep-alive")).then_some(())?;
                    closes |= close;
                }
                6 | 7 | 17 if UNUSUAL.iter().any(|name| field.name.eq_ignore_ascii_case(name)) => return None,
                _ => {}
            }
        }
        let bodiless = method == Method::GET && length.is_none();
        if length.or(bodiless.then_some(0))? != bytes.len() - end {
            return None;
        }
        let target = head.path?.as_bytes();
        if target.first() != Some(&b'/') || !target.iter().all(is_ordinary) {
            return None;
        }
        let at = place(target, bytes);
        let (start, target_end) = (usize::from(at.start), usize::from(at.end));
        let path_end = memchr::memchr(b'?', target).map_or(target_end, |at| start + at);
        // What is not UTF-8 is not ordinary either.
        let text = str::from_utf8(bytes.get(..end)?).ok()?.into();
        let head = Text { method, text, path: start..path_end, target_end, fields: places };
        let body = Arriving::whole(Bytes::copy_from_slice(bytes.get(end..)?));
        let request = Request { head: head.into(), body };
        Some(Self { request, closes })
    }
}

/// Whether a target may have this (RFC 3986, 3.3 and 3.4).
fn is_ordinary(byte: &u8) -> bool {
    matches!(byte, b'!' | b'$'..=b';' | b'=' | b'?'..=b'Z' | b'_' | b'a'..=b'z' | b'~')
}

/// Where `part` lies in `whole`, of which it is a part, and which is no larger than what is read here. What is empty may lie anywhere.
fn place(part: &[u8], whole: &[u8]) -> Range<u16> {
    if part.is_empty() {
        return 0..0;
    }
    let start = part.as_ptr().addr().wrapping_sub(whole.as_ptr().addr()) as u16;
    start..start.wrapping_add(part.len() as u16)
}

/// A number of decimal digits and nothing else.
fn digits(text: &[u8]) -> Option<usize> {
    let add = |number: usize, digit: &u8| {
        let digit = digit.is_ascii_digit().then(|| usize::from(digit - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    };
    if text.is_empty() { None } else { text.iter().try_fold(0, add) }
}

#[cfg(test)]
mod tests;
