//! `cdrelay check --connect`

use super::cdrelay;
use crate::support::fault::{kafka_sink, nats_sink};
use crate::support::{free_port, kafka, nats};
use std::fs::write;
use tempfile::TempDir;

#[tokio::test]
async fn check_asks_the_destinations_for_their_limits() {
    let (topic, stream) = (kafka::unique_topic("checked"), nats::unique_name("checked"));
    kafka::create_topic_with(&kafka::shared(), &topic, 1, &[("max.message.bytes", "2000")]).await;
    nats::create_stream(&nats::shared(), &stream, &[&format!("{stream}.>")]).await;
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("cdrelay.toml");
    let check = |config: &str| {
        write(&path, config).unwrap();
        cdrelay(&["check", "--connect", "--config", path.to_str().unwrap()])
    };
    let both = format!("{}{}", kafka_sink(&kafka::shared(), &topic), nats_sink(&nats::shared(), &stream));
    let found = check(&both);
    assert_eq!(found.code, Some(0), "{found:?}");
    assert!(found.stdout.contains("2 sink(s), all of which take messages"), "{found:?}");
    let name = path.display().to_string();
    for warning in ["`max.message.bytes` is 2000", "`min.insync.replicas` is 1"] {
        let line = found.stderr.lines().find(|line| line.contains(warning)).unwrap_or_else(|| panic!("{found:?}"));
        assert!(line.contains(&name) && line.contains("`sinks.kafka.topic`"), "{line}");
    }

    let missing = kafka_sink(&kafka::shared(), &kafka::unique_topic("missing"));
    let dead = nats_sink(&format!("nats://127.0.0.1:{}", free_port()), &stream);
    let found = check(&format!("{missing}{dead}"));
    assert_eq!(found.code, Some(78), "{found:?}");
    for sink in ["`sinks.kafka`: does not take messages", "`sinks.nats`: does not take messages"] {
        assert!(found.stderr.contains(&format!("{name}: {sink}")), "{found:?}");
    }
    nats::delete_stream(&nats::shared(), &stream).await;
}
