//! A connection like the sink's own, for those who want to read what it publishes.

use super::Config;
use super::link::Link;
use super::stream::{Names, context, no_jetstream};
use crate::sink::{Failure, SetupError};
use async_nats::Client;
use async_nats::jetstream::Context;
use async_nats::jetstream::context::RequestErrorKind;
use async_nats::jetstream::response::Response;
use std::sync::Arc;
use std::time::Instant;

/// Reaches the servers of a sink as the same user. Made and kept in the background.
pub struct Connection {
    link: Arc<Link>,
    domain: Option<String>,
    /// The stream that the settings name.
    stream: Option<String>,
}

impl Connection {
    /// Starts connecting and returns at once; needs a tokio runtime, not a server. `name` is the sink's in the configuration.
    pub fn open(name: &str, config: &Config) -> Result<Self, SetupError> {
        Ok(Self {
            link: Link::open(name, config)?,
            domain: config.domain.clone(),
            stream: config.stream.as_ref().map(|stream| stream.name.clone()),
        })
    }

    /// The client, if it is connected now.
    pub fn client(&self) -> Result<Client, Failure> {
        self.link.client().cloned()
    }

    /// The JetStream that the sink publishes to, if it is connected now.
    pub fn jetstream(&self) -> Result<Context, Failure> {
        Ok(context(self.domain.as_deref(), self.link.client()?))
    }

    /// The streams that take `subject`, or the one that the settings name if it does.
    pub async fn stream_names(&self, subject: &str) -> Result<Vec<String>, String> {
        let jetstream = self.jetstream().map_err(|failure| failure.to_string())?;
        let start = Instant::now();
        let query = serde_json::json!({ "subject": subject });
        match jetstream.request::<_, _, Response<Names>>("STREAM.NAMES", &query).await {
            Ok(Response::Ok(names)) => {
                let names = names.streams.unwrap_or_default().into_iter();
                Ok(names.filter(|name| self.stream.as_ref().is_none_or(|wanted| wanted == name)).collect())
            }
            Ok(Response::Err { error }) => Err(error.to_string()),
            Err(error) if error.kind() == RequestErrorKind::NoResponders => Err(no_jetstream().to_string()),
            Err(error) => Err(self.explain(start, &error)),
        }
    }

    /// Why something that began at `start` failed: a server that forbids a request does not answer it, and complains elsewhere.
    pub fn explain(&self, start: Instant, error: &dyn std::fmt::Display) -> String {
        self.link.complaint_about("$JS", start).unwrap_or_else(|| error.to_string())
    }
}
