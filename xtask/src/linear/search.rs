//! The search for an order of one key's operations that explains all their answers.
//!
//! It is Wing and Gong's search with Lowe's memory of states that led nowhere. Revisions make it short: every operation
//! that was answered has its place in the order of revisions (a change before the reads of its revision), so only the
//! operations of unknown outcome have to be tried at every place, or at none. Of those that mean the same (nobody saw the
//! value, or it would be known) only the oldest is tried: it fits wherever a younger one does.

use std::collections::{HashMap, HashSet};

use super::facts::{Facts, Violation};
use super::history::{Action, Condition, Key, Op, Outcome, Stored, Write};

/// States of one key that are tried at most.
pub(crate) const STATES_MAX: usize = 500_000;

/// Stands for all values that nobody has seen.
const UNSEEN: u64 = u64::MAX;

/// How much was searched.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Searched {
    pub(crate) keys: usize,
    pub(crate) operations: usize,
    /// Operations of unknown outcome that nobody saw.
    pub(crate) maybes: usize,
    pub(crate) states: usize,
}

/// What an operation means for one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    Read { stored: Option<Stored>, unless: Option<Condition> },
    Change { write: Write, when: Option<Condition>, previous: Option<Option<Stored>> },
}

/// An operation on one key.
#[derive(Debug, Clone, Copy)]
struct Step {
    /// Its index in the history.
    op: usize,
    invoked: u64,
    completed: u64,
    /// Its place in the order of revisions; none if it may never have happened.
    revision: Option<i64>,
    effect: Effect,
}

/// What the key holds; a revision is not known if the change was acknowledged to nobody and seen by nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Held {
    value: u64,
    version: i64,
    created: Option<i64>,
    modified: Option<i64>,
}

/// Searches every key on its own.
pub(crate) fn check(history: &[Op], facts: &Facts, states_max: usize) -> Result<Searched, Violation> {
    let mut searched = Searched::default();
    for (key, steps) in by_key(history, facts) {
        let (mut maybe, mut known): (Vec<Step>, Vec<Step>) =
            steps.into_iter().partition(|step| step.revision.is_none());
        maybe.sort_by_key(|step| (class(step.effect), step.invoked));
        known.sort_by_key(|step| (step.revision, matches!(step.effect, Effect::Read { .. }), step.invoked));
        searched.keys += 1;
        searched.operations += known.len() + maybe.len();
        searched.maybes += maybe.len();
        searched.states += Search::new(key, history, &known, &maybe)?.run(states_max)?;
    }
    Ok(searched)
}

/// The operations of every key, without those that tell nothing about it.
fn by_key(history: &[Op], facts: &Facts) -> HashMap<Key, Vec<Step>> {
    let mut keys: HashMap<Key, Vec<Step>> = HashMap::new();
    for (index, op) in history.iter().enumerate() {
        if op.serializable() || op.refused() {
            continue;
        }
        let revision = op.revision().or_else(|| facts.revealed(op));
        let completed = if op.outcome == Outcome::Unknown { u64::MAX } else { op.completed };
        let mut add = |key: Key, effect: Effect| {
            let step = Step { op: index, invoked: op.invoked, completed, revision, effect };
            keys.entry(key).or_default().push(step);
        };
        let happened = op.made().is_some() || op.outcome == Outcome::Unknown;
        if !happened {
            let unless = if let Action::Swap { condition, .. } = op.action { Some(condition) } else { None };
            op.seen().into_iter().for_each(|(key, _, stored)| add(key, Effect::Read { stored, unless }));
            continue;
        }
        let compared = if let Action::Swap { key, condition, .. } = op.action { Some((key, condition)) } else { None };
        let previous = op.seen().first().map(|(_, _, stored)| *stored);
        for (key, mut write) in op.writes() {
            if revision.is_none() && matches!(write, Write::Put(_)) {
                write = Write::Put(UNSEEN);
            }
            let when = compared.filter(|(compared, _)| *compared == key).map(|(_, condition)| condition);
            add(key, Effect::Change { write, when, previous });
        }
    }
    keys
}

/// Brings changes that mean the same together.
fn class(effect: Effect) -> (bool, u8, u64) {
    let Effect::Change { write, when, .. } = effect else { return (false, 0, 0) };
    let (kind, wanted) = match when {
        None => (0, 0),
        Some(Condition::Modified(wanted)) => (1, wanted as u64),
        Some(Condition::Created(wanted)) => (2, wanted as u64),
        Some(Condition::Version(wanted)) => (3, wanted as u64),
        Some(Condition::Value(wanted)) => (4, wanted),
    };
    (write == Write::Delete, kind, wanted)
}

/// One key's search.
struct Search<'run> {
    key: Key,
    history: &'run [Op],
    known: &'run [Step],
    maybe: &'run [Step],
    /// The earliest end of this and all later known operations: whatever begins after it cannot come before them.
    ends: Vec<u64>,
}

/// A place in the search.
struct Place {
    /// Known operations behind it.
    done: usize,
    held: Option<Held>,
    /// 0 stands for the next known operation, n for the n-th maybe.
    choice: usize,
    /// The maybe that led here.
    used: Option<usize>,
}

