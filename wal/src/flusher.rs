//! The one thread that writes: a group, a sync, the callbacks; then the next.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::allocator::Allocator;
use crate::config::Observer;
use crate::error::SyncError;
use crate::fs::{Fs, FsFile};
use crate::queue::{Group, Shared, Work, lock};
use crate::segment::SegmentName;
use crate::view::{SegmentFile, View};

pub(crate) struct Flusher {
    pub(crate) fs: Arc<dyn Fs>,
    pub(crate) dir: PathBuf,
    pub(crate) shared: Arc<Shared>,
    pub(crate) view: Arc<Mutex<View>>,
    pub(crate) allocator: Allocator,
    /// The segment being written.
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn FsFile>,
    pub(crate) segment_bytes: u64,
    pub(crate) tail_bytes_max: usize,
    pub(crate) sync: bool,
    pub(crate) observer: Option<Arc<dyn Observer>>,
}

impl Flusher {
    /// Runs until the log is closed or fails. Every callback has been called when this returns.
    pub(crate) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        match catch_unwind(AssertUnwindSafe(|| self.work())) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => shared.fail(error),
            Err(_) => shared.fail(SyncError::Panicked),
        }
        shared.deliver();
    }

    fn work(&mut self) -> Result<(), SyncError> {
        while let Work::Write(group) = self.shared.next_work() {
            let started = Instant::now();
            let writing = self.write(&group)?;
            let Group { bytes, entries, keep_from, offset, .. } = group;
            let (written, end) = (bytes.len() as u64, offset + bytes.len() as u64);
            let took = started.elapsed();
            // Durable from here on; only now may anybody hear of it.
            self.shared.completed(bytes);
            self.shared.deliver();
            if let Some(observer) = &self.observer {
                observer.on_write(writing);
                observer.on_sync(took, written, entries);
            }
            let evicted = lock(&self.view).evict(self.shared.durable_end(), self.tail_bytes_max);
            drop(evicted);
            if let Some(keep) = keep_from {
                self.drop_segments(keep)?;
            }
            if end > self.segment_bytes / 2 {
                self.allocator.prepare();
            }
        }
        Ok(())
    }

    /// Returns how long the write itself took, without the sync and without a new segment.
    fn write(&mut self, group: &Group) -> Result<Duration, SyncError> {
        if let Some(name) = group.segment {
            self.cut(name)?;
        }
        let started = Instant::now();
        self.file.write_at(&group.bytes, group.offset).map_err(SyncError::io("write", &self.path))?;
        let took = started.elapsed();
        if self.sync {
            self.file.sync_data().map_err(SyncError::io("sync", &self.path))?;
        }
        Ok(took)
    }

    /// Gives a spare file the name of the new segment, durably, before anything is written into it.
    ///
    /// In this order a file that still has the name of a spare never holds records of a segment to come, so spares can
    /// be used again after a crash; and everything in the old segment is durable before the new one exists.
    fn cut(&mut self, name: SegmentName) -> Result<(), SyncError> {
        let spare = self.allocator.take()?;
        let text = name.to_string();
        let path = self.dir.join(&text);
        self.fs.rename(&spare.path, &path).map_err(SyncError::io("rename", &spare.path))?;
        self.fs.sync_dir(&self.dir).map_err(SyncError::io("sync directory", &self.dir))?;
        let sequence = u32::try_from(name.sequence).expect("the encoder counts segments in 32 bits");
        let segment = SegmentFile { sequence, name: text.into(), file: Arc::clone(&spare.file) };
        lock(&self.view).add_segment(segment);
        self.file = spare.file;
        self.path = path;
        Ok(())
    }

    fn drop_segments(&self, keep: u32) -> Result<(), SyncError> {
        let segments = lock(&self.view).drop_segments(keep);
        if segments.is_empty() { Ok(()) } else { self.allocator.recycle(segments) }
    }
}
