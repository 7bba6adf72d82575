//! A data directory opens only if its log and its store belong together, and a new one survives a crash at every step.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use common::{CLUSTER, MEMBER, UUID, all, config, options, put_many, started, stopped, storage};
use tally_backend::{Failpoints, Step};
use tally_raftnode::{Config, OpenError, Storage, StorageOptions, open_storage};
use tally_wal::memfs::MemFs;

fn refusal(opened: Result<Storage, OpenError>) -> OpenError {
    match opened {
        Ok(_) => panic!("it opened"),
        Err(error) => error,
    }
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn replace_dir(old: &Path, new: &Path) {
    fs::remove_dir_all(old).unwrap();
    copy_dir(new, old);
}

/// Keeps so little of the log that a snapshot purges nearly all of it.
fn purging() -> Config {
    Config { catchup_entries: 3, ..config() }
}

/// Runs a node over `dir`, puts `count` keys, makes a snapshot if asked to, and stops it.
async fn run(dir: &Path, config: Config, prefix: &str, count: u64, snapshot: bool) {
    let node = started(dir, config).await;
    put_many(&node, |number| format!("{prefix}/{number}"), count).await;
    if snapshot {
        let durable = node.snapshot().await.unwrap();
        assert_eq!(durable, node.progress().applied);
    }
    stopped(node).await;
}

#[tokio::test]
async fn data_of_another_cluster_or_member_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), config(), "k", 1, false).await;
    let other = open_storage(StorageOptions::new(dir.path(), CLUSTER + 1, MEMBER, UUID));
    assert!(matches!(refusal(other), OpenError::Identity { found_cluster: CLUSTER, .. }));
    let other = open_storage(StorageOptions::new(dir.path(), CLUSTER, MEMBER + 1, UUID));
    assert!(matches!(refusal(other), OpenError::Identity { found_member: MEMBER, .. }));
    // The UUID of an existing directory is its own; the one offered is for new directories only.
    open_storage(StorageOptions::new(dir.path(), CLUSTER, MEMBER, [1; 16])).map(drop).unwrap();
}

#[tokio::test]
async fn a_directory_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let held = storage(dir.path());
    assert!(matches!(refusal(open_storage(options(dir.path()))), OpenError::Locked { .. }));
    drop(held);
    storage(dir.path());
}

#[tokio::test]
async fn a_store_without_its_log_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), config(), "k", 5, false).await;
    fs::remove_dir_all(dir.path().join("member/wal")).unwrap();
    assert!(matches!(refusal(open_storage(options(dir.path()))), OpenError::LogWiped { .. }));
}

#[tokio::test]
async fn a_whole_log_builds_a_lost_store_again() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), config(), "k", 200, true).await;
    let root = storage(dir.path()).backend.applied().root;
    fs::remove_dir_all(dir.path().join("member/db")).unwrap();
    let node = started(dir.path(), config()).await;
    assert_eq!(all(&node.reads()).len(), 200);
    // The new leader's blank entry changes the index, not the state.
    assert_eq!(node.reads().applied().root, root);
    stopped(node).await;
}

