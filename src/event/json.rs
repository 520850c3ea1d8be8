//! One pass over JSON text (RFC 8259): checks it, bounds its nesting, and tells where the members of the outermost object lie.
//!
//! Nothing is converted: numbers keep their digits and strings their escapes until somebody asks for their text. Duplicate
//! member names are kept in order.

mod error;
mod text;

pub use error::Error;
pub use text::{Written, is_plain, write_string};

use std::borrow::Cow;
use text::{plain, unescape};

/// A range of bytes within the text that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    start: u32,
    end: u32,
}

impl Span {
    fn new(start: usize, end: usize) -> Self {
        Self { start: start as u32, end: end as u32 }
    }

    /// The part of `text` that this span covers; empty if it lies outside.
    #[inline]
    pub fn of(self, text: &[u8]) -> &[u8] {
        text.get(self.start as usize..self.end as usize).unwrap_or_default()
    }

    /// The same range as indices.
    #[inline]
    pub fn range(self) -> std::ops::Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// What a value is. The span of a string leaves out its quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `null`
    Null,
    /// `true` or `false`
    Bool,
    /// A number, in any of JSON's notations.
    Number,
    /// A string without any escape sequence.
    String,
    /// A string with at least one escape sequence.
    Escaped,
    /// An object, braces included.
    Object,
    /// An array, brackets included.
    Array,
}

/// Where a value lies and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value {
    /// Its text.
    pub span: Span,
    /// Its type.
    pub kind: Kind,
}

impl Value {
    /// The value as text: a string without quotes and escapes, anything else as it is written. A lone surrogate becomes
    /// U+FFFD.
    pub fn text(self, text: &str) -> Cow<'_, str> {
        let raw = text.get(self.span.range()).unwrap_or_default();
        match self.kind {
            Kind::Escaped => Cow::Owned(unescape(raw)),
            _ => Cow::Borrowed(raw),
        }
    }

    /// The bytes of that text, in which lone surrogates, which no text can hold, stay apart from each other.
    #[inline(always)]
    pub fn bytes(self, text: &[u8]) -> Cow<'_, [u8]> {
        let raw = self.span.of(text);
        match self.kind {
            Kind::Escaped => Cow::Owned(unescaped(raw)),
            _ => Cow::Borrowed(raw),
        }
    }
}

#[cold]
fn unescaped(raw: &[u8]) -> Vec<u8> {
    unescape(std::str::from_utf8(raw).unwrap_or_default())
}

/// One member of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name: always [`Kind::String`] or [`Kind::Escaped`].
    pub name: Value,
    /// Its value.
    pub value: Value,
}

impl Member {
    /// Whether `name` is its name in `text`.
    #[inline]
    pub fn is_named(&self, name: &str, text: &[u8]) -> bool {
        match self.name.kind {
            Kind::Escaped => *self.name.bytes(text) == *name.as_bytes(),
            _ => self.name.span.range().len() == name.len() && self.name.span.of(text) == name.as_bytes(),
        }
    }

    /// The same member in a text that begins `by` bytes later.
    pub fn move_back(&mut self, by: usize) {
        for span in [&mut self.name.span, &mut self.value.span] {
            *span = Span::new(span.range().start.saturating_sub(by), span.range().end.saturating_sub(by));
        }
    }
}

/// Reads one value after another from the front of a text.
pub struct Reader<'a> {
    text: &'a str,
    at: usize,
    max_depth: usize,
    max_fields: usize,
    depth: usize,
}

impl<'a> Reader<'a> {
    /// Reads `text`, which must be shorter than 4 GiB, and refuses values nested deeper than `max_depth`.
    pub fn new(text: &'a str, max_depth: usize) -> Self {
        Self { text, at: 0, max_depth, max_fields: usize::MAX, depth: 0 }
    }

    /// Refuses to list the members of an [`object`](Self::object) that has more than these.
    pub fn with_max_fields(self, max_fields: usize) -> Self {
        Self { max_fields, ..self }
    }

