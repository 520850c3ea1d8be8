//! Templates such as `cdr.{team|unassigned}`: text with fields of the event in it.

use super::{Encode, Origins, View};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// The fallback of `{team}` unless the template has another.
const NO_TEAM: &str = "unassigned";

/// A compiled template.
///
/// `{name}` is a top-level field, `{name.inner}` a field in a nested object, or in a text that holds JSON. `{name|text}` has a
/// fallback for a field that is missing, null or empty; `{{` and `}}` are braces. `{conversation_uuid}` is the conversation, which
/// every event has. The payload has no influence on `{ingress}`, the route that the event came by, on `{labels.name}`, a label of
/// that route, and on `{query.name}`, a parameter of the query beside the body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Placeholder { source: Source, fallback: String },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    Ingress,
    Label { name: String, values: BTreeMap<String, String> },
    Query(String),
    Conversation,
    Field { name: String, path: Vec<String> },
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
                let placeholder = placeholder(field).map_err(|problem| error(position, problem))?;
                if !text.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut text)));
                }
                parts.push(placeholder);
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

    /// The same template for events of these routes. Refuses a label that no route has, and a query parameter that every route
    /// keeps secret: neither could ever have a value.
    pub fn with_origins(mut self, origins: &Origins) -> Result<Self, String> {
        for part in &mut self.parts {
            match part {
                Part::Placeholder { source: Source::Label { name, values }, .. } => {
                    let labels = origins.iter().filter_map(|(route, origin)| Some((route, origin.labels.get(name)?)));
                    *values = labels.map(|(route, value)| (route.clone(), value.clone())).collect();
                    if values.is_empty() {
                        let labels: Vec<&str> =
                            origins.values().flat_map(|origin| origin.labels.keys()).map(String::as_str).collect();
                        let labels = if labels.is_empty() { "none".to_owned() } else { labels.join(", ") };
                        return Err(format!("no route of the ingress has a label `{name}`; there are: {labels}"));
                    }
                }
                Part::Placeholder { source: Source::Query(name), .. }
                    if !origins.is_empty()
                        && origins
                            .values()
                            .all(|origin| origin.ignores_query || origin.secret_parameters.contains(name)) =>
                {
                    return Err(format!(
                        "{{query.{name}}} can never have a value: `{name}` is a secret, or the signature does not cover the query"
                    ));
                }
                _ => {}
            }
        }
        Ok(self)
    }

    /// The text for an event, each field written by `encode`.
    pub fn render(&self, view: &View<'_>, encode: Encode) -> String {
        let mut out = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Placeholder { source, fallback } => {
                    encode(&source.value(view).unwrap_or(Cow::Borrowed(fallback)), &mut out);
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

    /// The text with `stand_in` for every field.
    pub fn pattern(&self, stand_in: char) -> String {
        let mut out = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Placeholder { .. } => out.push(stand_in),
            }
        }
        out
    }
}

/// Compiles the text between braces.
fn placeholder(field: &str) -> Result<Part, &'static str> {
    let (name, fallback) = field.split_once('|').unwrap_or((field, if field == "team" { NO_TEAM } else { "" }));
    let path: Vec<String> = name.split('.').map(str::to_owned).collect();
    if field.contains('{') || name.trim() != name || path.iter().any(String::is_empty) {
        return Err("a field has no proper name");
    }
    let source = match name.split_once('.') {
        None if name == "ingress" => Source::Ingress,
        None if name == "conversation_uuid" => Source::Conversation,
        Some(("ingress" | "conversation_uuid", _)) => {
            return Err("a field can never have a value: it is within a text");
        }
        Some(("labels", label)) => Source::Label { name: label.to_owned(), values: BTreeMap::new() },
        Some(("query", parameter)) => Source::Query(parameter.to_owned()),
        _ => Source::Field { name: name.to_owned(), path },
    };
    Ok(Part::Placeholder { source, fallback: fallback.to_owned() })
}

