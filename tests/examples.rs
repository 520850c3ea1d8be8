//! Every file in `config/` is sound as it stands, and takes a webhook to where it says, with its addresses replaced by ours.

use crate::command_line::cdrelay;
use crate::support::bridge::{Client, client, command};
use crate::support::process::Process;
use crate::support::{PATIENCE, eventually, free_port, kafka, nats};
use cdrelay::config::{Config, EMBEDDED};
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Bytes;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const CDR: &str =
    r#"{"type":"cdr","direction":"inbound","status":"missed","team":"Sales_1","conversation_uuid":"c-1"}"#;
const EVENT: &str = r#"{"type":"event","direction":"inbound","status":"waiting","conversation_uuid":"c-1"}"#;

fn examples() -> Vec<PathBuf> {
    let files = fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap().path());
    let is_example =
        |path: &PathBuf| path.extension().is_some_and(|extension| extension != "md" && extension != "json");
    let mut paths: Vec<_> = files.filter(is_example).collect();
    paths.sort();
    paths
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config")
}

#[test]
fn each_is_sound_as_it_stands() {
    for path in examples() {
        let finished = cdrelay(&["check", "--config", path.to_str().unwrap()]);
        assert_eq!(finished.code, Some(0), "{}: {}", path.display(), finished.stderr);
    }
}

/// What the embedded default says, and what it shows commented out, is what the code does without it.
#[test]
fn the_embedded_default_repeats_the_defaults() {
    let setting = |line: &str| line.starts_with(|first: char| first.is_ascii_lowercase()) && line.contains(" = ");
    let shown = EMBEDDED.lines().map(|line| match line.strip_prefix("# ") {
        Some(hidden) if setting(hidden) => hidden,
        _ => line,
    });
    let shown: Vec<_> = shown.collect();
    assert!(shown.iter().any(|line| line.starts_with("grace_period = \"10s\" ")), "{shown:?}");
    let all = Config::from_toml(&shown.join("\n")).unwrap();
    let least = Config::from_toml("[sinks.stdout]\ntype = 'stdout'\ntopic = 'telecmi.cdr'").unwrap();
    assert_eq!(format!("{all:#?}"), format!("{least:#?}"));
}

#[test]
fn each_is_run_by_a_test_below() {
    let names: BTreeSet<_> =
        examples().iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    let tested = ["cdrelay.toml", "fan-out.toml", "kafka.toml", "kafka.yaml", "nats.toml", "sidecar.toml"];
    assert_eq!(names, tested.map(String::from).into());
}

#[tokio::test]
async fn the_default_prints() {
    let example = Example::start("cdrelay.toml", &[]).await;
    example.post(CDR).await;
    example.prints(CDR).await;
}

#[tokio::test]
async fn kafka_in_toml_and_yaml_and_beside_an_application() {
    for file in ["kafka.toml", "kafka.yaml", "sidecar.toml"] {
        let topic = Topic::create().await;
        let example = Example::start(file, &topic.settings).await;
        example.post(CDR).await;
        assert_eq!(topic.payloads(1).await, [CDR], "{file}");
        topic.delete().await;
    }
}

#[tokio::test]
async fn nats_creates_its_stream() {
    let stream = Stream::named();
    let example = Example::start("nats.toml", &stream.settings).await;
    example.post(CDR).await;
    let received = stream.received(1).await.remove(0);
    assert_eq!(received.subject, format!("{}.Sales_1.c-1", stream.name));
    assert_eq!(received.payload, CDR.as_bytes());
    stream.delete().await;
}

#[tokio::test]
async fn one_webhook_reaches_every_sink_of_a_fan_out() {
    let (topic, stream) = (Topic::create().await, Stream::named());
    let example = Example::start("fan-out.toml", &[&topic.settings[..], &stream.settings].concat()).await;
    example.post(EVENT).await;
    example.post(CDR).await;
    assert_eq!(topic.payloads(2).await, [EVENT, CDR]);
    example.prints(EVENT).await;
    example.prints(CDR).await;
    // Only the record of the call passes `when`, in an envelope.
    let envelope: serde_json::Value = serde_json::from_slice(&stream.received(1).await[0].payload).unwrap();
    assert_eq!(envelope["data"], serde_json::from_str::<serde_json::Value>(CDR).unwrap());
    assert_eq!(envelope["type"], "com.telecmi.cdr.inbound.missed");
    assert_eq!(nats::stream_length(&nats::shared(), &stream.name).await, 1);
    let filtered = "cdrelay_sink_filtered_total{sink=\"nats\"} 1";
    eventually(PATIENCE, filtered, async || example.get("/metrics").await.1.contains(filtered)).await;
    topic.delete().await;
    stream.delete().await;
}

