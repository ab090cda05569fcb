//! A JSON reader for headers: pulls values out of bytes and allocates nothing itself.
//!
//! `serde_json` cannot be used for reading here: it keeps the last of repeated keys where a header must be
//! refused, and it unescapes strings in a buffer of its own, so that a hostile header takes several
//! times its length before any checksum is seen. Its tests hold this reader to the same grammar.
//!
//! Invariants: the input is UTF-8, checked at the beginning; so is every string that is handed out.
//!
//! Place in docs/format-files.md: "The plain header". RFC 8259.

use crate::error::{Error, Result};

/// Nesting of values that are skipped; `serde_json` has the same limit.
const MAX_DEPTH: u32 = 127;

/// What opens and what closes a list of values.
#[derive(Clone, Copy)]
pub(super) struct Brackets(u8, u8);

/// The brackets of an object.
pub(super) const OBJECT: Brackets = Brackets(b'{', b'}');
/// The brackets of an array.
pub(super) const ARRAY: Brackets = Brackets(b'[', b']');

/// A position in a JSON text.
pub(super) struct Reader<'a> {
    text: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    /// # Errors
    /// [`Error::Corrupt`] if the text is not UTF-8.
    pub(super) fn new(text: &'a [u8]) -> Result<Self> {
        match std::str::from_utf8(text) {
            Ok(_) => Ok(Self { text, position: 0 }),
            Err(error) => Err(Self {
                text,
                position: error.valid_up_to(),
            }
            .error("not UTF-8")),
        }
    }

    /// An error at the current position.
    pub(super) fn error(&self, what: &str) -> Error {
        Error::corrupt(format!("{what} at byte {}", self.position))
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.position).copied()
    }

    /// Moves past `byte` if it is the next one.
    fn take(&mut self, byte: u8) -> bool {
        let taken = self.peek() == Some(byte);
        self.position += usize::from(taken);
        taken
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.position += 1;
        }
    }

    /// Moves past spaces and `byte`, which must come.
    fn expect(&mut self, byte: u8) -> Result<()> {
        self.skip_space();
        if self.take(byte) {
            return Ok(());
        }
        Err(self.error(&format!("{:?} is missing", char::from(byte))))
    }

    /// Checks that only spaces are left.
    pub(super) fn end(&mut self) -> Result<()> {
        self.skip_space();
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.error("something follows the header")),
        }
    }

    /// Enters an object or an array; says whether there is anything in it.
    pub(super) fn enter(&mut self, brackets: Brackets) -> Result<bool> {
        self.expect(brackets.0)?;
        self.skip_space();
        Ok(!self.take(brackets.1))
    }

    /// Moves on to the next member or leaves; says whether there is one.
    pub(super) fn another(&mut self, brackets: Brackets) -> Result<bool> {
        self.skip_space();
        if self.take(brackets.1) {
            return Ok(false);
        }
        self.expect(b',').map(|()| true)
    }

    /// Moves past the colon behind a key.
    pub(super) fn colon(&mut self) -> Result<()> {
        self.expect(b':')
    }

    /// Reads a string and appends it to `out`.
    pub(super) fn string(&mut self, out: &mut Vec<u8>) -> Result<()> {
        self.each_part_of_string(|part| out.extend_from_slice(part))
    }

    fn each_part_of_string(&mut self, mut part: impl FnMut(&[u8])) -> Result<()> {
        self.expect(b'"')?;
        loop {
            let start = self.position;
            let plain = |byte: u8| byte != b'"' && byte != b'\\' && byte >= b' ';
            while self.peek().is_some_and(plain) {
                self.position += 1;
            }
            part(&self.text[start..self.position]);
            if self.take(b'"') {
                return Ok(());
            }
            if !self.take(b'\\') {
                return Err(self.error("a string is cut off or has a control character"));
            }
            let character = self.escape()?;
            part(character.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }

    /// Reads what follows the backslash of an escape.
    fn escape(&mut self) -> Result<char> {
        let letter = self
            .peek()
            .ok_or_else(|| self.error("a string is cut off"))?;
        self.position += 1;
        Ok(match letter {
            b'"' | b'\\' | b'/' => char::from(letter),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let high = self.hex()?;
                let mut units = [high, 0];
                let mut count = 1;
                if (0xD800..0xDC00).contains(&high) && self.take(b'\\') && self.take(b'u') {
                    units[1] = self.hex()?;
                    count = 2;
                }
                let mut decoded = char::decode_utf16(units.into_iter().take(count));
                match (decoded.next(), decoded.next()) {
                    (Some(Ok(character)), None) => character,
                    _ => return Err(self.error("half a surrogate pair")),
                }
            }
            _ => return Err(self.error("an unknown escape")),
        })
    }

    fn hex(&mut self) -> Result<u16> {
        let mut value = 0;
        for _ in 0..4 {
            let digit = self.peek().and_then(|byte| char::from(byte).to_digit(16));
            let digit = digit.ok_or_else(|| self.error("an escape is no hexadecimal number"))?;
            value = value << 4 | digit as u16;
            self.position += 1;
        }
        Ok(value)
    }

    /// Reads a number without sign, fraction and exponent.
    pub(super) fn unsigned(&mut self) -> Result<u64> {
        self.skip_space();
        let start = self.position;
        self.digits()?;
        let digits = std::str::from_utf8(&self.text[start..self.position]).unwrap_or_default();
        if digits.len() > 1 && digits.starts_with('0') {
            return Err(self.error("a number begins with 0"));
        }
        // A fraction or an exponent is refused by whoever expects a comma next.
        digits
            .parse()
            .map_err(|_| self.error("a number has more than 64 bits"))
    }

    fn digits(&mut self) -> Result<()> {
        let start = self.position;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.position += 1;
        }
        if start == self.position {
            Err(self.error("a digit is missing"))
        } else {
            Ok(())
        }
    }

    /// Reads a value of any kind and forgets it.
    pub(super) fn skip(&mut self) -> Result<()> {
        self.skip_nested(MAX_DEPTH)
    }

    fn skip_nested(&mut self, depth: u32) -> Result<()> {
        self.skip_space();
        match self.peek() {
            Some(b'{') => self.skip_list(OBJECT, depth),
            Some(b'[') => self.skip_list(ARRAY, depth),
            Some(b'"') => self.each_part_of_string(|_| ()),
            Some(b't') => self.word(b"true"),
            Some(b'f') => self.word(b"false"),
            Some(b'n') => self.word(b"null"),
            _ => self.skip_number(),
        }
    }

    fn skip_list(&mut self, brackets: Brackets, depth: u32) -> Result<()> {
        let depth = depth
            .checked_sub(1)
            .ok_or_else(|| self.error("too many levels"))?;
        let mut more = self.enter(brackets)?;
        while more {
            if brackets.0 == OBJECT.0 {
                self.each_part_of_string(|_| ())?;
                self.colon()?;
            }
            self.skip_nested(depth)?;
            more = self.another(brackets)?;
        }
        Ok(())
    }

    fn word(&mut self, word: &[u8]) -> Result<()> {
        if self.text[self.position..].starts_with(word) {
            self.position += word.len();
            return Ok(());
        }
        Err(self.error("an unknown word"))
    }

    fn skip_number(&mut self) -> Result<()> {
        self.take(b'-');
        if !self.take(b'0') {
            self.digits()?;
        }
        if self.take(b'.') {
            self.digits()?;
        }
        if self.take(b'e') || self.take(b'E') {
            let _ = self.take(b'+') || self.take(b'-');
            self.digits()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            (-1e9..1e9).prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 12, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map(".{0,3}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    fn accepts(text: &[u8]) -> bool {
        Reader::new(text)
            .and_then(|mut reader| reader.skip().and_then(|()| reader.end()))
            .is_ok()
    }

    proptest! {
        #[test]
        fn accepts_what_the_json_library_accepts(
            value in any_json(),
            pretty: bool,
            edits in proptest::collection::vec((any::<u16>(), any::<u8>(), 0_u8..4), 0..3),
        ) {
            let mut text = if pretty {
                serde_json::to_vec_pretty(&value).unwrap()
            } else {
                serde_json::to_vec(&value).unwrap()
            };
            for (at, byte, kind) in edits {
                let at = usize::from(at) % text.len().max(1);
                // Bytes that mean something in JSON find more than random ones.
                let meaningful = *b"\"\\{}[]:,0123456789-+.eEutfn/dD89aA \n\x00\x1f"
                    .get(usize::from(byte))
                    .unwrap_or(&byte);
                match kind {
                    0 => text.insert(at, meaningful),
                    1 if !text.is_empty() => text[at] = meaningful,
                    2 if !text.is_empty() => drop(text.remove(at)),
                    _ => text.truncate(at),
                }
            }
            // Exponents beyond the range of floats are an error of theirs only.
            let theirs = serde_json::from_slice::<Value>(&text);
            let out_of_range =
                theirs.as_ref().is_err_and(|error| error.to_string().contains("out of range"));
            prop_assume!(!out_of_range);
            prop_assert_eq!(accepts(&text), theirs.is_ok(), "{:?}", String::from_utf8_lossy(&text));
        }

        #[test]
        fn strings_are_read_as_the_json_library_reads_them(
            text in r#"([a-z"/é😀]|\\["\\/bfnrtux]|\\u[dD][89abcdefAB][0-9a-f]{2}|\\u00[0-9a-fg]{2}){0,6}"#
        ) {
            let text = format!("\"{text}\"");
            let mut read = Vec::new();
            let ours = Reader::new(text.as_bytes())
                .and_then(|mut reader| reader.string(&mut read).and_then(|()| reader.end()));
            match serde_json::from_str::<String>(&text) {
                Ok(expected) => {
                    prop_assert!(ours.is_ok(), "{}", text);
                    prop_assert_eq!(String::from_utf8(read).unwrap(), expected);
                }
                Err(_) => prop_assert!(ours.is_err(), "{}", text),
            }
        }
    }

    #[test]
    fn numbers_are_unsigned_and_whole() {
        let read = |text: &str| {
            let mut reader = Reader::new(text.as_bytes()).unwrap();
            reader
                .unsigned()
                .and_then(|value| reader.end().map(|()| value))
                .ok()
        };
        assert_eq!(read(" 0"), Some(0));
        assert_eq!(read("18446744073709551615"), Some(u64::MAX));
        for wrong in [
            "",
            "-1",
            "01",
            "1.0",
            "1e0",
            "18446744073709551616",
            "+1",
            "x",
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn nesting_is_limited() {
        let nested = |depth: usize| ["[".repeat(depth), "]".repeat(depth)].concat();
        assert!(accepts(nested(100).as_bytes()));
        assert!(!accepts(nested(1_000_000).as_bytes()));
    }
}
