//! Topics and partitions of Kafka that are away while the cluster is up: named within seconds, and of no cost to the others.

mod made_anew;

use crate::kafka_sink::{insist, message, sink};
use crate::support::fault::{catch_up, kafka_sink, no_dead_letters, ready, steady, unready};
use crate::support::kafka::{
    Broker, Cluster, PASSWORD, USER, alter_topic, consume, consume_all, consume_times, create_topic, create_topic_with,
    limit_producer, plain_login, shared, unique_topic,
};
use crate::support::oracle::settled;
use crate::support::{ANY_PORTS, Bridge, PATIENCE, eventually, free_port, until};
use cdrelay::sink::{Failure, Sink};
use futures_util::{StreamExt, stream};
use serde_json::json;
use std::collections::{HashMap, HashSet};
use std::fs::{copy, write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::{Instant, sleep};

/// Within this time readiness, metric and log name a place that is away.
const NAMED: Duration = Duration::from_secs(5);

#[tokio::test]
async fn thousands_of_missing_topics_are_answered_within_seconds() {
    let topic = unique_topic("present");
    create_topic(&shared(), &topic, 3).await;
    let sink = sink(json!({ "brokers": shared() }));
    let missing: Vec<_> = (0..3000).map(|number| unique_topic(&format!("missing.{number}"))).collect();
    let messages: Vec<_> = missing.iter().map(|topic| message(topic, topic, "{}")).collect();
    let begun = Instant::now();
    let failures: Vec<_> =
        stream::iter(&messages).map(|message| sink.publish(message)).buffer_unordered(2048).collect().await;
    println!("3,000 missing topics: answered in {:.2} s", begun.elapsed().as_secs_f64());
    assert!(begun.elapsed() < NAMED);
    assert_eq!(failures.len(), 3000);
    assert!(failures.iter().all(|result| matches!(result, Err(Failure::Place { expires: true, .. }))));
    let begun = Instant::now();
    sink.publish(&message(&topic, "c", "{}")).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2));

    create_topic(&shared(), &missing[0], 1).await;
    let begun = Instant::now();
    insist(&sink, &messages[0]).await.unwrap();
    println!("a created topic: found in {:.2} s", begun.elapsed().as_secs_f64());
    assert!(begun.elapsed() < Duration::from_secs(3));
    sink.close().await;
}

#[tokio::test]
async fn a_refused_timestamp_waits_until_it_is_accepted() {
    let topic = unique_topic("timestamp");
    create_topic_with(&shared(), &topic, 1, &[("message.timestamp.before.max.ms", "0")]).await;
    let sink = sink(json!({ "brokers": shared(), "linger": "20ms" }));
    let failure = sink.publish(&message(&topic, "c", "1")).await.unwrap_err();
    assert!(matches!(failure, Failure::Place { expires: false, .. }), "{failure:?}");
    assert!(failure.to_string().contains("imestamp"), "{failure}");
    alter_topic(&shared(), &topic, &[("message.timestamp.before.max.ms", "3600000")]).await;
    insist(&sink, &message(&topic, "c", "1")).await.unwrap();
    sink.close().await;
}

#[tokio::test]
async fn a_producer_id_that_the_broker_has_forgotten_costs_nothing() {
    let expire = [("producer.id.expiration.ms", "500"), ("producer.id.expiration.check.interval.ms", "100")];
    let broker = Broker::start(&expire).await;
    create_topic(&broker.address(), "cdr", 1).await;
    let sink = sink(json!({ "brokers": broker.address() }));
    for number in 0..3 {
        insist(&sink, &message("cdr", "c", format!("{number}"))).await.unwrap();
        // Not a wait for anything: for so long the producer says nothing.
        sleep(Duration::from_secs(2)).await;
    }
    assert_eq!(consume_all(&broker.address(), "cdr", PATIENCE).await.len(), 3);
    sink.close().await;
}

/// What `/readyz` names for the sink: each place with its cause.
async fn places(bridge: &Bridge) -> HashMap<String, String> {
    let answer = bridge.admin("/readyz").await.json();
    let places = answer["sinks"]["kafka"]["places"].as_array().cloned().unwrap_or_default();
    places
        .iter()
        .map(|it| (it["place"].as_str().unwrap().to_owned(), it["cause"].as_str().unwrap().to_owned()))
        .collect()
}

