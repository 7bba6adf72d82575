//! A file system in memory that forgets, tears and fails on demand, the same way for the same seed.
//!
//! It keeps apart what was written and what was made durable. When the power goes ([`MemFs::crash`], or at a chosen
//! operation by [`MemFs::crash_at`]), every operation fails from then on, and [`MemFs::reopen`] shows what a machine finds
//! after that: all that was synced; of the file bytes that were not, depending on the seed, nothing, everything, what was
//! written before some byte, or any subset of the 512-byte sectors, so also later writes without earlier ones; and of
//! the creates, renames and removes since the last directory sync, a prefix.
//!
//! ```
//! use std::path::Path;
//! use tally_wal::{Fs, memfs::MemFs};
//!
//! let fs = MemFs::new(1);
//! let file = fs.create(Path::new("/d/a"))?;
//! fs.sync_dir(Path::new("/d"))?;
//! file.write_at(b"kept", 0)?;
//! file.sync_data()?;
//! fs.crash();
//! assert!(file.sync_data().is_err());
//! assert_eq!(fs.reopen().contents(Path::new("/d/a")).unwrap(), b"kept");
//! # Ok::<(), std::io::Error>(())
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::fs::{Access, DirLock, Fs, FsFile};
use crate::queue::lock;

const SECTOR: usize = 512;

/// How an operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `EIO`.
    Io,
    /// `ENOSPC`.
    NoSpace,
    /// `EROFS`.
    ReadOnly,
}

/// The file system. Clones are the same one.
#[derive(Clone, Debug)]
pub struct MemFs(Arc<Mutex<Disk>>);

#[derive(Debug)]
struct Disk {
    random: Random,
    ops: u64,
    fail: BTreeMap<u64, Fault>,
    crash_at: Option<u64>,
    dead: bool,
    files: Vec<Inode>,
    /// The names as they are, the names as they would be found, and what happened in between, by directory.
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    journal: Vec<(PathBuf, NameChange)>,
    locks: BTreeSet<PathBuf>,
}

#[derive(Clone, Debug, Default)]
struct Inode {
    data: Vec<u8>,
    durable: Vec<u8>,
    /// Writes since the last sync, in order.
    dirty: Vec<(usize, Vec<u8>)>,
}

#[derive(Clone, Debug)]
enum NameChange {
    Link(PathBuf, usize),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf),
}

#[derive(Debug)]
struct MemFile {
    disk: Arc<Mutex<Disk>>,
    file: usize,
    access: Access,
}

#[derive(Debug)]
struct MemLock {
    disk: Arc<Mutex<Disk>>,
    path: PathBuf,
}

/// SplitMix64: small, and the same everywhere.
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to `max`, both included.
    fn up_to(&mut self, max: usize) -> usize {
        usize::try_from(self.next() % (max as u64 + 1)).unwrap_or(max)
    }
}

impl MemFs {
    /// An empty file system whose accidents are drawn from `seed`.
    pub fn new(seed: u64) -> MemFs {
        MemFs::with(Random(seed), Vec::new(), BTreeMap::new())
    }

    fn with(random: Random, files: Vec<Inode>, names: BTreeMap<PathBuf, usize>) -> MemFs {
        MemFs(Arc::new(Mutex::new(Disk {
            random,
            ops: 0,
            fail: BTreeMap::new(),
            crash_at: None,
            dead: false,
            files,
            durable_names: names.clone(),
            names,
            journal: Vec::new(),
            locks: BTreeSet::new(),
        })))
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        lock(&self.0)
    }

    /// How many operations there were so far, reads included. The next one has this number.
    pub fn ops(&self) -> u64 {
        self.disk().ops
    }

    /// Lets operation number `n` fail. A write then has written a part; what a failed sync should have made durable never
    /// becomes so, although it can still be read (as on Linux).
    pub fn fail_nth(&self, n: u64, fault: Fault) {
        self.disk().fail.insert(n, fault);
    }

    /// Cuts the power during operation number `n`: it may be done, partly done or not done, and fails like all after it.
    pub fn crash_at(&self, n: u64) {
        self.disk().crash_at = Some(n);
    }

    /// Cuts the power now.
    pub fn crash(&self) {
        self.disk().dead = true;
    }

    /// Whether the power is cut.
    pub fn crashed(&self) -> bool {
        self.disk().dead
    }

    /// The same disk after the power came back. This one is crashed, if it was not before.
    #[must_use]
    pub fn reopen(&self) -> MemFs {
        let mut disk = self.disk();
        disk.dead = true;
        let Disk { random, files, durable_names, journal, .. } = &mut *disk;
        let mut names = durable_names.clone();
        let survive = random.up_to(journal.len());
        for (_, change) in journal.iter().take(survive) {
            change.apply(&mut names);
        }
        let files = files.iter().map(|inode| inode.survivor(random)).collect();
        MemFs::with(Random(random.next()), files, names)
    }

