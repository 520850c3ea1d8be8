//! When requests are due in an open loop.

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Requests that are due and that no connection has begun with.
pub struct Due {
    since: RefCell<VecDeque<Instant>>,
    ready: Semaphore,
}

impl Due {
    pub fn new() -> Self {
        Self { since: RefCell::default(), ready: Semaphore::new(0) }
    }

    /// Waits for the next request, and returns since when it is due. `None` when there are no more to come.
    pub async fn next(&self) -> Option<Instant> {
        // Once the last one has come there are no more permits, but what is left of them is to be sent nevertheless.
        if let Ok(one) = self.ready.acquire().await {
            one.forget();
        }
        self.since.borrow_mut().pop_front()
    }

    /// Brings `rate` requests in a second, from `start` until `end`. Returns by how much each of them came late, in microseconds,
    /// ascending: that much of a latency is the load's own.
    pub async fn bring(&self, rate: f64, start: Instant, end: Instant) -> Vec<u32> {
        let timer = Timer::new();
        let mut late = Vec::new();
        let due = |number: u64| start + Duration::from_secs_f64(number as f64 / rate);
        for due in (0..).map(due).take_while(|due| *due < end) {
            timer.sleep_until(due).await;
            late.push(due.elapsed().as_micros() as u32);
            self.since.borrow_mut().push_back(due);
            self.ready.add_permits(1);
        }
        self.ready.close();
        late.sort_unstable();
        late
    }
}

/// A timer of the kernel: those of tokio are a millisecond apart.
struct Timer(AsyncFd<OwnedFd>);

impl Timer {
    #[expect(
        deprecated,
        reason = "what is to take its place is unsafe, for the sake of types that close what they hold"
    )]
    fn new() -> Self {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC).unwrap();
        Self(AsyncFd::new(timer).unwrap())
    }

    async fn sleep_until(&self, due: Instant) {
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let once = Itimerspec { it_interval: zero, it_value: left };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once).unwrap();
        let mut rung = self.0.readable().await.unwrap();
        rustix::io::read(&self.0, &mut [0; 8]).unwrap();
        rung.clear_ready();
    }
}
