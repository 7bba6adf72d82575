//! Which watched ranges hold a key: a treap in the order of the ranges' starts, each node knowing the furthest end below it.
//!
//! **Invariant**: in-order, nodes ascend by (start, end), each range once. **Invariant**: a node's `furthest` is the node of
//! its subtree whose end is greatest.
//!
//! The shape depends on random priorities, so that no order of insertion makes it deep; what is found does not.

use std::cmp::Ordering;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use super::topic::{End, Topic};

const NONE: u32 = u32::MAX;

pub(super) struct Intervals {
    nodes: Vec<Node>,
    free: Vec<u32>,
    root: u32,
    random: u64,
}

struct Node {
    topic: Option<Arc<Topic>>,
    left: u32,
    right: u32,
    furthest: u32,
    priority: u32,
}

impl Intervals {
    pub(super) fn new() -> Intervals {
        let random = RandomState::new().build_hasher().finish() | 1;
        Intervals { nodes: Vec::new(), free: Vec::new(), root: NONE, random }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.root == NONE
    }

    /// The topic with just this range. O(log n).
    pub(super) fn get(&self, start: &[u8], end: &End) -> Option<&Arc<Topic>> {
        let mut at = self.root;
        while at != NONE {
            at = match self.order(start, end, at) {
                Ordering::Less => self.nodes[at as usize].left,
                Ordering::Greater => self.nodes[at as usize].right,
                Ordering::Equal => return self.nodes[at as usize].topic.as_ref(),
            };
        }
        None
    }

    /// Adds a topic whose range is not there yet. O(log n).
    pub(super) fn insert(&mut self, topic: Arc<Topic>) {
        let (low, high) = self.split(self.root, topic.start(), topic.end());
        // Xorshift: no more than an even spread is asked of it.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let priority = (self.random >> 32) as u32;
        let node = Node { topic: Some(topic), left: NONE, right: NONE, furthest: NONE, priority };
        let at = match self.free.pop() {
            Some(at) => {
                self.nodes[at as usize] = node;
                at
            }
            None => {
                self.nodes.push(node);
                (self.nodes.len() - 1) as u32
            }
        };
        self.refresh(at);
        let left = self.merge(low, at);
        self.root = self.merge(left, high);
    }

    /// Takes a topic out. O(log n).
    pub(super) fn remove(&mut self, topic: &Topic) {
        self.root = self.remove_below(self.root, topic);
        if self.free.len() == self.nodes.len() {
            *self = Intervals { nodes: Vec::new(), free: Vec::new(), ..*self };
        }
    }

    /// Shows every topic whose range holds `key`. O(log n) for each that does, and O(log n) for all others together.
    pub(super) fn holding(&self, key: &[u8], show: &mut impl FnMut(&Arc<Topic>)) {
        self.holding_below(self.root, key, show);
    }

    fn holding_below(&self, at: u32, key: &[u8], show: &mut impl FnMut(&Arc<Topic>)) {
        if at == NONE || !self.end(self.nodes[at as usize].furthest).is_after(key) {
            return;
        }
        let node = &self.nodes[at as usize];
        self.holding_below(node.left, key, show);
        if self.topic(at).start() <= key {
            if self.end(at).is_after(key) {
                show(self.topic(at));
            }
            self.holding_below(node.right, key, show);
        }
    }

    fn topic(&self, at: u32) -> &Arc<Topic> {
        self.nodes[at as usize].topic.as_ref().expect("a node that is reached is in use")
    }

    fn end(&self, at: u32) -> &End {
        self.topic(at).end()
    }

    fn order(&self, start: &[u8], end: &End, at: u32) -> Ordering {
        let topic = self.topic(at);
        start.cmp(topic.start()).then_with(|| end.cmp(topic.end()))
    }

    /// Splits a subtree into what is before (start, end), and the rest.
    fn split(&mut self, at: u32, start: &[u8], end: &End) -> (u32, u32) {
        if at == NONE {
            return (NONE, NONE);
        }
        let parts = if self.order(start, end, at) == Ordering::Greater {
            let (low, high) = self.split(self.nodes[at as usize].right, start, end);
            self.nodes[at as usize].right = low;
            (at, high)
        } else {
            let (low, high) = self.split(self.nodes[at as usize].left, start, end);
            self.nodes[at as usize].left = high;
            (low, at)
        };
        self.refresh(at);
        parts
    }

    /// Joins two subtrees, all of `low` before all of `high`.
    fn merge(&mut self, low: u32, high: u32) -> u32 {
        if low == NONE || high == NONE {
            return if low == NONE { high } else { low };
        }
        if self.nodes[low as usize].priority >= self.nodes[high as usize].priority {
            let right = self.merge(self.nodes[low as usize].right, high);
            self.nodes[low as usize].right = right;
            self.refresh(low);
            low
        } else {
            let left = self.merge(low, self.nodes[high as usize].left);
            self.nodes[high as usize].left = left;
            self.refresh(high);
            high
        }
    }

    fn remove_below(&mut self, at: u32, topic: &Topic) -> u32 {
        if at == NONE {
            return NONE;
        }
        let Node { left, right, .. } = self.nodes[at as usize];
        match self.order(topic.start(), topic.end(), at) {
            Ordering::Equal => {
                self.nodes[at as usize].topic = None;
                self.free.push(at);
                return self.merge(left, right);
            }
            Ordering::Less => {
                let left = self.remove_below(left, topic);
                self.nodes[at as usize].left = left;
            }
            Ordering::Greater => {
                let right = self.remove_below(right, topic);
                self.nodes[at as usize].right = right;
            }
        }
        self.refresh(at);
        at
    }

    fn refresh(&mut self, at: u32) {
        let Node { left, right, .. } = self.nodes[at as usize];
        let below = [left, right].into_iter().filter(|child| *child != NONE);
        let furthest = below
            .map(|child| self.nodes[child as usize].furthest)
            .fold(at, |best, other| if self.end(other) > self.end(best) { other } else { best });
        self.nodes[at as usize].furthest = furthest;
    }
}

#[cfg(test)]
#[path = "intervals_tests.rs"]
mod tests;
