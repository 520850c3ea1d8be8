//! Destinations that do as a test wants.

use super::*;

/// Takes every message and answers for none.
#[derive(Default)]
pub struct Silent {
    pub taken: AtomicUsize,
    /// What it was handed, if it takes messages that way.
    pub handed: Option<Mutex<Vec<Pending>>>,
}

impl Sink for Silent {
    fn hand_over(&self, _: &Message, pending: Pending) -> Option<Pending> {
        let Some(handed) = &self.handed else { return Some(pending) };
        handed.lock().unwrap().push(pending);
        self.taken.fetch_add(1, Ordering::Relaxed);
        None
    }

    async fn publish(&self, _: &Message) -> Result<(), Failure> {
        self.taken.fetch_add(1, Ordering::Relaxed);
        std::future::pending().await
    }

    async fn probe(&self) -> Result<(), Failure> {
        Ok(())
    }

    async fn close(&self) {}
}

/// Answers only for what the test lets go, in the test's order.
#[derive(Default)]
pub struct Manual {
    pub waiting: Mutex<Vec<(String, Waiting<Failure>)>>,
    pub another: Notify,
    /// Whether it takes messages that it is handed.
    pub takes: bool,
}

impl Manual {
    /// Waits until it has `payload`, and acknowledges it.
    pub async fn acknowledge(&self, payload: &str) {
        self.waiting(payload).await.tell(Ok(()));
    }

    /// Waits until it has `payload`, and gives up who waits for it.
    pub async fn waiting(&self, payload: &str) -> Waiting<Failure> {
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

    pub fn add(&self, message: &Message, waiting: Waiting<Failure>) {
        let payload = String::from_utf8(message.payload().to_vec()).unwrap();
        self.waiting.lock().unwrap().push((payload, waiting));
        self.another.notify_one();
    }
}

impl Sink for Manual {
    fn hand_over(&self, message: &Message, pending: Pending) -> Option<Pending> {
        if !self.takes {
            return Some(pending);
        }
        self.add(message, Waiting::Handed(pending));
        None
    }

    async fn publish(&self, message: &Message) -> Result<(), Failure> {
        let (waiting, answered) = oneshot::channel();
        self.add(message, Waiting::Published(waiting));
        answered.await.unwrap_or_else(|_| Err(Failure::unavailable("gone")))
    }

    async fn probe(&self) -> Result<(), Failure> {
        Ok(())
    }

    async fn close(&self) {}
}

/// Answers for what it was handed when it learns that no more comes.
#[derive(Default)]
pub struct Flushed {
    pub handed: Mutex<Vec<Pending>>,
    pub flushes: AtomicUsize,
}

impl Sink for Flushed {
    fn hand_over(&self, _: &Message, pending: Pending) -> Option<Pending> {
        self.handed.lock().unwrap().push(pending);
        None
    }

    fn flush(&self) {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        Pending::all_delivered(self.handed.lock().unwrap().drain(..));
    }

    async fn publish(&self, _: &Message) -> Result<(), Failure> {
        panic!("it takes what it is handed");
    }

    async fn probe(&self) -> Result<(), Failure> {
        Ok(())
    }

    async fn close(&self) {}
}

/// Cannot be reached the first few times.
#[derive(Default)]
pub struct Flaky {
    pub attempts: AtomicUsize,
    pub taken: Mutex<Vec<String>>,
}

pub const FAILURES: usize = 4;

impl Sink for Flaky {
    async fn publish(&self, message: &Message) -> Result<(), Failure> {
        let failed = self.attempts.fetch_add(1, Ordering::Relaxed) < FAILURES;
        if !failed {
            self.taken.lock().unwrap().push(String::from_utf8(message.payload().to_vec()).unwrap());
        }
        if failed { Err(Failure::unavailable("down")) } else { Ok(()) }
    }

    async fn probe(&self) -> Result<(), Failure> {
        Ok(())
    }

    async fn close(&self) {}
}

/// Answers for all messages at once, and counts how often it was asked whether it has.
#[derive(Default)]
pub struct AtOnce {
    pub waiting: Mutex<Vec<oneshot::Sender<()>>>,
    pub asked: AtomicUsize,
}

impl Sink for AtOnce {
    async fn publish(&self, _: &Message) -> Result<(), Failure> {
        let (answer, mut answered) = oneshot::channel();
        self.waiting.lock().unwrap().push(answer);
        let answered = std::future::poll_fn(|context| {
            self.asked.fetch_add(1, Ordering::Relaxed);
            answered.poll_unpin(context)
        });
        answered.await.map_err(|_| Failure::unavailable("gone"))
    }

    async fn probe(&self) -> Result<(), Failure> {
        Ok(())
    }

    async fn close(&self) {}
}

/// Acknowledges every message at once, and notes when it came.
#[derive(Default)]
pub struct Timed {
    pub taken: Mutex<Vec<Instant>>,
    pub another: Notify,
}

impl Timed {
    pub fn count(&self) -> usize {
        self.taken.lock().unwrap().len()
    }

    pub async fn taken(&self, count: usize) -> Vec<Instant> {
        while self.count() < count {
            self.another.notified().await;
        }
        self.taken.lock().unwrap().clone()
    }
}

impl Sink for Timed {
    async fn publish(&self, _: &Message) -> Result<(), Failure> {
        self.taken.lock().unwrap().push(Instant::now());
        self.another.notify_one();
        Ok(())
    }

    async fn probe(&self) -> Result<(), Failure> {
        Ok(())
    }

    async fn close(&self) {}
}
