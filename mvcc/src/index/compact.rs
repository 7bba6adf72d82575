//! Logical compaction: forgets what nobody may read any more, and joins the nodes that become too small.
//!
//! At revision R, of the revisions of a key with main <= R all but the newest go. That one goes too if it is a
//! tombstone,
//! unless its main is R itself; then the next compaction takes it. Revisions with main > R stay. A key without
//! revisions is
//! gone. So what is left depends on the operations and the compactions alone.
//!
//! Compaction works on copies of the nodes that it changes; every node is copied at most once.

use super::leaf::Leaf;
use super::node::{Branch, Child, INNER_CHILDREN, Inner, Node, split};
use super::revision::Rev;
use super::tree::Tree;

/// The revisions that a compaction dropped, the oldest first.
#[allow(dead_code, reason = "part of the interface of the index; the store has no use for it yet")]
pub(crate) type CompactedRevs = Vec<Rev>;

impl Tree {
    /// Compacts the whole tree at revision `at` and tells `on_drop` each key, in order, with the revisions that it
    /// lost.
    ///
    /// Costs O(leaves that lose something · log n) and O(revisions dropped): every child carries the smallest revision
    /// at
    /// which something in it would be dropped, so subtrees that lose nothing are not entered.
    pub(crate) fn compact(&mut self, at: i64, on_drop: impl FnMut(&[u8], &[Rev])) {
        self.run(Pass { at, only: None, on_drop, key: Vec::new(), dropped: Vec::new() });
    }

    /// Compacts one key at revision `at` and returns the revisions dropped. O(log n + revisions dropped).
    #[allow(dead_code, reason = "part of the interface of the index; the store has no use for it yet")]
    pub(crate) fn compact_key(&mut self, key: &[u8], at: i64) -> CompactedRevs {
        let mut all_dropped = Vec::new();
        let on_drop = |_: &[u8], dropped: &[Rev]| all_dropped.extend_from_slice(dropped);
        self.run(Pass { at, only: Some(key), on_drop, key: Vec::new(), dropped: Vec::new() });
        all_dropped
    }

    fn run<F: FnMut(&[u8], &[Rev])>(&mut self, mut pass: Pass<'_, F>) {
        if self.root.summary.due > pass.at {
            return;
        }
        if let Some(root) = pass.node(&self.root.node) {
            self.root = root;
        }
        while let Node::Inner(inner) = &*self.root.node
            && inner.children().len() < 2
        {
            self.root = inner.children().first().cloned().unwrap_or_else(|| Child::leaf(Leaf::default()));
        }
    }
}

/// One compaction on its way through the tree.
struct Pass<'a, F> {
    at: i64,
    /// Compact this key alone.
    only: Option<&'a [u8]>,
    on_drop: F,
    // Buffers that are used again for every key.
    key: Vec<u8>,
    dropped: Vec<Rev>,
}

impl<F: FnMut(&[u8], &[Rev])> Pass<'_, F> {
    /// The node that takes the place of `node`, perhaps without keys; `None` if nothing was dropped.
    fn node(&mut self, node: &Node) -> Option<Child> {
        match node {
            Node::Leaf(leaf) => self.leaf(leaf),
            Node::Inner(inner) => self.inner(inner),
        }
    }

    fn leaf(&mut self, leaf: &Leaf) -> Option<Child> {
        let only = self.only.map(|key| leaf.search(key));
        let due = |at| only.is_none_or(|only| only == Ok(at)) && leaf.due(at) <= self.at;
        let due = (0..leaf.len()).map(due).collect::<Vec<_>>();
        if !due.contains(&true) {
            return None;
        }
        let mut kept = Vec::with_capacity(leaf.len());
        for (at, mut entry) in leaf.entries().enumerate() {
            if due[at] {
                let revs = self.drop_from(leaf, at);
                if revs.left == 0 {
                    continue;
                }
                entry.older = entry.older.and_then(|older| older.without_first(revs.dropped));
            }
            kept.push(entry);
        }
        Some(Child::leaf(Leaf::build(kept)))
    }

    /// Counts and announces what the key at index `at` of `leaf` loses.
    fn drop_from(&mut self, leaf: &Leaf, at: usize) -> Counts {
        let upto = |rev: &Rev| rev.at.main() <= self.at;
        self.dropped.clear();
        self.dropped.extend(leaf.revs(at).take_while(upto));
        let kept = self.dropped.pop_if(|newest| !newest.is_tombstone() || newest.at.main() == self.at);
        debug_assert!(!self.dropped.is_empty(), "a key that is due loses something; it keeps {kept:?}");
        self.key.clear();
        leaf.key(at).append_to(&mut self.key);
        (self.on_drop)(&self.key, &self.dropped);
        Counts { dropped: self.dropped.len(), left: leaf.rev_count(at) - self.dropped.len() }
    }

    fn inner(&mut self, inner: &Inner) -> Option<Child> {
        let only = self.only.map(|key| inner.child_for(key));
        let mut changed = Vec::new();
        for (at, child) in inner.children().iter().enumerate() {
            if child.summary.due <= self.at
                && only.is_none_or(|only| only == at)
                && let Some(new) = self.node(&child.node)
            {
                changed.push((at, new));
            }
        }
        if changed.is_empty() {
            return None;
        }
        if changed.iter().any(|(_, child)| child.node.is_sparse()) {
            let mut branches = inner.branches(Vec::new());
            for (at, child) in changed {
                branches[at].child = child;
            }
            branches.retain(|branch| branch.child.summary.keys > 0);
            return Some(Child::inner(Inner::build(join_sparse(branches))));
        }
        let mut copy = inner.clone();
        for (at, child) in changed {
            *copy.child_mut(at) = child;
        }
        Some(Child::inner(copy))
    }
}

struct Counts {
    dropped: usize,
    left: usize,
}

/// Joins what is sparse among neighbours.
fn join_sparse(branches: Vec<Branch>) -> Vec<Branch> {
    let mut joined = Vec::<Branch>::with_capacity(branches.len());
    for branch in branches {
        let mut next = Some(branch);
        while let Some(right) = next.take() {
            match joined.pop() {
                None => joined.push(right),
                Some(left) if !left.child.node.is_sparse() && !right.child.node.is_sparse() => {
                    joined.extend([left, right]);
                }
                Some(left) => {
                    let mut pair = join(left, right);
                    // One node of two may still be sparse: try it against its left neighbour.
                    if pair.len() == 1 {
                        next = pair.pop();
                    }
                    joined.extend(pair);
                }
            }
        }
    }
    joined
}

/// One node with all that two neighbours hold; or two, if it is too much for one.
fn join(left: Branch, right: Branch) -> Vec<Branch> {
    match (&*left.child.node, &*right.child.node) {
        (Node::Leaf(a), Node::Leaf(b)) => match a.joined_with(b) {
            Some(leaf) => vec![Branch { low: left.low, child: Child::leaf(leaf) }],
            None => vec![left, right],
        },
        (Node::Inner(a), Node::Inner(b)) => {
            let mut branches = a.branches(left.low);
            branches.extend(b.branches(right.low));
            let mut branches = join_sparse(branches);
            if branches.len() > INNER_CHILDREN {
                let half = branches.len() / 2;
                return split(branches, half);
            }
            let low = branches.first_mut().map(|first| std::mem::take(&mut first.low)).unwrap_or_default();
            vec![Branch { low, child: Child::inner(Inner::build(branches)) }]
        }
        (Node::Leaf(_), Node::Inner(_)) | (Node::Inner(_), Node::Leaf(_)) => vec![left, right],
    }
}
