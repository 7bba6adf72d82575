//! Power cuts and failing disks under a running node: what was acknowledged survives, and nothing is acknowledged after
//! a failure.
//!
//! The log lives on a disk in memory that breaks at a chosen operation. The store lives on the real disk; what a crash
//! would leave of it is a photograph of its files, because its memory is lost.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::{all, config, options, put, revision};
use tally_raftnode::{Config, EncodedCommand, FatalError, Node, ProposeError, StorageOptions, open_storage};
use tally_wal::memfs::{Fault, MemFs};

/// Far longer than anything here takes; a test that runs into it has found something that never ends.
const NEVER: Duration = Duration::from_secs(60);
/// Points of a run at which the disk breaks, spread evenly. Each costs two openings of the store.
const POINTS: u64 = 40;
const GROUPS: usize = 12;
const GROUP: usize = 4;

fn in_memory(dir: &Path, disk: &MemFs) -> StorageOptions {
    let mut options = options(dir);
    options.wal_fs = Arc::new(disk.clone());
    options.wal_dir = Some("/wal".into());
    options.wal.segment_bytes = 4 << 10;
    options
}

fn purging() -> Config {
    Config { catchup_entries: 4, ..config() }
}

/// What a run got done: acknowledged puts with their revisions, and how many were tried.
#[derive(Default)]
struct Done {
    acknowledged: Vec<(String, i64)>,
    tried: usize,
    failed: bool,
}

/// Puts in groups, a snapshot with a purge in the middle. Ends at the first failure.
async fn script(node: &Node, done: &mut Done) {
    for group in 0..GROUPS {
        let keys: Vec<String> = (0..GROUP).map(|number| format!("k/{group:02}/{number}")).collect();
        let proposals: Vec<_> = keys.iter().map(|key| node.propose(put(key, &"v".repeat(100)))).collect();
        done.tried += GROUP;
        for (key, proposal) in keys.into_iter().zip(proposals) {
            match proposal.await {
                Ok(outcome) => {
                    assert!(!done.failed, "{key} was acknowledged after a failure");
                    done.acknowledged.push((key, revision(&outcome)));
                }
                Err(ProposeError::Fatal(_)) => done.failed = true,
                Err(error) => panic!("{error}"),
            }
        }
        if group % 4 == 3 && !done.failed {
            done.failed = node.snapshot().await.is_err();
        }
        if done.failed {
            return;
        }
    }
}

fn photograph(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            photograph(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Runs the script on `disk` until it ends or breaks, and leaves in `after` what a crash would leave of the store.
fn run(disk: &MemFs, dir: &Path, after: &Path) -> Done {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let mut done = Done::default();
    runtime.block_on(async {
        let Ok(storage) = open_storage(in_memory(dir, disk)) else { return };
        let Ok(node) = Node::start(purging(), storage).await else { return };
        let run = async {
            if node.ready().await.is_ok() {
                script(&node, &mut done).await;
            }
        };
        tokio::time::timeout(NEVER, run).await.expect("every proposal is answered, also on a broken disk");
        if done.failed {
            let fatal = tokio::time::timeout(NEVER, node.fatal()).await.expect("a failure is reported");
            assert!(matches!(fatal, FatalError::LogWrite(_)), "{fatal}");
            assert!(matches!(node.propose(put("late", "")).await, Err(ProposeError::Fatal(_))));
            assert!(node.read_barrier().await.is_err());
        }
        disk.crash();
    });
    if dir.exists() {
        photograph(dir, after);
    }
    done
}

/// Opens what is left and compares it with what was promised.
fn check(disk: &MemFs, after: &Path, done: &Done, what: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let storage = open_storage(in_memory(after, disk)).unwrap_or_else(|error| panic!("{what}: {error:?}"));
        let node = Node::start(purging(), storage).await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
        tokio::time::timeout(NEVER, node.ready()).await.unwrap().unwrap();
        let found = all(&node.reads());
        for (key, revision) in &done.acknowledged {
            let kept = found.iter().any(|(name, _, at)| (name, at) == (key, revision));
            assert!(kept, "{what}: {key} was acknowledged at revision {revision} and is not there");
        }
        assert!(found.len() <= done.tried, "{what}: more was found than was ever tried");
        let mut revisions: Vec<i64> = found.iter().map(|(_, _, at)| *at).collect();
        revisions.sort_unstable();
        assert_eq!(revisions, (2..2 + found.len() as i64).collect::<Vec<_>>(), "{what}: revisions have holes");
        let next = revision(&node.propose(put("next", "")).await.unwrap());
        assert_eq!(next, 2 + found.len() as i64, "{what}");
        node.shutdown().await.unwrap();
    });
}

fn operations() -> u64 {
    let (dir, after, disk) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), MemFs::new(0));
    let done = run(&disk, dir.path(), after.path());
    assert_eq!(done.acknowledged.len(), GROUPS * GROUP);
    disk.ops()
}

fn points(operations: u64) -> impl Iterator<Item = u64> {
    let step = operations.div_ceil(POINTS).max(1);
    (0..operations).step_by(usize::try_from(step).unwrap())
}

#[test]
fn what_was_acknowledged_survives_a_power_cut_at_any_point() {
    for point in points(operations()) {
        let (dir, after, disk) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), MemFs::new(point));
        disk.crash_at(point);
        let done = run(&disk, dir.path(), after.path());
        check(&disk.reopen(), after.path(), &done, &format!("power cut in operation {point}"));
    }
}

#[test]
fn nothing_is_acknowledged_after_a_disk_error_and_what_was_survives_it() {
    let mut failures = 0;
    for (number, point) in points(operations()).enumerate() {
        let (dir, after, disk) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), MemFs::new(point));
        disk.fail_nth(point, if number % 2 == 0 { Fault::Io } else { Fault::NoSpace });
        let done = run(&disk, dir.path(), after.path());
        failures += usize::from(done.failed);
        // The process was killed with the power on, or the power was cut right after: both have to work.
        let left = if number % 4 < 2 { disk.restart() } else { disk.reopen() };
        check(&left, after.path(), &done, &format!("error in operation {point}"));
    }
    assert!(failures > 10, "only {failures} of the faults were felt by a proposal");
}

#[tokio::test]
async fn a_committed_entry_that_cannot_be_applied_ends_the_node_now_and_at_every_start() {
    let dir = tempfile::tempdir().unwrap();
    let node = common::started(dir.path(), config()).await;
    revision(&node.propose(put("before", "")).await.unwrap());
    let unknown = EncodedCommand::from(bytes::Bytes::from_static(&[1, 200, 0]));
    let (poisoned, behind) = (node.propose(unknown), node.propose(put("behind", "")));
    assert!(matches!(poisoned.await, Err(ProposeError::Fatal(FatalError::Apply(_)))));
    assert!(matches!(behind.await, Err(ProposeError::Fatal(_))));
    assert!(matches!(node.fatal().await, FatalError::Apply(_)));
    let mut status = node.status();
    status.wait_for(|status| status.fatal.is_some()).await.map(drop).unwrap();
    assert!(node.shutdown().await.is_err());
    drop(node);

    let storage = common::storage(dir.path());
    match Node::start(config(), storage).await {
        Ok(node) => {
            let fatal = tokio::time::timeout(NEVER, node.fatal()).await.expect("the entry is still in the log");
            assert!(matches!(fatal, FatalError::Apply(_)));
        }
        Err(error) => assert!(format!("{error:?}").contains("UnknownCommand"), "{error:?}"),
    }
}
