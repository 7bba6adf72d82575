//! Counters of one backend. Two backends in one process do not share them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// What a backend has done since it was opened.
#[derive(Debug, Default)]
pub struct Metrics {
    commits: AtomicU64,
    commit_nanoseconds: AtomicU64,
    commit_bytes: AtomicU64,
    housekeeping_commits: AtomicU64,
    syncs: AtomicU64,
    sync_nanoseconds: AtomicU64,
    tidied_files: AtomicU64,
}

impl Metrics {
    /// Commits that carried a position.
    pub fn commits(&self) -> u64 {
        self.commits.load(Relaxed)
    }

    /// Time spent in those commits.
    pub fn commit_time(&self) -> Duration {
        Duration::from_nanos(self.commit_nanoseconds.load(Relaxed))
    }

    /// Bytes of their batches.
    pub fn commit_bytes(&self) -> u64 {
        self.commit_bytes.load(Relaxed)
    }

    /// Commits of housekeeping.
    pub fn housekeeping_commits(&self) -> u64 {
        self.housekeeping_commits.load(Relaxed)
    }

    /// Syncs that had something to do.
    pub fn syncs(&self) -> u64 {
        self.syncs.load(Relaxed)
    }

    /// Time spent in those syncs.
    pub fn sync_time(&self) -> Duration {
        Duration::from_nanos(self.sync_nanoseconds.load(Relaxed))
    }

    /// Small table files that were merged into bigger ones.
    pub fn tidied_files(&self) -> u64 {
        self.tidied_files.load(Relaxed)
    }

    pub(crate) fn committed(&self, took: Duration, bytes: u64) {
        self.commits.fetch_add(1, Relaxed);
        self.commit_nanoseconds.fetch_add(took.as_nanos() as u64, Relaxed);
        self.commit_bytes.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn kept_house(&self) {
        self.housekeeping_commits.fetch_add(1, Relaxed);
    }

    pub(crate) fn synced(&self, took: Duration) {
        self.syncs.fetch_add(1, Relaxed);
        self.sync_nanoseconds.fetch_add(took.as_nanos() as u64, Relaxed);
    }

    pub(crate) fn tidied(&self, files: u64) {
        self.tidied_files.fetch_add(files, Relaxed);
    }
}
