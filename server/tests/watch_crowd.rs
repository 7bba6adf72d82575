//! Very many streams of lines that wait for the same key: they are told of it together, and nobody can tell.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Barrier;

use common::cluster::eventually;
use common::watch::{JsonWatch, changes, key, number};
use common::{Tally, base64, directory, launch, start};
use serde_json::{Value, json};

const STREAMS: usize = 60;
const PUTS: usize = 300;
/// Of every tenth value. All of them are more than a socket has room for.
const LARGE_BYTES: usize = 300_000;

/// What the key has before everything else.
const FIRST: &str = "first";

/// How a client behaves while changes come.
#[derive(Clone, Copy, Debug)]
enum Client {
    Reads,
    /// Says that it will ask for nothing more.
    Finishes,
    /// Asks again and again how far it is.
    Asks,
    /// Watches the key a second time for a while, again and again.
    WatchesTwice,
    /// Reads nothing until all has been written.
    Waits,
    /// Goes at once.
    Goes,
    /// Wants what the key had before.
    WantsPrevious,
}

use Client::{Asks, Finishes, Goes, Reads, Waits, WantsPrevious, WatchesTwice};

const CLIENTS: [Client; 10] = [Reads, Reads, Finishes, Asks, Reads, WatchesTwice, Reads, Waits, Goes, WantsPrevious];

fn value(number: usize) -> String {
    if number % 10 == 9 { "x".repeat(LARGE_BYTES) } else { format!("value {number}") }
}

/// Reads until the watcher with id 0 has seen as many changes, with revisions from the first on, and checks all that comes.
fn read(client: Client, watch: &mut JsonWatch, first: i64) {
    let (mut seen, mut told) = (0, 0);
    let mut second = None;
    while seen < PUTS {
        match (client, seen % 7) {
            (Asks, 3) => watch.send(&json!({"progress_request": {}})),
            (WatchesTwice, 2) if second.is_none() => {
                watch.send(&json!({"create_request": {"key": base64("k"), "watch_id": 5}}));
                second = Some(first + seen as i64);
            }
            (WatchesTwice, 5) => watch.send(&json!({"cancel_request": {"watch_id": 5}})),
            _ => {}
        }
        let result = watch.result();
        let (id, revision) = (number(&result["watch_id"]), number(&result["header"]["revision"]));
        let events = changes(&result);
        if id == 5 {
            second = if result["canceled"] == true { None } else { second };
            assert!(events.iter().all(|(revision, ..)| second.is_some_and(|from| *revision > from - 2)), "{result}");
            continue;
        }
        assert!(revision >= told, "{client:?}: {revision} after {told}");
        told = revision;
        if events.is_empty() {
            assert_eq!((id, revision), (-1, first + seen as i64 - 1), "{client:?} is told of progress");
        }
        for (at, (revision, key, found)) in events.iter().enumerate() {
            assert_eq!((*revision, &key[..]), (first + seen as i64, "k"), "{client:?}");
            assert!(found.as_ref() == Some(&value(seen)), "{client:?} of {seen}");
            let previous = &result["events"][at]["prev_kv"];
            if matches!(client, WantsPrevious) {
                let before = if seen == 0 { FIRST.to_owned() } else { value(seen - 1) };
                assert!(previous["value"] == base64(&before), "{client:?} of {seen}");
            } else {
                assert_eq!(*previous, Value::Null);
            }
            seen += 1;
        }
    }
}

/// Makes a change that all hear of, after which those who wait for the same do it together. Those who came first do not know
/// before that they are many.
fn gather<'a>(tally: &Tally, watches: impl Iterator<Item = &'a mut JsonWatch>, expected: usize) {
    let revision = tally.put("k", FIRST);
    watches.for_each(|watch| assert_eq!(watch.changes(1), [(revision, "k".to_owned(), Some(FIRST.to_owned()))]));
    eventually("all are in their crowds", || (crowd(tally) == expected as f64).then_some(()));
}

fn crowd(tally: &Tally) -> f64 {
    tally.metric("tally_watch_crowd_streams")
}

