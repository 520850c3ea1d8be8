//! The description of the API at the admin port says what the bridge does.

pub mod schemathesis;

use crate::command_line::cdrelay;
use crate::support::bridge::Answer;
use crate::support::raw::Raw;
use crate::support::{ANY_PORTS, Bridge, PATIENCE, STDOUT, eventually};
use http_body_util::Full;
use hyper::Request;
use hyper::body::Bytes;
use serde_json::{Value, json};

/// It takes nothing, and fills the spool.
const AWAY: &str = "[sinks.away]\ntype = 'kafka'\nbrokers = '127.0.0.1:1'\n";

async fn api(bridge: &Bridge) -> Value {
    let answer = bridge.admin("/openapi.json").await;
    assert_eq!((answer.status, &answer.headers["content-type"]), (200, &"application/json".parse().unwrap()));
    answer.json()
}

#[tokio::test]
async fn it_is_what_the_command_prints() {
    let bridge = Bridge::start(&format!("{ANY_PORTS}{STDOUT}")).await;
    assert_eq!(bridge.admin("/openapi.json").await.text(), cdrelay(&["openapi"]).success());
    assert_eq!(api(&bridge).await["info"]["version"], env!("CARGO_PKG_VERSION"));
}

/// What is wrong with this answer to a request for `path`, going by the description.
fn undescribed(api: &Value, path: &str, method: &str, answer: &Answer) -> Option<String> {
    let mut described = &api["paths"][path][method.to_ascii_lowercase()]["responses"][answer.status.to_string()];
    if let Some(reference) = described["$ref"].as_str() {
        described = api.pointer(reference.strip_prefix('#').unwrap()).unwrap();
    }
    if described.is_null() {
        return Some("is not described".into());
    }
    let header = |name: &str| answer.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    for (name, field) in described["headers"].as_object().into_iter().flatten() {
        if field["required"] == true && header(name).is_none() {
            return Some(format!("has no {name}"));
        }
    }
    for name in ["allow", "accept-encoding", "retry-after", "www-authenticate"] {
        let told = described["headers"].as_object().into_iter().flatten();
        if header(name).is_some() && !told.into_iter().any(|(told, _)| told.eq_ignore_ascii_case(name)) {
            return Some(format!("has {name}, which is not described"));
        }
    }
    let media_types: Vec<_> = described["content"].as_object().into_iter().flat_map(|content| content.keys()).collect();
    match header("content-type") {
        _ if media_types.is_empty() && answer.body.is_empty() => None,
        Some(media_type) if !answer.body.is_empty() && media_types.contains(&&media_type) => None,
        media_type => Some(format!("should be one of {media_types:?} and is {media_type:?}")),
    }
}

/// A request, the path in the description, and the status it comes to.
type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a str, &'a str, u16);

async fn check(bridge: &Bridge, cases: &[Case<'_>]) {
    let api = api(bridge).await;
    for (method, target, headers, body, path, status) in cases {
        let mut request = Request::builder().method(*method).uri(format!("http://{}{target}", bridge.ingress()));
        for (name, value) in *headers {
            request = request.header(*name, *value);
        }
        let answer = bridge.send(request.body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).unwrap()).await;
        assert_eq!(answer.status, *status, "{method} {target} {headers:?}");
        // Methods are as configured, and all that bring a body are described as one.
        let method = if *status == 405 || *method == "PUT" { "POST" } else { method };
        assert_eq!(undescribed(&api, path, method, &answer), None, "{method} {target} {headers:?}: {answer:?}");
    }
}

