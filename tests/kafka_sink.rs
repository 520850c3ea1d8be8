//! The Kafka sink keeps the sink contract with a real broker.

use crate::support::kafka::{
    Broker, Consumed, PASSWORD, USER, consume, consume_all, create_topic, create_topic_with, delete_topic, shared,
    unique_topic,
};
use crate::support::{PATIENCE, free_port};
use cdrelay::event::EventId;
use cdrelay::sink::kafka::KafkaSink;
use cdrelay::sink::{Failure, Message, Sink};
use futures_util::future::join_all;
use serde_json::json;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

pub fn sink(settings: serde_json::Value) -> KafkaSink {
    KafkaSink::new("kafka", &serde_json::from_value(settings).unwrap(), None).unwrap()
}

/// Its id follows from the payload: a message with the id of an earlier one counts as that one, sent again.
pub fn message(topic: &str, conversation: &str, payload: impl AsRef<[u8]>) -> Message {
    let mut hasher = DefaultHasher::new();
    payload.as_ref().hash(&mut hasher);
    let mut id = [7; 16];
    id[..8].copy_from_slice(&hasher.finish().to_le_bytes());
    let bare = Message::of(EventId(id), payload.as_ref(), topic, &format!("team/{conversation}"), conversation);
    bare.with_header("ce_id", "7").with_header("ce_subject", conversation)
}

/// Publishes as the dispatcher would: again and again while the destination or a place is at fault.
pub async fn insist(sink: &KafkaSink, message: &Message) -> Result<(), Failure> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match sink.publish(message).await {
            Err(failure @ (Failure::Unavailable { .. } | Failure::Place { .. })) => {
                assert!(Instant::now() < deadline, "{failure}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            result => return result,
        }
    }
}

fn payloads(records: &[Consumed]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for record in records {
        *counts.entry(String::from_utf8(record.payload.clone()).unwrap()).or_default() += 1;
    }
    counts
}

#[tokio::test]
async fn key_headers_and_payload_arrive_byte_for_byte() {
    let topic = unique_topic("bytes");
    create_topic(&shared(), &topic, 1).await;
    let sink = sink(json!({ "brokers": shared() }));
    let texts = ["plain", "", "nul\0and\nline\r\nend", "தமிழ்", "Sales.*>", "\u{1F4DE}"];
    for text in texts {
        sink.publish(&message(&topic, text, text)).await.unwrap();
    }
    let records = consume(&shared(), &topic, texts.len(), PATIENCE).await;
    assert_eq!(records.len(), texts.len());
    for (record, text) in records.iter().zip(texts) {
        assert_eq!(record.key.as_deref(), Some(format!("team/{text}").as_bytes()));
        assert_eq!(record.payload, text.as_bytes());
        let headers = [("ce_id".to_owned(), b"7".to_vec()), ("ce_subject".to_owned(), text.as_bytes().to_vec())];
        assert_eq!(record.headers, headers);
    }
    sink.close().await;
}

/// The expected partitions are what `org.apache.kafka.common.utils.Utils` of kafka-clients 4.x computes.
#[tokio::test]
async fn the_partition_is_the_java_clients_whatever_the_key() {
    let topic = unique_topic("partitions");
    create_topic(&shared(), &topic, 12).await;
    let sink = sink(json!({ "brokers": shared() }));
    let expected = [
        ("0b2a1f0e-7d57-4a3c-9a0e-0c1d2e3f4a5b", 8),
        ("தமிழ்", 7),
        ("a\0b\nc", 11),
        ("", 9),
        ("conversation-1", 6),
        ("conversation-2", 9),
        ("conversation-3", 1),
    ];
    for (text, _) in expected {
        sink.publish(&message(&topic, text, text)).await.unwrap();
        let other_key = Message::of(EventId([7; 16]), text.as_bytes(), &topic, "no team", text);
        sink.publish(&other_key).await.unwrap();
    }
    let records = consume(&shared(), &topic, 2 * expected.len(), PATIENCE).await;
    assert_eq!(records.len(), 2 * expected.len());
    for record in records {
        let (text, partition) = expected.iter().find(|(text, _)| text.as_bytes() == record.payload).unwrap();
        assert_eq!(record.partition, *partition, "{text:?}");
    }
    sink.close().await;
}

