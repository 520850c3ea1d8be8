//! The names by which the events of one call find each other, and the legs that have their CDR.
//!
//! TeleCMI's documents give CDRs of outbound calls and of missed users no `conversation_uuid`, while the live events of the same call
//! carry it together with the ids that the CDR has. An event with a `conversation_uuid` teaches it for its other ids; an event without
//! is looked up by them. Both know the ids as hashes alone.

use super::Fields;
use super::json::Value;
use ring::digest::{Context, SHA256};
use std::borrow::Cow;

/// Longer ids, in bytes, are neither taught nor looked up: they bound the memory of the index.
pub const MAX_NAME: usize = 64;

/// The ids that belong to one call, in the order in which they are looked up. `cmiuuid` is `cmiuid` in older documents.
const NAMES: [&str; 3] = ["cmiuuid", "call_id", "request_id"];

/// The ids that stand in for a conversation that nothing tells, the first that is present counts.
const FALLBACK: [&str; 3] = ["call_id", "request_id", "cmiuuid"];

/// Texts that senders write where they have no id, in lower case. So are texts of nothing but zeros and hyphens.
const PLACEHOLDERS: [&str; 8] = ["", "null", "undefined", "unknown", "none", "nan", "true", "false"];

/// A CDR has one of these fields, also where it has no `type`.
const CDR_FIELDS: [&str; 5] = ["answeredsec", "waitedsec", "billedsec", "duration", "end_time"];

/// Later epoch seconds than this, in the year 5138, are milliseconds.
const MOST_SECONDS: u64 = 100_000_000_000;

/// An id of a call, hashed: 128 bits of SHA-256 over its kind, the `appid` and its text. No byte is zero, see `spool.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CallName(pub [u8; 16]);

/// The key of one leg, hashed like a [`CallName`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LegKey(pub [u8; 16]);

impl LegKey {
    /// The leg with this `cmiuuid` or `cmiuid`.
    pub fn of_id(appid: &[u8], id: &[u8]) -> Self {
        Self(hash(b"leg", &[appid, id]))
    }

    /// The leg with this number of the other party, not the account's own, and this `time`, in seconds or milliseconds since 1970: where
    /// a list of calls has no id that a webhook carries. Only the digits of a number count. `None` if there are none, or no time.
    pub fn of_party(appid: &[u8], number: &[u8], time: &[u8]) -> Option<Self> {
        let time: u64 = str::from_utf8(time.trim_ascii()).ok()?.parse().ok()?;
        let time = if time > MOST_SECONDS { time } else { time * 1000 };
        let digits = number.iter().copied().filter(u8::is_ascii_digit).skip_while(|digit| *digit == b'0');
        let digits: Vec<u8> = digits.collect();
        (!digits.is_empty()).then(|| Self(hash(b"party", &[appid, &digits, &time.to_le_bytes()])))
    }
}

/// The part of an event that tells of its call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// Whether the event carries its conversation's id. Then it teaches the id for its names; else its conversation is only a
    /// fallback, and it is looked up by its names.
    pub has_conversation: bool,
    /// In the order in which they are looked up. None if the event's conversation has too long an id.
    pub names: [Option<CallName>; 3],
    /// The leg whose CDR the event is: by its id, and by the other party and its time.
    pub legs: [Option<LegKey>; 2],
}

impl Call {
    /// The call of an event, and the id of its conversation as far as the event itself tells it.
    pub(super) fn of<'a>(fields: &'a Fields<'_>) -> (Self, Option<Cow<'a, str>>) {
        let own = fields.call_id("conversation_uuid");
        let conversation = own.or_else(|| FALLBACK.iter().find_map(|name| fields.call_id(name)));
        // Better than nothing is a placeholder.
        let conversation = conversation.or_else(|| fields.identifier("conversation_uuid"));
        let conversation = conversation.map(String::from_utf8_lossy);
        let has_conversation = own.is_some();
        let is_too_long = has_conversation && conversation.as_ref().is_some_and(|id| id.len() > MAX_NAME);
        let appid = fields.identifier("appid").unwrap_or_default().trim_ascii();
        let names = NAMES.map(|kind| {
            let id = fields.call_id(kind).filter(|id| id.len() <= MAX_NAME && !is_too_long)?;
            Some(CallName(hash(kind.as_bytes(), &[appid, id.trim_ascii()])))
        });
        (Self { has_conversation, names, legs: legs(fields, appid) }, conversation)
    }
}

