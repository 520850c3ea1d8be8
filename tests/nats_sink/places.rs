//! A subject or a stream that takes no messages holds up none of the others.

use super::{context, deliver, fails_with, message, probe_turns_good, sink, stream};
use crate::support::nats::Server;
use crate::support::{PATIENCE, eventually};
use async_nats::jetstream;
use cdrelay::sink::nats::NatsSink;
use cdrelay::sink::{Failure, Message, Sink};
use futures_util::StreamExt;
use std::time::{Duration, Instant};

/// In front of a message that can be delivered.
const POISON: u64 = 3000;
/// The dispatcher's `max_in_flight`.
const IN_FLIGHT: usize = 2048;

const SUBJECT: &str = "telecmi.cdr.a.b";

/// The place and cause of a failure that is a place's fault, and whether its messages become dead letters.
fn place(outcome: Result<(), Failure>) -> (String, String, bool) {
    match outcome {
        Err(Failure::Place { place, cause, expires }) => (place, cause, expires),
        other => panic!("{other:?} instead of a place"),
    }
}

/// Publishes messages for so many subjects that are away, as many at a time as the dispatcher does, and a good one behind them.
/// Returns when the good one was acknowledged, and when all were answered.
async fn poison(sink: &NatsSink, first: u64, cause: &str) -> (Duration, Duration) {
    let begun = Instant::now();
    let mut good = Duration::ZERO;
    let ids = first..=first + POISON;
    let mut outcomes = futures_util::stream::iter(ids)
        .map(|id| async move {
            let good = id == first + POISON;
            let subject = if good { "telecmi.cdr.good.x".to_owned() } else { format!("telecmi.cdr.bad{id}.x") };
            (good, sink.publish(&message(id, &subject)).await)
        })
        .buffer_unordered(IN_FLIGHT);
    while let Some((is_good, outcome)) = outcomes.next().await {
        if is_good {
            outcome.unwrap();
            good = begun.elapsed();
        } else {
            let (place, why, expires) = place(outcome);
            assert!(place.starts_with("subject telecmi.cdr.bad") && why.contains(cause) && expires, "{place}: {why}");
        }
    }
    println!("{cause}: good one after {good:.1?}, all answered after {:.1?}", begun.elapsed());
    (good, begun.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn three_thousand_subjects_without_a_stream_cost_no_timeout_and_a_stream_that_appears_is_found() {
    let server = Server::start("").await;
    stream(&server, |config| config.subjects = vec!["telecmi.cdr.good.>".into()]).await;
    let sink = sink(&server, "");
    deliver(&sink, &message(0, "telecmi.cdr.good.x")).await;
    let (good, all) = poison(&sink, 1, "no JetStream stream takes subject").await;
    assert!(good < Duration::from_secs(5) && all < Duration::from_secs(8), "{good:?} {all:?}");
    assert_eq!(sink.probe().await, Ok(()), "the destination is up");

    let config =
        stream::Config { name: "LATE".into(), subjects: vec!["telecmi.cdr.bad1.>".into()], ..Default::default() };
    context(&server).await.create_stream(config).await.unwrap();
    sink.publish(&message(1, "telecmi.cdr.bad1.x")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn three_thousand_denied_subjects_cost_no_timeout_and_a_grant_is_found() {
    let users = |allowed: &str| {
        format!(
            "no_auth_user: admin
            authorization {{ users: [
                {{ user: admin, password: admin }}
                {{ user: app, password: app, permissions: {{ publish: [\"telecmi.cdr.good.*\", {allowed}], subscribe: \"_INBOX.>\" }} }}
            ] }}"
        )
    };
    let server = Server::start(&users("")).await;
    stream(&server, |_| {}).await;
    let sink = sink(&server, "user = 'app'\npassword = 'app'");
    probe_turns_good(&sink).await;
    for round in 0..2 {
        let (good, all) = poison(&sink, 1 + round * 10_000, "Permissions Violation for Publish").await;
        assert!(good < Duration::from_secs(5) && all < Duration::from_secs(8), "{good:?} {all:?}");
    }
    assert_eq!(sink.probe().await, Ok(()), "the destination is up");
    server.reload(&users("\"telecmi.cdr.bad1.*\""));
    deliver(&sink, &message(1, "telecmi.cdr.bad1.x")).await;
}

#[tokio::test]
async fn a_subject_that_is_full_is_a_place_of_its_own() {
    let server = Server::start("").await;
    let stream = stream(&server, |config| {
        config.max_messages_per_subject = 1;
        config.discard = stream::DiscardPolicy::New;
        config.discard_new_per_subject = true;
    })
    .await;
    let sink = sink(&server, "");
    deliver(&sink, &message(1, "telecmi.cdr.a.b")).await;
    let (name, cause, expires) = place(sink.publish(&message(2, "telecmi.cdr.a.b")).await);
    assert_eq!((name.as_str(), expires), ("subject telecmi.cdr.a.b", true));
    assert!(cause.contains("maximum messages per subject exceeded"), "{cause}");
    sink.publish(&message(3, "telecmi.cdr.a.c")).await.unwrap();
    stream.purge().filter("telecmi.cdr.a.b").await.unwrap();
    sink.publish(&message(2, "telecmi.cdr.a.b")).await.unwrap();
}

#[tokio::test]
async fn a_sealed_stream_holds_messages_back_and_names_itself_beside_others() {
    let server = Server::start("").await;
    let context = context(&server).await;
    let config = |name: &str, subject: &str, sealed| stream::Config {
        name: name.into(),
        subjects: vec![subject.into()],
        sealed,
        ..Default::default()
    };
    context.create_stream(config("A", "telecmi.cdr.a.*", false)).await.unwrap();
    context.update_stream(config("A", "telecmi.cdr.a.*", true)).await.unwrap();
    let sink = sink(&server, "");
    let sealed = message(1, "telecmi.cdr.a.b");
    fails_with(&sink, &sealed, "sealed stream").await;
    context.create_stream(config("B", "telecmi.cdr.b.*", false)).await.unwrap();
    probe_turns_good(&sink).await;
    let (name, cause, expires) = place(sink.publish(&sealed).await);
    assert_eq!((name.as_str(), expires), ("stream A", false));
    assert!(cause.contains("sealed stream"), "{cause}");
    sink.publish(&message(2, "telecmi.cdr.b.b")).await.unwrap();
}

#[tokio::test]
async fn a_full_jetstream_store_holds_messages_back_until_there_is_room() {
    let server = Server::start_with_store("1MB").await;
    let stream = stream(&server, |_| {}).await;
    let sink = sink(&server, "");
    let large = |id| message(id, "telecmi.cdr.a.b").with_payload(vec![b' '; 400_000]);
    deliver(&sink, &large(0)).await;
    let mut id = 1;
    let cause = loop {
        match sink.publish(&large(id)).await {
            Ok(()) => id += 1,
            Err(failure) => break failure.to_string(),
        }
        assert!(id < 100, "a store of 1 MB is never full");
    };
    assert!(cause.contains("insufficient"), "{cause}");
    println!("{cause} after {id} messages of 400 kB");
    stream.purge().await.unwrap();
    deliver(&sink, &large(id)).await;
}

#[tokio::test]
async fn a_stream_that_never_confirms_is_named_and_gets_nothing() {
    let server = Server::start("").await;
    let context = context(&server).await;
    let config = |name: &str, subject: &str, no_ack| stream::Config {
        name: name.into(),
        subjects: vec![subject.into()],
        no_ack,
        ..Default::default()
    };
    let length = async |name: &str| context.get_stream(name).await.unwrap().cached_info().state.messages;
    context.create_stream(config("MUTE", "telecmi.cdr.a.*", true)).await.unwrap();
    let sink = sink(&server, "ack_timeout = '200ms'");
    let event: Message = message(1, "telecmi.cdr.a.b");
    fails_with(&sink, &event, "stream `MUTE` has no_ack set").await;
    assert!(sink.probe().await.unwrap_err().to_string().contains("stream `MUTE` has no_ack set"));
    assert_eq!(length("MUTE").await, 0, "nothing is published where no answer comes");

    // Beside a stream that confirms it is a place.
    context.create_stream(config("CDR", "telecmi.cdr.b.*", false)).await.unwrap();
    probe_turns_good(&sink).await;
    assert_eq!(place(sink.publish(&event).await).0, "stream MUTE");
    sink.publish(&message(2, "telecmi.cdr.b.b")).await.unwrap();
    assert_eq!(length("MUTE").await, 0);

    context.update_stream(config("MUTE", "telecmi.cdr.a.*", false)).await.unwrap();
    sink.probe().await.unwrap();
    sink.publish(&event).await.unwrap();
    // A stream that stops to confirm is found out by the first message that it does not.
    context.update_stream(config("MUTE", "telecmi.cdr.a.*", true)).await.unwrap();
    for id in 3..8 {
        assert_eq!(place(sink.publish(&message(id, "telecmi.cdr.a.b")).await).0, "stream MUTE");
    }
    assert_eq!(length("MUTE").await, 2);
}

#[tokio::test]
async fn the_subscription_to_the_inbox_is_awaited_before_anything_is_published() {
    let users = |subscribe: &str| {
        format!(
            "no_auth_user: admin
            authorization {{ users: [
                {{ user: admin, password: admin }}
                {{ user: app, password: app, permissions: {{ subscribe: {subscribe} }} }}
            ] }}"
        )
    };
    let server = Server::start(&users("[\"other.>\"]")).await;
    let stream = stream(&server, |_| {}).await;
    let sink = sink(&server, "user = 'app'\npassword = 'app'\nack_timeout = '200ms'");
    let cause = fails_with(&sink, &message(1, SUBJECT), "Permissions Violation for Subscription to").await;
    assert_eq!(sink.probe().await.unwrap_err().to_string(), cause);
    // Through reconnects, too.
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        assert!(sink.publish(&message(1, SUBJECT)).await.is_err());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(stored(&stream).await, 0, "nothing is published while no answer can arrive");
    server.reload(&users("[\"_INBOX.>\"]"));
    deliver(&sink, &message(1, SUBJECT)).await;
    assert_eq!(stored(&stream).await, 1);
}

#[tokio::test]
async fn a_message_stored_without_an_answer_is_not_stored_again_behind_the_duplicate_window() {
    const WINDOW: Duration = Duration::from_millis(200);
    let server = Server::start("").await;
    let stream = stream(&server, |config| config.duplicate_window = WINDOW).await;
    let sink = sink(&server, "ack_timeout = '300ms'");
    let (first, second) = (message(1, SUBJECT), message(2, "telecmi.cdr.a.c"));
    deliver(&sink, &message(0, "telecmi.cdr.a.d")).await;
    for (lost, expected) in [(&first, 2), (&second, 3)] {
        // The server has the message in its socket, and stores it when nobody waits for the answer any more.
        server.pause();
        assert!(sink.publish(lost).await.is_err());
        server.resume();
        eventually(PATIENCE, "the lost one is stored", async || stored(&stream).await == expected).await;
        // Not a wait for anything: the stream forgets the message's id.
        tokio::time::sleep(2 * WINDOW).await;
        deliver(&sink, lost).await;
        assert_eq!(stored(&stream).await, expected);
        assert!(lost.is_duplicate());
    }
    // Of another message of the subject nothing is concluded, nor of one that is answered for.
    deliver(&sink, &message(3, SUBJECT)).await;
    tokio::time::sleep(2 * WINDOW).await;
    deliver(&sink, &message(3, SUBJECT)).await;
    assert_eq!(stored(&stream).await, 5);
}

async fn stored(stream: &jetstream::stream::Stream) -> u64 {
    stream.get_info().await.unwrap().state.messages
}

#[tokio::test]
async fn the_servers_connection_limit_is_the_cause_until_there_is_room() {
    let server = Server::start("max_connections: 1").await;
    let first = async_nats::connect(server.url()).await.unwrap();
    let sink = sink(&server, "stream = { name = 'CDR', create = true }");
    let event = message(1, SUBJECT);
    fails_with(&sink, &event, "maximum connections exceeded").await;
    first.drain().await.unwrap();
    deliver(&sink, &event).await;
}
