//! From a record to the message for one sink: filter, topic, key and CloudEvents attributes, compiled and checked at load.

mod attribute;
mod config;
mod encode;
mod filter;
mod template;

pub use config::{Config, Format, Undecided};

use attribute::{ATTRIBUTES, Attribute, event_type};
use encode::{header_value, legal_in_topic, subject_token, topic_characters, uri_segment, verbatim};
use filter::Filter;
pub use filter::FilterError;
pub use template::{Template, TemplateError};

use crate::event::{Event, Fields, json};
use crate::redact::{self, RedactKey, Redaction};
use crate::sink::Message;
use crate::spool::Record;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The metadata of the ingress routes, by name. A record holds only the name: the metadata set when it is sent counts.
pub type Origins = BTreeMap<String, Origin>;

/// The metadata of one ingress route.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Origin {
    /// The values of `{labels.name}`.
    pub labels: BTreeMap<String, String>,
    /// Template of the CloudEvents source, in place of the sink's own.
    pub source: Option<String>,
    /// Query parameters that hold secrets, and are left out of events.
    pub secret_parameters: Vec<String>,
    /// Whether no event carries a query: the authentication leaves it unsigned, or there is none.
    pub ignores_query: bool,
    /// Whether its events are calls that a reconciliation found, whose source ends in `/reconcile`.
    pub is_reconciled: bool,
}

impl Origin {
    /// Template of the CloudEvents source of its events at a sink, in place of the sink's own.
    fn source(&self, own: &str) -> Option<String> {
        if self.is_reconciled { Some(format!("{own}/reconcile")) } else { self.source.clone() }
    }
}

/// The names and headers that are legal at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Topics of `[a-zA-Z0-9._-]`, up to 249 characters; headers `ce_…` with any value.
    Kafka,
    /// Subjects of tokens; headers `ce-…` with percent-encoded values.
    Nats,
}

/// A setting of the route is wrong.
#[derive(Debug, thiserror::Error)]
#[error("`{key}`: {problem}")]
pub struct RouteError {
    /// The setting.
    pub key: &'static str,
    /// The problem and a remedy.
    pub problem: String,
}

/// A compiled route.
#[derive(Debug)]
pub struct Route {
    dialect: Dialect,
    topic: Template,
    key: Template,
    partition_by: Template,
    source: Template,
    /// By the name of the ingress route.
    sources: BTreeMap<String, Template>,
    when: Option<Filter>,
    when_undecided: Undecided,
    format: Format,
    redaction: Option<Redaction>,
}

/// The fate of a record.
#[derive(Debug, PartialEq)]
pub enum Routed {
    /// It is sent.
    Message(Message),
    /// The filter keeps it from the sink.
    Filtered,
    /// A dead letter: it has no legal topic, or the filter cannot be evaluated.
    Refused {
        /// The reason.
        cause: String,
        /// The message as far as it got.
        message: Message,
    },
}

/// An event with its fields, read once for all templates of a route.
#[derive(Debug)]
pub struct View<'a> {
    event: &'a Event,
    fields: Fields<'a>,
}

impl<'a> View<'a> {
    /// Reads the fields of an event.
    pub fn of(event: &'a Event) -> Self {
        Self { event, fields: event.fields() }
    }
}

/// Appends a value in a form that is legal where it stands.
type Encode = fn(&str, &mut String);

impl Route {
    /// Compiles and checks the settings.
    pub fn compile(config: &Config, dialect: Dialect) -> Result<Self, RouteError> {
        let default = match dialect {
            Dialect::Kafka => "telecmi.cdr",
            Dialect::Nats => "telecmi.cdr.{team}.{conversation_uuid}",
        };
        let topic_key = if dialect == Dialect::Nats { "subject" } else { "topic" };
        let template = |key, text: &str| {
            let template = Template::parse(text).map_err(|error| error.to_string());
            let template = template.and_then(|template| template.with_origins(&config.origins));
            template.map_err(|problem| RouteError { key, problem })
        };
        let topic = template(topic_key, config.topic.as_deref().unwrap_or(default))?;
        let checked = match dialect {
            Dialect::Kafka => check_topic(&topic),
            Dialect::Nats => check_subject(&topic),
        };
        checked.map_err(|problem| RouteError { key: topic_key, problem })?;
        let when = config.when.as_deref().map(Filter::compile).transpose();
        let sources = config.origins.iter().filter_map(|(name, origin)| Some((name, origin.source(&config.source)?)));
        let sources = sources.map(|(name, source)| Ok((name.clone(), template("source", &source)?)));
        Ok(Self {
            dialect,
            topic,
            key: template("key", &config.key)?,
            partition_by: template("partition_by", &config.partition_by)?,
            source: template("source", &config.source)?,
            sources: sources.collect::<Result<_, _>>()?,
            when: when.map_err(|problem| RouteError { key: "when", problem })?,
            when_undecided: config.when_undecided,
            format: config.format,
            redaction: Redaction::open(&config.redact)
                .map_err(|redact::Problem { key, text }| RouteError { key, problem: text })?,
        })
    }

    /// How the messages are laid out.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The topic, if it is the same for every record.
    pub fn constant_topic(&self) -> Option<&str> {
        self.topic.constant()
    }

    /// Whether this route can make the topic `name`.
    pub fn may_name(&self, name: &str) -> bool {
        let pattern = self.topic.pattern('\0');
        let mut texts = pattern.split('\0');
        let Some(mut rest) = name.strip_prefix(texts.next().unwrap_or_default()) else { return false };
        let Some(end) = texts.next_back() else { return rest.is_empty() };
        for text in texts {
            let Some((_, behind)) = rest.split_once(text) else { return false };
            rest = behind;
        }
        rest.ends_with(end)
    }

