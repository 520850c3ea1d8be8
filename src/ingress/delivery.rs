//! `ack = "delivered"`: a stored request waits for the sinks before it is answered.

use crate::dispatch::DeliveryWatch;
use crate::spool::Placed;
use futures_util::future::join_all;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

/// Events that may wait at once. A request counts as 16 more, for its connection or stream: up to 4,000 requests of one event each can
/// wait. Further ones are answered at once, which bounds the memory during an outage of a broker.
const PLACES: usize = 1 << 16;
const REQUEST: usize = 16;

/// Waits for all sinks that a request has to wait for.
#[derive(Debug)]
pub struct Delivery {
    watches: watch::Receiver<Vec<DeliveryWatch>>,
    timeout: Duration,
    places: Arc<Semaphore>,
    stop: watch::Receiver<bool>,
}

/// How far the events of a request have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// Whether every required sink is known to have all of them that it wants.
    pub complete: bool,
    /// How many dead letters have come of them. Not all are known if sinks are still at it.
    pub dead_letters: usize,
}

impl Delivery {
    /// Waits for the sinks that run when a request is stored, up to `timeout`, and no longer than until `stop` turns true.
    pub fn new(watches: watch::Receiver<Vec<DeliveryWatch>>, timeout: Duration, stop: watch::Receiver<bool>) -> Self {
        Self { watches, timeout, places: Arc::new(Semaphore::new(PLACES)), stop }
    }

    /// Waits until the events are settled.
    pub async fn wait(&self, placed: Placed) -> Delivered {
        let nothing_known = Delivered { complete: false, dead_letters: 0 };
        let count = placed.count();
        let size = (REQUEST + count.stored + count.duplicates).min(PLACES);
        let Ok(_place) = self.places.try_acquire_many(size as u32) else { return nothing_known };
        let watches = self.watches.borrow().clone();
        let settled = join_all(watches.iter().map(|watch| watch.settled(&placed)));
        let mut stop = self.stop.clone();
        let settled = tokio::select! {
            biased;
            settled = timeout(self.timeout, settled) => settled.unwrap_or_default(),
            _ = stop.wait_for(|stop| *stop) => Vec::new(),
        };
        let dead_letters = settled.iter().flatten().sum();
        let all_settled = settled.len() == watches.len() && settled.iter().all(Option::is_some);
        Delivered { complete: all_settled && dead_letters == 0, dead_letters }
    }
}
