//! A sink of one's own: appends each event as a line to a file. Runs cdrelay with `type = "file"` beside the built-in types:
//!
//! ```text
//! cargo run --example custom_sink -- config.toml
//! ```
//!
//! ```toml
//! [sinks.archive]
//! type = "file"
//! path = "/var/lib/cdrelay/archive.ndjson"
//! ```

use cdrelay::bridge::{self, Listeners};
use cdrelay::config::Config;
use cdrelay::route::Route;
use cdrelay::sink::{Failure, Message, Registry, SetupError, Sink, SinkConfig};
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::fs::{File, OpenOptions};
use tokio::io::AsyncWriteExt;
use tokio::sync::Mutex;

/// The table `[sinks.NAME]`, beside the keys that every sink has.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct FileConfig {
    /// The file, which is created if it is missing.
    pub path: PathBuf,
}

impl SinkConfig for FileConfig {
    const TYPE: &'static str = "file";

    fn build(&self, _name: &str, _route: &Route) -> Result<Arc<dyn Sink>, SetupError> {
        Ok(Arc::new(FileSink { path: self.path.clone(), file: Mutex::new(None) }))
    }
}

struct FileSink {
    path: PathBuf,
    /// `None` until the first message, and after a failure.
    file: Mutex<Option<File>>,
}

impl FileSink {
    async fn append(&self, message: &Message) -> std::io::Result<()> {
        // One line per message: JSON holds line breaks only as insignificant white space.
        let mut line: Vec<u8> =
            message.payload().iter().map(|byte| if *byte == b'\n' { b' ' } else { *byte }).collect();
        line.push(b'\n');
        let mut held = self.file.lock().await;
        let mut file = match held.take() {
            Some(file) => file,
            None => {
                let mut file = OpenOptions::new().append(true).create(true).open(&self.path).await?;
                // A line that a failure or a crash has torn ends here.
                file.write_all(b"\n").await?;
                file
            }
        };
        file.write_all(&line).await?;
        // `Ok` means durable.
        file.sync_data().await?;
        *held = Some(file);
        Ok(())
    }
}

impl Sink for FileSink {
    fn publish<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async { self.append(message).await.map_err(Failure::unavailable) })
    }

    fn probe(&self) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(async {
            let opened = OpenOptions::new().append(true).create(true).open(&self.path).await;
            opened.map(drop).map_err(Failure::unavailable)
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async { drop(self.file.lock().await.take()) })
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let registry = Registry::default().with::<FileConfig>();
    let config = Config::load_with(&registry, &files, &[])?;
    let listeners = Listeners::bind(&config).await?;
    let stop = async { drop(tokio::signal::ctrl_c().await) };
    Ok(bridge::run(config, listeners, stop).await?)
}
