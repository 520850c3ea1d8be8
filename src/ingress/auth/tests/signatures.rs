//! Signatures of each scheme, checked against the examples and test vectors of its specification.

use super::*;

#[test]
fn the_example_of_github() {
    let auth = auth(serde_json::json!([{ "type": "github", "secrets": "It's a Secret to Everybody" }]));
    let signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
    let headers = [("x-hub-signature-256", signature)];
    assert_tight(&auth, now(), "/", &headers, "x-hub-signature-256", b"Hello, World!");
}

/// <https://shopify.dev/docs/apps/build/webhooks/subscribe/https#step-2-validate-the-origin-of-your-webhook>
#[test]
fn the_shape_of_shopify() {
    let auth = auth(serde_json::json!([{ "type": "shopify", "secrets": ["old-secret", "shpss_hush"] }]));
    let body = br#"{"id":820982911946154508}"#;
    let tag = ring_hmac::sign(&ring_hmac::Key::new(ring_hmac::HMAC_SHA256, b"shpss_hush"), body);
    let signature = base64::Engine::encode(&BASE64, tag);
    let headers = [("x-shopify-hmac-sha256", signature.as_str())];
    assert_tight(&auth, now(), "/", &headers, "x-shopify-hmac-sha256", body);
}

/// The example of Slack, whose signature covers a time and a version: <https://api.slack.com/authentication/verifying-requests-from-slack>
#[test]
fn a_signed_timestamp_has_to_be_near() {
    let auth = auth(serde_json::json!([{
        "type": "hmac", "header": "X-Slack-Signature", "prefix": "v0=", "signed": "v0:{timestamp}:{body}",
        "timestamp_header": "X-Slack-Request-Timestamp", "secrets": "8f742231b10e8888abcd99yyyzzz85a5",
    }]));
    let body = "token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c";
    let signature = "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503";
    let time = 1_531_420_618;
    let headers = [("x-slack-signature", signature), ("x-slack-request-timestamp", "1531420618")];
    assert_tight(&auth, time, "/", &headers, "x-slack-signature", body.as_bytes());
    assert_tight(&auth, time, "/", &headers, "x-slack-request-timestamp", body.as_bytes());
    let parts = parts("/", &headers);
    for (now, right) in [(time - 301, false), (time - 300, true), (time + 300, true), (time + 301, false)] {
        assert_eq!(allowed_at(&auth, now, &parts, body.as_bytes(), None), right, "{now}");
    }
}

