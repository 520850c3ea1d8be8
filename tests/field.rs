//! Requests as real senders make them: each is the events that the sender means.

use serde_json::{Value, json};

use crate::command_line::finished;
use crate::support::bridge::command;
use crate::support::oracle::settled;
use crate::support::raw::Raw;
use crate::support::{ANY_PORTS, Bridge, PATIENCE, eventually};

const FORM: &str = "application/x-www-form-urlencoded";
const JSON: &str = "application/json";
const KEY: &str = "key = '{team}/{conversation_uuid}/{query.tenant|-}/{extra_params.tenant|-}'\n";

/// Sends one request on a connection of its own; answers the keys and events that it becomes on stdout.
async fn events_of(method_and_target: &str, content_type: &str, body: &[u8]) -> Vec<(String, Value)> {
    let bridge = Bridge::start(&format!("{ANY_PORTS}[sinks.stdout]\ntype = 'stdout'\n{KEY}")).await;
    send(&bridge, method_and_target, content_type, body).await;
    settled(&bridge, &["stdout"]).await;
    let lines = bridge.stdout_lines().into_iter().map(|line| serde_json::from_str::<Value>(&line).unwrap());
    lines.map(|line| (line["key"].as_str().unwrap().to_owned(), line["event"].clone())).collect()
}

async fn send(bridge: &Bridge, method_and_target: &str, content_type: &str, body: &[u8]) {
    let mut request = format!("{method_and_target} HTTP/1.1\r\nHost: localhost\r\n");
    if !content_type.is_empty() {
        request += &format!("Content-Type: {content_type}\r\nContent-Length: {}\r\n", body.len());
    }
    let mut connection = Raw::connect(bridge).await;
    connection.send([request.as_bytes(), b"\r\n", body].concat()).await;
    let answer = connection.answer().await;
    assert_eq!(answer.status, 200, "{method_and_target}: {}", answer.text());
}

#[tokio::test]
async fn the_parts_of_a_multipart_body_are_one_event() {
    let part = |name: &str, text: &str| {
        format!("------8a2f\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{text}\r\n")
    };
    let fields = [
        ("CallSid", "f02"),
        ("Status", "completed"),
        ("RecordingUrl", "https://rec.example/a.mp3"),
        ("DateUpdated", "2024-01-15 14:30:45"),
    ];
    let body = fields.map(|(name, text)| part(name, text)).concat() + "------8a2f--\r\n";
    let content_type = "multipart/form-data; boundary=----8a2f";
    let events = events_of("POST /webhook/cdr", content_type, body.as_bytes()).await;
    let expected: serde_json::Map<_, _> =
        fields.into_iter().map(|(name, text)| (name.to_owned(), json!(text))).collect();
    assert_eq!(events.into_iter().map(|(_, event)| event).collect::<Vec<_>>(), [Value::Object(expected)]);
}

#[tokio::test]
async fn a_query_without_a_body_that_says_anything_is_one_event() {
    let query = "type=cdr&appid=2222223&cmiuuid=f03&status=missed&team=Sales";
    for (method, body) in [("POST", ""), ("GET", "[]"), ("GET", "{}"), ("GET", "null"), ("POST", " \r\n")] {
        let events = events_of(&format!("{method} /webhook/cdr?{query}"), JSON, body.as_bytes()).await;
        let event = json!({ "type": "cdr", "appid": "2222223", "cmiuuid": "f03", "status": "missed", "team": "Sales" });
        assert_eq!(events, [("Sales/f03/-/-".to_owned(), event)], "{method} {body:?}");
    }
}

#[tokio::test]
async fn an_object_without_members_is_answered_with_200_and_stored_nowhere() {
    let bridge = Bridge::start(&format!("{ANY_PORTS}[sinks.stdout]\ntype = 'stdout'\n")).await;
    for body in ["{}", "[{},{}]", "[]"] {
        let answer = bridge.post(body, JSON).await;
        assert_eq!((answer.status, answer.json()), (200, json!({ "stored": 0, "duplicates": 0 })), "{body}");
    }
}

#[tokio::test]
async fn unencoded_json_in_a_form_field_stays_complete_and_two_calls_stay_two() {
    let bridge = Bridge::start(&format!("{ANY_PORTS}[sinks.stdout]\ntype = 'stdout'\n{KEY}")).await;
    for conversation in ["f05-1", "f05-2"] {
        let body = format!(
            r#"data={{"team":"R&D_2222223","type":"cdr","appid":2222223,"conversation_uuid":"{conversation}","status":"missed"}}"#
        );
        send(&bridge, "POST /webhook/cdr", FORM, body.as_bytes()).await;
    }
    settled(&bridge, &["stdout"]).await;
    let lines = bridge.stdout_lines().into_iter().map(|line| serde_json::from_str::<Value>(&line).unwrap());
    let keys: Vec<_> = lines.map(|line| line["key"].as_str().unwrap().to_owned()).collect();
    assert_eq!(keys, ["R&D_2222223/f05-1/-/-", "R&D_2222223/f05-2/-/-"]);
}

