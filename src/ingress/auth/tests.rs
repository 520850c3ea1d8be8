mod signatures;

use super::*;
use crate::event::Arrival;
use crate::metrics::Metrics;
use hyper::Request;
use ring::hmac as ring_hmac;

const BASE64: base64::engine::GeneralPurpose = base64::engine::general_purpose::STANDARD;

fn auth(configs: serde_json::Value) -> Auth {
    open(configs).unwrap()
}

fn open(configs: serde_json::Value) -> Result<Auth, String> {
    let configs: Vec<Config> = serde_json::from_value(configs).map_err(|error| error.to_string())?;
    Auth::open(&configs, "ingress.auth", &Metrics::default().ingress.secrets)
}

fn parts(uri: &str, headers: &[(&str, &str)]) -> Parts {
    let request = headers.iter().fold(Request::post(uri), |request, (name, value)| request.header(*name, *value));
    request.body(()).unwrap().into_parts().0
}

fn peer(address: &str) -> IpAddr {
    address.parse().unwrap()
}

/// All checks, at a moment.
fn allowed_at(auth: &Auth, now: u64, parts: &Parts, body: &[u8], path_secret: Option<&str>) -> bool {
    let head = Head { request: parts, path_secret, peer: peer("192.0.2.1") };
    let early = auth.checks.iter().all(|check| check.head(&head, now).is_ok());
    early && auth.check_path(path_secret).is_ok() && auth.check_body(&head, body).is_ok()
}

fn allowed(auth: &Auth, uri: &str, headers: &[(&str, &str)], body: &[u8]) -> bool {
    allowed_at(auth, now(), &parts(uri, headers), body, None)
}

/// Every variant of `text` with one byte changed, and those with one byte less or more.
fn changed(text: &[u8]) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for at in 0..text.len() {
        for mask in [0x01, 0x20, 0x80] {
            let mut other = text.to_vec();
            other[at] ^= mask;
            all.push(other);
        }
        all.push([&text[..at], &text[at + 1..]].concat());
        all.push([&text[..at], b"0", &text[at..]].concat());
    }
    all
}

/// A signature with any byte changed is wrong, and so is a body.
fn assert_tight(auth: &Auth, now: u64, uri: &str, headers: &[(&str, &str)], signature: &str, body: &[u8]) {
    let all: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
    let request = |headers: &[(&str, &[u8])]| {
        let request = Request::post(uri);
        let request = headers.iter().try_fold(request, |request, (name, value)| {
            Some(request.header(*name, HeaderValue::from_bytes(value).ok()?))
        });
        Some(request?.body(()).unwrap().into_parts().0)
    };
    let right = request(&all).unwrap();
    assert!(allowed_at(auth, now, &right, body, None), "the right one is refused");
    for other in changed(body) {
        assert!(!allowed_at(auth, now, &right, &other, None), "{}", String::from_utf8_lossy(&other));
    }
    let at = headers.iter().position(|(name, _)| *name == signature).unwrap();
    for other in changed(headers[at].1.as_bytes()) {
        let mut headers = all.clone();
        headers[at].1 = &other;
        // What no header field can hold cannot be sent.
        let Some(parts) = request(&headers) else { continue };
        assert!(!allowed_at(auth, now, &parts, body, None), "{}", String::from_utf8_lossy(&other));
    }
    let missing: Vec<_> = all.iter().filter(|(name, _)| *name != signature).copied().collect();
    assert!(!allowed_at(auth, now, &request(&missing).unwrap(), body, None));
    let twice = [&all[..], &all[at..=at]].concat();
    assert!(!allowed_at(auth, now, &request(&twice).unwrap(), body, None));
}

