//! Clusters that lose the node that leads, again and again, while webhooks come in: nothing acknowledged is lost, and order is held.

use crate::support::fault::{catch_up, gentle, kafka_sink, nats_sink, no_dead_letters};
use crate::support::oracle::settled;
use crate::support::{ANY_PORTS, Bridge, PATIENCE, kafka, nats};

#[tokio::test]
async fn a_kafka_cluster_whose_leaders_are_killed_in_turn_gets_every_event_in_order() {
    const KILLS: usize = 3;
    let mut cluster = kafka::Cluster::start().await;
    cluster.create_topic("cdr", 6).await;
    let bridge = Bridge::start(&format!("{ANY_PORTS}{}", kafka_sink(&cluster.addresses(), "cdr"))).await;
    let load = gentle("Kafka leaders killed in turn", &bridge);
    load.progress(200).await;
    for _ in 0..KILLS {
        let leaders = cluster.leaders("cdr").await;
        let node = leaders[0];
        cluster.node(node).kill();
        load.progress(200).await;
        // Two of three are enough.
        catch_up(&bridge, "kafka", &format!("node {node} was killed, leaders were {leaders:?}")).await;
        cluster.node(node).start_again().await;
        cluster.in_sync("cdr").await;
    }
    let sent = load.stop().await;
    settled(&bridge, &["kafka"]).await;
    let duplicates = sent.check_kafka(&kafka::consume_all(&cluster.addresses(), "cdr", PATIENCE).await);
    println!("{} events, {KILLS} kills, {duplicates} duplicates", sent.count());
    assert_eq!(sent.refused, 0);
    no_dead_letters(&bridge, "kafka").await;
}

#[tokio::test]
async fn a_jetstream_cluster_whose_stream_leader_is_killed_gets_every_event_in_order() {
    const KILLS: usize = 2;
    let mut cluster = nats::Cluster::start().await;
    cluster.create_stream("CDR", &["CDR.>"]).await;
    let sink = format!("{}ack_timeout = '2s'", nats_sink(&cluster.urls(), "CDR"));
    let bridge = Bridge::start(&format!("{ANY_PORTS}{sink}")).await;
    let load = gentle("JetStream leader killed", &bridge);
    load.progress(200).await;
    let mut before = None;
    for _ in 0..KILLS {
        let leader = cluster.leader("CDR").await;
        assert_ne!(Some(leader), before, "another one leads now");
        cluster.server(leader).kill();
        load.progress(200).await;
        catch_up(&bridge, "nats", &format!("server {leader} was killed, which led")).await;
        cluster.server(leader).start_again().await;
        cluster.in_sync("CDR").await;
        before = Some(leader);
    }
    let sent = load.stop().await;
    settled(&bridge, &["nats"]).await;
    let duplicates = sent.check_nats(&nats::stream_all(&cluster.urls(), "CDR").await);
    println!("{} events, {KILLS} kills, {duplicates} duplicates", sent.count());
    assert_eq!(sent.refused, 0);
    no_dead_letters(&bridge, "nats").await;
}
