//! What callers rely on, one by one.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::time::Duration;

use common::{Model, at, dir, entry, identity, index, small};
use tally_wal::dump::{RecordType, RecordView, ScanOptions, scan, verify};
use tally_wal::memfs::{Fault, MemFs};
use tally_wal::{AppendError, Config, Observer, ReadError, RealFs, State, SyncError, Wal};

fn mem(config: Config) -> (MemFs, Wal) {
    let fs = MemFs::new(1);
    let (wal, _) = Wal::open(Arc::new(fs.clone()), dir(), config).unwrap();
    (fs, wal)
}

#[test]
fn entries_are_readable_before_and_durable_after_a_flush() {
    let (fs, mut wal) = mem(small());
    let ticket = wal.append(&[entry(1, 1, 10), entry(2, 1, 10)]).unwrap();
    let ops = fs.ops();
    assert_eq!(wal.reader().read(index(1)..index(3), 1000).unwrap().len(), 2);
    assert_eq!((wal.durable().index(), fs.ops()), (None, ops), "appending and reading the tail do no I/O");
    wal.wait(ticket).unwrap();
    assert_eq!(wal.durable().index(), Some(index(2)));
    wal.truncate_after(Some(index(1))).unwrap();
    assert_eq!(wal.durable().index(), Some(index(1)), "goes back at once");
}

#[test]
fn a_saved_state_rides_along_without_a_sync_of_its_own() {
    let (fs, mut wal) = mem(Config { segment_bytes: 1 << 20, group_bytes_max: 1 << 20, ..small() });
    let ticket = wal.append(&[entry(1, 1, 10)]).unwrap();
    wal.wait(ticket).unwrap();
    let before = fs.ops();
    for i in 0..50 {
        wal.save_state(State { vote: vec![i].into(), committed: None }).unwrap();
    }
    assert_eq!(fs.ops(), before);
    let ticket = wal.append(&[entry(2, 1, 10)]).unwrap();
    wal.wait(ticket).unwrap();
    assert_eq!(fs.ops(), before + 2, "one write and one sync for all");
}

#[test]
fn refusals_take_nothing() {
    let (_, mut wal) = mem(Config { entry_bytes_max: 100, ..small() });
    wal.append(&[entry(5, 1, 10)]).unwrap();
    let gap = wal.append(&[entry(6, 1, 10), entry(8, 1, 10)]).unwrap_err();
    assert!(matches!(gap, AppendError::Gap { expected, found } if (expected, found) == (index(7), index(8))), "{gap}");
    let large = wal.append(&[entry(6, 1, 101)]).unwrap_err();
    assert!(matches!(large, AppendError::EntryTooLarge { bytes: 101, limit: 100, .. }), "{large}");
    let vote = wal.save_state(State { vote: vec![0; 65].into(), committed: None }).unwrap_err();
    assert!(matches!(vote, AppendError::VoteTooLarge { bytes: 65 }), "{vote}");
    wal.purge_upto(at(5, 1)).unwrap();
    let truncate = wal.truncate_after(Some(index(3))).unwrap_err();
    assert!(matches!(truncate, AppendError::Purged { .. }), "{truncate}");
    let end = wal.purge_upto(at(u64::MAX, 1)).unwrap_err();
    assert!(matches!(end, AppendError::IndexTooLarge { .. }), "{end}");
    let below = wal.reader().read(index(2)..index(9), 10).unwrap_err();
    assert!(matches!(below, ReadError::BelowFirst { first, .. } if first == index(6)), "{below}");
    wal.append(&[entry(6, 1, 10)]).unwrap();
    wal.close().unwrap();
}

#[test]
fn a_log_may_start_at_zero_and_be_emptied() {
    let (fs, mut wal) = mem(small());
    wal.append(&[entry(0, 1, 10), entry(1, 1, 10)]).unwrap();
    assert_eq!(wal.reader().first(), Some(index(0)));
    wal.truncate_after(None).unwrap();
    assert_eq!((wal.reader().first(), wal.reader().last()), (None, None));
    wal.append(&[entry(0, 2, 10)]).unwrap();
    wal.close().unwrap();
    let (wal, recovered) = Wal::open(Arc::new(fs.restart()), dir(), small()).unwrap();
    assert_eq!((recovered.first, recovered.last), (Some(index(0)), Some(at(0, 2))));
    assert_eq!(wal.durable().index(), Some(index(0)));
}

/// Blocks the flusher inside its first callback until told to go on.
fn hold(wal: &mut Wal, index: u64) -> mpsc::Sender<()> {
    let (release, held) = mpsc::channel();
    let entered = Arc::new(Barrier::new(2));
    let inside = Arc::clone(&entered);
    let ticket = wal.append(&[entry(index, 1, 10)]).unwrap();
    wal.flush(ticket, move |_| {
        inside.wait();
        held.recv().unwrap();
    });
    entered.wait();
    release
}

