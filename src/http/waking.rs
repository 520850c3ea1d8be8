//! What wakes a connection's task, so that it is not woken in vain.
//!
//! hyper has the task woken whenever a piece of a request's body is taken, to look for the next, and for most requests that piece is
//! the whole body: each would cost its connection one turn more.

use std::cell::RefCell;
use std::sync::Arc;
use std::task::{Wake, Waker};

thread_local! {
    /// What is not woken for now, if that is held back, and was to be.
    static HELD: RefCell<Option<Held>> = const { RefCell::new(None) };
}

/// What was to be woken.
#[derive(Default)]
pub struct Held(Option<Waker>);

impl Held {
    /// Wakes it after all.
    pub fn release(self) {
        if let Some(task) = self.0 {
            task.wake();
        }
    }
}

/// Does something, in which no task of a connection is woken by this thread through a waker of [`Waking`], and says which was to be.
pub fn hold<T>(work: impl FnOnce() -> T) -> (T, Held) {
    /// Also when it panics: then it is woken, and nothing is held back any longer.
    struct Holding;
    impl Drop for Holding {
        fn drop(&mut self) {
            if let Some(held) = HELD.take() {
                held.release();
            }
        }
    }
    HELD.set(Some(Held::default()));
    let holding = Holding;
    let done = work();
    let held = HELD.take().unwrap_or_default();
    drop(holding);
    (done, held)
}

/// Wakes a task, unless that is held back.
#[derive(Default)]
pub struct Waking {
    /// The task's own waker, and the one that goes by it.
    wakers: Option<(Waker, Waker)>,
}

impl Waking {
    /// A waker in place of `task`, the same for the same one.
    pub fn by(&mut self, task: &Waker) -> &Waker {
        let known = self.wakers.take().filter(|(known, _)| known.will_wake(task));
        &self.wakers.insert(known.unwrap_or_else(|| (task.clone(), Arc::new(Task(task.clone())).into()))).1
    }
}

struct Task(Waker);

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let held = HELD.with_borrow_mut(|held| held.as_mut().map(|held| held.0 = Some(self.0.clone())).is_some());
        if !held {
            self.0.wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn what_is_held_back_is_woken_when_it_is_released_and_by_others() {
        let (first, second) = (Arc::<Count>::default(), Arc::<Count>::default());
        let woken = || [&first, &second].map(|count| count.0.load(Ordering::Relaxed));
        let mut waking = Waking::default();
        let task = Waker::from(first.clone());
        let waker = waking.by(&task).clone();
        assert!(waking.by(&task).will_wake(&waker));
        waker.wake_by_ref();
        assert_eq!(woken(), [1, 0]);

        let ((), held) = hold(|| waker.wake_by_ref());
        assert_eq!(woken(), [1, 0]);
        held.release();
        assert_eq!(woken(), [2, 0]);
        drop(hold(|| waker.wake_by_ref()));
        assert_eq!(woken(), [2, 0]);
        hold(|| {}).1.release();
        waker.wake_by_ref();
        assert_eq!(woken(), [3, 0]);

        // Another thread holds nothing back.
        drop(hold(|| std::thread::scope(|scope| scope.spawn(|| waker.wake_by_ref()).join()).unwrap()));
        assert_eq!(woken(), [4, 0]);

        // A panic wakes, and holds back nothing that comes behind it.
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            hold(|| {
                waker.wake_by_ref();
                panic!("on purpose");
            })
        }));
        assert!(panicked.is_err());
        assert_eq!(woken(), [5, 0]);
        waker.wake_by_ref();
        assert_eq!(woken(), [6, 0]);

        let other = Waker::from(second.clone());
        waking.by(&other).wake_by_ref();
        assert_eq!(woken(), [6, 1]);
    }
}
