//! A normal client beside a crowd of slow ones: with a header, with a body, or with reading the answers.

use super::*;
use crate::support::eventually;
use futures_util::future::join_all;
use std::time::Instant;
use tokio::net::{TcpSocket, TcpStream};

const CLIENTS: usize = 1000;
/// A tail that nothing but the machine causes may be as long as this.
const NOISE: Duration = Duration::from_secs(2);

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

/// How long the slowest but one in a hundred of a client's requests takes.
async fn p99(bridge: &Bridge, what: &str) -> Duration {
    let mut client = Raw::connect(bridge).await;
    let mut times = Vec::new();
    for n in 0..300 {
        let begun = Instant::now();
        assert_eq!(client.exchange(&format!("{{\"{what}\":{n}}}")).await, Ok(200), "{what}, {n}");
        times.push(begun.elapsed());
        sleep(Duration::from_millis(5)).await;
    }
    times.sort();
    times[times.len() * 99 / 100]
}

#[tokio::test]
async fn a_thousand_slow_clients_do_not_slow_another() {
    open_many_files();
    // None of them is ended: it is the bridge that bears them.
    let patience = "header_timeout = '1h'\nidle_timeout = '1h'\nbody_timeout = '1h'\n";
    let bridge = bridge(patience).await;
    for slow in [Slow::Header, Slow::Body, Slow::Read, Slow::Range] {
        let alone = p99(&bridge, &format!("before {slow:?}")).await;
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
        let going_on = async {
            loop {
                for client in &clients {
                    slow.go_on(client);
                }
                sleep(Duration::from_secs(1)).await;
            }
        };
        let what = format!("beside {slow:?}");
        let among = tokio::select! {
            among = p99(&bridge, &what) => among,
            () = going_on => unreachable!(),
        };
        println!("slow {slow:?}: p99 {among:?} beside {CLIENTS} of them, {alone:?} without");
        assert_small(&bridge, &format!("{CLIENTS} clients with a slow {slow:?}"));
        assert!(bridge.open_files() > CLIENTS, "slow {slow:?}: they are gone");
        assert!(among <= NOISE.max(2 * alone), "slow {slow:?}: {among:?}, {alone:?} without");
    }
}
