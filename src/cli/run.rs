//! `cdrelay run`

use super::CommandError;
use crate::bridge::{self, Listeners};
use crate::config::Source;
use crate::logging;
use tokio::signal::unix::{SignalKind, signal};

/// More workers than this only cost memory: the work is bound by disk and network.
const MOST_WORKERS: usize = 4;

/// Runs the bridge until SIGTERM or SIGINT; a second one ends the process at once. SIGHUP has it read its configuration again.
pub fn execute(source: Source) -> Result<(), CommandError> {
    let config = source.load()?;
    logging::start(&config.log)?;
    raise_file_limit();
    let runtime = runtime()?;
    let result = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        // Unless somebody listens for it, a file that meets the size limit (`ulimit -f`) ends the process; to the spool it is a
        // failed write like any other.
        let _file_too_large = signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?;
        // Until the bridge listens for it too, SIGHUP must not end the process.
        let _hangup = signal(SignalKind::hangup())?;
        let listeners = Listeners::bind(&config).await?;
        let stop = async move {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            tokio::spawn(async move {
                tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
                tracing::warn!("second signal: ending at once; what was accepted is kept in the spool");
                logging::flush();
                std::process::exit(1);
            });
        };
        Ok(bridge::run_reloading(source, config, listeners, stop).await?)
    });
    // A client library may still be waiting for an answer on a blocking thread.
    runtime.shutdown_background();
    result
}

/// The runtime that delivers.
pub(super) fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let workers = std::thread::available_parallelism().map_or(1, |count| count.get().min(MOST_WORKERS));
    tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build()
}

/// Every connection takes a file descriptor; the soft limit is often 1024.
pub(super) fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}
