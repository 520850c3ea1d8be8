//! <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>, symmetric signatures (`v1`).

use super::Head;
use super::hmac::{TOLERANCE, fresh};
use super::secrets::Secrets;
use super::settings::Config;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::header::HeaderName;
use std::sync::Arc;
use std::time::Duration;

pub const ID: HeaderName = HeaderName::from_static("webhook-id");
pub const TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
pub const SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");
/// More than these are no rotation.
const MOST_SIGNATURES: usize = 8;

#[derive(Debug)]
pub struct StandardWebhooks {
    tolerance: Duration,
    secrets: Arc<Secrets>,
}

impl StandardWebhooks {
    pub fn new(config: &Config, secrets: Arc<Secrets>) -> Self {
        Self { tolerance: config.tolerance.unwrap_or(TOLERANCE), secrets }
    }

    pub fn secrets(&self) -> &Arc<Secrets> {
        &self.secrets
    }

    pub fn check_head(&self, head: &Head<'_>, now: u64) -> Result<(), &'static str> {
        if head.only(&ID).is_none_or(<[u8]>::is_empty) {
            return Err("there is no id");
        }
        fresh(head.only_text(&TIMESTAMP), self.tolerance, now)?;
        signatures(head).next().map(drop).ok_or("there is no signature of version 1")
    }

    pub fn check_body(&self, head: &Head<'_>, body: &[u8]) -> Result<(), &'static str> {
        let part = |name| head.only(name).unwrap_or_default();
        let texts = [part(&ID), b".", part(&TIMESTAMP), b".", body];
        let signed = self.secrets.signed(&texts, &signatures(head).collect::<Vec<_>>());
        if signed { Ok(()) } else { Err("no signature is right") }
    }
}

/// Those of version 1; others may stand beside them.
fn signatures<'a>(head: &Head<'a>) -> impl Iterator<Item = Vec<u8>> + use<'a> {
    let all = head.only_text(&SIGNATURE).unwrap_or_default().split(' ');
    all.filter_map(|one| STANDARD.decode(one.strip_prefix("v1,")?).ok()).take(MOST_SIGNATURES)
}
