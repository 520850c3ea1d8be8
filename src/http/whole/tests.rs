use super::*;
use crate::http::Socket;
use futures_util::FutureExt as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{StatusCode, Version};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, duplex};
use tokio::net::{TcpListener, TcpStream};

/// What hyper takes of these bytes, and what the client reads.
async fn by_hyper(bytes: &[u8], answer: &Answer) -> (Vec<(Parts, Bytes)>, String) {
    let taken = Arc::<Mutex<Vec<_>>>::default();
    let (mut client, server) = duplex(1 << 20);
    client.write_all(bytes).await.unwrap();
    client.shutdown().await.unwrap();
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let (taken, response) = (taken.clone(), answer.clone().response(false));
        async move {
            let (parts, body) = request.into_parts();
            if let Ok(body) = body.collect().await {
                taken.lock().unwrap().push((parts, body.to_bytes()));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let _ = http1::Builder::new().half_close(true).serve_connection(TokioIo::new(server), service).await;
    let mut answered = String::new();
    client.read_to_string(&mut answered).await.unwrap();
    let taken = std::mem::take(&mut *taken.lock().unwrap());
    (taken, answered)
}

fn parsed(text: &str) -> Option<Whole> {
    Whole::parse(text.as_bytes())
}

fn body(request: Request) -> Bytes {
    request.body.collect().now_or_never().unwrap().unwrap().to_bytes()
}

const ORDINARY: [&str; 5] = [
    "POST /webhook/cdr HTTP/1.1\r\nHost: bridge:8080\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n{\"a\":\"bcde\"}",
    "POST /s3cret/cdr?a=b&c HTTP/1.1\r\nhost: b\r\nX-Signature: sha256=00ff\r\nX-Signature: twice\r\ncontent-length: 0\r\n\r\n",
    "POST / HTTP/1.1\r\nconnection: keep-alive\r\naccept-encoding: gzip, deflate\r\nContent-Length: 004\r\n\r\n\r\n\r\n",
    "GET /webhook/cdr?type=cdr&team=%20x HTTP/1.1\r\nHost: b\r\nUser-Agent: \u{fc}\tx\r\nAccept: */*\r\n\r\n",
    "\r\nPOST /x HTTP/1.1\r\nHost:\r\nConnection:  Close \r\nContent-Length:\t5\r\n\r\nGET /",
];

/// What a request has that is not ordinary, or may have.
const LINES: [&str; 14] = [
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: identity",
    "Expect: 100-continue",
    "Upgrade: h2c",
    "Connection: upgrade",
    "Connection: close, te",
    "Connection: close",
    "Connection: keep-alive",
    "Content-Length: 12",
    "Content-Length: 5, 5",
    "Content-Length: +5",
    "Content-Length : 5",
    "X: y",
    " folded",
];

fn edited(random: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = random.choice(ORDINARY).unwrap().as_bytes().to_vec();
    for _ in 0..random.usize(..4) {
        let at = random.usize(..bytes.len());
        match random.usize(..5) {
            0 => bytes[at] = *random.choice(b"\r\n :;,\t\0\x7f\x80/?#%09Az{\"").unwrap(),
            1 if bytes.len() > 1 => drop(bytes.remove(at)),
            1 | 2 => bytes.insert(at, *random.choice(b"\r\n :0\x80a").unwrap()),
            3 => bytes.truncate(at.max(2)),
            _ => {
                let ends: Vec<usize> = memchr::memmem::find_iter(&bytes, b"\r\n").map(|end| end + 2).collect();
                if let Some(end) = random.choice(ends) {
                    let line = random.choice(LINES).unwrap();
                    bytes.splice(end..end, format!("{line}\r\n").into_bytes());
                }
            }
        }
    }
    bytes
}

const CASES: usize = 20_000;

#[tokio::test]
async fn what_is_whole_is_what_hyper_takes() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut whole, mut closing) = (0, 0);
    for _ in 0..CASES {
        let bytes = edited(&mut random);
        let Some(Whole { request, closes }) = Whole::parse(&bytes) else { continue };
        let text = String::from_utf8_lossy(&bytes);
        let (taken, answered) = by_hyper(&bytes, &Answer::new(StatusCode::OK, "text/plain", "")).await;
        let [(parts, other)] = taken.as_slice() else { panic!("hyper takes {} requests of {text:?}", taken.len()) };
        let head = &request.head;
        assert_eq!(parts.version, Version::HTTP_11, "{text:?}");
        assert_eq!(*head.method(), parts.method, "{text:?}");
        assert_eq!(head.target(), parts.uri, "{text:?}");
        assert_eq!((head.path(), head.query()), (parts.uri.path(), parts.uri.query()), "{text:?}");
        for name in parts.headers.keys().chain(&[header::FROM, header::CONTENT_TYPE]) {
            let values: Vec<_> = head.values(name).collect();
            assert_eq!(values, parts.headers.get_all(name).iter().collect::<Vec<_>>(), "{name} of {text:?}");
        }
        assert_eq!(body(request), other, "{text:?}");
        assert_eq!(closes, answered.contains("\r\nconnection: close\r\n"), "{text:?}");
        whole += 1;
        closing += usize::from(closes);
    }
    assert!(whole > CASES / 5 && closing > CASES / 40, "{whole} of {CASES} were whole, {closing} of them the last");
}

#[test]
fn what_is_ordinary_is_taken() {
    let bodies = ["{\"a\":\"bcde\"}", "", "\r\n\r\n", "", "GET /"];
    for (text, expected) in ORDINARY.into_iter().zip(bodies) {
        assert_eq!(body(parsed(text).expect(text).request), expected, "{text}");
    }
    assert!(parsed(ORDINARY[4]).is_some_and(|whole| whole.closes));
    // All that a target may have, and nothing else.
    let target: String = ('\0'..'\x7f').filter(|c| is_ordinary(&(*c as u8))).collect();
    assert_eq!(target, "!$%&'()*+,-./0123456789:;=?@ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~");
}

