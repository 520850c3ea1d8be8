//! Webhooks are lost on their way and in an outage; afterwards every call is at the sink.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http_body_util::Full;
use hyper::Request;
use hyper::body::Bytes;
use serde_json::Value;
use tokio::task::JoinSet;

use super::{Call, LISTS, counts, report};
use crate::support::bridge::{Bridge, Client, client, on_fixed_port};
use crate::support::platform::{Dialect, Fault, Platform};
use crate::support::{PATIENCE, eventually, kafka};

const CALLS: usize = 5000;
const MINUTE: u64 = 60_000;
/// Webhooks in one request.
const BATCH: usize = 20;

async fn post(client: &Client, url: &str, body: String) -> bool {
    let request = Request::post(url).header("content-type", "application/json").body(Full::new(Bytes::from(body)));
    client.request(request.unwrap()).await.is_ok_and(|answer| answer.status() == 200)
}

/// The id of a call in a message.
fn id(payload: &[u8]) -> String {
    let event: Value = serde_json::from_slice(payload).unwrap();
    event.get("cmiuuid").or(event.get("cmiuid")).unwrap().as_str().unwrap().to_owned()
}

async fn delivered(bridge: &Bridge) {
    eventually(PATIENCE, "everything is delivered", async || {
        bridge.metric("cdrelay_sink_lag_records{sink=\"kafka\"}").await == Some(0.0)
            && bridge.metric("cdrelay_sink_in_flight{sink=\"kafka\"}").await == Some(0.0)
    })
    .await;
}

