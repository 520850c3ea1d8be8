//! From a record to the message for one sink: filter, topic, key and CloudEvents attributes, compiled and checked at load.

mod attribute;
mod encode;
mod filter;
mod template;

use attribute::{ATTRIBUTES, Attribute, CONTENT_TYPE, write_type};
use encode::{legal_in_topic, make_header_value, subject_token, topic_characters, uri_segment, verbatim};
use filter::{Filter, FilterError};
pub use template::{Template, TemplateError};

use crate::event::{Event, json};
use crate::sink::Message;
use crate::spool::Record;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the routes of the ingress say of their events, by name. A record holds but the name: whatever is set when it is
/// sent counts. What is wrong with a label or a source is said of the sink that uses it.
pub type Origins = BTreeMap<String, Origin>;

/// What one route says of its events.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// What `{labels.name}` stands for.
    pub labels: BTreeMap<String, String>,
    /// Template of the CloudEvents source, in place of the sink's own.
    pub source: Option<String>,
}

/// The part of `[sinks.NAME]` that says what is sent where.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Template of the topic (Kafka, stdout) or subject (NATS).
    #[serde(alias = "subject")]
    pub topic: Option<String>,
    /// Template of the key.
    pub key: String,
    /// Template of the text that chooses the Kafka partition.
    pub partition_by: String,
    /// CEL expression on `event` and `ingress`; records for which it is false are not sent to this sink.
    pub when: Option<String>,
    /// How the event and its CloudEvents attributes are laid out.
    pub format: Format,
    /// Template of the CloudEvents source.
    pub source: String,
    /// Where events come from; stands in `[ingress]`.
    #[serde(skip)]
    pub origins: Arc<Origins>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            topic: None,
            key: "{team}/{conversation_uuid}".into(),
            partition_by: "{conversation_uuid}".into(),
            when: None,
            format: Format::Event,
            source: "/telecmi/{appid|unknown}".into(),
            origins: Arc::default(),
        }
    }
}

/// The two content modes of CloudEvents 1.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Binary mode: the payload is the event itself, the attributes are headers.
    Event,
    /// Structured mode: the payload is a JSON envelope with the event as its data.
    CloudEvents,
}

/// Which names and headers are legal at the destination.
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
    /// What is wrong and what would be right.
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
    /// By the name of the route that an event came by.
    sources: BTreeMap<String, Template>,
    when: Option<Filter>,
    format: Format,
}