#[tokio::test]
async fn a_missing_topic_is_reported_at_once_and_used_once_it_exists() {
    let topic = unique_topic("missing");
    let config = serde_json::from_value(json!({ "brokers": shared() })).unwrap();
    let sink = KafkaSink::new("kafka", &config, Some(&topic)).unwrap();
    let probe = sink.probe().await.unwrap_err();
    let asked = Instant::now();
    let publish = sink.publish(&message(&topic, "c", "1")).await.unwrap_err();
    assert!(asked.elapsed() < Duration::from_secs(3));
    assert!(matches!(publish, Failure::Place { expires: true, .. }));
    assert!(publish.to_string().contains(&format!("topic {topic}: does not exist")), "{publish}");
    assert_eq!(probe, publish);

    create_topic(&shared(), &topic, 3).await;
    insist(&sink, &message(&topic, "c", "2")).await.unwrap();
    sink.probe().await.unwrap();

    delete_topic(&shared(), &topic).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while sink.publish(&message(&topic, "c", "3")).await.is_ok() {
        assert!(Instant::now() < deadline, "the deleted topic still takes messages");
    }
    create_topic(&shared(), &topic, 3).await;
    insist(&sink, &message(&topic, "c", "4")).await.unwrap();
    // The third message may be there too: it was on its way when the topic was found to be missing.
    let there = payloads(&consume_all(&shared(), &topic, PATIENCE).await);
    assert!(there.contains_key("4"), "{there:?}");
    sink.close().await;
}

#[tokio::test]
async fn only_the_message_that_is_too_large_is_rejected() {
    let topic = unique_topic("limit");
    create_topic_with(&shared(), &topic, 2, &[("max.message.bytes", "2000")]).await;
    let sink = sink(json!({ "brokers": shared() }));
    let messages: Vec<_> = (0..201)
        .map(|number| match number {
            100 => message(&topic, &format!("c{number}"), "x".repeat(3000)),
            _ => message(&topic, &format!("c{number}"), format!("{number}")),
        })
        .collect();
    let results = join_all(messages.iter().map(|message| insist(&sink, message))).await;
    for (number, result) in results.iter().enumerate() {
        match result {
            Err(Failure::Rejected { cause }) if number == 100 => {
                assert!(cause.contains("max.message.bytes"), "{cause}")
            }
            result => assert_eq!((number, result), (number, &Ok(()))),
        }
    }
    let counts = payloads(&consume_all(&shared(), &topic, PATIENCE).await);
    assert_eq!(counts.len(), 200);
    assert!(counts.values().all(|count| *count == 1), "{counts:?}");
    sink.close().await;
}

#[tokio::test]
async fn one_mebibyte_passes_where_the_topic_allows_it() {
    let topic = unique_topic("large");
    create_topic_with(&shared(), &topic, 1, &[("max.message.bytes", "3000000")]).await;
    let sink = sink(json!({ "brokers": shared() }));
    let large = "x".repeat((1 << 20) + 4096);
    sink.publish(&message(&topic, "c", large.clone())).await.unwrap();
    assert_eq!(consume(&shared(), &topic, 1, PATIENCE).await.remove(0).payload, large.as_bytes());
    sink.close().await;
}

