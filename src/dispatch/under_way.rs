//! The records under way: each a future, from its turn in its conversation to its outcome.

use super::lane::{Lane, Outcome};
use crate::spool::Record;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use std::sync::Arc;

/// A record, and what became of it.
type Ended = (Arc<Record>, Outcome);

/// See the module.
pub struct UnderWay {
    lane: Arc<Lane>,
    attempts: FuturesUnordered<BoxFuture<'static, Ended>>,
}

impl UnderWay {
    /// Nothing is under way on this lane yet.
    pub fn on(lane: Arc<Lane>) -> Self {
        Self { lane, attempts: FuturesUnordered::new() }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.attempts.len()
    }

    /// Begins with a record whose turn it is.
    pub fn begin(&mut self, record: Arc<Record>) {
        let lane = self.lane.clone();
        self.attempts.push(Box::pin(async move {
            let outcome = lane.go_on(&record).await;
            (record, outcome)
        }));
    }

    /// The next that ends; `None` if none is under way.
    pub async fn next(&mut self) -> Option<Ended> {
        self.attempts.next().await
    }
}
