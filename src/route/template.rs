//! Templates such as `cdr.{team|unassigned}`: text with fields of the event in it.

use crate::event::Event;
use std::borrow::Cow;

/// What stands for an absent team unless the template says otherwise.
const NO_TEAM: &str = "unassigned";

/// A compiled template. `{name}` is any top-level field, `{name|text}` has a fallback for when the field is missing, null or
/// empty, `{{` and `}}` are braces. `{conversation_uuid}` is the conversation, which every event has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Field { name: String, fallback: String },
}

/// Why a text is no template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{problem} at character {column} of `{template}`; fields are written {{name}} or {{name|fallback}}, braces {{{{ and }}}}"
)]
pub struct TemplateError {
    template: String,
    column: usize,
    problem: &'static str,
}

impl Template {
    /// Compiles `template`.
    pub fn parse(template: &str) -> Result<Self, TemplateError> {
        let error = |at: usize, problem| TemplateError {
            template: template.to_owned(),
            column: template.get(..at).map_or(0, |before| before.chars().count()) + 1,
            problem,
        };
        let mut parts = Vec::new();
        let mut text = String::new();
        let mut rest = template;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, after) = rest.split_at(at);
            let position = template.len() - after.len();
            text.push_str(before);
            if let Some(behind) = after.strip_prefix("{{") {
                text.push('{');
                rest = behind;
            } else if let Some(behind) = after.strip_prefix("}}") {
                text.push('}');
                rest = behind;
            } else if let Some(inside) = after.strip_prefix('{') {
                let (field, behind) = inside.split_once('}').ok_or_else(|| error(position, "a brace is not closed"))?;
                let (name, fallback) =
                    field.split_once('|').unwrap_or((field, if field == "team" { NO_TEAM } else { "" }));
                if name.is_empty() || field.contains('{') || name.trim() != name {
                    return Err(error(position, "a field has no proper name"));
                }
                if !text.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut text)));
                }
                parts.push(Part::Field { name: name.to_owned(), fallback: fallback.to_owned() });
                rest = behind;
            } else {
                return Err(error(position, "a brace is not opened"));
            }
        }
        text.push_str(rest);
        if !text.is_empty() {
            parts.push(Part::Text(text));
        }
        Ok(Self { parts })
    }

    /// Fills in the fields of `event`, each written by `encode`.
    pub fn render(&self, event: &Event, encode: fn(&str, &mut String)) -> String {
        let mut out = String::with_capacity(64);
        for part in &self.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Field { name, .. } if name == "conversation_uuid" => encode(event.conversation(), &mut out),
                Part::Field { name, fallback } => {
                    encode(&event.text(name).unwrap_or(Cow::Borrowed(fallback.as_str())), &mut out);
                }
            }
        }
        out
    }

    /// The text, if there is no field in it.
    pub fn constant(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [Part::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// The text with `placeholder` for every field.
    pub fn pattern(&self, placeholder: char) -> String {
        let mut out = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Field { .. } => out.push(placeholder),
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Arrival;

    fn render(template: &str, event: &str) -> String {
        let event = Event::parse(event, 9, Arrival(0)).unwrap();
        Template::parse(template).unwrap().render(&event, |value, out| out.push_str(value))
    }

    #[test]
    fn fields_fallbacks_and_braces() {
        assert_eq!(render("{{{a}}}-{b|none}", r#"{"a":1.50}"#), "{1.50}-none");
        assert_eq!(render("{team}/{team|x}/{user}", r#"{"team":""}"#), "unassigned/x/");
        assert_eq!(render("{conversation_uuid}", r#"{"cmiuid":"m"}"#), "m");
        assert_eq!(render("{appid} {cmiuuid}", r#"{"app_id":7,"cmiuid":"m"}"#), "7 m");
        assert_eq!(render("{x}", r#"{"x":{"y":[1]}}"#), r#"{"y":[1]}"#);
    }

    #[test]
    fn mistakes_are_located() {
        for (template, column) in [("a{b", 2), ("ü{b{c}", 2), ("a}", 2), ("{}", 1), ("{|x}", 1), ("a{ b}", 2)] {
            assert_eq!(Template::parse(template).unwrap_err().column, column, "{template}");
        }
    }
}
