//! Staged writes and the two ways to commit them.

use std::sync::Arc;
use std::time::Instant;

use crate::applied::{Applied, MEMBERSHIP_KEY, POSITION_KEY};
use crate::backend::{Inner, lock};
use crate::bucket::Bucket;
use crate::error::StorageError;

/// Bytes of the largest batch. RocksDB's own limit is 4 GiB. Who stages more than this has made a mistake: what one request
/// may do is for the caller to bound, so that it is refused before anything is staged.
pub(crate) const BATCH_BYTES_MAX: u64 = 3 << 30;
/// What RocksDB adds to each record: kind, column family, two lengths.
const RECORD_OVERHEAD_BYTES: u64 = 12;

/// Writes to be committed together. Nothing is visible before the commit, and everything at once after it.
#[must_use = "staged writes are lost unless committed"]
pub struct WriteBatch {
    inner: Arc<Inner>,
    writes: rocksdb::WriteBatch,
    bytes: u64,
    len: usize,
}

impl WriteBatch {
    pub(crate) fn new(inner: Arc<Inner>) -> WriteBatch {
        let writes = rocksdb::WriteBatch::with_capacity_bytes(inner.batch_capacity());
        WriteBatch { inner, writes, bytes: 0, len: 0 }
    }

    /// Stages a record.
    pub fn put(&mut self, bucket: Bucket, key: &[u8], value: &[u8]) {
        if self.count(key.len() + value.len()) {
            self.writes.put_cf(self.inner.engine().family(bucket), key, value);
        }
    }

    /// Stages a removal. Removing what is not there is fine.
    pub fn delete(&mut self, bucket: Bucket, key: &[u8]) {
        if self.count(key.len()) {
            self.writes.delete_cf(self.inner.engine().family(bucket), key);
        }
    }

    /// Stages the removal of every key from `start` up to, and not including, `end`. Nothing when `start >= end`.
    pub fn delete_range(&mut self, bucket: Bucket, start: &[u8], end: &[u8]) {
        if start < end && self.count(start.len() + end.len()) {
            self.writes.delete_range_cf(self.inner.engine().family(bucket), start, end);
        }
    }

    /// Staged operations.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is staged.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Staged bytes, as they will stand in memory.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Commits everything staged and `at` in one atomic write.
    ///
    /// `at` must be further than the last commit; only the founding state at index 0 may be written again at index 0.
    /// After an error the backend is fail-stop: every later commit answers with the same error.
    pub fn commit(mut self, at: &Applied) -> Result<(), StorageError> {
        let began = Instant::now();
        let inner = Arc::clone(&self.inner);
        let _turn = inner.begin_commit()?;
        let previous = lock(&inner.applied).clone();
        if let Some(previous) = &previous {
            moves_on(previous, at).map_err(|error| inner.poison(error))?;
        }
        self.check_size()?;
        let private = inner.engine().private();
        self.writes.put_cf(private, POSITION_KEY, at.encode());
        if previous.is_none_or(|previous| previous.membership != at.membership) {
            self.writes.put_cf(private, MEMBERSHIP_KEY, &at.membership);
        }
        let bytes = self.bytes;
        inner.write(self.writes, bytes)?;
        *lock(&inner.applied) = Some(at.clone());
        let took = began.elapsed();
        inner.metrics.committed(took, bytes);
        if let Some(observer) = &inner.observer {
            observer.on_commit(took);
        }
        Ok(())
    }

    /// Commits physical upkeep that changes nothing logically: the position stays as it is.
    pub fn commit_housekeeping(self) -> Result<(), StorageError> {
        let inner = Arc::clone(&self.inner);
        let turn = inner.begin_commit()?;
        let began = Instant::now();
        self.check_size()?;
        let bytes = self.bytes;
        inner.write(self.writes, bytes)?;
        drop(turn);
        let took = began.elapsed();
        inner.metrics.kept_house();
        if let Some(observer) = &inner.observer {
            observer.on_housekeeping(took);
        }
        Ok(())
    }

    /// Counts an operation; `false` once the limit is passed, so that an oversized batch costs no more memory.
    fn count(&mut self, payload: usize) -> bool {
        self.len += 1;
        self.bytes += payload as u64 + RECORD_OVERHEAD_BYTES;
        self.bytes <= BATCH_BYTES_MAX
    }

    fn check_size(&self) -> Result<(), StorageError> {
        if self.bytes > BATCH_BYTES_MAX {
            let error = StorageError::BatchTooLarge { bytes: self.bytes, limit: BATCH_BYTES_MAX };
            return Err(self.inner.poison(error));
        }
        Ok(())
    }
}

/// Promise "applied once": a position that does not move on means that entries were applied twice or out of order.
fn moves_on(previous: &Applied, at: &Applied) -> Result<(), StorageError> {
    let founding = previous.index == 0 && at.index == 0;
    if (at.index > previous.index || founding) && at.term >= previous.term {
        return Ok(());
    }
    Err(StorageError::InvariantBroken {
        index: previous.index,
        term: previous.term,
        offered_index: at.index,
        offered_term: at.term,
    })
}
