mod places;
mod sinks;

use super::*;
use crate::event::{Arrival, Event};
use crate::metrics::Metrics;
use crate::route::{Dialect, Routed};
use crate::sink::{Failure, Message};
use crate::spool::{OpenError, Placed};
use bytesize::ByteSize;
use futures_util::FutureExt as _;
use sinks::{Counting, FAILURES, Flaky, Manual, Silent};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::{Notify, oneshot};
use tokio::task::yield_now;

const PATIENCE: Duration = Duration::from_secs(30);

/// Looks again and again, until `holds` does.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not in time");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A spool with one sink, and the loop that delivers to it.
struct Bench {
    spool: Arc<Spool>,
    dispatcher: Dispatcher,
    stop: watch::Sender<bool>,
    _dir: tempfile::TempDir,
}

impl Bench {
    async fn new(sink: Arc<dyn Sink>, config: Config, events: Vec<Event>) -> Self {
        Self::with_topic(sink, config, None, events).await
    }

    async fn with_topic(sink: Arc<dyn Sink>, config: Config, topic: Option<&str>, events: Vec<Event>) -> Self {
        let route = crate::route::Config { topic: topic.map(str::to_owned), ..Default::default() };
        Self::begin(tempfile::tempdir().unwrap(), sink, config, route, events).await
    }

    async fn begin(
        dir: tempfile::TempDir,
        sink: Arc<dyn Sink>,
        config: Config,
        route: crate::route::Config,
        events: Vec<Event>,
    ) -> Self {
        // A paused clock would reach any deadline while the disk works.
        let settings =
            crate::spool::Config { path: dir.path().to_owned(), append_timeout: Duration::ZERO, ..Default::default() };
        let deadline = Instant::now() + PATIENCE;
        let spool = loop {
            match Spool::open(&settings, &["sink"], Metrics::default().spool) {
                // A former spool of the test ends with the last read of its dispatcher.
                Err(OpenError::Lock(_)) if Instant::now() < deadline => yield_now().await,
                opened => break Arc::new(opened.unwrap()),
            }
        };
        spool.append(events).await.unwrap();
        let parts = Parts {
            name: "sink".into(),
            config,
            route: Route::compile(&route, Dialect::Kafka).unwrap(),
            sink,
            dead_letters: DeadLetters::new(dir.path(), "sink", &Default::default(), Default::default()),
            metrics: SinkMetrics::default(),
            health: Health::new("sink", true),
            directory: dir.path().to_owned(),
        };
        let (stop, stopped) = watch::channel(false);
        let dispatcher = Dispatcher::new(spool.clone(), parts, delivery_watch().1, stopped).unwrap();
        Self { spool, dispatcher, stop, _dir: dir }
    }
}

#[tokio::test]
async fn records_in_flight_fit_max_in_flight_bytes_however_small_they_are() {
    let event = |number| Event::parse(&format!("{{\"n\":{number}}}"), 9, Arrival::now()).unwrap();
    let sink = Arc::new(Silent::default());
    // More places than a semaphore can have.
    let config = Config { max_in_flight: usize::MAX, max_in_flight_bytes: ByteSize::mib(1), ..Default::default() };
    let bench = Bench::new(sink.clone(), config, (0..4000).map(event).collect()).await;
    let ended = tokio::time::timeout(Duration::from_millis(500), bench.dispatcher.run()).await;
    assert!(ended.is_err());
    drop(bench.stop);
    let taken = sink.taken.load(Ordering::Relaxed);
    assert!((400..1000).contains(&taken), "{taken}");
}

