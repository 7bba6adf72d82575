//! Bugs that etcd had in watching (docs/bug-catalogue.md, class D), each with the test that would notice it here.
#![allow(clippy::unwrap_used)]

mod common;

use common::watching::{Watching, changes, delete_of, narrow, put_of, store_with_window};
use common::{Store, between, single};
use tally_mvcc::{
    CreateError, DeleteRequest, Delivery, KeyRange, Op, PutRequest, Step, SweepLimits, TxnRequest, WatchLimits,
    WatchSpec, open,
};

/// Polls until history is to be read, and returns it.
fn history(watching: &mut Watching) -> tally_mvcc::History {
    match watching.step() {
        Some(Step::Read(history)) => history,
        other => panic!("{other:?}"),
    }
}

/// #15220: progress overtook events that were on another path.
#[test]
fn row_39_progress_comes_after_every_event_up_to_it() {
    let mut store = Store::new();
    store.set("a", "1");
    let mut watching = Watching::new(&store.reader);
    watching.create(single("b"), 0);
    let slow = watching.create(between("a", "b"), 1);
    watching.stream.request_progress();
    watching.stream.request_progress();
    let reading = history(&mut watching);
    store.set("b", "2");
    // The live watcher is served meanwhile; the stream does not say how far it is while one watcher reads.
    let live = watching.drain();
    assert!(matches!(&live[..], [Delivery::Events(batch)] if batch.id == 0), "{live:?}");
    watching.stream.absorb(reading.read());
    let rest = watching.drain();
    match &rest[..] {
        [Delivery::Events(batch), Delivery::Progress { id: None, revision: 3 }, Delivery::Progress { .. }] => {
            assert_eq!((batch.id, changes(batch)), (slow, vec![put_of(2, "a", "1")]));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn row_39_progress_that_waits_to_be_taken_is_not_said_of_a_watcher_that_is_new() {
    let mut store = Store::new();
    store.set("a", "1");
    let mut watching = Watching::new(&store.reader);
    watching.create(single("b"), 0);
    watching.stream.request_progress();
    watching.stream.request_progress();
    assert!(matches!(watching.step(), Some(Step::Deliver(Delivery::Progress { id: None, revision: 2 }))));
    let past = watching.create(single("a"), 1);
    match &watching.drain()[..] {
        [Delivery::Events(batch), Delivery::Progress { id: None, revision: 2 }] => assert_eq!(batch.id, past),
        other => panic!("{other:?}"),
    }
}

/// #17529: with a slow reader and a compaction, events were lost without a word.
#[test]
fn row_40_a_slow_watcher_gets_everything_or_is_canceled() {
    let mut store = store_with_window(4);
    let limits = WatchLimits { batch_events: 3, history_records: 5, ..WatchLimits::default() };
    let mut watching = Watching::with(&store.reader, limits);
    let (key, range) = (watching.create(single("k"), 0), watching.create(between("k", "l"), 0));
    for revision in 2..=40 {
        store.set("k", &revision.to_string());
    }
    let batches = watching.batches();
    for id in [key, range] {
        let seen: Vec<_> = batches.iter().filter(|batch| batch.id == id).flat_map(changes).collect();
        let all: Vec<_> = (2..=40).map(|revision| put_of(revision, "k", &revision.to_string())).collect();
        assert_eq!(seen, all);
        assert!(batches.iter().all(|batch| batch.events.len() <= 3), "a batch is bounded");
    }
    assert_eq!(store.reader.watch_figures().slow_watchers(), 0);
    // Nobody looks while more is written than is kept, and then it is compacted and swept.
    for revision in 41..=60 {
        store.set("k", &revision.to_string());
    }
    store.compact_now(50);
    store.sweep_all();
    let mut canceled: Vec<_> = watching
        .drain()
        .into_iter()
        .map(|delivery| match delivery {
            Delivery::Canceled { id, compact_revision: 50, revision: 60 } => id,
            other => panic!("{other:?}"),
        })
        .collect();
    canceled.sort_unstable();
    assert_eq!(canceled, [key, range]);
}

/// The window was taken by others before it looked, and its own log has nothing left.
#[test]
fn row_40_a_watcher_whose_log_was_forgotten_reads_history_before_progress() {
    let mut store = store_with_window(1);
    let mut watching = Watching::new(&store.reader);
    let ids = [watching.create(single("k"), 0), watching.create(between("k", "l"), 0)];
    let other = watching.create(single("other"), 0);
    store.set("k", "1");
    store.set("other", "2");
    watching.stream.request_progress();
    let mut told = watching.drain();
    assert!(matches!(told.pop(), Some(Delivery::Progress { id: None, revision: 3 })), "{told:?}");
    let batch = |delivery| match delivery {
        Delivery::Events(batch) => (batch.id, changes(&batch)),
        other => panic!("{other:?}"),
    };
    let mut seen: Vec<_> = told.into_iter().map(batch).collect();
    seen.sort_unstable();
    let put = |id| (id, vec![put_of(2, "k", "1")]);
    assert_eq!(seen, [put(ids[0]), put(ids[1]), (other, vec![put_of(3, "other", "2")])]);
}

/// Nothing that a quiet watcher lacks is compacted, however old its last event is, and although the window has no room for
/// the next.
#[test]
fn row_40_a_quiet_watcher_lacks_nothing_of_what_was_compacted_before_its_events() {
    for events in [1, 4, 9] {
        let mut store = store_with_window(4);
        let mut watching = Watching::new(&store.reader);
        let ids = [watching.create(single("k"), 0), watching.create(between("k", "l"), 0)];
        assert!(watching.drain().is_empty());
        for revision in 2..=20 {
            store.set("other", &revision.to_string());
        }
        store.compact_now(15);
        store.sweep_all();
        let puts: Vec<_> = (0..events).map(|_| put_of(store.set("k", "v"), "k", "v")).collect();
        // Others write, so that the window has no room for what waits.
        let noise = between("x", "y");
        let mut other = Watching::new(&store.reader);
        other.create(noise, 0);
        for _ in 0..5 {
            store.set("x", "v");
        }
        let batches = watching.batches();
        for id in ids {
            let seen: Vec<_> = batches.iter().filter(|batch| batch.id == id).flat_map(changes).collect();
            assert_eq!(seen, puts, "{events} events");
        }
    }
}

#[test]
fn row_40_a_compaction_during_the_reading_is_noticed() {
    let mut store = store_with_window(1);
    let mut watching = Watching::new(&store.reader);
    watching.create(single("k"), 1);
    watching.create(between("k", "l"), 1);
    for value in ["1", "2", "3"] {
        store.set("k", value);
    }
    let reading = history(&mut watching);
    store.compact_now(4);
    while !matches!(
        store.reader.sweep(SweepLimits { wait_for_views: false, ..SweepLimits::default() }).unwrap(),
        tally_mvcc::SweepProgress::Done
    ) {}
    watching.stream.absorb(reading.read());
    let told = watching.drain();
    assert!(told.iter().all(|delivery| matches!(delivery, Delivery::Canceled { compact_revision: 4, .. })), "{told:?}");
    assert_eq!(told.len(), 2);
}

/// What is read of a range is not the state alone that the reading began with: somebody writes, compacts and sweeps all the
/// time, and what is gone by the time that the records are looked at is missed.
#[test]
fn row_40_what_is_swept_during_the_reading_is_not_passed_over() {
    const CYCLES: usize = 300;
    let mut store = Store::new();
    let reader = store.reader.clone();
    let limits = WatchLimits { batch_events: usize::MAX, batch_bytes: usize::MAX, ..WatchLimits::default() };
    let (mut read, mut canceled) = (0, 0);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for _ in 0..CYCLES {
                for _ in 0..20 {
                    store.set("k", "v");
                }
                store.compact_now(store.writer.revision());
                let no_waiting = SweepLimits { wait_for_views: false, ..SweepLimits::default() };
                while !matches!(store.reader.sweep(no_waiting).unwrap(), tally_mvcc::SweepProgress::Done) {}
            }
        });
        while !writer.is_finished() {
            let mut watching = Watching::with(&reader, limits);
            let start = reader.compact_revision().max(2);
            // Single keys are read first, so it takes a moment from the choice of the state until the range is scanned.
            (0..40).for_each(|_| _ = watching.create(single("k"), start));
            let range = watching.create(between("k", "l"), start);
            while !writer.is_finished() {
                match watching.step() {
                    Some(Step::Read(history)) => watching.stream.absorb(history.read()),
                    Some(Step::Deliver(Delivery::Events(batch))) if batch.id == range => {
                        // Every revision has put the key.
                        let revisions: Vec<i64> = batch.events.iter().map(|event| event.revision()).collect();
                        assert_eq!(revisions, (start..start + revisions.len() as i64).collect::<Vec<_>>());
                        read += 1;
                        break;
                    }
                    Some(Step::Deliver(Delivery::Canceled { id, .. })) if id == range => {
                        canceled += 1;
                        break;
                    }
                    Some(Step::Deliver(Delivery::Events(_) | Delivery::Canceled { .. })) => {}
                    None => std::thread::yield_now(),
                    other => panic!("{other:?}"),
                }
            }
        }
    });
    // How many of each is up to the machine.
    assert!(read + canceled > 0);
}

