//! `cdrelay soak` finds a bridge that keeps its promise clean, whatever happens to it meanwhile, and one that does not, guilty.

use std::fs::{self, read_to_string};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::Mutex;

use crate::command_line::cdrelay;
use crate::support::process::Process;
use crate::support::{ANY_PORTS, Bridge, PATIENCE, eventually, free_port, kafka, nats, until};

/// A run of `cdrelay soak`.
struct Soak {
    process: Process,
    directory: TempDir,
}

/// How it ended.
#[derive(Debug)]
struct Outcome {
    code: Option<i32>,
    report: Value,
    stderr: String,
}

impl Soak {
    /// With the configuration in this directory.
    fn start(bridge: &Path, arguments: &[&str]) -> Self {
        let directory = TempDir::new().unwrap();
        let mut command = crate::support::bridge::command();
        command.current_dir(bridge).args(["soak", "--config", "cdrelay.toml", "--json"]).args(arguments);
        Self {
            process: Process::spawn(&mut command, &directory.path().join("out"), &directory.path().join("err")),
            directory,
        }
    }

    fn against(bridge: &Bridge, arguments: &[&str]) -> Self {
        let url = bridge.ingress_url();
        Self::start(bridge.directory(), &[&["--url", &url], arguments].concat())
    }

    async fn outcome(mut self) -> Outcome {
        let code = self.process.wait(4 * PATIENCE).await.code();
        let read = |name| read_to_string(self.directory.path().join(name)).unwrap();
        let (stdout, stderr) = (read("out"), read("err"));
        println!("{stdout}{stderr}");
        let report = serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}{stderr}"));
        Outcome { code, report, stderr }
    }
}

impl Outcome {
    fn count(&self, name: &str) -> u64 {
        self.report[name].as_u64().unwrap()
    }

    fn sink(&self, name: &str) -> &Value {
        self.report["sinks"].as_array().unwrap().iter().find(|sink| sink["name"] == name).unwrap()
    }

    fn of(&self, sink: &str, count: &str) -> u64 {
        self.sink(sink)[count].as_u64().unwrap()
    }

    fn assert_clean(&self, sinks: &[&str]) {
        assert_eq!((self.code, &self.report["clean"]), (Some(0), &Value::Bool(true)), "{self:?}");
        assert!(self.count("accepted") > 0 && self.count("unacknowledged") == 0, "{self:?}");
        for sink in sinks {
            assert_eq!(self.of(sink, "delivered") + self.of(sink, "filtered"), self.count("accepted"), "{self:?}");
            for fault in ["lost", "reordered", "altered", "unexpected", "dead_lettered"] {
                assert_eq!(self.of(sink, fault), 0, "{self:?}");
            }
            let latency = |name: &str| self.sink(sink)["latency"][name].as_f64().unwrap();
            assert!(0.0 < latency("p50") && latency("p50") <= latency("p99_9") && latency("p99_9") <= latency("max"));
        }
    }
}

/// Its load finds it again after a restart.
fn on_fixed_port() -> String {
    format!("[ingress]\nlisten = '127.0.0.1:{}'\n[admin]\nlisten = '127.0.0.1:0'\n", free_port())
}

fn kafka_sink(address: &str, topic: &str) -> String {
    format!("[sinks.kafka]\ntype = 'kafka'\nbrokers = '{address}'\ntopic = '{topic}'\n")
}

fn nats_sink(url: &str, stream: &str) -> String {
    format!(
        "[sinks.nats]\ntype = 'nats'\nservers = '{url}'\nsubject = '{stream}.{{team}}.{{conversation_uuid}}'\nack_timeout = '2s'\n"
    )
}

const STDOUT: &str = "[sinks.stdout]\ntype = 'stdout'\n";
const ALL: [&str; 3] = ["kafka", "nats", "stdout"];

async fn topic_and_stream(name: &str) -> (String, String) {
    let (topic, stream) = (kafka::unique_topic(name), nats::unique_name(name));
    kafka::create_topic(&kafka::shared(), &topic, 6).await;
    nats::create_stream(&nats::shared(), &stream, &[&format!("{stream}.>")]).await;
    (topic, stream)
}

