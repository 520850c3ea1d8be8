//! With `ack = "delivered"` a 200 says that every required sink has the event, and a 202 that it is stored and still on its way.

use hyper::body::Bytes;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use serde_json::{Value, json};

use crate::command_line::cdrelay;
use crate::support::bridge::{Answer, client};
use crate::support::raw::Raw;
use crate::support::{Bridge, PATIENCE, eventually, free_port, kafka, nats};

const JSON: &str = "application/json";

/// Longer than any test waits: an answer has another reason than the time.
const LONG: &str = "5m";

/// A bridge that waits for its sinks, and for how long.
async fn bridge(delivery_timeout: &str, sinks: &str) -> Bridge {
    let ingress =
        format!("[ingress]\nlisten = '127.0.0.1:0'\nack = 'delivered'\ndelivery_timeout = '{delivery_timeout}'\n");
    Bridge::start(&format!("{ingress}[admin]\nlisten = '127.0.0.1:0'\n{sinks}")).await
}

fn kafka_sink(brokers: &str, topic: &str) -> String {
    format!("[sinks.kafka]\ntype = 'kafka'\nbrokers = '{brokers}'\ntopic = '{topic}'\n")
}

fn nats_sink(servers: &str, stream: &str) -> String {
    format!(
        "[sinks.nats]\ntype = 'nats'\nservers = '{servers}'\nsubject = '{stream}.{{team}}.{{conversation_uuid}}'\nack_timeout = '2s'\n"
    )
}

fn event(conversation: &str, number: usize) -> String {
    json!({ "team": "sales", "conversation_uuid": conversation, "number": number }).to_string()
}

async fn post(bridge: &Bridge, body: impl Into<Bytes>) -> (u16, Value) {
    told(&bridge.post(body, JSON).await)
}

fn told(answer: &Answer) -> (u16, Value) {
    (answer.status, answer.json())
}

/// What the body says when all goes well, or not yet.
fn says(stored: usize, duplicates: usize, delivered: bool) -> Value {
    json!({ "stored": stored, "duplicates": duplicates, "delivered": delivered, "dead_letters": 0 })
}

#[tokio::test]
async fn after_a_200_kafka_and_nats_have_it() {
    let (topic, stream) = (kafka::unique_topic("delivered"), nats::unique_name("delivered"));
    kafka::create_topic(&kafka::shared(), &topic, 3).await;
    nats::create_stream(&nats::shared(), &stream, &[&format!("{stream}.>")]).await;
    let sinks = kafka_sink(&kafka::shared(), &topic) + &nats_sink(&nats::shared(), &stream);
    let bridge = bridge(LONG, &sinks).await;
    for number in 0..5 {
        assert_eq!(post(&bridge, event("one", number)).await, (200, says(1, 0, true)));
        assert_eq!(nats::stream_length(&nats::shared(), &stream).await, number as u64 + 1);
        let consumed = kafka::consume_all(&kafka::shared(), &topic, PATIENCE).await;
        assert!(consumed.last().is_some_and(|message| message.payload == event("one", number).as_bytes()));
        assert_eq!(consumed.len(), number + 1);
    }
    // Many at once, some of which wait for each other, and some that are there already.
    let array: Vec<Value> =
        (0..300).map(|number| serde_json::from_str(&event(&format!("c{}", number % 40), number)).unwrap()).collect();
    let array = json!(array).to_string();
    assert_eq!(post(&bridge, array.clone()).await, (200, says(300, 0, true)));
    assert_eq!(nats::stream_length(&nats::shared(), &stream).await, 305);
    assert_eq!(post(&bridge, array).await, (200, says(0, 300, true)));
    let client = client(true);
    let send = async |number: usize| {
        let body: Bytes = event(&format!("h{}", number % 20), number).into();
        let answer = client.request(Request::post(bridge.ingress_url()).body(Full::new(body)).unwrap()).await.unwrap();
        (answer.status().as_u16(), answer.into_body().collect().await.unwrap().to_bytes())
    };
    for (status, body) in join_all((0..90).map(send)).await {
        assert_eq!((status, serde_json::from_slice::<Value>(&body).unwrap()), (200, says(1, 0, true)));
    }
    assert_eq!(nats::stream_length(&nats::shared(), &stream).await, 395);
    assert_eq!(kafka::consume_all(&kafka::shared(), &topic, PATIENCE).await.len(), 395);
    // Nothing to wait for.
    assert_eq!(post(&bridge, "[]").await, (200, says(0, 0, true)));
}