#[test]
fn each_of_many_hears_everything_once_whatever_it_and_the_others_do() {
    let directory = directory();
    let tally = start(directory.path());
    let open = |client: Client| {
        let create = json!({"key": base64("k"), "prev_kv": matches!(client, WantsPrevious)});
        let mut watch = JsonWatch::on(&tally.address, create);
        if matches!(client, Finishes) {
            watch.finish();
        }
        (client, watch)
    };
    let mut watches: Vec<_> = CLIENTS.into_iter().cycle().take(STREAMS).map(open).collect();
    gather(&tally, watches.iter_mut().map(|(_, watch)| watch), STREAMS);
    assert_eq!(tally.metric("etcd_debugging_mvcc_watcher_total"), STREAMS as f64);
    assert_eq!(tally.metric("etcd_debugging_mvcc_watch_stream_total"), STREAMS as f64);
    let first = tally.put("other", "1") + 1;
    let written = Barrier::new(1 + watches.iter().filter(|(client, _)| matches!(client, Waits)).count());
    std::thread::scope(|scope| {
        for (client, mut watch) in watches {
            let written = &written;
            scope.spawn(move || {
                match client {
                    Goes => return,
                    Waits => drop(written.wait()),
                    Reads | Finishes | Asks | WatchesTwice | WantsPrevious => {}
                }
                read(client, &mut watch, first);
            });
        }
        for number in 0..PUTS {
            tally.put("k", &value(number));
        }
        written.wait();
    });
    eventually("nobody is left", || (tally.metric("etcd_debugging_mvcc_watcher_total") == 0.0).then_some(()));
    assert_eq!((crowd(&tally), tally.metric("etcd_debugging_mvcc_slow_watcher_total")), (0.0, 0.0));
    assert_eq!(tally.metric("etcd_debugging_mvcc_watch_stream_total"), 0.0);
    tally.stop();
}

#[test]
fn what_a_crowd_is_told_is_counted_for_each() {
    let directory = directory();
    let tally = start(directory.path());
    let mut watches: Vec<JsonWatch> = (0..STREAMS).map(|_| JsonWatch::on(&tally.address, key("k"))).collect();
    gather(&tally, watches.iter_mut(), STREAMS);
    let sent = || {
        let of_watch = "grpc_server_msg_sent_total{grpc_method=\"Watch\",grpc_service=\"etcdserverpb.Watch\",grpc_type=\"bidi_stream\"}";
        tally.metric(of_watch)
    };
    let (before, events) = (sent(), STREAMS as f64);
    eventually("what came first is counted", || {
        (tally.metric("etcd_debugging_mvcc_events_total") == events).then_some(())
    });
    let revision = tally.put("k", "1");
    for watch in &mut watches {
        assert_eq!(watch.changes(1), [(revision, "k".to_owned(), Some("1".to_owned()))]);
    }
    eventually("it is counted", || (tally.metric("etcd_debugging_mvcc_events_total") == 2.0 * events).then_some(()));
    assert_eq!(sent() - before, STREAMS as f64);
    // They are still there, and told that the server stops.
    assert_eq!(crowd(&tally), STREAMS as f64);
    tally.stop();
    for watch in &mut watches {
        watch.error();
    }
}

/// Keys of their own, or watchers that differ, make no crowd; those that are the same make one each.
#[test]
fn only_who_waits_for_the_same_is_in_a_crowd() {
    let directory = directory();
    let tally = launch(directory.path()).start();
    let on = |create: Value| JsonWatch::on(&tally.address, create);
    let mut alone: Vec<JsonWatch> = (0..STREAMS).map(|number| on(key(&format!("k{number}")))).collect();
    let notified = json!({"key": base64("k"), "progress_notify": true});
    let filtered = json!({"key": base64("k"), "filters": ["NODELETE"]});
    let fragments = json!({"key": base64("k"), "fragment": true});
    let mut others: Vec<JsonWatch> = [notified, filtered, fragments]
        .into_iter()
        .flat_map(|create| (0..20).map(|_| on(create.clone())).collect::<Vec<_>>())
        .collect();
    let mut numbered: Vec<JsonWatch> = (0..20).map(|_| on(json!({"key": base64("k"), "watch_id": 9}))).collect();
    let mut ranges: Vec<JsonWatch> =
        (0..20).map(|_| on(json!({"key": base64("k"), "range_end": base64("l")}))).collect();
    gather(&tally, others.iter_mut().chain(&mut numbered).chain(&mut ranges), 40);
    let revision = tally.put("k", "1");
    let expected = [(revision, "k".to_owned(), Some("1".to_owned()))];
    for watch in others.iter_mut().chain(&mut ranges) {
        assert_eq!(watch.changes(1), expected);
    }
    for watch in &mut numbered {
        let result = watch.result();
        assert_eq!((number(&result["watch_id"]), &changes(&result)[..]), (9, &expected[..]));
    }
    let revision = tally.put("k7", "1");
    assert_eq!(alone[7].changes(1), [(revision, "k7".to_owned(), Some("1".to_owned()))]);
    assert_eq!(ranges[0].changes(1), [(revision, "k7".to_owned(), Some("1".to_owned()))]);
    assert_eq!(crowd(&tally), 40.0);
    tally.stop();
}
