//! Everything that can go wrong around the bridge while webhooks come in: nothing acknowledged is lost, and order is held.

use std::time::Duration;

use crate::support::oracle::{Load, Running, settled};
use crate::support::{ANY_PORTS, Bridge, PATIENCE, eventually, free_port, kafka, nats};

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

#[tokio::test]
async fn a_full_disk_refuses_webhooks_loses_nothing_and_is_used_again_once_there_is_room() {
    let stream = nats::unique_name("full_disk");
    nats::create_stream(&nats::shared(), &stream, &[&format!("{stream}.>")]).await;
    let config = format!(
        "{ANY_PORTS}
        [spool]
        segment_size = '256KiB'
        [sinks.nats]
        type = 'nats'
        servers = '{}'
        subject = '{stream}.{{team}}.{{conversation_uuid}}'",
        nats::shared()
    );
    let bridge = Bridge::start(&config).await;
    let load = steady("disk full", &bridge);
    // First there is no room for a new segment. Then not even for all of the one in use, where a write breaks off in the middle. Then for
    // nothing: not for a cursor either, nor for a line of the log.
    for room in [255 << 10, 100 << 10, 0] {
        load.progress(200).await;
        bridge.limit_files(Some(room));
        eventually(PATIENCE, "webhooks are refused", async || bridge.admin("/readyz/ingress").await.status == 503)
            .await;
        let answer = bridge.post(r#"{"conversation_uuid":"refused","number":0}"#, "application/json").await;
        println!("at most {room} bytes in a file: {} {}", answer.status, answer.text().trim());
        assert_eq!(answer.status, 503);
        assert!(answer.headers["retry-after"].to_str().unwrap().parse::<u32>().unwrap() > 0);
        assert_eq!(bridge.admin("/readyz").await.status, 503);
        assert_eq!(bridge.admin("/livez").await.status, 200);
        settled(&bridge, &["nats"]).await;
        eventually(PATIENCE, "all that was acknowledged is delivered, and nothing else", async || {
            nats::stream_length(&nats::shared(), &stream).await == load.acknowledged() as u64
        })
        .await;

        bridge.limit_files(None);
        eventually(PATIENCE, "webhooks are taken", async || bridge.admin("/readyz/ingress").await.status == 200).await;
    }
    load.progress(200).await;
    let sent = load.stop().await;
    settled(&bridge, &["nats"]).await;
    assert_eq!(sent.check_nats(&all_of(&nats::shared(), &stream).await), 0);
    assert_eq!(bridge.admin("/readyz").await.status, 200);
    assert_eq!(bridge.metric("cdrelay_spool_damaged_records_total").await, Some(0.0));
}