/// Posts a new conversation every 5 ms until the bridge names a place with this in its cause; returns places, causes, and the time.
async fn named(bridge: &Bridge, cause: &str) -> HashMap<String, String> {
    let begun = Instant::now();
    let mut number = 0;
    let found = until(NAMED, &format!("a place is named: {cause}"), async || {
        number += 1;
        assert_eq!(bridge.post(event("named", number), "application/json").await.status, 200);
        let places = places(bridge).await;
        places.values().any(|found| found.contains(cause)).then_some(places)
    })
    .await;
    println!("named after {:.1} s: {found:?}", begun.elapsed().as_secs_f64());
    assert!(bridge.metric("cdrelay_sink_places_unavailable{sink=\"kafka\"}").await.unwrap() >= 1.0);
    let place = found.iter().find(|(_, found)| found.contains(cause)).unwrap().0;
    assert!(bridge.stderr().contains(place.as_str()), "the log names {place}");
    found
}

fn event(prefix: &str, number: usize) -> String {
    let custom = "x".repeat(300);
    format!(
        r#"{{"type":"event","appid":1,"conversation_uuid":"{prefix}-{number}","status":"started","custom":"{custom}"}}"#
    )
}

#[tokio::test]
async fn thousands_of_events_for_missing_topics_hold_up_no_other() {
    let prefix = unique_topic("teams");
    let topic = |team: &str| format!("{prefix}.{team}");
    create_topic(&shared(), &topic("Sales"), 3).await;
    let sink = kafka_sink(&shared(), &format!("{prefix}.{{team}}"));
    let bridge = Bridge::start(&format!("{ANY_PORTS}{sink}")).await;
    let event = |team: &str, number: usize| {
        format!(
            r#"{{"type":"event","appid":1,"team":"{team}","conversation_uuid":"{team}-{number}","status":"started"}}"#
        )
    };
    for batch in 0..30 {
        let events: Vec<_> =
            (0..100).map(|number| event(&format!("missing{}", batch * 100 + number), number)).collect();
        assert_eq!(bridge.post(format!("[{}]", events.join(",")), "application/json").await.status, 200);
    }
    let begun = Instant::now();
    assert_eq!(bridge.post(event("Sales", 1), "application/json").await.status, 200);
    eventually(PATIENCE, "the good event is delivered", async || {
        bridge.metric("cdrelay_sink_published_total{sink=\"kafka\"}").await == Some(1.0)
    })
    .await;
    println!("behind 3,000 events for missing topics: delivered in {:.2} s", begun.elapsed().as_secs_f64());
    assert!(begun.elapsed() < NAMED);
    let ready = bridge.admin("/readyz").await;
    assert_eq!(ready.status, 200, "{}", ready.text());
    assert!(ready.text().contains("does not exist"), "{}", ready.text());
    println!("{} places are away", bridge.metric("cdrelay_sink_places_unavailable{sink=\"kafka\"}").await.unwrap());

    create_topic(&shared(), &topic("missing7"), 1).await;
    assert_eq!(consume(&shared(), &topic("missing7"), 1, PATIENCE).await.len(), 1);
    no_dead_letters(&bridge, "kafka").await;
}

#[tokio::test]
async fn partitions_without_a_leader_or_enough_replicas_are_named_while_the_others_go_on() {
    let mut cluster = Cluster::start().await;
    let brokers = cluster.addresses();
    cluster.create_topic_on("leaderless", &[&[1], &[2], &[3]], &[]).await;
    cluster.create_topic_on("replicas", &[&[1, 2], &[1, 3], &[3, 1]], &[("min.insync.replicas", "2")]).await;
    let leaderless = Bridge::start(&format!("{ANY_PORTS}{}", kafka_sink(&brokers, "leaderless"))).await;
    let replicas = Bridge::start(&format!("{ANY_PORTS}{}", kafka_sink(&brokers, "replicas"))).await;
    for bridge in [&leaderless, &replicas] {
        assert_eq!(bridge.post(event("before", 1), "application/json").await.status, 200);
        settled(bridge, &["kafka"]).await;
    }
    cluster.node(2).kill();
    until(PATIENCE, "partition 1 has no leader", async || (cluster.leaders("leaderless").await[1] < 0).then_some(()))
        .await;
    let found = named(&leaderless, "LeaderNotAvailable").await;
    assert_eq!(found.keys().collect::<Vec<_>>(), ["topic leaderless partition 1"]);
    let found = named(&replicas, "NotEnoughReplicas").await;
    assert_eq!(found.keys().collect::<Vec<_>>(), ["topic replicas partition 0"]);
    assert!(found.values().all(|cause| cause.contains("`min.insync.replicas` is 2")), "{found:?}");
    for bridge in [&leaderless, &replicas] {
        assert_eq!(bridge.admin("/readyz").await.status, 200, "two of three partitions work");
    }
    cluster.node(2).start_again().await;
    for (bridge, topic) in [(&leaderless, "leaderless"), (&replicas, "replicas")] {
        settled(bridge, &["kafka"]).await;
        eventually(PATIENCE, "no place is named any more", async || places(bridge).await.is_empty()).await;
        no_dead_letters(bridge, "kafka").await;
        let stored = consume_all(&cluster.addresses(), topic, PATIENCE).await;
        let different: HashSet<_> = stored.iter().map(|it| it.payload.clone()).collect();
        println!("{topic}: {} events, {} duplicates", different.len(), stored.len() - different.len());
    }
}

