//! The India platform lists calls without an id that a webhook carries: they are recognised by their time and the other party's number.

use serde_json::json;

use super::{counts, now, report};
use crate::support::platform::{APPID, Dialect, Platform, SECRET};
use crate::support::{ANY_PORTS, Bridge, STDOUT};

/// An agent.
const OUTBOUND: &str = "\"209_2222223\"";

#[tokio::test]
async fn calls_are_recognised_by_time_and_number() {
    let platform = Platform::start(Dialect::India).await;
    let start = now() - 3_600_000;
    // Two calls each in the same millisecond.
    let time = |list: u64, n: u64| start + 100_000 * list + n / 2;
    // As documented: what went out has the agent in `from`, and its webhook no `from` at all.
    for n in 0..60 {
        let inbound = format!("92{n:08}");
        let callers =
            [("missed", &*inbound), ("answered", &inbound), ("outmissed", OUTBOUND), ("outanswered", OUTBOUND)];
        for (list, (path, from)) in (0..).zip(callers) {
            let time = time(list, n);
            let element = format!(
                "{{\"_id\":\"5d9609da3e23420b5f1f{time:04x}\",\"to\":91{n:08},\"time\":{time},\"from\":{from},\"billedsec\":4,\"rate\":\"0.49\"}}"
            );
            platform.add(path, time, element);
        }
    }
    let bridge = Bridge::start(&format!("{ANY_PORTS}{STDOUT}{}", platform.table("india", ""))).await;
    // Every third webhook is lost.
    let mut webhooks = String::new();
    for n in (0..60).filter(|n| n % 3 > 0) {
        let mut send = |list: u64, direction: &str, status: &str, more: serde_json::Value| {
            let mut webhook = json!({
                "type": "cdr", "appid": APPID, "direction": direction, "status": status, "time": time(list, n),
                "cmiuuid": format!("{direction}-{status}-{n}"),
            });
            webhook.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            webhooks += &format!("{webhook}\n");
        };
        let (caller, called) = (9_200_000_000_u64 + n, 9_100_000_000_u64 + n);
        send(0, "inbound", "missed", json!({ "from": caller }));
        // `to` is the agent's own number.
        send(
            1,
            "inbound",
            "answered",
            json!({ "from": caller.to_string(), "to": 4_461_111_111_u64, "user": "103_2222223" }),
        );
        send(2, "outbound", "missed", json!({ "to": called, "user": "209_2222223" }));
        send(3, "outbound", "answered", json!({ "to": format!("+{called}"), "user": "209_2222223" }));
    }
    assert_eq!(bridge.post(webhooks, "application/json").await.status, 200);
    for (run, expected) in [(0, [60, 40, 20, 20]), (1, [60, 60, 0, 0])] {
        let (found, code) = report(&bridge, &[]).await;
        assert_eq!(code, Some(0), "{found}");
        for list in super::LISTS {
            assert_eq!(counts(&found, list), expected, "run {run}: {list}");
        }
    }
    assert!(platform.requests().iter().all(|(_, body)| body["token"] == SECRET && body.get("secret").is_none()));
}
