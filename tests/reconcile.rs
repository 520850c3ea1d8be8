//! Calls whose webhooks never came are found in the platform's lists, and reach the sinks as if they had come.

mod background;
mod conservation;
mod faults;
mod india;

use crate::command_line::{Finished, finished};
use crate::support::bridge::{Bridge, command};
use crate::support::platform::APPID;
use serde_json::{Value, json};

pub const LISTS: [&str; 4] = ["missed", "answered", "out_missed", "out_answered"];

/// Milliseconds since 1970.
pub fn now() -> u64 {
    jiff::Timestamp::now().as_millisecond().try_into().unwrap()
}

/// One call, as the platform lists it and as its webhook says it.
#[derive(Clone, Debug)]
pub struct Call {
    pub list: &'static str,
    pub id: String,
    pub time: u64,
    pub element: String,
    pub webhook: String,
}

impl Call {
    /// The call of this number in the list, which began so many milliseconds ago.
    pub fn new(list: &'static str, number: usize, age: u64) -> Self {
        let id = format!("{:08x}-0396-4f9d-907f-{number:012x}", number * 7919 + list.len());
        let time = now() - age;
        let (caller, called) = (442_000_000_000_u64 + number as u64, 443_000_000_000_u64 + number as u64);
        let answered = list.ends_with("answered");
        // As documented: the caller is a number here and a text there, and some members are there for answered calls only.
        let recorded = format!("\"agent\":\"201_1111112\",\"filename\":\"{time}_{APPID}.mp3\",\"record\":\"true\",");
        let element = format!(
            "{{\"cmiuid\":\"{id}\",\"duration\":{},\"notes\":[{{\"msg\":\"callback\",\"date\":1650625184759}}],{}\"billedsec\":4,\"rate\":1.50,\
             \"name\":\"unknown\",\"from\":{},\"to\":{called},\"time\":{time}}}",
            if answered { 4 } else { 0 },
            if answered { &recorded } else { "" },
            if number.is_multiple_of(2) { caller.to_string() } else { format!("\"{caller}\"") },
        );
        let (direction, status) = match list {
            "missed" => ("inbound", "missed"),
            "answered" => ("inbound", "answered"),
            "out_missed" => ("outbound", "missed"),
            _ => ("outbound", "answered"),
        };
        let mut webhook = json!({
            "type": "cdr", "appid": APPID, "direction": direction, "status": status, "cmiuuid": id, "time": time, "to": called,
        });
        match direction {
            "inbound" => {
                webhook["from"] = json!(caller);
                webhook["conversation_uuid"] = json!(id);
            }
            _ => webhook["leg"] = json!("b"),
        }
        Self { list, id, time, element, webhook: webhook.to_string() }
    }

    /// The event that it becomes if its webhook never comes.
    pub fn reconciled(&self) -> String {
        let (direction, status) = match self.list {
            "missed" => ("inbound", "missed"),
            "answered" => ("inbound", "answered"),
            "out_missed" => ("outbound", "missed"),
            _ => ("outbound", "answered"),
        };
        let implied =
            format!("{{\"type\":\"cdr\",\"direction\":\"{direction}\",\"status\":\"{status}\",\"appid\":{APPID},");
        implied + &self.element[1..]
    }
}

/// Runs `cdrelay reconcile` for a bridge, which may run.
pub async fn reconcile(bridge: &Bridge, arguments: &[&str]) -> Finished {
    let mut command = command();
    command.current_dir(bridge.directory()).args(["reconcile", "--config", "cdrelay.toml"]).args(arguments);
    tokio::task::spawn_blocking(move || finished(&mut command)).await.unwrap()
}

/// The report of the only reconciliation, and the exit code.
pub async fn report(bridge: &Bridge, arguments: &[&str]) -> (Value, Option<i32>) {
    let finished = reconcile(bridge, &[arguments, &["--json"]].concat()).await;
    let report = serde_json::from_str(&finished.stdout).unwrap_or_else(|_| panic!("{finished:?}"));
    (report, finished.code)
}

/// `listed`, `known`, `missing` and `added` of a list.
pub fn counts(report: &Value, list: &str) -> [u64; 4] {
    let lists = report["lists"].as_array().unwrap();
    let of = lists.iter().find(|of| of["list"] == list).unwrap_or_else(|| panic!("no {list}: {report}"));
    ["listed", "known", "missing", "added"].map(|name| of[name].as_u64().unwrap())
}

/// All errors of a report.
pub fn errors(report: &Value) -> String {
    let lists = report["lists"].as_array().unwrap().iter();
    let errors = lists.flat_map(|list| list["errors"].as_array().unwrap().iter().map(|error| error.as_str().unwrap()));
    errors.chain(report["error"].as_str()).collect::<Vec<_>>().join("\n")
}

/// How often a text stands in any file below a directory.
pub fn found(directory: &std::path::Path, text: &str) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(self::found(&path, text));
        } else if path.is_file()
            && std::fs::read(&path).unwrap().windows(text.len()).any(|window| window == text.as_bytes())
        {
            found.push(path);
        }
    }
    found
}
