//! What a reload changes: the difference between the configuration that runs and the one that was read.

use crate::config::{Config, keys};
use crate::{dispatch, route};
use std::collections::BTreeMap;

/// Keys, and tables with all keys in them, that take effect without a restart.
const RELOADED: [&str; 7] = ["ingress", "sinks", "dead_letters", "log.level", "shutdown", "reload", "tests"];
/// The exceptions to that.
const FIXED: [&str; 2] = ["ingress.listen", "ingress.rejected"];

/// What happens to a sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SinkChange {
    /// It is new.
    Added,
    /// It gets a new connection.
    Replaced,
    /// It keeps its connection. Messages are made, filtered or retried otherwise.
    Adjusted,
    /// It is not there any more.
    Removed,
}

/// What differs.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Every key with another value.
    pub keys: Vec<String>,
    /// Those that need a restart.
    pub fixed: Vec<String>,
    /// The sinks that do not stay as they are.
    pub sinks: BTreeMap<String, SinkChange>,
}

impl Difference {
    /// Compares what runs with what was read.
    pub fn between(running: &Config, read: &Config) -> Self {
        let keys = running.values.changed(&read.values);
        let needs_restart = |key: &&String| !is_under(key, &RELOADED) || is_under(key, &FIXED);
        let fixed = keys.iter().filter(needs_restart).cloned().collect();
        // Every sink makes messages of what the routes of the ingress say.
        let all_adjusted = running.ingress.origins() != read.ingress.origins();
        let mut sinks = BTreeMap::new();
        for name in read.sinks.keys() {
            let at = format!("sinks.{name}.");
            let own: Vec<&str> = keys.iter().filter_map(|key| key.strip_prefix(&at)).collect();
            let change = match (running.sinks.contains_key(name), own.iter().any(|key| changes_connection(key))) {
                (false, _) => SinkChange::Added,
                (true, true) => SinkChange::Replaced,
                (true, false) if all_adjusted || !own.is_empty() => SinkChange::Adjusted,
                (true, false) => continue,
            };
            sinks.insert(name.clone(), change);
        }
        let removed = running.sinks.keys().filter(|name| !read.sinks.contains_key(*name));
        sinks.extend(removed.map(|name| (name.clone(), SinkChange::Removed)));
        Self { keys, fixed, sinks }
    }

    /// Whether anything in this table differs.
    pub fn touches(&self, table: &str) -> bool {
        self.keys.iter().any(|key| is_under(key, &[table]))
    }

    /// A line for each thing that changes.
    pub fn lines(&self) -> Vec<String> {
        let sinks = self.sinks.iter().map(|(name, change)| {
            let at = format!("sinks.{name}.");
            let own: Vec<&str> = self.keys.iter().filter_map(|key| key.strip_prefix(&at)).collect();
            let own = own.join(", ");
            match change {
                SinkChange::Added => format!("sink `{name}`: added"),
                SinkChange::Removed => format!("sink `{name}`: removed"),
                SinkChange::Replaced => format!("sink `{name}`: connects anew ({own})"),
                SinkChange::Adjusted if own.is_empty() => {
                    format!("sink `{name}`: keeps its connection (labels, source or authentication of a route)")
                }
                SinkChange::Adjusted => format!("sink `{name}`: keeps its connection ({own})"),
            }
        });
        let others = self.keys.iter().filter(|key| !key.starts_with("sinks."));
        sinks.chain(others.map(|key| format!("`{key}`"))).collect()
    }
}

fn is_under(key: &str, tables: &[&str]) -> bool {
    tables.iter().any(|table| key.strip_prefix(table).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
}

/// Whether a key of a sink belongs to its connection. Topic and format do: a sink may ask for its topic, or for a schema, before the first
/// event.
fn changes_connection(key: &str) -> bool {
    let first = key.split('.').next().unwrap_or(key);
    let messages = [keys::of::<route::Config>(), keys::of::<dispatch::Config>()].concat();
    !messages.contains(&first) || matches!(first, "topic" | "subject" | "format")
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "[sinks.out]\ntype = 'stdout'\n[sinks.k]\ntype = 'kafka'\nbrokers = 'a:1'\ntopic = 't'\n";

    fn difference(running: &str, read: &str) -> Difference {
        let [running, read] = [running, read].map(|toml| Config::from_toml(toml).unwrap());
        Difference::between(&running, &read)
    }

    #[test]
    fn only_keys_of_the_connection_cost_the_connection() {
        for (key, expected) in [
            ("key = '{team}'", SinkChange::Adjusted),
            ("when = 'true'", SinkChange::Adjusted),
            ("max_in_flight = 7", SinkChange::Adjusted),
            ("retry.max_age = '1s'", SinkChange::Adjusted),
            ("required = false", SinkChange::Adjusted),
            ("linger = '7ms'", SinkChange::Replaced),
            ("librdkafka.'socket.timeout.ms' = 7000", SinkChange::Replaced),
        ] {
            let difference = difference(BASE, &format!("{BASE}{key}"));
            assert_eq!(difference.sinks, [("k".to_owned(), expected)].into(), "{key}");
            assert_eq!(difference.fixed, [""; 0]);
        }
        let topic = difference(BASE, &BASE.replace("'t'", "'u'"));
        assert_eq!(topic.sinks, [("k".to_owned(), SinkChange::Replaced)].into());
        assert_eq!(topic.lines(), ["sink `k`: connects anew (topic)"]);
    }

    #[test]
    fn a_label_adjusts_all_sinks_and_a_limit_none() {
        let label = difference(BASE, &format!("{BASE}[ingress.labels]\nsite = 'eu'"));
        assert!(label.sinks.values().all(|change| *change == SinkChange::Adjusted) && label.sinks.len() == 2);
        assert!(label.touches("ingress") && !label.touches("log"));
        let limit = difference(BASE, &format!("{BASE}[ingress]\nmax_body = '2MiB'\n[log]\nlevel = 'debug'"));
        assert!(limit.sinks.is_empty() && limit.fixed.is_empty());
        assert_eq!(limit.lines(), ["`ingress.max_body`", "`log.level`"]);
    }

    #[test]
    fn sinks_come_and_go_and_fixed_keys_are_named() {
        let other = difference(BASE, "[sinks.out]\ntype = 'stdout'\n[sinks.more]\ntype = 'stdout'\n");
        let expected = [("k".to_owned(), SinkChange::Removed), ("more".to_owned(), SinkChange::Added)];
        assert_eq!(other.sinks, expected.into());
        let fixed = format!(
            "{BASE}[spool]\npath = 'x'\n[ingress]\nlisten = '127.0.0.1:1'\nmax_body = '2MiB'\n[admin]\nlisten = '127.0.0.1:2'\n[log]\nformat = 'json'"
        );
        let fixed = difference(BASE, &fixed).fixed;
        assert_eq!(fixed, ["admin.listen", "ingress.listen", "log.format", "spool.path"]);
        assert!(difference(BASE, BASE).keys.is_empty());
    }
}
