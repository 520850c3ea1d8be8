//! A bridge compares by itself, tells what it finds, and serves as before.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Call, LISTS, counts, errors, now, reconcile, report};
use crate::command_line::cdrelay;
use crate::support::platform::{Dialect, Fault, Platform};
use crate::support::{ANY_PORTS, Bridge, PATIENCE, STDOUT, eventually};

const HOUR: u64 = 3_600_000;

async fn of_list(bridge: &Bridge, what: &str, list: &str) -> Option<f64> {
    bridge.metric(&format!("cdrelay_reconcile_{what}_total{{reconcile=\"telecmi\",list=\"{list}\"}}")).await
}

/// The fields of the log lines with this message.
fn logged(bridge: &Bridge, message: &str) -> Vec<Value> {
    let stderr = bridge.stderr();
    let lines = stderr.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.map(|line| line["fields"].clone()).filter(|fields| fields["message"] == message).collect()
}

#[tokio::test]
async fn missing_calls_are_added_counted_and_logged_without_numbers() {
    let platform = Platform::start(Dialect::International).await;
    let call = Call::new("answered", 1, HOUR);
    platform.add(call.list, call.time, &call.element);
    let bridge = Bridge::start(&format!("{ANY_PORTS}{STDOUT}{}", platform.table("telecmi", "every = '300ms'\n"))).await;
    let success = "cdrelay_reconcile_last_success_timestamp_seconds{reconcile=\"telecmi\"}";
    eventually(PATIENCE, "the first run after the start", async || bridge.metric(success).await > Some(0.0)).await;
    assert!(bridge.metric(success).await.unwrap() as u64 >= call.time / 1000 + 3600);
    let first = of_list(&bridge, "listed", "answered").await;
    eventually(PATIENCE, "further runs", async || of_list(&bridge, "listed", "answered").await > first).await;
    for (what, list, expected) in [
        ("missing", "answered", 1.0),
        ("added", "answered", 1.0),
        ("missing", "missed", 0.0),
        ("errors", "answered", 0.0),
    ] {
        assert_eq!(of_list(&bridge, what, list).await, Some(expected), "{what} {list}");
    }
    let lines = bridge.stdout_lines();
    let messages: Vec<Value> = lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert_eq!(messages.len(), 1, "{lines:?}");
    assert_eq!(messages[0]["headers"]["ce_source"], "/telecmi/2222223/reconcile");
    assert_eq!(messages[0]["headers"]["ce_type"], "com.telecmi.cdr.inbound.answered");
    assert_eq!(messages[0]["headers"]["ce_subject"], call.id);

    let told = logged(&bridge, "the webhook of a call never came");
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((&told[0]["list"], &told[0]["id"]), (&"answered".into(), &messages[0]["headers"]["ce_id"]));
    assert!(told[0]["age_seconds"].as_u64().unwrap() >= 3600 && told[0]["time"].as_str().unwrap().ends_with('Z'));
    for number in ["442000000001", "443000000001"] {
        assert!(!bridge.stderr().contains(number));
    }
}

#[tokio::test]
async fn a_platform_that_is_away_changes_nothing_but_its_metrics() {
    let platform = Platform::start(Dialect::International).await;
    let table = platform.table("telecmi", "every = '200ms'\nlists = ['missed']\n");
    drop(platform);
    let mut bridge = Bridge::start(&format!("{ANY_PORTS}{STDOUT}{table}")).await;
    eventually(PATIENCE, "a failed run", async || of_list(&bridge, "errors", "missed").await > Some(0.0)).await;
    assert_eq!(bridge.admin("/readyz").await.status, 200);
    assert_eq!(bridge.post("{\"type\":\"cdr\"}", "application/json").await.status, 200);
    assert!(
        logged(&bridge, "list of calls not compared completely")[0]["error"].as_str().unwrap().contains("page 1: ")
    );
    bridge.terminate();
    assert!(bridge.wait(PATIENCE).await.success());
}

#[tokio::test]
async fn a_stop_does_not_wait_for_the_platform() {
    let platform = Platform::start(Dialect::International).await;
    platform.disturb([Fault::Silence]);
    let table = platform.table("telecmi", "every = '1h'\n");
    let mut bridge = Bridge::start(&format!("{ANY_PORTS}{STDOUT}{table}")).await;
    eventually(PATIENCE, "it asks the platform", async || platform.requests().len() == 1).await;
    let began = Instant::now();
    bridge.terminate();
    assert!(bridge.wait(PATIENCE).await.success());
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test]
async fn two_bridges_give_a_call_the_same_id_also_without_one_that_runs() {
    let platform = Platform::start(Dialect::International).await;
    let calls: Vec<Call> = (0..50).map(|n| Call::new(LISTS[n % 4], n, HOUR)).collect();
    calls.iter().for_each(|call| platform.add(call.list, call.time, &call.element));
    let config = format!("{ANY_PORTS}{STDOUT}{}", platform.table("telecmi", ""));
    let bridges = [Bridge::start(&config).await, Bridge::start(&config).await];
    let [running, mut stopped] = bridges;
    stopped.terminate();
    assert!(stopped.wait(PATIENCE).await.success());
    let mut ids = Vec::new();
    for bridge in [&running, &stopped] {
        let table = reconcile(bridge, &["telecmi"]).await;
        assert_eq!(table.code, Some(0), "{table:?}");
        assert!(table.stdout.contains("missed             13        0       13       13"), "{}", table.stdout);
        // The caller is shown with its middle hidden.
        assert!(table.stdout.contains(" +44******0013 ") && !table.stdout.contains("442000000013"), "{}", table.stdout);
        let (again, code) = report(bridge, &["--dry-run"]).await;
        assert_eq!((code, counts(&again, "missed")), (Some(0), [13, 13, 0, 0]));
        let mut of_bridge: Vec<_> = table
            .stdout
            .lines()
            .filter_map(|line| line.split_whitespace().last())
            .filter(|id| id.len() == 32)
            .collect();
        of_bridge.sort_unstable();
        ids.push(of_bridge.join(" "));
    }
    assert_eq!(ids[0], ids[1]);
    assert_eq!(ids[0].split(' ').count(), calls.len());
    stopped.start_again().await;
    eventually(PATIENCE, "they are delivered", async || stopped.stdout_lines().len() >= calls.len()).await;
}

