//! `[[tests]]`: an event, and what each sink has to get of it. `cdrelay check` runs them.

use super::Config;
use crate::event::{Arrival, DEFAULT_INGRESS};
use crate::ingress::decode::Content;
use crate::route::{FilterError, Route, Routed};
use crate::sink::Message;
use crate::spool::Record;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// `[[tests]]`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Test {
    /// What the test is called.
    pub name: String,
    /// The body of a webhook, one event.
    pub event: String,
    /// The Content-Type of the body.
    #[serde(default)]
    pub content_type: Option<String>,
    /// The query beside the body, percent-encoded, without secrets.
    #[serde(default)]
    pub query: Option<String>,
    /// The route that it comes by.
    #[serde(default = "default_route")]
    pub route: String,
    /// What each sink has to get. The others do not matter.
    pub sinks: BTreeMap<String, Expected>,
}

/// `[tests.sinks.NAME]`: what is not set does not matter.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(transform = super::schema::with_subject)]
pub struct Expected {
    /// The fate of the event.
    pub outcome: Outcome,
    /// The topic or subject.
    #[serde(alias = "subject")]
    pub topic: Option<String>,
    /// The message key.
    pub key: Option<String>,
    /// The text that chooses the partition.
    pub partition_by: Option<String>,
    /// Header fields, by name.
    pub headers: BTreeMap<String, String>,
    /// The exact payload.
    pub payload: Option<String>,
}

/// The fate of an event at one sink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is published.
    #[default]
    Sent,
    /// `when` keeps it from the sink.
    KeptBack,
    /// It becomes a dead letter.
    DeadLetter,
}

fn default_route() -> String {
    DEFAULT_INGRESS.to_owned()
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::KeptBack => "kept_back",
            Self::DeadLetter => "dead_letter",
        }
    }
}

impl Config {
    /// Runs the tests. Returns a line for each failed one: its origin, the expected value and the actual one.
    pub fn failed_tests(&self) -> Vec<String> {
        let tests = self.tests.iter().enumerate();
        tests
            .flat_map(|(index, test)| {
                test.failures(self).into_iter().map(move |(key, problem)| {
                    let key = if key.is_empty() { String::new() } else { format!(".{key}") };
                    format!("`tests.{index}{key}`: test {:?}: {problem}", test.name)
                })
            })
            .collect()
    }
}

impl Test {
    /// Keys and problems.
    fn failures(&self, config: &Config) -> Vec<(String, String)> {
        let one = |key: &str, problem: String| vec![(key.to_owned(), problem)];
        if !config.ingress.all_routes().contains_key(&self.route) {
            return one("route", format!("found {:?}; no route is called that", self.route));
        }
        let content = Content {
            method: "POST",
            query: self.query.as_deref(),
            content_type: self.content_type.as_deref().map(str::as_bytes),
            body: self.event.as_bytes(),
        };
        let event = match content.decode(&config.ingress.decode, Arrival::now()).as_deref() {
            Ok([event]) => event.clone(),
            Ok(events) => return one("event", format!("holds {} events; expected one", events.len())),
            Err(error) => return one("event", error.to_string()),
        };
        let by: Option<Arc<str>> = (self.route != DEFAULT_INGRESS).then(|| self.route.as_str().into());
        let record = Record { offset: 0, target: None, event: event.by(by) };
        let mut failures = Vec::new();
        for (name, expected) in &self.sinks {
            let at = format!("sinks.{name}");
            let Some(sink) = config.sinks.get(name) else {
                failures.push((at, "no sink is called that".to_owned()));
                continue;
            };
            match Route::compile(&sink.route, sink.destination.dialect()) {
                Ok(route) => expected.compare(&route, &record, &at, &mut failures),
                Err(error) => failures.push((at, error.to_string())),
            }
        }
        failures
    }
}

impl Expected {
    fn compare(&self, route: &Route, record: &Record, at: &str, failures: &mut Vec<(String, String)>) {
        let mut undecided: Option<FilterError> = None;
        let (outcome, message, cause) = match route.render(record, |error| undecided = Some(error)) {
            Routed::Message(message) => (Outcome::Sent, Some(message), None),
            Routed::Refused { cause, message } => (Outcome::DeadLetter, Some(message), Some(cause)),
            Routed::Filtered => (Outcome::KeptBack, None, undecided.map(|error| error.to_string())),
        };
        if outcome != self.outcome {
            let cause = cause.map_or_else(String::new, |cause| format!(" ({cause})"));
            let problem = format!("expected {:?}, found {:?}{cause}", self.outcome.name(), outcome.name());
            failures.push((format!("{at}.outcome"), problem));
        }
        if let Some(message) = message {
            self.compare_message(&message, at, failures);
        }
    }

