//! One error per operation. Each says what happened, to what, and what to do where that is known.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::ConfigError;
use crate::types::{LogIndex, Metadata, State};

/// What is wrong with a record that must be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The bytes of the record do not match its checksum.
    #[error("the record does not match its checksum")]
    Checksum,
    /// There is no readable record header.
    #[error("there is no readable record header")]
    Header,
    /// The record would end after the end of the file.
    #[error("the record ends after the end of the file")]
    Short,
    /// The record is whole, but was not written after the one before it.
    #[error(
        "the record does not follow the one before it: it continues chain {stored:08x}, the chain is at {chain:08x}"
    )]
    Chain {
        /// The value the record was written after.
        stored: u32,
        /// The value of the records read so far.
        chain: u32,
    },
    /// The record is unreadable although a later write shows that it had been made durable.
    #[error("{flaw}, and the record at offset {proof} was written only after this one had been made durable")]
    Acknowledged {
        /// What was found there.
        flaw: Box<Damage>,
        /// Where the later record is.
        proof: u64,
    },
    /// The successor of the segment says how far it goes, and it does not.
    #[error("{flaw}, but the next segment says that this one is valid up to offset {end}")]
    EndsEarly {
        /// What was found there.
        flaw: Box<Damage>,
        /// Where the segment should end.
        end: u64,
    },
    /// The segment goes on after the end that its successor recorded.
    #[error("the segment goes on after offset {end}, where the next segment says it ends")]
    EndsLate {
        /// Where the segment should end.
        end: u64,
    },
    /// The segment is unreadable here although a later segment file exists.
    #[error("{flaw}, although a later segment file exists")]
    NotLast {
        /// What was found there.
        flaw: Box<Damage>,
    },
    /// The file became shorter than it was made.
    #[error("the file has {length} bytes but was created with {allocated}")]
    Shortened {
        /// Bytes found.
        length: u64,
        /// Bytes it had.
        allocated: u64,
    },
    /// The file is longer than any segment can be.
    #[error("the file has {length} bytes, more than a segment can have")]
    TooLong {
        /// Bytes found.
        length: u64,
    },
    /// The record is whole but its content makes no sense.
    #[error("the record is whole but its content is not valid: {what}")]
    Malformed {
        /// What makes no sense.
        what: &'static str,
    },
    /// A record type of a newer program.
    #[error("record type {kind} is not known to this program; it needs a newer one")]
    UnknownType {
        /// The type found.
        kind: u8,
    },
    /// The name of the file and the head inside disagree.
    #[error("the head says sequence {sequence}, first index {first_index}, which is not what the file name says")]
    Name {
        /// Sequence in the head.
        sequence: u64,
        /// First index in the head.
        first_index: u64,
    },
    /// Two segments of one directory belong to different logs.
    #[error("the segment belongs to another log: {found}")]
    Foreign {
        /// The identity found.
        found: Box<Metadata>,
    },
    /// An entry does not follow the one before it.
    #[error("expected index {expected}, found {found}")]
    Order {
        /// The index that should be here.
        expected: LogIndex,
        /// The index that is.
        found: LogIndex,
    },
    /// A segment file is gone.
    #[error("segment {sequence:016x} is missing")]
    MissingSegment {
        /// Its sequence number.
        sequence: u64,
    },
    /// Entries after the purge point are gone.
    #[error("entries from index {from} are missing, the oldest one left is {first}")]
    MissingEntries {
        /// The first index that should be there.
        from: LogIndex,
        /// The first that is.
        first: LogIndex,
    },
}

/// Why a log did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file operation failed.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another process (or this one) has the log open.
    #[error("{} is in use by another process; stop it first", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// There is no log and no identity to create one with.
    #[error("{} holds no log, and no identity was given to create one with", dir.display())]
    NoLog {
        /// The directory.
        dir: PathBuf,
    },
    /// The log belongs to somebody else.
    #[error("{} belongs to {found}, but {expected} was asked for; use the right directory", dir.display())]
    Identity {
        /// The directory.
        dir: PathBuf,
        /// Who asked.
        expected: Box<Metadata>,
        /// Whose it is.
        found: Box<Metadata>,
    },
    /// The log was written by a newer program.
    #[error("{}: format {found}, this program reads up to {supported}; use a newer program", file.display())]
    Format {
        /// The segment.
        file: PathBuf,
        /// The format in its head.
        found: u32,
        /// The newest that is understood.
        supported: u32,
    },
    /// Bytes that had been made durable are no longer what they were. Nothing was changed.
    #[error(
        "{}: damaged at offset {offset}, record {record}: {damage}; restore this member from its peers or a backup",
        file.display()
    )]
    Damaged {
        /// The segment.
        file: PathBuf,
        /// Where in it.
        offset: u64,
        /// Which record of the segment, from 0.
        record: u64,
        /// What is wrong.
        damage: Damage,
    },
    /// The configuration makes no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The first write to the opened log failed.
    #[error(transparent)]
    Sync(#[from] SyncError),
}

