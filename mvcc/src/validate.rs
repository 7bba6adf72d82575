//! Checks of a transaction's shape, before it is proposed: sizes, empty keys, keys written twice.
//!
//! Pure functions of the request, with etcd's rules to the letter, gaps included: what they let pass is done in its
//! order. The writer relies on them for nothing but the answers to be sensible.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::keyrange::{KeyRange, RangeEnd};
use crate::request::{Op, PutRequest, TxnRequest};

/// How deep transactions may be nested, whatever the operation budget allows.
pub const MAX_TXN_DEPTH: usize = 128;

/// Why a request is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// A key is empty.
    #[error("the key is empty; every key has at least one byte")]
    EmptyKey,
    /// `ignore_value` together with a value.
    #[error("a value is given although ignore_value asks for the present one to be kept")]
    ValueProvided,
    /// `ignore_lease` together with a lease.
    #[error("a lease is given although ignore_lease asks for the present one to be kept")]
    LeaseProvided,
    /// More compares or operations than allowed (nested transactions share what the outer one leaves).
    #[error("the transaction has more than {allowed} compares or operations at one level")]
    TooManyOps {
        /// How many this level may have.
        allowed: usize,
    },
    /// Nested deeper than [`MAX_TXN_DEPTH`].
    #[error("the transaction is nested more than {MAX_TXN_DEPTH} deep")]
    TooDeep,
    /// One key put twice, or put inside a deleted range.
    #[error("a key is put twice, or put and deleted, by one transaction")]
    DuplicateKey,
}

impl PutRequest {
    /// Checks that the put has a key and does not contradict itself.
    pub fn validate(&self) -> Result<(), Invalid> {
        if self.key.is_empty() {
            return Err(Invalid::EmptyKey);
        }
        if self.ignore_value && !self.value.is_empty() {
            return Err(Invalid::ValueProvided);
        }
        if self.ignore_lease && self.lease != 0 {
            return Err(Invalid::LeaseProvided);
        }
        Ok(())
    }
}

impl TxnRequest {
    /// Checks the whole tree of operations against etcd's rules, with at most `max_ops` compares or operations at the
    /// outermost level; a nested transaction may have what its parent leaves of its own allowance.
    pub fn validate(&self, max_ops: usize) -> Result<(), Invalid> {
        self.check_shape(max_ops, MAX_TXN_DEPTH)?;
        Footprint::of(&self.success)?;
        Footprint::of(&self.failure)?;
        Ok(())
    }

    fn check_shape(&self, allowed: usize, depth_left: usize) -> Result<(), Invalid> {
        let depth_left = depth_left.checked_sub(1).ok_or(Invalid::TooDeep)?;
        let used = self.compares.len().max(self.success.len()).max(self.failure.len());
        let left = allowed.checked_sub(used).ok_or(Invalid::TooManyOps { allowed })?;
        for op in self.success.iter().chain(&self.failure) {
            match op {
                // A key range cannot be made of an empty key.
                Op::Range(_) | Op::Delete(_) => {}
                Op::Put(put) => put.validate()?,
                Op::Txn(txn) => txn.check_shape(left, depth_left)?,
            }
        }
        Ok(())
    }
}

/// Whether a put keeps the present value or lease, and so depends on the key being there.
#[derive(Clone, Copy)]
struct Kept(bool);

/// What a list of operations may put and delete, whichever branches its nested transactions take.
#[derive(Default)]
struct Footprint<'a> {
    puts: BTreeMap<&'a Bytes, Kept>,
    deletes: Vec<&'a KeyRange>,
}

