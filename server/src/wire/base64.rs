//! Bytes in JSON: base64, standard or URL-safe, padded or not, as current etcd reads them; written standard and padded.

use bytes::Bytes;

/// The text is not base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("illegal base64 data at input byte {at}")]
pub(crate) struct Base64Error {
    /// The offset of the first byte that does not fit.
    pub(crate) at: usize,
}

/// Decodes a JSON string's content. Line breaks inside are skipped; bits left over at the end are ignored, as in Go.
pub(crate) fn decode(text: &[u8]) -> Result<Bytes, Base64Error> {
    if text.is_empty() {
        return Ok(Bytes::new());
    }
    match base64_simd::STANDARD.decode_to_vec(text) {
        Ok(bytes) => Ok(bytes.into()),
        // Rare or wrong: the slow decoder knows all the forms and says where it is wrong.
        Err(_) => decode_slowly(text),
    }
}

/// Appends the standard, padded form of `bytes`.
pub(crate) fn encode(bytes: &[u8], out: &mut Vec<u8>) {
    base64_simd::STANDARD.encode_append(bytes, out);
}

fn decode_slowly(text: &[u8]) -> Result<Bytes, Base64Error> {
    let url_safe = text.iter().any(|byte| matches!(byte, b'-' | b'_'));
    let padded = text.contains(&b'=');
    let mut out = Vec::with_capacity(text.len() / 4 * 3 + 3);
    let (mut group, mut digits, mut padding) = (0u32, 0, 0);
    for (at, &byte) in text.iter().enumerate() {
        if matches!(byte, b'\r' | b'\n') {
            continue;
        }
        let digit = match (byte, url_safe) {
            (b'A'..=b'Z', _) => byte - b'A',
            (b'a'..=b'z', _) => byte - b'a' + 26,
            (b'0'..=b'9', _) => byte - b'0' + 52,
            (b'+', false) | (b'-', true) => 62,
            (b'/', false) | (b'_', true) => 63,
            (b'=', _) if padded && digits >= 2 && digits + padding < 4 => {
                padding += 1;
                continue;
            }
            _ if padding > 0 && digits + padding < 4 => return Err(Base64Error { at: at - 1 }),
            _ => return Err(Base64Error { at }),
        };
        if padding > 0 {
            // Go blames the padding if it is not complete, else what follows it.
            return Err(Base64Error { at: if digits + padding < 4 { at - 1 } else { at } });
        }
        group = group << 6 | u32::from(digit);
        digits += 1;
        if digits == 4 {
            out.extend_from_slice(&group.to_be_bytes()[1..]);
            (group, digits) = (0, 0);
        }
    }
    let whole = if padded { digits == 0 || digits + padding == 4 } else { digits != 1 };
    if !whole {
        return Err(Base64Error { at: text.len() });
    }
    match digits {
        2 => out.push((group >> 4) as u8),
        3 => out.extend_from_slice(&(group >> 2).to_be_bytes()[2..]),
        _ => {}
    }
    Ok(out.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn all_forms_that_etcd_reads() {
        for (text, bytes) in [
            ("", &b""[..]),
            ("Zm9v", b"foo"),
            ("Zg==", b"f"),
            ("Zg", b"f"),
            ("Zm8", b"fo"),
            ("Zh==", b"f"),
            ("Zm9v\n", b"foo"),
            ("Zg==\n", b"f"),
            ("Zm\r\n9v", b"foo"),
            ("/+8=", b"\xff\xef"),
            ("/+8", b"\xff\xef"),
            ("_-8=", b"\xff\xef"),
            ("_-8", b"\xff\xef"),
        ] {
            assert_eq!(decode(text.as_bytes()).as_deref(), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn the_rest_is_refused_where_it_goes_wrong() {
        for (text, at) in [
            ("!!", 0),
            ("Zm 9v", 2),
            ("Zg=", 3),
            ("/-8=", 0),
            ("Z", 1),
            ("Zm9vZ", 5),
            ("=", 0),
            ("Zg==Zg==", 4),
            ("Mg=,", 2),
            ("YQ=1=", 2),
            ("====", 0),
        ] {
            assert_eq!(decode(text.as_bytes()), Err(Base64Error { at }), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_encoded_decodes(bytes: Vec<u8>) {
            let mut text = Vec::new();
            encode(&bytes, &mut text);
            proptest::prop_assert_eq!(decode(&text).unwrap(), &bytes);
            proptest::prop_assert_eq!(decode_slowly(&text).unwrap(), &bytes);
            let unpadded = String::from_utf8(text).unwrap().replace('=', "");
            proptest::prop_assert_eq!(decode(unpadded.as_bytes()).unwrap(), &bytes);
            let url_safe = unpadded.replace('+', "-").replace('/', "_");
            proptest::prop_assert_eq!(decode(url_safe.as_bytes()).unwrap(), &bytes);
        }

        #[test]
        fn anything_is_decoded_or_refused(text: Vec<u8>) {
            let _ = decode(&text);
        }
    }
}
