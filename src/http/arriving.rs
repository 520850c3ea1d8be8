//! A request's body, about which is known whether it is waited for.

use super::socket::Watcher;
use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// As hyper's, and tells the connection's watcher when it is the client's turn.
#[derive(Debug)]
pub struct Arriving {
    body: Incoming,
    watcher: Arc<Watcher>,
    awaited: bool,
}

impl Arriving {
    pub(super) fn new(body: Incoming, watcher: Arc<Watcher>) -> Self {
        Self { body, watcher, awaited: false }
    }

    fn set_awaited(&mut self, awaited: bool) {
        if self.awaited != awaited {
            self.awaited = awaited;
            self.watcher.body_is_awaited(awaited);
        }
    }
}

impl Body for Arriving {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        self.set_awaited(frame.is_pending());
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.set_awaited(false);
    }
}
