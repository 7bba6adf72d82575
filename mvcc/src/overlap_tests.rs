//! The verdicts of etcd 3.5.1 on what overlaps, and a slow judge that the fast one must agree with.
#![allow(clippy::unwrap_used)]

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::request::DeleteRequest;

fn put(key: &'static str) -> Op {
    Op::Put(PutRequest::new(key, "v"))
}

fn keep_lease(key: &'static str) -> Op {
    Op::Put(PutRequest { ignore_lease: true, ..PutRequest::new(key, "v") })
}

fn keep_value(key: &'static str) -> Op {
    Op::Put(PutRequest { ignore_value: true, ..PutRequest::new(key, "") })
}

fn range(key: &str, end: &str) -> KeyRange {
    KeyRange::new(key.to_owned().into(), end.to_owned().into()).unwrap()
}

fn delete(key: &str, end: &str) -> Op {
    Op::Delete(DeleteRequest { range: range(key, end), prev_kv: false })
}

fn branches(success: Vec<Op>, failure: Vec<Op>) -> TxnRequest {
    TxnRequest { compares: vec![], success, failure }
}

fn txn(success: Vec<Op>, failure: Vec<Op>) -> Op {
    Op::Txn(branches(success, failure))
}

/// The verdict, which must not depend on the branch that the operations are in.
fn allowed(ops: Vec<Op>) -> bool {
    let verdict = branches(ops.clone(), vec![]).check_overlap();
    assert_eq!(branches(vec![], ops.clone()).check_overlap(), verdict, "{ops:?}");
    assert_eq!(branches(ops.clone(), vec![]).validate(128), verdict, "{ops:?}");
    assert!(matches!(verdict, Ok(()) | Err(Invalid::DuplicateKey)), "{verdict:?}");
    verdict.is_ok()
}

#[test]
fn a_key_is_written_once() {
    assert!(allowed(vec![put("a"), put("b")]));
    assert!(!allowed(vec![put("a"), put("a")]));
    assert!(!allowed(vec![put("a"), keep_value("a")]));
    assert!(!allowed(vec![put("a"), delete("a", "")]));
    assert!(allowed(vec![put("a\0"), delete("a", "")]));
    assert!(!allowed(vec![put("b"), delete("a", "c")]));
    assert!(!allowed(vec![delete("a", "c"), put("b")]));
    assert!(allowed(vec![put("c"), delete("a", "c")]));
    assert!(allowed(vec![put("b"), delete("c", "a")]));
    assert!(allowed(vec![delete("a", "c"), delete("a", "c")]));
    assert!(allowed(vec![delete("a", ""), delete("a", "c")]));
}

#[test]
fn only_one_branch_of_a_nested_transaction_runs() {
    let both = || txn(vec![put("a")], vec![put("a")]);
    assert!(allowed(vec![both()]));
    assert!(allowed(vec![txn(vec![put("a")], vec![delete("a", "")])]));
    assert_eq!(branches(vec![put("a")], vec![put("a")]).check_overlap(), Ok(()));
    assert!(!allowed(vec![both(), both()]));
    assert!(!allowed(vec![both(), put("a")]));
    assert!(!allowed(vec![put("a"), both()]));
}

#[test]
fn nested_transactions_are_judged_in_order() {
    let (puts, deletes) = (|| txn(vec![put("a")], vec![]), || txn(vec![], vec![delete("a", "b")]));
    assert!(!allowed(vec![deletes(), puts()]));
    assert!(allowed(vec![puts(), deletes()]));
    // Beside an operation of the level itself there is no order.
    assert!(!allowed(vec![put("a"), deletes()]));
    assert!(!allowed(vec![deletes(), put("a")]));
    assert!(!allowed(vec![puts(), delete("a", "")]));
    assert!(!allowed(vec![delete("a", ""), puts()]));
}

#[test]
fn after_a_delete_of_everything_a_put_must_not_depend_on_the_key() {
    assert!(allowed(vec![delete("a", "\0"), put("b")]));
    assert!(allowed(vec![put("b"), delete("\0", "\0")]));
    for keep in [keep_value, keep_lease] {
        assert!(!allowed(vec![delete("a", "\0"), keep("a")]));
        assert!(!allowed(vec![delete("a", "\0"), keep("b")]));
        assert!(allowed(vec![keep("b"), delete("a", "\0")]));
        assert!(allowed(vec![delete("c", "\0"), keep("b")]));
        // Of several deletes and puts, one pair suffices.
        assert!(!allowed(vec![delete("c", "\0"), delete("a", "\0"), delete("d", "\0"), keep("b")]));
        assert!(!allowed(vec![delete("b", "\0"), keep("a"), keep("c"), put("d")]));
        assert!(allowed(vec![delete("b", "\0"), keep("a"), put("d")]));
        // Across levels, whichever branch is taken.
        let (keeps, deletes) = (|| txn(vec![put("b")], vec![keep("b")]), || txn(vec![delete("a", "\0")], vec![]));
        assert!(!allowed(vec![delete("a", "\0"), keeps()]));
        assert!(!allowed(vec![deletes(), keep("b")]));
        assert!(!allowed(vec![deletes(), keeps()]));
        assert!(allowed(vec![keeps(), deletes()]));
        assert!(allowed(vec![keep("b"), deletes()]));
        assert!(allowed(vec![txn(vec![delete("a", "\0")], vec![keep("b")])]));
    }
}

