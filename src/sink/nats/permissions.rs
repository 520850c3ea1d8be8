//! The subjects that the server denies to this user.

use super::connection::{Confirm, Connection};
use super::replies::Answer;
use super::stream::API_TIMEOUT;
use async_nats::HeaderMap;
use serde::Deserialize;

const USER_INFO: &str = "$SYS.REQ.USER.INFO";

/// The used part of the answer to `$SYS.REQ.USER.INFO`.
#[derive(Deserialize)]
struct UserInfo {
    data: User,
}

#[derive(Deserialize)]
struct User {
    #[serde(default)]
    permissions: Permissions,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Permissions {
    publish: Subjects,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Subjects {
    deny: Vec<String>,
}

/// Whether the server denies `subject`, wildcards included, to this user, as far as it tells. `$SYS.REQ.USER.INFO` is answered by
/// nats-server 2.9 and newer.
pub(super) async fn denies(connection: &Connection, subject: &str) -> bool {
    let request = connection.publish(USER_INFO, HeaderMap::new(), Default::default(), Confirm::Reply, API_TIMEOUT);
    let Ok(Answer::Reply(reply)) = request.await else { return false };
    let user = serde_json::from_slice::<UserInfo>(&reply.payload);
    user.is_ok_and(|user| user.data.permissions.publish.deny.iter().any(|denied| matches(denied, subject)))
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
