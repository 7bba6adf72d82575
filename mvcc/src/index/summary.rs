//! `Summary`: what an inner node knows about everything below one child.

use super::revision::Rev;

/// The aggregates of a set of keys. They add up, so a node's summary is the sum of those of its children.
///
/// A *change* of a summary is a `Summary` too: counts and sum wrap, so adding `u64::MAX` takes one away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Summary {
    /// Keys whose newest revision is not a tombstone.
    pub(super) live: u64,
    /// All keys, deleted ones that still have a history included.
    pub(super) keys: u64,
    /// What those keys have in bytes together; where they begin alike it is stored only once, and counted each time.
    pub(super) bytes: u64,
    /// The smallest compaction revision that would drop anything here; `i64::MAX` if none would.
    pub(super) due: i64,
    /// The sum, mod 2^128, of the fingerprints of all revisions of all keys.
    pub(super) sum: u128,
}

impl Summary {
    pub(super) const EMPTY: Self = Self { live: 0, keys: 0, bytes: 0, due: i64::MAX, sum: 0 };

    /// This and `other` together.
    #[must_use]
    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            live: self.live.wrapping_add(other.live),
            keys: self.keys.wrapping_add(other.keys),
            bytes: self.bytes.wrapping_add(other.bytes),
            due: self.due.min(other.due),
            sum: self.sum.wrapping_add(other.sum),
        }
    }
}

/// The smallest compaction revision that drops something of a key whose two oldest revisions are these.
///
/// Compaction at R drops all but the newest revision with main <= R, so it takes the second to make the first one go;
/// or the first goes by itself, once R is beyond it, because it is a tombstone.
pub(super) fn due(first: &Rev, second: Option<&Rev>) -> i64 {
    let replaced = second.map_or(i64::MAX, |rev| rev.at.main());
    let buried = if first.is_tombstone() { first.at.main().saturating_add(1) } else { i64::MAX };
    replaced.min(buried)
}
