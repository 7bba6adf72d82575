//! Transactions, up to the point where anything changes: which branches are taken, and whether anything is refused.
//!
//! All compares, nested ones too, see the state before the transaction, so the whole path through the tree of branches
//! is known before the first operation. Everything that can refuse is then checked along that path; what is left to do
//! cannot fail.

use std::ops::ControlFlow;

use crate::error::{CheckError, Rejection};
use crate::index::Rev;
use crate::records::{Afterwards, FetchError};
use crate::request::{Compare, CompareResult, CompareTarget, Op, PutRequest, TxnRequest};
use crate::scan::KEPT_MAX;
use crate::state::State;

/// Records compared at a time, so that a compare over a large range does not hold all of it.
const COMPARE_PIECE: usize = 256;

/// A checked transaction: the branches it takes. Good for the state it was checked against and no other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Whether each transaction on the path succeeds, in the order in which they are met.
    pub(crate) path: Vec<bool>,
    /// The revision of the state that this was checked against.
    pub(crate) revision: i64,
}

impl TxnRequest {
    /// The operations of the branch taken.
    pub(crate) fn branch(&self, succeeded: bool) -> &[Op] {
        if succeeded { &self.success } else { &self.failure }
    }
}

impl State<'_> {
    /// Evaluates all compares on the path and checks everything that can refuse, in the order of the operations.
    /// `lease_exists` judges the leases that puts name.
    pub(crate) fn check_txn(&self, txn: &TxnRequest, lease_exists: &dyn Fn(i64) -> bool) -> Result<Plan, CheckError> {
        let mut path = Vec::with_capacity(1);
        self.find_path(txn, &mut path)?;
        self.check_path(txn, &mut path.iter().copied(), &|op| match op {
            Op::Put(put) => self.check_put(put, lease_exists),
            Op::Range(range) => self.check_readable(range.revision),
            Op::Delete(_) | Op::Txn(_) => Ok(()),
        })?;
        Ok(Plan { path, revision: self.revision })
    }

    /// Checks a put, alone or in a transaction. Like etcd it looks at the lease before the key, which decides what a put
    /// with both mistakes is told.
    pub(crate) fn check_put(&self, put: &PutRequest, lease_exists: &dyn Fn(i64) -> bool) -> Result<(), Rejection> {
        check_lease(put, lease_exists)?;
        self.check_kept(put)
    }

    /// A value or lease to be kept needs a key that is there.
    fn check_kept(&self, put: &PutRequest) -> Result<(), Rejection> {
        let kept = put.ignore_value || put.ignore_lease;
        if kept && self.lookup(&put.key, self.revision).is_none() { Err(Rejection::KeyNotFound) } else { Ok(()) }
    }

    /// Appends to `path` whether `txn` and the transactions nested in its taken branches succeed.
    pub(crate) fn find_path(&self, txn: &TxnRequest, path: &mut Vec<bool>) -> Result<(), FetchError> {
        let mut succeeded = true;
        for compare in &txn.compares {
            succeeded = self.holds(compare)?;
            if !succeeded {
                break;
            }
        }
        path.push(succeeded);
        for op in txn.branch(succeeded) {
            match op {
                Op::Txn(nested) => self.find_path(nested, path)?,
                Op::Range(_) | Op::Put(_) | Op::Delete(_) => {}
            }
        }
        Ok(())
    }

    /// Applies `check` to the operations on the path, in order.
    fn check_path(
        &self,
        txn: &TxnRequest,
        path: &mut dyn Iterator<Item = bool>,
        check: &dyn Fn(&Op) -> Result<(), Rejection>,
    ) -> Result<(), Rejection> {
        let succeeded = next_on(path);
        for op in txn.branch(succeeded) {
            match op {
                Op::Txn(nested) => self.check_path(nested, path, check)?,
                Op::Range(_) | Op::Put(_) | Op::Delete(_) => check(op)?,
            }
        }
        Ok(())
    }

    /// True if every key of the compare's range satisfies it. O(keys in the range), stopping at the first that does not.
    fn holds(&self, compare: &Compare) -> Result<bool, FetchError> {
        match &compare.target {
            CompareTarget::Version(target) => Ok(self.all_hold(compare, |rev| rev.version, *target)),
            CompareTarget::Create(target) => Ok(self.all_hold(compare, |rev| rev.create, *target)),
            CompareTarget::Mod(target) => Ok(self.all_hold(compare, |rev| rev.at.main(), *target)),
            CompareTarget::Value(_) | CompareTarget::Lease(_) => self.all_records_hold(compare),
        }
    }

    /// For targets that the index knows.
    fn all_hold(&self, compare: &Compare, figure: impl Fn(Rev) -> i64, target: i64) -> bool {
        let (mut any, mut all) = (false, true);
        self.walk_range(&compare.range, self.revision, |rev| {
            any = true;
            all = compare.result.accepts(figure(rev).cmp(&target));
            if all { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        if any { all } else { compare.result.accepts(0.cmp(&target)) }
    }

    /// For targets that only the records know.
    fn all_records_hold(&self, compare: &Compare) -> Result<bool, FetchError> {
        let mut revs = Vec::new();
        self.walk_range(&compare.range, self.revision, |rev| {
            revs.push(rev);
            ControlFlow::Continue(())
        });
        if revs.is_empty() {
            return Ok(match &compare.target {
                CompareTarget::Value(_) => false,
                CompareTarget::Lease(target)
                | CompareTarget::Version(target)
                | CompareTarget::Create(target)
                | CompareTarget::Mod(target) => compare.result.accepts(0.cmp(target)),
            });
        }
        // As for a list: whoever looks at everything must not drive out what is in use.
        let few = i64::try_from(revs.len()).is_ok_and(|count| count <= KEPT_MAX);
        let afterwards = if few { Afterwards::Keep } else { Afterwards::Forget };
        for piece in revs.chunks(COMPARE_PIECE) {
            let holds = |record: &crate::record::Record| {
                let parts = record.parts();
                compare.result.accepts(match &compare.target {
                    CompareTarget::Version(target) => parts.version.cmp(target),
                    CompareTarget::Create(target) => parts.create_revision.cmp(target),
                    CompareTarget::Mod(target) => parts.mod_revision.cmp(target),
                    CompareTarget::Value(target) => parts.value.cmp(target),
                    CompareTarget::Lease(target) => parts.lease.cmp(target),
                })
            };
            if !self.fetch_many(piece, afterwards)?.iter().all(holds) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// A lease to be attached must exist.
fn check_lease(put: &PutRequest, lease_exists: &dyn Fn(i64) -> bool) -> Result<(), Rejection> {
    match put.lease {
        0 => Ok(()),
        lease if lease_exists(lease) => Ok(()),
        lease => Err(Rejection::LeaseNotFound(lease)),
    }
}

/// The next step of a path, which has one for every transaction that is met on it.
pub(crate) fn next_on(path: &mut dyn Iterator<Item = bool>) -> bool {
    path.next().expect("the plan was made for this very transaction, so it has a step for each nested one")
}

impl CompareResult {
    fn accepts(self, found: std::cmp::Ordering) -> bool {
        match self {
            CompareResult::Equal => found.is_eq(),
            CompareResult::Greater => found.is_gt(),
            CompareResult::Less => found.is_lt(),
            CompareResult::NotEqual => found.is_ne(),
        }
    }
}
