//! The types of sinks, by the `type` of their table `[sinks.NAME]`.

use super::{SetupError, Sink, kafka, nats, stdout};
use crate::config::{ConfigError, keys, read_table, schema};
use crate::route::{Dialect, Route};
use figment::Figment;
use schemars::{JsonSchema, Schema};
use serde::de::DeserializeOwned;
use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

/// The settings of one type of sink: the keys of its table, without the keys that all sinks have. Its `Deserialize` must accept
/// unknown fields: the configuration refuses them.
pub trait SinkConfig: DeserializeOwned + JsonSchema + Debug + Send + Sync + 'static {
    /// The `type` in the table.
    const TYPE: &'static str;
    /// Which topics and headers are legal at the destination.
    const DIALECT: Dialect = Dialect::Kafka;

    /// Makes the sink called `name`, whose messages are rendered by `route`. Checks all settings and connects in the
    /// background; called within a tokio runtime.
    fn build(&self, name: &str, route: &Route) -> Result<Arc<dyn Sink>, SetupError>;
}

/// A [`SinkConfig`] of any type.
pub trait Destination: Any + Debug + Send + Sync {
    /// The `type` in the table.
    fn type_name(&self) -> &'static str;
    /// Which topics and headers are legal at the destination.
    fn dialect(&self) -> Dialect;
    /// See [`SinkConfig::build`].
    fn build(&self, name: &str, route: &Route) -> Result<Arc<dyn Sink>, SetupError>;
}

impl<T: SinkConfig> Destination for T {
    fn type_name(&self) -> &'static str {
        T::TYPE
    }

    fn dialect(&self) -> Dialect {
        T::DIALECT
    }

    fn build(&self, name: &str, route: &Route) -> Result<Arc<dyn Sink>, SetupError> {
        SinkConfig::build(self, name, route)
    }
}

impl dyn Destination {
    /// The settings, if they are of this type.
    pub fn settings<T: SinkConfig>(&self) -> Option<&T> {
        (self as &dyn Any).downcast_ref()
    }
}

/// All types of sinks that a configuration may name.
#[derive(Clone, Debug)]
pub struct Registry(Vec<SinkType>);

type ReadResult = Result<Arc<dyn Destination>, ConfigError>;

/// How the settings of one type are read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SinkType {
    pub name: &'static str,
    /// The keys of the settings.
    pub keys: fn() -> &'static [&'static str],
    /// The JSON Schema of the settings.
    pub schema: fn() -> Schema,
    /// Reads the settings from the table at a path.
    pub read: fn(&Figment, &str) -> ReadResult,
}

impl Default for Registry {
    /// The types that cdrelay has.
    fn default() -> Self {
        Self(Vec::new()).with::<stdout::Config>().with::<kafka::Config>().with::<nats::Config>()
    }
}

impl Registry {
    /// Adds a type.
    #[must_use]
    pub fn with<T: SinkConfig>(mut self) -> Self {
        self.0.push(SinkType { name: T::TYPE, keys: keys::of::<T>, schema: schema::of::<T>, read: read::<T> });
        self
    }

    pub(crate) fn find(&self, name: &str) -> Option<SinkType> {
        self.0.iter().copied().find(|kind| kind.name == name)
    }

    pub(crate) fn names(&self) -> Vec<&'static str> {
        self.0.iter().map(|kind| kind.name).collect()
    }
}

fn read<T: SinkConfig>(figment: &Figment, at: &str) -> ReadResult {
    Ok(Arc::new(read_table::<T>(figment, at)?))
}
