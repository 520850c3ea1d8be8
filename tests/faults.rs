//! Everything that can go wrong around the bridge while webhooks come in: nothing acknowledged is lost, and order is held.

use std::time::{Duration, Instant};

use async_nats::jetstream::stream;
use tokio::time::sleep;

use crate::support::oracle::{Load, Running, settled};
use crate::support::proxy::{Line, Proxy};
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

/// Waits until the sink is not ready for a reason with this in it.
async fn unready(bridge: &Bridge, sink: &str, reason: &str) {
    let what = format!("{sink} is not ready: {reason}");
    eventually(PATIENCE, &what, async || {
        let state = bridge.admin("/readyz").await.json();
        state["sinks"][sink]["reason"].as_str().is_some_and(|found| found.contains(reason))
    })
    .await;
}

/// Waits until nothing of an outage is left but what is on its way anyway.
async fn settled_under_load(bridge: &Bridge, sink: &str) {
    let lag = format!("cdrelay_sink_lag_seconds{{sink=\"{sink}\"}}");
    let what = format!("{sink} has caught up");
    eventually(PATIENCE, &what, async || bridge.metric(&lag).await.unwrap() < 0.5).await;
    eventually(PATIENCE, "the bridge is ready", async || bridge.admin("/readyz").await.status == 200).await;
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

#[tokio::test]
async fn a_topic_deleted_and_created_again_gets_everything_that_came_since() {
    let (kafka, topic) = (kafka::shared(), kafka::unique_topic("deleted"));
    kafka::create_topic(&kafka, &topic, 6).await;
    let sink = format!("[sinks.kafka]\ntype = 'kafka'\nbrokers = '{kafka}'\ntopic = '{topic}'");
    let bridge = Bridge::start(&format!("{ANY_PORTS}{sink}")).await;
    let load = steady("topic deleted", &bridge);
    load.progress(300).await;
    kafka::delete_topic(&kafka, &topic).await;
    let marks = load.marks();
    unready(&bridge, "kafka", &topic).await;
    load.progress(300).await;
    kafka::create_topic(&kafka, &topic, 6).await;
    let created = Instant::now();
    settled_under_load(&bridge, "kafka").await;
    println!("the topic was in use again after {:?}", created.elapsed());
    load.progress(300).await;
    let sent = load.stop().await.emptied_at(&marks);
    settled(&bridge, &["kafka"]).await;
    sent.check_kafka(&kafka::consume_all(&kafka, &topic, PATIENCE).await);
    no_dead_letters(&bridge, "kafka").await;
}

#[tokio::test]
async fn a_stream_deleted_and_created_again_gets_everything_that_came_since() {
    let (nats, stream) = (nats::shared(), nats::unique_name("deleted"));
    let subjects = format!("{stream}.>");
    nats::create_stream(&nats, &stream, &[&subjects]).await;
    let sink =
        format!("[sinks.nats]\ntype = 'nats'\nservers = '{nats}'\nsubject = '{stream}.{{team}}.{{conversation_uuid}}'");
    let bridge = Bridge::start(&format!("{ANY_PORTS}{sink}")).await;
    let load = steady("stream deleted", &bridge);
    load.progress(300).await;
    nats::delete_stream(&nats, &stream).await;
    let marks = load.marks();
    unready(&bridge, "nats", "no JetStream stream takes subject").await;
    load.progress(300).await;
    nats::create_stream(&nats, &stream, &[&subjects]).await;
    let created = Instant::now();
    settled_under_load(&bridge, "nats").await;
    println!("the stream was in use again after {:?}", created.elapsed());
    load.progress(300).await;
    let sent = load.stop().await.emptied_at(&marks);
    settled(&bridge, &["nats"]).await;
    assert_eq!(sent.check_nats(&all_of(&nats, &stream).await), 0);
    no_dead_letters(&bridge, "nats").await;
}

#[tokio::test]
async fn a_nats_server_that_comes_back_with_an_empty_disk_gets_its_stream_and_everything_that_came_since() {
    let mut server = nats::Server::start("").await;
    let sink = format!("[sinks.nats]\ntype = 'nats'\nservers = '{}'\nack_timeout = '2s'", server.url());
    let bridge = Bridge::start(&format!("{ANY_PORTS}{sink}\n[sinks.nats.stream]\nname = 'CDR'\ncreate = true")).await;
    let load = steady("empty disk", &bridge);
    load.progress(300).await;
    server.kill();
    let marks = load.marks();
    server.forget();
    load.progress(300).await;
    server.start_again().await;
    let started = Instant::now();
    settled_under_load(&bridge, "nats").await;
    println!("the server was in use again after {:?}", started.elapsed());
    load.progress(300).await;
    let sent = load.stop().await.emptied_at(&marks);
    settled(&bridge, &["nats"]).await;
    assert_eq!(sent.check_nats(&all_of(&server.url(), "CDR").await), 0);
    no_dead_letters(&bridge, "nats").await;
}

#[tokio::test]
async fn a_full_stream_that_discards_new_messages_goes_on_each_time_it_is_purged() {
    const ROOM: usize = 400;
    let (nats, stream) = (nats::shared(), nats::unique_name("full"));
    let limited = stream::Config {
        name: stream.clone(),
        subjects: vec![format!("{stream}.>")],
        discard: stream::DiscardPolicy::New,
        max_messages: ROOM as i64,
        ..Default::default()
    };
    nats::create_stream_with(&nats, limited).await;
    let sink =
        format!("[sinks.nats]\ntype = 'nats'\nservers = '{nats}'\nsubject = '{stream}.{{team}}.{{conversation_uuid}}'");
    let bridge = Bridge::start(&format!("{ANY_PORTS}{sink}")).await;
    let load = Load { conversations: 40, events: 30, ..Load::new("stream full") }.start(&bridge.ingress_url());
    let sent = load.finish().await;
    assert_eq!(sent.refused, 0, "the spool takes what the stream does not");
    let mut received = Vec::new();
    let mut purges = 0;
    // While the stream is full nothing comes between reading and emptying it.
    while received.len() + ROOM < sent.count() {
        unready(&bridge, "nats", "maximum messages exceeded").await;
        assert_eq!(bridge.admin("/readyz").await.status, 503);
        let held = nats::stream_messages(&nats, &stream, ROOM, PATIENCE).await;
        received.extend(held);
        nats::purge_stream(&nats, &stream).await;
        purges += 1;
        let full = async || nats::stream_length(&nats, &stream).await == ROOM as u64;
        eventually(PATIENCE, "the stream is full again", full).await;
    }
    settled(&bridge, &["nats"]).await;
    received.extend(all_of(&nats, &stream).await);
    println!("full and purged {purges} times");
    assert_eq!(sent.check_nats(&received), 0);
    no_dead_letters(&bridge, "nats").await;
}

#[tokio::test]
async fn a_nats_user_who_may_not_publish_gets_everything_through_once_he_may() {
    let users = |denied: &str| {
        format!(
            "no_auth_user: admin
            authorization {{ users: [
                {{ user: admin, password: admin }}
                {{ user: cdrelay, password: secret, permissions: {{ publish: {{ deny: [{denied}] }} }} }}
            ] }}"
        )
    };
    let server = nats::Server::start(&users("")).await;
    nats::create_stream(&server.url(), "CDR", &["telecmi.cdr.>"]).await;
    let sink = format!(
        "[sinks.nats]\ntype = 'nats'\nservers = '{}'\nuser = 'cdrelay'\npassword = 'secret'\nack_timeout = '1s'",
        server.url()
    );
    let bridge = Bridge::start(&format!("{ANY_PORTS}{sink}")).await;
    let load = steady("permission denied", &bridge);
    for _ in 0..2 {
        load.progress(300).await;
        server.reload(&users("\"telecmi.>\""));
        unready(&bridge, "nats", "Permissions Violation").await;
        load.progress(300).await;
        server.reload(&users(""));
        let granted = Instant::now();
        settled_under_load(&bridge, "nats").await;
        println!("the permission was in use after {:?}", granted.elapsed());
    }
    let sent = load.stop().await;
    settled(&bridge, &["nats"]).await;
    assert_eq!(sent.check_nats(&all_of(&server.url(), "CDR").await), 0);
    assert_eq!(sent.refused, 0);
    no_dead_letters(&bridge, "nats").await;
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
    println!("/readyz: {}", bridge.admin("/readyz").await.json()["sinks"]["kafka"]["reason"]);
    kafka::allow_writing(&broker.address(), "cdr").await;
    let granted = Instant::now();
    settled_under_load(&bridge, "kafka").await;
    println!("the permission was in use after {:?}", granted.elapsed());
    load.progress(300).await;
    let sent = load.stop().await;
    settled(&bridge, &["kafka"]).await;
    assert_eq!(sent.check_kafka(&kafka::consume_all(&broker.address(), "cdr", PATIENCE).await), 0);
    assert_eq!(sent.refused, 0);
    no_dead_letters(&bridge, "kafka").await;
}

#[tokio::test]
async fn a_network_that_is_slow_breaks_off_and_falls_silent_loses_nothing() {
    const RESETS: usize = 5;
    let server = nats::Server::start("").await;
    nats::create_stream(&server.url(), "CDR", &["telecmi.cdr.>"]).await;
    let proxy = Proxy::start(server.url().replace("nats://", "")).await;
    let sink = format!("[sinks.nats]\ntype = 'nats'\nservers = 'nats://{}'\nack_timeout = '2s'", proxy.address());
    let bridge = Bridge::start(&format!("{ANY_PORTS}{sink}")).await;
    let load = steady("bad network", &bridge);
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
    settled_under_load(&bridge, "nats").await;

    proxy.set(Line { silent: true, ..Line::default() });
    unready(&bridge, "nats", "").await;
    // Not a wait for anything: this is how long the silence lasts.
    sleep(Duration::from_secs(15)).await;
    proxy.set(Line::default());
    let back = Instant::now();
    settled_under_load(&bridge, "nats").await;
    println!("{RESETS} resets, {} connections; in use {:?} after the silence", proxy.connections(), back.elapsed());
    let sent = load.stop().await;
    settled(&bridge, &["nats"]).await;
    assert_eq!(sent.check_nats(&all_of(&server.url(), "CDR").await), 0, "the stream knows what it has");
    assert_eq!(sent.refused, 0);
    no_dead_letters(&bridge, "nats").await;
}
