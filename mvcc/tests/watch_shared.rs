//! What watchers have in common, and what is read for them where it may block.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::watching::{Change, Watching, changes, delete_of, put_of};
use common::{Store, between, delete, put, single};
use tally_mvcc::{Batch, DeleteRequest, Delivery, Filters, KeyRange, Step, TxnRequest, WatchSpec};

/// As many as are read where it may block; fewer are read at once.
const MANY: usize = 40;

/// A store with `count` keys whose records are not in memory.
fn cold(count: usize) -> Store {
    let mut store = Store::new();
    for number in 0..count {
        store.set(&format!("k{number:03}"), &number.to_string());
    }
    store.reopen();
    store
}

fn asks(range: KeyRange) -> WatchSpec {
    WatchSpec { prev_kv: true, ..WatchSpec::new(range) }
}

fn delete_all(store: &mut Store) -> i64 {
    let deleted = store.delete(&DeleteRequest { range: between("k", "l"), prev_kv: false });
    store.commit();
    deleted.revision
}

fn prevs(batches: &[Batch]) -> Vec<Option<String>> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let events = batches.iter().flat_map(|batch| batch.events.iter());
    events.map(|event| event.prev_kv().map(|record| text(record.value()))).collect()
}

/// What a stream hands out before it wants history read, or has no more.
fn at_once(watching: &mut Watching) -> (Vec<Batch>, Option<tally_mvcc::History>) {
    let mut batches = Vec::new();
    loop {
        match watching.step() {
            Some(Step::Deliver(Delivery::Events(batch))) => batches.push(batch),
            Some(Step::Read(history)) => return (batches, Some(history)),
            None => return (batches, None),
            other => panic!("{other:?}"),
        }
    }
}

/// Created at different revisions, they have been idle since; and neighbours do not want the same.
#[test]
fn watchers_of_a_range_that_want_the_same_have_it_in_common() {
    let mut store = Store::new();
    let mut watching = Watching::new(&store.reader);
    let filters = |number: i64| Filters { no_put: number % 3 == 1, no_delete: number % 3 == 2 };
    for number in 0..30 {
        // Half of them go on from the middle of what comes.
        let start = if number % 2 == 0 { 0 } else { 34 };
        let spec = WatchSpec { start, filters: filters(number), ..WatchSpec::new(between("k", "l")) };
        watching.stream.create(spec).unwrap();
        store.set("other", "v");
    }
    assert!(watching.drain().is_empty());
    store.set("k", "1");
    store.unset("k");
    let two = TxnRequest { success: vec![put("k", "2"), put("ka", "2")], ..TxnRequest::default() };
    store.txn(&two).unwrap();
    store.commit();
    store.unset("k");
    let wanted = |number: i64| -> Vec<Change> {
        let all =
            [put_of(32, "k", "1"), delete_of(33, "k"), put_of(34, "k", "2"), put_of(34, "ka", "2"), delete_of(35, "k")];
        let Filters { no_put, no_delete } = filters(number);
        let is_wanted = |change: &Change| if change.2.is_some() { !no_put } else { !no_delete };
        all.into_iter().filter(|change| (number % 2 == 0 || change.0 >= 34) && is_wanted(change)).collect()
    };
    let batches = watching.batches();
    assert_eq!(batches.len(), 30);
    for batch in &batches {
        assert_eq!(changes(batch), wanted(batch.id));
        let like = batches.iter().find(|other| other.id == batch.id % 6).unwrap();
        assert!(Arc::ptr_eq(&batch.events, &like.events), "{} has what {} has, of its own", batch.id, like.id);
    }
}

