//! What can be watched, and within which limits.

use crate::keyrange::KeyRange;

/// What a watcher is to see.
#[derive(Clone, Debug)]
pub struct WatchSpec {
    /// The keys.
    pub range: KeyRange,
    /// The first revision whose changes are wanted, past or future; 0 is "from now on". Never negative.
    pub start: i64,
    /// The watcher's id on its stream; 0 has the stream choose one.
    pub id: i64,
    /// Changes that are not wanted.
    pub filters: Filters,
    /// Look up what each changed key had before.
    pub prev_kv: bool,
    /// Tell the watcher how far it is, at every [`WatchStream::tick`](super::WatchStream::tick) since whose predecessor it
    /// had no event.
    pub progress_notify: bool,
    /// A bit of the caller's own, which comes back with each [`Batch`](super::Batch).
    pub mark: bool,
}

impl WatchSpec {
    /// Every change to a range from now on.
    pub fn new(range: KeyRange) -> WatchSpec {
        let filters = Filters::default();
        WatchSpec { range, start: 0, id: 0, filters, prev_kv: false, progress_notify: false, mark: false }
    }
}

/// Which changes a watcher does not want.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    /// Leave puts out.
    pub no_put: bool,
    /// Leave deletes out.
    pub no_delete: bool,
}

impl Filters {
    pub(super) fn lets(self, delete: bool) -> bool {
        if delete { !self.no_delete } else { !self.no_put }
    }
}

/// Why a watcher was not created. The stream goes on without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    /// No key can be in the range.
    #[error("the watched range ends at or before its start")]
    EmptyRange,
    /// The id is that of another watcher of the stream.
    #[error("watch id {0} is taken on this stream; choose another, or 0 to have one chosen")]
    DuplicateId(i64),
    /// The stream has as many watchers as it may have, or what is watched has as many bytes as it may have.
    #[error("{max} watchers, or bytes of watched keys, are the limit; cancel some watchers, or open another stream")]
    TooMany {
        /// The limit, which is of watchers or of bytes.
        max: usize,
    },
    /// A start below zero is no revision.
    #[error("revision {0} is not one to start from")]
    BadStart(i64),
}

/// What a stream may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchLimits {
    /// Watchers on the stream. Default 100,000.
    pub watchers_max: usize,
    /// Bytes of the keys that the stream watches, both ends of a range counted, and a range once however many watch it.
    /// Default 64 MiB.
    pub key_bytes_max: usize,
    /// The same for all streams of a store together: a range counts once, whichever streams watch it. Default 1 GiB.
    pub all_key_bytes_max: usize,
    /// Events in a batch, reached at the end of a revision. Default 1,000.
    pub batch_events: usize,
    /// Bytes of records in a batch, reached at the end of a revision; also what one read of history may gather for all
    /// watchers together. Default 256 KiB.
    pub batch_bytes: usize,
    /// Records that one read of history looks at. Default 4,096.
    pub history_records: usize,
    /// Bytes of records in undelivered batches of all streams of a store from which on every further batch is one
    /// revision. Default 64 MiB.
    pub pending_bytes: u64,
}

impl Default for WatchLimits {
    fn default() -> WatchLimits {
        WatchLimits {
            watchers_max: 100_000,
            key_bytes_max: 64 << 20,
            all_key_bytes_max: 1 << 30,
            batch_events: 1_000,
            batch_bytes: 256 << 10,
            history_records: 4_096,
            pending_bytes: 64 << 20,
        }
    }
}