#[tokio::test]
async fn while_kafka_is_down_the_answer_is_202_and_who_asks_again_learns_when_it_is_there() {
    let mut broker = kafka::Broker::start(&[]).await;
    kafka::create_topic(&broker.address(), "cdr", 1).await;
    let mut bridge = bridge("1s", &kafka_sink(&broker.address(), "cdr")).await;
    // The first connection to a broker may take its time.
    eventually(PATIENCE, "the first is there", async || post(&bridge, event("c", 0)).await.0 == 200).await;
    broker.stop().await;
    let begun = Instant::now();
    assert_eq!(post(&bridge, event("c", 1)).await, (202, says(1, 0, false)));
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(post(&bridge, event("c", 1)).await, (202, says(0, 1, false)));
    // The other one is known to be there, also after a restart.
    assert_eq!(post(&bridge, event("c", 0)).await, (200, says(0, 1, true)));
    bridge.kill();
    bridge.start_again().await;
    assert_eq!(post(&bridge, event("c", 0)).await, (200, says(0, 1, true)));
    assert_eq!(post(&bridge, event("c", 1)).await, (202, says(0, 1, false)));
    broker.start_again().await;
    eventually(PATIENCE, "it arrives", async || post(&bridge, event("c", 1)).await == (200, says(0, 1, true))).await;
    let consumed = kafka::consume_all(&broker.address(), "cdr", PATIENCE).await;
    assert!(consumed.iter().any(|message| message.payload == event("c", 1).as_bytes()));
}

#[tokio::test]
async fn one_of_two_sinks_is_not_enough_unless_the_other_is_not_required() {
    let stream = nats::unique_name("one_of_two");
    nats::create_stream(&nats::shared(), &stream, &[&format!("{stream}.>")]).await;
    let dead = kafka_sink(&format!("127.0.0.1:{}", free_port()), "cdr");
    let alive = nats_sink(&nats::shared(), &stream);
    let both = bridge("1s", &format!("{dead}{alive}")).await;
    assert_eq!(post(&both, event("c", 0)).await, (202, says(1, 0, false)));
    assert_eq!(nats::stream_length(&nats::shared(), &stream).await, 1);
    let optional = bridge(LONG, &format!("{dead}required = false\n{alive}")).await;
    assert_eq!(post(&optional, event("c", 1)).await, (200, says(1, 0, true)));
    assert_eq!(nats::stream_length(&nats::shared(), &stream).await, 2);
    assert_eq!(optional.metric("cdrelay_sink_lag_records{sink=\"kafka\"}").await, Some(1.0));
}

#[test]
fn without_a_required_sink_there_is_nothing_to_wait_for() {
    let settings =
        ["ingress.ack=delivered", "sinks.a.type=stdout", "sinks.a.required=false", "sinks.stdout.required=false"];
    let arguments: Vec<_> =
        ["check"].into_iter().chain(settings.into_iter().flat_map(|setting| ["--set", setting])).collect();
    let finished = cdrelay(&arguments);
    assert_eq!(finished.code, Some(78));
    assert!(finished.stderr.contains("`ingress.ack`") && finished.stderr.contains("required"), "{}", finished.stderr);
}

#[tokio::test]
async fn a_conversation_that_is_stuck_makes_no_other_wait() {
    let prefix = kafka::unique_topic("stuck");
    kafka::create_topic(&kafka::shared(), &format!("{prefix}.there"), 1).await;
    let bridge = bridge("10s", &kafka_sink(&kafka::shared(), &format!("{prefix}.{{team}}"))).await;
    let event = |team: &str, conversation: &str, number: usize| {
        json!({ "team": team, "conversation_uuid": conversation, "number": number }).to_string()
    };
    assert_eq!(post(&bridge, event("missing", "stuck", 0)).await, (202, says(1, 0, false)));
    for number in 1..20 {
        assert_eq!(post(&bridge, event("there", "flows", number)).await, (200, says(1, 0, true)));
        // Its first copy is known to be delivered, though the cursor cannot pass what is stuck.
        assert_eq!(post(&bridge, event("there", "flows", number)).await, (200, says(0, 1, true)));
    }
    // This one waits for its predecessor.
    assert_eq!(post(&bridge, event("there", "stuck", 1)).await, (202, says(1, 0, false)));
    assert_eq!(bridge.metric("cdrelay_sink_lag_records{sink=\"kafka\"}").await, Some(2.0), "the stuck ones");
    kafka::create_topic(&kafka::shared(), &format!("{prefix}.missing"), 1).await;
    let resend = async || post(&bridge, event("there", "stuck", 1)).await == (200, says(0, 1, true));
    eventually(PATIENCE, "it goes on", resend).await;
    assert_eq!(kafka::consume_all(&kafka::shared(), &format!("{prefix}.there"), PATIENCE).await.len(), 20);
}

