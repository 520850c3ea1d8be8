//! Keeps the `#` in the query of a request target.
//!
//! A target has no fragment (RFC 9112, section 3.2), but a sender that builds URLs by hand may not encode a `#` within a value, and
//! `http::Uri` cuts the target off there without an error: `team=Sales#1&status=missed` and `team=Sales#2…` would become one event.
//!
//! Where a pipelined request begins is not known here, so it is refused if a `#` that was not encoded may belong to it.

use super::connections::Activity;
use hyper::body::{Buf as _, Bytes};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, ReadBuf};

/// The receiving side of a connection. Encodes each `#` in the query of an HTTP/1 request line as `%23`.
#[derive(Debug)]
pub struct TargetEncoder<R> {
    reader: R,
    activity: Arc<Activity>,
    /// The number of the request whose line is being read, and of the last one whose line has been read to its end.
    begun: Option<u64>,
    passed: Option<u64>,
    in_query: bool,
    /// Bytes that had no room in the reader's buffer.
    rest: Bytes,
}

impl<R> TargetEncoder<R> {
    pub fn new(reader: R, activity: Arc<Activity>) -> Self {
        Self { reader, activity, begun: None, passed: None, in_query: false, rest: Bytes::new() }
    }

    /// The bytes with their part of the request line encoded; `None` if nothing changes.
    fn encode(&mut self, request: u64, read: &[u8]) -> Option<Vec<u8>> {
        if self.begun.replace(request) != Some(request) && is_method(read) {
            self.activity.see_request_line(request);
        }
        let end = read.iter().position(|byte| *byte == b'\n');
        let (line, behind) = read.split_at(end.unwrap_or(read.len()));
        let (mut encoded, mut cut_off) = (Vec::new(), behind.contains(&b'#'));
        for byte in line {
            self.in_query |= *byte == b'?';
            match byte {
                b'#' if self.in_query => encoded.extend(b"%23"),
                byte => {
                    cut_off |= *byte == b'#';
                    encoded.push(*byte);
                }
            }
        }
        if cut_off {
            self.activity.see_number_sign();
        }
        if end.is_some() {
            self.passed = Some(request);
            self.in_query = false;
        }
        let changed = encoded.len() > line.len();
        encoded.extend(behind);
        changed.then_some(encoded)
    }
}

/// Whether a request line begins here, and not in bytes that were read before.
fn is_method(read: &[u8]) -> bool {
    let method = read.iter().take_while(|byte| byte.is_ascii_uppercase()).count();
    method > 0 && read.get(method) == Some(&b' ')
}

impl<R: AsyncRead + Unpin> AsyncRead for TargetEncoder<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.rest.has_remaining() {
            let request = this.activity.next_http1_request().filter(|request| this.passed != Some(*request));
            let before = buffer.filled().len();
            ready!(Pin::new(&mut this.reader).poll_read(cx, buffer))?;
            let read = buffer.filled().get(before..).unwrap_or_default();
            let encoded = match request {
                Some(request) => this.encode(request, read),
                None => {
                    if read.contains(&b'#') {
                        this.activity.see_number_sign();
                    }
                    None
                }
            };
            let Some(encoded) = encoded else { return Poll::Ready(Ok(())) };
            buffer.set_filled(before);
            this.rest = encoded.into();
        }
        let count = this.rest.len().min(buffer.remaining());
        buffer.put_slice(&this.rest.split_to(count));
        Poll::Ready(Ok(()))
    }
}
