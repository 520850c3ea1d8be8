//! `format = "json-schema"`: each payload is preceded by the id that a schema registry gave its schema, as Confluent's serializers write
//! it: a zero byte, the id as four bytes, big-endian, and the exact bytes of the event.
//! <https://docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop/index.html#wire-format>
//!
//! The subject is the topic's name and `-value`. Its id is asked for once, and remembered for as long as the process runs: after that
//! the registry may be away. Until then messages wait, as they do while a broker is away.

use crate::http_client::{HttpClient, Trust};
use crate::setting::Secret;
use crate::sink::{Failure, Message, SetupError};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::Uri;
use hyper::header::HeaderValue;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// The schema of the event as published.
const EVENT: &str = include_str!("../../../deploy/analytics/schemas/event-1.json");
/// Shorter than a probe of the sink may take, so that readiness names the cause.
const TIMEOUT: Duration = Duration::from_secs(4);
/// More than any answer has that is needed.
const ANSWER_BYTES: usize = 1 << 20;
/// For how long a refusal is remembered, so that a subject which is refused costs one request a second and not one for each message.
const REFUSED: Duration = Duration::from_secs(1);

/// A schema registry that speaks Confluent's protocol: Confluent's own, Apicurio, Karapace, Redpanda.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the paths `/subjects/…` begin: `http://registry:8081`, for Apicurio `http://registry:8080/apis/ccompat/v7`.
    pub url: String,
    /// The user, if the registry wants a login (HTTP basic authentication).
    pub username: Option<String>,
    /// The user's password.
    pub password: Option<Secret>,
    /// The file that holds `password`.
    pub password_file: Option<PathBuf>,
    /// PEM file of the authorities that may sign the registry's certificate; the system's by default.
    pub ca_file: Option<PathBuf>,
    /// JSON Schema to use in place of cdrelay's own.
    pub schema_file: Option<PathBuf>,
    /// Whether the schema is registered where it is missing. Otherwise somebody else has to.
    #[serde(default = "yes")]
    pub register: bool,
}

fn yes() -> bool {
    true
}

/// The ids of the schema, by subject.
pub(super) struct Schemas {
    client: HttpClient,
    url: String,
    register: bool,
    /// The body of every request.
    request: String,
    ids: Mutex<HashMap<String, u32>>,
    /// Held during a request, so that many messages of a new topic cost one. The subjects that were refused, and when.
    asking: tokio::sync::Mutex<HashMap<String, (Instant, Failure)>>,
}

impl Schemas {
    /// Reads the files, and connects to nothing yet.
    pub(super) fn new(config: &Config) -> Result<Self, SetupError> {
        let wrong = |problem: String| SetupError(format!("`schema_registry.{problem}"));
        let url = config.url.trim_end_matches('/');
        let parsed: Uri = url.parse().map_err(|error| wrong(format!("url` {url:?}: {error}")))?;
        let (scheme, authority) = (parsed.scheme_str(), parsed.authority().map_or("", |authority| authority.as_str()));
        if !matches!(scheme, Some("http" | "https")) || authority.contains('@') || parsed.query().is_some() {
            return Err(wrong(
                "url` has the form `http://host:port` or `https://host:port`, and a path, and no login".into(),
            ));
        }
        let trust = match &config.ca_file {
            _ if scheme == Some("http") => Trust::Nobody,
            Some(file) => Trust::File(file),
            None => Trust::System,
        };
        let tls = trust.tls().map_err(|problem| wrong(format!("ca_file`: {problem}")))?.with_no_client_auth();
        let schema = match &config.schema_file {
            Some(file) => std::fs::read_to_string(file)
                .map_err(|error| wrong(format!("schema_file` {}: {error}", file.display())))?,
            None => EVENT.to_owned(),
        };
        if let Err(error) = serde_json::from_str::<Map<String, Value>>(&schema) {
            return Err(wrong(format!("schema_file` is no JSON object: {error}")));
        }
        Ok(Self {
            client: HttpClient::new(tls, 1).with_authorization(authorization(config)?),
            url: url.to_owned(),
            register: config.register,
            request: serde_json::json!({ "schemaType": "JSON", "schema": schema }).to_string(),
            ids: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
        })
    }