#[tokio::test]
async fn it_logs_in_over_tls_and_says_why_it_cannot() {
    let broker = Broker::start_sasl_tls(&[]).await;
    create_topic(&broker.address(), "login", 1).await;
    let tls = json!({ "ca_file": broker.authority() });
    let login = |mechanism: &str, password: &str| {
        let sasl = json!({ "mechanism": mechanism, "username": USER, "password": password });
        sink(json!({ "brokers": broker.secure_address(), "tls": tls, "sasl": sasl }))
    };
    for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] {
        let sink = login(mechanism, PASSWORD);
        sink.publish(&message("login", "c", mechanism)).await.unwrap();
        sink.close().await;
        let stranger = login(mechanism, "incorrect donkey");
        let failure = stranger.publish(&message("login", "c", "never")).await.unwrap_err();
        assert!(matches!(failure, Failure::Unavailable { .. }));
        let cause = failure.to_string();
        assert!(cause.contains("uthentication") && !cause.contains("donkey"), "{mechanism}: {cause}");
    }
    let distrustful = sink(json!({ "brokers": broker.secure_address(), "tls": {} }));
    let failure = distrustful.probe().await.unwrap_err();
    assert!(failure.to_string().contains("certificate verify failed"), "{failure}");
    assert_eq!(consume_all(&broker.address(), "login", PATIENCE).await.len(), 3);
}

#[tokio::test]
async fn a_broker_that_goes_and_comes_back_gets_every_message() {
    const MESSAGES: u64 = 2000;
    let mut broker = Broker::start(&[]).await;
    let address = broker.address();
    create_topic(&address, "outage", 3).await;
    let sink = sink(json!({ "brokers": address }));
    let messages: Vec<_> = (0..MESSAGES).map(|n| message("outage", &format!("c{n}"), format!("{n}"))).collect();
    let publishes = join_all(messages.iter().zip(0..).map(|(message, number)| {
        let sink = &sink;
        async move {
            // A load that lasts longer than the broker does.
            tokio::time::sleep(Duration::from_millis(number)).await;
            insist(sink, message).await
        }
    }));
    let outage = async {
        consume(&address, "outage", 100, PATIENCE).await;
        broker.kill();
        let probe = sink.probe().await.unwrap_err();
        broker.start_again().await;
        probe
    };
    let (results, probe) = tokio::join!(publishes, outage);
    assert!(probe.to_string().contains("refused"), "{probe}");
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert_eq!(payloads(&consume_all(&address, "outage", PATIENCE).await).len(), messages.len());
    sink.close().await;
}

#[tokio::test]
async fn an_unreachable_broker_is_asked_once_for_all_who_wait() {
    let sink = sink(json!({ "brokers": format!("127.0.0.1:{}", free_port()) }));
    let messages: Vec<_> = (0..500).map(|n| message("t", &format!("c{n}"), "x".repeat(1000))).collect();
    let asked = Instant::now();
    let results = join_all(messages.iter().map(|message| sink.publish(message))).await;
    assert!(results.iter().all(|result| matches!(result, Err(Failure::Unavailable { .. }))));
    assert!(asked.elapsed() < Duration::from_secs(5), "each asked for itself");
    let asked = Instant::now();
    sink.close().await;
    assert!(asked.elapsed() < Duration::from_secs(5), "nothing is left to wait for");
}

#[tokio::test]
async fn a_broker_that_stops_answering_costs_a_bounded_amount_of_memory() {
    let broker = Broker::start(&[]).await;
    create_topic(&broker.address(), "stalled", 3).await;
    let sink = sink(json!({ "brokers": broker.address() }));
    sink.publish(&message("stalled", "c", "first")).await.unwrap();
    broker.pause();
    // Other tests run in this process, so the limit is generous; without one, all of the 100 MB would be copied.
    let before = resident_kib();
    // All share one payload: what grows is what the sink holds.
    let payload = Arc::<[u8]>::from(vec![b'x'; 100_000]);
    let messages: Vec<_> =
        (0..1000).map(|n| message("stalled", &format!("c{n}"), []).with_payload(payload.clone())).collect();
    let mut publishes = join_all(messages.iter().map(|message| insist(&sink, message)));
    assert!(tokio::time::timeout(Duration::from_secs(2), &mut publishes).await.is_err());
    let grown = resident_kib().saturating_sub(before);
    assert!(grown < 48 << 10, "100 MB of messages cost {grown} KiB");
    broker.resume();
    assert!(publishes.await.iter().all(Result::is_ok));
    sink.close().await;
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
