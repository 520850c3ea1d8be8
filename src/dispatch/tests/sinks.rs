//! Destinations that do as a test wants.

use super::*;
use futures_util::future::BoxFuture;

/// Takes every message and answers for none.
#[derive(Default)]
pub struct Silent {
    pub taken: AtomicUsize,
}

impl Sink for Silent {
    fn publish<'a>(&'a self, _: &'a Message) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            self.taken.fetch_add(1, Ordering::Relaxed);
            std::future::pending().await
        })
    }

    fn probe(&self) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(async { Ok(()) })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

/// What a publish waits for.
pub type Answer = oneshot::Sender<Result<(), Failure>>;

/// Answers only for what the test lets go, in the test's order.
#[derive(Default)]
pub struct Manual {
    pub waiting: Mutex<Vec<(String, Answer)>>,
    pub another: Notify,
}

impl Manual {
    /// Waits until `payload` is published, and acknowledges it.
    pub async fn acknowledge(&self, payload: &str) {
        self.waiting(payload).await.send(Ok(())).unwrap();
    }

    /// Waits until `payload` is published, and returns the channel for its result.
    pub async fn waiting(&self, payload: &str) -> Answer {
        let found = || {
            let mut waiting = self.waiting.lock().unwrap();
            waiting.iter().position(|(held, _)| held == payload).map(|place| waiting.remove(place).1)
        };
        let there = async {
            loop {
                match found() {
                    Some(waiting) => return waiting,
                    None => self.another.notified().await,
                }
            }
        };
        tokio::time::timeout(PATIENCE, there).await.expect("it comes")
    }
}

impl Sink for Manual {
    fn publish<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let (waiting, answered) = oneshot::channel();
            let payload = String::from_utf8(message.payload().to_vec()).unwrap();
            self.waiting.lock().unwrap().push((payload, waiting));
            self.another.notify_one();
            answered.await.unwrap_or_else(|_| Err(Failure::unavailable("gone")))
        })
    }

    fn probe(&self) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(async { Ok(()) })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

/// Cannot be reached the first few times.
#[derive(Default)]
pub struct Flaky {
    pub attempts: AtomicUsize,
    pub taken: Mutex<Vec<String>>,
}

pub const FAILURES: usize = 4;

impl Sink for Flaky {
    fn publish<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let failed = self.attempts.fetch_add(1, Ordering::Relaxed) < FAILURES;
            if !failed {
                self.taken.lock().unwrap().push(String::from_utf8(message.payload().to_vec()).unwrap());
            }
            if failed { Err(Failure::unavailable("down")) } else { Ok(()) }
        })
    }

    fn probe(&self) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(async { Ok(()) })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

/// Acknowledges every message at once.
#[derive(Default)]
pub struct Counting(pub AtomicUsize);

impl Sink for Counting {
    fn publish<'a>(&'a self, _: &'a Message) -> BoxFuture<'a, Result<(), Failure>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { Ok(()) })
    }

    fn probe(&self) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(async { Ok(()) })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}
