//! Turns of the connections of a crowd: few are served at a time, and the others wait for theirs in the order in which they came.
//!
//! What few requests take stays near the processor, and more at a time are not served faster by it. Where it has time left, as those who
//! have their turn wait for a disk, more are served at a time; and nobody is held up for long. Who waits has no timer and no place in a list
//! of its own: of ten thousand connections each is far from the processor, and to touch its neighbours costs as much as to serve it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

/// How many connections have their turn at a time at the least and at the most, and how many more or less at once.
const FEW: usize = 64;
const MANY: usize = 512;
const MORE: usize = 64;
const LESS: usize = 16;
/// How often that is looked at while somebody waits; which part of the time threads have to be busy for no more to be let in, and
/// from which on there may be fewer.
const LOOK: Duration = Duration::from_millis(10);
const BUSY: f64 = 0.85;
const TOO_BUSY: f64 = 0.95;
/// How long one waits at the most, however many there are.
const LONGEST: Duration = Duration::from_secs(1);

/// Those that are taken and those who wait for one.
#[derive(Debug)]
pub struct Turns {
    state: Mutex<State>,
    /// Somebody waits and nobody did.
    waited: Notify,
}

#[derive(Debug)]
struct State {
    /// How many there may be.
    most: usize,
    /// How many there are: more than that once somebody has waited for too long.
    taken: usize,
    waiting: VecDeque<Waiting>,
    /// The number of the first who waits, or of the next who will.
    first: u64,
}

#[derive(Debug)]
struct Waiting {
    since: Instant,
    /// Nothing if it has gone.
    task: Option<Waker>,
}

/// A turn, which ends when dropped.
#[derive(Debug)]
pub struct Turn<'a>(&'a Turns);

/// Resolves when it is one's turn.
#[derive(Debug)]
pub struct Wait<'a> {
    turns: &'a Turns,
    /// Nothing before it waits, and once it has its turn.
    number: Option<u64>,
}

impl Turns {
    /// Turns that nobody has.
    pub fn new() -> Self {
        let state = State { most: FEW, taken: 0, waiting: VecDeque::new(), first: 0 };
        Self { state: Mutex::new(state), waited: Notify::new() }
    }

