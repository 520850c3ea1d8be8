//! What a sender says of who it is, in all the ways there are.

use super::input::Input;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cdrelay::ingress::auth::{Auth, Config, Head};
use cdrelay::metrics::Metrics;
use hyper::Request;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use ring::{digest, hmac};
use serde_json::json;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::LazyLock;

const SECRET: &str = "the secret that nobody guesses";
/// An address in a network that may send, and one elsewhere.
const INSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 5));
const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));
const PROXY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

/// One check of each kind that asks for a secret, and of each that tells networks apart.
struct Checks {
    secret: Vec<(&'static str, Auth)>,
    forwarded_for: Auth,
    forwarded: Auth,
}

static CHECKS: LazyLock<Checks> = LazyLock::new(|| {
    let whsec = format!("whsec_{}", STANDARD.encode(SECRET));
    let secret = [
        ("path", json!({})),
        ("query", json!({ "parameter": "token" })),
        ("header", json!({ "header": "x-token" })),
        ("bearer", json!({})),
        ("basic", json!({ "username": "telecmi" })),
        ("hmac", json!({ "header": "x-signature", "timestamp_header": "x-timestamp" })),
        ("github", json!({})),
        ("shopify", json!({})),
        ("standard-webhooks", json!({ "secrets": whsec })),
        ("twilio", json!({ "url": "https://cdr.example.com" })),
    ];
    let secret = secret.into_iter().map(|(kind, mut config)| {
        config["type"] = kind.into();
        if config["secrets"].is_null() {
            config["secrets"] = SECRET.into();
        }
        (kind, open(config))
    });
    let cidr = |header: &str| {
        let (networks, proxies) = (["192.0.2.0/24", "2001:db8::/32"], ["10.0.0.0/8"]);
        open(json!({ "type": "cidr", "networks": networks, "trusted_proxies": proxies, "header": header }))
    };
    Checks { secret: secret.collect(), forwarded_for: cidr("x-forwarded-for"), forwarded: cidr("forwarded") }
});

fn open(config: serde_json::Value) -> Auth {
    let config: Config = serde_json::from_value(config).expect("the settings are right");
    Auth::open(&[config], "ingress.auth", &Metrics::default().ingress.secrets).expect("the settings are right")
}

/// The first line is a target, those up to an empty one are header fields, the rest is the body.
pub fn auth(data: &[u8]) {
    let mut input = Input(data);
    let target = input.line();
    let Ok(request) = Request::post(target).body(()) else { return };
    let (mut parts, ()) = request.into_parts();
    while let Some((name, value)) = field(&input.line()) {
        parts.headers.append(name, value);
    }
    let body = input.0;
    for (kind, auth) in &CHECKS.secret {
        for path_secret in [Some(parts.uri.path().trim_start_matches('/')), None] {
            let head = Head { request: &parts, path_secret, peer: INSIDE };
            assert!(!passes(auth, &head, body), "{kind}: let in without the secret");
        }
    }
    who_has_the_secret_is_let_in(&parts, body);
    nobody_forges_an_address(&parts.headers);
}

fn field(line: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = line.split_once(':')?;
    Some((name.parse().ok()?, HeaderValue::from_bytes(value.trim().as_bytes()).ok()?))
}

fn passes(auth: &Auth, head: &Head<'_>, body: &[u8]) -> bool {
    auth.check_path(head.path_secret).is_ok() && auth.check_head(head).is_ok() && auth.check_body(head, body).is_ok()
}

/// With a right signature in place of what was there, and never with that of another body.
fn who_has_the_secret_is_let_in(parts: &Parts, body: &[u8]) {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs().to_string();
    let mac = |algorithm, texts: &[&[u8]]| hmac::sign(&hmac::Key::new(algorithm, SECRET.as_bytes()), &texts.concat());
    let sha256 = |texts: &[&[u8]]| mac(hmac::HMAC_SHA256, texts);
    let hex = |bytes: &[u8]| {
        bytes.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    };
    let base64 = |tag: hmac::Tag| STANDARD.encode(tag);
    let id = parts.headers.get("webhook-id").map_or("msg_1", |id| id.to_str().unwrap_or("msg_1"));
    let id = if id.is_empty() { "msg_1" } else { id };
    let digest = hex(digest::digest(&digest::SHA256, body).as_ref());
    let target = format!("/webhook?bodySHA256={digest}");
    let url = format!("https://cdr.example.com{target}");
    for (kind, auth) in &CHECKS.secret {
        let mut parts = parts.clone();
        let mut set = |name: &'static str, value: &str| {
            parts.headers.insert(name, HeaderValue::from_str(value).expect("it is a legal value"));
        };
        match *kind {
            "hmac" => {
                set("x-timestamp", &now);
                set("x-signature", &hex(sha256(&[now.as_bytes(), b".", body]).as_ref()));
            }
            "github" => set("x-hub-signature-256", &format!("sha256={}", hex(sha256(&[body]).as_ref()))),
            "shopify" => set("x-shopify-hmac-sha256", &base64(sha256(&[body]))),
            "standard-webhooks" => {
                let signature = base64(sha256(&[id.as_bytes(), b".", now.as_bytes(), b".", body]));
                set("webhook-id", id);
                set("webhook-timestamp", &now);
                set(
                    "webhook-signature",
                    &format!("v1a,x v1,{} v1,{signature}", STANDARD.encode(body.len().to_string())),
                );
            }
            "twilio" if !body.is_empty() => {
                set("content-type", "application/json");
                set("x-twilio-signature", &base64(mac(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &[url.as_bytes()])));
                parts.uri = target.parse().expect("it is a legal target");
            }
            _ => continue,
        }
        let head = Head { request: &parts, path_secret: None, peer: INSIDE };
        assert!(passes(auth, &head, body), "{kind}: kept out with the secret");
        let mut other = body.to_vec();
        other.push(b'x');
        assert!(!passes(auth, &head, &other), "{kind}: let in with another body");
    }
}

