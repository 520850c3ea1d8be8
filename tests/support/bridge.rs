//! The cdrelay binary in a directory of its own, and an HTTP client for its two ports.
//!
//! ```ignore
//! let mut bridge = Bridge::start("[ingress]\nlisten = '127.0.0.1:0'\n[admin]\nlisten = '127.0.0.1:0'\n").await;
//! assert_eq!(bridge.post(body, "application/json").await.status, 200);
//! bridge.kill();
//! bridge.start_again().await; // same configuration, same spool
//! assert_eq!(bridge.metric("cdrelay_spool_records").await, Some(1.0));
//! ```

use hyper::body::Bytes;
use std::env;
use std::fs::{read, read_dir, read_to_string, write};
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::header::CONTENT_TYPE;
use hyper::{HeaderMap, Request};
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustix::param::clock_ticks_per_second;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::Value;
use tempfile::TempDir;

use super::process::Process;
use super::small_disk::SmallDisk;
use super::{PATIENCE, free_port, until};

/// The part of a configuration that lets the system choose both ports. More settings of `[ingress]` may follow.
pub const ANY_PORTS: &str = "[admin]\nlisten = '127.0.0.1:0'\n[ingress]\nlisten = '127.0.0.1:0'\n";

/// The part for a sink that writes to stdout.
pub const STDOUT: &str = "[sinks.out]\ntype = 'stdout'\n";

/// The part that gives the ingress a port of its own, so that a load finds it again after a restart.
pub fn on_fixed_port() -> String {
    format!("[ingress]\nlisten = '127.0.0.1:{}'\n[admin]\nlisten = '127.0.0.1:0'\n", free_port())
}

pub type Client = legacy::Client<HttpConnector, Full<Bytes>>;

/// Killed, and its directory deleted, when dropped.
pub struct Bridge {
    process: Process,
    ingress: String,
    admin: String,
    client: Client,
    environment: Vec<(String, String)>,
    /// What stands in front of the program on its command line.
    prefix: Vec<String>,
    directory: TempDir,
}

/// An HTTP answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn text(&self) -> &str {
        str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// The binary, with nothing of our own environment that could configure it. For the subcommands that end by themselves.
pub fn command() -> Command {
    clean(Command::new(env!("CARGO_BIN_EXE_cdrelay")))
}

fn clean(mut command: Command) -> Command {
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("CDRELAY_") {
            command.env_remove(name);
        }
    }
    command
}

/// A client that keeps its connections. Over HTTP/2 it speaks so without asking first.
pub fn client(http2: bool) -> Client {
    legacy::Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).http2_only(http2).build_http()
}

impl Bridge {
    /// Runs the bridge with this configuration, TOML, until it listens. Its ports are best 0; its spool lies in its directory.
    pub async fn start(config: &str) -> Self {
        Self::start_with(config, &[]).await
    }

    /// The same with these environment variables, at every start.
    pub async fn start_with(config: &str, environment: &[(&str, &str)]) -> Self {
        Self::launch(config, environment, Vec::new()).await
    }

    /// The same where the disk is seen; the configuration has to name its path for the spool.
    pub async fn start_inside(disk: &SmallDisk, config: &str) -> Self {
        Self::launch(config, &[], disk.enter()).await
    }

    /// The same with a limit of open files.
    pub async fn start_with_few_files(config: &str, files: u32) -> Self {
        let prefix = ["sh".into(), "-c".into(), format!("ulimit -n {files}; exec \"$@\""), "sh".into()];
        Self::launch(config, &[], prefix.into()).await
    }

    async fn launch(config: &str, environment: &[(&str, &str)], prefix: Vec<String>) -> Self {
        let directory = TempDir::new().unwrap();
        write(directory.path().join("cdrelay.toml"), config).unwrap();
        let environment: Vec<_> =
            environment.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        let (process, ingress, admin) = launch(directory.path(), &environment, &prefix).await;
        Self { process, ingress, admin, client: client(false), environment, prefix, directory }
    }

    /// Runs a killed or ended bridge again, in the same directory with the same configuration. Its ports may differ.
    pub async fn start_again(&mut self) {
        (self.process, self.ingress, self.admin) = launch(self.directory.path(), &self.environment, &self.prefix).await;
    }

    /// The dead letters of a sink, oldest first.
    pub fn dead_letters(&self, sink: &str) -> Vec<Value> {
        json_lines(&self.directory().join("spool/dead-letters").join(sink))
    }

    /// The bodies that could not be decoded, oldest first.
    pub fn rejected_bodies(&self) -> Vec<Value> {
        json_lines(&self.directory().join("spool/rejected"))
    }

    /// Where it was started: `cdrelay.toml`, and `spool` unless that says otherwise.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Address and port of the ingress.
    pub fn ingress(&self) -> &str {
        &self.ingress
    }

    /// Address and port of the admin port.
    pub fn admin_address(&self) -> &str {
        &self.admin
    }

    pub fn ingress_url(&self) -> String {
        format!("http://{}/webhook/cdr", self.ingress)
    }

    /// Posts to the webhook.
    pub async fn post(&self, body: impl Into<Bytes>, content_type: &str) -> Answer {
        let request = Request::post(self.ingress_url()).header(CONTENT_TYPE, content_type);
        self.send(request.body(Full::new(body.into())).unwrap()).await
    }

    /// Gets the webhook with this query, which is percent-encoded already.
    pub async fn get(&self, query: &str) -> Answer {
        self.send(Request::get(format!("{}?{query}", self.ingress_url())).body(Full::default()).unwrap()).await
    }

