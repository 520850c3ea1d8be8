//! From an element of a list to the event it becomes if its webhook never came.

use super::config::{List, Platform};
use crate::event::{Arrival, Event, Fields, MAX_DEPTH, json};
use std::time::Duration;

/// A `time` below this is in seconds: in milliseconds it would be in 1973.
const FIRST_MILLISECONDS: u64 = 100_000_000_000;
/// A call that claims to have lasted longer did not.
const LONGEST_CALL: Duration = Duration::from_secs(24 * 3600);

/// A call that the platform lists.
#[derive(Debug)]
pub struct Call {
    /// Its identity within its list.
    pub key: String,
    /// When it began, in milliseconds since 1970.
    pub time: u64,
    /// When it ended, in milliseconds since 1970.
    pub end: u64,
    /// The event to store: the members that the list implies, then the members of the element unchanged.
    pub event: Event,
}

impl Call {
    /// Reads an element of `list`. An error shows nothing of it.
    pub fn read(element: &str, platform: Platform, list: List, appid: u64, now: Arrival) -> Result<Self, String> {
        if !element.starts_with('{') {
            return Err("is no JSON object".into());
        }
        let event = Event::parse(&complete(element, list, appid), MAX_DEPTH, now);
        // The parser's error would have positions in the completed text.
        let event = event.map_err(|_| format!("is nested more than {MAX_DEPTH} levels deep"))?;
        let fields = event.fields();
        let number = |name: &str| fields.text(name)?.parse::<u64>().ok();
        let time = number("time").ok_or("has no `time` in milliseconds since 1970")?;
        let time = if time < FIRST_MILLISECONDS { time.saturating_mul(1000) } else { time };
        let key = match platform {
            Platform::Telecmi => fields.identifier("cmiuuid").map(|id| String::from_utf8_lossy(id).into_owned()),
            Platform::TelecmiIndia => {
                let parties = fields.text("from").zip(fields.text("to"));
                parties.map(|(from, to)| format!("{time}/{from}/{to}"))
            }
        };
        let key = key.ok_or(match platform {
            Platform::Telecmi => "has no `cmiuid`",
            Platform::TelecmiIndia => "has no `from` or no `to`",
        })?;
        let lasted = number("duration").or_else(|| number("billedsec")).map_or(Duration::ZERO, Duration::from_secs);
        let end = time.saturating_add(lasted.min(LONGEST_CALL).as_millis() as u64);
        drop(fields);
        Ok(Self { key, time, end, event })
    }
}

/// The element with the members in front that it lacks: `{"cmiuid":…}` → `{"type":"cdr",…,"cmiuid":…}`.
fn complete(element: &str, list: List, appid: u64) -> String {
    let fields = Fields::of_payload(element);
    let (direction, status) = list.implies();
    let mut completed = String::from("{");
    let mut add = |spellings: &[&str], value: String| {
        if let [name, ..] = spellings
            && spellings.iter().all(|name| fields.member(name).is_none())
        {
            completed.extend([&json::quote(name), ":", &value, ","]);
        }
    };
    add(&["type"], json::quote("cdr"));
    add(&["direction"], json::quote(direction));
    add(&["status"], json::quote(status));
    add(&["appid", "app_id"], appid.to_string());
    let members = element.get(1..).unwrap_or_default();
    if members.trim_start().starts_with('}') {
        completed.pop();
    }
    completed + members
}

#[cfg(test)]
mod tests {
    use super::*;

    const ELEMENT: &str = r#"{"cmiuid":"8b5f88dd","duration":4,"notes":[{"msg":"callback"}],"rate":1.50,"from":442000000001,"to":"442000000002","time":1654507446464}"#;

    fn read(element: &str, platform: Platform) -> Result<Call, String> {
        Call::read(element, platform, List::OutAnswered, 2_222_223, Arrival(1))
    }

    #[test]
    fn the_members_of_an_element_stand_as_they_are_behind_those_that_the_list_implies() {
        let call = read(ELEMENT, Platform::Telecmi).unwrap();
        let expected = r#"{"type":"cdr","direction":"outbound","status":"answered","appid":2222223,"#;
        assert_eq!(**call.event.payload(), format!("{expected}{}", &ELEMENT[1..]));
        assert_eq!((call.time, call.end), (1_654_507_446_464, 1_654_507_450_464));
        assert_eq!(call.key, "8b5f88dd");
    }

    #[test]
    fn members_that_an_element_has_are_not_added() {
        let element = r#"{ "app_id":"7", "status" : null,"cmiuid":"x","time":"1654507446"}"#;
        let call = read(element, Platform::Telecmi).unwrap();
        assert_eq!(**call.event.payload(), format!(r#"{{"type":"cdr","direction":"outbound",{}"#, &element[1..]));
        assert_eq!(call.time, 1_654_507_446_000);
    }

    #[test]
    fn the_same_element_is_the_same_event_whenever_it_is_read() {
        let id = |now| Call::read(ELEMENT, Platform::Telecmi, List::Missed, 7, Arrival(now)).unwrap().event.id();
        assert_eq!(id(1), id(2));
    }

    #[test]
    fn an_element_without_identity_or_time_is_refused_and_not_shown() {
        for (element, platform, problem) in [
            ("[1]", Platform::Telecmi, "is no JSON object"),
            ("\"8b5f88dd\"", Platform::Telecmi, "is no JSON object"),
            ("{}", Platform::Telecmi, "`time`"),
            (r#"{"cmiuid":"x","time":"today"}"#, Platform::Telecmi, "`time`"),
            (r#"{"time":1654507446464,"cmiuid":""}"#, Platform::Telecmi, "`cmiuid`"),
            (r#"{"time":1654507446464,"cmiuid":{"x":1}}"#, Platform::Telecmi, "`cmiuid`"),
            (r#"{"time":1654507446464,"from":1}"#, Platform::TelecmiIndia, "`to`"),
        ] {
            let error = read(element, platform).unwrap_err();
            assert!(error.contains(problem) && !error.contains("1654507446464"), "{element}: {error}");
        }
        let deep = format!("{{\"x\":{}{}}}", "[".repeat(200), "]".repeat(200));
        assert!(read(&deep, Platform::Telecmi).unwrap_err().contains("levels deep"));
    }
}
