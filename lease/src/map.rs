//! A persistent ordered map: a weight-balanced tree whose nodes are shared between a map and its clones.
//!
//! A clone costs one reference count. A change copies the nodes on its path if a clone holds them, and changes them in
//! place if not; so many changes between two clones cost little more than in a map without sharing.
//!
//! **Invariant**: of two siblings neither has more than [`WEIGHT`] times the nodes of the other (while they have more than
//! one in all), so a path has O(log n) nodes, whatever the order of insertions.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::sync::Arc;

/// How much heavier than its sibling a subtree may be.
const WEIGHT: usize = 3;
/// An inner grandchild this many times as heavy as the outer one takes a double rotation. With 3 and 2 one rotation, single
/// or double, always restores the balance.
const INNER: usize = 2;

type Link<K, V> = Option<Arc<Node<K, V>>>;

#[derive(Clone, Debug)]
struct Node<K, V> {
    key: K,
    value: V,
    size: usize,
    left: Link<K, V>,
    right: Link<K, V>,
}

/// The map.
#[derive(Clone, Debug)]
pub(crate) struct Map<K, V> {
    root: Link<K, V>,
}

impl<K, V> Default for Map<K, V> {
    fn default() -> Self {
        Map { root: None }
    }
}

fn size<K, V>(link: &Link<K, V>) -> usize {
    link.as_ref().map_or(0, |node| node.size)
}

impl<K: Ord + Clone, V: Clone> Map<K, V> {
    pub(crate) fn len(&self) -> usize {
        size(&self.root)
    }

    pub(crate) fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let mut at = self.root.as_deref();
        while let Some(node) = at {
            at = match key.cmp(node.key.borrow()) {
                Ordering::Less => node.left.as_deref(),
                Ordering::Greater => node.right.as_deref(),
                Ordering::Equal => return Some(&node.value),
            };
        }
        None
    }

    /// Inserts or replaces; returns what was there.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        insert(&mut self.root, key, value)
    }

    /// Removes what is there; costs a lookup if nothing is.
    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        self.get(key)?;
        remove(&mut self.root, key)
    }

    /// The entries from `start` on, in order. O(log n) to begin, then O(1) per entry on average.
    pub(crate) fn from(&self, start: &K) -> Entries<'_, K, V> {
        let mut stack = Vec::new();
        let mut at = self.root.as_deref();
        while let Some(node) = at {
            if *start <= node.key {
                stack.push(node);
                at = node.left.as_deref();
            } else {
                at = node.right.as_deref();
            }
        }
        Entries { stack }
    }

    /// All entries in order.
    pub(crate) fn iter(&self) -> Entries<'_, K, V> {
        let mut entries = Entries { stack: Vec::new() };
        entries.descend(self.root.as_deref());
        entries
    }
}

/// Entries in order.
pub(crate) struct Entries<'a, K, V> {
    /// The next entry on top; each one's right subtree comes before the one below it.
    stack: Vec<&'a Node<K, V>>,
}

impl<'a, K, V> Entries<'a, K, V> {
    fn descend(&mut self, mut at: Option<&'a Node<K, V>>) {
        while let Some(node) = at {
            self.stack.push(node);
            at = node.left.as_deref();
        }
    }
}

impl<'a, K, V> Iterator for Entries<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        let node = self.stack.pop()?;
        self.descend(node.right.as_deref());
        Some((&node.key, &node.value))
    }
}

fn insert<K: Ord + Clone, V: Clone>(link: &mut Link<K, V>, key: K, value: V) -> Option<V> {
    let Some(shared) = link else {
        *link = Some(Arc::new(Node { key, value, size: 1, left: None, right: None }));
        return None;
    };
    let node = Arc::make_mut(shared);
    let replaced = match key.cmp(&node.key) {
        Ordering::Less => insert(&mut node.left, key, value),
        Ordering::Greater => insert(&mut node.right, key, value),
        Ordering::Equal => return Some(std::mem::replace(&mut node.value, value)),
    };
    if replaced.is_none() {
        node.settle();
    }
    replaced
}

/// Removes an entry that is there.
fn remove<K: Ord + Clone, V: Clone>(link: &mut Link<K, V>, key: &K) -> Option<V> {
    let node = Arc::make_mut(link.as_mut()?);
    let side = match key.cmp(&node.key) {
        Ordering::Less => &mut node.left,
        Ordering::Greater => &mut node.right,
        Ordering::Equal => {
            let Node { value, left, right, .. } = Arc::unwrap_or_clone(link.take()?);
            *link = glue(left, right);
            return Some(value);
        }
    };
    let removed = remove(side, key);
    node.settle();
    removed
}

