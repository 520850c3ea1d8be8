//! HTTP/2, frame by frame.

use super::*;
use crate::support::bridge::client;
use crate::support::{eventually, free_port};
use http_body_util::Full;
use hyper::Request;
use hyper::body::Bytes;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The beginning of `POST /webhook/cdr`, whose body may follow.
fn post(stream: u32) -> Vec<u8> {
    let path = b"/webhook/cdr";
    // HPACK: two entries of the static table, and two names of it with a value.
    let fields = [&[0x83, 0x86, 0x04, path.len() as u8], &path[..], &[0x01, 4], b"test"].concat();
    frame(HEADERS, END_HEADERS, stream, &fields)
}

async fn connect(bridge: &Bridge) -> Raw {
    let mut client = Raw::connect(bridge).await;
    client.send([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &frame(SETTINGS, 0, 0, &[])[..]].concat()).await;
    client
}

/// Sends piece by piece until the bridge has had enough, and reads what it says meanwhile, as long as it is not `deaf`.
async fn flood(bridge: &Bridge, deaf: bool, mut piece: impl FnMut(u32) -> Vec<u8>) {
    let (mut read, mut write) = connect(bridge).await.stream.into_split();
    let reading = async {
        if !deaf {
            let _ = tokio::io::copy(&mut read, &mut tokio::io::sink()).await;
        }
        std::future::pending().await
    };
    let writing = async {
        for number in (0..).step_by(100) {
            let pieces: Vec<u8> = (number..number + 100).flat_map(|number| piece(2 * number + 1)).collect();
            if tokio::io::AsyncWriteExt::write_all(&mut write, &pieces).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = writing => {}
        () = reading => {}
    }
}

#[tokio::test]
async fn floods_end_the_connection_and_cost_nobody_else() {
    // Longer than the client that stays ever idles, also where this machine has much else to do.
    let bridge = bridge("header_timeout = '8s'\nidle_timeout = '8s'\n").await;
    beside_others(&bridge, "rapid reset", async {
        for _ in 0..20 {
            flood(&bridge, false, |stream| [post(stream), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()).await;
        }
    })
    .await;
    beside_others(&bridge, "more streams than are allowed", async {
        for _ in 0..20 {
            flood(&bridge, false, post).await;
        }
    })
    .await;
    beside_others(&bridge, "a header that never ends", async {
        for _ in 0..20 {
            let more = frame(CONTINUATION, 0, 1, &[0x00; 1000]);
            flood(&bridge, false, |stream| if stream == 1 { frame(HEADERS, 0, 1, &[0x83]) } else { more.clone() })
                .await;
        }
    })
    .await;
    beside_others(&bridge, "settings and pings whose answers nobody reads", async {
        flood(&bridge, true, |_| frame(SETTINGS, 0, 0, &[])).await;
        flood(&bridge, true, |_| frame(PING, 0, 0, &[0; 8])).await;
    })
    .await;
}

/// Indexed fields take one byte each on the wire, and much more than that in memory.
#[tokio::test]
async fn headers_of_few_bytes_take_little_memory() {
    const CONNECTIONS: usize = 40;
    const STREAMS: u32 = 100;
    // Behind the request itself: `x-field: value` as the first entry of the dynamic table, and then that entry again and again.
    let insert = [&[0x40, 7][..], b"x-field", &[5], b"value"].concat();
    let fields = |stream: u32, count: usize| {
        let path = b"/webhook/cdr";
        let request = [&[0x83, 0x86, 0x04, path.len() as u8], &path[..], &[0x01, 4], b"test"].concat();
        let inserted = if stream == 1 { &insert[..] } else { &[] };
        frame(HEADERS, END_HEADERS, stream, &[&request, inserted, &vec![0xbe; count]].concat())
    };
    for count in [380, 90] {
        let bridge = bridge("body_timeout = '1h'\n").await;
        let before = bridge.rss_bytes();
        beside_others(&bridge, "indexed header fields", async {
            let mut clients = Vec::new();
            for _ in 0..CONNECTIONS {
                let mut client = connect(&bridge).await;
                for stream in 0..STREAMS {
                    client.try_send(fields(2 * stream + 1, count)).await;
                }
                clients.push(client);
            }
            let other = client(true);
            for n in 0..20 {
                let body = Full::new(Bytes::from(format!("{{\"count\":{count},\"n\":{n}}}")));
                let answer = other.request(Request::post(bridge.ingress_url()).body(body).unwrap()).await.unwrap();
                assert_eq!(answer.status(), 200);
            }
            let peak = bridge.peak_rss_bytes();
            println!("{count} fields: {} KiB before, {} KiB at most", before >> 10, peak >> 10);
            assert!(peak < 64 << 20, "{count} fields: {} KiB", peak >> 10);
        })
        .await;
    }
}

#[tokio::test]
async fn requests_that_are_stored_and_wait_for_the_sinks_are_no_longer_on_their_way() {
    let dead = format!("[sinks.k]\ntype = 'kafka'\ntopic = 't'\nbrokers = '127.0.0.1:{}'\n", free_port());
    let settings = "ack = 'delivered'\ndelivery_timeout = '1h'\n";
    let bridge = Bridge::start(&format!("{ANY_PORTS}{settings}{dead}")).await;
    let mut waiting = Vec::new();
    // More of them than there is memory for at a time, each on a stream of its own.
    for number in 0..1000_u32 {
        if number.is_multiple_of(30) {
            waiting.push(connect(&bridge).await);
        }
        let client = waiting.last_mut().unwrap();
        let body = format!("{{\"n\":{number}}}");
        let stream = 2 * (number % 30) + 1;
        client.send([post(stream), frame(DATA, END_STREAM, stream, body.as_bytes())].concat()).await;
        eventually(PATIENCE, "it is stored", async || {
            bridge.metric("cdrelay_spool_records").await == Some(f64::from(number + 1))
        })
        .await;
    }
    assert_eq!(limited(&bridge, "requests").await, 0.0);
}

/// As on HTTP/1.1, whatever is begun on them meanwhile: a body that never comes, one that comes byte by byte, and an answer for which
/// the client leaves no room.
#[tokio::test]
async fn clients_whose_requests_do_not_come_to_an_end_make_room_for_others() {
    const PLACES: usize = 4;
    let for_ever = "header_timeout = '1h'\nidle_timeout = '1h'\nbody_timeout = '1h'\n";
    let bridge = bridge(&format!("max_connections = {PLACES}\n{for_ever}")).await;
    // SETTINGS_INITIAL_WINDOW_SIZE
    let no_room = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    let half = [post(1), frame(DATA, 0, 1, b"{")].concat();
    let unread = [no_room, post(1), frame(DATA, END_STREAM, 1, b"{\"unread\":1}")].concat();
    // What is begun, and whether it goes on.
    let cases = [(post(1), false), ([post(1), post(3), post(5)].concat(), false), (half, true), (unread, false)];
    let (mut clients, mut evicted) = (Vec::new(), 0.0);
    for (beginning, goes_on) in &cases {
        let begun = clients.len();
        for _ in 0..PLACES {
            let mut client = connect(&bridge).await;
            client.send(beginning).await;
            clients.push(client);
        }
        let drip = async {
            loop {
                for client in clients.iter_mut().skip(begun).filter(|_| *goes_on) {
                    client.try_send(frame(DATA, 0, 1, b" ")).await;
                }
                sleep(Duration::from_millis(100)).await;
            }
        };
        let others = async {
            for n in 0..10 {
                let event = format!("{{\"n\":{n},\"evicted\":{evicted}}}");
                assert_eq!(Raw::connect(&bridge).await.exchange(&event).await, Ok(200));
            }
        };
        tokio::select! {
            in_time = tokio::time::timeout(PATIENCE, others) => in_time.unwrap(),
            () = drip => unreachable!(),
        }
        let now = limited(&bridge, "connections").await;
        assert!(now > evicted, "somebody had to go");
        evicted = now;
    }
}

/// As long as one request is complete, it is the bridge that is waited for.
#[tokio::test]
async fn a_connection_with_a_complete_request_keeps_its_place() {
    let dead = format!("[sinks.k]\ntype = 'kafka'\ntopic = 't'\nbrokers = '127.0.0.1:{}'\n", free_port());
    let settings = "ack = 'delivered'\ndelivery_timeout = '1h'\nmax_connections = 2\nbody_timeout = '1h'\n";
    let bridge = Bridge::start(&format!("{ANY_PORTS}{settings}{dead}")).await;
    let stored = async || bridge.metric("cdrelay_spool_records").await;
    let mut waiting = connect(&bridge).await;
    waiting.send([post(1), post(3), frame(DATA, END_STREAM, 1, b"{\"first\":1}")].concat()).await;
    eventually(PATIENCE, "it is stored", async || stored().await == Some(1.0)).await;
    let mut other = connect(&bridge).await;
    other.send([post(1), frame(DATA, 0, 1, b"{")].concat()).await;
    let mut last = Raw::connect(&bridge).await;
    last.send(Raw::post("{\"last\":1}")).await;
    eventually(PATIENCE, "the last one got a place and is stored", async || stored().await == Some(2.0)).await;
    assert!(!other.receives(b"an answer", PATIENCE).await, "the one with half a body had to go");
    waiting.send(frame(PING, 0, 0, b"are you?")).await;
    assert!(waiting.receives(b"are you?", PATIENCE).await, "it is still there");
}

#[tokio::test]
async fn malformed_and_refused_requests_are_counted_and_logged_once_in_a_while() {
    let bridge = bridge("").await;
    let mut client = connect(&bridge).await;
    client.send(frame(PING, ACK, 0, &[7; 8]).repeat(10_000)).await;
    client.send([post(1), frame(DATA, END_STREAM, 1, b"{\"a\":1}")].concat()).await;
    eventually(PATIENCE, "all is read", async || {
        bridge.metric("cdrelay_ingress_events_accepted_total").await == Some(1.0)
    })
    .await;
    let malformed = [
        ("version", "GET / HTTP/9\r\n\r\n".to_owned()),
        ("header", Raw::head("POST", "a b: c\r\n")),
        ("uri", "GET /webhook/cdr?a=\x01 HTTP/1.1\r\nhost: test\r\n\r\n".to_owned()),
        ("framing", Raw::head("POST", "content-length: -1\r\n")),
        ("header_too_large", Raw::head("POST", &format!("x: {}\r\n", "x".repeat(20 << 10)))),
    ];
    for (reason, request) in &malformed {
        for _ in 0..10 {
            let mut client = Raw::connect(&bridge).await;
            client.try_send(request).await;
            assert!(client.answer().await.status >= 400, "{reason}");
        }
        let name = format!("cdrelay_ingress_malformed_requests_total{{reason=\"{reason}\"}}");
        eventually(PATIENCE, reason, async || bridge.metric(&name).await == Some(10.0)).await;
    }
    for _ in 0..10 {
        assert_eq!(bridge.post("{\"a\":", "application/json").await.status, 400);
        assert_eq!(bridge.post("x".repeat(2 << 20), "application/json").await.status, 413);
        let coded = Request::post(bridge.ingress_url()).header("content-encoding", "lzma");
        assert_eq!(bridge.send(coded.body(Full::new(Bytes::from("{}"))).unwrap()).await.status, 415);
    }
    let log = bridge.stderr();
    let lines = |words: &str| log.lines().filter(|line| line.contains(words) && line.contains("127.0.0.1:")).count();
    assert_eq!(lines("malformed HTTP requests were refused"), 1, "{log}");
    for status in [400, 413, 415] {
        assert_eq!(lines(&format!("\"status\":{status},")), 1, "{status}: {log}");
    }
}
