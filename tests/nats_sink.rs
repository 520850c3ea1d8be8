//! The NATS sink keeps its part of the promise against a real server.

mod identity;
mod places;

use crate::support::nats::Server;
use async_nats::jetstream::{self, stream};
use cdrelay::event::EventId;
use cdrelay::sink::nats::{Config, NatsSink};
use cdrelay::sink::{Failure, Message, Sink};
use figment::Figment;
use figment::providers::{Format, Toml};
use futures_util::StreamExt;
use futures_util::future::join_all;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

const SUBJECT: &str = "telecmi.cdr.*.*";

fn sink(server: &Server, settings: &str) -> NatsSink {
    let toml = format!("servers = '{}'\n{settings}", server.url());
    let config: Config = Figment::from(Toml::string(&toml)).extract().unwrap();
    NatsSink::new("nats", &config, SUBJECT).unwrap()
}

fn message(id: u64, subject: &str) -> Message {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&id.to_be_bytes());
    let payload = format!("{{\"id\":{id}}}");
    Message::of(EventId(bytes), payload.as_bytes(), subject, "", "").with_header("ce-id", &id.to_string())
}

async fn context(server: &Server) -> jetstream::Context {
    jetstream::new(async_nats::connect(server.url()).await.unwrap())
}

/// A stream named CDR for `telecmi.cdr.>`, with `change` applied.
async fn stream(server: &Server, change: impl FnOnce(&mut stream::Config)) -> stream::Stream {
    let mut config =
        stream::Config { name: "CDR".to_owned(), subjects: vec!["telecmi.cdr.>".to_owned()], ..Default::default() };
    change(&mut config);
    context(server).await.create_stream(config).await.unwrap();
    context(server).await.get_stream("CDR").await.unwrap()
}

