//! `when`: a CEL expression on an event, its query and its route that decides whether a sink wants a record.

use super::View;
use crate::event::{Event, json};
use cel::common::ast::{CallExpr, EntryExpr, Expr, IdedExpr, LiteralValue, MapExpr, StructExpr};
use cel::extractors::This;
use cel::objects::Key;
use cel::{Context, ExecutionError, Program, Value};
use regex_lite::Regex;
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// The variables of an expression.
const VARIABLES: [&str; 3] = ["event", "query", "ingress"];

/// A compiled expression.
pub struct Filter {
    program: Program,
    /// All functions. To make this takes many times as long as to evaluate an expression.
    functions: Context<'static, 'static>,
    source: String,
    /// The fields that the expression names as `event.name`; `None` if it uses `event` in another way, and so needs all.
    fields: Option<BTreeSet<String>>,
}

/// The constant patterns of `matches` in an expression, compiled.
type Patterns = HashMap<String, Regex>;

/// Why an expression has no result for an event. Never holds values of the event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// A field is missing or of another type.
    #[error("`when` is undecided: {0}")]
    Undecided(String),
    /// The event cannot be read, or the evaluation failed.
    #[error("`when` cannot be evaluated: {0}")]
    Failed(String),
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Filter").field(&self.source).finish()
    }
}

impl Filter {
    /// Compiles `source`.
    pub fn compile(source: &str) -> Result<Self, String> {
        // The parser panics on some texts.
        let program = match catch_unwind(|| Program::compile(source)) {
            Ok(Ok(program)) => program,
            Ok(Err(error)) => return Err(format!("not a CEL expression: {error}")),
            Err(_) => return Err("not a CEL expression".into()),
        };
        if let Some(unknown) = unknown(program.expression(), &mut VARIABLES.to_vec()) {
            return Err(format!("`{unknown}` is unknown; fields are written event.{unknown}"));
        }
        let mut patterns = Patterns::new();
        compile_patterns(program.expression(), &mut patterns)?;
        let mut functions = Context::default();
        let added = functions.add_function("matches", move |This(text): This<Arc<String>>, pattern: Arc<String>| {
            matches(&patterns, &text, &pattern)
        });
        added.map_err(|error| error.to_string())?;
        let fields = event_fields(program.expression());
        Ok(Self { program, functions, source: source.to_owned(), fields })
    }

    /// Whether the expression holds for an event. Only the fields that it names are read.
    pub fn passes(&self, view: &View<'_>) -> Result<bool, FilterError> {
        let mut context = self.functions.new_inner_scope();
        let mut fields = HashMap::<Key, Value>::new();
        for member in view.fields.members() {
            let name = str::from_utf8(&member.name);
            match (&self.fields, name) {
                (Some(needed), Ok(name)) if !needed.contains(name) => {}
                (Some(_), Err(_)) => {}
                (_, Ok(name)) => drop(fields.insert(name.to_owned().into(), value(name, &member.value)?)),
                (None, Err(_)) => return Err(FilterError::Failed("the name of a field is no text".into())),
            }
        }
        context.add_variable_from_value("event", Value::Map(fields.into()));
        if self.program.references().has_variable("query") {
            context.add_variable_from_value("query", query(view.event));
        }
        context.add_variable_from_value("ingress", view.event.ingress());
        // A panic in the library must not stop a sink.
        match catch_unwind(AssertUnwindSafe(|| self.program.execute(&context))) {
            Ok(Ok(Value::Bool(passes))) => Ok(passes),
            Ok(Ok(_)) => Err(FilterError::Undecided("the result is neither true nor false".into())),
            Ok(Err(error)) => Err(classify(error)),
            Err(_) => Err(FilterError::Failed("the evaluation failed".into())),
        }
    }
}

