//! Commits, positions, housekeeping, views and the durable watermark of one open backend.
#![allow(clippy::unwrap_used)]

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use common::*;
use tally_backend::{Applied, Backend, Bucket, Observer, StorageError};

#[test]
fn a_fresh_backend_is_at_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    assert!(backend.is_fresh());
    assert_eq!(backend.applied(), Applied::default());
    assert_eq!(backend.durable(), Applied::default());
    assert_eq!(backend.sync().unwrap(), Applied::default());
    assert_eq!(check(&backend, 8), 0);
    assert!(dump(&backend).is_empty());
}

#[test]
fn batches_are_seen_after_their_commit_only() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    let mut batch = backend.batch();
    assert!(batch.is_empty());
    batch.put(Bucket::Kv, b"a", b"1");
    batch.put(Bucket::Kv, b"b", b"2");
    batch.put(Bucket::Alarm, b"a", b"3");
    batch.delete(Bucket::Kv, b"b");
    assert_eq!(batch.len(), 4);
    assert!(batch.bytes() >= 7);
    assert!(dump(&backend).is_empty());
    batch.commit(&at(1)).unwrap();
    assert_eq!(backend.applied(), at(1));
    assert_eq!(backend.get(Bucket::Kv, b"a").unwrap(), Some(Bytes::from_static(b"1")));
    assert_eq!(backend.get(Bucket::Alarm, b"a").unwrap(), Some(Bytes::from_static(b"3")));
    assert_eq!(backend.get(Bucket::Kv, b"b").unwrap(), None);
    let many = backend.get_many(Bucket::Kv, &[&b"z"[..], b"a", b"b", b"a"]).unwrap();
    let one = || Some(Bytes::from_static(b"1"));
    assert_eq!(many, [None, one(), None, one()]);
    drop(backend.batch());
    assert_eq!(dump(&backend).len(), 2);
}

#[test]
fn many_keys_are_found_in_any_order() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    (1..=300).for_each(|index| commit(&backend, index * 2, 50));
    backend.sync().unwrap();
    (301..=600).for_each(|index| commit(&backend, index * 2, 50));
    let orders: [Vec<u64>; 8] = [
        (100..800).step_by(2).collect(),
        (1..1202).collect(),
        (1..1202).rev().collect(),
        (2..1200).map(|index| index * 7919 % 1300).collect(),
        (100..400).flat_map(|index| [index * 2, 1200 - index]).collect(),
        (100..400).map(|index| if index % 9 == 0 { 1200 - index } else { index * 2 }).collect(),
        vec![6; 20],
        vec![5000, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 0],
    ];
    for indexes in orders {
        let keys: Vec<Vec<u8>> = indexes.iter().map(|index| revision(*index)).collect();
        let there = |index: &u64| index.is_multiple_of(2) && (2..=1200).contains(index);
        let expected: Vec<_> =
            indexes.iter().map(|index| there(index).then(|| Bytes::from(value(*index, 50)))).collect();
        assert_eq!(backend.get_many(Bucket::Kv, &keys).unwrap(), expected);
        assert_eq!(backend.read().get_many(Bucket::Kv, &keys).unwrap(), expected);
    }
}

