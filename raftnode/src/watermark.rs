//! A number that only grows, read by everybody, awaited by a few.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::Notify;

/// The awaited progress has stopped for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failed;

/// Reading costs one atomic load; waiting for a value that is already reached costs no more.
#[derive(Debug, Default)]
pub(crate) struct Watermark {
    value: AtomicU64,
    failed: AtomicBool,
    changed: Notify,
}

impl Watermark {
    pub(crate) fn new(value: u64) -> Watermark {
        Watermark { value: AtomicU64::new(value), ..Watermark::default() }
    }

    pub(crate) fn get(&self) -> u64 {
        self.value.load(Ordering::Acquire)
    }

    /// Raises the value, unless it is there already, and wakes who waits for it.
    pub(crate) fn advance(&self, value: u64) {
        if self.value.fetch_max(value, Ordering::AcqRel) < value {
            self.changed.notify_waiters();
        }
    }

    /// Lowers the value. Only for a log whose tail is taken back: what was said to be reached no longer exists.
    pub(crate) fn retreat(&self, value: u64) {
        self.value.fetch_min(value, Ordering::AcqRel);
    }

    /// Nothing will be reached any more: everybody who waits, and will wait, hears so.
    pub(crate) fn fail(&self) {
        self.failed.store(true, Ordering::Release);
        self.changed.notify_waiters();
    }

    /// Waits until `value` is reached.
    pub(crate) async fn reach(&self, value: u64) -> Result<(), Failed> {
        loop {
            if self.get() >= value {
                return Ok(());
            }
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            // Looked at again, now that no change can be missed any more.
            if self.get() >= value {
                return Ok(());
            }
            if self.failed.load(Ordering::Acquire) {
                return Err(Failed);
            }
            changed.await;
        }
    }
}
