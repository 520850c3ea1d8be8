//! Who wants to know when records are settled: the ingress, if it answers only then (`ack = "delivered"`).
//!
//! The loop alone knows what is settled behind a record that is not: a cursor stands still at that one, however many pass it.
//! So it is asked, and keeps the question until it can answer.

use crate::spool::Placed;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::{mpsc, oneshot};

/// How many dead letters are remembered, so that an event which is sent again is not taken for delivered.
const DEAD_LETTERS: usize = 10_000;
/// Questions whose askers have gone are looked for when this many records are waited for, and then at each doubling.
const TIDY: usize = 1024;

/// Asks the loop of one sink.
#[derive(Clone, Debug)]
pub struct Watcher(mpsc::UnboundedSender<Question>);

/// The questions to the loop of one sink.
#[derive(Debug)]
pub struct Watches {
    questions: mpsc::UnboundedReceiver<Question>,
    waiting: HashMap<u64, Vec<Arc<Watch>>>,
    /// When to look for questions whose askers have gone.
    tidy_at: usize,
    dead_letters: BTreeSet<u64>,
}

#[derive(Debug)]
struct Question {
    placed: Arc<Placed>,
    answer: oneshot::Sender<usize>,
}

/// A question under way. Every record that it waits for holds on to it: whoever lets go of it last gives the answer.
#[derive(Debug)]
struct Watch {
    dead_letters: AtomicUsize,
    answer: oneshot::Sender<usize>,
}

/// What has become of a record when it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Not read yet, under way, or unreadable.
    Open,
    /// The sink has it, does not want it, or it is a dead letter.
    Settled,
}

/// The two ends of asking.
pub fn watches() -> (Watcher, Watches) {
    let (sender, questions) = mpsc::unbounded_channel();
    let watches = Watches { questions, waiting: HashMap::new(), tidy_at: TIDY, dead_letters: BTreeSet::new() };
    (Watcher(sender), watches)
}

impl Watcher {
    /// Resolves once the sink has settled all of these records, with the number of dead letters among them; `None` if the
    /// bridge stops before.
    pub async fn settled(&self, placed: Arc<Placed>) -> Option<usize> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Question { placed, answer }).ok()?;
        answered.await.ok()
    }
}

impl Watches {
    /// Waits for a question.
    pub(super) async fn asked(&mut self) -> Option<Asked> {
        self.questions.recv().await.map(Asked)
    }

    /// Takes a question, and all others that have come meanwhile.
    pub(super) fn take(&mut self, Asked(question): Asked, progress: impl Fn(u64) -> Progress) {
        let mut next = Some(question);
        while let Some(question) = next {
            self.add(question, &progress);
            next = self.questions.try_recv().ok();
        }
        if self.waiting.len() >= self.tidy_at {
            self.waiting.retain(|_, watches| {
                watches.retain(|watch| !watch.answer.is_closed());
                !watches.is_empty()
            });
            self.tidy_at = TIDY.max(2 * self.waiting.len());
        }
    }

    fn add(&mut self, Question { placed, answer }: Question, progress: &impl Fn(u64) -> Progress) {
        let watch = Arc::new(Watch { dead_letters: AtomicUsize::new(0), answer });
        for offset in placed.fresh.clone().chain(placed.earlier.iter().copied()) {
            if progress(offset) == Progress::Open {
                self.waiting.entry(offset).or_default().push(watch.clone());
            } else if self.dead_letters.contains(&offset) {
                watch.dead_letters.fetch_add(1, Ordering::Relaxed);
            }
        }
        let_go(watch);
    }

    /// A record is settled.
    pub(super) fn settled(&mut self, offset: u64, dead_letter: bool) {
        if dead_letter {
            if self.dead_letters.len() == DEAD_LETTERS {
                self.dead_letters.pop_first();
            }
            self.dead_letters.insert(offset);
        }
        for watch in self.waiting.remove(&offset).into_iter().flatten() {
            watch.dead_letters.fetch_add(dead_letter.into(), Ordering::Relaxed);
            let_go(watch);
        }
    }
}

/// A question that has come.
#[derive(Debug)]
pub(super) struct Asked(Question);

fn let_go(watch: Arc<Watch>) {
    if let Some(Watch { dead_letters, answer }) = Arc::into_inner(watch) {
        // The asker may have gone.
        let _ = answer.send(dead_letters.into_inner());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use futures_util::future::BoxFuture;

    /// A watcher's question about these records, asked already.
    fn ask(watcher: &Watcher, fresh: std::ops::Range<u64>, earlier: &[u64]) -> BoxFuture<'static, Option<usize>> {
        let (watcher, placed) = (watcher.clone(), Arc::new(Placed { fresh, earlier: earlier.to_vec() }));
        let mut asked = async move { watcher.settled(placed).await }.boxed();
        assert!((&mut asked).now_or_never().is_none());
        asked
    }

    /// The loop takes what was asked, and has settled everything below `settled`.
    fn take(watches: &mut Watches, settled: u64) {
        let asked = watches.asked().now_or_never().flatten().expect("a question");
        watches.take(asked, |offset| if offset < settled { Progress::Settled } else { Progress::Open });
    }

    #[test]
    fn it_is_answered_when_the_last_of_its_records_is_settled() {
        let (watcher, mut watches) = watches();
        let mut all = ask(&watcher, 10..13, &[2, 11]);
        let mut one = ask(&watcher, 13..14, &[]);
        take(&mut watches, 10);
        // Whatever waits in front of it.
        watches.settled(13, false);
        assert_eq!((&mut one).now_or_never(), Some(Some(0)));
        for offset in [12, 10] {
            watches.settled(offset, false);
            assert_eq!((&mut all).now_or_never(), None);
        }
        watches.settled(11, false);
        assert_eq!((&mut all).now_or_never(), Some(Some(0)));
        assert!(watches.waiting.is_empty());
    }

    #[test]
    fn dead_letters_are_told_also_to_who_asks_later() {
        let (watcher, mut watches) = watches();
        let mut first = ask(&watcher, 0..2, &[]);
        take(&mut watches, 0);
        watches.settled(0, true);
        watches.settled(1, false);
        assert_eq!((&mut first).now_or_never(), Some(Some(1)));
        let mut again = ask(&watcher, 2..2, &[0, 1]);
        take(&mut watches, 2);
        assert_eq!((&mut again).now_or_never(), Some(Some(1)));
        (0..2 * DEAD_LETTERS as u64).for_each(|offset| watches.settled(offset, true));
        assert_eq!(watches.dead_letters.len(), DEAD_LETTERS);
    }

    #[test]
    fn who_has_gone_takes_no_memory() {
        let (watcher, mut watches) = watches();
        let mut last = None;
        for offset in 0..100 * TIDY as u64 {
            last = Some(ask(&watcher, offset..offset + 1, &[]));
            take(&mut watches, 0);
            assert!(watches.waiting.len() <= TIDY);
        }
        watches.settled(100 * TIDY as u64 - 1, false);
        assert_eq!(last.and_then(FutureExt::now_or_never), Some(Some(0)));
    }

    #[test]
    fn a_loop_that_ends_does_not_answer() {
        let (watcher, mut watches) = watches();
        let (taken, late) = (ask(&watcher, 0..1, &[]), ask(&watcher, 1..2, &[]));
        take(&mut watches, 0);
        drop(watches);
        assert_eq!((taken.now_or_never(), late.now_or_never()), (Some(None), Some(None)));
        let placed = Arc::new(Placed::default());
        assert_eq!(watcher.settled(placed).now_or_never(), Some(None));
    }
}
