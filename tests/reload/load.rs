//! Reloads while webhooks come in.

use super::{file, hash, reload, swap, taken_up};
use crate::support::bridge::on_fixed_port;
use crate::support::fault::{kafka_sink, nats_sink, no_dead_letters};
use crate::support::oracle::{Load, Sent, settled};
use crate::support::proxy::Proxy;
use crate::support::{ANY_PORTS, Bridge, PATIENCE, kafka, nats};
use cdrelay::control::Reload;
use std::fs::write;
use std::time::{Duration, Instant};

const RELOADS: usize = 100;

/// 250 events a second.
fn half(name: &'static str, http2: bool) -> Load {
    Load { conversations: 100, events: 100_000, pause: Duration::from_millis(400), http2, ..Load::new(name) }
}

#[tokio::test]
async fn a_hundred_reloads_fail_no_request_and_open_no_connection_of_a_sink_that_stays() {
    let (topic, stream) = (kafka::unique_topic("reloaded"), nats::unique_name("reloaded"));
    kafka::create_topic(&kafka::shared(), &topic, 6).await;
    nats::create_stream(&nats::shared(), &stream, &[&format!("{stream}.>")]).await;
    let proxy = Proxy::start(nats::shared().replace("nats://", "")).await;
    let stays = nats_sink(&format!("nats://{}", proxy.address()), &stream);
    let kafka = kafka_sink(&kafka::shared(), &topic);
    // Kafka's key, its connection, the ingress, and a sink that comes and goes. That one may be far behind on a busy machine: it goes on
    // where it was.
    let config = |number: usize| {
        let level = if number.is_multiple_of(7) { "debug" } else { "info" };
        let key = if number.is_multiple_of(2) { "{team}" } else { "{conversation_uuid}" };
        let linger = 1 + number / 4 % 5;
        let passing = if number.is_multiple_of(3) { "[sinks.passing]\ntype = 'stdout'\n" } else { "" };
        let limit = 1 + number % 4;
        format!(
            "{ANY_PORTS}max_body = '{limit}MiB'\n[reload]\ndiscard = ['passing']\n[log]\nlevel = 'cdrelay={level},warn'\n{stays}{kafka}key = '{key}'\nlinger = '{linger}ms'\n{passing}"
        )
    };
    let bridge = Bridge::start(&config(0)).await;
    let loads =
        [half("reloads, HTTP/1.1", false), half("reloads, HTTP/2", true)].map(|load| load.start(&bridge.ingress_url()));
    for load in &loads {
        load.progress(100).await;
    }
    let (begun, mut slowest) = (Instant::now(), Duration::ZERO);
    for number in 1..=RELOADS {
        let at = Instant::now();
        match number % 2 {
            0 => swap(&bridge, &config(number), number),
            _ => {
                write(file(&bridge), config(number)).unwrap();
                match number % 4 {
                    1 => bridge.hang_up(),
                    _ => {
                        let reloaded = reload(&bridge, &Reload::default()).await;
                        assert!(reloaded.problems.is_empty(), "{reloaded:?}");
                    }
                }
            }
        }
        taken_up(&bridge).await;
        slowest = slowest.max(at.elapsed());
    }
    let seconds = begun.elapsed().as_secs_f64();
    let rate = loads.iter().map(|load| load.acknowledged()).sum::<usize>() as f64 / seconds;
    println!("{RELOADS} reloads in {seconds:.1} s, the slowest {slowest:?}; about {rate:.0} events/s");
    assert_eq!(proxy.connections(), 1, "a sink that stays connected anew");
    assert!(!bridge.stderr().contains("not reloaded"));

    // The last one that has all sinks.
    write(file(&bridge), config(99)).unwrap();
    taken_up(&bridge).await;
    assert_eq!(hash(&bridge).len(), 12);
    let [one, two] = loads;
    let sent = [one.stop().await, two.stop().await];
    settled(&bridge, &["kafka", "nats", "passing"]).await;
    let consumed = kafka::consume_all(&kafka::shared(), &topic, PATIENCE).await;
    let received = nats::stream_all(&nats::shared(), &stream).await;
    let lines = bridge.stdout_lines();
    for sent in &sent {
        assert_eq!(sent.refused, 0, "requests failed");
        check_kafka(sent, &consumed);
        assert_eq!(sent.check_nats(&only(sent, &received, |message| &message.payload)), 0);
        sent.check_stdout(&only(sent, &lines, |line| line.as_bytes()));
    }
    for sink in ["kafka", "nats"] {
        no_dead_letters(&bridge, sink).await;
    }
    nats::delete_stream(&nats::shared(), &stream).await;
}

fn check_kafka(sent: &Sent, consumed: &[kafka::Consumed]) -> usize {
    sent.check_kafka(&only(sent, consumed, |message| &message.payload))
}

/// The messages of one of several loads.
fn only<T: Clone>(sent: &Sent, all: &[T], payload: impl Fn(&T) -> &[u8]) -> Vec<T> {
    let seed = format!("{:016x}-", sent.seed());
    let is_own = |message: &&T| payload(message).windows(seed.len()).any(|bytes| bytes == seed.as_bytes());
    all.iter().filter(is_own).cloned().collect()
}

#[tokio::test]
async fn a_kill_during_a_reload_loses_nothing() {
    const KILLS: usize = 8;
    let topic = kafka::unique_topic("killed-reload");
    kafka::create_topic(&kafka::shared(), &topic, 6).await;
    let ports = on_fixed_port();
    let config = |number: usize| {
        let kafka = kafka_sink(&kafka::shared(), &topic);
        let passing = if number.is_multiple_of(2) { "[sinks.passing]\ntype = 'stdout'\n" } else { "" };
        let out = format!("[sinks.out]\ntype = 'stdout'\ntopic = 'kept'\nkey = '{number}'\n");
        format!("{ports}[reload]\nwatch = false\n{out}{kafka}linger = '{}ms'\n{passing}", 1 + number)
    };
    let mut bridge = Bridge::start(&config(0)).await;
    let load = half("killed in a reload", false).start(&bridge.ingress_url());
    let mut random = fastrand::Rng::with_seed(load.seed());
    for number in 1..=KILLS {
        load.progress(100).await;
        write(file(&bridge), config(number)).unwrap();
        bridge.hang_up();
        // Not a wait for anything: the kill is to come at any moment of the reload.
        tokio::time::sleep(Duration::from_millis(random.u64(0..200))).await;
        bridge.kill();
        bridge.start_again().await;
        taken_up(&bridge).await;
    }
    load.progress(100).await;
    let sent = load.stop().await;
    settled(&bridge, &["kafka", "out"]).await;
    let consumed = kafka::consume_all(&kafka::shared(), &topic, PATIENCE).await;
    sent.check_kafka(&consumed);
    // Nothing was kept for the other one while it was not configured.
    let is_kept = |line: &String| line.contains("\"topic\":\"kept\"");
    sent.check_stdout(&bridge.stdout_lines().into_iter().filter(is_kept).collect::<Vec<_>>());
}
