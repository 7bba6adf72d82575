//! openraft's own storage suite over the real log and the real store, on a real disk, in a new directory for each test.
#![allow(clippy::unwrap_used)]

use std::io;

use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use openraft::StorageError;
use openraft::entry::RaftEntry as _;
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use crate::config::ApplyLimits;
use crate::log_store::LogStore;
use crate::snapshot::{Checkpoint, SnapshotBuilder};
use crate::start::assemble;
use crate::state_machine::StateMachine;
use crate::storage::{StorageOptions, open_storage};
use crate::types::{RaftEntry, RaftLogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig};

/// The state machine, except that it takes entries with holes between them, which the suite hands over and which Tally
/// refuses: the holes are filled with blank entries of the term that follows.
struct FilledUp(StateMachine);

impl RaftStateMachine<TypeConfig> for FilledUp {
    type SnapshotData = Checkpoint;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<RaftLogId>, StoredMembership), io::Error> {
        self.0.applied_state().await
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        let mut next = self.0.applied_state().await?.0.map_or(0, |id| id.index + 1);
        let mut filled = Vec::new();
        for item in entries.try_collect::<Vec<_>>().await? {
            for missing in next..item.0.log_id.index {
                let id = RaftLogId { index: missing, ..item.0.log_id };
                filled.push((RaftEntry::new_blank(id), None));
            }
            next = item.0.log_id.index + 1;
            filled.push(item);
        }
        self.0.apply(stream::iter(filled).map(Ok)).await
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        self.0.get_snapshot_builder().await
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Checkpoint) -> Result<(), io::Error> {
        self.0.install_snapshot(meta, snapshot).await
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        self.0.get_current_snapshot().await
    }
}

struct OnDisk;

impl StoreBuilder<TypeConfig, LogStore, FilledUp, TempDir> for OnDisk {
    async fn build(&self) -> Result<(TempDir, LogStore, FilledUp), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let mut options = StorageOptions::new(dir.path(), 1, 0, [9; 16]);
        options.wal.segment_bytes = 64 << 10;
        let assembled = assemble(open_storage(options).unwrap(), ApplyLimits::default()).unwrap();
        Ok((dir, assembled.log, FilledUp(assembled.machine)))
    }
}

#[tokio::test]
async fn the_storage_suite_of_openraft_passes() {
    Suite::test_all(OnDisk).await.unwrap();
}
