//! A bridge that runs, seen from outside: when it answered, and what its metrics say.

use crate::destination::Destination;
use crate::process::Cores;
use crate::support::process::Process;
use crate::support::{PATIENCE, free_port};
use std::fs::write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

pub const BINARY: &str = env!("CARGO_BIN_EXE_cdrelay");

/// A bridge that has answered.
pub struct Running {
    pub process: Process,
    /// Where it takes webhooks.
    pub address: String,
    admin: u16,
    /// How long it took to answer.
    pub started: Duration,
}

impl Running {
    /// Starts a bridge in `directory` with these settings besides those that every case has.
    pub async fn start(cores: Cores, directory: &Path, settings: &str) -> Self {
        let (ingress, admin) = (free_port(), free_port());
        let path = directory.join("cdrelay.toml");
        let always = format!(
            "[ingress]\nlisten = '127.0.0.1:{ingress}'\nmax_connections = 20000\n[admin]\nlisten = '127.0.0.1:{admin}'\n\
             [spool]\nmax_size = '4GiB'\n"
        );
        write(&path, always + settings).unwrap();
        let begun = Instant::now();
        let mut process = cores.spawn(
            Command::new(BINARY).args(["run", "--config"]).arg(&path).current_dir(directory),
            Path::new("/dev/null"),
            &directory.join("log"),
        );
        let started = first_answer(&mut process, ingress, begun).await;
        Self { process, address: format!("127.0.0.1:{ingress}"), admin, started }
    }

    pub async fn metric(&self, name_with_labels: &str) -> f64 {
        let metrics = get(self.admin, "/metrics").await.unwrap();
        let value = |line: &str| line.strip_prefix(name_with_labels)?.strip_prefix(' ')?.parse().ok();
        metrics.lines().find_map(value).unwrap_or_else(|| panic!("no {name_with_labels}"))
    }

    /// How many events the slowest of these sinks has yet to publish.
    pub async fn behind(&self, sinks: &[Destination]) -> f64 {
        let mut behind = 0.0_f64;
        for sink in sinks {
            let lag = format!("cdrelay_sink_lag_records{{sink=\"{}\"}}", sink.name());
            behind = behind.max(self.metric(&lag).await);
        }
        behind
    }
}

/// How long until the webhook answers: with a 200, or with the 400 that plain HTTP gets where only TLS is spoken.
async fn first_answer(bridge: &mut Process, port: u16, begun: Instant) -> Duration {
    loop {
        bridge.assert_running();
        assert!(begun.elapsed() < PATIENCE, "the bridge does not answer");
        if get(port, "/webhook/cdr").await.is_some_and(|answer| answer.starts_with("HTTP/1.1 ")) {
            return begun.elapsed();
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn get(port: u16, path: &str) -> Option<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}
