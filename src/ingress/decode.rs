//! From the bytes of a request to events. The Content-Type only guides: what the body looks like decides.

use crate::event::json::{self, Kind, Reader};
use crate::event::{Arrival, Event, Events};
use serde::Deserialize;

/// `[ingress.decode]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Form fields that may hold the whole event as JSON text, if they are the only field.
    pub json_fields: Vec<String>,
    /// How deep an event may be nested, 128 at the most.
    pub max_depth: usize,
    /// How many events one request may bring.
    pub max_events: usize,
    /// How many fields an event may have at its top level.
    pub max_fields: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            json_fields: ["data", "payload", "myoperator"].map(String::from).into(),
            max_depth: 64,
            max_events: 1000,
            max_fields: 1000,
        }
    }
}

/// An object with any of these is an event, and no envelope around events.
pub const IDENTIFIERS: [&str; 6] = ["type", "appid", "app_id", "cmiuuid", "cmiuid", "conversation_uuid"];

/// Why a request holds no events.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It is not what it should be.
    #[error("{detail}")]
    Malformed {
        /// What is wrong, for whoever runs the sender.
        detail: String,
        /// Line and column, counted from 1 in characters, where the text stops making sense.
        place: Option<(usize, usize)>,
    },
    /// It holds more events than allowed.
    #[error("more than {limit} events in one request; send them in several")]
    TooMany {
        /// The configured bound.
        limit: usize,
    },
}

/// The parts of a request that say what it holds.
#[derive(Clone, Copy, Debug)]
pub struct Content<'a> {
    /// The method.
    pub method: &'a str,
    /// The query string, percent-encoded.
    pub query: Option<&'a str>,
    /// The Content-Type.
    pub content_type: Option<&'a [u8]>,
    /// The whole body.
    pub body: &'a [u8],
}

impl<'a> Content<'a> {
    /// The events in the request, in their order.
    pub fn decode(&self, config: &Config, arrival: Arrival) -> Result<Events, DecodeError> {
        match self.fields() {
            Some(query) => fields(query, config, arrival),
            None => body(self.body, self.content_type, config, arrival),
        }
    }

    /// The bytes that hold the events.
    pub fn text(&self) -> &'a [u8] {
        self.fields().map_or(self.body, str::as_bytes)
    }

    /// An upper bound, near enough, of the memory that decoding and the events take.
    pub fn memory(&self, config: &Config) -> usize {
        const COPIES: usize = 3;
        const FIELD: usize = 100;
        const EVENT: usize = 250;
        // Six bytes in the event, as many in the text that it is made of, and twice that while the text grows.
        const ESCAPED: usize = 20;
        let bytes = self.text();
        let (fields, mut objects) = count(bytes);
        // JSON stays as it is. What is made of a form grows by its escape sequences.
        let json = self.fields().is_none() && matches!(bytes.trim_ascii_start().first(), Some(b'{' | b'['));
        let escaped = |byte: &&u8| **byte < b' ' || matches!(**byte, b'"' | b'\\' | b'%');
        let escaped = if json { 0 } else { bytes.iter().filter(escaped).count() };
        if !json {
            objects += bytes.windows(3).filter(|brace| brace.eq_ignore_ascii_case(b"%7b")).count();
        }
        COPIES * bytes.len() + ESCAPED * escaped + FIELD * fields + EVENT * objects.min(config.max_events)
    }

    /// The query, if the events are there.
    fn fields(&self) -> Option<&'a str> {
        (self.method == "GET" && self.body.is_empty()).then_some(self.query.unwrap_or_default())
    }
}

/// One more than there are separators of fields, and one more than there are objects.
fn count(bytes: &[u8]) -> (usize, usize) {
    let [commas, ampersands, braces] = [b',', b'&', b'{'].map(|byte| memchr::memchr_iter(byte, bytes).count());
    (1 + commas + ampersands, 1 + braces)
}

/// The Content-Type of forms.
const FORM: &[u8] = b"application/x-www-form-urlencoded";

/// The events in a request's body, in their order.
pub fn body(
    bytes: &[u8],
    content_type: Option<&[u8]>,
    config: &Config,
    arrival: Arrival,
) -> Result<Events, DecodeError> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let valid =
            bytes.get(..error.valid_up_to()).and_then(|valid| std::str::from_utf8(valid).ok()).unwrap_or_default();
        malformed(valid, valid.len(), "not valid UTF-8")
    })?;
    let form = content_type
        .and_then(|value| value.trim_ascii_start().get(..FORM.len()))
        .is_some_and(|value| value.eq_ignore_ascii_case(FORM));
    match text.trim_start().as_bytes().first() {
        None => Err(DecodeError::Malformed { detail: "the body is empty; expected a JSON object".into(), place: None }),
        Some(b'{' | b'[') => json_text(text, config, arrival),
        Some(_) if text.contains('=') && (form || looks_like_form(text)) => fields(text.trim(), config, arrival),
        Some(_) => Err(malformed(
            text,
            text.len() - text.trim_start().len(),
            "expected a JSON object, an array of objects, or form fields",
        )),
    }
}

