//! Behind the HAProxy of `deploy/haproxy.cfg`, several bridges are one: each conversation goes to one of them, no webhook fails while they are
//! restarted, and nothing is lost.

use crate::support::bridge::client;
use crate::support::kafka::{consume_all, create_topic, shared, unique_topic};
use crate::support::oracle::{Load, Sent, settled};
use crate::support::process::Process;
use crate::support::{Bridge, PATIENCE, STDOUT, eventually, free_port};
use cdrelay::spool::inspect::Inspection;
use futures_util::future::join_all;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper::header::CONTENT_TYPE;
use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::io::{Write, stderr};
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const CONFIG: &str = include_str!("../deploy/haproxy.cfg");
const CONVERSATIONS: usize = 160;
const HASHING: &str = "balance hash var(txn.call)\n    hash-type consistent sdbm avalanche";

struct HaProxy {
    _process: Process,
    port: u16,
    admin: u16,
    _directory: TempDir,
}

/// `None`, and a line that says so, if it cannot be had here.
pub fn program() -> Option<String> {
    let program = env::var("CDRELAY_TEST_HAPROXY")
        .expect("CDRELAY_TEST_HAPROXY names no HAProxy: run tests/run, which installs it");
    if program.is_empty() {
        // Past the harness, which shows the output of failed tests only.
        stderr().write_all(b"\n*** NOT TESTED: bridges behind HAProxy, which cannot be had here.\n").unwrap();
        return None;
    }
    Some(program)
}

impl HaProxy {
    /// The shipped configuration with other addresses, and with another way to choose a bridge if one is given.
    async fn start(program: &str, bridges: &[Bridge], balance: Option<&str>) -> Self {
        let (port, admin) = (free_port(), free_port());
        let shipped: Vec<_> = CONFIG.lines().filter(|line| !line.starts_with("    server ")).collect();
        let mut config = shipped.join("\n") + "\n";
        for (shipped, here) in [(":8080", port), (":8404", admin)] {
            let (shipped, here) = (format!("bind {shipped}\n"), format!("bind 127.0.0.1:{here}\n"));
            assert!(config.contains(&shipped));
            config = config.replace(&shipped, &here);
        }
        assert!(config.contains(HASHING));
        config = config.replace(HASHING, balance.unwrap_or(HASHING));
        for (number, bridge) in bridges.iter().enumerate() {
            let (_, admin) = bridge.admin_address().rsplit_once(':').unwrap();
            config += &format!("    server bridge-{number} {} port {admin}\n", bridge.ingress());
        }
        let directory = TempDir::new().unwrap();
        let file = directory.path().join("haproxy.cfg");
        fs::write(&file, config).unwrap();
        let mut command = Command::new(program);
        command.arg("-db").arg("-f").arg(&file);
        let (stdout, stderr) = (directory.path().join("stdout"), directory.path().join("stderr"));
        let mut process = Process::spawn(&mut command, &stdout, &stderr);
        process.listening(port).await;
        let haproxy = Self { _process: process, port, admin, _directory: directory };
        haproxy.sees(bridges.len(), "UP").await;
        haproxy
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/webhook/cdr", self.port)
    }

    /// Waits until so many bridges are in this state.
    async fn sees(&self, count: usize, state: &str) {
        let url = format!("http://127.0.0.1:{}/metrics?scope=server", self.admin);
        let suffix = format!("state=\"{state}\"}} 1");
        eventually(PATIENCE, &format!("HAProxy sees {count} bridges {state}"), async || {
            let request = Request::get(&url).body(Full::<Bytes>::default()).unwrap();
            let answer = client(false).request(request).await.unwrap();
            let text = String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
            let servers = text.lines().filter(|line| line.starts_with("haproxy_server_status{proxy=\"bridges\""));
            servers.filter(|line| line.ends_with(&suffix)).count() == count
        })
        .await;
    }
}

/// Three bridges that keep their ports, and what they deliver for `cdrelay replay`.
async fn bridges(sink: &str) -> Vec<Bridge> {
    join_all((0..3).map(|_| {
        let config = format!(
            "[ingress]\nlisten = '127.0.0.1:{}'\n[admin]\nlisten = '127.0.0.1:{}'\n[spool]\nretain = {{ age = '1h' }}\n\
             [shutdown]\ndrain_delay = '3s'\ngrace_period = '10s'\n{sink}",
            free_port(),
            free_port()
        );
        async move { Bridge::start(&config).await }
    }))
    .await
}

/// The conversations of the records that each bridge has.
fn conversations(bridges: &[Bridge]) -> Vec<BTreeSet<String>> {
    let of = |bridge: &Bridge| {
        let mut found = BTreeSet::new();
        let read = Inspection::of(&bridge.directory().join("spool")).unwrap().read(0, |record| {
            found.insert(record.event.conversation().to_owned());
            Ok(())
        });
        assert_eq!(read.unwrap(), []);
        found
    };
    bridges.iter().map(of).collect()
}

