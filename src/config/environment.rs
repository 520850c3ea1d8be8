//! Settings from the environment and from `--set`.

use super::ConfigError;
use figment::value::{Dict, Map, Value};
use figment::{Metadata, Profile, Provider};

const PREFIX: &str = "CDRELAY_";
/// Of the provider's metadata.
pub const NAME: &str = "environment";

/// The variable that sets `key`.
pub fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "__").to_uppercase())
}

/// `CDRELAY_SINKS__NAME__PASSWORD_FILE` sets `sinks.name.password_file`. A variable without `__` is none of ours:
/// Kubernetes sets `CDRELAY_PORT` and the like in every pod beside a service called cdrelay.
pub struct Variables(Vec<(String, String)>);

impl Variables {
    /// Picks ours from all variables.
    pub fn new(variables: impl Iterator<Item = (String, String)>) -> Self {
        let ours = variables.filter_map(|(name, value)| {
            let key = name.strip_prefix(PREFIX).filter(|key| key.contains("__"))?;
            Some((key.to_lowercase().replace("__", "."), value))
        });
        Self(ours.collect())
    }
}

impl Provider for Variables {
    fn metadata(&self) -> Metadata {
        Metadata::named(NAME)
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        Ok(nested(&self.0))
    }
}

/// `--set spool.path=/var/spool/cdrelay`
pub struct Settings(Vec<(String, String)>);

impl Settings {
    /// Splits each setting at its first `=`.
    pub fn parse(settings: &[String]) -> Result<Self, ConfigError> {
        let split = settings.iter().map(|setting| match setting.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.to_owned())),
            _ => Err(ConfigError::new(format!(
                "--set {setting:?}: expected KEY=VALUE, for example spool.path=/var/spool/cdrelay"
            ))),
        });
        split.collect::<Result<_, _>>().map(Self)
    }
}

impl Provider for Settings {
    fn metadata(&self) -> Metadata {
        Metadata::named("--set")
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        Ok(nested(&self.0))
    }
}

fn nested(pairs: &[(String, String)]) -> Map<Profile, Dict> {
    let mut all = Dict::new();
    for (key, text) in pairs {
        let steps: Vec<&str> = key.split('.').collect();
        insert(&mut all, &steps, value(text));
    }
    Profile::Default.collect(all)
}

fn insert(table: &mut Dict, steps: &[&str], value: Value) {
    match steps {
        [] => {}
        [name] => drop(table.insert((*name).to_owned(), value)),
        [name, rest @ ..] => {
            let mut inner = table.remove(*name).and_then(Value::into_dict).unwrap_or_default();
            insert(&mut inner, rest, value);
            table.insert((*name).to_owned(), inner.into());
        }
    }
}

/// A list in brackets, else the text as it is: a user called `1234` or a password such as `007` stays what it is.
fn value(text: &str) -> Value {
    match text.parse::<Value>() {
        Ok(list @ Value::Array(..)) => list,
        _ => Value::from(text),
    }
}