/// The value of a field.
fn value(name: &str, value: &json::Value<'_>) -> Result<Value, FilterError> {
    let unreadable = |problem: &dyn fmt::Display| FilterError::Failed(format!("`{name}` cannot be read: {problem}"));
    match value {
        json::Value::Text(text) => match str::from_utf8(text) {
            Ok(text) => Ok(Value::String(Arc::new(text.to_owned()))),
            Err(_) => Err(unreadable(&"it holds half a surrogate pair")),
        },
        json::Value::Json(raw) => serde_json::from_str(raw.get()).map(convert).map_err(|error| unreadable(&error)),
    }
}

/// Sorts errors by their cause: the event's fields, or the expression.
fn classify(error: ExecutionError) -> FilterError {
    match error {
        ExecutionError::NoSuchKey(name) => {
            FilterError::Undecided(format!("there is no field `{name}`; ask has(event.{name}) first"))
        }
        ExecutionError::UndeclaredReference(name) => FilterError::Failed(format!("`{name}` is not defined")),
        ExecutionError::Overflow(..) => FilterError::Failed("a number is too large".into()),
        ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => {
            FilterError::Failed("a division by zero".into())
        }
        ExecutionError::FunctionError { function, .. } => {
            FilterError::Failed(format!("the function `{function}` failed"))
        }
        ExecutionError::InternalError(_) => FilterError::Failed("the evaluation failed".into()),
        _ => FilterError::Undecided("an operator or function does not fit the type of a field".into()),
    }
}

/// The parameters of the query beside the body.
fn query(event: &Event) -> Value {
    let parameters = form_urlencoded::parse(event.query().unwrap_or_default().as_bytes());
    let map: HashMap<Key, Value> = parameters
        .map(|(name, value)| (Key::from(name.into_owned()), Value::String(Arc::new(value.into_owned()))))
        .collect();
    Value::Map(map.into())
}

/// Compiles the constant patterns of an expression.
fn compile_patterns(expression: &IdedExpr, patterns: &mut Patterns) -> Result<(), String> {
    if let Expr::Call(CallExpr { func_name, args, .. }) = &expression.expr
        && func_name == "matches"
        && let Some(Expr::Literal(LiteralValue::String(pattern))) = args.last().map(|last| &last.expr)
    {
        let compiled = compile_pattern(pattern.inner())?;
        patterns.insert(pattern.inner().to_owned(), compiled);
    }
    parts(expression).into_iter().try_for_each(|part| compile_patterns(part, patterns))
}

fn compile_pattern(pattern: &str) -> Result<Regex, String> {
    Regex::new(pattern).map_err(|error| format!("{pattern:?} is not a regular expression: {error}"))
}

/// The function `matches` of CEL.
fn matches(patterns: &Patterns, text: &str, pattern: &str) -> Result<bool, ExecutionError> {
    if let Some(compiled) = patterns.get(pattern) {
        return Ok(compiled.is_match(text));
    }
    let compiled = compile_pattern(pattern);
    compiled
        .map(|compiled| compiled.is_match(text))
        .map_err(|problem| ExecutionError::function_error("matches", problem))
}

/// The direct parts of an expression.
fn parts(expression: &IdedExpr) -> Vec<&IdedExpr> {
    match &expression.expr {
        Expr::Select(select) => vec![&select.operand],
        Expr::Call(call) => call.target.as_deref().into_iter().chain(&call.args).collect(),
        Expr::List(list) => list.elements.iter().collect(),
        Expr::Map(MapExpr { entries }) | Expr::Struct(StructExpr { entries, .. }) => entries
            .iter()
            .flat_map(|entry| match &entry.expr {
                EntryExpr::MapEntry(entry) => vec![&entry.key, &entry.value],
                EntryExpr::StructField(field) => vec![&field.value],
            })
            .collect(),
        Expr::Comprehension(inner) => {
            vec![&inner.iter_range, &inner.accu_init, &inner.loop_cond, &inner.loop_step, &inner.result]
        }
        Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => Vec::new(),
    }
}