#[tokio::test]
async fn young_calls_and_those_before_the_window_are_left_alone() {
    let platform = Platform::start(Dialect::International).await;
    let minute = 60_000;
    for (n, age) in [5 * minute, 11 * minute, 2 * HOUR + minute, 5 * HOUR].into_iter().enumerate() {
        let call = Call::new("missed", n, age);
        platform.add(call.list, call.time, call.element);
    }
    // It began long ago, and ended a minute ago.
    let time = now() - HOUR;
    let long = format!("{{\"cmiuid\":\"long\",\"duration\":{},\"time\":{time}}}", 59 * 60);
    platform.add("answered", time, long);
    let table = platform.table("telecmi", "window = '2h'\nsettle = '10m'\n");
    let bridge = Bridge::start(&format!("{ANY_PORTS}{STDOUT}{table}[spool]\nlegs_window = '4h'\n")).await;
    let (found, _) = report(&bridge, &["--dry-run"]).await;
    assert_eq!((counts(&found, "missed"), counts(&found, "answered")), ([1, 0, 1, 0], [0; 4]));
    let (found, _) = report(&bridge, &["--dry-run", "--since", "3h"]).await;
    assert_eq!((counts(&found, "missed"), errors(&found)), ([2, 0, 2, 0], String::new()));
    // Nobody knows whether earlier webhooks came.
    let (found, code) = report(&bridge, &["--since", "24h"]).await;
    assert_eq!((counts(&found, "missed"), code), ([2, 0, 2, 2], Some(1)));
    assert!(errors(&found).contains("`spool.legs_window`"), "{found}");
    let unknown = reconcile(&bridge, &["other"]).await;
    assert!(unknown.code == Some(64) && unknown.stderr.contains("there are: telecmi"), "{unknown:?}");
}

#[test]
fn mistakes_in_the_settings_are_named() {
    let check = |name: &str, table: &str| {
        let settings = [
            format!("reconcile.{name}.appid=1"),
            format!("reconcile.{name}.platform=telecmi"),
            format!("reconcile.{name}.secret=hunter2"),
        ];
        let settings =
            settings.iter().map(String::as_str).chain(table.split(' ').filter(|setting| !setting.is_empty()));
        let arguments: Vec<_> = ["check"].into_iter().chain(settings.flat_map(|setting| ["--set", setting])).collect();
        cdrelay(&arguments)
    };
    let sound = check("x", "reconcile.x.base_url=https://example.com/v2");
    assert_eq!(sound.code, Some(0), "{sound:?}");
    for (name, settings, told) in [
        ("default", "", "`reconcile.default`: the name"),
        ("eu", "ingress.routes.eu.path=/eu", "`reconcile.eu`: the name"),
        ("x", "reconcile.x.base_url=http://example.com/v2", "`reconcile.x.base_url`: found \"http://example.com/v2\""),
        ("x", "reconcile.x.base_url=https://user@example.com", "`reconcile.x.base_url`"),
        ("x", "reconcile.x.base_url=example", "`reconcile.x.base_url`"),
        ("x", "reconcile.x.lists=[]", "`reconcile.x.lists`: found an empty list"),
        ("x", "reconcile.x.lists=[\"lost\"]", "`reconcile.x.lists"),
        ("x", "reconcile.x.window=5m", "`reconcile.x.window`"),
        ("x", "reconcile.x.window=300h", "`spool.legs_window`"),
        ("x", "spool.legs_capacity=0", "`spool.legs_capacity`"),
        ("x", "reconcile.x.timeout=0s", "`reconcile.x.timeout`"),
        ("x", "reconcile.x.secret_file=/s", "keep one of them"),
        ("x", "reconcile.x.platform=other", "`reconcile.x.platform`"),
        ("x", "reconcile.x.ca_file=/nowhere", "`reconcile.x`: `ca_file`: /nowhere"),
    ] {
        let refused = check(name, settings);
        assert_eq!(refused.code, Some(78), "{settings}: {refused:?}");
        assert!(refused.stderr.contains(told) && !refused.stderr.contains("hunter2"), "{settings}: {}", refused.stderr);
    }
}
