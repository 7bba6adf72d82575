//! `Node`: a leaf, or an inner node with the summaries of its children.
//!
//! ```text
//!  separators     [    g    |    p    ]           children i holds  separator i-1 <= key < separator i
//!  children   [ child | child | child ]           each: node, live keys, keys, due, sum of fingerprints
//! ```
//!
//! **Invariant**: an inner node has two children or more; all leaves are at the same depth and only the root may be an
//! empty leaf.
//! **Invariant**: a child's summary is the summary of what is below it.

use std::sync::Arc;

use super::keys::{Key, Keys, reserve_stepwise};
use super::leaf::Leaf;
use super::summary::Summary;

/// The most children of an inner node. Copying one counts every child once more and once less, which is the dearest
/// part of
/// an insertion with a publish. Measured with 1,000,000 keys: 64 costs a quarter more per insertion, 32 a tenth, 8 as
/// much as
/// 32 (more levels); a get is a sixth faster with 64.
pub(super) const INNER_CHILDREN: usize = 16;
/// The most bytes of separators in an inner node with four children or more.
const INNER_BYTES: usize = 8 * 1024;

/// A node of the tree.
#[derive(Clone, Debug)]
pub(super) enum Node {
    Leaf(Leaf),
    Inner(Inner),
}

/// A node and what is below it.
#[derive(Clone, Debug)]
pub(super) struct Child {
    pub(super) node: Arc<Node>,
    pub(super) summary: Summary,
}

/// A child on its way from node to node, with the separator before it.
#[derive(Clone, Debug)]
pub(super) struct Branch {
    /// Above all keys before the child and not above any in it. Not looked at in the first child of a node.
    pub(super) low: Vec<u8>,
    pub(super) child: Child,
}

#[derive(Clone, Debug)]
pub(super) struct Inner {
    separators: Keys,
    children: Vec<Child>,
}

impl Child {
    pub(super) fn leaf(leaf: Leaf) -> Self {
        let summary = leaf.summary();
        Self { node: Arc::new(Node::Leaf(leaf)), summary }
    }

    pub(super) fn inner(inner: Inner) -> Self {
        let summary = inner.children.iter().fold(Summary::EMPTY, |sum, child| sum.plus(child.summary));
        Self { node: Arc::new(Node::Inner(inner)), summary }
    }
}

impl Inner {
    pub(super) fn build(branches: Vec<Branch>) -> Self {
        let separators = Keys::build(branches.iter().skip(1).map(|branch| Key::whole(&branch.low)));
        let children = branches.into_iter().map(|branch| branch.child).collect();
        Self { separators, children }
    }

    pub(super) fn children(&self) -> &[Child] {
        &self.children
    }

    pub(super) fn child_mut(&mut self, at: usize) -> &mut Child {
        &mut self.children[at]
    }

    /// The separator before the child at index `at`, which must not be the first.
    pub(super) fn separator(&self, at: usize) -> Key<'_> {
        self.separators.get(at - 1)
    }

    /// The index of the child that has `key`, if the tree has it.
    pub(super) fn child_for(&self, key: &[u8]) -> usize {
        match self.separators.search(key) {
            Ok(at) => at + 1,
            Err(at) => at,
        }
    }

    /// The children as branches; `low` becomes the separator of the first.
    pub(super) fn branches(&self, low: Vec<u8>) -> Vec<Branch> {
        let mut low = Some(low);
        let with_low = |(at, child): (usize, &Child)| {
            let low = low.take().unwrap_or_else(|| self.separator(at).to_vec());
            Branch { low, child: child.clone() }
        };
        self.children.iter().enumerate().map(with_low).collect()
    }

    /// Puts `parts` in the place of the child at index `at`.
    pub(super) fn replace(&mut self, at: usize, parts: Vec<Branch>) {
        let extra = parts.len().saturating_sub(1);
        reserve_stepwise(&mut self.children, extra, extra);
        for (nth, Branch { low, child }) in parts.into_iter().enumerate() {
            if nth == 0 {
                self.children[at] = child;
            } else {
                self.separators.insert(at + nth - 1, &low);
                self.children.insert(at + nth, child);
            }
        }
    }

    /// Whether this node has to be split.
    pub(super) fn overflows(&self) -> bool {
        let len = self.children.len();
        len > INNER_CHILDREN || (len >= 4 && self.separators.byte_len() > INNER_BYTES)
    }

    /// Whether there is so little in it that it should be joined with a neighbour.
    pub(super) fn is_sparse(&self) -> bool {
        self.children.len() < INNER_CHILDREN / 4
    }

    /// Two nodes with the children of this one, `left` of them in the first.
    pub(super) fn split(&self, left: usize) -> Vec<Branch> {
        split(self.branches(Vec::new()), left)
    }

    /// The bytes of memory held beyond the struct itself, children not included.
    #[cfg(test)]
    pub(super) fn heap_bytes(&self) -> usize {
        self.separators.heap_bytes() + self.children.capacity() * size_of::<Child>()
    }
}

/// Two nodes with `branches` as children, `left` of them in the first.
pub(super) fn split(mut branches: Vec<Branch>, left: usize) -> Vec<Branch> {
    let right = branches.split_off(left);
    [branches, right]
        .into_iter()
        .map(|mut half| {
            let low = half.first_mut().map(|first| std::mem::take(&mut first.low)).unwrap_or_default();
            Branch { low, child: Child::inner(Inner::build(half)) }
        })
        .collect()
}

impl Node {
    /// Whether there is so little in it that it should be joined with a neighbour.
    pub(super) fn is_sparse(&self) -> bool {
        match self {
            Self::Leaf(leaf) => leaf.is_sparse(),
            Self::Inner(inner) => inner.is_sparse(),
        }
    }
}
