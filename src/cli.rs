//! The command line: one file per subcommand.

mod check;
mod completions;
mod dead_letters;
mod drain;
mod explain;
mod openapi;
mod output;
mod reconcile;
mod reload;
mod replay;
mod replay_client;
mod run;
mod schema;
mod select;
mod send;
mod soak;
mod spool;

use crate::bridge::RunError;
use crate::config::{Config, ConfigError, Source};
use crate::dead_letter;
use crate::logging;
use crate::soak::SoakError;
use crate::spool::inspect::Inspection;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// `EX_USAGE` of `sysexits.h`.
pub const USAGE: u8 = 64;

/// Receives telephony call-detail-record webhooks and publishes them to Kafka, NATS or stdout.
#[derive(Debug, Parser)]
#[command(version, about, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the bridge (what happens without a subcommand too).
    Run(Settings),
    Check(check::Check),
    Reload(reload::Reload),
    /// Print the JSON Schema of a configuration, for editors and linters.
    Schema,
    /// Print the description of the HTTP API (OpenAPI 3.1) that the admin port serves.
    #[command(name = "openapi")]
    OpenApi,
    /// Look at what sinks refused for good, and publish it again.
    #[command(subcommand)]
    DeadLetters(dead_letters::DeadLetters),
    /// Look at the spool; it may be in use.
    #[command(subcommand)]
    Spool(spool::Spool),
    #[command(name = "drain")]
    Drain(drain::Drain),
    #[command(name = "replay")]
    Replay(replay::Replay),
    #[command(name = "reconcile")]
    Reconcile(reconcile::Reconcile),
    #[command(name = "explain")]
    Explain(explain::Explain),
    #[command(name = "send")]
    Send(send::Send),
    #[command(name = "soak")]
    Soak(soak::Soak),
    #[command(name = "completions")]
    Completions(completions::Completions),
    /// Print the man page, for `man -l -`.
    #[command(name = "man")]
    Man,
}

/// Where the configuration comes from.
#[derive(Debug, Args)]
struct Settings {
    /// A TOML or YAML file; several are merged in order. Without any, the embedded default is used.
    #[arg(long, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// One setting on top of files and environment, for example `--set spool.path=/var/spool/cdrelay`.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Which spool a command is about.
#[derive(Debug, Args)]
struct Location {
    #[command(flatten)]
    settings: Settings,
    /// The spool's directory, if it is not the one that the configuration names.
    #[arg(long, value_name = "DIR")]
    spool: Option<PathBuf>,
}

/// A spool that is there, and the configuration to deal with it.
#[derive(Debug)]
struct Site {
    config: Config,
    spool: PathBuf,
    /// Whether that is the configuration of the bridge that the spool belongs to.
    own_config: bool,
}

impl Location {
    /// Where that is, for a command that may log.
    fn open(&self) -> Result<Site, CommandError> {
        let site = self.site()?;
        logging::start_for_command(&site.config.log)?;
        Ok(site)
    }

    fn site(&self) -> Result<Site, CommandError> {
        let config = self.settings.load()?;
        let spool = self.spool.clone().unwrap_or_else(|| config.spool.path.clone());
        let own_config = self.spool.is_none() || !self.settings.config.is_empty();
        match std::fs::metadata(&spool) {
            Ok(found) if found.is_dir() => Ok(Site { config, spool, own_config }),
            found => {
                let why = found.map_or_else(|error| error.to_string(), |_| "not a directory".into());
                let problem = format!(
                    "no spool in {}: {why}; name the bridge's configuration with --config, or the directory with --spool",
                    spool.display()
                );
                Err(CommandError::Io(std::io::Error::other(problem)))
            }
        }
    }
}

impl Site {
    /// Refuses a sink that neither the spool nor the configuration knows.
    fn check_sink(&self, option: &str, sink: &str) -> Result<(), CommandError> {
        let mut known = Inspection::sinks(&self.spool)?;
        known.extend(dead_letter::sinks(&self.spool)?);
        if self.own_config {
            known.extend(self.config.sinks.keys().cloned());
        }
        known.sort();
        known.dedup();
        if known.iter().any(|known| known == sink) {
            return Ok(());
        }
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        Err(CommandError::Usage(format!("{option} `{sink}`: no sink is called that; there are: {known}")))
    }
}

impl Settings {
    fn load(&self) -> Result<Config, ConfigError> {
        self.source().load()
    }