    /// Waits for a turn.
    pub fn take(&self) -> Wait<'_> {
        Wait { turns: self, number: None }
    }

    /// Sees to it that nobody waits in vain, for as long as it is awaited.
    pub async fn watch(&self) -> Infallible {
        loop {
            if self.state().waiting.is_empty() {
                self.waited.notified().await;
            }
            let (before, begin) = (busy(), Instant::now());
            sleep(LOOK).await;
            self.look(busy().saturating_sub(before).as_secs_f64() / begin.elapsed().as_secs_f64());
        }
    }

    /// Has more or fewer at a time for as busy as the threads are, and gives a turn to those who have waited for too long.
    fn look(&self, busy: f64) {
        let now = Instant::now();
        let mut state = self.state();
        state.most = match busy {
            ..BUSY => (state.most + MORE).min(MANY),
            TOO_BUSY.. => (state.most - LESS).max(FEW),
            _ => state.most,
        };
        while state.waiting.front().is_some_and(|first| first.since + LONGEST <= now) {
            if let Some(task) = state.next() {
                task.wake();
            }
        }
        state.give();
    }

    /// One has ended.
    fn end(&self) {
        let mut state = self.state();
        state.taken -= 1;
        state.give();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For how long all threads together have been busy, as a part of the time that there is.
fn busy() -> Duration {
    let metrics = Handle::current().metrics();
    let workers = metrics.num_workers();
    (0..workers).map(|worker| metrics.worker_total_busy_duration(worker)).sum::<Duration>() / workers as u32
}

impl State {
    /// Gives those who wait the turns that are free.
    fn give(&mut self) {
        while self.taken < self.most && !self.waiting.is_empty() {
            if let Some(task) = self.next() {
                task.wake();
            }
        }
    }

    /// It is the turn of the first who waits; nothing if it has gone.
    fn next(&mut self) -> Option<Waker> {
        let next = self.waiting.pop_front()?;
        self.first += 1;
        self.taken += usize::from(next.task.is_some());
        next.task
    }

    /// Who waits under this number; nobody any more if it was given its turn.
    fn waiting(&mut self, number: u64) -> Option<&mut Waiting> {
        self.waiting.get_mut(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }
}

impl<'a> Future for Wait<'a> {
    type Output = Turn<'a>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Turn<'a>> {
        let turns = self.turns;
        let mut state = turns.state();
        let Some(number) = self.number else {
            if state.taken < state.most {
                state.taken += 1;
                return Poll::Ready(Turn(turns));
            }
            self.number = Some(state.first + state.waiting.len() as u64);
            if state.waiting.is_empty() {
                turns.waited.notify_one();
            }
            state.waiting.push_back(Waiting { since: Instant::now(), task: Some(cx.waker().clone()) });
            return Poll::Pending;
        };
        match state.waiting(number) {
            None => {
                self.number = None;
                Poll::Ready(Turn(turns))
            }
            Some(waiting) => {
                if waiting.task.as_ref().is_none_or(|task| !task.will_wake(cx.waker())) {
                    waiting.task = Some(cx.waker().clone());
                }
                Poll::Pending
            }
        }
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let Some(number) = self.number else { return };
        let mut state = self.turns.state();
        match state.waiting(number) {
            Some(waiting) => waiting.task = None,
            // It was given and not taken.
            None => {
                drop(state);
                self.turns.end();
            }
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    fn is_waiting(wait: &mut Wait<'_>) -> bool {
        wait.now_or_never().is_none()
    }

    #[tokio::test]
    async fn turns_are_taken_in_order_and_what_has_gone_is_passed_over() {
        let turns = Turns::new();
        let mut taken = VecDeque::new();
        for _ in 0..FEW {
            taken.push_back(turns.take().await);
        }
        let mut waits: Vec<_> = (0..5).map(|_| turns.take()).collect();
        assert!(waits.iter_mut().all(is_waiting));
        taken.pop_front();
        assert!(waits[1..].iter_mut().all(is_waiting));
        let third = waits.remove(0).await;
        drop(waits.remove(0));
        taken.pop_front();
        assert!(waits[1..].iter_mut().all(is_waiting));
        // It was given its turn and has gone before it took it.
        drop(waits.remove(0));
        let fourth = waits.remove(0).await;
        assert!(waits.iter_mut().all(is_waiting));
        drop((third, fourth));
        let fifth = waits.remove(0).await;
        let sixth = turns.take().await;
        assert!(is_waiting(&mut turns.take()) && waits.is_empty());
        drop((fifth, sixth, taken));
        assert_eq!(turns.state().taken, 0);
    }

    /// Takes those turns that have come.
    fn take_all<'a>(waits: &mut Vec<Wait<'a>>, taken: &mut VecDeque<Turn<'a>>) {
        waits.retain_mut(|wait| match wait.now_or_never() {
            Some(turn) => {
                taken.push_back(turn);
                false
            }
            None => true,
        });
    }

    #[tokio::test(start_paused = true)]
    async fn more_are_let_in_where_there_is_time_and_nobody_waits_for_longer_than_a_second() {
        let turns = Turns::new();
        let scene = async {
            let mut waits: Vec<_> = (0..MANY + 100).map(|_| turns.take()).collect();
            let mut taken = VecDeque::new();
            take_all(&mut waits, &mut taken);
            assert_eq!(taken.len(), FEW);
            taken.pop_front();
            take_all(&mut waits, &mut taken);
            assert_eq!(taken.len(), FEW);
            // On a clock that goes by itself nobody is ever busy.
            sleep(LONGEST / 2).await;
            take_all(&mut waits, &mut taken);
            assert_eq!(taken.len(), MANY);
            sleep(LONGEST).await;
            take_all(&mut waits, &mut taken);
            assert!(taken.len() == MANY + 99 && waits.is_empty());
            // What was given beyond is not given again.
            waits.push(turns.take());
            taken.drain(..99);
            take_all(&mut waits, &mut VecDeque::new());
            assert_eq!(waits.len(), 1);
            taken.pop_front();
            take_all(&mut waits, &mut taken);
            assert!(waits.is_empty());
        };
        tokio::select! {
            never = turns.watch() => match never {},
            () = scene => {}
        }
        assert_eq!(turns.state().taken, 0);
    }

    #[tokio::test]
    async fn there_are_fewer_again_once_all_are_busy() {
        let turns = Turns::new();
        let most = |busy, times| {
            (0..times).for_each(|_| turns.look(busy));
            turns.state().most
        };
        assert_eq!(most(0.5, 3), FEW + 3 * MORE);
        assert_eq!(most(0.9, 3), FEW + 3 * MORE);
        assert_eq!(most(0.97, 2), FEW + 3 * MORE - 2 * LESS);
        assert_eq!((most(0.97, 100), most(0.0, 100)), (FEW, MANY));
    }
}
