//! What a stream of watchers sees while the store is written: the forms of a watch, ids, filters, wake-ups, progress.
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::watching::{Watching, changes, delete_of, put_of, store_with_window};
use common::{Store, between, delete, put, single};
use tally_mvcc::{
    CreateError, DeleteRequest, Delivery, ENCODINGS, Filters, KeyRange, PROGRESS_REQUESTS_MAX, Step, TxnRequest,
    WatchLimits, WatchSpec,
};

fn with(range: KeyRange, change: impl FnOnce(&mut WatchSpec)) -> WatchSpec {
    let mut spec = WatchSpec::new(range);
    change(&mut spec);
    spec
}

/// Streams with one watcher each, all of one range, that sleep.
fn sleepers(store: &Store, range: &KeyRange, count: usize) -> Vec<Watching> {
    let sleeper = |_| {
        let mut watching = Watching::new(&store.reader);
        watching.create(range.clone(), 0);
        assert!(watching.drain().is_empty());
        watching
    };
    (0..count).map(sleeper).collect()
}

#[test]
fn keys_ranges_and_everything_see_their_own_changes() {
    let mut store = Store::new();
    let mut watching = Watching::new(&store.reader);
    let key = watching.create(single("b"), 0);
    let range = watching.create(between("a", "c"), 0);
    let from = watching.create(between("c", "\0"), 0);
    let all = watching.create(KeyRange::all(), 0);
    assert_eq!((key, range, from, all), (0, 1, 2, 3));
    store.set("b", "1");
    store.set("c", "2");
    store.unset("b");
    store.set("bb", "3");
    let batches = watching.batches();
    let of = |id: i64| batches.iter().filter(|batch| batch.id == id).flat_map(changes).collect::<Vec<_>>();
    assert_eq!(of(key), [put_of(2, "b", "1"), delete_of(4, "b")]);
    assert_eq!(of(range), [put_of(2, "b", "1"), delete_of(4, "b"), put_of(5, "bb", "3")]);
    assert_eq!(of(from), [put_of(3, "c", "2")]);
    assert_eq!(of(all), [put_of(2, "b", "1"), put_of(3, "c", "2"), delete_of(4, "b"), put_of(5, "bb", "3")]);
    assert!(watching.drain().is_empty());
}

#[test]
fn a_revision_comes_whole_and_in_its_order() {
    let mut store = Store::new();
    store.set("z", "0");
    let mut watching = Watching::with(&store.reader, WatchLimits { batch_events: 1, ..WatchLimits::default() });
    let id = watching.create(KeyRange::all(), 0);
    let txn = |value| TxnRequest {
        success: vec![put("b", value), put("a", value), delete(single("z"))],
        ..TxnRequest::default()
    };
    store.txn(&txn("1")).unwrap();
    store.txn(&txn("2")).unwrap();
    store.commit();
    let batches = watching.batches();
    assert_eq!(batches.iter().map(|batch| (batch.id, batch.revision)).collect::<Vec<_>>(), [(id, 3), (id, 4)]);
    assert_eq!(changes(&batches[0]), [put_of(3, "b", "1"), put_of(3, "a", "1"), delete_of(3, "z")]);
    assert_eq!(changes(&batches[1]), [put_of(4, "b", "2"), put_of(4, "a", "2")]);
}

/// What is published meanwhile is not all that is new.
#[test]
fn what_is_taken_up_in_parts_comes_whole_although_more_comes_meanwhile() {
    let mut store = Store::new();
    let mut watching = Watching::with(&store.reader, WatchLimits { batch_events: 1, ..WatchLimits::default() });
    watching.create(single("k"), 0);
    assert!(watching.drain().is_empty());
    let (mut puts, mut seen) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        puts.extend([1, 2, 3].map(|_| put_of(store.set("k", "v"), "k", "v")));
        match watching.step() {
            Some(Step::Deliver(Delivery::Events(batch))) => seen.extend(changes(&batch)),
            other => panic!("{other:?}"),
        }
    }
    seen.extend(watching.batches().iter().flat_map(changes));
    assert_eq!(seen, puts);
}

#[test]
fn ids_are_chosen_from_zero_and_given_ones_are_kept() {
    let store = Store::new();
    let mut watching = Watching::new(&store.reader);
    let mut create = |id| watching.stream.create(with(single("k"), |spec| spec.id = id)).map(|created| created.id);
    assert_eq!(create(0), Ok(0));
    assert_eq!(create(1), Ok(1));
    assert_eq!(create(-7), Ok(-7));
    assert_eq!(create(0), Ok(2));
    assert_eq!(create(2), Err(CreateError::DuplicateId(2)));
    assert_eq!(create(-7), Err(CreateError::DuplicateId(-7)));
    assert_eq!(create(i64::MAX), Ok(i64::MAX));
    assert_eq!(watching.stream.watchers(), 5);
}

