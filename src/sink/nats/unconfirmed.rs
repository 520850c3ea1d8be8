//! Messages that a stream may have stored although their acknowledgement did not come.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How many are remembered. To forget one can cost a duplicate.
const MAX: usize = 4096;

/// When each such message was published first, by its `Nats-Msg-Id`.
#[derive(Default)]
pub(super) struct Unconfirmed(Mutex<HashMap<String, Instant>>);

impl Unconfirmed {
    /// For how long the stream may have had the message; `None` if it was always answered for.
    pub(super) fn age(&self, id: &str) -> Option<Duration> {
        self.0.lock().get(id).map(Instant::elapsed)
    }

    /// The message was published at `begun` and not answered for.
    pub(super) fn insert(&self, id: &str, begun: Instant) {
        let mut published = self.0.lock();
        if published.len() >= MAX {
            // A record may never be retried: a sink that is not required can skip it.
            published.clear();
        }
        published.entry(id.to_owned()).or_insert(begun);
    }

    /// The stream has the message.
    pub(super) fn remove(&self, id: &str) {
        self.0.lock().remove(id);
    }
}