    /// The same disk after the process was killed and started again, with the power on: everything written is there, but
    /// not durable before it is synced. This one fails from now on.
    #[must_use]
    pub fn restart(&self) -> MemFs {
        let mut disk = self.disk();
        disk.dead = true;
        let fresh = MemFs::with(Random(disk.random.next()), disk.files.clone(), disk.durable_names.clone());
        let mut new = fresh.disk();
        new.names.clone_from(&disk.names);
        new.journal.clone_from(&disk.journal);
        drop(new);
        fresh
    }

    /// The content of a file as it is now; `None` if there is none. Not counted as an operation.
    pub fn contents(&self, path: &Path) -> Option<Vec<u8>> {
        let disk = self.disk();
        disk.names.get(path).map(|file| disk.files[*file].data.clone())
    }

    /// Replaces the content of a file, durably; makes the file where there is none. Not counted as an operation.
    pub fn set_contents(&self, path: &Path, bytes: &[u8]) {
        let mut disk = self.disk();
        let inode = Inode { data: bytes.to_vec(), durable: bytes.to_vec(), dirty: Vec::new() };
        match disk.names.get(path).copied() {
            Some(file) => disk.files[file] = inode,
            None => {
                let file = disk.files.len();
                disk.files.push(inode);
                disk.names.insert(path.to_owned(), file);
                disk.durable_names.insert(path.to_owned(), file);
            }
        }
    }
}

/// What an operation must do about its number.
enum Fate {
    /// Do it.
    Proceed,
    /// Do some of it, then fail.
    Fail(io::Error),
    /// The power goes: do it, or some of it, or nothing; then fail.
    Crash,
}

impl Fate {
    fn error(&self) -> io::Error {
        match self {
            Fate::Proceed | Fate::Crash => dead(),
            Fate::Fail(error) => io::Error::new(error.kind(), error.to_string()),
        }
    }
}

fn dead() -> io::Error {
    io::Error::other("the power is cut")
}

impl Fault {
    fn error(self) -> io::Error {
        match self {
            Fault::Io => io::Error::other("input/output error (injected)"),
            Fault::NoSpace => io::Error::new(io::ErrorKind::StorageFull, "no space left on device (injected)"),
            Fault::ReadOnly => io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "read-only file system (injected)"),
        }
    }
}

impl Disk {
    fn fate(&mut self) -> io::Result<Fate> {
        if self.dead {
            return Err(dead());
        }
        let number = self.ops;
        self.ops += 1;
        if self.crash_at.is_some_and(|at| number >= at) {
            self.dead = true;
            return Ok(Fate::Crash);
        }
        Ok(match self.fail.remove(&number) {
            Some(fault) => Fate::Fail(fault.error()),
            None => Fate::Proceed,
        })
    }

    /// For operations that leave no trace when they fail.
    fn proceed(&mut self) -> io::Result<()> {
        match self.fate()? {
            Fate::Proceed => Ok(()),
            fate @ (Fate::Fail(_) | Fate::Crash) => Err(fate.error()),
        }
    }

    /// Changes a name. The change is there after a crash only if that came later than the change, or in its middle.
    fn change(&mut self, change: NameChange) -> io::Result<()> {
        let fate = self.fate()?;
        if !matches!(fate, Fate::Fail(_)) {
            change.apply(&mut self.names);
            self.journal.push((change.dir(), change));
        }
        match fate {
            Fate::Proceed => Ok(()),
            Fate::Fail(_) | Fate::Crash => Err(fate.error()),
        }
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            NameChange::Link(path, file) => drop(names.insert(path.clone(), *file)),
            NameChange::Unlink(path) => drop(names.remove(path)),
            NameChange::Rename(from, to) => {
                if let Some(file) = names.remove(from) {
                    names.insert(to.clone(), file);
                }
            }
        }
    }

    fn dir(&self) -> PathBuf {
        let (NameChange::Link(path, _) | NameChange::Unlink(path) | NameChange::Rename(path, _)) = self;
        path.parent().unwrap_or(Path::new("")).to_owned()
    }
}

impl Inode {
    fn write(&mut self, bytes: &[u8], offset: usize) {
        put(&mut self.data, bytes, offset);
        self.dirty.push((offset, bytes.to_vec()));
    }

    fn sync(&mut self) {
        for (offset, bytes) in std::mem::take(&mut self.dirty) {
            put(&mut self.durable, &bytes, offset);
        }
    }

