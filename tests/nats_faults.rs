//! What NATS and the way to it can do while webhooks come in: nothing acknowledged is lost, and order is held.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use async_nats::jetstream::stream;
use serde_json::Value;

use crate::support::fault::{catch_up, nats_sink, no_dead_letters, ready, steady, through_a_bad_network, unready};
use crate::support::oracle::{Load, settled};
use crate::support::proxy::Proxy;
use crate::support::{ANY_PORTS, Bridge, PATIENCE, eventually, nats};

#[tokio::test]
async fn a_stream_deleted_and_created_again_gets_everything_that_came_since() {
    let (nats, stream) = (nats::shared(), nats::unique_name("deleted"));
    let subjects = format!("{stream}.>");
    nats::create_stream(&nats, &stream, &[&subjects]).await;
    let bridge = Bridge::start(&format!("{ANY_PORTS}{}", nats_sink(&nats, &stream))).await;
    let load = steady("stream deleted", &bridge);
    load.progress(300).await;
    nats::delete_stream(&nats, &stream).await;
    let marks = load.marks();
    unready(&bridge, "nats", "no JetStream stream takes subject").await;
    load.progress(300).await;
    nats::create_stream(&nats, &stream, &[&subjects]).await;
    catch_up(&bridge, "nats", "the stream is there again").await;
    load.progress(300).await;
    let sent = load.stop().await.emptied_at(&marks);
    settled(&bridge, &["nats"]).await;
    assert_eq!(sent.check_nats(&nats::stream_all(&nats, &stream).await), 0);
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
    catch_up(&bridge, "nats", "the server is there again").await;
    load.progress(300).await;
    let sent = load.stop().await.emptied_at(&marks);
    settled(&bridge, &["nats"]).await;
    assert_eq!(sent.check_nats(&nats::stream_all(&server.url(), "CDR").await), 0);
    no_dead_letters(&bridge, "nats").await;
}

#[tokio::test]
async fn a_nats_server_in_lame_duck_mode_loses_nothing() {
    // The shortest that nats-server takes.
    let lame_duck = "lame_duck_duration: \"30s\"\nlame_duck_grace_period: \"1s\"";
    let mut server = nats::Server::start(lame_duck).await;
    nats::create_stream(&server.url(), "CDR", &["telecmi.cdr.>"]).await;
    let sink = format!("[sinks.nats]\ntype = 'nats'\nservers = '{}'", server.url());
    let bridge = Bridge::start(&format!("{ANY_PORTS}{sink}")).await;
    let load = steady("lame duck", &bridge);
    load.progress(300).await;
    server.retire().await;
    load.progress(300).await;
    server.start_again().await;
    catch_up(&bridge, "nats", "the server is there again").await;
    let sent = load.stop().await;
    settled(&bridge, &["nats"]).await;
    assert_eq!(sent.check_nats(&nats::stream_all(&server.url(), "CDR").await), 0);
    assert_eq!(sent.refused, 0);
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
    let bridge = Bridge::start(&format!("{ANY_PORTS}{}", nats_sink(&nats, &stream))).await;
    let load = Load { conversations: 40, events: 30, ..Load::new("stream full") }.start(&bridge.ingress_url());
    let sent = load.finish().await;
    assert_eq!(sent.refused, 0, "the spool takes what the stream does not");
    let mut received = Vec::new();
    let mut purges = 0;
    // While the stream is full nothing comes between reading and emptying it.
    while received.len() + ROOM < sent.count() {
        unready(&bridge, "nats", "maximum messages exceeded").await;
        let held = nats::stream_messages(&nats, &stream, ROOM, PATIENCE).await;
        received.extend(held);
        nats::purge_stream(&nats, &stream).await;
        purges += 1;
        let full = async || nats::stream_length(&nats, &stream).await == ROOM as u64;
        eventually(PATIENCE, "the stream is full again", full).await;
    }
    settled(&bridge, &["nats"]).await;
    received.extend(nats::stream_all(&nats, &stream).await);
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
        catch_up(&bridge, "nats", "the permission is granted").await;
    }
    let sent = load.stop().await;
    settled(&bridge, &["nats"]).await;
    assert_eq!(sent.check_nats(&nats::stream_all(&server.url(), "CDR").await), 0);
    assert_eq!(sent.refused, 0);
    no_dead_letters(&bridge, "nats").await;
}

#[tokio::test]
async fn a_network_to_nats_that_is_slow_breaks_off_and_falls_silent_loses_nothing() {
    let server = nats::Server::start("").await;
    nats::create_stream(&server.url(), "CDR", &["CDR.>"]).await;
    let proxy = Proxy::start(server.url().replace("nats://", "")).await;
    let sink = format!("{}ack_timeout = '2s'", nats_sink(&format!("nats://{}", proxy.address()), "CDR"));
    let bridge = Bridge::start(&format!("{ANY_PORTS}{sink}")).await;
    let sent = through_a_bad_network("bad network to NATS", &bridge, "nats", &proxy).await;
    assert_eq!(sent.check_nats(&nats::stream_all(&server.url(), "CDR").await), 0, "the stream knows what it has");
    no_dead_letters(&bridge, "nats").await;
}