#[tokio::test]
async fn a_topic_without_any_leader_makes_a_required_sink_unready() {
    let mut cluster = Cluster::start().await;
    cluster.create_topic_on("cdr", &[&[2], &[2]], &[]).await;
    let addresses = cluster.addresses();
    let bridge = Bridge::start(&format!("{ANY_PORTS}{}", kafka_sink(&addresses, "cdr"))).await;
    ready(&bridge).await;
    cluster.node(2).kill();
    let begun = Instant::now();
    assert_eq!(bridge.post(event("lost", 1), "application/json").await.status, 200);
    unready(&bridge, "kafka", "topic cdr partition").await;
    println!("unready after {:.1} s", begun.elapsed().as_secs_f64());
    // The broker itself is taken for dead after 3 s.
    assert!(begun.elapsed() < NAMED + Duration::from_secs(3));
    cluster.node(2).start_again().await;
    catch_up(&bridge, "kafka", "the leader is back").await;
}

#[tokio::test]
async fn half_of_the_partitions_away_do_not_hold_up_the_other_half() {
    const CONVERSATIONS: usize = 6000;
    let mut cluster = Cluster::start().await;
    let append_time = [("message.timestamp.type", "LogAppendTime")];
    cluster.create_topic_on("cdr", &[&[1], &[1], &[1], &[2], &[2], &[2]], &append_time).await;
    let bridge = Bridge::start(&format!("{ANY_PORTS}{}", kafka_sink(&cluster.addresses(), "cdr"))).await;
    assert_eq!(bridge.post(event("before", 0), "application/json").await.status, 200);
    settled(&bridge, &["kafka"]).await;
    cluster.node(2).kill();

    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
    let begun = Instant::now();
    // 400 a second: each waits for its moment, and some posts run at the same time.
    let posted: HashMap<String, i64> = stream::iter(0..CONVERSATIONS)
        .map(|number| {
            let bridge = &bridge;
            async move {
                tokio::time::sleep_until(begun + Duration::from_micros(2500) * number as u32).await;
                assert_eq!(bridge.post(event("half", number), "application/json").await.status, 200);
                (format!("half-{number}"), now())
            }
        })
        .buffer_unordered(64)
        .collect()
        .await;
    println!("{CONVERSATIONS} conversations in {:.1} s, {:?}", begun.elapsed().as_secs_f64(), places(&bridge).await);
    println!("peak memory {} MiB", bridge.peak_rss_bytes() >> 20);
    cluster.node(2).start_again().await;
    let restarted = Instant::now();
    settled(&bridge, &["kafka"]).await;
    println!("everything delivered {:.1} s after the restart", restarted.elapsed().as_secs_f64());

    let stored = consume_times(&cluster.addresses(), "cdr", PATIENCE).await;
    let (mut live, mut seen) = (Vec::new(), HashSet::new());
    for (partition, appended, payload) in &stored {
        let event: serde_json::Value = serde_json::from_slice(payload).unwrap();
        let conversation = event["conversation_uuid"].as_str().unwrap().to_owned();
        if let Some(posted) = posted.get(&conversation).filter(|_| *partition < 3 && !seen.contains(&conversation)) {
            live.push(appended - posted);
        }
        seen.insert(conversation);
    }
    live.sort_unstable();
    let (median, slowest) = (live[live.len() / 2], live[live.len() - 1]);
    println!("{} of the live half: median {median} ms, slowest {slowest} ms", live.len());
    println!("{} duplicates", stored.len() - seen.len());
    assert_eq!(seen.len(), CONVERSATIONS + 1);
    assert!(live.len() > CONVERSATIONS / 3);
    assert!(slowest < 2000, "{slowest} ms");
    no_dead_letters(&bridge, "kafka").await;
}

#[tokio::test]
async fn a_wrong_advertised_listener_is_named_and_once_mended_events_arrive_within_30_s() {
    let wrong = format!("PLAINTEXT://127.0.0.1:{}", free_port());
    let mut broker = Broker::start(&[]).await;
    create_topic(&broker.address(), "cdr", 3).await;
    broker.stop().await;
    broker.set(&[("advertised.listeners", &wrong)]);
    broker.start_again().await;
    let bridge = Bridge::start(&format!("{ANY_PORTS}{}", kafka_sink(&broker.address(), "cdr"))).await;
    for number in 0..50 {
        assert_eq!(bridge.post(event("advertised", number), "application/json").await.status, 200);
    }
    let address = wrong.trim_start_matches("PLAINTEXT://");
    eventually(PATIENCE, "the address is named", async || {
        places(&bridge).await.values().any(|cause| cause.contains(address))
    })
    .await;
    unready(&bridge, "kafka", address).await;
    // Not a wait for anything: for so long the listener stays wrong, and producers that hang are replaced.
    sleep(Duration::from_secs(20)).await;
    broker.stop().await;
    broker.set(&[("advertised.listeners", &format!("PLAINTEXT://{}", broker.address()))]);
    broker.start_again().await;
    let mended = Instant::now();
    settled(&bridge, &["kafka"]).await;
    println!("delivered {:.1} s after the mend", mended.elapsed().as_secs_f64());
    assert!(mended.elapsed() < Duration::from_secs(30));
    no_dead_letters(&bridge, "kafka").await;
}

