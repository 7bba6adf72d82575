//! Correct histories pass, whatever their concurrency; planted lies are caught, each by the check that is meant to.

#![allow(clippy::unwrap_used)]

use std::collections::{HashMap, HashSet};

use super::history::{Action, Condition, Key, Op, Outcome, Stored, Write};
use super::{Timeline, Violation, check, search};
use crate::rng::Rng;

fn op(times: (u64, u64), client: u32, action: Action, outcome: Outcome) -> Op {
    Op { client, connection: 0, node: client % 3, invoked: times.0, completed: times.1, action, outcome }
}

fn put(times: (u64, u64), client: u32, value: u64, revision: i64) -> Op {
    let action = Action::Put { key: 0, value, lease: 0 };
    op(times, client, action, Outcome::Put { revision, previous: None })
}

fn lost_answer(times: (u64, u64), client: u32, value: u64) -> Op {
    op(times, client, Action::Put { key: 0, value, lease: 0 }, Outcome::Unknown)
}

fn stored(value: u64, created: i64, modified: i64, version: i64) -> Option<Stored> {
    Some(Stored { value, created, modified, version, lease: 0 })
}

fn get(times: (u64, u64), client: u32, revision: i64, stored: Option<Stored>) -> Op {
    op(times, client, Action::Get { key: 0, serializable: false }, Outcome::Got { revision, stored })
}

fn own_state(times: (u64, u64), client: u32, revision: i64, stored: Option<Stored>) -> Op {
    op(times, client, Action::Get { key: 0, serializable: true }, Outcome::Got { revision, stored })
}

fn swap(times: (u64, u64), client: u32, wanted: i64, value: u64, outcome: Outcome) -> Op {
    let writes = vec![(0, Write::Put(value))];
    op(times, client, Action::Swap { key: 0, condition: Condition::Modified(wanted), writes }, outcome)
}

#[test]
fn concurrency_and_unknown_outcomes_are_accepted() {
    // Two writes at once, seen by a read that began before either ended.
    check(&[put((0, 10), 1, 1, 3), put((0, 10), 2, 2, 2), get((5, 8), 3, 2, stored(2, 2, 2, 1))]).unwrap();
    // A write without an answer that is seen, one that is not, and one that shows only in the version.
    check(&[lost_answer((0, 9), 1, 1), get((20, 21), 2, 2, stored(1, 2, 2, 1))]).unwrap();
    check(&[lost_answer((0, 9), 1, 1), get((20, 21), 2, 1, None)]).unwrap();
    let unseen = [
        put((0, 1), 1, 1, 2),
        lost_answer((2, 3), 2, 2),
        put((4, 5), 1, 3, 4),
        put((6, 7), 1, 4, 5),
        get((8, 9), 1, 5, stored(4, 2, 5, 4)),
    ];
    check(&unseen).unwrap();
    // It takes effect long after it was given up.
    let late = [lost_answer((0, 1), 1, 1), get((5, 6), 2, 1, None), get((7, 8), 2, 2, stored(1, 2, 2, 1))];
    check(&late).unwrap();
    // Another node's own state may be old.
    check(&[put((0, 1), 1, 1, 2), own_state((5, 6), 2, 1, None)]).unwrap();
}

#[test]
fn stale_reads_are_caught() {
    let written = put((0, 1), 1, 1, 2);
    // The header admits it.
    let found = check(&[written.clone(), get((5, 6), 2, 1, None)]).unwrap_err();
    assert!(matches!(found, Violation::Stale { known: 2, .. }), "{found}");
    // The header lies: an old record with a new revision.
    let newer = put((2, 3), 1, 2, 3);
    let found = check(&[written.clone(), newer.clone(), get((5, 6), 2, 3, stored(1, 2, 2, 1))]).unwrap_err();
    assert!(matches!(found, Violation::NotLinearizable { .. }), "{found}");
    // A change that another node served to somebody before is known as well.
    let seen = own_state((2, 3), 2, 3, stored(2, 2, 3, 2));
    let unacknowledged = lost_answer((2, 9), 1, 2);
    let found = check(&[written, unacknowledged, seen, get((5, 6), 3, 2, stored(1, 2, 2, 1))]).unwrap_err();
    assert!(matches!(found, Violation::Stale { known: 3, .. }), "{found}");
}

