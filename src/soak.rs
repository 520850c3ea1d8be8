//! Puts a running bridge to the test: sends synthetic conversations, reads what comes out at every destination, and judges it.
//!
//! ```text
//! load ─ HTTP ─▶ bridge ─▶ Kafka | NATS | stdout ─▶ follow ─▶ watch ─▶ oracle ─▶ report
//!   └── what is sent, and what of it is acknowledged ───────────▶┘
//! ```
//!
//! The bridge, its destinations and the way to them may fail meanwhile: that is what it is for. Memory does not grow with events, only
//! with conversations.

pub mod follow;
pub mod latency;
pub mod load;
pub mod oracle;
pub mod report;
pub mod script;
pub mod tls;
pub mod watch;

use crate::config::Config;
use crate::event::Arrival;
use crate::route::RouteError;
use follow::{Lines, follow};
use futures_util::future::try_join_all;
use load::{Load, Phase, Sent, Unusable, send};
use report::Report;
use script::Script;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::watch as channel;
use tokio::time::{Instant, interval};
use watch::Watch;

/// How often the one who watches is told.
const TELL: Duration = Duration::from_millis(100);
/// Duplicates may come after everything has come.
const LINGER: Duration = Duration::from_secs(1);

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How much to send where.
    pub load: Load,
    /// The sinks to watch.
    pub sinks: Vec<String>,
    /// What the events are made from.
    pub seed: u64,
    /// After the last event was sent, how long to wait for what has not come.
    pub settle: Duration,
    /// Where the bridge's stdout can be read, if a sink writes there.
    pub stdout: Option<Lines>,
}

/// How far it is.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Since the beginning.
    pub elapsed: Duration,
    /// Whether events are still being sent.
    pub sending: bool,
    /// Acknowledged events.
    pub accepted: u64,
    /// Attempts that were not acknowledged.
    pub refused: u64,
    /// Why nothing is acknowledged now.
    pub trouble: Option<String>,
    /// Each sink with what has come, and what was acknowledged and has not.
    pub sinks: Vec<(String, u64, u64)>,
}

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
pub enum SoakError {
    /// Nobody says where the bridge's stdout is.
    #[error(
        "sink `{sink}` writes to the stdout of the bridge, which only you can get at: redirect it to a file and give that as --stdout-from FILE, or pipe it into this command and say --stdout-from -, or choose other sinks with --sink"
    )]
    StdoutUnknown {
        /// The sink.
        sink: String,
    },
    /// A sink's settings are wrong.
    #[error("`sinks.{sink}`: {cause}")]
    Setup {
        /// The sink.
        sink: String,
        /// What is wrong.
        cause: String,
    },
    /// A destination did not say where it stands, so nothing was sent.
    #[error("sink `{sink}`: its destination cannot be read, so nothing was sent: {cause}")]
    Unreadable {
        /// The sink.
        sink: String,
        /// Why.
        cause: String,
    },
    /// Told to stop while the destinations were being asked where they stand.
    #[error("stopped before anything was sent")]
    Stopped,
    /// What listens at the URL is no bridge, or refuses these events.
    #[error("{0}; is that the bridge's `ingress.listen` and `ingress.path`?")]
    Unusable(#[from] Unusable),
}

/// Runs the plan against the bridge that runs with `config`. Once `stop` resolves, nothing more is sent, and what was is waited for.
pub async fn run(
    config: &Config,
    plan: Plan,
    stop: impl Future<Output = ()>,
    mut tell: impl FnMut(&Standing),
) -> Result<Report, SoakError> {
    let began = Instant::now();
    let script = Arc::new(Script::new(plan.seed, fastrand::u64(..), Arrival::now().0, plan.load.events));
    let chosen = || config.sinks.iter().filter(|(name, _)| plan.sinks.contains(name));
    let watch = |(name, sink)| {
        let setup = |error: RouteError| SoakError::Setup { sink: String::clone(name), cause: error.to_string() };
        Watch::new(name, sink, script.clone(), began).map(Arc::new).map_err(setup)
    };
    let watches = chosen().map(watch).collect::<Result<Vec<_>, _>>()?;
    let followings = watches.iter().zip(chosen());
    let followings =
        followings.map(|(watch, (_, sink))| follow(watch.clone(), &*sink.destination, plan.stdout.as_ref()));
    let mut stop = std::pin::pin!(stop);
    let followings = tokio::select! {
        followings = try_join_all(followings) => followings?,
        () = &mut stop => return Err(SoakError::Stopped),
    };

    let (sent, (phase, phases)) = (Arc::new(Sent::default()), channel::channel(Phase::Sending));
    let first = Instant::now();
    let load = send(plan.load.clone(), script.clone(), watches.clone(), began, sent.clone(), phases);
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
                tell(&standing(&sent, &watches, first, stopped.is_none()));
                let complete = all_sent && watches.iter().all(|watch| watch.missing() == 0);
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
    let sinks = watches.iter().map(|watch| watch.report(&config.spool.path)).collect();
    let report = Report::new(&plan, script.run(), duration, &sent, sinks);
    // Some of these wait for threads to end.
    let _ = tokio::task::spawn_blocking(move || drop(followings)).await;
    Ok(report)
}

fn standing(sent: &Sent, watches: &[Arc<Watch>], first: Instant, sending: bool) -> Standing {
    Standing {
        elapsed: first.elapsed(),
        sending,
        accepted: sent.accepted.load(Ordering::Relaxed),
        refused: sent.refused.load(Ordering::Relaxed),
        trouble: sent.trouble(),
        sinks: watches.iter().map(|watch| (watch.name().to_owned(), watch.delivered(), watch.missing())).collect(),
    }
}
