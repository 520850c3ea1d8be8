//! `cdrelay check --connect`: what the destinations say.
//!
//! Whether a topic or subject may be written to is tried with a message that the broker has to refuse for another reason: it looks at the
//! permission first. So nothing is stored.

use crate::bridge;
use crate::config::Config;
use crate::route::Route;
use crate::sink::nats::options::{connect_options, parse_servers};
use crate::sink::{kafka, nats};
use async_nats::{Event, HeaderMap, header};
use bytesize::ByteSize;
use parking_lot::Mutex;
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How long a broker may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// The largest `max.message.bytes` of a topic for which a message that exceeds it is sent. A broker reads requests of 100 MB by default.
const LARGEST_TRIAL: usize = 64 << 20;

/// What was found: problems keep a bridge from delivering, warnings may.
#[derive(Debug, Default)]
pub struct Findings {
    pub problems: Vec<String>,
    pub warnings: Vec<String>,
}

impl Findings {
    fn prefix(mut self, with: &str) -> Self {
        self.problems.iter_mut().chain(&mut self.warnings).for_each(|text| text.insert_str(0, with));
        self
    }
}

/// Connects every sink, and asks for what the bridge cannot do without. `event_bytes`: the largest event and what a message has beside it.
pub async fn ask(config: &Config, event_bytes: u64) -> Findings {
    let mut findings = Findings { problems: bridge::check_destinations(config).await, ..Findings::default() };
    for (name, sink) in &config.sinks {
        let Ok(route) = Route::compile(&sink.route, sink.destination.dialect()) else { continue };
        let found = if let Some(nats) = sink.destination.settings::<nats::Config>() {
            ask_nats(nats, &route.subject_wildcard(), event_bytes).await
        } else if let Some(kafka) = sink.destination.settings::<kafka::Config>()
            // Of other topics only an event tells the name.
            && let Some(topic) = route.constant_topic()
        {
            ask_kafka(kafka, topic, event_bytes).await
        } else {
            continue;
        };
        let key = format!("sinks.{name}");
        let line = |text: String| config.values.problem(&key, text);
        findings.problems.extend(found.problems.into_iter().map(line));
        findings.warnings.extend(found.warnings.into_iter().map(line));
    }
    findings
}

async fn ask_kafka(kafka: &kafka::Config, topic: &str, event_bytes: u64) -> Findings {
    let mut findings = Findings::default();
    let limit = match topic_settings(kafka, topic).await {
        Ok(settings) => {
            findings.warnings = warnings(&settings, event_bytes);
            settings.get("max.message.bytes").and_then(|value| value.parse().ok())
        }
        Err(cause) => {
            findings.warnings.push(format!("its settings cannot be read: {cause}"));
            None
        }
    };
    // Without the limit, a message that is meant to be refused might be stored.
    let Some(limit) = limit.filter(|limit| *limit <= LARGEST_TRIAL) else {
        findings.warnings.push(
            "whether it may be written to was not tried: `max.message.bytes` is unknown or above 64 MiB".to_owned(),
        );
        return findings.prefix(&format!("topic `{topic}`: "));
    };
    match try_kafka(kafka, topic, limit).await {
        Err(KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge)) => {}
        Err(
            error @ KafkaError::MessageProduction(
                RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::ClusterAuthorizationFailed,
            ),
        ) => findings.problems.push(format!("may not be written to: {error}")),
        other => findings.warnings.push(format!("it is not known whether it may be written to: {other:?}")),
    }
    findings.prefix(&format!("topic `{topic}`: "))
}

/// Publishes a message that is larger than the topic's `limit` in bytes.
async fn try_kafka(kafka: &kafka::Config, topic: &str, limit: usize) -> KafkaResult<()> {
    let mut client = kafka.client().map_err(|error| KafkaError::ClientCreation(error.to_string()))?;
    client.set("compression.type", "none");
    client.set("message.timeout.ms", ANSWER.as_millis().to_string());
    client.set("message.max.bytes", "1000000000");
    let producer: FutureProducer = client.create()?;
    let payload = vec![0; limit + 1];
    let sent = producer.send(FutureRecord::<(), _>::to(topic).payload(&payload), ANSWER).await;
    // A user who may write to no topic gets no producer id, which ends the producer before the message is sent.
    let fatal = producer.client().fatal_error().map(|(code, _)| KafkaError::MessageProduction(code));
    sent.map(drop).map_err(|(error, _)| fatal.unwrap_or(error))
}

