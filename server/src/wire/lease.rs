//! The messages of the lease service in JSON.

use bytes::Bytes;

use crate::api::lease::{Granted, KeptAlive, TimeToLive};
use crate::wire::base64;
use crate::wire::read::{Cursor, DecodeError, FieldNames};
use crate::wire::request::Message;
use crate::wire::response::Header;
use crate::wire::write;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LeaseGrantMessage {
    /// 0 leaves it to the server.
    pub(crate) id: i64,
    pub(crate) ttl: i64,
}

/// A message that names one lease: to be revoked, or renewed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LeaseMessage {
    pub(crate) id: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LeaseTimeToLiveMessage {
    pub(crate) id: i64,
    pub(crate) keys: bool,
}

const GRANT: &[FieldNames] = &[("TTL", "TTL"), ("ID", "ID")];

impl Message for LeaseGrantMessage {
    fn read(&mut self, cursor: &mut Cursor<'_>) -> Result<(), DecodeError> {
        cursor.object(GRANT, |cursor, field| {
            match field {
                "TTL" => self.ttl = cursor.int64()?,
                _ => self.id = cursor.int64()?,
            }
            Ok(())
        })
    }
}

const LEASE: &[FieldNames] = &[("ID", "ID")];

impl Message for LeaseMessage {
    fn read(&mut self, cursor: &mut Cursor<'_>) -> Result<(), DecodeError> {
        cursor.object(LEASE, |cursor, _| {
            self.id = cursor.int64()?;
            Ok(())
        })
    }
}

const TIME_TO_LIVE: &[FieldNames] = &[("ID", "ID"), ("keys", "keys")];

impl Message for LeaseTimeToLiveMessage {
    fn read(&mut self, cursor: &mut Cursor<'_>) -> Result<(), DecodeError> {
        cursor.object(TIME_TO_LIVE, |cursor, field| {
            match field {
                "ID" => self.id = cursor.int64()?,
                _ => self.keys = cursor.boolean()?,
            }
            Ok(())
        })
    }
}

/// A lease that was granted.
pub(crate) fn granted(header: &Header<'_>, granted: &Granted) -> Vec<u8> {
    let mut out = header.begin(64);
    write::signed(&mut out, ",\"ID\":\"", granted.id);
    write::signed(&mut out, ",\"TTL\":\"", granted.ttl_s);
    out.push(b'}');
    out
}

/// What is left of a lease.
pub(crate) fn time_to_live(header: &Header<'_>, left: &TimeToLive) -> Vec<u8> {
    let mut out = header.begin(96 + left.keys.iter().map(|key| 8 + key.len() / 3 * 4).sum::<usize>());
    write::signed(&mut out, ",\"ID\":\"", left.id);
    write::signed(&mut out, ",\"TTL\":\"", left.ttl_s);
    write::signed(&mut out, ",\"grantedTTL\":\"", left.granted_s);
    keys(&mut out, &left.keys);
    out.push(b'}');
    out
}

fn keys(out: &mut Vec<u8>, keys: &[Bytes]) {
    for (index, key) in keys.iter().enumerate() {
        out.extend_from_slice(if index == 0 { b",\"keys\":[\"" } else { b",\"" });
        base64::encode(key, out);
        out.push(b'"');
    }
    if !keys.is_empty() {
        out.push(b']');
    }
}

/// The ids of all leases.
pub(crate) fn leases(header: &Header<'_>, ids: &[i64]) -> Vec<u8> {
    let mut out = header.begin(32 * ids.len());
    for (index, id) in ids.iter().enumerate() {
        out.extend_from_slice(if index == 0 { b",\"leases\":[{" } else { b",{" });
        write::signed(&mut out, "\"ID\":\"", *id);
        out.push(b'}');
    }
    out.extend_from_slice(if ids.is_empty() { b"}" } else { b"]}" });
    out
}

/// One line of the stream of renewals.
pub(crate) fn kept_alive(header: &Header<'_>, kept: &KeptAlive) -> Vec<u8> {
    let begun = header.begin(64);
    let mut out = Vec::with_capacity(begun.len() + 80);
    out.extend_from_slice(b"{\"result\":");
    out.extend_from_slice(&begun);
    write::signed(&mut out, ",\"ID\":\"", kept.id);
    write::signed(&mut out, ",\"TTL\":\"", kept.ttl_s);
    out.extend_from_slice(b"}}\n");
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::wire::{Identity, decode};

    #[test]
    fn messages_are_read_with_numbers_as_texts_or_not() {
        let grant: LeaseGrantMessage = decode(br#"{"ID":"-7","TTL":60,"other":[]}"#).unwrap();
        assert_eq!(grant, LeaseGrantMessage { id: -7, ttl: 60 });
        assert_eq!(decode::<LeaseMessage>(b"").unwrap(), LeaseMessage::default());
        let left: LeaseTimeToLiveMessage = decode(br#"{"ID":9223372036854775807,"keys":true}"#).unwrap();
        assert_eq!(left, LeaseTimeToLiveMessage { id: i64::MAX, keys: true });
        for bad in [&br#"{"ID":"x"}"#[..], br#"{"keys":1}"#, br#"{"ID":9223372036854775808}"#, br#"{"ID":1,"ID":2}"#] {
            assert!(decode::<LeaseTimeToLiveMessage>(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn answers_leave_out_what_is_zero() {
        let identity = Identity::new(1, 2);
        let header = Header { identity: &identity, revision: 3, term: 4 };
        let text = |bytes: Vec<u8>| {
            let text = String::from_utf8(bytes).unwrap();
            text.replace(r#""header":{"cluster_id":"1","member_id":"2","revision":"3","raft_term":"4"}"#, "H")
        };
        assert_eq!(text(granted(&header, &Granted { revision: 3, id: 7, ttl_s: 60 })), r#"{H,"ID":"7","TTL":"60"}"#);
        let mut left = TimeToLive { revision: 3, id: 7, ttl_s: -1, granted_s: 0, keys: Vec::new() };
        assert_eq!(text(time_to_live(&header, &left)), r#"{H,"ID":"7","TTL":"-1"}"#);
        (left.ttl_s, left.granted_s) = (5, 60);
        left.keys = vec![Bytes::from_static(b"a"), Bytes::from_static(b"b")];
        assert_eq!(
            text(time_to_live(&header, &left)),
            r#"{H,"ID":"7","TTL":"5","grantedTTL":"60","keys":["YQ==","Yg=="]}"#
        );
        assert_eq!(text(leases(&header, &[])), "{H}");
        assert_eq!(text(leases(&header, &[1, -2])), r#"{H,"leases":[{"ID":"1"},{"ID":"-2"}]}"#);
        let kept = KeptAlive { revision: 3, id: 7, ttl_s: 0 };
        assert_eq!(text(kept_alive(&header, &kept)), "{\"result\":{H,\"ID\":\"7\"}}\n");
    }
}
