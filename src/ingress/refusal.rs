//! What a request is answered with that is not accepted: problem details (RFC 9457).

use super::auth::Denied;
use super::decode::DecodeError;
use super::routes::Route;
use crate::http::Answer;
use crate::spool::AppendError;
use hyper::StatusCode;
use hyper::header::{self, HeaderName, HeaderValue};
use std::net::IpAddr;

/// What refused requests are answered with.
pub const PROBLEM: &str = "application/problem+json";

/// Of which kind a refusal is: there is no other, so that the description of the API can name all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No events can be made of it.
    Malformed,
    /// It does not show that it may be sent.
    Unauthorized,
    /// There is nothing at this path.
    NotFound,
    /// The route does not take the method.
    Method,
    /// The body takes too long.
    TooSlow,
    /// There is too much of it.
    TooLarge,
    /// The body is packed in a way that is not taken.
    Packing,
    /// It cannot be taken now.
    Unavailable,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Malformed,
        Self::Unauthorized,
        Self::NotFound,
        Self::Method,
        Self::TooSlow,
        Self::TooLarge,
        Self::Packing,
        Self::Unavailable,
    ];

    /// What it is answered with.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Malformed => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Packing => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The header field that tells the client what would help.
    pub fn remedy(self) -> Option<HeaderName> {
        match self {
            Self::Unauthorized => Some(header::WWW_AUTHENTICATE),
            Self::Method => Some(header::ALLOW),
            Self::Packing => Some(header::ACCEPT_ENCODING),
            Self::Unavailable => Some(header::RETRY_AFTER),
            Self::Malformed | Self::NotFound | Self::TooSlow | Self::TooLarge => None,
        }
    }
}

/// Why a request was not accepted.
pub struct Refusal {
    pub reason: Reason,
    pub detail: String,
    pub place: Option<(usize, usize)>,
    /// The value of the reason's header field.
    pub remedy: Option<HeaderValue>,
    pub body_unread: bool,
}

/// For this reason.
pub fn refusal(reason: Reason, detail: impl Into<String>) -> Refusal {
    Refusal { reason, detail: detail.into(), place: None, remedy: None, body_unread: false }
}

/// For now, and to be tried again after so many seconds.
pub fn unavailable(retry_after: u64, detail: impl Into<String>) -> Refusal {
    Refusal { remedy: Some(retry_after.into()), ..refusal(Reason::Unavailable, detail) }
}

/// The same answer whichever check it was: one that needed the body ends the connection too.
pub fn unauthorized(route: &Route, denied: Denied, peer: IpAddr) -> Refusal {
    route.denied(denied, peer);
    let refusal = refusal(Reason::Unauthorized, "the request does not show that it may be sent");
    Refusal { remedy: route.auth.challenge(), body_unread: true, ..refusal }
}

impl From<DecodeError> for Refusal {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::Malformed { detail, place } => Refusal { place, ..refusal(Reason::Malformed, detail) },
            DecodeError::TooMany { .. } => refusal(Reason::TooLarge, error.to_string()),
        }
    }
}

impl From<AppendError> for Refusal {
    fn from(error: AppendError) -> Self {
        let seconds = match &error {
            AppendError::TooLarge { .. } => return refusal(Reason::TooLarge, error.to_string()),
            AppendError::Full { retry_after } => retry_after.as_secs().max(1),
            AppendError::Failed { .. } | AppendError::TimedOut { .. } | AppendError::Closed => 5,
        };
        unavailable(seconds, error.to_string())
    }
}

impl Refusal {
    /// The answer to the client.
    pub fn answer(self) -> Answer {
        let status = self.reason.status();
        tracing::debug!(status = status.as_u16(), detail = self.detail, "request refused");
        let mut problem = serde_json::json!({
            "title": status.canonical_reason().unwrap_or_default(),
            "status": status.as_u16(),
            "detail": self.detail,
        });
        if let (Some((line, column)), Some(members)) = (self.place, problem.as_object_mut()) {
            members.insert("line".into(), line.into());
            members.insert("column".into(), column.into());
        }
        let header = self.reason.remedy().zip(self.remedy);
        Answer { header, body_unread: self.body_unread, ..Answer::new(status, PROBLEM, format!("{problem}\n")) }
    }
}
