//! Compares the calls that the platform lists with the webhooks that came, and stores the calls whose webhook never did.
//!
//! ```text
//! platform: list of calls ─ pages ─▶ call ─ known? ─▶ counted
//!                                      └─ missing ─▶ Event ─▶ spool, as a webhook's
//! ```
//!
//! A webhook that was not sent, or sent while nothing listened, leaves no trace here: only the platform's own lists show the call. An
//! element of a list becomes an event byte for byte, behind the members that its list implies. The event does not depend on when it was
//! found, so its `ce_id` is the same in each run and on each bridge. If the webhook comes late after all, it is another event of the same
//! call.
//!
//! Calls that ended a short while ago (`settle`) are left alone. A list that cannot be read to its end does not make the calls found
//! before any less missing: these are stored, and the run counts as failed.

mod call;
mod config;
mod metrics;
mod platform;
mod report;
mod run;

pub use config::{Config, List, Platform};
pub use metrics::Metrics;
pub use report::{ListReport, MissingCall, Report};

use crate::event::Arrival;
use crate::spool::Spool;
use futures_util::future::join_all;
use platform::Client;
use run::Run;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::{MissedTickBehavior, interval};

/// Missing calls of one list in one run with a log line each.
const LOGGED_CALLS: usize = 100;

/// Asks for a run out of turn.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The reconciliation; all of them if there is none.
    pub name: Option<String>,
    /// How far back to look, in milliseconds, in place of `window`.
    pub window_ms: Option<u64>,
    /// Whether missing calls are only reported.
    pub dry_run: bool,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The reports, one for each reconciliation.
    pub reports: Vec<Report>,
    /// Why nothing was done.
    pub error: Option<String>,
}

/// All reconciliations of a bridge.
#[derive(Debug)]
pub struct Reconciliations {
    all: Vec<Reconciliation>,
    spool: Arc<Spool>,
    metrics: Metrics,
}

#[derive(Debug)]
struct Reconciliation {
    name: Arc<str>,
    config: Config,
    /// One run at a time: the platform gets one request at a time.
    running: Mutex<()>,
}

impl Reconciliations {
    /// Those of a configuration. Reads the files they name; an error names the setting.
    pub fn open(configs: &BTreeMap<String, Config>, spool: Arc<Spool>, metrics: Metrics) -> Result<Self, String> {
        check(configs)?;
        let all = configs.iter().map(|(name, config)| {
            metrics.show(name, &config.lists);
            Reconciliation { name: name.as_str().into(), config: config.clone(), running: Mutex::default() }
        });
        Ok(Self { all: all.collect(), spool, metrics })
    }

    /// Runs each of them again and again, until the future is dropped.
    pub async fn repeat(self: Arc<Self>) {
        join_all(self.all.iter().map(|reconciliation| self.repeat_one(reconciliation))).await;
        std::future::pending().await
    }

    async fn repeat_one(&self, reconciliation: &Reconciliation) {
        let Config { every, window, .. } = reconciliation.config;
        if every.is_zero() {
            return;
        }
        let mut turns = interval(every);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            turns.tick().await;
            self.run(reconciliation, window, false).await;
        }
    }

    /// Runs the requested reconciliation, or all of them one after another.
    pub async fn run_now(&self, request: &Request) -> Outcome {
        let asked = |it: &&Reconciliation| request.name.as_deref().is_none_or(|name| name == &*it.name);
        let asked: Vec<_> = self.all.iter().filter(asked).collect();
        if asked.is_empty() {
            let names: Vec<&str> = self.all.iter().map(|reconciliation| &*reconciliation.name).collect();
            let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            let error = match &request.name {
                Some(name) => format!("no reconciliation is called `{name}`; there are: {names}"),
                None => "no reconciliation is configured; add a table [reconcile.NAME]".to_owned(),
            };
            return Outcome { reports: Vec::new(), error: Some(error) };
        }
        let mut outcome = Outcome::default();
        for reconciliation in asked {
            let window = request.window_ms.map_or(reconciliation.config.window, Duration::from_millis);
            outcome.reports.push(self.run(reconciliation, window, request.dry_run).await);
        }
        outcome
    }

    async fn run(&self, reconciliation: &Reconciliation, window: Duration, dry_run: bool) -> Report {
        let _one_at_a_time = reconciliation.running.lock().await;
        let Reconciliation { name, config, .. } = reconciliation;
        let run = Run { name, config, spool: &self.spool, window, dry_run, now: Arrival::now() };
        let report = run.execute().await;
        log(&report, dry_run);
        if !dry_run {
            self.metrics.count(&report, &config.lists);
        }
        report
    }
}

/// Reads the files that reconciliations name. An error names the setting.
pub fn check(configs: &BTreeMap<String, Config>) -> Result<(), String> {
    configs.iter().try_for_each(|(name, config)| {
        Client::open(config).map(drop).map_err(|problem| format!("`reconcile.{name}`: {problem}"))
    })
}

/// Without numbers of parties: those are in the event alone.
fn log(report: &Report, dry_run: bool) {
    let reconcile = &report.reconcile;
    for ListReport { list, listed, known, missing, added, errors, calls } in &report.lists {
        let list = list.name();
        if !dry_run {
            for MissingCall { id, time, age_seconds, .. } in calls.iter().take(LOGGED_CALLS) {
                tracing::warn!(reconcile, list, id, time, age_seconds, "the webhook of a call never came");
            }
            let unnamed = missing.saturating_sub(LOGGED_CALLS as u64);
            if unnamed > 0 {
                tracing::warn!(reconcile, list, calls = unnamed, "the webhooks of further calls never came");
            }
        }
        tracing::info!(reconcile, list, listed, known, missing, added, dry_run, "list of calls compared");
        for error in errors {
            tracing::error!(reconcile, list, error, "list of calls not compared completely");
        }
    }
    if let Some(error) = &report.error {
        tracing::error!(reconcile, error, "lists of calls not compared");
    }
}