#[test]
fn what_cannot_be_watched_is_refused_and_the_stream_goes_on() {
    let mut store = Store::new();
    let mut watching = Watching::with(&store.reader, WatchLimits { watchers_max: 1, ..WatchLimits::default() });
    assert_eq!(watching.stream.create(WatchSpec::new(between("b", "a"))), Err(CreateError::EmptyRange));
    assert_eq!(watching.stream.create(WatchSpec::new(between("b", "b"))), Err(CreateError::EmptyRange));
    let negative = with(single("k"), |spec| spec.start = -1);
    assert_eq!(watching.stream.create(negative), Err(CreateError::BadStart(-1)));
    let id = watching.create(single("k"), 0);
    assert_eq!(watching.stream.create(WatchSpec::new(single("l"))), Err(CreateError::TooMany { max: 1 }));
    store.set("k", "1");
    assert_eq!(watching.changes(id), [put_of(2, "k", "1")]);
}

#[test]
fn filters_leave_out_what_is_not_wanted() {
    let mut store = Store::new();
    let mut watching = Watching::new(&store.reader);
    let filtered = |range, no_put, no_delete| {
        with(range, |spec| {
            spec.start = 1;
            spec.filters = Filters { no_put, no_delete };
        })
    };
    store.set("a", "1");
    store.unset("a");
    for range in [KeyRange::all(), single("a")] {
        for (no_put, no_delete) in [(true, false), (false, true), (true, true)] {
            watching.stream.create(filtered(range.clone(), no_put, no_delete)).unwrap();
        }
    }
    // From history, then live.
    for more in 0..2 {
        let batches = watching.batches();
        let of = |id: i64| batches.iter().filter(|batch| batch.id == id).flat_map(changes).collect::<Vec<_>>();
        for first in [0, 3] {
            assert_eq!(of(first), [delete_of(3 + 2 * more, "a")]);
            assert_eq!(of(first + 1), [put_of(2 + 2 * more, "a", "1")]);
            assert!(of(first + 2).is_empty());
        }
        store.set("a", "1");
        store.unset("a");
    }
}

#[test]
fn what_a_key_had_before_is_told_to_those_who_ask() {
    let mut store = Store::new();
    let mut watching = Watching::new(&store.reader);
    // It has its events in common with one that does not ask, and was there before.
    watching.create(KeyRange::all(), 0);
    let asks = watching.stream.create(with(KeyRange::all(), |spec| spec.prev_kv = true)).unwrap().id;
    store.set("a", "1");
    store.set("a", "2");
    store.unset("a");
    store.set("a", "3");
    let batches = watching.batches();
    let prevs: Vec<_> = batches
        .iter()
        .filter(|batch| batch.id == asks)
        .flat_map(|batch| batch.events.iter())
        .map(|event| event.prev_kv().map(|record| (record.mod_revision(), record.value().to_vec())))
        .collect();
    assert_eq!(prevs, [None, Some((2, b"1".to_vec())), Some((3, b"2".to_vec())), None]);
}

#[test]
fn a_stream_is_woken_once_for_a_publication_and_not_for_other_keys() {
    let mut store = Store::new();
    let mut watching = Watching::new(&store.reader);
    for _ in 0..10 {
        watching.create(single("k"), 0);
        watching.create(between("j", "l"), 0);
    }
    assert!(watching.drain().is_empty());
    store.set("other", "1");
    assert_eq!(watching.woken(), 0);
    for value in ["1", "2", "3"] {
        store.put(&tally_mvcc::PutRequest::new("k", value)).unwrap();
    }
    store.commit();
    assert_eq!(watching.woken(), 1);
    store.set("k", "4");
    assert_eq!(watching.woken(), 1, "it has not looked since");
    assert_eq!(watching.batches().iter().map(|batch| batch.events.len()).sum::<usize>(), 20 * 4);
    store.set("k", "5");
    assert_eq!(watching.woken(), 2);
}

/// A task that polls may not be the one that polled before.
#[test]
fn whoever_polled_last_is_woken() {
    let mut store = Store::new();
    let mut watching = sleepers(&store, &single("k"), 1).remove(0);
    let before = std::mem::take(&mut watching.bell);
    assert!(watching.drain().is_empty());
    store.set("k", "1");
    assert_eq!(watching.woken(), 1);
    watching.bell = before;
    assert_eq!(watching.woken(), 0);
    assert_eq!(watching.changes(0), [put_of(2, "k", "1")]);
}

