//! The routes of the ingress.

use super::credential::{Credential, Place};
use super::{header_too_large, reference, response};
use crate::event::DEFAULT_INGRESS;
use crate::ingress::auth;
use crate::ingress::routes::{self, Taken};
use crate::ingress::tls::ClientAuth;
use crate::ingress::{Ack, Config, PACKINGS, PROBLEM, Reason};
use hyper::header::{self, HeaderName};
use serde_json::{Map, Value, json};
use std::net::SocketAddr;

pub const TAG: &str = "webhooks";
/// The security scheme of client certificates.
const CERTIFICATE: &str = "clientCertificate";

/// Where it listens.
pub fn server(config: &Config, address: SocketAddr) -> Value {
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    let host = match address.ip().to_canonical() {
        ip if ip.is_unspecified() => "localhost".to_owned(),
        ip => SocketAddr::new(ip, 0).to_string().trim_end_matches(":0").to_owned(),
    };
    json!({
        "url": format!("{scheme}://{{host}}:{}", address.port()),
        "description": "The ingress, where it listens itself; proxies before it have an address of their own.",
        "variables": { "host": { "default": host, "description": "A name or address of the bridge." } },
    })
}

/// The path items of all routes.
pub fn paths(config: &Config, server: &Value) -> Map<String, Value> {
    let routes = config.all_routes().into_iter();
    routes.map(|(name, route)| (route.path.clone(), item(config, server, &name, &route))).collect()
}

fn item(config: &Config, server: &Value, name: &str, route: &routes::Config) -> Value {
    let credentials: Vec<_> = route.auth.iter().map(Credential::of).collect();
    let mut item = Map::new();
    item.insert("servers".into(), json!([server]));
    if name != DEFAULT_INGRESS {
        item.insert("summary".into(), format!("The route `{name}`").into());
    }
    let parameters: Vec<_> = credentials.iter().flat_map(parameters).collect();
    if !parameters.is_empty() {
        item.insert("parameters".into(), parameters.into());
    }
    for method in &route.methods() {
        item.insert(method.name().to_ascii_lowercase(), operation(config, name, route, *method, &credentials));
    }
    item.into()
}

/// What credentials need that are no security schemes.
fn parameters(credential: &Credential) -> Vec<Value> {
    let parameter = |name: &str, place: &str, description: &str, schema: Value| json!({ "name": name, "in": place, "required": true, "description": description, "schema": schema });
    let beside = credential.beside.iter();
    let mut parameters: Vec<_> =
        beside.map(|(name, text)| parameter(name, "header", text, json!({ "type": "string" }))).collect();
    if credential.place == Place::Path {
        let schema = json!({ "type": "string", "format": "password", "minLength": 1, "pattern": "^[^/]+$" });
        parameters.push(parameter("secret", "path", &credential.text, schema));
    }
    parameters
}

fn operation(config: &Config, name: &str, route: &routes::Config, method: Taken, credentials: &[Credential]) -> Value {
    let mut operation = Map::new();
    operation.insert("tags".into(), json!([TAG]));
    operation.insert("operationId".into(), format!("ingress_{name}_{}", method.name().to_ascii_lowercase()).into());
    operation.insert("security".into(), security(config, name, credentials));
    operation.insert("responses".into(), outcomes(config, route, method));
    let (summary, description) = match method {
        Taken::Get => {
            operation.insert("parameters".into(), json!([query()]));
            ("Store an event", "The fields of the query are the event. Without any, nothing is stored.")
        }
        Taken::Head => ("Probe", "Stores nothing."),
        Taken::Post | Taken::Put => {
            operation.insert("requestBody".into(), body(config));
            ("Store events", "The Content-Type guides, the body decides: what is JSON is taken as JSON.")
        }
    };
    operation.insert("summary".into(), summary.into());
    let elsewhere = credentials.iter().filter(|credential| credential.place == Place::Elsewhere);
    let texts = [description].into_iter().chain(elsewhere.map(|credential| credential.text.as_str()));
    operation.insert("description".into(), texts.collect::<Vec<_>>().join(" ").into());
    operation.into()
}

