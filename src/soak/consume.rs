//! Reads the messages at the destinations, from the position before the first event was sent.

mod kafka;
mod nats;
mod stdout;

use super::SoakError;
use super::observer::Observer;
use crate::sink;
use crate::sink::Destination;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// How long a destination may take to say where it stands.
const START: Duration = Duration::from_secs(30);
/// How long a thread may take to notice that it is no longer wanted.
const END: Duration = Duration::from_secs(2);

/// Where the lines of a bridge's stdout can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lines {
    /// A file that is being written, or a named pipe.
    File(PathBuf),
    /// This process's own stdin.
    Stdin,
}

/// A consumer of one destination. Stops when dropped.
pub struct Consumer {
    ended: Ended,
    tasks: Vec<JoinHandle<()>>,
}

/// Whether reading is to end.
#[derive(Clone, Default)]
struct Ended(Arc<AtomicBool>);

impl Ended {
    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Finds out where the destination stands, and reads on from there in the background.
pub async fn consume(
    observer: Arc<Observer>,
    destination: &dyn Destination,
    stdout: Option<&Lines>,
) -> Result<Consumer, SoakError> {
    if let Some(config) = destination.settings::<sink::kafka::Config>() {
        return kafka::consume(observer, config).await;
    }
    if let Some(config) = destination.settings::<sink::nats::Config>() {
        return nats::consume(observer, config).await;
    }
    if destination.settings::<sink::stdout::Config>().is_none() {
        let cause = format!("sinks of type `{}` cannot be read", destination.type_name());
        return Err(unreadable(&observer, cause));
    }
    match stdout {
        Some(lines) => stdout::consume(observer, lines).await,
        None => Err(SoakError::StdoutUnknown(observer.name().to_owned())),
    }
}

/// Why the sink's destination cannot be read.
fn unreadable(observer: &Observer, cause: impl std::fmt::Display) -> SoakError {
    SoakError::Unreadable(observer.name().to_owned(), cause.to_string())
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.ended.0.store(true, Ordering::Relaxed);
        self.tasks.iter().for_each(JoinHandle::abort);
        // A client library's threads should not run into the end of the process.
        let deadline = Instant::now() + END;
        while !self.tasks.iter().all(JoinHandle::is_finished) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
