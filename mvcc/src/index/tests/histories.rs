//! Long histories: appending, reading at old revisions, forgetting from the front.

use super::super::history::{History, sum_of};
use super::super::{Rev, Tree};
use super::check::check;
use super::model::{Model, compact};
use super::{Rng, put_rev, tombstone};

fn revs(range: std::ops::Range<i64>) -> Vec<Rev> {
    range.map(|main| put_rev(main, 1, main)).collect()
}

fn assert_is(history: &History, expected: &[Rev]) {
    assert_eq!(history.iter().copied().collect::<Vec<_>>(), expected);
    assert_eq!(history.len(), expected.len());
    assert_eq!(history.sum(), sum_of(expected));
    let (first, last) = (expected[0].at.main(), expected[expected.len() - 1].at.main());
    let mut rng = Rng::new(expected.len() as u64);
    let probes = [first - 1, first, last, last + 1];
    let random = (0..100).map(|_| first + rng.below((last - first + 1) as u64) as i64);
    for main in random.chain(probes) {
        assert_eq!(history.at(main), expected.iter().rfind(|rev| rev.at.main() <= main).copied(), "at {main}");
        assert!(history.since(main).eq(expected.iter().filter(|rev| rev.at.main() >= main)), "since {main}");
    }
}

#[test]
fn grows_by_steps_of_every_size() {
    let mut rng = Rng::new(1);
    for biggest_step in [1, 3, 33, 700, 9000] {
        let (mut history, mut next) = (None::<History>, 1i64);
        while next < 12_000 {
            let step = 1 + rng.below(biggest_step) as i64;
            history = Some(History::append(history.as_ref(), &revs(next..next + step)));
            next += step;
            if let Some(History::Long(runs)) = &history {
                assert!(runs.tail_runs() <= 13, "{} runs after {next} revisions", runs.tail_runs());
            }
        }
        assert_is(&history.unwrap(), &revs(1..next));
    }
}

#[test]
fn old_versions_stay_and_cuts_are_exact() {
    let mut rng = Rng::new(2);
    let mut history = History::append(None, &revs(1..2));
    let (mut first, mut next) = (1, 2);
    let mut kept = Vec::new();
    for round in 0..3000 {
        let step = 1 + rng.below(20) as i64;
        history = History::append(Some(&history), &revs(next..next + step));
        next += step;
        if round % 50 == 0 {
            let drop = rng.below((next - first) as u64) as i64;
            let cut = history.without_first(drop as usize).unwrap();
            assert_is(&cut, &revs(first + drop..next));
            kept.push((cut.clone(), first + drop, next));
            if round % 200 == 0 {
                (history, first) = (cut, first + drop);
            }
        }
    }
    for (history, first, next) in kept {
        assert_is(&history, &revs(first..next));
        assert!(history.without_first((next - first) as usize).is_none());
        assert_is(&history.without_first(0).unwrap(), &revs(first..next));
    }
}

#[test]
fn a_hot_key_among_others() {
    const HOT: i64 = 100_000;
    let (mut tree, mut model) = (Tree::new(), Model::default());
    let mut snapshots = Vec::new();
    for main in 1..=HOT {
        let key: &[u8] = if main % 1000 == 1 { &main.to_be_bytes() } else { b"\0hot" };
        let revs = model.keys.get(key).map_or(0, Vec::len) as i64;
        let rev = put_rev(main, 1, revs + 1);
        tree.insert(key, rev);
        model.insert(key, rev);
        if main % 9973 == 0 {
            snapshots.push((main, tree.clone()));
        }
        let published = tree.clone();
        drop(published);
    }
    let hot = tree.get(b"\0hot").unwrap();
    let revs = &model.keys[&b"\0hot"[..]];
    assert_eq!(hot.len(), revs.len());
    for main in (0..HOT + 2).step_by(37) {
        let upto = revs.partition_point(|rev| rev.at.main() <= main);
        assert_eq!(hot.at(main), upto.checked_sub(1).map(|at| revs[at]));
    }
    for (main, snapshot) in &snapshots {
        let upto = revs.partition_point(|rev| rev.at.main() <= *main);
        assert!(snapshot.get(b"\0hot").unwrap().iter().eq(revs[..upto].iter().copied()), "the snapshot of {main}");
        for since in [0, *main / 2, *main, *main + 1] {
            let wanted = revs[..upto].iter().filter(|rev| rev.at.main() >= since).copied();
            assert!(snapshot.get(b"\0hot").unwrap().since(since).eq(wanted), "the snapshot of {main} since {since}");
        }
        check(snapshot);
    }
    for at in [HOT / 3, HOT - 20, HOT] {
        assert_eq!(compact(&mut tree, at), model.compact(at));
        model.assert_same(&tree, &[at, at + 1, HOT]);
    }
    tree.insert(b"\0hot", tombstone(HOT + 1));
    assert_eq!(tree.compact_key(b"\0hot", HOT + 2).len(), 2);
    assert_eq!(tree.compact_key(b"\0hot", HOT + 2), []);
    assert_eq!(tree.compact_key(b"never", HOT + 2), []);
    assert!(tree.get(b"\0hot").is_none());
}

#[test]
fn tombstones_follow_the_rules() {
    let mut tree = Tree::new();
    for rev in [put_rev(2, 2, 1), tombstone(5), put_rev(7, 7, 1), tombstone(9)] {
        tree.insert(b"k", rev);
    }
    let mains = |tree: &Tree| tree.get(b"k").map(|k| k.iter().map(|rev| rev.at.main()).collect::<Vec<_>>());
    let compacted = |at| {
        let mut tree = tree.clone();
        compact(&mut tree, at);
        mains(&tree)
    };
    assert_eq!(compacted(1), Some(vec![2, 5, 7, 9]));
    assert_eq!(compacted(4), Some(vec![2, 5, 7, 9]));
    assert_eq!(compacted(5), Some(vec![5, 7, 9]), "a tombstone at the revision is kept");
    assert_eq!(compacted(6), Some(vec![7, 9]), "one before it is not");
    assert_eq!(compacted(8), Some(vec![7, 9]));
    assert_eq!(compacted(9), Some(vec![9]));
    assert_eq!(compacted(10), None);
    let mut twice = tree.clone();
    compact(&mut twice, 5);
    compact(&mut twice, 6);
    assert_eq!(mains(&twice), Some(vec![7, 9]), "a later compaction takes the one that was kept");
}
