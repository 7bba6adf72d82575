//! What the store answers.

use crate::record::Record;

/// What replies hold of what their commands want to read: the records of ranges, and what was there before.
///
/// It decides what one member reads and nothing else: effects, revisions and roots are the same with all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    /// Nothing, and nothing is read for it: nobody waits for the reply.
    LeftOut,
    /// All of it, as long as the records that are read for it have no more than so many bytes together. They count
    /// whole, also where only keys are wanted, or the first few by value. What needs more is
    /// [cut](crate::Writer::answer_was_cut).
    UpTo(usize),
}

/// What is left of [`Answers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Allowance {
    /// Nothing is wanted.
    Unwanted,
    /// Records of so many bytes may still be read.
    Bytes(usize),
    /// More was wanted than is allowed: the reply is of no use any more, so nothing else is read for it.
    Exceeded,
}

impl Allowance {
    /// Whether it makes sense to read anything.
    pub(crate) fn is_open(self) -> bool {
        matches!(self, Allowance::Bytes(_))
    }

    /// Takes what was read. False if it may not be part of the reply.
    pub(crate) fn take(&mut self, bytes: usize) -> bool {
        *self = match *self {
            Allowance::Bytes(left) if bytes <= left => Allowance::Bytes(left - bytes),
            Allowance::Bytes(_) => Allowance::Exceeded,
            closed => closed,
        };
        self.is_open()
    }
}

impl From<Answers> for Allowance {
    fn from(answers: Answers) -> Allowance {
        match answers {
            Answers::LeftOut => Allowance::Unwanted,
            Answers::UpTo(bytes) => Allowance::Bytes(bytes),
        }
    }
}

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
