//! Places that are away while their destination is up.

use super::*;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Acknowledges every message whose topic is not away.
#[derive(Default)]
struct Topics {
    away: Mutex<HashSet<String>>,
    /// Whether a topic that is away counts as a partition.
    partitions: bool,
    /// The numbers of the acknowledged events, by conversation.
    delivered: Mutex<HashMap<String, Vec<u64>>>,
    /// How many of all messages fail as if the destination were down, in percent.
    failing: u8,
    attempts: AtomicUsize,
}

impl Topics {
    fn without(away: impl IntoIterator<Item = &'static str>) -> Arc<Self> {
        Arc::new(Self { away: Mutex::new(away.into_iter().map(str::to_owned).collect()), ..Default::default() })
    }

    /// Takes each of the topics `cdr.0` and up away, or brings it back, at random.
    fn change(&self, topics: usize, random: &mut fastrand::Rng) {
        let mut away = self.away.lock();
        for topic in (0..topics).map(|number| format!("cdr.{number}")) {
            if random.bool() {
                away.insert(topic)
            } else {
                away.remove(&topic)
            };
        }
    }

    fn count(&self) -> usize {
        self.delivered.lock().values().map(Vec::len).sum()
    }

    fn of(&self, conversation: &str) -> Vec<u64> {
        self.delivered.lock().get(conversation).cloned().unwrap_or_default()
    }

    fn publish_now(&self, message: &Message) -> Result<(), Failure> {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        if fastrand::u8(0..100) < self.failing {
            return Err(Failure::unavailable("down"));
        }
        if self.away.lock().contains(message.topic()) {
            let (place, cause) = (format!("topic {}", message.topic()), "does not exist".to_owned());
            return Err(Failure::Place { place, cause, expires: !self.partitions });
        }
        let event: serde_json::Value = serde_json::from_slice(message.payload()).unwrap();
        let conversation = event["conversation_uuid"].as_str().unwrap().to_owned();
        self.delivered.lock().entry(conversation).or_default().push(event["n"].as_u64().unwrap());
        Ok(())
    }
}

impl Sink for Topics {
    fn publish<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async {
            yield_now().await;
            self.publish_now(message)
        })
    }

    fn probe(&self) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(async { Ok(()) })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

fn event(team: &str, conversation: &str, number: u64) -> Event {
    sized(team, conversation, number, 0)
}

fn sized(team: &str, conversation: &str, number: u64, bytes: usize) -> Event {
    let filler = "x".repeat(bytes);
    let text = format!(
        "{{\"team\":\"{team}\",\"conversation_uuid\":\"{conversation}\",\"n\":{number},\"custom\":\"{filler}\"}}"
    );
    Event::parse(&text, 9, Arrival::now()).unwrap()
}