#[tokio::test]
async fn renewed_certificates_and_passwords_are_used_without_a_restart() {
    let mut broker = Broker::start_sasl_tls(&[]).await;
    let authority = broker.authority();
    broker.stop().await;
    broker.set(&[
        ("listener.name.sasl_ssl.ssl.client.auth", "required"),
        ("listener.name.sasl_ssl.ssl.truststore.type", "PEM"),
        ("listener.name.sasl_ssl.ssl.truststore.location", authority.to_str().unwrap()),
    ]);
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let install = |files: &crate::support::tls::Files, password: &str| {
        copy(&files.authority, path("ca.pem")).unwrap();
        copy(&files.certificate, path("certificate.pem")).unwrap();
        copy(&files.key, path("key.pem")).unwrap();
        write(path("password"), password).unwrap();
    };
    install(&broker.renew_certificate(), PASSWORD);
    broker.start_again().await;
    create_topic(&broker.address(), "cdr", 6).await;
    let config = format!(
        "{ANY_PORTS}
        [sinks.kafka]
        type = 'kafka'
        brokers = '{}'
        topic = 'cdr'
        [sinks.kafka.tls]
        ca_file = {:?}
        cert_file = {:?}
        key_file = {:?}
        [sinks.kafka.sasl]
        mechanism = 'PLAIN'
        username = '{USER}'
        password_file = {:?}",
        broker.secure_address(),
        path("ca.pem"),
        path("certificate.pem"),
        path("key.pem"),
        path("password"),
    );
    let bridge = Bridge::start(&config).await;
    let load = steady("renewed certificates", &bridge);
    load.progress(300).await;

    // The files first, as it should be done: the producer in use is replaced without a message lost or sent twice.
    install(&broker.renew_certificate(), "renewed");
    load.progress(100).await;
    broker.set(&[("listener.name.sasl_ssl.plain.sasl.jaas.config", &plain_login("renewed"))]);
    broker.kill();
    broker.start_again().await;
    catch_up(&bridge, "kafka", "files renewed before the broker").await;
    load.progress(300).await;

    // The broker first.
    let files = broker.renew_certificate();
    broker.set(&[("listener.name.sasl_ssl.plain.sasl.jaas.config", &plain_login("renewed again"))]);
    broker.kill();
    broker.start_again().await;
    load.progress(300).await;
    unready(&bridge, "kafka", "certificate").await;
    install(&files, "renewed again");
    catch_up(&bridge, "kafka", "files renewed after the broker").await;
    load.progress(300).await;
    let sent = load.stop().await;
    settled(&bridge, &["kafka"]).await;
    let duplicates = sent.check_kafka(&consume_all(&broker.address(), "cdr", PATIENCE).await);
    println!("{} events, {duplicates} duplicates", sent.count());
    assert_eq!(sent.refused, 0);
    no_dead_letters(&bridge, "kafka").await;
}

#[tokio::test]
async fn a_throttled_client_is_named_so_and_stays_ready() {
    let broker = Broker::start(&[]).await;
    create_topic(&broker.address(), "cdr", 6).await;
    let bridge = Bridge::start(&format!("{ANY_PORTS}{}", kafka_sink(&broker.address(), "cdr"))).await;
    let load = steady("throttled", &bridge);
    load.progress(300).await;
    limit_producer(&broker.address(), "cdrelay", Some(20_000)).await;
    eventually(PATIENCE, "the log names the quota", async || bridge.stderr().contains("throttles this client")).await;
    let until = Instant::now() + Duration::from_secs(20);
    while Instant::now() < until {
        let answer = bridge.admin("/readyz").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(places(&bridge).await.is_empty());
        sleep(Duration::from_millis(100)).await;
    }
    limit_producer(&broker.address(), "cdrelay", None).await;
    let sent = load.stop().await;
    settled(&bridge, &["kafka"]).await;
    let duplicates = sent.check_kafka(&consume_all(&broker.address(), "cdr", PATIENCE).await);
    println!("{} events, {duplicates} duplicates", sent.count());
    no_dead_letters(&bridge, "kafka").await;
}
