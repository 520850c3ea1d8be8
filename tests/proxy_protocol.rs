//! The PROXY protocol: whom a trusted proxy speaks for counts as if they had connected themselves, and nobody else is believed.

use crate::support::raw::Raw;
use crate::support::tls::{Authority, Client};
use crate::support::{ANY_PORTS, Bridge, PATIENCE, STDOUT, eventually};
use std::collections::BTreeMap;
use std::fs::write;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::time::sleep;

/// The proxy, and the networks that may send.
const PROXIED: &str = "[ingress.proxy_protocol]\ntrusted_proxies = '127.0.0.2'\n";
const ALLOWED: &str = "[[ingress.auth]]\ntype = 'cidr'\nnetworks = ['203.0.113.0/24', '2001:db8::/32']\n";
/// What a slow machine may take on top of the time that is configured.
const SLACK: Duration = Duration::from_secs(8);

async fn bridge(ingress: &str, more: &str) -> Bridge {
    Bridge::start(&format!("{ANY_PORTS}{ingress}{PROXIED}{more}{STDOUT}")).await
}

async fn proxy(bridge: &Bridge) -> Raw {
    Raw::connect_from(bridge, "127.0.0.2").await
}

async fn refused(bridge: &Bridge, reason: &str) -> f64 {
    bridge.metric(&format!("cdrelay_ingress_proxy_protocol_refused_total{{reason=\"{reason}\"}}")).await.unwrap()
}

fn version1(client: &str) -> Vec<u8> {
    let client: SocketAddr = client.parse().unwrap();
    let (name, own) = if client.is_ipv4() { ("TCP4", "192.0.2.1") } else { ("TCP6", "2001:db8::1") };
    format!("PROXY {name} {} {own} {} 443\r\n", client.ip(), client.port()).into()
}

fn version2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let length = (block.len() as u16).to_be_bytes();
    [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[command, family], &length, block].concat()
}

/// With a few further fields, as HAProxy and cloud load balancers send them.
fn version2_of(client: &str) -> Vec<u8> {
    let client: SocketAddr = client.parse().unwrap();
    let (family, addresses) = match client {
        SocketAddr::V4(client) => (0x11, [client.ip().octets(), [192, 0, 2, 1]].concat()),
        SocketAddr::V6(client) => (0x21, [client.ip().octets(), [7; 16]].concat()),
    };
    let ports = [client.port().to_be_bytes(), [1, 187]].concat();
    version2(0x21, family, &[&addresses[..], &ports, b"\x01\0\x02h2", b"\xea\0\x04vpce"].concat())
}

const LOCAL: u8 = 0x20;

/// Sends a request behind the header, in pieces so long, and returns the status; none if the connection ends.
async fn post(bridge: &Bridge, header: &[u8], piece: usize) -> Option<u16> {
    let mut proxy = proxy(bridge).await;
    let body = format!("{{\"n\":{}}}", fastrand::u64(..));
    for piece in [header, Raw::post(&body).as_bytes()].concat().chunks(piece) {
        if !proxy.try_send(piece).await {
            break;
        }
        // So that the pieces are read one by one.
        sleep(Duration::from_millis(u64::from(piece.len() < 8))).await;
    }
    proxy.try_answer(PATIENCE).await.map(|answer| answer.status)
}

#[tokio::test]
async fn the_address_that_is_told_decides_who_may_send() {
    let bridge = bridge("", ALLOWED).await;
    let told = [
        ("203.0.113.7:56324", Some(200)),
        ("[2001:db8::7]:56324", Some(200)),
        ("[::ffff:203.0.113.7]:1", Some(200)),
        ("198.51.100.7:56324", Some(401)),
        ("[2001:db9::7]:56324", Some(401)),
        ("[::ffff:198.51.100.7]:1", Some(401)),
    ];
    for (client, expected) in told {
        for header in [version1(client), version2_of(client)] {
            for piece in [usize::MAX, header.len(), 1] {
                assert_eq!(post(&bridge, &header, piece).await, expected, "{client} in pieces of {piece}");
            }
        }
    }
    // Of these the connection's own address is known and nothing else, which is none that may send.
    let nobody = [b"PROXY UNKNOWN\r\n".to_vec(), version2(LOCAL, 0, &[]), version2(0x21, 0, b"anything")];
    for header in nobody {
        assert_eq!(post(&bridge, &header, usize::MAX).await, Some(401));
    }
    eventually(PATIENCE, "what was taken is published", async || bridge.stdout_lines().len() == 18).await;
}

