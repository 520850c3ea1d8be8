//! Destinations that stop, die, hang and come back, and a bridge that is killed: nothing is lost, order is held, memory stays flat.

use std::time::Duration;

use async_nats::jetstream::stream;
use futures_util::StreamExt;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::support::bridge::on_fixed_port;
use crate::support::fault::{catch_up, kafka_sink, nats_sink, ready, steady, three_sinks};
use crate::support::oracle::{Load, settled};
use crate::support::{ANY_PORTS, Bridge, PATIENCE, eventually, free_port, kafka, nats};

const MIB: f64 = 1_048_576.0;

/// What the admin port said at a moment of an outage.
#[derive(Debug)]
struct Sample {
    after: Duration,
    resident: f64,
    lag_records: f64,
    lag_seconds: f64,
    ready: u16,
    reason: Option<String>,
}

async fn sample(bridge: &Bridge, sink: &str, begun: Instant) -> Sample {
    let of_sink = async |name| bridge.metric(&format!("cdrelay_sink_{name}{{sink=\"{sink}\"}}")).await.unwrap();
    let readiness = bridge.admin("/readyz").await;
    Sample {
        after: begun.elapsed(),
        resident: bridge.rss_bytes() as f64 / MIB,
        lag_records: of_sink("lag_records").await,
        lag_seconds: of_sink("lag_seconds").await,
        ready: readiness.status,
        reason: readiness.json()["sinks"][sink]["reason"].as_str().map(str::to_owned),
    }
}

/// Samples every few seconds while the destination is away for this long.
async fn watch(bridge: &Bridge, sink: &str, outage: Duration) -> Vec<Sample> {
    let begun = Instant::now();
    let mut samples = Vec::new();
    while begun.elapsed() < outage {
        sleep((outage / 12).min(outage.saturating_sub(begun.elapsed()))).await;
        samples.push(sample(bridge, sink, begun).await);
        let Sample { after, resident, lag_records, lag_seconds, ready, reason } = samples.last().unwrap();
        println!(
            "{sink} away for {:.0} s: {resident:.1} MiB, lag {lag_records} records, {lag_seconds:.1} s, /readyz {ready}: {}",
            after.as_secs_f64(),
            reason.as_deref().unwrap_or("no reason")
        );
    }
    samples
}

/// Whether the sink is ready, and why not.
async fn readiness(bridge: &Bridge, sink: &str) -> Result<(), String> {
    let answer = bridge.admin("/readyz").await;
    let state: Value = answer.json();
    assert_eq!(state["ready"], answer.status == 200, "{}", answer.text());
    match &state["sinks"][sink]["reason"] {
        Value::Null => Ok(()),
        reason => Err(reason.as_str().unwrap().to_owned()),
    }
}

async fn bridge_to(kafka: &str, topic: &str) -> Bridge {
    Bridge::start(&format!("{}{}", on_fixed_port(), kafka_sink(kafka, topic))).await
}

#[tokio::test]
async fn a_minute_without_kafka_under_load_loses_nothing_keeps_order_and_costs_no_memory() {
    let mut broker = kafka::Broker::start(&[]).await;
    kafka::create_topic(&broker.address(), "cdr", 12).await;
    let bridge = bridge_to(&broker.address(), "cdr").await;
    let load = steady("kafka stopped for a minute", &bridge);
    load.progress(500).await;
    let before = sample(&bridge, "kafka", Instant::now()).await;
    assert_eq!((before.ready, before.reason.as_deref()), (200, None));

    broker.stop().await;
    let stopped_at = load.acknowledged();
    let samples = watch(&bridge, "kafka", Duration::from_secs(60)).await;
    let meanwhile = load.acknowledged() - stopped_at;
    broker.start_again().await;
    catch_up(&bridge, "kafka", "after the minute").await;
    let sent = load.stop().await;
    settled(&bridge, &["kafka"]).await;
    ready(&bridge).await;
    let after = sample(&bridge, "kafka", Instant::now()).await;

    let consumed = kafka::consume_all(&broker.address(), "cdr", PATIENCE).await;
    let duplicates = sent.check_kafka(&consumed);
    println!(
        "{} events, {meanwhile} of them during the outage; {:.1} MiB before, {:.1} MiB after",
        sent.count(),
        before.resident,
        after.resident
    );
    assert_eq!(duplicates, 0, "the producer is idempotent");
    assert!(meanwhile > 2000, "the load went on: {meanwhile}");
    assert_eq!(sent.refused, 0);
    assert!(samples.is_sorted_by(|a, b| a.lag_records < b.lag_records && a.lag_seconds < b.lag_seconds));
    assert!(samples.last().unwrap().lag_seconds > 55.0);
    assert_eq!((after.lag_records, after.lag_seconds), (0.0, 0.0));
    for sample in &samples[3..] {
        let reason = sample.reason.as_deref().unwrap_or_default();
        assert!(sample.ready == 503 && reason.contains(&broker.address()), "{sample:?}");
    }
    let highest = samples.iter().map(|sample| sample.resident).fold(after.resident, f64::max);
    assert!(highest < 64.0, "{highest:.1} MiB");
    let [early, late] = [&samples[2], &samples[11]].map(|sample| sample.resident);
    assert!(late < early + 8.0, "memory grew from {early:.1} to {late:.1} MiB while the broker was away");
}