    /// A NATS subject with wildcards that matches every subject this route can make.
    pub fn subject_wildcard(&self) -> String {
        let pattern = self.topic.pattern('\0');
        let tokens = pattern.split('.').map(|token| if token.contains('\0') { "*" } else { token });
        tokens.collect::<Vec<_>>().join(".")
    }

    /// The key that fields are hashed with, if there are any.
    pub fn redact_key(&self) -> Option<&Arc<RedactKey>> {
        self.redaction.as_ref()?.key()
    }

    /// Renders `record`. `on_filter_failure` is called if `when` has no result for it. `when` sees the event as it came, everything in
    /// the message comes from the redacted one.
    pub fn render(&self, record: &Record, on_filter_failure: impl FnOnce(FilterError)) -> Routed {
        let view = View::of(&record.event);
        let mut cause = None;
        match self.when.as_ref().map(|filter| filter.passes(&view)) {
            None | Some(Ok(true)) => {}
            Some(Ok(false)) => return Routed::Filtered,
            Some(Err(error)) => {
                let text = error.to_string();
                let undecided = matches!(error, FilterError::Undecided(_)).then_some(self.when_undecided);
                on_filter_failure(error);
                match undecided {
                    Some(Undecided::Skip) => return Routed::Filtered,
                    Some(Undecided::Send) => {}
                    Some(Undecided::DeadLetter) | None => cause = Some(text),
                }
            }
        }
        let message = match &self.redaction {
            Some(redaction) => self.message(&View::of(&redaction.apply(&record.event))),
            None => self.message(&view),
        };
        let legal = self.dialect != Dialect::Kafka || is_topic(message.topic());
        let cause = cause.or_else(|| {
            (!legal).then(|| {
                let length = message.topic().len();
                format!("a Kafka topic has 1 to 249 characters and is not `.` or `..`; this one would have {length}")
            })
        });
        match cause {
            None => Routed::Message(message),
            Some(cause) => Routed::Refused { cause, message },
        }
    }

    fn message(&self, view: &View<'_>) -> Message {
        let (encode, partition_by): (Encode, _) = match self.dialect {
            Dialect::Kafka => (topic_characters, self.partition_by.render(view, verbatim)),
            Dialect::Nats => (subject_token, String::new()),
        };
        let topic = self.topic.render(view, encode);
        let key = self.key.render(view, verbatim);
        let message = |payload| Message::of(view.event.id(), payload, &topic, &key, &partition_by);
        match self.format {
            Format::CloudEvents => {
                message(self.envelope(view)).with_header("content-type", "application/cloudevents+json; charset=UTF-8")
            }
            Format::Event | Format::JsonSchema => {
                let mut message =
                    message(view.event.payload().clone().into()).with_header("content-type", "application/json");
                for (attribute, kafka, nats, _) in ATTRIBUTES {
                    let value = self.attribute(attribute, view);
                    message = match self.dialect {
                        Dialect::Kafka => message.with_header(kafka, &value),
                        Dialect::Nats => message.with_header(nats, &header_value(&value)),
                    };
                }
                message
            }
        }
    }

    fn attribute(&self, attribute: Attribute, view: &View<'_>) -> String {
        let event = view.event;
        match attribute {
            Attribute::SpecVersion => "1.0".into(),
            Attribute::Id => event.id().to_string(),
            Attribute::Source => self.sources.get(event.ingress()).unwrap_or(&self.source).render(view, uri_segment),
            Attribute::Type => event_type(&view.fields),
            Attribute::Subject => event.conversation().to_owned(),
            Attribute::Time => event.arrival().to_string(),
        }
    }

    /// The event as the data of a JSON object with its attributes.
    fn envelope(&self, view: &View<'_>) -> Arc<[u8]> {
        let mut text = String::from("{");
        for (attribute, _, _, name) in ATTRIBUTES {
            text += &format!("\"{name}\":{},", json::quote(&self.attribute(attribute, view)));
        }
        text += "\"datacontenttype\":\"application/json\",\"data\":";
        text += view.event.payload();
        text.push('}');
        text.into_bytes().into()
    }
}

fn is_topic(topic: &str) -> bool {
    topic.len() <= 249 && !matches!(topic, "" | "." | "..")
}

fn check_topic(template: &Template) -> Result<(), String> {
    let pattern = template.pattern('x');
    if let Some(illegal) = pattern.chars().find(|character| !legal_in_topic(*character)) {
        return Err(format!("{illegal:?} is not allowed in a Kafka topic, only a-z A-Z 0-9 . _ -"));
    }
    if !is_topic(&pattern) {
        return Err("a Kafka topic has 1 to 249 characters and is not `.` or `..`".into());
    }
    Ok(())
}

fn check_subject(template: &Template) -> Result<(), String> {
    let pattern = template.pattern('x');
    if pattern.split('.').any(str::is_empty) {
        return Err("a NATS subject is made of tokens with a dot between; one of these is empty".into());
    }
    match pattern.chars().find(|character| !matches!(character, '!'..='~') || matches!(character, '*' | '>' | '%')) {
        Some(illegal) => Err(format!("{illegal:?} is not allowed in a subject to publish to")),
        None if pattern.starts_with('$') => Err("subjects that begin with `$` belong to the NATS server".into()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
