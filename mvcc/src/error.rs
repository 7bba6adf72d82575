//! Everything that can be refused or go wrong, one enum per kind of operation.

use tally_backend::StorageError;

use crate::record::RecordError;
use crate::records::FetchError;

/// A refusal that follows from the request and the replicated state alone: every replica computes the same one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The revision is no longer readable (or already compacted, for a compaction).
    #[error("revision {requested} has been compacted; the oldest readable revision is {compacted}")]
    Compacted {
        /// The revision asked for.
        requested: i64,
        /// The compaction revision, which is still readable.
        compacted: i64,
    },
    /// The revision is not there yet.
    #[error("revision {requested} is in the future; the current revision is {current}")]
    FutureRevision {
        /// The revision asked for.
        requested: i64,
        /// The newest revision.
        current: i64,
    },
    /// `ignore_value` or `ignore_lease` on a key that does not exist.
    #[error("the key whose value or lease is to be kept does not exist; put it without ignore_value and ignore_lease")]
    KeyNotFound,
    /// A put names a lease that does not exist.
    #[error("lease {0} does not exist; grant it before attaching keys")]
    LeaseNotFound(i64),
}

/// The stored data contradicts the index or itself. Nothing that reads on may be trusted: stop the process.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Corruption {
    /// The index names a record that the backend does not have.
    #[error("the record of revision {main}.{sub} is missing from the backend; restore this member from a healthy one")]
    Missing {
        /// The main revision.
        main: i64,
        /// The operation within it.
        sub: u32,
    },
    /// A stored record cannot be decoded.
    #[error("the record of revision {main}.{sub} cannot be decoded; restore this member from a healthy one")]
    Undecodable {
        /// The main revision.
        main: i64,
        /// The operation within it.
        sub: u32,
        /// What is wrong with it.
        source: RecordError,
    },
    /// A record lies under a revision other than its own.
    #[error("the record stored as revision {main}.{sub} says it is of revision {found}; restore this member")]
    Misplaced {
        /// The main revision of its place.
        main: i64,
        /// The operation within it.
        sub: u32,
        /// The revision the record itself carries.
        found: i64,
    },
    /// A key in the record bucket is not a revision.
    #[error("the record bucket holds a key of {length} bytes where a revision has 12; restore this member")]
    BadRevisionKey {
        /// Its length in bytes.
        length: usize,
    },
    /// A record is newer than the current revision stored beside it.
    #[error("the backend holds revision {main} but says the current revision is {current}; restore this member")]
    BeyondCurrent {
        /// The main revision of the record.
        main: i64,
        /// The stored current revision.
        current: i64,
    },
    /// Two revisions of one key do not follow each other.
    #[error("revision {main}.{sub} does not continue the history of its key; restore this member")]
    BrokenHistory {
        /// The main revision.
        main: i64,
        /// The operation within it.
        sub: u32,
    },
    /// One of the store's own figures cannot be decoded.
    #[error("the stored figure {name:?} cannot be decoded ({length} bytes, version {version:?}); restore this member")]
    BadMeta {
        /// Its key in the meta bucket.
        name: &'static str,
        /// Its length in bytes.
        length: usize,
        /// Its version byte, if it has one.
        version: Option<u8>,
    },
}

/// Why the store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The backend failed.
    #[error("the store could not be read from the backend")]
    Storage(#[from] StorageError),
    /// The stored data contradicts itself.
    #[error("the store's data is corrupt")]
    Corrupt(#[from] Corruption),
    /// An option is out of range.
    #[error("option {name} is {given}, which is not within {least}..={most}")]
    BadOption {
        /// The option.
        name: &'static str,
        /// What was given.
        given: u64,
        /// The least accepted.
        least: u64,
        /// The most accepted.
        most: u64,
    },
}

/// Why a read was not answered.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// Refused; the same on every replica that is as far.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The view was kept so long that its records have been swept. Take a new view and read again.
    #[error("a view of revision {revision} was overtaken by the sweep of compaction {swept}; read again")]
    Overtaken {
        /// The view's revision.
        revision: i64,
        /// The compaction whose sweep did not wait for it.
        swept: i64,
    },
    /// A read-only transaction contains a write.
    #[error("the transaction writes; propose it instead of reading it")]
    NotReadOnly,
    /// The backend failed.
    #[error("a record could not be read")]
    Storage(#[from] StorageError),
    /// The stored data contradicts the index: stop the process.
    #[error("a stored record is corrupt")]
    Corrupt(#[from] Corruption),
}

/// Why a write was not accepted by its check. Anything but `Rejected` must stop the process.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CheckError {
    /// Refused, deterministically.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The backend failed.
    #[error("the check could not read a record")]
    Storage(#[from] StorageError),
    /// The stored data contradicts the index.
    #[error("the check met a corrupt record")]
    Corrupt(#[from] Corruption),
}

/// Why a checked write could not be staged. There is no undo: stop the process.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WriteError {
    /// The backend failed.
    #[error("the write could not read a record")]
    Storage(#[from] StorageError),
    /// The stored data contradicts the index.
    #[error("the write met a corrupt record")]
    Corrupt(#[from] Corruption),
}

/// Why a piece of the sweep failed. What was swept before stays swept; a later call goes on from there.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SweepError {
    /// The backend failed.
    #[error("the sweep could not read or delete records")]
    Storage(#[from] StorageError),
    /// The stored data contradicts itself.
    #[error("the sweep met a corrupt record")]
    Corrupt(#[from] Corruption),
}

impl From<FetchError> for CheckError {
    fn from(error: FetchError) -> CheckError {
        match error {
            FetchError::Storage(error) => CheckError::Storage(error),
            FetchError::Corrupt(corruption) => CheckError::Corrupt(corruption),
        }
    }
}

impl From<FetchError> for WriteError {
    fn from(error: FetchError) -> WriteError {
        match error {
            FetchError::Storage(error) => WriteError::Storage(error),
            FetchError::Corrupt(corruption) => WriteError::Corrupt(corruption),
        }
    }
}
