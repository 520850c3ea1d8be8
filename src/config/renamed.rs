//! Keys that had another name in earlier versions.

/// Old key and new key. `*` stands for any one name, for example that of a sink.
const RENAMED: &[(&str, &str)] = &[
    ("ingress.max_bodies", "ingress.body_memory"),
    ("ingress.max_unpacked_body", "ingress.max_decompressed_body"),
    ("ingress.undecodable", "ingress.rejected"),
    ("shutdown.delay", "shutdown.drain_delay"),
    ("shutdown.grace", "shutdown.grace_period"),
    ("sinks.*.look_ahead", "sinks.*.max_in_flight_bytes"),
    ("spool.duplicate_capacity", "spool.dedup_capacity"),
    ("spool.duplicate_window", "spool.dedup_window"),
    ("spool.memory", "spool.read_cache"),
];

/// The present name of `key`, if it is an old one.
pub fn new_name(key: &str) -> Option<String> {
    RENAMED.iter().find_map(|(old, new)| {
        if old.split('.').count() != key.split('.').count() {
            return None;
        }
        let mut names = Vec::new();
        for (pattern, step) in old.split('.').zip(key.split('.')) {
            match pattern {
                "*" => names.push(step),
                pattern if pattern == step => {}
                _ => return None,
            }
        }
        let mut names = names.into_iter();
        let steps = new.split('.').map(|step| if step == "*" { names.next().unwrap_or(step) } else { step });
        Some(steps.collect::<Vec<_>>().join("."))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn every_old_key_is_refused_and_every_new_one_exists() {
        for (old, new) in RENAMED {
            let [old, new] = [old, new].map(|key| key.replace('*', "out"));
            let set = |key: &str| Config::from_toml(&format!("{key} = 1\nsinks.out.type = 'stdout'"));
            let refused = set(&old).unwrap_err().to_string();
            assert!(refused.contains(&format!("`{old}`: was renamed to `{new}`")), "{refused}");
            if let Err(error) = set(&new) {
                assert!(!error.to_string().contains("is unknown"), "{error}");
            }
        }
    }

    #[test]
    fn an_old_key_has_a_new_name_with_the_sink_in_it() {
        assert_eq!(new_name("shutdown.grace").as_deref(), Some("shutdown.grace_period"));
        assert_eq!(new_name("sinks.kafka.look_ahead").as_deref(), Some("sinks.kafka.max_in_flight_bytes"));
        for other in ["shutdown", "shutdown.grace.x", "sinks.look_ahead", "grace", "spool.path", ""] {
            assert_eq!(new_name(other), None, "{other}");
        }
    }
}
