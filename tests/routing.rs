//! Each sink gets what its route says: what passes its `when`, where its templates point, in its format.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::oracle::settled;
use crate::support::{ANY_PORTS, Bridge, PATIENCE, kafka, nats};

const SAMPLES: &str = include_str!("support/payloads.ndjson");

async fn post_samples(bridge: &Bridge) {
    assert_eq!(bridge.post(SAMPLES, "application/x-ndjson").await.status, 200);
}

fn event(line: &str) -> Value {
    serde_json::from_str::<Value>(line).unwrap()["event"].clone()
}

#[tokio::test]
async fn a_filter_keeps_events_from_its_own_sink_only_and_an_undecided_one_does_as_configured() {
    let (topic, stream) = (kafka::unique_topic("filtered"), nats::unique_name("filtered"));
    kafka::create_topic(&kafka::shared(), &topic, 1).await;
    nats::create_stream(&nats::shared(), &stream, &[&format!("{stream}.>")]).await;
    let config = format!(
        "{ANY_PORTS}
        [sinks.stdout]
        type = 'stdout'
        [sinks.kafka]
        type = 'kafka'
        brokers = '{}'
        topic = '{topic}'
        when = \"event.type == 'cdr' && event.status == 'missed'\"
        [sinks.nats]
        type = 'nats'
        servers = '{}'
        subject = '{stream}.{{team}}'
        when = \"event.waitedsec > 1000\"
        [sinks.undecided]
        type = 'nats'
        servers = '{}'
        subject = '{stream}.undecided'
        when = \"event.waitedsec > 1000\"
        when_undecided = 'send'",
        kafka::shared(),
        nats::shared(),
        nats::shared()
    );
    let bridge = Bridge::start(&config).await;
    post_samples(&bridge).await;
    settled(&bridge, &["stdout", "kafka", "nats", "undecided"]).await;

    let samples: Vec<Value> = SAMPLES.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let total = samples.len();
    assert_eq!(bridge.stdout_lines().len(), total);
    let missed = |event: &Value| event["type"] == "cdr" && event["status"] == "missed";
    let wanted = samples.iter().filter(|event| missed(event)).count();
    let consumed = kafka::consume_all(&kafka::shared(), &topic, PATIENCE).await;
    assert!(consumed.iter().all(|message| missed(&serde_json::from_slice(&message.payload).unwrap())));
    assert_eq!(consumed.len(), wanted);
    // Most samples have no `waitedsec`, one has it as a text: the expression is undecided for these.
    let evaluated = samples.iter().filter(|event| event["waitedsec"].is_number()).count();
    let stored = nats::stream_length(&nats::shared(), &stream).await;
    assert_eq!(stored, (total - evaluated) as u64, "all of them from the sink that sends undecided events");

    let metric =
        async |name: &str, sink: &str| bridge.metric(&format!("cdrelay_sink_{name}_total{{sink=\"{sink}\"}}")).await;
    assert_eq!(metric("filtered", "kafka").await, Some((total - wanted) as f64));
    assert_eq!(metric("filtered", "nats").await, Some(total as f64));
    assert_eq!(metric("filtered", "undecided").await, Some(evaluated as f64));
    assert_eq!(metric("filter_failures", "nats").await, Some((total - evaluated) as f64));
    assert_eq!(metric("filter_failures", "undecided").await, Some((total - evaluated) as f64));
    assert_eq!(metric("filter_failures", "kafka").await, Some(0.0));
    println!("{total} events: {wanted} pass to Kafka, {stored} to NATS, where `when` was undecided for all of them");
}