impl<'a> Footprint<'a> {
    fn of(ops: &'a [Op]) -> Result<Footprint<'a>, Invalid> {
        let mut all = Footprint::default();
        all.deletes.extend(ops.iter().filter_map(|op| match op {
            Op::Delete(delete) => Some(&delete.range),
            Op::Range(_) | Op::Put(_) | Op::Txn(_) => None,
        }));
        for op in ops {
            if let Op::Txn(txn) = op {
                all.join_branches(Footprint::of(&txn.success)?, Footprint::of(&txn.failure)?)?;
            }
        }
        for op in ops {
            if let Op::Put(put) = op {
                all.add_put(&put.key, Kept(put.ignore_value || put.ignore_lease))?;
            }
        }
        Ok(all)
    }

    /// Takes in the two branches of a nested transaction. Only one of them will run, so both may put the same key.
    /// Their deletes count from here on: for the transactions that follow, and for this level's own puts.
    fn join_branches(&mut self, success: Footprint<'a>, failure: Footprint<'a>) -> Result<(), Invalid> {
        let mut puts = failure.puts;
        for (key, kept) in success.puts {
            let other = puts.entry(key).or_insert(kept);
            *other = Kept(other.0 || kept.0);
        }
        for (key, kept) in puts {
            self.add_put(key, kept)?;
        }
        self.deletes.extend(success.deletes);
        self.deletes.extend(failure.deletes);
        Ok(())
    }

    fn add_put(&mut self, key: &'a Bytes, kept: Kept) -> Result<(), Invalid> {
        let deleted = self.deletes.iter().any(|range| match range.end() {
            RangeEnd::Single | RangeEnd::Before(_) => range.contains(key),
            // etcd takes "\0" for an ordinary end here, so a put beside a delete of everything passes, and they are
            // done in their order. Not so a put that keeps what the delete takes away: that one makes etcd crash.
            RangeEnd::Unbounded => kept.0 && range.contains(key),
        });
        if deleted || self.puts.insert(key, kept).is_some() { Err(Invalid::DuplicateKey) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::request::{Compare, CompareResult, CompareTarget, DeleteRequest};

    fn put(key: &'static str) -> Op {
        Op::Put(PutRequest::new(key, "v"))
    }

    fn delete(key: &'static str, end: &'static str) -> Op {
        Op::Delete(DeleteRequest { range: KeyRange::new(key.into(), end.into()).unwrap(), prev_kv: false })
    }

    fn txn(success: Vec<Op>, failure: Vec<Op>) -> TxnRequest {
        TxnRequest { compares: vec![], success, failure }
    }

    fn check(success: Vec<Op>) -> Result<(), Invalid> {
        txn(success, vec![]).validate(128)
    }

    #[test]
    fn a_key_is_written_once() {
        let dup = Err(Invalid::DuplicateKey);
        assert_eq!(check(vec![put("a"), put("b")]), Ok(()));
        assert_eq!(check(vec![put("a"), put("a")]), dup);
        assert_eq!(check(vec![put("b"), delete("a", "c")]), dup);
        assert_eq!(check(vec![delete("a", "c"), put("b")]), dup);
        assert_eq!(check(vec![delete("a", "c"), put("c")]), Ok(()));
        assert_eq!(check(vec![delete("a", ""), delete("a", "c")]), Ok(()));
        assert_eq!(check(vec![put("a"), Op::Txn(txn(vec![put("a")], vec![]))]), dup);
        assert_eq!(check(vec![put("a"), Op::Txn(txn(vec![], vec![delete("a", "")]))]), dup);
        assert_eq!(check(vec![delete("a", ""), Op::Txn(txn(vec![], vec![put("a")]))]), dup);
    }

    #[test]
    fn only_one_branch_of_a_nested_transaction_runs() {
        assert_eq!(check(vec![Op::Txn(txn(vec![put("a")], vec![put("a")]))]), Ok(()));
        assert_eq!(check(vec![Op::Txn(txn(vec![put("a")], vec![delete("a", "")]))]), Ok(()));
        let both = Op::Txn(txn(vec![put("a")], vec![put("a")]));
        assert_eq!(check(vec![both.clone(), both]), Err(Invalid::DuplicateKey));
        assert_eq!(txn(vec![put("a")], vec![put("a")]).validate(128), Ok(()));
        // Sibling transactions are judged in order: delete then put is refused, put then delete is not.
        let (puts, deletes) = (Op::Txn(txn(vec![put("a")], vec![])), Op::Txn(txn(vec![delete("a", "")], vec![])));
        assert_eq!(check(vec![deletes.clone(), puts.clone()]), Err(Invalid::DuplicateKey));
        assert_eq!(check(vec![puts, deletes]), Ok(()));
    }

    #[test]
    fn beside_a_delete_of_everything_a_put_must_not_depend_on_the_key() {
        let keep = || Op::Put(PutRequest { ignore_lease: true, ..PutRequest::new("b", "v") });
        assert_eq!(check(vec![delete("a", "\0"), put("b")]), Ok(()));
        assert_eq!(check(vec![delete("a", "\0"), keep()]), Err(Invalid::DuplicateKey));
        assert_eq!(check(vec![delete("c", "\0"), keep()]), Ok(()));
    }

    #[test]
    fn nested_transactions_share_the_rest_of_the_budget() {
        let inner = Op::Txn(txn(vec![put("x"), put("y")], vec![]));
        assert_eq!(txn(vec![inner.clone(), put("a")], vec![]).validate(4), Ok(()));
        assert_eq!(txn(vec![inner, put("a")], vec![]).validate(3), Err(Invalid::TooManyOps { allowed: 1 }));
        let compare = Compare {
            range: KeyRange::single("a".into()).unwrap(),
            result: CompareResult::Equal,
            target: CompareTarget::Version(0),
        };
        let compares = TxnRequest { compares: vec![compare; 5], ..TxnRequest::default() };
        assert_eq!(compares.validate(4), Err(Invalid::TooManyOps { allowed: 4 }));
        assert_eq!(compares.validate(5), Ok(()));
    }

    #[test]
    fn depth_is_bounded_without_overflowing_the_stack() {
        let nested = |depth: usize| (1..depth).fold(TxnRequest::default(), |txn_, _| txn(vec![Op::Txn(txn_)], vec![]));
        assert_eq!(nested(MAX_TXN_DEPTH).validate(10_000), Ok(()));
        assert_eq!(nested(MAX_TXN_DEPTH + 1).validate(10_000), Err(Invalid::TooDeep));
    }

    #[test]
    fn puts_do_not_contradict_themselves() {
        let base = PutRequest::new("k", "v");
        assert_eq!(base.validate(), Ok(()));
        assert_eq!(PutRequest { key: Bytes::new(), ..base.clone() }.validate(), Err(Invalid::EmptyKey));
        assert_eq!(PutRequest { ignore_value: true, ..base.clone() }.validate(), Err(Invalid::ValueProvided));
        assert_eq!(PutRequest { ignore_lease: true, lease: 4, ..base.clone() }.validate(), Err(Invalid::LeaseProvided));
        let put = Op::Put(PutRequest { key: Bytes::new(), ..base });
        assert_eq!(txn(vec![], vec![put]).validate(128), Err(Invalid::EmptyKey));
    }
}
