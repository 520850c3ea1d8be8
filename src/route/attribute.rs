//! The context attributes of CloudEvents 1.0 that every message has.

use crate::event::Fields;

/// The names of an attribute.
#[derive(Clone, Copy, Debug)]
pub struct Names {
    /// The Kafka header.
    pub kafka: &'static str,
    /// The NATS header.
    pub nats: &'static str,
    /// The member of a structured-mode envelope.
    pub json: &'static str,
}

/// A context attribute.
#[derive(Clone, Copy, Debug)]
pub enum Attribute {
    SpecVersion,
    Id,
    Source,
    Type,
    Subject,
    Time,
}

const fn names(kafka: &'static str, nats: &'static str, json: &'static str) -> Names {
    Names { kafka, nats, json }
}

/// All attributes, in the order of the headers.
pub const ATTRIBUTES: [(Attribute, Names); 6] = [
    (Attribute::SpecVersion, names("ce_specversion", "ce-specversion", "specversion")),
    (Attribute::Id, names("ce_id", "ce-id", "id")),
    (Attribute::Source, names("ce_source", "ce-source", "source")),
    (Attribute::Type, names("ce_type", "ce-type", "type")),
    (Attribute::Subject, names("ce_subject", "ce-subject", "subject")),
    (Attribute::Time, names("ce_time", "ce-time", "time")),
];

/// `com.telecmi.{type}.{direction}.{status}` without absent parts, each at most 64 characters of `[A-Za-z0-9_-]`.
pub fn event_type(fields: &Fields<'_>) -> String {
    let mut text = String::from("com.telecmi");
    for part in ["type", "direction", "status"].iter().filter_map(|name| fields.text(name)) {
        let legal = |character: char| character.is_ascii_alphanumeric() || matches!(character, '_' | '-');
        text.push('.');
        text.extend(part.chars().take(64).map(|character| if legal(character) { character } else { '_' }));
    }
    text
}