#[test]
fn lost_writes_are_caught() {
    let found = check(&[put((0, 1), 1, 1, 2), get((5, 6), 2, 2, None)]).unwrap_err();
    assert!(matches!(found, Violation::NotLinearizable { .. }), "{found}");
    // Replaced by an older value under a newer revision.
    let found = check(&[put((0, 1), 1, 1, 2), put((2, 3), 1, 2, 3), get((5, 6), 2, 4, stored(1, 2, 4, 3))]);
    assert!(matches!(found.unwrap_err(), Violation::AppliedTwice { value: 1, .. }));
    // Only the past shows it.
    let mut past = Timeline::new(2);
    past.add(0, 2, stored(2, 2, 2, 1));
    let history = [put((0, 1), 1, 1, 2), lost_answer((0, 1), 2, 2)];
    let (facts, _) = check(&history).unwrap();
    let found = past.check(&history, &facts).unwrap_err();
    assert!(matches!(found, Violation::RevisionTwice { .. } | Violation::Lost { .. }), "{found}");
}

#[test]
fn double_applies_are_caught() {
    // The second time shows in the version.
    let found = check(&[put((0, 1), 1, 1, 2), put((2, 3), 1, 2, 4), get((5, 6), 2, 4, stored(2, 2, 4, 3))]);
    assert!(matches!(found.unwrap_err(), Violation::NotLinearizable { .. }));
    // Or in the revision of the same value.
    let found = check(&[put((0, 1), 1, 1, 2), get((5, 6), 2, 3, stored(1, 2, 3, 2))]).unwrap_err();
    assert!(matches!(found, Violation::AppliedTwice { value: 1, .. }), "{found}");
    // Without an answer as well.
    let twice =
        [lost_answer((0, 1), 1, 1), get((5, 6), 2, 2, stored(1, 2, 2, 1)), get((7, 8), 2, 3, stored(1, 2, 3, 2))];
    assert!(matches!(check(&twice).unwrap_err(), Violation::AppliedTwice { value: 1, .. }));
    // Or only in the past.
    let mut past = Timeline::new(3);
    past.add(0, 2, stored(1, 2, 2, 1));
    past.add(0, 3, stored(1, 2, 3, 2));
    let history = [put((0, 1), 1, 1, 2)];
    let (facts, _) = check(&history).unwrap();
    assert!(matches!(past.check(&history, &facts).unwrap_err(), Violation::AppliedTwice { value: 1, .. }));
}

#[test]
fn one_revision_for_two_writes_is_caught() {
    let found = check(&[put((0, 1), 1, 1, 2), put((0, 1), 2, 2, 2)]).unwrap_err();
    assert!(matches!(found, Violation::RevisionTwice { revision: 2, .. }), "{found}");
    // A write that ends up before one that was acknowledged earlier.
    let found = check(&[put((0, 1), 1, 1, 3), put((2, 3), 2, 2, 2)]).unwrap_err();
    assert!(matches!(found, Violation::Stale { known: 3, .. }), "{found}");
}

#[test]
fn swaps_that_should_not_have_been_done_are_caught() {
    let first = put((0, 1), 1, 1, 2);
    let second = put((2, 3), 1, 2, 3);
    let done = swap((4, 5), 2, 2, 3, Outcome::Swapped { revision: 4 });
    let found = check(&[first.clone(), second.clone(), done]).unwrap_err();
    assert!(matches!(found, Violation::NotLinearizable { .. }), "{found}");
    let refused = Outcome::NotSwapped { revision: 3, stored: stored(2, 2, 3, 2) };
    check(&[first.clone(), second.clone(), swap((4, 5), 2, 2, 3, refused.clone())]).unwrap();
    let found = check(&[first.clone(), second.clone(), swap((4, 5), 2, 3, 3, refused)]).unwrap_err();
    assert!(matches!(found, Violation::NotLinearizable { .. }), "{found}");
    // Two swaps of one state cannot both be done.
    let one = swap((4, 9), 2, 3, 3, Outcome::Swapped { revision: 4 });
    let other = swap((4, 9), 3, 3, 4, Outcome::Swapped { revision: 5 });
    let found = check(&[first, second, one, other]).unwrap_err();
    assert!(matches!(found, Violation::NotLinearizable { .. }), "{found}");
}

