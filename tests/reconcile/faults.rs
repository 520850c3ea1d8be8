//! What goes wrong at the platform is told, stores nothing by mistake, and does not touch the bridge.

use std::fs;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{Call, LISTS, counts, errors, found, reconcile, report};
use crate::support::platform::{Dialect, Fault, Habit, Platform, SECRET};
use crate::support::{ANY_PORTS, Bridge, PATIENCE, STDOUT, eventually, tls};

const HOUR: u64 = 3_600_000;

/// A platform with some calls on each list, and a bridge that got none of their webhooks.
async fn start(calls: usize, more: &str) -> (Platform, Bridge) {
    let platform = Platform::start(Dialect::International).await;
    for n in 0..calls {
        let call = Call::new(LISTS[n % 4], n, HOUR + n as u64 * 1000);
        platform.add(call.list, call.time, call.element);
    }
    let bridge = Bridge::start(&format!("{ANY_PORTS}{STDOUT}{}", platform.table("telecmi", more))).await;
    (platform, bridge)
}

async fn stored(bridge: &Bridge) -> f64 {
    bridge.metric("cdrelay_spool_appended_records_total").await.unwrap()
}

/// The platform is asked for a time, and need not keep to it.
#[tokio::test]
async fn calls_outside_of_the_window_are_left_alone() {
    let (platform, bridge) = start(0, "lists = ['missed']\nwindow = '6h'\nsettle = '10m'\n").await;
    let [before, within, unsettled] =
        [(1, 7 * HOUR), (2, HOUR), (3, HOUR / 60)].map(|(number, age)| Call::new("missed", number, age));
    let elements = [&before, &within, &unsettled].map(|call| call.element.clone()).join(",");
    platform.disturb([Fault::Body(format!("{{\"count\":3,\"cdr\":[{elements}]}}"))]);
    let (found, code) = report(&bridge, &[]).await;
    assert_eq!((code, counts(&found, "missed")), (Some(0), [1, 0, 1, 1]), "{found}");
    eventually(PATIENCE, "the call is delivered", async || bridge.stdout_lines().len() == 1).await;
    assert!(bridge.stdout_lines()[0].contains(&within.id));
}

#[tokio::test]
async fn an_answer_that_is_no_list_is_told_and_stores_nothing() {
    let (platform, bridge) = start(40, "lists = ['missed']\n").await;
    let deep = format!("{{\"cdr\":{}{}}}", "[".repeat(200), "]".repeat(200));
    for (fault, expected) in [
        (Fault::Status(404, None), "404: `appid` or the secret is wrong, or the account does not have this list"),
        (Fault::Status(401, None), "401: `appid` or the secret is wrong"),
        (Fault::Status(400, None), "400: it misses a parameter"),
        (Fault::Body("<!doctype html><title>maintenance</title>".into()), "HTML or XML, not JSON"),
        (Fault::Body("maintenance".into()), "not JSON (line 1, column 1)"),
        (Fault::Body("\u{feff}{\"count\":40}".into()), "no list `cdr`"),
        (Fault::Body("[]".into()), "no list `cdr`"),
        (Fault::Body("{\"cdr\":{\"0\":1}}".into()), "no list `cdr`"),
        (Fault::Body("{\"cdr\":null}".into()), "no list `cdr`"),
        (Fault::Body(deep), "not JSON"),
        (Fault::Body(format!("{{\"cdr\":[],\"x\":\"{}\"}}", "x".repeat(5 << 20))), "more than 4194304 bytes"),
        (Fault::Body(format!("{{\"cdr\":[{}1]}}", "1,".repeat(2000))), "more than 1000 calls"),
        (Fault::Status(429, Some("3600".into())), "answers 429"),
        (Fault::Redirect("http://127.0.0.1:1/v2/missed".into()), "a redirect, which is not followed"),
        (Fault::Body("{\"count\":2,\"cdr\":[7,{\"cmiuid\":\"x\"}]}".into()), "element 1 is no JSON object"),
    ] {
        platform.disturb([fault.clone()]);
        let (found, code) = report(&bridge, &[]).await;
        let errors = errors(&found);
        assert_eq!((code, counts(&found, "missed")), (Some(1), [0, 0, 0, 0]), "{fault:?}: {errors}");
        assert!(errors.contains(expected), "{fault:?}: {errors}");
    }
    assert_eq!(stored(&bridge).await, 0.0);
    assert_eq!(bridge.admin("/readyz").await.status, 200);
    assert_eq!(
        bridge.metric("cdrelay_reconcile_last_success_timestamp_seconds{reconcile=\"telecmi\"}").await,
        Some(0.0)
    );
    assert_eq!(
        bridge.metric("cdrelay_reconcile_errors_total{reconcile=\"telecmi\",list=\"missed\"}").await,
        Some(15.0)
    );
    // And afterwards it works.
    let (found, code) = report(&bridge, &[]).await;
    assert_eq!((code, counts(&found, "missed")), (Some(0), [10, 0, 10, 10]));
}

