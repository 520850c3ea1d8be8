//! Only who shows what a route asks for can store anything; the others learn nothing, and nothing of theirs is kept.

use crate::command_line::finished;
use crate::support::bridge::{Answer, command};
use crate::support::raw::Raw;
use crate::support::{ANY_PORTS, Bridge, PATIENCE, STDOUT, eventually};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use http_body_util::Full;
use hyper::Request;
use hyper::body::Bytes;
use ring::hmac;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};
use tempfile::TempDir;

/// Secrets in files of their own, so that whatever else holds one has leaked it.
struct Vault(TempDir);

impl Vault {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A file with the secrets called so, and the setting that names it.
    fn file(&self, name: &str, secrets: &str) -> String {
        fs::write(self.path(name), secrets).unwrap();
        format!("secret_files = ['{}']", self.path(name).display())
    }
}

struct Call<'a> {
    method: &'a str,
    path: &'a str,
    headers: Vec<(&'a str, String)>,
    body: &'a str,
}

fn call<'a>(path: &'a str, body: &'a str) -> Call<'a> {
    Call { method: "POST", path, headers: Vec::new(), body }
}

impl<'a> Call<'a> {
    fn with(mut self, name: &'a str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn by(self, method: &'a str) -> Self {
        Self { method, ..self }
    }

    async fn answer(&self, bridge: &Bridge) -> Answer {
        let request = Request::builder().method(self.method).uri(format!("http://{}{}", bridge.ingress(), self.path));
        let request = self.headers.iter().fold(request, |request, (name, value)| request.header(*name, value));
        bridge.send(request.body(Full::new(Bytes::copy_from_slice(self.body.as_bytes()))).unwrap()).await
    }
}

fn sign(algorithm: hmac::Algorithm, key: &[u8], text: &str) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(algorithm, key), text.as_bytes())
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A GitHub signature.
fn github(key: &str, body: &str) -> String {
    format!("sha256={}", hex(sign(hmac::HMAC_SHA256, key.as_bytes(), body)))
}

async fn accepted(bridge: &Bridge) -> u64 {
    bridge.metric("cdrelay_ingress_events_accepted_total").await.unwrap() as u64
}

async fn unauthorized(bridge: &Bridge, route: &str) -> u64 {
    let name = format!("cdrelay_ingress_unauthorized_total{{ingress=\"{route}\"}}");
    bridge.metric(&name).await.unwrap() as u64
}

/// A bridge with a route for each kind of credentials, named like it.
async fn every_kind(vault: &Vault, more: &str) -> Bridge {
    let route = |name: &str, path: &str, auth: &str| {
        format!("[ingress.routes.{name}]\npath = '{path}'\nauth = [{{ {auth} }}]\n")
    };
    let file = |name: &str| vault.file(name, &format!("{name}-secret-1\n{name}-secret-2\n"));
    let standard = vault.file("standard", &format!("whsec_{}\n", STANDARD.encode("standard-secret-1")));
    let routes = [
        route("path", "/path/{secret}/cdr", &format!("type = 'path', {}", file("path"))),
        route("query", "/query", &format!("type = 'query', parameter = 'token', {}", file("query"))),
        route("header", "/header", &format!("type = 'header', header = 'X-Token', {}", file("header"))),
        route("bearer", "/bearer", &format!("type = 'bearer', {}", file("bearer"))),
        route("basic", "/basic", &format!("type = 'basic', username = 'telecmi', {}", file("basic"))),
        route(
            "hmac",
            "/hmac",
            &format!(
                "type = 'hmac', header = 'x-signature', algorithm = 'sha512', encoding = 'base64', prefix = 'v1=', \
                 timestamp_header = 'x-time', tolerance = '10m', signed = '{{timestamp}}:{{body}}', {}",
                file("hmac")
            ),
        ),
        route("github", "/github", &format!("type = 'github', {}", file("github"))),
        route("shopify", "/shopify", &format!("type = 'shopify', {}", file("shopify"))),
        route("standard", "/standard", &format!("type = 'standard-webhooks', {standard}")),
        route("twilio", "/twilio", &format!("type = 'twilio', url = 'https://cdr.example.com', {}", file("twilio"))),
        route("appid", "/appid", "type = 'appid', appids = [2222223]"),
        route("cidr", "/cidr", "type = 'cidr', networks = ['192.0.2.0/24'], trusted_proxies = ['127.0.0.1']"),
    ];
    Bridge::start(&format!("{ANY_PORTS}{}{STDOUT}{more}", routes.concat())).await
}

