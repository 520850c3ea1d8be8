//! <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>, symmetric signatures (`v1`).

use super::Head;
use super::config::StandardWebhooks;
use super::hmac::{TOLERANCE, within_tolerance};
use super::secrets::Secrets;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::header::HeaderName;

pub const ID: HeaderName = HeaderName::from_static("webhook-id");
pub const TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
pub const SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");
/// A sender that rotates its keys signs with two or three.
const MAX_SIGNATURES: usize = 8;

impl StandardWebhooks {
    pub fn check_head(&self, head: &Head<'_>, now: u64) -> Result<(), &'static str> {
        if head.only(&ID).is_none_or(<[u8]>::is_empty) {
            return Err("there is no id");
        }
        within_tolerance(head.only_text(&TIMESTAMP), self.tolerance.unwrap_or(TOLERANCE), now)?;
        if signatures(head).is_empty() { Err("there is no signature of version 1") } else { Ok(()) }
    }

    pub fn check_body(&self, head: &Head<'_>, body: &[u8], secrets: &Secrets) -> Result<(), &'static str> {
        let part = |name| head.only(name).unwrap_or_default();
        let signed = secrets.signed(&[part(&ID), b".", part(&TIMESTAMP), b".", body], &signatures(head));
        if signed { Ok(()) } else { Err("no signature is right") }
    }
}

/// The signatures of version 1; others may stand beside them.
fn signatures(head: &Head<'_>) -> Vec<Vec<u8>> {
    let all = head.only_text(&SIGNATURE).unwrap_or_default().split(' ');
    all.filter_map(|one| STANDARD.decode(one.strip_prefix("v1,")?).ok()).take(MAX_SIGNATURES).collect()
}
