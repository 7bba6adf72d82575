//! Orders of insertion, sizes of keys, and trees that shrink.

use std::collections::BTreeMap;

use super::super::leaf::LEAF_KEYS;
use super::super::node::INNER_CHILDREN;
use super::super::{Rev, Tree};
use super::check::{check, copied_nodes, nodes};
use super::model::{Model, compact};
use super::{Rng, new_rev, put_rev, tombstone};

const N: i64 = 20_000;

fn numbered(n: i64) -> Vec<u8> {
    format!("key/{n:08}").into_bytes()
}

/// Inserts `order` one by one, with a snapshot held during every `publish_every`th insertion.
fn filled(order: &[i64], publish_every: usize) -> (Tree, Model) {
    let (mut tree, mut model) = (Tree::new(), Model::default());
    let mut published = tree.clone();
    for (nth, n) in order.iter().enumerate() {
        let rev = new_rev(nth as i64 + 1);
        tree.insert(&numbered(*n), rev);
        model.insert(&numbered(*n), rev);
        if nth % publish_every == 0 {
            published = tree.clone();
        }
    }
    drop(published);
    (tree, model)
}

fn shuffled(seed: u64) -> Vec<i64> {
    let mut order = (0..N).collect::<Vec<_>>();
    Rng::new(seed).shuffle(&mut order);
    order
}

#[test]
fn every_order_gives_the_same_answers() {
    let up = (0..N).collect::<Vec<_>>();
    let down = (0..N).rev().collect::<Vec<_>>();
    for (order, publish_every) in [(&up, 1), (&up, 64), (&down, 1), (&shuffled(1), 1), (&shuffled(2), 64)] {
        let (tree, model) = filled(order, publish_every);
        model.assert_same(&tree, &[0, 1, N / 2, N]);
        let mut rng = Rng::new(3);
        for _ in 0..50 {
            let (start, end) = (numbered(rng.below(N as u64) as i64), numbered(rng.below(N as u64) as i64));
            model.assert_same_range(&tree, &start, Some(&end));
            model.assert_same_range(&tree, &start, None);
        }
    }
}

#[test]
fn ascending_keys_fill_the_leaves() {
    let up = (0..N).collect::<Vec<_>>();
    let shape = check(&filled(&up, 1).0);
    assert!(shape.leaves <= N as usize / LEAF_KEYS + 1, "{shape:?}");
    // A node is cut when it has one child too many, and two go to the right: INNER_CHILDREN - 1 stay, on every level.
    let dense = INNER_CHILDREN - 1;
    assert!(shape.inners <= shape.leaves.div_ceil(dense - 1) + shape.depth, "{shape:?}");
}

#[test]
fn one_revision_is_cheap() {
    for (name, order, publish_every) in [("random", shuffled(4), 1), ("random, in place", shuffled(4), usize::MAX)] {
        let shape = check(&filled(&order, publish_every).0);
        let per_key = shape.bytes / N as usize;
        assert!(per_key < 80, "{name}: {per_key} bytes for a key of 12 bytes; {shape:?}");
    }
    let revs = (0..N).map(|n| (numbered(n), [new_rev(n + 1)])).collect::<Vec<_>>();
    let per_key = check(&Tree::bulk(revs)).bytes / N as usize;
    assert!(per_key < 70, "bulk: {per_key} bytes for a key of 12 bytes");
}

#[test]
fn deleting_everything_leaves_nothing() {
    for order in [(0..N).collect(), shuffled(5)] {
        let (mut tree, _) = filled(&order, 1);
        let snapshot = tree.clone();
        for (nth, n) in shuffled(6).into_iter().enumerate() {
            tree.insert(&numbered(n), tombstone(N + 1 + nth as i64));
        }
        assert_eq!((tree.live(), tree.keys()), (0, N as u64));
        // At the last revision, the last tombstone is kept; then it goes too.
        assert_eq!(compact(&mut tree, 2 * N).len(), N as usize);
        assert_eq!((tree.live(), tree.keys()), (0, 1));
        assert_eq!(check(&tree).leaves, 1);
        assert_eq!(compact(&mut tree, 2 * N + 1).len(), 1);
        assert_eq!((tree.keys(), tree.sum()), (0, 0));
        let empty = check(&tree);
        assert_eq!((empty.leaves, empty.inners, empty.depth), (1, 0, 1));
        assert!(check(&snapshot).depth >= 3, "the snapshot has everything");
        assert_eq!(snapshot.live(), N as u64);
        tree.insert(b"again", new_rev(3 * N));
        assert_eq!(tree.live(), 1);
    }
}

