//! The top-level fields of an event, found under any of their documented spellings.

use super::calls;
use super::json::{self, Member, Value};
use serde_json::value::RawValue;
use std::borrow::Cow;

/// The documented fields of TeleCMI's webhooks. One of them that is null or empty says as much as one that is absent.
const DOCUMENTED: [&str; 35] = [
    "answer_time",
    "answeredsec",
    "app_id",
    "appid",
    "balance",
    "call_id",
    "call_rate",
    "callerid",
    "click_to_call",
    "cmiuid",
    "cmiuuid",
    "conversation_uuid",
    "custom",
    "direction",
    "duration",
    "end_time",
    "extra_params",
    "filename",
    "from",
    "hangup_reason",
    "ivr_name",
    "leg",
    "record",
    "request_id",
    "start_time",
    "status",
    "team",
    "time",
    "to",
    "type",
    "user",
    "virtual_number",
    "voicemail",
    "voicename",
    "waitedsec",
];

/// The members of an event's object.
#[derive(Clone, Debug)]
pub struct Fields<'a>(Vec<Member<'a>>);

impl<'a> Fields<'a> {
    /// The members of a JSON object; `None` if there are more than `limit`.
    pub fn of(object: &'a RawValue, limit: usize) -> Option<Self> {
        let members = json::members(object, limit);
        (!members.truncated).then_some(Self(members.list))
    }

    /// The members of a payload; none if it is not a JSON object.
    pub fn of_payload(payload: &'a str) -> Self {
        let object: Option<&RawValue> = serde_json::from_str(payload).ok();
        Self(object.map_or_else(Vec::new, |object| json::members(object, usize::MAX).list))
    }

    /// Fields that came as texts.
    pub fn of_texts(fields: &'a [(String, String)]) -> Self {
        let member = |(name, value): &'a (String, String)| Member {
            name: Cow::Borrowed(name.as_bytes()),
            value: Value::Text(Cow::Borrowed(value.as_bytes())),
        };
        Self(fields.iter().map(member).collect())
    }

    /// In the order of the text, duplicates included.
    pub fn members(&self) -> &[Member<'a>] {
        &self.0
    }

    /// The last member with this very name, as most JSON readers have it.
    pub fn member(&self, name: &str) -> Option<&Value<'a>> {
        self.0.iter().rev().find(|member| *member.name == *name.as_bytes()).map(|member| &member.value)
    }

    /// The text of a field under any of its spellings; `None` if it is missing, null or empty, or the text `null` or
    /// `undefined`, which is all a query string can make of these.
    pub fn text(&self, name: &str) -> Option<Cow<'_, str>> {
        self.find(name, |_| true).map(|value| String::from_utf8_lossy(value.bytes()))
    }

    /// The text at a path of names through nested objects, and through texts that hold JSON.
    pub fn nested(&self, path: &[String]) -> Option<String> {
        let (first, inner) = path.split_first()?;
        nested(self.find(first, |_| true)?, inner)
    }

    /// The bytes of an identifier: as [`text`](Self::text), but a spelling whose value is an object or array, or the text of
    /// one, is passed over.
    pub fn identifier(&self, name: &str) -> Option<&[u8]> {
        self.find(name, |value| value.container().is_none()).map(Value::bytes)
    }

    /// The bytes of an identifier that can belong to one call: as [`identifier`](Self::identifier), but a spelling whose value is a
    /// placeholder, such as `unknown` or `0`, is passed over too.
    pub fn call_id(&self, name: &str) -> Option<&[u8]> {
        self.find(name, calls::is_call_id).map(Value::bytes)
    }

    fn find(&self, name: &str, accepts: impl Fn(&Value<'_>) -> bool) -> Option<&Value<'a>> {
        let says = |name: &str| self.member(name).filter(|value| !is_absent(value) && accepts(value));
        match name {
            "appid" | "app_id" => says("appid").or_else(|| says("app_id")),
            "cmiuuid" | "cmiuid" => says("cmiuuid").or_else(|| says("cmiuid")),
            _ => says(name),
        }
    }
}

fn nested(value: &Value<'_>, path: &[String]) -> Option<String> {
    let Some((name, inner)) = path.split_first() else {
        return Some(String::from_utf8_lossy(value.bytes()).into_owned());
    };
    let members = Fields(json::members(value.container()?, usize::MAX).list);
    nested(members.member(name).filter(|value| !is_absent(value))?, inner)
}

/// Whether the value says nothing: null, empty, or how a query string writes null.
fn is_absent(value: &Value<'_>) -> bool {
    matches!(value.bytes(), b"" | b"null" | b"undefined")
}

/// Whether a documented field with this value says the same as none: null, empty, or the text `null`.
pub fn is_blank_documented(member: &Member<'_>) -> bool {
    matches!(member.value.bytes(), b"" | b"null")
        && str::from_utf8(&member.name).is_ok_and(|name| DOCUMENTED.binary_search(&name).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documented_fields_are_sorted() {
        assert!(DOCUMENTED.is_sorted());
    }

    #[test]
    fn the_last_member_of_a_name_counts_however_it_is_written() {
        let fields = Fields::of_payload(r#"{"team":"a","te\u0061m":"b","user":1,"us\u0065r":2,"user":""}"#);
        assert_eq!(fields.text("team").as_deref(), Some("b"));
        assert_eq!(fields.text("user"), None);
    }

    #[test]
    fn null_and_undefined_as_text_are_no_value() {
        for absent in ["null", "\"\"", "\"null\"", "\"undefined\""] {
            let payload = format!("{{\"team\":{absent},\"appid\":{absent},\"app_id\":7}}");
            let fields = Fields::of_payload(&payload);
            assert_eq!((fields.text("team"), fields.text("appid").as_deref()), (None, Some("7")), "{absent}");
        }
    }

    #[test]
    fn nested_fields_are_found_through_objects_and_json_in_texts() {
        let path = |path: &str| path.split('.').map(str::to_owned).collect::<Vec<_>>();
        for params in [r#"{"tenant":"acme","a":{"b":1.50}}"#, r#""{\"tenant\":\"acme\",\"a\":{\"b\":1.50}}""#] {
            let payload = format!("{{\"extra_params\":{params}}}");
            let fields = Fields::of_payload(&payload);
            assert_eq!(fields.nested(&path("extra_params.tenant")).as_deref(), Some("acme"));
            assert_eq!(fields.nested(&path("extra_params.a.b")).as_deref(), Some("1.50"));
            assert_eq!(fields.nested(&path("extra_params.tenant.x")), None);
            assert_eq!(fields.nested(&path("extra_params.none")), None);
        }
    }
}
