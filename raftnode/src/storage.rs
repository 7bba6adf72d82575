//! Opening a member's data directory: the log, the store, and the proof that they belong together.
//!
//! ```text
//! <data-dir>/member/wal/    the log (or elsewhere, when a separate disk is named for it)
//! <data-dir>/member/db/     the store
//! <data-dir>/member/LOCK    held while a process uses the directory
//! ```
//! A new directory gets its log first and its store after it, and the store takes the directory's UUID from the log. So
//! a crash between the two leaves a whole, empty log and no store, which the next start completes; the reverse, a store
//! without a log, can only mean that the log was taken away.

use std::fs::{DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tally_apply::{Applier, Reads};
use tally_backend::{Applied, Backend, Identity};
use tally_wal::dump::{self, RecordType, RecordView, ScanOptions};
use tally_wal::{Fs, LogPosition, Metadata, RealFs, Recovered, Wal};

use crate::config::COMMAND_BYTES_MAX;
use crate::snapshot::{finish_install, incoming_dir};

/// Where a member's data is and how to open it.
pub struct StorageOptions {
    /// The member's data directory, made when it is not there.
    pub data_dir: PathBuf,
    /// A directory for the log alone, for instance on a disk of its own. Inside the data directory by default.
    pub wal_dir: Option<PathBuf>,
    /// The cluster that the data must belong to.
    pub cluster_id: u64,
    /// The member that the data must belong to.
    pub member_id: u64,
    /// A random UUID for the directory, used only if it is new.
    pub new_directory_uuid: [u8; 16],
    /// The file system of the log; a test's one breaks on demand.
    pub wal_fs: Arc<dyn Fs>,
    /// The log's settings. Its `metadata` is filled in here, and it takes entries of [`COMMAND_BYTES_MAX`] at least.
    pub wal: tally_wal::Config,
    /// The store's settings; path and identity are filled in here.
    pub backend: tally_backend::Config,
    /// The key-value store's settings.
    pub kv: tally_mvcc::Options,
}

impl StorageOptions {
    /// The defaults for a data directory.
    pub fn new(
        data_dir: impl Into<PathBuf>,
        cluster_id: u64,
        member_id: u64,
        new_directory_uuid: [u8; 16],
    ) -> StorageOptions {
        let data_dir = data_dir.into();
        StorageOptions {
            backend: tally_backend::Config::new(db_dir(&data_dir), Identity::default()),
            data_dir,
            wal_dir: None,
            cluster_id,
            member_id,
            new_directory_uuid,
            wal_fs: Arc::new(RealFs),
            wal: tally_wal::Config::default(),
            kv: tally_mvcc::Options::default(),
        }
    }

    /// Where the log is.
    pub fn wal_path(&self) -> PathBuf {
        self.wal_dir.clone().unwrap_or_else(|| self.data_dir.join("member").join("wal"))
    }
}

fn db_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("member").join("db")
}

/// A member's data, opened and checked; what a node starts from.
pub struct Storage {
    /// The log.
    pub wal: Wal,
    /// What was found in it.
    pub recovered: Recovered,
    /// The store under the state machine.
    pub backend: Backend,
    /// The state machine.
    pub applier: Applier,
    /// The readers' side of the state machine.
    pub reads: Reads,
    /// The key-value store's settings, for opening the state of a snapshot.
    pub(crate) kv: tally_mvcc::Options,
    /// Keeps other processes out; dropped with the node.
    pub(crate) lock: DirectoryLock,
}

/// Keeps other processes out of a data directory as long as it lives.
#[derive(Debug)]
pub(crate) struct DirectoryLock {
    _file: File,
}