    /// Goes on at another byte index, which has to be between two values.
    pub fn skip_to(&mut self, at: usize) {
        self.at = at;
    }

    /// The byte index of what comes next.
    pub fn position(&self) -> usize {
        self.at
    }

    /// The next byte that is not white space, which is passed over; `None` at the end.
    pub fn peek(&mut self) -> Option<u8> {
        loop {
            match self.byte() {
                Some(b' ' | b'\t' | b'\n' | b'\r') => self.at += 1,
                next => return next,
            }
        }
    }

    /// Reads an object and puts its members in place of what is in `members`.
    pub fn object(&mut self, members: &mut Vec<Member>) -> Result<(), Error> {
        members.clear();
        self.members(|reader, name| {
            if members.len() == reader.max_fields {
                return Err(reader.error(too_many_fields(reader.max_fields)));
            }
            members.push(Member { name, value: reader.value()? });
            Ok(())
        })
    }

    /// Reads an object; `each` is called with every member's name and has to read the member's value.
    pub fn members(&mut self, mut each: impl FnMut(&mut Self, Value) -> Result<(), Error>) -> Result<(), Error> {
        self.enter(b'{', "expected `{`")?;
        if self.leave(b'}') {
            return Ok(());
        }
        loop {
            if self.peek() != Some(b'"') {
                return Err(self.error(match self.byte() {
                    Some(b'a'..=b'z' | b'A'..=b'Z' | b'_' | b'$' | b'\'') => {
                        "expected a member name in double quotes (this looks like a JavaScript object literal, not JSON)"
                    }
                    _ => "expected a member name in double quotes",
                }));
            }
            let name = self.string()?;
            if self.peek() != Some(b':') {
                return Err(self.error("expected `:` after the member name"));
            }
            self.at += 1;
            each(self, name)?;
            if self.leave(b'}') {
                return Ok(());
            }
            if self.byte() != Some(b',') {
                return Err(self.error("expected `,` or `}` after a member's value"));
            }
            self.at += 1;
        }
    }

    /// Reads an array; `each` is called before every element and has to read it.
    pub fn array(&mut self, mut each: impl FnMut(&mut Self) -> Result<(), Error>) -> Result<(), Error> {
        self.enter(b'[', "expected `[`")?;
        if self.leave(b']') {
            return Ok(());
        }
        loop {
            self.peek();
            each(self)?;
            if self.leave(b']') {
                return Ok(());
            }
            if self.byte() != Some(b',') {
                return Err(self.error("expected `,` or `]` after an element"));
            }
            self.at += 1;
        }
    }

    /// Reads any value.
    pub fn value(&mut self) -> Result<Value, Error> {
        let next = self.peek();
        let start = self.at;
        let kind = match next {
            Some(b'"') => return self.string(),
            Some(b'{') => {
                self.members(|reader, _| reader.value().map(drop))?;
                Kind::Object
            }
            Some(b'[') => {
                self.array(|reader| reader.value().map(drop))?;
                Kind::Array
            }
            Some(b'-' | b'0'..=b'9') => self.number()?,
            Some(b't') => self.word("true", Kind::Bool)?,
            Some(b'f') => self.word("false", Kind::Bool)?,
            Some(b'n') => self.word("null", Kind::Null)?,
            Some(b'\'') => return Err(self.error("expected a value; text has to be in double quotes, not single ones")),
            _ => return Err(self.error("expected a value")),
        };
        Ok(Value { span: Span::new(start, self.at), kind })
    }

    /// An error at the current position, which says so if the text ends there.
    #[cold]
    pub fn error(&self, problem: impl Into<Cow<'static, str>>) -> Error {
        let problem = problem.into();
        match self.byte() {
            Some(_) => Error::new(self.at, problem),
            None => Error::new(self.at, format!("{problem}, but the text ends here")),
        }
    }

