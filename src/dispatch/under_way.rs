//! The records that one sink's loop has begun with and that have not ended.
//!
//! Nearly all of them are with the sink and answered for many at a time, so that each takes a place in a list here and no task.
//! What has to be waited for, tried again or kept as a dead letter has a future of its own.

use super::lane::{Attempt, Begun, Lane, Outcome};
use crate::sink::{self, Outcomes, Pending, Sink};
use crate::spool::Record;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use slab::Slab;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::task::unconstrained;

/// A record, and what became of it.
type Ended = (Arc<Record>, Outcome);

/// What a sink has been handed need not wait for more than these.
const TOGETHER: usize = 64;
/// How many attempts that have ended are taken before the loop sees to them.
const AT_ONCE: usize = 64;

/// See the module.
pub struct UnderWay<S> {
    lane: Arc<Lane<S>>,
    /// What the sink has, by the number that it answers with.
    handed_over: Slab<Arc<Record>>,
    outcomes: Arc<Outcomes>,
    told: Vec<sink::Outcome>,
    attempts: FuturesUnordered<BoxFuture<'static, Ended>>,
    ended: VecDeque<Ended>,
    /// How many the sink has been handed since it was last told that no more come for now.
    unflushed: usize,
}

impl<S: Sink> UnderWay<S> {
    /// Nothing is under way on this lane yet.
    pub fn on(lane: Arc<Lane<S>>) -> Self {
        Self {
            lane,
            handed_over: Slab::new(),
            outcomes: Arc::default(),
            told: Vec::new(),
            attempts: FuturesUnordered::new(),
            ended: VecDeque::new(),
            unflushed: 0,
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.handed_over.len() + self.attempts.len() + self.ended.len()
    }

    /// Begins with a record whose turn it is.
    pub fn begin(&mut self, record: Arc<Record>) {
        let place = self.handed_over.vacant_entry();
        match self.lane.begin(&record, || Pending::new(place.key(), self.outcomes.clone())) {
            Begun::HandedOver => {
                place.insert(record);
                self.unflushed += 1;
                if self.unflushed == TOGETHER {
                    self.flush();
                }
            }
            Begun::Ended(outcome) => self.ended.push_back((record, outcome)),
            Begun::Attempt(attempt) => self.attempt(record, Some(attempt)),
        }
    }

    /// No more is begun with for now.
    pub fn flush(&mut self) {
        if std::mem::take(&mut self.unflushed) > 0 {
            self.lane.sink.flush();
        }
    }

    /// Resolves when there is something for [`Self::take_ended`], at once if there is already. A task may do 128 steps before tokio makes
    /// it wait, and an attempt takes several: with thousands under way, most would be asked in vain and ask to be asked again. So the
    /// steps of the loop count, not theirs.
    pub async fn some_ended(&mut self) {
        unconstrained(poll_fn(|context| self.poll_ended(context))).await;
    }

    /// The next that has ended.
    pub fn take_ended(&mut self) -> Option<Ended> {
        self.ended.pop_front()
    }

    fn poll_ended(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut told = std::mem::take(&mut self.told);
        if self.outcomes.poll_told(context, &mut told).is_ready() {
            let mut delivered = 0;
            for told in &told {
                let Some(record) = self.handed_over.try_remove(told.number) else { continue };
                if told.delivered {
                    delivered += 1;
                    self.ended.push_back((record, Outcome::Settled));
                } else {
                    self.attempt(record, None);
                }
            }
            self.lane.answered(delivered, told.len() - delivered);
            told.clear();
        }
        self.told = told;
        while self.ended.len() < AT_ONCE
            && let Poll::Ready(Some(ended)) = self.attempts.poll_next_unpin(context)
        {
            self.ended.push_back(ended);
        }
        if self.ended.is_empty() { Poll::Pending } else { Poll::Ready(()) }
    }

    fn attempt(&mut self, record: Arc<Record>, attempt: Option<Box<Attempt>>) {
        let lane = self.lane.clone();
        self.attempts.push(Box::pin(async move {
            let outcome = lane.go_on(&record, attempt).await;
            (record, outcome)
        }));
    }
}
