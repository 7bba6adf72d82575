//! Checks of a request's shape, before it is proposed: sizes, empty keys, contradictions. `overlap` judges keys written
//! twice.
//!
//! Pure functions of the request, with etcd's rules to the letter, gaps included: what they let pass is done in its
//! order. The writer relies on them for nothing but the answers to be sensible.

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
        self.check_overlap()
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;

    use super::*;
    use crate::keyrange::KeyRange;
    use crate::request::{Compare, CompareResult, CompareTarget};

    fn put(key: &'static str) -> Op {
        Op::Put(PutRequest::new(key, "v"))
    }

    fn txn(success: Vec<Op>, failure: Vec<Op>) -> TxnRequest {
        TxnRequest { compares: vec![], success, failure }
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