/// The event in a query string or a form; none if there is no field.
fn fields(text: &str, config: &Config, arrival: Arrival) -> Result<Events, DecodeError> {
    let fields: Vec<_> = form_urlencoded::parse(text.as_bytes()).take(config.max_fields + 1).collect();
    if fields.len() > config.max_fields {
        return Err(DecodeError::Malformed { detail: json::too_many_fields(config.max_fields), place: None });
    }
    if let [(name, value)] = fields.as_slice()
        && config.json_fields.iter().any(|field| field == name)
        && value.trim_start().starts_with(['{', '['])
    {
        return json_text(value, config, arrival).map_err(|error| match error {
            DecodeError::Malformed { detail, place } => {
                DecodeError::Malformed { detail: format!("in the form field `{name}`: {detail}"), place }
            }
            other => other,
        });
    }
    if fields.is_empty() {
        return Ok(Events::new());
    }
    let mut object = String::with_capacity(text.len() + 8 * fields.len());
    for (name, value) in fields {
        object.push(if object.is_empty() { '{' } else { ',' });
        json::write_string(&name, &mut object);
        object.push(':');
        json::write_string(&value, &mut object);
    }
    object.push('}');
    let event = Event::parse(&object, config.max_depth, arrival)
        .map_err(|error| malformed(&object, error.at(), error.problem()))?;
    Ok(Events::from([event]))
}

/// Without a Content-Type that says so, only what cannot be anything else is a form.
fn looks_like_form(text: &str) -> bool {
    let text = text.trim();
    text.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '_' || first == '%')
        && text.bytes().all(|byte| byte.is_ascii_graphic() && !b"<>{}\"'".contains(&byte))
}

/// One object, an array of objects, an envelope around such an array, or one object a line.
fn json_text(text: &str, config: &Config, arrival: Arrival) -> Result<Events, DecodeError> {
    let mut found = Found {
        text,
        config,
        arrival,
        members: Vec::with_capacity(USUAL_FIELDS),
        events: Events::new(),
        too_many: false,
    };
    let result = found.read();
    match result {
        _ if found.too_many => Err(DecodeError::TooMany { limit: config.max_events }),
        Ok(()) => Ok(found.events),
        Err(error) => Err(malformed(text, error.at(), error.problem())),
    }
}

struct Found<'a> {
    text: &'a str,
    config: &'a Config,
    arrival: Arrival,
    /// Those of the object that was read last.
    members: Vec<json::Member>,
    events: Events,
    too_many: bool,
}

/// Room for more fields than nearly every event has.
const USUAL_FIELDS: usize = 32;

impl Found<'_> {
    fn read(&mut self) -> Result<(), json::Error> {
        let mut reader = Reader::new(self.text, self.config.max_depth).with_max_fields(self.config.max_fields);
        if reader.peek() == Some(b'[') {
            self.array(&mut reader)?;
            return end(&mut reader, "expected nothing after the array");
        }
        let start = reader.position();
        reader.object(&mut self.members)?;
        let stop = reader.position();
        if let Some(inner) = self.envelope() {
            end(&mut reader, "expected nothing after the envelope")?;
            let mut inside = Reader::new(self.text.get(..inner.end).unwrap_or_default(), self.config.max_depth)
                .with_max_fields(self.config.max_fields);
            inside.skip_to(inner.start);
            return self.array(&mut inside);
        }
        self.push(start..stop)?;
        let mut behind = stop;
        while reader.peek().is_some() {
            let start = reader.position();
            if !self.text.get(behind..start).unwrap_or_default().contains('\n') {
                return Err(reader.error("expected the end, or the next object on a line of its own"));
            }
            reader.object(&mut self.members)?;
            behind = reader.position();
            self.push(start..behind)?;
        }
        Ok(())
    }

    fn array(&mut self, reader: &mut Reader<'_>) -> Result<(), json::Error> {
        reader.array(|reader| {
            if reader.peek() != Some(b'{') {
                return Err(reader.error(format!("element {} of the array is not an object", self.events.len() + 1)));
            }
            let start = reader.position();
            reader.object(&mut self.members)?;
            self.push(start..reader.position())
        })
    }

    /// Where the array lies in an envelope `{"count":n,"cdr":[…]}`. A record of a call that merely has such fields has
    /// identifiers too.
    fn envelope(&self) -> Option<std::ops::Range<usize>> {
        let find = |name: &str| self.members.iter().find(|member| member.is_named(name, self.text.as_bytes()));
        if !self.members.iter().any(|member| member.value.kind == Kind::Array) {
            return None;
        }
        let cdr = find("cdr").filter(|member| member.value.kind == Kind::Array)?;
        find("count").filter(|member| member.value.kind == Kind::Number)?;
        let is_event = IDENTIFIERS.iter().any(|name| find(name).is_some());
        (!is_event).then(|| cdr.value.span.range())
    }

    fn push(&mut self, at: std::ops::Range<usize>) -> Result<(), json::Error> {
        if self.events.len() == self.config.max_events {
            self.too_many = true;
            return Err(json::Error::new(at.start, "too many events"));
        }
        self.events.push(Event::within(self.text, at, &mut self.members, self.arrival));
        Ok(())
    }
}

