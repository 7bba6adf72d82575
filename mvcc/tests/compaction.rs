//! Compaction and its sweep: what stays readable, what is deleted, and that neither a restart at any point nor a reader
//! in the way changes an answer. Named rows are those of the catalogue of etcd's bugs.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use common::{Store, between, single, small_cache};
use tally_backend::Bucket;
use tally_mvcc::{KeyRange, Options, ReadError, Rejection, Revision, SweepLimits, SweepObserver, SweepProgress, open};

const ONE: SweepLimits = SweepLimits { records: 1, wait_for_views: true };

fn values(store: &Store, key: &str, revision: i64) -> Vec<Vec<u8>> {
    store.get(single(key), revision).kvs.iter().map(|record| record.value().to_vec()).collect()
}

#[test]
fn the_compaction_revision_itself_stays_readable() {
    let mut store = Store::new();
    for value in ["1", "2", "3"] {
        store.set("a", value);
    }
    store.compact_now(3);
    assert_eq!(store.writer.compact_revision(), 3);
    assert_eq!(store.sweep_all(), 1);
    assert_eq!((values(&store, "a", 3), values(&store, "a", 4)), (vec![b"2".to_vec()], vec![b"3".to_vec()]));
    let request = tally_mvcc::RangeRequest { revision: 2, ..tally_mvcc::RangeRequest::latest(single("a")) };
    let refused = Rejection::Compacted { requested: 2, compacted: 3 };
    assert!(matches!(store.reader.range(&request), Err(ReadError::Rejected(rejection)) if rejection == refused));
    assert_eq!(store.compact(3), Err(Rejection::Compacted { requested: 3, compacted: 3 }));
    assert_eq!(store.compact(5), Err(Rejection::FutureRevision { requested: 5, current: 4 }));
}

/// Row 41: a tombstone at the compaction revision is kept; the next compaction drops it.
#[test]
fn issue_tombstone_at_the_compaction_revision() {
    let mut store = Store::new();
    store.set("a", "1");
    let deleted = store.unset("a");
    store.set("b", "1");
    store.compact_now(deleted);
    store.sweep_all();
    let tombstone = Revision::new(deleted, 0).to_key();
    assert!(store.backend.get(Bucket::Kv, &tombstone).unwrap().is_some());
    assert_eq!(store.records(), 2);
    store.compact_now(deleted + 1);
    store.sweep_all();
    assert!(store.backend.get(Bucket::Kv, &tombstone).unwrap().is_none());
    assert_eq!(store.keys(), ["b"]);
}

/// Rows 14 and 15: the current revision does not depend on which records are left.
#[test]
fn issue_revision_decreased_after_compaction_and_restart() {
    let mut store = Store::new();
    store.set("a", "1");
    store.unset("a");
    let revision = store.writer.revision();
    store.set("b", "1");
    store.unset("b");
    store.compact_now(revision + 1);
    store.compact_now(revision + 2);
    // The tombstone at the compaction revision would be the only trace; write past it without leaving a key.
    store.set("c", "1");
    store.unset("c");
    let newest = store.writer.revision();
    store.compact_now(newest);
    store.sweep_all();
    store.reopen();
    assert_eq!((store.writer.revision(), store.writer.compact_revision()), (newest, newest));
    assert_eq!(store.set("d", "1"), newest + 1);
}

/// Reopens after every single piece of the sweep, in both of its modes, and compares everything with a store that was
/// never swept.
#[test]
fn a_restart_at_any_point_of_the_sweep_changes_nothing() {
    let fill = |store: &mut Store| {
        for round in 0..4 {
            for key in ["a", "b", "c", "d", "e"] {
                store.set(key, &format!("{key}{round}"));
            }
            store.unset("b");
            store.delete(&tally_mvcc::DeleteRequest { range: between("c", "e"), prev_kv: false });
            store.commit();
        }
    };
    let (mut store, mut still) = (Store::new(), Store::new());
    fill(&mut store);
    fill(&mut still);
    for compact in [6, 12, 13, 20, 27, 29] {
        store.compact_now(compact);
        still.compact_now(compact);
        let mut pieces = 0;
        loop {
            let root = store.writer.root();
            assert_eq!(root, still.writer.root());
            if pieces % 3 != 1 {
                store.reopen();
            }
            assert_eq!(store.writer.root(), root);
            for revision in compact..=store.writer.revision() {
                assert_eq!(store.get(KeyRange::all(), revision), still.get(KeyRange::all(), revision), "{revision}");
            }
            if store.reader.sweep(ONE).unwrap() == SweepProgress::Done {
                break;
            }
            pieces += 1;
            assert!(pieces < 1_000, "the sweep does not come to an end");
        }
        assert!(pieces > 0);
    }
    assert!(store.records() < still.records());
    let (reopened, _) = open(&still.backend, small_cache()).unwrap();
    assert_eq!(reopened.root(), store.writer.root());
}