#[test]
fn ranges_are_scanned_and_deleted_half_open() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    let mut batch = backend.batch();
    for key in [b"a", b"b", b"c", b"d"] {
        batch.put(Bucket::Meta, key, key);
    }
    batch.commit(&at(1)).unwrap();
    let keys = |start: &[u8], end: Option<&[u8]>| -> Vec<u8> {
        backend.read().scan(Bucket::Meta, start, end).flat_map(|record| record.unwrap().0).collect()
    };
    assert_eq!(keys(b"", None), b"abcd");
    assert_eq!(keys(b"b", Some(b"d")), b"bc");
    assert_eq!(keys(b"b", Some(b"b")), b"");
    assert_eq!(keys(b"c", Some(b"a")), b"");
    let mut seen = Vec::new();
    let visit = |key: &[u8], _: &[u8]| {
        seen.extend_from_slice(key);
        if key == b"c" { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    backend.read().for_each(Bucket::Meta, b"b", None, visit).unwrap();
    assert_eq!(seen, b"bc");
    let mut batch = backend.batch();
    batch.delete_range(Bucket::Meta, b"d", b"a");
    batch.delete_range(Bucket::Meta, b"b", b"b");
    batch.delete_range(Bucket::Meta, b"b", b"d");
    batch.commit(&at(2)).unwrap();
    assert_eq!(keys(b"", None), b"ad");
}

#[test]
fn the_position_only_moves_on() {
    for (index, term) in [(5, 2), (4, 2), (0, 2), (6, 1)] {
        let dir = tempfile::tempdir().unwrap();
        let backend = open(dir.path());
        let position = |index, term| Applied { index, term, ..Applied::default() };
        backend.batch().commit(&position(5, 2)).unwrap();
        let error = backend.batch().commit(&position(index, term)).unwrap_err();
        let expected = StorageError::InvariantBroken { index: 5, term: 2, offered_index: index, offered_term: term };
        assert_eq!(error, expected);
        assert_eq!(backend.applied(), position(5, 2));
        // Fail-stop: what would have been right is refused as well, and so is everything else that writes.
        assert_eq!(backend.batch().commit(&position(6, 2)), Err(expected.clone()));
        assert_eq!(backend.batch().commit_housekeeping(), Err(expected.clone()));
        assert_eq!(backend.sync(), Err(expected.clone()));
        assert!(backend.export(&dir.path().join("exports")).is_err());
    }
}

#[test]
fn the_founding_position_may_be_written_twice_at_index_0() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    backend.batch().commit(&Applied { root: 1, ..Applied::default() }).unwrap();
    assert!(!backend.is_fresh());
    backend.batch().commit(&Applied { root: 2, ..Applied::default() }).unwrap();
    backend.batch().commit(&at(1)).unwrap();
    assert!(backend.batch().commit(&Applied { term: 9, ..Applied::default() }).is_err());
}

#[test]
fn housekeeping_leaves_the_position() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    commit(&backend, 1, 8);
    let mut batch = backend.batch();
    batch.delete(Bucket::Kv, &revision(1));
    batch.commit_housekeeping().unwrap();
    assert_eq!(backend.applied(), at(1));
    assert_eq!(backend.sync().unwrap(), at(1));
    drop(backend);
    let backend = open(dir.path());
    assert_eq!(backend.applied(), at(1));
    assert_eq!(backend.get(Bucket::Kv, &revision(1)).unwrap(), None);
    assert_eq!(backend.metrics().commits(), 0);
}

#[test]
fn an_oversized_batch_is_refused_whole() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    let mut batch = backend.batch();
    batch.put(Bucket::Kv, b"small", b"1");
    // Zeroed memory that nobody touches is not even allocated.
    batch.put(Bucket::Kv, b"large", &vec![0; (3 << 30) + 1]);
    let error = batch.commit(&at(1)).unwrap_err();
    assert!(matches!(error, StorageError::BatchTooLarge { limit, .. } if limit == 3 << 30), "{error}");
    assert_eq!(backend.applied(), Applied::default());
    assert!(dump(&backend).is_empty());
}

#[test]
fn a_view_stays_as_it_is_while_others_write() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    commit(&backend, 1, 1000);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| (2..2000).for_each(|index| commit(&backend, index, 1000)));
        let (mut views, mut newest) = (0, 0);
        while !writer.is_finished() || views == 0 {
            let view = backend.read();
            let applied = view.applied().unwrap();
            assert!(applied.index >= newest);
            newest = applied.index;
            let last = view.get(Bucket::Meta, b"last").unwrap().unwrap();
            assert_eq!(last, applied.index.to_be_bytes()[..]);
            let both = view.get_many(Bucket::Kv, &[revision(newest), revision(newest + 1)]).unwrap();
            assert_eq!(both, [Some(Bytes::from(value(newest, 1000))), None]);
            let many: Vec<Vec<u8>> = (newest..newest + 20).map(revision).collect();
            assert_eq!(view.get_many(Bucket::Kv, &many).unwrap().iter().flatten().count(), 1);
            assert_eq!(view.scan(Bucket::Kv, &[], None).count() as u64, newest);
            views += 1;
        }
        writer.join().unwrap();
    });
    assert_eq!(check(&backend, 1000), 1999);
}