/// Publishes as the dispatcher does: again and again while the sink is unavailable. Returns the causes on the way.
async fn deliver(sink: &NatsSink, message: &Message) -> HashSet<String> {
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut causes = HashSet::new();
    loop {
        match sink.publish(message).await {
            Ok(()) => return causes,
            Err(Failure::Rejected { cause }) => panic!("{cause}"),
            Err(failure) => {
                assert!(Instant::now() < deadline, "{failure}");
                causes.insert(failure.to_string());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

/// Publishes until the cause holds `text`.
async fn fails_with(sink: &NatsSink, message: &Message, text: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        match sink.publish(message).await {
            Err(Failure::Unavailable { cause, .. } | Failure::Place { cause, .. }) if cause.contains(text) => {
                return cause;
            }
            other => assert!(Instant::now() < deadline, "{other:?} instead of {text}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn rejected(outcome: Result<(), Failure>, text: &str) {
    assert!(matches!(&outcome, Err(Failure::Rejected { cause }) if cause.contains(text)), "{outcome:?}");
}

async fn probe_turns_good(sink: &NatsSink) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while let Err(failure) = sink.probe().await {
        assert!(Instant::now() < deadline, "{failure}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn headers_and_payload_arrive_byte_for_byte() {
    let server = Server::start("").await;
    let stream = stream(&server, |_| {}).await;
    let sink = sink(&server, "stream = { name = 'CDR' }");
    let payload = "{ \"n\": 1.10,\r\n \"team\":\"விற்பனை\", \"n\": 12345678901234567890 }";
    let sent = Message::of(EventId([1; 16]), payload.as_bytes(), "telecmi.cdr.Sales%2E%2A%3E.42", "", "")
        .with_header("ce-id", "a")
        .with_header("ce-subject", "விற்பனை%0A*>")
        .with_header("content-type", "application/json");
    deliver(&sink, &sent).await;
    sink.publish(&sent).await.unwrap();

    let stored = stream.get_raw_message(1).await.unwrap();
    assert_eq!(stored.subject.as_str(), sent.topic());
    assert_eq!(stored.payload, **sent.payload());
    for (name, value) in sent.headers() {
        assert_eq!(stored.headers.get(name).unwrap().as_str(), value);
    }
    assert_eq!(stored.headers.get("Nats-Msg-Id").unwrap().as_str(), sent.id().to_string());
    assert_eq!(stored.headers.get("Nats-Expected-Stream").unwrap().as_str(), "CDR");
    assert_eq!(
        stream.get_info().await.unwrap().state.messages,
        1,
        "the second publish was recognised as the same event"
    );
    let closing = Instant::now();
    sink.close().await;
    assert!(closing.elapsed() < Duration::from_secs(1), "the library said good-bye");
    assert!(matches!(sink.publish(&sent).await, Err(Failure::Unavailable { .. })));
}

#[tokio::test]
async fn a_message_that_the_stream_has_is_a_duplicate_and_one_with_an_id_of_its_own_is_stored_again() {
    let server = Server::start("").await;
    let stream = stream(&server, |_| {}).await;
    let sink = sink(&server, "");
    let sent = || message(1, "telecmi.cdr.a.b");
    let first = sent();
    deliver(&sink, &first).await;
    assert!(!first.is_duplicate());
    let again = sent();
    sink.publish(&again).await.unwrap();
    assert!(again.is_duplicate());
    let forced = sent().with_dedup_id("1-7");
    sink.publish(&forced).await.unwrap();
    assert!(!forced.is_duplicate());
    assert_eq!(stream.get_info().await.unwrap().state.messages, 2);
    let stored = stream.get_raw_message(2).await.unwrap();
    assert_eq!(stored.headers.get("Nats-Msg-Id").unwrap().as_str(), "1-7");
    assert_eq!(stored.headers.get("ce-id").unwrap().as_str(), "1");
}

#[tokio::test]
async fn a_missing_stream_is_named_and_mended_without_a_restart() {
    let server = Server::start("").await;
    let sink = sink(&server, "");
    let event = message(1, "telecmi.cdr.a.b");
    let cause = fails_with(&sink, &event, "no JetStream stream takes subject `telecmi.cdr.*.*`").await;
    assert!(cause.contains("[sinks.nats.stream]"), "{cause}");
    assert!(sink.probe().await.unwrap_err().to_string().contains("telecmi.cdr.*.*"));
    stream(&server, |_| {}).await;
    sink.publish(&event).await.unwrap();
    assert_eq!(sink.probe().await, Ok(()));
}

#[tokio::test]
async fn a_stream_is_created_with_its_limits_and_again_when_it_is_lost() {
    let server = Server::start("").await;
    let settings = "[stream]\nname = 'CDR'\ncreate = true\nmax_bytes = '1MiB'\nmax_age = '1h'\nmax_messages = 7\ndiscard = 'new'\nduplicate_window = '5m'\n";
    let sink = sink(&server, settings);
    probe_turns_good(&sink).await;
    let context = context(&server).await;
    let config = context.get_stream("CDR").await.unwrap().cached_info().config.clone();
    assert_eq!(config.subjects, [SUBJECT]);
    assert_eq!((config.max_bytes, config.max_messages), (1 << 20, 7));
    assert_eq!((config.max_age, config.duplicate_window), (Duration::from_secs(3600), Duration::from_secs(300)));
    assert_eq!((config.discard, config.storage), (stream::DiscardPolicy::New, stream::StorageType::File));
    deliver(&sink, &message(1, "telecmi.cdr.a.b")).await;

    context.delete_stream("CDR").await.unwrap();
    deliver(&sink, &message(2, "telecmi.cdr.a.b")).await;
    assert_eq!(context.get_stream("CDR").await.unwrap().cached_info().state.messages, 1);
}

#[tokio::test]
async fn an_existing_stream_is_left_alone() {
    let server = Server::start("").await;
    let before = stream(&server, |config| config.max_messages = 5).await.cached_info().config.clone();
    let sink = sink(&server, "stream = { name = 'CDR', create = true, max_messages = 9 }");
    deliver(&sink, &message(1, "telecmi.cdr.a.b")).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(context(&server).await.get_stream("CDR").await.unwrap().cached_info().config, before);
}

#[tokio::test]
async fn an_oversized_message_is_rejected_and_the_next_one_passes() {
    let server = Server::start("max_payload: 200000").await;
    stream(&server, |config| config.max_message_size = 150_000).await;
    let sink = sink(&server, "");
    let subject = "telecmi.cdr.a.b";
    deliver(&sink, &message(0, subject)).await;

    let sized = |id, size: usize| message(id, subject).with_payload(vec![b' '; size]);
    rejected(sink.publish(&sized(1, 200_000)).await, "200000");
    rejected(sink.publish(&sized(2, 160_000)).await, "message size exceeds maximum allowed");
    let verbose = message(3, subject).with_header("ce-subject", &"x".repeat(70_000));
    rejected(sink.publish(&verbose).await, "header size exceeds");
    sink.publish(&sized(4, 100_000)).await.unwrap();
}

#[tokio::test]
async fn an_over_long_subject_is_rejected_and_the_connection_survives() {
    let server = Server::start("").await;
    let stream = stream(&server, |_| {}).await;
    let sink = sink(&server, "");
    let subject = |length: usize| format!("telecmi.cdr.{}", "x".repeat(length - 12));
    deliver(&sink, &message(1, &subject(3584))).await;
    let connected = connections_so_far(&server).await;
    rejected(sink.publish(&message(2, &subject(3585))).await, "subject of 3585 bytes");
    rejected(sink.publish(&message(3, &subject(100_000))).await, "subject of 100000 bytes");
    // At once, without a retry: the same connection serves it.
    sink.publish(&message(4, "telecmi.cdr.a.b")).await.unwrap();
    assert_eq!(connections_so_far(&server).await, connected + 1, "only this test's own look at the server");
    assert_eq!(stream.get_info().await.unwrap().state.messages, 2);
}

/// The number that the server gives to the next connection: it counts them all.
async fn connections_so_far(server: &Server) -> u64 {
    async_nats::connect(server.url()).await.unwrap().server_info().client_id
}

#[tokio::test]
async fn a_full_stream_holds_messages_back_until_there_is_room() {
    let server = Server::start("").await;
    let stream = stream(&server, |config| {
        config.max_messages = 1;
        config.discard = stream::DiscardPolicy::New;
    })
    .await;
    let sink = sink(&server, "");
    deliver(&sink, &message(1, "telecmi.cdr.a.b")).await;
    let next = message(2, "telecmi.cdr.a.b");
    fails_with(&sink, &next, "maximum messages exceeded").await;
    stream.purge().await.unwrap();
    sink.publish(&next).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_under_load_loses_nothing_and_stores_nothing_twice() {
    let mut server = Server::start("").await;
    stream(&server, |_| {}).await;
    let sink = Arc::new(sink(&server, "ack_timeout = '2s'"));
    let load: Vec<_> = (0..50u64)
        .map(|worker| {
            let sink = sink.clone();
            tokio::spawn(async move {
                let mut causes = HashSet::new();
                for turn in 0..100 {
                    causes.extend(
                        deliver(&sink, &message(worker * 1000 + turn, &format!("telecmi.cdr.team.{worker}"))).await,
                    );
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                causes
            })
        })
        .collect();
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        server.kill();
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.start_again().await;
    }
    for worker in join_all(load).await {
        assert!(!worker.unwrap().is_empty(), "each conversation met a dead server");
    }
    let stream = context(&server).await.get_stream("CDR").await.unwrap();
    let consumer = stream.create_consumer(jetstream::consumer::pull::OrderedConfig::default()).await.unwrap();
    let mut stored = consumer.messages().await.unwrap().take(5000);
    let mut next = vec![0; 50];
    while let Some(message) = stored.next().await {
        let message = message.unwrap();
        let id: u64 = message.headers.as_ref().unwrap().get("ce-id").unwrap().as_str().parse().unwrap();
        let (worker, turn) = ((id / 1000) as usize, id % 1000);
        assert_eq!(turn, next[worker], "in order, and once");
        next[worker] += 1;
    }
    assert_eq!(next, vec![100; 50]);
    assert_eq!(stream.get_info().await.unwrap().state.messages, 5000);
}

#[tokio::test]
async fn a_server_that_falls_silent_times_out_and_is_used_again() {
    let server = Server::start("").await;
    let stream = stream(&server, |_| {}).await;
    let sink = sink(&server, "ack_timeout = '300ms'");
    deliver(&sink, &message(1, "telecmi.cdr.a.b")).await;
    server.pause();
    let next = message(2, "telecmi.cdr.a.b");
    for _ in 0..3 {
        fails_with(&sink, &next, "did not acknowledge").await;
    }
    server.resume();
    deliver(&sink, &next).await;
    assert_eq!(stream.get_info().await.unwrap().state.messages, 2);
}

#[tokio::test]
async fn a_client_that_may_not_look_at_streams_is_ready_and_one_that_may_not_publish_says_so() {
    let users = "authorization { users: [
        { user: app, password: app, permissions: { publish: \"telecmi.cdr.a.*\", subscribe: \"_INBOX.>\" } }
        { user: core, password: core, permissions: { publish: [\"telecmi.cdr.a.*\", \"_INBOX.>\"], subscribe: \"_INBOX.>\" } }
        { user: admin, password: admin }
    ] }";
    let server = Server::start(users).await;
    let admin = async_nats::ConnectOptions::with_user_and_password("admin".into(), "admin".into())
        .connect(server.url())
        .await
        .unwrap();
    let streams = jetstream::new(admin);
    streams
        .create_stream(stream::Config {
            name: "CDR".into(),
            subjects: vec!["telecmi.cdr.>".into()],
            ..Default::default()
        })
        .await
        .unwrap();

    let restricted = sink(&server, "user = 'app'\npassword = 'app'\nack_timeout = '1s'");
    deliver(&restricted, &message(1, "telecmi.cdr.a.b")).await;
    assert_eq!(restricted.probe().await, Ok(()));
    fails_with(&restricted, &message(2, "telecmi.cdr.b.b"), "Permissions Violation for Publish to \"telecmi.cdr.b.b\"")
        .await;

    let core = sink(&server, "user = 'core'\npassword = 'core'\nmode = 'core'");
    deliver(&core, &message(3, "telecmi.cdr.a.b")).await;
    fails_with(&core, &message(4, "telecmi.cdr.b.b"), "Permissions Violation").await;
}

#[tokio::test]
async fn core_mode_hands_messages_to_subscribers() {
    let server = Server::start("").await;
    let mut subscriber = async_nats::connect(server.url()).await.unwrap().subscribe("telecmi.>").await.unwrap();
    let sink = sink(&server, "mode = 'core'");
    deliver(&sink, &message(0, "telecmi.cdr.a.b")).await;
    let messages: Vec<_> = (1..500).map(|id| message(id, "telecmi.cdr.a.b")).collect();
    for outcome in join_all(messages.iter().map(|message| sink.publish(message))).await {
        outcome.unwrap();
    }
    let mut received = HashSet::new();
    for _ in 0..500 {
        let next = subscriber.next().await.unwrap();
        assert_eq!(next.reply, None);
        received.insert(next.payload.to_vec());
    }
    assert_eq!(received, (0..500).map(|id| message(id, "").payload().to_vec()).collect());
    assert_eq!(sink.probe().await, Ok(()));
    server.pause();
    let outcome = tokio::time::timeout(Duration::from_millis(300), sink.publish(&message(9, "telecmi.cdr.a.b"))).await;
    server.resume();
    assert!(outcome.is_err(), "a message counts only once the server has processed it");
}
