//! The messages of the lock and election services, in JSON.

use bytes::Bytes;
use tally_mvcc::Record;

use crate::wire::read::{Cursor, DecodeError, FieldNames};
use crate::wire::request::Message;
use crate::wire::response::{Header, kv};
use crate::wire::write;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LockMessage {
    pub(crate) name: Bytes,
    pub(crate) lease: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct UnlockMessage {
    pub(crate) key: Bytes,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CampaignMessage {
    pub(crate) name: Bytes,
    pub(crate) lease: i64,
    pub(crate) value: Bytes,
}

/// What a leader shows to prove that it was elected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LeaderKey {
    pub(crate) name: Bytes,
    pub(crate) key: Bytes,
    /// The revision that created the key: the fencing token.
    pub(crate) rev: i64,
    pub(crate) lease: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProclaimMessage {
    pub(crate) leader: Option<LeaderKey>,
    pub(crate) value: Bytes,
}

/// Asks who leads, once or for as long as one listens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LeaderMessage {
    pub(crate) name: Bytes,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResignMessage {
    pub(crate) leader: Option<LeaderKey>,
}

const LOCK: &[FieldNames] = &[("name", "name"), ("lease", "lease")];

impl Message for LockMessage {
    fn read(&mut self, cursor: &mut Cursor<'_>) -> Result<(), DecodeError> {
        cursor.object(LOCK, |cursor, field| {
            match field {
                "name" => self.name = cursor.bytes()?,
                _ => self.lease = cursor.int64()?,
            }
            Ok(())
        })
    }
}

const UNLOCK: &[FieldNames] = &[("key", "key")];

impl Message for UnlockMessage {
    fn read(&mut self, cursor: &mut Cursor<'_>) -> Result<(), DecodeError> {
        cursor.object(UNLOCK, |cursor, _| {
            self.key = cursor.bytes()?;
            Ok(())
        })
    }
}

const CAMPAIGN: &[FieldNames] = &[("name", "name"), ("lease", "lease"), ("value", "value")];

impl Message for CampaignMessage {
    fn read(&mut self, cursor: &mut Cursor<'_>) -> Result<(), DecodeError> {
        cursor.object(CAMPAIGN, |cursor, field| {
            match field {
                "name" => self.name = cursor.bytes()?,
                "lease" => self.lease = cursor.int64()?,
                _ => self.value = cursor.bytes()?,
            }
            Ok(())
        })
    }
}

const LEADER_KEY: &[FieldNames] = &[("name", "name"), ("key", "key"), ("rev", "rev"), ("lease", "lease")];

impl Message for LeaderKey {
    fn read(&mut self, cursor: &mut Cursor<'_>) -> Result<(), DecodeError> {
        cursor.object(LEADER_KEY, |cursor, field| {
            match field {
                "name" => self.name = cursor.bytes()?,
                "key" => self.key = cursor.bytes()?,
                "rev" => self.rev = cursor.int64()?,
                _ => self.lease = cursor.int64()?,
            }
            Ok(())
        })
    }
}

/// A leader key that was given.
fn leader_key(cursor: &mut Cursor<'_>) -> Result<Option<LeaderKey>, DecodeError> {
    let mut key = LeaderKey::default();
    key.read(cursor)?;
    Ok(Some(key))
}

const PROCLAIM: &[FieldNames] = &[("leader", "leader"), ("value", "value")];

impl Message for ProclaimMessage {
    fn read(&mut self, cursor: &mut Cursor<'_>) -> Result<(), DecodeError> {
        cursor.object(PROCLAIM, |cursor, field| {
            match field {
                "leader" => self.leader = leader_key(cursor)?,
                _ => self.value = cursor.bytes()?,
            }
            Ok(())
        })
    }
}

const LEADER: &[FieldNames] = &[("name", "name")];

impl Message for LeaderMessage {
    fn read(&mut self, cursor: &mut Cursor<'_>) -> Result<(), DecodeError> {
        cursor.object(LEADER, |cursor, _| {
            self.name = cursor.bytes()?;
            Ok(())
        })
    }
}

const RESIGN: &[FieldNames] = &[("leader", "leader")];

impl Message for ResignMessage {
    fn read(&mut self, cursor: &mut Cursor<'_>) -> Result<(), DecodeError> {
        cursor.object(RESIGN, |cursor, _| {
            self.leader = leader_key(cursor)?;
            Ok(())
        })
    }
}

pub(crate) fn locked(header: &Header<'_>, key: &[u8]) -> Vec<u8> {
    let mut out = header.begin(key.len() * 2);
    write::bytes(&mut out, ",\"key\":\"", key);
    out.push(b'}');
    out
}

pub(crate) fn elected(header: &Header<'_>, leader: &LeaderKey) -> Vec<u8> {
    let LeaderKey { name, key, rev, lease } = leader;
    let mut out = header.begin((name.len() + key.len()) * 2);
    // The key is never empty, so every other field may begin with a comma; the name may be.
    out.extend_from_slice(b",\"leader\":{");
    write::bytes(&mut out, "\"name\":\"", name);
    write::bytes(&mut out, if name.is_empty() { "\"key\":\"" } else { ",\"key\":\"" }, key);
    write::signed(&mut out, ",\"rev\":\"", *rev);
    write::signed(&mut out, ",\"lease\":\"", *lease);
    out.extend_from_slice(b"}}");
    out
}

pub(crate) fn leader(header: &Header<'_>, record: &Record) -> Vec<u8> {
    let mut out = header.begin(record.bytes().len() * 2);
    out.extend_from_slice(b",\"kv\":");
    kv(&mut out, record);
    out.push(b'}');
    out
}

/// A line of a stream of leaders.
pub(crate) fn leader_line(header: &Header<'_>, record: &Record) -> Vec<u8> {
    let mut out = b"{\"result\":".to_vec();
    out.append(&mut leader(header, record));
    out.extend_from_slice(b"}\n");
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::wire::request::decode;
    use crate::wire::response::Identity;

    #[test]
    fn messages_are_read() {
        let lock: LockMessage = decode(br#"{"name":"bA==","lease":"77"}"#).unwrap();
        assert_eq!(lock, LockMessage { name: "l".into(), lease: 77 });
        let proclaim: ProclaimMessage =
            decode(br#"{"leader":{"name":"ZQ==","key":"ZS80ZA==","rev":"6","lease":77},"value":"eA=="}"#).unwrap();
        let leader = LeaderKey { name: "e".into(), key: "e/4d".into(), rev: 6, lease: 77 };
        assert_eq!(proclaim, ProclaimMessage { leader: Some(leader), value: "x".into() });
        assert_eq!(decode::<ResignMessage>(br#"{"leader":null}"#).unwrap().leader, None);
        assert_eq!(decode::<ResignMessage>(br#"{"leader":{}}"#).unwrap().leader, Some(LeaderKey::default()));
        assert!(decode::<CampaignMessage>(br#"{"lease":"x"}"#).is_err());
    }

    #[test]
    fn answers_are_those_of_etcd() {
        let identity = Identity::new(1, 2);
        let header = Header { identity: &identity, revision: 5, term: 2 };
        let head = r#"{"header":{"cluster_id":"1","member_id":"2","revision":"5","raft_term":"2"}"#;
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        assert_eq!(text(locked(&header, b"bS80ZA")), format!(r#"{head},"key":"YlM4MFpB"}}"#));
        let key = LeaderKey { name: "e".into(), key: "e/4d".into(), rev: 5, lease: 77 };
        let fields = r#""key":"ZS80ZA==","rev":"5","lease":"77"}"#;
        assert_eq!(text(elected(&header, &key)), format!(r#"{head},"leader":{{"name":"ZQ==",{fields}}}"#));
        let nameless = LeaderKey { name: Bytes::new(), ..key };
        assert_eq!(text(elected(&header, &nameless)), format!(r#"{head},"leader":{{{fields}}}"#));
    }
}