async fn topic_settings(kafka: &kafka::Config, topic: &str) -> Result<BTreeMap<String, String>, String> {
    let client = kafka.consumer().map_err(|error| error.to_string())?;
    let admin: AdminClient<DefaultClientContext> = client.create().map_err(|error| error.to_string())?;
    let options = AdminOptions::new().request_timeout(Some(ANSWER));
    let described = admin.describe_configs([&ResourceSpecifier::Topic(topic)], &options).await;
    let described = described.map_err(|error| error.to_string())?.pop();
    let resource = described.ok_or("no answer")?.map_err(|code| code.to_string())?;
    Ok(resource.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))).collect())
}

fn warnings(settings: &BTreeMap<String, String>, event_bytes: u64) -> Vec<String> {
    let number = |name: &str| settings.get(name)?.parse::<u64>().ok();
    let mut warnings = Vec::new();
    if let Some(limit) = number("max.message.bytes").filter(|limit| *limit < event_bytes) {
        warnings.push(format!(
            "`max.message.bytes` is {limit}, and the largest event makes a message of {}: it becomes a dead letter; lower `ingress.max_body`, or raise the topic's limit",
            ByteSize(event_bytes)
        ));
    }
    if number("min.insync.replicas") == Some(1) {
        warnings.push("`min.insync.replicas` is 1: an acknowledged message is lost with a single broker; set it to 2 with 3 replicas".into());
    }
    warnings
}

async fn ask_nats(config: &nats::Config, subjects: &str, event_bytes: u64) -> Findings {
    let mut findings = Findings::default();
    let denials = Arc::new(Mutex::new(None));
    let client = match connect_nats(config, denials.clone()).await {
        Ok(client) => client,
        Err(cause) => {
            findings.warnings.push(format!("its limits cannot be read: {cause}"));
            return findings;
        }
    };
    let limit = client.server_info().max_payload as u64;
    if limit < event_bytes {
        findings.warnings.push(format!(
            "`max_payload` of the server is {limit}, and the largest event makes a message of {}: it becomes a dead letter; lower `ingress.max_body`, or raise the server's limit",
            ByteSize(event_bytes)
        ));
    }
    if config.mode == nats::Mode::Jetstream {
        let subject = subjects.replace('*', "cdrelay-check");
        // No stream has stored a message of this id.
        let mut headers = HeaderMap::new();
        headers.insert(header::NATS_EXPECTED_LAST_MESSAGE_ID, format!("cdrelay-check-{}", fastrand::u64(..)));
        let request = async_nats::Request::new().headers(headers).timeout(Some(ANSWER / 2));
        let answer = client.send_request(subject.clone(), request).await;
        if let Some(denial) = denials.lock().take() {
            findings.problems.push(format!("subject `{subject}`: may not be written to: {denial}"));
        } else if let Err(error) = answer {
            findings
                .warnings
                .push(format!("subject `{subject}`: it is not known whether it may be written to: {error}"));
        }
    }
    findings
}

/// Connects; `denial` gets what the server says when it denies a message.
async fn connect_nats(config: &nats::Config, denial: Arc<Mutex<Option<String>>>) -> Result<async_nats::Client, String> {
    let servers = parse_servers(&config.servers.0).map_err(|error| error.to_string())?;
    let options = connect_options(config).map_err(|error| error.to_string())?.event_callback(move |event| {
        if let Event::ServerError(error) = event {
            *denial.lock() = Some(error.to_string());
        }
        std::future::ready(())
    });
    let client = options.connect(servers).await.map_err(|error| error.to_string())?;
    let flushed = timeout(ANSWER, client.flush()).await.map_err(|_| "no answer".to_owned())?;
    flushed.map_err(|error| error.to_string())?;
    Ok(client)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_that_takes_less_than_the_ingress_or_has_one_copy_is_warned_of() {
        let settings = |bytes: &str, replicas: &str| {
            let settings =
                [("max.message.bytes", bytes), ("min.insync.replicas", replicas), ("cleanup.policy", "delete")];
            settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
        };
        assert_eq!(warnings(&settings("2000000", "2"), 1_000_000), [""; 0]);
        let both = warnings(&settings("2000", "1"), 1_000_000);
        assert!(both.len() == 2 && both[0].contains("is 2000") && both[1].contains("insync"), "{both:?}");
    }
}
