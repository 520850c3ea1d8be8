//! The body of a request as it arrives.

use super::connections::Activity;
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Bytes, Incoming};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How large a body may be that is read only to keep the connection, and how long that may take.
const MAX_DISCARDED: u64 = 16 << 10;
const DISCARD_TIME: Duration = Duration::from_millis(50);

/// The body of a request. While a piece of it is awaited it is the client's turn, and the connection may be closed for another one.
#[derive(Debug)]
pub struct RequestBody {
    incoming: Incoming,
    activity: Arc<Activity>,
    complete: bool,
}

impl RequestBody {
    pub(super) fn new(incoming: Incoming, activity: Arc<Activity>) -> Self {
        Self { incoming, activity, complete: false }
    }

    /// The next piece; `None` at the end.
    pub async fn next(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        let _waiting = self.activity.await_body();
        loop {
            match self.incoming.frame().await {
                None => {
                    self.complete = true;
                    return None;
                }
                Some(Err(error)) => return Some(Err(error)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Some(Ok(data));
                    }
                }
            }
        }
    }

    /// Its length in bytes, if the client has declared it.
    pub fn declared(&self) -> Option<u64> {
        self.incoming.size_hint().exact()
    }

    /// Reads the rest of a small body that a refused request has, if it is there, so that the connection can be used again. Returns
    /// whether the body is complete.
    pub(super) async fn discard(&mut self) -> bool {
        let is_complete = |body: &Self| body.complete || body.incoming.is_end_stream();
        if !is_complete(self) && self.declared().is_some_and(|length| length <= MAX_DISCARDED) {
            let _ = timeout(DISCARD_TIME, async { while let Some(Ok(_)) = self.next().await {} }).await;
        }
        is_complete(self)
    }
}