#[tokio::test]
async fn two_runs_at_once_find_a_sound_bridge_clean_at_every_sink() {
    let (topic, stream) = topic_and_stream("soak").await;
    let sinks = [kafka_sink(&kafka::shared(), &topic), nats_sink(&nats::shared(), &stream), STDOUT.to_owned()];
    let bridge = Bridge::start(&format!("{ANY_PORTS}{}", sinks.concat())).await;
    // What is there before does not count.
    bridge.post(r#"{"conversation_uuid":"early","soak":{"number":0,"at":0}}"#, "application/json").await;
    let arguments = |seed| {
        [
            "--rate",
            "100",
            "--duration",
            "4s",
            "--conversations",
            "20",
            "--events",
            "7",
            "--stdout-from",
            "stdout",
            "--seed",
            seed,
        ]
    };
    let (first, second) = (Soak::against(&bridge, &arguments("1")), Soak::against(&bridge, &arguments("1")));
    for outcome in [first.outcome().await, second.outcome().await] {
        outcome.assert_clean(&ALL);
        assert!(outcome.count("accepted") <= 400, "{outcome:?}");
        assert_eq!((outcome.count("refused"), outcome.count("seed")), (0, 1));
        assert!(ALL.iter().all(|sink| outcome.of(sink, "duplicated") == 0), "{outcome:?}");
    }
}

#[tokio::test]
async fn a_bridge_killed_in_the_middle_is_found_clean() {
    let (topic, stream) = topic_and_stream("soak_killed").await;
    let sinks = [kafka_sink(&kafka::shared(), &topic), nats_sink(&nats::shared(), &stream), STDOUT.to_owned()];
    let mut bridge = Bridge::start(&format!("{}{}", on_fixed_port(), sinks.concat())).await;
    // Without --url: the configuration says where it listens.
    let soak = Soak::start(bridge.directory(), &["--rate", "200", "--duration", "12s", "--stdout-from", "stdout"]);
    for _ in 0..2 {
        let accepted = async |bridge: &Bridge| bridge.metric("cdrelay_ingress_events_accepted_total").await.unwrap();
        eventually(PATIENCE, "the bridge takes events", async || accepted(&bridge).await >= 300.0).await;
        bridge.kill();
        bridge.start_again().await;
    }
    let outcome = soak.outcome().await;
    outcome.assert_clean(&ALL);
    assert!(outcome.count("refused") > 0, "{outcome:?}");
    assert_eq!(outcome.of("nats", "duplicated"), 0, "the stream knows what it has");
}

#[tokio::test]
async fn brokers_that_die_and_come_back_meanwhile_are_found_clean() {
    let mut broker = kafka::Broker::start(&[]).await;
    let mut server = nats::Server::start("").await;
    kafka::create_topic(&broker.address(), "cdr", 6).await;
    nats::create_stream(&server.url(), "CDR", &["CDR.>"]).await;
    let sinks = kafka_sink(&broker.address(), "cdr") + &nats_sink(&server.url(), "CDR");
    let bridge = Bridge::start(&format!("{ANY_PORTS}{sinks}")).await;
    let soak = Soak::against(&bridge, &["--rate", "100", "--duration", "600s", "--settle", "120s"]);
    let published = async |sink: &str| {
        let metric = format!("cdrelay_sink_published_total{{sink=\"{sink}\"}}");
        bridge.metric(&metric).await.unwrap_or_default()
    };
    let progress = async || {
        for sink in ["kafka", "nats"] {
            let goal = published(sink).await + 200.0;
            eventually(PATIENCE, "events arrive", async || published(sink).await >= goal).await;
        }
    };
    progress().await;
    broker.kill();
    server.kill();
    let accepted = async || bridge.metric("cdrelay_ingress_events_accepted_total").await.unwrap();
    let goal = accepted().await + 200.0;
    eventually(PATIENCE, "events are taken meanwhile", async || accepted().await >= goal).await;
    server.start_again().await;
    broker.start_again().await;
    progress().await;
    soak.process.terminate();
    let outcome = soak.outcome().await;
    outcome.assert_clean(&["kafka", "nats"]);
    assert!(outcome.report["seconds"].as_f64().unwrap() < 600.0, "{outcome:?}");
}

#[tokio::test]
async fn filters_templates_and_envelopes_are_those_of_the_configuration() {
    let (topic, stream) = (kafka::unique_topic("soak_teams"), nats::unique_name("soak_teams"));
    let teams = ["unassigned", "Sales_2222223", "Support_2222223", "Billing_2222223"];
    for team in &teams[1..] {
        kafka::create_topic(&kafka::shared(), &format!("{topic}.{team}"), 2).await;
    }
    let sinks = [
        kafka_sink(&kafka::shared(), &format!("{topic}.{{team}}")),
        "format = 'cloudevents'\n".to_owned(),
        nats_sink(&nats::shared(), &stream),
        "when = 'event.type == \"cdr\"'\nformat = 'cloudevents'\n".to_owned(),
        format!("[sinks.nats.stream]\nname = '{stream}'\ncreate = true\n"),
        STDOUT.to_owned(),
        "when = 'false'\n".to_owned(),
    ];
    let bridge = Bridge::start(&format!("{ANY_PORTS}{}", sinks.concat())).await;
    let soak = Soak::against(
        &bridge,
        &["--rate", "50", "--duration", "5s", "--events", "6", "--conversations", "10", "--stdout-from", "stdout"],
    );
    let accepted = async || bridge.metric("cdrelay_ingress_events_accepted_total").await.unwrap();
    eventually(PATIENCE, "the bridge takes events", async || accepted().await >= 50.0).await;
    // The one that every conversation begins in was not there when the run began.
    kafka::create_topic(&kafka::shared(), &format!("{topic}.unassigned"), 2).await;
    let outcome = soak.outcome().await;
    outcome.assert_clean(&["kafka", "nats"]);
    assert_eq!(outcome.of("kafka", "filtered"), 0);
    assert!(outcome.of("nats", "filtered") > 0 && outcome.of("nats", "delivered") > 0, "{outcome:?}");
    assert_eq!((outcome.of("stdout", "filtered"), outcome.of("stdout", "delivered")), (outcome.count("accepted"), 0));
}

#[tokio::test]
async fn core_nats_is_read_as_well_as_it_can_be() {
    let subject = nats::unique_name("soak_core");
    let sink = nats_sink(&nats::shared(), &subject) + "mode = 'core'\n";
    let bridge = Bridge::start(&format!("{ANY_PORTS}{sink}")).await;
    let outcome = Soak::against(&bridge, &["--rate", "50", "--duration", "2s"]).outcome().await;
    outcome.assert_clean(&["nats"]);
}

#[tokio::test]
async fn a_bridge_that_never_answers_proves_nothing() {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("cdrelay.toml"), on_fixed_port() + STDOUT).unwrap();
    let arguments = ["--stdout-from", "out", "--duration", "1s", "--settle", "2s", "--conversations", "10"];
    let outcome = Soak::start(directory.path(), &arguments).outcome().await;
    assert_eq!((outcome.code, &outcome.report["clean"]), (Some(1), &Value::Bool(false)));
    assert_eq!((outcome.count("accepted"), outcome.count("unacknowledged")), (0, 10), "{outcome:?}");
    assert!(outcome.report["last_error"].as_str().unwrap().contains("refused"), "{outcome:?}");
    assert_eq!(outcome.of("stdout", "lost"), 0);
}

