//! Reads typed fields out of a body whose syntax has been checked.
//!
//! The rules are those of protobuf's JSON mapping: names in snake_case or lowerCamel, unknown names ignored, null is the
//! default, 64-bit integers as numbers or strings, bytes as base64, enums by name or number. A field given twice is refused,
//! as current etcd does, rather than one of the two taken.

use std::borrow::Cow;

use bytes::Bytes;

use crate::wire::base64::{self, Base64Error};
use crate::wire::request::TXN_DEPTH_MAX;
use crate::wire::syntax::{self, SyntaxError};

/// Why a body is not the message that was expected. The texts are etcd 3.5's where it has one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    /// It is not JSON.
    #[error(transparent)]
    Syntax(#[from] SyntaxError),
    /// A value of the wrong kind.
    #[error("json: cannot unmarshal {found} into Go value of type {wanted}")]
    Type {
        /// The kind found; for numbers with their text.
        found: String,
        /// The kind wanted.
        wanted: &'static str,
    },
    /// A bytes field that is not base64.
    #[error(transparent)]
    Base64(#[from] Base64Error),
    /// A name that the enum does not have.
    #[error("unknown value {:?} for enum {enumeration}", format!("\"{name}\""))]
    EnumName {
        /// The name given.
        name: String,
        /// The protobuf enum.
        enumeration: &'static str,
    },
    /// A field given twice, perhaps once in each spelling.
    #[error("duplicate field \"{field}\": give it once")]
    Duplicate {
        /// The field.
        field: &'static str,
    },
    /// Two fields that exclude each other.
    #[error("field \"{field}\": oneof {oneof} is already set: give one of its fields")]
    OneofTaken {
        /// The second field.
        field: &'static str,
        /// The protobuf oneof.
        oneof: &'static str,
    },
    /// Transactions nested deeper than [`TXN_DEPTH_MAX`], which no operation budget allows.
    #[error("transactions are nested more than {TXN_DEPTH_MAX} deep")]
    TooDeep,
}

/// The names of a field: in the `.proto` file, and in lowerCamel.
pub(crate) type FieldNames = (&'static str, &'static str);

/// A place in checked JSON text.
pub(crate) struct Cursor<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// Starts reading `text`, which must be one JSON value whose syntax was checked.
    pub(crate) fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0 }
    }

    fn peek(&self) -> u8 {
        self.text.get(self.at).copied().unwrap_or(b' ')
    }

    fn skip_space(&mut self) {
        while self.at < self.text.len() && syntax::is_space(self.text[self.at]) {
            self.at += 1;
        }
    }

    /// True, and the null consumed, if a null is next.
    fn null(&mut self) -> bool {
        let null = self.peek() == b'n';
        if null {
            self.at += b"null".len();
        }
        null
    }

    /// Reads an object (or null, which is the default message), calling `set` for each field in `fields`.
    pub(crate) fn object(
        &mut self,
        fields: &[FieldNames],
        mut set: impl FnMut(&mut Self, &'static str) -> Result<(), DecodeError>,
    ) -> Result<(), DecodeError> {
        self.skip_space();
        if self.null() {
            return Ok(());
        }
        if self.peek() != b'{' {
            return Err(self.wrong_kind("map[string]json.RawMessage"));
        }
        self.at += 1;
        let mut seen = 0_u32;
        loop {
            self.skip_space();
            match self.peek() {
                b'"' => {}
                b',' => {
                    self.at += 1;
                    continue;
                }
                _ => {
                    self.at += 1;
                    return Ok(());
                }
            }
            let name = self.string();
            self.skip_space();
            self.at += 1; // the colon
            self.skip_space();
            let Some(index) =
                fields.iter().position(|(proto, camel)| *name == *proto.as_bytes() || *name == *camel.as_bytes())
            else {
                self.skip_value();
                continue;
            };
            let field = fields[index].0;
            if seen & 1 << index != 0 {
                return Err(DecodeError::Duplicate { field });
            }
            seen |= 1 << index;
            if !self.null() {
                set(self, field)?;
            }
        }
    }

    /// Reads an array (or null), calling `element` at each of its values.
    pub(crate) fn array(
        &mut self,
        mut element: impl FnMut(&mut Self) -> Result<(), DecodeError>,
    ) -> Result<(), DecodeError> {
        if self.peek() != b'[' {
            return Err(self.wrong_kind("[]json.RawMessage"));
        }
        self.at += 1;
        loop {
            self.skip_space();
            match self.peek() {
                b',' => self.at += 1,
                b']' => {
                    self.at += 1;
                    return Ok(());
                }
                _ => element(self)?,
            }
        }
    }

    pub(crate) fn boolean(&mut self) -> Result<bool, DecodeError> {
        match self.peek() {
            b't' => {
                self.at += b"true".len();
                Ok(true)
            }
            b'f' => {
                self.at += b"false".len();
                Ok(false)
            }
            _ => Err(self.wrong_kind("bool")),
        }
    }

    pub(crate) fn bytes(&mut self) -> Result<Bytes, DecodeError> {
        if self.peek() != b'"' {
            return Err(self.wrong_kind("[]uint8"));
        }
        Ok(base64::decode(&self.string())?)
    }

    pub(crate) fn int64(&mut self) -> Result<i64, DecodeError> {
        if self.peek() != b'"' {
            return self.number("int64");
        }
        // A quoted number is the number's text; escapes in it are not undone, as in etcd.
        let raw = self.raw_string();
        let range = syntax::only_value(raw)?;
        Cursor::new(&raw[range]).number("int64")
    }

    /// Text. What is no UTF-8 is replaced, as Go's JSON does.
    pub(crate) fn text(&mut self) -> Result<String, DecodeError> {
        if self.peek() != b'"' {
            return Err(self.wrong_kind("string"));
        }
        Ok(String::from_utf8_lossy(&self.string()).into_owned())
    }

    /// An id: a number that is not negative, of which all 64 bits are used.
    pub(crate) fn uint64(&mut self) -> Result<u64, DecodeError> {
        if self.peek() != b'"' {
            return self.unsigned();
        }
        let raw = self.raw_string();
        let range = syntax::only_value(raw)?;
        Cursor::new(&raw[range]).unsigned()
    }

    fn unsigned(&mut self) -> Result<u64, DecodeError> {
        let start = self.at;
        if self.peek().is_ascii_digit() {
            let mut ahead = Cursor { text: self.text, at: start };
            ahead.skip_value();
            if let Some(number) =
                std::str::from_utf8(&self.text[start..ahead.at]).ok().and_then(|text| text.parse().ok())
            {
                self.at = ahead.at;
                return Ok(number);
            }
        }
        let number = self.number("uint64")?;
        u64::try_from(number).map_err(|_| self.number_error(start, "uint64"))
    }

    /// An enum by number (any 32-bit number, known or not) or by name.
    pub(crate) fn enumeration(&mut self, enumeration: &'static str, names: &[&str]) -> Result<i32, DecodeError> {
        if self.peek() != b'"' {
            let wanted = "protoreflect.EnumNumber";
            let start = self.at;
            let number = self.number(wanted)?;
            return i32::try_from(number).map_err(|_| self.number_error(start, wanted));
        }
        let name = self.string();
        match names.iter().position(|known| *name == *known.as_bytes()) {
            Some(number) => Ok(number as i32),
            None => Err(DecodeError::EnumName { name: shown(&name), enumeration }),
        }
    }

    fn number(&mut self, wanted: &'static str) -> Result<i64, DecodeError> {
        if !matches!(self.peek(), b'-' | b'0'..=b'9') {
            return Err(self.wrong_kind(wanted));
        }
        let start = self.at;
        self.skip_value();
        integer(&self.text[start..self.at]).ok_or_else(|| self.number_error(start, wanted))
    }

    fn number_error(&self, start: usize, wanted: &'static str) -> DecodeError {
        DecodeError::Type { found: format!("number {}", shown(&self.text[start..self.at])), wanted }
    }

    fn wrong_kind(&self, wanted: &'static str) -> DecodeError {
        let found = match self.peek() {
            b'"' => "string",
            b'{' => "object",
            b'[' => "array",
            b't' | b'f' => "bool",
            b'n' => "null",
            _ => "number",
        };
        DecodeError::Type { found: found.to_owned(), wanted }
    }

    /// The content of the string that starts here, escapes undone.
    fn string(&mut self) -> Cow<'a, [u8]> {
        let raw = self.raw_string();
        if raw.contains(&b'\\') { Cow::Owned(unescape(raw)) } else { Cow::Borrowed(raw) }
    }

    /// What stands between the quotes of the string that starts here.
    fn raw_string(&mut self) -> &'a [u8] {
        let start = self.at + 1;
        self.at = start;
        loop {
            self.at += syntax::plain_length(&self.text[self.at..]);
            match self.text.get(self.at) {
                Some(b'\\') => self.at += 2,
                Some(b'"') => {
                    self.at += 1;
                    return &self.text[start..self.at - 1];
                }
                Some(_) => self.at += 1,
                None => return &self.text[start..],
            }
        }
    }

    fn skip_value(&mut self) {
        let mut depth = 0_usize;
        loop {
            match self.peek() {
                b'"' => {
                    self.raw_string();
                }
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b'}' | b']' => {
                    depth -= 1;
                    self.at += 1;
                }
                b',' | b':' => self.at += 1,
                byte if syntax::is_space(byte) => self.at += 1,
                _ => {
                    while self.at < self.text.len()
                        && !matches!(self.peek(), b',' | b'}' | b']' | b' ' | b'\t' | b'\r' | b'\n')
                    {
                        self.at += 1;
                    }
                }
            }
            if depth == 0 {
                return;
            }
        }
    }
}