impl OpenError {
    pub(crate) fn io<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> OpenError + use<'a> {
        move |source| OpenError::Io { operation, path: path.to_owned(), source }
    }
}

/// Why a directory could not be scanned to its end.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// A file operation failed.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A segment was written by a newer program.
    #[error("{}: format {found}, this program reads up to {supported}; use a newer program", file.display())]
    Format {
        /// The segment.
        file: PathBuf,
        /// The format in its head.
        found: u32,
        /// The newest that is understood.
        supported: u32,
    },
    /// A record is not what it was when it was made durable.
    #[error("{}: damaged at offset {offset}, record {record}: {damage}", file.display())]
    Damaged {
        /// The segment.
        file: PathBuf,
        /// Where in it.
        offset: u64,
        /// Which record of the segment, from 0.
        record: u64,
        /// What is wrong.
        damage: Damage,
    },
}

impl ScanError {
    pub(crate) fn io<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> ScanError + use<'a> {
        move |source| ScanError::Io { operation, path: path.to_owned(), source }
    }
}

impl From<ScanError> for OpenError {
    fn from(error: ScanError) -> OpenError {
        match error {
            ScanError::Io { operation, path, source } => OpenError::Io { operation, path, source },
            ScanError::Format { file, found, supported } => OpenError::Format { file, found, supported },
            ScanError::Damaged { file, offset, record, damage } => OpenError::Damaged { file, offset, record, damage },
        }
    }
}

/// Why something was not taken into the log. Nothing of the call has been taken then.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AppendError {
    /// The entries do not continue the log.
    #[error("the next entry must have index {expected}, not {found}")]
    Gap {
        /// The index that continues the log.
        expected: LogIndex,
        /// The index given.
        found: LogIndex,
    },
    /// The index is beyond [`LogIndex::MAX`].
    #[error("index {index} is beyond the largest index")]
    IndexTooLarge {
        /// The index given.
        index: LogIndex,
    },
    /// One entry is larger than `entry_bytes_max`.
    #[error("entry {index} has {bytes} bytes, the limit is {limit}")]
    EntryTooLarge {
        /// Which.
        index: LogIndex,
        /// Its payload in bytes.
        bytes: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The vote is larger than [`State::VOTE_BYTES_MAX`].
    #[error("a vote of {bytes} bytes is too large, the limit is {}", State::VOTE_BYTES_MAX)]
    VoteTooLarge {
        /// Its size in bytes.
        bytes: usize,
    },
    /// The truncation would reach into what is already purged.
    #[error("cannot truncate after index {after}: entries up to {purged} are already purged")]
    Purged {
        /// The truncation asked for.
        after: LogIndex,
        /// The purge point.
        purged: LogIndex,
    },
    /// The disk does not keep up: too many bytes wait to be written. Try again later.
    #[error("{pending} bytes wait to be written and {bytes} more would exceed the limit of {limit}; try again later")]
    Overloaded {
        /// Bytes waiting.
        pending: usize,
        /// Bytes of this call.
        bytes: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// An earlier write failed; the log takes nothing any more.
    #[error(transparent)]
    Failed(#[from] SyncError),
}

/// Why something is not durable. Final: the log accepts nothing after it, and only opening it anew tells what is on disk.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SyncError {
    /// A file operation of the flusher failed.
    #[error("the log stopped: cannot {operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: Arc<io::Error>,
    },
    /// The log was closed or dropped before this was durable.
    #[error("the log was closed before this was made durable")]
    Closed,
    /// The flusher thread panicked, or a callback given to it did.
    #[error("the log stopped: its flusher panicked")]
    Panicked,
}

impl SyncError {
    pub(crate) fn io<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> SyncError + use<'a> {
        move |source| SyncError::Io { operation, path: path.to_owned(), source: Arc::new(source) }
    }
}

/// Why entries could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The log starts after the first index asked for.
    #[error("index {asked} is not in the log, which starts at {first}")]
    BelowFirst {
        /// The index asked for.
        asked: LogIndex,
        /// The first index that is or will be there.
        first: LogIndex,
    },
    /// A file operation failed.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The segment.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The bytes of an entry are not what was written.
    #[error("{}: entry {index} at offset {offset} is damaged: {damage}", path.display())]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// Which entry.
        index: LogIndex,
        /// What is wrong.
        damage: Damage,
    },
    /// The log has been closed.
    #[error("the log is closed")]
    Closed,
}
