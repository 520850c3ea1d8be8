//! Every webhook, in whatever form it comes, arrives in every sink: right place, right key, right headers, unchanged payload.

use std::collections::{BTreeMap, BTreeSet};

use form_urlencoded::Serializer;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Version};
use jiff::Timestamp;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use crate::support::bridge::{Answer, client};
use crate::support::oracle::settled;
use crate::support::{ANY_PORTS, Bridge, PATIENCE, kafka, nats, until};

const SAMPLES: &str = include_str!("support/payloads.ndjson");
const JSON: &str = "application/json";
const FORM: &str = "application/x-www-form-urlencoded";

/// What consumers are told about one sample.
struct Told {
    id: &'static str,
    key: &'static str,
    /// The tokens for team and conversation.
    subject: &'static str,
    conversation: &'static str,
    source: &'static str,
    r#type: &'static str,
}

/// For each line of the samples, read off its text by hand; the identities come from another implementation, in Python, of what the
/// documentation of `event.rs` says. Consumers recognise duplicates by them, so they must never change.
const TOLD: [Told; 11] = [
    Told {
        id: "5789e868ab3d0b76b2f083d5aae6affb",
        key: "unassigned/5202a928-07c3-4d32-a1a4-d304c9275971",
        subject: "unassigned.5202a928-07c3-4d32-a1a4-d304c9275971",
        conversation: "5202a928-07c3-4d32-a1a4-d304c9275971",
        source: "/telecmi/2222223",
        r#type: "com.telecmi.event.inbound.waiting",
    },
    Told {
        id: "c19e3a951ec6aff6656dc7e10c8b461a",
        key: "Sales_2222223/5202a928-07c3-4d32-a1a4-d304c9275971",
        subject: "Sales_2222223.5202a928-07c3-4d32-a1a4-d304c9275971",
        conversation: "5202a928-07c3-4d32-a1a4-d304c9275971",
        source: "/telecmi/2222223",
        r#type: "com.telecmi.event.outbound.started",
    },
    Told {
        id: "13c0b1c9675327c7f744ec897d593af3",
        key: "Sales_2222223/5202a928-07c3-4d32-a1a4-d304c9275971",
        subject: "Sales_2222223.5202a928-07c3-4d32-a1a4-d304c9275971",
        conversation: "5202a928-07c3-4d32-a1a4-d304c9275971",
        source: "/telecmi/2222223",
        r#type: "com.telecmi.cdr.inbound.answered",
    },
    Told {
        id: "642dd739b88d3f93d350f4384fad190b",
        key: "Sales_2222223/4d1f9521-50e5-447d-bf5f-c3292995a727",
        subject: "Sales_2222223.4d1f9521-50e5-447d-bf5f-c3292995a727",
        conversation: "4d1f9521-50e5-447d-bf5f-c3292995a727",
        source: "/telecmi/2222223",
        r#type: "com.telecmi.cdr.inbound.missed",
    },
    Told {
        id: "33fffed618b3a7b6d238983044284c40",
        key: "unassigned/c4504776-d91e-123b-29a7-56000429abc3",
        subject: "unassigned.c4504776-d91e-123b-29a7-56000429abc3",
        conversation: "c4504776-d91e-123b-29a7-56000429abc3",
        source: "/telecmi/2222223",
        r#type: "com.telecmi.cdr.outbound.answered",
    },
    Told {
        id: "311dd596031f380e9bbd600487bbfc2f",
        key: "unassigned/c4504776-d91e-123b-29a7-56000429abc3",
        subject: "unassigned.c4504776-d91e-123b-29a7-56000429abc3",
        conversation: "c4504776-d91e-123b-29a7-56000429abc3",
        source: "/telecmi/2222223",
        r#type: "com.telecmi.cdr.outbound.answered",
    },
    Told {
        id: "43715174c6cae51751ca763255a83cfb",
        key: "unassigned/10ee0eb6-c417-4f5a-b122-bffe28f96eae",
        subject: "unassigned.10ee0eb6-c417-4f5a-b122-bffe28f96eae",
        conversation: "10ee0eb6-c417-4f5a-b122-bffe28f96eae",
        source: "/telecmi/2222223",
        r#type: "com.telecmi.event.outbound.hangup",
    },
    Told {
        id: "2e16062d458172ff8345a318e1333191",
        key: "unassigned/c62abd10-1bab-11ec-8e24-ddb7c33510ad",
        subject: "unassigned.c62abd10-1bab-11ec-8e24-ddb7c33510ad",
        conversation: "c62abd10-1bab-11ec-8e24-ddb7c33510ad",
        source: "/telecmi/2222222",
        r#type: "com.telecmi.cdr.inbound.answered",
    },
    Told {
        id: "1ced101de705bd5b173564de1f35fa46",
        key: "unassigned/127c1480-ce5d-480a-a593",
        subject: "unassigned.127c1480-ce5d-480a-a593",
        conversation: "127c1480-ce5d-480a-a593",
        source: "/telecmi/2222223",
        r#type: "com.telecmi.cdr.inbound.missed",
    },
    Told {
        id: "25a40dbf3d497684c727e181273cc3e8",
        key: "Sales.*>/aaaa0001-0000-4000-8000-000000000001",
        subject: "Sales%2E%2A%3E.aaaa0001-0000-4000-8000-000000000001",
        conversation: "aaaa0001-0000-4000-8000-000000000001",
        source: "/telecmi/2222223",
        r#type: "com.telecmi.cdr.inbound.missed",
    },
    Told {
        id: "e6b143caea2300a76b65b10955403e76",
        key: "unassigned/e6b143caea2300a76b65b10955403e76",
        subject: "unassigned.e6b143caea2300a76b65b10955403e76",
        conversation: "e6b143caea2300a76b65b10955403e76",
        source: "/telecmi/2222223",
        r#type: "com.telecmi.sms.QUEUED",
    },
];