/// What is compacted is gone for everybody, also if others still have it to take.
#[test]
fn row_40_a_start_that_is_compacted_is_canceled_although_a_log_has_it() {
    let mut store = Store::new();
    let mut live = Watching::new(&store.reader);
    let ids = [live.create(single("k"), 0), live.create(between("k", "l"), 0)];
    store.set("k", "1");
    store.set("k", "2");
    store.compact_now(3);
    let mut other = Watching::new(&store.reader);
    for range in [single("k"), between("k", "l")] {
        let late = other.create(range, 2);
        let told = other.drain();
        assert!(
            matches!(told[..], [Delivery::Canceled { id, compact_revision: 3, revision: 3 }] if id == late),
            "{told:?}"
        );
    }
    let late = live.create(single("k"), 2);
    let (mut batches, mut canceled) = (Vec::new(), Vec::new());
    for delivery in live.drain() {
        match delivery {
            Delivery::Events(batch) => batches.push(batch),
            Delivery::Canceled { id, .. } => canceled.push(id),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(canceled, [late]);
    for id in ids {
        let seen: Vec<_> = batches.iter().filter(|batch| batch.id == id).flat_map(changes).collect();
        assert_eq!(seen, [put_of(2, "k", "1"), put_of(3, "k", "2")]);
    }
}

/// Of a key that is changed twice at the compaction revision the last is left: that is what is told, swept or not, and by key
/// as by range.
#[test]
fn rows_41_and_42_what_is_told_of_the_compaction_revision_does_not_depend_on_the_sweep() {
    for sweep in [false, true] {
        let mut store = Store::new();
        store.set("k", "1");
        let delete = DeleteRequest { range: between("k", "l"), prev_kv: false };
        let success = vec![Op::Put(PutRequest::new("k", "2")), Op::Put(PutRequest::new("x", "3")), Op::Delete(delete)];
        store.txn(&TxnRequest { success, ..TxnRequest::default() }).unwrap();
        store.commit();
        store.compact_now(3);
        if sweep {
            assert!(store.sweep_all() > 0);
        }
        let mut watching = Watching::new(&store.reader);
        let (key, range) = (watching.create(single("k"), 3), watching.create(between("a", "z"), 3));
        let told: Vec<_> = watching.batches().iter().map(|batch| (batch.id, changes(batch))).collect();
        let both = vec![put_of(3, "x", "3"), delete_of(3, "k")];
        assert_eq!(told, [(key, vec![delete_of(3, "k")]), (range, both)], "swept: {sweep}");
    }
}

/// #18089 and #19179: the tombstone at the compaction revision was gone for a watcher from that very revision.
#[test]
fn rows_41_and_42_a_watch_from_the_compaction_revision_sees_a_delete_at_it() {
    for sweep in [false, true] {
        let mut store = Store::new();
        store.set("k", "1");
        store.unset("k");
        store.set("other", "2");
        store.compact_now(3);
        if sweep {
            store.sweep_all();
        }
        let mut watching = Watching::new(&store.reader);
        let (key, range) = (watching.create(single("k"), 3), watching.create(between("k", "l"), 3));
        let too_old = watching.create(single("k"), 2);
        let mut told = watching.drain();
        let canceled = told.extract_if(.., |one| matches!(one, Delivery::Canceled { .. })).collect::<Vec<_>>();
        assert!(
            matches!(canceled[..], [Delivery::Canceled { id, compact_revision: 3, .. }] if id == too_old),
            "{canceled:?}"
        );
        for (delivery, id) in told.iter().zip([key, range]) {
            match delivery {
                Delivery::Events(batch) => assert_eq!((batch.id, changes(batch)), (id, vec![delete_of(3, "k")])),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(told.len(), 2);
    }
}

/// #20221: a watch from a future revision got older events, and progress below its start.
#[test]
fn row_43_a_watch_from_the_future_gets_nothing_older() {
    let mut store = Store::new();
    let mut watching = Watching::new(&store.reader);
    let spec = WatchSpec { start: 4, progress_notify: true, ..WatchSpec::new(single("k")) };
    let id = watching.stream.create(spec).unwrap().id;
    store.set("k", "1");
    watching.stream.tick();
    watching.stream.request_progress();
    assert!(watching.drain().is_empty());
    store.set("other", "2");
    watching.stream.tick();
    watching.stream.request_progress();
    assert!(watching.drain().is_empty());
    // Replaced by a store that is no further, it still waits for its revision.
    store.reopen();
    assert!(matches!(watching.step(), Some(Step::Closed)) && watching.stream.attach(&store.reader));
    for _ in 0..2 {
        watching.stream.tick();
        watching.stream.request_progress();
        assert!(watching.drain().is_empty(), "revision 3 is below the start");
    }
    store.set("k", "3");
    store.set("k", "4");
    assert_eq!(watching.changes(id), [put_of(4, "k", "3"), put_of(5, "k", "4")]);
    watching.stream.request_progress();
    assert!(matches!(watching.drain()[..], [Delivery::Progress { id: None, revision: 5 }]));
}

/// The same for a revision that was there when the watch began, and is not any more in the store that takes the place.
#[test]
fn row_43_a_store_that_is_behind_the_start_of_a_watch_tells_it_nothing() {
    let mut ahead = Store::new();
    let mut behind = Store::new();
    for value in ["1", "2", "3"] {
        ahead.set("k", value);
    }
    let mut watching = Watching::new(&ahead.reader);
    let id = watching.create(single("k"), 3);
    ahead.reopen();
    assert!(matches!(watching.step(), Some(Step::Closed)) && watching.stream.attach(&behind.reader));
    behind.set("k", "1");
    watching.stream.request_progress();
    assert!(watching.drain().is_empty(), "revision 2 is below the start");
    behind.set("k", "2");
    assert_eq!(watching.changes(id), [put_of(3, "k", "2")]);
}

/// PR 20707: a negative start made the server read from a revision that is none.
#[test]
fn row_44_a_negative_start_is_refused() {
    let store = Store::new();
    let mut watching = Watching::new(&store.reader);
    for start in [-1, i64::MIN] {
        let spec = WatchSpec { start, ..WatchSpec::new(single("k")) };
        assert_eq!(watching.stream.create(spec), Err(CreateError::BadStart(start)));
    }
    assert_eq!(watching.stream.watchers(), 0);
}

/// PR 15274: events came twice around the hand-over from history to live.
#[test]
fn row_45_the_hand_over_repeats_nothing_wherever_it_happens() {
    for written_while_reading in 0..6 {
        let mut store = store_with_window(3);
        store.set("k", "2");
        store.set("k", "3");
        let mut watching = Watching::new(&store.reader);
        let ids = [watching.create(single("k"), 1), watching.create(between("k", "l"), 2)];
        let reading = history(&mut watching);
        let done = reading.read();
        for revision in 0..written_while_reading {
            store.set("k", &(4 + revision).to_string());
        }
        watching.stream.absorb(done);
        let mut batches = watching.batches();
        store.set("k", "last");
        batches.extend(watching.batches());
        for id in ids {
            let seen: Vec<_> = batches.iter().filter(|batch| batch.id == id).flat_map(changes).collect();
            let mut all: Vec<_> =
                (2..4 + written_while_reading).map(|revision| put_of(revision, "k", &revision.to_string())).collect();
            all.push(put_of(4 + written_while_reading, "k", "last"));
            assert_eq!(seen, all, "{written_while_reading} written");
        }
    }
}

/// #17247: a transaction's event came twice.
#[test]
fn row_46_a_transaction_of_nested_writes_gives_each_event_once() {
    let mut store = Store::new();
    store.set("gone", "0");
    let mut watching = Watching::new(&store.reader);
    let ids = [watching.create(KeyRange::all(), 0), watching.create(between("a", "z"), 0)];
    let nested = TxnRequest { success: vec![common::put("b", "2")], ..TxnRequest::default() };
    let txn = TxnRequest {
        success: vec![
            common::put("a", "1"),
            tally_mvcc::Op::Txn(nested),
            common::delete(between("f", "h")),
            common::delete(single("gone")),
        ],
        ..TxnRequest::default()
    };
    store.txn(&txn).unwrap();
    store.commit();
    let batches = watching.batches();
    for id in ids {
        let seen: Vec<_> = batches.iter().filter(|batch| batch.id == id).flat_map(changes).collect();
        assert_eq!(seen, [put_of(3, "a", "1"), put_of(3, "b", "2"), delete_of(3, "gone")]);
    }
}

/// etcd lets a transaction put a key that it deleted, if the range that it deletes has no end: the key changes twice in one
/// revision, and no piece of its history ends between the two.
#[test]
fn row_46_a_revision_that_changes_a_key_twice_comes_whole_from_history() {
    let mut store = Store::new();
    store.set("k", "1");
    let twice = TxnRequest {
        success: vec![common::delete(between("k", "\0")), common::put("k", "2")],
        ..TxnRequest::default()
    };
    assert_eq!(twice.validate(128), Ok(()));
    store.txn(&twice).unwrap();
    store.commit();
    store.set("k", "3");
    let all = [
        (2, vec![put_of(2, "k", "1")]),
        (3, vec![delete_of(3, "k"), put_of(3, "k", "2")]),
        (4, vec![put_of(4, "k", "3")]),
    ];
    for range in [single("k"), between("k", "l")] {
        let mut watching = Watching::with(&store.reader, WatchLimits { batch_events: 1, ..WatchLimits::default() });
        watching.create(range, 1);
        let seen: Vec<_> = watching.batches().iter().map(|batch| (batch.revision, changes(batch))).collect();
        assert_eq!(seen, all);
    }
}

/// PR 21443: events were reused, and with them what keys had before, for watchers that had not asked.
#[test]
fn row_47_an_event_that_is_shared_says_the_same_to_everybody() {
    let mut store = Store::new();
    let mut asks = Watching::new(&store.reader);
    let mut other = Watching::new(&store.reader);
    let prev = |start| WatchSpec { start, prev_kv: true, ..WatchSpec::new(single("k")) };
    asks.stream.create(prev(0)).unwrap();
    other.create(single("k"), 0);
    store.set("k", "1");
    store.set("k", "2");
    let with = asks.batches();
    let without = other.batches();
    assert!(with.iter().all(|batch| batch.prev_kv) && without.iter().all(|batch| !batch.prev_kv));
    let values = |batches: &[tally_mvcc::Batch]| -> Vec<_> {
        let events = batches.iter().flat_map(|batch| batch.events.iter());
        events.map(|event| event.prev_kv().map(|record| record.value().to_vec())).collect()
    };
    assert_eq!(values(&with), [None, Some(b"1".to_vec())]);
    // Read again, from history, after the key has gone on.
    store.set("k", "3");
    let mut again = Watching::new(&store.reader);
    again.stream.create(prev(2)).unwrap();
    assert_eq!(values(&again.batches()), [None, Some(b"1".to_vec()), Some(b"2".to_vec())]);
    // Once it is compacted it is not made up.
    store.compact_now(3);
    let mut late = Watching::new(&store.reader);
    late.stream.create(prev(3)).unwrap();
    assert_eq!(values(&late.batches()), [None, Some(b"2".to_vec())]);
}

/// PR 14563: canceling watch 0 closed another one.
#[test]
fn row_48_watch_zero_can_be_canceled_like_any_other() {
    let mut store = Store::new();
    let mut watching = Watching::new(&store.reader);
    let (zero, one) = (watching.create(single("a"), 0), watching.create(single("b"), 0));
    assert_eq!((zero, one), (0, 1));
    assert!(watching.stream.cancel(0));
    store.set("a", "1");
    store.set("b", "2");
    let batches = watching.batches();
    assert_eq!(batches.iter().map(|batch| (batch.id, batch.revision)).collect::<Vec<_>>(), [(one, 3)]);
}

/// A watcher that is canceled while its history is read, and another that takes its id.
#[test]
fn row_48_an_id_that_is_used_again_gets_nothing_of_the_first() {
    let mut store = Store::new();
    store.set("a", "1");
    store.set("b", "2");
    let mut watching = Watching::new(&store.reader);
    let spec = |key, start| WatchSpec { id: 5, start, ..WatchSpec::new(single(key)) };
    watching.stream.create(spec("a", 1)).unwrap();
    let reading = history(&mut watching);
    assert!(watching.stream.cancel(5));
    watching.stream.create(spec("b", 3)).unwrap();
    watching.stream.absorb(reading.read());
    assert_eq!(watching.changes(5), [put_of(3, "b", "2")]);
}

/// #11758: an idle watch was never told how far it is; and #9281: a watcher that lagged when the store was replaced.
#[test]
fn row_50_an_idle_watch_hears_of_progress_and_a_lagging_one_survives_a_replacement() {
    let mut store = store_with_window(2);
    store.set("k", "2");
    store.set("k", "3");
    let mut watching = Watching::new(&store.reader);
    let idle =
        watching.stream.create(WatchSpec { progress_notify: true, ..WatchSpec::new(single("idle")) }).unwrap().id;
    let lagging = watching.create(between("k", "l"), 1);
    let reading = history(&mut watching);
    (store.writer, store.reader) = open(&store.backend, narrow(2)).unwrap();
    assert!(matches!(watching.step(), Some(Step::Closed)) && watching.stream.attach(&store.reader));
    store.set("k", "4");
    watching.stream.tick();
    // Said at once, although another watcher of the stream lags.
    let told = watching.drain();
    assert!(matches!(told[..], [Delivery::Progress { id: Some(id), revision: 4 }] if id == idle), "{told:?}");
    watching.stream.absorb(reading.read());
    assert_eq!(watching.changes(lagging), [put_of(2, "k", "2"), put_of(3, "k", "3"), put_of(4, "k", "4")]);
}

#[test]
fn a_stream_that_is_never_polled_costs_the_window_and_no_more() {
    let mut store = store_with_window(8);
    let mut watching = Watching::new(&store.reader);
    let id = watching.create(KeyRange::all(), 0);
    for revision in 2..2_000 {
        store.put(&PutRequest::new(format!("k{revision}"), vec![b'v'; 100])).unwrap();
        store.commit();
    }
    let figures = store.reader.watch_figures();
    assert_eq!((figures.pending_events(), watching.woken()), (0, 0));
    assert_eq!(watching.changes(id).len(), 1_998);
}
