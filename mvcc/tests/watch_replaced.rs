//! A store that is replaced under its watchers, as by a snapshot: row 38 of docs/bug-catalogue.md.
#![allow(clippy::unwrap_used)]

mod common;

use common::watching::{Watching, changes, narrow, put_of, store_with_window};
use common::{Store, between, single};
use tally_mvcc::{Delivery, KeyRange, Step, open};

/// #15271: a member that comes back by a snapshot must neither repeat events nor tell of revisions that it had told of.
#[test]
fn row_38_a_store_that_is_replaced_repeats_nothing_and_loses_nothing() {
    let mut store = Store::new();
    let mut watching = Watching::new(&store.reader);
    let (key, range) = (watching.create(single("k"), 0), watching.create(between("a", "z"), 0));
    store.set("k", "1");
    assert_eq!(watching.batches().len(), 2);
    // Not seen by anybody when the store goes.
    store.set("k", "2");
    store.reopen();
    store.set("k", "3");
    assert!(matches!(watching.step(), Some(Step::Closed)));
    assert!(matches!(watching.step(), Some(Step::Closed)), "nothing else comes before the stream is attached");
    assert!(watching.stream.attach(&store.reader));
    store.set("k", "4");
    let batches = watching.batches();
    for id in [key, range] {
        let seen: Vec<_> = batches.iter().filter(|batch| batch.id == id).flat_map(changes).collect();
        assert_eq!(seen, [put_of(3, "k", "2"), put_of(4, "k", "3"), put_of(5, "k", "4")]);
    }
}

/// Not taken when the store goes, and in its logs no more, or the last that it had.
#[test]
fn row_38_what_was_not_taken_from_a_store_that_is_replaced_is_read_from_the_next() {
    for (other, window) in [(false, 8), (true, 8), (true, 1)] {
        let mut store = store_with_window(window);
        let mut watching = Watching::new(&store.reader);
        let ids = [watching.create(single("k"), 0), watching.create(between("k", "l"), 0)];
        watching.create(single("other"), 0);
        assert!(watching.drain().is_empty());
        store.set("k", "1");
        if other {
            store.set("other", "2");
        }
        (store.writer, store.reader) = open(&store.backend, narrow(window)).unwrap();
        assert!(matches!(watching.step(), Some(Step::Closed)) && watching.stream.attach(&store.reader));
        let batches = watching.batches();
        for id in ids {
            let seen: Vec<_> = batches.iter().filter(|batch| batch.id == id).flat_map(changes).collect();
            assert_eq!(seen, [put_of(2, "k", "1")]);
        }
    }
}

#[test]
fn row_38_a_store_that_is_behind_goes_on_where_the_watcher_is() {
    let mut ahead = Store::new();
    let mut behind = Store::new();
    let mut watching = Watching::new(&ahead.reader);
    let id = watching.create(KeyRange::all(), 0);
    for value in ["1", "2", "3"] {
        ahead.set("k", value);
    }
    behind.set("k", "1");
    assert_eq!(watching.changes(id).len(), 3);
    ahead.reopen();
    assert!(matches!(watching.step(), Some(Step::Closed)));
    assert!(watching.stream.attach(&behind.reader));
    watching.stream.request_progress();
    behind.set("k", "2");
    assert!(watching.drain().is_empty(), "neither old events nor an older progress");
    behind.set("k", "3");
    let progress = watching.drain();
    assert!(matches!(progress[..], [Delivery::Progress { id: None, revision: 4 }]), "{progress:?}");
    behind.set("k", "4");
    assert_eq!(watching.changes(id), [put_of(5, "k", "4")]);
    watching.stream.request_progress();
    let progress = watching.drain();
    assert!(matches!(progress[..], [Delivery::Progress { id: None, revision: 5 }]), "{progress:?}");
}

