//! `format = "json-schema"`: messages carry the id of their schema, and wait for the registry as they wait for a broker.

mod apicurio;

use crate::command_line::cdrelay;
use crate::support::kafka::{Consumed, consume, consume_all, create_topic, shared, unique_topic};
use crate::support::{ANY_PORTS, Bridge, PATIENCE, eventually, free_port};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::fs;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tempfile::TempDir;
use tokio::net::TcpListener;

const SCHEMA: &str = include_str!("../deploy/analytics/schemas/event-1.json");
const EVENT: &str = r#"{"type":"cdr",  "team":"Sales","conversation_uuid":"c-1"}"#;

/// What a registry was asked: path, login, body.
type Asked = (String, Option<String>, Value);

/// A registry that answers as told.
struct Registry {
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Registry {
    async fn start(port: u16, answer: fn(&str) -> (u16, Value)) -> Self {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).await.unwrap();
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let heard = Arc::clone(&asked);
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let heard = Arc::clone(&heard);
                let serve = move |request: Request<Incoming>| {
                    let heard = Arc::clone(&heard);
                    async move {
                        let (head, body) = request.into_parts();
                        let body = body.collect().await.unwrap().to_bytes();
                        let login = head.headers.get("authorization").map(|login| login.to_str().unwrap().to_owned());
                        let path = head.uri.path().to_owned();
                        let (status, answer) = answer(&path);
                        heard.lock().unwrap().push((path, login, serde_json::from_slice(&body).unwrap()));
                        let answer = Full::new(Bytes::from(answer.to_string()));
                        Response::builder().status(status).body(answer)
                    }
                };
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(client), service_fn(serve)));
            }
        });
        Self { asked }
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

fn sink(topic: &str, registry: &str) -> String {
    let kafka = shared();
    format!(
        "{ANY_PORTS}[sinks.kafka]\ntype = 'kafka'\nbrokers = '{kafka}'\ntopic = '{topic}'\nformat = 'json-schema'\n\
         [sinks.kafka.schema_registry]\nurl = '{registry}'\n"
    )
}

async fn store(bridge: &Bridge, event: &str) {
    assert_eq!(bridge.post(event.to_owned(), "application/json").await.status, 200);
}

fn framed(message: &Consumed) -> (u32, &[u8]) {
    let (head, event) = message.payload.split_at(5);
    assert_eq!(head[0], 0);
    (u32::from_be_bytes(head[1..].try_into().unwrap()), event)
}

#[tokio::test]
async fn a_registry_that_is_away_holds_messages_up_until_it_is_there() {
    let (topic, port) = (unique_topic("registry"), free_port());
    create_topic(&shared(), &topic, 3).await;
    let login = "username = 'cdrelay'\npassword = 'correct horse'\n";
    let bridge = Bridge::start(&(sink(&topic, &format!("http://127.0.0.1:{port}/base/")) + login)).await;
    for number in 0..20 {
        store(&bridge, &format!("{{\"conversation_uuid\":\"c-{number}\"}}")).await;
    }
    store(&bridge, EVENT).await;
    let named = format!("schema registry http://127.0.0.1:{port}/base: ");
    eventually(PATIENCE, "readiness names the registry", async || {
        bridge.admin("/readyz").await.text().contains(&named)
    })
    .await;
    assert_eq!(consume_all(&shared(), &topic, PATIENCE).await, []);

    let registry = Registry::start(port, |_| (200, json!({ "id": 0x0102_0304 }))).await;
    let messages = consume(&shared(), &topic, 21, PATIENCE).await;
    assert!(messages.iter().all(|message| framed(message).0 == 0x0102_0304));
    let found = messages.iter().find(|message| message.headers.iter().any(|(_, value)| value == b"c-1")).unwrap();
    assert!(messages.iter().any(|message| framed(message).1 == EVENT.as_bytes()), "no exact bytes: {found:?}");
    eventually(PATIENCE, "readiness is back", async || bridge.admin("/readyz").await.status == 200).await;
    let body = json!({ "schemaType": "JSON", "schema": SCHEMA });
    // "cdrelay:correct horse"
    let login = "Basic Y2RyZWxheTpjb3JyZWN0IGhvcnNl".to_owned();
    assert_eq!(registry.asked(), [(format!("/base/subjects/{topic}-value/versions"), Some(login), body)]);
}

