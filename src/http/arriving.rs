//! A request's body, about which is known whether it is waited for.

use super::socket::Watcher;
use super::waking;
use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// As hyper's, and tells the connection's watcher when it is the client's turn; or one that is there.
#[derive(Debug)]
pub struct Arriving(Source);

#[derive(Debug)]
enum Source {
    Whole(Bytes),
    Pieces(Pieces),
}

#[derive(Debug)]
struct Pieces {
    body: Incoming,
    watcher: Arc<Watcher>,
    awaited: bool,
    /// Whether it was awaited before.
    begun: bool,
}

impl Arriving {
    pub(super) fn new(body: Incoming, watcher: Arc<Watcher>) -> Self {
        Self(Source::Pieces(Pieces { body, watcher, awaited: false, begun: false }))
    }

    /// One of which nothing more is to come.
    pub(super) fn whole(body: Bytes) -> Self {
        Self(Source::Whole(body))
    }
}

impl Pieces {
    fn set_awaited(&mut self, awaited: bool) {
        if self.awaited != awaited {
            self.awaited = awaited;
            self.watcher.body_is_awaited(awaited);
            // Most bodies are there with their headers, and then nobody asks what time it is.
            if !std::mem::replace(&mut self.begun, true) {
                self.watcher.moves_on();
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let (frame, woken) = waking::hold(|| Pin::new(&mut self.body).poll_frame(cx));
        self.set_awaited(frame.is_pending());
        // Who took a piece has the connection look for the next, and there is none.
        if !self.body.is_end_stream() {
            woken.release();
        }
        frame
    }
}

impl Body for Arriving {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.0 {
            Source::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Source::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Source::Pieces(pieces) => pieces.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Source::Whole(bytes) => bytes.is_empty(),
            Source::Pieces(pieces) => pieces.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Source::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Pieces(pieces) => pieces.body.size_hint(),
        }
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        self.set_awaited(false);
    }
}
