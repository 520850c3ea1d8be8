//! What tests of a fault have in common: a load that outlasts it, and what the bridge itself says of it.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::bridge::Bridge;
use super::oracle::{Load, Running, Sent, settled};
use super::proxy::{Line, Proxy};
use super::{PATIENCE, eventually, kafka, nats, until};

/// About 400 events a second, for longer than any test waits. A conversation sends seldom enough that a destination which takes its time
/// on a busy machine can still catch up, one event of each conversation after another.
pub fn steady(name: &'static str, bridge: &Bridge) -> Running {
    load(name, bridge, 200, Duration::from_millis(500))
}

/// About 140 events a second, where the destination is three servers that share one machine with all other tests. A conversation sends
/// seldom: a destination that answers late must still be able to catch up with all of them.
pub fn gentle(name: &'static str, bridge: &Bridge) -> Running {
    load(name, bridge, 100, Duration::from_millis(700))
}

fn load(name: &'static str, bridge: &Bridge, conversations: usize, pause: Duration) -> Running {
    Load { conversations, events: 5000, pause, ..Load::new(name) }.start(&bridge.ingress_url())
}

/// `[sinks.kafka]`
pub fn kafka_sink(brokers: &str, topic: &str) -> String {
    format!("[sinks.kafka]\ntype = 'kafka'\nbrokers = '{brokers}'\ntopic = '{topic}'\n")
}

/// `[sinks.nats]`, whose subjects begin with the stream's name.
pub fn nats_sink(servers: &str, stream: &str) -> String {
    format!("[sinks.nats]\ntype = 'nats'\nservers = '{servers}'\nsubject = '{stream}.{{team}}.{{conversation_uuid}}'\n")
}

/// stdout, and the shared brokers with this topic and this stream.
pub fn three_sinks(topic: &str, stream: &str) -> String {
    let (kafka, nats) = (kafka_sink(&kafka::shared(), topic), nats_sink(&nats::shared(), stream));
    format!("[sinks.stdout]\ntype = 'stdout'\n{kafka}{nats}")
}

/// Waits until the bridge is not ready because of the sink, for a reason with this in it, and returns the whole reason.
pub async fn unready(bridge: &Bridge, sink: &str, reason: &str) -> String {
    let what = format!("{sink} is not ready: {reason}");
    let found = until(PATIENCE, &what, async || {
        let answer = bridge.admin("/readyz").await;
        let found = answer.json()["sinks"][sink]["reason"].as_str().map(str::to_owned)?;
        (answer.status == 503 && found.contains(reason)).then_some(found)
    });
    let found = found.await;
    println!("/readyz: {sink}: {found}");
    found
}

pub async fn ready(bridge: &Bridge) {
    eventually(PATIENCE, "the bridge is ready", async || bridge.admin("/readyz").await.status == 200).await;
}

/// Waits until nothing is left of an outage but what is on its way anyway, and tells how long that took.
pub async fn catch_up(bridge: &Bridge, sink: &str, what: &str) {
    let begun = Instant::now();
    let lag = format!("cdrelay_sink_lag_seconds{{sink=\"{sink}\"}}");
    eventually(PATIENCE, what, async || bridge.metric(&lag).await.unwrap() < 0.5).await;
    ready(bridge).await;
    println!("{what}: caught up in {:.1} s", begun.elapsed().as_secs_f64());
}

/// Nobody refused anything for good.
pub async fn no_dead_letters(bridge: &Bridge, sink: &str) {
    let metric = format!("cdrelay_sink_dead_lettered_total{{sink=\"{sink}\"}}");
    assert_eq!(bridge.metric(&metric).await, Some(0.0));
    assert!(!bridge.directory().join("spool/dead-letters").exists());
}

/// Sends a load while the way to the sink is slow, narrow, breaks off, falls silent, and forgets its connections; returns what was
/// sent when all of it is delivered. Nothing was refused meanwhile.
pub async fn through_a_bad_network(name: &'static str, bridge: &Bridge, sink: &str, proxy: &Proxy) -> Sent {
    const RESETS: usize = 5;
    let load = steady(name, bridge);
    let mut random = fastrand::Rng::with_seed(load.seed());
    load.progress(200).await;

    proxy.set(Line { delay: Duration::from_millis(30), ..Line::default() });
    load.progress(200).await;
    for bytes_per_second in [400_000, 200_000] {
        proxy.set(Line { bytes_per_second: Some(bytes_per_second), ..Line::default() });
        load.progress(200).await;
    }
    for _ in 0..RESETS {
        proxy.set(Line { delay: Duration::from_millis(random.u64(0..10)), ..Line::default() });
        load.progress(random.usize(1..150)).await;
        let connections = proxy.connections();
        proxy.reset();
        eventually(PATIENCE, "the bridge connects again", async || proxy.connections() > connections).await;
    }
    proxy.set(Line::default());
    catch_up(bridge, sink, &format!("after {RESETS} resets")).await;

    proxy.set(Line { silent: true, ..Line::default() });
    unready(bridge, sink, "").await;
    // Not a wait for anything: this is how long the silence lasts.
    sleep(Duration::from_secs(15)).await;
    proxy.set(Line::default());
    catch_up(bridge, sink, "after the silence").await;

    load.progress(100).await;
    proxy.forget();
    load.progress(300).await;
    catch_up(bridge, sink, "after the connections were forgotten").await;
    println!("{} connections", proxy.connections());
    let sent = load.stop().await;
    settled(bridge, &[sink]).await;
    assert_eq!(sent.refused, 0);
    sent
}
