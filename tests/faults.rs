//! Everything that can go wrong around the bridge while webhooks come in: nothing acknowledged is lost, and order is held.

use std::time::Duration;

use crate::support::oracle::{Load, Running, settled};
use crate::support::{Bridge, PATIENCE, free_port, kafka, nats};

/// Its load finds it again after a restart.
fn on_fixed_port() -> String {
    format!("[ingress]\nlisten = '127.0.0.1:{}'\n[admin]\nlisten = '127.0.0.1:0'\n", free_port())
}

/// More than any test here waits for.
fn steady(name: &'static str, bridge: &Bridge) -> Running {
    let pause = Duration::from_millis(80);
    Load { conversations: 40, events: 5000, pause, ..Load::new(name) }.start(&bridge.ingress_url())
}

/// Nobody refused anything for good.
async fn no_dead_letters(bridge: &Bridge, sink: &str) {
    let metric = format!("cdrelay_sink_dead_lettered_total{{sink=\"{sink}\"}}");
    assert_eq!(bridge.metric(&metric).await, Some(0.0));
    assert!(!bridge.directory().join("spool/dead-letters").exists());
}

async fn all_of(url: &str, stream: &str) -> Vec<nats::Received> {
    let stored = nats::stream_length(url, stream).await.try_into().unwrap();
    nats::stream_messages(url, stream, stored, PATIENCE).await
}

/// stdout, and the shared brokers with this topic and this stream.
fn three_sinks(topic: &str, stream: &str) -> String {
    let (kafka, nats) = (kafka::shared(), nats::shared());
    format!(
        "[sinks.stdout]
        type = 'stdout'
        [sinks.kafka]
        type = 'kafka'
        brokers = '{kafka}'
        topic = '{topic}'
        [sinks.nats]
        type = 'nats'
        servers = '{nats}'
        subject = '{stream}.{{team}}.{{conversation_uuid}}'"
    )
}

#[tokio::test]
async fn twenty_kills_at_any_moment_lose_nothing_and_keep_order_in_all_sinks() {
    const KILLS: usize = 20;
    let (topic, stream) = (kafka::unique_topic("kills"), nats::unique_name("kills"));
    kafka::create_topic(&kafka::shared(), &topic, 6).await;
    nats::create_stream(&nats::shared(), &stream, &[&format!("{stream}.>")]).await;
    let mut bridge = Bridge::start(&format!("{}{}", on_fixed_port(), three_sinks(&topic, &stream))).await;
    let load = steady("20 kills", &bridge);
    let mut random = fastrand::Rng::with_seed(load.seed());
    for _ in 0..KILLS {
        // Sometimes before it has done anything since its start.
        load.progress(random.usize(0..200)).await;
        bridge.kill();
        bridge.start_again().await;
    }
    load.progress(100).await;
    let sent = load.stop().await;
    settled(&bridge, &["stdout", "kafka", "nats"]).await;

    let kafka = sent.check_kafka(&kafka::consume_all(&kafka::shared(), &topic, PATIENCE).await);
    let nats = sent.check_nats(&all_of(&nats::shared(), &stream).await);
    let stdout = sent.check_stdout(&bridge.stdout_lines());
    println!("{KILLS} kills, {} events: duplicates in Kafka {kafka}, JetStream {nats}, stdout {stdout}", sent.count());
    assert_eq!(nats, 0, "the stream knows what it has");
    for sink in ["stdout", "kafka", "nats"] {
        no_dead_letters(&bridge, sink).await;
    }
}

#[tokio::test]
async fn terminated_in_the_middle_it_ends_well_and_goes_on_where_it_was() {
    const STOPS: usize = 3;
    let (topic, stream) = (kafka::unique_topic("terminated"), nats::unique_name("terminated"));
    kafka::create_topic(&kafka::shared(), &topic, 6).await;
    nats::create_stream(&nats::shared(), &stream, &[&format!("{stream}.>")]).await;
    let mut bridge = Bridge::start(&format!("{}{}", on_fixed_port(), three_sinks(&topic, &stream))).await;
    let load = steady("SIGTERM", &bridge);
    for _ in 0..STOPS {
        load.progress(300).await;
        bridge.terminate();
        let status = bridge.wait(PATIENCE).await;
        assert!(status.success(), "{status}");
        bridge.start_again().await;
    }
    load.progress(100).await;
    let sent = load.stop().await;
    settled(&bridge, &["stdout", "kafka", "nats"]).await;

    let kafka = sent.check_kafka(&kafka::consume_all(&kafka::shared(), &topic, PATIENCE).await);
    let nats = sent.check_nats(&all_of(&nats::shared(), &stream).await);
    let stdout = sent.check_stdout(&bridge.stdout_lines());
    println!(
        "{STOPS} SIGTERM, {} events: duplicates in Kafka {kafka}, JetStream {nats}, stdout {stdout}",
        sent.count()
    );
    assert_eq!((nats, stdout), (0, 0), "what was under way got its answer before the end");
}
