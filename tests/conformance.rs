//! What the dispatcher expects of every sink, whatever its destination. `examples/custom_sink.rs` shows a sink of one's own.

use crate::support::{PATIENCE, kafka, nats};
use cdrelay::event::EventId;
use cdrelay::route::{Config, Dialect, Route};
use cdrelay::sink::{Failure, Message, Sink, SinkConfig};
use futures_util::FutureExt;
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{sleep, timeout};

#[path = "../examples/custom_sink.rs"]
#[expect(dead_code, reason = "the example's main function runs a bridge")]
mod custom_sink;

fn message(topic: &str, conversation: &str, number: u64) -> Message {
    let payload = format!("{{\"conversation_uuid\":\"{conversation}\",\n\"n\":{number},\"amount\":1.10}}");
    let mut id = [0; 16];
    id[..8].copy_from_slice(&number.to_be_bytes());
    let message = Message::of(EventId(id), payload.into_bytes(), topic, conversation, conversation);
    message.with_header("ce_id", &number.to_string())
}

/// The suite. `delivered` reads all events that are at the destination.
async fn conforms(sink: Arc<dyn Sink>, topic: &str, delivered: impl AsyncFn() -> Vec<Value>) {
    timeout(PATIENCE, async {
        while sink.probe().await.is_err() {
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("a destination that is up is found to be up");

    // Of different conversations at once, and each is at the destination once it is acknowledged.
    let messages: Vec<_> = (0..100).map(|number| message(topic, &format!("c{number}"), number)).collect();
    let published = timeout(PATIENCE, join_all(messages.iter().map(|message| sink.publish(message)))).await.unwrap();
    assert_eq!(published, vec![Ok(()); 100]);
    let numbers = |events: &[Value]| events.iter().filter_map(|event| event["n"].as_u64()).collect::<Vec<_>>();
    let at_destination = delivered().await;
    assert_eq!(numbers(&at_destination).into_iter().collect::<BTreeSet<_>>(), (0..100).collect());
    assert!(
        at_destination.contains(&json!({ "conversation_uuid": "c7", "n": 7, "amount": 1.10 })),
        "{at_destination:?}"
    );

    // A publish that is dropped half-way, as at a stop, harms none of those after it.
    for number in 100..110 {
        let _ = sink.publish(&message(topic, "dropped", number)).now_or_never();
    }
    for number in 200..220 {
        let message = message(topic, "c", number);
        timeout(PATIENCE, sink.publish(&message)).await.expect("an answer").expect("it is acknowledged");
    }
    let in_order: Vec<_> = numbers(&delivered().await).into_iter().filter(|number| *number >= 200).collect();
    assert_eq!(in_order, (200..220).collect::<Vec<_>>(), "a conversation keeps its order");

    // A message that the destination cannot take is refused and holds up none of the others.
    let hostile = message(topic, "hostile", 300).with_header("ce_subject", "a\r\nb: c");
    let answer = timeout(PATIENCE, sink.publish(&hostile)).await.expect("an answer");
    assert!(matches!(answer, Ok(()) | Err(Failure::Rejected { .. })), "{answer:?}");
    assert_eq!(sink.publish(&message(topic, "c", 301)).await, Ok(()));
    assert_eq!(sink.probe().await, Ok(()));

    timeout(Duration::from_secs(10), sink.close()).await.expect("it closes");
    assert!(numbers(&delivered().await).contains(&301));
}

fn route(dialect: Dialect, topic: &str) -> Route {
    Route::compile(&Config { topic: Some(topic.to_owned()), ..Config::default() }, dialect).unwrap()
}

fn built<T: SinkConfig>(settings: Value, topic: &str) -> Arc<dyn Sink> {
    let settings: T = serde_json::from_value(settings).unwrap();
    settings.build("test", &route(T::DIALECT, topic)).unwrap()
}

fn lines(text: &str, event: impl Fn(Value) -> Value) -> Vec<Value> {
    let lines = text.lines().filter(|line| !line.is_empty());
    lines.map(|line| event(serde_json::from_str(line).expect(line))).collect()
}

#[tokio::test]
async fn kafka_conforms() {
    let topic = kafka::unique_topic("conformance");
    kafka::create_topic(&kafka::shared(), &topic, 6).await;
    let sink = built::<cdrelay::sink::kafka::Config>(json!({ "brokers": kafka::shared() }), &topic);
    conforms(sink, &topic, async || {
        let consumed = kafka::consume_all(&kafka::shared(), &topic, PATIENCE).await;
        consumed.iter().map(|message| serde_json::from_slice(&message.payload).unwrap()).collect()
    })
    .await;
}

#[tokio::test]
async fn nats_conforms() {
    let stream = nats::unique_name("conformance");
    nats::create_stream(&nats::shared(), &stream, &[&format!("{stream}.>")]).await;
    let subject = format!("{stream}.cdr");
    let sink = built::<cdrelay::sink::nats::Config>(json!({ "servers": nats::shared() }), &subject);
    conforms(sink, &subject, async || {
        let received = nats::stream_all(&nats::shared(), &stream).await;
        received.iter().map(|message| serde_json::from_slice(&message.payload).unwrap()).collect()
    })
    .await;
}

#[tokio::test]
async fn stdout_conforms() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let sink = cdrelay::sink::stdout::StdoutSink::to(file.reopen().unwrap()).unwrap();
    let path = file.path();
    conforms(Arc::new(sink), "cdr", async || {
        lines(&std::fs::read_to_string(path).unwrap(), |mut line| line["event"].take())
    })
    .await;
}

#[tokio::test]
async fn a_sink_from_outside_the_crate_conforms() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("archive.ndjson");
    let sink = built::<custom_sink::FileConfig>(json!({ "path": path }), "cdr");
    conforms(sink, "cdr", async || lines(&std::fs::read_to_string(&path).unwrap_or_default(), |event| event)).await;
}

#[test]
fn a_configuration_names_a_sink_from_outside_the_crate() {
    let text = "[sinks.archive]\ntype = 'file'\npath = 'x'\nmax_in_flight = 1\n";
    let registry = cdrelay::sink::Registry::default().with::<custom_sink::FileConfig>();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cdrelay.toml");
    std::fs::write(&file, text).unwrap();
    let config = cdrelay::config::Config::load_with(&registry, std::slice::from_ref(&file), &[]).unwrap();
    assert!(config.sinks["archive"].destination.settings::<custom_sink::FileConfig>().is_some());
    let unknown = cdrelay::config::Config::load(std::slice::from_ref(&file), &[]).unwrap_err().to_string();
    assert!(unknown.contains("`sinks.archive.type`: found \"file\"; allowed are stdout, kafka, nats"), "{unknown}");
    std::fs::write(&file, text.replace("path", "paht")).unwrap();
    let wrong = cdrelay::config::Config::load_with(&registry, &[file], &[]).unwrap_err().to_string();
    assert!(wrong.contains("`sinks.archive.paht`: is unknown; allowed are type, path, "), "{wrong}");
}