/// What of a wrong text is repeated in the error.
fn shown(text: &[u8]) -> String {
    const SHOWN_BYTES_MAX: usize = 64;
    if text.len() <= SHOWN_BYTES_MAX {
        return String::from_utf8_lossy(text).into_owned();
    }
    format!("{}...", String::from_utf8_lossy(&text[..SHOWN_BYTES_MAX]))
}

/// A JSON number as a 64-bit integer; fractions and exponents are fine if the number is whole.
fn integer(text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?;
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let fraction = fraction.trim_end_matches('0');
    let exponent = exponent.parse::<i64>().ok()?.checked_sub(i64::try_from(fraction.len()).ok()?)?;
    let digits = format!("{whole}{fraction}");
    if digits.bytes().all(|byte| matches!(byte, b'0' | b'-')) {
        return Some(0);
    }
    if exponent >= 0 {
        let zeros = usize::try_from(exponent).ok().filter(|zeros| *zeros < 20)?;
        return format!("{digits}{}", "0".repeat(zeros)).parse().ok();
    }
    // Fraction digits are left: whole only if the mantissa ends in enough zeros, which a written fraction never does.
    let drop = usize::try_from(exponent.unsigned_abs()).ok().filter(|drop| *drop < digits.len())?;
    let (kept, dropped) = digits.split_at(digits.len() - drop);
    if dropped.bytes().all(|byte| byte == b'0') { kept.parse().ok() } else { None }
}

