//! One call is one conversation, whichever of its messages carry a `conversation_uuid`.
//!
//! The forms of the messages, and which ids each carries, are those of TeleCMI's documents.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fastrand::Rng;
use futures_util::future::join_all;
use hyper::body::Bytes;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::support::bridge::{client, on_fixed_port};
use crate::support::fault::{catch_up, kafka_sink};
use crate::support::oracle::{send_until_acknowledged, settled};
use crate::support::{ANY_PORTS, Bridge, PATIENCE, eventually, kafka};

const JSON: &str = "application/json";
/// Calls of each kind.
const CALLS: usize = 20;

/// A kind of call.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// An incoming call, whose CDR carries its conversation, as in newer documents.
    Incoming,
    /// The same with a CDR of the agent's leg that does not.
    IncomingOlder,
    /// An incoming call that nobody took; its CDR does not carry its conversation.
    Missed,
    /// An incoming call that one user missed and another took.
    UserMissed,
    /// An outgoing call: a CDR for each leg, neither carries its conversation.
    Dialled,
    /// The same with a `request_id`.
    ClickToCall,
}

const KINDS: [Kind; 6] =
    [Kind::Incoming, Kind::IncomingOlder, Kind::Missed, Kind::UserMissed, Kind::Dialled, Kind::ClickToCall];

/// The messages of one call in the order in which they are sent.
struct Call {
    conversation: String,
    messages: Vec<String>,
}

impl Call {
    /// A CDR may come at any time after its leg has begun. The events of a leg come in their order, those of different legs in any.
    fn new(kind: Kind, number: usize, seed: u64) -> Self {
        let mut random = Rng::with_seed(seed ^ number as u64);
        let id = |name: &str| format!("{name}{:07x}-{number:04}-4000-8000-{:012x}", kind as usize, seed & 0xffff_ffff);
        let conversation = id("a");
        let event = |leg: &str, status: &str, ids: Value| {
            let mut event = json!({
                "type": "event", "app_id": 2222223, "status": status, "conversation_uuid": conversation, "cmiuuid": id(leg),
            });
            merge(&mut event, ids);
            event
        };
        let cdr = |leg: &str, status: &str, ids: Value| {
            let mut cdr = json!({ "type": "cdr", "appid": "2222223", "status": status, "cmiuuid": id(leg) });
            merge(&mut cdr, ids);
            cdr
        };
        let leg = |leg: &str, ids: &Value| -> Vec<Value> {
            ["started", "answered", "hangup"].map(|status| event(leg, status, ids.clone())).into()
        };
        let incoming = json!({ "direction": "inbound", "from": 440000000001_u64, "team": "Sales_2222223" });
        let agent = json!({ "direction": "outbound", "leg": "b", "team": "Sales_2222223", "user": "204_2222223" });
        let of_call = match kind {
            Kind::ClickToCall => json!({ "direction": "outbound", "call_id": id("c"), "request_id": id("R") }),
            _ => json!({ "direction": "outbound", "call_id": id("c") }),
        };
        let answered = json!({ "direction": "inbound", "answeredsec": 6 });
        let (mut legs, mut cdrs) = match kind {
            Kind::Incoming => {
                let named = json!({ "conversation_uuid": conversation, "answeredsec": 6 });
                (vec![leg("a", &incoming), leg("b", &agent)], vec![(1, cdr("b", "answered", named))])
            }
            Kind::IncomingOlder => {
                (vec![leg("a", &incoming), leg("b", &agent)], vec![(1, cdr("b", "answered", answered))])
            }
            Kind::Missed => (vec![leg("a", &incoming)], vec![(0, cdr("a", "missed", json!({ "waitedsec": 9 })))]),
            Kind::UserMissed => {
                let missed = cdr("b", "missed", json!({ "leg": "b", "team": "Sales_2222223" }));
                let cdrs = vec![(1, missed), (2, cdr("d", "answered", answered))];
                (vec![leg("a", &incoming), leg("b", &agent), leg("d", &agent)], cdrs)
            }
            Kind::Dialled | Kind::ClickToCall => {
                let cdrs = vec![(0, cdr("a", "answered", of_call.clone())), (1, cdr("b", "answered", of_call.clone()))];
                (vec![leg("a", &of_call), leg("b", &of_call)], cdrs)
            }
        };
        let begun = |legs: &[Vec<Value>], leg: usize| legs[leg].len() < 3;
        let mut messages = Vec::new();
        while legs.iter().any(|leg| !leg.is_empty()) || !cdrs.is_empty() {
            let next = random.usize(0..legs.len() + cdrs.len());
            let mut message = if next < legs.len() {
                if legs[next].is_empty() || next > 0 && !begun(&legs, 0) {
                    continue;
                }
                legs[next].remove(0)
            } else if begun(&legs, cdrs[next - legs.len()].0) {
                cdrs.remove(next - legs.len()).1
            } else {
                continue;
            };
            merge(&mut message, json!({ "custom": format!("{conversation}/{}", messages.len()) }));
            messages.push(message.to_string());
        }
        Self { conversation, messages }
    }
}

