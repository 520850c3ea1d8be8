//! Against a real registry: Apicurio, which speaks Confluent's protocol.

use super::{EVENT, SCHEMA, framed, sink, store};
use crate::support::bridge::{Bridge, Client, client};
use crate::support::kafka::{consume, create_topic, shared, unique_topic};
use crate::support::process::Process;
use crate::support::{PATIENCE, eventually, free_port};
use http_body_util::{BodyExt, Full};
use hyper::Request;
use serde_json::{Value, json};
use std::env;
use std::fs;
use std::io::{Write as _, stderr};
use std::net::TcpStream;
use std::process::Command;
use tempfile::TempDir;

struct Apicurio {
    url: String,
    client: Client,
    _process: Process,
    directory: TempDir,
}

impl Apicurio {
    /// `None` where there is none.
    async fn start() -> Option<Self> {
        let jar = env::var("CDRELAY_TEST_APICURIO")
            .expect("CDRELAY_TEST_APICURIO names no Apicurio: run tests/run, which fetches it");
        if jar.is_empty() {
            let told = "\n*** NOT TESTED: a real schema registry. tests/run says at its start why Apicurio cannot be had here.\n";
            // Past the harness, which shows the output of failed tests only.
            stderr().write_all(told.as_bytes()).unwrap();
            return None;
        }
        let (directory, port) = (TempDir::new().unwrap(), free_port());
        let mut java = Command::new("java");
        java.args(["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-jar", &jar]);
        java.env("QUARKUS_HTTP_HOST", "127.0.0.1").env("QUARKUS_HTTP_PORT", port.to_string());
        java.env("APICURIO_STORAGE_KIND", "sql").env("APICURIO_STORAGE_SQL_KIND", "h2").current_dir(directory.path());
        let log = directory.path().join("apicurio.log");
        let mut process = Process::spawn(&mut java, &log, &log);
        // It starts in five seconds of processor time, which a busy machine takes longer for than a broker.
        eventually(3 * PATIENCE, "Apicurio listens", async || {
            process.assert_running();
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        })
        .await;
        let url = format!("http://127.0.0.1:{port}/apis/ccompat/v7");
        Some(Self { url, client: client(false), _process: process, directory })
    }

    async fn ask(&self, method: &str, path: &str, body: &str) -> Value {
        let request = Request::builder().method(method).uri(format!("{}{path}", self.url));
        let request = request.header("content-type", "application/json").body(Full::from(body.to_owned())).unwrap();
        let answer = self.client.request(request).await.unwrap();
        let (status, body) = (answer.status(), answer.into_body().collect().await.unwrap().to_bytes());
        assert!(status.is_success(), "{status} for {path}: {body:?}");
        serde_json::from_slice(&body).unwrap()
    }

    /// A bridge whose schema is cdrelay's own with this change.
    async fn bridge(&self, topic: &str, change: impl FnOnce(&mut Value)) -> Bridge {
        let mut schema: Value = serde_json::from_str(SCHEMA).unwrap();
        change(&mut schema);
        let file = self.directory.path().join("schema.json");
        fs::write(&file, schema.to_string()).unwrap();
        Bridge::start(&format!("{}schema_file = {file:?}\n", sink(topic, &self.url))).await
    }
}

#[tokio::test]
async fn a_real_registry_gives_the_schema_back_and_takes_or_refuses_a_change() {
    let Some(registry) = Apicurio::start().await else { return };
    let topic = unique_topic("apicurio");
    create_topic(&shared(), &topic, 1).await;
    let bridge = Bridge::start(&sink(&topic, &registry.url)).await;
    store(&bridge, EVENT).await;
    let messages = consume(&shared(), &topic, 1, PATIENCE).await;
    let (first, event) = framed(&messages[0]);
    assert_eq!(event, EVENT.as_bytes());
    // What a consumer does with the id.
    let found = registry.ask("GET", &format!("/schemas/ids/{first}"), "").await;
    let schema = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    assert_eq!((&found["schemaType"], schema(found["schema"].as_str().unwrap())), (&json!("JSON"), schema(SCHEMA)));
    drop(bridge);
    let forward = r#"{"compatibility":"FORWARD"}"#;
    registry.ask("PUT", &format!("/config/{topic}-value"), forward).await;

    // Another optional field.
    let added = |schema: &mut Value| schema["properties"]["campaign"] = json!({ "type": ["string", "null"] });
    let bridge = registry.bridge(&topic, added).await;
    store(&bridge, EVENT).await;
    let messages = consume(&shared(), &topic, 2, PATIENCE).await;
    assert_ne!(framed(&messages[1]).0, first);
    drop(bridge);

    let changed = |schema: &mut Value| schema["properties"]["waitedsec"] = json!({ "type": "boolean" });
    let bridge = registry.bridge(&topic, changed).await;
    eventually(PATIENCE, "readiness tells why", async || {
        let told = bridge.admin("/readyz").await;
        told.status == 503 && told.text().contains(&format!("schema subject {topic}-value: the registry refuses"))
    })
    .await;
    assert!(bridge.stderr().contains("incompatible"), "{}", bridge.stderr());
}
