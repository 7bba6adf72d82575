//! What the store answers.

use crate::record::Record;

/// The answer to a range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeResult {
    /// The records, in the order asked for.
    pub kvs: Vec<Record>,
    /// True if the limit cut records off.
    pub more: bool,
    /// How many keys the range has at that revision, whatever limit and filters say.
    pub count: i64,
    /// The store's revision when this was read (also for reads of older revisions): etcd's header revision.
    pub revision: i64,
}

/// The answer to a put.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PutReply {
    /// The record that was replaced, if asked for and there.
    pub prev_kv: Option<Record>,
    /// The revision this put belongs to.
    pub revision: i64,
}

/// The answer to a delete.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteReply {
    /// How many keys were deleted.
    pub deleted: i64,
    /// The deleted records in key order, if asked for.
    pub prev_kvs: Vec<Record>,
    /// The store's revision after it: unchanged if there was nothing to delete (and nothing written before it).
    pub revision: i64,
}

/// The answer to a transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TxnReply {
    /// True if all compares held.
    pub succeeded: bool,
    /// One reply per operation done, in order.
    pub replies: Vec<OpReply>,
    /// The store's revision after it; in a nested transaction, as that one left it.
    pub revision: i64,
}

/// The answer to one operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpReply {
    /// To a range.
    Range(RangeResult),
    /// To a put.
    Put(PutReply),
    /// To a delete.
    Delete(DeleteReply),
    /// To a nested transaction.
    Txn(TxnReply),
}
