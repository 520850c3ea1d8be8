//! The HTTP API of a bridge, as an OpenAPI 3.1 document: its own routes, methods, credentials and bounds, and never a secret.
//!
//! It is made of what the service itself goes by ([`Reason`](crate::ingress::Reason), [`Page`](crate::admin::Page), the routes'
//! settings), so that it cannot tell of another bridge than this one.
//!
//! The two ports are two servers, and each path names its own. That of the pages is a relative URL: wherever the document was
//! fetched from, they are there too. Tools that look only at the document's own server find the ingress, which is what clients
//! come for.

mod credential;
mod ingress;
mod pages;
mod schemas;

use crate::config::Config;
use serde_json::{Map, Value, json};
use std::net::SocketAddr;

/// What hyper answers by itself, on both ports and without a body, when a header is larger than it may be.
const HEADER_TOO_LARGE: u16 = 431;

/// The document of a bridge with this configuration, JSON, whose ingress listens on `address`.
pub fn document(config: &Config, address: SocketAddr) -> String {
    let server = ingress::server(&config.ingress, address);
    let mut paths = pages::paths();
    // A route may have the path of a page, which is on another port; a document cannot have both, and the route is what differs
    // from one bridge to another.
    paths.extend(ingress::paths(&config.ingress, &server));
    let document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "cdrelay",
            "summary": "Takes telephony call-detail-record webhooks and publishes them to Kafka, NATS or stdout.",
            "description": "A 2xx to a webhook means that its events are on disk and will reach every sink, in order within their \
                            conversation, at least once. Anything else means that nothing of the request was stored. Other paths are \
                            answered with 404. A request whose header cannot be understood gets a 400 without a body.",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "Apache License 2.0", "identifier": "Apache-2.0" },
        },
        "servers": [server],
        "tags": [
            { "name": ingress::TAG, "description": "What senders call." },
            { "name": pages::TAG, "description": "Probes, metrics and this document, on the admin port, which asks nobody who they are." },
        ],
        "security": [],
        "paths": paths,
        "components": {
            "schemas": schemas::all(&config.ingress),
            "responses": ingress::responses(),
            "securitySchemes": ingress::security_schemes(&config.ingress),
        },
    });
    format!("{document:#}\n")
}

fn reference(kind: &str, name: &str) -> Value {
    json!({ "$ref": format!("#/components/{kind}/{name}") })
}

/// An answer; one to HEAD has a body of no media type.
fn response(description: &str, headers: Value, content: Option<(&str, Value)>) -> Value {
    let mut response = Map::new();
    response.insert("description".into(), description.into());
    if headers.as_object().is_some_and(|headers| !headers.is_empty()) {
        response.insert("headers".into(), headers);
    }
    if let Some((media_type, schema)) = content {
        response.insert("content".into(), json!({ media_type: { "schema": schema } }));
    }
    response.into()
}

fn header_too_large() -> (String, Value) {
    let description = "The header of the request has more than 32 KiB, or more than 100 fields.";
    (HEADER_TOO_LARGE.to_string(), response(description, Value::Null, None))
}

#[cfg(test)]
mod tests;