/// One message as any of the sinks shows it. Its time is in the headers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Shown {
    headers: BTreeMap<String, String>,
    /// Topic or subject.
    place: String,
    /// NATS has none.
    key: Option<String>,
    payload: String,
}

impl Shown {
    fn from_kafka(topic: &str, message: &kafka::Consumed) -> Self {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        Self {
            headers: message.headers.iter().map(|(name, value)| (name.clone(), text(value))).collect(),
            place: topic.to_owned(),
            key: message.key.as_deref().map(text),
            payload: text(&message.payload),
        }
    }

    fn from_nats(message: &nats::Received) -> Self {
        Self {
            headers: message.headers.iter().cloned().collect(),
            place: message.subject.clone(),
            key: None,
            payload: String::from_utf8(message.payload.clone()).unwrap(),
        }
    }

    fn from_stdout(line: &str) -> Self {
        let parsed: Value = serde_json::from_str(line).unwrap();
        // The event itself is compared as text: what is in front of it is the same line rendered by another library.
        let event = line.split_once(r#"},"event":"#).unwrap().1.strip_suffix('}').unwrap();
        let headers = parsed["headers"].as_object().unwrap();
        Self {
            headers: headers.iter().map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect(),
            place: parsed["topic"].as_str().unwrap().to_owned(),
            key: Some(parsed["key"].as_str().unwrap().to_owned()),
            payload: event.to_owned(),
        }
    }

    /// Takes the time out of the headers; it has to be that of the arrival, in UTC, in milliseconds.
    fn checked_time(mut self, header: &str, arrival: [Timestamp; 2]) -> Self {
        let text = self.headers.remove(header).unwrap();
        let time: Timestamp = text.parse().unwrap();
        assert_eq!(text, time.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string());
        let [earliest, latest] = arrival.map(Timestamp::as_millisecond);
        assert!((earliest..=latest).contains(&time.as_millisecond()), "{text} is not in {arrival:?}");
        self
    }
}

impl Told {
    /// The headers with this mark between `ce` and the name, without the time.
    fn headers(&self, mark: char) -> BTreeMap<String, String> {
        let attributes = [
            ("specversion", "1.0"),
            ("id", self.id),
            ("source", self.source),
            ("type", self.r#type),
            ("subject", self.conversation),
        ];
        let attributes = attributes.map(|(name, value)| (format!("ce{mark}{name}"), value.to_owned()));
        attributes.into_iter().chain([("content-type".to_owned(), JSON.to_owned())]).collect()
    }

    fn in_kafka(&self, topic: &str, payload: &str) -> Shown {
        Shown {
            headers: self.headers('_'),
            place: topic.to_owned(),
            key: Some(self.key.to_owned()),
            payload: payload.to_owned(),
        }
    }

    fn in_nats(&self, prefix: &str, payload: &str) -> Shown {
        let mut headers = self.headers('-');
        headers.insert("Nats-Msg-Id".to_owned(), self.id.to_owned());
        Shown { headers, place: format!("{prefix}.{}", self.subject), key: None, payload: payload.to_owned() }
    }
}

fn sorted(shown: impl IntoIterator<Item = Shown>) -> Vec<Shown> {
    let mut shown: Vec<_> = shown.into_iter().collect();
    shown.sort();
    shown
}

/// A bridge to all three sinks at once.
struct Ground {
    bridge: Bridge,
    topic: String,
    /// The stream, and the first token of its subjects.
    stream: String,
    /// What arrived so far: what it has to look like, and when it came.
    arrived: Vec<(Vec<String>, [Timestamp; 2])>,
}

impl Ground {
    /// The spool recognises duplicates, or not. Each form tells the conversation of an event by itself, whatever was sent before.
    async fn new(name: &str, dedup_window: &str) -> Self {
        let (topic, stream) = (kafka::unique_topic(name), nats::unique_name(name));
        kafka::create_topic(&kafka::shared(), &topic, 1).await;
        nats::create_stream(&nats::shared(), &stream, &[&format!("{stream}.>")]).await;
        let config = format!(
            "{ANY_PORTS}
            [spool]
            dedup_window = '{dedup_window}'
            names_window = '0s'
            [sinks.stdout]
            type = 'stdout'
            [sinks.kafka]
            type = 'kafka'
            brokers = '{}'
            topic = '{topic}'
            [sinks.nats]
            type = 'nats'
            servers = '{}'
            subject = '{stream}.{{team}}.{{conversation_uuid}}'",
            kafka::shared(),
            nats::shared()
        );
        Self { bridge: Bridge::start(&config).await, topic, stream, arrived: Vec::new() }
    }

