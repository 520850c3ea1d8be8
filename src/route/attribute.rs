//! The attributes of CloudEvents 1.0 that every message has.

use crate::event::{Event, Name};
use crate::sink::HeaderName;

/// The header that says what a message is.
pub const CONTENT_TYPE: HeaderName = HeaderName::new("content-type");

/// How an attribute is called.
pub struct Names {
    pub kafka: HeaderName,
    pub nats: HeaderName,
    pub json: &'static str,
}

impl Names {
    const fn of(kafka: &'static str, nats: &'static str, json: &'static str) -> Self {
        Self { kafka: HeaderName::new(kafka), nats: HeaderName::new(nats), json }
    }
}

/// All attributes, in the order of the headers.
pub const ATTRIBUTES: [Attribute; 6] =
    [Attribute::SpecVersion, Attribute::Id, Attribute::Source, Attribute::Type, Attribute::Subject, Attribute::Time];

/// What CloudEvents calls a context attribute.
#[derive(Clone, Copy, Debug)]
pub enum Attribute {
    SpecVersion,
    Id,
    Source,
    Type,
    Subject,
    Time,
}

impl Attribute {
    /// How it is called.
    pub fn names(self) -> Names {
        match self {
            Self::SpecVersion => const { Names::of("ce_specversion", "ce-specversion", "specversion") },
            Self::Id => const { Names::of("ce_id", "ce-id", "id") },
            Self::Source => const { Names::of("ce_source", "ce-source", "source") },
            Self::Type => const { Names::of("ce_type", "ce-type", "type") },
            Self::Subject => const { Names::of("ce_subject", "ce-subject", "subject") },
            Self::Time => const { Names::of("ce_time", "ce-time", "time") },
        }
    }

    /// Whether it may hold any character. What we write into the others is letters, digits and `.:_-`.
    pub fn is_free(self) -> bool {
        matches!(self, Self::Source | Self::Subject)
    }
}

/// Writes `com.telecmi.{type}.{direction}.{status}`, absent parts left out.
pub fn write_type(event: &Event, out: &mut String) {
    out.push_str("com.telecmi");
    const PARTS: [Name; 3] = [Name::of("type"), Name::of("direction"), Name::of("status")];
    for part in PARTS.iter().filter_map(|name| event.field(name)) {
        out.push('.');
        let legal = |character: char| character.is_ascii_alphanumeric() || matches!(character, '_' | '-');
        if part.len() <= 64 && part.bytes().all(|byte| legal(char::from(byte))) {
            out.push_str(&part);
        } else {
            out.extend(part.chars().take(64).map(|character| if legal(character) { character } else { '_' }));
        }
    }
}
