//! Series as promtool takes them, made of what a real bridge said.

use crate::support::bridge::Bridge;
use crate::support::prometheus::program;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use tempfile::TempDir;

/// Minutes that a run lasts before and after its fault.
const BEFORE: u32 = 30;
const AFTER: u32 = 60;
/// When the alerts of a run are looked at: all have fired by then, and none is over.
const LOOK: &str = "50m";
const ALERTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/monitoring/alerts.yaml");

/// All series of one run: their values by minute, by name and labels.
#[derive(Clone, Debug, Default)]
pub struct Recording {
    first: BTreeMap<String, f64>,
    last: BTreeMap<String, f64>,
    changed: BTreeMap<String, String>,
}

impl Recording {
    /// What the bridge says before anything happens.
    pub async fn begin(bridge: &Bridge) -> Self {
        Self { first: scrape(bridge).await, ..Self::default() }
    }

    /// What it says when it has happened.
    pub async fn end(&mut self, bridge: &Bridge) {
        self.last = scrape(bridge).await;
    }

    /// The same with other values of one series.
    pub fn with(mut self, name: &str, values: &str) -> Self {
        self.changed.insert(name.to_owned(), values.to_owned());
        self
    }

    /// No duration of this histogram is below `seconds`.
    pub fn slow_down(&mut self, histogram: &str, seconds: f64) {
        for name in self.last.keys().filter(|name| name.starts_with(&format!("{histogram}_bucket"))) {
            let bound = name.split_once("le=\"").unwrap().1.split('"').next().unwrap();
            if bound.parse::<f64>().is_ok_and(|bound| bound < seconds) {
                self.changed.insert(name.clone(), format!("0+0x{}", BEFORE + AFTER));
            }
        }
    }

    /// Whether the sink with the labels of this metric was down at the end, or waited for a place.
    fn is_stuck(&self, name: &str) -> bool {
        let of = |other: &str| self.last.get(&name.replace(family(name), other)).copied();
        of("cdrelay_sink_up") == Some(0.0) || of("cdrelay_sink_places_unavailable") > Some(0.0)
    }

    /// Each series and its values, a minute apart. Counters go on as fast as they went during the run, the age of what waits grows.
    pub fn series(&self) -> Vec<(String, String)> {
        let up = [("up".to_owned(), format!("1+0x{}", BEFORE + AFTER))];
        let recorded = self.last.iter().map(|(name, last)| {
            let grown = last - self.first.get(name).copied().unwrap_or_default();
            let is_counter = ["_total", "_bucket", "_count", "_sum"].iter().any(|end| family(name).ends_with(end));
            let step = match family(name) {
                _ if is_counter => grown,
                "cdrelay_sink_lag_seconds" if *last > 0.0 && self.is_stuck(name) => 60.0,
                _ => 0.0,
            };
            let before = self.first.get(name).map_or("_".to_owned(), |first| format!("{first}+0"));
            (name.clone(), format!("{before}x{BEFORE} {last}+{step}x{AFTER}"))
        });
        let mut all: BTreeMap<_, _> = up.into_iter().chain(recorded).collect();
        all.extend(self.changed.clone());
        all.into_iter().collect()
    }
}

fn family(name: &str) -> &str {
    name.split('{').next().unwrap()
}

async fn scrape(bridge: &Bridge) -> BTreeMap<String, f64> {
    let text = bridge.admin("/metrics").await;
    let samples = text.text().lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| line.rsplit_once(' ').unwrap())
        .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
        .collect()
}

/// The name with the labels that a scrape adds.
fn scraped(name: &str) -> String {
    let target = "job=\"cdrelay\",instance=\"bridge:9090\"";
    match name.split_once('{') {
        Some((family, labels)) => format!("{family}{{{target},{labels}"),
        None => format!("{name}{{{target}}}"),
    }
}

/// The name of a case, its series with their values, and the alerts that fire.
pub type Case<'a> = (&'a str, Vec<(String, String)>, Vec<&'a str>);

/// Has promtool test that in each case these alerts fire and no others; and one more alert with series of 26 hours.
pub fn test_alerts(cases: &[Case<'_>], (daily, series): (&str, &[(&str, &str)])) {
    let Some(promtool) = program("promtool") else { return };
    let group = |name: &str, series: Vec<Value>, looks: &[(&str, &[&str])]| {
        let firing: Vec<_> = looks
            .iter()
            .map(|(time, expected)| {
                let samples: Vec<_> =
                    expected.iter().map(|alert| json!({ "labels": format!("{{alertname=\"{alert}\"}}"), "value": 1 })).collect();
                json!({ "expr": "group by (alertname) (ALERTS{alertstate=\"firing\"})", "eval_time": time, "exp_samples": samples })
            })
            .collect();
        json!({ "name": name, "interval": "1m", "input_series": series, "promql_expr_test": firing })
    };
    let input = |name: &str, values: &str| json!({ "series": scraped(name), "values": values });
    let mut tests = Vec::new();
    for (name, all, expected) in cases {
        let series = all.iter().map(|(name, values)| input(name, values)).collect();
        let mut looks: Vec<(&str, &[&str])> = vec![(LOOK, expected)];
        if expected.is_empty() {
            looks.extend(["15m", "30m", "31m", "35m", "60m", "80m"].map(|time| (time, &[][..])));
        }
        tests.push(group(name, series, &looks));
    }
    let series = series.iter().map(|(name, values)| input(name, values)).collect();
    tests.push(group(daily, series, &[("1440m", &[]), ("1470m", &[]), ("1530m", &[daily])]));
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("test.yaml");
    let file = json!({ "rule_files": [ALERTS], "evaluation_interval": "1m", "tests": tests });
    fs::write(&path, file.to_string()).unwrap();
    for arguments in [["check", "rules", ALERTS], ["test", "rules", path.to_str().unwrap()]] {
        let mut promtool = std::process::Command::new(promtool.get_program());
        let output = promtool.args(arguments).output().unwrap();
        let told = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&told));
    }
}
