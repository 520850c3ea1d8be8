//! A 2xx means stored, anything else says why not, whatever comes in.

use crate::support::bridge::{Answer, client};
use crate::support::raw::Raw;
use crate::support::{ANY_PORTS, Bridge, PATIENCE, eventually, free_port, until};
use futures_util::future::join_all;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper::header::{ACCEPT_ENCODING, ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use serde_json::Value;
use std::time::Duration;

const JSON: &str = "application/json";

async fn bridge() -> Bridge {
    Bridge::start(&format!("{ANY_PORTS}max_body = '256KiB'\nbody_timeout = '1s'\n[sinks.out]\ntype = 'stdout'\n")).await
}

/// As `bridge`, but with a destination that is never there, and a spool that is soon full.
async fn stuck_bridge() -> Bridge {
    let settings = "max_body = '64KiB'\n[spool]\nmax_size = '1MiB'\n[sinks.k]\ntype = 'kafka'\ntopic = 't'\n";
    Bridge::start(&format!("{ANY_PORTS}{settings}brokers = '127.0.0.1:{}'\n", free_port())).await
}

async fn accepted(bridge: &Bridge) -> u64 {
    bridge.metric("cdrelay_ingress_events_accepted_total").await.unwrap() as u64
}

/// The texts of the events on stdout, once there are `count`.
async fn delivered(bridge: &Bridge, count: usize) -> Vec<String> {
    until(PATIENCE, "the events are delivered", async || {
        let lines = bridge.stdout_lines();
        (lines.len() >= count).then_some(lines)
    })
    .await
    .into_iter()
    .map(|line| line.split_once(r#","event":"#).unwrap().1.strip_suffix('}').unwrap().to_owned())
    .collect()
}

fn assert_problem(answer: &Answer, status: u16, detail: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.headers[CONTENT_TYPE], "application/problem+json");
    let problem = answer.json();
    assert_eq!(problem["status"], status);
    assert!(problem["title"].is_string(), "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains(detail), "{problem} lacks {detail:?}");
}

async fn request(bridge: &Bridge, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let uri = bridge.ingress_url().replace("/webhook/cdr", path);
    let request = headers.iter().fold(Request::builder(), |request, (name, value)| request.header(*name, *value));
    bridge.send(request.method(method).uri(uri).body(Full::default()).unwrap()).await
}

#[tokio::test]
async fn every_refusal_says_why() {
    let bridge = bridge().await;
    let documented = "{ virtual_number: 440000000000, custom: '{\"crm\":\"true\"}', appid: 2222223, type: 'cdr', direction: 'inbound', status: 'missed' }";
    let answer = bridge.post(documented, JSON).await;
    assert_problem(&answer, 400, "line 1, column 3: key must be a string");
    assert_eq!((&answer.json()["line"], &answer.json()["column"]), (&Value::from(1), &Value::from(3)));

    for path in ["/", "/webhook", "/webhook/cdr/", "/webhook/cdrs", "/webhook/%63dr", "/webhook//cdr"] {
        assert_problem(&request(&bridge, "POST", path, &[]).await, 404, "nothing is here");
    }
    for method in ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"] {
        let answer = request(&bridge, method, "/webhook/cdr", &[]).await;
        assert_problem(&answer, 405, "POST or GET");
        assert_eq!(answer.headers[ALLOW], "GET, HEAD, POST");
    }
    for encoding in ["compress", "exi", "identity, aes128gcm", "gzip, gzip, gzip"] {
        let answer = request(&bridge, "POST", "/webhook/cdr", &[("content-encoding", encoding)]).await;
        assert_problem(&answer, 415, encoding.trim_start_matches("identity, "));
        assert_eq!(answer.headers[ACCEPT_ENCODING], "gzip, deflate, zstd, br");
    }
    for body in ["", "  ", "null", "[1]", "<xml/>", "{\"a\":", "\u{feff}", "{\"a\":1}{\"b\":2}"] {
        assert_problem(&bridge.post(body, JSON).await, 400, "");
    }
    assert_problem(&bridge.post(&b"{\"a\":\"\xff\"}"[..], JSON).await, 400, "line 1, column 7: not valid UTF-8");
    assert_problem(&bridge.post("[".repeat(50_000), JSON).await, 400, "64 levels");
    assert_problem(&bridge.post("{\"a\":".repeat(50_000), JSON).await, 400, "64 levels");
    let fields: Vec<String> = (0..1001).map(|n| format!("\"f{n}\":1")).collect();
    assert_problem(&bridge.post(format!("{{{}}}", fields.join(",")), JSON).await, 400, "more than 1000 fields");
    assert_problem(&bridge.get(&"a=1&".repeat(1001)).await, 400, "more than 1000 fields");
    assert_problem(&bridge.post(format!("[{}{{}}]", "{},".repeat(1000)), JSON).await, 413, "more than 1000 events");
    assert_eq!(accepted(&bridge).await, 0);
}

#[tokio::test]
async fn probes_get_200_and_store_nothing() {
    let bridge = bridge().await;
    for (method, path) in [
        ("GET", "/webhook/cdr"),
        ("GET", "/webhook/cdr?"),
        ("GET", "/webhook/cdr?&&"),
        ("HEAD", "/webhook/cdr"),
        ("HEAD", "/webhook/cdr?appid=1&type=cdr"),
    ] {
        let answer = request(&bridge, method, path, &[]).await;
        assert_eq!(answer.status, 200, "{method} {path}");
        assert_eq!(answer.body.is_empty(), method == "HEAD");
    }
    assert_eq!(bridge.post("[]", JSON).await.status, 200);
    assert_eq!(accepted(&bridge).await, 0);
}

#[tokio::test]
async fn the_body_decides_and_arrives_unchanged() {
    let bridge = bridge().await;
    let odd = [
        r#"{ "n":12345678901234567890123456789, "e":1e400, "z":-0.0, "f":1.10 ,"id":1}"#,
        r#"{"escaped":"\u0000\ud83d\ude00\/\\\"","lone":"\udc00","id":2,"id":2}"#,
        "{\"tamil\":\"தமிழ்\",\"c\":\"\u{7f}\u{2028}\",\"id\":3}",
    ];
    let types = [JSON, "text/plain", "application/x-www-form-urlencoded", "image/png", "", "multipart/form-data"];
    for (body, content_type) in odd.iter().zip(types) {
        assert_eq!(bridge.post(format!("\u{feff}{body}"), content_type).await.status, 200, "{body}");
    }
    assert_eq!(delivered(&bridge, odd.len()).await, odd);

    // By GET, in a JSON body too, whatever the type says.
    for (n, content_type) in types.iter().enumerate() {
        let get = Request::get(bridge.ingress_url()).header(CONTENT_TYPE, *content_type);
        let body = format!("{{\"get\":{n}}}");
        assert_eq!(bridge.send(get.body(Full::new(body.into())).unwrap()).await.status, 200);
    }
    assert_eq!(bridge.get("type=cdr&team=Sales%20%2A%3E&custom=%7B%22crm%22%3A%22true%22%7D").await.status, 200);
    let last = delivered(&bridge, odd.len() + types.len() + 1).await.pop().unwrap();
    assert_eq!(last, r#"{"type":"cdr","team":"Sales *>","custom":"{\"crm\":\"true\"}"}"#);
}

#[tokio::test]
async fn one_bad_element_stores_none() {
    let bridge = bridge().await;
    for body in [
        "[{\"a\":1},{\"a\":2},3]",
        "[{\"a\":1},{\"a\":2}",
        "{\"a\":1}\n{\"a\":2}\n{\"a\":",
        "{\"count\":2,\"cdr\":[{\"a\":1},null]}",
        "data=[{\"a\":1},7]",
    ] {
        assert_problem(&bridge.post(body, "application/x-www-form-urlencoded").await, 400, "line ");
    }
    assert_eq!(accepted(&bridge).await, 0);
    let answer = bridge.post("[{\"a\":1},{\"a\":2},{\"a\":1}]", JSON).await;
    assert_eq!(answer.text(), "{\"stored\":2,\"duplicates\":1}\n");
}

#[tokio::test]
async fn a_slow_body_gets_408_and_nothing_is_stored() {
    let bridge = bridge().await;
    let mut slow = Raw::connect(&bridge).await;
    slow.send(Raw::head("POST", "content-length: 10\r\n") + "{\"a\"").await;
    let answer = slow.answer().await;
    assert_problem(&answer, 408, "within 1 s");
    assert_eq!(answer.headers[CONNECTION], "close");
    assert!(slow.ends(PATIENCE).await);
    assert_eq!(accepted(&bridge).await, 0);
    assert_eq!(bridge.metric("cdrelay_ingress_limited_total{limit=\"body_time\"}").await, Some(1.0));
}

#[tokio::test]
async fn a_client_that_is_still_sending_reads_why_it_was_refused() {
    let bridge = bridge().await;
    let piece = vec![b'x'; 64 << 10];
    let length = 200 * piece.len();
    let declared = format!("content-length: {length}\r\n");
    let cases = [
        (Raw::head("POST", &declared), 413),
        (Raw::head("POST", "transfer-encoding: chunked\r\n") + &format!("{length:x}\r\n"), 413),
        (Raw::head("PUT", &declared), 405),
        (Raw::head("POST", &declared).replace("cdr", "x"), 404),
        (Raw::head("POST", &format!("{declared}content-encoding: compress\r\n")), 415),
        (Raw::head("POST", &format!("{declared}x: {}\r\n", "x".repeat(1 << 20))), 431),
    ];
    for (head, status) in cases {
        // It sends everything before it reads anything, as simple clients do.
        let mut client = Raw::connect(&bridge).await;
        client.send(head).await;
        for _ in 0..200 {
            client.send(&piece).await;
        }
        assert_eq!(client.answer().await.status, status);
        assert!(client.ends(PATIENCE).await, "{status}");
    }
    assert_eq!(accepted(&bridge).await, 0);
}

#[tokio::test]
async fn expect_100_continue_is_answered_only_if_the_body_is_wanted() {
    let bridge = bridge().await;
    let mut client = Raw::connect(&bridge).await;
    client.send(Raw::head("POST", "expect: 100-continue\r\ncontent-length: 7\r\n")).await;
    assert_eq!(client.answer().await.status, 100);
    client.send("{\"a\":1}").await;
    assert_eq!(client.answer().await.status, 200);
    client.send(Raw::head("POST", "expect: 100-continue\r\ncontent-length: 7000000\r\n")).await;
    assert_eq!(client.answer().await.status, 413);
}

#[tokio::test]
async fn oversized_and_malformed_requests_are_refused_at_once() {
    let bridge = bridge().await;
    let long = "x".repeat(100 << 10);
    let headers: String = (0..100_000).map(|n| format!("x-{n}: 1\r\n")).collect();
    let cases: [(String, &[u16]); 12] = [
        (Raw::head("GET", &headers), &[431]),
        (Raw::head("GET", &format!("x: {long}\r\n")), &[431]),
        (Raw::head("GET", "").replace("cdr", &long), &[414, 431]),
        (Raw::head("POST", "content-length: -1\r\n"), &[400]),
        (Raw::head("POST", "content-length: 2\r\ncontent-length: 3\r\n") + "{}", &[400]),
        (Raw::head("POST", "content-length: 99999999999999999999\r\n"), &[400]),
        (Raw::head("POST", "transfer-encoding: gzip\r\n"), &[400]),
        (Raw::head("POST", "transfer-encoding: chunked\r\n") + "zz\r\n{}", &[400]),
        (Raw::head("POST", "transfer-encoding: chunked\r\n") + "7fffffffffffffffff\r\n{}", &[400]),
        (Raw::head("POST", "x: a\r\n folded\r\n"), &[400]),
        ("GET / HTTP/9.9\r\n\r\n".into(), &[400]),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n".into(), &[400]),
    ];
    for (request, expected) in cases {
        let mut client = Raw::connect(&bridge).await;
        client.try_send(&request).await;
        let status = client.answer().await.status;
        assert!(expected.contains(&status), "{status} for {:?}", &request[..request.len().min(100)]);
    }
    assert_eq!(accepted(&bridge).await, 0);
}

/// A proxy in front may go by the other of two lengths: what follows must not be taken for a request.
#[tokio::test]
async fn two_lengths_never_make_two_requests() {
    let bridge = bridge().await;
    let lengths =
        ["content-length: 7\r\ntransfer-encoding: chunked\r\n", "transfer-encoding: chunked\r\ncontent-length: 7\r\n"];
    for (n, lengths) in lengths.iter().enumerate() {
        let mut client = Raw::connect(&bridge).await;
        let body = format!("7\r\n{{\"a\":{n}}}\r\n0\r\n\r\n");
        client.send(Raw::head("POST", lengths) + &body + &Raw::post("{\"smuggled\":1}")).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.headers[CONNECTION].to_str().unwrap()), (200, "close"));
        assert!(client.ends(PATIENCE).await);
    }
    assert_eq!(accepted(&bridge).await, 2);
}

#[tokio::test]
async fn unusual_but_legal_requests_are_taken() {
    let bridge = bridge().await;
    let mut client = Raw::connect(&bridge).await;
    let absolute = Raw::post("{\"a\":1}").replace("/webhook", "http://elsewhere/webhook");
    let chunked = "transfer-encoding: chunked\r\ntrailer: x\r\n";
    let chunks = "1;extension=1\r\n{\r\n2\r\n\"b\r\n4\r\n\":1}\r\n0\r\nx: y\r\n\r\n";
    // Pipelined: the next is sent before the last is answered.
    let pipelined: String = (0..50).map(|n| Raw::post(&format!("{{\"c\":{n}}}"))).collect();
    client.send(format!("\r\n{absolute}{}{chunks}{pipelined}", Raw::head("POST", chunked))).await;
    for _ in 0..52 {
        assert_eq!(client.answer().await.status, 200);
    }
    client.send("POST /webhook/cdr HTTP/1.0\r\ncontent-length: 7\r\n\r\n{\"d\":1}").await;
    assert_eq!(client.answer().await.status, 200);
    assert!(client.ends(PATIENCE).await);
    let mut expected = vec!["{\"a\":1}".to_owned(), "{\"b\":1}".to_owned()];
    expected.extend((0..50).map(|n| format!("{{\"c\":{n}}}")));
    expected.push("{\"d\":1}".into());
    let mut arrived = delivered(&bridge, expected.len()).await;
    arrived.sort();
    expected.sort();
    assert_eq!(arrived, expected);
}

#[tokio::test]
async fn a_connection_carries_requests_in_one_piece_and_in_several() {
    let bridge = bridge().await;
    let body = |n: usize| format!("{{\"n\":{n}}}");
    let (mut sent, mut client) = (0, Raw::connect(&bridge).await);
    // After none, one or two in one piece something comes that is not.
    for before in 0..3 {
        for cut in [1, 40, Raw::post(&body(0)).len() - 1] {
            for _ in 0..before {
                assert_eq!(client.exchange(&body(sent)).await, Ok(200));
                sent += 1;
            }
            let whole = Raw::post(&body(sent));
            let (first, second) = whole.split_at(cut);
            client.send(first).await;
            assert!(client.try_answer(Duration::from_millis(50)).await.is_none(), "{before} {cut}");
            client.send(second.to_owned() + &Raw::post(&body(sent + 1))).await;
            assert_eq!((client.answer().await.status, client.answer().await.status), (200, 200), "{before} {cut}");
            let refused = client.exchange("{").await;
            assert_eq!((refused, client.exchange(&body(sent + 2)).await), (Ok(400), Ok(200)), "{before} {cut}");
            sent += 3;
            client = Raw::connect(&bridge).await;
        }
    }
    // A refused request whose body was not read, and one that asks for its end does.
    client.send(Raw::post(&body(sent)).replace("/cdr", "/none")).await;
    let refused = client.answer().await;
    assert_eq!((refused.status, refused.headers.get(CONNECTION)), (404, None));
    client.send(Raw::post(&body(sent)).replace("host: test", "host: test\r\nConnection: close")).await;
    let last = client.answer().await;
    assert_eq!((last.status, last.headers[CONNECTION].to_str().unwrap()), (200, "close"));
    assert!(client.ends(PATIENCE).await);
    assert_eq!(accepted(&bridge).await as usize, sent + 1);
}

#[tokio::test]
async fn http2_without_asking_carries_many_streams() {
    let bridge = Bridge::start(&format!("{ANY_PORTS}max_body = '256KiB'\n[sinks.out]\ntype = 'stdout'\n")).await;
    let client = client(true);
    let large = "x".repeat(200 << 10);
    let send = async |n: usize| {
        let custom = if n.is_multiple_of(10) { &large } else { "" };
        let request = Request::post(bridge.ingress_url());
        let body: Bytes = format!("{{\"cmiuuid\":\"{n}\",\"custom\":\"{custom}\"}}").into();
        client.request(request.body(Full::new(body)).unwrap()).await.unwrap().status().as_u16()
    };
    let statuses = join_all((0..500).map(send)).await;
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
    let too_large = Request::post(bridge.ingress_url()).body(Full::new(Bytes::from(large.repeat(2)))).unwrap();
    let answer = client.request(too_large).await.unwrap();
    assert_eq!(answer.status(), 413);
    assert!(String::from_utf8_lossy(&answer.into_body().collect().await.unwrap().to_bytes()).contains("262144"));
    assert_eq!(accepted(&bridge).await, 500);
}

#[tokio::test]
async fn a_client_that_goes_away_stores_all_or_nothing() {
    let bridge = bridge().await;
    for cut in [0, 1, 6] {
        let mut client = Raw::connect(&bridge).await;
        client.send(&Raw::post("{\"a\":1}")[..Raw::post("").len() + cut]).await;
        drop(client);
        let mut client = Raw::connect(&bridge).await;
        client.send(Raw::head("POST", "transfer-encoding: chunked\r\n") + "7\r\n{\"a\":1}\r\n").await;
        drop(client);
    }
    eventually(PATIENCE, "the broken requests are done with", async || {
        bridge.metric("cdrelay_ingress_requests_in_flight").await == Some(0.0)
    })
    .await;
    assert_eq!(accepted(&bridge).await, 0);

    // Everything was sent: it is taken although nobody waits for the answer.
    let mut gone = Raw::connect(&bridge).await;
    gone.send(Raw::post("{\"gone\":1}")).await;
    drop(gone);
    assert_eq!(delivered(&bridge, 1).await, ["{\"gone\":1}"]);

    // A client that closes only its sending side gets its answer.
    let mut half = Raw::connect(&bridge).await;
    half.send(Raw::post("{\"half\":1}")).await;
    tokio::io::AsyncWriteExt::shutdown(&mut half.stream).await.unwrap();
    assert_eq!(half.answer().await.status, 200);
}

#[tokio::test]
async fn a_full_spool_says_when_to_come_again() {
    let bridge = stuck_bridge().await;
    let mut stored = 0;
    let answer = loop {
        let answer = bridge.post(format!("{{\"n\":{stored},\"x\":\"{}\"}}", "x".repeat(60_000)), JSON).await;
        if answer.status != 200 {
            break answer;
        }
        stored += 1;
    };
    assert!((8..20).contains(&stored), "{stored}");
    assert_problem(&answer, 503, "full");
    assert!(answer.headers[RETRY_AFTER].to_str().unwrap().parse::<u64>().unwrap() > 0);
    assert_eq!(bridge.admin("/readyz").await.status, 503);
    // What is stored already needs no room, and a probe neither.
    let again = bridge.post(format!("{{\"n\":0,\"x\":\"{}\"}}", "x".repeat(60_000)), JSON).await;
    assert_eq!(again.text(), "{\"stored\":0,\"duplicates\":1}\n");
    assert_eq!(bridge.get("").await.status, 200);
    assert_eq!(accepted(&bridge).await, stored);
}

/// Clients that announce large bodies and never send them keep nobody else waiting.
#[tokio::test]
async fn slow_large_bodies_do_not_hold_up_webhooks() {
    let settings = "[sinks.out]\ntype = 'stdout'\n";
    let bridge = Bridge::start(&format!("{ANY_PORTS}{settings}")).await;
    let mut slow = Vec::new();
    for _ in 0..32 {
        let mut client = Raw::connect(&bridge).await;
        client.send(Raw::head("POST", "content-length: 1000000\r\n") + "{").await;
        slow.push(client);
    }
    eventually(PATIENCE, "the slow ones are being read", async || {
        bridge.metric("cdrelay_ingress_requests_in_flight").await == Some(32.0)
    })
    .await;
    let answer = tokio::time::timeout(Duration::from_secs(3), bridge.post("{\"quick\":1}", JSON)).await;
    assert_eq!(answer.unwrap().status, 200);
}

#[tokio::test]
async fn connections_that_say_nothing_do_not_stay() {
    let settings = "header_timeout = '1s'\n[sinks.out]\ntype = 'stdout'\n";
    let bridge = Bridge::start(&format!("{ANY_PORTS}{settings}")).await;
    for beginning in ["", "P", "PRI * HTTP/2.0\r\n\r\nSM", "POST /webhook/cdr HTTP/1.1\r\nhost:", "\r\n\r\n"] {
        let mut client = Raw::connect(&bridge).await;
        client.send(beginning).await;
        eventually(PATIENCE, "the connection is closed", async || {
            let mut bytes = [0; 512];
            matches!(client.stream.try_read(&mut bytes), Ok(0))
        })
        .await;
    }
}

#[tokio::test]
async fn clients_that_never_read_do_not_stay() {
    let settings = "idle_timeout = '1s'\n[sinks.out]\ntype = 'stdout'\n";
    let bridge = Bridge::start(&format!("{ANY_PORTS}{settings}")).await;
    let mut client = Raw::connect(&bridge).await;
    let probes = Raw::head("GET", "").repeat(1000);
    let send = async { while client.try_send(&probes).await {} };
    tokio::time::timeout(PATIENCE, send).await.expect("the connection is closed");
}

#[tokio::test]
async fn more_connections_than_allowed_wait_for_their_turn() {
    let settings = "max_connections = 4\n[sinks.out]\ntype = 'stdout'\n";
    let bridge = Bridge::start(&format!("{ANY_PORTS}{settings}")).await;
    let send = async |n: usize| {
        let mut client = Raw::connect(&bridge).await;
        client.send(Raw::post(&format!("{{\"n\":{n}}}"))).await;
        client.answer().await.status
    };
    assert_eq!(join_all((0..40).map(send)).await, [200; 40]);
    assert_eq!(accepted(&bridge).await, 40);
}

/// Out of file descriptors: no spinning, and it goes on when there are some again.
#[tokio::test]
async fn running_out_of_files_is_survived_without_spinning() {
    let bridge = Bridge::start(&format!("{ANY_PORTS}[sinks.out]\ntype = 'stdout'\n")).await;
    bridge.limit_open_files(bridge.open_files() as u64 + 3);
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.push(Raw::connect(&bridge).await);
    }
    eventually(PATIENCE, "it says so", async || bridge.stderr().contains("connections cannot be accepted")).await;
    let before = bridge.cpu_time();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(bridge.cpu_time() - before < Duration::from_millis(200));
    drop(clients);
    assert_eq!(bridge.post("{\"a\":1}", JSON).await.status, 200);
}