#[tokio::test]
async fn what_passes_is_waited_for() {
    let (platform, bridge) = start(400, "timeout = '300ms'\nlists = ['missed', 'answered']\n").await;
    let date = (jiff::Timestamp::now() + Duration::from_secs(3)).strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    for (faults, at_least) in [
        // The date is in two seconds, or up to three.
        (vec![Fault::Status(503, Some(date))], 1500),
        (vec![Fault::Status(429, Some("1".into()))], 1000),
        (vec![Fault::Status(500, None), Fault::Body("{\"code\":502}".into())], 1500),
        (vec![Fault::CutOff, Fault::CutOffUnnoticed], 1500),
        (vec![Fault::Silence, Fault::Trickle], 2100),
    ] {
        platform.disturb(faults.clone());
        let began = Instant::now();
        let (found, code) = report(&bridge, &["--dry-run"]).await;
        assert_eq!((code, errors(&found)), (Some(1), String::new()), "{faults:?}");
        assert_eq!(counts(&found, "missed"), [100, 0, 100, 0], "{faults:?}");
        assert_eq!(platform.faults_left(), 0);
        assert!(began.elapsed() >= Duration::from_millis(at_least), "{faults:?}: {:?}", began.elapsed());
    }
    assert_eq!(platform.most_in_flight(), 1);
}

#[tokio::test]
async fn calls_found_before_a_list_breaks_off_are_stored_and_the_run_counts_as_failed() {
    let (platform, bridge) = start(400, "lists = ['missed', 'answered']\n").await;
    let page = platform.requests().len();
    assert_eq!(page, 0);
    platform.behave(Habit::ForgetsCalls);
    let (found, code) = report(&bridge, &[]).await;
    assert_eq!((code, counts(&found, "missed")), (Some(1), [50, 0, 50, 50]));
    let told = errors(&found);
    assert!(told.contains("is empty, but the platform counts 100 calls and has listed 50"), "{told}");
    assert_eq!(
        bridge.metric("cdrelay_reconcile_last_success_timestamp_seconds{reconcile=\"telecmi\"}").await,
        Some(0.0)
    );
    platform.behave(Habit::Documented);
    let (found, code) = report(&bridge, &[]).await;
    assert_eq!((code, counts(&found, "missed")), (Some(0), [100, 50, 50, 50]));
    assert_eq!(counts(&found, "answered"), [100, 50, 50, 50]);
    assert_eq!(stored(&bridge).await, 200.0);
}

#[tokio::test]
async fn paging_ends_whatever_the_platform_does() {
    let (platform, bridge) = start(400, "lists = ['answered']\n").await;
    for (habit, listed, told) in [
        (Habit::SamePage, 20, "holds nothing new, like the page before"),
        (Habit::NewCallsForEver, 320, "the platform counts 100 calls, has listed 320, and does not end"),
        (Habit::LastPageAgain, 100, ""),
        (Habit::TenCalls, 100, ""),
        (Habit::Documented, 100, ""),
    ] {
        platform.behave(habit);
        let (found, code) = report(&bridge, &["--dry-run"]).await;
        let errors = errors(&found);
        assert_eq!((code, counts(&found, "answered")[0]), (Some(1), listed), "{habit:?}: {errors}");
        assert!(errors.contains(told) && errors.is_empty() == told.is_empty(), "{habit:?}: {errors}");
    }
    assert!(platform.requests().len() < 60, "{}", platform.requests().len());
}

