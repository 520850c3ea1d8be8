//! Composes each module's own settings: defaults → files → `CDRELAY_` environment → `--set`.
//!
//! Every error names where the value came from, its key, what was found and what is allowed.

mod effective;
mod environment;
mod error;
mod expectations;
pub(crate) mod keys;
mod read;
mod renamed;
pub mod schema;
mod source;
mod validate;
mod values;

pub use error::ConfigError;
pub use expectations::{Expected, Outcome, Test};
pub use source::Source;
pub use values::Values;

use crate::dead_letter;
use crate::dispatch;
use crate::ingress as webhooks;
use crate::logging;
use crate::reconcile;
use crate::route::{self, Origins, Route};
use crate::setting::{List, Period};
use crate::sink::{Destination, Registry, SinkConfig as _, kafka};
use crate::spool;
use error::{choice, problem, unknown};
use figment::providers::{Format as _, Toml};
use figment::value::{Dict, Value};
use figment::{Figment, Metadata};
pub(crate) use read::table as read_table;
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_saphyr::figment::Yaml;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What runs without `--config`.
pub const EMBEDDED: &str = include_str!("../config/cdrelay.toml");

/// All settings of a bridge.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[ingress]`
    pub ingress: webhooks::Config,
    /// `[admin]`
    pub admin: Admin,
    /// `[spool]`
    pub spool: spool::Config,
    /// `[dead_letters]`
    pub dead_letters: dead_letter::Config,
    /// `[shutdown]`
    pub shutdown: Shutdown,
    /// `[log]`
    pub log: logging::Config,
    /// `[reload]`
    pub reload: Reload,
    /// `[reconcile.NAME]`
    pub reconcile: BTreeMap<String, reconcile::Config>,
    /// `[sinks.NAME]`
    pub sinks: BTreeMap<String, Sink>,
    /// All of it as it is written.
    pub values: Values,
    /// `[[tests]]`
    pub tests: Vec<Test>,
}

/// `[admin]`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// Where to listen.
    pub listen: SocketAddr,
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 9090)) }
    }
}

/// `[shutdown]`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Shutdown {
    /// How long to go on serving after readiness has turned false, so that load balancers notice.
    #[serde(with = "Period")]
    pub drain_delay: Duration,
    /// How long requests and publishes in flight may take to finish.
    #[serde(with = "Period")]
    pub grace_period: Duration,
    /// How long sinks may take to get what the spool holds, before publishes stop; zero: what waits stays in the spool.
    #[serde(with = "Period")]
    pub drain: Duration,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { drain_delay: Duration::ZERO, grace_period: Duration::from_secs(10), drain: Duration::ZERO }
    }
}

/// `[reload]`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Reload {
    /// Whether changes of the files are taken up by themselves.
    pub watch: bool,
    /// The sinks that may be removed while they have undelivered events.
    pub discard: List<String>,
}

impl Default for Reload {
    fn default() -> Self {
        Self { watch: true, discard: List::default() }
    }
}

/// `[sinks.NAME]`
#[derive(Clone, Debug)]
pub struct Sink {
    /// Which events are sent, and where to.
    pub route: route::Config,
    /// How it is sent.
    pub dispatch: dispatch::Config,
    /// The destination.
    pub destination: Arc<dyn Destination>,
}

/// The tables at the top level, with the types that they are read as. Each is read by itself, so that a mistake in one does not hide
/// those in others.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Document {
    /// How webhooks come in.
    #[schemars(with = "webhooks::Config")]
    ingress: Option<Value>,
    /// The port of probes and metrics.
    #[schemars(with = "Admin")]
    admin: Option<Value>,
    /// The queue on disk.
    #[schemars(with = "spool::Config")]
    spool: Option<Value>,
    /// Messages that a sink refused for good.
    #[schemars(with = "dead_letter::Config")]
    dead_letters: Option<Value>,
    /// How the bridge stops.
    #[schemars(with = "Shutdown")]
    shutdown: Option<Value>,
    /// What is logged, and how.
    #[schemars(with = "logging::Config")]
    log: Option<Value>,
    /// How changes of the configuration are taken up.
    #[schemars(with = "Reload")]
    reload: Option<Value>,
    /// The accounts whose lists of calls are compared with the events, by name.
    #[schemars(with = "BTreeMap<String, reconcile::Config>")]
    reconcile: Option<Value>,
    /// Where events go, by name.
    #[schemars(with = "BTreeMap<String, ()>")]
    sinks: Option<Value>,
    /// Events, and what each sink has to get of them; `cdrelay check` runs them.
    #[schemars(with = "Vec<Test>")]
    tests: Option<Value>,
}

