//! Bodies that take their time.

use super::*;
use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream;
use http_body_util::StreamBody;
use hyper::Request;
use hyper::body::Frame;
use hyper_util::client::legacy;
use hyper_util::rt::TokioExecutor;
use std::convert::Infallible;
use std::time::Instant;

/// A body sent piece by piece.
struct Drip {
    what: &'static str,
    /// How long it is said to be.
    length: usize,
    /// How many bytes come at once, and after how long.
    piece: usize,
    pause: Duration,
    expected: u16,
    /// Not refused before.
    after: Duration,
}

impl Drip {
    async fn send(&self, bridge: &Bridge, http2: bool) {
        let body = format!("{{\"{}, {http2}\":\"", self.what);
        let body = format!("{body}{}\"}}", "x".repeat(self.length - body.len() - 2));
        let pieces: Vec<_> = body.as_bytes().chunks(self.piece).map(Bytes::copy_from_slice).collect();
        let pause = self.pause;
        let drip = stream::unfold(pieces.into_iter(), move |mut pieces| async move {
            let piece = pieces.next()?;
            sleep(pause).await;
            Some((Ok::<_, Infallible>(Frame::data(piece)), pieces))
        });
        let client = legacy::Client::builder(TokioExecutor::new()).http2_only(http2).build_http();
        let request = Request::post(bridge.ingress_url()).header("content-length", self.length);
        let begun = Instant::now();
        let answer = client.request(request.body(StreamBody::new(Box::pin(drip))).unwrap()).await.unwrap();
        let taken = begun.elapsed();
        println!("{}, HTTP/2 {http2}: {} after {taken:?}", self.what, answer.status());
        assert_eq!(answer.status(), self.expected, "{}, HTTP/2 {http2}", self.what);
        assert!(taken >= self.after, "{}, HTTP/2 {http2}: {taken:?}", self.what);
    }
}

/// The time for a body may be long where some are large. Then it is its rate that ends one that keeps others waiting.
#[tokio::test]
async fn a_body_that_comes_too_slowly_gets_408() {
    let bridge = bridge("body_timeout = '1h'\nmin_body_rate = '2KiB'\n").await;
    let drip = |what, length, piece, pause, expected, after| {
        let [pause, after] = [pause, after].map(Duration::from_millis);
        Drip { what, length, piece, pause, expected, after }
    };
    let drips = [
        drip("small and in no hurry", 60, 10, 1000, 200, 6000),
        drip("small and endless", 1000, 1, 100, 408, 10_000),
        drip("large and fast enough", 20_000, 2000, 600, 200, 6000),
        drip("large and slow", 100_000, 10, 100, 408, 5000),
    ];
    let all = drips.iter().flat_map(|drip| [drip.send(&bridge, false), drip.send(&bridge, true)]);
    tokio::time::timeout(PATIENCE, join_all(all)).await.unwrap();
    assert_eq!(limited(&bridge, "body_rate").await, 4.0);
    assert_eq!(limited(&bridge, "body_time").await, 0.0);
    assert_eq!(bridge.metric("cdrelay_ingress_events_accepted_total").await, Some(4.0));
}