#[tokio::test]
async fn no_more_are_with_the_destination_than_may_be() {
    let event = |number| Event::parse(&format!("{{\"n\":{number}}}"), 9, Arrival::now()).unwrap();
    let sink = Arc::new(Manual::default());
    let config = Config { max_in_flight: 2, ..Default::default() };
    let bench = Bench::new(sink.clone(), config, (0..5).map(event).collect()).await;
    let (cursor, running) = (bench.spool.cursor("sink").unwrap(), tokio::spawn(bench.dispatcher.run()));
    for number in 0..5 {
        let waiting = sink.waiting(&format!("{{\"n\":{number}}}")).await;
        // Whatever is ready on this thread has run by then, a message too many with it.
        for _ in 0..100 {
            yield_now().await;
        }
        assert!(sink.waiting.lock().unwrap().len() < 2);
        waiting.send(Ok(())).unwrap();
    }
    until("all are settled", || cursor.position() == 5).await;
    bench.stop.send_replace(true);
    running.await.unwrap();
}

#[tokio::test]
async fn what_waits_behind_its_conversation_leaves_room_for_others() {
    const WAITING: u64 = 1000;
    let event = |(conversation, number)| {
        let text = format!("{{\"conversation_uuid\":\"{conversation}\",\"n\":{number}}}");
        Event::parse(&text, 9, Arrival::now()).unwrap()
    };
    let sink = Arc::new(Silent::default());
    let config = Config { max_in_flight_bytes: ByteSize::mib(1), ..Default::default() };
    let events = (0..WAITING).map(|number| ("busy", number)).chain([("other", WAITING)]).map(event).collect();
    let bench = Bench::new(sink.clone(), config, events).await;
    let running = tokio::spawn(bench.dispatcher.run());
    until("the other one is under way too", || sink.taken.load(Ordering::Relaxed) == 2).await;
    running.abort();
}

#[tokio::test]
async fn a_stop_leaves_nothing_open_below_what_was_sent() {
    let payload =
        |conversation: &str, number: u64| format!("{{\"conversation_uuid\":\"{conversation}\",\"n\":{number}}}");
    let event = |(conversation, number)| Event::parse(&payload(conversation, number), 9, Arrival::now()).unwrap();
    let sink = Arc::new(Manual::default());
    let events = [("a", 0), ("a", 1), ("b", 2), ("a", 3)].map(event).into();
    let Bench { spool, dispatcher, stop, _dir } = Bench::new(sink.clone(), Config::default(), events).await;
    let running = tokio::spawn(dispatcher.run());
    sink.acknowledge(&payload("b", 2)).await;
    stop.send_replace(true);
    // 1 has waited for 0, and 2 is settled: without 1 the next process would send 2 again. 3 would be new.
    sink.acknowledge(&payload("a", 0)).await;
    sink.acknowledge(&payload("a", 1)).await;
    tokio::time::timeout(PATIENCE, running).await.expect("it ends").unwrap();
    assert_eq!(spool.cursor("sink").unwrap().position(), 3);
    assert!(sink.waiting.lock().unwrap().is_empty());
}

#[tokio::test]
async fn who_asks_learns_of_a_record_when_it_is_settled_whatever_the_cursor_says() {
    let payload = |number: u64| format!("{{\"conversation_uuid\":\"{number}\",\"n\":{number}}}");
    let event = |number| Event::parse(&payload(number), 9, Arrival::now()).unwrap();
    let sink = Arc::new(Manual::default());
    let mut bench = Bench::new(sink.clone(), Config::default(), (0..3).map(event).collect()).await;
    let (watch, requests) = delivery_watch();
    bench.dispatcher.deliveries = requests;
    let running = tokio::spawn(bench.dispatcher.run());
    let ask = |fresh| {
        let watch = watch.clone();
        let asked = async move { watch.settled(&Placed { fresh, earlier: Vec::new() }).await };
        tokio::time::timeout(PATIENCE, asked).map(|answer| answer.expect("an answer")).boxed()
    };
    // Asked before it is settled, and after; and before it is stored at all.
    let (second, fourth) = (tokio::spawn(ask(1..2)), tokio::spawn(ask(3..4)));
    sink.acknowledge(&payload(1)).await;
    assert_eq!(second.await.unwrap(), Some(0));
    assert_eq!(ask(1..2).await, Some(0));
    assert_eq!(bench.spool.cursor("sink").unwrap().position(), 0);
    let mut all = ask(0..3);
    assert!((&mut all).now_or_never().is_none());
    bench.spool.append(vec![event(3)]).await.unwrap();
    sink.acknowledge(&payload(3)).await;
    assert_eq!(fourth.await.unwrap(), Some(0));
    sink.acknowledge(&payload(0)).await;
    assert!((&mut all).now_or_never().is_none());
    bench.stop.send_replace(true);
    sink.acknowledge(&payload(2)).await;
    tokio::time::timeout(PATIENCE, running).await.expect("it ends").unwrap();
    assert_eq!(all.await, Some(0), "also while the bridge stops");
    assert_eq!(ask(0..1).await, None);
}