#[tokio::test]
async fn an_event_that_the_filter_cannot_read_is_kept_as_a_dead_letter_and_not_sent() {
    let config = "[sinks.stdout]\ntype = 'stdout'\nwhen = \"event.type != 'internal' && event.x != 0\"\nwhen_undecided = 'send'\n";
    let bridge = Bridge::start(&format!("{ANY_PORTS}{config}")).await;
    for unreadable in
        [r#"{"type":"cdr","x":1e999}"#, r#"{"type":"cdr","x":"\ud800"}"#, r#"{"type":"internal","y":1e999,"x":1}"#]
    {
        assert_eq!(bridge.post(unreadable, "application/json").await.status, 200);
    }
    assert_eq!(bridge.post(r#"{"type":"cdr","x":1}"#, "application/json").await.status, 200);
    settled(&bridge, &["stdout"]).await;
    assert_eq!(
        bridge.stdout_lines().iter().map(|line| event(line)).collect::<Vec<_>>(),
        [json!({ "type": "cdr", "x": 1 })]
    );
    assert_eq!(bridge.metric("cdrelay_sink_dead_lettered_total{sink=\"stdout\"}").await, Some(2.0));
}

#[tokio::test]
async fn structured_mode_wraps_the_unchanged_event_in_a_cloud_event() {
    let (topic, stream) = (kafka::unique_topic("structured"), nats::unique_name("structured"));
    kafka::create_topic(&kafka::shared(), &topic, 1).await;
    nats::create_stream(&nats::shared(), &stream, &[&format!("{stream}.>")]).await;
    let config = format!(
        "{ANY_PORTS}
        [sinks.kafka]
        type = 'kafka'
        brokers = '{}'
        topic = '{topic}'
        format = 'cloudevents'
        source = '/calls/{{appid}}/{{nothing|none}}'
        [sinks.nats]
        type = 'nats'
        servers = '{}'
        subject = '{stream}.{{team}}'
        format = 'cloudevents'",
        kafka::shared(),
        nats::shared()
    );
    let bridge = Bridge::start(&config).await;
    let sample = SAMPLES.lines().nth(3).unwrap();
    assert_eq!(bridge.post(sample, "application/json").await.status, 200);
    let in_kafka = kafka::java_consume(&kafka::shared(), &topic, 1, PATIENCE).await.remove(0);
    let in_nats = nats::stream_messages(&nats::shared(), &stream, 1, PATIENCE).await.remove(0);

    let content_type = ("content-type".to_owned(), "application/cloudevents+json; charset=UTF-8".to_owned());
    assert_eq!(in_kafka.headers, [(content_type.0.clone(), content_type.1.clone().into_bytes())]);
    assert!(in_nats.headers.contains(&content_type));
    assert_eq!(in_kafka.key.unwrap(), b"Sales_2222223/4d1f9521-50e5-447d-bf5f-c3292995a727");
    for (payload, source) in [(in_kafka.payload, "/calls/2222223/none"), (in_nats.payload, "/telecmi/2222223")] {
        let text = String::from_utf8(payload).unwrap();
        assert!(text.ends_with(&format!("\"data\":{sample}}}")), "{text}");
        let mut envelope: BTreeMap<String, Value> = serde_json::from_str(&text).unwrap();
        let time = envelope.remove("time").unwrap();
        time.as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
        envelope.remove("data").unwrap();
        let attributes = json!({
            "specversion": "1.0",
            "id": "642dd739b88d3f93d350f4384fad190b",
            "source": source,
            "type": "com.telecmi.cdr.inbound.missed",
            "subject": "4d1f9521-50e5-447d-bf5f-c3292995a727",
            "datacontenttype": "application/json",
        });
        assert_eq!(json!(envelope), attributes);
    }
}

#[tokio::test]
async fn templates_send_each_team_to_a_place_of_its_own() {
    let (prefix, stream) = (kafka::unique_topic("teams"), nats::unique_name("teams"));
    let topics = [("Sales_2222223", 3), ("Sales.__", 1), ("nobody", 7)];
    for (team, _) in topics {
        kafka::create_topic(&kafka::shared(), &format!("{prefix}.{team}"), 2).await;
    }
    nats::create_stream(&nats::shared(), &stream, &[&format!("{stream}.>")]).await;
    let config = format!(
        "{ANY_PORTS}
        [sinks.stdout]
        type = 'stdout'
        key = '{{status}}'
        [sinks.kafka]
        type = 'kafka'
        brokers = '{}'
        topic = '{prefix}.{{team|nobody}}'
        [sinks.nats]
        type = 'nats'
        servers = '{}'
        subject = '{stream}.{{type}}.{{team|nobody}}.cdr'",
        kafka::shared(),
        nats::shared()
    );
    let bridge = Bridge::start(&config).await;
    post_samples(&bridge).await;
    settled(&bridge, &["stdout", "kafka", "nats"]).await;

    for (team, count) in topics {
        let topic = format!("{prefix}.{team}");
        let consumed = kafka::consume_all(&kafka::shared(), &topic, PATIENCE).await;
        assert_eq!(consumed.len(), count, "{topic}");
    }
    let mut subjects = BTreeMap::<String, usize>::new();
    for message in nats::stream_messages(&nats::shared(), &stream, 11, PATIENCE).await {
        *subjects.entry(message.subject.strip_prefix(&stream).unwrap().to_owned()).or_default() += 1;
    }
    let expected = [
        (".cdr.Sales%2E%2A%3E.cdr", 1),
        (".cdr.Sales_2222223.cdr", 2),
        (".cdr.nobody.cdr", 4),
        (".event.Sales_2222223.cdr", 1),
        (".event.nobody.cdr", 2),
        (".sms.nobody.cdr", 1),
    ];
    assert_eq!(subjects, expected.map(|(subject, count)| (subject.to_owned(), count)).into());
    for line in bridge.stdout_lines() {
        let message: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(message["key"], event(&line)["status"]);
    }
}
