//! Why a request is refused, and the response that says so.

use super::auth::Denied;
use super::decode::DecodeError;
use super::decompress::SUPPORTED;
use super::routes::Route;
use crate::server::problem;
use crate::spool::AppendError;
use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};
use std::net::IpAddr;

/// A refused request.
#[derive(Debug)]
pub struct Problem {
    pub status: StatusCode,
    pub detail: String,
    /// Line and column, counted from 1, where the body stops making sense.
    pub position: Option<(usize, usize)>,
    /// The value of the header field that tells the client what to do instead.
    pub hint: Option<HeaderValue>,
}

impl Problem {
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), position: None, hint: None }
    }

    /// A request that may succeed after so many seconds.
    pub fn unavailable(retry_after: u64, detail: impl Into<String>) -> Self {
        Self { hint: Some(retry_after.into()), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, detail) }
    }

    /// The same response whichever check failed: a sender must not learn which one it was.
    pub fn unauthorized(route: &Route, denied: Denied, peer: IpAddr) -> Self {
        route.denied(denied, peer);
        Self { hint: route.auth.challenge(), ..Self::new(StatusCode::UNAUTHORIZED, "authentication failed") }
    }

    /// The same response for a path without a route, and for a wrong secret in a path.
    pub fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "nothing is here")
    }

    pub fn method_not_allowed(route: &Route) -> Self {
        let (methods, allow) = route.methods();
        let detail = format!("webhooks come by {methods}");
        Self { hint: Some(allow), ..Self::new(StatusCode::METHOD_NOT_ALLOWED, detail) }
    }

    pub fn unsupported_encoding(encoding: &str) -> Self {
        let detail = format!("Content-Encoding {encoding} is not supported; use {SUPPORTED}, or none");
        let hint = Some(HeaderValue::from_static(SUPPORTED));
        Self { hint, ..Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail) }
    }

    /// The response to the client.
    pub fn response(self) -> Response<String> {
        let mut response = problem(self.status, &self.detail, self.position);
        let name = match self.status {
            StatusCode::UNAUTHORIZED => header::WWW_AUTHENTICATE,
            StatusCode::METHOD_NOT_ALLOWED => header::ALLOW,
            StatusCode::UNSUPPORTED_MEDIA_TYPE => header::ACCEPT_ENCODING,
            _ => header::RETRY_AFTER,
        };
        response.headers_mut().extend(self.hint.map(|value| (name, value)));
        response
    }
}

impl From<DecodeError> for Problem {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::Malformed { detail, place } => {
                Self { position: place, ..Self::new(StatusCode::BAD_REQUEST, detail) }
            }
            DecodeError::TooMany { .. } | DecodeError::TooLarge { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, error.to_string())
            }
        }
    }
}

impl From<AppendError> for Problem {
    fn from(error: AppendError) -> Self {
        let seconds = match &error {
            AppendError::TooLarge { .. } => return Self::new(StatusCode::PAYLOAD_TOO_LARGE, error.to_string()),
            AppendError::Full { retry_after } => retry_after.as_secs().max(1),
            _ => 5,
        };
        Self::unavailable(seconds, error.to_string())
    }
}
