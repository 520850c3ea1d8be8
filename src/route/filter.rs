//! `when`: a CEL expression on `event`, and on the route it came by, that decides whether a sink wants a record.

use crate::event::Event;
use cel::common::ast::{CallExpr, EntryExpr, Expr, IdedExpr, LiteralValue, MapExpr, StructExpr};
use cel::extractors::This;
use cel::objects::Key;
use cel::{Context, ExecutionError, Program, Value};
use regex_lite::Regex;
use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// A compiled expression.
pub struct Filter {
    program: Program,
    /// All functions there are. To make this takes many times as long as to evaluate an expression.
    functions: Context<'static, 'static>,
    source: String,
}

/// The patterns of `matches` that stand in an expression, compiled.
type Patterns = HashMap<String, Regex>;

/// Why an expression could not be compiled or evaluated. Never holds values of the event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FilterError(String);

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Filter").field(&self.source).finish()
    }
}

impl Filter {
    /// Compiles `source`, which may speak of `event` and `ingress` alone.
    pub fn compile(source: &str) -> Result<Self, FilterError> {
        let compiled = catch_unwind(|| Program::compile(source));
        let program = match compiled {
            Ok(Ok(program)) => program,
            Ok(Err(error)) => return Err(FilterError(format!("not a CEL expression: {error}"))),
            Err(_) => return Err(FilterError("not a CEL expression".into())),
        };
        if let Some(unknown) = unknown(program.expression(), &mut vec!["event", "ingress"]) {
            return Err(FilterError(format!("`{unknown}` is unknown; fields are written event.{unknown}")));
        }
        let mut patterns = Patterns::new();
        compile_patterns(program.expression(), &mut patterns)?;
        let mut functions = Context::default();
        let added = functions.add_function("matches", move |This(text): This<Arc<String>>, pattern: Arc<String>| {
            matches(&patterns, &text, &pattern)
        });
        added.map_err(|error| FilterError(error.to_string()))?;
        Ok(Self { program, functions, source: source.to_owned() })
    }

    /// Whether the expression holds for `event`.
    pub fn passes(&self, event: &Event) -> Result<bool, FilterError> {
        let parsed: serde_json::Value =
            serde_json::from_str(event.payload()).map_err(|error| FilterError(error.to_string()))?;
        // A panic in the library must not stop a sink.
        let result = catch_unwind(AssertUnwindSafe(|| {
            let mut context = self.functions.new_inner_scope();
            context.add_variable_from_value("event", convert(parsed));
            context.add_variable_from_value("ingress", event.ingress());
            self.program.execute(&context)
        }));
        match result {
            Ok(Ok(Value::Bool(passes))) => Ok(passes),
            Ok(Ok(_)) => Err(FilterError("the result is neither true nor false".into())),
            Ok(Err(ExecutionError::NoSuchKey(name))) => {
                Err(FilterError(format!("the event has no field `{name}`; ask has(event.{name}) first")))
            }
            Ok(Err(ExecutionError::UndeclaredReference(name))) => Err(FilterError(format!("`{name}` is not defined"))),
            Ok(Err(_)) => Err(FilterError("an operator or function does not fit the type of the event's field".into())),
            Err(_) => Err(FilterError("the evaluation failed".into())),
        }
    }
}

/// Compiles what is sure to be asked for, and finds what no such pattern can be.
fn compile_patterns(expression: &IdedExpr, patterns: &mut Patterns) -> Result<(), FilterError> {
    if let Expr::Call(CallExpr { func_name, args, .. }) = &expression.expr
        && func_name == "matches"
        && let Some(Expr::Literal(LiteralValue::String(pattern))) = args.last().map(|last| &last.expr)
    {
        let compiled = compile_pattern(pattern.inner()).map_err(|problem| FilterError(problem.to_string()))?;
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

/// What an expression is made of.
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

/// A name that nothing in scope has: neither `event`, `ingress` nor a variable of the macro (`all`, `exists`, `map`, …) around it.
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

/// Whole numbers become `int`, so that they compare with the literals of an expression.
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
        Filter::compile(when).unwrap().passes(&Event::parse(event, 64, Arrival(0)).unwrap())
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
        assert_eq!(filter.passes(&event), Ok(false));
        assert_eq!(filter.passes(&event.by(Some("east".into()))), Ok(true));
    }

    #[test]
    fn failures_name_the_field_but_not_its_value() {
        let error = passes("event.team == 'x'", "{}").unwrap_err();
        assert!(error.to_string().contains("`team`"), "{error}");
        let error = passes("event.from + 1 > 2", r#"{"from":"440000000001"}"#).unwrap_err();
        assert!(!error.to_string().contains("44"), "{error}");
        assert!(passes("event.from", r#"{"from":"440000000001"}"#).is_err());
        assert!(passes("'x'.matches(event.from)", r#"{"from":"44000(0"}"#).is_err_and(|error| !error.0.contains("44")));
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
