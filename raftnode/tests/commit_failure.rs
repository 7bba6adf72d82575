//! A store that cannot be written under a running node: the node ends, nothing is acknowledged after it, and a restart on a
//! healthy disk has everything that was.
//!
//! The failure is real: the tables that RocksDB is about to write lead to a device that is always full.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{all, config, options, put, revision};
use tally_raftnode::{BarrierError, FatalError, Node, ProposeError, StorageOptions, open_storage};

/// Far longer than anything here takes; a test that runs into it has found something that never ends.
const NEVER: Duration = Duration::from_secs(60);
const GROUP: usize = 8;
/// With the smallest memtables, the store writes a table every few groups.
const VALUE_BYTES: usize = 32 << 10;
const GROUPS_MAX: usize = 400;

fn small(dir: &Path) -> StorageOptions {
    let mut options = options(dir);
    options.backend.memtable_bytes = 1 << 20;
    options
}

async fn start(dir: &Path) -> Node {
    let storage = open_storage(small(dir)).unwrap_or_else(|error| panic!("{error:?}"));
    let node = Node::start(config(), storage).await.unwrap();
    tokio::time::timeout(NEVER, node.ready()).await.unwrap().unwrap();
    node
}

/// Every next table of the store goes to a device that is always full; the links are returned.
fn fill_the_disk(dir: &Path) -> Vec<PathBuf> {
    let store = dir.join("member/db");
    let live = fs::read_dir(&store)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.join("CURRENT").exists())
        .expect("the store has a live generation");
    let number = |path: PathBuf| path.file_stem()?.to_str()?.rsplit('-').next()?.parse::<u64>().ok();
    let used = fs::read_dir(&live).unwrap().filter_map(|entry| number(entry.unwrap().path())).max().unwrap();
    let tables: Vec<PathBuf> = (used + 1..used + 200).map(|number| live.join(format!("{number:06}.sst"))).collect();
    for table in &tables {
        std::os::unix::fs::symlink("/dev/full", table).unwrap();
    }
    tables
}

fn free_the_disk(tables: &[PathBuf]) {
    for table in tables {
        // RocksDB has deleted the ones that it could not write.
        let link = fs::symlink_metadata(table).is_ok_and(|found| found.is_symlink());
        if link {
            fs::remove_file(table).unwrap();
        }
    }
}

/// What the proposers were told.
#[derive(Default)]
struct Told {
    /// Acknowledged, with the revision.
    acknowledged: Vec<(String, i64)>,
    tried: usize,
    /// The first failure.
    fatal: Option<FatalError>,
}

impl Told {
    /// One group of concurrent puts; those that were proposed together are answered in order.
    async fn group(&mut self, node: &Node, group: usize) {
        let keys: Vec<String> = (0..GROUP).map(|number| format!("k/{group:03}/{number}")).collect();
        let proposals: Vec<_> = keys.iter().map(|key| node.propose(put(key, &value(key)))).collect();
        self.tried += GROUP;
        for (key, proposal) in keys.into_iter().zip(proposals) {
            match tokio::time::timeout(NEVER, proposal).await.expect("every proposal is answered") {
                Ok(outcome) => {
                    assert!(self.fatal.is_none(), "{key} was acknowledged after the failure");
                    self.acknowledged.push((key, revision(&outcome)));
                }
                Err(ProposeError::Fatal(fatal)) => drop(self.fatal.get_or_insert(fatal)),
                Err(error) => panic!("{key}: {error}"),
            }
        }
    }
}

/// Different for every key, and not to be compressed to nothing.
fn value(key: &str) -> String {
    let mut state =
        key.bytes().fold(0x9e37_79b9_7f4a_7c15u64, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let mut letter = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b' ' + (state % 90) as u8)
    };
    (0..VALUE_BYTES).map(|_| letter()).collect()
}

