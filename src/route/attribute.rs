//! The context attributes of CloudEvents 1.0 that every message has.

use crate::event::Fields;

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

/// All attributes, in the order of the headers, each with its header for Kafka and NATS, and its member of a structured-mode envelope.
pub const ATTRIBUTES: [(Attribute, &str, &str, &str); 6] = [
    (Attribute::SpecVersion, "ce_specversion", "ce-specversion", "specversion"),
    (Attribute::Id, "ce_id", "ce-id", "id"),
    (Attribute::Source, "ce_source", "ce-source", "source"),
    (Attribute::Type, "ce_type", "ce-type", "type"),
    (Attribute::Subject, "ce_subject", "ce-subject", "subject"),
    (Attribute::Time, "ce_time", "ce-time", "time"),
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