#[test]
fn what_waits_shares_one_sync_and_hears_of_it_in_order() {
    let (fs, mut wal) = mem(Config { segment_bytes: 1 << 20, group_bytes_max: 1 << 20, ..small() });
    let release = hold(&mut wal, 1);
    let before = fs.ops();
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut tickets = Vec::new();
    for i in 2..=100 {
        tickets.push((i, wal.append(&[entry(i, 1, 10)]).unwrap()));
    }
    // Asked for in another order, and once for something that is long durable.
    tickets.reverse();
    for (i, ticket) in tickets {
        let order = Arc::clone(&order);
        wal.flush(ticket, move |result| order.lock().unwrap().push((i, result.is_ok())));
    }
    release.send(()).unwrap();
    wal.close().unwrap();
    assert_eq!(*order.lock().unwrap(), (2..=100).map(|i| (i, true)).collect::<Vec<_>>());
    assert_eq!(fs.ops() - before, 4, "a write and a sync for all, and the same for closing");
}

#[test]
fn one_failed_sync_is_final() {
    for fault_at in 0..2 {
        let (fs, mut wal) = mem(small());
        let ticket = wal.append(&[entry(1, 1, 10)]).unwrap();
        wal.wait(ticket).unwrap();
        fs.fail_nth(fs.ops() + fault_at, Fault::Io);
        let lost = wal.append(&[entry(2, 1, 10)]).unwrap();
        let error = wal.wait(lost).unwrap_err();
        assert!(matches!(&error, SyncError::Io { .. }) && error.to_string().contains(".wal"), "{error}");
        // What was durable still is, everything else fails with the same error although the disk is well again.
        wal.wait(ticket).unwrap();
        for _ in 0..3 {
            assert_eq!(wal.wait(lost).unwrap_err().to_string(), error.to_string());
            let (told, outcome) = mpsc::channel();
            wal.flush(lost, move |result| told.send(result).unwrap());
            assert_eq!(outcome.recv().unwrap().unwrap_err().to_string(), error.to_string());
            let refused = wal.append(&[entry(3, 1, 10)]).unwrap_err();
            assert!(matches!(refused, AppendError::Failed(_)), "{refused}");
            assert!(wal.save_state(State::default()).is_err());
            assert!(wal.truncate_after(None).is_err());
            assert!(wal.purge_upto(at(1, 1)).is_err());
        }
        assert_eq!(wal.durable().index(), Some(index(1)));
        assert!(wal.close().is_err());
    }
}

#[test]
fn dropping_the_log_calls_every_callback() {
    let (_, mut wal) = mem(small());
    let release = hold(&mut wal, 1);
    let (told, outcomes) = mpsc::channel();
    for i in 2..=4 {
        let ticket = wal.append(&[entry(i, 1, 10)]).unwrap();
        let told = told.clone();
        wal.flush(ticket, move |result| told.send(result).unwrap());
    }
    let reader = wal.reader();
    let dropping = std::thread::spawn(move || drop(wal));
    // The flusher is inside a callback, so nothing more can have been written before the log is told to stop.
    while reader.read(index(1)..index(2), 1).is_ok() && !dropping.is_finished() {
        let _ = release.send(());
        std::thread::yield_now();
    }
    dropping.join().unwrap();
    drop(told);
    let outcomes = outcomes.iter().collect::<Vec<_>>();
    assert_eq!(outcomes.len(), 3);
    assert!(matches!(reader.read(index(1)..index(2), 1), Err(ReadError::Closed)));
}

#[test]
fn a_panicking_callback_stops_the_log_and_loses_no_other_callback() {
    let (_, mut wal) = mem(small());
    let release = hold(&mut wal, 1);
    let ticket = wal.append(&[entry(2, 1, 10)]).unwrap();
    wal.flush(ticket, |_| panic!("on purpose"));
    let (told, outcome) = mpsc::channel();
    wal.flush(ticket, move |result| told.send(result).unwrap());
    release.send(()).unwrap();
    outcome.recv_timeout(Duration::from_secs(60)).unwrap().unwrap();
    assert!(wal.close().is_err());
}

#[test]
fn too_much_waiting_is_refused_and_can_be_tried_again() {
    let (_, mut wal) = mem(Config { pending_bytes_max: 500, ..small() });
    let release = hold(&mut wal, 1);
    wal.append(&[entry(2, 1, 300)]).unwrap();
    let refused = wal.append(&[entry(3, 1, 300)]).unwrap_err();
    assert!(matches!(refused, AppendError::Overloaded { limit: 500, .. }), "{refused}");
    release.send(()).unwrap();
    let ticket = wal.append(&[]).unwrap();
    wal.wait(ticket).unwrap();
    wal.append(&[entry(3, 1, 300)]).unwrap();
    wal.close().unwrap();
}