/// What every sink has, whatever its type.
#[derive(Deserialize)]
struct Typed {
    r#type: String,
}

impl Config {
    /// Reads `files`, the environment and `--set key=value` settings, in this order; without any file the embedded default
    /// is the base.
    pub fn load(files: &[PathBuf], settings: &[String]) -> Result<Self, ConfigError> {
        Self::load_with(&Registry::default(), files, settings)
    }

    /// The same with these types of sinks.
    pub fn load_with(registry: &Registry, files: &[PathBuf], settings: &[String]) -> Result<Self, ConfigError> {
        let mut figment = Figment::new();
        if files.is_empty() {
            figment = figment.merge(Named { name: "the embedded default", data: Toml::string(EMBEDDED) });
        }
        for file in files {
            figment = merge_file(figment, file)?;
        }
        let variables =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        figment = environment::merge_variables(figment, variables);
        Self::extract(&environment::merge_settings(figment, settings)?, registry)
    }

    /// Reads one TOML text, without environment.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        Self::extract(&Figment::from(Toml::string(text)), &Registry::default())
    }

    /// Reads one YAML text, without environment.
    pub fn from_yaml(text: &str) -> Result<Self, ConfigError> {
        Self::extract(&Figment::from(Yaml::string(text)), &Registry::default())
    }

    fn extract(figment: &Figment, registry: &Registry) -> Result<Self, ConfigError> {
        let root = figment.find_value("").map_err(|error| ConfigError::reading(figment, error))?;
        let root = root.into_dict().unwrap_or_default();
        let mut problems = unknown_keys(figment, "", &root, keys::of::<Document>());
        let mut ingress: webhooks::Config = table(figment, "ingress", &mut problems);
        let admin = table(figment, "admin", &mut problems);
        let spool = table(figment, "spool", &mut problems);
        let dead_letters = table(figment, "dead_letters", &mut problems);
        let shutdown = table(figment, "shutdown", &mut problems);
        let log = table(figment, "log", &mut problems);
        let reload = table(figment, "reload", &mut problems);
        let tests = table(figment, "tests", &mut problems);
        let mut reconcile = BTreeMap::new();
        let accounts: BTreeMap<String, Value> = table(figment, "reconcile", &mut problems);
        for name in accounts.keys() {
            match read_table::<reconcile::Config>(figment, &format!("reconcile.{name}")) {
                Ok(config) => drop(reconcile.insert(name.clone(), config)),
                Err(error) => problems.extend(error.problems),
            }
        }
        let tables_are_sound = problems.is_empty();
        ingress.complete();
        let mut origins = ingress.origins();
        origins.extend(reconcile.iter().map(|(name, config)| (name.clone(), config.origin())));
        let origins = Arc::new(origins);
        let mut sinks = BTreeMap::new();
        let named: BTreeMap<String, Value> = table(figment, "sinks", &mut problems);
        for name in named.keys() {
            match sink(figment, name, &origins, registry) {
                Ok(sink) => drop(sinks.insert(name.clone(), sink)),
                Err(error) => problems.extend(error.problems),
            }
        }
        let values = Values::new(figment);
        let config =
            Self { ingress, admin, spool, dead_letters, shutdown, log, reload, reconcile, sinks, tests, values };
        if tables_are_sound {
            problems.extend(config.validate(figment));
        }
        if problems.is_empty() { Ok(config) } else { Err(ConfigError { problems }) }
    }
}

/// Reads the table `key`; the defaults if it is missing or wrong.
fn table<T: DeserializeOwned + Default>(figment: &Figment, key: &str, problems: &mut Vec<String>) -> T {
    if figment.find_value(key).is_err() {
        return T::default();
    }
    read_table(figment, key).unwrap_or_else(|error| {
        problems.extend(error.problems);
        T::default()
    })
}

