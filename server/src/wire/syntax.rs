//! The JSON grammar: finds the first value of a body and refuses what is not JSON, in the words of Go's `encoding/json`,
//! because those are what users of etcd know.
//!
//! A body's syntax is checked as a whole before anything in it is looked at, as etcd does; so a wrong type early in the
//! body does not hide a missing bracket at its end. What follows the first value is ignored, as etcd does.

/// How deep arrays and objects may be nested; Go's limit.
pub(crate) const DEPTH_MAX: usize = 10_000;

/// What breaks the grammar.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SyntaxError {
    /// The body ends inside the value.
    #[error("unexpected EOF")]
    BodyEnds,
    /// A number given as a string ends too early.
    #[error("unexpected end of JSON input")]
    TextEnds,
    /// A byte that cannot stand here.
    #[error("invalid character {} {context}", quoted(*byte))]
    Invalid {
        /// The byte.
        byte: u8,
        /// Where it stands.
        context: &'static str,
    },
}

/// The byte as Go shows it: between single quotes, as the code point of the same number.
fn quoted(byte: u8) -> String {
    let inner = match byte {
        b'\'' => "\\'".to_owned(),
        b'\\' => "\\\\".to_owned(),
        b'\n' => "\\n".to_owned(),
        b'\r' => "\\r".to_owned(),
        b'\t' => "\\t".to_owned(),
        0x07 => "\\a".to_owned(),
        0x08 => "\\b".to_owned(),
        0x0b => "\\v".to_owned(),
        0x0c => "\\f".to_owned(),
        0x00..=0x1f | 0x7f => format!("\\x{byte:02x}"),
        0x80..=0xa0 | 0xad => format!("\\u{byte:04x}"),
        _ => char::from(byte).to_string(),
    };
    format!("'{inner}'")
}

/// The range of the first JSON value in `text`, checked; `None` if there is only white space.
pub(crate) fn first_value(text: &[u8]) -> Result<Option<std::ops::Range<usize>>, SyntaxError> {
    let mut scan = Scan { text, at: 0 };
    scan.skip_space();
    let start = scan.at;
    if start == text.len() {
        return Ok(None);
    }
    scan.value()?;
    Ok(Some(start..scan.at))
}

/// Checks that `text` is exactly one value, white space around it allowed, and gives its range.
pub(crate) fn only_value(text: &[u8]) -> Result<std::ops::Range<usize>, SyntaxError> {
    let shorten = |error| if error == SyntaxError::BodyEnds { SyntaxError::TextEnds } else { error };
    let range = first_value(text).map_err(shorten)?.ok_or(SyntaxError::TextEnds)?;
    match text[range.end..].iter().find(|byte| !is_space(**byte)) {
        None => Ok(range),
        Some(byte) => Err(SyntaxError::Invalid { byte: *byte, context: "after top-level value" }),
    }
}

pub(crate) fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

struct Scan<'a> {
    text: &'a [u8],
    at: usize,
}