/// What each route takes, `number` making the event a new one, and what it does not.
fn rights_and_wrongs(number: usize) -> Vec<(&'static str, Call<'static>, Vec<Call<'static>>)> {
    let leak = |text: String| -> &'static str { text.leak() };
    let body = leak(format!("{{\"n\":{number},\"appid\":2222223}}"));
    let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
    let time = now().to_string();
    let hmac = |key: &str, time: &str, body: &str| {
        format!("v1={}", STANDARD.encode(sign(hmac::HMAC_SHA512, key.as_bytes(), &format!("{time}:{body}"))))
    };
    let shopify = |key: &str| STANDARD.encode(sign(hmac::HMAC_SHA256, key.as_bytes(), body));
    let standard = |time: &str| {
        let text = format!("msg_{number}.{time}.{body}");
        let signature = STANDARD.encode(sign(hmac::HMAC_SHA256, b"standard-secret-1", &text));
        call("/standard", body)
            .with("webhook-id", format!("msg_{number}"))
            .with("webhook-timestamp", time)
            .with("webhook-signature", format!("v1,bm90IHRoaXMgb25l v1,{signature}"))
    };
    let old = (now() - 3600).to_string();
    let digest = hex(ring::digest::digest(&ring::digest::SHA256, body.as_bytes()));
    let twilio_path = leak(format!("/twilio?bodySHA256={digest}"));
    let twilio = |key: &str| {
        let url = format!("https://cdr.example.com{twilio_path}");
        STANDARD.encode(sign(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, key.as_bytes(), &url))
    };
    let foreign = leak(format!("[{body},{{\"n\":{number},\"appid\":3333333}}]"));
    vec![
        ("path", call("/path/path-secret-2/cdr", body), vec![call("/path/path-secret-3/cdr", body)]),
        (
            "query",
            call("/query?token=query-secret-1", body),
            vec![call("/query", body), call("/query?token=query-secret-3", body), call("/query?token=", body)],
        ),
        (
            "header",
            call("/header", body).with("x-token", "header-secret-2"),
            vec![call("/header", body), call("/header", body).with("x-token", "header-secret-3")],
        ),
        (
            "bearer",
            call("/bearer", body).with("authorization", "Bearer bearer-secret-1"),
            vec![
                call("/bearer", body),
                call("/bearer", body).with("authorization", "Bearer bearer-secret-3"),
                call("/bearer", body).with("authorization", basic("x:bearer-secret-1")),
            ],
        ),
        (
            "basic",
            call("/basic", body).with("authorization", basic("telecmi:basic-secret-2")),
            vec![
                call("/basic", body),
                call("/basic", body).with("authorization", basic("telecmi:basic-secret-3")),
                call("/basic", body).with("authorization", basic("other:basic-secret-2")),
            ],
        ),
        (
            "hmac",
            call("/hmac", body).with("x-time", &time).with("x-signature", hmac("hmac-secret-2", &time, body)),
            vec![
                call("/hmac", body).with("x-time", &time),
                call("/hmac", body).with("x-signature", hmac("hmac-secret-2", &time, body)),
                call("/hmac", body).with("x-time", &time).with("x-signature", hmac("hmac-secret-3", &time, body)),
                call("/hmac", body).with("x-time", &old).with("x-signature", hmac("hmac-secret-2", &old, body)),
            ],
        ),
        (
            "github",
            call("/github", body).with("x-hub-signature-256", github("github-secret-1", body)),
            vec![
                call("/github", body),
                call("/github", body).with("x-hub-signature-256", github("github-secret-3", body)),
                call("/github", "{}").with("x-hub-signature-256", github("github-secret-1", body)),
            ],
        ),
        (
            "shopify",
            call("/shopify", body).with("x-shopify-hmac-sha256", shopify("shopify-secret-1")),
            vec![
                call("/shopify", body),
                call("/shopify", body).with("x-shopify-hmac-sha256", shopify("shopify-secret-3")),
            ],
        ),
        ("standard", standard(&time), vec![call("/standard", body), standard(&old)]),
        (
            "twilio",
            call(twilio_path, body).with("x-twilio-signature", twilio("twilio-secret-2")),
            vec![
                call(twilio_path, body),
                call(twilio_path, body).with("x-twilio-signature", twilio("twilio-secret-3")),
                call(twilio_path, "{}").with("x-twilio-signature", twilio("twilio-secret-2")),
            ],
        ),
        ("appid", call("/appid", body), vec![call("/appid", "{\"n\":1}"), call("/appid", foreign)]),
        (
            "cidr",
            call("/cidr", body).with("x-forwarded-for", "203.0.113.1, 192.0.2.77"),
            vec![call("/cidr", body), call("/cidr", body).with("x-forwarded-for", "192.0.2.77, 203.0.113.1")],
        ),
    ]
}