async fn bench(sink: &Arc<Topics>, max_age: Duration, events: Vec<Event>) -> Bench {
    let config = Config { retry: Retry { max_age }, ..Default::default() };
    let bench = Bench::with_topic(sink.clone(), config, Some("cdr.{team}"), events).await;
    bench.dispatcher.publisher.health.probed(Ok(()));
    bench
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn thousands_of_events_for_missing_topics_hold_up_no_other_and_all_arrive_once_the_topics_exist() {
    for (poison, bytes) in [(3000, 0), (5, 900_000)] {
        let sink = Topics::without(["cdr.a", "cdr.b", "cdr.c"]);
        let team = |number: u64| ["a", "b", "c"][number as usize % 3];
        let mut events: Vec<_> = (0..poison).map(|n| sized(team(n), &format!("{}", n / 2 % 1000), n, bytes)).collect();
        events.push(event("good", "good", 1));
        let Bench { spool, dispatcher, stop, _dir } = bench(&sink, HOUR, events).await;
        let (health, metrics) = (dispatcher.publisher.health.clone(), dispatcher.publisher.metrics.clone());
        let (cursor, begun) = (spool.cursor("sink").unwrap(), Instant::now());
        let running = tokio::spawn(dispatcher.run());
        until("the good one is delivered", || sink.of("good") == [1]).await;
        let passed = begun.elapsed();
        println!("{poison} poison events of {bytes} bytes: the good one after {passed:?}");
        assert!(passed < Duration::from_secs(5), "{passed:?}");
        until("all others are parked", || metrics.parked_records.get() == poison as i64).await;
        assert_eq!((cursor.position(), metrics.places_unavailable.get()), (0, 3));
        assert_eq!(health.check(), Ok(()), "one missing topic is not a sink that is down");
        let places = health.places();
        let named: BTreeMap<_, _> = places.named.into_iter().collect();
        assert_eq!((places.count, named["topic cdr.a"].as_str()), (3, "does not exist"));

        // The others go on while these wait.
        spool.append((0..500).map(|n| event("good", &format!("new {n}"), n)).collect::<Vec<_>>()).await.unwrap();
        until("new ones are delivered", || sink.count() == 501).await;

        sink.away.lock().clear();
        until("all are settled", || cursor.position() == poison + 501).await;
        stop.send_replace(true);
        running.await.unwrap();
        assert_eq!(sink.count() as u64, poison + 501, "each once");
        assert!(sink.delivered.lock().values().all(|numbers| numbers.is_sorted()));
        assert_eq!((metrics.parked_records.get(), metrics.places_unavailable.get(), health.places().count), (0, 0, 0));
    }
}

#[tokio::test]
async fn parked_events_take_a_bounded_share_of_memory_and_the_way_back_as_well() {
    const EVENTS: u64 = 300;
    let sink = Topics::without(["cdr.a"]);
    let events = (0..EVENTS).map(|n| sized("a", &format!("{}", n % 100), n, 50_000)).collect();
    let mut bench = bench(&sink, HOUR, events).await;
    bench.dispatcher.config.max_in_flight_bytes = ByteSize::mib(1);
    let Bench { spool, mut dispatcher, stop, _dir } = bench;
    let cursor = spool.cursor("sink").unwrap();
    let mut highest = 0;
    // The loop itself, so that its memory can be looked at after every step.
    while cursor.position() < EVENTS {
        tokio::select! {
            Some((record, outcome)) = dispatcher.in_flight.next() => dispatcher.complete(record, outcome),
            () = dispatcher.places.retry_due() => {
                let due = dispatcher.places.take_due();
                dispatcher.want(due);
            }
            () = std::future::ready(()), if dispatcher.free_bytes() > 0 && !dispatcher.wanted.is_empty() => {
                dispatcher.read_again(dispatcher.free_bytes()).await;
            }
            () = dispatcher.reader.ready(), if dispatcher.free_bytes() > 0 => dispatcher.read(dispatcher.free_bytes()).await,
        }
        dispatcher.settle();
        highest = highest.max(dispatcher.gate.resident_bytes());
        if dispatcher.gate.on_disk() == EVENTS as usize {
            sink.away.lock().clear();
        }
    }
    drop(stop);
    println!("{highest} bytes at the most");
    assert!(highest < 1_300_000, "{highest}");
    assert_eq!(sink.count() as u64, EVENTS);
    assert!(sink.delivered.lock().values().all(|numbers| numbers.is_sorted()));
}

#[tokio::test]
async fn an_event_waits_for_one_of_its_conversation_whose_topic_is_missing() {
    let sink = Topics::without(["cdr.missing"]);
    let events = vec![event("missing", "c", 0), event("good", "c", 1), event("missing", "c", 2), event("good", "d", 3)];
    let Bench { spool, dispatcher, stop, _dir } = bench(&sink, HOUR, events).await;
    let metrics = dispatcher.publisher.metrics.clone();
    let running = tokio::spawn(dispatcher.run());
    until("the other conversation is delivered", || sink.of("d") == [3]).await;
    until("the three wait", || metrics.parked_records.get() == 3).await;
    // Read while those wait.
    spool.append(vec![event("good", "c", 4)]).await.unwrap();
    until("and the new one too", || metrics.parked_records.get() == 4).await;
    assert!(sink.of("c").is_empty());
    sink.away.lock().clear();
    until("all are delivered", || sink.of("c") == [0, 1, 2, 4]).await;
    stop.send_replace(true);
    running.await.unwrap();
    assert_eq!(spool.cursor("sink").unwrap().position(), 5);
}

#[tokio::test]
async fn events_for_a_missing_topic_become_dead_letters_after_max_age_and_those_for_a_partition_never() {
    for partitions in [false, true] {
        let away = Mutex::new(["cdr.missing".to_owned()].into());
        let sink = Arc::new(Topics { away, partitions, ..Default::default() });
        let events = (0..200).map(|n| event("missing", &format!("{}", n % 50), n)).chain([event("good", "7", 200)]);
        let max_age = Duration::from_millis(700);
        let Bench { spool, dispatcher, stop, _dir } = bench(&sink, max_age, events.collect()).await;
        let (metrics, begun) = (dispatcher.publisher.metrics.clone(), Instant::now());
        let cursor = spool.cursor("sink").unwrap();
        let running = tokio::spawn(dispatcher.run());
        until("all are parked", || metrics.parked_records.get() == 201).await;
        assert!(begun.elapsed() >= max_age || metrics.dead_lettered.get() == 0, "none before its time");
        if partitions {
            let before = sink.attempts.load(Ordering::Relaxed);
            // The pauses before these take longer than `max_age`.
            until("the partition is tried thrice", || sink.attempts.load(Ordering::Relaxed) >= before + 3).await;
            assert!(begun.elapsed() > 2 * max_age);
            assert_eq!((metrics.dead_lettered.get(), cursor.position(), sink.count()), (0, 0, 0));
            sink.away.lock().clear();
            until("all are delivered", || cursor.position() == 201).await;
            assert_eq!(sink.count(), 201);
        } else {
            until("all are settled", || cursor.position() == 201).await;
            assert!(begun.elapsed() >= max_age);
            assert_eq!((metrics.dead_lettered.get(), sink.of("7")), (200, vec![200]));
            let mut letters = crate::dead_letter::Letters::of(_dir.path(), "sink").unwrap();
            let letters: Vec<_> = std::iter::from_fn(|| letters.read_next().unwrap()).collect();
            assert_eq!(letters.len(), 200);
            assert!(letters.iter().all(|letter| letter.item.reason == "topic cdr.missing: does not exist"));
        }
        stop.send_replace(true);
        running.await.unwrap();
        assert!(sink.delivered.lock().values().all(|numbers| numbers.is_sorted()));
    }
}

#[tokio::test]
async fn beyond_the_bound_of_parked_records_nothing_is_read_and_readiness_says_so() {
    let sink = Topics::without(["cdr.missing"]);
    let events = (0..2000).map(|n| event("missing", &n.to_string(), n)).chain([event("good", "good", 2000)]);
    let Bench { spool, mut dispatcher, stop, _dir } = bench(&sink, HOUR, events.collect()).await;
    dispatcher.max_parked = 300;
    let (health, metrics) = (dispatcher.publisher.health.clone(), dispatcher.publisher.metrics.clone());
    let running = tokio::spawn(dispatcher.run());
    until("readiness says so", || health.check().is_err()).await;
    let reason = health.check().unwrap_err();
    assert!(reason.contains("no more are read") && reason.contains("topic cdr.missing: does not exist"), "{reason}");
    let parked = metrics.parked_records.get();
    assert!((300..600).contains(&parked), "{parked}");
    assert_eq!(sink.count(), 0);
    sink.away.lock().clear();
    until("all are delivered", || sink.count() == 2001).await;
    until("it is ready", || health.check().is_ok()).await;
    stop.send_replace(true);
    running.await.unwrap();
    assert_eq!(spool.cursor("sink").unwrap().position(), 2001);
}

#[tokio::test]
async fn a_sink_whose_only_topic_is_missing_is_not_ready() {
    let sink = Topics::without(["cdr"]);
    let Bench { dispatcher, stop, .. } =
        Bench::with_topic(sink.clone(), Config::default(), Some("cdr"), vec![event("a", "a", 0)]).await;
    let health = dispatcher.publisher.health.clone();
    health.probed(Ok(()));
    let running = tokio::spawn(dispatcher.run());
    until("readiness names the topic", || health.check() == Err("topic cdr: does not exist".into())).await;
    sink.away.lock().clear();
    until("it is ready", || health.check().is_ok()).await;
    assert_eq!(sink.of("a"), [0]);
    stop.send_replace(true);
    running.await.unwrap();
}

#[tokio::test]
async fn with_thousands_of_places_each_is_tried_again_and_seldom() {
    const PLACES: u64 = 5000;
    let teams: HashSet<_> = (0..PLACES).map(|n| format!("cdr.t{n}")).collect();
    let sink = Arc::new(Topics { away: Mutex::new(teams), ..Default::default() });
    let events = (0..PLACES).map(|n| event(&format!("t{n}"), &n.to_string(), n)).collect();
    let Bench { spool, dispatcher, stop, _dir } = bench(&sink, HOUR, events).await;
    let metrics = dispatcher.publisher.metrics.clone();
    let running = tokio::spawn(dispatcher.run());
    until("nearly all wait", || metrics.parked_records.get() > PLACES as i64 * 9 / 10).await;
    assert!(metrics.places_unavailable.get() <= 4097, "{}", metrics.places_unavailable.get());
    tokio::time::pause();
    tokio::time::sleep(Duration::from_secs(3)).await;
    tokio::time::resume();
    let attempts = sink.attempts.load(Ordering::Relaxed) as u64;
    println!("{attempts} attempts for {PLACES} places");
    assert!((PLACES..2 * PLACES).contains(&attempts), "{attempts}");
    stop.send_replace(true);
    tokio::time::timeout(PATIENCE, running).await.expect("a stop does not wait for them").unwrap();
    assert_eq!(spool.cursor("sink").unwrap().position(), 0);
}

/// Places, and the destination as a whole, go away and come back at random.
#[tokio::test(start_paused = true)]
async fn whatever_goes_away_and_comes_back_nothing_is_lost_and_conversations_stay_in_order() {
    const EVENTS: u64 = 3000;
    for seed in 0..2 {
        let mut random = fastrand::Rng::with_seed(seed);
        let sink = Arc::new(Topics { failing: 1, ..Default::default() });
        let Bench { spool, dispatcher, stop, _dir } = bench(&sink, HOUR, Vec::new()).await;
        let cursor = spool.cursor("sink").unwrap();
        let running = tokio::spawn(dispatcher.run());
        for part in 0..20 {
            sink.change(6, &mut random);
            let numbers = part * EVENTS / 20..(part + 1) * EVENTS / 20;
            let events = numbers.map(|n| event(&random.u8(0..6).to_string(), &random.u8(0..40).to_string(), n));
            spool.append(events.collect::<Vec<_>>()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(random.u64(0..1000))).await;
        }
        sink.away.lock().clear();
        until("all are settled", || cursor.position() == EVENTS).await;
        stop.send_replace(true);
        running.await.unwrap();
        assert_eq!(sink.count() as u64, EVENTS, "seed {seed}: each once");
        assert!(sink.delivered.lock().values().all(|numbers| numbers.is_sorted()), "seed {seed}");
    }
}

/// Restarts the dispatcher of a spool, whose sink it is.
async fn restarted(dir: tempfile::TempDir, sink: &Arc<Topics>) -> Bench {
    let route = crate::route::Config { topic: Some("cdr.{team}".to_owned()), ..Default::default() };
    let bench = Bench::begin(dir, sink.clone(), Config::default(), route, Vec::new()).await;
    bench.dispatcher.publisher.health.probed(Ok(()));
    bench
}

#[tokio::test]
async fn a_restart_delivers_none_of_the_settled_records_behind_a_parked_one_again() {
    let sink = Topics::without(["cdr.missing"]);
    let events = (0..500).map(|n| event(if n % 100 == 0 { "missing" } else { "good" }, &n.to_string(), n));
    let Bench { spool, dispatcher, stop, _dir } = bench(&sink, HOUR, events.collect()).await;
    let running = tokio::spawn(dispatcher.run());
    until("the others are delivered", || sink.count() == 495).await;
    stop.send_replace(true);
    running.await.unwrap();
    assert_eq!(spool.cursor("sink").unwrap().position(), 0);
    spool.close();
    drop(spool);

    let Bench { spool, dispatcher, stop, _dir } = restarted(_dir, &sink).await;
    let metrics = dispatcher.publisher.metrics.clone();
    let running = tokio::spawn(dispatcher.run());
    until("five are parked", || metrics.parked_records.get() == 5).await;
    spool.append(vec![event("good", "late", 500)]).await.unwrap();
    until("the new one is delivered", || sink.count() == 496).await;
    sink.away.lock().clear();
    until("all are settled", || spool.cursor("sink").unwrap().position() == 501).await;
    stop.send_replace(true);
    running.await.unwrap();
    assert_eq!(sink.count(), 501, "each once");
}

/// The dispatcher is aborted at random moments, as a killed process is, while its places go away and come back.
#[tokio::test]
async fn killed_dispatchers_lose_nothing_and_keep_the_order_of_first_deliveries() {
    const EVENTS: u64 = 2000;
    let mut random = fastrand::Rng::with_seed(7);
    let sink = Arc::new(Topics::default());
    let mut directory = tempfile::tempdir().unwrap();
    let mut saved = 0;
    for part in 0..20 {
        let Bench { spool, mut dispatcher, stop, _dir } = restarted(directory, &sink).await;
        dispatcher.save_interval = Duration::from_millis(2);
        saved += u32::from(dispatcher.settled_before.contains(spool.cursor("sink").unwrap().position() + 1));
        let running = tokio::spawn(dispatcher.run());
        sink.change(4, &mut random);
        let numbers = part * EVENTS / 20..(part + 1) * EVENTS / 20;
        let events = numbers.map(|n| event(&random.u8(0..6).to_string(), &random.u8(0..90).to_string(), n));
        spool.append(events.collect::<Vec<_>>()).await.unwrap();
        for _ in 0..random.u32(0..2000) {
            yield_now().await;
        }
        running.abort();
        let _ = running.await;
        drop(stop);
        spool.close();
        drop(spool);
        directory = _dir;
    }
    println!("{saved} starts found settled records behind the cursor");
    assert!(saved > 3, "{saved}");
    sink.away.lock().clear();
    let Bench { spool, dispatcher, stop, _dir } = restarted(directory, &sink).await;
    let running = tokio::spawn(dispatcher.run());
    until("all are settled", || spool.cursor("sink").unwrap().position() == EVENTS).await;
    stop.send_replace(true);
    running.await.unwrap();
    let delivered = sink.delivered.lock();
    let mut all = HashSet::<u64>::new();
    for numbers in delivered.values() {
        let mut seen = HashSet::new();
        let first: Vec<_> = numbers.iter().filter(|number| seen.insert(**number)).collect();
        assert!(first.is_sorted(), "{numbers:?}");
        all.extend(numbers);
    }
    println!("{} deliveries of {EVENTS} events", delivered.values().map(Vec::len).sum::<usize>());
    assert_eq!(all.len() as u64, EVENTS);
}
