//! The metadata of a call that means something here.

use std::time::Duration;

use hyper::header::{HeaderMap, HeaderValue};
use tokio::time::Instant;

use crate::grpc::error::ProtocolError;

/// More digits than this no `grpc-timeout` has.
const TIMEOUT_DIGITS_MAX: usize = 8;

/// What a call says about itself.
#[derive(Debug, Default)]
pub(super) struct Head {
    /// When the client waits no longer.
    pub(super) deadline: Option<Instant>,
    /// It wants to hear at once that there is no leader.
    pub(super) requires_leader: bool,
    /// The API version that the client says it speaks is no text.
    pub(super) bad_client_version: bool,
    /// How its messages may be compressed.
    pub(super) encoding: Option<Box<str>>,
}

impl Head {
    /// Reads what matters, and the API version that the client says it speaks.
    pub(super) fn read(headers: &HeaderMap) -> Result<(Head, Option<&str>), ProtocolError> {
        let mut head = Head::default();
        let mut client_version = None;
        // One pass: every lookup by name would hash it, and most calls have none of these.
        for (name, value) in headers {
            match name.as_str() {
                "grpc-timeout" => head.deadline = Instant::now().checked_add(timeout(value)?),
                "hasleader" => head.requires_leader |= value == "true",
                "client-api-version" if client_version.is_none() => match std::str::from_utf8(value.as_bytes()) {
                    Ok(version) => client_version = Some(version),
                    Err(_) => head.bad_client_version = true,
                },
                "grpc-encoding" if value != "identity" => {
                    head.encoding = Some(String::from_utf8_lossy(value.as_bytes()).into());
                }
                _ => {}
            }
        }
        Ok((head, client_version))
    }
}

fn timeout(value: &HeaderValue) -> Result<Duration, ProtocolError> {
    let parse = || {
        let (digits, unit) = value.to_str().ok()?.split_at_checked(value.len().checked_sub(1)?)?;
        if digits.is_empty() || digits.len() > TIMEOUT_DIGITS_MAX || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let number: u64 = digits.parse().ok()?;
        Some(match unit {
            "H" => Duration::from_secs(number * 3_600),
            "M" => Duration::from_secs(number * 60),
            "S" => Duration::from_secs(number),
            "m" => Duration::from_millis(number),
            "u" => Duration::from_micros(number),
            "n" => Duration::from_nanos(number),
            _ => return None,
        })
    };
    parse().ok_or_else(|| ProtocolError::Timeout { found: String::from_utf8_lossy(value.as_bytes()).into_owned() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn timeouts_have_eight_digits_and_a_unit() {
        let read = |text: &'static str| timeout(&HeaderValue::from_static(text)).ok();
        assert_eq!(read("5S"), Some(Duration::from_secs(5)));
        assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3_600)));
        assert_eq!(read("100m"), Some(Duration::from_millis(100)));
        assert_eq!(read("0n"), Some(Duration::ZERO));
        for bad in ["", "S", "5", "5s", "123456789S", "-1S", "1.5S", "+1S", "5 S"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn metadata_that_matters_is_found_among_others() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("te", "trailers"),
            ("hasleader", "true"),
            ("client-api-version", "3.6"),
            ("grpc-timeout", "1H"),
            ("grpc-encoding", "identity"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let (head, client_version) = Head::read(&headers).unwrap();
        assert!(head.requires_leader && head.deadline.is_some() && head.encoding.is_none());
        assert_eq!(client_version, Some("3.6"));
        headers.insert("grpc-encoding", HeaderValue::from_static("gzip"));
        headers.insert("client-api-version", HeaderValue::from_bytes(b"\xff").unwrap());
        headers.insert("hasleader", HeaderValue::from_static("false"));
        let (head, client_version) = Head::read(&headers).unwrap();
        assert!(head.bad_client_version && !head.requires_leader && client_version.is_none());
        assert_eq!(head.encoding.as_deref(), Some("gzip"));
    }
}
