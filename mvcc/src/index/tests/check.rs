//! The invariants of the tree, checked from the leaves up.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::super::leaf::{LEAF_BYTES, LEAF_KEYS, Leaf};
use super::super::node::{Child, INNER_CHILDREN, Node};
use super::super::summary::{Summary, due};
use super::super::tree::Tree;

/// What a tree consists of.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) leaves: usize,
    pub(super) inners: usize,
    pub(super) depth: usize,
    /// The memory of all nodes and histories, without the allocator's share.
    pub(super) bytes: usize,
}

/// The addresses of all nodes.
pub(super) fn nodes(tree: &Tree) -> BTreeSet<*const Node> {
    fn collect(node: &Arc<Node>, nodes: &mut BTreeSet<*const Node>) {
        nodes.insert(Arc::as_ptr(node));
        if let Node::Inner(inner) = &**node {
            inner.children().iter().for_each(|child| collect(&child.node, nodes));
        }
    }
    let mut all = BTreeSet::new();
    collect(&tree.root.node, &mut all);
    all
}

/// How many nodes `new` has that are not nodes of `old` too.
pub(super) fn copied_nodes(old: &Tree, new: &Tree) -> usize {
    nodes(new).difference(&nodes(old)).count()
}

/// Panics if anything about `tree` is not as it must be.
pub(super) fn check(tree: &Tree) -> Shape {
    let mut shape = Shape::default();
    shape.depth = check_child(&tree.root, None, None, true, &mut shape);
    let mut last: Option<Vec<u8>> = None;
    for (key, _) in tree.range(b"", None) {
        let key = key.to_vec();
        assert!(last.is_none_or(|last| last < key), "keys ascend");
        last = Some(key);
    }
    shape
}

/// Checks a child whose keys must be in `low..high`; returns its depth.
fn check_child(child: &Child, low: Option<&[u8]>, high: Option<&[u8]>, root: bool, shape: &mut Shape) -> usize {
    shape.bytes += size_of::<Node>() + 2 * size_of::<usize>();
    match &*child.node {
        Node::Leaf(leaf) => {
            shape.leaves += 1;
            shape.bytes += leaf.heap_bytes();
            check_leaf(leaf, low, high, root, shape);
            assert_eq!(child.summary, summary_of(leaf), "the summary of a leaf");
            1
        }
        Node::Inner(inner) => {
            shape.inners += 1;
            shape.bytes += inner.heap_bytes();
            let children = inner.children();
            assert!((2..=INNER_CHILDREN).contains(&children.len()), "{} children", children.len());
            let separators = (1..children.len()).map(|at| inner.separator(at).to_vec()).collect::<Vec<_>>();
            assert!(separators.is_sorted_by(|a, b| a < b), "separators ascend: {separators:?}");
            let mut sum = Summary::EMPTY;
            let mut depths = Vec::new();
            for (at, below) in children.iter().enumerate() {
                let low = if at == 0 { low } else { Some(&separators[at - 1][..]) };
                let high = separators.get(at).map_or(high, |next| Some(&next[..]));
                depths.push(check_child(below, low, high, false, shape));
                sum = sum.plus(below.summary);
            }
            assert_eq!(child.summary, sum, "the summary of an inner node");
            assert!(depths.iter().all(|depth| *depth == depths[0]), "leaves at different depths");
            depths[0] + 1
        }
    }
}

fn check_leaf(leaf: &Leaf, low: Option<&[u8]>, high: Option<&[u8]>, root: bool, shape: &mut Shape) {
    assert!(root || leaf.len() > 0, "an empty leaf");
    assert!(leaf.len() <= LEAF_KEYS, "{} keys in a leaf", leaf.len());
    assert!(leaf.len() <= 1 || leaf.key_bytes() <= LEAF_BYTES, "{} bytes of keys in a leaf", leaf.key_bytes());
    assert!(leaf.recent_is_bounded(), "too many revisions outside the table");
    for at in 0..leaf.len() {
        let key = leaf.key(at).to_vec();
        assert_eq!(leaf.search(&key), Ok(at));
        assert!(low.is_none_or(|low| low <= &key[..]) && high.is_none_or(|high| &key[..] < high), "{key:?} is astray");
        let revs = leaf.revs(at).collect::<Vec<_>>();
        assert!(revs.is_sorted_by(|a, b| a.at < b.at), "the revisions of {key:?} ascend");
        assert_eq!(revs.len(), leaf.rev_count(at));
        assert_eq!(*revs.last().unwrap(), leaf.newest(at));
        assert_eq!(leaf.due(at), due(&revs[0], revs.get(1)));
        shape.bytes += leaf.entry(at).older.map_or(0, |older| older.heap_bytes());
    }
}

/// The summary, the slow way.
fn summary_of(leaf: &Leaf) -> Summary {
    let mut summary = Summary::EMPTY;
    for at in 0..leaf.len() {
        let revs = leaf.revs(at).collect::<Vec<_>>();
        summary.keys += 1;
        summary.bytes += leaf.key(at).to_vec().len() as u64;
        summary.live += u64::from(!revs.last().unwrap().is_tombstone());
        summary.due = summary.due.min(due(&revs[0], revs.get(1)));
        summary.sum = revs.iter().fold(summary.sum, |sum, rev| sum.wrapping_add(rev.print));
    }
    summary
}