#[tokio::test]
async fn a_kafka_killed_together_with_the_bridge_and_a_kafka_that_hangs_get_every_event_in_order() {
    let mut broker = kafka::Broker::start(&[]).await;
    kafka::create_topic(&broker.address(), "cdr", 12).await;
    let mut bridge = bridge_to(&broker.address(), "cdr").await;
    let load = steady("kafka killed, then hung", &bridge);
    load.progress(500).await;

    broker.kill();
    watch(&bridge, "kafka", Duration::from_secs(6)).await;
    bridge.kill();
    bridge.start_again().await;
    load.progress(300).await;
    broker.start_again().await;
    catch_up(&bridge, "kafka", "after the kill").await;

    broker.pause();
    let samples = watch(&bridge, "kafka", Duration::from_secs(20)).await;
    assert!(samples.last().unwrap().ready == 503 && samples.last().unwrap().reason.is_some());
    broker.resume();
    catch_up(&bridge, "kafka", "after the pause").await;
    let sent = load.stop().await;
    settled(&bridge, &["kafka"]).await;
    ready(&bridge).await;
    let consumed = kafka::consume_all(&broker.address(), "cdr", PATIENCE).await;
    // What the killed bridge had in flight is sent again by a producer that the broker does not know.
    sent.check_kafka(&consumed);
}

#[tokio::test]
async fn a_nats_server_killed_and_restarted_and_hung_gets_every_event_in_order() {
    let mut server = nats::Server::start("").await;
    nats::create_stream(&server.url(), "CDR", &["telecmi.cdr.>"]).await;
    let sink = format!("[sinks.nats]\ntype = 'nats'\nack_timeout = '2s'\nservers = '{}'", server.url());
    let bridge = Bridge::start(&format!("{ANY_PORTS}{sink}")).await;
    let load = steady("nats killed, stopped and hung", &bridge);
    load.progress(500).await;

    server.kill();
    let samples = watch(&bridge, "nats", Duration::from_secs(6)).await;
    let reason = samples.last().unwrap().reason.clone().unwrap_or_default();
    assert!(samples.last().unwrap().ready == 503 && reason.contains("nats"), "{reason}");
    server.start_again().await;
    catch_up(&bridge, "nats", "after the kill").await;

    server.stop().await;
    load.progress(300).await;
    server.start_again().await;
    catch_up(&bridge, "nats", "after the stop").await;

    server.pause();
    let samples = watch(&bridge, "nats", Duration::from_secs(20)).await;
    assert!(samples.last().unwrap().ready == 503 && samples.last().unwrap().reason.is_some());
    server.resume();
    catch_up(&bridge, "nats", "after the pause").await;
    let sent = load.stop().await;
    settled(&bridge, &["nats"]).await;
    ready(&bridge).await;
    let duplicates = sent.check_nats(&nats::stream_all(&server.url(), "CDR").await);
    assert_eq!(duplicates, 0, "the stream knows what it has");
    assert_eq!(sent.refused, 0);
}