impl Source {
    /// The value for an event; `None` if it has none.
    fn value<'a>(&'a self, view: &'a View<'_>) -> Option<Cow<'a, str>> {
        match self {
            Self::Ingress => Some(view.event.ingress().into()),
            Self::Label { values, .. } => values.get(view.event.ingress()).map(Into::into),
            Self::Query(name) => view.event.query_parameter(name).map(Into::into),
            Self::Conversation => Some(view.event.conversation().into()),
            Self::Field { name, path } if path.len() == 1 => view.fields.text(name),
            // A top-level name may have dots in it.
            Self::Field { name, path } => view.fields.text(name).or_else(|| view.fields.nested(path).map(Cow::Owned)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Arrival, Event};

    fn written(template: &Template, event: &Event) -> String {
        template.render(&View::of(event), |value, out| out.push_str(value))
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
            ..Default::default()
        };
        let routes = [("default", origin(&[])), ("east", origin(&[("region", "e"), ("tier", "")]))];
        let origins: Origins = routes.map(|(name, origin)| (name.to_owned(), origin)).into();
        let template = "{ingress}/{labels.region}/{labels.region|none}/{labels.tier|x}";
        let template = Template::parse(template).unwrap().with_origins(&origins).unwrap();
        let forged = r#"{"ingress":"f","labels":{"region":"f"},"labels.region":"f","labels.tier":"f"}"#;
        let event = Event::parse(forged, 9, Arrival(0)).unwrap();
        let render = |event: &Event| written(&template, event);
        assert_eq!(render(&event), "default//none/x");
        assert_eq!(render(&event.clone().by(Some("east".into()))), "east/e/e/");
        assert_eq!(render(&event.by(Some("gone".into()))), "gone//none/x");

        let problem = Template::parse("{labels.regoin}").unwrap().with_origins(&origins).unwrap_err();
        assert!(problem.contains("`regoin`") && problem.contains("region, tier"), "{problem}");
    }

    #[test]
    fn nested_fields_and_query_parameters_have_values() {
        for params in [r#"{"tenant":"acme"}"#, r#""{\"tenant\":\"acme\"}""#] {
            let event = format!("{{\"extra_params\":{params},\"a.b\":1,\"query\":{{\"tenant\":\"forged\"}}}}");
            let template = "{extra_params.tenant}/{extra_params.none|-}/{a.b}/{query.tenant|none}";
            assert_eq!(render(template, &event), "acme/-/1/none");
            let event =
                Event::parse(&event, 9, Arrival(0)).unwrap().with_query(Some("x=1&tenant=a%26b&tenant=".into()));
            assert_eq!(written(&Template::parse("{query.tenant}").unwrap(), &event), "a&b");
        }
    }

    #[test]
    fn a_field_that_can_never_have_a_value_is_refused() {
        let secret = super::super::Origin { secret_parameters: vec!["token".into()], ..Default::default() };
        let open = super::super::Origin::default();
        let template = || Template::parse("{query.token}").unwrap();
        let origins = |routes: &[(&str, &super::super::Origin)]| -> Origins {
            routes.iter().map(|(name, origin)| (name.to_string(), (*origin).clone())).collect()
        };
        assert!(template().with_origins(&origins(&[("a", &secret)])).unwrap_err().contains("`token`"));
        assert!(template().with_origins(&origins(&[("a", &secret), ("b", &open)])).is_ok());
        for template in ["{ingress.x}", "{conversation_uuid.x}", "{query.}", "{labels.}", "{a..b}", "{.a}"] {
            assert!(Template::parse(template).is_err(), "{template}");
        }
    }

    #[test]
    fn mistakes_are_located() {
        for (template, column) in [("a{b", 2), ("ü{b{c}", 2), ("a}", 2), ("{}", 1), ("{|x}", 1), ("a{ b}", 2)] {
            assert_eq!(Template::parse(template).unwrap_err().column, column, "{template}");
        }
    }
}