/// What the proxy adds counts, whatever the sender wrote in front of it, in the same field or in one of its own.
fn nobody_forges_an_address(headers: &HeaderMap) {
    for (auth, name, prefix) in [
        (&CHECKS.forwarded_for, "x-forwarded-for", ""),
        (&CHECKS.forwarded, "forwarded", "for="),
        (&CHECKS.forwarded, "forwarded", "proto=https;by=\"[2001:db8::1]:80\";for="),
    ] {
        let verdict = |headers: &HeaderMap, peer| {
            let mut request = Request::new(());
            *request.headers_mut() = headers.clone();
            let parts = request.into_parts().0;
            auth.check_head(&Head { request: &parts, path_secret: None, peer }).is_ok()
        };
        assert!(verdict(headers, INSIDE) && !verdict(headers, OUTSIDE), "a stranger's word was taken");
        for sender in [OUTSIDE, INSIDE] {
            let added = format!("{prefix}{sender}");
            let mut behind = headers.clone();
            behind.append(name, added.parse().expect("it is a legal value"));
            let mut within = headers.clone();
            if let Some(last) = headers.get_all(name).iter().next_back() {
                let joined = [last.as_bytes(), b", ", added.as_bytes()].concat();
                let earlier: Vec<_> = headers.get_all(name).iter().cloned().collect();
                within.remove(name);
                for value in earlier.iter().rev().skip(1).rev().cloned() {
                    within.append(name, value);
                }
                within.append(name, HeaderValue::from_bytes(&joined).expect("it is a legal value"));
            }
            for headers in [behind, within] {
                let believed = headers.contains_key(name) && verdict(&headers, PROXY);
                assert!(!believed || sender == INSIDE, "{name}: {headers:?} passes for an address of the network");
            }
        }
    }
}

/// What is left of a query without secrets is every other parameter, in its order.
pub fn secrets_are_stripped(query: &str) {
    let Some((_, auth)) = CHECKS.secret.iter().find(|(kind, _)| *kind == "query") else { return };
    let stripped = auth.trusted_query(Some(query)).unwrap_or_default();
    let left = form_urlencoded::parse(stripped.as_bytes());
    assert!(left.eq(form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name != "token")), "{stripped}");
}
