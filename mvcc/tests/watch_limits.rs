//! What the keys that are watched may take in memory: those of one stream, and those of all.
#![allow(clippy::unwrap_used)]

mod common;

use common::watching::{Watching, changes, put_of};
use common::{Store, between, single};
use tally_mvcc::{CreateError, Created, Step, WatchLimits, WatchSpec};

const REFUSED: Result<Created, CreateError> = Err(CreateError::TooMany { max: 10 });

#[test]
fn what_a_stream_watches_has_so_many_bytes_and_no_more() {
    let mut store = Store::new();
    let mut watching = Watching::with(&store.reader, WatchLimits { key_bytes_max: 10, ..WatchLimits::default() });
    let (first, range) = (watching.create(single("aaaaa"), 0), watching.create(between("bb", "ccc"), 0));
    assert_eq!(watching.stream.create(WatchSpec::new(single("d"))), REFUSED);
    // What is watched already takes no more.
    let again = watching.create(single("aaaaa"), 0);
    assert_eq!((first, range, again), (0, 1, 2), "who is refused takes no id");
    assert_eq!((watching.stream.watchers(), store.reader.watch_figures().key_bytes()), (3, 10));

    store.set("aaaaa", "1");
    store.set("d", "2");
    store.set("c", "3");
    let batches = watching.batches();
    let of = |id: i64| batches.iter().filter(|batch| batch.id == id).flat_map(changes).collect::<Vec<_>>();
    assert_eq!((of(first), of(again)), (vec![put_of(2, "aaaaa", "1")], vec![put_of(2, "aaaaa", "1")]));
    assert_eq!(of(range), [put_of(4, "c", "3")]);
    assert_eq!(batches.len(), 3, "nobody watches the key that was refused");

    assert!(watching.stream.cancel(first));
    assert_eq!(watching.stream.create(WatchSpec::new(single("d"))), REFUSED, "another watcher has the same key");
    assert!(watching.stream.cancel(again));
    assert_eq!(store.reader.watch_figures().key_bytes(), 5);
    let last = watching.create(single("d"), 0);
    store.set("d", "4");
    assert_eq!(watching.changes(last), [put_of(5, "d", "4")]);
}

#[test]
fn what_all_streams_watch_has_so_many_bytes_and_no_more() {
    let store = Store::new();
    let limits = WatchLimits { all_key_bytes_max: 10, ..WatchLimits::default() };
    let mut one = Watching::with(&store.reader, limits);
    let mut other = Watching::with(&store.reader, limits);
    let bytes = || store.reader.watch_figures().key_bytes();
    one.create(single("aaaaaa"), 0);
    let shared = other.create(single("aaaaaa"), 0);
    assert_eq!(bytes(), 6, "a key counts once");
    assert_eq!(other.stream.create(WatchSpec::new(single("bbbbb"))), REFUSED);
    assert_eq!(bytes(), 6);
    other.create(single("cccc"), 0);
    assert_eq!(bytes(), 10);
    drop(one);
    assert_eq!(bytes(), 10, "the other stream watches the key, too");
    assert!(other.stream.cancel(shared));
    assert_eq!(bytes(), 4);
    other.create(single("bbbbb"), 0);
    assert_eq!(bytes(), 9);
    drop(other);
    assert_eq!(bytes(), 0);
}

#[test]
fn a_stream_takes_its_bytes_along_to_the_store_that_replaces_its_own() {
    let mut store = Store::new();
    let mut watching = Watching::with(&store.reader, WatchLimits { key_bytes_max: 10, ..WatchLimits::default() });
    watching.create(single("aaaaaa"), 0);
    let replaced = store.reader.clone();
    store.reopen();
    assert!(matches!(watching.step(), Some(Step::Closed)) && watching.stream.attach(&store.reader));
    assert_eq!((replaced.watch_figures().key_bytes(), store.reader.watch_figures().key_bytes()), (0, 6));
    assert_eq!(watching.stream.create(WatchSpec::new(single("bbbbb"))), REFUSED);
    drop(watching);
    assert_eq!(store.reader.watch_figures().key_bytes(), 0);
}
