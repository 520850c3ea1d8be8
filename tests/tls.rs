//! TLS at the ingress: who gets in, in which protocol, and what those cost who do not.

mod bounds;
mod rotation;

use crate::command_line::cdrelay;
use crate::support::raw::Raw;
use crate::support::tls::{Authority, Client, Pair};
use crate::support::{ANY_PORTS, Bridge, PATIENCE, STDOUT, eventually};
use futures_util::future::join_all;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::fs::write;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tokio_rustls::rustls::version::{TLS12, TLS13};

/// What a slow machine may take on top of the time that is configured.
const SLACK: Duration = Duration::from_secs(3);

/// A directory with the files that a configuration names.
struct Place(TempDir);

impl Place {
    fn new(pair: &Pair) -> Self {
        let place = Self(TempDir::new().unwrap());
        place.put(pair);
        place
    }

    fn put(&self, pair: &Pair) {
        self.file("tls.crt", &pair.certificate);
        self.file("tls.key", &pair.key);
    }

    fn file(&self, name: &str, content: &str) {
        write(self.0.path().join(name), content).unwrap();
    }

    /// The files to name, and further settings of `[ingress.tls]`.
    fn tls(&self, more: &str) -> String {
        let file = |name| self.0.path().join(name);
        format!("[ingress.tls]\ncert_file = {:?}\nkey_file = {:?}\n{more}\n", file("tls.crt"), file("tls.key"))
    }

    fn client_ca(&self) -> String {
        format!("client_ca_file = {:?}\n", self.0.path().join("ca.crt"))
    }

    async fn bridge(&self, more: &str) -> Bridge {
        self.bridge_with("", more).await
    }

    /// With further settings of `[ingress]` too.
    async fn bridge_with(&self, ingress: &str, more: &str) -> Bridge {
        let ports = format!("[admin]\nlisten = '127.0.0.1:0'\n[ingress]\nlisten = '127.0.0.1:0'\n{ingress}");
        Bridge::start(&format!("{ports}{}{STDOUT}", self.tls(more))).await
    }
}

/// An authority, a bridge with a certificate by it, and where that lies.
async fn bridge(more: &str) -> (Authority, Place, Bridge) {
    let authority = Authority::new("servers");
    let place = Place::new(&authority.issue());
    let bridge = place.bridge(more).await;
    (authority, place, bridge)
}

async fn handshakes(bridge: &Bridge, result: &str) -> f64 {
    bridge.metric(&format!("cdrelay_ingress_tls_handshakes_total{{result=\"{result}\"}}")).await.unwrap()
}

