//! The rule that one transaction writes each key at most once, with etcd's ideas of what overlaps.
//!
//! Cost: a key or range is moved only into a set at least as large as its own, so at most log n times however deep it is
//! nested: O(n log n) steps, each a look-up. A hostile transaction costs little more to judge than to read.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use crate::keyrange::{KeyRange, RangeEnd};
use crate::request::{Op, PutRequest, TxnRequest};
use crate::validate::Invalid;

impl TxnRequest {
    /// Checks that no key is written twice, or put and deleted, in both branches and everything nested in them.
    ///
    /// - Of a nested transaction only one branch runs, so both may write the same key.
    /// - Nested transactions of one level are judged in order: put, then deleted by a later one is allowed, the reverse
    ///   is not. Beside an operation of the level itself the order does not count.
    /// - A delete "from here on" (`range_end` is `"\0"`) beside a put is allowed, and done in order. Only a put that is to
    ///   keep the value or lease which such a delete *before* it takes away is refused: on that, etcd crashes.
    ///
    /// Part of [`validate`](TxnRequest::validate), which also bounds the depth that this recurses to; a caller that has
    /// checked the shape by other means calls this alone.
    pub fn check_overlap(&self) -> Result<(), Invalid> {
        self.overlaps().map_err(|Overlap| Invalid::DuplicateKey)
    }

    fn overlaps(&self) -> Result<(), Overlap> {
        for branch in [&self.success, &self.failure] {
            Footprint::of(branch)?;
            keeps_what_is_there(branch, None)?;
        }
        Ok(())
    }
}

/// Walks the operations in the order in which they are done. `deleted_from` is the least key from which everything has been
/// deleted so far; returns the same for what comes after, whichever branches were taken.
fn keeps_what_is_there<'a>(ops: &'a [Op], mut deleted_from: Option<&'a [u8]>) -> Result<Option<&'a [u8]>, Overlap> {
    for op in ops {
        match op {
            Op::Delete(delete) if delete.range.end() == RangeEnd::Unbounded => {
                deleted_from = least(deleted_from, Some(delete.range.start()));
            }
            Op::Put(put) if put.ignore_value || put.ignore_lease => {
                if deleted_from.is_some_and(|start| *start <= *put.key) {
                    return Err(Overlap);
                }
            }
            Op::Txn(txn) => {
                let after_success = keeps_what_is_there(&txn.success, deleted_from)?;
                deleted_from = least(after_success, keeps_what_is_there(&txn.failure, deleted_from)?);
            }
            Op::Range(_) | Op::Put(_) | Op::Delete(_) => {}
        }
    }
    Ok(deleted_from)
}

/// One key is put twice, or put and deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Overlap;

/// What a list of operations may put and delete, whichever branches its nested transactions take.
#[derive(Default)]
struct Footprint<'a> {
    puts: BTreeSet<&'a [u8]>,
    deletes: Deleted<'a>,
}

impl<'a> Footprint<'a> {
    fn of(ops: &'a [Op]) -> Result<Self, Overlap> {
        let mut all = Self::default();
        for op in ops {
            match op {
                Op::Delete(delete) => all.add_delete(&delete.range),
                Op::Range(_) | Op::Put(_) | Op::Txn(_) => {}
            }
        }
        for op in ops {
            match op {
                Op::Txn(txn) => all.join(Self::of(&txn.success)?, Self::of(&txn.failure)?)?,
                Op::Range(_) | Op::Put(_) | Op::Delete(_) => {}
            }
        }
        for op in ops {
            match op {
                Op::Put(put) => all.add_put(put)?,
                Op::Range(_) | Op::Delete(_) | Op::Txn(_) => {}
            }
        }
        Ok(all)
    }

    fn add_delete(&mut self, range: &'a KeyRange) {
        let start = range.start();
        match range.end() {
            RangeEnd::Single => self.deletes.insert(start, Cow::Owned([start, &[0]].concat())),
            RangeEnd::Before(end) if start < end => self.deletes.insert(start, Cow::Borrowed(end)),
            RangeEnd::Before(_) => {}
            // etcd takes "\0" for an ordinary end here, one before every start: puts do not meet this delete.
            RangeEnd::Unbounded => {}
        }
    }

    fn add_put(&mut self, put: &'a PutRequest) -> Result<(), Overlap> {
        let key: &[u8] = &put.key;
        if self.deletes.contains(key) || !self.puts.insert(key) { Err(Overlap) } else { Ok(()) }
    }

    /// Takes in the branches of a nested transaction. Each is judged against what was here before, not against the other.
    /// Their deletes count for what comes after: later transactions of this level, and its own puts.
    fn join(&mut self, success: Self, failure: Self) -> Result<(), Overlap> {
        for branch in [&success, &failure] {
            let twice = !self.puts.is_disjoint(&branch.puts);
            if twice || self.deletes.meets(&branch.puts) {
                return Err(Overlap);
            }
        }
        for branch in [success, failure] {
            self.merge(branch);
        }
        Ok(())
    }

    fn merge(&mut self, mut other: Self) {
        if other.puts.len() > self.puts.len() {
            std::mem::swap(&mut self.puts, &mut other.puts);
        }
        self.puts.extend(other.puts);
        self.deletes.merge(other.deletes);
    }
}

/// The lesser of the keys that are there.
fn least<'a>(left: Option<&'a [u8]>, right: Option<&'a [u8]>) -> Option<&'a [u8]> {
    left.into_iter().chain(right).min()
}

/// Deleted keys as ranges that are not empty and neither overlap nor touch: start -> end, exclusive.
#[derive(Default)]
struct Deleted<'a>(BTreeMap<&'a [u8], Cow<'a, [u8]>>);

impl<'a> Deleted<'a> {
    fn insert(&mut self, mut start: &'a [u8], mut end: Cow<'a, [u8]>) {
        if let Some((before, before_end)) = self.0.range(..=start).next_back()
            && **before_end >= *start
        {
            start = before;
        }
        while let Some((&next, _)) = self.0.range(start..=&*end).next() {
            if let Some(next_end) = self.0.remove(next) {
                end = end.max(next_end);
            }
        }
        self.0.insert(start, end);
    }

    fn merge(&mut self, mut other: Self) {
        if other.0.len() > self.0.len() {
            std::mem::swap(self, &mut other);
        }
        for (start, end) in other.0 {
            self.insert(start, end);
        }
    }

    fn contains(&self, key: &[u8]) -> bool {
        self.0.range(..=key).next_back().is_some_and(|(_, end)| *key < **end)
    }

    /// True if any of `puts` is deleted. Walks the smaller of the two.
    fn meets(&self, puts: &BTreeSet<&[u8]>) -> bool {
        if puts.len() <= self.0.len() {
            puts.iter().any(|key| self.contains(key))
        } else {
            self.0.iter().any(|(start, end)| puts.range(*start..&**end).next().is_some())
        }
    }
}

#[cfg(test)]
#[path = "overlap_tests.rs"]
mod tests;