#[tokio::test]
async fn requests_that_differ_in_anything_are_stored_each() {
    let bridge = Bridge::start(&format!("{ANY_PORTS}[sinks.stdout]\ntype = 'stdout'\n")).await;
    let stored = json!({ "stored": 1, "duplicates": 0 });
    for query in ["a", "b", "a=null", "a&b"] {
        assert_eq!(bridge.get(query).await.json(), stored, "{query}");
    }
    for form in ["conversation_uuid=c&team=Sales#1&status=missed", "conversation_uuid=c&team=Sales#2&status=missed"] {
        assert_eq!(bridge.post(form, FORM).await.json(), stored, "{form}");
    }
    for form in ["cmiuuid=m&agent=Jos%E9", "cmiuuid=m&agent=Jos%E8"] {
        assert_eq!(bridge.post(form, FORM).await.status, 400, "{form}");
        assert_eq!(bridge.post(form, &format!("{FORM}; charset=ISO-8859-1")).await.json(), stored, "{form}");
    }
}

#[tokio::test]
async fn the_text_null_is_no_team_and_no_conversation() {
    for absent in ["null", "undefined"] {
        let query =
            format!("type=cdr&appid=2222223&cmiuuid=f07a&conversation_uuid={absent}&status=missed&team={absent}");
        let events = events_of(&format!("GET /webhook/cdr?{query}"), "", b"").await;
        assert_eq!(events.into_iter().map(|(key, _)| key).collect::<Vec<_>>(), ["unassigned/f07a/-/-"]);
    }
}

#[tokio::test]
async fn a_form_is_decoded_by_its_charset() {
    let content_type = format!("{FORM}; charset=ISO-8859-1");
    let events = events_of("POST /webhook/cdr", &content_type, b"type=cdr&cmiuuid=f09a&user=Jos%E9&team=Caf%E9").await;
    let event = json!({ "type": "cdr", "cmiuuid": "f09a", "user": "José", "team": "Café" });
    assert_eq!(events, [("Café/f09a/-/-".to_owned(), event)]);
}

#[tokio::test]
async fn an_envelope_without_a_count_holds_its_events() {
    let body = br#"{"cdr":[{"cmiuid":"f12-1","from":440000000000,"to":440000000001,"duration":13},{"cmiuid":"f12-2","from":440000000000,"to":440000000001,"duration":14}],"code":200}"#;
    let events = events_of("POST /webhook/cdr", JSON, body).await;
    assert_eq!(
        events.into_iter().map(|(key, _)| key).collect::<Vec<_>>(),
        ["unassigned/f12-1/-/-", "unassigned/f12-2/-/-"]
    );
}

