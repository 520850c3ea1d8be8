//! Reads JetStream streams from their end with ephemeral consumers, or subscribes to the subjects of core NATS.
//!
//! Streams that appear later, or are made anew, are read from their beginning: they hold nothing that was there before.

use super::{Consumer, Ended, START, unreadable};
use crate::sink::SetupError;
use crate::sink::nats::options::{connect_options, parse_servers};
use crate::sink::nats::{Config, Mode};
use crate::soak::observer::Observer;
use crate::soak::oracle::Position;
use crate::soak::{SoakError, setup};
use async_nats::Client;
use async_nats::connection::State;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::jetstream::context::{Context, ContextBuilder};
use async_nats::jetstream::response::Response;
use futures_util::StreamExt;
use serde::Deserialize;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};

/// How often to look for new streams, and to repeat a failed attempt.
const LOOK: Duration = Duration::from_secs(1);
/// A consumer this long without a message is replaced: the stream may have been made anew, which no consumer is told.
const IDLE: Duration = Duration::from_secs(5);
const API_TIMEOUT: Duration = Duration::from_secs(3);

/// A stream, and how far it has been read.
struct Stream {
    name: String,
    /// The sequence to read next.
    next: u64,
    /// When the stream was made, which tells it from another one of its name.
    created: Option<String>,
}

/// Reaches the servers of a sink as the same user.
struct Connection {
    client: Client,
    jetstream: Context,
    /// The stream that the settings name.
    stream: Option<String>,
}

impl Connection {
    /// Starts connecting and returns at once.
    async fn open(config: &Config) -> Result<Self, SetupError> {
        let options = connect_options(config)?;
        let servers = parse_servers(&config.servers.0)?;
        let client = options.connect(servers).await.map_err(|error| SetupError(error.to_string()))?;
        let jetstream = match &config.domain {
            Some(domain) => ContextBuilder::new().domain(domain).timeout(API_TIMEOUT).build(client.clone()),
            None => ContextBuilder::new().timeout(API_TIMEOUT).build(client.clone()),
        };
        Ok(Self { client, jetstream, stream: config.stream.as_ref().map(|stream| stream.name.clone()) })
    }

    fn check(&self) -> Result<(), String> {
        match self.client.connection_state() {
            State::Connected => Ok(()),
            _ => Err("not connected to nats".to_owned()),
        }
    }

    /// The streams that take `subject`, or the one that the settings name if it does.
    async fn stream_names(&self, subject: &str) -> Result<Vec<String>, String> {
        #[derive(Deserialize)]
        struct Names {
            #[serde(default)]
            streams: Option<Vec<String>>,
        }
        self.check()?;
        let query = serde_json::json!({ "subject": subject });
        match self.jetstream.request("STREAM.NAMES", &query).await.map_err(|error| error.to_string())? {
            Response::Ok(Names { streams }) => {
                let names = streams.unwrap_or_default().into_iter();
                Ok(names.filter(|name| self.stream.as_ref().is_none_or(|wanted| wanted == name)).collect())
            }
            Response::Err { error } => Err(error.to_string()),
        }
    }
}

pub async fn consume(observer: Arc<Observer>, config: &Config) -> Result<Consumer, SoakError> {
    let connection = Connection::open(config).await.map_err(|error| setup(observer.name(), error))?;
    let connection = Arc::new(connection);
    let task = match config.mode {
        Mode::Core => {
            let subscription = retry(&observer, async || subscribe(&connection, &observer).await).await?;
            tokio::spawn(read_subject(connection, observer, subscription))
        }
        Mode::Jetstream => {
            let streams = retry(&observer, async || streams(&connection, &observer).await).await?;
            tokio::spawn(read_streams(connection, observer, streams))
        }
    };
    Ok(Consumer { ended: Ended::default(), tasks: vec![task] })
}

