//! Topics that were deleted and created again while the sink was idle.

use crate::kafka_sink::{insist, message, sink};
use crate::support::kafka::{Cluster, consume_all, create_topic, delete_topic, shared, unique_topic};
use crate::support::{PATIENCE, until};
use cdrelay::sink::{Message, Sink};
use futures_util::{StreamExt, stream};
use serde_json::json;
use std::collections::HashSet;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Messages of 60 conversations, which lie in all of a few partitions.
fn conversations(topic: &str) -> Vec<Message> {
    (0..60).map(|number| message(topic, &format!("c{number}"), format!("{number}"))).collect()
}

#[tokio::test]
async fn one_with_fewer_partitions_gets_every_message() {
    let topic = unique_topic("fewer");
    create_topic(&shared(), &topic, 12).await;
    let sink = sink(json!({ "brokers": shared() }));
    for message in &conversations(&topic) {
        sink.publish(message).await.unwrap();
    }
    delete_topic(&shared(), &topic).await;
    create_topic(&shared(), &topic, 2).await;
    stream::iter(&conversations(&topic))
        .for_each_concurrent(None, async |message| insist(&sink, message).await.unwrap())
        .await;
    let payloads: HashSet<_> =
        consume_all(&shared(), &topic, PATIENCE).await.into_iter().map(|it| it.payload).collect();
    assert_eq!(payloads.len(), 60);
    sink.close().await;
}

/// The partitions of the new topic begin with leader epoch 0. librdkafka takes that for outdated and keeps to the former leader, for ever.
#[tokio::test]
async fn one_with_another_leader_gets_every_message() {
    let mut cluster = Cluster::start().await;
    let brokers = cluster.addresses();
    cluster.create_topic_on("cdr", &[&[1, 2], &[3, 2]], &[]).await;
    let sink = sink(json!({ "brokers": brokers }));
    let publish_all = async || {
        stream::iter(&conversations("cdr"))
            .for_each_concurrent(None, async |message| insist(&sink, message).await.unwrap())
            .await;
    };
    publish_all().await;
    cluster.node(1).kill();
    until(PATIENCE, "another node leads", async || (cluster.leaders("cdr").await[0] == 2).then_some(())).await;
    // So that librdkafka learns of the new leader, and of its epoch.
    publish_all().await;
    cluster.node(1).start_again().await;

    delete_topic(&brokers, "cdr").await;
    cluster.create_topic_on("cdr", &[&[3, 1], &[3, 2]], &[]).await;
    let begun = Instant::now();
    // Partition 1 acknowledges all the while.
    let other_partition = async {
        loop {
            insist(&sink, &message("cdr", "conversation-2", "other")).await.unwrap();
            sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        () = publish_all() => {}
        () = other_partition => {}
    }
    println!("delivered {:.1} s after the topic was made anew", begun.elapsed().as_secs_f64());
    let payloads: HashSet<_> = consume_all(&brokers, "cdr", PATIENCE).await.into_iter().map(|it| it.payload).collect();
    assert_eq!(payloads.len(), 61);
    sink.close().await;
}
