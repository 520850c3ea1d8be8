use super::*;
use crate::event::{Arrival, Event};
use crate::metrics::Metrics;
use crate::route::Dialect;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Takes every message and answers for none.
#[derive(Default)]
struct Silent {
    taken: AtomicUsize,
}

impl Sink for Silent {
    fn publish<'a>(&'a self, _: &'a Message) -> BoxFuture<'a, Result<(), Failure>> {
        self.taken.fetch_add(1, Ordering::Relaxed);
        std::future::pending().boxed()
    }

    fn probe(&self) -> BoxFuture<'_, Result<(), Failure>> {
        std::future::ready(Ok(())).boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        std::future::ready(()).boxed()
    }
}

#[tokio::test]
async fn records_under_way_fit_the_look_ahead_however_small_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let config = crate::spool::Config { path: dir.path().to_owned(), ..Default::default() };
    let spool = Arc::new(Spool::open(&config, &["silent"], Metrics::default().spool).unwrap());
    let event = |number| Event::parse(&format!("{{\"n\":{number}}}"), 9, Arrival::now()).unwrap();
    spool.append((0..4000).map(event).collect()).await.unwrap();

    let sink = Arc::new(Silent::default());
    let parts = Parts {
        name: "silent".into(),
        // More than a semaphore can have.
        config: Config { max_in_flight: usize::MAX, look_ahead: ByteSize::mib(1), ..Default::default() },
        route: Route::compile(&crate::route::Config::default(), Dialect::Kafka).unwrap(),
        sink: sink.clone(),
        dead_letters: DeadLetters::new(dir.path(), "silent"),
        metrics: SinkMetrics::default(),
        health: Health::new("silent", true),
    };
    let (stop, stopped) = watch::channel(false);
    let dispatcher = Dispatcher::new(spool, parts, stopped).unwrap();
    let ended = tokio::time::timeout(Duration::from_millis(500), dispatcher.run()).await;
    assert!(ended.is_err());
    drop(stop);
    let taken = sink.taken.load(Ordering::Relaxed);
    assert!((400..1000).contains(&taken), "{taken}");
}
