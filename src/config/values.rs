//! The settings as they are written, before they become values of types.

use super::error::{origin_of, problem};
use figment::Figment;
use figment::value::{Dict, Value};
use ring::digest::{SHA256, digest};
use std::collections::BTreeSet;
use std::fmt;

/// The merged settings, with the origin of each. Some are secret, so that no value is shown.
#[derive(Clone, Default)]
pub struct Values(Figment);

impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Values(…)")
    }
}

impl Values {
    pub(super) fn new(figment: &Figment) -> Self {
        Self(figment.clone())
    }

    /// The keys that are set otherwise in `other`, in full and sorted.
    pub fn changed(&self, other: &Self) -> Vec<String> {
        let mut keys = Vec::new();
        changed("", Some(&self.root()), Some(&other.root()), &mut keys);
        keys
    }

    /// Twelve hexadecimal digits that two configurations have in common only if all settings are the same.
    pub fn hash(&self) -> String {
        // Tables are sorted.
        let text = serde_json::to_string(&self.root()).unwrap_or_default();
        let digest = digest(&SHA256, text.as_bytes());
        digest.as_ref().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
    }

    /// The problem with the value of `key`, with its file, variable or option in front.
    pub fn problem(&self, key: &str, text: impl fmt::Display) -> String {
        problem(&self.0, key, text)
    }

    /// A problem that begins with a key in backticks, with the origin of that in front.
    pub fn locate(&self, problem: &str) -> String {
        let key = problem.strip_prefix('`').and_then(|rest| rest.split_once('`')).map(|(key, _)| key);
        let origin = key.map(|key| origin_of(&self.0, key)).unwrap_or_default();
        format!("{origin}{problem}")
    }

    /// The file, variable or option that sets `key`.
    pub(super) fn origin(&self, key: &str) -> String {
        origin_of(&self.0, key).trim_end_matches(": ").to_owned()
    }

    /// All of them. Some are secret.
    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::to_value(self.root()).unwrap_or_default()
    }

    fn root(&self) -> Value {
        self.0.find_value("").unwrap_or_else(|_| Dict::new().into())
    }
}

fn changed(at: &str, old: Option<&Value>, new: Option<&Value>, keys: &mut Vec<String>) {
    let tables = [old, new].map(|value| value.and_then(Value::as_dict));
    let is_table = |value: Option<&Value>| value.is_none_or(|value| value.as_dict().is_some());
    if !is_table(old) || !is_table(new) {
        if old != new {
            keys.push(at.to_owned());
        }
        return;
    }
    let names: BTreeSet<&String> = tables.iter().flatten().flat_map(|table| table.keys()).collect();
    for name in names {
        let inner = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
        let [old, new] = tables.map(|table| table.and_then(|table| table.get(name)));
        changed(&inner, old, new, keys);
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    fn changed(one: &str, other: &str) -> Vec<String> {
        let [one, other] = [one, other].map(|toml| Config::from_toml(toml).unwrap().values);
        assert_eq!(one.hash() == other.hash(), one.changed(&other).is_empty());
        one.changed(&other)
    }

    #[test]
    fn changes_are_found_by_key_whatever_the_layout() {
        let base = "[sinks.out]\ntype = 'stdout'\nkey = 'a'\n";
        assert!(changed(base, "sinks = { out = { key = \"a\", type = \"stdout\" } } # the same").is_empty());
        assert_eq!(changed(base, "[sinks.out]\ntype = 'stdout'\nkey = 'b'\n"), ["sinks.out.key"]);
        let more = format!("{base}[sinks.more]\ntype = 'stdout'\n[ingress]\nmax_body = '2MiB'");
        assert_eq!(changed(base, &more), ["ingress.max_body", "sinks.more.type"]);
        assert_eq!(changed(&more, base), ["ingress.max_body", "sinks.more.type"]);
        let auth = |secret: &str| format!("{base}[[ingress.auth]]\ntype = 'bearer'\nsecrets = '{secret}'");
        assert_eq!(changed(&auth("0123456789"), &auth("012345678X")), ["ingress.auth"]);
    }

    #[test]
    fn no_value_is_shown() {
        let config = Config::from_toml("[sinks.out]\ntype = 'stdout'\nkey = 'hunter2'").unwrap();
        assert!(!format!("{config:?}").replace("key: \"hunter2", "").contains("hunter2"));
    }
}
