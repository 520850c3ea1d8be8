//! NATS: the shared server that `tests/run` starts, private ones for tests that break them, streams and what they hold.
//!
//! ```ignore
//! create_stream(&shared(), "CDR", &["telecmi.cdr.>"]).await;
//! let received = stream_messages(&shared(), "CDR", 5, PATIENCE).await;
//!
//! let mut server = Server::start("authorization { token: secret }").await;
//! server.kill();
//! server.start_again().await; // same port, same streams
//!
//! let mut cluster = Cluster::start().await; // three servers
//! ```
//!
//! Where a URL is asked for, several with commas between them will do.

mod cluster;

use std::env;
use std::fs::{remove_dir_all, write};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use async_nats::jetstream::{self, consumer::pull::OrderedConfig, stream};
use futures_util::StreamExt;
use tempfile::TempDir;
use tokio::time::{Instant, timeout_at};

pub use cluster::Cluster;

use super::process::Process;
use super::{PATIENCE, free_port};

/// One message as it lies in a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    pub subject: String,
    /// Sorted by name; the client does not keep their order.
    pub headers: Vec<(String, String)>,
    pub payload: Vec<u8>,
    /// The position in the stream, from 1.
    pub sequence: u64,
}

/// The URL of the server that all tests share. They keep apart by [`unique_name`]s of streams and subjects.
pub fn shared() -> String {
    env::var("CDRELAY_TEST_NATS").expect("CDRELAY_TEST_NATS names no server: run tests/run, which starts one")
}

/// A name for a stream, or a token of its subjects, that no test and no earlier run has used.
pub fn unique_name(prefix: &str) -> String {
    format!("{prefix}_{:016x}", fastrand::u64(..))
}

/// Empties the stream, which stays.
pub async fn purge_stream(url: &str, name: &str) {
    jetstream(url).await.get_stream(name).await.unwrap().purge().await.unwrap();
}

/// Creates a stream of these subjects.
pub async fn create_stream(url: &str, name: &str, subjects: &[&str]) {
    let subjects = subjects.iter().map(|&subject| subject.to_owned()).collect();
    create_stream_with(url, stream::Config { name: name.to_owned(), subjects, ..Default::default() }).await;
}

pub async fn create_stream_with(url: &str, config: stream::Config) {
    jetstream(url).await.create_stream(config).await.unwrap();
}

/// Has the stream take these subjects instead.
pub async fn update_stream(url: &str, name: &str, subjects: &[&str]) {
    let subjects = subjects.iter().map(|&subject| subject.to_owned()).collect();
    let config = stream::Config { name: name.to_owned(), subjects, ..Default::default() };
    jetstream(url).await.update_stream(config).await.unwrap();
}

pub async fn delete_stream(url: &str, name: &str) {
    jetstream(url).await.delete_stream(name).await.unwrap();
}

/// How many messages the stream holds.
pub async fn stream_length(url: &str, name: &str) -> u64 {
    jetstream(url).await.get_stream(name).await.unwrap().cached_info().state.messages
}

/// Reads the stream from its beginning until `count` messages have come. Panics with those it has when time is up.
pub async fn stream_messages(url: &str, name: &str, count: usize, within: Duration) -> Vec<Received> {
    let deadline = Instant::now() + within;
    let stream = jetstream(url).await.get_stream(name).await.unwrap();
    let mut messages = stream.create_consumer(OrderedConfig::default()).await.unwrap().messages().await.unwrap();
    let mut received = Vec::new();
    while received.len() < count {
        let Ok(message) = timeout_at(deadline, messages.next()).await else {
            panic!("not within {within:?}: {count} messages of {name}, only {received:#?}");
        };
        received.push(to_received(&message.unwrap().unwrap()));
    }
    received
}

/// Reads all that the stream holds now.
pub async fn stream_all(url: &str, name: &str) -> Vec<Received> {
    let stored = stream_length(url, name).await.try_into().unwrap();
    stream_messages(url, name, stored, PATIENCE).await
}

fn to_received(message: &jetstream::Message) -> Received {
    let headers = message.headers.iter().flat_map(|headers| headers.iter());
    let headers =
        headers.flat_map(|(name, values)| values.iter().map(move |value| (name.to_string(), value.to_string())));
    let mut headers: Vec<_> = headers.collect();
    headers.sort();
    Received {
        subject: message.subject.to_string(),
        headers,
        payload: message.payload.to_vec(),
        sequence: message.info().unwrap().stream_sequence,
    }
}

async fn jetstream(url: &str) -> jetstream::Context {
    let urls: Vec<_> = url.split(',').collect();
    jetstream::new(async_nats::connect(urls.as_slice()).await.unwrap())
}

/// A nats-server of one test's own, with JetStream, in a temporary directory, on a port that it keeps. Killed, and its data deleted,
/// when dropped.
pub struct Server {
    process: Process,
    port: u16,
    directory: TempDir,
}

impl Server {
    /// Starts a server. The extra configuration is text in the format of its configuration file.
    pub async fn start(extra_config: &str) -> Self {
        Self::launch(extra_config, "1TB").await
    }

    /// The same with so little room for all its streams.
    pub async fn start_with_store(size: &str) -> Self {
        Self::launch("", size).await
    }

    async fn launch(extra_config: &str, store_size: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let port = free_port();
        configure(directory.path(), port, store_size, extra_config);
        let process = launch(directory.path(), port).await;
        Self { process, port, directory }
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// SIGKILL
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// SIGTERM, and waits until it has ended.
    pub async fn stop(&mut self) {
        self.process.terminate();
        self.process.wait(PATIENCE).await;
    }

    /// Lame duck mode: it sends its clients away, and ends.
    pub async fn retire(&mut self) {
        self.process.retire();
        self.process.wait(PATIENCE).await;
    }

    /// Starts a killed or stopped server again with its port and its streams.
    pub async fn start_again(&mut self) {
        self.process = launch(self.directory.path(), self.port).await;
    }

    /// Deletes the streams of a killed or stopped server.
    pub fn forget(&self) {
        remove_dir_all(self.directory.path().join("store")).unwrap();
    }

    /// Replaces the extra configuration while it runs.
    pub fn reload(&self, extra_config: &str) {
        configure(self.directory.path(), self.port, "1TB", extra_config);
        self.process.reload();
    }

    /// SIGSTOP: it answers nothing, yet its connections stay open.
    pub fn pause(&self) {
        self.process.pause();
    }

    /// SIGCONT
    pub fn resume(&self) {
        self.process.resume();
    }
}

fn configure(directory: &Path, port: u16, store_size: &str, extra_config: &str) {
    let store = directory.join("store");
    let config = format!(
        "listen: \"127.0.0.1:{port}\"\njetstream {{ store_dir: {store:?}, max_file_store: {store_size} }}\n{extra_config}\n"
    );
    write(directory.join("server.conf"), config).unwrap();
}

async fn launch(directory: &Path, port: u16) -> Process {
    let program = env::var_os("CDRELAY_TEST_NATS_SERVER")
        .expect("CDRELAY_TEST_NATS_SERVER names no nats-server: run tests/run, which fetches one");
    let log = directory.join("server.log");
    let mut process = Process::spawn(Command::new(program).arg("-c").arg(directory.join("server.conf")), &log, &log);
    process.listening(port).await;
    process
}