/// Joins two neighbours whose parent is gone.
fn glue<K: Ord + Clone, V: Clone>(mut left: Link<K, V>, mut right: Link<K, V>) -> Link<K, V> {
    // The heavier side gives up the new parent, so that the two cannot get out of balance.
    let (key, value) = match size(&left) > size(&right) {
        true => pop(&mut left, |node| &mut node.right, |node| node.left.take())?,
        false => match pop(&mut right, |node| &mut node.left, |node| node.right.take()) {
            Some(first) => first,
            None => return left,
        },
    };
    let mut node = Node { key, value, size: 0, left, right };
    node.settle();
    Some(Arc::new(node))
}

/// Takes out the outermost entry on the side of `outer`; `rest` is what that entry leaves behind.
fn pop<K: Ord + Clone, V: Clone>(
    link: &mut Link<K, V>,
    outer: impl Fn(&mut Node<K, V>) -> &mut Link<K, V> + Copy,
    rest: impl Fn(&mut Node<K, V>) -> Link<K, V> + Copy,
) -> Option<(K, V)> {
    let node = Arc::make_mut(link.as_mut()?);
    if outer(node).is_some() {
        let popped = pop(outer(node), outer, rest);
        node.settle();
        return popped;
    }
    let mut node = Arc::unwrap_or_clone(link.take()?);
    *link = rest(&mut node);
    Some((node.key, node.value))
}

impl<K: Ord + Clone, V: Clone> Node<K, V> {
    fn count(&mut self) {
        self.size = 1 + size(&self.left) + size(&self.right);
    }

    /// Counts again, and restores the balance after one change below.
    fn settle(&mut self) {
        self.count();
        if self.size <= 2 {
            return;
        }
        if size(&self.right) > WEIGHT * size(&self.left) {
            if let Some(child) = self.right.as_mut()
                && size(&child.left) >= INNER * size(&child.right)
            {
                Arc::make_mut(child).rotate_right();
            }
            self.rotate_left();
        } else if size(&self.left) > WEIGHT * size(&self.right) {
            if let Some(child) = self.left.as_mut()
                && size(&child.right) >= INNER * size(&child.left)
            {
                Arc::make_mut(child).rotate_left();
            }
            self.rotate_right();
        }
    }

    fn rotate_left(&mut self) {
        let Some(child) = self.right.take() else { return };
        let mut child = Arc::unwrap_or_clone(child);
        self.right = child.left.take();
        self.count();
        std::mem::swap(self, &mut child);
        self.left = Some(Arc::new(child));
        self.count();
    }

    fn rotate_right(&mut self) {
        let Some(child) = self.left.take() else { return };
        let mut child = Arc::unwrap_or_clone(child);
        self.left = child.right.take();
        self.count();
        std::mem::swap(self, &mut child);
        self.right = Some(Arc::new(child));
        self.count();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn check(link: &Link<u16, u32>) -> usize {
        let Some(node) = link else { return 0 };
        let (left, right) = (check(&node.left), check(&node.right));
        assert_eq!(node.size, left + right + 1);
        let fits = |light: usize, heavy: usize| light + heavy <= 1 || heavy <= WEIGHT * light;
        assert!(fits(left, right) && fits(right, left), "{left} beside {right}");
        node.size
    }

    fn entries(map: &Map<u16, u32>) -> Vec<(u16, u32)> {
        map.iter().map(|(key, value)| (*key, *value)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// As `BTreeMap`, balanced after every step, and a clone keeps what it had.
        #[test]
        fn agrees_with_a_model(steps in prop::collection::vec((0u8..8, 0u16..60, any::<u32>()), 1..300)) {
            let (mut map, mut model) = (Map::default(), BTreeMap::new());
            let mut clones = Vec::new();
            for (what, key, value) in steps {
                match what {
                    0..4 => prop_assert_eq!(map.insert(key, value), model.insert(key, value)),
                    4..7 => prop_assert_eq!(map.remove(&key), model.remove(&key)),
                    _ => clones.push((map.clone(), model.clone())),
                }
                check(&map.root);
                prop_assert_eq!(map.len(), model.len());
                prop_assert_eq!(map.get(&key), model.get(&key));
                let from: Vec<u16> = map.from(&key).map(|(key, _)| *key).collect();
                prop_assert_eq!(from, model.range(key..).map(|(key, _)| *key).collect::<Vec<_>>());
            }
            clones.push((map, model));
            for (map, model) in clones {
                prop_assert_eq!(entries(&map), model.into_iter().collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn ascending_and_descending_insertions_stay_balanced() {
        for key in [|at: u16| at, |at: u16| 9_999 - at] {
            let mut map = Map::default();
            for at in 0..10_000 {
                map.insert(key(at), 0);
            }
            assert_eq!(check(&map.root), 10_000);
            for at in (0..10_000).step_by(3) {
                map.remove(&key(at));
            }
            assert_eq!(check(&map.root), 6_666);
        }
    }
}