fn merge(message: &mut Value, more: Value) {
    message.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
}

/// What arrived of each conversation: partition, number of the message, subject.
type Arrived = BTreeMap<String, Vec<(i32, usize, String)>>;

fn arrived(consumed: &[kafka::Consumed], calls: &[Call]) -> Arrived {
    let mut arrived = Arrived::new();
    for message in consumed {
        let event: Value = serde_json::from_slice(&message.payload).unwrap();
        let (call, number) = event["custom"].as_str().unwrap().split_once('/').unwrap();
        let number: usize = number.parse().unwrap();
        let sent = calls.iter().find(|sent| sent.conversation == call).unwrap();
        assert_eq!(message.payload, sent.messages[number].as_bytes(), "the event is unchanged");
        let subject = message.headers.iter().find(|(name, _)| name == "ce_subject").unwrap();
        let subject = String::from_utf8(subject.1.clone()).unwrap();
        arrived.entry(call.to_owned()).or_default().push((message.partition, number, subject));
    }
    arrived
}

#[tokio::test]
async fn every_call_is_one_conversation_in_order_while_kafka_is_away_and_the_bridge_is_killed() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut broker = kafka::Broker::start(&[]).await;
    kafka::create_topic(&broker.address(), "cdr", 12).await;
    // Small segments: some are removed before the last CDRs arrive.
    let spool = "[spool]\nsegment_size = '16KiB'\n";
    let config = format!("{}{spool}{}", on_fixed_port(), kafka_sink(&broker.address(), "cdr"));
    let mut bridge = Bridge::start(&config).await;

    let kinds = (0..CALLS).flat_map(|_| KINDS).enumerate();
    let calls: Arc<Vec<Call>> = Arc::new(kinds.map(|(number, kind)| Call::new(kind, number, seed)).collect());
    let total: usize = calls.iter().map(|call| call.messages.len()).sum();
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let (url, client) = (bridge.ingress_url(), client(false));
    let load = (0..calls.len()).map(|index| {
        let (calls, acknowledged, url, client) = (calls.clone(), acknowledged.clone(), url.clone(), client.clone());
        tokio::spawn(async move {
            let mut random = Rng::with_seed(seed ^ !(index as u64));
            for message in &calls[index].messages {
                sleep(Duration::from_millis(random.u64(0..1500))).await;
                send_until_acknowledged(&client, &url, message).await;
                acknowledged.fetch_add(1, Ordering::Relaxed);
            }
        })
    });
    let load: Vec<_> = load.collect();
    let progress = async |part: usize| {
        eventually(PATIENCE, "messages are acknowledged", async || {
            acknowledged.load(Ordering::Relaxed) >= total * part / 8
        })
        .await;
    };
    progress(2).await;
    let delivered = bridge.metric("cdrelay_sink_published_total{sink=\"kafka\"}").await;
    broker.kill();
    progress(4).await;
    bridge.kill();
    bridge.start_again().await;
    progress(6).await;
    broker.start_again().await;
    join_all(load).await.into_iter().for_each(|ended| ended.unwrap());
    catch_up(&bridge, "kafka", "after the outage").await;
    settled(&bridge, &["kafka"]).await;

    let consumed = kafka::consume_all(&broker.address(), "cdr", PATIENCE).await;
    let arrived = arrived(&consumed, &calls);
    assert_eq!(arrived.len(), calls.len());
    let mut partitions = BTreeSet::new();
    for call in calls.iter() {
        let messages = &arrived[&call.conversation];
        let (partition, ..) = messages[0];
        partitions.insert(partition);
        let mut first = Vec::new();
        for (at, number, subject) in messages {
            assert_eq!((*at, subject), (partition, &call.conversation), "message {number}: {}", call.messages[*number]);
            if !first.contains(number) {
                first.push(*number);
            }
        }
        let in_order: Vec<usize> = (0..call.messages.len()).collect();
        assert_eq!(first, in_order, "{:?}", call.messages);
    }
    assert_eq!(bridge.metric("cdrelay_event_conversation_conflicts_total").await, Some(0.0));
    let by = async |by: &str| bridge.metric(&format!("cdrelay_event_conversation_total{{by=\"{by}\"}}")).await.unwrap();
    let (field, index, fallback) = (by("field").await, by("index").await, by("fallback").await);
    println!(
        "{total} messages of {} calls, {delivered:?} delivered before Kafka was away, {} copies, {} partitions; since the restart \
         {field} conversations by field, {index} by index, {fallback} by fallback",
        calls.len(),
        consumed.len() - total,
        partitions.len()
    );
    assert!(index > 0.0 && fallback == 0.0);
}

