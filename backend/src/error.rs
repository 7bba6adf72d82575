//! One error per operation; each says what happened, to what, and what to do.

use std::io;
use std::path::{Path, PathBuf};

use crate::applied::{Applied, RecordError};
use crate::bucket::Bucket;
use crate::config::Identity;

/// What the storage engine said, word for word. Names the file when the engine knows it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct EngineError {
    message: String,
}

impl EngineError {
    pub(crate) fn new(message: String) -> EngineError {
        EngineError { message }
    }
}

/// A failed operation on one file or directory.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct FileError {
    /// What was tried.
    pub action: &'static str,
    /// On which file or directory.
    pub path: PathBuf,
    /// What the operating system said.
    pub source: io::Error,
}

impl FileError {
    /// For `map_err`: adds what was tried, and on what.
    pub(crate) fn on(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError + use<> {
        let path = path.to_path_buf();
        move |source| FileError { action, path, source }
    }
}

/// Why reading or writing failed. Cloneable: a backend that failed once answers every later commit with the same error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StorageError {
    /// No space left.
    #[error("no space left on the disk of {} while {action}; free some and restart", path.display())]
    Full {
        /// What was being done.
        action: &'static str,
        /// The directory of the live generation.
        path: PathBuf,
        /// What the engine said.
        source: EngineError,
    },
    /// Stored bytes are not what was written.
    #[error("data in bucket {bucket} under {} is damaged, found while {action}; rebuild this member from the others or from a backup", path.display())]
    Corrupt {
        /// What was being done.
        action: &'static str,
        /// The bucket, or "all" where the engine found it by itself.
        bucket: &'static str,
        /// The directory of the live generation.
        path: PathBuf,
        /// What the engine said; names the file.
        source: EngineError,
    },
    /// Anything else that the disk or the engine refused.
    #[error("the storage engine failed under {} while {action}; check the disk and restart", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The directory of the live generation.
        path: PathBuf,
        /// What the engine said.
        source: EngineError,
    },
    /// The stored position cannot be read.
    #[error("the applied record under {} cannot be read", path.display())]
    Record {
        /// The directory of the live generation.
        path: PathBuf,
        /// What is wrong with it.
        source: RecordError,
    },
    /// A commit would have moved the position backwards or not at all. A defect of the caller: stop.
    #[error(
        "invariant broken: a commit at index {offered_index} of term {offered_term} after index {index} of term {term}"
    )]
    InvariantBroken {
        /// Index in force.
        index: u64,
        /// Term in force.
        term: u64,
        /// Index offered.
        offered_index: u64,
        /// Term offered.
        offered_term: u64,
    },
    /// A batch is larger than the engine takes.
    #[error("a batch of {bytes} bytes exceeds the limit of {limit} bytes; commit in smaller chunks")]
    BatchTooLarge {
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The backend has been closed by another holder of the handle.
    #[error("the backend under {} is closed", path.display())]
    Closed {
        /// The directory of the generation.
        path: PathBuf,
    },
    /// A snapshot was being put in force when the disk failed: which state is in force is known only after a restart.
    #[error("putting a snapshot in force under {} failed halfway; restart to learn which state is in force", path.display())]
    SwitchFailed {
        /// The directory of the backend.
        path: PathBuf,
    },
    /// An installed snapshot has taken the place of this generation.
    #[error("an installed snapshot replaced the state under {}; use the handle that the switch returned", path.display())]
    Replaced {
        /// The directory of the generation.
        path: PathBuf,
    },
}