/// The node has ended, says so to everybody, and takes nothing any more.
async fn has_ended(node: &Node) {
    assert!(matches!(node.propose(put("late", "")).await, Err(ProposeError::Fatal(_))));
    assert!(matches!(node.read_barrier().await, Err(BarrierError::Fatal(_))));
    let mut status = node.status();
    let told = tokio::time::timeout(NEVER, status.wait_for(|status| status.fatal.is_some())).await;
    told.expect("the status tells of the failure").map(drop).unwrap();
    assert!(tokio::time::timeout(NEVER, node.shutdown()).await.expect("a failed node can be ended").is_err());
}

/// Opens the directory on a healthy disk and compares it with what was promised.
async fn keeps_its_word(dir: &Path, told: &Told) {
    let node = start(dir).await;
    let found = all(&node.reads());
    for (key, at) in &told.acknowledged {
        let kept = found.iter().any(|(name, text, revision)| name == key && revision == at && *text == value(key));
        assert!(kept, "{key} was acknowledged at revision {at} and is not there as it was put");
    }
    assert!(found.len() <= told.tried, "more was found than was ever tried");
    assert!(!found.iter().any(|(name, ..)| name == "late"), "a refused put was carried out");
    let mut revisions: Vec<i64> = found.iter().map(|(_, _, at)| *at).collect();
    revisions.sort_unstable();
    assert_eq!(revisions, (2..2 + found.len() as i64).collect::<Vec<_>>(), "revisions have holes");
    assert_eq!(revision(&node.propose(put("next", "")).await.unwrap()), 2 + found.len() as i64);
    node.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_commit_that_fails_ends_the_node_and_loses_nothing_that_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path()).await;
    let mut told = Told::default();
    // Something durable in the store, and something that only the log has.
    told.group(&node, 0).await;
    node.snapshot().await.unwrap();
    told.group(&node, 1).await;
    assert!(told.fatal.is_none());
    let tables = fill_the_disk(dir.path());
    let mut group = 2;
    while told.fatal.is_none() {
        assert!(group < GROUPS_MAX, "the full disk is never noticed");
        told.group(&node, group).await;
        group += 1;
    }
    let at_failure = told.acknowledged.len();
    assert!(at_failure >= 2 * GROUP);
    let fatal = tokio::time::timeout(NEVER, node.fatal()).await.expect("a failure is reported");
    let FatalError::Apply(cause) = &fatal else { panic!("{fatal}: {fatal:?}") };
    assert!(matches!(**cause, tally_apply::Fatal::Storage { .. }), "{cause:?}");
    assert!(format!("{cause:?}").contains("Full"), "it must be known why: {cause:?}");

    // The disk is healthy again, but the node has failed for good: only a restart helps.
    free_the_disk(&tables);
    told.group(&node, group).await;
    assert_eq!(told.acknowledged.len(), at_failure, "acknowledged after the failure");
    has_ended(&node).await;
    drop(node);
    keeps_its_word(dir.path(), &told).await;
}

#[tokio::test]
async fn a_store_that_cannot_be_made_durable_ends_the_node_and_loses_nothing_that_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path()).await;
    let mut told = Told::default();
    told.group(&node, 0).await;
    let tables = fill_the_disk(dir.path());
    told.group(&node, 1).await;
    assert!(told.fatal.is_none(), "nothing has been written to the full disk yet");
    assert!(tokio::time::timeout(NEVER, node.snapshot()).await.expect("a snapshot ends").is_err());
    let fatal = tokio::time::timeout(NEVER, node.fatal()).await.expect("a failure is reported");
    assert!(matches!(fatal, FatalError::Snapshot(_)), "{fatal}: {fatal:?}");
    told.group(&node, 2).await;
    assert_eq!(told.acknowledged.len(), 2 * GROUP, "acknowledged after the failure");
    has_ended(&node).await;
    free_the_disk(&tables);
    drop(node);
    keeps_its_word(dir.path(), &told).await;
}
