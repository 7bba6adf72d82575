//! Leases that keep their promises pass; each broken promise is caught as what it is.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use super::history::{Action, Key, Op, Outcome, Stored, Write};
use super::leases::{Ask, Broken, LeaseOp, Leased, Rules, SECOND, Told, check};
use super::{Timeline, Times, Violation};

const LOOK: Ask = Ask::Look { keys: false };
const RULES: Rules = Rules { healed: 20 * SECOND, late_max: 2 * SECOND, growth_max: 0, elections: false };

/// In tenths of a second, so that tests read well.
fn ask(from: u64, to: u64, ask: Ask, told: Told) -> LeaseOp {
    let (invoked, completed) = (from * SECOND / 10, to * SECOND / 10);
    LeaseOp { lease: 7, client: 1, node: 0, invoked, completed, ask, told }
}

fn seen(from: u64, remaining: i64, keys: Option<Vec<Key>>) -> LeaseOp {
    let look = Ask::Look { keys: keys.is_some() };
    ask(from, from + 1, look, Told::Seen { remaining, granted: 3, keys })
}

fn op(from: u64, to: u64, action: Action, outcome: Outcome) -> Op {
    let (invoked, completed) = (from * SECOND / 10, to * SECOND / 10);
    Op { client: from as u32, connection: 0, node: 0, invoked, completed, action, outcome }
}

fn put(from: u64, key: Key, revision: i64) -> Op {
    let action = Action::Put { key, value: 100 + revision as u64, lease: 7 };
    op(from, from + 1, action, Outcome::Put { revision, previous: None })
}

/// A read of another key that tells which revision there was.
fn read(at: u64, revision: i64) -> Op {
    op(at, at, Action::Get { key: 99, serializable: false }, Outcome::Got { revision, stored: None })
}

/// Granted for three seconds at 0 with two keys, renewed at 20, and so promised until 50.
struct Case {
    ops: Vec<LeaseOp>,
    history: Vec<Op>,
    past: Timeline,
}

impl Case {
    fn new() -> Case {
        let ops = vec![
            ask(0, 1, Ask::Grant(3), Told::Granted(3)),
            seen(10, 2, Some(vec![3, 5])),
            ask(20, 21, Ask::Renew, Told::Renewed(3)),
            seen(25, 2, None),
        ];
        let history = vec![put(2, 5, 2), put(4, 3, 3), read(30, 3)];
        let mut past = Timeline::new(3);
        for (key, revision) in [(5, 2), (3, 3)] {
            let value = 100 + revision as u64;
            let stored = Stored { value, created: revision, modified: revision, version: 1, lease: 7 };
            past.add(key, revision, Some(stored));
        }
        Case { ops, history, past }
    }

    /// A revision that deletes keys, and that somebody knows of at this time.
    fn deleted(mut self, keys: &[Key], revision: i64, known: u64) -> Case {
        keys.iter().for_each(|key| self.past.add(*key, revision, None));
        self.past.last = self.past.last.max(revision);
        self.history.push(read(known, revision));
        self
    }

    fn with(mut self, op: LeaseOp) -> Case {
        self.ops.push(op);
        self
    }

    fn check(&self) -> Result<(Vec<Op>, Leased), Broken> {
        self.check_by(RULES)
    }

    fn check_by(&self, rules: Rules) -> Result<(Vec<Op>, Leased), Broken> {
        let times = Times::new(&self.history, HashMap::new());
        check(&self.ops, &self.history, &self.past, &times, rules)
    }
}

