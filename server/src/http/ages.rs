//! For how long something has been there, with no clock where it begins and ends.
//!
//! Whatever begins is counted on one of two sides, the young one. Whoever looks from time to time swaps the sides once the
//! old one is empty. While it is not, something on it has been there since the last swap at least:
//!
//! ```text
//!   begin ──► young ──(the old side is empty)──► old ──► end
//! ```
//!
//! **Invariant**: what has not been there for a time is never taken to have been; what has been there for twice that time
//! always is.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

/// How many things are there, by when they began.
#[derive(Debug, Default)]
pub(super) struct Ages {
    counts: [AtomicU32; 2],
    young: AtomicBool,
}

/// The side on which something is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Side(bool);

impl Ages {
    fn count(&self, side: Side) -> &AtomicU32 {
        &self.counts[usize::from(side.0)]
    }

    /// Something begins.
    pub(super) fn begin(&self) -> Side {
        let side = Side(self.young.load(Relaxed));
        self.count(side).fetch_add(1, Relaxed);
        side
    }

    /// It begins anew.
    pub(super) fn renew(&self, side: Side) -> Side {
        if side.0 == self.young.load(Relaxed) {
            return side;
        }
        self.end(side);
        self.begin()
    }

    /// It ends.
    pub(super) fn end(&self, side: Side) {
        self.count(side).fetch_sub(1, Relaxed);
    }

    /// Whether anything is there.
    pub(super) fn any(&self) -> bool {
        self.counts.iter().any(|count| count.load(Relaxed) > 0)
    }

    /// Whether something has been there since the last look that found nothing of the kind.
    pub(super) fn look(&self) -> bool {
        let young = self.young.load(Relaxed);
        if self.count(Side(!young)).load(Relaxed) > 0 {
            return true;
        }
        // What begins meanwhile on the side that was young is counted as if it had begun a moment earlier.
        self.young.store(!young, Relaxed);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_is_seen_whatever_else_comes_and_goes() {
        let ages = Ages::default();
        assert!(!ages.look() && !ages.any());
        let stays = ages.begin();
        assert!(!ages.look());
        for _ in 0..5 {
            let comes = ages.begin();
            assert!(ages.look() && ages.any());
            ages.end(comes);
        }
        ages.end(stays);
        assert!(!ages.look() && !ages.any());
    }

    #[test]
    fn what_is_renewed_between_two_looks_is_never_seen() {
        let ages = Ages::default();
        let mut side = ages.begin();
        for _ in 0..5 {
            side = ages.renew(side);
            assert!(!ages.look());
        }
        assert!(ages.look());
        side = ages.renew(side);
        assert!(!ages.look());
        ages.end(side);
        assert!(!ages.any());
    }

    #[test]
    fn what_began_while_something_was_old_is_seen_after_it() {
        let ages = Ages::default();
        let first = ages.begin();
        assert!(!ages.look());
        let second = ages.begin();
        assert!(ages.look());
        ages.end(first);
        assert!(!ages.look());
        assert!(ages.look());
        ages.end(second);
        assert!(!ages.look());
    }
}
