//! The words of the log: indexes, positions, entries, state, identity, tickets.

use std::fmt;

use bytes::Bytes;

/// The place of an entry in the log. Consecutive entries have consecutive indexes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogIndex(u64);

impl LogIndex {
    /// The largest index an entry may have. One below the end of `u64`, so that "the next index" always exists.
    pub const MAX: LogIndex = LogIndex(u64::MAX - 1);

    /// The index `value`.
    pub const fn new(value: u64) -> LogIndex {
        LogIndex(value)
    }

    /// The index as a number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The index after this one; stays at the end of `u64`.
    #[must_use]
    pub const fn next(self) -> LogIndex {
        LogIndex(self.0.saturating_add(1))
    }
}

impl fmt::Display for LogIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<u64> for LogIndex {
    fn from(value: u64) -> LogIndex {
        LogIndex(value)
    }
}

/// An index together with the term of the entry there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogPosition {
    /// Where.
    pub index: LogIndex,
    /// The caller's term of the entry at `index`; opaque to the log.
    pub term: u64,
}

impl fmt::Display for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "index {} term {}", self.index, self.term)
    }
}

/// One entry. The log stores `payload` as it is and never looks inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place; one more than that of the entry before.
    pub index: LogIndex,
    /// The caller's term.
    pub term: u64,
    /// Opaque bytes. By convention the first byte is the caller's kind.
    pub payload: Bytes,
}

impl Entry {
    /// Where the entry is.
    pub fn position(&self) -> LogPosition {
        LogPosition { index: self.index, term: self.term }
    }
}

/// What the caller keeps beside its entries. The latest one saved wins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// An opaque vote of at most [`State::VOTE_BYTES_MAX`] bytes.
    pub vote: Bytes,
    /// The highest position the caller knows to be committed.
    pub committed: Option<LogPosition>,
}

impl State {
    /// The most bytes a vote may have.
    pub const VOTE_BYTES_MAX: usize = 64;
}

/// Who a log belongs to. Written into the head of every segment and never changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// The version of the on-disk format; [`Metadata::FORMAT`] for a log this program creates.
    pub format: u32,
    /// The cluster.
    pub cluster_id: u64,
    /// The member of the cluster.
    pub member_id: u64,
    /// Chosen at random when the directory was created, so that a wiped directory is not taken for the old one.
    pub directory_uuid: [u8; 16],
}

impl Metadata {
    /// The newest format this program reads, and the one it writes.
    pub const FORMAT: u32 = 1;
}

impl fmt::Display for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cluster {:016x}, member {:016x}, directory ", self.cluster_id, self.member_id)?;
        self.directory_uuid.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A point in the order of everything handed to one [`Wal`](crate::Wal): durable once everything up to it is.
///
/// Tickets of one log compare in the order the operations were made; they mean nothing to another log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub(crate) u64);

/// The end of a log that was being written when the machine stopped. None of it had been acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// The file, by name.
    pub file: String,
    /// Where the cut is.
    pub offset: u64,
    /// How many bytes from there showed traces of the interrupted write.
    pub bytes: u64,
}

impl fmt::Display for TornTail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} bytes of an unfinished write at offset {}", self.file, self.bytes, self.offset)
    }
}
