//! How many connections there may be.

use super::*;
use crate::support::eventually;
use std::time::Instant;

/// So long that no deadline can be what ends a connection.
const FOR_EVER: &str = "header_timeout = '1h'\nbody_timeout = '1h'\nmin_body_rate = '0B'\n";

/// As slow clients do it: nothing at all, half a header, half a body, half a chunk, half a preface.
fn beginnings() -> [String; 5] {
    [
        String::new(),
        "POST /webhook/cdr HTTP/1.1\r\nhost: test\r\nx:".into(),
        Raw::head("POST", "content-length: 1000\r\n") + "{",
        Raw::head("POST", "transfer-encoding: chunked\r\n") + "5\r\n{",
        "PRI * HTTP/2.0\r\n".into(),
    ]
}

#[tokio::test]
async fn clients_that_keep_the_bridge_waiting_make_room_for_others() {
    let bridge = bridge(&format!("max_connections = 8\n{FOR_EVER}")).await;
    let mut silent = Vec::new();
    beside_others(&bridge, "four times as many silent clients as there are places", async {
        for beginning in beginnings().iter().cycle().take(32) {
            let mut client = Raw::connect(&bridge).await;
            client.try_send(beginning).await;
            silent.push(client);
        }
        eventually(PATIENCE, "silent ones had to go", async || limited(&bridge, "connections").await >= 24.0).await;
    })
    .await;
}

/// A byte now and then keeps no place.
#[tokio::test]
async fn clients_that_send_byte_by_byte_make_room_too() {
    let bridge = bridge(&format!("max_connections = 4\n{FOR_EVER}")).await;
    let mut slow = Vec::new();
    for beginning in beginnings().iter().skip(1).take(3) {
        let mut client = Raw::connect(&bridge).await;
        client.send(beginning).await;
        slow.push(client);
    }
    slow.push(Raw::connect(&bridge).await);
    slow[3].send(&beginnings()[1]).await;
    let drip = async {
        loop {
            for client in &mut slow {
                client.try_send(" ").await;
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    let other = async { Raw::connect(&bridge).await.exchange("{\"a\":1}").await };
    tokio::select! {
        status = other => assert_eq!(status, Ok(200)),
        () = drip => {}
    }
}

#[tokio::test]
async fn whoever_never_reads_makes_room_too() {
    let bridge = bridge(&format!("max_connections = 2\n{FOR_EVER}")).await;
    let mut deaf = [Raw::connect(&bridge).await, Raw::connect(&bridge).await];
    let probes = Raw::head("GET", "").repeat(1000);
    for client in &mut deaf {
        // Until it would block: what is answered is not read.
        while tokio::time::timeout(Duration::from_secs(1), client.try_send(&probes)).await.is_ok_and(|sent| sent) {}
    }
    let mut other = Raw::connect(&bridge).await;
    assert_eq!(other.exchange("{\"a\":1}").await, Ok(200));
}

#[tokio::test]
async fn one_address_has_no_more_connections_than_it_may() {
    let bridge = bridge("max_connections_per_peer = 2\n").await;
    let mut first = Raw::connect(&bridge).await;
    let mut second = Raw::connect(&bridge).await;
    for (n, client) in [&mut first, &mut second].into_iter().enumerate() {
        assert_eq!(client.exchange(&format!("{{\"n\":{n}}}")).await, Ok(200));
    }
    let mut third = Raw::connect(&bridge).await;
    assert!(third.ends(PATIENCE).await);
    assert_eq!(limited(&bridge, "connections_per_peer").await, 1.0);
    drop(first);
    eventually(PATIENCE, "there is room for another", async || {
        Raw::connect(&bridge).await.exchange("{\"n\":3}").await == Ok(200)
    })
    .await;
    assert_eq!(second.exchange("{\"n\":4}").await, Ok(200));
}

#[tokio::test]
async fn a_connection_that_is_kept_open_takes_little_memory() {
    const CLIENTS: u64 = 400;
    /// What is kept for a client whose requests come in one piece, and for one whose requests do not.
    const EACH: [u64; 2] = [4 << 10, 18 << 10];
    let bridge = bridge("").await;
    let event =
        |round: &str, number: u64| format!("{{\"cmiuuid\":\"{round}-{number}\",\"custom\":\"{}\"}}", "x".repeat(400));
    // What the events themselves take is there before.
    let mut first = Raw::connect(&bridge).await;
    for number in 0..10 * CLIENTS {
        assert_eq!(first.exchange(&event("before", number)).await, Ok(200));
    }
    let mut clients = Vec::new();
    for (pieces, most) in EACH.into_iter().enumerate() {
        let before = bridge.rss_bytes();
        for number in 0..CLIENTS {
            let mut client = Raw::connect(&bridge).await;
            let request = Raw::post(&event(&format!("kept {pieces}"), number));
            let (first, second) = request.split_at(pieces * request.find('{').unwrap());
            client.send(first).await;
            sleep(Duration::from_millis(5 * pieces as u64)).await;
            client.send(second).await;
            assert_eq!(client.answer().await.status, 200);
            clients.push(client);
        }
        let mut each = 0;
        eventually(PATIENCE, "what is free is given back", async || {
            each = bridge.rss_bytes().saturating_sub(before) / CLIENTS;
            each < most
        })
        .await;
        println!("{each} bytes for each of {CLIENTS} connections, in {} pieces", pieces + 1);
    }
}

/// 20,000 of them, or as many as `CDRELAY_RECONNECTS` says.
#[tokio::test]
async fn clients_that_come_and_go_leave_nothing_behind() {
    const ROUND: usize = 20_000;
    let count = std::env::var("CDRELAY_RECONNECTS").map_or(ROUND, |count| count.parse().expect("a number"));
    let bridge = bridge("").await;
    let (before, files, begun) = (bridge.rss_bytes(), bridge.open_files(), Instant::now());
    for round in 0..count.div_ceil(ROUND) {
        beside_others(&bridge, &format!("connections without a word, round {round}"), async {
            for _ in 0..ROUND.min(count - round * ROUND) {
                drop(Raw::connect(&bridge).await);
            }
        })
        .await;
    }
    let taken = begun.elapsed();
    eventually(PATIENCE, "its sockets are closed", async || bridge.open_files() < 100).await;
    let (now, files_now) = (bridge.rss_bytes(), bridge.open_files());
    println!("{count} connections without a word in {taken:?}: {files} files open before, {files_now} after");
    println!("{} KiB before, {} KiB after", before >> 10, now >> 10);
}