    fn compare_message(&self, message: &Message, at: &str, failures: &mut Vec<(String, String)>) {
        let payload = String::from_utf8_lossy(message.payload());
        let mut compare = |key: &str, expected: Option<&String>, found: Option<&str>| {
            if let Some(expected) = expected.filter(|expected| found != Some(expected)) {
                let found = found.map_or("none".to_owned(), |found| format!("{found:?}"));
                failures.push((format!("{at}.{key}"), format!("expected {expected:?}, found {found}")));
            }
        };
        compare("topic", self.topic.as_ref(), Some(message.topic()));
        compare("key", self.key.as_ref(), Some(message.key()));
        compare("partition_by", self.partition_by.as_ref(), Some(message.partition_by()));
        compare("payload", self.payload.as_ref(), Some(&payload));
        for (name, expected) in &self.headers {
            let found = message.headers().find(|(header, _)| header == name).map(|(_, value)| value);
            compare(&format!("headers.{name}"), Some(expected), found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SINKS: &str = "[sinks.k]\ntype = 'kafka'\nbrokers = 'a:1'\ntopic = 'cdr.{team}'\n\
                         when = \"has(event.status) && event.status == 'missed'\"\n[sinks.n]\ntype = 'nats'\n";

    fn failures(tests: &str) -> Vec<String> {
        Config::from_toml(&format!("{SINKS}{tests}")).unwrap().failed_tests()
    }

    #[test]
    fn a_test_fails_for_each_thing_that_a_sink_gets_otherwise() {
        let event = r#"event = '{"team":"Sales","status":"missed","cmiuuid":"m"}'"#;
        let test = |more: &str| format!("[[tests]]\nname = 'missed'\n{event}\n{more}");
        let good = "[tests.sinks.k]\ntopic = 'cdr.Sales'\nkey = 'Sales/m'\npartition_by = 'm'\nheaders = { ce_subject = 'm' }\n\
                    payload = '{\"team\":\"Sales\",\"status\":\"missed\",\"cmiuuid\":\"m\"}'\n\
                    [tests.sinks.n]\nsubject = 'telecmi.cdr.Sales.m'\n";
        assert_eq!(failures(&test(good)), [""; 0]);
        for (from, to, key) in [
            ("'cdr.Sales'", "'cdr.sales'", "tests.0.sinks.k.topic"),
            ("'Sales/m'", "'Sales'", "tests.0.sinks.k.key"),
            ("partition_by = 'm'", "partition_by = 'x'", "tests.0.sinks.k.partition_by"),
            ("ce_subject = 'm'", "ce_subjet = 'm'", "tests.0.sinks.k.headers.ce_subjet"),
            ("\"cmiuuid\":\"m\"}", "\"cmiuuid\":\"x\"}", "tests.0.sinks.k.payload"),
            ("[tests.sinks.n]", "[tests.sinks.n]\noutcome = 'kept_back'", "tests.0.sinks.n.outcome"),
            ("[tests.sinks.n]", "[tests.sinks.m]", "tests.0.sinks.m"),
        ] {
            let found = failures(&test(&good.replace(from, to)));
            assert!(
                found.len() == 1 && found[0].starts_with(&format!("`{key}`: test \"missed\": ")),
                "{key}: {found:?}"
            );
        }
    }

    #[test]
    fn a_sink_may_have_to_get_nothing() {
        let test = |event: &str, outcome: &str| {
            format!("[[tests]]\nname = 't'\nevent = '{event}'\n[tests.sinks.k]\noutcome = '{outcome}'\n")
        };
        assert_eq!(failures(&test(r#"{"status":"answered"}"#, "kept_back")), [""; 0]);
        assert_eq!(failures(&test(r#"{"status":"missed"}"#, "sent")), [""; 0]);
        assert_eq!(failures(&test(r#"{"status":"missed","team":1e999}"#, "kept_back")).len(), 1);
        for (event, word) in [("{", "EOF"), ("[{\"a\":1},{\"a\":2}]", "2 events")] {
            let found = failures(&test(event, "sent"));
            assert!(found.len() == 1 && found[0].contains("`tests.0.event`") && found[0].contains(word), "{found:?}");
        }
        let other = failures(&test("{}", "sent").replace("name", "route = 'x'\nname"));
        assert!(other[0].starts_with("`tests.0.route`"), "{other:?}");
    }
}
