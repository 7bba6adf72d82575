//! What the writer, the readers and the sweep share: the published state, and who may still look at older ones.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use arc_swap::ArcSwap;
use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::index::{Revision, Tree};
use crate::meta::NEVER_COMPACTED;
use crate::metrics::Metrics;
use crate::records::Records;
use crate::sweep::{Backlog, Sweeper};
use crate::watch::{Hub, Window};

/// The seed of the root's outer hash. Part of the replicated format: never changes.
const ROOT_SEED: u64 = 0x5441_4C4C_5952_0001;

/// One state that readers may see. Immutable.
pub(crate) struct Published {
    pub(crate) tree: Tree,
    pub(crate) revision: i64,
    pub(crate) compact: i64,
    /// Held for its count alone: as long as a state of an epoch is looked at, the epoch is alive.
    pub(crate) epoch: Arc<Epoch>,
}

/// The states published between two compactions. They need the same records, as far as the sweep is concerned.
#[derive(Debug)]
pub(crate) struct Epoch;

/// Everything that one store has in common.
pub(crate) struct Shared {
    pub(crate) records: Records,
    pub(crate) published: ArcSwap<Published>,
    /// Epochs that a compaction ended, as long as somebody looks at one of their states.
    retired: Mutex<Vec<Weak<Epoch>>>,
    pub(crate) sweeper: Mutex<Sweeper>,
    pub(crate) backlog: Mutex<Backlog>,
    /// The newest compaction whose sweep did not wait for the views that needed its records.
    overrun: AtomicI64,
    pub(crate) metrics: Metrics,
    pub(crate) hub: Hub,
}

impl Shared {
    pub(crate) fn new(records: Records, first: Published, sweeper: Sweeper, window: Window) -> Shared {
        let hub = Hub::new(first.revision, window);
        Shared {
            records,
            published: ArcSwap::from_pointee(first),
            retired: Mutex::new(Vec::new()),
            sweeper: Mutex::new(sweeper),
            backlog: Mutex::default(),
            overrun: AtomicI64::new(NEVER_COMPACTED),
            metrics: Metrics::default(),
            hub,
        }
    }

    /// Makes `next` what readers see from now on. `dropped` is what compactions since the last call dropped.
    pub(crate) fn publish(&self, next: Published, dropped: Dropped) {
        let last = self.published.load();
        if !Arc::ptr_eq(&last.epoch, &next.epoch) {
            // Before the store: whoever sees the new state must find the epochs it may have to wait for.
            lock(&self.retired).push(Arc::downgrade(&last.epoch));
            lock(&self.backlog).add(last.compact, next.compact, dropped);
        }
        self.published.store(Arc::new(next));
    }

    /// How many epochs before `seen`'s have states that somebody still looks at.
    pub(crate) fn older_epochs_in_use(&self, seen: &Published) -> usize {
        let mut retired = lock(&self.retired);
        retired.retain(|epoch| epoch.strong_count() > 0);
        let newer = |epoch: &&Weak<Epoch>| std::ptr::eq(epoch.as_ptr(), Arc::as_ptr(&seen.epoch));
        // The list is in order of retirement: from `seen`'s own epoch on, nothing is older than it.
        retired.iter().take_while(|epoch| !newer(epoch)).count()
    }

    /// Notes that the sweep for `compact` goes on although older views may need what it deletes.
    pub(crate) fn overrun(&self, compact: i64) {
        self.overrun.fetch_max(compact, Ordering::SeqCst);
    }

    /// The newest compaction whose sweep did not wait for older views.
    pub(crate) fn overrun_by(&self) -> i64 {
        self.overrun.load(Ordering::SeqCst)
    }
}

/// Revisions that compactions dropped, for the sweep to delete; `Unknown` if there were too many to remember.
#[derive(Debug)]
pub(crate) enum Dropped {
    Known(Vec<Revision>),
    Unknown,
}

/// The most dropped revisions remembered (16 bytes each). With more, the sweep finds them by looking at every record.
pub(crate) const MAX_DROPPED: usize = 1_000_000;

impl Dropped {
    pub(crate) fn none() -> Dropped {
        Dropped::Known(Vec::new())
    }

    /// How many revisions are remembered.
    pub(crate) fn known(&self) -> usize {
        match self {
            Dropped::Known(revisions) => revisions.len(),
            Dropped::Unknown => 0,
        }
    }

    pub(crate) fn add(&mut self, revisions: impl IntoIterator<Item = Revision>) {
        if let Dropped::Known(known) = self {
            known.extend(revisions);
            if known.len() > MAX_DROPPED {
                *self = Dropped::Unknown;
            }
        }
    }
}

/// The root of a state: the sum over its history, bound to where the state stands.
pub(crate) fn root(sum: u128, revision: i64, compact: i64) -> u128 {
    let mut bytes = [0; 32];
    bytes[..16].copy_from_slice(&sum.to_le_bytes());
    bytes[16..24].copy_from_slice(&revision.to_le_bytes());
    bytes[24..].copy_from_slice(&compact.to_le_bytes());
    xxh3_128_with_seed(&bytes, ROOT_SEED)
}

/// Locks, whether or not a panic happened under the lock: what is guarded here is consistent after every statement.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
