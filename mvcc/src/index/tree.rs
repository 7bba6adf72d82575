//! `Tree`: the root, and every question that is answered by one walk down.

use super::insert::{Grown, insert};
use super::keys::Key;
use super::leaf::Leaf;
use super::node::{Child, Inner, Node};
use super::range::Range;
use super::revision::Rev;
use super::summary::Summary;

/// A version of the index. A clone is a snapshot: O(1), and what happens to one is never seen in the other.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    pub(super) root: Child,
}

impl Tree {
    /// A tree without keys.
    pub(crate) fn new() -> Self {
        Self { root: Child::leaf(Leaf::default()) }
    }

    /// The number of keys whose newest revision is not a tombstone. O(1).
    pub(crate) fn live(&self) -> u64 {
        self.root.summary.live
    }

    /// The number of keys, deleted ones with a history included. O(1).
    pub(crate) fn keys(&self) -> u64 {
        self.root.summary.keys
    }

    /// What the keys have in bytes together, deleted ones with a history included. O(1).
    pub(crate) fn key_bytes(&self) -> u64 {
        self.root.summary.bytes
    }

    /// The sum, mod 2^128, of the fingerprints of all revisions. O(1).
    pub(crate) fn sum(&self) -> u128 {
        self.root.summary.sum
    }

    /// Appends `rev` to the history of `key`; it must be newer than all of it. O(log n), and amortised O(log h) in the
    /// length
    /// of the history.
    pub(crate) fn insert(&mut self, key: &[u8], rev: Rev) {
        let Grown { change, mut parts } = insert(&mut self.root.node, key, rev, true);
        match parts.len() {
            0 => self.root.summary = self.root.summary.plus(change),
            1 => self.root = parts.swap_remove(0).child,
            _ => self.root = Child::inner(Inner::build(parts)),
        }
    }

    /// The history of `key`, or `None` if it has none (left). O(log n).
    pub(crate) fn get(&self, key: &[u8]) -> Option<KeyHistory<'_>> {
        let mut node = &*self.root.node;
        loop {
            match node {
                Node::Inner(inner) => node = &inner.children()[inner.child_for(key)].node,
                Node::Leaf(leaf) => return leaf.search(key).ok().map(|at| KeyHistory { leaf, at }),
            }
        }
    }

    /// The keys in `start..end` with their histories, in order; without an `end`, up to the last. O(log n) to begin,
    /// then O(1)
    /// per key, without allocations. To resume after a key, start at the key with a zero byte appended.
    pub(crate) fn range(&self, start: &[u8], end: Option<&[u8]>) -> Range<'_> {
        Range::new(&self.root.node, start, end, false)
    }

    /// The same without most of the keys that are not live: without all of a leaf, and of whatever is above it, where no
    /// key is. O(log n) to begin, then O(1) per key of the leaves that have live ones, and O(log n) for each gap.
    pub(crate) fn range_live(&self, start: &[u8], end: Option<&[u8]>) -> Range<'_> {
        Range::new(&self.root.node, start, end, true)
    }

    /// How many keys in `start..end` are live. O(log n).
    pub(crate) fn count_live(&self, start: &[u8], end: Option<&[u8]>) -> u64 {
        let live = |leaf: &Leaf, at| Summary { live: leaf.live_in(0..at), ..Summary::EMPTY };
        self.between(start, end, live).live
    }

    /// The number of keys in `start..end` and the sum of the fingerprints of all their revisions: the root of a key
    /// range. O(log n).
    pub(crate) fn sum_range(&self, start: &[u8], end: Option<&[u8]>) -> (u64, u128) {
        let sum = |leaf: &Leaf, at: usize| Summary { keys: at as u64, sum: leaf.sum_in(0..at), ..Summary::EMPTY };
        let found = self.between(start, end, sum);
        (found.keys, found.sum)
    }

    /// The summary of `start..end`, but for `due`, which cannot be subtracted; of it, what `in_leaf` measures. `in_leaf` measures the first keys of a
    /// leaf.
    fn between(&self, start: &[u8], end: Option<&[u8]>, in_leaf: impl Fn(&Leaf, usize) -> Summary) -> Summary {
        if end.is_some_and(|end| end <= start) {
            return Summary::EMPTY;
        }
        let before_end = end.map_or(self.root.summary, |end| self.below(end, &in_leaf));
        let before_start = self.below(start, &in_leaf);
        Summary {
            live: before_end.live.wrapping_sub(before_start.live),
            keys: before_end.keys.wrapping_sub(before_start.keys),
            bytes: before_end.bytes.wrapping_sub(before_start.bytes),
            due: i64::MAX,
            sum: before_end.sum.wrapping_sub(before_start.sum),
        }
    }

    /// The summary of all keys below `bound`.
    fn below(&self, bound: &[u8], in_leaf: &impl Fn(&Leaf, usize) -> Summary) -> Summary {
        let mut sum = Summary::EMPTY;
        let mut node = &*self.root.node;
        loop {
            match node {
                Node::Inner(inner) => {
                    let at = inner.child_for(bound);
                    sum = inner.children()[..at].iter().fold(sum, |sum, child| sum.plus(child.summary));
                    node = &inner.children()[at].node;
                }
                Node::Leaf(leaf) => return sum.plus(in_leaf(leaf, leaf.lower_bound(bound))),
            }
        }
    }
}

/// One key's revisions in one version of the index; never empty.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyHistory<'t> {
    leaf: &'t Leaf,
    at: usize,
}

impl<'t> KeyHistory<'t> {
    pub(super) const fn new(leaf: &'t Leaf, at: usize) -> Self {
        Self { leaf, at }
    }

    pub(super) fn key(&self) -> Key<'t> {
        self.leaf.key(self.at)
    }

    /// The newest revision. O(1).
    pub(crate) fn newest(&self) -> Rev {
        self.leaf.newest(self.at)
    }

    /// The newest revision with main <= `main`, a tombstone too. O(log h) in the length of the history.
    pub(crate) fn at(&self, main: i64) -> Option<Rev> {
        self.leaf.rev_at(self.at, main)
    }

    /// The revisions with main >= `main`, the oldest first. O(1) for each, after a few thousand at most to begin.
    pub(crate) fn since(&self, main: i64) -> impl Iterator<Item = Rev> + 't {
        self.leaf.revs_since(self.at, main)
    }

    /// All revisions, the oldest first.
    #[allow(dead_code, reason = "part of the interface of the index; the store has no use for it yet")]
    pub(crate) fn iter(&self) -> impl Iterator<Item = Rev> + 't {
        self.leaf.revs(self.at)
    }

    /// The number of revisions, 1 at least.
    #[allow(dead_code, reason = "part of the interface of the index; the store has no use for it yet")]
    pub(crate) fn len(&self) -> usize {
        self.leaf.rev_count(self.at)
    }
}