#[test]
fn memory_comes_back_as_keys_go() {
    let (mut tree, mut model) = filled(&shuffled(7), 1);
    let before = check(&tree);
    let mut rng = Rng::new(8);
    let mut main = N;
    // Rounds of deletions at random, down to a few keys.
    while tree.live() > 30 {
        let keys = model.keys.keys().filter(|_| rng.below(3) == 0).cloned().collect::<Vec<_>>();
        for key in keys {
            main += 1;
            tree.insert(&key, tombstone(main));
            model.insert(&key, tombstone(main));
        }
        main += 1;
        assert_eq!(compact(&mut tree, main), model.compact(main));
        let shape = model.assert_same(&tree, &[main]);
        let expected = before.bytes as u64 * tree.keys() / N as u64;
        assert!(shape.bytes as u64 <= 3 * expected + 4096, "{shape:?} for {} keys, {before:?} for {N}", tree.keys());
    }
}

#[test]
fn compaction_visits_only_what_is_due() {
    let (mut tree, mut model) = filled(&shuffled(9), 1);
    for main in [N + 1, N + 2, N + 3] {
        let key = numbered(main * 7 % N);
        let rev = put_rev(main, 1, 2);
        tree.insert(&key, rev);
        model.insert(&key, rev);
    }
    let before = tree.clone();
    assert_eq!(compact(&mut tree, N).len(), 0);
    assert_eq!(copied_nodes(&before, &tree), 0, "nothing was due, nothing is copied");
    assert_eq!(compact(&mut tree, N + 2), model.compact(N + 2));
    assert!(copied_nodes(&before, &tree) <= 2 * check(&tree).depth, "two paths and no more");
    model.assert_same(&tree, &[N + 2]);
}

#[test]
fn an_insertion_copies_one_path_and_only_if_it_is_shared() {
    let (mut tree, _) = filled(&shuffled(12), 1);
    let depth = check(&tree).depth;
    let published = tree.clone();
    tree.insert(&numbered(5), put_rev(N + 1, 1, 2));
    assert_eq!(copied_nodes(&published, &tree), depth);
    drop(published);
    let ours = nodes(&tree);
    tree.insert(&numbered(5), put_rev(N + 2, 1, 3));
    assert_eq!(nodes(&tree), ours, "what nobody shares is changed in place");
}

#[test]
fn huge_keys_work_and_stand_alone() {
    const MIB: usize = 1 << 20;
    let (mut tree, mut model) = (Tree::new(), Model::default());
    let mut keys = (0..300).map(numbered).collect::<Vec<_>>();
    for n in 0..6u8 {
        keys.push([&vec![b'k'; MIB + MIB / 2 - 1][..], &[n]].concat());
        keys.push([&numbered(150)[..], &vec![n; MIB]].concat());
        keys.push([&numbered(20)[..], &vec![n; 3000]].concat());
    }
    Rng::new(10).shuffle(&mut keys);
    for (main, key) in (1..).zip(&keys) {
        let rev = new_rev(main);
        tree.insert(key, rev);
        model.insert(key, rev);
    }
    model.assert_same(&tree, &[100, 200, 400]);
    // All of them go again.
    for (main, key) in (1001..).zip(&keys) {
        tree.insert(key, tombstone(main));
        model.insert(key, tombstone(main));
    }
    let rebuilt = Tree::bulk(&model.keys);
    model.assert_same(&rebuilt, &[100, 1100]);
    assert_eq!(compact(&mut tree, 9999), model.compact(9999));
    assert_eq!(tree.keys(), 0);
}

#[test]
fn bulk_of_every_size() {
    let sizes = (0..200).chain([1000, 1567, 1568, 1569, 1600, 3136, 3137, 50_000]);
    let all = (0..50_000).map(|n| (numbered(n), vec![new_rev(n + 1)])).collect::<Vec<(Vec<u8>, Vec<Rev>)>>();
    for size in sizes {
        let tree = Tree::bulk(all[..size].iter().map(|(key, revs)| (key, revs)));
        check(&tree);
        assert_eq!(tree.live(), size as u64);
        assert!(all[..size].iter().all(|(key, revs)| tree.get(key).unwrap().newest() == revs[0]));
    }
    let holes = BTreeMap::from([(b"a".to_vec(), vec![]), (b"b".to_vec(), vec![new_rev(1)]), (b"c".to_vec(), vec![])]);
    assert_eq!(Tree::bulk(&holes).keys(), 1);
}

#[test]
fn a_range_can_be_resumed_after_any_key() {
    let (tree, model) = filled(&shuffled(11), 1);
    let (mut start, mut seen) = (Vec::new(), 0);
    loop {
        let page = tree.range(&start, None).take(97).map(|(key, _)| key.to_vec()).collect::<Vec<_>>();
        let Some(last) = page.last() else { break };
        seen += page.len();
        start = [&last[..], &[0]].concat();
    }
    assert_eq!(seen, model.keys.len());
}
