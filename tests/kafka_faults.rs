//! What Kafka and the way to it can do while webhooks come in: nothing acknowledged is lost, and order is held.

use crate::support::fault::{catch_up, kafka_sink, no_dead_letters, steady, through_a_bad_network, unready};
use crate::support::oracle::settled;
use crate::support::{ANY_PORTS, Bridge, PATIENCE, eventually, kafka};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;

#[tokio::test]
async fn a_topic_deleted_and_created_again_gets_everything_that_came_since() {
    let (kafka, topic) = (kafka::shared(), kafka::unique_topic("deleted"));
    kafka::create_topic(&kafka, &topic, 6).await;
    let bridge = Bridge::start(&format!("{ANY_PORTS}{}", kafka_sink(&kafka, &topic))).await;
    let load = steady("topic deleted", &bridge);
    load.progress(300).await;
    kafka::delete_topic(&kafka, &topic).await;
    let marks = load.marks();
    unready(&bridge, "kafka", &topic).await;
    load.progress(300).await;
    kafka::create_topic(&kafka, &topic, 6).await;
    catch_up(&bridge, "kafka", "the topic is there again").await;
    load.progress(300).await;
    let sent = load.stop().await.emptied_at(&marks);
    settled(&bridge, &["kafka"]).await;
    sent.check_kafka(&kafka::consume_all(&kafka, &topic, PATIENCE).await);
    no_dead_letters(&bridge, "kafka").await;
}

#[tokio::test]
async fn a_kafka_user_who_may_not_write_gets_everything_through_once_he_may() {
    let broker = kafka::Broker::start_sasl_tls(&[
        ("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer"),
        ("super.users", "User:ANONYMOUS"),
    ])
    .await;
    kafka::create_topic(&broker.address(), "cdr", 6).await;
    let config = format!(
        "{ANY_PORTS}
        [sinks.kafka]
        type = 'kafka'
        brokers = '{}'
        topic = 'cdr'
        [sinks.kafka.tls]
        ca_file = {:?}
        [sinks.kafka.sasl]
        mechanism = 'PLAIN'
        username = '{}'
        password = '{}'",
        broker.secure_address(),
        broker.authority(),
        kafka::USER,
        kafka::PASSWORD
    );
    let bridge = Bridge::start(&config).await;
    let load = steady("ACL denied", &bridge);
    load.progress(300).await;
    unready(&bridge, "kafka", "uthoriz").await;
    kafka::allow_writing(&broker.address(), "cdr").await;
    catch_up(&bridge, "kafka", "the permission is granted").await;
    load.progress(300).await;
    let sent = load.stop().await;
    settled(&bridge, &["kafka"]).await;
    assert_eq!(sent.check_kafka(&kafka::consume_all(&broker.address(), "cdr", PATIENCE).await), 0);
    assert_eq!(sent.refused, 0);
    no_dead_letters(&bridge, "kafka").await;
}

#[tokio::test]
async fn a_kafka_that_comes_back_with_an_empty_disk_gets_everything_that_came_since() {
    let mut broker = kafka::Broker::start(&[]).await;
    let address = broker.address();
    kafka::create_topic(&address, "cdr", 6).await;
    let bridge = Bridge::start(&format!("{ANY_PORTS}{}", kafka_sink(&address, "cdr"))).await;
    let load = steady("Kafka with an empty disk", &bridge);
    load.progress(300).await;
    broker.kill();
    let marks = load.marks();
    broker.forget().await;
    load.progress(300).await;
    broker.start_again().await;
    unready(&bridge, "kafka", "topic cdr: does not exist").await;
    kafka::create_topic(&address, "cdr", 6).await;
    catch_up(&bridge, "kafka", "the topic is there again").await;
    load.progress(300).await;
    let sent = load.stop().await.emptied_at(&marks);
    settled(&bridge, &["kafka"]).await;
    let duplicates = sent.check_kafka(&kafka::consume_all(&address, "cdr", PATIENCE).await);
    println!(
        "{} events, {} before the disk was emptied, {duplicates} duplicates",
        sent.count(),
        marks.iter().sum::<usize>()
    );
    assert_eq!(sent.refused, 0);
    no_dead_letters(&bridge, "kafka").await;
}

/// Opens so many connections. Those that the broker closes or accepts late were beyond its limit; others may take their places for as long
/// as these are open.
async fn hold_connections(broker: &kafka::Broker, count: usize) -> JoinSet<()> {
    let mut held = JoinSet::new();
    for _ in 0..count {
        let address = broker.address();
        held.spawn(async move {
            loop {
                // The broker sends nothing to a client that asks nothing: the read ends when the broker closes the connection.
                if let Ok(mut connection) = TcpStream::connect(&address).await {
                    let _ = connection.read(&mut [0]).await;
                }
                sleep(Duration::from_millis(20)).await;
            }
        });
    }
    held
}

/// The broker answers nobody who comes beyond the limit: it closes such a connection at once (the limit of an address), or does not accept
/// it before another one ends (the limit of a listener).
#[tokio::test]
async fn a_kafka_without_a_free_connection_is_named_and_gets_everything_once_there_is_one() {
    const LIMIT: usize = 20;
    for (limit, cause) in [
        ("max.connections.per.ip", "Disconnected"),
        ("listener.name.plaintext.max.connections", "ApiVersionRequest failed: Local: Timed out"),
    ] {
        let broker = kafka::Broker::start(&[(limit, &LIMIT.to_string())]).await;
        kafka::create_topic(&broker.address(), "cdr", 6).await;
        let held = hold_connections(&broker, 2 * LIMIT).await;
        let bridge = Bridge::start(&format!("{ANY_PORTS}{}", kafka_sink(&broker.address(), "cdr"))).await;
        let load = steady("Kafka's connection limit", &bridge);
        load.progress(300).await;
        let reason = unready(&bridge, "kafka", cause).await;
        assert!(reason.contains(&broker.address()), "{reason}");
        eventually(PATIENCE, "the log names the cause", async || bridge.stderr().contains(cause)).await;
        drop(held);
        catch_up(&bridge, "kafka", &format!("{limit}: connections are free")).await;
        load.progress(300).await;
        let sent = load.stop().await;
        settled(&bridge, &["kafka"]).await;
        assert_eq!(sent.check_kafka(&kafka::consume_all(&broker.address(), "cdr", PATIENCE).await), 0);
        assert_eq!(sent.refused, 0);
        no_dead_letters(&bridge, "kafka").await;
    }
}

#[tokio::test]
async fn a_network_to_kafka_that_is_slow_breaks_off_and_falls_silent_loses_nothing() {
    let (broker, proxy) = kafka::Broker::start_behind_proxy().await;
    kafka::create_topic(&broker.address(), "cdr", 6).await;
    let bridge = Bridge::start(&format!("{ANY_PORTS}{}", kafka_sink(&proxy.address().to_string(), "cdr"))).await;
    let sent = through_a_bad_network("bad network to Kafka", &bridge, "kafka", &proxy).await;
    let duplicates = sent.check_kafka(&kafka::consume_all(&broker.address(), "cdr", PATIENCE).await);
    println!("{} events, {duplicates} duplicates", sent.count());
    no_dead_letters(&bridge, "kafka").await;
}