    /// Gets a path, such as `/readyz`, of the admin port.
    pub async fn admin(&self, path: &str) -> Answer {
        self.send(Request::get(format!("http://{}{path}", self.admin)).body(Full::default()).unwrap()).await
    }

    /// The value of a metric, named with its labels as `/metrics` writes them.
    pub async fn metric(&self, name_with_labels: &str) -> Option<f64> {
        let metrics = self.admin("/metrics").await;
        let value = |line: &str| line.strip_prefix(name_with_labels)?.strip_prefix(' ')?.parse().ok();
        metrics.text().lines().find_map(value)
    }

    /// Panics when there is no answer.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        let (head, body) = self.client.request(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: head.status.as_u16(), headers: head.headers, body }
    }

    /// SIGKILL
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// SIGTERM, and does not wait.
    pub fn terminate(&self) {
        self.process.terminate();
    }

    /// SIGHUP, and does not wait.
    pub fn hang_up(&self) {
        self.process.reload();
    }

    /// Waits until the bridge has ended.
    pub async fn wait(&mut self, within: Duration) -> ExitStatus {
        self.process.wait(within).await
    }

    /// SIGSTOP
    pub fn pause(&self) {
        self.process.pause();
    }

    /// SIGCONT
    pub fn resume(&self) {
        self.process.resume();
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The complete lines that the bridge has written to stdout, over all its starts.
    pub fn stdout_lines(&self) -> Vec<String> {
        let stdout = String::from_utf8(read(self.directory.path().join("stdout")).unwrap()).unwrap();
        stdout.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).map(str::to_owned).collect()
    }

    /// What the bridge has logged, over all its starts.
    pub fn stderr(&self) -> String {
        read_to_string(self.directory.path().join("stderr")).unwrap()
    }

    /// The memory it holds now.
    pub fn rss_bytes(&self) -> u64 {
        memory(self.pid(), "VmRSS:")
    }

    /// The most memory it has held since its last start.
    pub fn peak_rss_bytes(&self) -> u64 {
        memory(self.pid(), "VmHWM:")
    }

    /// The part of its memory now that was read from its file: code and constants.
    pub fn code_bytes(&self) -> u64 {
        memory(self.pid(), "RssFile:")
    }

    /// The time it has computed since its last start.
    pub fn cpu_time(&self) -> Duration {
        let stat = read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        // The name, in parentheses, can hold anything. After it come the state, ten more fields, then user and system time.
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let ticks = fields.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum::<u64>();
        Duration::from_millis(ticks * 1000 / clock_ticks_per_second())
    }

    /// From now on it can write to files only below this size, as if the disk were full; `None` is as if there were room again.
    pub fn limit_files(&self, size: Option<u64>) {
        let pid = Pid::from_raw(self.pid().try_into().unwrap());
        let Rlimit { maximum, .. } = getrlimit(Resource::Fsize);
        prlimit(pid, Resource::Fsize, Rlimit { current: size.or(maximum), maximum }).unwrap();
    }

    /// Lets it open no more than so many files and sockets.
    pub fn limit_open_files(&self, limit: u64) {
        let pid = Pid::from_raw(self.pid().try_into().unwrap());
        prlimit(pid, Resource::Nofile, Rlimit { current: Some(limit), maximum: Some(limit) }).unwrap();
    }

    /// How many files and sockets it has open.
    pub fn open_files(&self) -> usize {
        read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }
}

/// A size from `/proc/PID/status`, in bytes.
fn memory(pid: u32, field: &str) -> u64 {
    let status = read_to_string(format!("/proc/{pid}/status")).unwrap();
    let kibibytes = status.lines().find_map(|line| line.strip_prefix(field)?.strip_suffix("kB")).unwrap();
    kibibytes.trim().parse::<u64>().unwrap() * 1024
}

/// Runs the binary until it has logged the addresses it listens on, ingress and admin.
async fn launch(directory: &Path, environment: &[(String, String)], prefix: &[String]) -> (Process, String, String) {
    let (stdout, stderr) = (directory.join("stdout"), directory.join("stderr"));
    let earlier = read(&stderr).map_or(0, |log| log.len());
    let mut command = match prefix {
        [] => command(),
        [program, arguments @ ..] => {
            let mut outer = clean(Command::new(program));
            outer.args(arguments).arg(env!("CARGO_BIN_EXE_cdrelay"));
            outer
        }
    };
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    // By its whole path: the prefix may change the working directory.
    command.current_dir(directory).arg("run").arg("--config").arg(directory.join("cdrelay.toml"));
    command.args(["--set", "log.format=json"]);
    let mut process = Process::spawn(&mut command, &stdout, &stderr);
    let (ingress, admin) = until(PATIENCE, "the bridge listens", async || {
        process.assert_running();
        let log = read(&stderr).unwrap();
        let address = |what| address(&log[earlier..], what);
        address("ingress listening").zip(address("admin listening"))
    })
    .await;
    (process, ingress, admin)
}

/// The whole lines of the `.ndjson` files in a directory, in the order of their names.
fn json_lines(directory: &Path) -> Vec<Value> {
    let Ok(entries) = read_dir(directory) else { return Vec::new() };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "ndjson"));
    paths.sort();
    let texts: Vec<_> = paths.iter().map(|path| read_to_string(path).unwrap()).collect();
    let lines = texts.iter().flat_map(|text| text.split_inclusive('\n').filter(|line| line.ends_with('\n')));
    lines.map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The address in the log line with this message.
fn address(log: &[u8], message: &str) -> Option<String> {
    let lines = log.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice::<Value>(line).ok());
    let mut fields = lines.map(|line| line["fields"].clone());
    let line = fields.find(|fields| fields["message"] == message)?;
    Some(line["address"].as_str()?.to_owned())
}
