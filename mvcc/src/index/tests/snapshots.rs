//! Readers on other threads, while the writer goes on.

use std::sync::mpsc::channel;
use std::thread;

use super::super::Tree;
use super::model::Model;
use super::{Rng, new_rev, put_rev, tombstone};

#[test]
fn readers_on_threads_see_their_version_for_ever() {
    thread::scope(|scope| {
        let mut readers = Vec::new();
        for _ in 0..2 {
            let (send, receive) = channel::<(Tree, Model)>();
            readers.push(send);
            scope.spawn(move || {
                let mut kept = Vec::new();
                for (tree, model) in receive {
                    model.assert_same(&tree, &[10, 500, 900]);
                    kept.push((tree, model));
                }
                for (tree, model) in kept {
                    model.assert_same(&tree, &[10, 500, 900]);
                }
            });
        }
        let (mut tree, mut model, mut rng) = (Tree::new(), Model::default(), Rng::new(1));
        for main in 1..3000 {
            let key = rng.below(500).to_be_bytes();
            let rev = match model.keys.get(&key[..]).and_then(|revs| revs.last()) {
                None => new_rev(main),
                Some(_) if rng.below(4) == 0 => tombstone(main),
                Some(newest) => put_rev(main, newest.create, newest.version + 1),
            };
            tree.insert(&key, rev);
            model.insert(&key, rev);
            if main % 60 == 0 {
                readers[main as usize / 60 % 2].send((tree.clone(), model.clone())).unwrap();
            }
            if main % 400 == 0 {
                tree.compact(main - 200, |_, _| {});
                model.compact(main - 200);
            }
        }
        model.assert_same(&tree, &[2000, 2900]);
        drop(readers);
    });
}

#[test]
fn one_version_per_insertion_is_kept() {
    let (mut tree, mut versions) = (Tree::new(), Vec::new());
    let mut order = (0..3000u32).collect::<Vec<_>>();
    Rng::new(2).shuffle(&mut order);
    for (main, n) in (1..).zip(&order) {
        versions.push(tree.clone());
        tree.insert(&n.to_be_bytes(), new_rev(main));
    }
    for (nth, version) in versions.iter().enumerate() {
        assert_eq!(version.live(), nth as u64);
        assert_eq!(version.range(b"", None).count(), nth);
        assert!(order[nth..].iter().take(20).all(|n| version.get(&n.to_be_bytes()).is_none()));
        assert!(order[..nth].iter().rev().take(20).all(|n| version.get(&n.to_be_bytes()).is_some()));
    }
}
