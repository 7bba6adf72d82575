//! RocksDB as this crate sets it up: the only place that knows its options.
//!
//! Why each option is as it is: the log above can replay, so RocksDB's own log is off and atomic flush keeps the buckets
//! together. Keys of the history ascend, so its tables never overlap; with one compression at every level they sink to
//! the bottom by a rename instead of a rewrite. RocksDB's own ways of stopping writes are out of reach, since they do not
//! end when the disk has failed. Point reads by exact key dominate, so blocks are small. Index and filter
//! blocks live in the block cache, so that memory stays bounded however much data there is.

use std::path::Path;

use rocksdb::properties::{
    BACKGROUND_ERRORS, CUR_SIZE_ALL_MEM_TABLES, ESTIMATE_LIVE_DATA_SIZE, NUM_IMMUTABLE_MEM_TABLE, TOTAL_SST_FILES_SIZE,
};
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, BlockBasedTablePinningTier, BottommostLevelCompaction, Cache, ColumnFamily,
    ColumnFamilyDescriptor, CompactOptions, DB, DBCompressionType, FlushOptions, InfoLogger, LogLevel, Options,
    ReadOptions, WriteOptions,
};

use crate::bucket::Bucket;
use crate::config::Config;
use crate::error::{OpenError, StorageError, storage_error};

/// The column family of this crate's own records. RocksDB insists on one of this name; no [`Bucket`] reaches it.
const PRIVATE: &str = "default";
/// Bytes of a table block. Small, since records are mostly read one by one.
const BLOCK_BYTES: usize = 4 << 10;
/// Bytes of a table file at which compaction starts the next.
pub(crate) const TABLE_BYTES: u64 = 64 << 20;
/// Full memtables waiting for their flush at which commits wait for it.
pub(crate) const MEMTABLES_WAITING_MAX: u64 = 3;
/// The memory for memtables is divided by this: those that may wait, the one that a last commit may add, the active one.
const MEMTABLE_SHARES: usize = MEMTABLES_WAITING_MAX as usize + 2;
/// Full memtables at which RocksDB itself makes commits wait. Never to be reached: RocksDB waits without an end while it
/// hopes that a full disk becomes free, where this crate has to fail.
const MEMTABLES_STOP: i32 = 16;
/// RocksDB's own diary: this many files, of this many bytes.
const DIARY_FILES: usize = 4;
const DIARY_BYTES: usize = 1 << 20;
/// Bytes after which RocksDB asks the kernel to start writing, so that a sync finds little left to do.
const BYTES_PER_SYNC: u64 = 1 << 20;
/// Bytes that a long scan reads ahead.
const READAHEAD_BYTES: usize = 256 << 10;

/// The memory figures, to be split over the column families.
struct Shares {
    memtable_bytes: usize,
    cache: Cache,
}

/// An open RocksDB with its column families.
pub(crate) struct Engine {
    db: DB,
    write_options: WriteOptions,
    read_options: ReadOptions,
}

impl Engine {
    /// Opens for reading and writing. `create` says that there must be nothing yet.
    pub(crate) fn open(config: &Config, path: &Path, create: bool) -> Result<Engine, OpenError> {
        let mut options = database_options(config);
        options.create_if_missing(create);
        options.set_error_if_exists(create);
        options.create_missing_column_families(true);
        if !create {
            known_families(&options, path)?;
        }
        let shares =
            Shares { memtable_bytes: config.memtable_bytes, cache: Cache::new_lru_cache(config.block_cache_bytes) };
        let families = family_names().map(|name| ColumnFamilyDescriptor::new(name, family_options(name, &shares)));
        let db = DB::open_cf_descriptors(&options, path, families).map_err(|error| open_error(error, path))?;
        Ok(Engine::new(db))
    }