/// Why a member's data does not open. Nothing of it is lost by the attempt; a new directory may have been begun, an unfinished
/// write at the end of the log cut, and the installation of a snapshot finished.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A directory could not be made or locked.
    #[error("cannot {action} {}", path.display())]
    Directory {
        /// What was tried.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Another process uses the directory.
    #[error("{} is in use by another process: stop that one first", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The log does not open.
    #[error("cannot open the log in {}", path.display())]
    Wal {
        /// Its directory.
        path: PathBuf,
        /// What is wrong.
        source: Box<tally_wal::OpenError>,
    },
    /// The log cannot be read.
    #[error("cannot read the log in {}", path.display())]
    Scan {
        /// Its directory.
        path: PathBuf,
        /// What is wrong.
        source: Box<tally_wal::ScanError>,
    },
    /// The store does not open.
    #[error("cannot open the store in {}", path.display())]
    Backend {
        /// Its directory.
        path: PathBuf,
        /// What is wrong.
        source: Box<tally_backend::OpenError>,
    },
    /// A snapshot was being put in force when the process ended, and that cannot be finished.
    #[error("cannot finish putting a received snapshot in force in {}", path.display())]
    Install {
        /// The store's directory.
        path: PathBuf,
        /// What is wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The state in the store does not open.
    #[error("cannot open the state in {}", path.display())]
    State {
        /// The store's directory.
        path: PathBuf,
        /// What is wrong.
        source: Box<tally_apply::OpenError>,
    },
    /// The log belongs to another cluster or member.
    #[error(
        "the log in {} belongs to cluster {found_cluster:x} member {found_member:x}, but this is cluster \
         {expected_cluster:x} member {expected_member:x}: check the name, the initial cluster and its token, and the \
         data directory", path.display()
    )]
    Identity {
        /// The log's directory.
        path: PathBuf,
        /// The cluster it belongs to.
        found_cluster: u64,
        /// The member it belongs to.
        found_member: u64,
        /// The cluster configured.
        expected_cluster: u64,
        /// The member configured.
        expected_member: u64,
    },
    /// There is a store but no log: what was acknowledged since the store was last durable, and the vote, are gone.
    #[error(
        "there is a store in {} but no log in {}: if the log is in another directory, name that one and nothing is lost \
         (a --wal-dir that was given before and is not now, or the other way round, looks the same); else the log was \
         removed, and with it acknowledged entries and this member's vote: put it back, or rebuild this member from the \
         others or from a backup",
        db.display(), wal.display()
    )]
    LogWiped {
        /// The store's directory.
        db: PathBuf,
        /// Where the log should be.
        wal: PathBuf,
    },
    /// There is a log but no store, and the log does not reach back to the beginning.
    #[error(
        "there is a log in {} but no store in {}, and the log begins only after index {purged}: the state before \
         cannot be built again; put the store back, or rebuild this member from the others or from a backup",
        wal.display(), db.display()
    )]
    StoreWiped {
        /// Where the store should be.
        db: PathBuf,
        /// The log's directory.
        wal: PathBuf,
        /// The last index that the log no longer holds.
        purged: u64,
    },
    /// The store has applied entries that the log does not hold.
    #[error(
        "the store has applied index {applied}, but the log in {} ends at {last}: the log was replaced by an older copy \
         or cut; put the right one back, or rebuild this member from the others or from a backup", wal.display()
    )]
    StoreAhead {
        /// The log's directory.
        wal: PathBuf,
        /// The last index applied.
        applied: u64,
        /// The last index in the log.
        last: u64,
    },
    /// The store is older than what the log begins with.
    #[error(
        "the store has applied up to index {applied}, but the log in {} begins only after {purged}: the store was \
         replaced by an older copy; put the right one back, or rebuild this member from the others or from a backup",
        wal.display()
    )]
    StoreBehind {
        /// The log's directory.
        wal: PathBuf,
        /// The last index applied.
        applied: u64,
        /// The last index that the log no longer holds.
        purged: u64,
    },
    /// Store and log have different entries at the same index.
    #[error(
        "the store has applied index {index} of term {applied_term}, but in the log in {} that entry is of term \
         {log_term}: they do not belong together; rebuild this member from the others or from a backup", wal.display()
    )]
    Diverged {
        /// The log's directory.
        wal: PathBuf,
        /// The index.
        index: u64,
        /// The term in the store.
        applied_term: u64,
        /// The term in the log.
        log_term: u64,
    },
}