#[tokio::test]
async fn an_account_without_a_list_has_its_other_lists_compared() {
    let (platform, bridge) = start(40, "").await;
    platform.behave(Habit::NoAnswered);
    let (found, code) = report(&bridge, &[]).await;
    assert_eq!(code, Some(1));
    for list in LISTS {
        let expected = if list == "answered" { [0; 4] } else { [10, 0, 10, 10] };
        assert_eq!(counts(&found, list), expected, "{list}");
    }
    assert!(errors(&found).contains("the account does not have this list"));
}

#[tokio::test]
async fn the_secret_is_read_again_and_stands_nowhere() {
    let secrets = TempDir::new().unwrap();
    let file = secrets.path().join("secret");
    fs::write(&file, "wrong").unwrap();
    let log = "[log]\nlevel = 'trace'\n";
    let (platform, mut bridge) = start(40, &format!("secret_file = {file:?}\n{log}")).await;
    let (found_wrong, code) = report(&bridge, &[]).await;
    assert_eq!(code, Some(1));
    assert!(errors(&found_wrong).contains("404: `appid` or the secret is wrong"), "{found_wrong}");
    fs::write(&file, format!("{SECRET}\n")).unwrap();
    // A platform that shows the secret in its errors, and answers that cannot be read.
    platform.disturb([
        Fault::Status(400, None),
        Fault::Body(format!("{{\"secret\":\"{SECRET}\"")),
        Fault::Body(SECRET.into()),
    ]);
    let (found_bad, _) = report(&bridge, &[]).await;
    let (found_good, code) = report(&bridge, &[]).await;
    assert_eq!((code, counts(&found_good, "missed")[0]), (Some(0), 10));
    fs::remove_file(&file).unwrap();
    let table = reconcile(&bridge, &[]).await;
    assert!(table.code == Some(1) && table.stdout.contains("`secret_file`: cannot read"), "{table:?}");
    let metrics = bridge.admin("/metrics").await;
    for text in [found_wrong.to_string(), found_bad.to_string(), format!("{table:?}"), metrics.text().to_owned()] {
        assert!(!text.contains(SECRET), "{text}");
    }
    bridge.terminate();
    assert!(bridge.wait(Duration::from_secs(20)).await.success());
    assert!(bridge.stderr().contains("TRACE"), "it logs all it can");
    assert_eq!(found(bridge.directory(), SECRET), [] as [std::path::PathBuf; 0]);
    assert!(platform.requests().iter().any(|(_, body)| body["secret"] == SECRET), "it was sent");
}

#[tokio::test]
async fn the_secret_goes_to_a_platform_with_a_trusted_certificate_alone() {
    let directory = TempDir::new().unwrap();
    let files = tls::issue(directory.path());
    let platform = Platform::start_tls(Dialect::International, &files).await;
    let call = Call::new("missed", 1, HOUR);
    platform.add(call.list, call.time, call.element);
    let table = platform.table("telecmi", "lists = ['missed']\n");
    let untrusting = Bridge::start(&format!("{ANY_PORTS}{STDOUT}{table}")).await;
    let (found, code) = report(&untrusting, &[]).await;
    assert!(code == Some(1) && errors(&found).contains("invalid peer certificate"), "{found}");
    assert_eq!(platform.requests(), []);
    let bridge = Bridge::start(&format!("{ANY_PORTS}{STDOUT}{table}ca_file = {:?}\n", files.authority)).await;
    let (found, code) = report(&bridge, &[]).await;
    assert_eq!((code, counts(&found, "missed")), (Some(0), [1, 0, 1, 1]), "{found}");
}