    /// Opens a finished checkpoint without writing a single byte into it. Only the private column family is sure to be there.
    pub(crate) fn open_read_only(path: &Path) -> Result<Engine, OpenError> {
        let mut options = Options::default();
        // A logger of our own keeps RocksDB from leaving its diary in the directory.
        options.set_info_logger(InfoLogger::new_callback_logger(LogLevel::Fatal, |_, _| {}));
        options.set_max_open_files(64);
        // A checkpoint of an older version lacks the buckets that came later, and nothing may be made in it.
        let found = known_families(&options, path)?;
        let db = DB::open_cf_for_read_only(&options, path, found, false);
        Ok(Engine::new(db.map_err(|error| open_error(error, path))?))
    }

    fn new(db: DB) -> Engine {
        let mut write_options = WriteOptions::default();
        write_options.disable_wal(true);
        Engine { db, write_options, read_options: ReadOptions::default() }
    }

    pub(crate) fn db(&self) -> &DB {
        &self.db
    }

    pub(crate) fn read_options(&self) -> &ReadOptions {
        &self.read_options
    }

    /// The column family of a bucket. A lookup in a map of six short names.
    pub(crate) fn family(&self, bucket: Bucket) -> &ColumnFamily {
        self.db.cf_handle(bucket.name()).expect("open makes the column family of every bucket")
    }

    /// The column family of this crate's own records.
    pub(crate) fn private(&self) -> &ColumnFamily {
        self.db.cf_handle(PRIVATE).expect("RocksDB always has the column family 'default'")
    }

    pub(crate) fn write(&self, batch: rocksdb::WriteBatch) -> Result<(), rocksdb::Error> {
        self.db.write_opt(batch, &self.write_options)
    }

    /// Flushes the memtables of all column families as one atomic step and waits until that is on disk.
    pub(crate) fn flush(&self) -> Result<(), rocksdb::Error> {
        let mut options = FlushOptions::default();
        options.set_wait(true);
        let families: Vec<&ColumnFamily> = family_names().filter_map(|name| self.db.cf_handle(name)).collect();
        self.db.flush_cfs_opt(&families, &options)
    }

    /// Bytes in tables, bytes in memtables, and an estimate of the bytes in tables that are not superseded.
    pub(crate) fn figures(&self) -> Result<(u64, u64, u64), rocksdb::Error> {
        let (mut tables, mut memtables, mut live) = (0, 0, 0);
        for family in family_names().filter_map(|name| self.db.cf_handle(name)) {
            tables += self.db.property_int_value_cf(family, TOTAL_SST_FILES_SIZE)?.unwrap_or(0);
            memtables += self.db.property_int_value_cf(family, CUR_SIZE_ALL_MEM_TABLES)?.unwrap_or(0);
            live += self.db.property_int_value_cf(family, ESTIMATE_LIVE_DATA_SIZE)?.unwrap_or(0);
        }
        Ok((tables, memtables, live))
    }

    /// Merges all tables of every column family anew, those that nothing else would touch any more included. What goes
    /// wrong is counted among the background errors.
    pub(crate) fn rewrite_tables(&self) {
        let mut options = CompactOptions::default();
        options.set_exclusive_manual_compaction(false);
        options.set_bottommost_level_compaction(BottommostLevelCompaction::ForceOptimized);
        for family in family_names().filter_map(|name| self.db.cf_handle(name)) {
            self.db.compact_range_cf_opt(family, None::<&[u8]>, None::<&[u8]>, &options);
        }
    }

    /// Full memtables waiting for their flush. With atomic flush every family that holds something has the same number;
    /// only housekeeping leaves the private one empty.
    pub(crate) fn memtables_waiting(&self) -> Result<u64, rocksdb::Error> {
        let waiting = |family| self.db.property_int_value_cf(family, NUM_IMMUTABLE_MEM_TABLE);
        let (private, history) = (waiting(self.private())?, waiting(self.family(Bucket::Kv))?);
        Ok(private.max(history).unwrap_or(0))
    }

    /// Flushes and compactions that failed since open. Not zero means that the disk has lied or refused.
    pub(crate) fn background_errors(&self) -> Result<u64, rocksdb::Error> {
        Ok(self.db.property_int_value(BACKGROUND_ERRORS)?.unwrap_or(0))
    }
}

/// Options for reading a lot once: read ahead, and leave the cache to those who come back.
pub(crate) fn scan_options() -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_readahead_size(READAHEAD_BYTES);
    options.fill_cache(false);
    options
}