#[tokio::test]
async fn dead_letters_are_not_delivered_and_not_lost() {
    let (_, stream) = topic_and_stream("soak_dead").await;
    let sinks = [
        nats_sink(&nats::shared(), &stream),
        "max_payload = '950B'\n".to_owned(),
        // The first event of a conversation has no user.
        format!("{STDOUT}topic = '{{user}}'\n"),
    ];
    let bridge = Bridge::start(&format!("{ANY_PORTS}{}", sinks.concat())).await;
    let soak = Soak::against(
        &bridge,
        &["--rate", "100", "--duration", "2s", "--conversations", "10", "--settle", "15s", "--stdout-from", "stdout"],
    );
    let outcome = soak.outcome().await;
    assert_eq!(outcome.code, Some(1));
    for sink in ["nats", "stdout"] {
        assert_eq!((outcome.of(sink, "lost"), outcome.of(sink, "reordered")), (0, 0), "{outcome:?}");
        let dead = outcome.of(sink, "dead_lettered");
        assert!(dead > 0, "{outcome:?}");
        assert_eq!(outcome.of(sink, "delivered") + dead, outcome.count("accepted"));
    }
    assert!(outcome.sink("nats")["dead_letter_reason"].as_str().unwrap().contains("max_payload"), "{outcome:?}");
    assert_eq!(outcome.sink("nats")["findings"].as_array().unwrap().len(), 0, "{outcome:?}");
}

/// What a bridge does to the events 3 and 4 of the first conversation.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Drop,
    Swap,
    Duplicate,
    Alter,
}

/// Answers every webhook with 200 and publishes it, except for its fault.
struct FalseBridge {
    fault: Fault,
    producer: FutureProducer,
    topic: String,
    nats: async_nats::jetstream::Context,
    subject: String,
    held: Mutex<Option<String>>,
}

