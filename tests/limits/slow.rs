//! A normal client beside a crowd of slow ones: with a header, with a body, or with reading the answers.

use super::*;
use crate::support::eventually;
use futures_util::future::join_all;
use std::time::Instant;
use tokio::net::{TcpSocket, TcpStream};

const CLIENTS: usize = 1000;
/// A tail that nothing but the machine causes may be as long as this.
const NOISE: Duration = Duration::from_millis(50);
/// The same where all slow clients send in the same moment, which a build for debugging takes some time to read.
const BURST_NOISE: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug)]
enum Slow {
    Header,
    Body,
    Read,
    Range,
}

impl Slow {
    async fn begin(self, bridge: &Bridge) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        if let Self::Read = self {
            socket.set_recv_buffer_size(1 << 10).unwrap();
        }
        let mut client = Raw::over(socket.connect(bridge.ingress().parse().unwrap()).await.unwrap());
        client
            .try_send(match self {
                Self::Header => "POST /webhook/cdr HTTP/1.1\r\nhost: test\r\nx:".into(),
                Self::Body => Raw::head("POST", "content-length: 10000\r\n"),
                Self::Read => Raw::head("GET", "").repeat(100),
                Self::Range => {
                    let ranges: Vec<_> = (0..2000).map(|n| format!("{n}-")).collect();
                    Raw::head("HEAD", &format!("range: bytes={}\r\n", ranges.join(",")))
                }
            })
            .await;
        client.stream
    }

    /// Another byte.
    fn go_on(self, client: &TcpStream) {
        let _ = match self {
            Self::Header | Self::Body => client.try_write(b" ").map(drop),
            Self::Read | Self::Range => client.try_read(&mut [0]).map(drop),
        };
    }
}

/// Sends so many webhooks one after another. Notes how long each takes.
async fn send(bridge: &Bridge, what: &str, count: usize, times: &mut Vec<Duration>) {
    let mut client = Raw::connect(bridge).await;
    for n in 0..count {
        let begun = Instant::now();
        assert_eq!(client.exchange(&format!("{{\"{what}\":{n}}}")).await, Ok(200), "{what}, {n}");
        times.push(begun.elapsed());
        sleep(Duration::from_millis(5)).await;
    }
}

/// The time that so many in a hundred of them are within.
fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort();
    times[times.len() * percent / 100]
}

/// How long the slowest but one in a hundred of a client's requests takes.
async fn p99(bridge: &Bridge, what: &str) -> Duration {
    let mut times = Vec::new();
    send(bridge, what, 300, &mut times).await;
    percentile(&mut times, 99)
}

#[tokio::test]
async fn a_thousand_slow_clients_do_not_slow_another() {
    open_many_files();
    // None of them is ended: it is the bridge that bears them.
    let patience = "header_timeout = '1h'\nidle_timeout = '1h'\nbody_timeout = '1h'\n";
    let bridge = bridge(patience).await;
    for slow in [Slow::Header, Slow::Body, Slow::Read, Slow::Range] {
        let before = p99(&bridge, &format!("before {slow:?}")).await;
        let clients = join_all((0..CLIENTS).map(|_| slow.begin(&bridge))).await;
        // What they ask for at first is work like any other.
        let mut answered = None;
        eventually(PATIENCE, "all is done that can be done for them", async || {
            sleep(Duration::from_millis(200)).await;
            let before = answered;
            answered = bridge.metric("cdrelay_ingress_requests_total{status=\"200\"}").await;
            bridge.open_files() > CLIENTS && answered == before
        })
        .await;
        // Each goes on once a second: all in the same moment, or one after another.
        let mut measured = Vec::new();
        for (at_once, noise) in [(CLIENTS, BURST_NOISE), (1, NOISE)] {
            let going_on = async {
                for some in clients.chunks(at_once).cycle() {
                    some.iter().for_each(|client| slow.go_on(client));
                    sleep(Duration::from_secs(1) * at_once as u32 / CLIENTS as u32).await;
                }
            };
            let what = format!("beside {slow:?}, {at_once} at once");
            let among = tokio::select! {
                among = p99(&bridge, &what) => among,
                () = going_on => unreachable!(),
            };
            measured.push((what, among, noise));
        }
        assert_small(&bridge, &format!("{CLIENTS} clients with a slow {slow:?}"));
        assert!(bridge.open_files() > CLIENTS, "slow {slow:?}: they are gone");
        drop(clients);
        let alone = before.max(p99(&bridge, &format!("after {slow:?}")).await);
        for (what, among, noise) in measured {
            println!("p99 {among:?} {what}, {alone:?} without");
            assert!(among <= noise.max(2 * alone), "{among:?} {what}, {alone:?} without");
        }
    }
}

/// No body takes longer to decode: each byte becomes six of JSON.
#[tokio::test]
async fn large_forms_of_control_characters_do_not_slow_another() {
    const FORMS: usize = 64;
    // However slowly a busy machine decodes them, each is to get its turn.
    let settings = format!("max_body = '6MiB'\nbody_memory = '12MiB'\nbody_timeout = '{}s'\n", 2 * PATIENCE.as_secs());
    let bridge = bridge(&settings).await;
    let body = format!("a={}", "\u{1}".repeat((1 << 20) - 10));
    let lines = format!("content-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\n", body.len());
    let form = Raw::head("POST", &lines) + &body;
    let send_form = async || {
        let mut client = Raw::connect(&bridge).await;
        let begun = Instant::now();
        client.send(&form).await;
        assert_eq!(client.try_answer(2 * PATIENCE).await.unwrap().status, 200);
        begun.elapsed()
    };
    // The first is stored. All others are duplicates, which take no time on the disk.
    send_form().await;
    let one = send_form().await;
    let (mut alone, mut among) = (Vec::new(), Vec::new());
    send(&bridge, "alone", 100, &mut alone).await;
    tokio::select! {
        _ = join_all((0..FORMS).map(|_| send_form())) => {}
        () = send(&bridge, "among", usize::MAX, &mut among) => unreachable!(),
    }
    let (count, alone, among) = (among.len(), percentile(&mut alone, 50), percentile(&mut among, 50));
    println!("p50 {among:?} of {count} beside {FORMS} forms, {alone:?} without; one form takes {one:?}");
    // Decoded on a thread that serves connections, each form would hold up others for as long as it takes.
    assert!(among <= (one / 4).max(2 * alone), "{among:?} beside forms of {one:?}, {alone:?} without");
}
