//! Counters of one table. They count what this process did; nothing that is replicated depends on them.

use std::sync::atomic::{AtomicU64, Ordering};

/// Upper bounds of the buckets of granted times to live: 2^0 to 2^23 seconds, and one bucket beyond.
const BUCKETS: usize = 24;

/// What a table counted since it was opened.
#[derive(Debug, Default)]
pub struct Metrics {
    pub(crate) revoked: Counter,
    granted: Counter,
    ttl_s: Counter,
    ttls: [Counter; BUCKETS + 1],
}

impl Metrics {
    /// Leases granted.
    pub fn granted_total(&self) -> u64 {
        self.granted.get()
    }

    /// Leases revoked, expired ones included.
    pub fn revoked_total(&self) -> u64 {
        self.revoked.get()
    }

    /// Sum of the granted times to live, in seconds (modulo 2^64).
    pub fn ttl_sum_s(&self) -> u64 {
        self.ttl_s.get()
    }

    /// How many leases were granted at most 1, 2, 4, … 2^23 seconds and not fewer than the bound before; the last figure
    /// is of those beyond.
    pub fn ttl_buckets(&self) -> [u64; BUCKETS + 1] {
        std::array::from_fn(|at| self.ttls[at].get())
    }

    pub(crate) fn granted(&self, ttl_s: i64) {
        self.granted.add(1);
        self.ttl_s.add(ttl_s.cast_unsigned());
        let bucket = (0..BUCKETS).find(|at| ttl_s <= 1 << at).unwrap_or(BUCKETS);
        self.ttls[bucket].add(1);
    }
}

#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
