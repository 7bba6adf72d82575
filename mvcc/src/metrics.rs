//! Counters of one store. They count what this process did; nothing that is replicated depends on them.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a store counted since it was opened. Read it through [`Reader::metrics`](crate::Reader::metrics).
#[derive(Debug, Default)]
pub struct Metrics {
    pub(crate) puts: Counter,
    pub(crate) put_bytes: Counter,
    pub(crate) deletes: Counter,
    pub(crate) ranges: Counter,
    pub(crate) txns: Counter,
    pub(crate) compactions: Counter,
    pub(crate) swept_records: Counter,
    pub(crate) cache_hits: Counter,
    pub(crate) cache_misses: Counter,
}

impl Metrics {
    /// Puts, those inside transactions included.
    pub fn puts(&self) -> u64 {
        self.puts.get()
    }

    /// Bytes of the keys and values put.
    pub fn put_bytes(&self) -> u64 {
        self.put_bytes.get()
    }

    /// Delete requests, those inside transactions included.
    pub fn deletes(&self) -> u64 {
        self.deletes.get()
    }

    /// Ranges, those inside transactions included.
    pub fn ranges(&self) -> u64 {
        self.ranges.get()
    }

    /// Transactions of more than one operation.
    pub fn txns(&self) -> u64 {
        self.txns.get()
    }

    /// Logical compactions.
    pub fn compactions(&self) -> u64 {
        self.compactions.get()
    }

    /// Records that the sweep deleted.
    pub fn swept_records(&self) -> u64 {
        self.swept_records.get()
    }

    /// Records that were read without asking the backend.
    pub fn cache_hits(&self) -> u64 {
        self.cache_hits.get()
    }

    /// Records that were read from the backend.
    pub fn cache_misses(&self) -> u64 {
        self.cache_misses.get()
    }
}

#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
