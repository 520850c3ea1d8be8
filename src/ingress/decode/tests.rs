use super::*;

const SAMPLES: &str = include_str!("../../../tests/support/payloads.ndjson");
const FORM: Option<&[u8]> = Some(b"application/x-www-form-urlencoded; charset=utf-8");
const JSON: Option<&[u8]> = Some(b"application/json");

fn decode(text: impl AsRef<[u8]>, content_type: Option<&[u8]>) -> Result<Vec<Event>, DecodeError> {
    body(text.as_ref(), content_type, &Config::default(), Arrival(1))
}

fn body(
    bytes: &[u8],
    content_type: Option<&[u8]>,
    config: &Config,
    arrival: Arrival,
) -> Result<Vec<Event>, DecodeError> {
    Content { method: "POST", query: None, content_type, body: bytes }.decode(config, arrival)
}

fn get(query: &str) -> Result<Vec<Event>, DecodeError> {
    Content { method: "GET", query: Some(query), content_type: None, body: b"" }.decode(&Config::default(), Arrival(2))
}

fn payloads_of(events: &[Event]) -> Vec<String> {
    events.iter().map(|event| event.payload().to_string()).collect()
}

fn payloads(text: impl AsRef<[u8]>, content_type: Option<&[u8]>) -> Vec<String> {
    payloads_of(&decode(text, content_type).unwrap())
}

fn detail(text: impl AsRef<[u8]>) -> String {
    decode(text, JSON).unwrap_err().to_string()
}

#[test]
fn objects_arrays_lines_and_envelopes_keep_the_exact_bytes() {
    let lines: Vec<_> = SAMPLES.lines().collect();
    for line in &lines {
        for content_type in [JSON, FORM, None, Some(b"text/plain")] {
            assert_eq!(payloads(format!("\u{feff} {line}\r\n"), content_type), [*line]);
        }
    }
    assert_eq!(payloads(format!("[{}]", lines.join(" ,\n")), JSON), lines);
    assert_eq!(payloads(SAMPLES, JSON), lines);
    assert_eq!(payloads(lines.join("\r\n\n"), None), lines);
    let exact = r#"{"n":1.50,"n":1e999,"s":"\ud800\/","big":123456789012345678901234567890}"#;
    assert_eq!(payloads(format!("[ {exact} ]"), JSON), [exact]);
}

