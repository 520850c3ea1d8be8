//! `cdrelay check`

use super::CommandError;
use super::output::{Output, note};
use crate::bridge::{self, RunError};
use crate::config::Config;
use crate::ingress::routes::Routes;
use crate::ingress::tls;
use crate::metrics::Metrics;

/// Makes every sink, every route of the ingress and its TLS, which reads the files they name and checks what they hold, and drops them
/// again.
pub fn execute(config: &Config) -> Result<(), CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Routes::open(&config.ingress, &Metrics::default().ingress).map_err(RunError::Ingress)?;
    let sinks = runtime.block_on(async { bridge::prepare(config).map(|sinks| sinks.len()) });
    runtime.shutdown_background();
    for route in config.ingress.unauthenticated_routes() {
        let listen = config.ingress.listen;
        note(format_args!(
            "warning: route `{route}` has no authentication and listens on {listen}, which is not loopback"
        ));
    }
    super::run::raise_file_limit();
    let connections = config.ingress.connections_within(bridge::open_file_limit());
    if connections < config.ingress.max_connections {
        note(format_args!("warning: `ingress.max_connections`: {}; {connections} are left", bridge::FEW_FILES));
    }
    if let Some(config) = &config.ingress.tls {
        let certificate = tls::check(config).map_err(RunError::from)?;
        if let Some(problem) = certificate.problem() {
            note(format_args!("warning: {problem}"));
        }
    }
    let mut out = Output::new();
    out.line(format_args!("configuration is sound: {} sink(s)", sinks?))?;
    Ok(out.flush()?)
}