#[tokio::test]
async fn a_lost_store_whose_log_was_purged_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), purging(), "k", 20, true).await;
    fs::remove_dir_all(dir.path().join("member/db")).unwrap();
    match refusal(open_storage(options(dir.path()))) {
        OpenError::StoreWiped { purged, .. } => assert_eq!(purged, 22 - 3),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_log_replaced_by_an_older_copy_is_refused() {
    let (dir, old) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    run(dir.path(), config(), "k", 5, false).await;
    copy_dir(&dir.path().join("member/wal"), old.path());
    run(dir.path(), config(), "l", 5, false).await;
    replace_dir(&dir.path().join("member/wal"), old.path());
    assert!(matches!(refusal(open_storage(options(dir.path()))), OpenError::StoreAhead { .. }));
}

#[tokio::test]
async fn a_store_replaced_by_a_copy_older_than_the_log_is_refused() {
    let (dir, old) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    run(dir.path(), purging(), "k", 5, false).await;
    copy_dir(&dir.path().join("member/db"), old.path());
    run(dir.path(), purging(), "l", 50, true).await;
    replace_dir(&dir.path().join("member/db"), old.path());
    assert!(matches!(refusal(open_storage(options(dir.path()))), OpenError::StoreBehind { .. }));
}

#[tokio::test]
async fn an_older_copy_of_the_store_that_the_log_still_reaches_catches_up() {
    let (dir, old) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    run(dir.path(), config(), "k", 5, false).await;
    copy_dir(&dir.path().join("member/db"), old.path());
    run(dir.path(), config(), "l", 50, true).await;
    replace_dir(&dir.path().join("member/db"), old.path());
    let node = started(dir.path(), config()).await;
    assert_eq!(all(&node.reads()).len(), 55);
    stopped(node).await;
}

#[tokio::test]
async fn a_store_of_another_directory_is_refused() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    run(dir.path(), config(), "k", 5, false).await;
    drop(open_storage(StorageOptions::new(other.path(), CLUSTER, MEMBER, [8; 16])).unwrap());
    replace_dir(&dir.path().join("member/db"), &other.path().join("member/db"));
    let error = refusal(open_storage(options(dir.path())));
    let OpenError::Backend { source, .. } = error else { panic!("{error}") };
    let tally_backend::OpenError::Identity { found, .. } = *source else { panic!("{source}") };
    assert_eq!(found.directory_uuid, [8; 16]);
}

#[tokio::test]
async fn a_store_and_a_log_of_two_histories_are_refused() {
    let (dir, fork) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    run(dir.path(), config(), "k", 5, false).await;
    copy_dir(dir.path(), fork.path());
    run(dir.path(), config(), "l", 10, false).await;
    // The same entries further on, but some in another term: every start is an election.
    run(fork.path(), config(), "m", 1, false).await;
    run(fork.path(), config(), "n", 20, false).await;
    replace_dir(&dir.path().join("member/wal"), &fork.path().join("member/wal"));
    assert!(matches!(refusal(open_storage(options(dir.path()))), OpenError::Diverged { .. }));
}

#[tokio::test]
async fn a_crash_at_any_step_of_making_the_log_does_not_spoil_the_directory() {
    let ops = {
        let (dir, disk) = (tempfile::tempdir().unwrap(), MemFs::new(1));
        drop(open_storage(in_memory(dir.path(), &disk)).unwrap());
        disk.ops()
    };
    assert!(ops > 5, "making a log takes steps that can be interrupted");
    for step in 0..ops {
        let (dir, disk) = (tempfile::tempdir().unwrap(), MemFs::new(step));
        disk.crash_at(step);
        drop(open_storage(in_memory(dir.path(), &disk)));
        let opened = open_storage(in_memory(dir.path(), &disk.reopen()));
        assert!(opened.is_ok(), "after a crash in operation {step}: {}", refusal(opened));
    }
}

fn in_memory(dir: &Path, disk: &MemFs) -> StorageOptions {
    let mut options = options(dir);
    options.wal_fs = Arc::new(disk.clone());
    options.wal.segment_bytes = 16 << 10;
    options
}

#[tokio::test]
async fn a_fault_at_any_step_of_making_the_store_does_not_spoil_the_directory() {
    use Step::{DirectoryMade, EngineMade, Marked, PointerSwitched, PointerWritten, Unmarked};
    for fault in [Marked, DirectoryMade, EngineMade, PointerWritten, PointerSwitched, Unmarked] {
        let dir = tempfile::tempdir().unwrap();
        let mut faulty = options(dir.path());
        faulty.backend.failpoints = Failpoints::new(move |step, _: &Path| match step == fault {
            true => Err(io::Error::other("injected")),
            false => Ok(()),
        });
        assert!(matches!(refusal(open_storage(faulty)), OpenError::Backend { .. }), "{fault:?} is passed");
        let found = storage(dir.path());
        assert_eq!(found.recovered.metadata.directory_uuid, UUID);
        assert!(found.backend.is_fresh());
    }
}