/// Why a directory could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A limit in the configuration is too small to work.
    #[error("the configuration says {field} = {given}, the least is {least}")]
    Config {
        /// The field.
        field: &'static str,
        /// The least that works.
        least: u64,
        /// What was given.
        given: u64,
    },
    /// The data belongs to somebody else.
    #[error("{} belongs to {found}, but this is {expected}; point to the right directory", path.display())]
    Identity {
        /// The directory.
        path: PathBuf,
        /// What is written in it.
        found: Identity,
        /// What was configured.
        expected: Identity,
    },
    /// The data was written by a newer program.
    #[error("{} has format {found}, this program reads up to {supported}; use a newer program", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The format found.
        found: u32,
        /// The newest format that is understood.
        supported: u32,
    },
    /// The data has a bucket that this program does not know.
    #[error("{} has a bucket '{name}' that this program does not know; use a newer program", path.display())]
    UnknownBucket {
        /// The directory of the generation.
        path: PathBuf,
        /// Its name.
        name: String,
    },
    /// A file of ours is not what was written.
    #[error("{} is damaged: {detail}; restore this member from a snapshot or from a backup", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// Data without the pointer to it: nobody can say which generation is live.
    #[error("{} has data in {generation} but no LIVE file saying so; put LIVE back or move the directory away", path.display())]
    PointerMissing {
        /// The directory.
        path: PathBuf,
        /// A generation found in it.
        generation: String,
    },
    /// Another process (or another handle of this one) has it open.
    #[error("{} is in use by another process; stop that first", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// It cannot be written to.
    #[error("{} cannot be written to; check its owner, its mode and the mount", path.display())]
    ReadOnly {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// No space left.
    #[error("no space left on the disk of {}; free some and start again", path.display())]
    Full {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The engine refused to open or to read its first records.
    #[error("the storage engine cannot open {}", path.display())]
    Engine {
        /// The directory of the generation.
        path: PathBuf,
        /// What it said.
        source: StorageError,
    },
}

impl From<FileError> for OpenError {
    fn from(error: FileError) -> OpenError {
        let FileError { action, path, source } = error;
        match source.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => OpenError::ReadOnly { path, source },
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => OpenError::Full { path, source },
            _ => OpenError::Io { action, path, source },
        }
    }
}

/// What can be wrong with an exported directory or stream.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The engine failed.
    #[error("the checkpoint failed")]
    Storage(#[from] StorageError),
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The checkpoint could not be opened to read its position.
    #[error("the checkpoint cannot be opened")]
    Open(#[from] OpenError),
    /// The manifest is unreadable.
    #[error("the manifest {} is damaged: {detail}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// Written by a newer program.
    #[error("{} has format {found}, this program reads up to {supported}; use a newer program", path.display())]
    Format {
        /// The file, or the directory that was being received into.
        path: PathBuf,
        /// The format found.
        found: u32,
        /// The newest format that is understood.
        supported: u32,
    },
    /// The stream broke a rule of its format.
    #[error("the snapshot stream is damaged at byte {offset}: {detail}; send it again")]
    Stream {
        /// Where.
        offset: u64,
        /// What is wrong.
        detail: String,
    },
    /// The stream could not be read or written.
    #[error("the snapshot stream broke at byte {offset}; send it again")]
    Transport {
        /// Where.
        offset: u64,
        /// What the stream said.
        source: io::Error,
    },
    /// A file differs from the manifest.
    #[error("{} is not the file of the manifest: {detail}", path.display())]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// What differs.
        detail: String,
    },
}

/// Why a snapshot could not be installed. The state before it is whole; if the switch itself failed at its end, the new one may
/// be what the next start finds instead, and nothing can be written until then.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The directory cannot be opened or written.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The export is unreadable or not what its manifest says.
    #[error("the snapshot is refused")]
    Export(#[from] ExportError),
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The backend has failed before.
    #[error("the backend has failed")]
    Storage(#[from] StorageError),
    /// The snapshot is of another cluster.
    #[error("the snapshot is of cluster {found:x}, this is cluster {expected:x}")]
    Cluster {
        /// Cluster of the snapshot.
        found: u64,
        /// Cluster of this directory.
        expected: u64,
    },
    /// The position in the tables is not that of the manifest.
    #[error("the tables of {} are at {found:?}, its manifest says {expected:?}", path.display())]
    Position {
        /// The export.
        path: PathBuf,
        /// Position in the tables.
        found: Box<Applied>,
        /// Position in the manifest.
        expected: Box<Applied>,
    },
    /// The snapshot is older than the state in force.
    #[error("the snapshot is at index {found}, older than the state in force at {current}")]
    Older {
        /// Index of the snapshot.
        found: u64,
        /// Index in force.
        current: u64,
    },
    /// Another snapshot is being installed.
    #[error("another snapshot is being installed into {}; wait for it", path.display())]
    Busy {
        /// The directory.
        path: PathBuf,
    },
}

/// Turns what the engine said into the error of this crate.
pub(crate) fn storage_error(
    error: rocksdb::Error,
    action: &'static str,
    bucket: Option<Bucket>,
    path: &Path,
) -> StorageError {
    let kind = error.kind();
    let source = EngineError::new(error.into_string());
    let path = path.to_path_buf();
    if source.message.contains("No space left") || source.message.contains("Disk quota exceeded") {
        return StorageError::Full { action, path, source };
    }
    if matches!(kind, rocksdb::ErrorKind::Corruption) {
        return StorageError::Corrupt { action, bucket: bucket.map_or("all", Bucket::name), path, source };
    }
    StorageError::Io { action, path, source }
}