    fn source(&self) -> Source {
        Source { files: self.config.clone(), settings: self.set.clone(), ..Source::default() }
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// An option's value makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The configuration is wrong.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// The bridge cannot run.
    #[error("{0}")]
    Run(RunError),
    /// Records of the spool are unreadable.
    #[error("the spool is damaged; a bridge that runs on it delivers all the rest and keeps the damaged files aside")]
    Damaged,
    /// A soak could not be run.
    #[error("{0}")]
    Soak(SoakError),
    /// A soak found something wrong, which has been reported.
    #[error("the promise was not kept, or not put to the test")]
    NotKept,
    /// A drain has left records.
    #[error("{0} record(s) are left in the spool; run this again when the sinks take messages")]
    Undelivered(u64),
    /// A webhook holds no event.
    #[error("the webhook would be refused: {0}")]
    NotExplained(String),
    /// Webhooks were refused, which has been reported.
    #[error("{0} webhook(s) were not acknowledged")]
    NotAcknowledged(usize),
    /// Dead letters are unreadable.
    #[error("{0} dead letter(s) are unreadable and were left out")]
    DamagedLetters(u64),
    /// The rejected bodies still hold no event.
    #[error("{0} of the bodies cannot be decoded; they stay")]
    Rejected(u64),
    /// A call is missing, or the platform's lists cannot be compared.
    #[error("{0}")]
    Reconcile(String),
    /// The system refuses something.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

impl From<RunError> for CommandError {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Sink { .. } | RunError::Ingress(_) | RunError::Tls(_) | RunError::Reconcile(_) => {
                Self::Config(ConfigError::new(error.to_string()))
            }
            other => Self::Run(other),
        }
    }
}

impl From<SoakError> for CommandError {
    fn from(error: SoakError) -> Self {
        match error {
            SoakError::StdoutUnknown { .. } => Self::Usage(error.to_string()),
            SoakError::Setup { .. } => Self::Config(ConfigError::new(error.to_string())),
            other => Self::Soak(other),
        }
    }
}

impl CommandError {
    /// As in `sysexits.h`: 64 for the command line, 78 for the configuration, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => USAGE,
            Self::Config(_) => 78,
            Self::Run(_) | Self::Io(_) | Self::Soak(_) | Self::NotKept => 1,
            Self::NotExplained(_) | Self::NotAcknowledged(_) | Self::Reconcile(_) => 1,
            Self::Damaged | Self::DamagedLetters(_) | Self::Rejected(_) | Self::Undelivered(_) => 1,
        }
    }
}

impl Cli {
    /// Runs the command.
    pub fn execute(self) -> Result<(), CommandError> {
        match self.command.unwrap_or(Command::Run(self.settings)) {
            Command::Run(settings) => run::execute(settings.source()),
            Command::Check(command) => command.execute(),
            Command::Reload(command) => command.execute(),
            Command::Schema => schema::execute(),
            Command::OpenApi => openapi::execute(),
            Command::DeadLetters(command) => command.execute(),
            Command::Spool(command) => command.execute(),
            Command::Drain(command) => command.execute(),
            Command::Replay(command) => command.execute(),
            Command::Reconcile(command) => command.execute(),
            Command::Explain(command) => command.execute(),
            Command::Send(command) => command.execute(),
            Command::Soak(command) => command.execute(),
            Command::Completions(command) => command.execute(),
            Command::Man => completions::man(),
        }
    }
}
