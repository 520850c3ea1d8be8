//! Settings from the environment and from `--set`.

use super::ConfigError;
use figment::util::nest;
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};

const PREFIX: &str = "CDRELAY_";

/// One setting, and where it comes from.
struct Setting {
    source: String,
    key: String,
    value: Value,
}

impl Provider for Setting {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.source.clone())
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        Ok(Profile::Default.collect(nest(&self.key, self.value.clone()).into_dict().unwrap_or_default()))
    }
}

/// Adds the variables that are settings: `CDRELAY_SINKS__NAME__PASSWORD_FILE` sets `sinks.name.password_file`. A variable without `__`
/// is none: Kubernetes sets `CDRELAY_PORT` and the like in every pod beside a service called cdrelay.
pub fn merge_variables(figment: Figment, variables: impl Iterator<Item = (String, String)>) -> Figment {
    variables.fold(figment, |figment, (name, text)| {
        let Some(key) = name.strip_prefix(PREFIX).filter(|key| key.contains("__")) else { return figment };
        let key = key.to_lowercase().replace("__", ".");
        figment.merge(Setting { source: format!("environment variable {name}"), key, value: value(&text) })
    })
}

/// Adds the settings of `--set KEY=VALUE`.
pub fn merge_settings(figment: Figment, settings: &[String]) -> Result<Figment, ConfigError> {
    settings.iter().try_fold(figment, |figment, setting| match setting.split_once('=') {
        Some((key, text)) if !key.trim().is_empty() => {
            Ok(figment.merge(Setting { source: "--set".into(), key: key.trim().into(), value: value(text) }))
        }
        _ => Err(ConfigError::new(format!(
            "--set {setting:?}: expected KEY=VALUE, for example spool.path=/var/spool/cdrelay"
        ))),
    })
}

/// A list in brackets, otherwise the text as it is. figment's own `Env` would read the password `007` as the number 7.
fn value(text: &str) -> Value {
    match text.parse::<Value>() {
        Ok(list @ Value::Array(..)) => list,
        _ => Value::from(text),
    }
}
