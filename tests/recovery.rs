//! What a destination refuses for good is kept aside and holds nothing up; what an operator can mend waits and goes on by itself.

use std::fs::write;

use async_nats::jetstream::stream;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::fault::{ready, unready};
use crate::support::{ANY_PORTS, Bridge, PATIENCE, eventually, kafka, nats, until};

const JSON: &str = "application/json";

/// An event of one conversation, padded by this many bytes.
fn event(number: usize, padding: usize) -> String {
    let padding = "x".repeat(padding);
    json!({ "team": "Sales", "conversation_uuid": "c-1", "number": number, "custom": padding }).to_string()
}

async fn post(bridge: &Bridge, event: &str) {
    assert_eq!(bridge.post(event.to_owned(), JSON).await.status, 200);
}

/// Of an event in a sink.
fn number(payload: &[u8]) -> u64 {
    serde_json::from_slice::<Value>(payload).unwrap()["number"].as_u64().unwrap()
}

async fn published(bridge: &Bridge, sink: &str, count: f64) {
    let metric = format!("cdrelay_sink_published_total{{sink=\"{sink}\"}}");
    eventually(PATIENCE, &metric, async || bridge.metric(&metric).await == Some(count)).await;
}

#[tokio::test]
async fn a_message_too_large_for_kafka_is_a_dead_letter_and_the_next_of_its_conversation_passes() {
    let topic = kafka::unique_topic("limited");
    kafka::create_topic_with(&kafka::shared(), &topic, 3, &[("max.message.bytes", "2000")]).await;
    let sink = format!("[sinks.kafka]\ntype = 'kafka'\nbrokers = '{}'\ntopic = '{topic}'", kafka::shared());
    let bridge = Bridge::start(&format!("{ANY_PORTS}{sink}")).await;
    for (number, padding) in [(0, 10), (1, 5000), (2, 10), (3, 900_000), (4, 10)] {
        post(&bridge, &event(number, padding)).await;
    }
    published(&bridge, "kafka", 3.0).await;
    let consumed = kafka::consume_all(&kafka::shared(), &topic, PATIENCE).await;
    assert_eq!(consumed.iter().map(|message| number(&message.payload)).collect::<Vec<_>>(), [0, 2, 4]);

    let letters = bridge.dead_letters("kafka");
    assert_eq!(letters.len(), 2);
    for (letter, (number, padding)) in letters.iter().zip([(1, 5000), (3, 900_000)]) {
        let reason = letter["reason"].as_str().unwrap();
        println!("dead letter: {reason}");
        assert!(reason.contains("max.message.bytes"), "{reason}");
        assert_eq!((&letter["topic"], &letter["key"]), (&json!(topic), &json!("Sales/c-1")));
        assert_eq!((&letter["sink"], &letter["conversation"]), (&json!("kafka"), &json!("c-1")));
        assert_eq!(letter["payload"], event(number, padding));
        let time = |name: &str| letter[name].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
        assert!(time("arrival") <= time("time") && letter["headers"]["ce_time"] == letter["arrival"]);
    }
    assert_eq!(bridge.metric("cdrelay_sink_dead_lettered_total{sink=\"kafka\"}").await, Some(2.0));
    ready(&bridge).await;
}

#[tokio::test]
async fn a_message_too_large_for_nats_is_a_dead_letter_and_the_next_of_its_conversation_passes() {
    let server = nats::Server::start("max_payload: 20000").await;
    let config = stream::Config {
        name: "CDR".to_owned(),
        subjects: vec!["telecmi.cdr.>".to_owned()],
        max_message_size: 10_000,
        ..Default::default()
    };
    nats::create_stream_with(&server.url(), config).await;
    let sink = format!("[sinks.nats]\ntype = 'nats'\nservers = '{}'", server.url());
    let bridge = Bridge::start(&format!("{ANY_PORTS}{sink}")).await;
    for (number, padding) in [(0, 10), (1, 15_000), (2, 10), (3, 30_000), (4, 10)] {
        post(&bridge, &event(number, padding)).await;
    }
    published(&bridge, "nats", 3.0).await;
    let received = nats::stream_messages(&server.url(), "CDR", 3, PATIENCE).await;
    assert_eq!(received.iter().map(|message| number(&message.payload)).collect::<Vec<_>>(), [0, 2, 4]);

    let letters = bridge.dead_letters("nats");
    let reasons: Vec<_> = letters.iter().map(|letter| letter["reason"].as_str().unwrap()).collect();
    println!("dead letters: {reasons:?}");
    let [stream, server] = reasons.try_into().unwrap();
    assert!(stream.contains("message size exceeds maximum"), "{stream}");
    assert!(server.contains("payload"), "{server}");
    for (letter, (number, padding)) in letters.iter().zip([(1, 15_000), (3, 30_000)]) {
        assert_eq!((&letter["topic"], &letter["key"]), (&json!("telecmi.cdr.Sales.c-1"), &json!("Sales/c-1")));
        assert_eq!(letter["payload"], event(number, padding));
    }
    ready(&bridge).await;
}