/// From the reference libraries: <https://github.com/standard-webhooks/standard-webhooks/tree/main/libraries>
#[test]
fn the_vectors_of_standard_webhooks() {
    let of =
        |secrets: serde_json::Value| auth(serde_json::json!([{ "type": "standard-webhooks", "secrets": secrets }]));
    let right = of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".into());
    let body = br#"{"test": 2432232314}"#;
    let time = 1_614_265_330;
    let signature = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
    let headers = |signature| {
        [
            ("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek"),
            ("webhook-timestamp", "1614265330"),
            ("webhook-signature", signature),
        ]
    };
    for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
        assert_tight(&right, time, "/", &headers(signature), name, body);
    }
    let several = "v1,Ceo5qEr07ixe2NLpvHk3FH9bwy/WavXrAFQ/9tdO6mc= v2,xxx v1a,yyy v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
    let without_version = "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
    let other_version = "v2,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
    for (signatures, expected) in [(several, true), (without_version, false), (other_version, false), ("", false)] {
        assert_eq!(allowed_at(&right, time, &parts("/", &headers(signatures)), body, None), expected, "{signatures}");
    }
    let parts = parts("/", &headers(signature));
    for (now, expected) in [(time - 301, false), (time - 300, true), (time + 300, true), (time + 301, false)] {
        assert_eq!(allowed_at(&right, now, &parts, body, None), expected, "{now}");
    }
    let rotated = of(serde_json::json!(["whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]));
    assert!(allowed_at(&rotated, time, &parts, body, None));
    assert!(!allowed_at(&of("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD".into()), time, &parts, body, None));
    let problem = open(serde_json::json!([{ "type": "standard-webhooks", "secrets": "whsec_no base64" }])).unwrap_err();
    assert!(problem.contains("`ingress.auth.0.secrets.0`") && !problem.contains("no base64"), "{problem}");
}

/// <https://www.twilio.com/docs/usage/webhooks/webhooks-security#validating-signatures-from-twilio>, and the values that Twilio's own
/// libraries are tested with.
#[test]
fn the_examples_of_twilio() {
    // Twilio's example has a token of five characters, which is too short for a secret of ours: the check is put together by hand.
    let twilio = |url: &str, token: &str| {
        let config = serde_json::json!({ "type": "twilio", "url": url, "secrets": "long enough" });
        let config: Config = serde_json::from_value(config).unwrap();
        let secrets = Arc::new(Secrets::short(token, Algorithm::Sha1));
        Auth { checks: vec![Check { config, secrets }], ..Auth::default() }
    };
    let form = "application/x-www-form-urlencoded";
    let uri = "/myapp.php?foo=1&bar=2";
    let body = "To=%2B18005551212&CallSid=CA1234567890ABCDE&Caller=%2B14158675309&Digits=1234&From=%2B14158675309";
    let signature = ("x-twilio-signature", "RSOYDt4T1cUTdK1PDd93/VVr8B8=");
    let headers = [("content-type", form), signature];
    for url in ["https://mycompany.com", "https://mycompany.com/", "https://mycompany.com:443"] {
        assert!(allowed(&twilio(url, "12345"), uri, &headers, body.as_bytes()), "{url}");
    }
    for (url, token, uri, headers, body) in [
        ("http://mycompany.com", "12345", uri, &headers[..], body),
        ("https://mycompany.com", "12346", uri, &headers, body),
        ("https://mycompany.com", "12345", "/myapp.php?foo=1&bar=3", &headers, body),
        ("https://mycompany.com", "12345", uri, &headers[..1], body),
        ("https://mycompany.com", "12345", uri, &headers[1..], body),
        ("https://mycompany.com", "12345", uri, &headers, &body[1..]),
        ("https://mycompany.com", "12345", uri, &headers, ""),
        ("https://mycompany.com", "12345", uri, &headers, "{\"To\":1}"),
    ] {
        assert!(!allowed(&twilio(url, token), uri, headers, body.as_bytes()), "{url} {token} {uri} {headers:?} {body}");
    }
    let plain = "Caller=a&To=b&Digits=1234";
    let key = ring_hmac::Key::new(ring_hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, b"12345");
    let tag = ring_hmac::sign(&key, format!("https://mycompany.com{uri}CalleraDigits1234Tob").as_bytes());
    let tag = base64::Engine::encode(&BASE64, tag);
    let headers = [("content-type", form), ("x-twilio-signature", tag.as_str())];
    assert_tight(
        &twilio("https://mycompany.com", "12345"),
        now(),
        uri,
        &headers,
        "x-twilio-signature",
        plain.as_bytes(),
    );

    // JSON that would be read in place of the fields that are signed, and text that Twilio would percent-encode.
    for body in [
        "\u{feff}{\"a\":\"=\"}",
        " [1]=",
        "{\"a\":1}=x",
        "%7B%22a%22%3A1%7D=",
        "%EF%BB%BF%7B%22a%22%3A1%7D=",
        "payload=%7B%22a%22%3A1%7D",
        "Caller={\"a\":1}&To=b",
        "Caller=\u{e9}",
    ] {
        let mut fields: Vec<_> = form_urlencoded::parse(body.as_bytes()).collect();
        fields.sort();
        let text: String = fields.iter().flat_map(|(name, value)| [&**name, &**value]).collect();
        let tag = ring_hmac::sign(&key, format!("https://mycompany.com{uri}{text}").as_bytes());
        let tag = base64::Engine::encode(&BASE64, tag);
        let headers = [("content-type", form), ("x-twilio-signature", tag.as_str())];
        assert!(!allowed(&twilio("https://mycompany.com", "12345"), uri, &headers, body.as_bytes()), "{body}");
    }

    let json = br#"{"property": "value", "boolean": true}"#;
    let uri = format!("{uri}&bodySHA256=0a1ff7634d9ab3b95db5c9a2dfe9416e41502b283a80c7cf19632632f96e6620");
    let headers = [("content-type", "application/json"), ("x-twilio-signature", "a9nBmqA0ju/hNViExpshrM61xv4=")];
    let auth = twilio("https://mycompany.com", "12345");
    assert_tight(&auth, now(), &uri, &headers, "x-twilio-signature", json);
    // Nothing covers the body.
    let tag = ring_hmac::sign(&key, b"https://mycompany.com/myapp.php?foo=1&bar=2");
    let tag = base64::Engine::encode(&BASE64, tag);
    let headers = [("content-type", "application/json"), ("x-twilio-signature", tag.as_str())];
    assert!(allowed(&auth, "/myapp.php?foo=1&bar=2", &headers, b""));
    assert!(!allowed(&auth, "/myapp.php?foo=1&bar=2", &headers, json));
}
