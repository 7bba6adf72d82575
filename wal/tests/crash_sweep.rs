//! Every I/O of a scripted run is failed and killed in turn; what was acknowledged must be there afterwards.
//!
//! A run cuts segments, truncates, purges and recycles. After each accident the log is opened again, compared with what
//! the model allows, used on through a second accident, and closed cleanly at last.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::{Ack, Driver, Model, Op, dir, small};
use tally_wal::memfs::{Fault, MemFs};
use tally_wal::{Fs, OpenError, Wal, dump};

fn script() -> Vec<(Op, Ack)> {
    let append = |count, size| Op::Append { count, size, new_term: false };
    let mut ops = vec![(Op::State { vote: 3, committed: false }, Ack::Wait)];
    for round in 0..6 {
        ops.push((append(1, 40), Ack::Wait));
        ops.push((append(3, 100), Ack::Callback));
        ops.push((Op::State { vote: round, committed: true }, Ack::None));
        ops.push((Op::Append { count: 2, size: 300, new_term: true }, Ack::Callback));
        ops.push((Op::Truncate { drop: 2 }, Ack::None));
        ops.push((append(2, 300), Ack::Wait));
        if round % 2 == 1 {
            ops.push((Op::Purge { keep: 2 }, Ack::Wait));
        }
        // Larger than a segment.
        ops.push((append(1, if round == 4 { 1500 } else { 10 }), Ack::Callback));
        ops.push((append(4, 64), Ack::Wait));
        if round == 3 {
            ops.push((Op::Skip { by: 2 }, Ack::Callback));
        }
    }
    ops
}

/// Runs the script until its end or the first failure. Returns whether it got to the end.
fn run(fs: &MemFs, driver: &mut Driver, ops: &[(Op, Ack)], close: bool) -> Result<bool, OpenError> {
    let (mut wal, recovered) = Wal::open(Arc::new(fs.clone()), dir(), small())?;
    let Ok(found) = Model::try_of(&wal, &recovered) else { return Ok(false) };
    driver.check_recovered(&found);
    // What an opened log shows is durable from then on.
    let (told, asked) = (Arc::clone(&driver.told), driver.asked);
    *driver = Driver::from(found);
    (driver.told, driver.asked) = (told, asked);
    driver.told.lock().unwrap().clear();
    driver.asked = 0;
    for (op, ack) in ops {
        let Ok(ticket) = driver.apply(&mut wal, op) else { return Ok(false) };
        if !driver.acknowledge(&wal, ticket, *ack) {
            return Ok(false);
        }
    }
    if close {
        wal.close().unwrap();
    }
    Ok(true)
}

/// Runs into an accident. The state of `driver` afterwards says what may be found.
fn accident(fs: &MemFs, driver: &mut Driver, ops: &[(Op, Ack)]) -> bool {
    let through = match run(fs, driver, ops, false) {
        Ok(through) => through,
        Err(OpenError::Io { .. } | OpenError::Sync(_)) => return false,
        Err(other) => panic!("an interrupted log must open again: {other}"),
    };
    driver.check_callbacks();
    through
}

/// How many operations a run without accidents takes, with some room for the allocator's freedom.
fn operations(ops: &[(Op, Ack)]) -> u64 {
    let fs = MemFs::new(0);
    assert!(accident(&fs, &mut Driver::from(Model::default()), ops));
    fs.ops() + 5
}

/// The second life: another accident, then a clean end.
fn go_on(mut fs: MemFs, driver: &mut Driver, salt: u64) {
    let ops = script();
    let short = &ops[..ops.len() / 3];
    fs.crash_at(salt * 7919 % 150);
    accident(&fs, driver, short);
    fs = fs.reopen();
    let report = dump::verify_on(Arc::new(fs.clone()), dir());
    if let Ok(report) = report {
        assert!(report.problem.is_none(), "{report}");
    }
    assert!(run(&fs, driver, short, true).unwrap());
    let expected = driver.now().clone();
    let fs = fs.reopen();
    let (wal, recovered) = Wal::open(Arc::new(fs), dir(), small()).unwrap();
    assert_eq!(recovered.torn, None);
    assert_eq!(Model::of(&wal, &recovered), expected);
}

#[test]
fn power_cuts_at_every_operation() {
    let ops = script();
    let total = operations(&ops);
    assert!(total > 200, "the script does too little: {total}");
    for seed in 0..4 {
        for n in 0..total {
            let fs = MemFs::new(seed * 1_000_003 + n);
            fs.crash_at(n);
            let mut driver = Driver::from(Model::default());
            accident(&fs, &mut driver, &ops);
            go_on(fs.reopen(), &mut driver, n + seed);
        }
    }
}

#[test]
fn the_process_is_killed_at_every_operation() {
    let ops = script();
    for n in 0..operations(&ops) {
        let fs = MemFs::new(n);
        fs.crash_at(n);
        let mut driver = Driver::from(Model::default());
        accident(&fs, &mut driver, &ops);
        go_on(fs.restart(), &mut driver, n);
    }
}

#[test]
fn every_operation_fails_once() {
    let ops = script();
    let total = operations(&ops);
    for (salt, fault) in [Fault::Io, Fault::NoSpace].into_iter().enumerate() {
        for n in 0..total {
            let fs = MemFs::new(n);
            fs.fail_nth(n, fault);
            let mut driver = Driver::from(Model::default());
            accident(&fs, &mut driver, &ops);
            // The machine stays on, so what a failed sync did not write can still be read, and must not be believed.
            let fs = if n % 2 == 0 { fs.restart() } else { fs.reopen() };
            go_on(fs, &mut driver, n + salt as u64);
        }
    }
}

#[test]
fn the_script_recycles_segments() {
    let fs = MemFs::new(9);
    run(&fs, &mut Driver::from(Model::default()), &script(), true).unwrap();
    let names = fs.list(dir()).unwrap();
    let recycled = |name: &String| fs.contents(&dir().join(name)).unwrap().ends_with(b"RECYCLED");
    assert!(names.iter().any(recycled), "{names:?}");
}