#[test]
fn readers_go_on_while_segments_are_purged() {
    let fs = MemFs::new(1);
    let (mut wal, _) = Wal::open(Arc::new(fs), dir(), Config { tail_bytes_max: 0, ..small() }).unwrap();
    let reader = wal.reader();
    let done = Arc::new(AtomicU64::new(0));
    let seen = {
        let done = Arc::clone(&done);
        std::thread::spawn(move || {
            let mut seen = 0_u64;
            while done.load(Ordering::SeqCst) == 0 {
                let Some(first) = reader.first() else { continue };
                match reader.read(first..index(u64::MAX - 1), 2000) {
                    Ok(entries) => {
                        for (at, found) in entries.iter().enumerate() {
                            assert_eq!(found, &entry(first.get() + at as u64, 1, 60));
                        }
                        seen += 1;
                    }
                    Err(ReadError::BelowFirst { .. }) => {}
                    Err(other) => panic!("{other}"),
                }
            }
            seen
        })
    };
    for i in 1..=3000 {
        let ticket = wal.append(&[entry(i, 1, 60)]).unwrap();
        if i % 7 == 0 {
            wal.wait(ticket).unwrap();
        }
        if i % 50 == 0 {
            wal.purge_upto(at(i - 20, 1)).unwrap();
        }
    }
    done.store(1, Ordering::SeqCst);
    assert!(seen.join().unwrap() > 0);
    wal.close().unwrap();
}

struct Count(AtomicU64, AtomicU64, AtomicU64, AtomicU64);

impl Observer for Count {
    fn on_write(&self, _: Duration) {
        self.3.fetch_add(1, Ordering::SeqCst);
    }

    fn on_sync(&self, _: Duration, bytes: u64, entries: u64) {
        self.0.fetch_add(1, Ordering::SeqCst);
        self.1.fetch_add(bytes, Ordering::SeqCst);
        self.2.fetch_add(entries, Ordering::SeqCst);
    }
}

#[test]
fn the_observer_hears_of_every_write() {
    let count = Arc::new(Count(AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0)));
    let observer: Arc<dyn Observer> = count.clone();
    let (_, mut wal) = mem(Config { observer: Some(observer), ..small() });
    for i in 1..=5 {
        let ticket = wal.append(&[entry(i, 1, 16)]).unwrap();
        wal.wait(ticket).unwrap();
    }
    wal.close().unwrap();
    assert_eq!(count.2.load(Ordering::SeqCst), 5);
    // Opening and closing write a state each.
    assert_eq!((count.0.load(Ordering::SeqCst), count.3.load(Ordering::SeqCst)), (7, 7));
    assert_eq!(count.1.load(Ordering::SeqCst), 5 * 56 + 2 * 48);
}

#[test]
fn a_real_directory_survives_use_and_can_be_looked_into() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("deep/wal");
    let fs = Arc::new(RealFs);
    let config = Config { segment_bytes: 64 << 10, tail_bytes_max: 0, ..small() };
    let mut expected = Model::default();
    for life in 0..4 {
        let (mut wal, recovered) = Wal::open(fs.clone(), &dir, config.clone()).unwrap();
        assert_eq!((recovered.created, recovered.torn.clone()), (life == 0, None));
        assert_eq!(Model::of(&wal, &recovered), expected);
        for _ in 0..60 {
            let next = expected.next();
            let entries = (next..next + 20).map(|i| entry(i, life, 300)).collect::<Vec<_>>();
            let ticket = wal.append(&entries).unwrap();
            expected.entries.extend(entries);
            wal.wait(ticket).unwrap();
        }
        let purged = expected.entries[expected.entries.len() - 300].position();
        wal.purge_upto(purged).unwrap();
        expected.entries.drain(..expected.entries.len() - 299);
        expected.purged = Some(purged);
        wal.close().unwrap();
    }
    let report = verify(&dir).unwrap();
    assert!(report.is_sound(), "{report}");
    assert_eq!((report.first, report.last), (Some(index(4502)), Some(at(4800, 3))));
    let text = report.to_string();
    assert!(text.contains("entries from index 4502 to index 4800 term 3") && text.contains("sound"), "{text}");
    let options = ScanOptions { from: Some(index(4790)), to: Some(index(4792)), types: vec![RecordType::Entry] };
    let found = scan(&dir, options).unwrap().map(|record| record.unwrap().view).collect::<Vec<_>>();
    assert_eq!(found.len(), 3);
    assert!(matches!(&found[0], RecordView::Entry { position, .. } if *position == at(4790, 3)));
    let (first, _) = Wal::open(fs.clone(), &dir, config.clone()).unwrap();
    assert!(Wal::open(fs, &dir, config).unwrap_err().to_string().contains("in use"));
    assert_eq!(first.metadata(), identity());
}
