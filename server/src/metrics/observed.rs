//! What the log and the database report as it happens: durations, for histograms.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, Registry, Result, exponential_buckets};

use super::figure::Figure;

/// The observer of one server's log and database.
pub(crate) struct Observed {
    wal_sync: Histogram,
    commit: Histogram,
    backend_sync: Histogram,
    counters: Arc<Counters>,
    slow: Duration,
}

#[derive(Default)]
struct Counters {
    wal_bytes: AtomicU64,
    wal_entries: AtomicU64,
    slow_applies: AtomicU64,
}

/// Buckets of etcd's disk histograms: 1 ms to 8 s.
fn histogram(name: &str, help: &str) -> Result<Histogram> {
    let buckets = exponential_buckets(0.001, 2.0, 14)?;
    Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets))
}

impl Observed {
    /// Counts a commit as a slow apply if it takes longer than `slow`.
    pub(crate) fn new(slow: Duration) -> Result<Observed> {
        Ok(Observed {
            wal_sync: histogram(
                "etcd_disk_wal_fsync_duration_seconds",
                "Time to write and fdatasync one group of log records.",
            )?,
            commit: histogram(
                "etcd_disk_backend_commit_duration_seconds",
                "Time to commit the effects of one chunk of entries.",
            )?,
            backend_sync: histogram(
                "tally_backend_sync_duration_seconds",
                "Time to make everything that is applied durable in the database.",
            )?,
            counters: Arc::default(),
            slow,
        })
    }

    pub(super) fn register(&self, registry: &Registry) -> Result<()> {
        for histogram in [&self.wal_sync, &self.commit, &self.backend_sync] {
            registry.register(Box::new(histogram.clone()))?;
        }
        let read = |field: fn(&Counters) -> &AtomicU64| {
            let counters = Arc::clone(&self.counters);
            move || field(&counters).load(Relaxed)
        };
        let bytes = read(|counters| &counters.wal_bytes);
        let name = "etcd_disk_wal_write_bytes_total";
        Figure::gauge(name, "Bytes written to the log.", move || bytes() as f64).register(registry)?;
        let name = "tally_wal_synced_entries_total";
        Figure::counter(name, "Log entries made durable.", read(|counters| &counters.wal_entries))
            .register(registry)?;
        let (name, help) = ("etcd_server_slow_apply_total", "Chunks of entries that took too long to apply.");
        Figure::counter(name, help, read(|counters| &counters.slow_applies)).register(registry)
    }
}

impl tally_wal::Observer for Observed {
    fn on_sync(&self, duration: Duration, bytes: u64, entries: u64) {
        self.wal_sync.observe(duration.as_secs_f64());
        self.counters.wal_bytes.fetch_add(bytes, Relaxed);
        self.counters.wal_entries.fetch_add(entries, Relaxed);
    }
}

impl tally_backend::Observer for Observed {
    fn on_commit(&self, took: Duration) {
        self.commit.observe(took.as_secs_f64());
        if took > self.slow {
            self.counters.slow_applies.fetch_add(1, Relaxed);
            let (took_ms, expected_ms) = (took.as_millis() as u64, self.slow.as_millis() as u64);
            tracing::warn!(took_ms, expected_ms, "apply request took too long");
        }
    }

    fn on_sync(&self, took: Duration) {
        self.backend_sync.observe(took.as_secs_f64());
    }
}
