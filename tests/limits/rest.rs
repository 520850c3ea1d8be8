//! Connections of a crowd, of which nothing is kept between two requests but the socket.

use super::*;
use crate::support::eventually;
use tokio::io::AsyncWriteExt as _;

/// More than what makes a crowd.
const CROWD: usize = 1100;

fn event(name: &str, number: usize) -> String {
    format!("{{\"cmiuuid\":\"{name}-{number}\",\"custom\":\"{}\"}}", "x".repeat(400))
}

/// So many connections, each of which has had an answer.
async fn crowd(bridge: &Bridge, name: &str, count: usize) -> Vec<Raw> {
    let mut clients = Vec::new();
    for number in 0..count {
        let mut client = Raw::connect(bridge).await;
        assert_eq!(client.exchange(&event(name, number)).await, Ok(200), "{number}");
        clients.push(client);
    }
    clients
}

#[tokio::test]
async fn a_connection_of_a_crowd_takes_very_little_memory() {
    const EACH: u64 = 4 << 10;
    open_many_files();
    let bridge = bridge(&format!("max_connections = {}\n", 2 * CROWD)).await;
    // Those that come before there is a crowd hold what they do until their next request.
    let mut clients = crowd(&bridge, "before", CROWD).await;
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.exchange(&event("again", number)).await, Ok(200));
    }
    // What the events themselves take is there before.
    for number in 0..10 * CROWD {
        assert_eq!(clients[0].exchange(&event("warm", number)).await, Ok(200));
    }
    let before = bridge.rss_bytes();
    clients.extend(crowd(&bridge, "more", CROWD).await);
    let mut each = 0;
    eventually(PATIENCE, "what is free is given back", async || {
        each = bridge.rss_bytes().saturating_sub(before) / CROWD as u64;
        each < EACH
    })
    .await;
    println!("{each} bytes for each of {CROWD} connections beyond {CROWD} others");
}

#[tokio::test]
async fn a_connection_of_a_crowd_goes_on_where_it_was() {
    open_many_files();
    let mut bridge = bridge(&format!("max_connections = {}\n", 2 * CROWD)).await;
    let others = crowd(&bridge, "others", CROWD).await;
    let pause = Duration::from_millis(50);

    let mut client = Raw::connect(&bridge).await;
    for number in 0..3 {
        assert_eq!(client.exchange(&event("one by one", number)).await, Ok(200));
        sleep(pause).await;
    }
    let request = |number: usize| Raw::post(&event("in pieces", number));
    client.send(request(0) + &request(1)).await;
    assert_eq!((client.answer().await.status, client.answer().await.status), (200, 200));

    // A request in two pieces, of which the first comes along with the one before: cut within its head and within its body.
    for cut in [1, 20, request(0).len() - 1] {
        let whole = request(2 + cut);
        let (first, second) = whole.split_at(cut);
        client.send(request(1000 + cut) + first).await;
        assert_eq!(client.answer().await.status, 200, "{cut}");
        sleep(pause).await;
        client.send(second).await;
        assert_eq!(client.answer().await.status, 200, "{cut}");
        sleep(pause).await;
    }
    for piece in request(3000).as_bytes().chunks(100) {
        client.send(piece).await;
        sleep(pause / 5).await;
    }
    assert_eq!(client.answer().await.status, 200);

    // The end of a body that is longer than what was read of it is no request.
    client.send(Raw::head("POST", "transfer-encoding: chunked\r\n") + "2\r\n{}\r\n0\r\n").await;
    assert!(client.try_answer(pause).await.is_none());
    client.send(String::from("\r\n") + &request(3001)).await;
    assert_eq!((client.answer().await.status, client.answer().await.status), (200, 200));

    // An end without a further request.
    client.stream.shutdown().await.unwrap();
    assert!(client.ends(PATIENCE).await);
    // An answer to somebody who has closed the sending side already.
    let mut client = Raw::connect(&bridge).await;
    assert_eq!(client.exchange(&event("closing", 0)).await, Ok(200));
    client.send(request(4000)).await;
    client.stream.shutdown().await.unwrap();
    assert_eq!(client.answer().await.status, 200);
    assert!(client.ends(PATIENCE).await);

    bridge.terminate();
    assert!(bridge.wait(PATIENCE).await.success());
    for mut client in others {
        assert!(client.ends(PATIENCE).await);
    }
}

#[tokio::test]
async fn a_connection_of_a_crowd_ends_for_others_or_when_it_has_been_idle_for_long() {
    open_many_files();
    let for_ever = bridge(&format!("max_connections = {CROWD}\nheader_timeout = '1h'\n")).await;
    let mut others = crowd(&for_ever, "others", CROWD).await;
    assert_eq!(limited(&for_ever, "connections").await, 0.0);
    sleep(Duration::from_millis(1100)).await;
    let mut client = Raw::connect(&for_ever).await;
    assert_eq!(client.exchange(&event("another", 0)).await, Ok(200));
    assert!(limited(&for_ever, "connections").await >= 1.0);
    assert!(others[0].ends(PATIENCE).await, "the one that has waited longest had to go");
    drop(for_ever);

    let not_for_long = bridge(&format!("max_connections = {}\nheader_timeout = '3s'\n", 2 * CROWD)).await;
    for mut client in crowd(&not_for_long, "others", CROWD).await {
        assert!(client.ends(PATIENCE).await);
    }
}

/// Those of a crowd whose requests have come take turns, and one whose answer waits for something itself does not keep the next from its own.
#[tokio::test]
async fn whoever_waits_for_a_dead_sink_holds_up_nobody_of_a_crowd() {
    open_many_files();
    let settings = format!("max_connections = {}\nack = 'delivered'\ndelivery_timeout = '5min'\n", 2 * CROWD);
    let dead = "[sinks.dead]\ntype = 'kafka'\nbrokers = '127.0.0.1:1'\ntopic = 't'\n";
    let bridge = Bridge::start(&format!("{ANY_PORTS}{settings}{dead}")).await;
    // Answered at once.
    let nowhere = "GET /nowhere HTTP/1.1\r\nhost: test\r\n\r\n";
    let mut others = Vec::new();
    for number in 0..CROWD {
        let mut client = Raw::connect(&bridge).await;
        client.send(nowhere).await;
        assert_eq!(client.answer().await.status, 404, "{number}");
        others.push(client);
    }
    // Those that came before there was a crowd belong to it now.
    for client in &mut others {
        client.send(nowhere).await;
        assert_eq!(client.answer().await.status, 404);
    }
    for (number, client) in others.iter_mut().enumerate() {
        client.send(Raw::post(&event("waiting", number))).await;
    }
    eventually(PATIENCE, "all are stored, however many wait", async || {
        bridge.metric("cdrelay_spool_appended_records_total").await == Some(CROWD as f64)
    })
    .await;
    let mut client = Raw::connect(&bridge).await;
    client.send(nowhere).await;
    assert_eq!(client.answer().await.status, 404);
    assert!(others[0].try_answer(Duration::from_millis(10)).await.is_none(), "the sink is dead");
}