/// The fields named as `event.name`; `None` if `event` is used in another way.
fn event_fields(expression: &IdedExpr) -> Option<BTreeSet<String>> {
    let is_event = |expression: &IdedExpr| matches!(&expression.expr, Expr::Ident(name) if name == "event");
    match &expression.expr {
        Expr::Select(select) if is_event(&select.operand) => Some([select.field.clone()].into()),
        _ if is_event(expression) => None,
        _ => parts(expression).into_iter().map(event_fields).try_fold(BTreeSet::new(), |mut all, fields| {
            all.extend(fields?);
            Some(all)
        }),
    }
}

/// A name that is not in scope: neither one of [`VARIABLES`] nor a variable of a macro (`all`, `exists`, `map`, …) around it.
fn unknown<'a>(expression: &'a IdedExpr, scope: &mut Vec<&'a str>) -> Option<&'a str> {
    match &expression.expr {
        Expr::Ident(name) => (!scope.contains(&name.as_str())).then_some(name),
        Expr::Comprehension(inner) => {
            let found = unknown(&inner.iter_range, scope).or_else(|| unknown(&inner.accu_init, scope));
            let outside = scope.len();
            scope.extend([inner.iter_var.as_str(), inner.accu_var.as_str()]);
            scope.extend(inner.iter_var2.as_deref());
            let parts = [&inner.loop_cond, &inner.loop_step, &inner.result];
            let found = found.or_else(|| parts.into_iter().find_map(|part| unknown(part, scope)));
            scope.truncate(outside);
            found
        }
        _ => parts(expression).into_iter().find_map(|part| unknown(part, scope)),
    }
}

