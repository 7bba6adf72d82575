//! Ranges that are read as long as their records have no more than so many bytes.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Store, between, single};
use tally_mvcc::{
    Op, PutRequest, RangeOptions, RangeRequest, ReadError, Record, Rejection, SortOrder, SortTarget, TxnRequest, View,
};

/// A store with so many records, whose values are in another order than their keys.
fn filled(records: usize) -> Store {
    let mut store = Store::new();
    for record in 0..records {
        let value = format!("{:04}{}", record * 7 % 1_000, "v".repeat(100));
        store.put(&PutRequest::new(format!("k{record:04}"), value)).unwrap();
    }
    store.commit();
    store
}

fn all(options: RangeOptions) -> RangeRequest {
    RangeRequest { range: between("k", "l"), revision: 0, options }
}

fn by_value(limit: i64) -> RangeOptions {
    RangeOptions { limit, sort_order: SortOrder::Descend, sort_target: SortTarget::Value, ..RangeOptions::default() }
}

/// Bytes of the records that answer a request.
fn bytes(view: &View, request: &RangeRequest) -> usize {
    view.range(request).unwrap().kvs.iter().map(|record: &Record| record.bytes().len()).sum()
}

#[test]
fn a_range_is_answered_as_long_as_its_records_have_no_more_bytes_than_are_allowed() {
    let store = filled(300);
    let view = store.reader.view();
    let keys_only = RangeOptions { keys_only: true, ..RangeOptions::default() };
    let (whole, keys) = (bytes(&view, &all(RangeOptions::default())), bytes(&view, &all(keys_only.clone())));
    assert!(keys < whole / 2);
    let cases = [
        (RangeOptions::default(), whole),
        (keys_only, keys),
        // Which of them are answered is not known before all have been read.
        (by_value(0), whole),
        (by_value(3), whole),
        (RangeOptions { keys_only: true, ..by_value(3) }, whole),
        (RangeOptions { count_only: true, ..RangeOptions::default() }, 0),
    ];
    for (options, needed) in cases {
        let request = all(options);
        let answer = Some(view.range(&request).unwrap());
        assert_eq!(view.range_within(&request, needed).unwrap(), answer, "{request:?}");
        assert_eq!(view.txn_range_within(&request, needed).unwrap(), answer, "{request:?}");
        if let Some(less) = needed.checked_sub(1) {
            assert_eq!(view.range_within(&request, less).unwrap(), None, "{request:?}");
            assert_eq!(view.txn_range_within(&request, less).unwrap(), None, "{request:?}");
        }
    }
}

#[test]
fn what_is_too_much_is_not_read_to_its_end() {
    let mut store = filled(1_000);
    for options in [RangeOptions::default(), by_value(0)] {
        // Nothing is in memory then.
        store.reopen();
        let read = || store.reader.metrics().cache_misses();
        let before = read();
        assert_eq!(store.reader.view().range_within(&all(options), 1).unwrap(), None);
        let records = read() - before;
        assert!((1..=128).contains(&records), "{records} records were read");
    }
}

#[test]
fn only_a_scan_by_value_has_its_records_in_memory_when_it_begins() {
    let store = filled(300);
    let view = store.reader.view();
    let (request, whole) = (all(by_value(0)), bytes(&view, &all(RangeOptions::default())));
    assert!(view.scan_within(&request, whole - 1).unwrap().is_none());
    let mut scan = view.scan_within(&request, whole).unwrap().unwrap();
    assert_eq!(scan.next_piece(1_000, usize::MAX).unwrap().unwrap(), view.range(&request).unwrap().kvs);
    for sort_target in [SortTarget::Key, SortTarget::Version, SortTarget::Create, SortTarget::Mod] {
        for sort_order in [SortOrder::None, SortOrder::Descend] {
            let request = all(RangeOptions { sort_target, sort_order, ..RangeOptions::default() });
            assert!(view.scan_within(&request, 0).unwrap().is_some(), "{request:?}");
        }
    }
}

#[test]
fn a_negative_revision_is_the_newest_one_but_not_in_a_transaction() {
    let mut store = filled(3);
    store.compact_now(3);
    let view = store.reader.view();
    let request = RangeRequest { revision: -1, ..RangeRequest::latest(single("k0000")) };
    assert!(view.range_within(&request, usize::MAX).unwrap().is_some());
    let error = view.txn_range_within(&request, usize::MAX).unwrap_err();
    let compacted = matches!(error, ReadError::Rejected(Rejection::Compacted { requested: -1, compacted: 3 }));
    assert!(compacted, "{error}");
    let txn = TxnRequest { success: vec![Op::Range(request)], ..TxnRequest::default() };
    assert_eq!(view.txn(&txn).unwrap_err().to_string(), error.to_string());
}
