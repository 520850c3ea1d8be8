//! A TCP proxy whose connections can be made as bad as a network gets.
//!
//! ```ignore
//! let proxy = Proxy::start(server_address).await;
//! proxy.set(Line { delay: Duration::from_millis(50), ..Line::default() });
//! proxy.reset(); // every connection, as a server that has forgotten them does
//! proxy.set(Line { silent: true, ..Line::default() }); // half-open: nothing passes, nothing is closed
//! proxy.forget(); // half-open for good, and only new connections are served
//! ```

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

/// What the way is like, in either direction.
#[derive(Debug, Clone, Copy, Default)]
pub struct Line {
    /// How long it holds every piece of data.
    pub delay: Duration,
    pub bytes_per_second: Option<u32>,
    /// It lets nothing through, and tells nobody.
    pub silent: bool,
}

/// Listens on loopback until it is dropped; its connections end with it.
pub struct Proxy {
    address: SocketAddr,
    line: watch::Sender<Line>,
    resets: watch::Sender<usize>,
    connections: Arc<AtomicUsize>,
    /// So many of the connections, from the first on, are silent for good.
    forgotten: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Connects everyone who comes to `upstream`, over a perfect line at first.
    pub async fn start(upstream: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (line, resets) = (watch::Sender::new(Line::default()), watch::Sender::new(0));
        let connections = Arc::new(AtomicUsize::new(0));
        let forgotten = Arc::new(AtomicUsize::new(0));
        let (lines, cuts, count) = (line.subscribe(), resets.subscribe(), connections.clone());
        let forgotten_until = forgotten.clone();
        let accepting = tokio::spawn(async move {
            let mut all = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let number = count.fetch_add(1, Ordering::Relaxed);
                let mut cuts = cuts.clone();
                cuts.mark_unchanged();
                let way = Way { number, forgotten: forgotten_until.clone(), line: lines.clone() };
                all.spawn(connect(client, upstream.clone(), way, cuts));
            }
        });
        Self { address, line, resets, connections, forgotten, accepting }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Makes all connections like this, those that are there and those to come.
    pub fn set(&self, line: Line) {
        self.line.send_replace(line);
    }

    /// Resets all connections, and loses what is on its way.
    pub fn reset(&self) {
        self.resets.send_modify(|resets| *resets += 1);
    }

    /// Lets nothing through any more on the connections there are, and tells nobody, as a firewall that has forgotten them does.
    pub fn forget(&self) {
        self.forgotten.store(self.connections(), Ordering::Relaxed);
    }

    /// How many have connected so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// What one connection is like.
#[derive(Clone)]
struct Way {
    number: usize,
    forgotten: Arc<AtomicUsize>,
    line: watch::Receiver<Line>,
}

impl Way {
    /// Resolves when so many bytes have come through; never if they get lost.
    async fn pass(&mut self, bytes: usize) {
        let Line { delay, bytes_per_second, .. } = *self.line.borrow_and_update();
        sleep(delay + bytes_per_second.map_or(Duration::ZERO, |rate| Duration::from_secs(1) * bytes as u32 / rate))
            .await;
        let _ = self.line.wait_for(|line| !line.silent).await;
        if self.number < self.forgotten.load(Ordering::Relaxed) {
            pending().await
        }
    }
}

async fn connect(client: TcpStream, upstream: String, way: Way, mut cuts: watch::Receiver<usize>) {
    // Closed without further ado, a socket with this setting resets its connection.
    client.set_zero_linger().unwrap();
    let Ok(server) = TcpStream::connect(upstream).await else { return };
    server.set_zero_linger().unwrap();
    for socket in [&client, &server] {
        socket.set_nodelay(true).unwrap();
    }
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        _ = cuts.changed() => {}
        // Either end has closed, or was reset: the other one learns of it, like everything, when the line lets it.
        _ = forward(from_client, to_server, way.clone()) => {}
        _ = forward(from_server, to_client, way) => {}
    }
}

async fn forward(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, mut way: Way) -> io::Result<()> {
    let mut buffer = vec![0; 4096];
    loop {
        let count = from.read(&mut buffer).await?;
        way.pass(count).await;
        if count == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..count]).await?;
    }
}
