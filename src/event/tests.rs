use super::*;

const SAMPLES: &str = include_str!("../../tests/support/payloads.ndjson");

fn event(text: &str) -> Event {
    Event::parse(text, 64, Arrival(1_634_721_099_442)).unwrap()
}

#[test]
fn reordered_members_and_values_as_text_are_the_same_event() {
    for line in SAMPLES.lines() {
        let original: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).unwrap();
        let reversed: Vec<String> = original.iter().rev().map(|(name, value)| format!("{name:?} : {value}")).collect();
        let as_text: Vec<String> = original
            .iter()
            .map(|(name, value)| match value {
                serde_json::Value::String(text) => format!("{name:?}:{}", serde_json::json!(text)),
                other => format!("{name:?}:{}", serde_json::json!(other.to_string())),
            })
            .collect();
        let id = event(line).id();
        assert_eq!(event(&format!("{{{}}}", reversed.join(" ,\n"))).id(), id, "{line}");
        assert_eq!(event(&format!("{{{}}}", as_text.join(","))).id(), id, "{line}");
    }
}

#[test]
fn members_that_a_query_string_cannot_tell_apart_do_not_matter() {
    let id = event(r#"{"type":"cdr","team":null,"custom":"","x":{"b":1,"a":[null,"2"]}}"#).id();
    assert_eq!(event(r#"{"x":{"a":["null",2],"b":"1"},"type":"cdr"}"#).id(), id);
    assert_eq!(event(r#"{"type":"cdr","team":"null","x":"{ \"a\": [null, 2], \"b\": \"1\" }"}"#).id(), id);
}

#[test]
fn added_or_changed_content_is_another_event() {
    let mut ids: Vec<EventId> = SAMPLES
        .lines()
        .flat_map(|line| {
            [line.to_owned(), line.replacen('{', r#"{"filename":"late.mp3","#, 1), line.replacen("44", "45", 1)]
        })
        .map(|text| event(&text).id())
        .collect();
    let pairs = [
        r#"{"a":"bc"}"#,
        r#"{"ab":"c"}"#,
        r#"{"a":"b","c":"d"}"#,
        r#"{"a":"b,c:d"}"#,
        r#"{"x":{"a":1}}"#,
        r#"{"x":["a",1]}"#,
        r#"{"x":[["a"],1]}"#,
        r#"{"x":[["a",1]]}"#,
        r#"{"x":"a"}"#,
        r#"{"x":["a"]}"#,
        r#"{"x":{"a":{"b":1},"c":2}}"#,
        r#"{"x":{"a":{"b":1,"c":2}}}"#,
        r#"{"a":1,"a":2}"#,
        r#"{"a":2,"a":1}"#,
        r#"{"a":""}"#,
        r#"{"b":""}"#,
        r#"{"a":null}"#,
        r#"{"a":"","a":1}"#,
        r#"{"team":"a"}"#,
        r#"{"team":"a","team":""}"#,
        r#"{"team":"","team":"a"}"#,
        r#"{"a":7}"#,
        r#"{"a":7.0}"#,
        r#"{"a":9007199254740993}"#,
        r#"{"a":9007199254740992}"#,
        r#"{"a":-0}"#,
        r#"{"a":0}"#,
        r#"{}"#,
    ];
    ids.extend(pairs.map(|text| event(text).id()));
    let count = ids.len();
    ids.sort();
    ids.dedup();
    // Two sample lines hold no "44", so their third variant is the line itself.
    let unchanged = SAMPLES.lines().filter(|line| !line.contains("44")).count();
    assert_eq!(ids.len(), count - unchanged);
}

#[test]
fn lone_surrogates_are_told_apart() {
    let texts = [r"\ud800", r"\ud801", r"\udc00", r"\ud801\ud800", r"\ud800\ud801", "\u{fffd}", r"\ud800\udc00"];
    let events = texts.iter().flat_map(|text| {
        [
            format!("{{\"x\":\"{text}\"}}"),
            format!("{{\"{text}\":1}}"),
            format!("{{\"cmiuuid\":\"{text}\"}}"),
            format!("{{\"x\":{{\"a\":[\"{text}\"]}}}}"),
            format!("{{\"x\":{{\"{text}\":1}}}}"),
            format!("{{\"x\":\"{{{text}\"}}"),
        ]
    });
    let mut ids: Vec<EventId> = events.map(|text| event(&text).id()).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 6 * texts.len());
    assert_eq!(event(r#"{"x":"\ud83d\ude00"}"#).id(), event(r#"{"x":"😀"}"#).id());
}

#[test]
fn the_text_null_identifies_no_more_than_null_does() {
    for (post, get) in [
        (r#"{"type":"cdr","cmiuuid":null,"cmiuid":"m"}"#, r#"{"type":"cdr","cmiuuid":"null","cmiuid":"m"}"#),
        (r#"{"leg":null,"conversation_uuid":null}"#, r#"{"leg":"null","conversation_uuid":"null"}"#),
    ] {
        assert_eq!(event(post).id(), event(get).id());
        assert_eq!(event(post).conversation(), event(get).conversation());
    }
}

#[test]
fn the_conversation_follows_the_documented_chain() {
    let of = |text| event(text).conversation().to_owned();
    assert_eq!(of(r#"{"conversation_uuid":"c","request_id":"r","cmiuuid":"m"}"#), "c");
    assert_eq!(of(r#"{"conversation_uuid":"","request_id":"r","cmiuuid":"m"}"#), "r");
    assert_eq!(of(r#"{"call_id":"k","request_id":"r","cmiuuid":"m"}"#), "k");
    assert_eq!(of(r#"{"conversation_uuid":null,"cmiuuid":"m"}"#), "m");
    assert_eq!(of(r#"{"conversation_uuid":{"x":1},"cmiuid":17}"#), "17");
    assert_eq!(of(r#"{"conversation_uuid":"null","request_id":"null","cmiuuid":"m"}"#), "m");
    assert_eq!(of(r#"{"cmiuuid":{"x":1},"cmiuid":"m"}"#), "m");
    assert_eq!(of(r#"{"cmiuuid":[1],"cmiuid":""}"#), event(r#"{"cmiuuid":[1],"cmiuid":""}"#).id().to_string());
    let alone = event(r#"{"type":"sms"}"#);
    assert_eq!(alone.conversation(), alone.id().to_string());
}

#[test]
fn a_restored_event_is_the_same() {
    for line in SAMPLES.lines() {
        let original = event(line);
        let restored = Event::restore(original.payload(), original.id(), original.conversation(), original.arrival());
        assert_eq!(restored, original.clone().resolved(None));
        assert_eq!(**restored.payload(), *line);
        assert_eq!(Event::restore_unresolved(line, original.id(), original.arrival()), original);
    }
}

#[test]
fn deep_and_large_values_count_by_their_text() {
    let deep = format!("{{\"x\":{}1{}}}", "{\"a\":".repeat(60), "}".repeat(60));
    assert_ne!(event(&deep).id(), event(&deep.replace(":1", ":2")).id());
    let large = format!("{{\"x\":[{}1]}}", "1,".repeat(2000));
    assert_ne!(event(&large).id(), event(&large.replace("1]", "2]")).id());
    assert_ne!(event(&large).id(), event(&large.replace("[", "[[").replace("]", "]]")).id());
    let as_text = format!("{{\"x\":{}}}", json::quote(&large[5..large.len() - 1]));
    assert_eq!(event(&as_text).id(), event(&large).id());
}

#[test]
fn undefined_is_no_conversation() {
    assert_eq!(
        event(r#"{"conversation_uuid":"undefined","request_id":"undefined","cmiuuid":"m"}"#).conversation(),
        "m"
    );
}

#[test]
fn arrival_is_written_as_rfc_3339() {
    assert_eq!(Arrival(1_634_721_099_442).to_string(), "2021-10-20T09:11:39.442Z");
}