    #[inline]
    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn enter(&mut self, open: u8, problem: &'static str) -> Result<(), Error> {
        if self.peek() != Some(open) {
            return Err(self.error(problem));
        }
        if self.depth == self.max_depth {
            return Err(self.error(format!("nested more than {} levels deep", self.max_depth)));
        }
        self.depth += 1;
        self.at += 1;
        Ok(())
    }

    fn leave(&mut self, close: u8) -> bool {
        let closes = self.peek() == Some(close);
        if closes {
            self.depth -= 1;
            self.at += 1;
        }
        closes
    }

    fn word(&mut self, word: &'static str, kind: Kind) -> Result<Kind, Error> {
        if self.text.get(self.at..).is_some_and(|rest| rest.starts_with(word)) {
            self.at += word.len();
            return Ok(kind);
        }
        Err(self.error("expected a value"))
    }

    #[inline(always)]
    fn string(&mut self) -> Result<Value, Error> {
        let start = self.at + 1;
        let end = start + plain(self.text.as_bytes().get(start..).unwrap_or_default());
        self.at = end;
        match self.byte() {
            Some(b'"') => {
                self.at += 1;
                Ok(Value { span: Span::new(start, end), kind: Kind::String })
            }
            _ => self.string_with_escapes(start),
        }
    }

    /// The string that begins at `start`, from its first byte on that does not stand for itself.
    #[inline(never)]
    fn string_with_escapes(&mut self, start: usize) -> Result<Value, Error> {
        loop {
            match self.byte() {
                Some(b'"') => {
                    let span = Span::new(start, self.at);
                    self.at += 1;
                    return Ok(Value { span, kind: Kind::Escaped });
                }
                Some(b'\\') => {
                    self.at += 1;
                    match self.byte() {
                        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
                        Some(b'u') => {
                            self.at += 1;
                            for _ in 0..4 {
                                match self.byte() {
                                    Some(digit) if digit.is_ascii_hexdigit() => self.at += 1,
                                    _ => return Err(self.error("expected four hexadecimal digits after `\\u`")),
                                }
                            }
                        }
                        _ => return Err(self.error("unknown escape sequence")),
                    }
                }
                Some(_) => return Err(self.error("a control character in a string has to be escaped")),
                None => return Err(self.error("expected `\"` at the end of a string")),
            }
            self.at += plain(self.text.as_bytes().get(self.at..).unwrap_or_default());
        }
    }

    fn number(&mut self) -> Result<Kind, Error> {
        if self.byte() == Some(b'-') {
            self.at += 1;
        }
        match self.byte() {
            Some(b'0') => {
                self.at += 1;
                if let Some(b'0'..=b'9') = self.byte() {
                    return Err(self.error("a number must not begin with 0; write it as text"));
                }
            }
            _ => self.digits()?,
        }
        if self.byte() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.byte() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.byte() {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(Kind::Number)
    }

    fn digits(&mut self) -> Result<(), Error> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.byte() {
            self.at += 1;
        }
        if self.at == start { Err(self.error("expected a digit")) } else { Ok(()) }
    }
}

