//! The metadata of a call that means something here.

use std::time::Duration;

use hyper::header::{HeaderMap, HeaderValue};
use tokio::time::Instant;

use crate::api::deadline::read_timeout;
use crate::grpc::error::ProtocolError;

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
    read_timeout(value)
        .ok_or_else(|| ProtocolError::Timeout { found: String::from_utf8_lossy(value.as_bytes()).into_owned() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

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
