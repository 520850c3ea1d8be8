//! How much space the file system of the spool has left.

use prometheus_client::metrics::gauge::Gauge;
use std::path::PathBuf;
use std::time::Duration;
use tokio::task::spawn_blocking;

/// How often that is measured.
const MEASURE: Duration = Duration::from_secs(10);

/// Measures the free bytes of the file system of `path`, for ever. A disk that hangs leaves the gauge as it is, and holds up nothing else.
pub async fn measure_free_space(path: PathBuf, free_bytes: Gauge) {
    loop {
        let path = path.clone();
        if let Ok(Ok(found)) = spawn_blocking(move || rustix::fs::statvfs(&path)).await {
            free_bytes.set(found.f_bavail.saturating_mul(found.f_frsize) as i64);
        }
        tokio::time::sleep(MEASURE).await;
    }
}
