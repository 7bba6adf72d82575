//! Records by revision: from the writer's staged ones, the cache, or the backend.

use tally_backend::{Backend, Bucket, StorageError};

use crate::cache::RecordCache;
use crate::error::Corruption;
use crate::index::Revision;
use crate::metrics::Metrics;
use crate::record::Record;

/// Where records come from. They are immutable, so no snapshot of the backend is needed to read them.
pub(crate) struct Records {
    pub(crate) backend: Backend,
    pub(crate) cache: RecordCache,
}

/// Records that are in a batch but not committed yet, in ascending order of their revisions.
pub(crate) type Staged = [(Revision, Record)];

/// What to do with records that were read from the backend.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Afterwards {
    /// Keep them in the cache: they may be wanted again soon.
    Keep,
    /// Do not: a scan of much more than the cache holds would only push out what is in use, and pay for it.
    Forget,
}

/// Why a record could not be had.
#[derive(Clone, Debug)]
pub(crate) enum FetchError {
    Storage(StorageError),
    Corrupt(Corruption),
}

impl Records {
    pub(crate) fn get(&self, at: Revision, staged: &Staged, metrics: &Metrics) -> Result<Record, FetchError> {
        if let Some(record) = self.near(at, staged) {
            metrics.cache_hits.add(1);
            return Ok(record);
        }
        metrics.cache_misses.add(1);
        let found = self.backend.get(Bucket::Kv, &at.to_key()).map_err(FetchError::Storage)?;
        self.take(at, found, Afterwards::Keep)
    }

    /// A committed record, if it can be had without asking the backend.
    pub(crate) fn at_hand(&self, at: Revision, metrics: &Metrics) -> Option<Record> {
        let found = self.cache.get(at);
        metrics.cache_hits.add(u64::from(found.is_some()));
        found
    }

    /// The records of `revisions`, in that order. What is not at hand is read in one go.
    pub(crate) fn get_many(
        &self,
        revisions: &[Revision],
        staged: &Staged,
        metrics: &Metrics,
        afterwards: Afterwards,
    ) -> Result<Vec<Record>, FetchError> {
        let mut found = if staged.is_empty() {
            self.cache.get_many(revisions)
        } else {
            revisions.iter().map(|at| self.near(*at, staged)).collect()
        };
        let mut far: Vec<(Revision, usize)> = (0..revisions.len())
            .filter(|place| found[*place].is_none())
            .map(|place| (revisions[place], place))
            .collect();
        metrics.cache_hits.add((revisions.len() - far.len()) as u64);
        metrics.cache_misses.add(far.len() as u64);
        if !far.is_empty() {
            // In the order of the disk: what was written together is read together.
            far.sort_unstable();
            let keys: Vec<[u8; Revision::KEY_BYTES]> = far.iter().map(|(at, _)| at.to_key()).collect();
            let records = self.backend.get_many(Bucket::Kv, &keys).map_err(FetchError::Storage)?;
            let mut records = records.into_iter();
            for (at, place) in far {
                found[place] = Some(self.take(at, records.next().flatten(), afterwards)?);
            }
        }
        Ok(found.into_iter().flatten().collect())
    }

    fn near(&self, at: Revision, staged: &Staged) -> Option<Record> {
        let staged_record = match staged.first() {
            Some((first, _)) if *first <= at => staged.binary_search_by_key(&at, |(revision, _)| *revision).ok(),
            Some(_) | None => None,
        };
        staged_record.map(|place| staged[place].1.clone()).or_else(|| self.cache.get(at))
    }

    /// Checks what the backend gave for `at`.
    fn take(&self, at: Revision, found: Option<bytes::Bytes>, afterwards: Afterwards) -> Result<Record, FetchError> {
        let (main, sub) = (at.main(), at.sub());
        let bytes = found.ok_or(FetchError::Corrupt(Corruption::Missing { main, sub }))?;
        let record = Record::decode(bytes)
            .map_err(|source| FetchError::Corrupt(Corruption::Undecodable { main, sub, source }))?;
        let found = record.mod_revision();
        if found != main {
            return Err(FetchError::Corrupt(Corruption::Misplaced { main, sub, found }));
        }
        match afterwards {
            Afterwards::Keep => self.cache.insert(at, &record),
            Afterwards::Forget => {}
        }
        Ok(record)
    }
}