impl<'run> Search<'run> {
    /// Refuses at once if the order of revisions contradicts real time.
    fn new(key: Key, history: &'run [Op], known: &'run [Step], maybe: &'run [Step]) -> Result<Search<'run>, Violation> {
        let mut ends = vec![u64::MAX; known.len() + 1];
        for (index, step) in known.iter().enumerate().rev() {
            ends[index] = ends[index + 1].min(step.completed);
        }
        let search = Search { key, history, known, maybe, ends };
        match known.iter().enumerate().find(|(index, step)| search.ends[*index] < step.invoked) {
            Some((index, _)) => Err(search.stuck(index, None)),
            None => Ok(search),
        }
    }

    /// Gives the number of states that were tried.
    fn run(&self, states_max: usize) -> Result<usize, Violation> {
        let mut used = vec![0_u64; self.maybe.len().div_ceil(64)];
        let mut tried: HashSet<(usize, Vec<u64>, Option<Held>)> = HashSet::new();
        let mut deepest = (0, None);
        let mut states = 0;
        let mut path = vec![Place { done: 0, held: None, choice: 0, used: None }];
        while let Some(place) = path.last_mut() {
            if place.done == self.known.len() {
                return Ok(states);
            }
            if place.done > deepest.0 {
                deepest = (place.done, place.held);
            }
            let Some((done, held, maybe)) = self.advance(place, &used) else {
                if let Some(index) = path.pop().and_then(|place| place.used) {
                    used[index / 64] &= !(1 << (index % 64));
                }
                continue;
            };
            states += 1;
            if states > states_max {
                return Err(Violation::Undecided { key: self.key, states, maybes: self.maybe.len() });
            }
            if let Some(index) = maybe {
                used[index / 64] |= 1 << (index % 64);
            }
            // A state is remembered only where there is a choice; on the straight way nothing comes back to it.
            if self.maybe.is_empty() || tried.insert((done, used.clone(), held)) {
                path.push(Place { done, held, choice: 0, used: maybe });
            } else if let Some(index) = maybe {
                used[index / 64] &= !(1 << (index % 64));
            }
        }
        Err(self.stuck(deepest.0, deepest.1))
    }

    /// The next choice at a place that is possible.
    fn advance(&self, place: &mut Place, used: &[u64]) -> Option<(usize, Option<Held>, Option<usize>)> {
        while place.choice <= self.maybe.len() {
            let choice = place.choice;
            place.choice += 1;
            if choice == 0 {
                if let Some(held) = apply(place.held, &self.known[place.done]) {
                    return Some((place.done + 1, held, None));
                }
                continue;
            }
            let index = choice - 1;
            let step = &self.maybe[index];
            let is_used = |index: usize| used[index / 64] & (1 << (index % 64)) != 0;
            let twin = index > 0 && !is_used(index - 1) && self.maybe[index - 1].effect == step.effect;
            let free = !is_used(index) && !twin && step.invoked < self.ends[place.done];
            if let Some(held) = free.then(|| apply(place.held, step)).flatten() {
                return Some((place.done, held, Some(index)));
            }
        }
        None
    }

    fn stuck(&self, done: usize, held: Option<Held>) -> Violation {
        let op = self.history[self.known[done].op].to_string();
        let state = held.map_or_else(|| "no value".to_owned(), |held| format!("{held:?}"));
        Violation::NotLinearizable { key: self.key, done, of: self.known.len(), state, op }
    }
}

/// What the key holds after a step, if the step can have had its answer there.
fn apply(held: Option<Held>, step: &Step) -> Option<Option<Held>> {
    match step.effect {
        Effect::Read { stored, unless } => {
            if unless.is_some_and(|condition| condition.holds(stored.as_ref())) {
                return None;
            }
            agree(held, stored)
        }
        Effect::Change { write, when, previous } => {
            let held = previous.map_or(Some(held), |previous| agree(held, previous))?;
            if when.is_some_and(|condition| !may_hold(condition, held)) {
                return None;
            }
            match write {
                Write::Put(value) => {
                    let created = held.map_or(step.revision, |held| held.created);
                    let version = held.map_or(1, |held| held.version + 1);
                    Some(Some(Held { value, version, created, modified: step.revision }))
                }
                // Deleting nothing is no change.
                Write::Delete => held.map(|_| None),
            }
        }
    }
}

/// What is held, completed by what was seen of it; nothing if the two contradict each other.
fn agree(held: Option<Held>, stored: Option<Stored>) -> Option<Option<Held>> {
    let (held, stored) = match (held, stored) {
        (None, None) => return Some(None),
        (Some(held), Some(stored)) => (held, stored),
        (None, Some(_)) | (Some(_), None) => return None,
    };
    let same = held.value == stored.value
        && held.version == stored.version
        && held.created.is_none_or(|created| created == stored.created)
        && held.modified.is_none_or(|modified| modified == stored.modified);
    let (created, modified) = (Some(stored.created), Some(stored.modified));
    same.then_some(Some(Held { created, modified, ..held }))
}

/// Whether a condition can hold. A revision that nobody has seen is no revision that somebody compares with, but it may
/// be the creation of a record that was seen later.
fn may_hold(condition: Condition, held: Option<Held>) -> bool {
    let Some(held) = held else { return condition.holds(None) };
    match condition {
        Condition::Modified(wanted) => held.modified == Some(wanted),
        Condition::Created(wanted) => wanted != 0 && held.created.is_none_or(|created| created == wanted),
        Condition::Version(wanted) => held.version == wanted,
        Condition::Value(wanted) => held.value == wanted,
    }
}