/// What becomes of a record.
#[derive(Debug, PartialEq)]
pub enum Routed {
    /// It is sent.
    Message(Message),
    /// The sink does not want it.
    Filtered,
    /// It cannot be given a legal topic: a dead letter.
    Refused {
        /// Why.
        cause: String,
        /// The message as far as it got.
        message: Message,
    },
}

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
            let template = template.and_then(|template| template.with_labels(&config.origins));
            template.map_err(|problem| RouteError { key, problem })
        };
        let topic = template(topic_key, config.topic.as_deref().unwrap_or(default))?;
        let checked = match dialect {
            Dialect::Kafka => check_topic(&topic),
            Dialect::Nats => check_subject(&topic),
        };
        checked.map_err(|problem| RouteError { key: topic_key, problem })?;
        let when = config.when.as_deref().map(Filter::compile).transpose();
        let sources = config.origins.iter().filter_map(|(name, origin)| Some((name, origin.source.as_deref()?)));
        let sources = sources.map(|(name, source)| Ok((name.clone(), template("source", source)?)));
        Ok(Self {
            dialect,
            topic,
            key: template("key", &config.key)?,
            partition_by: template("partition_by", &config.partition_by)?,
            source: template("source", &config.source)?,
            sources: sources.collect::<Result<_, _>>()?,
            when: when.map_err(|error| RouteError { key: "when", problem: error.to_string() })?,
            format: config.format,
        })
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

    /// A NATS subject with wildcards that takes every subject this route can make.
    pub fn subject_wildcard(&self) -> String {
        let pattern = self.topic.pattern('\0');
        let tokens = pattern.split('.').map(|token| if token.contains('\0') { "*" } else { token });
        tokens.collect::<Vec<_>>().join(".")
    }

    /// Renders `record`. If `when` fails, the record is sent, and `on_filter_failure` learns why.
    pub fn render(&self, record: &Record, on_filter_failure: impl FnOnce(FilterError)) -> Routed {
        let event = &record.event;
        if let Some(filter) = &self.when {
            match filter.passes(event) {
                Ok(true) => {}
                Ok(false) => return Routed::Filtered,
                Err(error) => on_filter_failure(error),
            }
        }
        let encode = match self.dialect {
            Dialect::Kafka => topic_characters,
            Dialect::Nats => subject_token,
        };
        let payload = match self.format {
            Format::Event => event.payload().clone().into(),
            Format::CloudEvents => self.envelope(event),
        };
        let mut message = Message::new(
            event.id(),
            payload,
            |text| self.topic.render(event, encode, text),
            |text| self.key.render(event, verbatim, text),
            |text| match self.dialect {
                Dialect::Kafka => self.partition_by.render(event, verbatim, text),
                Dialect::Nats => {}
            },
        );
        match self.format {
            Format::Event => {
                message.push_header(CONTENT_TYPE, |text| text.push_str("application/json"));
                for attribute in ATTRIBUTES {
                    let names = attribute.names();
                    match self.dialect {
                        Dialect::Kafka => message.push_header(names.kafka, |text| self.write(attribute, event, text)),
                        Dialect::Nats => message.push_header(names.nats, |text| {
                            let start = text.len();
                            self.write(attribute, event, text);
                            if attribute.is_free() {
                                make_header_value(text, start);
                            }
                        }),
                    }
                }
            }
            Format::CloudEvents => {
                message.push_header(CONTENT_TYPE, |text| text.push_str("application/cloudevents+json; charset=UTF-8"));
            }
        }
        if self.dialect == Dialect::Kafka && (message.topic().len() > 249 || matches!(message.topic(), "" | "." | ".."))
        {
            let cause = format!(
                "a Kafka topic has 1 to 249 characters and is not `.` or `..`; this one would have {}",
                message.topic().len()
            );
            return Routed::Refused { cause, message };
        }
        Routed::Message(message)
    }

    /// Writes a CloudEvents 1.0 context attribute.
    fn write(&self, attribute: Attribute, event: &Event, out: &mut String) {
        match attribute {
            Attribute::SpecVersion => out.push_str("1.0"),
            Attribute::Id => event.id().write(out),
            Attribute::Source => self.source_of(event).render(event, uri_segment, out),
            Attribute::Type => write_type(event, out),
            Attribute::Subject => out.push_str(event.conversation()),
            Attribute::Time => event.arrival().write(out),
        }
    }

    /// The event as the data of a JSON object with its attributes.
    fn envelope(&self, event: &Event) -> Arc<[u8]> {
        let mut bytes = Vec::with_capacity(event.payload().len() + 384);
        let mut value = String::with_capacity(64);
        bytes.push(b'{');
        for attribute in ATTRIBUTES {
            json::write_string(attribute.names().json, &mut bytes);
            bytes.push(b':');
            value.clear();
            self.write(attribute, event, &mut value);
            json::write_string(&value, &mut bytes);
            bytes.push(b',');
        }
        bytes.extend_from_slice(b"\"datacontenttype\":\"application/json\",\"data\":");
        bytes.extend_from_slice(event.payload().as_bytes());
        bytes.push(b'}');
        bytes.into()
    }

    fn source_of(&self, event: &Event) -> &Template {
        if self.sources.is_empty() {
            return &self.source;
        }
        self.sources.get(event.ingress()).unwrap_or(&self.source)
    }
}

