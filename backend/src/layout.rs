//! The directory of a backend: lock, pointer, generations, leftovers. Every change of names goes through here.

use std::collections::hash_map::RandomState;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, Hasher};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{FileError, OpenError};
use crate::failpoint::{Failpoints, Step};
use crate::pointer::Pointer;

/// Names the live generation. Its presence is what makes a directory a backend.
const POINTER: &str = "LIVE";
/// Names the first generation while it is being made; without it, data without a pointer is never deleted.
const MARKER: &str = "CREATING";
/// Held with an exclusive lock while the directory is open.
const LOCK: &str = "LOCK";
/// What the names of generations begin with.
const GENERATION: &str = "db-";
/// What the names of half-written files and directories end with.
pub(crate) const UNFINISHED: &str = ".tmp";

/// The exclusive right to a directory. Released when the last holder is dropped.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    /// Two snapshots are never installed at the same time.
    staging: AtomicBool,
    _lock: File,
}

/// Whether `path` holds a backend whose making was completed. Whatever keeps one from looking is an error: what is there and
/// cannot be seen must not be taken for lost.
pub(crate) fn exists(path: &Path) -> Result<bool, FileError> {
    let pointer = path.join(POINTER);
    pointer.try_exists().map_err(FileError::on("look for", &pointer))
}

impl Directory {
    /// Makes the directory when it is not there, and locks it.
    pub(crate) fn lock(path: &Path) -> Result<Arc<Directory>, OpenError> {
        // As long as nothing was completed in it, its name may not be durable either, whoever made it.
        if !exists(path)? {
            fs::create_dir_all(path).map_err(FileError::on("create", path))?;
            if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                sync_directory(parent)?;
            }
        }
        let file = path.join(LOCK);
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&file);
        let lock = lock.map_err(FileError::on("open", &file))?;
        match lock.try_lock() {
            Ok(()) => {
                Ok(Arc::new(Directory { path: path.to_path_buf(), staging: AtomicBool::new(false), _lock: lock }))
            }
            Err(TryLockError::WouldBlock) => Err(OpenError::Locked { path: path.to_path_buf() }),
            Err(TryLockError::Error(source)) => Err(FileError { action: "lock", path: file, source }.into()),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The pointer, or `None` where there is no backend yet.
    pub(crate) fn pointer(&self) -> Result<Option<Pointer>, OpenError> {
        let path = self.path.join(POINTER);
        match fs::read(&path) {
            Ok(text) => Pointer::decode(&path, &text).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(FileError { action: "read", path, source: error }.into()),
        }
    }

    /// Puts a pointer in force: written beside, synced, renamed over the old one, directory synced.
    pub(crate) fn switch(&self, pointer: &Pointer, failpoints: &Failpoints) -> Result<(), FileError> {
        let path = self.path.join(POINTER);
        let unfinished = self.path.join(format!("{POINTER}{UNFINISHED}"));
        write_durably(&unfinished, pointer.encode().as_bytes())?;
        failpoints.pass(Step::PointerWritten, &self.path).map_err(FileError::on("switch", &path))?;
        fs::rename(&unfinished, &path).map_err(FileError::on("replace", &path))?;
        sync_directory(&self.path)?;
        failpoints.pass(Step::PointerSwitched, &self.path).map_err(FileError::on("switch", &path))
    }

    /// Makes a new, empty generation. While there is no pointer, a marker says that it may be thrown away.
    pub(crate) fn make_generation(&self, first: bool, failpoints: &Failpoints) -> Result<Generation, FileError> {
        let name = format!("{GENERATION}{:016x}", unique());
        let path = self.path.join(&name);
        let action = "make generation";
        if first {
            write_durably(&self.path.join(MARKER), name.as_bytes())?;
            sync_directory(&self.path)?;
            failpoints.pass(Step::Marked, &self.path).map_err(FileError::on(action, &path))?;
        }
        fs::create_dir(&path).map_err(FileError::on(action, &path))?;
        let generation = Generation { path, name, doomed: AtomicBool::new(true) };
        sync_directory(&self.path)?;
        failpoints.pass(Step::DirectoryMade, &self.path).map_err(FileError::on(action, &generation.path))?;
        Ok(generation)
    }

    /// The generation that a pointer names.
    pub(crate) fn generation(&self, pointer: &Pointer) -> Generation {
        let name = pointer.generation.clone();
        Generation { path: self.path.join(&name), name, doomed: AtomicBool::new(false) }
    }

    /// Removes the marker: the pointer is in force.
    pub(crate) fn unmark(&self, failpoints: &Failpoints) -> Result<(), FileError> {
        let marker = self.path.join(MARKER);
        remove(&marker)?;
        sync_directory(&self.path)?;
        failpoints.pass(Step::Unmarked, &self.path).map_err(FileError::on("remove", &marker))
    }

    /// Deletes what crashes have left: half-written files, and every generation but `live`. Nothing of it is reused.
    ///
    /// Without a pointer, only the generation that the marker names was never in force. Any other one is data, and
    /// deleting it could not be undone: refused.
    pub(crate) fn clean(&self, live: Option<&str>) -> Result<(), OpenError> {
        let marked = match fs::read_to_string(self.path.join(MARKER)) {
            Ok(name) => Some(name),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(FileError { action: "read", path: self.path.join(MARKER), source }.into()),
        };
        let names = list(&self.path)?;
        if live.is_none() {
            let stray = names.iter().find(|name| is_generation_name(name) && marked.as_ref() != Some(*name));
            if let Some(stray) = stray {
                return Err(OpenError::PointerMissing { path: self.path.clone(), generation: stray.clone() });
            }
        }
        for name in names {
            let leftover = name.ends_with(UNFINISHED) || (is_generation_name(&name) && Some(name.as_str()) != live);
            if leftover {
                remove(&self.path.join(name))?;
            }
        }
        if marked.is_some() {
            remove(&self.path.join(MARKER))?;
        }
        Ok(sync_directory(&self.path)?)
    }

    /// Begins staging, unless somebody else is at it.
    pub(crate) fn begin_staging(self: &Arc<Directory>) -> Option<Staging> {
        let free = self.staging.compare_exchange(false, true, Ordering::AcqRel, Ordering::Acquire).is_ok();
        free.then(|| Staging(Arc::clone(self)))
    }
}

