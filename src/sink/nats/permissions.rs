//! The subjects that the server denies to this user.

use super::connection::{Confirm, Connection};
use super::replies::Answer;
use super::stream::API_TIMEOUT;
use async_nats::HeaderMap;
use serde_json::Value;

const USER_INFO: &str = "$SYS.REQ.USER.INFO";

/// Whether the server denies `subject`, wildcards included, to this user, as far as it tells. `$SYS.REQ.USER.INFO` is answered by
/// nats-server 2.9 and newer.
pub(super) async fn denies(connection: &Connection, subject: &str) -> bool {
    let request = connection.publish(USER_INFO, HeaderMap::new(), Default::default(), Confirm::Reply, API_TIMEOUT);
    let Ok(Answer::Reply(reply)) = request.await else { return false };
    let user = serde_json::from_slice::<Value>(&reply.payload).unwrap_or_default();
    let denied = user.pointer("/data/permissions/publish/deny").and_then(Value::as_array).into_iter().flatten();
    denied.filter_map(Value::as_str).any(|denied| matches(denied, subject))
}

/// Whether the stream subject `pattern` takes `subject`, which may hold wildcards itself.
pub(super) fn matches(pattern: &str, subject: &str) -> bool {
    let (mut pattern, mut subject) = (pattern.split('.'), subject.split('.'));
    loop {
        match (pattern.next(), subject.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some(pattern), Some(subject)) if pattern == "*" || pattern == subject => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_takes_the_subjects_that_its_patterns_match() {
        for (pattern, subject) in [("a.b", "a.b"), ("a.*", "a.b"), ("a.>", "a.b.c"), (">", "a"), ("a.*.c", "a.b.c")] {
            assert!(matches(pattern, subject), "{pattern} {subject}");
        }
        for (pattern, subject) in [("a.b", "a"), ("a", "a.b"), ("a.>", "a"), ("a.*", "a.b.c"), ("a.b", "a.c")] {
            assert!(!matches(pattern, subject), "{pattern} {subject}");
        }
    }
}