/// All fields of the query together.
fn query() -> Value {
    json!({
        "name": "fields",
        "in": "query",
        "style": "form",
        "explode": true,
        "schema": reference("schemas", "Fields"),
        "example": { "type": "cdr", "appid": "2222223", "status": "missed", "conversation_uuid": "4d1f9521-50e5-447d-bf5f-c3292995a727" },
    })
}

fn body(config: &Config) -> Value {
    let example = json!({
        "type": "cdr",
        "appid": 2_222_223,
        "direction": "inbound",
        "status": "missed",
        "team": "Sales_2222223",
        "conversation_uuid": "4d1f9521-50e5-447d-bf5f-c3292995a727",
        "from": 440_000_000_000_u64,
    });
    let lines = json!({
        "description": "Events, one on each line.",
        "type": "array",
        "minItems": 1,
        "maxItems": config.decode.max_events,
        "items": reference("schemas", "Event"),
    });
    // A body without anything is no form without fields: there has to be a call in it.
    let form = json!({
        "allOf": [reference("schemas", "Fields")],
        "minProperties": 1,
        "maxProperties": config.decode.max_fields,
        "additionalProperties": { "type": "string" },
    });
    json!({
        "required": true,
        "description": format!(
            "{} bytes at the most, as it comes; packed with a Content-Encoding ({PACKINGS}), {} bytes unpacked.",
            config.max_body.as_u64(),
            config.largest_body().as_u64()
        ),
        "content": {
            "application/json": { "schema": reference("schemas", "Events"), "example": example },
            "application/x-ndjson": { "schema": lines },
            "application/x-www-form-urlencoded": { "schema": form },
        },
    })
}

/// The answers that can come.
fn outcomes(config: &Config, route: &routes::Config, method: Taken) -> Value {
    let has_body = method != Taken::Head;
    let content = |body: Value| has_body.then_some(("application/json", body));
    let mut responses = Map::from_iter([header_too_large()]);
    let (stored, late) = match (config.ack, method) {
        (_, Taken::Head) => ("Webhooks are taken here.", None),
        (Ack::Stored, _) => ("All events are stored, now or before, and will reach every sink.", None),
        (Ack::Delivered, _) => {
            let late = "All events are stored, now or before, and it is not known that every required sink has them.";
            ("All events are stored, and every required sink has them.", Some(late))
        }
    };
    responses.insert("200".into(), response(stored, Value::Null, content(reference("schemas", "Stored"))));
    if let Some(late) = late {
        responses.insert("202".into(), response(late, Value::Null, content(reference("schemas", "Stored"))));
    }
    for reason in Reason::ALL.into_iter().filter(|reason| can_come(*reason, route, method)) {
        let answer = if reason == Reason::Unauthorized {
            let challenge = route.auth.iter().any(|auth| auth.uses_authorization());
            refused(reason, has_body, challenge)
        } else if has_body {
            reference("responses", component(reason))
        } else {
            refused(reason, false, true)
        };
        responses.insert(reason.status().as_str().to_owned(), answer);
    }
    responses.into()
}

/// Whether this is ever the answer to that method.
fn can_come(reason: Reason, route: &routes::Config, method: Taken) -> bool {
    let asks = |secret_in_path| route.auth.iter().any(|auth| matches!(auth, auth::Config::Path(_)) == secret_in_path);
    match reason {
        Reason::Malformed | Reason::TooLarge | Reason::TooSlow => method != Taken::Head,
        Reason::Unauthorized => asks(false),
        Reason::NotFound => asks(true),
        Reason::Method | Reason::Packing | Reason::Unavailable => true,
    }
}

/// What all routes answer alike.
pub fn responses() -> Value {
    let alike = Reason::ALL.into_iter().filter(|reason| *reason != Reason::Unauthorized);
    alike.map(|reason| (component(reason).to_owned(), refused(reason, true, true))).collect::<Map<_, _>>().into()
}

fn component(reason: Reason) -> &'static str {
    match reason {
        Reason::Malformed => "Malformed",
        Reason::Unauthorized => "Unauthorized",
        Reason::NotFound => "NotFound",
        Reason::Method => "Method",
        Reason::TooSlow => "TooSlow",
        Reason::TooLarge => "TooLarge",
        Reason::Packing => "Packing",
        Reason::Unavailable => "Unavailable",
    }
}