#[test]
fn what_is_out_of_the_ordinary_is_left_to_hyper() {
    let request = |line: &str, headers: &str, body: &str| format!("{line}\r\n{headers}\r\n{body}");
    let ordinary = |headers: &str| request("POST / HTTP/1.1", headers, "12345");
    assert!(parsed(&ordinary("Content-Length: 5\r\n")).is_some());
    let many = format!("Content-Length: 5\r\n{}", "x: y\r\n".repeat(FIELDS));
    for text in [
        ordinary(""),
        ordinary("Content-Length: 4\r\n"),
        ordinary("Content-Length: 6\r\n"),
        ordinary("Content-Length: 5\r\nContent-Length: 5\r\n"),
        ordinary("Content-Length: 5\r\nContent-Length: 6\r\n"),
        ordinary("Content-Length: 5,5\r\n"),
        ordinary("Content-Length: +5\r\n"),
        ordinary("Content-Length: \r\n"),
        ordinary("Content-Length: 18446744073709551621\r\n"),
        ordinary("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
        ordinary("Content-Length: 5\r\nExpect: 100-continue\r\n"),
        ordinary("Content-Length: 5\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n"),
        ordinary("Content-Length: 5\r\nConnection: close, x\r\n"),
        ordinary(&many),
        request("POST / HTTP/1.0", "Content-Length: 5\r\n", "12345"),
        request("PUT / HTTP/1.1", "Content-Length: 5\r\n", "12345"),
        request("HEAD / HTTP/1.1", "", ""),
        request("GET / HTTP/1.1", "", "12345"),
        request("GET http://b/ HTTP/1.1", "", ""),
        request("GET /a#b HTTP/1.1", "", ""),
        request("GET /\u{fc} HTTP/1.1", "", ""),
        request("OPTIONS * HTTP/1.1", "", ""),
        request("GET / HTTP/1.1", "", "GET / HTTP/1.1\r\n\r\n"),
        request("GET / HTTP/1.1", "a b: c\r\n", ""),
        "GET / HTTP/1.1\r\n".into(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(),
        String::new(),
    ] {
        assert!(parsed(&text).is_none(), "{text:?}");
    }
}

#[tokio::test]
async fn an_answer_is_as_hyper_writes_it() {
    let lines = |text: &str| {
        let (head, body) = text.split_once("\r\n\r\n").expect(text);
        let (dates, mut lines): (Vec<_>, Vec<_>) =
            head.split("\r\n").map(str::to_owned).partition(|line| line.starts_with("date: "));
        let [date] = dates.as_slice() else { panic!("{text}") };
        let age = httpdate::parse_http_date(&date[6..]).unwrap().elapsed().unwrap();
        assert!(age < Duration::from_secs(60), "{date}");
        lines[1..].sort();
        (lines, body.to_owned())
    };
    for status in [200, 202, 400, 401, 404, 413, 500, 503] {
        for (body, closes) in [("", false), ("{\"stored\":1}\n", false), ("gone", true)] {
            let header = Some((header::RETRY_AFTER, HeaderValue::from_static("17")));
            let header = header.filter(|_| status == 503);
            let answer = Answer::new(StatusCode::from_u16(status).unwrap(), "application/json", body);
            let answer = Answer { header, ..answer };
            let request = format!("GET / HTTP/1.1\r\n{}\r\n", if closes { "connection: close\r\n" } else { "" });
            let (_, other) = by_hyper(request.as_bytes(), &answer).await;
            let mut written = Vec::new();
            answer.write(closes, &mut written);
            assert_eq!(lines(str::from_utf8(&written).unwrap()), lines(&other));
        }
    }
}

#[tokio::test]
async fn an_answer_that_is_not_taken_at_once_is_sent_whole() {
    const LENGTH: usize = 100_000;
    let answer = Answer::new(StatusCode::OK, "text/plain", "x".repeat(LENGTH));
    let mut expected = Vec::new();
    answer.write(true, &mut expected);
    for room in [1, 1000, 1 << 20] {
        let (answer, (mut client, mut server)) = (answer.clone(), duplex(room));
        // Its end is dropped then: the client does not wait for what is not sent.
        let sending = async move { write(&mut server, answer, true).await };
        let mut read = vec![0; expected.len()];
        let (sent, received) = tokio::join!(sending, client.read_exact(&mut read));
        sent.unwrap();
        received.unwrap();
        let (head, body) = read.split_at(expected.len() - LENGTH);
        assert!(head.starts_with(b"HTTP/1.1 200 OK\r\n") && head.ends_with(b"\r\n\r\n"), "{room}");
        assert!(body.iter().all(|byte| *byte == b'x'), "{room}");
    }
}

#[tokio::test]
async fn what_is_given_back_comes_before_what_was_given_back_earlier() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (client, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    client.unwrap().write_all(b"the rest").await.unwrap();
    let (mut socket, _) = Socket::new(accepted.unwrap().0, Duration::from_secs(60));
    let earlier: Vec<u8> = (0..3 * ROOM + 100).map(|at| b'a' + (at % 26) as u8).collect();
    socket.give_back(Bytes::copy_from_slice(&earlier));
    for _ in 0..3 {
        let read = poll_fn(|cx| poll_read(Pin::new(&mut socket), cx)).await.unwrap();
        let bytes = read.expect_err("no request is as large");
        assert_eq!(bytes, earlier[..ROOM]);
        socket.give_back(bytes);
    }
    let mut all = Vec::new();
    socket.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, [&earlier, &b"the rest"[..]].concat());
}
