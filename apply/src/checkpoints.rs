//! State roots at regular places of the log, kept for a while so that replicas can be compared while they go on.
//!
//! Replicas apply the same entries in chunks of their own making, so a root *after a chunk* can rarely be compared. Roots
//! at every multiple of [`CHECKPOINT_INTERVAL`] can: all replicas have them, at the same indexes.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Entries between two checkpoints.
pub const CHECKPOINT_INTERVAL: u64 = 100;

/// Checkpoints kept: the last hundred thousand entries or so.
const KEPT: usize = 1024;

/// The last checkpoints, oldest first: the applied index, and the state root after it.
#[derive(Debug, Default)]
pub(crate) struct Checkpoints {
    kept: Mutex<VecDeque<(u64, u128)>>,
}

/// Whether there is a checkpoint after this entry.
pub(crate) fn is_at(index: u64) -> bool {
    index.is_multiple_of(CHECKPOINT_INTERVAL)
}

impl Checkpoints {
    fn lock(&self) -> MutexGuard<'_, VecDeque<(u64, u128)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps checkpoints whose entries are committed to the store.
    pub(crate) fn extend(&self, new: impl IntoIterator<Item = (u64, u128)>) {
        let mut kept = self.lock();
        kept.extend(new);
        let surplus = kept.len().saturating_sub(KEPT);
        kept.drain(..surplus);
    }

    pub(crate) fn list(&self) -> Vec<(u64, u128)> {
        self.lock().iter().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_are_kept() {
        let checkpoints = Checkpoints::default();
        checkpoints.extend((0..3 * KEPT as u64).map(|number| (number, u128::from(number))));
        let list = checkpoints.list();
        assert_eq!((list.len(), list[0].0), (KEPT, 2 * KEPT as u64));
    }
}
