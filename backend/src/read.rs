//! Reading: single records without a view, and consistent views.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use rocksdb::{DB, DBRawIteratorWithThreadMode, ReadOptions, Snapshot};

use crate::applied::Applied;
use crate::backend::Inner;
use crate::bucket::Bucket;
use crate::engine::scan_options;
use crate::error::StorageError;

/// Reads one record.
pub(crate) fn get(
    inner: &Inner,
    options: &ReadOptions,
    bucket: Bucket,
    key: &[u8],
) -> Result<Option<Bytes>, StorageError> {
    let engine = inner.engine();
    match engine.db().get_pinned_cf_opt(engine.family(bucket), key, options) {
        Ok(found) => Ok(found.map(|value| Bytes::copy_from_slice(&value))),
        Err(error) => Err(inner.error(error, "reading", Some(bucket))),
    }
}

/// From this many keys on, walking from one to the next is tried.
const WALK_KEYS_MIN: usize = 8;
/// Keys that a walk may miss beyond those that it finds, before it is given up.
const WALK_MISSES_MAX: usize = 8;

/// Reads many records of one bucket together. The answers come in the order of the keys.
///
/// Records that were written one after the other are mostly wanted together, so they are first looked for by walking:
/// that costs a third of a lookup where the next key is the neighbour of the one before. What the walk misses is looked
/// up, and where it misses much it is given up at once.
pub(crate) fn get_many<K: AsRef<[u8]>>(
    inner: &Inner,
    options: &ReadOptions,
    walk_options: impl FnOnce() -> ReadOptions,
    bucket: Bucket,
    keys: &[K],
) -> Result<Vec<Option<Bytes>>, StorageError> {
    let mut values = vec![None; keys.len()];
    let missed = match keys.len() >= WALK_KEYS_MIN {
        true => walk(inner, walk_options(), bucket, keys, &mut values)?,
        false => (0..keys.len()).collect(),
    };
    let engine = inner.engine();
    // One by one: for records that lie far apart RocksDB's batched lookup was measured to cost half as much again.
    for at in missed {
        let found = engine.db().get_pinned_cf_opt(engine.family(bucket), &keys[at], options);
        let found = found.map_err(|error| inner.error(error, "reading", Some(bucket)))?;
        values[at] = found.map(|value| Bytes::copy_from_slice(&value));
    }
    Ok(values)
}

/// Walks along the keys with one cursor and fills in what it meets. Returns the places of the keys that it did not.
fn walk<K: AsRef<[u8]>>(
    inner: &Inner,
    options: ReadOptions,
    bucket: Bucket,
    keys: &[K],
    values: &mut [Option<Bytes>],
) -> Result<Vec<usize>, StorageError> {
    let engine = inner.engine();
    let mut cursor = engine.db().raw_iterator_cf_opt(engine.family(bucket), options);
    cursor.seek(&keys[0]);
    let mut missed = Vec::new();
    for (at, key) in keys.iter().map(AsRef::as_ref).enumerate() {
        if missed.len() > (at - missed.len()) + WALK_MISSES_MAX {
            missed.extend(at..keys.len());
            break;
        }
        // One record may lie in between: an older version of a key whose newer one is elsewhere.
        if cursor.key().is_some_and(|found| found < key) {
            cursor.next();
        }
        match cursor.item() {
            Some((found, value)) if found == key => {
                values[at] = Some(Bytes::copy_from_slice(value));
                cursor.next();
            }
            _ => missed.push(at),
        }
    }
    cursor.status().map_err(|error| inner.error(error, "reading", Some(bucket)))?;
    Ok(missed)
}

/// A consistent view: what was committed when it was made, whatever is committed after. Holds back the removal of what
/// it sees, so it is to be short-lived.
pub struct ReadTx<'a> {
    inner: &'a Arc<Inner>,
    options: ReadOptions,
    snapshot: Snapshot<'a>,
}

impl<'a> ReadTx<'a> {
    pub(crate) fn new(inner: &'a Arc<Inner>) -> ReadTx<'a> {
        let snapshot = inner.engine().db().snapshot();
        let mut options = ReadOptions::default();
        options.set_snapshot(&snapshot);
        ReadTx { inner, options, snapshot }
    }

    /// The position of the state in view.
    pub fn applied(&self) -> Result<Applied, StorageError> {
        Ok(self.inner.read_applied(&self.options)?.unwrap_or_default())
    }

    /// Reads one record.
    pub fn get(&self, bucket: Bucket, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        get(self.inner, &self.options, bucket, key)
    }

    /// Reads many records of one bucket together. The answers come in the order of the keys.
    pub fn get_many<K: AsRef<[u8]>>(&self, bucket: Bucket, keys: &[K]) -> Result<Vec<Option<Bytes>>, StorageError> {
        get_many(self.inner, &self.options, || self.pinned(ReadOptions::default()), bucket, keys)
    }

    /// Every record from `start` on, up to and not including `end`, in the order of the keys.
    pub fn scan(&self, bucket: Bucket, start: &[u8], end: Option<&[u8]>) -> Scan<'_> {
        Scan { cursor: self.cursor(bucket, start, end), inner: self.inner, bucket, done: false }
    }

    /// Shows every record from `start` on, up to and not including `end`, to `visit`, without copying it.
    /// Cost: linear in the records seen.
    pub fn for_each(
        &self,
        bucket: Bucket,
        start: &[u8],
        end: Option<&[u8]>,
        mut visit: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StorageError> {
        let mut cursor = self.cursor(bucket, start, end);
        while let Some((key, value)) = cursor.item() {
            if visit(key, value).is_break() {
                return Ok(());
            }
            cursor.next();
        }
        cursor.status().map_err(|error| self.inner.error(error, "scanning", Some(bucket)))
    }

    /// Ties options to this view.
    fn pinned(&self, mut options: ReadOptions) -> ReadOptions {
        options.set_snapshot(&self.snapshot);
        options
    }

    fn cursor(&self, bucket: Bucket, start: &[u8], end: Option<&[u8]>) -> DBRawIteratorWithThreadMode<'_, DB> {
        let mut options = self.pinned(scan_options());
        if let Some(end) = end {
            // RocksDB takes an upper bound below the start badly; an empty range is what is meant.
            options.set_iterate_upper_bound(end.max(start));
        }
        let engine = self.inner.engine();
        let mut cursor = engine.db().raw_iterator_cf_opt(engine.family(bucket), options);
        cursor.seek(start);
        cursor
    }
}

/// The records of a range, one by one. After an error it yields nothing more.
pub struct Scan<'a> {
    cursor: DBRawIteratorWithThreadMode<'a, DB>,
    inner: &'a Inner,
    bucket: Bucket,
    done: bool,
}

impl Iterator for Scan<'_> {
    type Item = Result<(Bytes, Bytes), StorageError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        if let Some((key, value)) = self.cursor.item() {
            let record = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
            self.cursor.next();
            return Some(Ok(record));
        }
        self.done = true;
        match self.cursor.status() {
            Ok(()) => None,
            Err(error) => Some(Err(self.inner.error(error, "scanning", Some(self.bucket)))),
        }
    }
}
