//! A tour of the store: write, read the past, decide by a transaction, compact, sweep, open again.
//!
//! `cargo run --release -p tally-mvcc --example history`

use tally_backend::{Applied, Backend, Config, Identity, WriteBatch};
use tally_mvcc::{
    Compare, CompareResult, CompareTarget, KeyRange, Op, Options, PutRequest, RangeOptions, RangeRequest, SweepLimits,
    SweepProgress, TxnRequest, Writer, open,
};

type Failure = Box<dyn std::error::Error>;

/// Commits what is in the batch, then shows it to readers. The index stands for the log entry that it comes from.
fn commit(writer: &mut Writer, mut batch: WriteBatch, index: u64) -> Result<(), Failure> {
    writer.stage_meta(&mut batch);
    batch.commit(&Applied { index, term: 1, root: writer.root(), ..Applied::default() })?;
    writer.publish();
    Ok(())
}

fn main() -> Result<(), Failure> {
    let dir = tempfile::tempdir()?;
    let backend = Backend::open(Config::new(dir.path(), Identity::default()))?;
    let (mut writer, reader) = open(&backend, Options::default())?;

    for (index, color) in ["red", "green", "blue"].into_iter().enumerate() {
        let put = PutRequest::new("color", color);
        let mut batch = backend.batch();
        writer.check_put(&put)?;
        let revision = writer.put(&put, &mut batch)?.revision;
        commit(&mut writer, batch, index as u64 + 1)?;
        println!("revision {revision}: color = {color}");
    }

    let color = KeyRange::single("color".into())?;
    let at = |revision| RangeRequest { range: color.clone(), revision, options: RangeOptions::default() };
    let past = reader.view().range(&at(3))?;
    println!("at revision 3 it was {}", past.kvs[0].value().escape_ascii());

    let only_if_blue = TxnRequest {
        compares: vec![Compare {
            range: color.clone(),
            result: CompareResult::Equal,
            target: CompareTarget::Value("blue".into()),
        }],
        success: vec![Op::Put(PutRequest::new("mood", "calm")), Op::Put(PutRequest::new("sky", "clear"))],
        failure: vec![Op::Range(at(0))],
    };
    only_if_blue.validate(128)?;
    let mut batch = backend.batch();
    let plan = writer.check(&only_if_blue)?;
    let reply = writer.act(plan, &only_if_blue, &mut batch)?;
    commit(&mut writer, batch, 4)?;
    println!("the transaction {} at revision {}", if reply.succeeded { "succeeded" } else { "failed" }, reply.revision);

    let mut batch = backend.batch();
    writer.check_compact(4)?;
    writer.compact(4, &mut batch)?;
    commit(&mut writer, batch, 5)?;
    while reader.sweep(SweepLimits::default())? != SweepProgress::Done {}
    match reader.view().range(&at(3)) {
        Ok(_) => println!("revision 3 is still there?"),
        Err(refused) => println!("after the compaction: {refused}"),
    }

    let root = writer.root();
    let (again, reader) = open(&backend, Options::default())?;
    println!("opened again: {} keys, root {:032x}, equal: {}", reader.keys_live(), root, again.root() == root);
    Ok(())
}