/// The bridge with an example's file, in a directory and on ports of its own.
struct Example {
    _process: Process,
    client: Client,
    ingress: String,
    admin: String,
    directory: TempDir,
}

impl Example {
    async fn start(file: &str, settings: &[String]) -> Self {
        let directory = TempDir::new().unwrap();
        let (ingress, admin) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
        let mut command = command();
        command.current_dir(directory.path()).arg("run").arg("--config").arg(self::directory().join(file));
        let ours =
            [format!("ingress.listen={ingress}"), format!("admin.listen={admin}"), "spool.path=spool".to_owned()];
        command.args(ours.iter().chain(settings).flat_map(|setting| ["--set", setting]));
        let (stdout, stderr) = (directory.path().join("stdout"), directory.path().join("stderr"));
        let mut process = Process::spawn(&mut command, &stdout, &stderr);
        process.listening(admin.rsplit(':').next().unwrap().parse().unwrap()).await;
        let example = Self { _process: process, client: client(false), ingress, admin, directory };
        eventually(PATIENCE, &format!("{file} is ready"), async || example.get("/readyz").await.0 == 200).await;
        example
    }

    async fn post(&self, body: &'static str) {
        let request = Request::post(format!("http://{}/webhook/cdr", self.ingress)).body(Full::from(body)).unwrap();
        assert_eq!(self.send(request).await, (200, "{\"stored\":1,\"duplicates\":0}\n".to_owned()));
    }

    async fn get(&self, path: &str) -> (u16, String) {
        self.send(Request::get(format!("http://{}{path}", self.admin)).body(Full::default()).unwrap()).await
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> (u16, String) {
        let (head, body) = self.client.request(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (head.status.as_u16(), String::from_utf8(body.to_vec()).unwrap())
    }

    async fn prints(&self, event: &str) {
        let end = format!("\"event\":{event}}}\n");
        let printed = async || fs::read_to_string(self.directory.path().join("stdout")).unwrap().contains(&end);
        eventually(PATIENCE, &format!("printed: {event}"), printed).await;
    }
}

struct Topic {
    name: String,
    settings: Vec<String>,
}

impl Topic {
    async fn create() -> Self {
        let name = kafka::unique_topic("examples");
        kafka::create_topic(&kafka::shared(), &name, 3).await;
        let settings = vec![format!("sinks.kafka.brokers={}", kafka::shared()), format!("sinks.kafka.topic={name}")];
        Self { name, settings }
    }

    async fn payloads(&self, count: usize) -> Vec<String> {
        let consumed = kafka::consume(&kafka::shared(), &self.name, count, PATIENCE).await;
        consumed.into_iter().map(|message| String::from_utf8(message.payload).unwrap()).collect()
    }

    async fn delete(&self) {
        kafka::delete_topic(&kafka::shared(), &self.name).await;
    }
}

/// The bridge creates it.
struct Stream {
    name: String,
    settings: Vec<String>,
}

impl Stream {
    fn named() -> Self {
        let name = nats::unique_name("examples");
        let settings = vec![
            format!("sinks.nats.servers={}", nats::shared()),
            format!("sinks.nats.stream.name={name}"),
            format!("sinks.nats.subject={name}.{{team}}.{{conversation_uuid}}"),
        ];
        Self { name, settings }
    }

    async fn received(&self, count: usize) -> Vec<nats::Received> {
        nats::stream_messages(&nats::shared(), &self.name, count, PATIENCE).await
    }

    async fn delete(&self) {
        nats::delete_stream(&nats::shared(), &self.name).await;
    }
}
