//! What watching counts. Gauges are of one store; a store that replaces another begins anew.

use std::sync::atomic::{AtomicU64, Ordering};

/// Figures of the watch hub of one store. Read them through [`Reader::watch_figures`](crate::Reader::watch_figures).
#[derive(Debug, Default)]
pub struct WatchFigures {
    pub(super) streams: Gauge,
    pub(super) watchers: Gauge,
    pub(super) slow: Gauge,
    pub(super) aside: Gauge,
    pub(super) key_bytes: Gauge,
    pub(super) pending_events: Gauge,
    pub(super) pending_bytes: Gauge,
    pub(super) events: AtomicU64,
}

impl WatchFigures {
    /// Streams that exist.
    pub fn streams(&self) -> u64 {
        self.streams.get()
    }

    /// Watchers of all streams.
    pub fn watchers(&self) -> u64 {
        self.watchers.get()
    }

    /// Watchers that read history, because the newest events are not all they lack, or what many keys had before is not in
    /// memory.
    pub fn slow_watchers(&self) -> u64 {
        self.slow.get()
    }

    /// Streams that are aside: another one has their changes handed on.
    pub fn aside(&self) -> u64 {
        self.aside.get()
    }

    /// Bytes of the keys that are watched, both ends of a range counted, and each range once.
    pub fn key_bytes(&self) -> u64 {
        self.key_bytes.get()
    }

    /// Events taken up by streams and not handed out yet.
    pub fn pending_events(&self) -> u64 {
        self.pending_events.get()
    }

    /// Events handed out, once for each watcher.
    pub fn events(&self) -> u64 {
        self.events.load(Ordering::Relaxed)
    }

    pub(super) fn count_events(&self, more: u64) {
        self.events.fetch_add(more, Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
pub(super) struct Gauge(AtomicU64);

impl Gauge {
    pub(super) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(super) fn sub(&self, less: u64) {
        self.0.fetch_sub(less, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
