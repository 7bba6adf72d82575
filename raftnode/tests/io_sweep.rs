//! Every I/O operation of a scripted run fails, and is where the power goes, in turn. Whatever happens, the member that is started
//! again has exactly what was acknowledged, or that and the one command that was under way (promises 1, 2, 4 and 5; bug
//! catalogue rows 3, 15, 17, 21 to 25, 27).
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use common::{CLUSTER, MEMBER, UUID, all, config};
use tally_apply::{Command, Reads};
use tally_mvcc::{Compare, CompareResult, CompareTarget, DeleteRequest, KeyRange, Op, PutRequest, TxnRequest};
use tally_raftnode::{Config, EncodedCommand, Node, StorageOptions, open_storage};
use tally_wal::memfs::{Fault, MemFs};

/// Commands in the script; with snapshots, purges and segment cuts they make some hundreds of I/O operations.
const COMMANDS: usize = 150;

/// A store is made durable and the log purged after every so many commands.
const SNAPSHOT_EVERY: usize = 30;

const WAL_DIR: &str = "/log";

fn options(dir: &Path, fs: &MemFs) -> StorageOptions {
    let mut options = StorageOptions::new(dir, CLUSTER, MEMBER, UUID);
    options.wal_dir = Some(WAL_DIR.into());
    options.wal_fs = Arc::new(fs.clone());
    options.wal.segment_bytes = 8 << 10;
    options.backend.memtable_bytes = 1 << 20;
    options
}

fn node_config() -> Config {
    Config { catchup_entries: 10, snapshot_count: 1_000_000, ..config() }
}

/// The live keys after each command, as the simplest possible store would have them.
type Model = BTreeMap<String, String>;

/// Command `n` of the script, carried out on the model too.
fn step(n: usize, model: &mut Model) -> Command {
    let key = |n: usize| format!("key-{:02}", n * 7 % 23);
    // Long enough that the segments are cut several times.
    let value = format!("value {n} {}", "x".repeat(n * 37 % 300));
    let put = |key: String, value: String| PutRequest::new(key, value);
    match n % 10 {
        3 => {
            model.remove(&key(n));
            Command::DeleteRange(DeleteRequest { range: KeyRange::single(key(n).into()).unwrap(), prev_kv: false })
        }
        5 => {
            let range = KeyRange::new(Bytes::from("key-05"), Bytes::from("key-09")).unwrap();
            model.retain(|key, _| !("key-05".."key-09").contains(&key.as_str()));
            Command::DeleteRange(DeleteRequest { range, prev_kv: true })
        }
        7 => {
            let compare = Compare {
                range: KeyRange::single(key(n).into()).unwrap(),
                result: CompareResult::Greater,
                target: CompareTarget::Version(0),
            };
            let (then, or) = (key(n + 1), key(n + 2));
            let chosen = if model.contains_key(&key(n)) { then.clone() } else { or.clone() };
            model.insert(chosen, value.clone());
            Command::Txn(TxnRequest {
                compares: vec![compare],
                success: vec![Op::Put(put(then, value.clone()))],
                failure: vec![Op::Put(put(or, value))],
            })
        }
        // Refused when that revision is compacted already: a refusal takes its place in the log as well.
        9 => Command::Compact { revision: (n * 2 / 3) as i64 },
        _ => {
            model.insert(key(n), value.clone());
            Command::Put(put(key(n), value))
        }
    }
}

/// What the state has to be after each number of commands: the root, from a run without faults, and the live keys.
struct Expected {
    roots: Vec<u128>,
    models: Vec<Model>,
}

fn live(reads: &Reads) -> Model {
    all(reads).into_iter().map(|(key, value, _)| (key, value)).collect()
}

