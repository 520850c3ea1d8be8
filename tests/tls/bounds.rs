//! What connections by TLS take, whatever their clients do with them.

use super::{Place, bridge};
use crate::bounds::assert_small;
use crate::support::raw::Raw;
use crate::support::tls::{Authority, Client};
use crate::support::{Bridge, PATIENCE};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio_rustls::rustls::version::{TLS12, TLS13};

/// Nearly all that there may be.
const CONNECTIONS: usize = 500;

fn tell(bridge: &Bridge, before: u64, what: &str) {
    let each = bridge.rss_bytes().saturating_sub(before) / CONNECTIONS as u64;
    assert_small(bridge, &format!("{CONNECTIONS} {what}, {} KiB each", each >> 10));
}

#[tokio::test]
async fn idle_connections_take_little_memory() {
    for versions in [[&TLS12], [&TLS13]] {
        let (authority, _place, bridge) = bridge("").await;
        let client = Client::new(&authority, None, "http/1.1", &versions);
        let before = bridge.rss_bytes();
        let mut clients = Vec::new();
        for n in 0..CONNECTIONS {
            let mut raw = client.raw(&bridge).await.unwrap();
            assert_eq!(raw.exchange(&format!("{{\"n\":{n}}}")).await, Ok(200));
            clients.push(raw);
        }
        tell(&bridge, before, &format!("idle connections of {versions:?}"));
    }
}

/// The longest message that TLS knows has 64 KiB, and is collected before it is understood, from clients that nobody knows yet.
#[tokio::test]
async fn handshakes_that_are_never_completed_take_little_memory() {
    let (_authority, _place, bridge) = bridge("").await;
    let before = bridge.rss_bytes();
    // One record is missing.
    let mut hello = vec![1, 0, 0xff, 0xf0];
    hello.resize(3 << 14, 0);
    let mut bytes = Vec::new();
    for record in hello.chunks(1 << 14) {
        bytes.extend([0x16, 3, 1, 0x40, 0]);
        bytes.extend(record);
    }
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut client = Raw::connect(&bridge).await;
        client.try_send(&bytes).await;
        clients.push(client);
    }
    tell(&bridge, before, "incomplete handshakes");
    // Nobody needs so much.
    for client in &mut clients {
        assert!(client.ends(PATIENCE).await);
    }
}

/// Records are decrypted when they are complete.
#[tokio::test]
async fn records_that_are_never_completed_take_little_memory() {
    let (authority, _place, bridge) = bridge("").await;
    let client = Client::trusting(&authority);
    let before = bridge.rss_bytes();
    let mut clients = Vec::new();
    for n in 0..CONNECTIONS {
        let mut raw = client.raw(&bridge).await.unwrap();
        assert_eq!(raw.exchange(&format!("{{\"n\":{n}}}")).await, Ok(200));
        let socket = raw.stream.get_mut().0;
        socket.write_all(&[0x17, 3, 3, 0x40, 0]).await.unwrap();
        socket.write_all(&[0; (1 << 14) - 1]).await.unwrap();
        clients.push(raw);
    }
    tell(&bridge, before, "incomplete records");
}

/// Whoever connects and says nothing has begun no handshake yet, and keeps a place like any other who keeps the bridge waiting.
#[tokio::test]
async fn clients_that_begin_no_handshake_make_room_for_others() {
    let authority = Authority::new("servers");
    let place = Place::new(&authority.issue());
    let bridge = place.bridge_with("max_connections = 4\nheader_timeout = '1h'\n", "").await;
    let client = Client::trusting(&authority);
    let begun = Instant::now();
    let mut silent = Vec::new();
    for _ in 0..16 {
        silent.push(Raw::connect(&bridge).await);
    }
    // As long as a handshake may take, they could have kept it out four times over.
    assert_eq!(client.post(&bridge, "{\"a\":1}").await, Ok(200));
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}
