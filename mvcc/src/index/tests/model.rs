//! The model: a `BTreeMap`, and rules written down in the plainest way.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::super::{Rev, Revision, Tree};
use super::check::{Shape, check};
use super::print;

type Dropped = Vec<(Vec<u8>, Vec<Rev>)>;

#[derive(Clone, Default, Debug)]
pub(super) struct Model {
    pub(super) keys: BTreeMap<Vec<u8>, Vec<Rev>>,
}

impl Model {
    /// The revision that a put or a delete of `key` would write now.
    pub(super) fn next_rev(&self, key: &[u8], at: Revision, delete: bool) -> Rev {
        let print = print(at.main(), at.sub());
        let newest = self.keys.get(key).and_then(|revs| revs.last()).filter(|rev| rev.version > 0);
        match (delete, newest) {
            (true, _) => Rev { at, create: 0, version: 0, print },
            (false, None) => Rev { at, create: at.main(), version: 1, print },
            (false, Some(newest)) => Rev { at, create: newest.create, version: newest.version + 1, print },
        }
    }

    pub(super) fn insert(&mut self, key: &[u8], rev: Rev) {
        self.keys.entry(key.to_vec()).or_default().push(rev);
    }

    pub(super) fn compact(&mut self, at: i64) -> Dropped {
        let keys = self.keys.keys().cloned().collect::<Vec<_>>();
        keys.into_iter().filter_map(|key| Some((key.clone(), self.compact_key(&key, at)?))).collect()
    }

    pub(super) fn compact_key(&mut self, key: &[u8], at: i64) -> Option<Vec<Rev>> {
        let revs = self.keys.get_mut(key)?;
        let keep = revs.iter().rposition(|rev| rev.at.main() <= at);
        let (mut kept, mut dropped) = (Vec::new(), Vec::new());
        for (nth, rev) in revs.iter().enumerate() {
            let stays = rev.at.main() > at || (Some(nth) == keep && (rev.version > 0 || rev.at.main() == at));
            if stays { kept.push(*rev) } else { dropped.push(*rev) }
        }
        *revs = kept;
        if revs.is_empty() {
            self.keys.remove(key);
        }
        if dropped.is_empty() { None } else { Some(dropped) }
    }

    fn range<'m>(&'m self, start: &[u8], end: Option<&[u8]>) -> Vec<(&'m Vec<u8>, &'m Vec<Rev>)> {
        if end.is_some_and(|end| end <= start) {
            return Vec::new();
        }
        let bounds = (Bound::Included(start), end.map_or(Bound::Unbounded, Bound::Excluded));
        self.keys.range::<[u8], _>(bounds).collect()
    }

    /// Panics if `tree` answers anything differently about keys and revisions.
    pub(super) fn assert_same(&self, tree: &Tree, mains: &[i64]) -> Shape {
        let shape = check(tree);
        self.assert_same_range(tree, b"", None);
        assert_eq!(tree.live(), self.keys.values().filter(|revs| revs.last().unwrap().version > 0).count() as u64);
        assert_eq!(tree.keys(), self.keys.len() as u64);
        assert_eq!(tree.key_bytes(), self.keys.keys().map(|key| key.len() as u64).sum());
        assert_eq!((tree.keys(), tree.sum()), tree.sum_range(b"", None));
        for (key, revs) in &self.keys {
            let history = tree.get(key).unwrap();
            assert_eq!(history.newest(), *revs.last().unwrap());
            assert_eq!(history.len(), revs.len());
            for main in mains {
                let expected = revs.iter().rfind(|rev| rev.at.main() <= *main).copied();
                assert_eq!(history.at(*main), expected, "{key:?} at {main}");
            }
        }
        shape
    }

    /// Panics if `tree` answers anything differently about one key range.
    pub(super) fn assert_same_range(&self, tree: &Tree, start: &[u8], end: Option<&[u8]>) {
        let expected = self.range(start, end);
        let mut found = tree.range(start, end);
        for (key, revs) in &expected {
            let (found_key, history) = found.next().unwrap();
            assert_eq!(&found_key.to_vec(), *key);
            assert_eq!(&history.iter().collect::<Vec<_>>(), *revs);
        }
        assert!(found.next().is_none() && found.next().is_none(), "more in {start:?}..{end:?} than there should be");
        let live = expected.iter().filter(|(_, revs)| revs.last().unwrap().version > 0).count() as u64;
        assert_eq!(tree.count_live(start, end), live, "live keys in {start:?}..{end:?}");
        let sum = expected.iter().flat_map(|(_, revs)| *revs).fold(0u128, |sum, rev| sum.wrapping_add(rev.print));
        assert_eq!(tree.sum_range(start, end), (expected.len() as u64, sum), "the sum of {start:?}..{end:?}");
    }
}

/// Compacts `tree` and says what it dropped.
pub(super) fn compact(tree: &mut Tree, at: i64) -> Dropped {
    let mut all = Vec::new();
    tree.compact(at, |key, dropped| all.push((key.to_vec(), dropped.to_vec())));
    all
}
