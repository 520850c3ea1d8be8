//! The pages of the admin port.

use super::{header_too_large, reference, response};
use crate::admin::{METHODS, METRICS, Page};
use hyper::Method;
use serde_json::{Map, Value, json};

pub const TAG: &str = "operations";

/// The path items of all pages.
pub fn paths() -> Map<String, Value> {
    Page::ALL.map(|page| (page.path().to_owned(), item(page))).into_iter().collect()
}

fn item(page: Page) -> Value {
    let mut item = Map::new();
    let server = json!({ "url": "/", "description": "The admin port, where this document is." });
    item.insert("servers".into(), json!([server]));
    for method in METHODS {
        item.insert(method.as_str().to_ascii_lowercase(), operation(page, &method));
    }
    item.into()
}

fn operation(page: Page, method: &Method) -> Value {
    let (id, summary, media_type, schema) = match page {
        Page::Live => ("livez", "Whether the process answers", "text/plain", json!({ "const": "ok\n" })),
        Page::Ready => {
            let summary = "Whether webhooks can be stored, and every required sink takes messages";
            ("readyz", summary, "application/json", reference("schemas", "Readiness"))
        }
        Page::IngressReady => {
            let schema = reference("schemas", "IngressReadiness");
            ("readyz_ingress", "Whether webhooks can be stored", "application/json", schema)
        }
        Page::Metrics => ("metrics", "Metrics for Prometheus", METRICS, json!({ "type": "string" })),
        Page::OpenApi => ("openapi", "This document", "application/json", json!({ "type": "object" })),
    };
    let has_body = *method != Method::HEAD;
    let content = has_body.then_some((media_type, schema));
    let mut responses = Map::from_iter([header_too_large()]);
    match page {
        Page::Ready | Page::IngressReady => {
            responses.insert("200".into(), response("It is ready.", Value::Null, content.clone()));
            responses.insert("503".into(), response("It is not ready.", Value::Null, content));
        }
        Page::Live | Page::Metrics | Page::OpenApi => {
            responses.insert("200".into(), response(summary, Value::Null, content));
        }
    }
    let allow = json!({ "Allow": { "required": true, "schema": { "type": "string" } } });
    let text = has_body.then(|| ("text/plain", json!({ "type": "string" })));
    responses.insert("405".into(), response("Another method.", allow, text));
    let method = method.as_str().to_ascii_lowercase();
    json!({ "tags": [TAG], "operationId": format!("admin_{id}_{method}"), "summary": summary, "security": [], "responses": responses })
}
