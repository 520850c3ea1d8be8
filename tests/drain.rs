//! A spool that no bridge serves any more is delivered by `cdrelay drain`, and by a stop that is given time for it.

use crate::command_line::{Finished, cdrelay, finished};
use crate::support::bridge::command;
use crate::support::kafka::{Broker, consume_all, create_topic, unique_topic};
use crate::support::oracle::{Load, settled};
use crate::support::{ANY_PORTS, Bridge, PATIENCE, STDOUT, eventually, free_port};
use futures_util::future::join_all;
use std::fs;
use std::net::TcpListener;
use std::time::{Duration, Instant};
use tempfile::TempDir;

fn kafka(address: &str, topic: &str) -> String {
    format!("[sinks.kafka]\ntype = 'kafka'\nbrokers = '{address}'\ntopic = '{topic}'\n")
}

/// `cdrelay drain` on what a bridge has left behind, in its directory.
async fn drain(bridge: &Bridge, wait: &str) -> Finished {
    let mut drain = command();
    drain.current_dir(bridge.directory()).args(["drain", "--config", "cdrelay.toml", "--wait", wait]);
    tokio::task::spawn_blocking(move || finished(&mut drain)).await.unwrap()
}

/// Three replicas become one while the broker is away: what the two others hold waits for a drain, and nothing is lost.
#[tokio::test]
async fn spools_left_by_a_scale_in_are_delivered_complete_and_in_order() {
    let mut broker = Broker::start(&[]).await;
    let topic = unique_topic("drain");
    create_topic(&broker.address(), &topic, 12).await;
    let config = format!("{ANY_PORTS}[shutdown]\ngrace_period = '2s'\n{}", kafka(&broker.address(), &topic));
    let mut bridges = join_all((0..3).map(|_| Bridge::start(&config))).await;
    let loads = bridges.iter().map(|bridge| {
        let load = Load { conversations: 20, events: 60, pause: Duration::from_millis(20), ..Load::new("drain") };
        load.start(&bridge.ingress_url())
    });
    let loads: Vec<_> = loads.collect();
    join_all(loads.iter().map(|load| load.progress(100))).await;
    broker.kill();
    join_all(loads.iter().map(|load| load.progress(400))).await;
    let sent = join_all(loads.into_iter().map(|load| load.finish())).await;
    for bridge in &mut bridges[1..] {
        bridge.terminate();
        assert!(bridge.wait(PATIENCE).await.success(), "{}", bridge.stderr());
    }

    for bridge in &bridges[1..] {
        let early = drain(bridge, "1s").await;
        assert_eq!(early.code, Some(1), "{early:?}");
        assert!(early.stdout.starts_with("sink kafka: ") && early.stdout.contains(" left: "), "{early:?}");
        assert!(!early.stdout.starts_with("sink kafka: 0 "), "{early:?}");
        assert!(early.stderr.contains("are left in the spool; run this again"), "{early:?}");
    }
    broker.start_again().await;
    for bridge in &bridges[1..] {
        let drained = drain(bridge, "60s").await;
        assert_eq!(drained.stdout, "sink kafka: 0 record(s) left\n", "{drained:?}");
        assert_eq!(drained.code, Some(0), "{drained:?}");
    }
    settled(&bridges[0], &["kafka"]).await;

    let consumed = consume_all(&broker.address(), &topic, PATIENCE).await;
    for sent in &sent {
        let verdict = sent.judge_kafka(&consumed);
        assert!(verdict.is_clean(), "{verdict:?}");
    }
    // Nothing is left to be delivered twice.
    for bridge in &bridges[1..] {
        assert_eq!(drain(bridge, "60s").await.code, Some(0));
    }
    assert_eq!(consume_all(&broker.address(), &topic, PATIENCE).await.len(), consumed.len());
}

#[tokio::test]
async fn a_stop_with_time_to_drain_delivers_what_waits_for_a_broker_that_comes_back() {
    let mut broker = Broker::start(&[]).await;
    let topic = unique_topic("drain");
    create_topic(&broker.address(), &topic, 3).await;
    let shutdown = "[shutdown]\ngrace_period = '2s'\ndrain = '60s'\n";
    let mut bridge = Bridge::start(&format!("{ANY_PORTS}{shutdown}{}", kafka(&broker.address(), &topic))).await;
    broker.kill();
    let load = Load { conversations: 20, events: 20, ..Load::new("drain at a stop") };
    let sent = load.start(&bridge.ingress_url()).finish().await;
    bridge.terminate();
    eventually(PATIENCE, "no more webhooks are taken", async || {
        tokio::net::TcpStream::connect(bridge.ingress()).await.is_err()
    })
    .await;
    broker.start_again().await;
    assert!(bridge.wait(PATIENCE).await.success(), "{}", bridge.stderr());
    assert!(!bridge.stderr().contains("records wait in the spool"), "{}", bridge.stderr());
    sent.check_kafka(&consume_all(&broker.address(), &topic, PATIENCE).await);
}

