//! Files ready to become segments: recycled ones, else new ones filled with zeros by a thread of its own.
//!
//! A sync of blocks that have been written before takes half the time of one into blocks that are only reserved, so a
//! segment is never used before every block of it was written once. The thread starts when the current segment is half
//! full; the flusher waits for it only if a segment fills faster than the next one can be zeroed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::error::SyncError;
use crate::fs::{Fs, FsFile};
use crate::queue::lock;
use crate::segment::{RECYCLED, TRAILER, spare_name};
use crate::view::SegmentFile;

const ZEROS: usize = 1 << 20;

/// A file of full length that is not a segment at the moment.
#[derive(Debug)]
pub(crate) struct Spare {
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn FsFile>,
}

/// Hands out spare files. Dropping it stops its thread.
#[derive(Debug)]
pub(crate) struct Allocator {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    segment_bytes: u64,
    kept_max: usize,
    pool: Mutex<Pool>,
    bell: Condvar,
}

#[derive(Debug)]
struct Pool {
    ready: Vec<Spare>,
    /// Names of spares are never used twice.
    next_name: u64,
    wanted: bool,
    /// The thread is making a spare.
    busy: bool,
    /// The thread could not make one: it does not try again before somebody else could, so that a full disk is not filled
    /// up again and again beside the log.
    failed: bool,
    stop: bool,
}

impl Allocator {
    /// Starts with the spares found in the directory; `next_name` is above all their numbers.
    pub(crate) fn start(
        fs: Arc<dyn Fs>,
        dir: &Path,
        segment_bytes: u64,
        kept_max: usize,
        ready: Vec<Spare>,
        next_name: u64,
    ) -> std::io::Result<Allocator> {
        let pool = Mutex::new(Pool { ready, next_name, wanted: false, busy: false, failed: false, stop: false });
        let shared = Shared { fs, dir: dir.to_owned(), segment_bytes, kept_max, pool, bell: Condvar::new() };
        let shared = Arc::new(shared);
        let worker = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("wal-allocator".to_owned()).spawn(move || worker.run())?;
        Ok(Allocator { shared, thread: Some(thread) })
    }

    /// Asks for a spare to be made ready unless there is one.
    pub(crate) fn prepare(&self) {
        let mut pool = lock(&self.shared.pool);
        if pool.ready.is_empty() && !pool.wanted && !pool.busy && !pool.failed {
            pool.wanted = true;
            self.shared.bell.notify_all();
        }
    }

    /// A spare, made here and now if there is no other way.
    pub(crate) fn take(&self) -> Result<Spare, SyncError> {
        let mut pool = lock(&self.shared.pool);
        loop {
            if let Some(spare) = pool.ready.pop() {
                return Ok(spare);
            }
            if !pool.busy {
                pool.wanted = false;
                break;
            }
            pool = self.shared.bell.wait(pool).unwrap_or_else(PoisonError::into_inner);
        }
        let name = pool.name();
        drop(pool);
        let made = self.shared.make(&name);
        lock(&self.shared.pool).failed = made.is_err();
        made
    }

    /// Turns segments that nobody needs or reads into spares, or removes them.
    pub(crate) fn recycle(&self, segments: Vec<SegmentFile>) -> Result<(), SyncError> {
        let Shared { fs, dir, segment_bytes, kept_max, .. } = &*self.shared;
        let mut spares = Vec::new();
        for SegmentFile { name, file, .. } in segments {
            let path = dir.join(&*name);
            let length = file.len().map_err(SyncError::io("measure", &path))?;
            // A reader that holds the file must go on reading the old content, so such a file gets no new one. Nobody
            // can get hold of it any more, so the count only goes down.
            let unread = Arc::strong_count(&file) == 1;
            let room = lock(&self.shared.pool).ready.len() + spares.len() < *kept_max;
            if !(unread && room && length == *segment_bytes) {
                fs.remove(&path).map_err(SyncError::io("remove", &path))?;
                continue;
            }
            // Durable before the file can be found as a spare: one without the mark must have nothing but zeros.
            file.write_at(&RECYCLED, length - TRAILER).map_err(SyncError::io("write", &path))?;
            file.sync_data().map_err(SyncError::io("sync", &path))?;
            let spare = dir.join(lock(&self.shared.pool).name());
            fs.rename(&path, &spare).map_err(SyncError::io("rename", &path))?;
            spares.push(Spare { path: spare, file });
        }
        // Only now can a spare be reused: before, a crash could bring its old name back.
        fs.sync_dir(dir).map_err(SyncError::io("sync directory", dir))?;
        lock(&self.shared.pool).ready.append(&mut spares);
        Ok(())
    }

    fn stop(&mut self) {
        lock(&self.shared.pool).stop = true;
        self.shared.bell.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic there has nothing to add: `take` makes spares itself then.
            let _ = thread.join();
        }
    }
}

impl Drop for Allocator {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Pool {
    fn name(&mut self) -> String {
        let name = spare_name(self.next_name);
        self.next_name += 1;
        name
    }
}

/// Clears `busy` even if making a spare panics, so that nobody waits for ever.
struct Busy<'a>(&'a Shared);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        lock(&self.0.pool).busy = false;
        self.0.bell.notify_all();
    }
}

impl Shared {
    fn run(&self) {
        loop {
            let mut pool = lock(&self.pool);
            while !pool.stop && !pool.wanted {
                pool = self.bell.wait(pool).unwrap_or_else(PoisonError::into_inner);
            }
            if pool.stop {
                return;
            }
            pool.wanted = false;
            pool.busy = true;
            let name = pool.name();
            drop(pool);
            let busy = Busy(self);
            // An error here is not lost: `take` finds no spare, tries itself, and reports what it meets.
            let made = self.make(&name);
            let mut pool = lock(&self.pool);
            pool.failed = made.is_err();
            pool.ready.extend(made);
            drop(pool);
            drop(busy);
        }
    }

    fn make(&self, name: &str) -> Result<Spare, SyncError> {
        let path = self.dir.join(name);
        match zero_filled(&*self.fs, &path, self.segment_bytes) {
            Ok(file) => Ok(Spare { path, file }),
            Err(error) => {
                // Half a spare only takes room on a disk that is perhaps full; if it stays, opening removes it.
                let _ = self.fs.remove(&path);
                Err(error)
            }
        }
    }
}

/// A new file of `length` zero bytes, every block written and durable.
pub(crate) fn zero_filled(fs: &dyn Fs, path: &Path, length: u64) -> Result<Arc<dyn FsFile>, SyncError> {
    let file = fs.create(path).map_err(SyncError::io("create", path))?;
    let zeros = vec![0; ZEROS];
    let mut offset = 0;
    while offset < length {
        let size = usize::try_from(length - offset).unwrap_or(ZEROS).min(ZEROS);
        file.write_at(&zeros[..size], offset).map_err(SyncError::io("allocate", path))?;
        // In small steps, so that the syncs of the log do not queue behind a big one.
        file.sync_data().map_err(SyncError::io("sync", path))?;
        offset += size as u64;
    }
    Ok(file)
}
