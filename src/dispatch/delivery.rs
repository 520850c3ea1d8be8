//! Tells the ingress when records are settled, with `ack = "delivered"`.
//!
//! Only the dispatcher knows which records behind an open one are settled: a cursor stands still at the open one. So it is
//! asked, and answers when it can.

use crate::spool::Placed;
use std::collections::{BTreeSet, HashMap};
use tokio::sync::{mpsc, oneshot};

/// How many dead letters are remembered, so that an event that is sent again is not taken for delivered.
const MAX_DEAD_LETTERS: usize = 10_000;
/// Abandoned requests are removed when there are this many requests, and then at each doubling.
const PRUNE_ABOVE: usize = 1024;

/// Asks the dispatcher of one sink.
#[derive(Clone, Debug)]
pub struct DeliveryWatch(mpsc::UnboundedSender<Request>);

/// The dispatcher's end.
#[derive(Debug)]
pub struct DeliveryRequests {
    requests: mpsc::UnboundedReceiver<Request>,
    waiting: HashMap<u64, Vec<oneshot::Sender<bool>>>,
    prune_above: usize,
    dead_letters: BTreeSet<u64>,
}

/// Waits until the record at `offset` is settled; the answer tells whether it is a dead letter.
#[derive(Debug)]
pub struct Request {
    offset: u64,
    settled: oneshot::Sender<bool>,
}

/// The two ends of asking.
pub fn delivery_watch() -> (DeliveryWatch, DeliveryRequests) {
    let (sender, requests) = mpsc::unbounded_channel();
    let (waiting, dead_letters) = (HashMap::new(), BTreeSet::new());
    (DeliveryWatch(sender), DeliveryRequests { requests, waiting, prune_above: PRUNE_ABOVE, dead_letters })
}

impl DeliveryWatch {
    /// Resolves once the sink has settled all of these records, with the number of dead letters among them; `None` if the
    /// bridge stops before.
    pub async fn settled(&self, placed: &Placed) -> Option<usize> {
        let mut answers = Vec::new();
        for offset in placed.fresh.clone().chain(placed.earlier.iter().copied()) {
            let (settled, answer) = oneshot::channel();
            self.0.send(Request { offset, settled }).ok()?;
            answers.push(answer);
        }
        let mut dead_letters = 0;
        for answer in answers {
            dead_letters += usize::from(answer.await.ok()?);
        }
        Some(dead_letters)
    }
}

impl DeliveryRequests {
    /// Waits for the next request; `None` if there will be none.
    pub(super) async fn next(&mut self) -> Option<Request> {
        self.requests.recv().await
    }

    /// Answers the request now if its record is `settled`, or else when it will be.
    pub(super) fn answer(&mut self, request: Request, settled: impl Fn(u64) -> bool) {
        if settled(request.offset) {
            // The ingress may wait no longer.
            let _ = request.settled.send(self.dead_letters.contains(&request.offset));
            return;
        }
        self.waiting.entry(request.offset).or_default().push(request.settled);
        if self.waiting.len() >= self.prune_above {
            self.waiting.retain(|_, waiting| {
                waiting.retain(|settled| !settled.is_closed());
                !waiting.is_empty()
            });
            self.prune_above = PRUNE_ABOVE.max(2 * self.waiting.len());
        }
    }

    /// The record at `offset` is settled.
    pub(super) fn settled(&mut self, offset: u64, dead_letter: bool) {
        if dead_letter {
            if self.dead_letters.len() == MAX_DEAD_LETTERS {
                self.dead_letters.pop_first();
            }
            self.dead_letters.insert(offset);
        }
        for waiting in self.waiting.remove(&offset).into_iter().flatten() {
            // The ingress may wait no longer.
            let _ = waiting.send(dead_letter);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use futures_util::future::BoxFuture;

    /// A question about these records, asked already.
    fn ask(watch: &DeliveryWatch, fresh: std::ops::Range<u64>, earlier: &[u64]) -> BoxFuture<'static, Option<usize>> {
        let (watch, placed) = (watch.clone(), Placed { fresh, earlier: earlier.to_vec() });
        let mut asked = async move { watch.settled(&placed).await }.boxed();
        assert!((&mut asked).now_or_never().is_none());
        asked
    }

    /// The dispatcher takes the questions, and has settled everything below `settled`.
    fn take(requests: &mut DeliveryRequests, settled: u64) {
        while let Ok(request) = requests.requests.try_recv() {
            requests.answer(request, |offset| offset < settled);
        }
    }

    #[test]
    fn a_request_is_answered_when_the_last_of_its_records_is_settled() {
        let (watch, mut requests) = delivery_watch();
        let mut all = ask(&watch, 10..13, &[2, 11]);
        let mut one = ask(&watch, 13..14, &[]);
        take(&mut requests, 10);
        requests.settled(13, false);
        assert_eq!((&mut one).now_or_never(), Some(Some(0)), "whatever waits in front of it");
        for offset in [12, 10] {
            requests.settled(offset, false);
            assert_eq!((&mut all).now_or_never(), None);
        }
        requests.settled(11, false);
        assert_eq!((&mut all).now_or_never(), Some(Some(0)));
        assert!(requests.waiting.is_empty());
    }

    #[test]
    fn dead_letters_are_told_to_later_requests_too() {
        let (watch, mut requests) = delivery_watch();
        let mut first = ask(&watch, 0..2, &[]);
        take(&mut requests, 0);
        requests.settled(0, true);
        requests.settled(1, false);
        assert_eq!((&mut first).now_or_never(), Some(Some(1)));
        let mut again = ask(&watch, 2..2, &[0, 1]);
        take(&mut requests, 2);
        assert_eq!((&mut again).now_or_never(), Some(Some(1)));
        (0..2 * MAX_DEAD_LETTERS as u64).for_each(|offset| requests.settled(offset, true));
        assert_eq!(requests.dead_letters.len(), MAX_DEAD_LETTERS);
    }

    #[test]
    fn abandoned_requests_take_no_memory() {
        let (watch, mut requests) = delivery_watch();
        let mut last = None;
        for offset in 0..100 * PRUNE_ABOVE as u64 {
            last = Some(ask(&watch, offset..offset + 1, &[]));
            take(&mut requests, 0);
            assert!(requests.waiting.len() <= PRUNE_ABOVE);
        }
        requests.settled(100 * PRUNE_ABOVE as u64 - 1, false);
        assert_eq!(last.and_then(FutureExt::now_or_never), Some(Some(0)));
    }

    #[test]
    fn a_dispatcher_that_has_ended_answers_none() {
        let (watch, mut requests) = delivery_watch();
        let (taken, late) = (ask(&watch, 0..1, &[]), ask(&watch, 1..2, &[]));
        take(&mut requests, 0);
        drop(requests);
        assert_eq!((taken.now_or_never(), late.now_or_never()), (Some(None), Some(None)));
        assert_eq!(watch.settled(&Placed { fresh: 0..1, earlier: Vec::new() }).now_or_never(), Some(None));
    }
}
