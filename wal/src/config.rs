//! How a log is set up, and who is told about its syncs.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::types::Metadata;

/// Told about every write that was made durable. Called on the flusher thread: be quick.
pub trait Observer: Send + Sync {
    /// One group of `bytes`, holding `entries` entries, was written and synced in `duration`.
    fn on_sync(&self, duration: Duration, bytes: u64, entries: u64);

    /// Of that time, so much went into handing the group to the operating system. Called before [`Observer::on_sync`].
    fn on_write(&self, _duration: Duration) {}
}

/// The settings of a log. Only `metadata` has to be given, and only to create one.
#[derive(Clone)]
pub struct Config {
    /// The identity to create the log with, or to require of an existing one. `None` opens any existing log.
    pub metadata: Option<Metadata>,
    /// Size of a segment file in bytes, allocated before it is used. 16 MiB by default. One record larger than that
    /// gets a longer segment of its own.
    pub segment_bytes: u64,
    /// How many purged segments are kept for reuse. 4 by default.
    pub recycled_segments: usize,
    /// The most bytes the payload of one entry may have. 16 MiB by default.
    pub entry_bytes_max: usize,
    /// A group (one write, one sync) takes no further record once it has this many bytes. 8 MiB by default.
    pub group_bytes_max: usize,
    /// The most bytes that may wait to be durable; beyond it appends are refused as overloaded. 1 GiB by default.
    pub pending_bytes_max: usize,
    /// How many bytes of durable entries stay in memory for readers. 16 MiB by default. Entries that are not yet
    /// durable stay in memory whatever their size.
    pub tail_bytes_max: usize,
    /// `false` never syncs: **a power cut then loses acknowledged data**, or leaves a log that refuses to open.
    pub sync: bool,
    /// Told about every sync.
    pub observer: Option<Arc<dyn Observer>>,
}

/// The smallest segment that makes sense: a head and a few records.
pub(crate) const SEGMENT_BYTES_MIN: u64 = 1 << 10;
/// Offsets are 32 bits wide; a segment and one record beyond its end stay well below that.
const SEGMENT_BYTES_MAX: u64 = 1 << 30;
const ENTRY_BYTES_MAX: usize = 1 << 30;

impl Default for Config {
    fn default() -> Config {
        Config {
            metadata: None,
            segment_bytes: 16 << 20,
            recycled_segments: 4,
            entry_bytes_max: 16 << 20,
            group_bytes_max: 8 << 20,
            pending_bytes_max: 1 << 30,
            tail_bytes_max: 16 << 20,
            sync: true,
            observer: None,
        }
    }
}

impl Config {
    /// Checks that the values are within what the format allows.
    ///
    /// # Errors
    /// Names the first setting that is not.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&self.segment_bytes)
            || !self.segment_bytes.is_multiple_of(8)
        {
            return Err(ConfigError::SegmentBytes { given: self.segment_bytes });
        }
        if !(1..=ENTRY_BYTES_MAX).contains(&self.entry_bytes_max) {
            return Err(ConfigError::EntryBytes { given: self.entry_bytes_max });
        }
        if self.group_bytes_max == 0 {
            return Err(ConfigError::Zero { name: "group_bytes_max" });
        }
        if self.pending_bytes_max == 0 {
            return Err(ConfigError::Zero { name: "pending_bytes_max" });
        }
        match self.metadata {
            Some(Metadata { format, .. }) if format != Metadata::FORMAT => Err(ConfigError::Format { given: format }),
            Some(_) | None => Ok(()),
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("metadata", &self.metadata)
            .field("segment_bytes", &self.segment_bytes)
            .field("recycled_segments", &self.recycled_segments)
            .field("entry_bytes_max", &self.entry_bytes_max)
            .field("group_bytes_max", &self.group_bytes_max)
            .field("pending_bytes_max", &self.pending_bytes_max)
            .field("tail_bytes_max", &self.tail_bytes_max)
            .field("sync", &self.sync)
            .field("observer", &self.observer.is_some())
            .finish()
    }
}

/// A setting that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// `segment_bytes` is out of range.
    #[error("segment_bytes is {given}; it must be a multiple of 8 from {SEGMENT_BYTES_MIN} to {SEGMENT_BYTES_MAX}")]
    SegmentBytes {
        /// The value given.
        given: u64,
    },
    /// `entry_bytes_max` is out of range.
    #[error("entry_bytes_max is {given}; it must be from 1 to {ENTRY_BYTES_MAX}")]
    EntryBytes {
        /// The value given.
        given: usize,
    },
    /// A limit is zero.
    #[error("{name} must not be 0")]
    Zero {
        /// Which.
        name: &'static str,
    },
    /// The identity asks for a format this program does not write.
    #[error("cannot write format {given}; this program writes format {}", Metadata::FORMAT)]
    Format {
        /// The value given.
        given: u32,
    },
}
