//! What the promises are tested with: the real binary, real brokers, and patience with a limit.
//!
//! - [`Bridge`], the cdrelay binary in a directory of its own, with an HTTP client for its two ports.
//! - [`kafka`], the shared Kafka, private ones to break, topics, consumers.
//! - [`nats`], the same for NATS.
//! - [`chart`], Helm and what checks its objects.
//! - [`fault`], what tests of a fault have in common.
//! - [`oracle`], a load whose every event is accounted for.
//! - [`prometheus`], which judges metrics, alerts and the dashboard.
//! - [`platform`], the lists of calls that reconciliations read.
//! - [`proxy`], a network between bridge and broker that can be made bad.
//! - [`raw`], HTTP by hand.
//! - [`small_disk`], a file system that can be filled.
//! - [`tls`], certificates, and a client that speaks TLS.
//! - [`eventually`], [`until`], which wait for a condition, never for a time.

pub mod bridge;
pub mod chart;
pub mod fault;
pub mod kafka;
pub mod nats;
pub mod oracle;
pub mod platform;
pub mod process;
pub mod prometheus;
pub mod proxy;
pub mod raw;
pub mod small_disk;
pub mod tls;

use std::net::TcpListener;
use std::time::Duration;

use tokio::time::{Instant, sleep};

pub use bridge::{ANY_PORTS, Bridge, STDOUT};

/// Long enough for anything that works to be done on a slow and busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` holds. Panics, naming `what`, when it does not within the time.
pub async fn eventually(within: Duration, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    until(within, what, async || condition().await.then_some(())).await;
}

/// Waits until `attempt` brings something. Panics, naming `what`, when it does not within the time.
pub async fn until<T>(within: Duration, what: &str, mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(found) = attempt().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// A loopback port that nobody listens on.
///
/// Not one the system would hand out by itself: a server that is down for a while must find its port free when it comes back, and
/// a client that knocks on it meanwhile could otherwise be given that very port as its own, and talk to itself.
pub fn free_port() -> u16 {
    loop {
        let port = fastrand::u16(20_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