#[tokio::test]
async fn a_missing_topic_and_a_missing_stream_are_named_and_used_once_they_exist() {
    const EVENTS: usize = 200;
    let (topic, stream) = (kafka::unique_topic("created-late"), nats::unique_name("created_late"));
    let config = format!(
        "{ANY_PORTS}
        [sinks.stdout]
        type = 'stdout'
        [sinks.kafka]
        type = 'kafka'
        brokers = '{}'
        topic = '{topic}'
        [sinks.nats]
        type = 'nats'
        servers = '{}'
        subject = '{stream}.{{team}}.{{conversation_uuid}}'",
        kafka::shared(),
        nats::shared()
    );
    let mut bridge = Bridge::start(&config).await;
    for number in 0..EVENTS {
        post(&bridge, &event(number, 10)).await;
    }
    published(&bridge, "stdout", EVENTS as f64).await;
    unready(&bridge, "kafka", &format!("topic {topic}: does not exist")).await;
    unready(&bridge, "nats", &format!("no JetStream stream takes subject `{stream}.")).await;
    for sink in ["kafka", "nats"] {
        assert_eq!(bridge.metric(&format!("cdrelay_sink_up{{sink=\"{sink}\"}}")).await, Some(0.0));
        let lag = format!("cdrelay_sink_lag_records{{sink=\"{sink}\"}}");
        assert_eq!(bridge.metric(&lag).await, Some(EVENTS as f64));
    }
    bridge.kill();
    bridge.start_again().await;
    unready(&bridge, "kafka", &format!("topic {topic}: does not exist")).await;

    kafka::create_topic(&kafka::shared(), &topic, 3).await;
    nats::create_stream(&nats::shared(), &stream, &[&format!("{stream}.>")]).await;
    ready(&bridge).await;
    let expected: Vec<_> = (0..EVENTS as u64).collect();
    let consumed = kafka::consume(&kafka::shared(), &topic, EVENTS, PATIENCE).await;
    assert_eq!(consumed.iter().map(|message| number(&message.payload)).collect::<Vec<_>>(), expected);
    let received = nats::stream_messages(&nats::shared(), &stream, EVENTS, PATIENCE).await;
    assert_eq!(received.iter().map(|message| number(&message.payload)).collect::<Vec<_>>(), expected);
    assert!(!bridge.directory().join("spool/dead-letters").exists());
}

#[tokio::test]
async fn a_sink_that_is_not_required_does_not_make_the_bridge_unready() {
    let topic = kafka::unique_topic("never");
    let sink = format!("[sinks.kafka]\ntype = 'kafka'\nbrokers = '{}'\ntopic = '{topic}'", kafka::shared());
    let config = format!("{ANY_PORTS}{sink}\nrequired = false\n[sinks.stdout]\ntype = 'stdout'");
    let bridge = Bridge::start(&config).await;
    let state = until(PATIENCE, "the reason is known", async || {
        let answer = bridge.admin("/readyz").await;
        let state = answer.json();
        let reason = state["sinks"]["kafka"]["reason"].as_str()?;
        (reason.contains(&topic) && answer.status == 200).then_some(state.clone())
    });
    assert_eq!(state.await["sinks"]["kafka"]["required"], false);
}

#[tokio::test]
async fn passwords_from_a_file_and_from_the_environment_open_a_secure_kafka() {
    let broker = kafka::Broker::start_sasl_tls(&[]).await;
    kafka::create_topic(&broker.address(), "cdr", 1).await;
    let secrets = TempDir::new().unwrap();
    let file = secrets.path().join("password");
    write(&file, format!("{}\n", kafka::PASSWORD)).unwrap();
    let config = |password: &str| {
        format!(
            "{ANY_PORTS}
            [sinks.kafka]
            type = 'kafka'
            brokers = '{}'
            topic = 'cdr'
            [sinks.kafka.tls]
            ca_file = {:?}
            [sinks.kafka.sasl]
            mechanism = 'SCRAM-SHA-512'
            username = '{}'
            {password}",
            broker.secure_address(),
            broker.authority(),
            kafka::USER
        )
    };
    let from_file = format!("password_file = {file:?}");
    let variable = "CDRELAY_SINKS__KAFKA__SASL__PASSWORD";
    let file_variable = "CDRELAY_SINKS__KAFKA__SASL__PASSWORD_FILE";
    let ways = [
        (config(&from_file), vec![]),
        (config(""), vec![(variable, kafka::PASSWORD)]),
        (config(""), vec![(file_variable, file.to_str().unwrap())]),
    ];
    for (number, (config, environment)) in ways.iter().enumerate() {
        let bridge = Bridge::start_with(config, environment).await;
        post(&bridge, &event(number, 10)).await;
        published(&bridge, "kafka", 1.0).await;
        ready(&bridge).await;
        assert!(!bridge.stderr().contains(kafka::PASSWORD));
    }
    let consumed = kafka::consume_all(&broker.address(), "cdr", PATIENCE).await;
    assert_eq!(consumed.iter().map(|message| number(&message.payload)).collect::<Vec<_>>(), [0, 1, 2]);

    let stranger = Bridge::start_with(&config(""), &[(variable, "incorrect donkey")]).await;
    post(&stranger, &event(3, 10)).await;
    let reason = unready(&stranger, "kafka", "uthentication").await;
    assert!(!reason.contains("donkey") && !stranger.stderr().contains("donkey"));
}