/// The keys of the leg, if the event is its CDR. The other party of a call that came in is in `from`, that of one that went out in `to`.
/// The account's own side stands differently in webhooks and in lists: an agent or a number, or not at all.
fn legs(fields: &Fields<'_>, appid: &[u8]) -> [Option<LegKey>; 2] {
    let is_cdr = match fields.identifier("type") {
        Some(kind) => kind.trim_ascii().eq_ignore_ascii_case(b"cdr"),
        None => CDR_FIELDS.iter().any(|name| fields.identifier(name).is_some()),
    };
    if !is_cdr {
        return [None, None];
    }
    let went_out =
        fields.identifier("direction").is_some_and(|text| text.trim_ascii().eq_ignore_ascii_case(b"outbound"));
    let from = if went_out { None } else { fields.identifier("from") };
    let party = from.or_else(|| fields.identifier("to")).unwrap_or_default();
    let time = fields.identifier("time").or_else(|| fields.identifier("start_time")).unwrap_or_default();
    [fields.call_id("cmiuuid").map(|id| LegKey::of_id(appid, id.trim_ascii())), LegKey::of_party(appid, party, time)]
}

/// Whether a value can be the id of a call.
pub(super) fn is_call_id(value: &Value<'_>) -> bool {
    let id = value.bytes().trim_ascii();
    let is_zero = id.iter().all(|byte| matches!(byte, b'0' | b'-'));
    let is_placeholder = PLACEHOLDERS.iter().any(|text| id.eq_ignore_ascii_case(text.as_bytes()));
    !is_zero && !is_placeholder && value.container().is_none()
}

