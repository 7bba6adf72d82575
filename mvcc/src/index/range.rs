//! `Range`: the keys from one bound to another, leaf by leaf, or without the leaves that have no live key.

use super::keys::Key;
use super::leaf::Leaf;
use super::node::{Inner, Node};
use super::tree::KeyHistory;

/// See [`Tree::range`](super::Tree::range) and [`Tree::range_live`](super::Tree::range_live).
#[derive(Clone, Debug)]
pub(crate) struct Range<'t> {
    /// The inner nodes above the leaf, each with the index of the child to visit next.
    path: Vec<(&'t Inner, usize)>,
    leaf: &'t Leaf,
    at: usize,
    /// The end of the range within the leaf.
    leaf_end: usize,
    /// The end of the range, until the leaf that has it is reached.
    end: Option<Box<[u8]>>,
    /// Whether there may be leaves to visit after this one.
    more: bool,
    /// Whether nodes without a live key are passed over.
    live: bool,
}

impl<'t> Range<'t> {
    pub(super) fn new(root: &'t Node, start: &[u8], end: Option<&[u8]>, live: bool) -> Self {
        let mut path = Vec::with_capacity(8);
        let mut node = root;
        loop {
            match node {
                Node::Inner(inner) => {
                    let at = inner.child_for(start);
                    path.push((inner, at + 1));
                    node = &inner.children()[at].node;
                }
                Node::Leaf(leaf) => {
                    let at = leaf.lower_bound(start);
                    let end = end.map(Into::into);
                    let mut range = Self { path, leaf, at, leaf_end: 0, end, more: true, live };
                    range.enter_leaf();
                    return range;
                }
            }
        }
    }

    /// Finds the end of the range in the leaf, with one comparison if it is not there.
    fn enter_leaf(&mut self) {
        self.leaf_end = self.leaf.len();
        if let Some(end) = &self.end {
            let bound = self.leaf.lower_bound(end);
            // A bound behind the last key of this leaf may still be behind the first ones of the next.
            self.more = bound == self.leaf_end;
            self.leaf_end = bound;
        }
    }

    /// Goes on to the next leaf; `None` if there is none.
    fn next_leaf(&mut self) -> Option<()> {
        if !self.more {
            return None;
        }
        let live = self.live;
        let next = |inner: &'t Inner, from: usize| {
            (from..inner.children().len()).find(|at| !live || inner.children()[*at].summary.live > 0)
        };
        let mut node = loop {
            let (inner, at) = self.path.last_mut()?;
            if let Some(found) = next(inner, *at) {
                *at = found + 1;
                break &*inner.children()[found].node;
            }
            self.path.pop();
        };
        loop {
            match node {
                Node::Inner(inner) => {
                    // There is one, or this node would have been passed over.
                    let found = next(inner, 0)?;
                    self.path.push((inner, found + 1));
                    node = &inner.children()[found].node;
                }
                Node::Leaf(leaf) => {
                    (self.leaf, self.at) = (leaf, 0);
                    self.enter_leaf();
                    return Some(());
                }
            }
        }
    }
}

impl<'t> Iterator for Range<'t> {
    type Item = (Key<'t>, KeyHistory<'t>);

    fn next(&mut self) -> Option<Self::Item> {
        while self.at >= self.leaf_end {
            self.next_leaf()?;
        }
        let history = KeyHistory::new(self.leaf, self.at);
        self.at += 1;
        Some((history.key(), history))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Tree;
    use super::super::tests::{new_rev, tombstone};
    use super::Range;

    #[test]
    fn stops_in_the_leaf_that_has_the_end() {
        let tree = Tree::bulk((0..10_000u32).map(|n| (n.to_be_bytes(), [new_rev(1)])));
        let mut range = tree.range(&5u32.to_be_bytes(), Some(&9u32.to_be_bytes()));
        let leaf = |range: &Range<'_>| std::ptr::from_ref(range.leaf);
        let first = leaf(&range);
        assert_eq!(range.by_ref().count(), 4);
        assert_eq!(leaf(&range), first, "leaves behind the end are not visited");
    }

    #[test]
    fn what_has_no_live_key_is_passed_over() {
        const N: u32 = 100_000;
        let is_live = |n: u32| n % 30_000 == 7 || n == N - 1;
        let revs = |n: u32| if is_live(n) { vec![new_rev(1)] } else { vec![new_rev(1), tombstone(2)] };
        let tree = Tree::bulk((0..N).map(|n| (n.to_be_bytes(), revs(n))));
        let bounds = [(0, None), (8, None), (0, Some(30_007)), (0, Some(30_008)), (40_000, Some(50_000)), (N, None)];
        for (start, end) in bounds {
            let bytes = end.map(u32::to_be_bytes);
            let found: Vec<_> = tree.range_live(&start.to_be_bytes(), bytes.as_ref().map(|end| &end[..])).collect();
            let live = found.iter().filter(|(_, history)| !history.newest().is_tombstone()).count();
            assert_eq!(live, (start..end.unwrap_or(N)).filter(|n| is_live(*n)).count(), "{start}..{end:?}");
            // Of those without, what shares a leaf with one, and with the start.
            assert!(found.len() < 1_000, "{start}..{end:?}: {} keys", found.len());
        }
    }
}