#[test]
fn a_running_store_knows_what_to_delete_and_looks_at_nothing_else() {
    let mut store = Store::new();
    for key in 0..50 {
        store.set(&format!("k{key}"), "1");
    }
    store.set("k7", "2");
    store.compact_now(store.writer.revision());
    let progress = store.reader.sweep(SweepLimits::default()).unwrap();
    assert_eq!(progress, SweepProgress::More { examined: 1, deleted: 1 });
    assert_eq!(store.reader.sweep(SweepLimits::default()).unwrap(), SweepProgress::Done);
    // After a restart it has to look.
    store.set("k8", "2");
    store.compact_now(store.writer.revision());
    store.reopen();
    let progress = store.reader.sweep(SweepLimits::default()).unwrap();
    assert_eq!(progress, SweepProgress::More { examined: 51, deleted: 1 });
    assert_eq!(store.reader.metrics().swept_records(), 1);
}

/// A compaction during the round of an earlier one: both are finished, in this process and after a restart.
#[test]
fn compactions_pile_up() {
    for reopen in [false, true] {
        let mut store = Store::new();
        for round in 0..10 {
            store.set("a", &round.to_string());
            store.set("b", &round.to_string());
        }
        store.compact_now(8);
        assert_eq!(store.reader.sweep(ONE).unwrap(), SweepProgress::More { examined: 1, deleted: 1 });
        store.compact_now(12);
        store.reader.sweep(ONE).unwrap();
        store.compact_now(16);
        if reopen {
            store.reopen();
        }
        store.sweep_all();
        assert_eq!(store.records(), 2 + (21 - 16), "reopened: {reopen}");
        assert_eq!(values(&store, "a", 0), [b"9".to_vec()]);
    }
}

#[derive(Debug, Default)]
struct Sweeps {
    begun: AtomicU64,
    ended: AtomicU64,
}

impl SweepObserver for Sweeps {
    fn on_begin(&self) {
        self.begun.fetch_add(1, Relaxed);
    }

    fn on_end(&self) {
        self.ended.fetch_add(1, Relaxed);
    }
}

#[test]
fn the_observer_hears_where_a_sweep_begins_and_ends() {
    let mut store = Store::new();
    let observe = |store: &mut Store| {
        let sweeps = Arc::new(Sweeps::default());
        let options = Options { sweep_observer: Some(sweeps.clone()), ..small_cache() };
        (store.writer, store.reader) = open(&store.backend, options).unwrap();
        move || (sweeps.begun.load(Relaxed), sweeps.ended.load(Relaxed))
    };
    let heard = observe(&mut store);
    for value in ["1", "2", "3", "4"] {
        store.set("a", value);
    }
    assert_eq!(store.reader.sweep(ONE).unwrap(), SweepProgress::Done);
    assert_eq!(heard(), (0, 0));
    store.compact_now(4);
    store.reader.sweep(ONE).unwrap();
    assert_eq!(heard(), (1, 0), "another record is left");
    store.reader.sweep(ONE).unwrap();
    assert_eq!(heard(), (1, 1));
    assert_eq!(store.sweep_all(), 0);
    assert_eq!(heard(), (1, 1));
    store.set("a", "5");
    store.compact_now(6);
    store.reader.sweep(ONE).unwrap();
    assert_eq!(heard(), (2, 1));
    let heard = observe(&mut store);
    assert_eq!(store.sweep_all(), 1);
    assert_eq!(heard(), (0, 1), "its beginning was seen by another");
}

