use super::*;
use crate::event::Arrival;

fn route(config: Config, dialect: Dialect) -> Route {
    Route::compile(&config, dialect).unwrap()
}

fn message(route: &Route, event: &str) -> Message {
    let event = Event::parse(event, 64, Arrival(1_634_721_099_442)).unwrap();
    match route.render(&Record { offset: 0, target: None, event }, |error| panic!("{error}")) {
        Routed::Message(message) => message,
        other => panic!("{other:?}"),
    }
}

fn header<'a>(message: &'a Message, name: &str) -> &'a str {
    message.headers().find(|(header, _)| *header == name).map_or("(none)", |(_, value)| value)
}

#[test]
fn defaults_are_as_documented() {
    let event = r#"{"type":"cdr","direction":"inbound","status":"missed","appid":2222223,"team":"Sales_1","conversation_uuid":"c-1"}"#;
    let kafka = message(&route(Config::default(), Dialect::Kafka), event);
    assert_eq!((kafka.topic(), kafka.key(), kafka.partition_by()), ("telecmi.cdr", "Sales_1/c-1", "c-1"));
    assert_eq!(**kafka.payload(), *event.as_bytes());
    let names: Vec<_> = kafka.headers().map(|(name, _)| name).collect();
    assert_eq!(names, ["content-type", "ce_specversion", "ce_id", "ce_source", "ce_type", "ce_subject", "ce_time"]);
    assert_eq!(header(&kafka, "ce_id"), kafka.id().to_string());
    assert_eq!(header(&kafka, "ce_source"), "/telecmi/2222223");
    assert_eq!(header(&kafka, "ce_type"), "com.telecmi.cdr.inbound.missed");
    assert_eq!(header(&kafka, "ce_subject"), "c-1");
    assert_eq!(header(&kafka, "ce_time"), "2021-10-20T09:11:39.442Z");
    let nats = message(&route(Config::default(), Dialect::Nats), event);
    assert_eq!(nats.topic(), "telecmi.cdr.Sales_1.c-1");
    assert_eq!(header(&nats, "ce-type"), "com.telecmi.cdr.inbound.missed");
    assert_eq!(
        message(&route(Config::default(), Dialect::Kafka), r#"{"team":null,"request_id":"r"}"#).key(),
        "unassigned/r"
    );
}

#[test]
fn a_route_knows_the_topics_it_can_make() {
    let route = |topic: &str| route(Config { topic: Some(topic.into()), ..Config::default() }, Dialect::Kafka);
    for (topic, yes, no) in [
        ("cdr", &["cdr"][..], &["", "cdr.", "a.cdr", "cd"][..]),
        ("cdr.{team}", &["cdr.Sales", "cdr.a.b"], &["cdr", "xcdr.a"]),
        ("{team}.cdr", &["Sales.cdr"], &["cdr", "Sales.cdr.x"]),
        ("a.{team}.b.{user}.c", &["a.1.b.2.c", "a..b.x.b.2.c"], &["a.1.b.c", "a.1.2.c", "b.1.b.2.c"]),
        ("{team}", &["anything"], &[]),
    ] {
        let route = route(topic);
        assert!(yes.iter().all(|name| route.may_name(name)), "{topic}");
        assert!(!no.iter().any(|name| route.may_name(name)), "{topic}");
    }
}

#[test]
fn values_are_data_in_a_subject_and_come_back_by_percent_decoding() {
    let subject = route(Config { topic: Some("cdr.{team}.end".into()), ..Config::default() }, Dialect::Nats);
    for team in ["Sales.*>", "a b", "line\nbreak\r\n", "nul\0", "விற்பனை", "100%", "~", "$JS", "+"] {
        let event = format!("{{\"team\":{}}}", serde_json::json!(team));
        let message = message(&subject, &event);
        let [first, token, last] = message.topic().split('.').collect::<Vec<_>>().try_into().unwrap();
        assert_eq!((first, last), ("cdr", "end"));
        assert!(token.bytes().all(|byte| byte.is_ascii_graphic() && !b"*>.".contains(&byte)), "{token}");
        assert_eq!(percent_encoding::percent_decode_str(token).decode_utf8().unwrap(), team);
    }
    let empty = route(Config { topic: Some("cdr.{user}".into()), ..Config::default() }, Dialect::Nats);
    assert_eq!(message(&empty, "{}").topic(), "cdr.~");
    assert_eq!(message(&empty, r#"{"user":"~"}"#).topic(), "cdr.%7E");
}

#[test]
fn header_values_stay_within_their_header() {
    let event =
        "{\"conversation_uuid\":\"a\\r\\nce-id: x \\u0000\\u0b95\\\"%\",\"type\":\"a\\nb.c\",\"appid\":\"../x y\"}";
    let nats = message(&route(Config::default(), Dialect::Nats), event);
    assert_eq!(header(&nats, "ce-subject"), "a%0D%0Ace-id:%20x%20%00%E0%AE%95%22%25");
    assert_eq!(header(&nats, "ce-type"), "com.telecmi.a_b_c");
    // The source is a URI with escapes of its own; the header escapes them once more, as the binding demands.
    assert_eq!(header(&nats, "ce-source"), "/telecmi/..%252Fx%2520y");
    for (only, encoded) in [(" ", "%20"), ("\\n", "%0A"), ("%", "%25")] {
        let event = format!("{{\"conversation_uuid\":\"{only}\"}}");
        let nats = message(&route(Config::default(), Dialect::Nats), &event);
        assert_eq!(header(&nats, "ce-subject"), encoded);
    }
    let kafka = message(&route(Config::default(), Dialect::Kafka), event);
    assert_eq!(header(&kafka, "ce_subject"), "a\r\nce-id: x \0\u{0b95}\"%");
}

#[test]
fn topics_are_legal_or_refused() {
    let by_team = route(Config { topic: Some("cdr.{team}".into()), ..Config::default() }, Dialect::Kafka);
    assert_eq!(message(&by_team, r#"{"team":"Sales.*> ü"}"#).topic(), "cdr.Sales.____");
    let event = Event::parse(&format!("{{\"team\":\"{}\"}}", "x".repeat(246)), 9, Arrival(0)).unwrap();
    assert!(matches!(by_team.render(&Record { offset: 0, target: None, event }, |_| ()), Routed::Refused { .. }));
}

#[test]
fn structured_mode_wraps_the_event_unchanged() {
    let config = Config { format: Format::CloudEvents, ..Config::default() };
    let event = "{\"n\":1.50,\n\"n\":2,\"conversation_uuid\":\"a\\\"b\"}";
    let message = message(&route(config, Dialect::Kafka), event);
    let text = std::str::from_utf8(message.payload()).unwrap();
    assert!(text.ends_with(&format!(",\"data\":{event}}}")));
    let envelope: serde_json::Value = serde_json::from_str(text).unwrap();
    assert_eq!(envelope["subject"], "a\"b");
    assert_eq!(envelope["specversion"], "1.0");
    assert_eq!(header(&message, "content-type"), "application/cloudevents+json; charset=UTF-8");
    assert_eq!(message.headers().len(), 1);
}

fn filtered(when: &str, when_undecided: Undecided, event: &str) -> (Routed, usize) {
    let config = Config { when: Some(when.into()), when_undecided, ..Config::default() };
    let event = Event::parse(event, 64, Arrival(0)).unwrap();
    let mut failures = 0;
    let record = Record { offset: 0, target: None, event };
    (route(config, Dialect::Kafka).render(&record, |_| failures += 1), failures)
}

#[test]
fn an_event_that_the_filter_cannot_read_is_a_dead_letter_and_never_sent() {
    for unreadable in [r#"{"type":"cdr","x":1e999}"#, r#"{"type":"cdr","x":"\ud800"}"#] {
        for when in ["event.x == 'cdr'", "event.x != 'cdr'"] {
            for undecided in [Undecided::Skip, Undecided::Send] {
                let (routed, failures) = filtered(when, undecided, unreadable);
                let Routed::Refused { cause, message } = routed else { panic!("{unreadable}: {routed:?}") };
                assert!(cause.contains("`when` cannot be evaluated") && failures == 1, "{cause}");
                assert_eq!((message.topic(), &**message.payload()), ("telecmi.cdr", unreadable.as_bytes()));
            }
        }
        // The field that cannot be read does not matter.
        assert_eq!(filtered("event.type != 'cdr'", Undecided::Send, unreadable), (Routed::Filtered, 0));
        assert!(matches!(filtered("event.type == 'cdr'", Undecided::Skip, unreadable), (Routed::Message(_), 0)));
        assert_eq!(filtered("ingress == 'east'", Undecided::Send, unreadable), (Routed::Filtered, 0));
    }
}

#[test]
fn an_event_that_lacks_a_field_of_the_filter_goes_where_the_setting_says() {
    for event in ["{\"a\":1}", "{\"team\":7}"] {
        let when = "event.team.startsWith('Sales')";
        assert_eq!(filtered(when, Undecided::Skip, event), (Routed::Filtered, 1));
        assert!(matches!(filtered(when, Undecided::Send, event), (Routed::Message(_), 1)));
        let (routed, _) = filtered(when, Undecided::DeadLetter, event);
        assert!(matches!(&routed, Routed::Refused { cause, .. } if cause.contains("undecided")), "{routed:?}");
    }
    assert_eq!(Config::default().when_undecided, Undecided::Skip);
}

#[test]
fn mistakes_are_found_at_load() {
    let mistakes = [
        ("tele cmi", Dialect::Kafka),
        ("", Dialect::Kafka),
        ("..", Dialect::Kafka),
        ("a.{team", Dialect::Kafka),
        ("a..b", Dialect::Nats),
        ("a.*", Dialect::Nats),
        ("a.>", Dialect::Nats),
        ("a b", Dialect::Nats),
        ("$JS.{team}", Dialect::Nats),
        ("ü", Dialect::Nats),
        ("a.", Dialect::Nats),
    ];
    for (topic, dialect) in mistakes {
        let config = Config { topic: Some(topic.into()), ..Config::default() };
        let key = if dialect == Dialect::Nats { "subject" } else { "topic" };
        assert_eq!(Route::compile(&config, dialect).unwrap_err().key, key, "{topic}");
    }
    let config = Config { when: Some("event.type ==".into()), ..Config::default() };
    assert_eq!(Route::compile(&config, Dialect::Kafka).unwrap_err().key, "when");
}

#[test]
fn the_wildcard_takes_all_subjects_of_the_route() {
    let wildcard = |topic: &str| {
        route(Config { topic: Some(topic.into()), ..Config::default() }, Dialect::Nats).subject_wildcard()
    };
    assert_eq!(wildcard("a.{team}.x{leg}y.b"), "a.*.*.b");
    assert_eq!(wildcard("a.b"), "a.b");
}