/// Integers become `int`, so that they compare with the literals of an expression; CEL has only 64-bit floats for other numbers.
fn convert(json: serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(truth) => Value::Bool(truth),
        serde_json::Value::Number(number) => match number.as_i64() {
            Some(whole) => Value::Int(whole),
            None => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::String(Arc::new(text)),
        serde_json::Value::Array(items) => Value::List(Arc::new(items.into_iter().map(convert).collect::<Vec<_>>())),
        serde_json::Value::Object(members) => {
            let map: HashMap<Key, Value> =
                members.into_iter().map(|(name, value)| (name.into(), convert(value))).collect();
            Value::Map(map.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Arrival;

    fn passes(when: &str, event: &str) -> Result<bool, FilterError> {
        Filter::compile(when).unwrap().passes(&View::of(&Event::parse(event, 128, Arrival(0)).unwrap()))
    }

    #[test]
    fn expressions_see_the_event() {
        let event = r#"{"type":"cdr","waitedsec":127,"rate":0.5,"big":18446744073709551615,"record":true,"x":{"a":[1,"b"]},"team":null}"#;
        for when in [
            "event.type == 'cdr'",
            "event.waitedsec > 30",
            "event.rate < 1.0",
            "event.record",
            "event.x.a[1] == 'b'",
            "event.team == null",
            "has(event.team) && !has(event.nobody)",
            "event.type.startsWith('c')",
            "event.type.matches('^c.r$')",
            "event.type.matches(event.type)",
            "matches(event.type, 'd')",
            "event.x.a.exists(item, item != 1 && item.matches('[a-c]'))",
            "!event.type.matches('(?i)^D')",
            "event.type in ['cdr', 'event']",
            "true",
            "size(event.x.a) == 2",
            "event.x.a.exists(item, item == 'b')",
            "event.x.a.filter(i, event.x.a.exists(j, i == j)).size() == 2",
            "{'a': event.type}.a == 'cdr'",
        ] {
            assert_eq!(passes(when, event), Ok(true), "{when}");
        }
        assert_eq!(passes("event.type == 'event'", event), Ok(false));
    }

    #[test]
    fn expressions_see_the_route_whatever_the_payload_says() {
        let event = Event::parse(r#"{"ingress":"forged"}"#, 9, Arrival(0)).unwrap();
        let filter = Filter::compile("ingress == 'east' && event.ingress == 'forged'").unwrap();
        assert_eq!(filter.passes(&View::of(&event)), Ok(false));
        assert_eq!(filter.passes(&View::of(&event.by(Some("east".into())))), Ok(true));
    }

    #[test]
    fn a_missing_field_or_one_of_another_type_leaves_it_undecided() {
        let from = r#"{"from":"440000000001","record":"true"}"#;
        for when in [
            "event.team == 'x'",
            "event.team != 'x'",
            "event.from + 1 > 2",
            "event.from > 2",
            "event.from",
            "event.record",
            "event.from.x == 1",
            "event.from[0] == '4'",
            "query.tenant == 'acme'",
            "event.from.exists(item, item == 'x')",
        ] {
            let error = passes(when, from).unwrap_err();
            assert!(matches!(error, FilterError::Undecided(_)), "{when}: {error}");
            assert!(!error.to_string().contains("44"), "{error}");
        }
        assert!(passes("event.team == 'x'", "{}").unwrap_err().to_string().contains("`team`"));
    }

    #[test]
    fn an_event_that_cannot_be_read_or_an_evaluation_that_fails_decides_nothing() {
        let deep = format!("{{\"x\":{}{}}}", "[".repeat(127), "]".repeat(127));
        for unreadable in [r#"{"x":1e999}"#, r#"{"x":"\ud800"}"#, r#"{"x":1,"\udc00":1}"#] {
            let event = Event::parse(unreadable, 128, Arrival(0)).unwrap();
            let result = |when: &str| Filter::compile(when).unwrap().passes(&View::of(&event));
            for when in ["event.x != 'y'", "has(event.x) && event.x != 'y'", "event == event", "event['x'] != 'y'"] {
                let fails = matches!(result(when), Err(FilterError::Failed(_)));
                assert!(fails || unreadable.contains("udc00") && when.contains("event.x"), "{when} of {unreadable}");
            }
            // Conditions on the route or on other fields do not need the one that cannot be read.
            assert_eq!(result("ingress == 'east'"), Ok(false));
            assert_eq!(result("has(event.type)"), Ok(false));
        }
        // No depth that the ingress can allow is too deep.
        assert_eq!(passes("event.x != 'y'", &deep), Ok(true));
        for (when, event) in [
            ("event.n + 9223372036854775807 > 0", r#"{"n":1}"#),
            ("1 / event.n > 0", r#"{"n":0}"#),
            ("'x'.matches(event.from)", r#"{"from":"44000(0"}"#),
        ] {
            let error = passes(when, event).unwrap_err();
            assert!(matches!(error, FilterError::Failed(_)) && !error.to_string().contains("44"), "{when}: {error}");
        }
    }

    #[test]
    fn expressions_see_the_query_beside_the_body() {
        let event = Event::parse(r#"{"query":{"tenant":"forged"}}"#, 9, Arrival(0)).unwrap();
        let filter = Filter::compile("query.tenant == 'acme'").unwrap();
        assert!(matches!(filter.passes(&View::of(&event)), Err(FilterError::Undecided(_))));
        let passes = |query: &str| filter.passes(&View::of(&event.clone().with_query(Some(query.into()))));
        assert_eq!((passes("tenant=acme&lead=42"), passes("tenant=other")), (Ok(true), Ok(false)));
    }

    #[test]
    fn mistakes_are_found_at_load() {
        for when in [
            "",
            "event.type ==",
            "type == 'cdr'",
            "evnt.type == 'cdr'",
            "event.type = 'x'",
            "(((",
            "event.x.a.exists(i, i == j)",
            "[1].all(i, i > 0) && i > 0",
            "event.type.matches('(')",
            "[event.type].exists(i, i == 'cdr' || i.matches('a{9999999}'))",
        ] {
            assert!(Filter::compile(when).is_err(), "{when}");
        }
    }
}
