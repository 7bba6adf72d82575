//! What the store costs: puts in batches of 64, gets, ranges of 100, a full scan, opening, compaction and sweep.
//!
//! `cargo run --release -p tally-mvcc --example store_bench -- 1000000` (keys; 200,000 by default)
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Instant;

use bytes::Bytes;
use tally_backend::{Applied, Backend, Config, Identity};
use tally_mvcc::{
    Compare, CompareResult, CompareTarget, KeyRange, Op, Options, PutRequest, RangeOptions, RangeRequest, SweepLimits,
    SweepProgress, TxnRequest, open,
};

const BATCH: u64 = 64;

/// A key of 8 to 40 bytes, in an order that looks random.
fn key(number: u64) -> Bytes {
    let mixed = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let width = 8 + (number % 33) as usize;
    format!("{mixed:0width$x}").into()
}

fn rss_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024
}

fn report(what: &str, count: u64, started: Instant) {
    let each = started.elapsed().as_nanos() / u128::from(count.max(1));
    println!("{what:<42} {each:>9} ns each, {:>7} ms, RSS {} MiB", started.elapsed().as_millis(), rss_mib());
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let keys: u64 = std::env::args().nth(1).map_or(Ok(200_000), |count| count.parse())?;
    let dir = tempfile::tempdir()?;
    let backend = Backend::open(Config::new(dir.path(), Identity::default()))?;
    let (mut writer, reader) = open(&backend, Options::default())?;
    let (value, mut index) = (Bytes::from(vec![b'v'; 256]), 0);

    let started = Instant::now();
    for first in (0..keys).step_by(BATCH as usize) {
        let mut batch = backend.batch();
        for number in first..(first + BATCH).min(keys) {
            let put = PutRequest::new(key(number), value.clone());
            writer.check_put(&put)?;
            writer.put(&put, &mut batch)?;
        }
        writer.stage_meta(&mut batch);
        index += 1;
        batch.commit(&Applied { index, term: 1, root: writer.root(), ..Applied::default() })?;
        writer.publish();
    }
    report("put, batches of 64, committed, published", keys, started);

    let started = Instant::now();
    for first in (0..keys / 4).step_by(BATCH as usize) {
        let mut batch = backend.batch();
        for number in first..(first + BATCH).min(keys / 4) {
            let range = KeyRange::single(key(number))?;
            let compare = Compare { range, result: CompareResult::Greater, target: CompareTarget::Mod(0) };
            let success = vec![Op::Put(PutRequest::new(key(number), value.clone()))];
            let txn = TxnRequest { compares: vec![compare], success, failure: Vec::new() };
            let plan = writer.check(&txn)?;
            writer.act(plan, &txn, &mut batch)?;
        }
        writer.stage_meta(&mut batch);
        index += 1;
        batch.commit(&Applied { index, term: 1, root: writer.root(), ..Applied::default() })?;
        writer.publish();
    }
    report("txn (compare + put), batches of 64", keys / 4, started);

    let started = Instant::now();
    let gets = keys.min(100_000);
    for number in 0..gets {
        let found = reader.view().range(&RangeRequest::latest(KeyRange::single(key(number * 7919 % keys))?))?;
        assert_eq!(found.count, 1);
    }
    report("get of a random key", gets, started);

    let hundred = |number| RangeRequest {
        range: KeyRange::new(key(number), Bytes::from_static(b"\0")).expect("keys are not empty"),
        revision: 0,
        options: RangeOptions { limit: 100, ..RangeOptions::default() },
    };
    for pass in ["first", "second"] {
        let started = Instant::now();
        for number in 0..1_000 {
            reader.view().range(&hundred(number * 31 % keys))?;
        }
        report(&format!("range of 100 keys, {pass} time"), 1_000, started);
    }

    let started = Instant::now();
    let options = RangeOptions { count_only: true, ..RangeOptions::default() };
    for _ in 0..1_000 {
        reader.view().range(&RangeRequest { range: KeyRange::all(), revision: 0, options: options.clone() })?;
    }
    report("count_only of everything", 1_000, started);

    let started = Instant::now();
    let mut scan = reader.view().scan(&RangeRequest::latest(KeyRange::all()))?;
    let mut seen = 0;
    while let Some(piece) = scan.next_piece(500, 1 << 20)? {
        seen += piece.len() as u64;
    }
    drop(scan);
    assert_eq!(seen, keys);
    report("scan of everything, pieces of 500", keys, started);

    let started = Instant::now();
    reader.hash_kv(0)?;
    report("hash_kv", keys, started);

    let started = Instant::now();
    let mut batch = backend.batch();
    writer.compact(writer.revision(), &mut batch)?;
    writer.stage_meta(&mut batch);
    index += 1;
    batch.commit(&Applied { index, term: 1, root: writer.root(), ..Applied::default() })?;
    writer.publish();
    report("compact (logical), per record dropped", keys / 4, started);

    let started = Instant::now();
    while reader.sweep(SweepLimits::default())? != SweepProgress::Done {}
    report("sweep, per record dropped", keys / 4, started);

    backend.sync()?;
    let root = writer.root();
    drop((writer, reader));
    println!("{:<42} RSS {} MiB", "store dropped", rss_mib());
    let started = Instant::now();
    let (writer, _reader) = open(&backend, Options::default())?;
    report("open", keys, started);
    assert_eq!(writer.root(), root);
    Ok(())
}
