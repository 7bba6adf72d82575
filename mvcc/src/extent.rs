//! How much a request is about to touch, told before it is carried out.

use crate::keyrange::KeyRange;
use crate::request::{DeleteRequest, Op, TxnRequest};
use crate::writer::Writer;

impl Writer {
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
            Op::Range(range) if range.options.count_only && range.revision == 0 => 0,
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
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tally_backend::{Applied, Backend, Config, Identity};

    use super::*;
    use crate::request::{Compare, CompareResult, CompareTarget, PutRequest, RangeOptions, RangeRequest};

    #[test]
    fn ranges_count_wherever_they_stand_and_single_keys_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let backend = Backend::open(Config::new(dir.path(), Identity::default())).unwrap();
        let (mut writer, _reader) = crate::open(&backend, crate::Options::default()).unwrap();
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
    }
}
