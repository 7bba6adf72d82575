//! The handle: open, commit, sync, close.

use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rocksdb::ReadOptions;

use crate::applied::{Applied, MEMBERSHIP_KEY, POSITION_KEY, RecordError};
use crate::batch::WriteBatch;
use crate::bucket::Bucket;
use crate::config::{Config, Observer};
use crate::engine::{Engine, MEMTABLES_WAITING_MAX};
use crate::error::{EngineError, FileError, OpenError, StorageError, storage_error};
use crate::failpoint::Step;
use crate::layout::{self, Directory, Generation};
use crate::metrics::Metrics;
use crate::pointer::Pointer;
use crate::read::{self, ReadTx};
use crate::tidy;

/// A batch begins with the memory that the last one needed, up to this.
const BATCH_CAPACITY_BYTES_MAX: usize = 1 << 20;
/// Commits between two looks at RocksDB's count of background errors.
const HEALTH_CHECK_COMMITS: u64 = 256;

/// Between two looks at the flushes that a commit waits for. RocksDB tells nobody when one is done.
const ROOM_POLL: Duration = Duration::from_millis(1);

/// An open backend. A cheap handle: clones share everything. Dropping the last one without [`Backend::close`] is as a
/// crash: what was not synced is gone, and to be replayed from the log.
#[derive(Clone)]
pub struct Backend {
    pub(crate) inner: Arc<Inner>,
}

/// How big the data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Size {
    /// Bytes held: tables on disk and memtables.
    pub allocated: u64,
    /// Estimate of the part of it that is not superseded or deleted.
    pub in_use: u64,
}

/// What all clones share. Fields are dropped in this order: the engine lets go of its files before the generation is
/// deleted (where it is doomed) and before the lock is released.
pub(crate) struct Inner {
    engine: Engine,
    pub(crate) generation: Generation,
    pub(crate) directory: Arc<Directory>,
    pub(crate) config: Config,
    /// Position of the last commit; `None` before the first. Locked for a moment only, never across I/O.
    pub(crate) applied: Mutex<Option<Applied>>,
    durable: Mutex<Option<Applied>>,
    /// Held during a commit: one at a time.
    commit: Mutex<()>,
    /// Held during a sync: one at a time. Holds the engine's sequence number that the last one made durable.
    sync: Mutex<u64>,
    /// The error that ended the writing.
    ended: OnceLock<StorageError>,
    batch_capacity: AtomicUsize,
    writes: AtomicU64,
    pub(crate) metrics: Metrics,
    pub(crate) observer: Option<Arc<dyn Observer>>,
}