fn check_topic(template: &Template) -> Result<(), String> {
    let pattern = template.pattern('x');
    if let Some(illegal) = pattern.chars().find(|character| !legal_in_topic(*character)) {
        return Err(format!("{illegal:?} is not allowed in a Kafka topic, only a-z A-Z 0-9 . _ -"));
    }
    if pattern.len() > 249 || matches!(&*pattern, "" | "." | "..") {
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
mod tests {
    use super::*;
    use crate::event::Arrival;

    fn route(config: Config, dialect: Dialect) -> Route {
        Route::compile(&config, dialect).unwrap()
    }

    fn message(route: &Route, event: &str) -> Message {
        let event = Event::parse(event, 64, Arrival(1_634_721_099_442)).unwrap();
        match route.render(&Record { offset: 0, target: None, event }, |error| panic!("{error}")) {
            Routed::Message(message) => message,
            other => panic!("{other:?}"),
        }
    }

    fn header<'a>(message: &'a Message, name: &str) -> &'a str {
        message.headers().find(|(header, _)| *header == name).map_or("(none)", |(_, value)| value)
    }

    #[test]
    fn defaults_are_as_documented() {
        let event = r#"{"type":"cdr","direction":"inbound","status":"missed","appid":2222223,"team":"Sales_1","conversation_uuid":"c-1"}"#;
        let kafka = message(&route(Config::default(), Dialect::Kafka), event);
        assert_eq!((kafka.topic(), kafka.key(), kafka.partition_by()), ("telecmi.cdr", "Sales_1/c-1", "c-1"));
        assert_eq!(**kafka.payload(), *event.as_bytes());
        let names: Vec<_> = kafka.headers().map(|(name, _)| name).collect();
        assert_eq!(names, ["content-type", "ce_specversion", "ce_id", "ce_source", "ce_type", "ce_subject", "ce_time"]);
        assert_eq!(header(&kafka, "ce_id"), kafka.id().to_string());
        assert_eq!(header(&kafka, "ce_source"), "/telecmi/2222223");
        assert_eq!(header(&kafka, "ce_type"), "com.telecmi.cdr.inbound.missed");
        assert_eq!(header(&kafka, "ce_subject"), "c-1");
        assert_eq!(header(&kafka, "ce_time"), "2021-10-20T09:11:39.442Z");
        let nats = message(&route(Config::default(), Dialect::Nats), event);
        assert_eq!(nats.topic(), "telecmi.cdr.Sales_1.c-1");
        assert_eq!(header(&nats, "ce-type"), "com.telecmi.cdr.inbound.missed");
        assert_eq!(
            message(&route(Config::default(), Dialect::Kafka), r#"{"team":null,"request_id":"r"}"#).key(),
            "unassigned/r"
        );
    }

    #[test]
    fn a_route_knows_the_topics_it_can_make() {
        let route = |topic: &str| route(Config { topic: Some(topic.into()), ..Config::default() }, Dialect::Kafka);
        for (topic, yes, no) in [
            ("cdr", &["cdr"][..], &["", "cdr.", "a.cdr", "cd"][..]),
            ("cdr.{team}", &["cdr.Sales", "cdr.a.b"], &["cdr", "xcdr.a"]),
            ("{team}.cdr", &["Sales.cdr"], &["cdr", "Sales.cdr.x"]),
            ("a.{team}.b.{user}.c", &["a.1.b.2.c", "a..b.x.b.2.c"], &["a.1.b.c", "a.1.2.c", "b.1.b.2.c"]),
            ("{team}", &["anything"], &[]),
        ] {
            let route = route(topic);
            assert!(yes.iter().all(|name| route.may_name(name)), "{topic}");
            assert!(!no.iter().any(|name| route.may_name(name)), "{topic}");
        }
    }

    #[test]
    fn values_are_data_in_a_subject_and_come_back_by_percent_decoding() {
        let subject = route(Config { topic: Some("cdr.{team}.end".into()), ..Config::default() }, Dialect::Nats);
        for team in ["Sales.*>", "a b", "line\nbreak\r\n", "nul\0", "விற்பனை", "100%", "~", "$JS", "+"] {
            let event = format!("{{\"team\":{}}}", serde_json::json!(team));
            let message = message(&subject, &event);
            let [first, token, last] = message.topic().split('.').collect::<Vec<_>>().try_into().unwrap();
            assert_eq!((first, last), ("cdr", "end"));
            assert!(token.bytes().all(|byte| byte.is_ascii_graphic() && !b"*>.".contains(&byte)), "{token}");
            assert_eq!(percent_encoding::percent_decode_str(token).decode_utf8().unwrap(), team);
        }
        let empty = route(Config { topic: Some("cdr.{user}".into()), ..Config::default() }, Dialect::Nats);
        assert_eq!(message(&empty, "{}").topic(), "cdr.~");
        assert_eq!(message(&empty, r#"{"user":"~"}"#).topic(), "cdr.%7E");
    }

    #[test]
    fn header_values_stay_within_their_header() {
        let event =
            "{\"conversation_uuid\":\"a\\r\\nce-id: x \\u0000\\u0b95\\\"%\",\"type\":\"a\\nb.c\",\"appid\":\"../x y\"}";
        let nats = message(&route(Config::default(), Dialect::Nats), event);
        assert_eq!(header(&nats, "ce-subject"), "a%0D%0Ace-id:%20x%20%00%E0%AE%95%22%25");
        assert_eq!(header(&nats, "ce-type"), "com.telecmi.a_b_c");
        // The source is a URI with escapes of its own; the header escapes them once more, as the binding demands.
        assert_eq!(header(&nats, "ce-source"), "/telecmi/..%252Fx%2520y");
        for (only, encoded) in [(" ", "%20"), ("\\n", "%0A"), ("%", "%25")] {
            let event = format!("{{\"conversation_uuid\":\"{only}\"}}");
            let nats = message(&route(Config::default(), Dialect::Nats), &event);
            assert_eq!(header(&nats, "ce-subject"), encoded);
        }
        let kafka = message(&route(Config::default(), Dialect::Kafka), event);
        assert_eq!(header(&kafka, "ce_subject"), "a\r\nce-id: x \0\u{0b95}\"%");
    }

    #[test]
    fn topics_are_legal_or_refused() {
        let by_team = route(Config { topic: Some("cdr.{team}".into()), ..Config::default() }, Dialect::Kafka);
        assert_eq!(message(&by_team, r#"{"team":"Sales.*> ü"}"#).topic(), "cdr.Sales.____");
        let event = Event::parse(&format!("{{\"team\":\"{}\"}}", "x".repeat(246)), 9, Arrival(0)).unwrap();
        assert!(matches!(by_team.render(&Record { offset: 0, target: None, event }, |_| ()), Routed::Refused { .. }));
    }

    #[test]
    fn structured_mode_wraps_the_event_unchanged() {
        let config = Config { format: Format::CloudEvents, ..Config::default() };
        let event = "{\"n\":1.50,\n\"n\":2,\"conversation_uuid\":\"a\\\"b\"}";
        let message = message(&route(config, Dialect::Kafka), event);
        let text = std::str::from_utf8(message.payload()).unwrap();
        assert!(text.ends_with(&format!(",\"data\":{event}}}")));
        let envelope: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(envelope["subject"], "a\"b");
        assert_eq!(envelope["specversion"], "1.0");
        assert_eq!(header(&message, "content-type"), "application/cloudevents+json; charset=UTF-8");
        assert_eq!(message.headers().len(), 1);
    }

    #[test]
    fn mistakes_are_found_at_load() {
        let mistakes = [
            ("tele cmi", Dialect::Kafka),
            ("", Dialect::Kafka),
            ("..", Dialect::Kafka),
            ("a.{team", Dialect::Kafka),
            ("a..b", Dialect::Nats),
            ("a.*", Dialect::Nats),
            ("a.>", Dialect::Nats),
            ("a b", Dialect::Nats),
            ("$JS.{team}", Dialect::Nats),
            ("ü", Dialect::Nats),
            ("a.", Dialect::Nats),
        ];
        for (topic, dialect) in mistakes {
            let config = Config { topic: Some(topic.into()), ..Config::default() };
            let key = if dialect == Dialect::Nats { "subject" } else { "topic" };
            assert_eq!(Route::compile(&config, dialect).unwrap_err().key, key, "{topic}");
        }
        let config = Config { when: Some("event.type ==".into()), ..Config::default() };
        assert_eq!(Route::compile(&config, Dialect::Kafka).unwrap_err().key, "when");
    }

    #[test]
    fn the_wildcard_takes_all_subjects_of_the_route() {
        let wildcard = |topic: &str| {
            route(Config { topic: Some(topic.into()), ..Config::default() }, Dialect::Nats).subject_wildcard()
        };
        assert_eq!(wildcard("a.{team}.x{leg}y.b"), "a.*.*.b");
        assert_eq!(wildcard("a.b"), "a.b");
    }
}