#[tokio::test]
async fn what_fails_is_tried_again_and_nothing_of_its_conversation_passes() {
    let payload = |number: u64| format!("{{\"conversation_uuid\":\"c\",\"n\":{number}}}");
    let event = |number| Event::parse(&payload(number), 9, Arrival::now()).unwrap();
    let sink = Arc::new(Flaky::default());
    let bench = Bench::new(sink.clone(), Config::default(), (0..5).map(event).collect()).await;
    let (cursor, running) = (bench.spool.cursor("sink").unwrap(), tokio::spawn(bench.dispatcher.run()));
    until("all are settled", || {
        let settled = cursor.position();
        assert!(settled <= sink.taken.lock().unwrap().len() as u64, "settled before it was acknowledged");
        settled == 5
    })
    .await;
    bench.stop.send_replace(true);
    running.await.unwrap();
    assert_eq!(*sink.taken.lock().unwrap(), (0..5).map(payload).collect::<Vec<_>>());
    assert_eq!(sink.attempts.load(Ordering::Relaxed), FAILURES + 5);
}

#[tokio::test(start_paused = true)]
async fn others_have_their_turn_while_a_sink_has_much_to_do() {
    const EVENTS: usize = 4000;
    let event = |number| {
        let text = format!("{{\"conversation_uuid\":\"{number}\",\"custom\":\"{}\"}}", "x".repeat(600));
        Event::parse(&text, 9, Arrival::now()).unwrap()
    };
    let sink = Arc::new(Counting::default());
    let bench = Bench::new(sink.clone(), Config::default(), (0..EVENTS).map(event).collect()).await;
    let running = tokio::spawn(bench.dispatcher.run());
    let (mut seen, mut longest) = (0, 0);
    while seen < EVENTS {
        yield_now().await;
        let before = std::mem::replace(&mut seen, sink.0.load(Ordering::Relaxed));
        longest = longest.max(seen - before);
    }
    running.abort();
    assert!(longest < 128, "{longest} records before the next one had its turn");
}

#[tokio::test]
async fn a_large_event_with_many_values_holds_up_no_other_task() {
    let event = Event::parse(&format!("{{\"custom\":[{}0]}}", "0,".repeat(500_000)), 9, Arrival::now()).unwrap();
    let when = Some("event.custom.size() == 500001".to_owned());
    let route = crate::route::Config { when, ..Default::default() };
    let (sink, dir) = (Arc::new(Counting::default()), tempfile::tempdir().unwrap());
    let bench = Bench::begin(dir, sink.clone(), Config::default(), route, vec![event.clone()]).await;
    let begun = Instant::now();
    assert!(matches!(
        bench.dispatcher.publisher.render_now(&Record { offset: 0, target: None, event }),
        Routed::Message(_)
    ));
    let rendering = begun.elapsed();
    let running = tokio::spawn(bench.dispatcher.run());
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    while sink.0.load(Ordering::Relaxed) == 0 {
        yield_now().await;
        let now = Instant::now();
        longest = longest.max(now - last);
        last = now;
    }
    running.abort();
    println!("rendered in {rendering:?}, others held up for {longest:?}");
    assert!(longest < rendering / 3, "{longest:?} of {rendering:?}");
}
