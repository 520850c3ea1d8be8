//! What a request is answered with that is not accepted: problem details (RFC 9457).

use super::auth::Denied;
use super::decode::DecodeError;
use super::routes::Route;
use crate::http::{Answer, BodyUnread};
use crate::spool::AppendError;
use http_body_util::Full;
use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};

/// Why a request was not accepted.
pub struct Refusal {
    pub status: StatusCode,
    pub detail: String,
    pub place: Option<(usize, usize)>,
    pub header: Option<Box<(header::HeaderName, HeaderValue)>>,
    pub body_unread: bool,
}

/// For this reason.
pub fn refusal(status: StatusCode, detail: impl Into<String>) -> Refusal {
    Refusal { status, detail: detail.into(), place: None, header: None, body_unread: false }
}

/// The same answer whichever check it was: one that needed the body ends the connection too.
pub fn unauthorized(route: &Route, denied: Denied) -> Refusal {
    route.denied(denied);
    let header = route.auth.challenge().map(|challenge| Box::new((header::WWW_AUTHENTICATE, challenge)));
    let refusal = refusal(StatusCode::UNAUTHORIZED, "the request does not show that it may be sent");
    Refusal { header, body_unread: true, ..refusal }
}

impl From<DecodeError> for Refusal {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::Malformed { detail, place } => Refusal { place, ..refusal(StatusCode::BAD_REQUEST, detail) },
            DecodeError::TooMany { .. } => refusal(StatusCode::PAYLOAD_TOO_LARGE, error.to_string()),
        }
    }
}

impl From<AppendError> for Refusal {
    fn from(error: AppendError) -> Self {
        let seconds = match &error {
            AppendError::TooLarge { .. } => return refusal(StatusCode::PAYLOAD_TOO_LARGE, error.to_string()),
            AppendError::Full { retry_after } => retry_after.as_secs().max(1),
            AppendError::Failed { .. } | AppendError::Closed => 5,
        };
        Refusal {
            header: Some(Box::new((header::RETRY_AFTER, HeaderValue::from(seconds)))),
            ..refusal(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
        }
    }
}

impl Refusal {
    /// The answer to the client.
    pub fn answer(self) -> Answer {
        tracing::debug!(status = self.status.as_u16(), detail = self.detail, "request refused");
        let mut problem = serde_json::json!({
            "title": self.status.canonical_reason().unwrap_or_default(),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        if let (Some((line, column)), Some(members)) = (self.place, problem.as_object_mut()) {
            members.insert("line".into(), line.into());
            members.insert("column".into(), column.into());
        }
        let mut answer = Response::new(Full::new(format!("{problem}\n").into()));
        *answer.status_mut() = self.status;
        answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        answer.headers_mut().extend(self.header.map(|header| (Some(header.0), header.1)));
        if self.body_unread {
            answer.extensions_mut().insert(BodyUnread);
        }
        answer
    }
}