fn refused(reason: Reason, has_body: bool, remedy: bool) -> Value {
    let description = match reason {
        Reason::Malformed => "No events can be made of it; the body says where it goes wrong.",
        Reason::Unauthorized => "The request does not show that it may be sent. What is missing is not told.",
        Reason::NotFound => "Another path than that of a route, or a wrong secret in it.",
        Reason::Method => "This path by another method.",
        Reason::TooSlow => "The body took too long to arrive.",
        Reason::TooLarge => "The body is too large, as it comes or unpacked, or holds too many events.",
        Reason::Packing => "A Content-Encoding that is not taken.",
        Reason::Unavailable => "The spool is full or refuses, the bridge stops, or too much is on its way.",
    };
    let headers: Map<_, _> = reason.remedy().filter(|_| remedy).into_iter().map(field).collect();
    response(description, headers.into(), has_body.then(|| (PROBLEM, reference("schemas", "Problem"))))
}

/// A header field of an answer, which it always has.
fn field(name: HeaderName) -> (String, Value) {
    let (shown, schema) = match name {
        header::RETRY_AFTER => {
            ("Retry-After", json!({ "description": "Seconds.", "type": "integer", "minimum": 1, "maximum": 600 }))
        }
        header::ALLOW => ("Allow", json!({ "description": "The methods of the route.", "type": "string" })),
        header::ACCEPT_ENCODING => ("Accept-Encoding", json!({ "const": PACKINGS })),
        header::WWW_AUTHENTICATE => ("WWW-Authenticate", json!({ "type": "string" })),
        ref other => (other.as_str(), json!({ "type": "string" })),
    };
    (shown.to_owned(), json!({ "required": true, "schema": schema }))
}

/// All that a request has to show at once.
fn security(config: &Config, name: &str, credentials: &[Credential]) -> Value {
    let schemes = credentials.iter().enumerate().filter(|(_, credential)| scheme(credential).is_some());
    let needed: Map<_, _> = schemes.map(|(index, _)| (scheme_name(name, index), json!([]))).collect();
    let certificate = config.tls.as_ref().filter(|tls| tls.client_ca_file.is_some()).map(|tls| tls.client_auth);
    let mut certified = needed.clone();
    certified.insert(CERTIFICATE.into(), json!([]));
    match certificate {
        Some(ClientAuth::Required) => json!([certified]),
        Some(ClientAuth::Optional) => json!([needed, certified]),
        None if needed.is_empty() => json!([]),
        None => json!([needed]),
    }
}

/// After the setting that it comes from.
fn scheme_name(route: &str, index: usize) -> String {
    format!("{route}.auth.{index}")
}

/// The security schemes of all routes.
pub fn security_schemes(config: &Config) -> Value {
    let mut schemes = Map::new();
    if config.tls.as_ref().is_some_and(|tls| tls.client_ca_file.is_some()) {
        schemes.insert(
            CERTIFICATE.into(),
            json!({ "type": "mutualTLS", "description": "A certificate from one of the authorities that are taken." }),
        );
    }
    for (name, route) in config.all_routes() {
        for (index, auth) in route.auth.iter().enumerate() {
            if let Some(scheme) = scheme(&Credential::of(auth)) {
                schemes.insert(scheme_name(&name, index), scheme);
            }
        }
    }
    schemes.into()
}

fn scheme(credential: &Credential) -> Option<Value> {
    let description = &credential.text;
    let scheme = match &credential.place {
        Place::Query(name) => json!({ "type": "apiKey", "in": "query", "name": name, "description": description }),
        Place::Header(name) => json!({ "type": "apiKey", "in": "header", "name": name, "description": description }),
        Place::Bearer => json!({ "type": "http", "scheme": "bearer", "description": description }),
        Place::Basic => json!({ "type": "http", "scheme": "basic", "description": description }),
        Place::Path | Place::Elsewhere => return None,
    };
    Some(scheme)
}
