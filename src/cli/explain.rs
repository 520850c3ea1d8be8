//! `cdrelay explain`

use super::output::{Output, note};
use super::{CommandError, Settings};
use crate::config::Config;
use crate::event::{Arrival, DEFAULT_INGRESS, Event};
use crate::ingress::decode::Content;
use crate::route::{Dialect, FilterError, Route, Routed};
use crate::sink::Message;
use crate::spool::Record;
use clap::Args;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;

/// Show the messages that a webhook would become: identity and conversation of each event, and for each sink topic or subject, key,
/// partition, headers and payload, or why the event is kept back. Nothing is stored or sent.
#[derive(Debug, Args)]
pub struct Explain {
    #[command(flatten)]
    settings: Settings,
    /// The body of the webhook, or `-` for stdin.
    #[arg(long, value_name = "FILE|-", default_value = "-")]
    file: PathBuf,
    /// The route that it comes by; not needed if there is one.
    #[arg(long, value_name = "NAME")]
    route: Option<String>,
    /// The method.
    #[arg(long, value_name = "METHOD", default_value = "POST", value_parser = ["POST", "PUT", "GET"])]
    method: String,
    /// The Content-Type.
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    /// The query beside the body, percent-encoded, without secrets.
    #[arg(long, value_name = "QUERY")]
    query: Option<String>,
    /// Only this sink; may be given several times.
    #[arg(long, value_name = "NAME")]
    sink: Vec<String>,
}

impl Explain {
    pub fn execute(self) -> Result<(), CommandError> {
        let config = self.settings.load()?;
        let route = choose_route(&config, self.route.as_deref())?;
        if let Some(unknown) = self.sink.iter().find(|name| !config.sinks.contains_key(*name)) {
            let sinks: Vec<_> = config.sinks.keys().map(String::as_str).collect();
            let problem = format!("--sink {unknown}: no sink is called that; there are: {}", sinks.join(", "));
            return Err(CommandError::Usage(problem));
        }
        let body = if self.method == "GET" { Vec::new() } else { read(&self.file)? };
        let content = Content {
            method: &self.method,
            query: self.query.as_deref(),
            content_type: self.content_type.as_deref().map(str::as_bytes),
            body: &body,
        };
        let events = content.decode(&config.ingress.decode, Arrival::now());
        let events = events.map_err(|error| CommandError::NotExplained(error.to_string()))?;
        let by: Option<Arc<str>> = (route != DEFAULT_INGRESS).then(|| route.as_str().into());
        let events: Vec<Event> = events.into_iter().map(|event| event.by(by.clone())).collect();
        if !config.ingress.takes(&route, &events) {
            note(format_args!("warning: `auth` of the route `{route}` refuses the appid of these events with 401"));
        }
        let mut out = Output::new();
        if events.is_empty() {
            out.line("no event: answered with 200, and nothing is stored")?;
        }
        for (number, event) in (1..).zip(&events) {
            self.explain(number, event, &config, &mut out)?;
        }
        Ok(out.flush()?)
    }

    fn explain(&self, number: usize, event: &Event, config: &Config, out: &mut Output) -> Result<(), CommandError> {
        out.line(format_args!("event {number}"))?;
        field(out, 1, "id", &event.id().to_string())?;
        field(out, 1, "conversation", event.conversation())?;
        field(out, 1, "conversation from", &conversation_source(event))?;
        field(out, 1, "route", event.ingress())?;
        let chosen = config.sinks.iter().filter(|(name, _)| self.sink.is_empty() || self.sink.contains(name));
        for (name, sink) in chosen {
            let dialect = sink.destination.dialect();
            let route = Route::compile(&sink.route, dialect);
            let route = route.map_err(|error| CommandError::Usage(format!("`sinks.{name}`: {error}")))?;
            let record = Record { offset: 0, target: None, event: event.clone() };
            let mut undecided = None;
            match route.render(&record, |error| undecided = Some(error)) {
                Routed::Message(message) => {
                    out.line(format_args!("  sink {name}: sent"))?;
                    show(&message, dialect, out)?;
                }
                Routed::Filtered => {
                    out.line(format_args!("  sink {name}: kept back, {}", reason(undecided.as_ref())))?
                }
                Routed::Refused { cause, message } => {
                    out.line(format_args!("  sink {name}: dead letter, {}", printable(&cause)))?;
                    show(&message, dialect, out)?;
                }
            }
        }
        Ok(())
    }
}

/// The name of the route that is meant.
pub fn choose_route(config: &Config, name: Option<&str>) -> Result<String, CommandError> {
    let routes = config.ingress.all_routes();
    let names: Vec<_> = routes.keys().map(String::as_str).collect();
    match (name, names.as_slice()) {
        (Some(name), names) if names.contains(&name) => Ok(name.to_owned()),
        (None, [only]) => Ok((*only).to_owned()),
        (None, names) if names.contains(&DEFAULT_INGRESS) => Ok(DEFAULT_INGRESS.to_owned()),
        (Some(name), names) => {
            let problem = format!("--route {name}: no route is called that; there are: {}", names.join(", "));
            Err(CommandError::Usage(problem))
        }
        (None, names) => Err(CommandError::Usage(format!("name one of the routes with --route: {}", names.join(", ")))),
    }
}

fn read(path: &PathBuf) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match path.to_str() {
        Some("-") => std::io::stdin().lock().read_to_end(&mut bytes)?,
        _ => std::fs::File::open(path)
            .and_then(|mut file| file.read_to_end(&mut bytes))
            .map_err(|error| std::io::Error::other(format!("{}: {error}", path.display())))?,
    };
    Ok(bytes)
}

/// The identifiers that a conversation may come from.
const IDENTIFIERS: [&str; 4] = ["conversation_uuid", "call_id", "request_id", "cmiuuid"];

/// Where the conversation comes from, as far as the event alone tells.
fn conversation_source(event: &Event) -> String {
    let fields = event.fields();
    let source = IDENTIFIERS.iter().find(|name| fields.text(name).is_some_and(|text| text == event.conversation()));
    let source = source.copied().unwrap_or("the id, because no field names one");
    if event.call().is_some_and(|call| !call.has_conversation) {
        format!("{source}, unless an earlier event of the call tells its conversation_uuid")
    } else {
        source.to_owned()
    }
}

fn reason(undecided: Option<&FilterError>) -> String {
    match undecided {
        Some(error) => format!("{}, and `when_undecided` is \"skip\"", printable(&error.to_string())),
        None => "`when` is false".to_owned(),
    }
}

fn show(message: &Message, dialect: Dialect, out: &mut Output) -> std::io::Result<()> {
    match dialect {
        Dialect::Kafka => {
            field(out, 2, "topic", message.topic())?;
            field(out, 2, "key", message.key())?;
            field(out, 2, "partition by", message.partition_by())?;
        }
        Dialect::Nats => field(out, 2, "subject", message.topic())?,
    }
    for (name, value) in message.headers() {
        field(out, 2, "header", &format!("{name}: {value}"))?;
    }
    field(out, 2, "payload", &String::from_utf8_lossy(message.payload()))
}

fn field(out: &mut Output, level: usize, name: &str, value: &str) -> std::io::Result<()> {
    out.line(format_args!("{:indent$}{name:<18}{}", "", printable(value), indent = 2 * level))
}

/// The text without anything that a terminal could take for a command.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            character if character.is_control() => out.extend(character.escape_default()),
            character => out.push(character),
        }
    }
    out
}
