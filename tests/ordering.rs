//! Order within a conversation is kept in every sink, whatever else goes on.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::support::oracle::{Load, settled};
use crate::support::{ANY_PORTS, Bridge, PATIENCE, kafka, nats};

const SAMPLES: &str = include_str!("support/payloads.ndjson");

#[tokio::test]
async fn a_conversation_whose_first_event_has_no_team_stays_in_one_partition_in_order() {
    const CONVERSATIONS: usize = 24;
    let topic = kafka::unique_topic("one-partition");
    kafka::create_topic(&kafka::shared(), &topic, 12).await;
    let kafka = format!("[sinks.kafka]\ntype = 'kafka'\nbrokers = '{}'\ntopic = '{topic}'", kafka::shared());
    let bridge = Bridge::start(&format!("{ANY_PORTS}{kafka}")).await;
    // Waiting, then ringing at an agent, then the record of the call: only the latter two name the team.
    let samples: Vec<_> = SAMPLES.lines().take(3).collect();
    assert!(!samples[0].contains("team") && samples[2].contains("team"));
    for conversation in 0..CONVERSATIONS {
        for sample in &samples {
            let event = sample.replace("5202a928", &format!("{conversation:08x}"));
            assert_eq!(bridge.post(event, "application/json").await.status, 200);
        }
    }
    let mut conversations = BTreeMap::<String, Vec<(i32, String, String)>>::new();
    for message in kafka::consume(&kafka::shared(), &topic, 3 * CONVERSATIONS, PATIENCE).await {
        let event: Value = serde_json::from_slice(&message.payload).unwrap();
        let text = |name: &str| event[name].as_str().unwrap().to_owned();
        let key = String::from_utf8(message.key.unwrap()).unwrap();
        let place = (message.partition, key.split_once('/').unwrap().0.to_owned(), text("status"));
        conversations.entry(text("conversation_uuid")).or_default().push(place);
    }
    assert_eq!(conversations.len(), CONVERSATIONS);
    for events in conversations.values() {
        let partition = events[0].0;
        let expected = [("unassigned", "waiting"), ("Sales_2222223", "started"), ("Sales_2222223", "answered")]
            .map(|(team, status)| (partition, team.to_owned(), status.to_owned()));
        assert_eq!(*events, expected);
    }
    let used: BTreeSet<_> = conversations.values().map(|events| events[0].0).collect();
    println!("{CONVERSATIONS} conversations of 3 events in {} of 12 partitions", used.len());
    assert!(used.len() >= 6, "only partitions {used:?}");
}

#[tokio::test]
async fn interleaved_conversations_keep_their_order_in_all_three_sinks() {
    let (topic, stream) = (kafka::unique_topic("interleaved"), nats::unique_name("interleaved"));
    kafka::create_topic(&kafka::shared(), &topic, 12).await;
    nats::create_stream(&nats::shared(), &stream, &[&format!("{stream}.>")]).await;
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
    let bridge = Bridge::start(&config).await;
    let load = Load { conversations: 128, events: 40, ..Load::new("interleaved") };
    let sent = load.start(&bridge.ingress_url()).finish().await;
    settled(&bridge, &["stdout", "kafka", "nats"]).await;
    let consumed = kafka::consume_all(&kafka::shared(), &topic, PATIENCE).await;
    let received = nats::stream_messages(&nats::shared(), &stream, sent.count(), PATIENCE).await;
    let lines = bridge.stdout_lines();
    let duplicates = [sent.check_kafka(&consumed), sent.check_nats(&received), sent.check_stdout(&lines)];
    assert_eq!(duplicates, [0; 3]);
    assert_eq!([consumed.len(), lines.len()], [sent.count(); 2]);
    assert_eq!(nats::stream_length(&nats::shared(), &stream).await, sent.count() as u64);
}
