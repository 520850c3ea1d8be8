//! What cannot be saved: reading a request, a shared sync, a produce, each without everything else.
//!
//! Floors that need a processor of their own run as processes of their own: this program starts itself once more.

mod commit;
mod producer;
mod server;

pub use commit::raw_commits;
pub use producer::Produced;

use crate::process::Cores;
use crate::support::process::Process;
use crate::support::{PATIENCE, until};
use serde::{Deserialize, Serialize};
use std::env;
use std::fs::{read_to_string, remove_file};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The argument that asks this program to be a floor; the next one says which.
const FLOOR: &str = "--floor";

/// What this program can be in place of a bench.
#[derive(Debug, Serialize, Deserialize)]
pub enum Floor {
    /// A bare hyper server, which reads each body and answers: at once, or when the body is in the file at `commits`. It speaks
    /// either HTTP/2 or HTTP/1.
    Server { http2: bool, commits: Option<PathBuf> },
    /// A librdkafka producer of events of so many bytes, for so many seconds.
    Kafka { brokers: String, topic: String, bytes: usize, seconds: f64 },
    /// The same with async-nats, to subjects of a stream of that name.
    Nats { servers: String, stream: String, bytes: usize, seconds: f64 },
}

impl Floor {
    /// The one that this process was started as, if any.
    pub fn asked_for() -> Option<Self> {
        let which = env::args().skip_while(|argument| argument != FLOOR).nth(1)?;
        Some(serde_json::from_str(&which).unwrap())
    }

    /// Never ends by itself if it is a server.
    pub fn be(self) {
        match self {
            Self::Server { http2, commits } => server::serve(http2, commits.as_deref()),
            Self::Kafka { brokers, topic, bytes, seconds } => {
                producer::to_kafka(&brokers, &topic, bytes, Duration::from_secs_f64(seconds)).print();
            }
            Self::Nats { servers, stream, bytes, seconds } => {
                producer::to_nats(&servers, &stream, bytes, Duration::from_secs_f64(seconds)).print();
            }
        }
    }

    /// Starts a process that is this producer, and returns what it says in the end.
    pub async fn produced(&self, cores: Cores, directory: &Path) -> Produced {
        let (mut producer, out) = self.start(cores, directory);
        let status = producer.wait(PATIENCE).await;
        let err = read_to_string(directory.join("floor.err")).unwrap();
        assert!(status.success(), "the producer failed: {err}");
        serde_json::from_str(&read_to_string(&out).unwrap()).unwrap()
    }

    /// Starts a process that is this server, and returns it with its address.
    pub async fn listening(&self, cores: Cores, directory: &Path) -> (Process, String) {
        let (mut server, out) = self.start(cores, directory);
        let address = until(PATIENCE, "the bare server listens", async || {
            server.assert_running();
            read_to_string(&out).ok().filter(|text| text.ends_with('\n'))
        })
        .await;
        (server, address.trim().to_owned())
    }

    /// Starts a process that is this one, and returns it with the file of what it prints.
    fn start(&self, cores: Cores, directory: &Path) -> (Process, PathBuf) {
        let (out, err) = (directory.join("floor.out"), directory.join("floor.err"));
        // Of the one before it.
        let _ = remove_file(&out);
        let mut command = Command::new(env::current_exe().unwrap());
        command.args([FLOOR, &serde_json::to_string(self).unwrap()]);
        (cores.spawn(&mut command, &out, &err), out)
    }
}