fn family_names() -> impl Iterator<Item = &'static str> {
    std::iter::once(PRIVATE).chain(Bucket::ALL.into_iter().map(Bucket::name))
}

/// The column families that are there. Refuses those that this program does not know: a newer program made them, and they
/// hold state.
fn known_families(options: &Options, path: &Path) -> Result<Vec<String>, OpenError> {
    let found = DB::list_cf(options, path).map_err(|error| open_error(error, path))?;
    match found.iter().find(|name| !family_names().any(|known| known == *name)) {
        Some(name) => Err(OpenError::UnknownBucket { path: path.to_path_buf(), name: name.clone() }),
        None => Ok(found),
    }
}

fn open_error(error: rocksdb::Error, path: &Path) -> OpenError {
    match storage_error(error, "opening", None, path) {
        StorageError::Corrupt { path, source, .. } => OpenError::Corrupt { path, detail: source.to_string() },
        source => OpenError::Engine { path: path.to_path_buf(), source },
    }
}

fn database_options(config: &Config) -> Options {
    // A drop is a crash that is over sooner: whoever wants a flush closes.
    let mut options = named_option("avoid_flush_during_shutdown", "true");
    options.set_atomic_flush(true);
    options.set_paranoid_checks(true);
    options.set_db_write_buffer_size(config.memtable_bytes);
    options.set_max_background_jobs(config.background_jobs_max as i32);
    options.set_max_open_files(config.open_files_max as i32);
    options.set_bytes_per_sync(BYTES_PER_SYNC);
    // One thread commits: the cheaper insert is the one that expects no rivals.
    options.set_allow_concurrent_memtable_write(false);
    options.set_log_level(LogLevel::Warn);
    options.set_keep_log_file_num(DIARY_FILES);
    options.set_max_log_file_size(DIARY_BYTES);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options
}

fn family_options(name: &str, shares: &Shares) -> Options {
    let mut tables = BlockBasedOptions::default();
    tables.set_block_cache(&shares.cache);
    tables.set_cache_index_and_filter_blocks(true);
    tables.set_cache_index_and_filter_blocks_with_high_priority(true);
    tables.set_pin_l0_filter_and_index_blocks_in_cache(true);
    tables.set_block_size(BLOCK_BYTES);
    // An index in pieces: with much data, a read must not drag the index of a whole table through the cache.
    tables.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    tables.set_metadata_block_size(BLOCK_BYTES);
    tables.set_top_level_index_pinning_tier(BlockBasedTablePinningTier::All);
    tables.set_bloom_filter(10.0, false);
    tables.set_optimize_filters_for_memory(true);

    let mut options = if name == Bucket::Kv.name() { append_mostly_options() } else { Options::default() };
    options.set_block_based_table_factory(&tables);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_bottommost_compression_type(DBCompressionType::Lz4);
    options.set_level_compaction_dynamic_level_bytes(true);
    options.set_target_file_size_base(TABLE_BYTES);
    options.set_write_buffer_size((shares.memtable_bytes / MEMTABLE_SHARES).max(1 << 20));
    options.set_max_write_buffer_number(MEMTABLES_STOP);
    options.set_level_zero_stop_writes_trigger(i32::MAX);
    options.set_hard_pending_compaction_bytes_limit(0);
    if name == Bucket::Kv.name() {
        options.set_optimize_filters_for_hits(true);
    } else {
        options.set_arena_block_size(64 << 10);
    }
    options
}

/// Keeps RocksDB from rewriting each bottom table once more, just to forget the sequence numbers of its records, as soon
/// as any view has been closed. The tables of the history hardly change, so that would double the bytes written.
fn append_mostly_options() -> Options {
    named_option("bottommost_file_compaction_delay", &u32::MAX.to_string())
}

/// The defaults with one option that has no setter.
fn named_option(name: &str, value: &str) -> Options {
    let options = Options::default().get_options_from_string(format!("{name}={value}"));
    options.expect("the name and the value are constants that the pinned RocksDB knows")
}