/// Sends a load through JetStream, measures each event from its arrival to a subscriber, and returns how many came in a second.
async fn flow(name: &'static str, further_sinks: &str) -> f64 {
    let stream = nats::unique_name("flow");
    let config = stream::Config {
        name: stream.clone(),
        subjects: vec![format!("{stream}.>")],
        storage: stream::StorageType::Memory,
        ..Default::default()
    };
    nats::create_stream_with(&nats::shared(), config).await;
    let url = nats::shared();
    let sink = nats_sink(&url, &stream);
    let bridge = Bridge::start(&format!("{ANY_PORTS}{sink}{further_sinks}")).await;
    eventually(PATIENCE, "nats is ready", async || readiness(&bridge, "nats").await.is_ok()).await;
    let client = async_nats::connect(url).await.unwrap();
    let mut received = client.subscribe(format!("{stream}.>")).await.unwrap();
    client.flush().await.unwrap();

    let load = Load { conversations: 32, events: 60, ..Load::new(name) };
    let count = load.conversations * load.events;
    let begun = Instant::now();
    let load = load.start(&bridge.ingress_url());
    let mut latencies = Vec::with_capacity(count);
    while latencies.len() < count {
        let message = tokio::time::timeout(PATIENCE, received.next()).await.unwrap().unwrap();
        let arrival = message.headers.unwrap().get("ce-time").unwrap().as_str().parse::<jiff::Timestamp>().unwrap();
        let latency = jiff::Timestamp::now().duration_since(arrival);
        latencies.push(Duration::try_from(latency).unwrap_or_default());
    }
    let per_second = count as f64 / begun.elapsed().as_secs_f64();
    let sent = load.finish().await;
    settled(&bridge, &["nats"]).await;
    sent.check_nats(&nats::stream_messages(&nats::shared(), &stream, count, PATIENCE).await);
    nats::delete_stream(&nats::shared(), &stream).await;
    latencies.sort();
    let (median, slowest) = (latencies[count / 2], latencies[count - 1]);
    println!("{name}: {count} events, {per_second:.0} a second, median {median:?}, slowest {slowest:?}");
    per_second
}

#[tokio::test]
async fn nats_flows_at_full_speed_while_kafka_is_down() {
    let dead = format!("[sinks.kafka]\ntype = 'kafka'\nbrokers = '127.0.0.1:{}'", free_port());
    let (mut with, mut without) = (0.0, 0.0);
    for _ in 0..3 {
        // Both at once, so that they find the same machine, whatever else runs on it.
        let flows = tokio::join!(flow("NATS alone", ""), flow("NATS beside a dead Kafka", &dead));
        without += flows.0;
        with += flows.1;
    }
    println!("NATS beside a dead Kafka flows at {:.0} % of its speed alone", 100.0 * with / without);
    assert!(with > 0.7 * without, "{with:.0} a second with a dead Kafka, {without:.0} without");
}

#[tokio::test]
async fn a_bridge_killed_in_the_middle_loses_nothing_and_keeps_order_in_all_sinks() {
    const KILLS: usize = 4;
    let (topic, stream) = (kafka::unique_topic("killed"), nats::unique_name("killed"));
    kafka::create_topic(&kafka::shared(), &topic, 12).await;
    nats::create_stream(&nats::shared(), &stream, &[&format!("{stream}.>")]).await;
    let mut bridge = Bridge::start(&format!("{}{}", on_fixed_port(), three_sinks(&topic, &stream))).await;
    let load = Load { conversations: 64, events: 5000, pause: Duration::from_millis(40), ..Load::new("bridge killed") };
    let mut random = fastrand::Rng::with_seed(load.seed);
    let load = load.start(&bridge.ingress_url());
    for _ in 0..KILLS {
        load.progress(random.usize(300..1200)).await;
        bridge.kill();
        bridge.start_again().await;
    }
    load.progress(300).await;
    let sent = load.stop().await;
    settled(&bridge, &["stdout", "kafka", "nats"]).await;

    let consumed = kafka::consume_all(&kafka::shared(), &topic, PATIENCE).await;
    let received = nats::stream_all(&nats::shared(), &stream).await;
    let kafka = sent.check_kafka(&consumed);
    let nats = sent.check_nats(&received);
    let stdout = sent.check_stdout(&bridge.stdout_lines());
    println!(
        "{KILLS} kills, {} events: delivered again to Kafka {kafka}, JetStream {nats}, stdout {stdout}",
        sent.count()
    );
    assert_eq!(nats, 0, "the stream knows what it has");
}