#[test]
fn refused_and_invented_values_are_caught() {
    let refused = op((0, 1), 1, Action::Put { key: 0, value: 1, lease: 0 }, Outcome::Refused);
    let found = check(&[refused.clone(), get((5, 6), 2, 2, stored(1, 2, 2, 1))]).unwrap_err();
    assert!(matches!(found, Violation::RefusedTookEffect { revision: 2, .. }), "{found}");
    check(&[refused, get((5, 6), 2, 1, None)]).unwrap();
    let found = check(&[get((5, 6), 2, 2, stored(9, 2, 2, 1))]).unwrap_err();
    assert!(matches!(found, Violation::Invented { value: 9, .. }), "{found}");
}

#[test]
fn a_connection_that_goes_back_is_caught() {
    let written = [put((0, 1), 1, 1, 2), put((2, 3), 1, 2, 3)];
    let seen = own_state((4, 5), 2, 3, stored(2, 2, 3, 2));
    let back = own_state((6, 7), 2, 2, stored(1, 2, 2, 1));
    let history = [written.to_vec(), vec![seen.clone(), back.clone()]].concat();
    let found = check(&history).unwrap_err();
    assert!(matches!(found, Violation::WentBack { before: 3, revision: 2, .. }), "{found}");
    // On another connection it may.
    let other = Op { connection: 1, ..back };
    check(&[written.to_vec(), vec![seen, other]].concat()).unwrap();
}

#[test]
fn a_serializable_read_that_never_was_is_caught_by_the_past() {
    let history = [
        put((0, 1), 1, 1, 2),
        put((2, 3), 1, 2, 3),
        // Revision 3 with the record of revision 2: no node ever had this state.
        own_state((4, 5), 2, 3, stored(1, 2, 2, 1)),
    ];
    let (facts, _) = check(&history).unwrap();
    let mut past = Timeline::new(3);
    past.add(0, 2, stored(1, 2, 2, 1));
    past.add(0, 3, stored(2, 2, 3, 2));
    let found = past.check(&history, &facts).unwrap_err();
    assert!(matches!(found, Violation::NotAsOf { key: 0, revision: 3, .. }), "{found}");
    // A gap in the past.
    past.last = 4;
    assert!(matches!(past.check(&history[..2], &facts).unwrap_err(), Violation::Past(_)));
}

#[test]
fn effort_is_bounded() {
    // Nothing explains version 30, and twenty unknown writes could be anywhere.
    let mut history: Vec<Op> = (0..20).map(|n| lost_answer((n, n + 1), 1, n + 1)).collect();
    history.extend((0..40).map(|n| put((100 + 2 * n, 101 + 2 * n), 2, 100 + n, 100 + n as i64)));
    history.push(get((300, 301), 2, 139, stored(139, 100, 139, 39)));
    let found = check(&history).unwrap_err();
    assert!(matches!(found, Violation::NotLinearizable { .. } | Violation::Undecided { .. }), "{found}");
    let facts = super::facts::check(&history).unwrap();
    let found = search::check(&history, &facts, 1000).unwrap_err();
    assert!(matches!(found, Violation::NotLinearizable { .. } | Violation::Undecided { .. }), "{found}");
}

/// A store that does one thing at a time, and clients whose operations overlap: what they record must pass, and must
/// fail once one answer is falsified.
struct Model {
    rng: Rng,
    keys: HashMap<Key, Stored>,
    /// Revisions of records that were in an answer.
    told: HashSet<i64>,
    past: Timeline,
    revision: i64,
    values: u64,
    history: Vec<Op>,
}

impl Model {
    fn run(seed: u64, operations: u64) -> Model {
        let (rng, past) = (Rng::new(seed), Timeline::new(1));
        let mut model = Model {
            rng,
            keys: HashMap::new(),
            told: HashSet::new(),
            past,
            revision: 1,
            values: 0,
            history: Vec::new(),
        };
        for number in 0..operations {
            model.step(number);
        }
        model.past.last = model.revision;
        model
    }