/// Locks, also after a panic elsewhere: what these locks guard is replaced whole, never left half changed.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Backend {
    /// Opens the directory, making it when there is nothing in it. Deletes what crashes have left behind.
    pub fn open(config: Config) -> Result<Backend, OpenError> {
        config.validate()?;
        let directory = Directory::lock(&config.path)?;
        match directory.pointer()? {
            Some(pointer) => {
                same_identity(&config, &pointer)?;
                directory.clean(Some(&pointer.generation))?;
                let generation = directory.generation(&pointer);
                Backend::open_generation(config, directory, generation, false)
            }
            None => Backend::create(config, directory),
        }
    }

    /// Whether a backend has been made under `path`. A half-made one does not count.
    ///
    /// # Errors
    /// If that cannot be seen, for want of permission for instance.
    pub fn exists(path: impl AsRef<Path>) -> Result<bool, OpenError> {
        Ok(layout::exists(path.as_ref())?)
    }

    fn create(config: Config, directory: Arc<Directory>) -> Result<Backend, OpenError> {
        directory.clean(None)?;
        let generation = directory.make_generation(true, &config.failpoints)?;
        let pointer = Pointer { identity: config.identity, generation: generation.name().to_owned() };
        let backend = Backend::open_generation(config, directory, generation, true)?;
        let Inner { directory, generation, config, .. } = &*backend.inner;
        let made = config.failpoints.pass(Step::EngineMade, directory.path());
        made.map_err(FileError::on("make generation", generation.path()))?;
        // Whatever happens from here on, the pointer may be in force.
        generation.doom(false);
        directory.switch(&pointer, &config.failpoints)?;
        directory.unmark(&config.failpoints)?;
        Ok(backend)
    }

    /// Opens the engine in a generation, be it in force or not.
    pub(crate) fn open_generation(
        config: Config,
        directory: Arc<Directory>,
        generation: Generation,
        create: bool,
    ) -> Result<Backend, OpenError> {
        let engine = Engine::open(&config, generation.path(), create)?;
        let found = read_applied(&engine, engine.read_options(), generation.path());
        let applied = found.map_err(|error| match error {
            StorageError::Record { path, source: RecordError::Newer { found, supported } } => {
                OpenError::Format { path, found, supported }
            }
            StorageError::Record { path, source } => OpenError::Corrupt { path, detail: source.to_string() },
            source => OpenError::Engine { path: generation.path().to_path_buf(), source },
        })?;
        let sequence = engine.db().latest_sequence_number();
        let inner = Inner {
            engine,
            generation,
            directory,
            observer: config.observer.clone(),
            config,
            durable: Mutex::new(applied.clone()),
            applied: Mutex::new(applied),
            commit: Mutex::new(()),
            sync: Mutex::new(sequence),
            ended: OnceLock::new(),
            batch_capacity: AtomicUsize::new(0),
            writes: AtomicU64::new(0),
            metrics: Metrics::default(),
        };
        Ok(Backend { inner: Arc::new(inner) })
    }

    /// The position of the last commit. The default before the first one.
    pub fn applied(&self) -> Applied {
        lock(&self.inner.applied).clone().unwrap_or_default()
    }

    /// The position that survives a crash: that of the last sync, or what was found at open.
    pub fn durable(&self) -> Applied {
        lock(&self.inner.durable).clone().unwrap_or_default()
    }

    /// Whether nothing has ever been committed.
    pub fn is_fresh(&self) -> bool {
        lock(&self.inner.applied).is_none()
    }

    /// Reads one record as of now.
    pub fn get(&self, bucket: Bucket, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        read::get(&self.inner, self.inner.engine.read_options(), bucket, key)
    }

    /// Reads many records of one bucket together, as of now. The answers come in the order of the keys.
    pub fn get_many<K: AsRef<[u8]>>(&self, bucket: Bucket, keys: &[K]) -> Result<Vec<Option<Bytes>>, StorageError> {
        read::get_many(&self.inner, self.inner.engine.read_options(), ReadOptions::default, bucket, keys)
    }

    /// A consistent view of everything committed so far.
    pub fn read(&self) -> ReadTx<'_> {
        ReadTx::new(&self.inner)
    }

    /// An empty batch.
    pub fn batch(&self) -> WriteBatch {
        WriteBatch::new(Arc::clone(&self.inner))
    }

    /// Makes everything committed so far durable, all buckets as one, and returns the position that is now sure to
    /// survive. Blocks for the time of a flush; commits go on meanwhile. Quick when nothing is new.
    pub fn sync(&self) -> Result<Applied, StorageError> {
        self.inner.sync()
    }

    /// How big the data is. Cheap enough for once a second; looks at the engine's health on the way.
    pub fn size(&self) -> Result<Size, StorageError> {
        self.inner.check_health()?;
        let figures = self.inner.engine.figures();
        let (tables, memtables, live) = figures.map_err(|error| self.inner.error(error, "measuring", None))?;
        let allocated = tables + memtables;
        Ok(Size { allocated, in_use: (live + memtables).min(allocated) })
    }

    /// Reads every record of every bucket, which verifies the checksum of every block in force. Returns the bytes read.
    /// Cost: linear in the data; it goes around the block cache.
    pub fn scrub(&self) -> Result<u64, StorageError> {
        let view = self.read();
        let mut bytes = 0;
        for bucket in Bucket::ALL {
            view.for_each(bucket, &[], None, |key, value| {
                bytes += (key.len() + value.len()) as u64;
                std::ops::ControlFlow::Continue(())
            })?;
        }
        view.applied()?;
        Ok(bytes)
    }

    /// Rewrites all tables, so that what has been deleted or superseded takes no more space. Blocks; costs reading and
    /// writing all data once, beside which commits and reads go on. Returns when it is done.
    pub fn defragment(&self) -> Result<(), StorageError> {
        self.inner.sync()?;
        self.inner.engine.rewrite_tables();
        self.inner.check_health()
    }

    /// What has been done since open.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// The directory that this backend was opened with.
    pub fn path(&self) -> &Path {
        self.inner.directory.path()
    }

    /// Syncs and ends the writing for all clones. The lock is released when the last clone is dropped.
    pub fn close(self) -> Result<(), StorageError> {
        self.inner.sync()?;
        let _turn = self.inner.begin_commit()?;
        let path = self.inner.generation.path().to_path_buf();
        self.inner.poison(StorageError::Closed { path });
        Ok(())
    }
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backend").field("path", &self.inner.generation.path()).finish_non_exhaustive()
    }
}

