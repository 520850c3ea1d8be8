//! A nats-server of one's own, for tests that stop it, reconfigure it or talk TLS to it.

use rustix::process::{Pid, Signal, kill_process};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub struct Server {
    dir: TempDir,
    port: u16,
    process: Option<Child>,
}

impl Server {
    /// A server with JetStream and `settings` on top.
    pub async fn start(settings: &str) -> Self {
        let port = free_port();
        let mut server = Self { dir: tempfile::tempdir().unwrap(), port, process: None };
        server.configure(settings);
        server.start_again().await;
        server
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub fn directory(&self) -> &Path {
        self.dir.path()
    }

    /// Starts it, with what its disk holds, and waits until it takes connections.
    pub async fn start_again(&mut self) {
        let program = std::env::var_os("CDRELAY_TEST_NATS_SERVER").unwrap_or_else(|| "nats-server".into());
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        let mut command = Command::new(program);
        command.arg("-c").arg(self.config()).stdout(Stdio::null()).stderr(log);
        self.process = Some(command.spawn().expect("nats-server starts"));
        let deadline = Instant::now() + Duration::from_secs(10);
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(Instant::now() < deadline, "{}", std::fs::read_to_string(self.dir.path().join("log")).unwrap());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Stops it without warning.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// It answers nothing, yet its connections stay open.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let id = self.process.as_ref().unwrap().id();
        kill_process(Pid::from_raw(id.try_into().unwrap()).unwrap(), signal).unwrap();
    }

    /// Replaces `settings` while it runs.
    pub fn reload(&self, settings: &str) {
        self.configure(settings);
        self.signal(Signal::HUP);
    }

    fn configure(&self, settings: &str) {
        let store = self.dir.path().join("store");
        let text = format!("listen: \"127.0.0.1:{}\"\njetstream {{ store_dir: {store:?} }}\n{settings}\n", self.port);
        std::fs::write(self.config(), text).unwrap();
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("nats.conf")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Not one the system would hand out by itself: while the server is down, a client that knocks on its port could otherwise be
/// given that very port as its own, and talk to itself.
fn free_port() -> u16 {
    std::iter::repeat_with(|| fastrand::u16(20_000..32_000))
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .unwrap()
}