async fn retry<T>(observer: &Observer, attempt: impl AsyncFn() -> Result<T, String>) -> Result<T, SoakError> {
    let deadline = Instant::now() + START;
    loop {
        match attempt().await {
            Ok(done) => return Ok(done),
            Err(cause) if Instant::now() > deadline => return Err(unreadable(observer, cause)),
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn subscribe(connection: &Connection, observer: &Observer) -> Result<async_nats::Subscriber, String> {
    connection.check()?;
    let subscription =
        connection.client.subscribe(observer.route().subject_wildcard()).await.map_err(|error| error.to_string())?;
    // Once this is through, the server knows of the subscription.
    connection.client.flush().await.map_err(|error| error.to_string())?;
    Ok(subscription)
}

/// The library subscribes again by itself after each reconnect.
async fn read_subject(connection: Arc<Connection>, observer: Arc<Observer>, mut subscription: async_nats::Subscriber) {
    let place = observer.place("message");
    let mut count = 0;
    loop {
        match timeout(LOOK, subscription.next()).await {
            Ok(Some(message)) => {
                count += 1;
                observer.arrived(&message.payload, Position { place, offset: count });
            }
            Ok(None) => return observer.failed("the connection to nats is closed"),
            Err(_) => report(&observer, connection.check()),
        }
    }
}

fn report(observer: &Observer, outcome: Result<(), String>) {
    match outcome {
        Ok(()) => observer.recovered(),
        Err(cause) => observer.failed(cause),
    }
}

/// The streams that take the sink's subjects, each at its end.
async fn streams(connection: &Connection, observer: &Observer) -> Result<Vec<Stream>, String> {
    let mut streams = Vec::new();
    for name in connection.stream_names(&observer.route().subject_wildcard()).await? {
        let stream = connection.jetstream.get_stream(&name).await;
        let stream = stream.map_err(|error| format!("stream `{name}`: {error}"))?;
        let info = stream.cached_info();
        streams.push(Stream { next: info.state.last_sequence + 1, created: Some(info.created.to_string()), name });
    }
    Ok(streams)
}

/// Reads these streams, and those to come.
async fn read_streams(connection: Arc<Connection>, observer: Arc<Observer>, streams: Vec<Stream>) {
    let mut known: HashSet<String> = HashSet::new();
    let mut readers = tokio::task::JoinSet::new();
    for stream in streams {
        known.insert(stream.name.clone());
        readers.spawn(read(connection.clone(), observer.clone(), stream));
    }
    loop {
        sleep(LOOK).await;
        match connection.stream_names(&observer.route().subject_wildcard()).await {
            Ok(names) => {
                for name in names.into_iter().filter(|name| known.insert(name.clone())) {
                    readers.spawn(read(connection.clone(), observer.clone(), Stream { name, next: 1, created: None }));
                }
                if known.is_empty() {
                    observer.failed("no JetStream stream takes its subject yet");
                }
            }
            Err(cause) => observer.failed(cause),
        }
    }
}

async fn read(connection: Arc<Connection>, observer: Arc<Observer>, mut stream: Stream) {
    loop {
        if let Err(cause) = read_on(&connection, &observer, &mut stream).await {
            observer.failed(cause);
            sleep(LOOK).await;
        }
    }
}

/// Reads until there is nothing for a while, or no more is to be had from this consumer.
async fn read_on(connection: &Connection, observer: &Observer, stream: &mut Stream) -> Result<(), String> {
    let name = &stream.name;
    let refused = |error: &dyn std::fmt::Display| format!("stream `{name}` cannot be read: {error}");
    connection.check()?;
    let found = connection.jetstream.get_stream(name).await.map_err(|error| refused(&error))?;
    let created = Some(found.cached_info().created.to_string());
    if stream.created.is_some() && stream.created != created {
        stream.next = 1;
    }
    stream.created = created;
    let config = OrderedConfig {
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: stream.next },
        filter_subject: observer.route().subject_wildcard(),
        ..Default::default()
    };
    let consumer = found.create_consumer(config).await.map_err(|error| refused(&error))?;
    let mut messages = consumer.messages().await.map_err(|error| refused(&error))?;
    let place = observer.place(&format!("in stream {name} at sequence"));
    observer.recovered();
    while let Ok(next) = timeout(IDLE, messages.next()).await {
        let message = next.ok_or("the consumer ended")?.map_err(|error| refused(&error))?;
        let sequence = message.info().map_err(|error| refused(&error))?.stream_sequence;
        observer.arrived(&message.payload, Position { place, offset: sequence });
        stream.next = sequence + 1;
    }
    Ok(())
}