#[test]
fn secrets_that_come_as_they_are() {
    let secrets = serde_json::json!(["first secret", "second-secret"]);
    let of = |kind: &str, key: &str, value: &str| {
        let mut config = serde_json::json!({ "type": kind, "secrets": secrets });
        if !key.is_empty() {
            config[key] = value.into();
        }
        auth(serde_json::json!([config]))
    };
    let header = of("header", "header", "X-Token");
    for (headers, right) in [
        (&[("x-token", "first secret")][..], true),
        (&[("x-token", "second-secret")], true),
        (&[("x-token", "second-secre")], false),
        (&[("x-token", "")], false),
        (&[], false),
        (&[("x-other", "first secret")], false),
        (&[("x-token", "first secret"), ("x-token", "first secret")], false),
    ] {
        assert_eq!(allowed(&header, "/", headers, b""), right, "{headers:?}");
    }
    let query = of("query", "parameter", "token");
    for (uri, right) in [
        ("/?token=second-secret", true),
        ("/?a=b&tok%65n=first+secret&c", true),
        ("/?token=first%20secret", true),
        ("/?token=first-secret", false),
        ("/?Token=second-secret", false),
        ("/?token=second-secret&token=x", false),
        ("/?token", false),
        ("/", false),
    ] {
        assert_eq!(allowed(&query, uri, &[], b"token=second-secret"), right, "{uri}");
    }
    let bearer = of("bearer", "", "");
    let basic = of("basic", "username", "cdr");
    let encoded = |text: &str| base64::Engine::encode(&BASE64, text);
    for (value, by_bearer, by_basic) in [
        ("Bearer second-secret".to_owned(), true, false),
        ("bEARER  second-secret".to_owned(), true, false),
        ("Bearersecond-secret".to_owned(), false, false),
        ("Bearer".to_owned(), false, false),
        ("second-secret".to_owned(), false, false),
        (format!("Basic {}", encoded("cdr:second-secret")), false, true),
        (format!("basic {}", encoded("cdr:first secret")), false, true),
        (format!("Basic {}", encoded("CDR:first secret")), false, false),
        (format!("Basic {}", encoded("cdr:other-secret")), false, false),
        (format!("Basic {}", encoded(":second-secret")), false, false),
        ("Basic cdr:second-secret".to_owned(), false, false),
        (format!("Bearer {}", encoded("cdr:second-secret")), false, false),
    ] {
        assert_eq!(allowed(&bearer, "/", &[("authorization", &value)], b""), by_bearer, "{value}");
        assert_eq!(allowed(&basic, "/", &[("authorization", &value)], b""), by_basic, "{value}");
    }
    let path = of("path", "", "");
    let allowed = |secret| allowed_at(&path, now(), &parts("/", &[]), b"", secret);
    assert!(allowed(Some("second-secret")) && allowed(Some("first%20secret")));
    assert!(!allowed(Some("second-secreT")) && !allowed(None));
}

#[test]
fn every_check_has_to_pass() {
    let both = auth(serde_json::json!([
        { "type": "header", "header": "x-a", "secrets": "secret-a" },
        { "type": "query", "parameter": "b", "secrets": ["secret-b"] },
        { "type": "hmac", "header": "x-c", "secrets": "secret-c", "encoding": "base64", "algorithm": "sha512" },
    ]));
    let key = ring_hmac::Key::new(ring_hmac::HMAC_SHA512, b"secret-c");
    let signature = base64::Engine::encode(&BASE64, ring_hmac::sign(&key, b"body"));
    let (a, c) = (("x-a", "secret-a"), ("x-c", signature.as_str()));
    assert!(allowed(&both, "/?b=secret-b", &[a, c], b"body"));
    for (uri, headers) in [("/?b=secret-b", &[c][..]), ("/", &[a, c]), ("/?b=secret-b", &[a]), ("/", &[])] {
        assert!(!allowed(&both, uri, headers, b"body"), "{uri} {headers:?}");
    }
    assert!(allowed(&Auth::default(), "/", &[], b"anything"));
}

