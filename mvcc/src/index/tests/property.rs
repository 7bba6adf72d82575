//! Random operations on the tree and the model, with every version of the tree kept and compared at the end.

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::{Revision, Tree};
use super::model::{Model, compact};

#[derive(Clone, Debug)]
enum Op {
    /// One transaction: keys, and whether each is deleted.
    Txn(Vec<(Vec<u8>, bool)>),
    /// Compaction this many hundredths of the way from the first revision to the present.
    Compact(u8),
    CompactKey(Vec<u8>, u8),
    /// Keep a snapshot.
    Publish,
    Range(Vec<u8>, Option<Vec<u8>>),
}

/// Keys that collide, nest, share long prefixes, end in 0xff, or are long.
fn key() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        6 => vec(prop_oneof![Just(0u8), Just(b'a'), Just(b'b'), Just(0xff)], 0..5),
        6 => (0u16..600).prop_map(|n| format!("registry/pods/default/{n:04}").into_bytes()),
        4 => (0u16..300).prop_map(|n| n.to_be_bytes().to_vec()),
        2 => (0u8..40, 1usize..700).prop_map(|(n, len)| [&[b'L'; 300][..], &[n], &vec![n; len][..]].concat()),
        1 => (0u8..6, 5000usize..12_000).prop_map(|(n, len)| vec![n; len]),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => vec((key(), prop::bool::weighted(0.25)), 1..12).prop_map(Op::Txn),
        1 => (0u8..110).prop_map(Op::Compact),
        1 => (key(), 0u8..110).prop_map(|(key, at)| Op::CompactKey(key, at)),
        4 => Just(Op::Publish),
        2 => (key(), prop::option::of(key())).prop_map(|(start, end)| Op::Range(start, end)),
    ]
}

fn run(ops: Vec<Op>) {
    let (mut tree, mut model, mut main) = (Tree::new(), Model::default(), 1);
    let mut published = Vec::new();
    for op in ops {
        let at = |hundredths: u8| main * i64::from(hundredths) / 100;
        match op {
            Op::Txn(changes) => {
                main += 1;
                for (sub, (key, delete)) in (0..).zip(changes) {
                    let rev = model.next_rev(&key, Revision::new(main, sub), delete);
                    tree.insert(&key, rev);
                    model.insert(&key, rev);
                }
            }
            Op::Compact(hundredths) => {
                let at = at(hundredths);
                assert_eq!(compact(&mut tree, at), model.compact(at), "compaction at {at}");
                model.assert_same(&tree, &[at, main]);
            }
            Op::CompactKey(key, hundredths) => {
                let at = at(hundredths);
                assert_eq!(tree.compact_key(&key, at), model.compact_key(&key, at).unwrap_or_default());
            }
            Op::Publish => published.push((tree.clone(), model.clone())),
            Op::Range(start, end) => model.assert_same_range(&tree, &start, end.as_deref()),
        }
    }
    let rebuilt = Tree::bulk(&model.keys);
    assert_eq!((rebuilt.live(), rebuilt.keys(), rebuilt.sum()), (tree.live(), tree.keys(), tree.sum()));
    published.push((rebuilt, model.clone()));
    published.push((tree, model));
    let mains = (0..=main + 1).collect::<Vec<_>>();
    for (tree, model) in published {
        model.assert_same(&tree, &mains);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn tree_is_the_model(ops in vec(op(), 1..250)) {
        run(ops);
    }
}