#[tokio::test]
async fn after_lost_webhooks_and_a_killed_bridge_every_call_is_in_kafka_once() {
    let mut random = fastrand::Rng::with_seed(25);
    let platform = Platform::start(Dialect::International).await;
    let calls: Vec<Call> =
        (0..CALLS).map(|n| Call::new(LISTS[n % 4], n, random.u64(20 * MINUTE..300 * MINUTE))).collect();
    calls.iter().for_each(|call| platform.add(call.list, call.time, &call.element));
    // These ended just now.
    for n in CALLS..CALLS + 8 {
        let call = Call::new(LISTS[n % 4], n, MINUTE);
        platform.add(call.list, call.time, call.element);
    }
    let topic = kafka::unique_topic("reconciled");
    kafka::create_topic(&kafka::shared(), &topic, 6).await;
    let sink = format!("[sinks.kafka]\ntype = 'kafka'\nbrokers = '{}'\ntopic = '{topic}'\n", kafka::shared());
    let config = format!("{}{}{sink}key = '{{ingress}}'\n", on_fixed_port(), platform.table("telecmi", ""));
    let mut bridge = Bridge::start(&config).await;

    // 3 % are never sent. In the middle of the others the bridge is killed, and what is sent until it is back is not sent again.
    let sent: Vec<&Call> = calls.iter().filter(|_| random.u32(..100) >= 3).collect();
    let batches: Vec<String> =
        sent.chunks(BATCH).map(|batch| batch.iter().map(|call| call.webhook.clone() + "\n").collect()).collect();
    let (url, acknowledged) = (bridge.ingress_url(), Arc::new(AtomicUsize::new(0)));
    let client = client(false);
    let send = async |batches: &[String]| {
        let mut requests = JoinSet::new();
        for batch in batches.iter().cloned() {
            if requests.len() >= 4 {
                requests.join_next().await;
            }
            let (client, url, acknowledged) = (client.clone(), url.clone(), acknowledged.clone());
            requests.spawn(async move {
                if post(&client, &url, batch).await {
                    acknowledged.fetch_add(BATCH, Ordering::Relaxed);
                }
            });
        }
        requests.join_all().await;
    };
    let (first, rest) = batches.split_at(100);
    let (second, last) = rest.split_at(40);
    send(first).await;
    let in_flight = send(&second[..8]);
    let kill = async {
        eventually(PATIENCE, "a request is in flight", async || acknowledged.load(Ordering::Relaxed) > 100 * BATCH)
            .await;
        bridge.kill();
    };
    tokio::join!(in_flight, kill);
    send(&second[8..]).await;
    bridge.start_again().await;
    send(last).await;
    delivered(&bridge).await;

    let webhooks = kafka::consume_all(&kafka::shared(), &topic, PATIENCE).await;
    let came: BTreeSet<String> = webhooks.iter().map(|message| id(&message.payload)).collect();
    let (acknowledged, dropped) = (acknowledged.load(Ordering::Relaxed), CALLS - sent.len());
    println!("{CALLS} calls, {dropped} webhooks never sent, {acknowledged} acknowledged, {} came", came.len());
    assert!(dropped > 100 && came.len() + BATCH >= acknowledged && came.len() < sent.len() - 20 * BATCH);
    let expected = |list: &str, added: bool| {
        let of_list: Vec<_> = calls.iter().filter(|call| call.list == list).collect();
        let known = of_list.iter().filter(|call| came.contains(&call.id)).count() as u64;
        let listed = of_list.len() as u64;
        [listed, known, listed - known, if added { listed - known } else { 0 }]
    };

    let (dry, code) = report(&bridge, &["telecmi", "--dry-run"]).await;
    assert_eq!(code, Some(1));
    LISTS.iter().for_each(|list| assert_eq!(counts(&dry, list), expected(list, false), "{list}"));

    // While the first list is read calls end, which shifts its pages, and the platform has bad moments.
    let shifts: Vec<Call> = (0..30).map(|n| Call::new("missed", 2 * CALLS + n, 15 * MINUTE)).collect();
    shifts.iter().for_each(|call| platform.add_while_reading(call.list, call.time, &call.element));
    platform.disturb([Fault::Status(429, Some("1".into())), Fault::CutOff, Fault::Status(503, None)]);
    let (run, code) = report(&bridge, &["--since", "6h"]).await;
    assert_eq!((code, super::errors(&run)), (Some(0), String::new()));
    // Those that ended before the first page was read are on it.
    let early = counts(&run, "missed")[0] - expected("missed", true)[0];
    assert!(early <= 3, "{early}");
    for list in LISTS {
        let [listed, known, missing, _] = expected(list, true);
        let early = if list == "missed" { early } else { 0 };
        assert_eq!(counts(&run, list), [listed + early, known, missing + early, missing + early], "{list}");
    }
    assert_eq!((platform.most_in_flight(), platform.faults_left()), (1, 0));
    // The next run finds the others.
    let (next, code) = report(&bridge, &[]).await;
    assert_eq!(code, Some(0));
    for list in LISTS {
        let [listed, ..] = expected(list, true);
        let late = if list == "missed" { shifts.len() as u64 - early } else { 0 };
        let expected = if list == "missed" { listed + early } else { listed };
        assert_eq!(counts(&next, list), [expected + late, expected, late, late], "{list}");
    }
    delivered(&bridge).await;

    let messages = kafka::consume_all(&kafka::shared(), &topic, PATIENCE).await;
    let mut reconciled = BTreeMap::new();
    for message in messages.iter().filter(|message| message.key.as_deref() == Some(b"telecmi")) {
        let header = |name: &str| {
            let value = message.headers.iter().find(|(header, _)| header == name).unwrap().1.clone();
            String::from_utf8(value).unwrap()
        };
        assert_eq!(header("ce_source"), "/telecmi/2222223/reconcile");
        let twice = reconciled.insert(id(&message.payload), String::from_utf8(message.payload.clone()).unwrap());
        assert_eq!(twice, None);
    }
    let all: BTreeMap<&str, &Call> = calls.iter().chain(&shifts).map(|call| (call.id.as_str(), call)).collect();
    let missing = all.keys().filter(|id| !came.contains(**id)).count();
    assert_eq!(reconciled.len(), missing, "as many as were missing, and none of those that came");
    assert!(reconciled.iter().all(|(id, payload)| *payload == all[id.as_str()].reconciled()));
    let arrived: BTreeSet<String> = messages.iter().map(|message| id(&message.payload)).collect();
    assert_eq!(arrived.len(), all.len(), "every call is there");

    // Webhooks that come late after all are further events of the same calls.
    let late: Vec<&Call> = calls.iter().filter(|call| !came.contains(&call.id)).take(10).collect();
    for call in &late {
        assert!(post(&client, &url, call.webhook.clone()).await);
    }
    delivered(&bridge).await;
    let with_late = kafka::consume_all(&kafka::shared(), &topic, Duration::from_secs(60)).await;
    assert_eq!(with_late.len(), messages.len() + late.len());
    for call in late {
        let events: Vec<_> = with_late.iter().filter(|message| id(&message.payload) == call.id).collect();
        let header = |name: &str| -> BTreeSet<_> {
            let headers = events.iter().flat_map(|event| event.headers.iter().filter(|header| header.0 == name));
            headers.map(|header| header.1.clone()).collect()
        };
        assert_eq!((header("ce_id").len(), header("ce_subject").len()), (2, 1), "{call:?}");
        assert_eq!(events.iter().map(|event| event.partition).collect::<BTreeSet<_>>().len(), 1);
    }
    let (last, code) = report(&bridge, &[]).await;
    assert_eq!(code, Some(0));
    for list in LISTS {
        let [listed, ..] = counts(&last, list);
        assert_eq!(counts(&last, list), [listed, listed, 0, 0], "a further run adds nothing");
    }
}