impl Inner {
    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Takes the turn to commit, unless the writing has ended.
    pub(crate) fn begin_commit(&self) -> Result<MutexGuard<'_, ()>, StorageError> {
        let turn = lock(&self.commit);
        self.check_writable()?;
        Ok(turn)
    }

    /// Ends the writing with this error, unless another one came first; returns the one that counts.
    pub(crate) fn poison(&self, error: StorageError) -> StorageError {
        self.ended.get_or_init(|| error).clone()
    }

    /// The error that ended the writing, if one has.
    pub(crate) fn check_writable(&self) -> Result<(), StorageError> {
        self.ended.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    pub(crate) fn error(&self, error: rocksdb::Error, action: &'static str, bucket: Option<Bucket>) -> StorageError {
        storage_error(error, action, bucket, self.generation.path())
    }

    /// Writes a batch. The caller holds the turn. Any failure is final.
    pub(crate) fn write(&self, writes: rocksdb::WriteBatch, bytes: u64) -> Result<(), StorageError> {
        if self.writes.fetch_add(1, Ordering::Relaxed).is_multiple_of(HEALTH_CHECK_COMMITS) {
            self.check_health()?;
        }
        self.make_room()?;
        self.batch_capacity.store((bytes as usize).min(BATCH_CAPACITY_BYTES_MAX), Ordering::Relaxed);
        self.engine.write(writes).map_err(|error| self.poison(self.error(error, "committing", None)))
    }

    /// Waits until the flushes have caught up with the commits, or have failed.
    fn make_room(&self) -> Result<(), StorageError> {
        let waiting = || self.engine.memtables_waiting().map_err(|error| self.error(error, "checking memory", None));
        while waiting()? >= MEMTABLES_WAITING_MAX {
            self.check_health()?;
            std::thread::sleep(ROOM_POLL);
        }
        Ok(())
    }

    pub(crate) fn batch_capacity(&self) -> usize {
        self.batch_capacity.load(Ordering::Relaxed)
    }

    /// A flush or compaction that failed in the background is as final as a commit that failed: RocksDB would go on
    /// trying, while what it holds only in memory can no longer be promised.
    pub(crate) fn check_health(&self) -> Result<(), StorageError> {
        let errors = self.engine.background_errors().map_err(|error| self.error(error, "checking health", None))?;
        if errors == 0 {
            return Ok(());
        }
        let action = "flushing in the background";
        // A write that changes nothing learns the reason, where RocksDB has stopped because of it.
        if let Err(error) = self.engine.write(rocksdb::WriteBatch::new()) {
            return Err(self.poison(self.error(error, action, None)));
        }
        let source = EngineError::new(format!("{errors} flushes or compactions failed; the file LOG there says why"));
        let path = self.generation.path().to_path_buf();
        Err(self.poison(StorageError::Io { action, path, source }))
    }

    pub(crate) fn read_applied(&self, options: &ReadOptions) -> Result<Option<Applied>, StorageError> {
        read_applied(&self.engine, options, self.generation.path())
    }

    fn sync(&self) -> Result<Applied, StorageError> {
        let mut synced = lock(&self.sync);
        self.check_writable()?;
        // Taken before the flush begins, between two commits: everything up to here is in the memtables that are about
        // to be flushed, and the sequence number belongs to this very position.
        let (applied, sequence) = {
            let _turn = lock(&self.commit);
            (lock(&self.applied).clone(), self.engine.db().latest_sequence_number())
        };
        if sequence == *synced {
            return Ok(lock(&self.durable).clone().unwrap_or_default());
        }
        let began = Instant::now();
        self.engine.flush().map_err(|error| self.poison(self.error(error, "flushing", None)))?;
        self.check_health()?;
        *synced = sequence;
        *lock(&self.durable) = applied.clone();
        let took = began.elapsed();
        self.metrics.synced(took);
        if let Some(observer) = &self.observer {
            observer.on_sync(took);
        }
        self.metrics.tidied(tidy::tidy(&self.engine).map_err(|error| self.error(error, "tidying", None))?);
        Ok(applied.unwrap_or_default())
    }
}

/// Reads the position that a set of tables is at.
pub(crate) fn read_applied(
    engine: &Engine,
    options: &ReadOptions,
    path: &Path,
) -> Result<Option<Applied>, StorageError> {
    let read = |key: &[u8]| {
        let found = engine.db().get_pinned_cf_opt(engine.private(), key, options);
        found.map_err(|error| storage_error(error, "reading the applied record", None, path))
    };
    let Some(position) = read(POSITION_KEY)? else { return Ok(None) };
    let membership = read(MEMBERSHIP_KEY)?;
    let decoded = Applied::decode(&position, membership.as_deref().unwrap_or_default());
    decoded.map(Some).map_err(|source| StorageError::Record { path: path.to_path_buf(), source })
}

pub(crate) fn same_identity(config: &Config, pointer: &Pointer) -> Result<(), OpenError> {
    if pointer.identity == config.identity {
        return Ok(());
    }
    let (found, expected) = (pointer.identity, config.identity);
    Err(OpenError::Identity { path: config.path.clone(), found, expected })
}
