//! `cdrelay check`

mod connect;

use super::output::{Output, note};
use super::{CommandError, Settings};
use crate::bridge::{self, RunError};
use crate::config::{Config, ConfigError};
use crate::ingress::tls;
use crate::reconcile;
use crate::sink::{Registry, kafka, nats};
use bytesize::ByteSize;
use clap::Args;
use connect::Findings;

/// The largest batch that a Kafka topic takes by default, `max.message.bytes`
/// (<https://kafka.apache.org/documentation/#topicconfigs_max.message.bytes>).
const KAFKA_BYTES: u64 = 1_048_588;
/// The largest message that nats-server takes by default, `max_payload`
/// (<https://docs.nats.io/running-a-nats-service/configuration>).
const NATS_BYTES: u64 = 1 << 20;
/// Key, headers and framing of a message, generously.
const OVERHEAD_BYTES: u64 = 16 << 10;

/// Check a configuration and exit: 0 if it is sound, 78 with every problem if not.
#[derive(Debug, Args)]
pub struct Check {
    #[command(flatten)]
    settings: Settings,
    /// Also connect to the destinations: are they there, with the topic or stream, and do they take events as large as the ingress does?
    #[arg(long)]
    connect: bool,
    /// Print every setting that applies and where it comes from instead, without secrets.
    #[arg(long, conflicts_with = "connect")]
    print: bool,
}

impl Check {
    /// Loads the configuration and checks it.
    pub fn execute(&self) -> Result<(), CommandError> {
        let config = self.settings.load()?;
        if !self.print {
            return execute(&config, self.connect);
        }
        let mut out = Output::new();
        for line in config.effective(&Registry::default()) {
            out.line(line)?;
        }
        Ok(out.flush()?)
    }
}

/// Makes every sink, every route of the ingress and its TLS, which reads the files they name and checks what they hold, and drops them
/// again.
fn execute(config: &Config, connect: bool) -> Result<(), CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut problems = runtime.block_on(async { bridge::check(config) });
    let reconcile = reconcile::check(&config.reconcile).map_err(RunError::Reconcile).err();
    problems.extend(reconcile.map(|error| config.values.locate(&error.to_string())));
    let mut findings = Findings { problems, ..Findings::default() };
    if connect && findings.problems.is_empty() {
        findings = runtime.block_on(connect::ask(config, largest_event(config) + OVERHEAD_BYTES));
    }
    runtime.shutdown_background();
    let Findings { problems, warnings } = findings;
    if !problems.is_empty() {
        return Err(CommandError::Config(ConfigError::new(problems.join("\n"))));
    }
    for warning in warnings {
        note(format_args!("warning: {warning}"));
    }
    for route in config.ingress.unauthenticated_routes() {
        let listen = config.ingress.listen;
        note(format_args!(
            "warning: route `{route}` has no authentication and listens on {listen}, which is not loopback"
        ));
    }
    super::run::raise_file_limit();
    let connections = config.ingress.connections_within(bridge::open_file_limit());
    if connections < config.ingress.max_connections {
        note(format_args!("warning: `ingress.max_connections`: {}; {connections} are left", bridge::FEW_FILES));
    }
    for warning in oversized_events(config) {
        note(format_args!("warning: {warning}"));
    }
    if let Some(config) = &config.ingress.tls {
        let certificate = tls::check(config).map_err(RunError::from)?;
        if let Some(problem) = certificate.problem() {
            note(format_args!("warning: {problem}"));
        }
    }
    let failed = config.failed_tests();
    if !failed.is_empty() {
        return Err(CommandError::Config(ConfigError::new(failed.join("\n"))));
    }
    let mut out = Output::new();
    let connected = if connect { ", all of which take messages" } else { "" };
    out.line(format_args!("configuration is sound: {} sink(s){connected}", config.sinks.len()))?;
    Ok(out.flush()?)
}

/// The bytes of the largest event that the ingress takes.
fn largest_event(config: &Config) -> u64 {
    let ingress = &config.ingress;
    ingress.max_decompressed_body.map_or(ingress.max_body, |unpacked| unpacked.max(ingress.max_body)).as_u64()
}

/// A line for each sink that may not take the largest events that the ingress takes.
fn oversized_events(config: &Config) -> Vec<String> {
    let largest = ByteSize(largest_event(config));
    let warning = |(name, sink): (&String, &crate::config::Sink)| {
        let destination = &sink.destination;
        let (limit, whose, setting) = if let Some(kafka) = destination.settings::<kafka::Config>() {
            let property = kafka.librdkafka.0.get("message.max.bytes");
            let limit = property.and_then(|value| value.reveal().parse().ok());
            (limit.unwrap_or(KAFKA_BYTES), "`max.message.bytes` of a topic", "librdkafka.\"message.max.bytes\"")
        } else if let Some(nats) = destination.settings::<nats::Config>() {
            let limit = nats.max_payload.map(|size| size.as_u64());
            (limit.unwrap_or(NATS_BYTES), "`max_payload` of the server", "max_payload")
        } else {
            return None;
        };
        let fits = limit.saturating_sub(OVERHEAD_BYTES);
        (largest.as_u64() > fits).then(|| {
            format!(
                "`sinks.{name}`: an event as large as `ingress.max_body` or `max_decompressed_body`, {largest}, exceeds {whose}, \
                 {limit} bytes by default or as configured, and becomes a dead letter; set these to {} at the most, or \
                 `sinks.{name}.{setting}` to the destination's limit",
                ByteSize(fits)
            )
        })
    };
    config.sinks.iter().filter_map(warning).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_larger_than_a_sink_takes_are_warned_of() {
        let sinks =
            "[sinks.k]\ntype = 'kafka'\nbrokers = 'a:1'\n[sinks.n]\ntype = 'nats'\n[sinks.out]\ntype = 'stdout'\n";
        let warnings = |ingress: &str, more: &str| {
            oversized_events(&Config::from_toml(&format!("[ingress]\n{ingress}\n{sinks}{more}")).unwrap())
        };
        let of = |warnings: Vec<String>, text: &str| warnings.iter().filter(|warning| warning.contains(text)).count();
        assert_eq!(warnings("max_body = '1MiB'", "").len(), 2);
        assert_eq!(of(warnings("max_body = '1MiB'", ""), "`max.message.bytes` of a topic, 1048588 bytes"), 1);
        assert_eq!(warnings("", ""), [""; 0], "the default is warned of");
        assert_eq!(warnings("max_body = '900KiB'", ""), [""; 0]);
        assert_eq!(of(warnings("max_body = '900KiB'\nmax_decompressed_body = '2MiB'", ""), "2.0 MiB"), 2);
        let raised = "[sinks.k2]\ntype = 'kafka'\nbrokers = 'a:1'\nlibrdkafka = { 'message.max.bytes' = 5000000 }\n\
                      [sinks.n2]\ntype = 'nats'\nmax_payload = '8MiB'\n";
        assert_eq!(of(warnings("max_body = '1MiB'", raised), "2`"), 0);
    }
}
