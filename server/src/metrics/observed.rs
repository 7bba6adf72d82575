//! What the log, the node and the database report as it happens: durations, for histograms.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use prometheus::{Histogram, HistogramOpts, Registry, Result, exponential_buckets};

use super::figure::Figure;

/// The observer of one server's log, node and database.
#[derive(Debug)]
pub(crate) struct Observed {
    wal_write: Histogram,
    wal_sync: Histogram,
    apply: Histogram,
    commit: Histogram,
    backend_sync: Histogram,
    sweep: Histogram,
    sweep_commit: Histogram,
    /// When the sweep under way began, if it did so in this process.
    sweeping_since: Mutex<Option<Instant>>,
    counters: Arc<Counters>,
    slow: Duration,
}

#[derive(Debug, Default)]
struct Counters {
    wal_bytes: AtomicU64,
    wal_entries: AtomicU64,
    slow_applies: AtomicU64,
    /// When a sweep last ended, in seconds since 1970; 0 for never.
    swept_at_s: AtomicU64,
}

/// Buckets of etcd's disk histograms: 1 ms to 8 s.
fn histogram(name: &str, help: &str) -> Result<Histogram> {
    doubling(HistogramOpts::new(name, help), 0.001, 14)
}

/// So many buckets, each twice as long as the one before; in etcd's unit for this name.
fn doubling(opts: HistogramOpts, first: f64, count: usize) -> Result<Histogram> {
    Histogram::with_opts(opts.buckets(exponential_buckets(first, 2.0, count)?))
}

/// etcd has an observation for each request, by kind; here what is measured is what is applied with one commit.
fn apply_opts() -> HistogramOpts {
    let help = "Time to apply one chunk of entries, its commit included.";
    let opts = HistogramOpts::new("etcd_server_apply_duration_seconds", help);
    opts.const_label("version", "v3").const_label("op", "chunk").const_label("success", "true")
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

impl Observed {
    /// Counts a commit as a slow apply if it takes longer than `slow`.
    pub(crate) fn new(slow: Duration) -> Result<Observed> {
        let sweep = HistogramOpts::new(
            "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds",
            "Time to delete what a compaction dropped, pauses included.",
        );
        let sweep_commit = HistogramOpts::new(
            "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds",
            "Time for which the deletion of one batch of what a compaction dropped kept other commits waiting.",
        );
        Ok(Observed {
            wal_write: histogram(
                "etcd_disk_wal_write_duration_seconds",
                "Time to write one group of log records, without the fdatasync.",
            )?,
            apply: doubling(apply_opts(), 0.0001, 20)?,
            sweep: doubling(sweep, 100.0, 14)?,
            sweep_commit: doubling(sweep_commit, 1.0, 13)?,
            sweeping_since: Mutex::default(),
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
        let of_the_log = [&self.wal_write, &self.wal_sync];
        let of_the_store = [&self.apply, &self.commit, &self.backend_sync, &self.sweep, &self.sweep_commit];
        for histogram in of_the_log.into_iter().chain(of_the_store) {
            registry.register(Box::new(histogram.clone()))?;
        }
        let read = |field: fn(&Counters) -> &AtomicU64| {
            let counters = Arc::clone(&self.counters);
            move || field(&counters).load(Relaxed)
        };
        let bytes = read(|counters| &counters.wal_bytes);
        let name = "etcd_disk_wal_write_bytes_total";
        Figure::gauge(name, "Bytes written to the log.", move || bytes() as f64).register(registry)?;
        let swept_at_s = read(|counters| &counters.swept_at_s);
        let name = "etcd_debugging_mvcc_db_compaction_last";
        let help = "When what a compaction dropped was last deleted, in seconds since 1970; 0 before the first time.";
        Figure::gauge(name, help, move || swept_at_s() as f64).register(registry)?;
        let name = "tally_wal_synced_entries_total";
        Figure::counter(name, "Log entries made durable.", read(|counters| &counters.wal_entries))
            .register(registry)?;
        let (name, help) = ("etcd_server_slow_apply_total", "Chunks of entries that took too long to apply.");
        Figure::counter(name, help, read(|counters| &counters.slow_applies)).register(registry)
    }
}

impl Observed {
    fn sweeping_since(&self) -> MutexGuard<'_, Option<Instant>> {
        self.sweeping_since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl tally_wal::Observer for Observed {
    fn on_write(&self, duration: Duration) {
        self.wal_write.observe(duration.as_secs_f64());
    }

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

    /// The only upkeep there is are the batches of the sweep.
    fn on_housekeeping(&self, took: Duration) {
        self.sweep_commit.observe(milliseconds(took));
    }
}

impl tally_raftnode::ApplyObserver for Observed {
    fn on_apply(&self, _entries: usize, took: Duration) {
        self.apply.observe(took.as_secs_f64());
    }
}

impl tally_mvcc::SweepObserver for Observed {
    fn on_begin(&self) {
        *self.sweeping_since() = Some(Instant::now());
    }

    fn on_end(&self) {
        // How long a sweep took that an earlier process began is not known.
        if let Some(since) = self.sweeping_since().take() {
            self.sweep.observe(milliseconds(since.elapsed()));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.counters.swept_at_s.store(now.as_secs(), Relaxed);
    }
}
