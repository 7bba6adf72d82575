//! The log under openraft's contracts: what survives closing, and what the state machine may see when.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use openraft::EntryPayload;
use openraft::storage::{RaftLogReader, RaftLogStorage, RaftLogStorageExt, RaftStateMachine};

use crate::command::{EncodedCommand, LogPayload, Stamp};
use crate::config::ApplyLimits;
use crate::start::{Assembled, assemble};
use crate::storage::{StorageOptions, open_storage};
use crate::types::{RaftEntry, RaftLogId, RaftVote, log_id};

fn opened(dir: &Path) -> Assembled {
    let mut options = StorageOptions::new(dir, 1, 2, [3; 16]);
    options.wal.segment_bytes = 64 << 10;
    assemble(open_storage(options).unwrap(), ApplyLimits::default()).unwrap()
}

fn id(index: u64, term: u64) -> RaftLogId {
    log_id(index, term).unwrap()
}

fn entries(indexes: std::ops::RangeInclusive<u64>, term: u64) -> Vec<RaftEntry> {
    indexes.map(|index| RaftEntry { log_id: id(index, term), payload: EntryPayload::Blank }).collect()
}

#[tokio::test]
async fn vote_commit_tail_and_purge_point_survive_a_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let vote = RaftVote::new_committed(7, 2);
    {
        let Assembled { mut log, mut machine, live, .. } = opened(dir.path());
        log.blocking_append(entries(1..=20, 1)).await.unwrap();
        log.truncate_after(Some(id(10, 1))).await.unwrap();
        log.blocking_append(entries(11..=15, 2)).await.unwrap();
        log.save_vote(&vote).await.unwrap();
        log.save_committed(Some(id(12, 2))).await.unwrap();
        // Only what the store has made durable may be purged.
        let mut reader = log.get_log_reader().await;
        let applied = reader.entries_stream(0..4).await.map(|entry| Ok((entry?, None)));
        machine.apply(applied.boxed()).await.unwrap();
        assert_eq!(live.load().backend.sync().unwrap().index, 4);
        log.purge(id(4, 1)).await.unwrap();
        log.close().unwrap();
        assert!(log.blocking_append(entries(16..=16, 2)).await.is_err(), "a closed log takes nothing");
    }
    let Assembled { mut log, replay_upto, pristine, .. } = opened(dir.path());
    assert!(!pristine);
    assert_eq!(replay_upto, 12);
    let state = log.get_log_state().await.unwrap();
    assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(id(4, 1)), Some(id(15, 2))));
    let mut reader = log.get_log_reader().await;
    assert_eq!(reader.read_vote().await.unwrap(), Some(vote));
    let found: Vec<RaftLogId> =
        reader.try_get_log_entries(..).await.unwrap().iter().map(|entry| entry.log_id).collect();
    let expected: Vec<RaftLogId> =
        (5..=10).map(|index| id(index, 1)).chain((11..=15).map(|index| id(index, 2))).collect();
    assert_eq!(found, expected);
}

/// What sends entries to a member that was removed, and holds up no purge any more, may ask for some once more.
#[tokio::test]
async fn what_was_purged_meanwhile_is_not_there_and_the_node_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let Assembled { mut log, mut machine, live, shared, .. } = opened(dir.path());
    log.blocking_append(entries(1..=10, 1)).await.unwrap();
    let mut reader = log.get_log_reader().await;
    let applied = reader.entries_stream(0..6).await.map(|entry| Ok((entry?, None)));
    machine.apply(applied.boxed()).await.unwrap();
    assert_eq!(live.load().backend.sync().unwrap().index, 6);
    log.purge(id(6, 1)).await.unwrap();
    assert_eq!(reader.limited_get_log_entries(2, 8).await.unwrap(), vec![]);
    assert!(shared.fatal.get().is_none());
    assert_eq!(reader.limited_get_log_entries(6, 8).await.unwrap(), entries(7..=8, 1));
}

#[tokio::test]
async fn the_state_machine_sees_entries_only_when_they_are_durable_here() {
    let dir = tempfile::tempdir().unwrap();
    let Assembled { mut log, shared, .. } = opened(dir.path());
    log.blocking_append(entries(1..=5, 1)).await.unwrap();
    // As if the fsync of the last two were still under way.
    shared.logged.truncate(3);
    let mut reader = log.get_log_reader().await;
    // Replication does not wait,
    assert_eq!(reader.limited_get_log_entries(0, 5).await.unwrap().len(), 5);
    // applying does.
    let mut stream = Box::pin(reader.entries_stream(0..5).await);
    assert!(stream.next().now_or_never().is_none());
    shared.logged.advance(shared.logged.generation(), 5);
    assert_eq!(stream.count().await, 5);
}

#[tokio::test]
async fn a_failed_log_ends_the_wait_of_the_state_machine() {
    let dir = tempfile::tempdir().unwrap();
    let Assembled { mut log, shared, .. } = opened(dir.path());
    log.blocking_append(entries(1..=5, 1)).await.unwrap();
    shared.logged.truncate(3);
    let mut reader = log.get_log_reader().await;
    let mut stream = Box::pin(reader.entries_stream(0..5).await);
    shared.logged.mark().fail();
    assert!(stream.next().await.unwrap().is_err());
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn pieces_for_replication_are_bounded_and_never_empty() {
    let dir = tempfile::tempdir().unwrap();
    let Assembled { mut log, .. } = opened(dir.path());
    let big = |index| {
        let command = EncodedCommand::from(Bytes::from(vec![0; 3 << 20]));
        let command: LogPayload = command.stamp(Stamp { origin: 1, seq: index, term: 1 });
        RaftEntry { log_id: id(index, 1), payload: EntryPayload::Normal(command) }
    };
    log.blocking_append((1..=3).map(big)).await.unwrap();
    let mut reader = log.get_log_reader().await;
    assert_eq!(reader.limited_get_log_entries(0, 3).await.unwrap().len(), 1);
    assert_eq!(
        reader.try_get_log_entries(0..3).await.unwrap().len(),
        3,
        "but nothing is left out where all is asked for"
    );
    assert!(reader.limited_get_log_entries(7, 9).await.is_err(), "an entry that is not there is an error, not an end");
}
