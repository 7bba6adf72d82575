//! What a backend is opened with.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::error::OpenError;
use crate::failpoint::Failpoints;

/// Whose data a directory holds. Fixed when the directory is made, compared at every open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Identity {
    /// The cluster.
    pub cluster_id: u64,
    /// The member of that cluster.
    pub member_id: u64,
    /// This very data directory: a directory that was wiped and made again has another one.
    pub directory_uuid: [u8; 16],
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let uuid = u128::from_be_bytes(self.directory_uuid);
        write!(f, "cluster {:x}, member {:x}, directory {uuid:032x}", self.cluster_id, self.member_id)
    }
}

/// Hears how long commits and syncs take. Called on the thread that commits, so it must be quick.
pub trait Observer: Send + Sync {
    /// A commit has succeeded.
    fn on_commit(&self, took: Duration);
    /// A sync has succeeded.
    fn on_sync(&self, took: Duration);
    /// Upkeep was committed, and for so long no other commit could begin.
    fn on_housekeeping(&self, _took: Duration) {}
}

/// How to open a backend. [`Config::new`] fills in the limits.
#[derive(Clone)]
pub struct Config {
    /// The directory, made when it is not there.
    pub path: PathBuf,
    /// Whose data it holds.
    pub identity: Identity,
    /// Memory for writes that are not flushed yet, over all buckets. Default 64 MiB.
    pub memtable_bytes: usize,
    /// Memory for blocks, indexes and filters read from disk, over all buckets. Default 64 MiB.
    pub block_cache_bytes: usize,
    /// Threads for flushes and compactions. Default: half of the cores, at least 2, at most 4.
    pub background_jobs_max: u32,
    /// Table files open at the same time. Default 1,024.
    pub open_files_max: u32,
    /// Hears how long commits and syncs take.
    pub observer: Option<Arc<dyn Observer>>,
    /// Faults to inject, for tests. None by default.
    pub failpoints: Failpoints,
}

/// The least memory for writes that works.
const MEMTABLE_BYTES_MIN: usize = 1 << 20;
/// The least cache that works.
const BLOCK_CACHE_BYTES_MIN: usize = 1 << 20;
/// The fewest files that work.
const OPEN_FILES_MIN: u32 = 64;

impl Config {
    /// The defaults for a directory.
    pub fn new(path: impl Into<PathBuf>, identity: Identity) -> Config {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
        Config {
            path: path.into(),
            identity,
            memtable_bytes: 64 << 20,
            block_cache_bytes: 64 << 20,
            background_jobs_max: (cores / 2).clamp(2, 4),
            open_files_max: 1024,
            observer: None,
            failpoints: Failpoints::none(),
        }
    }

    /// Refuses limits that cannot work, naming the field.
    pub fn validate(&self) -> Result<(), OpenError> {
        let low = |field, least: u64, given: u64| {
            if given < least { Err(OpenError::Config { field, least, given }) } else { Ok(()) }
        };
        low("memtable_bytes", MEMTABLE_BYTES_MIN as u64, self.memtable_bytes as u64)?;
        low("block_cache_bytes", BLOCK_CACHE_BYTES_MIN as u64, self.block_cache_bytes as u64)?;
        low("background_jobs_max", 1, u64::from(self.background_jobs_max))?;
        low("open_files_max", u64::from(OPEN_FILES_MIN), u64::from(self.open_files_max))
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("path", &self.path)
            .field("identity", &self.identity)
            .field("memtable_bytes", &self.memtable_bytes)
            .field("block_cache_bytes", &self.block_cache_bytes)
            .field("background_jobs_max", &self.background_jobs_max)
            .field("open_files_max", &self.open_files_max)
            .finish_non_exhaustive()
    }
}