#[tokio::test]
async fn a_denied_reply_inbox_is_named_stops_publishing_and_recovers_when_it_is_permitted() {
    let users = |subscribe: &str| {
        format!(
            "no_auth_user: admin
            authorization {{ users: [
                {{ user: admin, password: admin }}
                {{ user: cdrelay, password: secret, permissions: {{ subscribe: {{ deny: [{subscribe}] }} }} }}
            ] }}"
        )
    };
    const DENIED: &str = "\"_INBOX.>\"";
    let server = nats::Server::start(&users(DENIED)).await;
    // So short that every retry from behind it would be stored again.
    let config = stream::Config {
        name: "CDR".to_owned(),
        subjects: vec!["telecmi.cdr.>".to_owned()],
        duplicate_window: Duration::from_millis(200),
        ..Default::default()
    };
    nats::create_stream_with(&server.url(), config).await;
    let sink = format!(
        "[sinks.nats]\ntype = 'nats'\nservers = '{}'\nuser = 'cdrelay'\npassword = 'secret'\nack_timeout = '500ms'",
        server.url()
    );
    let bridge = Bridge::start(&format!("{ANY_PORTS}{sink}")).await;
    let load = steady("reply inbox denied", &bridge);
    load.progress(300).await;
    unready(&bridge, "nats", "Permissions Violation for Subscription").await;
    eventually(PATIENCE, "the log names the cause", async || {
        bridge.stderr().contains("Permissions Violation for Subscription")
    })
    .await;
    assert_eq!(bridge.metric("cdrelay_sink_up{sink=\"nats\"}").await, Some(0.0));
    assert_eq!(nats::stream_length(&server.url(), "CDR").await, 0, "nothing is published while no answer can arrive");
    server.reload(&users(""));
    catch_up(&bridge, "nats", "the inbox is permitted").await;

    let before = nats::stream_length(&server.url(), "CDR").await as usize;

    // Taken away while messages are in flight.
    server.reload(&users(DENIED));
    unready(&bridge, "nats", "Permissions Violation for Subscription").await;
    load.progress(600).await;
    let denied = nats::stream_length(&server.url(), "CDR").await as usize;
    server.reload(&users(""));
    catch_up(&bridge, "nats", "the inbox is permitted again").await;
    let sent = load.stop().await;
    settled(&bridge, &["nats"]).await;
    let stored = nats::stream_all(&server.url(), "CDR").await;
    let copies = sent.check_nats(&stored);
    println!(
        "{} events, {before} before the inbox is taken away, {denied} until it is back, {copies} copies",
        sent.count()
    );
    assert_eq!(copies_among(&stored[..before]), 0, "nothing was taken away yet");
    assert_eq!(copies_among(&stored[denied..]), 0, "nothing is taken away any more");
    // Messages in flight when the inbox is taken away are stored without an answer. Up to 100 can be in flight.
    assert!(copies <= 10, "{copies} copies of {} events", sent.count());
    no_dead_letters(&bridge, "nats").await;
}

/// How many of the messages are copies of others.
fn copies_among(stored: &[nats::Received]) -> usize {
    let id = |message: &nats::Received| {
        message.headers.iter().find(|(name, _)| name == "Nats-Msg-Id").map(|(_, id)| id.clone())
    };
    let ids: HashSet<_> = stored.iter().map(|message| id(message).expect("every message has an id")).collect();
    stored.len() - ids.len()
}