/// The rule once more, pair by pair.
type Naive<'a> = (Vec<&'a [u8]>, Vec<&'a KeyRange>);

fn naive(ops: &[Op]) -> Option<Naive<'_>> {
    let clash = |(puts, deletes): &Naive<'_>, key: &[u8]| {
        let deleted = |range: &&KeyRange| range.contains(key) && range.end() != RangeEnd::Unbounded;
        puts.contains(&key) || deletes.iter().any(deleted)
    };
    let mut all: Naive<'_> = (vec![], vec![]);
    for op in ops {
        if let Op::Delete(delete) = op {
            all.1.push(&delete.range);
        }
    }
    for op in ops {
        if let Op::Txn(txn) = op {
            let (success, failure) = (naive(&txn.success)?, naive(&txn.failure)?);
            if success.0.iter().chain(&failure.0).any(|key| clash(&all, key)) {
                return None;
            }
            all.0.extend(success.0.into_iter().chain(failure.0));
            all.1.extend(success.1.into_iter().chain(failure.1));
        }
    }
    for op in ops {
        if let Op::Put(put) = op {
            if clash(&all, &put.key) {
                return None;
            }
            all.0.push(&put.key);
        }
    }
    Some(all)
}

/// The writes in order, each with the operation and branch that lead to it at every level.
fn writes<'a>(ops: &'a [Op], path: &[(usize, bool)], all: &mut Vec<(Vec<(usize, bool)>, &'a Op)>) {
    for (at, op) in ops.iter().enumerate() {
        let into = |branch| [path, &[(at, branch)]].concat();
        match op {
            Op::Txn(txn) => {
                writes(&txn.success, &into(true), all);
                writes(&txn.failure, &into(false), all);
            }
            Op::Put(_) | Op::Delete(_) | Op::Range(_) => all.push((into(true), op)),
        }
    }
}

fn naive_keeps(ops: &[Op]) -> bool {
    let mut all = Vec::new();
    writes(ops, &[], &mut all);
    let both_run = |a: &[(usize, bool)], b: &[(usize, bool)]| {
        a.iter().zip(b).find(|(a, b)| a != b).is_none_or(|(a, b)| a.0 != b.0)
    };
    let takes_away = |delete: &Op, put: &Op| match (delete, put) {
        (Op::Delete(delete), Op::Put(put)) => {
            let kept = put.ignore_value || put.ignore_lease;
            kept && delete.range.end() == RangeEnd::Unbounded && delete.range.contains(&put.key)
        }
        _ => false,
    };
    (0..all.len()).all(|j| (0..j).all(|i| !(both_run(&all[i].0, &all[j].0) && takes_away(all[i].1, all[j].1))))
}

/// Writes on a dozen keys, nested up to three deep: about as often allowed as not.
fn any_ops() -> impl Strategy<Value = Vec<Op>> {
    let key = || "[a-f][ab]?";
    let put = (key(), 0..4).prop_map(|(key, kept)| {
        Op::Put(PutRequest { ignore_value: kept == 1, ignore_lease: kept == 2, ..PutRequest::new(key, "") })
    });
    let end = prop_oneof![Just(String::new()), Just("\0".to_owned()), "[a-f][ab]?"];
    let delete = (key(), end).prop_map(|(key, end)| delete(&key, &end));
    let op = prop_oneof![3 => put, 1 => delete];
    let nested = op.prop_recursive(3, 24, 3, |op| {
        (vec(op.clone(), 0..3), vec(op, 0..3)).prop_map(|(success, failure)| txn(success, failure))
    });
    vec(nested, 0..5)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// The fast judge and the slow one agree.
    #[test]
    fn the_verdict_is_that_of_comparing_all_pairs(ops in any_ops()) {
        let expected = naive(&ops).is_some() && naive_keeps(&ops);
        prop_assert_eq!(branches(ops, vec![]).check_overlap().is_ok(), expected);
    }

    /// Merged ranges hold exactly the keys that the single ranges hold.
    #[test]
    fn merged_ranges_lose_and_gain_nothing(
        ranges in vec(("[a-e]{1,2}", "[a-e]{0,2}"), 0..12),
        probes in vec("[a-e]{1,3}", 1..8),
    ) {
        let ranges: Vec<KeyRange> = ranges.iter().map(|(key, end)| range(key, end)).collect();
        let (mut left, mut right) = (Footprint::default(), Footprint::default());
        for (at, range) in ranges.iter().enumerate() {
            if at % 3 == 0 { left.add_delete(range) } else { right.add_delete(range) }
        }
        left.merge(right);
        let deleted = left.deletes;
        for probe in &probes {
            let expected = ranges.iter().any(|range| range.contains(probe.as_bytes()));
            prop_assert_eq!(deleted.contains(probe.as_bytes()), expected, "{}", probe);
            prop_assert_eq!(deleted.meets(&BTreeSet::from([probe.as_bytes()])), expected, "{}", probe);
        }
        let puts: BTreeSet<&[u8]> = probes.iter().map(|probe| probe.as_bytes()).collect();
        prop_assert_eq!(deleted.meets(&puts), puts.iter().any(|key| deleted.contains(key)));
        let ends: Vec<_> = deleted.0.iter().map(|(start, end)| (*start, &**end)).collect();
        prop_assert!(ends.iter().all(|(start, end)| start < end));
        prop_assert!(ends.windows(2).all(|pair| pair[0].1 < pair[1].0), "{:?}", ends);
    }
}