    async fn settled(&self) {
        settled(&self.bridge, &["stdout", "kafka", "nats"]).await;
    }

    /// Sends all samples in one form and checks stdout and JetStream; they arrive with these payloads.
    async fn carries(&mut self, form: &str, payloads: &[String], send: impl AsyncFnOnce(&Bridge)) {
        let begun = Timestamp::now();
        send(&self.bridge).await;
        let arrival = [begun, Timestamp::now()];
        self.settled().await;

        let lines = self.bridge.stdout_lines();
        let lines = &lines[self.arrived.len() * TOLD.len()..];
        let shown = lines.iter().map(|line| Shown::from_stdout(line).checked_time("ce_time", arrival));
        let told = TOLD.iter().zip(payloads).map(|(told, payload)| told.in_kafka("telecmi.cdr", payload));
        assert_eq!(sorted(shown), sorted(told), "{form}, stdout");

        let received = nats::stream_messages(&nats::shared(), &self.stream, TOLD.len(), PATIENCE).await;
        let shown = received.iter().map(|message| Shown::from_nats(message).checked_time("ce-time", arrival));
        let told = TOLD.iter().zip(payloads).map(|(told, payload)| told.in_nats(&self.stream, payload));
        assert_eq!(sorted(shown), sorted(told), "{form}, JetStream");
        // A stream that is made anew has forgotten which messages it had.
        nats::delete_stream(&nats::shared(), &self.stream).await;
        nats::create_stream(&nats::shared(), &self.stream, &[&format!("{}.>", self.stream)]).await;

        self.arrived.push((payloads.to_vec(), arrival));
    }