impl Scan<'_> {
    fn peek(&self) -> Result<u8, SyntaxError> {
        self.text.get(self.at).copied().ok_or(SyntaxError::BodyEnds)
    }

    fn skip_space(&mut self) {
        while self.text.get(self.at).is_some_and(|byte| is_space(*byte)) {
            self.at += 1;
        }
    }

    fn invalid<T>(&self, context: &'static str) -> Result<T, SyntaxError> {
        Err(SyntaxError::Invalid { byte: self.peek()?, context })
    }

    /// One value. Iterative: what is open is kept in `open` (true for an object), never on the call stack.
    fn value(&mut self) -> Result<(), SyntaxError> {
        let mut open: Vec<bool> = Vec::new();
        loop {
            self.skip_space();
            match self.peek()? {
                bracket @ (b'{' | b'[') => {
                    if open.len() == DEPTH_MAX {
                        return self.invalid("exceeded max depth");
                    }
                    self.at += 1;
                    self.skip_space();
                    let object = bracket == b'{';
                    if self.peek()? == (if object { b'}' } else { b']' }) {
                        self.at += 1;
                    } else {
                        open.push(object);
                        if object {
                            self.key()?;
                        }
                        continue;
                    }
                }
                _ => self.scalar()?,
            }
            if !self.close_or_continue(&mut open)? {
                return Ok(());
            }
        }
    }

    /// After a value: closes what ends here. True if another value follows, false if the outermost one is complete.
    fn close_or_continue(&mut self, open: &mut Vec<bool>) -> Result<bool, SyntaxError> {
        while let Some(&object) = open.last() {
            self.skip_space();
            match (self.peek()?, object) {
                (b',', true) => {
                    self.at += 1;
                    self.skip_space();
                    self.key()?;
                    return Ok(true);
                }
                (b',', false) => {
                    self.at += 1;
                    return Ok(true);
                }
                (b'}', true) | (b']', false) => {
                    self.at += 1;
                    open.pop();
                }
                (_, true) => return self.invalid("after object key:value pair"),
                (_, false) => return self.invalid("after array element"),
            }
        }
        Ok(false)
    }

    fn key(&mut self) -> Result<(), SyntaxError> {
        if self.peek()? != b'"' {
            return self.invalid("looking for beginning of object key string");
        }
        self.string()?;
        self.skip_space();
        if self.peek()? != b':' {
            return self.invalid("after object key");
        }
        self.at += 1;
        Ok(())
    }

    fn scalar(&mut self) -> Result<(), SyntaxError> {
        match self.peek()? {
            b'"' => self.string(),
            b'-' | b'0'..=b'9' => self.number(),
            b't' => self.literal(b"true", LITERAL_TRUE),
            b'f' => self.literal(b"false", LITERAL_FALSE),
            b'n' => self.literal(b"null", LITERAL_NULL),
            _ => self.invalid("looking for beginning of value"),
        }
    }

    fn literal(&mut self, word: &[u8], contexts: &[&'static str]) -> Result<(), SyntaxError> {
        for (want, context) in word.iter().zip(contexts) {
            if self.peek()? != *want {
                return self.invalid(context);
            }
            self.at += 1;
        }
        Ok(())
    }

    fn string(&mut self) -> Result<(), SyntaxError> {
        self.at += 1;
        loop {
            self.at += plain_length(&self.text[self.at..]);
            match self.peek()? {
                b'"' => {
                    self.at += 1;
                    return Ok(());
                }
                b'\\' => self.escape()?,
                0x00..=0x1f => return self.invalid("in string literal"),
                _ => self.at += 1,
            }
        }
    }

    fn escape(&mut self) -> Result<(), SyntaxError> {
        self.at += 1;
        match self.peek()? {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => self.at += 1,
            b'u' => {
                self.at += 1;
                for _ in 0..4 {
                    if !self.peek()?.is_ascii_hexdigit() {
                        return self.invalid("in \\u hexadecimal character escape");
                    }
                    self.at += 1;
                }
            }
            _ => return self.invalid("in string escape code"),
        }
        Ok(())
    }

    fn number(&mut self) -> Result<(), SyntaxError> {
        if self.peek()? == b'-' {
            self.at += 1;
        }
        match self.peek()? {
            b'0' => self.at += 1,
            b'1'..=b'9' => self.digits(),
            _ => return self.invalid("in numeric literal"),
        }
        if self.text.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.some_digits("after decimal point in numeric literal")?;
        }
        if matches!(self.text.get(self.at), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek()?, b'+' | b'-') {
                self.at += 1;
            }
            self.some_digits("in exponent of numeric literal")?;
        }
        Ok(())
    }

    fn some_digits(&mut self, context: &'static str) -> Result<(), SyntaxError> {
        if !self.peek()?.is_ascii_digit() {
            return self.invalid(context);
        }
        self.digits();
        Ok(())
    }

    fn digits(&mut self) {
        while self.text.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
    }
}

// The first letter of each word was seen before the word is read, so its context is never shown.
const LITERAL_TRUE: &[&str] =
    &["", "in literal true (expecting 'r')", "in literal true (expecting 'u')", "in literal true (expecting 'e')"];
const LITERAL_FALSE: &[&str] = &[
    "",
    "in literal false (expecting 'a')",
    "in literal false (expecting 'l')",
    "in literal false (expecting 's')",
    "in literal false (expecting 'e')",
];
const LITERAL_NULL: &[&str] =
    &["", "in literal null (expecting 'u')", "in literal null (expecting 'l')", "in literal null (expecting 'l')"];