#[test]
fn leases_that_end_in_time_pass() {
    let case = Case::new().deleted(&[3, 5], 4, 51).with(ask(52, 53, LOOK, Told::Gone));
    let (ends, leased) = case.check().unwrap();
    let wanted = Leased { granted: 1, renewed: 1, revoked: 0, expired: 1, looks: 3, keys: 2 };
    assert_eq!(leased, wanted);
    // Its end is an operation for the other checks, and explains the revision for them.
    let [end] = &ends[..] else { panic!("{ends:?}") };
    assert_eq!((end.made(), end.invoked), (Some(4), 5 * SECOND));
    assert_eq!(end.writes(), [(3, Write::Delete), (5, Write::Delete)]);
    let history = [case.history.clone(), ends].concat();
    let (facts, _) = super::check(&history).unwrap();
    case.past.check(&history, &facts).unwrap();
    let found = case.past.check(&case.history, &facts).unwrap_err();
    assert!(matches!(found, Violation::Past(_)), "nobody deleted it: {found}");
    // Revoked, it may end at once.
    let revoke = ask(30, 31, Ask::Revoke, Told::Revoked);
    let (_, leased) = Case::new().deleted(&[3, 5], 4, 31).with(revoke).check().unwrap();
    assert_eq!((leased.revoked, leased.expired), (1, 0));
}

#[test]
fn an_early_end_is_caught() {
    let found = Case::new().deleted(&[3, 5], 4, 49).check().unwrap_err();
    assert!(matches!(found, Broken::Early { lease: 7, .. }), "{found}");
    for told in [LOOK, Ask::Renew] {
        let found = Case::new().with(ask(44, 45, told, Told::Gone)).check().unwrap_err();
        assert!(matches!(found, Broken::Early { .. }), "{found}");
    }
    let mut case = Case::new();
    case.history.push(op(40, 41, Action::Put { key: 3, value: 1, lease: 7 }, Outcome::NoLease));
    assert!(matches!(case.check().unwrap_err(), Broken::Early { .. }));
    // Somebody asked to revoke it, but only later.
    let revoke = ask(48, 49, Ask::Revoke, Told::Unknown);
    let found = Case::new().deleted(&[3, 5], 4, 45).with(revoke).check().unwrap_err();
    assert!(matches!(found, Broken::Early { .. }), "{found}");
}

#[test]
fn a_lease_that_comes_back_is_caught() {
    let gone = |case: Case| case.deleted(&[3, 5], 4, 52).with(ask(52, 53, LOOK, Told::Gone));
    for back in [ask(54, 55, Ask::Renew, Told::Renewed(3)), seen(54, 1, None)] {
        let found = gone(Case::new().with(back)).check().unwrap_err();
        assert!(matches!(found, Broken::Resurrected { .. }), "{found}");
    }
    // A key that is attached to it after its end.
    let mut case = gone(Case::new());
    case.history.push(put(50, 3, 5));
    let stored = Stored { value: 105, created: 5, modified: 5, version: 1, lease: 7 };
    case.past.add(3, 5, Some(stored));
    case.past.last = 5;
    let found = case.check().unwrap_err();
    assert!(matches!(found, Broken::Resurrected { .. }), "{found}");
    // A renewal that is acknowledged after a revocation was.
    let found = Case::new()
        .deleted(&[3, 5], 4, 31)
        .with(ask(30, 31, Ask::Revoke, Told::Revoked))
        .with(ask(32, 33, Ask::Renew, Told::Renewed(3)))
        .check()
        .unwrap_err();
    assert!(matches!(found, Broken::Resurrected { .. }), "{found}");
}

#[test]
fn keys_that_go_in_two_revisions_are_caught() {
    let found = Case::new().deleted(&[3], 4, 51).deleted(&[5], 5, 52).check().unwrap_err();
    assert!(matches!(found, Broken::Split { revision: 4, .. }), "{found}");
    let found = Case::new().deleted(&[3], 4, 51).check().unwrap_err();
    assert!(matches!(found, Broken::Split { revision: 4, .. }), "{found}");
    // A deletion without an answer may have been the first of them, and the lease's end the second.
    let mut case = Case::new().deleted(&[3], 4, 31).deleted(&[5], 5, 52);
    case.history.push(op(25, 99, Action::Delete { key: 3 }, Outcome::Unknown));
    case.check().unwrap();
}