    /// What is left of the file after a power cut.
    fn survivor(&self, random: &mut Random) -> Inode {
        let mut data = self.durable.clone();
        match random.up_to(3) {
            0 => {}
            1 => self.dirty.iter().for_each(|(offset, bytes)| put(&mut data, bytes, *offset)),
            2 => {
                let total = self.dirty.iter().map(|(_, bytes)| bytes.len()).sum();
                let mut left = random.up_to(total);
                for (offset, bytes) in &self.dirty {
                    let kept = left.min(bytes.len());
                    put(&mut data, &bytes[..kept], *offset);
                    left -= kept;
                }
            }
            _ => self.surviving_sectors(&mut data, random),
        }
        Inode { durable: data.clone(), data, dirty: Vec::new() }
    }

    fn surviving_sectors(&self, data: &mut Vec<u8>, random: &mut Random) {
        for (offset, bytes) in &self.dirty {
            let mut at = 0;
            while at < bytes.len() {
                let next = ((offset + at) / SECTOR + 1) * SECTOR - offset;
                let piece = &bytes[at..next.min(bytes.len())];
                if random.up_to(1) == 0 {
                    put(data, piece, offset + at);
                }
                at = next;
            }
        }
    }
}

fn put(data: &mut Vec<u8>, bytes: &[u8], offset: usize) {
    if bytes.is_empty() {
        return;
    }
    if data.len() < offset + bytes.len() {
        data.resize(offset + bytes.len(), 0);
    }
    data[offset..offset + bytes.len()].copy_from_slice(bytes);
}

fn to_usize(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

impl Fs for MemFs {
    fn create_dir_all(&self, _dir: &Path) -> io::Result<()> {
        self.disk().proceed()
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut disk = self.disk();
        disk.proceed()?;
        let inside = disk.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect())
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn FsFile>> {
        let mut disk = self.disk();
        disk.proceed()?;
        let file = disk.find(path)?;
        Ok(Arc::new(MemFile { disk: Arc::clone(&self.0), file, access }))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn FsFile>> {
        let mut disk = self.disk();
        if disk.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = disk.files.len();
        disk.files.push(Inode::default());
        disk.change(NameChange::Link(path.to_owned(), file))?;
        Ok(Arc::new(MemFile { disk: Arc::clone(&self.0), file, access: Access::Write }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.find(from)?;
        disk.change(NameChange::Rename(from.to_owned(), to.to_owned()))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.find(path)?;
        disk.change(NameChange::Unlink(path.to_owned()))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        let fate = disk.fate()?;
        let done = match fate {
            Fate::Proceed => true,
            Fate::Fail(_) => false,
            Fate::Crash => disk.random.up_to(1) == 0,
        };
        if done {
            let (synced, rest) = std::mem::take(&mut disk.journal).into_iter().partition(|(at, _)| at == dir);
            let synced: Vec<(PathBuf, NameChange)> = synced;
            synced.iter().for_each(|(_, change)| change.apply(&mut disk.durable_names));
            disk.journal = rest;
        }
        match fate {
            Fate::Proceed => Ok(()),
            Fate::Fail(_) | Fate::Crash => Err(fate.error()),
        }
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn DirLock>> {
        let mut disk = self.disk();
        disk.proceed()?;
        if !disk.locks.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(MemLock { disk: Arc::clone(&self.0), path: path.to_owned() }))
    }
}

impl DirLock for MemLock {}

impl Drop for MemLock {
    fn drop(&mut self) {
        lock(&self.disk).locks.remove(&self.path);
    }
}

impl FsFile for MemFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut disk = lock(&self.disk);
        disk.proceed()?;
        let data = &disk.files[self.file].data;
        let start = to_usize(offset)?.min(data.len());
        let size = buffer.len().min(data.len() - start);
        buffer[..size].copy_from_slice(&data[start..start + size]);
        Ok(size)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let offset = to_usize(offset)?;
        let mut disk = lock(&self.disk);
        if self.access == Access::Read {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let fate = disk.fate()?;
        let size = match fate {
            // After a crash, what of it survives is drawn with everything else that is not durable.
            Fate::Proceed | Fate::Crash => bytes.len(),
            Fate::Fail(_) => disk.random.up_to(bytes.len()),
        };
        disk.files[self.file].write(&bytes[..size], offset);
        match fate {
            Fate::Proceed => Ok(()),
            Fate::Fail(_) | Fate::Crash => Err(fate.error()),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = lock(&self.disk);
        match disk.fate()? {
            Fate::Proceed => {
                disk.files[self.file].sync();
                Ok(())
            }
            fate @ Fate::Fail(_) => {
                disk.files[self.file].dirty.clear();
                Err(fate.error())
            }
            Fate::Crash => {
                if disk.random.up_to(1) == 0 {
                    disk.files[self.file].sync();
                }
                Err(dead())
            }
        }
    }

    fn len(&self) -> io::Result<u64> {
        let mut disk = lock(&self.disk);
        disk.proceed()?;
        Ok(disk.files[self.file].data.len() as u64)
    }
}