#[test]
fn row_38_a_store_that_is_behind_takes_no_progress_back() {
    let mut ahead = Store::new();
    let mut behind = Store::new();
    let mut watching = Watching::new(&ahead.reader);
    let id = watching.create(single("k"), 0);
    ahead.set("other", "1");
    ahead.set("other", "2");
    watching.stream.request_progress();
    assert!(matches!(watching.drain()[..], [Delivery::Progress { id: None, revision: 3 }]));
    // It does not take this one any more from the store that is replaced.
    ahead.set("k", "3");
    ahead.reopen();
    while !matches!(watching.step(), Some(Step::Closed)) {}
    assert!(watching.stream.attach(&behind.reader));
    behind.set("other", "1");
    watching.stream.request_progress();
    assert!(watching.drain().is_empty(), "revision 2 is below what was told");
    behind.set("other", "2");
    behind.set("k", "3");
    let all = watching.drain();
    let [Delivery::Events(batch), Delivery::Progress { id: None, revision: 4 }] = &all[..] else { panic!("{all:?}") };
    assert_eq!((batch.id, changes(batch)), (id, vec![put_of(4, "k", "3")]));
}

#[test]
fn row_38_a_store_that_has_compacted_what_comes_next_cancels_the_watcher() {
    let mut store = Store::new();
    let mut watching = Watching::new(&store.reader);
    let (lost, kept) = (watching.create(single("k"), 0), watching.create(single("quiet"), 0));
    assert!(watching.drain().is_empty());
    store.set("k", "1");
    store.set("k", "2");
    store.set("other", "3");
    store.compact_now(4);
    let missed = watching.create(single("k"), 2);
    store.reopen();
    assert!(matches!(watching.step(), Some(Step::Closed)));
    assert!(watching.stream.attach(&store.reader));
    let mut canceled: Vec<_> = watching
        .drain()
        .into_iter()
        .map(|delivery| match delivery {
            Delivery::Canceled { id, compact_revision, .. } => (id, compact_revision),
            other => panic!("{other:?}"),
        })
        .collect();
    canceled.sort_unstable();
    // It had taken neither of its events. A quiet watcher of the old store needs nothing of what is gone.
    assert_eq!(canceled, [(lost, 4), (missed, 4)]);
    store.set("quiet", "4");
    assert_eq!(watching.changes(kept), [put_of(5, "quiet", "4")]);
}

/// One event waits for it when the store goes; all the others were of other keys.
#[test]
fn row_38_a_quiet_watcher_needs_nothing_of_what_was_compacted_before_its_event() {
    for looked in [false, true] {
        let mut store = Store::new();
        let mut watching = Watching::new(&store.reader);
        let ids = [watching.create(single("k"), 0), watching.create(between("k", "l"), 0)];
        watching.create(single("j"), 0);
        assert!(watching.drain().is_empty());
        for value in ["1", "2", "3", "4"] {
            store.set("other", value);
        }
        store.compact_now(5);
        store.set("j", "5");
        store.set("k", "6");
        if looked {
            // It takes up all groups, and hands out the first thing.
            assert!(watching.step().is_some());
        }
        store.reopen();
        let mut batches = Vec::new();
        loop {
            match watching.step() {
                Some(Step::Deliver(Delivery::Events(batch))) => batches.push(batch),
                Some(Step::Closed) => break,
                other => panic!("{other:?}"),
            }
        }
        assert!(watching.stream.attach(&store.reader));
        batches.extend(watching.batches());
        for id in ids {
            let seen: Vec<_> = batches.iter().filter(|batch| batch.id == id).flat_map(changes).collect();
            assert_eq!(seen, [put_of(7, "k", "6")]);
        }
    }
}

#[test]
fn row_38_a_store_that_is_closed_takes_no_stream() {
    let mut store = Store::new();
    let mut watching = Watching::new(&store.reader);
    watching.create(single("k"), 0);
    let old = store.reader.clone();
    store.reopen();
    assert!(!watching.stream.attach(&old));
    assert!(matches!(watching.step(), Some(Step::Closed)));
    let mut late = Watching::new(&old);
    assert!(matches!(late.step(), Some(Step::Closed)));
    assert!(late.stream.attach(&store.reader) && watching.stream.attach(&store.reader));
}
