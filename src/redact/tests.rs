use super::*;
use crate::event::Arrival;

const KEY: &str = "a key of at least sixteen bytes\n";

fn redaction(config: &str) -> (Redaction, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key");
    std::fs::write(&path, KEY).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(config).unwrap();
    if config.get("hash").is_some() {
        config["key_file"] = path.to_str().into();
    }
    (Redaction::open(&serde_json::from_value(config).unwrap()).unwrap().unwrap(), directory)
}

fn redacted(config: &str, event: &str) -> String {
    let event = Event::parse(event, 64, Arrival(7)).unwrap();
    let after = redaction(config).0.apply(&event);
    assert_eq!(
        (after.id(), after.conversation(), after.arrival()),
        (event.id(), event.conversation(), event.arrival())
    );
    serde_json::from_str::<&serde_json::value::RawValue>(after.payload()).unwrap();
    after.payload().to_string()
}

#[test]
fn other_bytes_stay_as_they_are() {
    let event =
        "{ \"a\" : 1.50,\n\"from\":440000000001 ,\"b\":\"\\u00e9\", \"from\" : \"+440000000001\",\"c\":[ 1e999 ] }";
    assert_eq!(
        redacted(r#"{"mask":"from"}"#, event),
        "{ \"a\" : 1.50,\n\"from\":\"+44******0001\" ,\"b\":\"\\u00e9\", \"from\" : \"+44******0001\",\"c\":[ 1e999 ] }"
    );
    assert_eq!(redacted(r#"{"drop":"from"}"#, event), "{ \"a\" : 1.50 ,\"b\":\"\\u00e9\",\"c\":[ 1e999 ] }");
    assert_eq!(
        redacted(r#"{"drop":["a","c"]}"#, event),
        event.replace("\"a\" : 1.50,\n", "").replace(",\"c\":[ 1e999 ]", "")
    );
    assert_eq!(redacted(r#"{"drop":["a"]}"#, r#"{"a":1}"#), "{}");
    assert_eq!(redacted(r#"{"mask":["x","a.b"]}"#, event), event);
}

#[test]
fn numbers_hash_alike_however_they_are_written() {
    let hash = |value: &str| redacted(r#"{"hash":["from"]}"#, &format!("{{\"from\":{value}}}"));
    let expected = hash("440000000001");
    let digits = expected.split('"').nth(3).unwrap();
    assert!(digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()), "{expected}");
    for same in [
        r#""440000000001""#,
        r#""+440000000001""#,
        r#""+44 0000 000-001""#,
        r#""00440000000001""#,
        r#"" 440000000001 ""#,
    ] {
        assert_eq!(hash(same), expected, "{same}");
    }
    for other in ["440000000002", r#""anonymous""#, "440000000001.5", r#""sip:440000000001@x""#] {
        assert_ne!(hash(other), expected, "{other}");
    }
    // `printf 440000000001 | openssl dgst -sha256 -hmac 'a key of at least sixteen bytes'`
    assert_eq!(digits, "a0e30274af4b94f2cb50dc012b47f2e09e8aacfd6384f307318d5ab6bb34ad04");
    for stays in ["null", "\"\"", "true"] {
        assert_eq!(hash(stays), format!("{{\"from\":{stays}}}"));
    }
}

#[test]
fn a_mask_shows_the_ends_of_long_numbers_alone() {
    for (value, expected) in [
        ("440000000001", "+44******0001"),
        ("\"4400000001\"", "+44****0001"),
        ("440000001", "******"),
        ("204", "******"),
        ("\"204_2222223\"", "******"),
        ("\"sip:440000000001@example.com\"", "******"),
        ("4.4e11", "******"),
        ("\"\\ud800\"", "******"),
    ] {
        assert_eq!(
            redacted(r#"{"mask":["to"]}"#, &format!("{{\"to\":{value}}}")),
            format!("{{\"to\":\"{expected}\"}}")
        );
    }
}

#[test]
fn paths_lead_through_objects_arrays_and_json_in_texts() {
    let rules = r#"{"mask":["p.phone"],"drop":["p.name"]}"#;
    for (event, expected) in [
        (r#"{"p":{"phone":440000000001,"name":"A"}}"#, r#"{"p":{"phone":"+44******0001"}}"#),
        (r#"{"p":[{"name":"A", "phone":"440000000001"}, 7]}"#, r#"{"p":[{"phone":"+44******0001"}, 7]}"#),
        (r#"{"p":"{ \"phone\": 440000000001 }"}"#, r#"{"p":"{ \"phone\": \"+44******0001\" }"}"#),
        (r#"{"p":"[{\"name\":\"A\"}]"}"#, r#"{"p":"[{}]"}"#),
        // It begins as JSON and is none: nothing tells where the number is.
        (r#"{"p":"{ 'phone': 440000000001 }"}"#, r#"{"p":"******"}"#),
        (r#"{"p":"none"}"#, r#"{"p":"none"}"#),
        (
            r#"{"p":{"phone":[440000000001,{"x":"440000000001"}]}}"#,
            r#"{"p":{"phone":["+44******0001",{"x":"+44******0001"}]}}"#,
        ),
        (r#"{"\u0070":{"ph\u006fne":440000000001}}"#, r#"{"\u0070":{"ph\u006fne":"+44******0001"}}"#),
    ] {
        assert_eq!(redacted(rules, event), expected, "{event}");
    }
    // A text is one value, also where it holds JSON.
    assert_eq!(redacted(r#"{"mask":["p"]}"#, r#"{"p":"{\"phone\":440000000001}"}"#), r#"{"p":"******"}"#);
}

#[test]
fn mistakes_are_found_at_load() {
    let problem = |config: &str| Redaction::open(&serde_json::from_str(config).unwrap()).unwrap_err();
    assert_eq!(problem(r#"{"hash":["from"]}"#).key, "redact.key_file");
    assert_eq!(problem(r#"{"mask":["from"],"key_file":"/nowhere"}"#).key, "redact.key_file");
    assert!(problem(r#"{"hash":["from"],"key_file":"/nowhere"}"#).text.contains("/nowhere: cannot be read"));
    assert_eq!(problem(r#"{"mask":["a..b"]}"#).key, "redact.mask");
    assert_eq!(problem(r#"{"drop":["conversation_uuid"]}"#).key, "redact.drop");
    assert!(Redaction::open(&Config::default()).unwrap().is_none());
}

#[test]
fn a_changed_key_is_used_and_a_short_one_never() {
    let (redaction, directory) = redaction(r#"{"hash":["from"]}"#);
    let event = Event::parse(r#"{"from":"440000000001"}"#, 9, Arrival(0)).unwrap();
    let hash = || redaction.apply(&event).payload().to_string();
    let first = hash();
    let key = redaction.key().unwrap();
    let write = |text: &str| {
        std::fs::write(directory.path().join("key"), text).unwrap();
        (0..2).for_each(|_| key.poll("x"));
    };
    write("short");
    assert_eq!(hash(), first);
    write("another key of at least sixteen bytes");
    assert_ne!(hash(), first);
    write(KEY);
    assert_eq!(hash(), first);
}
