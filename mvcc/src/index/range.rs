//! `Range`: the keys from one bound to another, leaf by leaf.

use super::keys::Key;
use super::leaf::Leaf;
use super::node::{Inner, Node};
use super::tree::KeyHistory;

/// See [`Tree::range`](super::Tree::range).
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
}

impl<'t> Range<'t> {
    pub(super) fn new(root: &'t Node, start: &[u8], end: Option<&[u8]>) -> Self {
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
                    let mut range = Self { path, leaf, at, leaf_end: 0, end: end.map(Into::into), more: true };
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
        let mut node = loop {
            let (inner, at) = self.path.last_mut()?;
            if let Some(child) = inner.children().get(*at) {
                *at += 1;
                break &*child.node;
            }
            self.path.pop();
        };
        loop {
            match node {
                Node::Inner(inner) => {
                    self.path.push((inner, 1));
                    node = &inner.children()[0].node;
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
    use super::super::tests::new_rev;
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
}