#[tokio::test]
async fn a_proxy_that_tells_no_client_counts_itself() {
    let own = "[[ingress.auth]]\ntype = 'cidr'\nnetworks = '127.0.0.2'\n";
    let bridge = bridge("", own).await;
    let addresses = version2_of("203.0.113.7:1")[16..].to_vec();
    for header in
        [b"PROXY UNKNOWN 203.0.113.7\r\n".to_vec(), version2(LOCAL, 0x11, &addresses), version2(LOCAL, 0, &[])]
    {
        assert_eq!(post(&bridge, &header, usize::MAX).await, Some(200));
    }
    assert_eq!(post(&bridge, &version1("203.0.113.7:1"), usize::MAX).await, Some(401));
}

#[tokio::test]
async fn connections_are_counted_by_the_address_that_is_told() {
    let bridge = bridge("max_connections_per_peer = 2\n", "").await;
    let connect = async |client: &str, number: u32| {
        let mut proxy = proxy(&bridge).await;
        proxy.send(version2_of(client)).await;
        let answered = proxy.exchange(&format!("{{\"{client}\":{number}}}")).await;
        (proxy, answered)
    };
    let mut kept = Vec::new();
    for client in ["203.0.113.7:1", "[2001:db8::7]:1", "203.0.113.8:1"] {
        for number in 0..2 {
            let (proxy, answered) = connect(client, number).await;
            assert_eq!(answered, Ok(200), "{client}");
            kept.push(proxy);
        }
    }
    assert!(connect("203.0.113.7:2", 2).await.1.is_err());
    assert!(connect("[::ffff:203.0.113.7]:2", 2).await.1.is_err());
    let limited = bridge.metric("cdrelay_ingress_limited_total{limit=\"connections_per_peer\"}").await;
    assert_eq!(limited, Some(2.0));
    // Nobody is counted who is not known yet.
    let mut silent = Vec::new();
    for _ in 0..5 {
        silent.push(proxy(&bridge).await);
    }
    drop(kept.remove(0));
    eventually(PATIENCE, "there is room for another", async || connect("203.0.113.7:3", 3).await.1 == Ok(200)).await;
}

#[tokio::test]
async fn nobody_else_is_believed() {
    let bridge = bridge("", "").await;
    for header in [version1("203.0.113.7:1"), version2_of("203.0.113.7:1"), Vec::new()] {
        let mut stranger = Raw::connect(&bridge).await;
        stranger.try_send([&header[..], Raw::post("{\"a\":1}").as_bytes()].concat()).await;
        assert!(stranger.try_answer(PATIENCE).await.is_none());
    }
    assert_eq!(refused(&bridge, "untrusted").await, 3.0);
    // The admin port knows nothing of it.
    assert_eq!(bridge.admin("/readyz/ingress").await.status, 200);
    let told = bridge.stderr().lines().filter(|line| line.contains("trusted_proxies")).count();
    assert_eq!(told, 1, "{}", bridge.stderr());
}

/// Without the setting a header is what it looks like to HTTP: nonsense.
#[tokio::test]
async fn nothing_is_read_that_was_not_asked_for() {
    let bridge = Bridge::start(&format!("{ANY_PORTS}{STDOUT}")).await;
    for header in [version1("203.0.113.7:1"), version2_of("203.0.113.7:1")] {
        let mut client = Raw::connect(&bridge).await;
        client.try_send([&header[..], Raw::post("{\"a\":1}").as_bytes()].concat()).await;
        assert!(client.try_answer(PATIENCE).await.is_none_or(|answer| answer.status == 400));
    }
    assert_eq!(bridge.metric("cdrelay_ingress_events_accepted_total").await, Some(0.0));
}

