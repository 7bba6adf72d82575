//! What can be asked of the store. These are values: they are encoded into log entries and mean the same everywhere.

use bytes::Bytes;

use crate::keyrange::KeyRange;

/// The order of a range's answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SortOrder {
    /// By key ascending; with a sort target other than the key this means ascending, *after* the limit was applied.
    #[default]
    None,
    /// Smallest first.
    Ascend,
    /// Greatest first.
    Descend,
}

/// What a range's answer is sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SortTarget {
    /// The key.
    #[default]
    Key,
    /// The number of puts since the key was created.
    Version,
    /// The revision that created the key.
    Create,
    /// The revision that wrote the key last.
    Mod,
    /// The value.
    Value,
}

/// How a range is limited, ordered, filtered and trimmed. The default asks for everything by key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct RangeOptions {
    /// At most this many records; zero or less is no limit.
    pub limit: i64,
    /// Ascending, descending, or as the index has it.
    pub sort_order: SortOrder,
    /// What to sort by.
    pub sort_target: SortTarget,
    /// Leave the values out.
    pub keys_only: bool,
    /// Only count; return no records.
    pub count_only: bool,
    /// Leave out records modified before this revision; zero is no filter.
    pub min_mod_revision: i64,
    /// Leave out records modified after this revision; zero is no filter.
    pub max_mod_revision: i64,
    /// Leave out records created before this revision; zero is no filter.
    pub min_create_revision: i64,
    /// Leave out records created after this revision; zero is no filter.
    pub max_create_revision: i64,
}

/// Read a range of keys at a revision.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RangeRequest {
    /// Which keys.
    pub range: KeyRange,
    /// At which revision; zero (outside transactions also anything negative) is the newest.
    pub revision: i64,
    /// How to limit, sort, filter and trim the answer.
    pub options: RangeOptions,
}

/// Write one key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PutRequest {
    /// The key; must not be empty.
    pub key: Bytes,
    /// The new value.
    pub value: Bytes,
    /// The lease to attach the key to; zero is none. Stored as given: whether it exists is the caller's to check.
    pub lease: i64,
    /// Answer with the record that was replaced.
    pub prev_kv: bool,
    /// Keep the present value; the key must exist.
    pub ignore_value: bool,
    /// Keep the present lease; the key must exist.
    pub ignore_lease: bool,
}

/// Delete a range of keys.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DeleteRequest {
    /// Which keys.
    pub range: KeyRange,
    /// Answer with the records that were deleted.
    pub prev_kv: bool,
}

/// Compare, then do one list of operations or the other, as one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TxnRequest {
    /// All must hold for `success` to be done.
    pub compares: Vec<Compare>,
    /// Done if all compares hold.
    pub success: Vec<Op>,
    /// Done otherwise.
    pub failure: Vec<Op>,
}

/// One operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Read.
    Range(RangeRequest),
    /// Write one key.
    Put(PutRequest),
    /// Delete.
    Delete(DeleteRequest),
    /// A transaction inside; its compares see the state before the outermost one.
    Txn(TxnRequest),
}

/// A condition on every key of a range.
///
/// If no key is there it is judged on one of zeroes (version 0, revision 0, lease 0), except that a value compare
/// on nothing never holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Compare {
    /// Which keys; all of them must satisfy the condition.
    pub range: KeyRange,
    /// How the key's figure must stand to the target.
    pub result: CompareResult,
    /// What is compared, and with what.
    pub target: CompareTarget,
}

/// How the stored figure must stand to the one given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CompareResult {
    /// The same.
    #[default]
    Equal,
    /// The stored one is greater.
    Greater,
    /// The stored one is less.
    Less,
    /// Not the same.
    NotEqual,
}

/// What a [`Compare`] looks at, with the figure it is compared to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CompareTarget {
    /// The number of puts since the key was created; 0 = absent.
    Version(i64),
    /// The revision that created the key; 0 = absent.
    Create(i64),
    /// The revision that wrote the key last; 0 = absent.
    Mod(i64),
    /// The value, compared as bytes.
    Value(Bytes),
    /// The lease; 0 = none.
    Lease(i64),
}

impl RangeRequest {
    /// Everything in `range` at the newest revision, by key.
    pub fn latest(range: KeyRange) -> RangeRequest {
        RangeRequest { range, revision: 0, options: RangeOptions::default() }
    }
}

impl PutRequest {
    /// A plain put.
    pub fn new(key: impl Into<Bytes>, value: impl Into<Bytes>) -> PutRequest {
        PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() }
    }
}

impl TxnRequest {
    /// True if neither branch can write, at any depth.
    pub fn is_read_only(&self) -> bool {
        self.success.iter().chain(&self.failure).all(|op| match op {
            Op::Range(_) => true,
            Op::Put(_) | Op::Delete(_) => false,
            Op::Txn(txn) => txn.is_read_only(),
        })
    }
}

impl RangeOptions {
    /// True if some records may be left out because of their revisions.
    pub(crate) fn has_filters(&self) -> bool {
        [self.min_mod_revision, self.max_mod_revision, self.min_create_revision, self.max_create_revision]
            .iter()
            .any(|bound| *bound != 0)
    }

    /// True if a record with these revisions is to be kept.
    pub(crate) fn admits(&self, create: i64, modified: i64) -> bool {
        let not_below = |bound: i64, figure: i64| bound == 0 || figure >= bound;
        let not_above = |bound: i64, figure: i64| bound == 0 || figure <= bound;
        not_below(self.min_mod_revision, modified)
            && not_above(self.max_mod_revision, modified)
            && not_below(self.min_create_revision, create)
            && not_above(self.max_create_revision, create)
    }
}