#[tokio::test]
async fn without_any_stream_events_become_dead_letters_after_max_age_and_a_new_stream_gets_the_next_ones() {
    let server = nats::Server::start("").await;
    let sink = format!("[sinks.nats]\ntype = 'nats'\nservers = '{}'\nretry = {{ max_age = '3s' }}\n", server.url());
    let bridge = Bridge::start(&format!("{ANY_PORTS}{sink}stream = {{ name = 'CDR' }}\n")).await;
    let post = async |conversation: usize| {
        let event = format!(r#"{{"team":"a","conversation_uuid":"{conversation}"}}"#);
        assert_eq!(bridge.post(event, "application/json").await.status, 200);
    };
    let dead_lettered = async || bridge.metric("cdrelay_sink_dead_lettered_total{sink=\"nats\"}").await.unwrap();
    let begun = Instant::now();
    for conversation in 0..50 {
        post(conversation).await;
    }
    unready(&bridge, "nats", "stream CDR: no JetStream stream takes subject").await;
    eventually(PATIENCE, "the events are dead letters", async || dead_lettered().await == 50.0).await;
    println!("50 dead letters after {:.1?}", begun.elapsed());
    assert!(begun.elapsed() >= Duration::from_secs(3), "{:?}", begun.elapsed());
    unready(&bridge, "nats", "stream CDR: no JetStream stream takes subject").await;

    post(50).await;
    nats::create_stream(&server.url(), "CDR", &["telecmi.cdr.>"]).await;
    settled(&bridge, &["nats"]).await;
    ready(&bridge).await;
    assert_eq!((nats::stream_length(&server.url(), "CDR").await, dead_lettered().await), (1, 50.0));
}

/// Teams whose subjects are away, in front of one that can be served.
const POISON: usize = 3000;

/// Sends three events, one behind the other, to each of so many teams without a place, then one to a team that has one. Checks that
/// it is delivered at once, and that readiness, metrics and log name the others. Returns how many events were sent.
async fn poison(bridge: &Bridge, url: &str, stream: &str, cause: &str) -> usize {
    let before = nats::stream_length(url, stream).await;
    for round in 0..3 {
        for teams in (0..POISON).collect::<Vec<_>>().chunks(100) {
            let event = |team| format!(r#"{{"team":"bad{team}","conversation_uuid":"c{team}","n":{round}}}"#);
            let events: Vec<_> = teams.iter().map(event).collect();
            let answer = bridge.post(format!("[{}]", events.join(",")), "application/json").await;
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
    }
    let begun = Instant::now();
    assert_eq!(bridge.post(r#"{"team":"good","conversation_uuid":"c"}"#, "application/json").await.status, 200);
    eventually(PATIENCE, "the good one is delivered", async || nats::stream_length(url, stream).await > before).await;
    println!("{cause}: delivered after {:.1?} behind {POISON} subjects that are away", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());

    eventually(PATIENCE, "the places are counted", async || {
        bridge.metric("cdrelay_sink_places_unavailable{sink=\"nats\"}").await == Some(POISON as f64)
    })
    .await;
    ready(bridge).await;
    let readiness = bridge.admin("/readyz").await;
    let named = readiness.json()["sinks"]["nats"]["places"][0].clone();
    println!("/readyz: {named}");
    assert!(named["place"].as_str().unwrap().starts_with("subject telecmi.cdr.bad"), "{named}");
    assert!(named["cause"].as_str().unwrap().contains(cause), "{named}");
    assert!(bridge.stderr().contains(cause), "the log says why");
    3 * POISON + 1
}

/// All events of each conversation are there, once and in order.
fn in_order(received: &[nats::Received], events: usize) {
    assert_eq!(received.len(), events);
    let mut next = HashMap::new();
    for message in received {
        let event: Value = serde_json::from_slice(&message.payload).unwrap();
        if let Some(number) = event["n"].as_u64() {
            let next = next.entry(message.subject.clone()).or_insert(0);
            assert_eq!(number, *next, "{}", message.subject);
            *next += 1;
        }
    }
    assert!(next.len() == POISON && next.values().all(|&next| next == 3));
}

#[tokio::test]
async fn three_thousand_teams_without_a_stream_hold_up_nobody_and_get_theirs_when_there_is_one() {
    let server = nats::Server::start("").await;
    let url = server.url();
    nats::create_stream(&url, "CDR", &["telecmi.cdr.good.*"]).await;
    let bridge = Bridge::start(&format!("{ANY_PORTS}[sinks.nats]\ntype = 'nats'\nservers = '{url}'\n")).await;
    ready(&bridge).await;
    let sent = poison(&bridge, &url, "CDR", "no JetStream stream takes subject").await;
    nats::update_stream(&url, "CDR", &["telecmi.cdr.>"]).await;
    let begun = Instant::now();
    settled(&bridge, &["nats"]).await;
    println!("all delivered {:.1?} after the stream took them", begun.elapsed());
    in_order(&nats::stream_all(&url, "CDR").await, sent);
    no_dead_letters(&bridge, "nats").await;
}

#[tokio::test]
async fn three_thousand_teams_whose_subjects_are_denied_hold_up_nobody_and_become_dead_letters() {
    let config = "no_auth_user: admin
        authorization { users: [
            { user: admin, password: admin }
            { user: cdrelay, password: secret, permissions: { publish: \"telecmi.cdr.good.*\", subscribe: \"_INBOX.>\" } }
        ] }";
    let server = nats::Server::start(config).await;
    let url = server.url();
    nats::create_stream(&url, "CDR", &["telecmi.cdr.>"]).await;
    let sink = format!("[sinks.nats]\ntype = 'nats'\nservers = '{url}'\nuser = 'cdrelay'\npassword = 'secret'\n");
    let bridge = Bridge::start(&format!("{ANY_PORTS}{sink}retry = {{ max_age = '20s' }}\n")).await;
    ready(&bridge).await;
    let sent = poison(&bridge, &url, "CDR", "Permissions Violation for Publish").await;
    let begun = Instant::now();
    settled(&bridge, &["nats"]).await;
    println!("the denied ones are dead letters after {:.1?} more", begun.elapsed());
    let metric = "cdrelay_sink_dead_lettered_total{sink=\"nats\"}";
    assert_eq!(bridge.metric(metric).await, Some((sent - 1) as f64));
    assert_eq!(nats::stream_length(&url, "CDR").await, 1);
}