#[tokio::test]
async fn a_dead_letter_is_not_delivered_and_what_nobody_wants_is() {
    let topic = kafka::unique_topic("limited");
    kafka::create_topic_with(&kafka::shared(), &topic, 1, &[("max.message.bytes", "2000")]).await;
    let sink = kafka_sink(&kafka::shared(), &topic) + "when = '!has(event.number) || event.number != 7'\n";
    let bridge = bridge(LONG, &sink).await;
    let large = json!({ "conversation_uuid": "c", "custom": "x".repeat(5000) }).to_string();
    let refused = |stored, duplicates| json!({ "stored": stored, "duplicates": duplicates, "delivered": false, "dead_letters": 1 });
    assert_eq!(post(&bridge, large.clone()).await, (202, refused(1, 0)));
    assert_eq!(post(&bridge, large.clone()).await, (202, refused(0, 1)));
    assert_eq!(post(&bridge, format!("[{},{large}]", event("c", 1))).await, (202, refused(1, 1)));
    assert_eq!(post(&bridge, event("c", 7)).await, (200, says(1, 0, true)));
    assert_eq!(bridge.metric("cdrelay_sink_filtered_total{sink=\"kafka\"}").await, Some(1.0));
    assert_eq!(kafka::consume_all(&kafka::shared(), &topic, PATIENCE).await.len(), 1);
}

/// Sends an event that will wait, and returns once it is stored.
async fn waiting(bridge: &Bridge, number: usize) -> Raw {
    let mut client = Raw::connect(bridge).await;
    client.send(Raw::post(&event("c", number))).await;
    let stored = async || bridge.metric("cdrelay_spool_appended_records_total").await == Some(1.0);
    eventually(PATIENCE, "it is stored", stored).await;
    client
}

#[tokio::test]
async fn who_waits_when_the_bridge_stops_or_dies_loses_nothing() {
    let mut server = nats::Server::start("").await;
    nats::create_stream(&server.url(), "CDR", &["CDR.>"]).await;
    server.kill();
    let mut bridge = bridge(LONG, &nats_sink(&server.url(), "CDR")).await;
    let mut client = waiting(&bridge, 0).await;
    bridge.terminate();
    let begun = Instant::now();
    assert_eq!(told(&client.answer().await), (202, says(1, 0, false)));
    let status = bridge.wait(PATIENCE).await;
    println!("answered and stopped after {:?}", begun.elapsed());
    assert!(status.success() && begun.elapsed() < Duration::from_secs(10), "{status} after {:?}", begun.elapsed());

    bridge.start_again().await;
    let mut client = waiting(&bridge, 1).await;
    bridge.kill();
    assert!(client.try_answer(PATIENCE).await.is_none());
    server.start_again().await;
    bridge.start_again().await;
    for number in 0..2 {
        assert_eq!(post(&bridge, event("c", number)).await, (200, says(0, 1, true)));
    }
    let received = nats::stream_messages(&server.url(), "CDR", 2, PATIENCE).await;
    let payloads: Vec<_> = received.iter().map(|message| message.payload.clone()).collect();
    assert_eq!(payloads, [event("c", 0).into_bytes(), event("c", 1).into_bytes()]);
}

#[tokio::test]
async fn those_who_wait_for_a_dead_broker_take_little_memory() {
    let bridge = bridge("1s", &kafka_sink(&format!("127.0.0.1:{}", free_port()), "cdr")).await;
    let connection = async |connection: usize| {
        let client = client(true);
        for round in 0..5 {
            let send = async |stream: usize| {
                let body: Bytes = event(&format!("{connection} {round} {stream}"), 0).into();
                let request = Request::post(bridge.ingress_url()).body(Full::new(body)).unwrap();
                let answer = client.request(request).await.unwrap();
                assert_eq!(answer.status().as_u16(), 202);
                answer.into_body().collect().await.unwrap();
            };
            join_all((0..100).map(send)).await;
        }
    };
    join_all((0..20).map(connection)).await;
    let peak = bridge.peak_rss_bytes() as f64 / 1_048_576.0;
    println!("20 connections of 100 streams each that wait: {peak:.1} MiB");
    assert!(peak < 72.0, "{peak:.1} MiB");
    assert_eq!(bridge.metric("cdrelay_spool_records").await, Some(10_000.0));
}