#[test]
fn a_stream_that_sleeps_is_woken_when_its_store_is_closed() {
    let mut store = Store::new();
    let mut streams = sleepers(&store, &single("k"), 2);
    store.reopen();
    for watching in &mut streams {
        assert_eq!(watching.woken(), 1);
        assert!(matches!(watching.step(), Some(Step::Closed)));
    }
}

#[test]
fn a_stream_that_leaves_a_range_leaves_the_others_there() {
    let mut store = Store::new();
    for (range, count, cancels) in [
        (single("k"), 2, true),
        (single("k"), 2, false),
        (single("k"), 4, true),
        (single("k"), 4, false),
        (between("j", "l"), 2, true),
        (between("j", "l"), 2, false),
        (between("j", "l"), 4, true),
        (between("j", "l"), 4, false),
    ] {
        for leaves in 0..count {
            let mut streams = sleepers(&store, &range, count);
            let mut gone = Some(streams.remove(leaves));
            if cancels {
                assert!(gone.as_mut().unwrap().stream.cancel(0));
            } else {
                gone = None;
            }
            let put = vec![put_of(store.set("k", "1"), "k", "1")];
            for watching in &mut streams {
                assert_eq!((watching.woken(), watching.changes(0)), (1, put.clone()), "{leaves} of {count} left");
            }
            assert!(gone.is_none_or(|mut gone| gone.woken() == 0 && gone.drain().is_empty()));
        }
    }
}