/// The keys of the messages that the requests become on stdout.
async fn keys(settings: &str, requests: &[String]) -> Vec<String> {
    let bridge = Bridge::start(&format!("{ANY_PORTS}{settings}[sinks.stdout]\ntype = 'stdout'\n")).await;
    for request in requests {
        let answer = bridge.post(Bytes::from(request.clone()), JSON).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    settled(&bridge, &["stdout"]).await;
    let lines = bridge.stdout_lines().into_iter().map(|line| serde_json::from_str::<Value>(&line).unwrap());
    lines.map(|line| line["key"].as_str().unwrap().to_owned()).collect()
}

/// Five live events and two CDRs of an outgoing call, one a line.
fn outgoing_call(request_id: Option<&str>) -> String {
    let (a, b, call) =
        ("aaaaaaaa-0000-4000-8000-00000000000a", "bbbbbbbb-0000-4000-8000-00000000000b", "cccccccc-0000");
    let with_request = |mut event: Value| {
        request_id.iter().for_each(|id| merge(&mut event, json!({ "request_id": id })));
        event.to_string()
    };
    let live = [("a", "started"), ("a", "answered"), ("b", "started"), ("b", "answered"), ("b", "hangup")];
    let live = live.iter().map(|(leg, status)| {
        let leg_id = if *leg == "a" { a } else { b };
        with_request(json!({
            "call_id": call, "leg": leg, "type": "event", "user": "202_2222223", "cmiuuid": leg_id, "direction": "outbound",
            "app_id": 2222223, "status": status, "to": "442000000001", "conversation_uuid": a,
        }))
    });
    let cdrs = [("b", b), ("a", a)].map(|(leg, leg_id)| {
        with_request(json!({
            "virtual_number": "440000000000", "call_id": call, "leg": leg, "type": "cdr", "appid": 2222223, "cmiuuid": leg_id,
            "status": "answered", "direction": "outbound", "answeredsec": 6, "hangup_reason": "sent_bye",
        }))
    });
    live.chain(cdrs).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn the_cdrs_of_an_outgoing_call_have_the_key_of_its_events_even_in_one_request() {
    let key = "unassigned/aaaaaaaa-0000-4000-8000-00000000000a";
    for request_id in [Some("ReqReqReq"), None] {
        assert_eq!(keys("", &[outgoing_call(request_id)]).await, [key; 7]);
    }
    // Turned off, the CDRs are a conversation of their own.
    let mut off = keys("[spool]\nnames_window = '0s'\n", &[outgoing_call(None)]).await;
    off.sort();
    assert_eq!(off, [[key; 5].as_slice(), &["unassigned/cccccccc-0000"; 2]].concat());
}

/// Neither what is no id nor the id of another account leads to a conversation.
#[tokio::test]
async fn a_name_that_is_no_id_joins_no_calls() {
    let requests = [
        r#"{"appid":1,"conversation_uuid":"A","cmiuuid":"L","call_id":"0","request_id":"unknown"}"#,
        r#"{"appid":2,"cmiuuid":"L"}"#,
        r#"{"appid":1,"call_id":0,"request_id":"Unknown","cmiuuid":"M"}"#,
        r#"{"app_id":"1","cmiuid":"L"}"#,
    ];
    let keys = keys("", &requests.map(str::to_owned)).await;
    assert_eq!(keys, ["A", "L", "M", "A"].map(|conversation| format!("unassigned/{conversation}")));
}
