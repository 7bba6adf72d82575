//! Readers, the writer and the sweep at the same time: every view is whole, and nothing goes back.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use common::{Store, between};
use tally_mvcc::{KeyRange, PutRequest, RangeRequest, ReadError, Reader, SweepLimits, TxnRequest};

const ACCOUNTS: usize = 20;

/// Reads all accounts again and again; in every view they were written by one transaction.
fn watch(reader: &Reader, stop: &AtomicBool) -> u64 {
    let (mut reads, mut last) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        let view = reader.view();
        assert!(view.revision() >= last, "the revision went back");
        last = view.revision();
        let request = RangeRequest::latest(between("account/", "account0"));
        let found = view.range(&request).unwrap();
        if last > 1 {
            assert_eq!(found.kvs.len(), ACCOUNTS);
            assert!(
                found.kvs.iter().all(|record| record.mod_revision() == last && record.value() == found.kvs[0].value())
            );
        }
        // A little history, as far as it is there.
        let before = view.range(&RangeRequest { revision: last - 3, ..request });
        match before {
            Ok(before) => assert!(before.kvs.iter().all(|record| record.mod_revision() <= last)),
            Err(ReadError::Rejected(_)) => {}
            Err(error) => panic!("{error:?}"),
        }
        assert_eq!(view.root_of(&KeyRange::all()), view.clone().root_of(&KeyRange::all()));
        reads += 1;
    }
    reads
}

#[test]
fn views_are_whole_while_the_writer_writes_and_the_sweep_sweeps() {
    let mut store = Store::new();
    let stop = AtomicBool::new(false);
    let reader = store.reader.clone();
    std::thread::scope(|scope| {
        let watchers: Vec<_> = (0..2).map(|_| scope.spawn(|| watch(&reader, &stop))).collect();
        let sweeper = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                reader.sweep(SweepLimits { records: 50, wait_for_views: true }).unwrap();
                std::thread::yield_now();
            }
        });
        for round in 0..400 {
            let write = |account| common::put(&format!("account/{account:02}"), &round.to_string());
            store.txn(&TxnRequest { success: (0..ACCOUNTS).map(write).collect(), ..Default::default() }).unwrap();
            if round % 10 == 9 {
                store.compact(store.writer.revision() - 2).unwrap();
            }
            store.commit();
        }
        stop.store(true, Ordering::Relaxed);
        let reads: u64 = watchers.into_iter().map(|watcher| watcher.join().unwrap()).sum();
        assert!(reads > 0);
        sweeper.join().unwrap();
    });
    store.sweep_all();
    assert_eq!(store.records(), ACCOUNTS * 3, "what is kept at the compaction, and two revisions after it");
    store.put(&PutRequest::new("done", "")).unwrap();
    store.reopen();
}