#[test]
fn envelopes_with_and_without_count_hold_their_events() {
    let lines: Vec<_> = SAMPLES.lines().collect();
    let events = lines.join(",");
    for envelope in [
        format!("{{\"count\":11,\"cdr\":[{events}],\"code\":200}}"),
        format!("{{\"cdr\":[{events}],\"code\":200}}"),
        format!("{{\"cdr\":[{events}]}}"),
    ] {
        assert_eq!(payloads(envelope, JSON), lines);
    }
    for event in [r#"{"count":1,"cdr":[{"x":1}],"cmiuuid":"m"}"#, r#"{"cdr":{"x":1}}"#, r#"{"calls":[{"x":1}]}"#] {
        assert_eq!(payloads(event, JSON), [event]);
    }
    let config = Config { envelopes: vec!["calls".into()], ..Config::default() };
    let events = body(br#"{"calls":[{"x":1},{"x":2}]}"#, JSON, &config, Arrival(1)).unwrap();
    assert_eq!(payloads_of(&events), [r#"{"x":1}"#, r#"{"x":2}"#]);
}

#[test]
fn fields_become_an_object_of_texts() {
    let expected = [r#"{"team":"Sales \"1\"","custom":"{\"crm\":\"true\"}","a":"","a":"é\n"}"#];
    let form = "team=Sales+%221%22&custom=%7B%22crm%22:%22true%22%7D&a=&a=%C3%A9%0A";
    assert_eq!(payloads(form, FORM), expected);
    assert_eq!(payloads(form, JSON), expected);
    assert_eq!(payloads(form, None), expected);
    assert!(get("").unwrap().is_empty());
    assert!(get("&&").unwrap().is_empty());
}

#[test]
fn one_field_may_hold_the_complete_json() {
    for field in ["data", "payload", "myoperator"] {
        let encoded: String = form_urlencoded::Serializer::new(String::new()).append_pair(field, SAMPLES).finish();
        assert_eq!(payloads(encoded, FORM), SAMPLES.lines().collect::<Vec<_>>());
    }
    assert_eq!(payloads("data=%7B%7D&x=1", FORM), [r#"{"data":"{}","x":"1"}"#]);
    assert_eq!(payloads("data=text", FORM), [r#"{"data":"text"}"#]);
    let error = decode("data=%7B'a':1%7D", FORM).unwrap_err().to_string();
    assert!(error.contains("`data`") && error.contains("column 2"), "{error}");
}

#[test]
fn json_that_is_not_encoded_stays_complete_behind_its_fields_name() {
    let event = r#"{"team":"R&D_2222223","to":"+44=1","note":"100%25","conversation_uuid":"c"}"#;
    for content_type in [FORM, None, JSON] {
        assert_eq!(payloads(format!("data={event}"), content_type), [event]);
        assert_eq!(payloads(format!("payload=[{event},{event}]\r\n"), content_type), [event, event]);
    }
    let fields = decode(format!("type=cdr&custom={event}&user=a"), FORM).unwrap();
    let quoted = json::quote(event);
    assert_eq!(payloads_of(&fields), [format!("{{\"type\":\"cdr\",\"custom\":{quoted},\"user\":\"a\"}}")]);
    // Broken JSON is refused, not cut at the ampersand.
    let error = decode(r#"data={"team":"R&D","type":}"#, FORM).unwrap_err().to_string();
    assert!(error.contains("`data`") && error.contains("line 1"), "{error}");
}

#[test]
fn json_may_stand_in_place_of_a_form_fields_name() {
    let event = r#"{"team":"R&D","type":"cdr"}"#;
    let encoded: String = form_urlencoded::byte_serialize(event.as_bytes()).collect();
    for content_type in [FORM, JSON, None] {
        assert_eq!(payloads(format!("{event}="), content_type), [event]);
        assert_eq!(payloads(format!("{encoded}="), content_type), [event]);
    }
    assert_eq!(payloads(&encoded, FORM), [event]);
    assert_eq!(payloads_of(&get(&encoded).unwrap()), [event]);
}

#[test]
fn multipart_parts_become_an_object_of_texts() {
    let part = |name: &str, more: &str, text: &str| {
        format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n{more}\r\n{text}\r\n")
    };
    let multipart = Some(&b"multipart/form-data; boundary=b"[..]);
    let two = part("team", "", "Verkäufe\r\n1") + &part("user", "Content-Type: text/plain\r\n", "") + "--b--\r\n";
    assert_eq!(payloads(&two, multipart), [r#"{"team":"Verkäufe\r\n1","user":""}"#]);
    let event = r#"{"type":"cdr","team":"R&D"}"#;
    assert_eq!(payloads(part("data", "", event) + "--b--", multipart), [event]);
    let latin = part("team", "Content-Type: text/plain; charset=iso-8859-1\r\n", "Caf?") + "--b--";
    let latin: Vec<u8> = latin.bytes().map(|byte| if byte == b'?' { 0xE9 } else { byte }).collect();
    assert_eq!(payloads(&latin, multipart), [r#"{"team":"Café"}"#]);
    let undeclared: Vec<u8> = two.replace('ä', "?").bytes().map(|b| if b == b'?' { 0xE4 } else { b }).collect();
    assert!(decode(&undeclared, multipart).is_err());
    for broken in [&two[..two.len() - 6], "--b\r\n", "", &part("x", "", "1").replace("name=", "nam=")] {
        assert!(decode(broken, multipart).is_err(), "{broken:?}");
    }
    assert!(decode(&two, Some(b"multipart/form-data")).is_err());
    let many = (0..1001).map(|number| part(&number.to_string(), "", "")).collect::<String>() + "--b--";
    assert!(decode(many, multipart).unwrap_err().to_string().contains("more than 1000 fields"));
}

#[test]
fn bytes_that_are_not_utf_8_are_decoded_by_their_declared_charset_or_refused() {
    let latin1 = Some(&b"application/x-www-form-urlencoded; Charset=\"ISO-8859-1\""[..]);
    let [e, f] = ["user=Jos%E9&team=Caf%E9", "user=Jos%E8&team=Caf%E9"].map(|form| decode(form, latin1).unwrap());
    assert_eq!(payloads_of(&e), [r#"{"user":"José","team":"Café"}"#]);
    assert_eq!(payloads(b"user=Jos\xE9", latin1), [r#"{"user":"José"}"#]);
    assert_ne!(e[0].id(), f[0].id());
    for form in ["agent=Jos%E9", "agent%E9=Jos", "agent=Jos%C3"] {
        assert!(decode(form, FORM).is_err() && decode(form, None).is_err() && get(form).is_err(), "{form}");
    }
    // JSON is UTF-8 whatever is declared, unless it is not.
    let json = Some(&b"application/json; charset=iso-8859-1"[..]);
    assert_eq!(payloads("{\"user\":\"José\"}", json), ["{\"user\":\"José\"}"]);
    assert_eq!(payloads(b"{\"user\":\"Jos\xE9\"}", json), ["{\"user\":\"José\"}"]);
    assert!(detail(b"{\"a\":\"\xc3\xa9\xff\"}").starts_with("line 1, column 9: not valid UTF-8"));
}

#[test]
fn a_number_sign_cuts_nothing_off() {
    let form = "conversation_uuid=c&team=Sales#1&status=missed";
    assert_eq!(payloads(form, FORM), [r##"{"conversation_uuid":"c","team":"Sales#1","status":"missed"}"##]);
    assert_eq!(payloads(form, None), payloads(form, FORM));
    assert_eq!(payloads_of(&get(form).unwrap()), payloads(form, FORM));
}

#[test]
fn a_body_that_says_nothing_does_not_hide_the_query() {
    let query = "type=cdr&cmiuuid=m&team=Sales";
    let by = |method, body: &'static str, query| {
        Content { method, query, content_type: JSON, body: body.as_bytes() }.decode(&Config::default(), Arrival(1))
    };
    let expected = get(query).unwrap();
    for body in ["", " \r\n", "\u{feff}", "[]", "{}", "[ {} ]", "{ }\n{}", "null", " null\n"] {
        for method in ["GET", "POST"] {
            let events = by(method, body, Some(query)).unwrap();
            assert_eq!(payloads_of(&events), payloads_of(&expected), "{method} {body:?}");
            assert_eq!((events[0].id(), events[0].query()), (expected[0].id(), None));
        }
        assert_eq!(by("GET", body, None), Ok(vec![]), "{body:?}");
    }
    for body in ["[]", "{}", "[{},{}]"] {
        assert_eq!(by("POST", body, None), Ok(vec![]), "{body:?}");
    }
    for body in ["", " \n", "null"] {
        assert!(by("POST", body, None).is_err(), "{body:?}");
        assert!(by("POST", body, Some("")).is_err(), "{body:?}");
    }
}

#[test]
fn the_query_beside_a_body_goes_with_its_events_and_not_into_their_identity() {
    let body = br#"[{"type":"cdr","n":1},{"type":"cdr","n":2}]"#;
    let with = |query| {
        Content { method: "POST", query, content_type: JSON, body }.decode(&Config::default(), Arrival(1)).unwrap()
    };
    let [events, bare] = [with(Some("tenant=acme&lead=42")), with(None)];
    assert_eq!(events.iter().map(Event::query).collect::<Vec<_>>(), [Some("tenant=acme&lead=42"); 2]);
    assert_eq!(events[1].query_parameter("lead").as_deref(), Some("42"));
    assert_eq!((events[0].id(), bare[0].query()), (bare[0].id(), None));
}

#[test]
fn get_and_post_of_one_event_have_one_identity() {
    let post =
        decode(r#"{"type":"cdr","appid":2222223,"voicemail":true,"team":null,"x":{"deep":[1,{"y":null}]}}"#, JSON)
            .unwrap();
    let get_query =
        "x=%7B%22deep%22%3A%20%5B1%2C%20%7B%22y%22%3A%20null%7D%5D%7D&appid=2222223&type=cdr&voicemail=true&team=null";
    assert_eq!(get(get_query).unwrap()[0].id(), post[0].id());

    // Something other than an identifier in its place.
    let post = r#"{"appid":{},"app_id":"7","conversation_uuid":[ "a" ],"request_id":"r","cmiuuid":"[b"}"#;
    let by_get = get("appid=%7B%7D&app_id=7&conversation_uuid=%5B+%22a%22+%5D&request_id=r&cmiuuid=%5Bb").unwrap();
    let post = decode(post, JSON).unwrap();
    assert_eq!((by_get[0].id(), by_get[0].conversation()), (post[0].id(), "r"));
    assert_eq!(post[0].conversation(), "r");
}

#[test]
fn two_requests_that_differ_are_two_events() {
    let requests =
        ["a", "b", "a=", "a=1", "a=null", "note=", "note=null&a", "note=&a", "=", "a&a", "a=1&a", "a&a=1", "type=cdr"];
    let mut ids: Vec<_> = requests.iter().map(|query| get(query).unwrap()[0].id()).collect();
    ids.sort();
    ids.dedup();
    // `a` and `a=` are one form.
    assert_eq!(ids.len(), requests.len() - 1);
}

#[test]
fn errors_say_where_it_goes_wrong() {
    let documented = "{ virtual_number: 440000000000, custom: '{\"crm\":\"true\"}', appid: 2222223, type: 'cdr', direction: 'inbound', status: 'missed' }";
    let error = detail(documented);
    assert!(error.starts_with("line 1, column 3: ") && error.contains("JavaScript object literal"), "{error}");
    assert!(detail("{\"a\":1}\n{\"b\":}\n").starts_with("line 2, column 6: expected value"));
    assert!(detail("[{\"a\":1},\n 7]").starts_with("line 2, column 2: element 2 of the array is not an object"));
    assert!(detail("{\"a\":1} {\"b\":2}").contains("line of its own"));
    assert!(detail("[{\"a\":1}]\n{}").contains("nothing after the array"));
    for text in ["", " \n", "null", "42", "\"text\"", "hello", "<xml a='b'/>", "--boundary\r\nname=x", "{\"cdr\":[1]}"]
    {
        assert!(decode(text, JSON).is_err(), "{text:?}");
    }
    assert!(detail("[".repeat(50_000)).contains("64 levels"));
    assert!(detail("{\"a\":".repeat(50_000)).contains("64 levels"));
    assert!(detail("{\"a\":[").contains("EOF"));
}

#[test]
fn the_numbers_of_events_and_fields_are_bounded() {
    let array = |count: usize| format!("[{}]", vec!["{\"a\":1}"; count].join(","));
    let lines = |count: usize| vec!["{\"a\":1}"; count].join("\n");
    let form = |count: usize| vec!["a"; count].join("&") + "=";
    let object = |count: usize| format!("{{{}}}", vec!["\"a\":1"; count].join(","));
    assert_eq!(decode(array(1000), JSON).unwrap().len(), 1000);
    assert_eq!(decode(array(1001), JSON), Err(DecodeError::TooMany { limit: 1000 }));
    assert_eq!(decode(lines(1000), JSON).unwrap().len(), 1000);
    assert_eq!(decode(lines(1001), JSON), Err(DecodeError::TooMany { limit: 1000 }));
    assert!(decode(form(1000), FORM).is_ok() && decode(object(1000), JSON).is_ok());
    for text in [form(1001), object(1001)] {
        assert!(decode(text, FORM).unwrap_err().to_string().contains("more than 1000 fields"));
    }
}

#[test]
fn the_size_of_a_forms_event_is_bounded() {
    let of = |form: &str, max_event: usize| {
        let config = Config { max_event, ..Config::default() };
        body(form.as_bytes(), FORM, &config, Arrival(1)).map(|events| events[0].payload().to_string())
    };
    for (form, payload) in [("a=\u{1}&b=%0A", r#"{"a":"\u0001","b":"\n"}"#), ("a=%22", r#"{"a":"\""}"#)] {
        assert_eq!(of(form, payload.len()).as_deref(), Ok(payload));
        let limit = payload.len() - 1;
        assert_eq!(of(form, limit), Err(DecodeError::TooLarge { bytes: payload.len(), limit }));
    }
}

/// A release build takes 2 to 30 ms for any of them; a debug build some thirty times that. Quadratic work would take minutes.
#[test]
fn the_largest_body_of_any_shape_is_decoded_in_linear_time() {
    let size = 1 << 20;
    let fill = |start: &str, piece: &str, end: &str| {
        start.to_owned() + &piece.repeat((size - start.len() - end.len()) / piece.len()) + end
    };
    let deep = |open: &str, close: &str| {
        fill(&("{\"x\":".to_owned() + &open.repeat(60)), "1,", &format!("1{}}}", close.repeat(60)))
    };
    for (shape, text) in [
        ("plain text in JSON", fill("{\"x\":\"", "a", "\"}")),
        ("control characters", fill("a=", "\u{1}", "")),
        ("quotes", fill("a=", "\"", "")),
        ("percent", fill("a=", "%01", "")),
        ("JSON starts", fill("a=1", "&a=[\"", "")),
        ("deep arrays", deep("[", "]")),
        ("deep objects", deep("{\"a\":[", "]}")[..].to_owned()),
        ("nested members", fill("{\"x\":{", "\"\":1,", "\"\":1}}")),
        ("escapes", fill("{\"x\":\"", "\\u0001", "\"}")),
    ] {
        let begun = std::time::Instant::now();
        let _ = decode(&text, None);
        let took = begun.elapsed();
        println!("{shape}: {took:?}");
        assert!(took < std::time::Duration::from_secs(20), "{shape}: {took:?}");
    }
}