    /// One operation takes effect at `number` in units of 100; it begins up to 4 units before and ends up to 4 after.
    fn step(&mut self, number: u64) {
        let at = 1_000 + number * 100;
        // Seven clients in turn: no client has two operations at once.
        let times = (at - self.rng.below(350), at + self.rng.below(340));
        let (client, key) = ((number % 7) as u32, self.rng.below(3) as Key);
        let held = self.keys.get(&key).copied();
        let answered = self.rng.below(8) != 0;
        self.values += 1;
        let value = self.values;
        let (action, outcome) = match self.rng.below(5) {
            0 => {
                let outcome = Outcome::Got { revision: self.revision, stored: held };
                self.push(op(times, client, Action::Get { key, serializable: false }, outcome));
                return;
            }
            1 => {
                // Without an answer it may never have arrived.
                if held.is_some() && (answered || self.rng.below(2) == 0) {
                    self.change(&[(key, Write::Delete)]);
                }
                (Action::Delete { key }, Outcome::Deleted { revision: self.revision, previous: held })
            }
            2 => {
                // Nobody compares with a revision that was never in an answer; 1 is that of no record.
                let current = held.map_or(0, |held| held.modified);
                let told = current == 0 || self.told.contains(&current);
                let wanted = if told && self.rng.below(2) == 0 { current } else { 1 };
                let condition = Condition::Modified(wanted);
                let writes = vec![(key, Write::Put(value)), (key + 10, Write::Put(value + (1 << 32)))];
                let outcome = if condition.holds(held.as_ref()) {
                    self.change(&writes);
                    Outcome::Swapped { revision: self.revision }
                } else {
                    Outcome::NotSwapped { revision: self.revision, stored: held }
                };
                (Action::Swap { key, condition, writes }, outcome)
            }
            _ => {
                if answered || self.rng.below(2) == 0 {
                    self.change(&[(key, Write::Put(value))]);
                }
                let previous = (self.rng.below(2) == 0).then_some(held);
                (Action::Put { key, value, lease: 0 }, Outcome::Put { revision: self.revision, previous })
            }
        };
        let outcome = if answered { outcome } else { Outcome::Unknown };
        self.push(op(times, client, action, outcome));
    }

    fn push(&mut self, op: Op) {
        self.told.extend(op.made());
        self.told.extend(op.seen().iter().filter_map(|(_, _, stored)| Some(stored.as_ref()?.modified)));
        self.history.push(op);
    }

    fn change(&mut self, writes: &[(Key, Write)]) {
        self.revision += 1;
        let at = self.revision;
        for (key, write) in writes {
            match write {
                Write::Put(value) => {
                    let before = self.keys.get(key);
                    let (created, version) = before.map_or((at, 1), |held| (held.created, held.version + 1));
                    let stored = Stored { value: *value, created, modified: at, version, lease: 0 };
                    self.keys.insert(*key, stored);
                    self.past.add(*key, at, Some(stored));
                }
                Write::Delete => {
                    self.keys.remove(key);
                    self.past.add(*key, at, None);
                }
            }
        }
    }
}

#[test]
fn random_correct_histories_pass() {
    for seed in 0..40 {
        let model = Model::run(seed, 600);
        let (facts, searched) = check(&model.history).unwrap_or_else(|found| panic!("seed {seed}: {found}"));
        assert!(searched.operations > 400 && searched.maybes > 0, "{searched:?}");
        let explained = model.past.check(&model.history, &facts).unwrap_or_else(|found| panic!("seed {seed}: {found}"));
        assert!(explained.compared > 100 && explained.unanswered > 0, "{explained:?}");
    }
}

#[test]
fn random_falsified_reads_are_caught() {
    let mut caught = 0;
    for seed in 0..40 {
        let mut model = Model::run(seed, 300);
        let mut rng = Rng::new(seed);
        // One read is answered with an earlier state of its key, under its own header's revision.
        let reads: Vec<usize> = (0..model.history.len())
            .filter(|index| matches!(model.history[*index].outcome, Outcome::Got { stored: Some(_), .. }))
            .collect();
        let index = reads[rng.below(reads.len() as u64) as usize];
        let Action::Get { key, .. } = model.history[index].action else { continue };
        let older = model.history[..index].iter().rev().find_map(|op| match (&op.action, &op.outcome) {
            (Action::Get { key: other, .. }, Outcome::Got { stored, .. }) if *other == key => Some(*stored),
            _ => None,
        });
        let Outcome::Got { stored, .. } = &mut model.history[index].outcome else { continue };
        let Some(older) = older.filter(|older| older != stored) else { continue };
        *stored = older;
        // Where only an operation without an answer stands between the two states, the past has to tell.
        let found = check(&model.history).and_then(|(facts, _)| model.past.check(&model.history, &facts));
        assert!(found.is_err(), "seed {seed}: {} passed", model.history[index]);
        caught += 1;
    }
    assert!(caught > 20, "only {caught} histories could be falsified");
}
