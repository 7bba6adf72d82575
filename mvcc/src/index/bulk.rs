//! Bulk building: a dense tree from sorted keys, from the leaves up.

use super::history::History;
use super::insert::push_leaf;
use super::keys::Key;
use super::leaf::{Entry, LEAF_BYTES, LEAF_KEYS};
use super::node::{Branch, Child, INNER_CHILDREN, Inner};
use super::revision::Rev;
use super::tree::Tree;

/// Leaves and inner nodes are filled to 7/8, so that the first insertions do not split them all.
const LEAF_FILL: usize = LEAF_KEYS / 8 * 7;
const INNER_FILL: usize = INNER_CHILDREN / 8 * 7;

impl Tree {
    /// A tree of keys in strictly ascending order, each with its revisions, the oldest first. Keys without revisions
    /// are left
    /// out. O(n), with a handful of allocations per leaf.
    pub(crate) fn bulk<K: AsRef<[u8]>, R: AsRef<[Rev]>>(sorted: impl IntoIterator<Item = (K, R)>) -> Self {
        let mut leaves = Vec::new();
        let mut group = Vec::<(K, R)>::with_capacity(LEAF_FILL);
        let mut key_bytes = 0;
        for (key, revs) in sorted {
            let bytes = key.as_ref();
            debug_assert!(group.last().is_none_or(|(last, _)| last.as_ref() < bytes), "bulk takes sorted keys");
            if revs.as_ref().is_empty() {
                continue;
            }
            if group.len() == LEAF_FILL || (!group.is_empty() && !fits(&group, key_bytes, bytes)) {
                push_group(&mut leaves, &group);
                group.clear();
                key_bytes = 0;
            }
            key_bytes += bytes.len();
            group.push((key, revs));
        }
        push_group(&mut leaves, &group);
        Self::of_leaves(leaves)
    }

    fn of_leaves(mut level: Vec<Branch>) -> Self {
        while level.len() > 1 {
            // Shared out evenly, so that no node is left with a single child.
            let nodes = level.len().div_ceil(INNER_FILL);
            let (each, one_more) = (level.len() / nodes, level.len() % nodes);
            let mut children = level.into_iter();
            level = (0..nodes)
                .map(|nth| {
                    let mut branches = Vec::with_capacity(each + 1);
                    branches.extend(children.by_ref().take(each + usize::from(nth < one_more)));
                    let low = branches.first_mut().map(|first| std::mem::take(&mut first.low)).unwrap_or_default();
                    Branch { low, child: Child::inner(Inner::build(branches)) }
                })
                .collect();
        }
        level.pop().map_or_else(Self::new, |root| Self { root: root.child })
    }
}

/// Whether the keys of `group`, which have `key_bytes` bytes, and `key` fit in a leaf.
fn fits<K: AsRef<[u8]>, R>(group: &[(K, R)], key_bytes: usize, key: &[u8]) -> bool {
    let shared = group.first().map_or(0, |(first, _)| Key::whole(first.as_ref()).shared_with(&Key::whole(key)));
    key_bytes + key.len() - shared * group.len() <= LEAF_BYTES
}

fn push_group<K: AsRef<[u8]>, R: AsRef<[Rev]>>(leaves: &mut Vec<Branch>, group: &[(K, R)]) {
    let entries = group.iter().filter_map(|(key, revs)| {
        let (newest, older) = revs.as_ref().split_last()?;
        let older = if older.is_empty() { None } else { Some(History::append(None, older)) };
        Some(Entry { key: Key::whole(key.as_ref()), newest: *newest, older })
    });
    let entries = entries.collect::<Vec<_>>();
    if !entries.is_empty() {
        push_leaf(leaves, entries);
    }
}