/// In words for whoever sent them.
pub fn too_many_fields(limit: usize) -> String {
    format!("more than {limit} fields in one event")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(text: &str) -> Result<Value, Error> {
        let mut reader = Reader::new(text, 64);
        let value = reader.value()?;
        match reader.peek() {
            None => Ok(value),
            Some(_) => Err(reader.error("expected the end")),
        }
    }

    #[test]
    fn accepts_and_refuses_what_serde_json_does() {
        let seeds = [
            r#"{"a":1,"b":[true,false,null,-0.5e+10,"x\u00e9\n"],"c":{"d":{}},"":""}"#,
            r#"[{"x":"\ud83d\ude00"},[],[[]],12e3,0,-0,1.25]"#,
            include_str!("../../tests/support/payloads.ndjson").lines().nth(2).unwrap(),
        ];
        let alphabet = b"{}[]\",:\\/ \t\n0123456789.-+eEtrufalsn\x00\x1f\x7f'u";
        let mut random = fastrand::Rng::with_seed(7);
        let (mut accepted, mut refused) = (0, 0);
        for round in 0..200_000 {
            let mut bytes = seeds[round % seeds.len()].as_bytes().to_vec();
            for _ in 0..random.usize(0..4) {
                let at = random.usize(0..bytes.len());
                match random.u8(0..3) {
                    0 => bytes[at] = alphabet[random.usize(0..alphabet.len())],
                    1 => drop(bytes.remove(at)),
                    _ => bytes.insert(at, alphabet[random.usize(0..alphabet.len())]),
                }
            }
            let Ok(text) = std::str::from_utf8(&bytes) else { continue };
            let theirs = serde_json::from_str::<serde::de::IgnoredAny>(text);
            assert_eq!(whole(text).is_ok(), theirs.is_ok(), "{text:?}: {:?} / {theirs:?}", whole(text));
            if theirs.is_ok() { accepted += 1 } else { refused += 1 }
        }
        assert!(accepted > 10_000 && refused > 10_000, "{accepted} accepted, {refused} refused");
    }

    #[test]
    fn text_is_what_serde_json_reads() {
        let mut random = fastrand::Rng::with_seed(8);
        for _ in 0..20_000 {
            let original: String = (0..random.usize(0..12))
                .map(|_| match random.u8(0..4) {
                    0 => random.char('\0'..='\u{7f}'),
                    1 => random.char('\u{0b80}'..='\u{0bff}'),
                    2 => random.char('\u{1f600}'..='\u{1f64f}'),
                    _ => *random.choice(&['"', '\\', '\n', '/']).unwrap(),
                })
                .collect();
            let (mut ours, mut bytes) = (String::new(), Vec::new());
            write_string(&original, &mut ours);
            write_string(&original, &mut bytes);
            assert_eq!(ours.as_bytes(), bytes);
            assert_eq!(serde_json::from_str::<String>(&ours).unwrap(), original);
            let escaped: String = original.encode_utf16().map(|unit| format!("\\u{unit:04X}")).collect();
            for text in [ours, format!("\"{escaped}\"")] {
                let value = whole(&text).unwrap();
                assert_eq!(value.text(&text), original);
                assert_eq!(*value.bytes(text.as_bytes()), *original.as_bytes());
            }
        }
        assert_eq!(whole(r#""a\ud800b""#).unwrap().text(r#""a\ud800b""#), "a\u{fffd}b");
    }

    #[test]
    fn nesting_is_bounded_without_using_the_stack_up() {
        let deep = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        assert!(whole(&deep(64)).is_ok());
        assert!(whole(&deep(65)).unwrap_err().problem().contains("64 levels"));
        assert!(whole(&deep(50_000)).is_err());
        assert!(whole(&"{\"a\":".repeat(50_000)).is_err());
    }

    #[test]
    fn errors_say_where_and_what() {
        let error = whole("{ virtual_number: 440000000000 }").unwrap_err();
        assert_eq!(error.at(), 2);
        assert!(error.problem().contains("double quotes"), "{error}");
        assert!(whole("{\"a\":1").unwrap_err().problem().contains("ends here"));
        assert_eq!(whole("{\"a\":01}").unwrap_err().at(), 6);
    }

    #[test]
    fn members_keep_their_bytes_order_and_duplicates() {
        let text = r#"{"n":1e3,"a":"x","n":0.10,"t\u0065am":{"k":[1]}}"#;
        let mut members = Vec::new();
        Reader::new(text, 8).object(&mut members).unwrap();
        let seen: Vec<_> = members
            .iter()
            .map(|m| (m.name.text(text), str::from_utf8(m.value.span.of(text.as_bytes())).unwrap()))
            .collect();
        assert_eq!(
            seen,
            [("n".into(), "1e3"), ("a".into(), "x"), ("n".into(), "0.10"), ("team".into(), "{\"k\":[1]}")]
                .map(|(name, value): (Cow<str>, _)| (name, value))
        );
    }
}