#[tokio::test]
async fn what_is_no_header_ends_the_connection_and_fills_no_log() {
    let bridge = bridge("", "").await;
    let of = version2_of("203.0.113.7:1");
    let mut damaged = version2(0x21, 0x11, &[&of[16..28], b"\x03\0\x04\0\0\0\0"].concat());
    let long = format!("PROXY UNKNOWN {}", "x".repeat(200));
    let cases: [(&str, &[u8]); 10] = [
        ("missing", b"POST /webhook/cdr HTTP/1.1\r\nhost: test\r\ncontent-length: 7\r\n\r\n{\"a\":1}"),
        ("missing", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("missing", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"),
        ("missing", &[0xff; 5000]),
        ("invalid", b"PROXY TCP4 203.0.113.7 192.0.2.1 99999 443\r\n"),
        ("invalid", b"PROXY TCP6 203.0.113.7 192.0.2.1 1 443\r\n"),
        ("invalid", long.as_bytes()),
        ("invalid", &[&of[..12], b"\x21\x11\xff\xff"].concat()),
        ("invalid", &[&of[..12], b"\x31\x11\x00\x0c"].concat()),
        ("invalid", &damaged),
    ];
    let mut expected: BTreeMap<_, f64> = BTreeMap::new();
    for (reason, bytes) in cases {
        let mut proxy = proxy(&bridge).await;
        proxy.try_send(bytes).await;
        assert!(proxy.ends(PATIENCE).await, "{bytes:?}");
        *expected.entry(reason).or_default() += 1.0;
        assert_eq!(refused(&bridge, reason).await, expected[reason], "{bytes:?}");
    }
    for bytes in [&of[..20], b"PROXY TCP4 203"] {
        let mut proxy = proxy(&bridge).await;
        proxy.send(bytes).await;
    }
    eventually(PATIENCE, "they ended within the header", async || refused(&bridge, "incomplete").await == 2.0).await;
    // Nor does it count what only looks whether the port is open.
    drop(proxy(&bridge).await);
    let told = bridge.stderr().lines().filter(|line| line.contains("PROXY protocol")).count();
    assert_eq!(told, 1, "{}", bridge.stderr());
    // The right checksum makes the last of them a header.
    let sum = crc32c(&damaged);
    let at = damaged.len() - 4;
    damaged[at..].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(post(&bridge, &damaged, usize::MAX).await, Some(200));
    let mut counts = Vec::new();
    for reason in ["untrusted", "missing", "invalid", "incomplete", "timeout"] {
        counts.push(refused(&bridge, reason).await);
    }
    assert_eq!(counts, [0.0, 4.0, 6.0, 2.0, 0.0]);
}

/// Bit by bit, by the polynomial of RFC 3720.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |sum: u32| (sum >> 1) ^ (0x82f6_3b78 * (sum & 1));
    !bytes.iter().fold(!0, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), |sum, _| step(sum)))
}

#[tokio::test]
async fn a_header_that_does_not_come_in_time_ends_the_connection() {
    let bridge = bridge("header_timeout = '1s'\n", "").await;
    let begun = Instant::now();
    let mut silent = proxy(&bridge).await;
    let mut slow = proxy(&bridge).await;
    slow.send("PROXY TCP4 203.0.113.7 ").await;
    let drip = async {
        loop {
            slow.try_send("1").await;
            sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        ended = silent.ends(PATIENCE) => assert!(ended),
        () = drip => {}
    }
    assert!(slow.ends(PATIENCE).await);
    assert!(begun.elapsed() < Duration::from_secs(1) + SLACK, "{:?}", begun.elapsed());
    eventually(PATIENCE, "both are counted", async || refused(&bridge, "timeout").await == 2.0).await;
}

/// When all places are taken, a proxy's connection that says nothing goes first.
#[tokio::test]
async fn connections_without_a_header_make_room_for_others() {
    let bridge = bridge("max_connections = 2\nheader_timeout = '1h'\n", "").await;
    let mut silent = [proxy(&bridge).await, proxy(&bridge).await];
    silent[1].send(&version2_of("203.0.113.7:1")[..20]).await;
    assert_eq!(post(&bridge, &version1("203.0.113.7:1"), usize::MAX).await, Some(200));
}

#[tokio::test]
async fn tls_is_spoken_behind_the_header() {
    let authority = Authority::new("servers");
    let pair = authority.issue();
    let directory = TempDir::new().unwrap();
    let file = |name: &str, content: &str| {
        let path = directory.path().join(name);
        write(&path, content).unwrap();
        format!("{path:?}")
    };
    let (certificate, key) = (file("tls.crt", &pair.certificate), file("tls.key", &pair.key));
    let tls = format!("[ingress.tls]\ncert_file = {certificate}\nkey_file = {key}\n");
    let bridge = bridge("", &format!("{ALLOWED}{tls}")).await;
    let client = Client::trusting(&authority);
    for (n, (address, expected)) in [("203.0.113.7:1", 200), ("198.51.100.7:1", 401)].into_iter().enumerate() {
        for (version, header) in [version1(address), version2_of(address)].into_iter().enumerate() {
            let mut proxy = proxy(&bridge).await;
            proxy.send(&header).await;
            let mut encrypted = Raw::over(client.shake_hands(proxy.stream).await.unwrap());
            assert_eq!(encrypted.exchange(&format!("{{\"{n}\":{version}}}")).await, Ok(expected), "{address}");
        }
    }
    // The header is no part of what is encrypted.
    let direct = client.shake_hands(proxy(&bridge).await.stream).await;
    assert!(direct.is_err());
    assert_eq!(refused(&bridge, "missing").await, 1.0);
    // Who speaks HTTP behind it is told that it has to be TLS.
    assert_eq!(post(&bridge, &version1("203.0.113.7:1"), usize::MAX).await, Some(400));
}
