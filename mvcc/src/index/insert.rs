//! Insertion: down the path of one key, in place where the node is ours alone, in a copy where a reader may have it.

use std::sync::Arc;

use super::keys::Key;
use super::leaf::{Entry, LEAF_BYTES, LEAF_KEYS, Leaf, bytes_of, new_key};
use super::node::{Branch, Child, Node};
use super::revision::Rev;
use super::summary::Summary;

/// What an insertion did to a node.
pub(super) struct Grown {
    /// How the summary of the node changed.
    pub(super) change: Summary,
    /// If not empty: the nodes to put in the place of this one, which must not be used any more.
    pub(super) parts: Vec<Branch>,
}

/// Adds revision `rev` of `key` below `node`. `last` says that no key of the tree is to the right of this node.
///
/// O(log n) nodes are changed or copied; a copy costs a bounded number of memcpys and, in inner nodes, reference
/// counts.
pub(super) fn insert(node: &mut Arc<Node>, key: &[u8], rev: Rev, last: bool) -> Grown {
    let mut place = Err(0);
    if let Node::Leaf(leaf) = &**node {
        place = leaf.search(key);
        if let Err(at) = place
            && leaf.overflows_with(key)
        {
            return Grown { change: new_key(key, &rev), parts: cut_with(leaf, at, key, rev, last) };
        }
        // The writer alone makes new references, so a count of 1 cannot grow behind its back.
        if Arc::strong_count(node) > 1 {
            let copy = leaf.copy_for(key, place.is_ok());
            *node = Arc::new(Node::Leaf(copy));
        }
    }
    match Arc::make_mut(node) {
        Node::Leaf(leaf) => Grown { change: leaf.put(place, key, rev), parts: Vec::new() },
        Node::Inner(inner) => {
            let at = inner.child_for(key);
            let last = last && at + 1 == inner.children().len();
            let child = inner.child_mut(at);
            let Grown { change, parts } = insert(&mut child.node, key, rev, last);
            if parts.is_empty() {
                child.summary = child.summary.plus(change);
                return Grown { change, parts };
            }
            inner.replace(at, parts);
            if !inner.overflows() {
                return Grown { change, parts: Vec::new() };
            }
            let len = inner.children().len();
            let left = if last { len - 2 } else { len / 2 };
            Grown { change, parts: inner.split(left) }
        }
    }
}

/// The leaves that `leaf` becomes with the new `key` at index `at`.
fn cut_with(leaf: &Leaf, at: usize, key: &[u8], rev: Rev, last: bool) -> Vec<Branch> {
    let mut entries = Vec::with_capacity(leaf.len() + 1);
    entries.extend(leaf.entries());
    entries.insert(at, Entry { key: Key::whole(key), newest: rev, older: None });
    // Keys that only ever go up leave full leaves behind.
    let full_left = last && at == leaf.len();
    let mut parts = Vec::with_capacity(2);
    cut(entries, full_left, &mut parts);
    parts
}

/// Appends the leaves that hold `entries` to `parts`.
fn cut(mut entries: Vec<Entry<'_>>, full_left: bool, parts: &mut Vec<Branch>) {
    match cut_point(&entries, full_left) {
        Some(left) => {
            let right = entries.split_off(left);
            cut(entries, false, parts);
            cut(right, false, parts);
        }
        None => push_leaf(parts, entries),
    }
}

/// Makes a leaf of `entries` and appends it to its left neighbours.
pub(super) fn push_leaf(parts: &mut Vec<Branch>, entries: Vec<Entry<'_>>) {
    let low = match (parts.last().map(|branch| &*branch.child.node), entries.first()) {
        (Some(Node::Leaf(left)), Some(first)) => left.key(left.len() - 1).separator(&first.key),
        (Some(Node::Inner(_)) | None, _) | (_, None) => Vec::new(),
    };
    parts.push(Branch { low, child: Child::leaf(Leaf::build(entries)) });
}

/// How many of `entries` to cut off on the left; `None` if all fit in one leaf.
fn cut_point(entries: &[Entry<'_>], full_left: bool) -> Option<usize> {
    let bytes = bytes_of(entries);
    if entries.len() < 2 || (entries.len() <= LEAF_KEYS && bytes <= LEAF_BYTES) {
        return None;
    }
    if full_left {
        return Some(entries.len() - 1);
    }
    if bytes <= LEAF_BYTES {
        return Some(entries.len() / 2);
    }
    // By bytes: where the heavier side is lightest.
    let total = entries.iter().map(|entry| entry.key.len()).sum::<usize>();
    let mut left = 0;
    let heavier_side = entries[..entries.len() - 1].iter().enumerate().map(|(at, entry)| {
        left += entry.key.len();
        (left.max(total - left), at + 1)
    });
    heavier_side.min().map(|(_, at)| at)
}