#[test]
fn keys_that_are_left_behind_are_caught() {
    let found = Case::new().with(ask(60, 61, LOOK, Told::Gone)).check().unwrap_err();
    assert!(matches!(found, Broken::Left { .. }), "{found}");
}

#[test]
fn a_time_to_live_that_starts_again_is_caught() {
    // Two seconds were left at 25; a second later there are three.
    Case::new().with(seen(35, 1, None)).check().unwrap();
    let mut case = Case::new().with(seen(45, 3, None));
    assert!(matches!(case.check().unwrap_err(), Broken::Grew { .. }));
    // Unless somebody renewed it meanwhile, or may have.
    case.ops.push(ask(30, 31, Ask::Renew, Told::Unknown));
    case.check().unwrap();
    // A new leader goes on from the last checkpoint: from twice what was left, at most.
    let elections = Rules { elections: true, ..RULES };
    let look = |at, remaining| ask(at, at + 1, LOOK, Told::Seen { remaining, granted: 60, keys: None });
    let from = |before, after| Case {
        ops: vec![ask(0, 1, Ask::Grant(60), Told::Granted(60)), look(100, before), look(120, after)],
        history: Vec::new(),
        past: Timeline::new(1),
    };
    from(50, 60).check_by(elections).unwrap();
    let late = |remaining| Case {
        ops: vec![ask(0, 1, Ask::Grant(60), Told::Granted(60)), look(450, 20), look(460, remaining)],
        history: Vec::new(),
        past: Timeline::new(1),
    };
    let (grown, extended) = (42 + RULES.growth_max, 21 + RULES.growth_max);
    late(grown).check_by(elections).unwrap();
    assert!(matches!(late(grown + 1).check_by(elections).unwrap_err(), Broken::Grew { .. }));
    late(extended).check_by(RULES).unwrap();
    assert!(matches!(late(extended + 1).check_by(RULES).unwrap_err(), Broken::Grew { .. }));
    // More than was ever granted.
    let found =
        Case::new().with(ask(30, 31, Ask::Renew, Told::Renewed(3))).with(seen(32, 5, None)).check().unwrap_err();
    assert!(matches!(found, Broken::Grew { .. }), "{found}");
}

#[test]
fn a_time_to_live_that_falls_short_is_caught() {
    // The renewal was lost: promised until 50, so at 30 there are two seconds left.
    let found = Case::new().with(seen(28, 0, None)).check().unwrap_err();
    assert!(matches!(found, Broken::Short { promised: 2, .. }), "{found}");
    let found = Case::new().with(ask(30, 31, Ask::Renew, Told::Renewed(2))).check().unwrap_err();
    assert!(matches!(found, Broken::Ttl { wanted: 3, .. }), "{found}");
}

#[test]
fn a_lease_that_never_ends_is_caught() {
    // Nothing is broken from 200 on; three seconds later it is due, and two more are granted.
    Case::new().with(seen(249, 0, None)).check().unwrap();
    let found = Case::new().with(seen(251, 0, None)).check().unwrap_err();
    assert!(matches!(found, Broken::Overdue { .. }), "{found}");
}

#[test]
fn told_keys_are_those_attached() {
    let found = Case::new().with(seen(27, 2, Some(vec![3]))).check().unwrap_err();
    assert!(matches!(found, Broken::Keys { key: 5, .. }), "{found}");
    let found = Case::new().with(seen(27, 2, Some(vec![3, 5, 8]))).check().unwrap_err();
    assert!(matches!(found, Broken::Keys { key: 8, .. }), "{found}");
}

#[test]
fn a_record_with_another_lease_than_it_was_put_with_is_caught() {
    let mut case = Case::new();
    let stored = Stored { value: 102, created: 2, modified: 2, version: 1, lease: 8 };
    let outcome = Outcome::Got { revision: 3, stored: Some(stored) };
    case.history.push(op(30, 31, Action::Get { key: 5, serializable: false }, outcome));
    assert!(matches!(super::facts(&case.history).unwrap_err(), Violation::BadRecord { .. }));
}
