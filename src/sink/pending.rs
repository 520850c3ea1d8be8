//! What becomes of messages that a sink was handed: told to the loop that did so, many at a time.

use futures_util::task::AtomicWaker;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use tokio::sync::oneshot;

/// What became of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// As it was given to [`Pending::new`].
    pub number: usize,
    /// Whether the destination has acknowledged it.
    pub delivered: bool,
}

/// Collects what became of messages until the loop that handed them over asks.
#[derive(Debug, Default)]
pub struct Outcomes {
    told: Mutex<Vec<Outcome>>,
    waker: AtomicWaker,
}

impl Outcomes {
    /// Moves what has been told into `outcomes`, behind what is there; `Pending` if that was nothing.
    pub fn poll_told(&self, context: &mut Context<'_>, outcomes: &mut Vec<Outcome>) -> Poll<()> {
        self.waker.register(context.waker());
        let mut told = self.told();
        if told.is_empty() {
            return Poll::Pending;
        }
        if outcomes.is_empty() {
            std::mem::swap(&mut *told, outcomes)
        } else {
            outcomes.append(&mut told)
        }
        Poll::Ready(())
    }

    /// Takes what became of messages, and then wakes who waits: from another thread, waking them for the first would take its
    /// processor away.
    fn tell(&self, outcomes: impl IntoIterator<Item = Outcome>) {
        self.told().extend(outcomes);
        self.waker.wake();
    }

    fn told(&self) -> MutexGuard<'_, Vec<Outcome>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A message that a sink was handed and has not answered for. Dropped, it says that the message was not delivered.
#[derive(Debug)]
pub struct Pending {
    number: usize,
    /// `None` if nobody is to be told any more.
    outcomes: Option<Arc<Outcomes>>,
}

impl Pending {
    /// The message that goes by this number.
    pub fn new(number: usize, outcomes: Arc<Outcomes>) -> Self {
        Self { number, outcomes: Some(outcomes) }
    }

    /// The destination has acknowledged it.
    pub fn delivered(self) {
        Self::all_delivered([self]);
    }

    /// The destination has acknowledged all of these. Nobody can be told of anything else while they are gone through.
    pub fn all_delivered(pending: impl IntoIterator<Item = Self>) {
        let mut pending = pending.into_iter().peekable();
        while let Some(mut first) = pending.next() {
            let Some(outcomes) = first.outcomes.take() else { continue };
            let same = |next: &Self| next.outcomes.as_ref().is_some_and(|other| Arc::ptr_eq(other, &outcomes));
            let others = std::iter::from_fn(|| {
                let mut next = pending.next_if(same)?;
                next.withdraw();
                Some(next.number)
            });
            let numbers = std::iter::once(first.number).chain(others);
            outcomes.tell(numbers.map(|number| Outcome { number, delivered: true }));
        }
    }

    /// Nobody is to be told of it: it was not handed over after all.
    pub fn withdraw(&mut self) {
        self.outcomes = None;
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(outcomes) = self.outcomes.take() {
            outcomes.tell([Outcome { number: self.number, delivered: false }]);
        }
    }
}

/// Who waits for what becomes of a message: the loop that handed it over, or whoever publishes it and is told why it failed.
#[derive(Debug)]
pub enum Waiting<E> {
    /// It was handed over.
    Handed(Pending),
    /// It is published.
    Published(oneshot::Sender<Result<(), E>>),
}

impl<E> Waiting<E> {
    /// Tells of many: first of those that were handed over and have been delivered, all at once.
    pub fn tell_all(outcomes: impl IntoIterator<Item = (Self, Result<(), E>)>) {
        let mut others = Vec::new();
        let delivered = outcomes.into_iter().filter_map(|told| match told {
            (Self::Handed(pending), Ok(())) => Some(pending),
            other => {
                others.push(other);
                None
            }
        });
        Pending::all_delivered(delivered);
        others.into_iter().for_each(|(waiting, outcome)| waiting.tell(outcome));
    }

    /// Tells what became of it.
    pub fn tell(self, outcome: Result<(), E>) {
        match (self, outcome) {
            (Self::Handed(pending), Ok(())) => pending.delivered(),
            (Self::Handed(pending), Err(_)) => drop(pending),
            // Whoever waited may be gone.
            (Self::Published(waiting), outcome) => drop(waiting.send(outcome)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn whoever_waits_is_told_of_every_message_and_woken_once_for_many() {
        let (one, other) = (Arc::<Outcomes>::default(), Arc::<Outcomes>::default());
        let woken = Arc::<Woken>::default();
        let waker = Waker::from(woken.clone());
        let mut context = Context::from_waker(&waker);
        let mut told = Vec::new();
        assert!(one.poll_told(&mut context, &mut told).is_pending());

        Pending::all_delivered((0..100).map(|number| Pending::new(number, one.clone())));
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert!(one.poll_told(&mut context, &mut told).is_ready());
        assert_eq!(told, (0..100).map(|number| Outcome { number, delivered: true }).collect::<Vec<_>>());
        assert!(one.poll_told(&mut context, &mut told).is_pending());

        told.clear();
        let waiting = |number| Waiting::Handed(Pending::new(number, one.clone()));
        Waiting::tell_all((0..6).map(|number| (waiting(number), if number % 2 == 0 { Ok(()) } else { Err("cause") })));
        assert!(one.poll_told(&mut context, &mut told).is_ready());
        let expected = [(0, true), (2, true), (4, true), (1, false), (3, false), (5, false)];
        assert_eq!(told, expected.map(|(number, delivered)| Outcome { number, delivered }));

        // Of several loops each learns of its own.
        told.clear();
        let mixed = [(0, &one), (1, &other), (2, &other), (3, &one)];
        Pending::all_delivered(mixed.map(|(number, outcomes)| Pending::new(number, outcomes.clone())));
        drop(Pending::new(4, one.clone()));
        Pending::new(5, one.clone()).withdraw();
        Waiting::Handed(Pending::new(6, one.clone())).tell(Err("cause"));
        Waiting::Handed::<()>(Pending::new(7, one.clone())).tell(Ok(()));
        for (outcomes, expected) in
            [(&one, &[(0, true), (3, true), (4, false), (6, false), (7, true)][..]), (&other, &[(1, true), (2, true)])]
        {
            told.clear();
            assert!(outcomes.poll_told(&mut context, &mut told).is_ready());
            assert_eq!(told.iter().map(|told| (told.number, told.delivered)).collect::<Vec<_>>(), expected);
        }
    }
}