#[test]
fn many_previous_records_are_read_where_it_may_block() {
    // A quiet watcher lacks nothing of what was compacted.
    for compacts in [false, true] {
        let mut store = cold(MANY);
        let mut watching = Watching::new(&store.reader);
        let asks = watching.stream.create(asks(between("k", "l"))).unwrap().id;
        let other = watching.create(between("k", "l"), 0);
        assert!(watching.drain().is_empty());
        if compacts {
            store.set("other", "1");
            store.set("other", "2");
            store.compact_now(store.writer.revision());
        }
        let revision = delete_all(&mut store);
        let misses = store.reader.metrics().cache_misses();
        let (batches, history) = at_once(&mut watching);
        assert_eq!(batches.iter().map(|batch| (batch.id, batch.events.len())).collect::<Vec<_>>(), [(other, MANY)]);
        assert_eq!(store.reader.metrics().cache_misses(), misses, "nothing was read by whoever polls");
        watching.stream.request_progress();
        watching.stream.absorb(history.unwrap().read());
        let mut told = watching.drain();
        assert!(matches!(told.pop(), Some(Delivery::Progress { id: None, revision: told }) if told == revision));
        let [Delivery::Events(batch)] = &told[..] else { panic!("{told:?}") };
        assert_eq!((batch.id, batch.revision), (asks, revision));
        let had: Vec<_> = (0..MANY).map(|number| Some(number.to_string())).collect();
        assert_eq!(prevs(std::slice::from_ref(batch)), had);
        // It is level again, and what is in memory is given at once.
        store.set("k", "1");
        store.set("k", "2");
        let (batches, history) = at_once(&mut watching);
        assert!(history.is_none());
        let mine: Vec<Batch> = batches.into_iter().filter(|batch| batch.id == asks).collect();
        assert_eq!(prevs(&mine), [None, Some("1".to_owned())]);
        assert_eq!(store.reader.watch_figures().slow_watchers(), 0);
    }
}

#[test]
fn a_few_previous_records_are_read_at_once() {
    let mut store = cold(5);
    let mut watching = Watching::new(&store.reader);
    watching.stream.create(asks(between("k", "l"))).unwrap();
    assert!(watching.drain().is_empty());
    delete_all(&mut store);
    let (batches, history) = at_once(&mut watching);
    assert!(history.is_none());
    assert_eq!(prevs(&batches), ["0", "1", "2", "3", "4"].map(|value| Some(value.to_owned())));
}

/// Each lacks but one.
#[test]
fn many_watchers_with_a_previous_record_each_are_many_as_well() {
    let mut store = cold(MANY);
    let mut watching = Watching::new(&store.reader);
    for number in 0..MANY {
        watching.stream.create(asks(single(&format!("k{number:03}")))).unwrap();
    }
    assert!(watching.drain().is_empty());
    let rounds = 3;
    for round in 0..rounds {
        let revision = delete_all(&mut store);
        let misses = store.reader.metrics().cache_misses();
        let (mut batches, history) = at_once(&mut watching);
        let few = store.reader.metrics().cache_misses() - misses;
        assert!(few > 0 && few < MANY as u64 / 2 && few == batches.len() as u64, "{few} were read by whoever polls");
        watching.stream.absorb(history.unwrap().read());
        batches.extend(watching.batches());
        batches.sort_by_key(|batch| batch.id);
        let seen: Vec<_> = batches.iter().flat_map(changes).collect();
        let gone: Vec<_> = (0..MANY).map(|number| delete_of(revision, &format!("k{number:03}"))).collect();
        assert_eq!(seen, gone);
        let had: Vec<_> = (0..MANY).map(|number| Some(number.to_string())).collect();
        assert_eq!(prevs(&batches), had);
        if round + 1 < rounds {
            let again = |number: usize| put(&format!("k{number:03}"), &number.to_string());
            store.txn(&TxnRequest { success: (0..MANY).map(again).collect(), ..TxnRequest::default() }).unwrap();
            store.commit();
            assert_eq!(watching.batches().len(), MANY);
            store.reopen();
            assert!(matches!(watching.step(), Some(Step::Closed)) && watching.stream.attach(&store.reader));
            assert!(watching.drain().is_empty());
        }
    }
}

/// History would refuse what the log still has: what waits began before the compaction, and does not end there.
#[test]
fn a_watcher_is_not_sent_to_where_its_events_are_compacted() {
    let mut store = cold(MANY);
    let mut watching = Watching::new(&store.reader);
    watching.stream.create(asks(between("k", "l"))).unwrap();
    assert!(watching.drain().is_empty());
    let first = store.set("k", "1");
    store.set("other", "1");
    let compacted = store.set("other", "2");
    store.compact_now(compacted);
    store.txn(&TxnRequest { success: vec![delete(between("k", "l"))], ..TxnRequest::default() }).unwrap();
    store.commit();
    let batches = watching.batches();
    let seen: Vec<_> = batches.iter().flat_map(changes).collect();
    assert_eq!((seen.len(), &seen[0]), (MANY + 2, &put_of(first, "k", "1")));
    let mut had = vec![None, Some("1".to_owned())];
    had.extend((0..MANY).map(|number| Some(number.to_string())));
    assert_eq!(prevs(&batches), had);
}
