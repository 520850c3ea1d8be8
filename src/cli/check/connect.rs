//! `cdrelay check --connect`: what the destinations say.

use crate::bridge;
use crate::config::Config;
use crate::route::Route;
use crate::sink::kafka;
use bytesize::ByteSize;
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a broker may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// What was found: problems keep a bridge from delivering, warnings may.
#[derive(Debug, Default)]
pub struct Findings {
    pub problems: Vec<String>,
    pub warnings: Vec<String>,
}

/// Connects every sink, and reads the limits of Kafka topics. `event_bytes`: the largest event and what a message has beside it.
pub async fn ask(config: &Config, event_bytes: u64) -> Findings {
    let mut findings = Findings { problems: bridge::check_destinations(config).await, ..Findings::default() };
    for (name, sink) in &config.sinks {
        let Some(kafka) = sink.destination.settings::<kafka::Config>() else { continue };
        let Ok(route) = Route::compile(&sink.route, sink.destination.dialect()) else { continue };
        // Of other topics only an event tells the name.
        let Some(topic) = route.constant_topic() else { continue };
        match topic_settings(kafka, topic).await {
            Ok(settings) => {
                let key = format!("sinks.{name}.topic");
                let warnings = warnings(&settings, event_bytes).into_iter();
                findings
                    .warnings
                    .extend(warnings.map(|text| config.values.problem(&key, format_args!("topic `{topic}`: {text}"))));
            }
            Err(cause) => {
                let text = format!("the settings of topic `{topic}` cannot be read: {cause}");
                findings.warnings.push(config.values.problem(&format!("sinks.{name}"), text));
            }
        }
    }
    findings
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