fn merge_file(figment: Figment, path: &Path) -> Result<Figment, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| ConfigError::new(format!("{}: cannot be read: {error}", path.display())))?;
    let data = match path.extension().and_then(|extension| extension.to_str()) {
        Some("toml") => Toml::from_str(&text).map_err(|error| error.to_string()),
        Some("yaml" | "yml") => Yaml::from_str(&text).map_err(|error| error.to_string()),
        _ => {
            let problem = format!("{}: a configuration file ends in .toml, .yaml or .yml", path.display());
            return Err(ConfigError::new(problem));
        }
    };
    Ok(figment.merge(Read { path, data }))
}

/// The content of a file. figment would read each kind of file in its own way.
struct Read<'a> {
    path: &'a Path,
    data: Result<Dict, String>,
}

impl figment::Provider for Read<'_> {
    fn metadata(&self) -> Metadata {
        Metadata::from("file", self.path)
    }

    fn data(&self) -> figment::Result<figment::value::Map<figment::Profile, Dict>> {
        Ok(figment::Profile::default().collect(self.data.clone()?))
    }
}

fn sink(figment: &Figment, name: &str, origins: &Arc<Origins>, registry: &Registry) -> Result<Sink, ConfigError> {
    let at = format!("sinks.{name}");
    let legal = |character: char| matches!(character, 'a'..='z' | '0'..='9' | '_' | '-');
    if name.is_empty() || name.len() > 64 || !name.chars().all(legal) {
        let text = "a sink's name has 1 to 64 characters of a-z 0-9 _ -";
        return Err(ConfigError::new(problem(figment, &at, text)));
    }
    let table = figment.find_value(&at).ok().and_then(Value::into_dict).unwrap_or_default();
    if !table.contains_key("type") {
        let text = format!("is missing; allowed are {}", registry.names().join(", "));
        return Err(ConfigError::new(problem(figment, &format!("{at}.type"), text)));
    }
    let found = read_table::<Typed>(figment, &at)?.r#type;
    let Some(kind) = registry.find(&found) else {
        let text = format!("found {found:?}; allowed are {}", choice(&found, &registry.names()));
        return Err(ConfigError::new(problem(figment, &format!("{at}.type"), text)));
    };
    // The table is read by several structs, none of which knows all keys.
    let known = [&["type"], (kind.keys)(), keys::of::<route::Config>(), keys::of::<dispatch::Config>()].concat();
    let mut problems = unknown_keys(figment, &at, &table, &known);
    let mut found = |error: ConfigError| problems.extend(error.problems);
    let destination = (kind.read)(figment, &at).map_err(&mut found);
    let route = read_table::<route::Config>(figment, &at).map_err(&mut found);
    let dispatch = read_table(figment, &at).map_err(&mut found);
    let (Ok(destination), Ok(route), Ok(dispatch), true) = (destination, route, dispatch, problems.is_empty()) else {
        return Err(ConfigError { problems });
    };
    if route.format == route::Format::JsonSchema && kind.name != kafka::Config::TYPE {
        let text = "`json-schema` is for sinks of the type kafka";
        return Err(ConfigError::new(problem(figment, &format!("{at}.format"), text)));
    }
    let sink = Sink { route: route::Config { origins: origins.clone(), ..route }, dispatch, destination };
    if let Err(error) = Route::compile(&sink.route, sink.destination.dialect()) {
        let key = format!("{at}.{}", error.key);
        return Err(ConfigError::new(problem(figment, &key, error.problem)));
    }
    Ok(sink)
}

/// A problem for each key of the table at `at` that is not `known`.
fn unknown_keys(figment: &Figment, at: &str, table: &Dict, known: &[&str]) -> Vec<String> {
    let keys = table.keys().filter(|key| !known.contains(&key.as_str()));
    let problem = |key: &String| {
        let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
        problem(figment, &path, unknown(&path, known))
    };
    keys.map(problem).collect()
}

/// A provider under a name of ours.
struct Named<P> {
    name: &'static str,
    data: P,
}

impl<P: figment::Provider> figment::Provider for Named<P> {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name)
    }

    fn data(&self) -> figment::Result<figment::value::Map<figment::Profile, Dict>> {
        self.data.data()
    }
}

#[cfg(test)]
mod tests;
