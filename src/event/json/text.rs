//! The escape sequences of strings: found, resolved, written.

/// How many bytes from the front on stand for themselves in a string.
#[inline(always)]
pub fn plain(bytes: &[u8]) -> usize {
    let mut rest = bytes;
    let mut words = 0;
    while let Some((word, behind)) = rest.split_first_chunk() {
        let special = special(*word);
        if special != 0 {
            return bytes.len() - rest.len() + special.trailing_zeros() as usize / 8;
        }
        rest = behind;
        words += 1;
        // What is longer than two words is often much longer.
        while words > 1
            && let Some((chunk, behind)) = rest.split_first_chunk::<16>()
            && chunk.iter().fold(true, |plain, byte| plain & stands_for_itself(*byte))
        {
            rest = behind;
        }
    }
    bytes.len() - rest.len() + rest.iter().take_while(|byte| stands_for_itself(**byte)).count()
}

/// Whether a string may hold `text` as it is.
pub fn is_plain(text: &str) -> bool {
    plain(text.as_bytes()) == text.len()
}

fn stands_for_itself(byte: u8) -> bool {
    byte >= 0x20 && byte != b'"' && byte != b'\\'
}

/// Not zero if any of these bytes does not stand for itself; the lowest bit set is then the top bit of the first one. A byte's top bit is
/// set in the difference where the byte is less than the subtrahend (Hacker's Delight, 6-1), and the lowest is never a borrowed one.
#[inline]
fn special(word: [u8; 8]) -> u64 {
    const EACH: u64 = u64::from_ne_bytes([1; 8]);
    const TOP: u64 = EACH << 7;
    let less = |word: u64, bound: u64| word.wrapping_sub(EACH * bound) & !word;
    let word = u64::from_le_bytes(word);
    let quote = less(word ^ (EACH * u64::from(b'"')), 1);
    let backslash = less(word ^ (EACH * u64::from(b'\\')), 1);
    (quote | backslash | less(word, 0x20)) & TOP
}

/// What text is written into.
pub trait Written: Default {
    /// Adds a text.
    fn push_str(&mut self, text: &str);
    /// Adds a character.
    fn push(&mut self, character: char);
    /// Adds what an escape sequence for half a character stands for.
    fn push_lone_surrogate(&mut self, unit: u32);
}

impl Written for String {
    fn push_str(&mut self, text: &str) {
        self.push_str(text);
    }

    fn push(&mut self, character: char) {
        self.push(character);
    }

    fn push_lone_surrogate(&mut self, _: u32) {
        self.push(char::REPLACEMENT_CHARACTER);
    }
}

impl Written for Vec<u8> {
    fn push_str(&mut self, text: &str) {
        self.extend_from_slice(text.as_bytes());
    }

    fn push(&mut self, character: char) {
        match u8::try_from(character).ok().filter(u8::is_ascii) {
            Some(byte) => self.push(byte),
            None => self.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }

    /// As UTF-8 would have it if it allowed that, which makes it different from any text.
    fn push_lone_surrogate(&mut self, unit: u32) {
        self.extend([0xE0 | unit >> 12, 0x80 | unit >> 6 & 0x3F, 0x80 | unit & 0x3F].map(|byte| byte as u8));
    }
}

/// Resolves the escape sequences of a string that a [`Reader`] accepted.
pub fn unescape<T: Written>(raw: &str) -> T {
    let mut text = T::default();
    let mut rest = raw;
    while let Some((plain, escaped)) = rest.split_once('\\') {
        text.push_str(plain);
        let mut chars = escaped.chars();
        match chars.next() {
            Some('b') => text.push('\u{8}'),
            Some('f') => text.push('\u{c}'),
            Some('n') => text.push('\n'),
            Some('r') => text.push('\r'),
            Some('t') => text.push('\t'),
            Some('u') => {
                let unit = hex(escaped, 1).unwrap_or_default();
                let pair = escaped.get(5..7).filter(|next| *next == "\\u").and_then(|_| hex(escaped, 7));
                match (unit, pair) {
                    (high @ 0xD800..0xDC00, Some(low @ 0xDC00..0xE000)) => {
                        let scalar = 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
                        text.push(char::from_u32(scalar).unwrap_or(char::REPLACEMENT_CHARACTER));
                        rest = escaped.get(11..).unwrap_or_default();
                    }
                    _ => {
                        match char::from_u32(unit) {
                            Some(character) => text.push(character),
                            None => text.push_lone_surrogate(unit),
                        }
                        rest = escaped.get(5..).unwrap_or_default();
                    }
                }
                continue;
            }
            Some(other) => text.push(other),
            None => {}
        }
        rest = chars.as_str();
    }
    text.push_str(rest);
    text
}

fn hex(text: &str, at: usize) -> Option<u32> {
    u32::from_str_radix(text.get(at..at + 4)?, 16).ok()
}

/// Writes `text` as a JSON string, quotes included.
pub fn write_string(text: &str, out: &mut impl Written) {
    out.push('"');
    let mut rest = text;
    loop {
        // What needs an escape sequence is one byte long, and no part of another character.
        let plain = plain(rest.as_bytes());
        if plain == rest.len() {
            out.push_str(rest);
            break;
        }
        let (plain, special) = rest.split_at(plain);
        out.push_str(plain);
        let mut behind = special.chars();
        match behind.next() {
            None => break,
            Some('"') => out.push_str("\\\""),
            Some('\\') => out.push_str("\\\\"),
            Some('\n') => out.push_str("\\n"),
            Some('\r') => out.push_str("\\r"),
            Some('\t') => out.push_str("\\t"),
            Some(control) => out.push_str(&format!("\\u{:04x}", u32::from(control))),
        }
        rest = behind.as_str();
    }
    out.push('"');
}