#[tokio::test]
async fn a_stop_waits_for_a_broker_that_stays_away_no_longer_than_the_time_to_drain() {
    let shutdown = "[shutdown]\ngrace_period = '1s'\ndrain = '2s'\n";
    let sink = kafka(&format!("127.0.0.1:{}", free_port()), "t");
    let mut bridge = Bridge::start(&format!("{ANY_PORTS}{shutdown}{sink}")).await;
    assert_eq!(bridge.post("{\"n\":1}", "application/json").await.status, 200);
    let begun = Instant::now();
    bridge.terminate();
    assert!(bridge.wait(PATIENCE).await.success(), "{}", bridge.stderr());
    let taken = begun.elapsed();
    // On top of the two times: disconnecting, and what a slow machine takes.
    assert!(taken >= Duration::from_secs(2) && taken < Duration::from_secs(8), "{taken:?}");
    assert!(bridge.stderr().contains("records wait in the spool"), "{}", bridge.stderr());
}

#[tokio::test]
async fn a_drain_needs_no_port_no_credentials_and_no_certificate() {
    let mut bridge = Bridge::start(&format!("{ANY_PORTS}{STDOUT}")).await;
    bridge.kill();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let config = format!(
        "[admin]\nlisten = '{address}'\n[ingress]\nlisten = '{address}'\npath = '/x'\n\
         tls = {{ cert_file = '/nowhere/c', key_file = '/nowhere/k' }}\n\
         auth = [{{ type = 'bearer', secret_files = ['/nowhere/s'] }}]\n{STDOUT}"
    );
    fs::write(bridge.directory().join("cdrelay.toml"), config.replacen(&address.to_string(), "127.0.0.1:1", 1))
        .unwrap();
    let drained = drain(&bridge, "60s").await;
    assert_eq!(drained.code, Some(0), "{drained:?}");
}

#[tokio::test]
async fn a_drain_that_could_empty_the_wrong_spool_is_refused() {
    let directory = TempDir::new().unwrap();
    let spool = directory.path().join("spool");
    let file = directory.path().join("c.toml");
    fs::write(&file, STDOUT).unwrap();
    let (spool, file) = (spool.to_str().unwrap(), file.to_str().unwrap());

    let unnamed = cdrelay(&["drain", "--spool", spool]);
    assert_eq!(unnamed.code, Some(64), "{unnamed:?}");
    assert!(unnamed.stderr.contains("--config"), "{unnamed:?}");
    let missing = cdrelay(&["drain", "--config", file, "--spool", spool]);
    assert_eq!(missing.code, Some(1), "{missing:?}");
    assert!(missing.stderr.contains("no spool in") && !fs::exists(spool).unwrap(), "{missing:?}");

    let bridge = Bridge::start(&format!("{ANY_PORTS}{STDOUT}")).await;
    let in_use = drain(&bridge, "1s").await;
    assert_eq!(in_use.code, Some(1), "{in_use:?}");
    assert!(in_use.stderr.contains(&bridge.pid().to_string()), "{in_use:?}");
}

#[tokio::test]
async fn a_drain_tells_of_dead_letters_and_bodies_beside_the_spool() {
    let sink = "[sinks.out]\ntype = 'stdout'\ntopic = '{nothing}'\n";
    let mut bridge = Bridge::start(&format!("{ANY_PORTS}{sink}")).await;
    assert_eq!(bridge.post("{\"a\":1}", "application/json").await.status, 200);
    assert_eq!(bridge.post("{ a: 1 }", "application/json").await.status, 400);
    eventually(PATIENCE, "both are kept", async || {
        bridge.dead_letters("out").len() == 1 && bridge.rejected_bodies().len() == 1
    })
    .await;
    bridge.terminate();
    bridge.wait(PATIENCE).await;
    let drained = drain(&bridge, "60s").await;
    assert_eq!(drained.code, Some(0), "{drained:?}");
    assert!(drained.stdout.contains("dead letters of out are in spool/dead-letters/out;"), "{drained:?}");
    assert!(drained.stdout.contains("bodies that could not be decoded are in spool/rejected;"), "{drained:?}");
}
