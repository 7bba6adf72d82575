//! What is kept in memory of records that were just written.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Store, between};
use tally_mvcc::{PutRequest, RangeRequest};

fn put(store: &mut Store, records: usize) {
    for record in 0..records {
        store.put(&PutRequest::new(format!("{record:05}"), "v")).unwrap();
    }
    store.commit();
}

#[test]
fn what_was_just_written_is_read_from_memory_unless_it_was_much_at_once() {
    let all = RangeRequest::latest(between("0", "1"));
    for (records, kept) in [(1, true), (256, true), (257, false)] {
        let mut store = Store::new();
        put(&mut store, records);
        assert_eq!(store.reader.record_cache_bytes() > 0, kept, "{records}");
        assert_eq!(store.reader.view().range(&all).unwrap().kvs.len(), records);
        let hits = if kept { records } else { 0 };
        assert_eq!(store.reader.metrics().cache_hits(), hits as u64, "{records}");
        // Of what was read there is a next time.
        assert!(store.reader.record_cache_bytes() > 0, "{records}");
    }
}

#[test]
fn what_a_scan_has_read_is_kept_unless_the_range_is_large() {
    let all = RangeRequest::latest(between("0", "1"));
    for (records, kept) in [(1_000, true), (1_001, false)] {
        let mut store = Store::new();
        put(&mut store, records);
        let mut scan = store.reader.view().scan(&all).unwrap();
        let mut read = 0;
        while let Some(piece) = scan.next_piece(64, usize::MAX).unwrap() {
            read += piece.len();
        }
        assert_eq!((read, store.reader.record_cache_bytes() > 0), (records, kept));
    }
}
