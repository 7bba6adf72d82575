//! Opening: the same store comes back, and damaged data is refused with its place.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Store, between, single, small_cache};
use tally_backend::Bucket;
use tally_mvcc::{Corruption, DeleteRequest, KeyRange, OpenError, Options, PutRequest, ReadError, Revision, open};

fn filled() -> Store {
    let mut store = Store::new();
    for key in 0..300 {
        store.put(&PutRequest::new(format!("key/{:03}", key * 7 % 300), format!("value {key}"))).unwrap();
        if key % 3 == 0 {
            store.delete(&DeleteRequest { range: between("key/1", "key/11"), prev_kv: false });
        }
    }
    store.commit();
    store
}

fn spoil(store: &Store, bucket: Bucket, key: &[u8], value: Option<&[u8]>) {
    let mut batch = store.backend.batch();
    match value {
        Some(value) => batch.put(bucket, key, value),
        None => batch.delete(bucket, key),
    }
    batch.commit_housekeeping().unwrap();
}

fn corruption(store: &Store) -> Corruption {
    match open(&store.backend, small_cache()) {
        Err(OpenError::Corrupt(corruption)) => corruption,
        other => panic!("{:?}", other.map(|_| "opened")),
    }
}

#[test]
fn the_same_store_comes_back_with_any_number_of_threads() {
    let store = filled();
    for open_threads in [1, 2, 3, 8] {
        let (writer, reader) = open(&store.backend, Options { open_threads, ..small_cache() }).unwrap();
        assert_eq!((writer.root(), writer.revision()), (store.writer.root(), store.writer.revision()));
        let request = tally_mvcc::RangeRequest::latest(KeyRange::all());
        assert_eq!(reader.view().range(&request).unwrap(), store.reader.view().range(&request).unwrap());
        assert_eq!(reader.keys_live(), store.reader.keys_live());
    }
}

#[test]
fn options_out_of_range_are_refused() {
    let store = Store::new();
    for options in [Options { open_threads: 0, ..small_cache() }, Options { record_cache_bytes: 1, ..small_cache() }] {
        assert!(matches!(open(&store.backend, options), Err(OpenError::BadOption { given: 0 | 1, .. })));
    }
}

#[test]
fn damaged_records_are_refused_with_their_place() {
    let store = filled();
    let at = Revision::new(100, 0).to_key();
    let good = store.backend.get(Bucket::Kv, &at).unwrap().unwrap();
    spoil(&store, Bucket::Kv, &at, Some(&good[..good.len() - 1]));
    assert!(matches!(corruption(&store), Corruption::Undecodable { main: 100, sub: 0, .. }));
    spoil(&store, Bucket::Kv, &at, Some(&good));
    spoil(&store, Bucket::Kv, &Revision::new(100, 9).to_key(), Some(&good));
    assert!(matches!(corruption(&store), Corruption::BrokenHistory { main: 100, sub: 9 }));
    spoil(&store, Bucket::Kv, &Revision::new(100, 9).to_key(), None);
    spoil(&store, Bucket::Kv, &Revision::new(101, 9).to_key(), Some(&good));
    assert_eq!(corruption(&store), Corruption::Misplaced { main: 101, sub: 9, found: 100 });
    spoil(&store, Bucket::Kv, &Revision::new(101, 9).to_key(), None);
    spoil(&store, Bucket::Kv, b"short", Some(&good));
    assert_eq!(corruption(&store), Corruption::BadRevisionKey { length: 5 });
    spoil(&store, Bucket::Kv, b"short", None);
    assert!(open(&store.backend, small_cache()).is_ok());
}

#[test]
fn a_changed_value_is_told_by_the_root_and_a_lost_record_by_its_reader() {
    let store = filled();
    let record = store.get(single("key/299"), 0).kvs.remove(0);
    let at = Revision::new(record.mod_revision(), 0).to_key();
    let mut bytes = record.bytes().to_vec();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    spoil(&store, Bucket::Kv, &at, Some(&bytes));
    let (writer, reader) = open(&store.backend, small_cache()).unwrap();
    assert_ne!(writer.root(), store.writer.root());
    spoil(&store, Bucket::Kv, &at, None);
    let lost = reader.range(&tally_mvcc::RangeRequest::latest(single("key/299")));
    let main = record.mod_revision();
    assert!(matches!(lost, Err(ReadError::Corrupt(Corruption::Missing { main: at, sub: 0 })) if at == main));
}

#[test]
fn damaged_figures_are_refused() {
    let store = filled();
    let good = store.backend.get(Bucket::Meta, b"mvcc.revision").unwrap().unwrap();
    assert_eq!(good.len(), 9);
    spoil(&store, Bucket::Meta, b"mvcc.revision", Some(&[1, 0, 0, 0, 0, 0, 0, 0, 50]));
    assert!(matches!(corruption(&store), Corruption::BeyondCurrent { current: 50, .. }));
    for bad in [&[2u8, 0, 0, 0, 0, 0, 0, 1, 50][..], &[1, 50], &[]] {
        spoil(&store, Bucket::Meta, b"mvcc.revision", Some(bad));
        let found = corruption(&store);
        let version = bad.first().copied();
        assert_eq!(found, Corruption::BadMeta { name: "mvcc.revision", length: bad.len(), version });
    }
    spoil(&store, Bucket::Meta, b"mvcc.revision", Some(&good));
    spoil(&store, Bucket::Meta, b"mvcc.swept", Some(&[1; 20]));
    assert!(matches!(corruption(&store), Corruption::BadMeta { name: "mvcc.swept", length: 20, .. }));
}

/// The formats of the two buckets, byte for byte: they must be readable for ever.
#[test]
fn golden_formats() {
    let mut store = Store::new();
    store.put(&PutRequest { lease: 5, ..PutRequest::new("k", "v") }).unwrap();
    store.commit();
    store.unset("k");
    store.compact_now(3);
    assert_eq!(store.sweep_all(), 1);
    let meta = |name: &[u8]| store.backend.get(Bucket::Meta, name).unwrap().unwrap();
    assert_eq!(&meta(b"mvcc.revision")[..], [1, 0, 0, 0, 0, 0, 0, 0, 3]);
    assert_eq!(&meta(b"mvcc.compact")[..], [1, 0, 0, 0, 0, 0, 0, 0, 3]);
    assert_eq!(&meta(b"mvcc.swept")[..], [1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0]);
    let mut found = Vec::new();
    let tombstone = Revision::new(3, 0).to_key();
    found.extend_from_slice(&store.backend.get(Bucket::Kv, &tombstone).unwrap().unwrap());
    assert_eq!(found, b"\x0a\x01k\x18\x03");
    assert_eq!(tombstone, [0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0]);
}

/// The roots of fixed histories: they are compared between versions of the program, so they never change.
#[test]
fn golden_roots() {
    let mut store = Store::new();
    let empty = store.writer.root();
    store.put(&PutRequest { lease: 5, ..PutRequest::new("k", "v") }).unwrap();
    store.commit();
    let put = store.writer.root();
    store.unset("k");
    let deleted = store.writer.root();
    store.compact_now(3);
    let roots = [empty, put, deleted, store.writer.root()].map(|root| format!("{root:032x}"));
    assert_eq!(roots, GOLDEN_ROOTS);
}

const GOLDEN_ROOTS: [&str; 4] = [
    "d1b1224c8bce37b64f8d893fdc6c18af",
    "c190e2af4cfdf81682dfb938cfaf679b",
    "c3ff441a8fa718705ce53be92268287b",
    "2d1ba5747241186dac163e54e4ac42db",
];