fn hash(kind: &[u8], parts: &[&[u8]]) -> [u8; 16] {
    let mut out = Context::new(&SHA256);
    out.update(b"cdrelay call 1");
    for part in [kind].iter().chain(parts) {
        out.update(&(part.len() as u32).to_le_bytes());
        out.update(part);
    }
    let digest: [u8; 16] = out.finish().as_ref().first_chunk().copied().unwrap_or_default();
    digest.map(|byte| byte.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(payload: &str) -> (Call, Option<String>) {
        let fields = Fields::of_payload(payload);
        let (call, conversation) = Call::of(&fields);
        (call, conversation.map(Cow::into_owned))
    }

    fn names(payload: &str) -> Vec<CallName> {
        call(payload).0.names.into_iter().flatten().collect()
    }

    #[test]
    fn names_are_alike_in_any_spelling_and_within_their_appid_and_kind_alone() {
        let first = names(r#"{"appid":7,"cmiuuid":"B"}"#);
        assert_eq!(first.len(), 1);
        for same in [r#"{"app_id":"7","cmiuid":" B "}"#, r#"{"appid":"7","cmiuuid":"unknown","cmiuid":"B"}"#] {
            assert_eq!(names(same), first, "{same}");
        }
        for other in [
            r#"{"appid":8,"cmiuuid":"B"}"#,
            r#"{"cmiuuid":"B"}"#,
            r#"{"appid":7,"call_id":"B"}"#,
            r#"{"appid":7,"request_id":"B"}"#,
            r#"{"appid":7,"cmiuuid":"b"}"#,
        ] {
            assert_ne!(names(other), first, "{other}");
        }
        assert_eq!(names(r#"{"call_id":17}"#), names(r#"{"call_id":"17"}"#));
        assert!(!names(r#"{"call_id":17}"#).iter().any(|name| name.0.contains(&0)));
    }

    #[test]
    fn what_cannot_belong_to_one_call_is_no_name_and_no_conversation_but_the_last_resort() {
        let zero = "\"00000000-0000-0000-0000-000000000000\"";
        for text in
            ["\"\"", "null", "\"NULL\"", "\" undefined \"", "0", "\"0\"", "\"Unknown\"", "\"none\"", "false", zero]
        {
            let payload = format!("{{\"cmiuuid\":{text},\"cmiuid\":{text},\"call_id\":{text},\"request_id\":{text}}}");
            assert_eq!(call(&payload), (Call::default(), None), "{payload}");
            let named = format!("{{\"conversation_uuid\":{text},\"cmiuuid\":\"m\"}}");
            assert_eq!((call(&named).0.has_conversation, call(&named).1.as_deref()), (false, Some("m")));
        }
        assert_eq!(call(r#"{"conversation_uuid":"0"}"#), (Call::default(), Some("0".into())));
        for nested in [r#"{"a":1}"#, "[1]", r#""{\"a\":1}""#] {
            assert_eq!(names(&format!("{{\"cmiuuid\":{nested},\"call_id\":{nested}}}")), [], "{nested}");
        }
        let (short, long) = ("x".repeat(MAX_NAME), "x".repeat(MAX_NAME + 1));
        assert_eq!(names(&format!("{{\"call_id\":\"{short}\"}}")).len(), 1);
        assert_eq!(names(&format!("{{\"call_id\":\"{long}\"}}")), []);
        let (taught, conversation) = call(&format!("{{\"conversation_uuid\":\"{long}\",\"call_id\":\"k\"}}"));
        assert_eq!((taught.has_conversation, taught.names, conversation), (true, [None; 3], Some(long)));
    }

    #[test]
    fn the_fallback_follows_the_documented_chain() {
        let conversation = |payload: &str| call(payload).1;
        let all = r#"{"conversation_uuid":"c","call_id":"k","request_id":"r","cmiuuid":"m"}"#;
        assert_eq!(conversation(all).as_deref(), Some("c"));
        assert_eq!(conversation(&all.replace("\"c\"", "\"\"")).as_deref(), Some("k"));
        assert_eq!(conversation(r#"{"call_id":"0","request_id":"r","cmiuuid":"m"}"#).as_deref(), Some("r"));
        assert_eq!(conversation(r#"{"cmiuuid":"-","cmiuid":"m"}"#).as_deref(), Some("m"));
        assert_eq!(conversation(r#"{"type":"cdr"}"#), None);
    }

    #[test]
    fn a_cdr_has_the_keys_of_its_leg_and_a_live_event_has_none() {
        let legs = |payload: &str| call(payload).0.legs;
        let cdr =
            r#"{"type":"cdr","appid":7,"cmiuuid":"B","from":"+440000000001","to":440000000002,"time":1654507446464}"#;
        let both = legs(cdr);
        assert!(both.iter().all(Option::is_some));
        assert_eq!(both[0], Some(LegKey::of_id(b"7", b"B")));
        for same in [
            cdr.replace("cmiuuid", "cmiuid").replace("1654507446464", "\"1654507446464\""),
            cdr.replace("440000000002", "\"209_2222223\""),
            cdr.replace("\"type\":\"cdr\"", "\"answeredsec\":6").replace("+", "00"),
        ] {
            assert_eq!(legs(&same), both, "{same}");
        }
        for other in [cdr.replace("446464", "446465"), cdr.replace("440000000001", "440000000003")] {
            assert_ne!(legs(&other)[1], both[1], "{other}");
        }
        let outbound = r#"{"type":"cdr","appid":7,"direction":"outbound","to":440000000001,"time":1654507446464}"#;
        assert_eq!(legs(outbound), [None, both[1]]);
        let agent = outbound.replace("\"to\"", "\"from\":\"209_2222223\",\"to\"");
        assert_eq!(legs(&agent), [None, both[1]]);
        assert_eq!(legs(&cdr.replace("446464", "446000")), legs(&cdr.replace("446464", "446")));
        let missed = r#"{"type":"CDR","appid":7,"direction":"inbound","from":440000000001,"time":1654507446464}"#;
        assert_eq!(legs(missed), [None, both[1]]);
        for none in [cdr.replace("\"cdr\"", "\"event\""), r#"{"appid":7,"cmiuuid":"B"}"#.into()] {
            assert_eq!(legs(&none), [None, None], "{none}");
        }
        assert_eq!(legs(&cdr.replace("1654507446464", "\"soon\""))[1], None);
    }
}
