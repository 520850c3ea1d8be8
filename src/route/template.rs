//! Templates such as `cdr.{team|unassigned}`: text with fields of the event in it.

use super::Origins;
use crate::event::{Event, Name};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// What stands for an absent team unless the template says otherwise.
const NO_TEAM: &str = "unassigned";

/// What a field's name begins with if it is a label of the route that the event came by.
const LABEL: &str = "labels.";

/// A compiled template. `{name}` is any top-level field, `{name|text}` has a fallback for when the field is missing, null or
/// empty, `{{` and `}}` are braces. `{conversation_uuid}` is the conversation, which every event has; `{ingress}` the route that it
/// came by and `{labels.name}` a label of that. The payload has no say in these two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Ingress,
    Label { name: String, values: BTreeMap<String, String>, fallback: String },
    Conversation,
    Field { name: Name, fallback: String },
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
                let fallback = fallback.to_owned();
                parts.push(match name.strip_prefix(LABEL) {
                    _ if name == "ingress" => Part::Ingress,
                    _ if name == "conversation_uuid" => Part::Conversation,
                    Some(label) => Part::Label { name: label.to_owned(), values: BTreeMap::new(), fallback },
                    None => Part::Field { name: name.to_owned().into(), fallback },
                });
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

    /// The same template with the values of labels for each route; an error names a label that no route has.
    pub fn with_labels(mut self, origins: &Origins) -> Result<Self, String> {
        for part in &mut self.parts {
            let Part::Label { name, values, .. } = part else { continue };
            let known = origins.iter().filter_map(|(route, origin)| Some((route, origin.labels.get(name)?)));
            *values = known.map(|(route, value)| (route.clone(), value.clone())).collect();
            if values.is_empty() {
                let labels: Vec<&str> =
                    origins.values().flat_map(|origin| origin.labels.keys()).map(String::as_str).collect();
                let known = if labels.is_empty() { "none".to_owned() } else { labels.join(", ") };
                return Err(format!("no route of the ingress has a label `{name}`; there are: {known}"));
            }
        }
        Ok(self)
    }

    /// Adds the text to `out` with the fields of `event` filled in, each written by `encode`.
    pub fn render(&self, event: &Event, encode: fn(&str, &mut String), out: &mut String) {
        for part in &self.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Ingress => encode(event.ingress(), out),
                Part::Label { values, fallback, .. } => encode(values.get(event.ingress()).unwrap_or(fallback), out),
                Part::Conversation => encode(event.conversation(), out),
                Part::Field { name, fallback } => {
                    encode(&event.field(name).unwrap_or(Cow::Borrowed(fallback.as_str())), out);
                }
            }
        }
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
                Part::Ingress | Part::Label { .. } | Part::Conversation | Part::Field { .. } => out.push(placeholder),
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Arrival;

    fn written(template: &Template, event: &Event) -> String {
        let mut text = String::new();
        template.render(event, |value, out| out.push_str(value), &mut text);
        text
    }

    fn render(template: &str, event: &str) -> String {
        let event = Event::parse(event, 9, Arrival(0)).unwrap();
        written(&Template::parse(template).unwrap(), &event)
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
    fn the_payload_cannot_forge_route_and_labels() {
        let origin = |labels: &[(&str, &str)]| super::super::Origin {
            labels: labels.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
            source: None,
        };
        let routes = [("default", origin(&[])), ("east", origin(&[("region", "e"), ("tier", "")]))];
        let origins: Origins = routes.map(|(name, origin)| (name.to_owned(), origin)).into();
        let template = "{ingress}/{labels.region}/{labels.region|none}/{labels.tier|x}";
        let template = Template::parse(template).unwrap().with_labels(&origins).unwrap();
        let forged = r#"{"ingress":"f","labels":{"region":"f"},"labels.region":"f","labels.tier":"f"}"#;
        let event = Event::parse(forged, 9, Arrival(0)).unwrap();
        let render = |event: &Event| written(&template, event);
        assert_eq!(render(&event), "default//none/x");
        assert_eq!(render(&event.clone().by(Some("east".into()))), "east/e/e/");
        assert_eq!(render(&event.by(Some("gone".into()))), "gone//none/x");

        let problem = Template::parse("{labels.regoin}").unwrap().with_labels(&origins).unwrap_err();
        assert!(problem.contains("`regoin`") && problem.contains("region, tier"), "{problem}");
    }

    #[test]
    fn mistakes_are_located() {
        for (template, column) in [("a{b", 2), ("ü{b{c}", 2), ("a}", 2), ("{}", 1), ("{|x}", 1), ("a{ b}", 2)] {
            assert_eq!(Template::parse(template).unwrap_err().column, column, "{template}");
        }
    }
}