/// Opens a member's data directory, makes what is missing in a new one, and refuses what does not belong together.
///
/// Cost: reads the whole log and the keys of the whole store.
///
/// # Errors
/// [`OpenError`] says what is wrong with which file, and what to do.
pub fn open_storage(options: StorageOptions) -> Result<Storage, OpenError> {
    let member_dir = options.data_dir.join("member");
    make_directories(&options.data_dir, &member_dir)?;
    let lock = lock_directory(&member_dir.join("LOCK"))?;
    let (wal_dir, db_dir) = (options.wal_path(), db_dir(&options.data_dir));
    delete_leftovers(&incoming_dir(&db_dir))?;

    let wal_error = |source| OpenError::Wal { path: wal_dir.clone(), source: Box::new(source) };
    let wal_exists = Wal::exists(options.wal_fs.as_ref(), &wal_dir).map_err(wal_error)?;
    let db_error = |source| OpenError::Backend { path: db_dir.clone(), source: Box::new(source) };
    let db_exists = Backend::exists(&db_dir).map_err(db_error)?;
    if db_exists && !wal_exists {
        return Err(OpenError::LogWiped { db: db_dir, wal: wal_dir });
    }
    let metadata = (!wal_exists).then_some(Metadata {
        format: Metadata::FORMAT,
        cluster_id: options.cluster_id,
        member_id: options.member_id,
        directory_uuid: options.new_directory_uuid,
    });
    // The leader's limit for what is proposed may be higher than this member's: whatever it is, its entries are taken.
    let entry_bytes_max = options.wal.entry_bytes_max.max(COMMAND_BYTES_MAX);
    let wal_config = tally_wal::Config { metadata, entry_bytes_max, ..options.wal.clone() };
    let (mut wal, mut recovered) = Wal::open(Arc::clone(&options.wal_fs), &wal_dir, wal_config).map_err(wal_error)?;
    check_identity(&wal_dir, &recovered.metadata, options.cluster_id, options.member_id)?;
    if let Some(torn) = &recovered.torn {
        tracing::warn!(%torn, "cut the end of the log: an unfinished write, none of it acknowledged");
    }
    if !db_exists && let Some(purged) = recovered.purged {
        return Err(OpenError::StoreWiped { db: db_dir, wal: wal_dir, purged: purged.index.get() });
    }

    let Metadata { cluster_id, member_id, directory_uuid, .. } = recovered.metadata;
    let mut backend_config = options.backend;
    backend_config.path.clone_from(&db_dir);
    backend_config.identity = Identity { cluster_id, member_id, directory_uuid };
    let backend = Backend::open(backend_config).map_err(db_error)?;
    finish_install(&db_dir, &backend.applied(), &mut wal, &mut recovered)
        .map_err(|source| OpenError::Install { path: db_dir.clone(), source: Box::new(source) })?;
    check_positions(&wal_dir, &wal, &recovered, &backend.applied())?;
    let (applier, reads) = Applier::open(backend.clone(), options.kv.clone())
        .map_err(|source| OpenError::State { path: db_dir, source: Box::new(source) })?;
    Ok(Storage { wal, recovered, backend, applier, reads, kv: options.kv, lock })
}

/// Whose data a directory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredIdentity {
    /// The cluster.
    pub cluster_id: u64,
    /// The member.
    pub member_id: u64,
    /// The directory, which is published with the member's name, so that another one is never taken for it.
    pub directory_uuid: [u8; 16],
}

/// Whose data the directory of `options` holds; `None` if it is new. The ids in `options` are not looked at, and
/// nothing is changed.
///
/// # Errors
/// [`OpenError`] if the log cannot be read, or if there is a store without one.
pub fn stored_identity(options: &StorageOptions) -> Result<Option<StoredIdentity>, OpenError> {
    let (wal, db) = (options.wal_path(), db_dir(&options.data_dir));
    let wal_error = |source| OpenError::Wal { path: wal.clone(), source: Box::new(source) };
    if !Wal::exists(options.wal_fs.as_ref(), &wal).map_err(wal_error)? {
        let db_error = |source| OpenError::Backend { path: db.clone(), source: Box::new(source) };
        return if Backend::exists(&db).map_err(db_error)? { Err(OpenError::LogWiped { db, wal }) } else { Ok(None) };
    }
    let scan_error = |source| OpenError::Scan { path: wal.clone(), source: Box::new(source) };
    let only_metadata = ScanOptions { types: vec![RecordType::Metadata], ..ScanOptions::default() };
    let mut records = dump::scan_on(Arc::clone(&options.wal_fs), &wal, only_metadata).map_err(scan_error)?;
    match records.next().transpose().map_err(scan_error)?.map(|record| record.view) {
        Some(RecordView::Metadata(metadata)) => Ok(Some(StoredIdentity {
            cluster_id: metadata.cluster_id,
            member_id: metadata.member_id,
            directory_uuid: metadata.directory_uuid,
        })),
        // Begun, and not one record of it finished: opening it will say more, or begin it anew.
        Some(_) | None => Ok(None),
    }
}

