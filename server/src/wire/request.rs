//! The request messages of etcd's key-value, cluster and maintenance services, as they stand in a body.
//!
//! They are what was said, not yet what it means: enums are numbers, operations may be empty. `convert` judges them.

use bytes::Bytes;

use crate::wire::read::{Cursor, DecodeError, FieldNames};
use crate::wire::syntax;

/// How deep transactions may be nested in a request, the outermost one included.
pub(crate) const TXN_DEPTH_MAX: usize = tally_mvcc::MAX_TXN_DEPTH;

/// A message that can be read from JSON.
pub(crate) trait Message: Default {
    /// Sets the fields found at the cursor.
    fn read(&mut self, cursor: &mut Cursor<'_>) -> Result<(), DecodeError>;
}

/// Reads the message in `body`. No body at all is the message of defaults; what follows the first value is ignored.
pub(crate) fn decode<M: Message>(body: &[u8]) -> Result<M, DecodeError> {
    let mut message = M::default();
    if let Some(range) = syntax::first_value(body)? {
        message.read(&mut Cursor::new(&body[range]))?;
    }
    Ok(message)
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RangeMessage {
    pub(crate) key: Bytes,
    pub(crate) range_end: Bytes,
    pub(crate) limit: i64,
    pub(crate) revision: i64,
    pub(crate) sort_order: i32,
    pub(crate) sort_target: i32,
    pub(crate) serializable: bool,
    pub(crate) keys_only: bool,
    pub(crate) count_only: bool,
    pub(crate) min_mod_revision: i64,
    pub(crate) max_mod_revision: i64,
    pub(crate) min_create_revision: i64,
    pub(crate) max_create_revision: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PutMessage {
    pub(crate) key: Bytes,
    pub(crate) value: Bytes,
    pub(crate) lease: i64,
    pub(crate) prev_kv: bool,
    pub(crate) ignore_value: bool,
    pub(crate) ignore_lease: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DeleteRangeMessage {
    pub(crate) key: Bytes,
    pub(crate) range_end: Bytes,
    pub(crate) prev_kv: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TxnMessage {
    pub(crate) compare: Vec<CompareMessage>,
    pub(crate) success: Vec<OpMessage>,
    pub(crate) failure: Vec<OpMessage>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CompareMessage {
    pub(crate) result: i32,
    pub(crate) target: i32,
    pub(crate) key: Bytes,
    pub(crate) range_end: Bytes,
    pub(crate) figure: Figure,
}

/// The `target_union` of a compare: what the stored figure is compared with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Figure {
    #[default]
    Missing,
    Version(i64),
    Create(i64),
    Mod(i64),
    Value(Bytes),
    Lease(i64),
}

/// One operation of a transaction; `Empty` if none of its fields was given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum OpMessage {
    #[default]
    Empty,
    Range(RangeMessage),
    Put(PutMessage),
    DeleteRange(DeleteRangeMessage),
    Txn(TxnMessage),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CompactionMessage {
    pub(crate) revision: i64,
    pub(crate) physical: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HashKvMessage {
    pub(crate) revision: i64,
}

/// A member to be added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MemberAddMessage {
    pub(crate) peer_urls: Vec<String>,
    pub(crate) is_learner: bool,
}

/// A member to be removed or promoted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MemberMessage {
    pub(crate) id: u64,
}

/// A member that moves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MemberUpdateMessage {
    pub(crate) id: u64,
    pub(crate) peer_urls: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MemberListMessage {
    pub(crate) linearizable: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TransferMessage {
    pub(crate) target_id: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AlarmMessage {
    pub(crate) action: i32,
    pub(crate) member_id: u64,
    pub(crate) alarm: i32,
}

/// A message without fields that matter: status, hash.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct EmptyMessage;

const RANGE: &[FieldNames] = &[
    ("key", "key"),
    ("range_end", "rangeEnd"),
    ("limit", "limit"),
    ("revision", "revision"),
    ("sort_order", "sortOrder"),
    ("sort_target", "sortTarget"),
    ("serializable", "serializable"),
    ("keys_only", "keysOnly"),
    ("count_only", "countOnly"),
    ("min_mod_revision", "minModRevision"),
    ("max_mod_revision", "maxModRevision"),
    ("min_create_revision", "minCreateRevision"),
    ("max_create_revision", "maxCreateRevision"),
];
const SORT_ORDERS: &[&str] = &["NONE", "ASCEND", "DESCEND"];
const SORT_TARGETS: &[&str] = &["KEY", "VERSION", "CREATE", "MOD", "VALUE"];

impl Message for RangeMessage {
    fn read(&mut self, cursor: &mut Cursor<'_>) -> Result<(), DecodeError> {
        cursor.object(RANGE, |cursor, field| {
            match field {
                "key" => self.key = cursor.bytes()?,
                "range_end" => self.range_end = cursor.bytes()?,
                "limit" => self.limit = cursor.int64()?,
                "revision" => self.revision = cursor.int64()?,
                "sort_order" => {
                    self.sort_order = cursor.enumeration("etcdserverpb.RangeRequest.SortOrder", SORT_ORDERS)?;
                }
                "sort_target" => {
                    self.sort_target = cursor.enumeration("etcdserverpb.RangeRequest.SortTarget", SORT_TARGETS)?;
                }
                "serializable" => self.serializable = cursor.boolean()?,
                "keys_only" => self.keys_only = cursor.boolean()?,
                "count_only" => self.count_only = cursor.boolean()?,
                "min_mod_revision" => self.min_mod_revision = cursor.int64()?,
                "max_mod_revision" => self.max_mod_revision = cursor.int64()?,
                "min_create_revision" => self.min_create_revision = cursor.int64()?,
                _ => self.max_create_revision = cursor.int64()?,
            }
            Ok(())
        })
    }
}

const PUT: &[FieldNames] = &[
    ("key", "key"),
    ("value", "value"),
    ("lease", "lease"),
    ("prev_kv", "prevKv"),
    ("ignore_value", "ignoreValue"),
    ("ignore_lease", "ignoreLease"),
];

impl Message for PutMessage {
    fn read(&mut self, cursor: &mut Cursor<'_>) -> Result<(), DecodeError> {
        cursor.object(PUT, |cursor, field| {
            match field {
                "key" => self.key = cursor.bytes()?,
                "value" => self.value = cursor.bytes()?,
                "lease" => self.lease = cursor.int64()?,
                "prev_kv" => self.prev_kv = cursor.boolean()?,
                "ignore_value" => self.ignore_value = cursor.boolean()?,
                _ => self.ignore_lease = cursor.boolean()?,
            }
            Ok(())
        })
    }
}

const DELETE_RANGE: &[FieldNames] = &[("key", "key"), ("range_end", "rangeEnd"), ("prev_kv", "prevKv")];

impl Message for DeleteRangeMessage {
    fn read(&mut self, cursor: &mut Cursor<'_>) -> Result<(), DecodeError> {
        cursor.object(DELETE_RANGE, |cursor, field| {
            match field {
                "key" => self.key = cursor.bytes()?,
                "range_end" => self.range_end = cursor.bytes()?,
                _ => self.prev_kv = cursor.boolean()?,
            }
            Ok(())
        })
    }
}

const TXN: &[FieldNames] = &[("compare", "compare"), ("success", "success"), ("failure", "failure")];

impl Message for TxnMessage {
    fn read(&mut self, cursor: &mut Cursor<'_>) -> Result<(), DecodeError> {
        self.read_nested(cursor, TXN_DEPTH_MAX)
    }
}

impl TxnMessage {
    fn read_nested(&mut self, cursor: &mut Cursor<'_>, depth_left: usize) -> Result<(), DecodeError> {
        let depth_left = depth_left.checked_sub(1).ok_or(DecodeError::TooDeep)?;
        cursor.object(TXN, |cursor, field| {
            if field == "compare" {
                return cursor.array(|cursor| {
                    let mut compare = CompareMessage::default();
                    compare.read(cursor)?;
                    self.compare.push(compare);
                    Ok(())
                });
            }
            let ops = if field == "success" { &mut self.success } else { &mut self.failure };
            cursor.array(|cursor| {
                ops.push(OpMessage::read(cursor, depth_left)?);
                Ok(())
            })
        })
    }
}

const COMPARE: &[FieldNames] = &[
    ("result", "result"),
    ("target", "target"),
    ("key", "key"),
    ("range_end", "rangeEnd"),
    ("version", "version"),
    ("create_revision", "createRevision"),
    ("mod_revision", "modRevision"),
    ("value", "value"),
    ("lease", "lease"),
];
const COMPARE_RESULTS: &[&str] = &["EQUAL", "GREATER", "LESS", "NOT_EQUAL"];
const COMPARE_TARGETS: &[&str] = &["VERSION", "CREATE", "MOD", "VALUE", "LEASE"];

impl Message for CompareMessage {
    fn read(&mut self, cursor: &mut Cursor<'_>) -> Result<(), DecodeError> {
        cursor.object(COMPARE, |cursor, field| {
            let figure = match field {
                "result" => {
                    self.result = cursor.enumeration("etcdserverpb.Compare.CompareResult", COMPARE_RESULTS)?;
                    return Ok(());
                }
                "target" => {
                    self.target = cursor.enumeration("etcdserverpb.Compare.CompareTarget", COMPARE_TARGETS)?;
                    return Ok(());
                }
                "key" => {
                    self.key = cursor.bytes()?;
                    return Ok(());
                }
                "range_end" => {
                    self.range_end = cursor.bytes()?;
                    return Ok(());
                }
                "version" => Figure::Version(cursor.int64()?),
                "create_revision" => Figure::Create(cursor.int64()?),
                "mod_revision" => Figure::Mod(cursor.int64()?),
                "value" => Figure::Value(cursor.bytes()?),
                _ => Figure::Lease(cursor.int64()?),
            };
            if self.figure != Figure::Missing {
                return Err(DecodeError::OneofTaken { field, oneof: "etcdserverpb.Compare.target_union" });
            }
            self.figure = figure;
            Ok(())
        })
    }
}

const OP: &[FieldNames] = &[
    ("request_range", "requestRange"),
    ("request_put", "requestPut"),
    ("request_delete_range", "requestDeleteRange"),
    ("request_txn", "requestTxn"),
];

impl OpMessage {
    fn read(cursor: &mut Cursor<'_>, depth_left: usize) -> Result<Self, DecodeError> {
        let mut op = Self::Empty;
        cursor.object(OP, |cursor, field| {
            if op != Self::Empty {
                return Err(DecodeError::OneofTaken { field, oneof: "etcdserverpb.RequestOp.request" });
            }
            op = match field {
                "request_range" => Self::Range(read_message(cursor)?),
                "request_put" => Self::Put(read_message(cursor)?),
                "request_delete_range" => Self::DeleteRange(read_message(cursor)?),
                _ => {
                    let mut txn = TxnMessage::default();
                    txn.read_nested(cursor, depth_left)?;
                    Self::Txn(txn)
                }
            };
            Ok(())
        })?;
        Ok(op)
    }
}

fn read_message<M: Message>(cursor: &mut Cursor<'_>) -> Result<M, DecodeError> {
    let mut message = M::default();
    message.read(cursor)?;
    Ok(message)
}

const COMPACTION: &[FieldNames] = &[("revision", "revision"), ("physical", "physical")];

impl Message for CompactionMessage {
    fn read(&mut self, cursor: &mut Cursor<'_>) -> Result<(), DecodeError> {
        cursor.object(COMPACTION, |cursor, field| {
            match field {
                "revision" => self.revision = cursor.int64()?,
                _ => self.physical = cursor.boolean()?,
            }
            Ok(())
        })
    }
}

const HASH_KV: &[FieldNames] = &[("revision", "revision")];

impl Message for HashKvMessage {
    fn read(&mut self, cursor: &mut Cursor<'_>) -> Result<(), DecodeError> {
        cursor.object(HASH_KV, |cursor, _| {
            self.revision = cursor.int64()?;
            Ok(())
        })
    }
}

const ALARM: &[FieldNames] = &[("action", "action"), ("memberID", "memberID"), ("alarm", "alarm")];
const ALARM_ACTIONS: &[&str] = &["GET", "ACTIVATE", "DEACTIVATE"];
const ALARM_TYPES: &[&str] = &["NONE", "NOSPACE", "CORRUPT"];

impl Message for AlarmMessage {
    fn read(&mut self, cursor: &mut Cursor<'_>) -> Result<(), DecodeError> {
        cursor.object(ALARM, |cursor, field| {
            match field {
                "action" => self.action = cursor.enumeration("etcdserverpb.AlarmRequest.AlarmAction", ALARM_ACTIONS)?,
                "memberID" => self.member_id = cursor.uint64()?,
                _ => self.alarm = cursor.enumeration("etcdserverpb.AlarmType", ALARM_TYPES)?,
            }
            Ok(())
        })
    }
}

const MEMBER_ADD: &[FieldNames] = &[("peerURLs", "peerURLs"), ("isLearner", "isLearner")];

impl Message for MemberAddMessage {
    fn read(&mut self, cursor: &mut Cursor<'_>) -> Result<(), DecodeError> {
        cursor.object(MEMBER_ADD, |cursor, field| {
            match field {
                "peerURLs" => self.peer_urls = texts(cursor)?,
                _ => self.is_learner = cursor.boolean()?,
            }
            Ok(())
        })
    }
}

const MEMBER: &[FieldNames] = &[("ID", "ID")];

impl Message for MemberMessage {
    fn read(&mut self, cursor: &mut Cursor<'_>) -> Result<(), DecodeError> {
        cursor.object(MEMBER, |cursor, _| {
            self.id = cursor.uint64()?;
            Ok(())
        })
    }
}

const MEMBER_UPDATE: &[FieldNames] = &[("ID", "ID"), ("peerURLs", "peerURLs")];

impl Message for MemberUpdateMessage {
    fn read(&mut self, cursor: &mut Cursor<'_>) -> Result<(), DecodeError> {
        cursor.object(MEMBER_UPDATE, |cursor, field| {
            match field {
                "ID" => self.id = cursor.uint64()?,
                _ => self.peer_urls = texts(cursor)?,
            }
            Ok(())
        })
    }
}

const MEMBER_LIST: &[FieldNames] = &[("linearizable", "linearizable")];

impl Message for MemberListMessage {
    fn read(&mut self, cursor: &mut Cursor<'_>) -> Result<(), DecodeError> {
        cursor.object(MEMBER_LIST, |cursor, _| {
            self.linearizable = cursor.boolean()?;
            Ok(())
        })
    }
}

const TRANSFER: &[FieldNames] = &[("targetID", "targetID")];

impl Message for TransferMessage {
    fn read(&mut self, cursor: &mut Cursor<'_>) -> Result<(), DecodeError> {
        cursor.object(TRANSFER, |cursor, _| {
            self.target_id = cursor.uint64()?;
            Ok(())
        })
    }
}

fn texts(cursor: &mut Cursor<'_>) -> Result<Vec<String>, DecodeError> {
    let mut texts = Vec::new();
    cursor.array(|cursor| {
        texts.push(cursor.text()?);
        Ok(())
    })?;
    Ok(texts)
}

impl Message for EmptyMessage {
    fn read(&mut self, cursor: &mut Cursor<'_>) -> Result<(), DecodeError> {
        cursor.object(&[], |_, _| Ok(()))
    }
}

/// True if all that a transaction does, in both branches, is to read ranges that may be stale: then it may be read from any
/// member's state as it is. As in etcd, a nested transaction is not looked into. One that does nothing asks what its compares
/// say, and nowhere that this may be stale.
pub(crate) fn reads_are_serializable(txn: &TxnMessage) -> bool {
    let serializable = |op: &OpMessage| match op {
        OpMessage::Range(range) => range.serializable,
        OpMessage::Empty | OpMessage::Put(_) | OpMessage::DeleteRange(_) | OpMessage::Txn(_) => false,
    };
    let mut ops = txn.success.iter().chain(&txn.failure).peekable();
    ops.peek().is_some() && ops.all(serializable)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_what_asks_for_it_may_be_stale() {
        let is_serializable = |text: &str| reads_are_serializable(&decode(text.as_bytes()).unwrap());
        let (stale, fresh) =
            (r#"{"requestRange":{"key":"YQ==","serializable":true}}"#, r#"{"requestRange":{"key":"YQ=="}}"#);
        let compare = r#"{"key":"YQ==","target":"VERSION","version":"1"}"#;
        assert!(is_serializable(&format!(r#"{{"success":[{stale}],"failure":[{stale},{stale}]}}"#)));
        assert!(is_serializable(&format!(r#"{{"compare":[{compare}],"failure":[{stale}]}}"#)));
        assert!(!is_serializable(&format!(r#"{{"success":[{stale}],"failure":[{fresh}]}}"#)));
        assert!(!is_serializable(&format!(r#"{{"compare":[{compare}]}}"#)));
        assert!(!is_serializable("{}"));
    }

    #[test]
    fn messages_about_members() {
        let add: MemberAddMessage =
            decode(br#"{"peerURLs":["http://h:1","http://h\u003a2"],"isLearner":true}"#).unwrap();
        assert_eq!(
            add,
            MemberAddMessage { peer_urls: vec!["http://h:1".into(), "http://h:2".into()], is_learner: true }
        );
        for id in [&br#"{"ID":"18446744073709551615"}"#[..], br#"{"ID":18446744073709551615}"#] {
            assert_eq!(decode::<MemberMessage>(id).unwrap().id, u64::MAX);
        }
        let update: MemberUpdateMessage = decode(br#"{"ID":1e2,"peerURLs":[]}"#).unwrap();
        assert_eq!((update.id, update.peer_urls.len()), (100, 0));
        assert!(decode::<MemberListMessage>(br#"{"linearizable":true}"#).unwrap().linearizable);
        assert_eq!(decode::<TransferMessage>(br#"{"targetID":"7","other":1}"#).unwrap().target_id, 7);
        for bad in [
            &br#"{"ID":-1}"#[..],
            br#"{"ID":"18446744073709551616"}"#,
            br#"{"ID":1.5}"#,
            br#"{"ID":"x"}"#,
            br#"{"ID":true}"#,
            br#"{"ID":1,"ID":1}"#,
        ] {
            assert!(decode::<MemberMessage>(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
        for bad in [&br#"{"peerURLs":"http://h:1"}"#[..], br#"{"peerURLs":[1]}"#, br#"{"isLearner":1}"#] {
            assert!(decode::<MemberAddMessage>(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }
}
