//! Reads tables into structs, and finds everything that is wrong with them.
//!
//! serde stops at the first mistake. So the setting with the mistake is taken out of the table, and the rest is read again.

use super::ConfigError;
use super::error::{describe, problem};
use figment::error::Kind;
use figment::util::nest;
use figment::value::{Dict, Map, Value};
use figment::{Error, Figment, Metadata, Profile, Provider};
use serde::de::DeserializeOwned;

/// The table at `at` as a `T`, or every problem with it.
///
/// Lossy: a value from the environment is a text, and a number or a truth value only where one is wanted.
pub fn table<T: DeserializeOwned>(figment: &Figment, at: &str) -> Result<T, ConfigError> {
    let mut error = match figment.extract_inner_lossy(at) {
        Ok(table) => return Ok(table),
        Err(error) => error,
    };
    let Ok(mut rest) = figment.find_value(at) else { return Err(ConfigError::reading(figment, error)) };
    let mut problems = Vec::new();
    let mut removed = Vec::new();
    loop {
        let present = Figment::from(Table { at, value: rest.clone() });
        let mut progress = false;
        for error in error {
            let is_missing = matches!(error.kind, Kind::MissingField(_));
            let (key, text) = describe(&present, &in_full(at, error));
            // A setting that was taken out is not one that is missing.
            if !removed.contains(&key) {
                problems.push(problem(figment, &key, text));
            }
            let wrong = if is_missing { key.rsplit_once('.').map_or("", |(table, _)| table) } else { &key };
            let steps = wrong.strip_prefix(at).map(|inner| inner.split('.').skip(1).collect::<Vec<_>>());
            progress |= steps.is_some_and(|steps| remove(&mut rest, &steps));
            removed.push(key);
        }
        match Figment::from(Table { at, value: rest.clone() }).extract_inner_lossy::<T>(at) {
            Err(next) if progress => error = next,
            _ => break Err(ConfigError { problems }),
        }
    }
}

/// The error with the whole path: figment appends the outer steps of it to the inner ones.
fn in_full(at: &str, mut error: Error) -> Error {
    let inner = error.path.len().saturating_sub(at.split('.').count());
    error.path.rotate_left(inner);
    error
}

/// Takes a setting out. An element is taken out with its list, so that the others keep their numbers. Returns whether it was there.
fn remove(value: &mut Value, steps: &[&str]) -> bool {
    let [first, inner @ ..] = steps else { return false };
    match value {
        Value::Dict(_, table) => match (table.get_mut(*first), inner) {
            (Some(Value::Array(_, list)), [index, inner @ ..]) if !inner.is_empty() => {
                let element = index.parse::<usize>().ok().and_then(|index| list.get_mut(index));
                element.is_some_and(|element| remove(element, inner))
            }
            (Some(Value::Dict(..)), [_, ..]) => table.get_mut(*first).is_some_and(|table| remove(table, inner)),
            _ => table.remove(*first).is_some(),
        },
        _ => false,
    }
}

/// A table at its place, and nothing else.
struct Table<'a> {
    at: &'a str,
    value: Value,
}

impl Provider for Table<'_> {
    fn metadata(&self) -> Metadata {
        Metadata::default()
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        Ok(Profile::Default.collect(nest(self.at, self.value.clone()).into_dict().unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    fn keys(toml: &str) -> Vec<String> {
        let error = Config::from_toml(toml).unwrap_err();
        let key = |problem: &String| problem.split('`').nth(1).unwrap_or(problem).to_owned();
        error.problems().iter().map(key).collect()
    }

    #[test]
    fn every_mistake_is_found_in_one_go() {
        let toml = "
            shudown = { grace_period = '5s' }
            [ingress]
            listen = 'here'
            max_body = 'big'
            max_conections = 5
            methods = ['POST', 'GTE']
            auth = [{ type = 'bearer', secret = '0123456789' }, { type = 'basic', usrname = 'a', secrets = '0123456789' }]
            [ingress.tls]
            cert_file = 'c'
            min_version = '1.1'
            [spool]
            paht = 'x'
            dedup_window = 5
            [sinks.a]
            type = 'kafka'
            broker = 'a:1'
            linger = 'soon'
            max_in_flight = 'many'
            key = '{team'
            tls = { ca = 'x', enabled = 'maybe' }
            [sinks.b]
            type = 'kafak'
            [sinks.c]
            type = 'stdout'
            when = '('
            [log]
            level = 'loud'";
        let expected = [
            "shudown",
            "ingress.auth.0.secret",
            "ingress.auth.1.usrname",
            "ingress.listen",
            "ingress.max_body",
            "ingress.max_conections",
            "ingress.methods.1",
            "ingress.tls.min_version",
            "ingress.tls.key_file",
            "spool.dedup_window",
            "spool.paht",
            "log.level",
            "sinks.a.broker",
            "sinks.a.linger",
            "sinks.a.tls.ca",
            "sinks.a.tls.enabled",
            "sinks.a.brokers",
            "sinks.a.max_in_flight",
            "sinks.b.type",
            "sinks.c.when",
        ];
        let found = keys(toml);
        for key in expected {
            assert!(found.iter().any(|found| found == key), "{key} is not among {found:#?}");
        }
    }

    #[test]
    fn a_misspelt_word_is_told_with_the_right_one() {
        for (toml, expected) in [
            ("[spool]\npaht = 'x'", "did you mean `path`?"),
            ("[sinks.x]\ntype = 'kafak'", "did you mean `kafka`?"),
            ("[sinks.x]\ntype = 'stdout'\nmax_inflight = 1", "did you mean `max_in_flight`?"),
            ("[ingres]\nmax_body = '1MiB'", "did you mean `ingress`?"),
            ("[[ingress.auth]]\ntype = 'baerer'", "did you mean `bearer`?"),
        ] {
            let error = Config::from_toml(&format!("{toml}\n[sinks.out]\ntype = 'stdout'")).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let far = Config::from_toml("[spool]\nwhatever = 1\n[sinks.out]\ntype = 'stdout'").unwrap_err().to_string();
        assert!(far.contains("`spool.whatever`: is unknown") && !far.contains("did you mean"), "{far}");
    }
}