#[test]
fn the_sweep_waits_for_older_views() {
    let mut store = Store::new();
    store.set("a", "1");
    store.set("a", "2");
    let view = store.reader.view();
    let scan = view.scan(&tally_mvcc::RangeRequest::latest(KeyRange::all())).unwrap();
    store.set("a", "3");
    store.compact_now(4);
    let newer = store.reader.view();
    assert_eq!(store.reader.sweep(ONE).unwrap(), SweepProgress::Waiting { epochs: 1 });
    let old = tally_mvcc::RangeRequest { revision: 2, ..tally_mvcc::RangeRequest::latest(single("a")) };
    assert_eq!(view.range(&old).unwrap().kvs[0].value(), b"1", "an older view still reads what it could");
    drop(view);
    assert_eq!(store.reader.sweep(ONE).unwrap(), SweepProgress::Waiting { epochs: 1 }, "the scan holds its view");
    drop(scan);
    assert_eq!(store.sweep_all(), 2, "a view from after the compaction is not waited for");
    assert_eq!(newer.range(&tally_mvcc::RangeRequest::latest(single("a"))).unwrap().kvs[0].value(), b"3");
}

#[test]
fn views_that_are_not_waited_for_say_so() {
    let mut store = Store::new();
    store.set("a", "1");
    store.set("a", "2");
    store.set("b", "1");
    let view = store.reader.view();
    store.set("a", "3");
    store.compact_now(5);
    while store.reader.sweep(SweepLimits { records: 10, wait_for_views: false }).unwrap() != SweepProgress::Done {}
    let latest = tally_mvcc::RangeRequest::latest(KeyRange::all());
    assert!(matches!(view.range(&latest), Err(ReadError::Overtaken { revision: 4, swept: 5 })));
    let old = tally_mvcc::RangeRequest { revision: 2, ..latest.clone() };
    let refused = Rejection::Compacted { requested: 2, compacted: 5 };
    assert!(matches!(view.range(&old), Err(ReadError::Rejected(rejection)) if rejection == refused));
    assert!(matches!(view.hash_kv(0), Err(ReadError::Overtaken { .. })));
    assert_eq!(view.range(&tally_mvcc::RangeRequest::latest(single("b"))).unwrap().count, 1, "b is still there");
    assert_eq!(store.reader.range(&latest).unwrap().count, 2);
    assert!(matches!(view.scan(&latest).unwrap().next_piece(9, 9), Err(ReadError::Overtaken { .. })));
}

#[test]
fn who_was_not_waited_for_once_does_not_hold_up_the_rest() {
    let mut store = Store::new();
    for value in 0..10 {
        store.set("a", &value.to_string());
    }
    let view = store.reader.view();
    store.set("a", "last");
    store.compact_now(12);
    let at_once = SweepLimits { wait_for_views: false, ..ONE };
    assert_eq!(store.reader.sweep(ONE).unwrap(), SweepProgress::Waiting { epochs: 1 });
    let one = SweepProgress::More { examined: 1, deleted: 1 };
    assert_eq!(store.reader.sweep(at_once).unwrap(), one);
    assert_eq!(store.sweep_all(), 9, "without a view to wait for any more");
    // A new compaction is a new question.
    store.set("a", "more");
    store.compact_now(13);
    assert_eq!(store.reader.sweep(ONE).unwrap(), SweepProgress::Waiting { epochs: 1 });
    drop(view);
    assert_eq!(store.sweep_all(), 1);
}

/// Rows 11 and 17: a compaction staged in the same batch already refuses what follows it, before anything is committed.
#[test]
fn a_staged_compaction_counts_at_once() {
    let mut store = Store::new();
    store.set("a", "1");
    store.set("a", "2");
    store.compact(3).unwrap();
    let txn = tally_mvcc::TxnRequest { success: vec![common::get(single("a"), 2)], ..Default::default() };
    assert_eq!(store.txn(&txn), Err(Rejection::Compacted { requested: 2, compacted: 3 }));
    assert_eq!(store.reader.compact_revision(), tally_mvcc::NEVER_COMPACTED, "but readers see it only when published");
    store.commit();
    assert_eq!(store.reader.compact_revision(), 3);
}