impl FalseBridge {
    async fn start(fault: Fault, topic: &str, stream: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/webhook/cdr", listener.local_addr().unwrap());
        let bridge = Arc::new(Self {
            fault,
            producer: rdkafka::ClientConfig::new().set("bootstrap.servers", kafka::shared()).create().unwrap(),
            topic: topic.to_owned(),
            nats: async_nats::jetstream::new(async_nats::connect(nats::shared()).await.unwrap()),
            subject: format!("{stream}.a.b"),
            held: Mutex::default(),
        });
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let bridge = bridge.clone();
                let answer = service_fn(move |request| bridge.clone().answer(request));
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
            }
        });
        url
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
        let body = request.into_body().collect().await?.to_bytes();
        let event = String::from_utf8(body.to_vec()).unwrap();
        let parsed: Value = serde_json::from_str(&event).unwrap();
        let first = parsed["conversation_uuid"].as_str().unwrap().ends_with("-000000000000");
        match (self.fault, parsed["soak"]["number"].as_u64().unwrap()) {
            (Fault::Drop, 3) if first => {}
            (Fault::Swap, 3) if first => *self.held.lock().await = Some(event),
            (Fault::Swap, 4) if first => {
                self.publish(&event).await;
                self.publish(&self.held.lock().await.take().unwrap()).await;
            }
            (Fault::Duplicate, 3) if first => {
                self.publish(&event).await;
                self.publish(&event).await;
            }
            (Fault::Alter, 3) if first => self.publish(&event.replace("crm", "mrc")).await,
            _ => self.publish(&event).await,
        }
        Ok(Response::new(Full::from("{\"stored\":1,\"duplicates\":0}\n")))
    }

    async fn publish(&self, event: &str) {
        let record = FutureRecord::<(), _>::to(&self.topic).partition(0).payload(event);
        self.producer.send(record, PATIENCE).await.unwrap();
        self.nats.publish(self.subject.clone(), event.to_owned().into()).await.unwrap().await.unwrap();
    }
}

async fn judge(fault: Fault) -> Outcome {
    let (topic, stream) = topic_and_stream("soak_false").await;
    let directory = TempDir::new().unwrap();
    let config = kafka_sink(&kafka::shared(), &topic) + &nats_sink(&nats::shared(), &stream);
    fs::write(directory.path().join("cdrelay.toml"), config).unwrap();
    let url = FalseBridge::start(fault, &topic, &stream).await;
    let arguments = ["--url", &url, "--rate", "50", "--duration", "4s", "--conversations", "5", "--settle", "20s"];
    Soak::start(directory.path(), &arguments).outcome().await
}

#[tokio::test]
async fn a_bridge_that_drops_an_event_is_found_out() {
    let outcome = judge(Fault::Drop).await;
    assert_eq!(outcome.code, Some(1));
    for sink in ["kafka", "nats"] {
        assert_eq!((outcome.of(sink, "lost"), outcome.of(sink, "reordered")), (1, 0), "{outcome:?}");
        assert_eq!(outcome.of(sink, "delivered") + 1, outcome.count("accepted"));
        let finding = outcome.sink(sink)["findings"][0].as_str().unwrap();
        assert!(finding.starts_with("lost: conversation ") && finding.contains("-000000000000 number 3;"), "{finding}");
    }
    assert!(outcome.stderr.contains("cdrelay: "), "{outcome:?}");
}

#[tokio::test]
async fn a_bridge_that_swaps_two_events_is_found_out() {
    let outcome = judge(Fault::Swap).await;
    assert_eq!(outcome.code, Some(1));
    for (sink, place) in [("kafka", "partition 0 at offset"), ("nats", "at sequence")] {
        assert_eq!((outcome.of(sink, "lost"), outcome.of(sink, "reordered")), (0, 1), "{outcome:?}");
        let finding = outcome.sink(sink)["findings"][0].as_str().unwrap();
        assert!(finding.contains("-000000000000 number 3 came after number 4") && finding.contains(place), "{finding}");
    }
}

#[tokio::test]
async fn a_bridge_that_alters_an_event_is_found_out() {
    let outcome = judge(Fault::Alter).await;
    assert_eq!(outcome.code, Some(1));
    for sink in ["kafka", "nats"] {
        assert_eq!((outcome.of(sink, "altered"), outcome.of(sink, "lost")), (1, 0), "{outcome:?}");
    }
}