/// <https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries#testing-the-webhook-payload-validation>
#[test]
fn an_appid_that_is_not_allowed_spoils_the_batch() {
    let auth = auth(serde_json::json!([{ "type": "appid", "appids": [2222223, "abc"] }]));
    let check = |texts: &[&str]| {
        let events: Vec<_> = texts.iter().map(|text| Event::parse(text, 9, Arrival(0)).unwrap()).collect();
        auth.check_events(None, &events).is_ok()
    };
    assert!(check(&[r#"{"appid":2222223}"#, r#"{"appid":"2222223"}"#, r#"{"app_id":"abc"}"#]) && check(&[]));
    for foreign in
        [r#"{"appid":2222224}"#, "{}", r#"{"appid":null}"#, r#"{"appid":[2222223]}"#, r#"{"appid":1,"app_id":"abc"}"#]
    {
        assert!(!check(&[r#"{"appid":2222223}"#, foreign]), "{foreign}");
    }
}

#[test]
fn networks_and_what_trusted_proxies_say() {
    let check = |config: serde_json::Value, address: &str, headers: &[(&str, &str)]| {
        let auth = auth(serde_json::json!([config]));
        let parts = parts("/", headers);
        auth.check_head(&Head { request: &parts, path_secret: None, peer: peer(address) }).is_ok()
    };
    let plain = serde_json::json!({ "type": "cidr", "networks": ["192.0.2.0/24", "2001:db8::/32", "127.0.0.1"] });
    for (address, right) in [
        ("192.0.2.255", true),
        ("192.0.3.0", false),
        ("::ffff:192.0.2.1", true),
        ("2001:db8:1::1", true),
        ("2001:db9::1", false),
        ("127.0.0.1", true),
        ("127.0.0.2", false),
    ] {
        assert_eq!(check(plain.clone(), address, &[]), right, "{address}");
        // Nobody is believed.
        let forged = [("x-forwarded-for", "192.0.2.1"), ("forwarded", "for=192.0.2.1")];
        assert_eq!(check(plain.clone(), address, &forged), right, "{address}");
    }
    let behind = |header: &str| serde_json::json!({ "type": "cidr", "networks": "192.0.2.0/24", "trusted_proxies": ["10.0.0.0/8", "fd00::/8"], "header": header });
    let name = "x-forwarded-for";
    for (address, values, right) in [
        ("10.0.0.1", &["192.0.2.7"][..], true),
        ("10.0.0.1", &["192.0.2.7, 10.1.1.1 ,10.2.2.2"], true),
        ("10.0.0.1", &["192.0.2.7", "10.1.1.1"], true),
        ("10.0.0.1", &["192.0.2.7:1234, [fd00::1]:99, fd00::2"], true),
        ("10.0.0.1", &["192.0.2.7, 203.0.113.9"], false),
        ("10.0.0.1", &["192.0.2.7", "203.0.113.9, 10.1.1.1"], false),
        ("10.0.0.1", &["192.0.2.7, unknown"], false),
        ("10.0.0.1", &["192.0.2.7,"], false),
        ("10.0.0.1", &["garbage, 192.0.2.7"], true),
        ("10.0.0.1", &[], false),
        ("203.0.113.9", &["192.0.2.7"], false),
        ("192.0.2.9", &["203.0.113.9"], true),
    ] {
        let headers: Vec<_> = values.iter().map(|value| (name, *value)).collect();
        assert_eq!(check(behind(name), address, &headers), right, "{address} {values:?}");
        // The other header field anybody could have sent.
        let others: Vec<_> = values.iter().map(|value| ("forwarded", *value)).collect();
        assert!(!check(behind(name), "10.0.0.1", &others), "{values:?}");
    }
    for (value, right) in [
        ("for=192.0.2.7", true),
        ("For=\"192.0.2.7:80\";proto=https;by=10.0.0.1, for=10.1.1.1", true),
        ("for=192.0.2.7, for=\"[fd00::1]:80\"", true),
        ("for=192.0.2.7, for=\"[2001:db8::1]\"", false),
        ("for=192.0.2.7, for=_hidden", false),
        ("for=192.0.2.7, for=unknown", false),
        ("for=192.0.2.7, proto=https", false),
        ("for=192.0.2.7;x=\", for=203.0.113.9", false),
        ("for=192.0.2.7;x=\"\\\", for=\"203.0.113.9\"", false),
        ("for=203.0.113.9;x=\",\", for=192.0.2.7", true),
        ("", false),
    ] {
        assert_eq!(check(behind("Forwarded"), "10.0.0.1", &[("forwarded", value)]), right, "{value}");
    }
}

#[test]
fn secrets_in_the_query_do_not_get_any_further() {
    let auth = auth(serde_json::json!([
        { "type": "query", "parameter": "to ken", "secrets": "secret-a" },
        { "type": "query", "parameter": "key", "secrets": "secret-b" },
    ]));
    for (query, left) in [
        ("a=b&to+ken=secret-a&c=d&key=secret-b&e", "a=b&c=d&e"),
        ("to%20ken=secret-a&k%65y=x&key", ""),
        ("a=b&keys=1&=key&tokens", "a=b&keys=1&=key&tokens"),
        ("a=b&&key=x&&c", "a=b&&&c"),
    ] {
        assert_eq!(auth.trusted_query(Some(query)).as_deref(), Some(left), "{query}");
    }
}

/// What `check` says of a configuration with this check, with the methods of the route or the default ones.
fn problem(check: &serde_json::Value, methods: Option<&[&str]>) -> Option<String> {
    let mut ingress = serde_json::json!({ "auth": [check] });
    if let Some(methods) = methods {
        ingress["methods"] = methods.into();
    }
    let config = serde_json::json!({ "ingress": ingress, "sinks": { "out": { "type": "stdout" } } });
    let config = match crate::config::Config::from_yaml(&config.to_string()) {
        Ok(config) => config.ingress,
        Err(error) => return Some(error.to_string()),
    };
    Auth::open(&config.auth, "ingress.auth", &Metrics::default().ingress.secrets).err()
}

#[test]
fn mistakes_name_the_setting_and_what_is_allowed_and_no_secret() {
    use serde_json::json;
    let secret = "hunter2hunter2";
    for (config, expected) in [
        (json!({ "type": "bearer" }), &["auth.0.secret_files`: is missing", "for example"][..]),
        (json!({ "type": "bearer", "secrets": "1234567" }), &["auth.0.secrets.0`", "7 bytes", "8 or more"]),
        (
            json!({ "type": "bearer", "secrets": secret, "secret": "x" }),
            &["auth.0.secret`: is unknown", "secret_files"],
        ),
        (json!({ "type": "query", "secrets": secret }), &["auth.0.parameter`: is missing"]),
        (json!({ "type": "query", "secrets": secret, "parameter": "" }), &["auth.0.parameter`: found \"\""]),
        (json!({ "type": "header", "secrets": secret, "header": "x y" }), &["auth.0.header`: found \"x y\""]),
        (json!({ "type": "header", "secrets": secret }), &["auth.0.header`: is missing"]),
        (json!({ "type": "basic", "secrets": secret }), &["auth.0.username`: is missing"]),
        (json!({ "type": "basic", "secrets": secret, "username": "a:b" }), &["auth.0.username`: found \"a:b\"", "`:`"]),
        (json!({ "type": "bearer", "secrets": secret, "header": "x" }), &["auth.0.header`: is unknown", "secrets"]),
        (json!({ "type": "github", "secrets": secret, "prefix": "x" }), &["auth.0.prefix`: is unknown"]),
        (json!({ "type": "hmac", "secrets": secret }), &["auth.0.header`: is missing"]),
        (
            json!({ "type": "hmac", "secrets": secret, "header": "x", "algorithm": "md5" }),
            &["auth.0.algorithm`: found \"md5\"; allowed are sha1, sha256, sha512"],
        ),
        (
            json!({ "type": "hmac", "secrets": secret, "header": "x", "signed": "{timestamp}{body}" }),
            &["auth.0.signed`", "timestamp_header"],
        ),
        (
            json!({ "type": "hmac", "secrets": secret, "header": "x", "signed": "{body" }),
            &["auth.0.signed`", "not closed"],
        ),
        (json!({ "type": "hmac", "secrets": secret, "header": "x", "signed": "x" }), &["auth.0.signed`", "once"]),
        (
            json!({ "type": "hmac", "secrets": secret, "header": "x", "signed": "{url}{body}" }),
            &["auth.0.signed`", "only {timestamp} and {body}"],
        ),
        (
            json!({ "type": "hmac", "secrets": secret, "header": "x", "timestamp_header": "t", "signed": "{body}" }),
            &["auth.0.signed`", "anybody"],
        ),
        (
            json!({ "type": "hmac", "secrets": secret, "header": "x", "tolerance": "5m" }),
            &["auth.0.tolerance`", "timestamp_header"],
        ),
        (
            json!({ "type": "standard-webhooks", "secrets": secret, "tolerance": "soon" }),
            &["auth.0.tolerance`: found \"soon\"", "30s"],
        ),
        (json!({ "type": "twilio", "secrets": secret }), &["auth.0.url`: is missing"]),
        (json!({ "type": "twilio", "secrets": secret, "url": "mycompany.com" }), &["auth.0.url`: found", "https://"]),
        (
            json!({ "type": "twilio", "secrets": secret, "url": "https://mycompany.com/x" }),
            &["auth.0.url`: found", "without path"],
        ),
        (json!({ "type": "appid" }), &["auth.0.appids`: is missing"]),
        (json!({ "type": "appid", "appids": [] }), &["auth.0.appids`: is empty"]),
        (json!({ "type": "appid", "appids": [1], "secrets": secret }), &["auth.0.secrets`: is unknown"]),
        (json!({ "type": "cidr" }), &["auth.0.networks`: is missing"]),
        (
            json!({ "type": "cidr", "networks": ["10.0.0.0/33"] }),
            &["auth.0.networks`: found \"10.0.0.0/33\"", "192.0.2.0/24"],
        ),
        (json!({ "type": "cidr", "networks": ["10.0.0.1/8"] }), &["auth.0.networks`: found"]),
        (
            json!({ "type": "cidr", "networks": ["10.0.0.0/8"], "header": "forwarded" }),
            &["auth.0.trusted_proxies`: is missing"],
        ),
        (
            json!({ "type": "cidr", "networks": ["10.0.0.0/8"], "header": "x-real-ip", "trusted_proxies": "::1" }),
            &["auth.0.header`: found", "x-forwarded-for"],
        ),
    ] {
        let problem = problem(&config, None).unwrap_or_else(|| panic!("{config} is taken"));
        assert!(problem.contains("`ingress.auth.0.") && !problem.contains("hunter2"), "{problem}");
        assert!(expected.iter().all(|text| problem.contains(text)), "{problem} lacks one of {expected:?}");
    }
    for config in [
        json!({ "type": "bearer", "secrets": { "a": secret } }),
        json!({ "type": "bearer", "secrets": [[secret]] }),
        json!({ "type": "bearer", "secrets": true }),
        json!({ "type": "bearer", "secrets": 1234.5 }),
    ] {
        let problem = problem(&config, None).unwrap();
        assert!(!problem.contains("hunter2") && !problem.contains("1234"), "{problem}");
    }
    assert!(!format!("{:?}", auth(json!([{ "type": "bearer", "secrets": secret }]))).contains("hunter2"));
}

#[test]
fn a_signature_over_the_body_alone_allows_no_event_in_the_query() {
    use serde_json::json;
    let url = "https://cdr.example.com";
    for (check, covers_query) in [
        (json!({ "type": "hmac", "header": "x-signature", "secrets": "12345678" }), false),
        (json!({ "type": "github", "secrets": "12345678" }), false),
        (json!({ "type": "shopify", "secrets": "12345678" }), false),
        (json!({ "type": "standard-webhooks", "secrets": "MTIzNDU2Nzg=" }), false),
        (json!({ "type": "twilio", "secrets": "12345678", "url": url }), true),
        (json!({ "type": "bearer", "secrets": "12345678" }), true),
    ] {
        let config: Config = serde_json::from_value(check.clone()).unwrap();
        let names =
            |methods: Vec<crate::ingress::routes::Method>| methods.iter().map(|one| one.name()).collect::<Vec<_>>();
        let default = names(crate::ingress::routes::default_methods(&[config]));
        assert_eq!(default, if covers_query { vec!["GET", "HEAD", "POST"] } else { vec!["POST"] }, "{check}");
        let refused = problem(&check, Some(&["GET", "POST"]));
        assert_eq!(refused.is_some_and(|text| text.contains("`ingress.methods`: found GET")), !covers_query, "{check}");
        assert_eq!(problem(&check, Some(&["POST", "PUT", "HEAD"])), None);

        let auth = auth(json!([check, { "type": "query", "parameter": "token", "secrets": "87654321" }]));
        let query = Some("team=Sales&token=87654321");
        assert_eq!(auth.trusted_query(query).as_deref(), covers_query.then_some("team=Sales"), "{check}");
        let event = Event::parse("{\"a\":1}", 9, Arrival(0)).unwrap();
        for (query, events, taken) in [
            (query, &[][..], covers_query),
            (Some("token=87654321"), &[], true),
            (None, &[], true),
            (query, std::slice::from_ref(&event), true),
        ] {
            assert_eq!(auth.check_events(query, events).is_ok(), taken, "{check} {query:?}");
        }
    }
}