fn check_identity(wal_dir: &Path, found: &Metadata, cluster_id: u64, member_id: u64) -> Result<(), OpenError> {
    if (found.cluster_id, found.member_id) == (cluster_id, member_id) {
        return Ok(());
    }
    Err(OpenError::Identity {
        path: wal_dir.to_path_buf(),
        found_cluster: found.cluster_id,
        found_member: found.member_id,
        expected_cluster: cluster_id,
        expected_member: member_id,
    })
}

/// The store must stand somewhere in the log: not past its end, not before its beginning, and on the same entry.
fn check_positions(wal_dir: &Path, wal: &Wal, recovered: &Recovered, applied: &Applied) -> Result<(), OpenError> {
    let wal_dir = || wal_dir.to_path_buf();
    let end = recovered.last.max(recovered.purged);
    let last = end.map_or(0, |position| position.index.get());
    let purged = recovered.purged.map_or(0, |position| position.index.get());
    if applied.index > last {
        return Err(OpenError::StoreAhead { wal: wal_dir(), applied: applied.index, last });
    }
    if applied.index < purged {
        return Err(OpenError::StoreBehind { wal: wal_dir(), applied: applied.index, purged });
    }
    match term_at(wal, recovered, applied.index) {
        Some(log_term) if log_term != applied.term => {
            Err(OpenError::Diverged { wal: wal_dir(), index: applied.index, applied_term: applied.term, log_term })
        }
        Some(_) | None => Ok(()),
    }
}

fn term_at(wal: &Wal, recovered: &Recovered, index: u64) -> Option<u64> {
    match recovered.purged {
        Some(LogPosition { index: purged, term }) if purged.get() == index => Some(term),
        Some(_) | None => wal.reader().term_of(index.into()),
    }
}

fn make_directories(data_dir: &Path, member_dir: &Path) -> Result<(), OpenError> {
    const OWNER_ONLY: u32 = 0o700;
    let made = |action, path: &Path| {
        let path = path.to_path_buf();
        move |source| OpenError::Directory { action, path, source }
    };
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(OWNER_ONLY);
    builder.create(data_dir).map_err(made("create", data_dir))?;
    builder.create(member_dir).map_err(made("create", member_dir))?;
    // What is made inside is durable only if the names that lead there are.
    let parent = data_dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    for dir in [data_dir, parent] {
        let synced = File::open(dir).and_then(|dir| dir.sync_all());
        match synced {
            // The directory above may be nobody's business of ours: it was there, or it could not have been made in.
            Err(error) if dir == parent && error.kind() == io::ErrorKind::PermissionDenied => {}
            other => other.map_err(made("sync", dir))?,
        }
    }
    Ok(())
}

/// A snapshot that was being received when the process ended is never gone on with.
fn delete_leftovers(incoming: &Path) -> Result<(), OpenError> {
    match std::fs::remove_dir_all(incoming) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(OpenError::Directory { action: "delete", path: incoming.to_path_buf(), source })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn lock_directory(path: &Path) -> Result<DirectoryLock, OpenError> {
    let failed = |action| move |source| OpenError::Directory { action, path: path.to_path_buf(), source };
    let file = File::options().create(true).truncate(false).write(true).open(path).map_err(failed("create"))?;
    match file.try_lock() {
        Ok(()) => Ok(DirectoryLock { _file: file }),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked { path: path.to_path_buf() }),
        Err(TryLockError::Error(source)) => Err(failed("lock")(source)),
    }
}
