//! The mark of a snapshot that is being put in force: a small file beside the store.
//!
//! ```text
//! "TALLYINS" | version u32 = 1 | index u64 | term u64 | root u128 | CRC-32C of all before u32       big-endian
//! ```
//! It is durable before the store is switched, and means something only while the store is at exactly the position that it
//! names, and the log ends before it or has another entry there: one that was to be truncated, which may be durable later
//! than the switch. In every other case it is a leftover.

use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crc::{CRC_32_ISCSI, Crc};
use tally_backend::Applied;
use tally_wal::{LogIndex, LogPosition, Recovered, Wal};

const MAGIC: &[u8; 8] = b"TALLYINS";
const VERSION: u32 = 1;
const BYTES: usize = 48;
/// Where the index stands.
const INDEX: Range<usize> = 12..20;
const CRC32C: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// Why the mark, or what it asks for, could not be written or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MarkError {
    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The log does not take the position.
    #[error("the log cannot be told to go on behind the snapshot")]
    Append(#[from] tally_wal::AppendError),
    /// The log does not become durable.
    #[error("the log cannot be told, durably, to go on behind the snapshot")]
    Sync(#[from] tally_wal::SyncError),
}

fn path_of(store: &Path) -> PathBuf {
    store.with_file_name("installing")
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> MarkError {
    let path = path.to_path_buf();
    move |source| MarkError::File { action, path, source }
}

fn encode(applied: &Applied) -> Vec<u8> {
    let mut out = Vec::with_capacity(BYTES);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_be_bytes());
    out.extend_from_slice(&applied.index.to_be_bytes());
    out.extend_from_slice(&applied.term.to_be_bytes());
    out.extend_from_slice(&applied.root.to_be_bytes());
    out.extend_from_slice(&CRC32C.checksum(&out).to_be_bytes());
    out
}

/// Held while a mark is changed: a purge ends on another thread than that which installs, and must not take the next
/// snapshot's mark for the one it has looked at.
static CHANGING: Mutex<()> = Mutex::new(());

fn changing() -> MutexGuard<'static, ()> {
    CHANGING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Marks, durably, that the store is about to jump to this position.
pub(super) fn mark_install(store: &Path, applied: &Applied) -> Result<(), MarkError> {
    let _turn = changing();
    let path = path_of(store);
    let unfinished = path.with_extension("unfinished");
    let written = File::create(&unfinished).and_then(|mut file| {
        file.write_all(&encode(applied))?;
        file.sync_all()
    });
    written.map_err(failed("write", &unfinished))?;
    fs::rename(&unfinished, &path).map_err(failed("name", &path))?;
    sync_parent(&path)
}

/// To be called when log and store are open and before their positions are compared: if the process ended after the
/// store was switched to a snapshot and before the log knew, the log is told now. The mark is deleted in any case.
pub(crate) fn finish_install(
    store: &Path,
    applied: &Applied,
    wal: &mut Wal,
    recovered: &mut Recovered,
) -> Result<(), MarkError> {
    let path = path_of(store);
    let found = match fs::read(&path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("read", &path)(error)),
    };
    let end = recovered.last.max(recovered.purged).map_or(0, |position| position.index.get());
    let here = LogIndex::new(applied.index);
    let replaced = applied.index <= end && wal.reader().term_of(here).is_some_and(|term| term != applied.term);
    // Only the mark of the very state in force counts: the same bytes, down to its root.
    if found == encode(applied) && (applied.index > end || replaced) {
        if replaced {
            wal.truncate_after(here.get().checked_sub(1).filter(|kept| *kept > 0).map(LogIndex::new))?;
        }
        let position = LogPosition { index: LogIndex::new(applied.index), term: applied.term };
        let ticket = wal.purge_upto(position)?;
        wal.wait(ticket)?;
        recovered.purged = Some(position);
        (recovered.first, recovered.last) = (None, None);
        tracing::info!(index = applied.index, "finished installing a snapshot that was interrupted");
    }
    fs::remove_file(&path).map_err(failed("delete", &path))?;
    sync_parent(&path)
}

/// The log is durably behind `index`: the mark of a snapshot that does not reach farther has served.
pub(crate) fn unmark_install(store: &Path, index: u64) -> Result<(), MarkError> {
    let _turn = changing();
    let path = path_of(store);
    let found = match fs::read(&path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("read", &path)(error)),
    };
    let marked = found.get(INDEX).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
    if marked.is_some_and(|marked| marked > index) {
        // This purge began before that snapshot came.
        return Ok(());
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(failed("delete", &path)),
    }
}

fn sync_parent(path: &Path) -> Result<(), MarkError> {
    let parent = path.parent().unwrap_or(Path::new("."));
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(failed("sync", parent))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_purge_that_ends_before_the_snapshot_leaves_its_mark() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        let applied = Applied { index: 50, term: 3, ..Applied::default() };
        unmark_install(&store, 10).unwrap();
        mark_install(&store, &applied).unwrap();
        unmark_install(&store, 49).unwrap();
        assert_eq!(fs::read(path_of(&store)).unwrap(), encode(&applied));
        unmark_install(&store, 50).unwrap();
        assert!(!path_of(&store).exists());
    }
}