#[tokio::test]
async fn a_refused_schema_holds_up_its_own_topic_alone_and_is_named() {
    let topic = unique_topic("registry");
    for team in ["Sales", "refused"] {
        create_topic(&shared(), &format!("{topic}.{team}"), 1).await;
    }
    let port = free_port();
    let registry = Registry::start(port, |path| match path.contains("refused") {
        true => (409, json!({ "error_code": 409, "message": "PROPERTY_REMOVED" })),
        false => (200, json!({ "id": 7 })),
    })
    .await;
    let config = sink(&format!("{topic}.{{team}}"), &format!("http://127.0.0.1:{port}"));
    let bridge = Bridge::start(&(config + "register = true\n[sinks.kafka.retry]\nmax_age = '1s'\n")).await;
    store(&bridge, r#"{"team":"refused","conversation_uuid":"r"}"#).await;
    store(&bridge, EVENT).await;
    let messages = consume(&shared(), &format!("{topic}.Sales"), 1, PATIENCE).await;
    assert_eq!(framed(&messages[0]), (7, EVENT.as_bytes()));
    eventually(PATIENCE, "the other becomes a dead letter", async || !bridge.dead_letters("kafka").is_empty()).await;
    let letter = bridge.dead_letters("kafka").remove(0).to_string();
    for word in [&format!("schema subject {topic}.refused-value"), "incompatible", "PROPERTY_REMOVED"] {
        assert!(letter.contains(word), "no {word}: {letter}");
    }
    assert!(registry.asked().len() < 20, "asked {} times within seconds", registry.asked().len());
    assert_eq!(consume_all(&shared(), &format!("{topic}.refused"), PATIENCE).await, []);
}

#[tokio::test]
async fn a_refused_schema_is_named_by_readiness_before_the_first_event() {
    let (topic, port) = (unique_topic("registry"), free_port());
    create_topic(&shared(), &topic, 1).await;
    let refuse = |_: &str| (404, json!({ "error_code": 40403, "message": "Schema not found" }));
    let registry = Registry::start(port, refuse).await;
    let bridge = Bridge::start(&(sink(&topic, &format!("http://127.0.0.1:{port}")) + "register = false\n")).await;
    let named = format!("schema subject {topic}-value: the schema is not registered");
    eventually(PATIENCE, "readiness names the subject", async || bridge.admin("/readyz").await.text().contains(&named))
        .await;
    assert_eq!(registry.asked()[0].0, format!("/subjects/{topic}-value"), "it looks, and registers nothing");
}

#[test]
fn settings_that_do_not_fit_are_refused() {
    let directory = TempDir::new().unwrap();
    let (file, broken) = (directory.path().join("cdrelay.toml"), directory.path().join("broken.json"));
    fs::write(&broken, "[]").unwrap();
    let check = |sink: &str| {
        fs::write(&file, format!("[sinks.x]\n{sink}\n")).unwrap();
        cdrelay(&["check", "--config", file.to_str().unwrap()])
    };
    let kafka = "type = 'kafka'\nbrokers = 'a:1'\n";
    let registry = |settings: &str| format!("{kafka}format = 'json-schema'\n[sinks.x.schema_registry]\n{settings}");
    for (sink, word) in [
        (format!("{kafka}format = 'json-schema'"), "needs a `schema_registry`"),
        (format!("{kafka}schema_registry = {{ url = 'http://a' }}"), "needs `format"),
        ("type = 'stdout'\nformat = 'json-schema'".into(), "type kafka"),
        ("type = 'nats'\nformat = 'json-schema'".into(), "type kafka"),
        (registry("url = 'registry:8081'"), "`http://host:port`"),
        (registry("url = 'http://me:secret@registry'"), "no login"),
        (registry("url = 'http://registry'\nusername = 'me'"), "both a username and a password"),
        (registry(&format!("url = 'http://registry'\nschema_file = {broken:?}")), "no JSON object"),
        (registry("url = 'http://registry'\nschema_file = '/nowhere'"), "/nowhere"),
        (registry("url = 'https://registry'\nca_file = '/nowhere'"), "/nowhere"),
    ] {
        let finished = check(&sink);
        assert!(finished.code == Some(78) && finished.stderr.contains(word), "{sink}: {finished:?}");
        assert!(!finished.stderr.contains("secret"), "{finished:?}");
    }
    assert_eq!(check(&registry("url = 'https://registry:8081/apis/ccompat/v7'")).code, Some(0));
}
