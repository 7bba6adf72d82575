//! How far the node has come: plain atomics, so that a put may look at them for free.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::fatal::FatalCell;
use crate::sole::Sole;
use crate::watermark::Watermark;

/// What all parts of a node share. Every index counts from 1; 0 is "nothing yet".
#[derive(Debug)]
pub(crate) struct Shared {
    /// The first fatal error.
    pub(crate) fatal: FatalCell,
    /// The last entry in the log, durable or not.
    pub(crate) last: AtomicU64,
    /// The last entry known to be committed.
    pub(crate) committed: AtomicU64,
    /// The last entry applied and visible to readers.
    pub(crate) applied: Watermark,
    /// The last entry whose effects are durable in the backend.
    pub(crate) durable: AtomicU64,
    /// The last entry dropped from the front of the log.
    pub(crate) purged: AtomicU64,
    /// Bytes of payload appended to the log since the start.
    pub(crate) appended_bytes: AtomicU64,
    /// The last entry durable in this member's own log.
    pub(crate) logged: LogDurable,
    /// Whether this member need ask no other.
    pub(crate) sole: Sole,
    /// Proposals accepted and not answered yet.
    pub(crate) pending: AtomicU64,
    /// Proposals answered with an error of consensus (not refusals, which are outcomes).
    pub(crate) failed: AtomicU64,
    /// Read index rounds that took longer than half a second.
    pub(crate) read_indexes_slow: AtomicU64,
    /// Read index rounds that got no index.
    pub(crate) read_indexes_failed: AtomicU64,
}

impl Shared {
    pub(crate) fn new(last: u64, committed: u64, applied: u64, durable: u64, purged: u64) -> Shared {
        Shared {
            fatal: FatalCell::new(),
            last: AtomicU64::new(last),
            committed: AtomicU64::new(committed.max(applied)),
            applied: Watermark::new(applied),
            durable: AtomicU64::new(durable),
            purged: AtomicU64::new(purged),
            appended_bytes: AtomicU64::new(0),
            // What was read back at open is durable.
            logged: LogDurable::new(last),
            sole: Sole::default(),
            pending: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            read_indexes_slow: AtomicU64::new(0),
            read_indexes_failed: AtomicU64::new(0),
        }
    }

    /// Committed entries that are not applied yet.
    pub(crate) fn apply_gap(&self) -> u64 {
        let applied = self.applied.get();
        self.committed.load(Ordering::Acquire).saturating_sub(applied)
    }

    pub(crate) fn progress(&self) -> Progress {
        // Applied first: it follows committed, which follows last, so the three never seem to be out of order.
        let applied = self.applied.get();
        let committed = self.committed.load(Ordering::Acquire);
        Progress {
            applied,
            committed,
            last: self.last.load(Ordering::Acquire),
            durable: self.durable.load(Ordering::Acquire),
            purged: self.purged.load(Ordering::Acquire),
            proposals_pending: self.pending.load(Ordering::Relaxed),
            proposals_failed: self.failed.load(Ordering::Relaxed),
            read_indexes_slow: self.read_indexes_slow.load(Ordering::Relaxed),
            read_indexes_failed: self.read_indexes_failed.load(Ordering::Relaxed),
        }
    }
}

/// How far a node has come. Log indexes count from 1; 0 is "nothing yet".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The last entry in the log.
    pub last: u64,
    /// The last entry known to be committed.
    pub committed: u64,
    /// The last entry applied and visible to readers.
    pub applied: u64,
    /// The last entry whose effects are durable in the backend; the log is kept from here on, and some more.
    pub durable: u64,
    /// The last entry dropped from the front of the log.
    pub purged: u64,
    /// Proposals accepted and not answered yet.
    pub proposals_pending: u64,
    /// Proposals that consensus did not carry out (refusals are outcomes and are not counted).
    pub proposals_failed: u64,
    /// Rounds of linearizable reads whose confirmation took longer than half a second.
    pub read_indexes_slow: u64,
    /// Rounds of linearizable reads that no leader confirmed in time.
    pub read_indexes_failed: u64,
}

impl Progress {
    /// Committed entries that are not applied yet; the server refuses new work beyond a limit.
    pub fn apply_gap(&self) -> u64 {
        self.committed.saturating_sub(self.applied)
    }
}

/// The durable end of the member's own log.
///
/// Taking back the log's tail starts a new generation: a flush of entries that were taken back may still be under way,
/// and its end must not make the entries that replaced them look durable. What it covers of those that were kept is durable
/// all the same, and nothing else may ever say so.
#[derive(Debug)]
pub(crate) struct LogDurable {
    generations: Mutex<Generations>,
    mark: Watermark,
}

#[derive(Debug, Default)]
struct Generations {
    current: u64,
    /// Each with the last entry that was kept when it began, but for those of which a later one kept less: so the first one
    /// after some generation says what is left of it.
    kept: Vec<(u64, u64)>,
}

impl LogDurable {
    fn new(last: u64) -> LogDurable {
        LogDurable { generations: Mutex::default(), mark: Watermark::new(last) }
    }

    fn lock(&self) -> MutexGuard<'_, Generations> {
        self.generations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn generation(&self) -> u64 {
        self.lock().current
    }

    /// Everything up to `index` of this generation is durable, as far as it was not taken back since.
    pub(crate) fn advance(&self, generation: u64, index: u64) {
        let generations = self.lock();
        let later = generations.kept.iter().find(|(number, _)| *number > generation);
        self.mark.advance(later.map_or(index, |(_, kept)| index.min(*kept)));
    }

    /// Entries after `index` are taken back.
    pub(crate) fn truncate(&self, index: u64) {
        let mut generations = self.lock();
        generations.current += 1;
        let number = generations.current;
        while generations.kept.pop_if(|(_, kept)| *kept >= index).is_some() {}
        generations.kept.push((number, index));
        self.mark.retreat(index);
    }

    pub(crate) fn mark(&self) -> &Watermark {
        &self.mark
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_flush_of_a_tail_that_was_taken_back_makes_nothing_durable() {
        let durable = LogDurable::new(5);
        let before = durable.generation();
        durable.truncate(3);
        durable.advance(before, 9);
        assert_eq!(durable.mark().get(), 3);
        durable.advance(durable.generation(), 4);
        assert_eq!(durable.mark().get(), 4);
    }

    /// Whoever waits for one of them would wait for ever: nothing is written again that was kept.
    #[test]
    fn a_late_flush_makes_durable_what_was_kept() {
        let durable = LogDurable::new(4_000);
        let first = durable.generation();
        durable.truncate(5_500);
        assert_eq!(durable.mark().get(), 4_000);
        let second = durable.generation();
        durable.advance(first, 6_001);
        assert_eq!(durable.mark().get(), 5_500);
        // The least of what was kept since counts, and only since.
        durable.truncate(5_200);
        durable.truncate(5_300);
        durable.advance(second, 5_600);
        assert_eq!(durable.mark().get(), 5_200);
        durable.advance(durable.generation() - 1, 5_290);
        assert_eq!(durable.mark().get(), 5_290);
    }
}