#[tokio::test]
async fn both_versions_carry_both_protocols() {
    let (authority, _place, bridge) = bridge("").await;
    for versions in [[&TLS12], [&TLS13]] {
        for protocol in ["", "http/1.1"] {
            let client = Client::new(&authority, None, protocol, &versions);
            let mut raw = client.raw(&bridge).await.unwrap();
            assert_eq!(raw.stream.get_ref().1.protocol_version(), Some(versions[0].version));
            for n in 0..3 {
                assert_eq!(raw.exchange(&format!("{{\"n\":\"{protocol} {n} {versions:?}\"}}")).await, Ok(200));
            }
        }
        let stream = Client::new(&authority, None, "h2", &versions).connect(&bridge).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (client, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(connection);
        let large = "x".repeat(100 << 10);
        let send = async |n: usize| {
            let body: Bytes = format!("{{\"n\":\"{n} {versions:?}\",\"custom\":\"{large}\"}}").into();
            let url = format!("https://{}/webhook/cdr", bridge.ingress());
            let answer = client.clone().send_request(Request::post(url).body(Full::new(body)).unwrap()).await.unwrap();
            let status = answer.status().as_u16();
            (status, answer.into_body().collect().await.unwrap().to_bytes())
        };
        let answers = join_all((0..50).map(send)).await;
        assert!(
            answers.iter().all(|(status, body)| *status == 200 && body.starts_with(b"{\"stored\":1")),
            "{answers:?}"
        );
        drop(client);
        connection.await.unwrap().unwrap();
    }
    assert_eq!(bridge.metric("cdrelay_ingress_events_accepted_total").await, Some(112.0));
    assert_eq!((handshakes(&bridge, "ok").await, handshakes(&bridge, "failed").await), (6.0, 0.0));
    let unknown = Client::new(&authority, None, "spdy/3", &[]).connect(&bridge).await.unwrap_err().to_string();
    assert!(unknown.contains("NoApplicationProtocol"), "{unknown}");
}

/// What a client says first that knows nothing newer, and what it is told: an alert, fatal, `handshake_failure` or `protocol_version`.
#[tokio::test]
async fn old_versions_are_refused() {
    let (authority, _place, bridge) = bridge("").await;
    for minor in 0..=2 {
        let mut hello = vec![3, minor];
        hello.extend([7; 32]);
        // No session; TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA and TLS_RSA_WITH_AES_128_CBC_SHA; no compression.
        hello.extend([0, 0, 4, 0xc0, 0x13, 0, 0x2f, 1, 0]);
        let length = u8::try_from(hello.len()).unwrap();
        let mut client = Raw::connect(&bridge).await;
        client.send([&[0x16, 3, 1, 0, length + 4, 1, 0, 0, length], &hello[..]].concat()).await;
        let mut answer = Vec::new();
        timeout(PATIENCE, client.stream.read_to_end(&mut answer)).await.unwrap().unwrap();
        assert!(matches!(answer[..], [0x15, 3, _, 0, 2, 2, 40 | 70]), "{answer:x?}");
    }
    // When the client has gone, or has been waited for.
    eventually(PATIENCE, "they are counted", async || handshakes(&bridge, "failed").await == 3.0).await;

    let place = Place::new(&authority.issue());
    let strict = place.bridge("min_version = '1.3'").await;
    let error = Client::new(&authority, None, "", &[&TLS12]).post(&strict, "{}").await.unwrap_err();
    assert!(error.contains("ProtocolVersion"), "{error}");
    assert_eq!(Client::new(&authority, None, "", &[&TLS13]).post(&strict, "{}").await, Ok(200));
}

#[tokio::test]
async fn client_certificates_are_asked_for_as_configured() {
    let (servers, clients, strangers) =
        (Authority::new("servers"), Authority::new("clients"), Authority::new("strangers"));
    let (known, stranger) = (clients.issue(), strangers.issue());
    for (auth, without) in [("", false), ("client_auth = 'required'", false), ("client_auth = 'optional'", true)] {
        let place = Place::new(&servers.issue());
        place.file("ca.crt", &clients.pem());
        let bridge = place.bridge(&(place.client_ca() + auth)).await;
        for versions in [[&TLS12], [&TLS13]] {
            let post = async |own| Client::new(&servers, own, "", &versions).post(&bridge, "{}").await;
            assert_eq!(post(Some(&known)).await, Ok(200), "{auth}");
            let error = post(Some(&stranger)).await.unwrap_err();
            assert!(error.contains("UnknownCA"), "{auth}: {error}");
            let nobody = post(None).await;
            if without {
                assert_eq!(nobody, Ok(200), "{auth}");
            } else {
                let error = nobody.unwrap_err();
                assert!(error.contains("CertificateRequired") || error.contains("HandshakeFailure"), "{auth}: {error}");
            }
        }
    }
}

#[tokio::test]
async fn who_speaks_no_tls_is_told_and_holds_nobody_up() {
    let authority = Authority::new("servers");
    let place = Place::new(&authority.issue());
    let bridge = place.bridge_with("header_timeout = '1s'\nmax_connections = 8\n", "").await;
    let client = Client::trusting(&authority);

    let mut plain = Raw::connect(&bridge).await;
    plain.send(Raw::post("{\"a\":1}")).await;
    let answer = plain.answer().await;
    assert_eq!((answer.status, answer.headers["connection"].to_str().unwrap()), (400, "close"));
    assert_eq!(answer.json()["detail"], "only TLS is spoken here; use https:// in the URL");
    assert!(plain.ends(PATIENCE).await);

    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut garbage: Vec<Vec<u8>> =
        vec![vec![], vec![0x16], vec![0x16, 3, 1, 0xff, 0xff], vec![0; 100_000], vec![0x16; 100_000]];
    garbage.extend((0..20).map(|_| (0..random.usize(1..5000)).map(|_| random.u8(..)).collect()));
    for bytes in garbage {
        let mut client = Raw::connect(&bridge).await;
        client.try_send(&bytes).await;
        let mut answer = Vec::new();
        // Cleanly, by a reset, or with an alert before it.
        let _ = timeout(PATIENCE, client.stream.read_to_end(&mut answer)).await.expect("the connection is closed");
        assert!(answer.is_empty() || answer[0] == 0x15 || answer.starts_with(b"HTTP/1.1 400"), "{answer:x?}");
    }

    // More than there are places, each for as long as a handshake may take.
    let silent = join_all((0..20).map(|_| Raw::connect(&bridge))).await;
    assert_eq!(client.post(&bridge, "{}").await, Ok(200));
    // Byte by byte it takes no longer.
    let mut slow = Raw::connect(&bridge).await;
    let drip = async {
        while slow.try_send([0x16]).await {
            tokio::time::sleep(Duration::from_millis(50)).await
        }
    };
    timeout(PATIENCE, drip).await.expect("the connection is closed");
    drop(silent);
    assert_eq!(handshakes(&bridge, "ok").await, 1.0);
    eventually(PATIENCE, "they are counted", async || handshakes(&bridge, "failed").await >= 27.0).await;
}

#[tokio::test]
async fn a_stop_waits_for_no_handshake_and_no_idle_connection() {
    let (authority, _place, mut bridge) = bridge("").await;
    let client = Client::trusting(&authority);
    let mut hanging = join_all((0..10).map(|_| Raw::connect(&bridge))).await;
    hanging[0].send([0x16, 3, 1]).await;
    let unused = client.raw(&bridge).await.unwrap();
    let mut used = client.raw(&bridge).await.unwrap();
    assert_eq!(used.exchange("{\"a\":1}").await, Ok(200));
    let mut under_way = client.raw(&bridge).await.unwrap();
    let request = Raw::post("{\"whole\":1}");
    under_way.send(&request[..request.len() - 4]).await;
    eventually(PATIENCE, "it has begun", async || {
        bridge.metric("cdrelay_ingress_requests_in_flight").await == Some(1.0)
    })
    .await;
    let begun = Instant::now();
    bridge.terminate();
    assert!(used.ends(PATIENCE).await);
    under_way.send(&request[request.len() - 4..]).await;
    assert_eq!(under_way.answer().await.status, 200);
    assert!(bridge.wait(PATIENCE).await.success());
    let taken = begun.elapsed();
    println!("it stopped in {taken:?}");
    assert!(taken < SLACK, "{taken:?}");
    assert_eq!(bridge.stdout_lines().len(), 2);
    drop((unused, hanging));
}

#[tokio::test]
async fn a_client_that_is_still_sending_reads_why_it_was_refused() {
    let (authority, _place, bridge) = bridge("").await;
    let piece = vec![b'x'; 64 << 10];
    let declared = format!("content-length: {}\r\n", 200 * piece.len());
    let cases = [
        (Raw::head("POST", &declared), 413),
        (Raw::head("PUT", &declared), 405),
        (Raw::head("POST", &format!("{declared}x: {}\r\n", "x".repeat(1 << 20))), 431),
    ];
    for versions in [[&TLS12], [&TLS13]] {
        for (head, status) in &cases {
            let mut client = Client::new(&authority, None, "", &versions).raw(&bridge).await.unwrap();
            client.send(head).await;
            for _ in 0..200 {
                client.send(&piece).await;
            }
            assert_eq!(client.answer().await.status, *status);
            assert!(client.ends(PATIENCE).await, "{status}");
        }
    }
}

#[tokio::test]
async fn clients_that_never_read_do_not_stay() {
    let authority = Authority::new("servers");
    let place = Place::new(&authority.issue());
    let bridge = place.bridge_with("idle_timeout = '1s'\n", "").await;
    let mut client = Client::trusting(&authority).connect(&bridge).await.unwrap();
    let probes = Raw::head("GET", "").repeat(1000);
    let send = async { while client.write_all(probes.as_bytes()).await.is_ok() {} };
    timeout(PATIENCE, send).await.expect("the connection is closed");
}

#[test]
fn wrong_files_are_found_before_anything_starts() {
    let authority = Authority::new("servers");
    let place = Place::new(&authority.issue());
    place.file("cdrelay.toml", &format!("{ANY_PORTS}{}{STDOUT}", place.tls("")));
    let config = place.0.path().join("cdrelay.toml");
    let config = config.to_str().unwrap();
    assert_eq!(cdrelay(&["check", "--config", config]).code, Some(0));
    place.file("tls.key", &authority.issue().key);
    for command in ["check", "run"] {
        let finished = cdrelay(&[command, "--config", config]);
        assert_eq!(finished.code, Some(78), "{finished:?}");
        for words in
            ["`ingress.tls.key_file`: ", "tls.key holds a key that does not belong to the first certificate in"]
        {
            assert!(finished.stderr.contains(words), "{}", finished.stderr);
        }
    }
    place.put(&authority.issue_until(2020));
    let finished = cdrelay(&["check", "--config", config]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert!(finished.stderr.contains("warning: `ingress.tls.cert_file`: the certificate in "), "{}", finished.stderr);
    assert!(finished.stderr.contains("tls.crt has expired at 2020-01-01T00:00:00Z; renew it"), "{}", finished.stderr);
}

#[tokio::test]
async fn a_soak_speaks_tls_too() {
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let place = Place::new(&servers.issue());
    place.file("ca.crt", &clients.pem());
    let own = clients.issue();
    for (name, content) in [("servers.crt", &servers.pem()), ("own.crt", &own.certificate), ("own.key", &own.key)] {
        place.file(name, content);
    }
    let bridge = place.bridge(&place.client_ca()).await;
    let file = |name: &str| place.0.path().join(name).to_str().unwrap().to_owned();
    let ours = |name: &str| bridge.directory().join(name).to_str().unwrap().to_owned();
    let url = format!("https://{}/webhook/cdr", bridge.ingress());
    let arguments = [
        ["soak".to_owned(), "--json".to_owned()],
        ["--config".to_owned(), ours("cdrelay.toml")],
        ["--stdout-from".to_owned(), ours("stdout")],
        ["--url".to_owned(), url],
        ["--duration".to_owned(), "1s".to_owned()],
        ["--ca".to_owned(), file("servers.crt")],
        ["--cert".to_owned(), file("own.crt")],
        ["--key".to_owned(), file("own.key")],
    ];
    let soak = move || cdrelay(&arguments.iter().flatten().map(String::as_str).collect::<Vec<_>>());
    let report = tokio::task::spawn_blocking(soak).await.unwrap().success();
    assert!(report.contains("\"clean\":true"), "{report}");
    assert!(bridge.stdout_lines().len() > 50, "{report}");
}
