//! The tree of ranges against looking at all of them.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::keyrange::KeyRange;

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(b'a'..=b'd', 1..=3)
}

fn range() -> impl Strategy<Value = KeyRange> {
    let end = prop_oneof![1 => Just(b"\0".to_vec()), 4 => bytes()];
    (bytes(), end)
        .prop_map(|(key, end)| KeyRange::new(Bytes::from(key), Bytes::from(end)).unwrap())
        .prop_filter("holds keys", |range| !range.is_empty())
}

proptest! {
    #[test]
    fn finds_what_holds_a_key(steps in prop::collection::vec((range(), any::<bool>(), bytes()), 1..200)) {
        let mut tree = Intervals::new();
        let mut all: BTreeMap<(Vec<u8>, End), Arc<Topic>> = BTreeMap::new();
        for (range, keep, key) in steps {
            let place = (range.start().to_vec(), End::of(&range));
            prop_assert_eq!(tree.get(&place.0, &place.1).is_some(), all.contains_key(&place));
            match all.remove(&place) {
                Some(topic) if !keep => tree.remove(&topic),
                Some(topic) => {
                    all.insert(place, topic);
                }
                None => {
                    let topic = Arc::new(Topic::new(&range, 1));
                    tree.insert(Arc::clone(&topic));
                    all.insert(place, topic);
                }
            }
            let mut found = Vec::new();
            tree.holding(&key, &mut |topic| found.push((topic.start().to_vec(), topic.end().clone())));
            let expected: Vec<_> =
                all.iter().filter(|(_, topic)| topic.contains(&key)).map(|(place, _)| place.clone()).collect();
            prop_assert_eq!(found, expected);
        }
    }
}

#[test]
fn ascending_ranges_do_not_make_it_deep() {
    let mut tree = Intervals::new();
    for number in 0..20_000u32 {
        let (start, end) = (number.to_be_bytes().to_vec(), (number + 1).to_be_bytes().to_vec());
        let range = KeyRange::new(Bytes::from(start), Bytes::from(end)).unwrap();
        tree.insert(Arc::new(Topic::new(&range, 1)));
    }
    fn depth(tree: &Intervals, at: u32) -> usize {
        if at == NONE {
            return 0;
        }
        let node = &tree.nodes[at as usize];
        1 + depth(tree, node.left).max(depth(tree, node.right))
    }
    assert!(depth(&tree, tree.root) < 80, "{} deep", depth(&tree, tree.root));
}