#[test]
fn syncs_and_commits_go_on_together_and_the_watermark_is_true() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| (1..3000).for_each(|index| commit(&backend, index, 200)));
        let mut watermark = 0;
        while !writer.is_finished() {
            let before = backend.applied().index;
            let durable = backend.sync().unwrap();
            assert!(durable.index >= before && durable.index >= watermark);
            watermark = durable.index;
            assert!(backend.durable().index >= watermark);
        }
        writer.join().unwrap();
    });
    assert_eq!(backend.sync().unwrap(), at(2999));
    let syncs = backend.metrics().syncs();
    assert_eq!(backend.sync().unwrap(), at(2999));
    assert_eq!(backend.metrics().syncs(), syncs, "a sync of nothing must cost nothing");
}

#[test]
fn sizes_follow_the_data() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    (1..=500).for_each(|index| commit(&backend, index, 4096));
    let size = backend.size().unwrap();
    assert!(size.allocated >= 500 * 4096 && size.allocated < 8 << 20, "{size:?}");
    assert!(size.in_use >= 450 * 4096 && size.in_use <= size.allocated, "{size:?}");
    backend.sync().unwrap();
    let size = backend.size().unwrap();
    assert!(size.in_use >= 500 * 4096 && size.allocated < 4 << 20, "{size:?}");
    assert!(backend.scrub().unwrap() >= 500 * 4096);
}

#[derive(Default)]
struct Counter {
    commits: AtomicU64,
    syncs: AtomicU64,
    housekeeping: AtomicU64,
}

impl Observer for Counter {
    fn on_commit(&self, _: Duration) {
        self.commits.fetch_add(1, Ordering::Relaxed);
    }

    fn on_sync(&self, _: Duration) {
        self.syncs.fetch_add(1, Ordering::Relaxed);
    }

    fn on_housekeeping(&self, _: Duration) {
        self.housekeeping.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn the_observer_and_the_metrics_hear_of_everything() {
    let dir = tempfile::tempdir().unwrap();
    let counter = Arc::new(Counter::default());
    let mut config = small(dir.path());
    config.observer = Some(counter.clone());
    let backend = Backend::open(config).unwrap();
    (1..=3).for_each(|index| commit(&backend, index, 8));
    backend.batch().commit_housekeeping().unwrap();
    backend.sync().unwrap();
    assert_eq!(counter.commits.load(Ordering::Relaxed), 3);
    assert_eq!(counter.syncs.load(Ordering::Relaxed), 1);
    assert_eq!(counter.housekeeping.load(Ordering::Relaxed), 1);
    let metrics = backend.metrics();
    assert_eq!((metrics.commits(), metrics.syncs(), metrics.housekeeping_commits()), (3, 1, 1));
    assert!(metrics.commit_time() > Duration::ZERO && metrics.commit_bytes() > 0);
}

#[test]
fn closing_syncs_and_ends_the_writing_of_every_clone() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    let clone = backend.clone();
    commit(&backend, 1, 8);
    backend.close().unwrap();
    assert_eq!(clone.durable(), at(1));
    assert!(matches!(clone.batch().commit(&at(2)), Err(StorageError::Closed { .. })));
    assert_eq!(check(&clone, 8), 1);
}

#[test]
fn many_small_syncs_do_not_leave_many_small_tables() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    for index in 1..=400 {
        commit(&backend, index, 64);
        backend.sync().unwrap();
    }
    assert!(backend.metrics().tidied_files() >= 128, "{}", backend.metrics().tidied_files());
    assert_eq!(check(&backend, 64), 400);
    drop(backend);
    let tables = std::fs::read_dir(&generations(dir.path())[0]).unwrap();
    let tables = tables.filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|it| it == "sst"));
    let count = tables.count();
    assert!(count < 200, "{count} tables");
}
