//! A bridge that is killed or stopped at any moment while webhooks come in: nothing acknowledged is lost, and order is held.

use std::time::{Duration, Instant};

use crate::support::bridge::on_fixed_port;
use crate::support::fault::{catch_up, kafka_sink, nats_sink, no_dead_letters, steady, three_sinks, unready};
use crate::support::oracle::{Running, Sent, settled};
use crate::support::{Bridge, PATIENCE, eventually, kafka, nats};

/// Ends the load, waits until all three sinks have everything, and counts the copies in Kafka, JetStream and stdout.
async fn end_and_check(load: Running, bridge: &Bridge, topic: &str, stream: &str) -> (Sent, [usize; 3]) {
    let sent = load.stop().await;
    settled(bridge, &["stdout", "kafka", "nats"]).await;
    let kafka = sent.check_kafka(&kafka::consume_all(&kafka::shared(), topic, PATIENCE).await);
    let nats = sent.check_nats(&nats::stream_all(&nats::shared(), stream).await);
    let stdout = sent.check_stdout(&bridge.stdout_lines());
    (sent, [kafka, nats, stdout])
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
    let (sent, [kafka, nats, stdout]) = end_and_check(load, &bridge, &topic, &stream).await;
    println!("{KILLS} kills, {} events: duplicates in Kafka {kafka}, JetStream {nats}, stdout {stdout}", sent.count());
    assert_eq!(nats, 0, "the stream knows what it has");
    for sink in ["stdout", "kafka", "nats"] {
        no_dead_letters(&bridge, sink).await;
    }
}

/// Longer than NATS waits for its pings and Kafka's requests take.
#[tokio::test]
async fn a_bridge_that_is_paused_goes_on_where_it_was() {
    const PAUSE: Duration = Duration::from_secs(25);
    let (topic, stream) = (kafka::unique_topic("paused"), nats::unique_name("paused"));
    kafka::create_topic(&kafka::shared(), &topic, 6).await;
    nats::create_stream(&nats::shared(), &stream, &[&format!("{stream}.>")]).await;
    let bridge = Bridge::start(&format!("{}{}", on_fixed_port(), three_sinks(&topic, &stream))).await;
    let load = steady("bridge paused", &bridge);
    load.progress(300).await;
    bridge.pause();
    tokio::time::sleep(PAUSE).await;
    bridge.resume();
    load.progress(300).await;
    let (sent, [kafka, nats, stdout]) = end_and_check(load, &bridge, &topic, &stream).await;
    println!("{} events: duplicates in Kafka {kafka}, JetStream {nats}, stdout {stdout}", sent.count());
    assert_eq!((nats, stdout), (0, 0));
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
    let (sent, [kafka, nats, stdout]) = end_and_check(load, &bridge, &topic, &stream).await;
    println!(
        "{STOPS} SIGTERM, {} events: duplicates in Kafka {kafka}, JetStream {nats}, stdout {stdout}",
        sent.count()
    );
    assert_eq!((nats, stdout), (0, 0), "what was under way got its answer before the end");
}

#[tokio::test]
async fn terminated_in_the_middle_of_an_outage_it_ends_in_time_and_delivers_everything_afterwards() {
    const STOPS: usize = 3;
    // Of this Kafka the topic is missing, and of this NATS the server: both sinks try again and again.
    let (kafka, topic) = (kafka::shared(), kafka::unique_topic("outage"));
    let mut server = nats::Server::start("").await;
    nats::create_stream(&server.url(), "CDR", &["CDR.>"]).await;
    kafka::create_topic(&kafka, &topic, 6).await;
    let sinks = format!("{}{}ack_timeout = '2s'", kafka_sink(&kafka, &topic), nats_sink(&server.url(), "CDR"));
    let mut bridge = Bridge::start(&format!("{}[shutdown]\ngrace_period = '5s'\n{sinks}", on_fixed_port())).await;
    let load = steady("SIGTERM in an outage", &bridge);
    load.progress(300).await;
    kafka::delete_topic(&kafka, &topic).await;
    let marks = load.marks();
    server.kill();
    for _ in 0..STOPS {
        unready(&bridge, "kafka", &topic).await;
        unready(&bridge, "nats", "").await;
        for sink in ["kafka", "nats"] {
            let retrying = format!("cdrelay_sink_retrying{{sink=\"{sink}\"}}");
            eventually(PATIENCE, &retrying, async || bridge.metric(&retrying).await > Some(0.0)).await;
        }
        load.progress(200).await;
        bridge.terminate();
        let begun = Instant::now();
        let status = bridge.wait(PATIENCE).await;
        println!("ended after {:?}", begun.elapsed());
        assert!(status.success(), "{status}");
        // The grace period, and a machine that is busy.
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
        bridge.start_again().await;
    }
    kafka::create_topic(&kafka, &topic, 6).await;
    server.start_again().await;
    catch_up(&bridge, "kafka", "after the outage").await;
    catch_up(&bridge, "nats", "after the outage").await;
    let sent = load.stop().await;
    settled(&bridge, &["kafka", "nats"]).await;
    let nats = sent.check_nats(&nats::stream_all(&server.url(), "CDR").await);
    let sent = sent.emptied_at(&marks);
    let kafka = sent.check_kafka(&kafka::consume_all(&kafka, &topic, PATIENCE).await);
    println!("{STOPS} SIGTERM in an outage, {} events: duplicates in Kafka {kafka}, JetStream {nats}", sent.count());
    assert_eq!(nats, 0, "the stream knows what it has");
    for sink in ["kafka", "nats"] {
        no_dead_letters(&bridge, sink).await;
    }
}