    /// Checks what the topic holds after all forms.
    async fn check_kafka(&self) {
        let count = self.arrived.len() * TOLD.len();
        let consumed = kafka::java_consume(&kafka::shared(), &self.topic, count, PATIENCE).await;
        for (consumed, (payloads, arrival)) in consumed.chunks(TOLD.len()).zip(&self.arrived) {
            let shown = consumed.iter().map(|message| Shown::from_kafka(&self.topic, message));
            let shown = shown.map(|shown| shown.checked_time("ce_time", *arrival));
            let told = TOLD.iter().zip(payloads).map(|(told, payload)| told.in_kafka(&self.topic, payload));
            assert_eq!(sorted(shown), sorted(told));
        }
        println!("{count} messages in {} forms, each in Kafka, JetStream and stdout", self.arrived.len());
    }
}

fn stored(answer: &Answer, count: usize) {
    assert_eq!((answer.status, answer.json()), (200, json!({ "stored": count, "duplicates": 0 })), "{}", answer.text());
}

fn known(answer: &Answer) {
    assert_eq!((answer.status, answer.json()), (200, json!({ "stored": 0, "duplicates": 1 })), "{}", answer.text());
}

/// The fields of a sample as a form has them, in their order: all of them texts, JSON where they are not scalar.
fn fields(sample: &str) -> Vec<(String, String)> {
    let names = sample_names(sample);
    let values: Value = serde_json::from_str(sample).unwrap();
    let text = |value: &Value| match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    names.into_iter().map(|name| (name.clone(), text(&values[&name]))).collect()
}

/// The names in their order, which the parsed value no longer has.
fn sample_names(sample: &str) -> Vec<String> {
    let values: BTreeMap<String, Value> = serde_json::from_str(sample).unwrap();
    let mut names: Vec<_> = values.into_keys().collect();
    names.sort_by_key(|name| sample.find(&format!("\"{name}\":")).unwrap());
    names
}

fn encode(fields: &[(String, String)]) -> String {
    Serializer::new(String::new()).extend_pairs(fields).finish()
}

/// What becomes of a form: an object of texts.
fn object(fields: &[(String, String)]) -> String {
    let members: Vec<_> = fields.iter().map(|(name, value)| format!("{}:{}", json!(name), json!(value))).collect();
    format!("{{{}}}", members.join(","))
}

#[tokio::test]
async fn every_sample_in_every_form_arrives_unchanged_in_all_three_sinks() {
    let mut ground = Ground::new("forms", "0s").await;
    let lines: Vec<_> = SAMPLES.lines().map(str::to_owned).collect();
    let forms: Vec<_> = lines.iter().map(|line| encode(&fields(line))).collect();
    let objects: Vec<_> = lines.iter().map(|line| object(&fields(line))).collect();

    ground
        .carries("POST of one object", &lines, async |bridge| {
            for line in &lines {
                stored(&bridge.post(line.clone(), JSON).await, 1);
            }
        })
        .await;
    ground
        .carries("POST with a wrong Content-Type", &lines, async |bridge| {
            for (line, content_type) in lines.iter().zip([FORM, "text/plain", "", "nonsense"].iter().cycle()) {
                stored(&bridge.post(line.clone(), content_type).await, 1);
            }
        })
        .await;
    ground
        .carries("POST of an array", &lines, async |bridge| {
            stored(&bridge.post(format!("[\n{} ]", lines.join(" ,\n ")), JSON).await, lines.len());
        })
        .await;
    ground
        .carries("POST of lines", &lines, async |bridge| {
            stored(&bridge.post(SAMPLES, "application/x-ndjson").await, lines.len());
        })
        .await;
    ground
        .carries("POST of an envelope", &lines, async |bridge| {
            let envelope = format!("{{\"count\":{},\"cdr\":[{}],\"code\":200}}", lines.len(), lines.join(","));
            stored(&bridge.post(envelope, JSON).await, lines.len());
        })
        .await;
    ground
        .carries("POST of one field that holds JSON", &lines, async |bridge| {
            for (line, name) in lines.iter().zip(["data", "payload", "myoperator"].iter().cycle()) {
                stored(&bridge.post(encode(&[((*name).to_owned(), line.clone())]), FORM).await, 1);
            }
        })
        .await;
    ground
        .carries("POST of form fields", &objects, async |bridge| {
            for form in &forms {
                stored(&bridge.post(form.clone(), FORM).await, 1);
            }
        })
        .await;
    ground
        .carries("GET", &objects, async |bridge| {
            for form in &forms {
                stored(&bridge.get(form).await, 1);
            }
        })
        .await;
    ground
        .carries("HTTP/2 without asking first", &lines, async |bridge| {
            let client = client(true);
            for line in &lines {
                let request = Request::post(bridge.ingress_url()).body(Full::from(line.clone())).unwrap();
                let answer = client.request(request).await.unwrap();
                assert_eq!((answer.status().as_u16(), answer.version()), (200, Version::HTTP_2));
                answer.into_body().collect().await.unwrap();
            }
        })
        .await;
    ground.check_kafka().await;
}

#[tokio::test]
async fn an_event_sent_again_is_published_once_even_after_a_restart() {
    let mut ground = Ground::new("resent", "45m").await;
    let sample = SAMPLES.lines().nth(3).unwrap();
    let fields = fields(sample);
    let values: Value = serde_json::from_str(sample).unwrap();
    let reversed: Vec<_> = fields.iter().rev().map(|(name, _)| format!("{} : {}", json!(name), values[name])).collect();
    let reversed = format!("{{ {} }}", reversed.join(" ,\r\n"));

    stored(&ground.bridge.post(sample, JSON).await, 1);
    let again = async |bridge: &Bridge| {
        known(&bridge.post(sample, JSON).await);
        known(&bridge.post(reversed.clone(), JSON).await);
        known(&bridge.get(&encode(&fields)).await);
    };
    again(&ground.bridge).await;
    let duplicates = "cdrelay_ingress_events_duplicate_total";
    assert_eq!(ground.bridge.metric(duplicates).await, Some(3.0));
    ground.settled().await;

    ground.bridge.terminate();
    assert!(ground.bridge.wait(PATIENCE).await.success());
    ground.bridge.start_again().await;
    again(&ground.bridge).await;

    let other = SAMPLES.lines().nth(4).unwrap();
    stored(&ground.bridge.post(other, JSON).await, 1);
    ground.settled().await;
    let expected = [sample.as_bytes(), other.as_bytes()];
    let consumed = kafka::consume_all(&kafka::shared(), &ground.topic, PATIENCE).await;
    assert_eq!(consumed.iter().map(|message| message.payload.as_slice()).collect::<Vec<_>>(), expected);
    assert_eq!(nats::stream_length(&nats::shared(), &ground.stream).await, 2);
    assert_eq!(ground.bridge.stdout_lines().len(), 2);
}

#[tokio::test]
async fn hostile_names_are_data_in_subject_key_and_headers_and_never_structure() {
    let ground = Ground::new("hostile", "45m").await;
    let long = "x".repeat(300);
    let names = [
        "Sales.*>",
        "line\nbreak\r\nce-id: forged",
        "nul\0nul",
        "விற்பனை",
        "a/b",
        "100%25%2E%",
        &long,
        "$JS.API.>",
        " ",
        "~",
        "\n",
        "%",
        "\"\\",
    ];
    let events: BTreeSet<_> = names.iter().flat_map(|team| names.iter().map(move |other| (*team, *other))).collect();
    for (team, conversation) in &events {
        let event = json!({ "type": team, "appid": conversation, "team": team, "conversation_uuid": conversation });
        stored(&ground.bridge.post(event.to_string(), JSON).await, 1);
    }
    ground.settled().await;

    let payload = |payload: &str| {
        let event: Value = serde_json::from_str(payload).unwrap();
        ["team", "conversation_uuid"].map(|name| event[name].as_str().unwrap().to_owned())
    };
    let check = |shown: Shown, header: &str| {
        let [team, conversation] = payload(&shown.payload);
        assert_eq!(shown.headers[header], conversation);
        assert_eq!(shown.key, Some(format!("{team}/{conversation}")));
        assert_eq!(shown.headers.len(), 7);
        (team, conversation)
    };
    let everything: BTreeSet<_> = events.iter().map(|(team, other)| (team.to_string(), other.to_string())).collect();

    let consumed = kafka::java_consume(&kafka::shared(), &ground.topic, events.len(), PATIENCE).await;
    let seen = consumed.iter().map(|message| check(Shown::from_kafka(&ground.topic, message), "ce_subject"));
    assert_eq!(seen.collect::<BTreeSet<_>>(), everything);

    let lines = ground.bridge.stdout_lines();
    assert_eq!(lines.len(), events.len());
    let seen = lines.iter().map(|line| check(Shown::from_stdout(line), "ce_subject"));
    assert_eq!(seen.collect::<BTreeSet<_>>(), everything);

    let received = nats::stream_messages(&nats::shared(), &ground.stream, events.len(), PATIENCE).await;
    let decode = |text: &str| percent_decode_str(text).decode_utf8().unwrap().into_owned();
    let seen = received.iter().map(|message| {
        let shown = Shown::from_nats(message);
        let [first, team, conversation] = shown.place.split('.').collect::<Vec<_>>().try_into().unwrap();
        assert_eq!(first, ground.stream);
        assert_eq!(decode(&shown.headers["ce-subject"]), decode(conversation));
        assert_eq!(shown.headers.len(), 8, "{:?}", shown.headers);
        assert_eq!(payload(&shown.payload), [decode(team), decode(conversation)]);
        (decode(team), decode(conversation))
    });
    assert_eq!(seen.collect::<BTreeSet<_>>(), everything);
    until(PATIENCE, "ready", async || (ground.bridge.admin("/readyz").await.status == 200).then_some(())).await;
    println!("{} hostile pairs of team and conversation, each in Kafka, JetStream and stdout", events.len());
}