/// Runs the script until its end or the first failure; how many commands were acknowledged.
async fn run_script(node: &Node, from: usize, mut each: impl FnMut(usize, &Node)) -> usize {
    let mut model = Model::new();
    for n in 0..COMMANDS {
        let command = step(n, &mut model);
        if n < from {
            continue;
        }
        if node.propose(EncodedCommand::encode(&command)).await.is_err() {
            return n;
        }
        each(n, node);
        if (n + 1) % SNAPSHOT_EVERY == 0 && node.snapshot().await.is_err() {
            return n + 1;
        }
    }
    COMMANDS
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

/// A run without faults: what to expect, and how many operations there are to break.
fn clean_run() -> (Expected, u64) {
    let (dir, fs) = (tempfile::tempdir().unwrap(), MemFs::new(0));
    let mut expected = Expected { roots: Vec::new(), models: vec![Model::new()] };
    let mut model = Model::new();
    for n in 0..COMMANDS {
        step(n, &mut model);
        expected.models.push(model.clone());
    }
    runtime().block_on(async {
        let node = Node::start(node_config(), open_storage(options(dir.path(), &fs)).unwrap()).await.unwrap();
        node.ready().await.unwrap();
        expected.roots.push(node.reads().applied().root);
        let done = run_script(&node, 0, |n, node| {
            expected.roots.push(node.reads().applied().root);
            assert_eq!(live(&node.reads()), expected.models[n + 1], "the model is wrong after command {n}");
        })
        .await;
        assert_eq!(done, COMMANDS);
        node.shutdown().await.unwrap();
    });
    (expected, fs.ops())
}

/// Copies the store as a killed process leaves it: closing it in good order would make everything durable first.
///
/// RocksDB may still be removing files that it no longer needs; then the copy is not of one moment and is made again.
fn copy_store(from: &Path, to: &Path) {
    while let Err(error) = try_copy(from, to) {
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
        std::fs::remove_dir_all(to).unwrap();
    }
}

fn try_copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            try_copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

#[derive(Clone, Copy, Debug)]
enum Accident {
    /// The operation fails and the process is killed; what was written is still in the page cache.
    Fails(Fault),
    /// The operation fails and then the machine loses its power.
    FailsThenPower(Fault),
    /// The power goes during the operation.
    Power,
}

/// One run that is broken at operation `at`, then a restart that is checked and finishes the script.
fn broken_run(expected: &Expected, at: u64, accident: Accident) {
    let (dir, after) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let fs = MemFs::new(at);
    match accident {
        Accident::Fails(fault) | Accident::FailsThenPower(fault) => fs.fail_nth(at, fault),
        Accident::Power => fs.crash_at(at),
    }
    let context = format!("operation {at}, {accident:?}");
    let mut acknowledged = 0;
    runtime().block_on(async {
        let Ok(storage) = open_storage(options(dir.path(), &fs)) else { return };
        let Ok(node) = Node::start(node_config(), storage).await else { return };
        if node.ready().await.is_ok() {
            acknowledged = run_script(&node, 0, |_, _| {}).await;
        }
        copy_store(dir.path(), after.path());
        // Ends its tasks; the failure has been seen, so whether this is clean does not matter.
        drop(node.shutdown().await);
    });
    if !after.path().join("member").exists() {
        copy_store(dir.path(), after.path());
    }
    let fs = match accident {
        Accident::Fails(_) => fs.restart(),
        Accident::FailsThenPower(_) | Accident::Power => fs.reopen(),
    };
    runtime().block_on(async {
        let storage = open_storage(options(after.path(), &fs)).unwrap_or_else(|error| panic!("{context}: {error:?}"));
        let node = Node::start(node_config(), storage).await.unwrap_or_else(|error| panic!("{context}: {error:?}"));
        node.ready().await.unwrap_or_else(|error| panic!("{context}: {error:?}"));
        let (reads, root) = (node.reads(), node.reads().applied().root);
        let found = [acknowledged, acknowledged + 1].into_iter().find(|n| expected.roots.get(*n) == Some(&root));
        let found = found.unwrap_or_else(|| {
            let other = expected.roots.iter().position(|other| *other == root);
            panic!("{context}: {acknowledged} commands were acknowledged, the state is that after {other:?}")
        });
        assert_eq!(live(&reads), expected.models[found], "{context}");
        assert_eq!(run_script(&node, found, |_, _| {}).await, COMMANDS, "{context}: the restarted member failed");
        assert_eq!(reads.applied().root, expected.roots[COMMANDS], "{context}");
        node.shutdown().await.unwrap_or_else(|error| panic!("{context}: {error:?}"));
    });
}

fn sweep(accident: impl Fn(u64) -> Accident) {
    let (expected, operations) = clean_run();
    assert!(operations > 300, "{operations} operations are too few to mean anything");
    for at in 0..operations {
        broken_run(&expected, at, accident(at));
    }
    println!("{operations} operations broken in turn");
}

#[test]
fn every_operation_fails_in_turn() {
    sweep(|at| match at % 4 {
        0 => Accident::Fails(Fault::Io),
        1 => Accident::FailsThenPower(Fault::NoSpace),
        2 => Accident::Fails(Fault::NoSpace),
        _ => Accident::FailsThenPower(Fault::Io),
    });
}

#[test]
fn the_power_goes_at_every_operation_in_turn() {
    sweep(|_| Accident::Power);
}