    /// The message with the id of its schema before its payload.
    pub(super) async fn frame(&self, message: &Message) -> Result<Message, Failure> {
        let id = self.id(message.topic()).await?;
        let payload = [&[0], id.to_be_bytes().as_slice(), message.payload()].concat();
        Ok(message.clone().with_payload(payload))
    }

    /// The id of the schema for the messages of a topic.
    pub(super) async fn id(&self, topic: &str) -> Result<u32, Failure> {
        let subject = format!("{topic}-value");
        let known = |subject: &str| self.ids.lock().get(subject).copied();
        if let Some(id) = known(&subject) {
            return Ok(id);
        }
        let mut refused = self.asking.lock().await;
        if let Some(id) = known(&subject) {
            return Ok(id);
        }
        refused.retain(|_, (at, _)| at.elapsed() < REFUSED);
        if let Some((_, failure)) = refused.get(&subject) {
            return Err(failure.clone());
        }
        match self.ask(&subject).await {
            Ok(id) => {
                self.ids.lock().insert(subject, id);
                Ok(id)
            }
            Err(failure) => {
                refused.insert(subject, (Instant::now(), failure.clone()));
                Err(failure)
            }
        }
    }

    /// Registers the schema for the subject, or finds it there. Both are asked for in the same way, and answered with the id.
    async fn ask(&self, subject: &str) -> Result<u32, Failure> {
        let away = |cause: String| Failure::unavailable(format!("schema registry {}: {cause}", self.url));
        let versions = if self.register { "/versions" } else { "" };
        let url = format!("{}/subjects/{subject}{versions}", self.url);
        let url = url.parse().map_err(|error| away(format!("{error}")))?;
        let asked = self.client.post(&url, self.request.clone(), ANSWER_BYTES);
        let answer = match timeout(TIMEOUT, asked).await {
            Ok(answer) => answer.map_err(|error| away(error.to_string()))?,
            Err(_) => return Err(away(format!("no answer within {} s", TIMEOUT.as_secs()))),
        };
        let body = serde_json::from_slice::<Value>(&answer.body).unwrap_or_default();
        let told = || body.get("message").and_then(Value::as_str).unwrap_or("no reason given");
        // The fault of this subject alone: other subjects are served meanwhile.
        let place = |cause: String| Failure::Place { place: format!("schema subject {subject}"), cause, expires: true };
        match answer.status.as_u16() {
            200 => {
                let id = body.get("id").and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
                id.ok_or_else(|| away("answered without an id".to_owned()))
            }
            404 if !self.register => {
                Err(place(format!("the schema is not registered, and `register` is false: {}", told())))
            }
            409 => {
                Err(place(format!("the registry refuses the schema as incompatible with the former one: {}", told())))
            }
            422 => Err(place(format!("the registry refuses the schema: {}", told()))),
            status => Err(away(format!("answered {status}: {}", told()))),
        }
    }
}

fn authorization(config: &Config) -> Result<Option<HeaderValue>, SetupError> {
    let password = Secret::resolve("password", config.password.as_ref(), config.password_file.as_deref())?;
    let (name, password) = match (&config.username, password) {
        (Some(name), Some(password)) => (name, password),
        (None, None) => return Ok(None),
        _ => return Err(SetupError("`schema_registry` needs both a username and a password, or neither".into())),
    };
    let login = STANDARD.encode(format!("{name}:{}", password.reveal()));
    let mut value = HeaderValue::from_str(&format!("Basic {login}")).map_err(|error| SetupError(error.to_string()))?;
    value.set_sensitive(true);
    Ok(Some(value))
}