/// How many whole words of 8 bytes at the start of `text` hold no quote, backslash or control character.
///
/// Values are long and plain, so looking at 8 bytes at a time is what makes the second pass over a body cheap.
pub(crate) fn plain_length(text: &[u8]) -> usize {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    const HIGHS: u64 = ONES << 7;
    let mut length = 0;
    for word in text.chunks_exact(8) {
        let word = u64::from_le_bytes(word.try_into().expect("a chunk of exactly 8 bytes"));
        let zero_in = |bytes: u64| bytes.wrapping_sub(ONES) & !bytes & HIGHS;
        let quote = zero_in(word ^ (ONES * u64::from(b'"')));
        let backslash = zero_in(word ^ (ONES * u64::from(b'\\')));
        let control = word.wrapping_sub(ONES * 0x20) & !word & HIGHS;
        if quote | backslash | control != 0 {
            break;
        }
        length += 8;
    }
    length
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn error(text: &str) -> String {
        first_value(text.as_bytes()).unwrap_err().to_string()
    }

    /// The right column is what etcd 3.5.1 answered.
    #[test]
    fn the_words_are_those_of_etcd() {
        for (text, words) in [
            ("{", "unexpected EOF"),
            ("x", "invalid character 'x' looking for beginning of value"),
            (r#"{"key":"Zm9v",}"#, "invalid character '}' looking for beginning of object key string"),
            (r#"{"key":}"#, "invalid character '}' looking for beginning of value"),
            (r#"{"key":"Zm9v","limit":01}"#, "invalid character '1' after object key:value pair"),
            (r#"{"key":"Zm9v","foo":"\q"}"#, "invalid character 'q' in string escape code"),
            (r#"{"key":"Zm9v","foo":nul}"#, "invalid character '}' in literal null (expecting 'l')"),
            ("{'key':1}", r"invalid character '\'' looking for beginning of object key string"),
            ("\u{feff}{}", "invalid character 'ï' looking for beginning of value"),
            ("{\"a\":\"x\ty\"}", r"invalid character '\t' in string literal"),
            ("[1 2]", "invalid character '2' after array element"),
            ("{\"a\" 1}", "invalid character '1' after object key"),
            ("-x", "invalid character 'x' in numeric literal"),
            ("1.x", "invalid character 'x' after decimal point in numeric literal"),
            ("1ex", "invalid character 'x' in exponent of numeric literal"),
            (r#""\u00g0""#, "invalid character 'g' in \\u hexadecimal character escape"),
        ] {
            assert_eq!(error(text), words, "{text}");
        }
        assert_eq!(only_value(b"").unwrap_err().to_string(), "unexpected end of JSON input");
        assert_eq!(only_value(b"0x1").unwrap_err().to_string(), "invalid character 'x' after top-level value");
    }

    #[test]
    fn only_the_first_value_counts() {
        for text in ["{}x", "{} {}", "{}}", " {} garbage", "{}//c"] {
            let range = first_value(text.as_bytes()).unwrap().unwrap();
            assert_eq!(&text[range], "{}");
        }
        assert_eq!(first_value(b" \n\t\r "), Ok(None));
        assert_eq!(first_value(b""), Ok(None));
    }

    #[test]
    fn depth_has_the_limit_of_go() {
        let nested = |depth: usize| ["[".repeat(depth), "]".repeat(depth)].concat();
        assert!(first_value(nested(DEPTH_MAX).as_bytes()).is_ok());
        assert_eq!(error(&nested(DEPTH_MAX + 1)), "invalid character '[' exceeded max depth");
        assert_eq!(error(&"[".repeat(3_000_000)), "invalid character '[' exceeded max depth");
    }

    #[test]
    fn long_strings_are_scanned_right_at_every_length() {
        for length in 0..40 {
            for special in ["\"", "\\n\"", "\u{1}", "\u{7f}é\""] {
                let text = format!("\"{}{special} ", "a".repeat(length));
                let wants_error = special == "\u{1}";
                assert_eq!(first_value(text.as_bytes()).is_err(), wants_error, "{text}");
            }
            assert_eq!(error(&format!("\"{}", "a".repeat(length))), "unexpected EOF");
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(20_000))]

        /// Finds the same value as serde_json, which is asked only about grammar here.
        #[test]
        fn agrees_with_an_independent_parser(text in "[\\[\\]{},:\"\\\\0-9a-zA-Z.+\\- \n\u{1}]{0,40}") {
            let mut stream = serde_json::Deserializer::from_str(&text).into_iter::<serde::de::IgnoredAny>();
            let theirs = stream.next().map(|value| value.map(|_| ()));
            let ours = first_value(text.as_bytes());
            match theirs {
                None => proptest::prop_assert_eq!(ours, Ok(None)),
                Some(Ok(())) => proptest::prop_assert_eq!(ours.unwrap().unwrap().end, stream.byte_offset()),
                // It refuses a scalar that runs into something else (`1x`) and lone surrogates; neither is grammar.
                Some(Err(_)) => proptest::prop_assert!(
                    ours.is_err() || text.contains("\\u") || ours.unwrap().unwrap().end < text.len()
                ),
            }
        }

        #[test]
        fn anything_is_scanned(text: Vec<u8>) {
            let _ = first_value(&text);
        }
    }
}