#[tokio::test]
async fn templates_use_the_query_beside_the_body_and_nested_fields() {
    let query = "POST /webhook/cdr?tenant=acme&lead=42";
    let events = events_of(query, JSON, br#"{"type":"cdr","cmiuuid":"f13"}"#).await;
    assert_eq!(events, [("unassigned/f13/acme/-".to_owned(), json!({ "type": "cdr", "cmiuuid": "f13" }))]);
    for params in [r#"{"lead":"42","tenant":"acme"}"#, r#""{\"lead\":\"42\",\"tenant\":\"acme\"}""#] {
        let body = format!(r#"{{"type":"cdr","cmiuuid":"f17","extra_params":{params}}}"#);
        let events = events_of("POST /webhook/cdr", JSON, body.as_bytes()).await;
        assert_eq!(events.into_iter().map(|(key, _)| key).collect::<Vec<_>>(), ["unassigned/f17/-/acme"]);
    }
}

#[tokio::test]
async fn the_query_beside_a_body_goes_through_dead_letters_and_their_replay() {
    let config = |topic: &str| format!("{ANY_PORTS}[sinks.stdout]\ntype = 'stdout'\ntopic = '{topic}'\n{KEY}");
    let mut bridge = Bridge::start(&config("{user}")).await;
    send(&bridge, "POST /webhook/cdr?tenant=acme&lead=42", JSON, br#"{"type":"cdr","cmiuuid":"f13"}"#).await;
    settled(&bridge, &["stdout"]).await;
    assert!(bridge.stdout_lines().is_empty(), "an empty topic is refused");

    bridge.terminate();
    assert!(bridge.wait(PATIENCE).await.success());
    std::fs::write(bridge.directory().join("cdrelay.toml"), config("cdr")).unwrap();
    bridge.start_again().await;
    let arguments = ["dead-letters", "replay", "--sink", "stdout", "--config", "cdrelay.toml"];
    let replay = finished(command().current_dir(bridge.directory()).args(arguments));
    assert_eq!(replay.code, Some(0), "{replay:?}");
    eventually(PATIENCE, "it is published", async || !bridge.stdout_lines().is_empty()).await;
    let line: Value = serde_json::from_str(&bridge.stdout_lines()[0]).unwrap();
    assert_eq!(line["key"], "unassigned/f13/acme/-");
}

/// Where a pipelined request begins is not known when its `#` is read.
#[tokio::test]
async fn a_pipelined_request_that_may_be_cut_off_is_refused() {
    let bridge = Bridge::start(&format!("{ANY_PORTS}[sinks.stdout]\ntype = 'stdout'\n{KEY}")).await;
    let get = |query: &str| format!("GET /webhook/cdr?{query} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let first = get("conversation_uuid=c&team=Sales#1");
    let stored = json!({ "stored": 1, "duplicates": 0 });
    let mut number = 0;
    // In one piece, in the middle of the second line, between the two, and behind a body.
    for cut in [None, Some(first.len() + 20), Some(first.len() + 60), Some(first.len())] {
        number += 1;
        let both = first.clone() + &get(&format!("conversation_uuid=d&n={number}&team=Sales#2&status=missed"));
        let (one, other) = both.split_at(cut.unwrap_or(both.len()));
        let mut connection = Raw::connect(&bridge).await;
        connection.send(one).await;
        if !other.is_empty() {
            assert_eq!(connection.answer().await.status, 200);
            connection.send(other).await;
        } else {
            assert_eq!(connection.answer().await.status, 200);
        }
        let second = connection.answer().await;
        match cut {
            Some(cut) if cut == first.len() => assert_eq!(second.json(), stored),
            _ => {
                assert_eq!(second.status, 400, "{cut:?}: {}", second.text());
                assert!(connection.ends(PATIENCE).await);
            }
        }
    }
    let body = "{\"n\":\"#\"}";
    let request = Raw::post(body) + &get("conversation_uuid=e&team=Sales#3");
    let mut connection = Raw::connect(&bridge).await;
    connection.send(request).await;
    assert_eq!((connection.answer().await.status, connection.answer().await.status), (200, 400));
    let mut pipelined = Raw::connect(&bridge).await;
    pipelined.send(get("conversation_uuid=f&n=1") + &get("conversation_uuid=f&n=2")).await;
    assert_eq!((pipelined.answer().await.json(), pipelined.answer().await.json()), (stored.clone(), stored));
    let malformed = bridge.metric("cdrelay_ingress_malformed_requests_total{reason=\"uri\"}").await;
    assert_eq!(malformed, Some(4.0));
    settled(&bridge, &["stdout"]).await;
    let lines = bridge.stdout_lines().concat();
    assert!(!lines.contains("\"team\":\"Sales\""), "{lines}");
}

#[tokio::test]
async fn a_number_sign_in_a_query_cuts_nothing_off() {
    let bridge = Bridge::start(&format!("{ANY_PORTS}[sinks.stdout]\ntype = 'stdout'\n{KEY}")).await;
    let mut connection = Raw::connect(&bridge).await;
    let query = |number| format!("conversation_uuid=c&team=Sales#{number}&status=missed#");
    for number in 1..4 {
        // The second line comes in two pieces, and a body holds what looks like a request.
        let request = format!("GET /webhook/cdr?{} HTTP/1.1\r\nHost: localhost\r\n\r\n", query(number));
        let (first, second) = request.split_at(if number == 2 { 40 } else { request.len() });
        connection.send(first).await;
        tokio::task::yield_now().await;
        connection.send(second).await;
        assert_eq!(connection.answer().await.json(), json!({ "stored": 1, "duplicates": 0 }));
        let body = format!("{{\"n\":{number},\"x\":\n\"GET /?a#b HTTP/1.1\\r\\n\"}}");
        connection.send(Raw::head("POST", &format!("content-length: {}\r\n", body.len()))).await;
        connection.send(body).await;
        assert_eq!(connection.answer().await.json(), json!({ "stored": 1, "duplicates": 0 }));
    }
    settled(&bridge, &["stdout"]).await;
    let events: Vec<Value> = bridge
        .stdout_lines()
        .iter()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["event"].clone())
        .collect();
    for number in 1..4 {
        let team = format!("Sales#{number}");
        assert!(events.contains(&json!({ "conversation_uuid": "c", "team": team, "status": "missed#" })), "{events:?}");
        assert!(events.contains(&json!({ "n": number, "x": "GET /?a#b HTTP/1.1\r\n" })), "{events:?}");
    }
}
