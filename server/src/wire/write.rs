//! The pieces a JSON response is written from: names, numbers as strings, base64, escaped text.
//!
//! Fields that are zero or empty are left out, as in protobuf's JSON mapping; whoever writes a field says its name with
//! the comma before it, so nothing has to be remembered between fields.

use crate::wire::base64;

/// Appends the decimal digits of `number`.
pub(crate) fn digits(out: &mut Vec<u8>, mut number: u64) {
    const DIGITS_MAX: usize = 20;
    let mut text = [0; DIGITS_MAX];
    let mut at = DIGITS_MAX;
    loop {
        at -= 1;
        text[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&text[at..]);
}

/// Appends `name`, which ends in an opening quote, and the number, unless it is zero.
pub(crate) fn unsigned(out: &mut Vec<u8>, name: &str, number: u64) {
    if number != 0 {
        out.extend_from_slice(name.as_bytes());
        digits(out, number);
        out.push(b'"');
    }
}

/// Appends `name`, which ends in an opening quote, and the number, unless it is zero.
pub(crate) fn signed(out: &mut Vec<u8>, name: &str, number: i64) {
    if number != 0 {
        out.extend_from_slice(name.as_bytes());
        if number < 0 {
            out.push(b'-');
        }
        digits(out, number.unsigned_abs());
        out.push(b'"');
    }
}

/// Appends `name`, which ends in an opening quote, and the bytes in base64, unless there are none.
pub(crate) fn bytes(out: &mut Vec<u8>, name: &str, bytes: &[u8]) {
    if !bytes.is_empty() {
        out.extend_from_slice(name.as_bytes());
        base64::encode(bytes, out);
        out.push(b'"');
    }
}

/// Appends `text` as a JSON string.
pub(crate) fn string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    for character in text.chars() {
        match character {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            '\0'..='\u{1f}' | '\u{7f}' => out.extend_from_slice(format!("\\u{:04x}", character as u32).as_bytes()),
            _ => out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    proptest::proptest! {
        #[test]
        fn numbers_are_written_in_full(number: i64) {
            let mut out = Vec::new();
            signed(&mut out, "\"", number);
            let expected = if number == 0 { String::new() } else { format!("\"{number}\"") };
            proptest::prop_assert_eq!(String::from_utf8(out).unwrap(), expected);
        }

        #[test]
        fn any_text_is_a_json_string(text: String) {
            let mut out = Vec::new();
            string(&mut out, &text);
            proptest::prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
        }
    }

    #[test]
    fn the_ends_of_the_number_line() {
        for number in [i64::MIN, i64::MAX, -1, 1, 9, 10] {
            let mut out = Vec::new();
            signed(&mut out, "\"", number);
            assert_eq!(String::from_utf8(out).unwrap(), format!("\"{number}\""));
        }
        let mut out = Vec::new();
        unsigned(&mut out, "\"", u64::MAX);
        unsigned(&mut out, "\"", 0);
        assert_eq!(out, b"\"18446744073709551615\"");
    }
}
