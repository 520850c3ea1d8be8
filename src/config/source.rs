//! Where a configuration comes from, to read it again.

use super::{Config, ConfigError};
use crate::sink::Registry;
use std::path::PathBuf;

/// Files, options, and types of sinks. The environment is part of it too, and stays as it was when the process started.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// Merged in this order; the embedded default if there are none.
    pub files: Vec<PathBuf>,
    /// `KEY=VALUE`, on top of files and environment.
    pub settings: Vec<String>,
    /// The types of sinks.
    pub registry: Registry,
}

impl Source {
    /// Reads the files, which may block.
    pub fn load(&self) -> Result<Config, ConfigError> {
        Config::load_with(&self.registry, &self.files, &self.settings)
    }
}
