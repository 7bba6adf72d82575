//! How much a request is about to touch, told before it is carried out.

use std::ops::ControlFlow;

use crate::keyrange::KeyRange;
use crate::request::{DeleteRequest, Op, TxnRequest};
use crate::txn::{Plan, next_on};
use crate::writer::Writer;

/// What is staged for a removed key beside the key itself, at most: where its tombstone is stored, the other fields of it, and
/// what the batch adds.
const TOMBSTONE_BYTES: u64 = 64;

impl Writer {
    /// How many bytes a delete is about to stage, at most. O(keys it removes); if that is more than `limit`, no more is looked
    /// at than shows it.
    pub fn removed_bytes(&self, delete: &DeleteRequest, limit: u64) -> u64 {
        let range = &delete.range;
        if range.is_single() {
            return range.start().len() as u64 + TOMBSTONE_BYTES;
        }
        let mut bytes = 0;
        self.state(self.revision).walk(range.start(), range.upper(), self.revision, |key, _| {
            bytes += key.len() as u64 + TOMBSTONE_BYTES;
            if bytes > limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        bytes
    }

    /// How many bytes the deletes on the path of a transaction that was just checked are about to stage, at most. Each counts
    /// what is there before the transaction. `limit` as in [`Writer::removed_bytes`].
    pub fn removed_bytes_of_txn(&self, txn: &TxnRequest, plan: &Plan, limit: u64) -> u64 {
        self.removed_on(txn, &mut plan.path.iter().copied(), limit)
    }

    fn removed_on(&self, txn: &TxnRequest, path: &mut dyn Iterator<Item = bool>, limit: u64) -> u64 {
        let mut bytes = 0;
        for op in txn.branch(next_on(path)) {
            let left = limit.saturating_sub(bytes);
            bytes += match op {
                Op::Delete(delete) => self.removed_bytes(delete, left),
                Op::Txn(nested) => self.removed_on(nested, path, left),
                Op::Put(_) | Op::Range(_) => 0,
            };
            if bytes > limit {
                break;
            }
        }
        bytes
    }

    /// How many keys a delete is about to remove; 0 if it names a single one. O(log n).
    pub fn extent_of_delete(&self, delete: &DeleteRequest) -> u64 {
        self.keys_in(&delete.range)
    }

    /// How many keys a transaction may compare, read or remove, at most: those of both its branches, however deep. What
    /// names a single key counts for nothing, as the request itself is as long as all of that. O(log n) for each range.
    pub fn extent_of_txn(&self, txn: &TxnRequest) -> u64 {
        let compared = txn.compares.iter().map(|compare| self.keys_in(&compare.range));
        let done = txn.success.iter().chain(&txn.failure).map(|op| match op {
            Op::Put(_) => 0,
            // Of the past, all keys that have one are looked at.
            Op::Range(range) if range.revision != 0 => self.histories_in(&range.range),
            Op::Range(range) if range.options.count_only => 0,
            Op::Range(range) => self.keys_in(&range.range),
            Op::Delete(delete) => self.extent_of_delete(delete),
            Op::Txn(inner) => self.extent_of_txn(inner),
        });
        compared.chain(done).sum()
    }

    /// Whether a limit is given or not: a sorted read looks at all of them.
    fn keys_in(&self, range: &KeyRange) -> u64 {
        if range.is_single() {
            return 0;
        }
        self.state(self.revision).count(range, self.revision).cast_unsigned()
    }

    /// Keys that are deleted included, as long as they are not compacted.
    fn histories_in(&self, range: &KeyRange) -> u64 {
        if range.is_single() || range.is_empty() {
            return 0;
        }
        self.state(self.revision).tree.sum_range(range.start(), range.upper()).0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tally_backend::{Applied, Backend, Config, Identity};

    use super::*;
    use crate::request::{Compare, CompareResult, CompareTarget, PutRequest, RangeOptions, RangeRequest};

    fn store() -> (tempfile::TempDir, Backend, Writer) {
        let dir = tempfile::tempdir().unwrap();
        let backend = Backend::open(Config::new(dir.path(), Identity::default())).unwrap();
        let (writer, _) = crate::open(&backend, crate::Options::default()).unwrap();
        (dir, backend, writer)
    }

    #[test]
    fn ranges_count_wherever_they_stand_and_single_keys_do_not() {
        let (_dir, backend, mut writer) = store();
        let mut batch = backend.batch();
        for key in ["a", "b", "c", "d"] {
            writer.put(&PutRequest::new(key, "value"), &mut batch).unwrap();
        }
        batch.commit(&Applied { index: 1, ..Applied::default() }).unwrap();
        writer.publish();
        let range = |from: &'static str, to: &'static str| KeyRange::new(from.into(), to.into()).unwrap();
        let delete = |range: KeyRange| DeleteRequest { range, prev_kv: false };
        assert_eq!(writer.extent_of_delete(&delete(range("b", "d"))), 2);
        assert_eq!(writer.extent_of_delete(&delete(range("b", "\0"))), 3);
        assert_eq!(writer.extent_of_delete(&delete(range("b", ""))), 0);
        assert_eq!(writer.extent_of_delete(&delete(range("d", "b"))), 0);
        let read = |range, count_only| {
            let options = RangeOptions { count_only, ..RangeOptions::default() };
            Op::Range(RangeRequest { range, revision: 0, options })
        };
        let compare = |range| Compare { range, result: CompareResult::Equal, target: CompareTarget::Version(1) };
        let inner = TxnRequest { failure: vec![Op::Delete(delete(range("a", "c")))], ..TxnRequest::default() };
        let txn = TxnRequest {
            compares: vec![compare(range("a", "")), compare(range("c", "e"))],
            success: vec![read(range("a", "\0"), false), read(range("a", "\0"), true), Op::Txn(inner)],
            failure: vec![Op::Put(PutRequest::new("z", "value")), Op::Delete(delete(range("a", "b")))],
        };
        assert_eq!(writer.extent_of_txn(&txn), 2 + 4 + 2 + 1);
        // Of the past even a count looks at each, deleted since or not.
        let options = RangeOptions { count_only: true, ..RangeOptions::default() };
        let past = Op::Range(RangeRequest { range: range("b", "\0"), revision: 2, options });
        let mut batch = backend.batch();
        writer.delete_range(&delete(range("b", "d")), &mut batch).unwrap();
        assert_eq!(writer.extent_of_txn(&TxnRequest { success: vec![past], ..TxnRequest::default() }), 3);
    }

    #[test]
    fn removals_are_foreseen_along_the_path_and_never_too_small() {
        let (_dir, backend, mut writer) = store();
        let mut batch = backend.batch();
        for key in 1..100 {
            writer.put(&PutRequest::new(format!("{key:03}").repeat(key), "value"), &mut batch).unwrap();
        }
        let delete = |from: &'static str, to: &'static str| DeleteRequest {
            range: KeyRange::new(from.into(), to.into()).unwrap(),
            prev_kv: false,
        };
        let (all, one, none) = (delete("0", "\0"), delete("001", ""), delete("x", "y"));
        let bytes = |delete: &DeleteRequest| writer.removed_bytes(delete, u64::MAX);
        assert_eq!((bytes(&one), bytes(&none)), (3 + TOMBSTONE_BYTES, 0));
        // Three bytes and six are more than eight; the third key is not looked at.
        assert_eq!(writer.removed_bytes(&all, 8 + 2 * TOMBSTONE_BYTES), 9 + 2 * TOMBSTONE_BYTES);
        let nested = TxnRequest { failure: vec![Op::Delete(all.clone())], ..TxnRequest::default() };
        let mut txn = TxnRequest {
            success: vec![Op::Delete(one.clone()), Op::Txn(nested.clone()), Op::Delete(none)],
            failure: vec![Op::Delete(all.clone())],
            ..TxnRequest::default()
        };
        let on_path = |txn: &TxnRequest| writer.removed_bytes_of_txn(txn, &writer.check(txn).unwrap(), u64::MAX);
        assert_eq!(on_path(&txn), 3 + TOMBSTONE_BYTES);
        // A nested one that fails takes its other branch.
        let range = KeyRange::new("x".into(), "".into()).unwrap();
        let compares = vec![Compare { range, result: CompareResult::Greater, target: CompareTarget::Version(0) }];
        txn.success[1] = Op::Txn(TxnRequest { compares, ..nested });
        let foreseen = on_path(&txn);
        assert_eq!(foreseen, 3 + TOMBSTONE_BYTES + bytes(&all));
        let before = batch.bytes();
        writer.delete_range(&all, &mut batch).unwrap();
        let staged = batch.bytes() - before;
        assert!(staged <= foreseen && staged > foreseen / 2, "{staged} bytes, {foreseen} foreseen");
    }
}