#[tokio::test]
async fn a_bridge_that_delivers_an_event_twice_is_not_at_fault() {
    let outcome = judge(Fault::Duplicate).await;
    outcome.assert_clean(&["kafka", "nats"]);
    assert_eq!((outcome.of("kafka", "duplicated"), outcome.of("nats", "duplicated")), (1, 1), "{outcome:?}");
}

/// Killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[tokio::test]
async fn the_output_of_a_bridge_can_be_piped_in() {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("cdrelay.toml"), on_fixed_port() + STDOUT).unwrap();
    let command = |arguments: &[&str]| -> Command {
        let mut command = crate::support::bridge::command();
        command.current_dir(directory.path()).args(arguments).stderr(Stdio::null());
        command
    };
    let run = command(&["run", "--config", "cdrelay.toml"]).stdout(Stdio::piped()).spawn();
    let mut bridge = Running(run.unwrap());
    let soak = ["soak", "--config", "cdrelay.toml", "--stdout-from", "-", "--rate", "50", "--duration", "3s"];
    let stdin = bridge.0.stdout.take().unwrap();
    let soak = command(&soak).stdin(stdin).stdout(Stdio::piped()).spawn();
    let mut soak = Running(soak.unwrap());
    let status = until(2 * PATIENCE, "the soak has ended", async || soak.0.try_wait().unwrap()).await;
    let mut printed = String::new();
    std::io::Read::read_to_string(soak.0.stdout.as_mut().unwrap(), &mut printed).unwrap();
    assert_eq!(status.code(), Some(0), "{printed}");
    let cells = |name: &str| {
        let line = printed.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(cells("stdout ")[1], cells("accepted ")[1], "{printed}");
    assert_eq!(cells("stdout ")[2..5], ["0", "0", "0"], "{printed}");
    assert!(printed.ends_with("clean: everything accepted is at every sink, in order\n"), "{printed}");
}

#[test]
fn what_cannot_be_tested_is_refused_with_the_remedy() {
    let refused = |arguments: &[&str], code: i32, words: &[&str]| {
        let finished = cdrelay(&[&["soak"], arguments].concat());
        assert_eq!(finished.code, Some(code), "{arguments:?}: {finished:?}");
        assert!(words.iter().all(|word| finished.stderr.contains(word)), "{arguments:?}: {}", finished.stderr);
    };
    refused(&[], 64, &["`stdout`", "--stdout-from FILE", "--sink"]);
    refused(&["--set", "sinks.more.type=stdout", "--stdout-from", "-"], 64, &["more and stdout", "--sink"]);
    refused(&["--sink", "kafka"], 64, &["--sink kafka", "stdout"]);
    refused(&["--url", "ftp://a/b"], 64, &["--url ftp://a/b", "http:// or https://"]);
    let out = ["--stdout-from", "-", "--url", "https://a/b"];
    refused(&[&out[..], &["--ca", "/nowhere.pem"]].concat(), 64, &["--ca /nowhere.pem"]);
    refused(&[&out[..], &["--ca", "Cargo.toml"]].concat(), 64, &["--ca Cargo.toml", "no items found"]);
    refused(&[&out[..], &["--cert", "/nowhere.pem"]].concat(), 64, &["--key"]);
    refused(&["--url", "/webhook"], 64, &["--url /webhook", "http://127.0.0.1:8080/webhook/cdr"]);
    refused(&["--set", "ingress.listen=127.0.0.1:0"], 64, &["--url"]);
    refused(&["--rate", "0"], 64, &["--rate"]);
    refused(&["--duration", "soon"], 64, &["--duration", "60s"]);
    refused(&["--config", "/nowhere.toml"], 78, &["/nowhere.toml"]);
    refused(
        &["--set", "sinks.stdout.type=kafka", "--set", "sinks.stdout.brokers="],
        78,
        &["`sinks.stdout`", "`brokers`"],
    );
}

#[tokio::test]
async fn a_url_that_is_no_webhook_is_named() {
    let bridge = Bridge::start(&format!("{ANY_PORTS}{STDOUT}")).await;
    let url = bridge.ingress_url() + "/elsewhere";
    let config = bridge.directory().join("cdrelay.toml");
    let out = bridge.directory().join("stdout");
    let arguments =
        ["soak", "--config", config.to_str().unwrap(), "--url", &url, "--stdout-from", out.to_str().unwrap()];
    let arguments = arguments.map(str::to_owned);
    let finished =
        tokio::task::spawn_blocking(move || cdrelay(&arguments.each_ref().map(String::as_str))).await.unwrap();
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(finished.stderr.contains("404") && finished.stderr.contains("`ingress.path`"), "{finished:?}");
}