#[test]
fn what_was_published_before_a_stream_leaves_is_still_there_for_the_others() {
    let mut store = Store::new();
    for range in [single("k"), between("j", "l")] {
        let mut streams = sleepers(&store, &range, 3);
        let revision = store.set("k", "1");
        drop(streams.remove(0));
        assert!(streams[0].stream.cancel(0));
        streams[1].stream.request_progress();
        match &streams[1].drain()[..] {
            [Delivery::Events(batch), Delivery::Progress { id: None, revision: told }] => {
                assert_eq!((changes(batch), *told), (vec![put_of(revision, "k", "1")], revision));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_mark_comes_back_from_history_and_live() {
    let mut store = Store::new();
    store.set("k", "1");
    let mut watching = Watching::new(&store.reader);
    for range in [single("k"), between("j", "l")] {
        for mark in [true, false] {
            let spec = WatchSpec { start: 1, mark, ..WatchSpec::new(range.clone()) };
            watching.stream.create(spec).unwrap();
        }
    }
    for _ in ["from history", "live"] {
        let mut marks: Vec<_> = watching.batches().iter().map(|batch| (batch.id, batch.mark)).collect();
        marks.sort_unstable();
        assert_eq!(marks, [(0, true), (1, false), (2, true), (3, false)]);
        store.set("k", "2");
    }
}

#[test]
fn each_encoding_of_an_event_has_a_place_of_its_own() {
    let mut store = Store::new();
    let mut watching = Watching::new(&store.reader);
    watching.create(single("k"), 0);
    store.set("k", "1");
    let batches = watching.batches();
    let event = &batches[0].events[0];
    for made in [true, false] {
        for slot in 0..ENCODINGS {
            let encoding = event.encoding(slot, |_| {
                assert!(made, "it is kept");
                Bytes::from(slot.to_string())
            });
            assert_eq!(*encoding, slot.to_string());
        }
    }
}

#[test]
fn an_event_is_one_object_and_encoded_once() {
    let mut store = Store::new();
    let mut first = Watching::new(&store.reader);
    let mut second = Watching::new(&store.reader);
    first.create(single("k"), 0);
    first.create(between("a", "z"), 0);
    second.create(single("k"), 0);
    store.set("k", "1");
    let mut made = 0;
    for batch in first.batches().iter().chain(&second.batches()) {
        let encoding = batch.events[0].encoding(1, |event| {
            made += 1;
            event.record().bytes().clone()
        });
        assert_eq!(encoding, batch.events[0].record().bytes());
    }
    assert_eq!(made, 1);
}

#[test]
fn nothing_comes_after_a_cancellation() {
    let mut store = Store::new();
    let mut watching = Watching::new(&store.reader);
    let (keeps, goes) = (watching.create(single("k"), 0), watching.create(single("k"), 0));
    store.set("k", "1");
    // The first of the two batches: the other is taken up and not handed out.
    assert!(watching.step().is_some());
    assert!(watching.stream.cancel(goes));
    assert!(!watching.stream.cancel(goes) && !watching.stream.cancel(99));
    store.set("k", "2");
    let batches = watching.batches();
    assert_eq!(batches.iter().map(|batch| (batch.id, batch.revision)).collect::<Vec<_>>(), [(keeps, 3)]);
    assert!(watching.stream.cancel(keeps));
    store.set("k", "3");
    assert!(watching.drain().is_empty());
    let figures = store.reader.watch_figures();
    assert_eq!((figures.watchers(), figures.streams(), figures.pending_events(), figures.events()), (0, 1, 0, 2));
}

#[test]
fn watchers_of_one_range_are_at_different_revisions() {
    let mut store = Store::new();
    let mut watching = Watching::new(&store.reader);
    for range in [single("k"), between("j", "l")] {
        let first = watching.create(range.clone(), 0);
        // Not taken when the others come: they take nothing from the first, nor get what is its alone.
        let two = [1, 2].map(|_| put_of(store.set("k", "v"), "k", "v"));
        let now = watching.create(range.clone(), 0);
        let three = put_of(store.set("k", "v"), "k", "v");
        let future = watching.create(range, three.0 + 2);
        let four = [1, 2].map(|_| put_of(store.set("k", "v"), "k", "v"));
        let batches = watching.batches();
        let of = |id: i64| batches.iter().filter(|batch| batch.id == id).flat_map(changes).collect::<Vec<_>>();
        assert_eq!(of(first), [&two[..], std::slice::from_ref(&three), &four].concat());
        assert_eq!(of(now), [std::slice::from_ref(&three), &four[..]].concat());
        assert_eq!(of(future), four[1..]);
        [first, now, future].into_iter().for_each(|id| assert!(watching.stream.cancel(id)));
    }
}

/// The first was canceled when it was about to be looked at.
#[test]
fn a_watcher_in_the_place_of_another_hears_of_its_own_key() {
    let mut store = Store::new();
    let mut watching = Watching::new(&store.reader);
    watching.create(single("a"), 0);
    let goes = watching.create(single("b"), 0);
    store.txn(&TxnRequest { success: vec![put("a", "1"), put("b", "1")], ..TxnRequest::default() }).unwrap();
    store.commit();
    assert!(matches!(watching.step(), Some(Step::Deliver(Delivery::Events(batch))) if batch.id != goes));
    assert!(watching.stream.cancel(goes));
    let comes = watching.create(single("c"), 0);
    store.set("c", "2");
    assert_eq!(watching.woken(), 0, "it has not slept yet");
    assert_eq!(watching.changes(comes), [put_of(3, "c", "2")]);
    store.set("c", "3");
    assert_eq!((watching.woken(), watching.changes(comes)), (1, vec![put_of(4, "c", "3")]));
}

#[test]
fn ticks_tell_quiet_watchers_how_far_they_are() {
    let mut store = Store::new();
    let mut watching = Watching::new(&store.reader);
    let quiet = watching.stream.create(with(single("q"), |spec| spec.progress_notify = true)).unwrap().id;
    let busy = watching.stream.create(with(single("b"), |spec| spec.progress_notify = true)).unwrap().id;
    watching.create(single("b"), 0);
    assert!(watching.stream.wants_ticks());
    store.set("b", "1");
    watching.drain();
    let mut told = || {
        watching.stream.tick();
        let told = |delivery| match delivery {
            Delivery::Progress { id, revision } => (id, revision),
            other => panic!("{other:?}"),
        };
        watching.drain().into_iter().map(told).collect::<Vec<_>>()
    };
    assert_eq!(told(), [(Some(quiet), 2)], "a tick is left out after an event");
    assert_eq!(told(), [(Some(quiet), 2), (Some(busy), 2)]);
}

/// Looking around takes the stream a moment, and somebody writes all the time: what is published in that moment is not
/// passed over by the progress that is told.
#[test]
fn progress_is_not_told_before_what_is_published_meanwhile() {
    const LAST: i64 = 20_000;
    let mut store = Store::new();
    let mut watching = Watching::new(&store.reader);
    watching.create(single("k"), 0);
    watching.create(single("past"), 0);
    let (mut seen, mut told) = (1, 0);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| (2..=LAST).for_each(|revision| assert_eq!(store.set("k", "v"), revision)));
        loop {
            let is_last = writer.is_finished();
            // The more watchers of the past have come and gone, the longer it takes to find that none is behind.
            for _ in 0..200 {
                let gone = watching.create(single("past"), 1);
                assert!(watching.stream.cancel(gone));
            }
            watching.stream.request_progress();
            for delivery in watching.drain() {
                match delivery {
                    Delivery::Events(batch) => {
                        for event in batch.events.iter() {
                            assert_eq!(event.revision(), seen + 1, "an event is lost");
                            seen += 1;
                        }
                    }
                    Delivery::Progress { id: None, revision } => {
                        assert!(revision <= seen, "progress {revision} was told after event {seen}");
                        told += 1;
                    }
                    other => panic!("{other:?}"),
                }
            }
            if is_last {
                break;
            }
        }
    });
    assert_eq!(seen, LAST);
    assert!(told > 1);
}

#[test]
fn who_asks_how_far_it_is_without_end_is_not_answered_without_end() {
    let mut store = Store::new();
    store.set("k", "1");
    let mut watching = Watching::new(&store.reader);
    // It has history to read first.
    watching.create(single("k"), 2);
    (0..10_000).for_each(|_| watching.stream.request_progress());
    let told = watching.drain();
    let progress = told.iter().filter(|delivery| matches!(delivery, Delivery::Progress { id: None, revision: 2 }));
    assert_eq!((told.len() - 1, progress.count()), (PROGRESS_REQUESTS_MAX as usize, PROGRESS_REQUESTS_MAX as usize));
    watching.stream.request_progress();
    assert_eq!(watching.drain().len(), 1);
}

#[test]
fn figures_follow_streams_and_watchers() {
    let mut store = Store::new();
    let mut watching = Watching::new(&store.reader);
    let other = Watching::new(&store.reader);
    watching.create(single("a"), 1);
    watching.create(between("a", "b"), 0);
    let figures = |store: &Store| {
        let figures = store.reader.watch_figures();
        (figures.streams(), figures.watchers(), figures.slow_watchers())
    };
    assert_eq!(figures(&store), (2, 2, 1));
    watching.drain();
    assert_eq!(figures(&store), (2, 2, 0));
    store.set("a", "1");
    assert_eq!(watching.batches().len(), 2);
    assert_eq!(store.reader.watch_figures().events(), 2);
    // Events are counted, not batches.
    let two = TxnRequest { success: vec![put("aa", "2"), put("ab", "2")], ..TxnRequest::default() };
    store.txn(&two).unwrap();
    store.commit();
    assert_eq!(watching.batches().len(), 1);
    assert_eq!(store.reader.watch_figures().events(), 4);
    drop(other);
    drop(watching);
    assert_eq!(figures(&store), (0, 0, 0));
    assert_eq!(store.reader.watch_figures().pending_events(), 0);
}

/// The deletion of more keys than the window has room for is left to history whole, for those whom it concerns and for others.
#[test]
fn a_revision_that_is_larger_than_the_window_is_told_whole_and_once() {
    const KEYS: usize = 20;
    let mut store = store_with_window(8);
    let mut watching = Watching::new(&store.reader);
    let (all, one) = (watching.create(between("a", "z"), 0), watching.create(single("k05"), 0));
    let (other, later) = (watching.create(single("other"), 0), watching.create(single("k06"), 30));
    let mut elsewhere = Watching::new(&store.reader);
    elsewhere.create(between("x", "z"), 0);
    assert!(elsewhere.drain().is_empty());
    for number in 0..KEYS {
        store.set(&format!("k{number:02}"), "1");
    }
    store.set("other", "1");
    assert!(!watching.drain().is_empty());
    let deleted = store.delete(&DeleteRequest { range: between("k", "l"), prev_kv: false });
    store.commit();
    assert_eq!(store.set("other", "2"), deleted.revision + 1);
    let batches = watching.batches();
    let told = |id: i64| batches.iter().filter(|batch| batch.id == id).flat_map(changes).collect::<Vec<_>>();
    let gone = |number: usize| delete_of(deleted.revision, &format!("k{number:02}"));
    let last = put_of(deleted.revision + 1, "other", "2");
    assert_eq!(told(one), [gone(5)]);
    assert_eq!(told(other), vec![last.clone()]);
    assert_eq!(told(all), (0..KEYS).map(gone).chain([last]).collect::<Vec<_>>());
    assert_eq!(told(later), []);
    assert_eq!(elsewhere.woken(), 0, "who watches nothing of it has nothing to read");
    // Everybody is level again.
    assert_eq!(store.set("k05", "3"), deleted.revision + 2);
    assert_eq!(watching.changes(one), [put_of(deleted.revision + 2, "k05", "3")]);
}