/// Undoes the escapes of a checked JSON string; a lone surrogate becomes U+FFFD.
fn unescape(raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'\\' {
            out.push(*first);
            continue;
        }
        let [escape, tail @ ..] = rest else { break };
        rest = tail;
        match escape {
            b'b' => out.push(0x08),
            b'f' => out.push(0x0c),
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'u' => {
                let (character, tail) = unicode_escape(rest);
                rest = tail;
                out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            }
            other => out.push(*other),
        }
    }
    out
}

/// The character whose four hex digits start `rest`, a second escape included if it is the other half of a pair.
fn unicode_escape(rest: &[u8]) -> (char, &[u8]) {
    let unit = |text: &[u8]| {
        let digits = std::str::from_utf8(text.get(..4)?).ok()?;
        u16::from_str_radix(digits, 16).ok()
    };
    let Some(first) = unit(rest) else { return (char::REPLACEMENT_CHARACTER, &[]) };
    let after = &rest[4..];
    if let Some(second) = after.strip_prefix(b"\\u").and_then(unit)
        && let Some(Ok(pair)) = char::decode_utf16([first, second]).next()
        && pair.len_utf16() == 2
    {
        return (pair, &after[6..]);
    }
    (char::from_u32(u32::from(first)).unwrap_or(char::REPLACEMENT_CHARACTER), after)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn int(text: &str) -> Result<i64, String> {
        Cursor::new(text.as_bytes()).int64().map_err(|error| error.to_string())
    }

    #[test]
    fn integers_as_numbers_and_strings() {
        for (text, number) in [
            ("1", 1),
            ("\"1\"", 1),
            ("-1", -1),
            ("\"-0\"", 0),
            ("\" 1\"", 1),
            ("9223372036854775807", i64::MAX),
            ("\"-9223372036854775808\"", i64::MIN),
            ("1.0", 1),
            ("1e2", 100),
            ("1.5e1", 15),
            ("1500e-2", 15),
            ("0e99999", 0),
            ("-0.0", 0),
            ("\"1e0\"", 1),
        ] {
            assert_eq!(int(text), Ok(number), "{text}");
        }
    }

    /// The right column is what etcd 3.5.1 answered.
    #[test]
    fn wrong_integers_in_the_words_of_etcd() {
        for (text, words) in [
            ("1.5", "json: cannot unmarshal number 1.5 into Go value of type int64"),
            ("9223372036854775808", "json: cannot unmarshal number 9223372036854775808 into Go value of type int64"),
            (
                "\"9223372036854775808\"",
                "json: cannot unmarshal number 9223372036854775808 into Go value of type int64",
            ),
            ("\"+1\"", "invalid character '+' looking for beginning of value"),
            ("\"01\"", "invalid character '1' after top-level value"),
            ("\"\"", "unexpected end of JSON input"),
            ("\"a\"", "invalid character 'a' looking for beginning of value"),
            ("\"0x1\"", "invalid character 'x' after top-level value"),
            ("\"\\u0031\"", "invalid character '\\\\' looking for beginning of value"),
            ("true", "json: cannot unmarshal bool into Go value of type int64"),
            ("[1]", "json: cannot unmarshal array into Go value of type int64"),
        ] {
            assert_eq!(int(text), Err(words.to_owned()), "{text}");
        }
        for text in ["1e19", "1e99999999999999999999", "1e-1", "-1.000001", "12e-2"] {
            assert!(int(text).is_err(), "{text}");
        }
        // Exponents at the ends of 64 bits, where counting with them goes beyond.
        for exponent in [i64::MIN, i64::MIN + 1, i64::MAX, i64::MAX - 1] {
            for mantissa in ["1", "1.5", "-10.25"] {
                let text = format!("{mantissa}e{exponent}");
                assert!(int(&text).is_err(), "{text}");
                assert!(int(&format!("\"{text}\"")).is_err(), "{text}");
            }
        }
    }

    #[test]
    fn strings_are_unescaped() {
        for (text, content) in [
            (r#""plain""#, "plain"),
            (r#""\/\"\\\b\f\n\r\t""#, "/\"\\\u{8}\u{c}\n\r\t"),
            (r#""\u005am9v""#, "Zm9v"),
            (r#""\ud83d\ude00!""#, "😀!"),
            (r#""\ud800x""#, "\u{fffd}x"),
            (r#""\ud800\u0041""#, "\u{fffd}A"),
        ] {
            assert_eq!(&*Cursor::new(text.as_bytes()).string(), content.as_bytes(), "{text}");
        }
    }

    #[test]
    fn values_are_skipped_to_their_end() {
        for value in [r#"{"a":[1,{"]":"}\""}],"b":null}"#, "[]", "12.5e3", "true", r#""x\\""#, "[[[]], {}]"] {
            let text = format!("{value},");
            let mut cursor = Cursor::new(text.as_bytes());
            cursor.skip_value();
            assert_eq!(cursor.at, value.len(), "{value}");
        }
    }
}