/// More than 300 events a second, unless the machine is busy: each conversation waits for its acknowledgement.
fn load(name: &'static str, events: usize) -> Load {
    Load { conversations: CONVERSATIONS, events, pause: Duration::from_millis(250), ..Load::new(name) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_webhook_fails_and_none_is_lost_while_three_bridges_are_restarted_one_by_one() {
    let Some(program) = program() else { return };
    for balance in [Some("balance roundrobin"), None] {
        let topic = unique_topic("haproxy");
        create_topic(&shared(), &topic, 12).await;
        let sink = format!("[sinks.kafka]\ntype = 'kafka'\nbrokers = '{}'\ntopic = '{topic}'\n", shared());
        let mut bridges = bridges(&sink).await;
        let haproxy = HaProxy::start(&program, &bridges, balance).await;

        let begun = Instant::now();
        let steady = load("steady", 20).start(&haproxy.url()).finish().await;
        println!("{:.0} events a second", steady.count() as f64 / begun.elapsed().as_secs_f64());
        if balance.is_none() {
            let at = conversations(&bridges);
            assert_eq!(
                at.iter().map(BTreeSet::len).sum::<usize>(),
                CONVERSATIONS,
                "a conversation went to two bridges"
            );
            assert!(at.iter().all(|at| at.len() > 10), "one bridge has hardly any: {at:?}");
        }
        let running = load("rolling restart", usize::MAX).start(&haproxy.url());
        running.progress(300).await;
        for bridge in &mut bridges {
            bridge.terminate();
            assert!(bridge.wait(PATIENCE).await.success(), "{}", bridge.stderr());
            bridge.start_again().await;
            haproxy.sees(3, "UP").await;
            running.progress(300).await;
        }
        let restarted = running.stop().await;
        for bridge in &bridges {
            settled(bridge, &["kafka"]).await;
        }

        let consumed = consume_all(&shared(), &topic, PATIENCE).await;
        let judge = |sent: &Sent, what: &str| {
            let verdict = sent.judge_kafka(&consumed);
            println!(
                "{}: {what}: {} of {} out of order",
                balance.unwrap_or("hashing"),
                verdict.reordered,
                sent.count()
            );
            assert_eq!((sent.refused, verdict.lost.len(), verdict.altered, verdict.unexpected), (0, 0, 0, 0));
            verdict.reordered
        };
        let reordered = judge(&steady, "steady");
        assert!(balance.is_some() || reordered == 0, "{reordered} out of order though nothing changed");
        judge(&restarted, "rolling restart");
    }
}

/// One conversation in each form that a sender may choose.
fn forms(conversation: &str) -> Vec<Request<Full<Bytes>>> {
    let json =
        |number: usize| format!("{{\"type\":\"event\",\"n\":{number},\"conversation_uuid\":\"{conversation}\"}}");
    let post = |content_type: &str, body: String| {
        Request::post("/webhook/cdr").header(CONTENT_TYPE, content_type).body(Full::from(body)).unwrap()
    };
    let encoded: String = json(7).bytes().map(|byte| format!("%{byte:02X}")).collect();
    let form = "application/x-www-form-urlencoded";
    let query = format!("/webhook/cdr?type=event&n=8&conversation_uuid={conversation}");
    vec![
        post("application/json", json(0)),
        post("application/json", format!("[{},{}]", json(1), json(2))),
        post("application/json", format!("{{\"count\":1,\"cdr\":[{}]}}", json(3))),
        post("text/plain", format!("  {}", json(4).replace(':', " : "))),
        post(form, format!("type=event&n=5&conversation_uuid={conversation}")),
        post(form, json(6)),
        post(form, format!("data={encoded}")),
        Request::get(query).body(Full::default()).unwrap(),
        // The main record of an inbound call names the conversation by its caller's leg.
        post(
            "application/json",
            format!("{{\"type\":\"cdr\",\"n\":9,\"conversation_uuid\":\"\",\"cmiuuid\":\"{conversation}\"}}"),
        ),
    ]
}

#[tokio::test]
async fn a_conversation_goes_to_one_bridge_in_whatever_form_it_comes() {
    let Some(program) = program() else { return };
    let bridges = bridges(STDOUT).await;
    let haproxy = HaProxy::start(&program, &bridges, None).await;
    let base = format!("http://127.0.0.1:{}", haproxy.port);
    let client = client(false);
    let mut sent = BTreeMap::new();
    for number in 0..20 {
        let conversation = format!("{:08x}-{number}", fastrand::u32(..));
        for mut request in forms(&conversation) {
            *request.uri_mut() = format!("{base}{}", request.uri()).parse().unwrap();
            let answer = client.request(request).await.unwrap();
            assert_eq!(answer.status(), 200);
            *sent.entry(conversation.clone()).or_insert(0) += 1;
        }
    }
    let at = conversations(&bridges);
    for conversation in sent.keys() {
        assert_eq!(at.iter().filter(|at| at.contains(conversation)).count(), 1, "{conversation}: {at:?}");
    }
    assert!(at.iter().filter(|at| !at.is_empty()).count() > 1, "all went to one bridge: {at:?}");
}
