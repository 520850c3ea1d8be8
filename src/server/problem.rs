//! Responses, and problem details (RFC 9457) for those that refuse a request.

use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::json;

/// The media type of a refusal.
pub const PROBLEM: &str = "application/problem+json";

/// A response with a body of this media type.
pub fn response(status: StatusCode, media_type: &'static str, body: impl Into<String>) -> Response<String> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

/// A refusal; `position` is the line and column, counted from 1, where the body stops making sense.
pub fn problem(status: StatusCode, detail: &str, position: Option<(usize, usize)>) -> Response<String> {
    let title = status.canonical_reason().unwrap_or_default();
    let mut problem = json!({ "title": title, "status": status.as_u16(), "detail": detail });
    if let (Some((line, column)), Some(members)) = (position, problem.as_object_mut()) {
        members.insert("line".into(), line.into());
        members.insert("column".into(), column.into());
    }
    response(status, PROBLEM, format!("{problem}\n"))
}