fn end(reader: &mut Reader<'_>, problem: &'static str) -> Result<(), json::Error> {
    match reader.peek() {
        None => Ok(()),
        Some(_) => Err(reader.error(problem)),
    }
}

fn malformed(text: &str, at: usize, problem: &str) -> DecodeError {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    DecodeError::Malformed { detail: format!("line {line}, column {column}: {problem}"), place: Some((line, column)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLES: &str = include_str!("../../tests/support/payloads.ndjson");
    const FORM: Option<&[u8]> = Some(b"application/x-www-form-urlencoded; charset=utf-8");
    const JSON: Option<&[u8]> = Some(b"application/json");

    fn decode(text: impl AsRef<[u8]>, content_type: Option<&[u8]>) -> Result<Events, DecodeError> {
        body(text.as_ref(), content_type, &Config::default(), Arrival(1))
    }

    fn payloads(text: impl AsRef<[u8]>, content_type: Option<&[u8]>) -> Vec<String> {
        let events = decode(text, content_type).unwrap();
        events.iter().map(|event| event.payload().to_string()).collect()
    }

    fn detail(text: impl AsRef<[u8]>) -> String {
        decode(text, JSON).unwrap_err().to_string()
    }

    #[test]
    fn objects_arrays_lines_and_envelopes_keep_the_exact_bytes() {
        let lines: Vec<_> = SAMPLES.lines().collect();
        for line in &lines {
            for content_type in [JSON, FORM, None, Some(b"text/plain")] {
                assert_eq!(payloads(format!("\u{feff} {line}\r\n"), content_type), [*line]);
            }
        }
        assert_eq!(payloads(format!("[{}]", lines.join(" ,\n")), JSON), lines);
        assert_eq!(payloads(SAMPLES, JSON), lines);
        assert_eq!(payloads(lines.join("\r\n\n"), None), lines);
        assert_eq!(payloads(format!("{{\"count\":11,\"cdr\":[{}],\"code\":200}}", lines.join(",")), JSON), lines);
        assert_eq!(payloads("[]", JSON), [""; 0]);
        let event = r#"{"count":1,"cdr":[{"x":1}],"cmiuuid":"m"}"#;
        assert_eq!(payloads(event, JSON), [event]);
    }

    #[test]
    fn fields_become_an_object_of_texts() {
        let expected = [r#"{"team":"Sales \"1\"","custom":"{\"crm\":\"true\"}","a":"","a":"é\n"}"#];
        let form = "team=Sales+%221%22&custom=%7B%22crm%22:%22true%22%7D&a=&a=%C3%A9%0A";
        assert_eq!(payloads(form, FORM), expected);
        assert_eq!(payloads(form, JSON), expected);
        assert_eq!(payloads(form, None), expected);
        assert!(fields("", &Config::default(), Arrival(1)).unwrap().is_empty());
        assert!(fields("&&", &Config::default(), Arrival(1)).unwrap().is_empty());
    }

    #[test]
    fn one_field_may_hold_the_whole_json() {
        for field in ["data", "payload", "myoperator"] {
            let encoded: String = form_urlencoded::Serializer::new(String::new()).append_pair(field, SAMPLES).finish();
            assert_eq!(payloads(encoded, FORM), SAMPLES.lines().collect::<Vec<_>>());
        }
        assert_eq!(payloads("data=%7B%7D&x=1", FORM), [r#"{"data":"{}","x":"1"}"#]);
        assert_eq!(payloads("data=text", FORM), [r#"{"data":"text"}"#]);
        let error = decode("data=%7B'a':1%7D", FORM).unwrap_err().to_string();
        assert!(error.contains("`data`") && error.contains("column 2"), "{error}");
    }

    #[test]
    fn get_and_post_of_one_event_have_one_identity() {
        let post =
            decode(r#"{"type":"cdr","appid":2222223,"voicemail":true,"team":null,"x":{"deep":[1,{"y":null}]}}"#, JSON)
                .unwrap();
        let get = "x=%7B%22deep%22%3A%20%5B1%2C%20%7B%22y%22%3A%20null%7D%5D%7D&appid=2222223&type=cdr&voicemail=true&team=null";
        let get = fields(get, &Config::default(), Arrival(2)).unwrap();
        assert_eq!(get[0].id(), post[0].id());

        // Where an identifier should be there is something else.
        let post = r#"{"appid":{},"app_id":"7","conversation_uuid":[ "a" ],"request_id":"r","cmiuuid":"[b"}"#;
        let get = "appid=%7B%7D&app_id=7&conversation_uuid=%5B+%22a%22+%5D&request_id=r&cmiuuid=%5Bb";
        let post = decode(post, JSON).unwrap();
        let get = fields(get, &Config::default(), Arrival(2)).unwrap();
        assert_eq!((get[0].id(), get[0].conversation()), (post[0].id(), "r"));
        assert_eq!(post[0].conversation(), "r");
    }

    #[test]
    fn errors_say_where_it_goes_wrong() {
        let documented = "{ virtual_number: 440000000000, custom: '{\"crm\":\"true\"}', appid: 2222223, type: 'cdr', direction: 'inbound', status: 'missed' }";
        assert!(detail(documented).starts_with("line 1, column 3: expected a member name in double quotes"));
        assert!(detail("{\"a\":1}\n{\"b\":}\n").starts_with("line 2, column 6: expected a value"));
        assert!(detail("[{\"a\":1},\n 7]").starts_with("line 2, column 2: element 2 of the array is not an object"));
        assert!(detail("{\"a\":1} {\"b\":2}").contains("line of its own"));
        assert!(detail(b"{\"a\":\"\xc3\xa9\xff\"}").starts_with("line 1, column 8: not valid UTF-8"));
        for text in [
            "",
            " \n",
            "null",
            "42",
            "\"text\"",
            "hello",
            "<xml a='b'/>",
            "--boundary\r\nname=x",
            "{\"count\":1,\"cdr\":[1]}",
        ] {
            assert!(decode(text, JSON).is_err(), "{text:?}");
        }
        assert!(detail("[".repeat(50_000)).contains("not an object"));
        assert!(detail("{\"a\":".repeat(50_000)).contains("64 levels"));
    }

    #[test]
    fn the_number_of_events_is_bounded() {
        assert_eq!(decode(format!("[{}{{}}]", "{},".repeat(999)), JSON).unwrap().len(), 1000);
        let error = decode(format!("[{}{{}}]", "{},".repeat(1000)), JSON).unwrap_err();
        assert_eq!(error, DecodeError::TooMany { limit: 1000 });
    }

    #[test]
    fn what_grows_by_escape_sequences_is_reckoned_with() {
        let config = Config::default();
        for piece in ["\u{1}", "%01", "\"", "%22", "\\", "a=\u{1}&"] {
            let form = format!("a={}", piece.repeat(1000));
            let by_post = Content { method: "POST", query: None, content_type: FORM, body: form.as_bytes() };
            // A query is never JSON, whatever it begins with.
            let query = format!("[{form}");
            let by_get = Content { method: "GET", query: Some(&query), content_type: None, body: b"" };
            for content in [by_post, by_get] {
                let held: usize = content.decode(&config, Arrival(1)).unwrap().iter().map(Event::memory).sum();
                let reckoned = content.memory(&config);
                // As much again while the event is made of the text that it is copied from.
                assert!(2 * held <= reckoned, "{piece:?}: {held} of {reckoned}");
            }
        }
        for brace in ["%7B", "%7b", "{"] {
            let form = format!("data=[{brace}%7D{}]", format!("%2C{brace}%7D").repeat(99));
            let content = Content { method: "POST", query: None, content_type: FORM, body: form.as_bytes() };
            let events = content.decode(&config, Arrival(1)).unwrap();
            let (held, reckoned) = (events.iter().map(Event::memory).sum::<usize>(), content.memory(&config));
            assert_eq!(events.len(), 100);
            assert!(held <= reckoned, "{brace}: {held} of {reckoned}");
        }
        let json = format!("{{\"a\":\"{}\"}}", "\\\"".repeat(1000));
        let json = Content { method: "POST", query: None, content_type: FORM, body: json.as_bytes() };
        assert!(json.memory(&config) < 4 * json.body.len());
    }
}
