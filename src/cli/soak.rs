//! `cdrelay soak`: put a running bridge to the test.

use super::output::{Output, note};
use super::run::raise_file_limit;
use super::send::options::{Target, period, rate};
use super::{CommandError, Settings};
use crate::config::Config;
use crate::soak::consume::Lines;
use crate::soak::load::{Counts, Load};
use crate::soak::{self, Plan, Progress};
use clap::{Args, value_parser};
use std::path::PathBuf;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// How often a line tells how far it is.
const LINE: Duration = Duration::from_secs(10);

/// Send synthetic conversations to a running bridge, consume its sinks, and report lost, duplicated and reordered events and
/// latencies. Exits with 1 if anything acknowledged is lost or out of order.
///
/// The configuration is the bridge's own: it says where webhooks are taken and where events go. Everything is read from where it ends
/// when this starts, and only events of this run count. Bridge and brokers may be down for a while meanwhile. Ctrl-C ends sending, and
/// the report follows; a second one ends everything.
#[derive(Debug, Args)]
pub struct Soak {
    #[command(flatten)]
    settings: Settings,
    /// Read only this sink; may be given several times. Otherwise all are read.
    #[arg(long, value_name = "NAME")]
    sink: Vec<String>,
    #[command(flatten)]
    target: Target,
    /// Events a second.
    #[arg(long, value_name = "NUMBER", default_value = "100", value_parser = rate)]
    rate: f64,
    /// How long to send.
    #[arg(long, value_name = "PERIOD", default_value = "60s", value_parser = period)]
    duration: Duration,
    /// How many conversations are under way at once; each waits for an acknowledgement before it sends its next event.
    #[arg(long, value_name = "NUMBER", default_value = "100", value_parser = value_parser!(u32).range(1..=100_000))]
    conversations: u32,
    /// How many events a conversation has; then another one takes its place.
    #[arg(long, value_name = "NUMBER", default_value = "20", value_parser = value_parser!(u32).range(1..=1_000_000))]
    events: u32,
    /// The seed of the events' content; random by default, and printed.
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// How long to wait for missing events after the last one was sent.
    #[arg(long, value_name = "PERIOD", default_value = "60s", value_parser = period)]
    settle: Duration,
    /// The file or named pipe that the bridge's stdout goes to, or `-` for this command's stdin. Needed for a stdout sink.
    #[arg(long, value_name = "FILE|-")]
    stdout_from: Option<PathBuf>,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

impl Soak {
    pub fn execute(self) -> Result<(), CommandError> {
        let config = self.settings.load()?;
        let plan = self.plan(&config)?;
        raise_file_limit();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let mut told = Duration::ZERO;
        let report = runtime.block_on(async {
            let mut terminate = signal(SignalKind::terminate())?;
            let mut interrupt = signal(SignalKind::interrupt())?;
            let stop = async move {
                tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
                tokio::spawn(async move {
                    tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
                    note("cdrelay: ended without a verdict");
                    std::process::exit(1);
                });
            };
            Ok::<_, CommandError>(soak::run(&config, plan, stop, |progress| show(progress, &mut told)).await?)
        });
        // A read of a pipe may still be blocked until the next write.
        runtime.shutdown_background();
        let report = report?;
        let mut out = Output::new();
        if self.json {
            out.line(serde_json::to_string(&report).map_err(std::io::Error::other)?)?;
        } else {
            out.line(&report)?;
        }
        out.flush()?;
        if report.clean { Ok(()) } else { Err(CommandError::NotKept) }
    }

    fn plan(&self, config: &Config) -> Result<Plan, CommandError> {
        let names: Vec<&str> = config.sinks.keys().map(String::as_str).collect();
        if let Some(unknown) = self.sink.iter().find(|name| !names.contains(&name.as_str())) {
            let problem = format!("--sink {unknown}: no sink is called that; there are {}", names.join(", "));
            return Err(CommandError::Usage(problem));
        }
        let sinks =
            if self.sink.is_empty() { names.into_iter().map(str::to_owned).collect() } else { self.sink.clone() };
        let stdout =
            |name: &&String| config.sinks.get(*name).is_some_and(|sink| sink.destination.type_name() == "stdout");
        let same: Vec<&str> = sinks.iter().filter(stdout).map(String::as_str).collect();
        if same.len() > 1 {
            let problem =
                format!("{} write to the same stdout, where nobody can tell their lines apart", same.join(" and "));
            return Err(CommandError::Usage(format!(
                "{problem}; choose one of them with --sink, and run the bridge with that one alone"
            )));
        }
        let path = config.ingress.path.as_deref().filter(|path| !path.contains('{'));
        let url = self.target.url(&config.ingress, path)?;
        let tls = self.target.tls(&url)?;
        Ok(Plan {
            load: Load {
                url,
                tls,
                rate: self.rate,
                duration: self.duration,
                conversations: self.conversations as usize,
                events: self.events as usize,
            },
            sinks,
            seed: self.seed.unwrap_or_else(|| fastrand::u64(..1 << 32)),
            settle: self.settle,
            stdout: self.stdout_from.clone().map(|path| match path.to_str() {
                Some("-") => Lines::Stdin,
                _ => Lines::File(path),
            }),
        })
    }
}

/// How far it is, in a line on stderr now and then. `told` is when that was said last.
fn show(progress: &Progress, told: &mut Duration) {
    let Progress { elapsed, counts: Counts { accepted, refused, .. }, last_error, sinks } = progress;
    if *elapsed < *told + LINE {
        return;
    }
    *told = *elapsed;
    let mut text = format!("{:.0} s: {accepted} accepted", elapsed.as_secs_f64());
    if *refused > 0 {
        text += &format!(", {refused} refused");
    }
    for (name, delivered, missing) in sinks {
        text += &format!(" | {name} {delivered}");
        if *missing > 0 {
            text += &format!(", {missing} to come");
        }
    }
    if let Some(last_error) = last_error {
        text += &format!(" | {last_error}");
    }
    note(text);
}
