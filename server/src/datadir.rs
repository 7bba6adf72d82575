//! The data directory before anything is opened in it: made, writable, and said to be open to others if it is.

use std::fmt;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Only the server's own user may look into its data.
const MODE: u32 = 0o700;

/// What a directory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// All data, named by `--data-dir`.
    Data,
    /// The log alone, named by `--wal-dir`.
    Log,
}

impl Purpose {
    fn flag(self) -> &'static str {
        match self {
            Purpose::Data => "--data-dir",
            Purpose::Log => "--wal-dir",
        }
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Purpose::Data => "data directory",
            Purpose::Log => "log directory",
        })
    }
}

/// Why a directory for data cannot be used.
#[derive(Debug, Error)]
pub enum DataDirError {
    /// It cannot be made.
    #[error(
        "cannot create {purpose} {path}: {source}; check {} and the permissions of its parent", purpose.flag()
    )]
    Create {
        /// What it is for.
        purpose: Purpose,
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is something else.
    #[error("{path} is not a directory; choose another {}", purpose.flag())]
    NotADirectory {
        /// What it is for.
        purpose: Purpose,
        /// The path.
        path: PathBuf,
    },
    /// Nothing can be written in it.
    #[error("{purpose} {path} is not writable: {source}; check its owner, its permissions and the mount")]
    NotWritable {
        /// What it is for.
        purpose: Purpose,
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Makes the directory, closed to other users, if it is not there, and proves that it can be written.
///
/// One that is there is left as it is: it may be somebody else's, as a mounted volume is, or be shared. Everything in it is
/// made so that nobody else can read it.
pub(crate) fn prepare(path: &Path, purpose: Purpose) -> Result<(), DataDirError> {
    let named = |source| DataDirError::Create { purpose, path: path.to_owned(), source };
    match fs::metadata(path) {
        Ok(metadata) if !metadata.is_dir() => {
            return Err(DataDirError::NotADirectory { purpose, path: path.to_owned() });
        }
        Ok(metadata) => {
            let mode = metadata.permissions().mode() & 0o777;
            if mode & 0o077 != 0 {
                let path = path.display();
                tracing::warn!(%path, mode = format!("{mode:04o}"), "others may enter the directory; 0700 keeps them out");
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // Also of those above it, whose names must survive a crash before anything inside can.
            let missing = path.ancestors().take_while(|above| !above.as_os_str().is_empty() && !above.exists()).count();
            DirBuilder::new().recursive(true).mode(MODE).create(path).map_err(named)?;
            path.ancestors().take(missing).try_for_each(sync_parent).map_err(named)?;
        }
        Err(error) => return Err(named(error)),
    }
    probe(path).map_err(|source| DataDirError::NotWritable { purpose, path: path.to_owned(), source })
}

/// Makes the name of a directory durable.
fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match fs::File::open(parent) {
        // One that may be written and not read is somebody else's; nothing more can be done.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        opened => opened?.sync_all(),
    }
}

/// Permission bits say little to root and nothing about mounts, so a file is written.
fn probe(path: &Path) -> io::Result<()> {
    let file = path.join(".writable");
    fs::write(&file, b"")?;
    fs::remove_file(&file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn directories_are_made_with_parents_closed_to_others_and_left_alone_if_they_are_there() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b");
        prepare(&path, Purpose::Data).unwrap();
        assert_eq!((mode(&path), mode(&root.path().join("a"))), (0o700, 0o700));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        prepare(&path, Purpose::Data).unwrap();
        assert_eq!(mode(&path), 0o755);
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
    }

    #[test]
    fn what_is_no_directory_or_cannot_be_made_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, b"").unwrap();
        assert!(matches!(prepare(&file, Purpose::Data), Err(DataDirError::NotADirectory { .. })));
        assert!(matches!(prepare(&file.join("below"), Purpose::Data), Err(DataDirError::Create { .. })));
        assert!(prepare(Path::new("/proc/tally"), Purpose::Data).is_err());
    }

    #[test]
    fn the_flag_that_names_the_directory_is_told() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, b"").unwrap();
        for (purpose, flag, other) in
            [(Purpose::Data, "--data-dir", "--wal-dir"), (Purpose::Log, "--wal-dir", "--data-dir")]
        {
            for path in [file.clone(), file.join("below")] {
                let error = prepare(&path, purpose).unwrap_err().to_string();
                assert!(error.contains(flag) && !error.contains(other), "{error}");
            }
        }
    }
}
