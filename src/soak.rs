//! The conservation test: sends synthetic conversations to a running bridge, consumes every destination, and compares.
//!
//! ```text
//! load ─ HTTP ─▶ bridge ─▶ Kafka | NATS | stdout ─▶ consume ─▶ observer ─▶ oracle ─▶ report
//!   └── sent and acknowledged events ─────────────────────────────▶┘
//! ```
//!
//! Bridge, destinations and network may fail during the run; that is the purpose. Memory grows with conversations, not with events.

pub mod consume;
pub mod generator;
pub mod latency;
pub mod load;
pub mod observer;
pub mod oracle;
pub mod report;

use crate::config::Config;
use crate::event::Arrival;
use consume::{Lines, consume};
use futures_util::future::try_join_all;
use generator::Generator;
use load::{Counts, Load, Phase, Sent, Unusable, send};
use observer::Observer;
use parking_lot::Mutex;
use report::Report;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch as channel;
use tokio::time::{Instant, interval};

/// How often progress is reported.
const TELL: Duration = Duration::from_millis(100);
/// Duplicates may arrive after all events have arrived.
const LINGER: Duration = Duration::from_secs(1);

/// The settings of a run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How much to send where.
    pub load: Load,
    /// The sinks to observer.
    pub sinks: Vec<String>,
    /// The seed of the events.
    pub seed: u64,
    /// How long to wait for missing events after the last one was sent.
    pub settle: Duration,
    /// Where the bridge's stdout can be read, if a sink writes there.
    pub stdout: Option<Lines>,
}

/// The progress of a run.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Since the beginning.
    pub elapsed: Duration,
    /// Sent events.
    pub counts: Counts,
    /// Why nothing is acknowledged now.
    pub last_error: Option<String>,
    /// Each sink with its arrived events, and its acknowledged events that are missing.
    pub sinks: Vec<(String, u64, u64)>,
}

/// The error of a run without a verdict.
#[derive(Debug, thiserror::Error)]
pub enum SoakError {
    /// The location of the bridge's stdout is not given, and this sink writes there.
    #[error(
        "sink `{0}` writes to the stdout of the bridge, which only you can get at: redirect it to a file and give that as --stdout-from FILE, or pipe it into this command and say --stdout-from -, or choose other sinks with --sink"
    )]
    StdoutUnknown(String),
    /// The settings of this sink are wrong: name and cause.
    #[error("`sinks.{0}`: {1}")]
    Setup(String, String),
    /// The destination of this sink cannot be read, so nothing was sent: name and cause.
    #[error("sink `{0}`: its destination cannot be read, so nothing was sent: {1}")]
    Unreadable(String, String),
    /// Stopped before the destinations answered.
    #[error("stopped before anything was sent")]
    Stopped,
    /// The server at the URL is no bridge, or refuses these events.
    #[error("{0}; is that the bridge's `ingress.listen` and `ingress.path`?")]
    Unusable(#[from] Unusable),
}

/// Runs the plan against the bridge that runs with `config`. Once `stop` resolves, no more events are sent, and missing ones are awaited.
pub async fn run(
    config: &Config,
    plan: Plan,
    stop: impl Future<Output = ()>,
    mut report_progress: impl FnMut(&Progress),
) -> Result<Report, SoakError> {
    let began = Instant::now();
    let generator = Arc::new(Generator::new(plan.seed, fastrand::u64(..), Arrival::now().0, plan.load.events));
    let chosen = || config.sinks.iter().filter(|(name, _)| plan.sinks.contains(name));
    let observer = |(name, sink): (&String, _)| {
        let observer = Observer::new(name, sink, generator.clone(), began);
        observer.map(Arc::new).map_err(|error| setup(name, error))
    };
    let observers = chosen().map(observer).collect::<Result<Vec<_>, _>>()?;
    let consumers = observers.iter().zip(chosen());
    let consumers =
        consumers.map(|(observer, (_, sink))| consume(observer.clone(), &*sink.destination, plan.stdout.as_ref()));
    let mut stop = std::pin::pin!(stop);
    let consumers = tokio::select! {
        consumers = try_join_all(consumers) => consumers?,
        () = &mut stop => return Err(SoakError::Stopped),
    };

    let (sent, (phase, phases)) = (Arc::new(Mutex::new(Sent::default())), channel::channel(Phase::Sending));
    let first = Instant::now();
    let load = send(plan.load.clone(), generator.clone(), observers.clone(), began, sent.clone(), phases);
    let mut load = std::pin::pin!(load);
    let mut ticks = interval(TELL);
    let (mut told_to_stop, mut all_sent) = (false, false);
    let (mut stopped, mut all_there) = (None, None);
    loop {
        tokio::select! {
            result = &mut load, if !all_sent => {
                result?;
                all_sent = true;
                stopped.get_or_insert_with(Instant::now);
            }
            () = &mut stop, if !told_to_stop => {
                told_to_stop = true;
                phase.send_replace(Phase::Finishing);
                stopped.get_or_insert_with(Instant::now);
            }
            _ = ticks.tick() => {
                if stopped.is_none() && first.elapsed() >= plan.load.duration {
                    stopped = Some(Instant::now());
                }
                report_progress(&progress(&sent.lock(), &observers, first));
                let complete = all_sent && observers.iter().all(|observer| observer.missing() == 0);
                all_there = complete.then(|| all_there.unwrap_or_else(Instant::now));
                if all_there.is_some_and(|since: Instant| since.elapsed() >= LINGER) {
                    break;
                }
                if stopped.is_some_and(|since: Instant| since.elapsed() >= plan.settle) {
                    phase.send_replace(Phase::Over);
                    if all_sent {
                        break;
                    }
                }
            }
        }
    }
    let duration = stopped.unwrap_or(first).duration_since(first);
    let sinks = observers.iter().map(|observer| observer.report(&config.spool.path)).collect();
    let report = Report::new(&plan, generator.run(), duration, &sent.lock(), sinks);
    // Some of these wait for threads to end.
    let _ = tokio::task::spawn_blocking(move || drop(consumers)).await;
    Ok(report)
}

/// A problem of a sink's settings.
fn setup(sink: &str, cause: impl fmt::Display) -> SoakError {
    SoakError::Setup(sink.to_owned(), cause.to_string())
}

fn progress(sent: &Sent, observers: &[Arc<Observer>], first: Instant) -> Progress {
    Progress {
        elapsed: first.elapsed(),
        counts: sent.counts,
        last_error: sent.last_error.clone(),
        sinks: observers
            .iter()
            .map(|observer| (observer.name().to_owned(), observer.delivered(), observer.missing()))
            .collect(),
    }
}