#[tokio::test]
async fn every_answer_of_the_ingress_is_described() {
    let routes = "[ingress]\nlisten = '127.0.0.1:0'\npath = '/webhook/cdr'\nmax_body = '2KiB'\n\
        [ingress.routes.in]\npath = '/in'\nmethods = ['POST', 'PUT']\nauth = [{ type = 'bearer', secrets = ['right-token'] }]\n\
        [ingress.routes.key]\npath = '/key'\nauth = [{ type = 'header', header = 'x-key', secrets = ['right-token'] }]\n\
        [ingress.routes.url]\npath = '/url/{secret}'\nauth = [{ type = 'path', secrets = ['right-token'] }]\n\
        [admin]\nlisten = '127.0.0.1:0'\n[spool]\nmax_size = '64KiB'\n";
    let bridge = Bridge::start(&format!("{routes}{AWAY}")).await;
    let large = "x".repeat(3000);
    let fields = "&a=".repeat(1001);
    let names: Vec<_> = (0..100).map(|number| format!("x-{number}")).collect();
    let many: Vec<_> = names.iter().map(|name| (name.as_str(), "")).collect();
    let bearer = [("authorization", "Bearer right-token")];
    check(
        &bridge,
        &[
            ("POST", "/webhook/cdr", &[], r#"{"n":1}"#, "/webhook/cdr", 200),
            ("GET", "/webhook/cdr?n=2", &[], "", "/webhook/cdr", 200),
            ("HEAD", "/webhook/cdr", &[], "", "/webhook/cdr", 200),
            ("PUT", "/in", &bearer, r#"{"n":3}"#, "/webhook/cdr", 200),
            ("POST", "/url/right-token", &[], r#"{"n":4}"#, "/webhook/cdr", 200),
            ("POST", "/webhook/cdr", &[], "{ n: 1 }", "/webhook/cdr", 400),
            ("GET", &format!("/webhook/cdr?a={fields}"), &[], "", "/webhook/cdr", 400),
            ("POST", "/in", &[], "{}", "/webhook/cdr", 401),
            ("POST", "/key", &[], "{}", "/webhook/cdr", 401),
            ("HEAD", "/key", &[], "", "/webhook/cdr", 401),
            ("POST", "/url/wrong-token", &[], "{}", "/webhook/cdr", 404),
            ("HEAD", "/url/wrong-token", &[], "", "/webhook/cdr", 404),
            ("DELETE", "/webhook/cdr", &[], "", "/webhook/cdr", 405),
            ("GET", "/in", &bearer, "", "/webhook/cdr", 405),
            ("POST", "/webhook/cdr", &[], &large, "/webhook/cdr", 413),
            ("POST", "/webhook/cdr", &[("content-encoding", "lzma")], "{}", "/webhook/cdr", 415),
            ("HEAD", "/webhook/cdr", &[("content-encoding", "lzma")], "", "/webhook/cdr", 415),
            ("POST", "/webhook/cdr", &many, "{}", "/webhook/cdr", 431),
        ],
    )
    .await;

    let api = api(&bridge).await;
    let mut stored = 0;
    let full = loop {
        let answer =
            bridge.post(json!({ "n": stored, "text": "x".repeat(1000) }).to_string(), "application/json").await;
        if answer.status != 200 {
            break answer;
        }
        stored += 1;
        assert!(stored < 64, "64 KiB hold more than 64 KiB");
    };
    assert_eq!(full.status, 503);
    assert_eq!(undescribed(&api, "/webhook/cdr", "POST", &full), None, "{full:?}");
}

#[tokio::test]
async fn a_body_that_takes_too_long_is_described() {
    let config = "[ingress]\nlisten = '127.0.0.1:0'\nbody_timeout = '1s'\n[admin]\nlisten = '127.0.0.1:0'\n";
    let bridge = Bridge::start(&format!("{config}{STDOUT}")).await;
    let mut slow = Raw::connect(&bridge).await;
    slow.send(Raw::head("POST", "content-length: 9\r\n") + "{").await;
    let answer = slow.answer().await;
    assert_eq!(answer.status, 408);
    assert_eq!(undescribed(&api(&bridge).await, "/webhook/cdr", "POST", &answer), None, "{answer:?}");
}

#[tokio::test]
async fn what_waits_for_delivery_is_described() {
    let config = "[ingress]\nlisten = '127.0.0.1:0'\nack = 'delivered'\ndelivery_timeout = '50ms'\n[admin]\nlisten = '127.0.0.1:0'\n";
    let bridge = Bridge::start(&format!("{config}{AWAY}")).await;
    check(&bridge, &[("POST", "/webhook/cdr", &[], r#"{"n":1}"#, "/webhook/cdr", 202)]).await;
    let waited = bridge.post(r#"{"n":2}"#, "application/json").await.json();
    let members: Vec<_> = waited.as_object().unwrap().keys().cloned().collect();
    let api = api(&bridge).await;
    let described = api["components"]["schemas"]["Stored"]["properties"].as_object().unwrap();
    assert_eq!(members, described.keys().cloned().collect::<Vec<_>>());
}

#[tokio::test]
async fn every_answer_of_the_admin_port_is_described() {
    let bridge = Bridge::start(&format!("{ANY_PORTS}{AWAY}")).await;
    eventually(PATIENCE, "readiness says no", async || bridge.admin("/readyz").await.status == 503).await;
    let api = api(&bridge).await;
    for (path, status) in [
        ("/livez", 200),
        ("/readyz", 503),
        ("/readyz?sinks=x", 404),
        ("/readyz/ingress", 200),
        ("/metrics", 200),
        ("/openapi.json", 200),
    ] {
        let (target, path) = (path, path.split('?').next().unwrap());
        let answer = bridge.admin(target).await;
        assert_eq!(answer.status, status, "{path}");
        assert_eq!(undescribed(&api, path, "GET", &answer), None, "{path}: {answer:?}");
        for (method, status) in [("HEAD", status), ("POST", 405), ("DELETE", 405)] {
            let request = Request::builder().method(method).uri(format!("http://{}{target}", bridge.admin_address()));
            let answer = bridge.send(request.body(Full::default()).unwrap()).await;
            assert_eq!(answer.status, status, "{method} {path}");
            let method = if status == 405 { "GET" } else { method };
            assert_eq!(undescribed(&api, path, method, &answer), None, "{method} {path}: {answer:?}");
        }
    }
}
