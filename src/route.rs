//! From a record to the message for one sink: filter, topic, key and CloudEvents attributes, compiled and checked at load.

mod attribute;
mod encode;
mod filter;
mod template;

use attribute::{ATTRIBUTES, Attribute, event_type};
use encode::{header_value, legal_in_topic, subject_token, topic_characters, uri_segment, verbatim};
use filter::Filter;
pub use filter::FilterError;
pub use template::{Template, TemplateError};

use crate::event::{Event, Fields, json};
use crate::redact::{self, RedactKey, Redaction};
use crate::sink::Message;
use crate::spool::Record;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
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

/// The part of `[sinks.NAME]` that sets the form of messages.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(transform = crate::config::schema::with_subject)]
pub struct Config {
    /// Template of the topic (Kafka, stdout) or subject (NATS).
    #[serde(alias = "subject")]
    pub topic: Option<String>,
    /// Template of the key.
    pub key: String,
    /// Template of the text that chooses the Kafka partition.
    pub partition_by: String,
    /// CEL expression on `event`, `query` and `ingress`; records for which it is false are not sent to this sink.
    pub when: Option<String>,
    /// The fate of records for which `when` is undecided: a field is missing or of another type.
    pub when_undecided: Undecided,
    /// How the event and its CloudEvents attributes are laid out.
    pub format: Format,
    /// Template of the CloudEvents source.
    pub source: String,
    /// Which fields the sink must not get.
    pub redact: redact::Config,
    /// The routes of the ingress; set from `[ingress]`.
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
            when_undecided: Undecided::Skip,
            format: Format::Event,
            source: "/telecmi/{appid|unknown}".into(),
            redact: redact::Config::default(),
            origins: Arc::default(),
        }
    }
}

/// The fate of a record for which `when` is undecided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Undecided {
    /// Not sent, as if `when` were false.
    Skip,
    /// Sent, as if `when` were true.
    Send,
    /// Kept as a dead letter.
    DeadLetter,
}

/// The content modes of CloudEvents 1.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// Binary mode: the payload is the event itself, the attributes are headers.
    Event,
    /// Structured mode: the payload is a JSON envelope with the event as its data.
    #[serde(rename = "cloudevents")]
    CloudEvents,
    /// Binary mode, and the sink puts the id of a schema before the payload (Kafka).
    JsonSchema,
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
                for (attribute, names) in ATTRIBUTES {
                    let value = self.attribute(attribute, view);
                    message = match self.dialect {
                        Dialect::Kafka => message.with_header(names.kafka, &value),
                        Dialect::Nats => message.with_header(names.nats, &header_value(&value)),
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
        for (attribute, names) in ATTRIBUTES {
            text += &format!("\"{}\":{},", names.json, json::quote(&self.attribute(attribute, view)));
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

    fn filtered(when: &str, when_undecided: Undecided, event: &str) -> (Routed, usize) {
        let config = Config { when: Some(when.into()), when_undecided, ..Config::default() };
        let event = Event::parse(event, 64, Arrival(0)).unwrap();
        let mut failures = 0;
        let record = Record { offset: 0, target: None, event };
        (route(config, Dialect::Kafka).render(&record, |_| failures += 1), failures)
    }

    #[test]
    fn an_event_that_the_filter_cannot_read_is_a_dead_letter_and_never_sent() {
        for unreadable in [r#"{"type":"cdr","x":1e999}"#, r#"{"type":"cdr","x":"\ud800"}"#] {
            for when in ["event.x == 'cdr'", "event.x != 'cdr'"] {
                for undecided in [Undecided::Skip, Undecided::Send] {
                    let (routed, failures) = filtered(when, undecided, unreadable);
                    let Routed::Refused { cause, message } = routed else { panic!("{unreadable}: {routed:?}") };
                    assert!(cause.contains("`when` cannot be evaluated") && failures == 1, "{cause}");
                    assert_eq!((message.topic(), &**message.payload()), ("telecmi.cdr", unreadable.as_bytes()));
                }
            }
            // The field that cannot be read does not matter.
            assert_eq!(filtered("event.type != 'cdr'", Undecided::Send, unreadable), (Routed::Filtered, 0));
            assert!(matches!(filtered("event.type == 'cdr'", Undecided::Skip, unreadable), (Routed::Message(_), 0)));
            assert_eq!(filtered("ingress == 'east'", Undecided::Send, unreadable), (Routed::Filtered, 0));
        }
    }

    #[test]
    fn an_event_that_lacks_a_field_of_the_filter_goes_where_the_setting_says() {
        for event in ["{\"a\":1}", "{\"team\":7}"] {
            let when = "event.team.startsWith('Sales')";
            assert_eq!(filtered(when, Undecided::Skip, event), (Routed::Filtered, 1));
            assert!(matches!(filtered(when, Undecided::Send, event), (Routed::Message(_), 1)));
            let (routed, _) = filtered(when, Undecided::DeadLetter, event);
            assert!(matches!(&routed, Routed::Refused { cause, .. } if cause.contains("undecided")), "{routed:?}");
        }
        assert_eq!(Config::default().when_undecided, Undecided::Skip);
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
