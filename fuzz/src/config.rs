//! Configuration files, among them templates, filters, networks, paths and what checks ask for.

use cdrelay::config::Config;

/// The same text as TOML and as YAML.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for read in [Config::from_toml, Config::from_yaml] {
        match read(text) {
            Ok(config) => {
                assert!(!config.sinks.is_empty());
                assert!(!format!("{config:?}").is_empty());
                config.ingress.unauthenticated_routes();
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}