#[tokio::test]
async fn every_kind_lets_the_right_request_in_and_no_other() {
    let vault = Vault::new();
    let bridge = every_kind(&vault, "").await;
    let mut words = Vec::new();
    let mut stored = 0;
    for (index, _) in rights_and_wrongs(0).iter().enumerate() {
        let (route, right, wrongs) = rights_and_wrongs(index).remove(index);
        for wrong in &wrongs {
            let answer = wrong.answer(&bridge).await;
            let status = if route == "path" { 404 } else { 401 };
            assert_eq!(answer.status, status, "{route} {:?} {answer:?}", wrong.headers);
            let challenge = answer.headers.get("www-authenticate").map(|value| value.to_str().unwrap().to_owned());
            match route {
                "bearer" => assert_eq!(challenge.as_deref(), Some("Bearer")),
                "basic" => assert_eq!(challenge.as_deref(), Some("Basic realm=\"cdrelay\", charset=\"UTF-8\"")),
                _ => assert_eq!(challenge, None),
            }
            words.push((status, answer.text().to_owned()));
        }
        assert_eq!(unauthorized(&bridge, route).await, wrongs.len() as u64, "{route}");
        assert_eq!(accepted(&bridge).await, stored, "{route}");
        let answer = right.answer(&bridge).await;
        assert_eq!((answer.status, answer.text()), (200, "{\"stored\":1,\"duplicates\":0}\n"), "{route}");
        assert_eq!(unauthorized(&bridge, route).await, wrongs.len() as u64, "{route}");
        stored += 1;
    }
    // Whatever was wrong: one answer for 401, and for the secret in the path the one that any path gets.
    words.push((404, call("/nowhere", "").answer(&bridge).await.text().to_owned()));
    words.sort();
    words.dedup();
    assert_eq!(words.iter().map(|(status, _)| *status).collect::<Vec<_>>(), [401, 404], "{words:?}");
    eventually(PATIENCE, "all are delivered", async || bridge.stdout_lines().len() as u64 == stored).await;
    // Once a minute for each route, with a reason and the peer's address, and without a value.
    let log = bridge.stderr();
    let logged = log.lines().filter(|line| line.contains("refused requests without the right credentials"));
    assert!(
        logged.clone().all(|line| line.contains(r#""peer":"127.0.0.1""#) && line.contains(r#""reason":""#)),
        "{log}"
    );
    assert_eq!(logged.count() as u64, stored);
}

/// A probe with a right signature over its empty body was overheard.
#[tokio::test]
async fn a_signature_over_an_empty_body_lets_no_event_in_by_the_query() {
    let vault = Vault::new();
    let auth = vault.file("key", "github-secret");
    let bridge = Bridge::start(&format!("{ANY_PORTS}auth = [{{ type = 'github', {auth} }}]\n{STDOUT}")).await;
    let signature = github("github-secret", "");
    for (method, path, status) in [
        ("GET", "/webhook/cdr?team=forged", &[405][..]),
        ("HEAD", "/webhook/cdr?team=forged", &[405]),
        ("PUT", "/webhook/cdr?team=forged", &[405]),
        ("POST", "/webhook/cdr?team=forged", &[400, 401]),
    ] {
        let answer = call(path, "").by(method).with("x-hub-signature-256", &signature).answer(&bridge).await;
        assert!(status.contains(&answer.status), "{method} {path}: {answer:?}");
        if answer.status == 405 {
            assert_eq!(answer.headers["allow"], "POST", "{method}");
        }
    }
    assert_eq!(accepted(&bridge).await, 0);
    let body = r#"{"n":1}"#;
    let right = call("/webhook/cdr?team=unsigned", body).with("x-hub-signature-256", github("github-secret", body));
    assert_eq!(right.answer(&bridge).await.status, 200);
    eventually(PATIENCE, "it is delivered", async || bridge.stdout_lines().len() == 1).await;
    assert!(!bridge.stdout_lines()[0].contains("unsigned"), "{:?}", bridge.stdout_lines());
}

#[tokio::test]
async fn a_404_names_no_configured_path() {
    let bridge = Bridge::start(&format!("{ANY_PORTS}path = '/hidden/path'\n{STDOUT}")).await;
    let answer = call("/webhook/cdr", "{}").answer(&bridge).await;
    assert!(answer.status == 404 && !answer.text().contains("hidden"), "{answer:?}");
}

#[tokio::test]
async fn any_changed_byte_is_refused() {
    let vault = Vault::new();
    let auth = vault.file("key", "It's a Secret to Everybody");
    let bridge = Bridge::start(&format!("{ANY_PORTS}auth = [{{ type = 'github', {auth} }}]\n{STDOUT}")).await;
    let body = r#"{"n":1,"s":"x"}"#;
    let signature = github("It's a Secret to Everybody", body);
    let send = async |body: &[u8], signature: &str| {
        let request = Request::post(bridge.ingress_url()).header("x-hub-signature-256", signature);
        bridge.send(request.body(Full::new(Bytes::copy_from_slice(body))).unwrap()).await.status
    };
    let mut random = fastrand::Rng::with_seed(7);
    for at in 0..body.len() {
        let mut other = body.as_bytes().to_vec();
        other[at] ^= random.u8(1..=255);
        assert_eq!(send(&other, &signature).await, 401, "byte {at} of the body");
    }
    for at in 0..signature.len() {
        let mut other = signature.clone().into_bytes();
        other[at] = loop {
            let byte = random.u8(b'!'..=b'~');
            if byte != other[at] {
                break byte;
            }
        };
        let other = String::from_utf8(other).unwrap();
        assert_eq!(send(body.as_bytes(), &other).await, 401, "byte {at} of the signature: {other}");
    }
    assert_eq!(accepted(&bridge).await, 0);
    assert_eq!(send(body.as_bytes(), &signature).await, 200);
    assert_eq!(accepted(&bridge).await, 1);
}

#[tokio::test]
async fn all_checks_of_a_route_have_to_pass_and_the_answer_does_not_tell_them_apart() {
    let vault = Vault::new();
    let bridge = Bridge::start(&format!(
        "{ANY_PORTS}methods = ['HEAD', 'POST']\n[[ingress.auth]]\ntype = 'bearer'\n{}\n[[ingress.auth]]\ntype = 'query'\nparameter = 'key'\n{}\n\
         [[ingress.auth]]\ntype = 'github'\n{}\n[[ingress.auth]]\ntype = 'appid'\nappids = [1]\n{STDOUT}",
        vault.file("a", "bearer-secret"),
        vault.file("b", "query-secret"),
        vault.file("c", "github-secret")
    ))
    .await;
    let body = r#"{"appid":1}"#;
    let (token, signature) = ("Bearer bearer-secret".to_owned(), github("github-secret", body));
    let mut answers = Vec::new();
    for missing in 0..5 {
        let path = if missing == 1 { "/webhook/cdr" } else { "/webhook/cdr?key=query-secret" };
        let body = if missing == 3 { r#"{"appid":2}"# } else { body };
        let mut request = call(path, body);
        if missing != 0 {
            request = request.with("authorization", &token);
        }
        match missing {
            2 => {}
            3 => request = request.with("x-hub-signature-256", github("github-secret", body)),
            _ => request = request.with("x-hub-signature-256", &signature),
        }
        let answer = request.answer(&bridge).await;
        if missing == 4 {
            assert_eq!(answer.status, 200);
        } else {
            assert_eq!(answer.status, 401, "{missing}");
            let mut headers = answer.headers.clone();
            headers.remove("date");
            answers.push((format!("{headers:?}"), answer.text().to_owned()));
        }
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
    // A probe stores nothing, but it could be used to try secrets.
    assert_eq!(call("/webhook/cdr", "").by("HEAD").answer(&bridge).await.status, 401);
    assert_eq!(accepted(&bridge).await, 1);
}

#[tokio::test]
async fn what_the_header_shows_is_checked_before_the_body_is_read() {
    let vault = Vault::new();
    let auth = vault.file("key", "github-secret");
    let bridge = Bridge::start(&format!("{ANY_PORTS}auth = [{{ type = 'github', {auth} }}]\n{STDOUT}")).await;
    let mut raw = Raw::connect(&bridge).await;
    raw.send(Raw::head("POST", "content-length: 1000000\r\n")).await;
    let answer = raw.answer().await;
    assert_eq!(answer.status, 401);
    assert_eq!(answer.headers["connection"], "close");
    assert_eq!(answer.headers["content-type"], "application/problem+json");
}

#[tokio::test]
async fn secrets_change_under_load_without_a_refused_request() {
    let vault = Vault::new();
    let secret = |generation: u64| format!("secret-of-generation-{generation}");
    let (bearer, key) = (vault.file("bearer", &secret(0)), vault.file("key", &secret(0)));
    let bridge = Bridge::start(&format!(
        "{ANY_PORTS}[[ingress.auth]]\ntype = 'bearer'\n{bearer}\n[[ingress.auth]]\ntype = 'github'\n{key}\n{STDOUT}"
    ))
    .await;
    let (generation, done, sent) = (AtomicU64::new(0), AtomicBool::new(false), AtomicU64::new(0));
    let send = async |worker: usize| {
        for number in 0.. {
            if done.load(Ordering::Relaxed) {
                break;
            }
            let secret = secret(generation.load(Ordering::Relaxed));
            let body = format!("{{\"worker\":{worker},\"n\":{number}}}");
            let request = call("/webhook/cdr", &body).with("authorization", format!("Bearer {secret}"));
            let answer = request.with("x-hub-signature-256", github(&secret, &body)).answer(&bridge).await;
            assert_eq!(answer.status, 200, "{secret}");
            sent.fetch_add(1, Ordering::Relaxed);
        }
    };
    let replace = |text: &str| {
        for name in ["bearer", "key"] {
            // As Kubernetes and editors do: another file takes the name.
            fs::write(vault.path("new"), text).unwrap();
            fs::rename(vault.path("new"), vault.path(name)).unwrap();
        }
    };
    let reloads = "cdrelay_ingress_secret_reloads_total";
    let rotate = async {
        for next in 1..=2 {
            let before = bridge.metric(reloads).await.unwrap();
            replace(&format!("{}\n{}\n", secret(next - 1), secret(next)));
            eventually(PATIENCE, "both are valid", async || bridge.metric(reloads).await == Some(before + 2.0)).await;
            generation.store(next, Ordering::Relaxed);
            // What was sent with the old one has its answer once each worker has sent another two.
            let until = sent.load(Ordering::Relaxed) + 64;
            eventually(PATIENCE, "the new one is used", async || sent.load(Ordering::Relaxed) > until).await;
            // A mistake on the way costs nothing.
            let failures = "cdrelay_ingress_secret_failures_total";
            let failed = bridge.metric(failures).await.unwrap();
            replace("short\n");
            eventually(PATIENCE, "it is told", async || bridge.metric(failures).await > Some(failed)).await;
        }
        let before = bridge.metric(reloads).await.unwrap();
        replace(&format!("{}\n", secret(2)));
        eventually(PATIENCE, "the old one is gone", async || bridge.metric(reloads).await == Some(before + 2.0)).await;
        let old = call("/webhook/cdr", "{}").with("authorization", format!("Bearer {}", secret(1)));
        let old = old.with("x-hub-signature-256", github(&secret(1), "{}")).answer(&bridge).await;
        assert_eq!(old.status, 401);
        done.store(true, Ordering::Relaxed);
    };
    futures_util::future::join(rotate, join_all((0..8).map(send))).await;
    let sent = sent.into_inner();
    println!("{sent} requests while secrets were changed three times in two files, none refused");
    assert_eq!(accepted(&bridge).await, sent);
    assert!(bridge.stderr().contains("the old ones stay valid"), "{}", bridge.stderr());
    assert!(!bridge.stderr().contains("secret-of-generation"));
}

/// Every file below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[tokio::test]
async fn nothing_secret_is_left_behind() {
    let vault = Vault::new();
    // The second sink makes a dead letter of everything.
    let refusing = "[sinks.never]\ntype = 'stdout'\ntopic = '{nothing}'\n[log]\nlevel = 'trace'\n";
    let mut bridge = every_kind(&vault, refusing).await;
    let mut count = 0;
    for (_, right, wrongs) in rights_and_wrongs(1) {
        assert_eq!(right.answer(&bridge).await.status, 200);
        for wrong in wrongs {
            assert!(matches!(wrong.answer(&bridge).await.status, 401 | 404));
        }
        // What cannot be read is kept, without what was shown along with it.
        count += 1;
    }
    let malformed = [
        call("/path/path-secret-1/cdr?token=query-secret-1", "{ a: 1 }"),
        call("/query?token=query-secret-1", "{ b: 1 }"),
        call("/header", "{ c: 1 }").with("x-token", "header-secret-1"),
        call("/bearer", "{ d: 1 }").with("authorization", "Bearer bearer-secret-1"),
        call("/github", "{ e: 1 }").with("x-hub-signature-256", github("github-secret-1", "{ e: 1 }")),
    ];
    for call in &malformed {
        assert_eq!(call.answer(&bridge).await.status, 400, "{}", call.path);
    }
    let many = format!("/query?tok%65n=query-secret-2&{}", "a=1&".repeat(1001));
    assert_eq!(call(&many, "").by("GET").answer(&bridge).await.status, 400);
    assert_eq!(call("/query?n=2&token=query-secret-2&m=3", "").by("GET").answer(&bridge).await.status, 200);
    // The wrong ones are nobody's business either.
    assert_eq!(call("/query?n=2&token=query-secret-9&m=3", "{ f: 1 }").answer(&bridge).await.status, 401);
    let kept = malformed.len() as f64 + 1.0;
    eventually(PATIENCE, "they are kept", async || {
        bridge.metric("cdrelay_ingress_rejected_kept_total").await == Some(kept)
    })
    .await;
    // Events of one content are one event, whatever the route.
    let lines = bridge.metric("cdrelay_ingress_events_accepted_total").await.unwrap() as usize;
    assert!(lines >= 2 && count >= 12);
    eventually(PATIENCE, "all are delivered", async || bridge.stdout_lines().len() == lines).await;
    let by_get = r#""event":{"n":"2","m":"3"}"#;
    assert!(bridge.stdout_lines().iter().any(|line| line.contains(by_get)), "{:?}", bridge.stdout_lines());
    let metrics = bridge.admin("/metrics").await.text().to_owned();
    let check = finished(command().current_dir(bridge.directory()).args(["check", "--config", "cdrelay.toml"]));
    assert_eq!(check.code, Some(0), "{check:?}");
    bridge.terminate();
    assert!(bridge.wait(PATIENCE).await.success());

    let mut places: Vec<(String, Vec<u8>)> = files(bridge.directory())
        .into_iter()
        .filter(|path| !path.ends_with("cdrelay.toml") && !path.ends_with("control"))
        .map(|path| (path.display().to_string(), fs::read(path).unwrap()))
        .collect();
    places.push(("/metrics".into(), metrics.into()));
    places.push(("check".into(), format!("{check:?}").into()));
    assert!(places.iter().any(|(name, _)| name.contains("rejected/0")));
    assert!(places.iter().any(|(name, bytes)| name.contains("dead-letters/never/0") && !bytes.is_empty()));
    let mut needles: Vec<String> = ["-secret-1", "-secret-2", "-secret-3", "-secret-9"].map(String::from).into();
    needles.push(STANDARD.encode("standard-secret-1"));
    needles.push(STANDARD.encode("telecmi:basic-secret-2"));
    for (name, bytes) in &places {
        let text = String::from_utf8_lossy(bytes);
        for needle in &needles {
            assert!(!text.contains(needle.as_str()), "{name} holds {needle}");
        }
    }
}

#[tokio::test]
async fn what_would_leave_a_door_open_or_shut_for_ever_is_told_at_once() {
    let directory = TempDir::new().unwrap();
    let check = |toml: &str| {
        fs::write(directory.path().join("cdrelay.toml"), format!("{STDOUT}{toml}")).unwrap();
        fs::write(directory.path().join("short"), "1234567\n").unwrap();
        finished(command().current_dir(directory.path()).args(["check", "--config", "cdrelay.toml"]))
    };
    for (toml, words) in [
        (
            "[[ingress.auth]]\ntype = 'bearer'\nsecret_files = 'short'",
            &["`ingress.auth.0.secret_files.0`", "short: line 1", "8 or more"][..],
        ),
        (
            "[[ingress.auth]]\ntype = 'bearer'\nsecret_files = 'gone'",
            &["`ingress.auth.0.secret_files.0`", "gone: cannot be read"],
        ),
        ("[[ingress.auth]]\ntype = 'bearer'\nsecrets = '1234567'", &["`ingress.auth.0.secrets.0`", "7 bytes"]),
        ("[[ingress.auth]]\ntype = 'cidr'\nnetworks = '300.0.0.0/8'", &["`ingress.auth.0.networks`", "300.0.0.0/8"]),
        ("[[ingress.auth]]\ntype = 'bearer'\nsecrets = ['1234567", &["cdrelay.toml"]),
        (
            "[ingress]\nmethods = ['GET', 'POST']\nauth = [{ type = 'shopify', secrets = ['12345678'] }]",
            &["cdrelay.toml: `ingress.methods`: found GET", "\"shopify\" covers the body alone", "POST"],
        ),
    ] {
        let refused = check(toml);
        assert_eq!(refused.code, Some(78), "{refused:?}");
        assert!(words.iter().all(|word| refused.stderr.contains(word)), "{refused:?} lacks one of {words:?}");
        assert!(!refused.stderr.contains("1234567"), "{refused:?}");
    }
    let open = check(
        "[ingress]\nlisten = '0.0.0.0:8080'\npath = '/a'\n[ingress.routes.shut]\npath = '/b'\nauth = [{ type = 'appid', appids = [1] }]\n",
    );
    assert_eq!(open.code, Some(0), "{open:?}");
    assert!(open.stderr.contains("warning") && open.stderr.contains("`default`"), "{open:?}");
    assert!(!open.stderr.contains("`shut`"), "{open:?}");
    assert!(check("").stderr.is_empty());

    let listen = ANY_PORTS.replace("[ingress]\nlisten = '127.0.0.1:0'", "[ingress]\nlisten = '0.0.0.0:0'");
    let bridge = Bridge::start(&format!("{listen}{STDOUT}")).await;
    let warns = |line: &str| {
        line.contains("WARN")
            && line.contains("route has no authentication and listens on a non-loopback address")
            && line.contains("default")
    };
    assert!(bridge.stderr().lines().any(warns), "{}", bridge.stderr());
}