/// The exclusive right to stage a snapshot.
#[derive(Debug)]
pub(crate) struct Staging(Arc<Directory>);

impl Drop for Staging {
    fn drop(&mut self) {
        self.0.staging.store(false, Ordering::Release);
    }
}

/// One generation of the data. A doomed one is deleted when the last user lets go of it.
#[derive(Debug)]
pub(crate) struct Generation {
    path: PathBuf,
    name: String,
    doomed: AtomicBool,
}

impl Generation {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn doom(&self, doomed: bool) {
        self.doomed.store(doomed, Ordering::Release);
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if self.doomed.load(Ordering::Acquire) {
            // Deleted by the next open where this fails: a leftover is never reused.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Whether `name` is that of a generation, and so ours to delete.
pub(crate) fn is_generation_name(name: &str) -> bool {
    let digits = name.strip_prefix(GENERATION);
    digits.is_some_and(|digits| digits.len() == 16 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

/// A number that has not been used before: the seed that the standard library draws from the operating system.
pub(crate) fn unique() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// The names in a directory, sorted.
pub(crate) fn list(directory: &Path) -> Result<Vec<String>, FileError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(FileError::on("list", directory))? {
        let entry = entry.map_err(FileError::on("list", directory))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Removes a file or a directory with all that is in it. Absent is as good as removed.
pub(crate) fn remove(path: &Path) -> Result<(), FileError> {
    let result = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(FileError::on("remove", path)),
    }
}

/// Writes a whole file and makes its contents durable. The name is durable once the directory has been synced.
pub(crate) fn write_durably(path: &Path, contents: &[u8]) -> Result<(), FileError> {
    let mut file = File::create(path).map_err(FileError::on("create", path))?;
    file.write_all(contents).map_err(FileError::on("write", path))?;
    file.sync_all().map_err(FileError::on("sync", path))
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> Result<(), FileError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(FileError::on("sync", path))
}

/// Makes the contents of a file durable.
pub(crate) fn sync_file(path: &Path) -> Result<(), FileError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(FileError::on("sync", path))
}
