//! The store's own past, read back at the end, against everything that was answered: it must be the one order that
//! explains all operations, serializable reads included.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::facts::{Facts, Violation};
use super::history::{Action, Key, Lease, Op, Outcome, Stored, Write};

/// Every change the store knows of, key by key.
#[derive(Debug, Default)]
pub(crate) struct Timeline {
    /// Oldest first; nothing stored means that the key was deleted.
    changes: HashMap<Key, BTreeMap<i64, Option<Stored>>>,
    pub(super) last: i64,
}

/// What the past adds up to.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Explained {
    /// Revisions that were made by operations without an answer.
    pub(crate) unanswered: usize,
    /// Records in answers that were compared with the past.
    pub(crate) compared: usize,
}

impl Timeline {
    /// A past that ends with this revision.
    pub(crate) fn new(last: i64) -> Timeline {
        Timeline { changes: HashMap::new(), last }
    }

    /// Adds what one revision made of one key.
    pub(crate) fn add(&mut self, key: Key, revision: i64, stored: Option<Stored>) {
        self.changes.entry(key).or_default().insert(revision, stored);
    }

    /// What a key was through time.
    pub(super) fn changes(&self, key: Key) -> Option<&BTreeMap<i64, Option<Stored>>> {
        self.changes.get(&key)
    }

    /// What every revision changed, by key.
    pub(super) fn revisions(&self) -> BTreeMap<i64, Vec<(Key, Option<Stored>)>> {
        let mut revisions: BTreeMap<i64, Vec<(Key, Option<Stored>)>> = BTreeMap::new();
        for (key, changes) in &self.changes {
            changes.iter().for_each(|(at, stored)| revisions.entry(*at).or_default().push((*key, *stored)));
        }
        revisions.values_mut().for_each(|changes| changes.sort_unstable_by_key(|(key, _)| *key));
        revisions
    }

    /// The revisions that only deleted, and what.
    pub(super) fn only_deletions(&self) -> Vec<(i64, Vec<Key>)> {
        let deleted = |(revision, changes): (i64, Vec<(Key, Option<Stored>)>)| {
            let only = changes.iter().all(|(_, stored)| stored.is_none());
            only.then(|| (revision, changes.into_iter().map(|(key, _)| key).collect()))
        };
        self.revisions().into_iter().filter_map(deleted).collect()
    }

    /// Every lease that keys were ever attached to, and those keys.
    pub(super) fn leases(&self) -> HashMap<Lease, Vec<Key>> {
        let mut leases: HashMap<Lease, Vec<Key>> = HashMap::new();
        for (key, changes) in &self.changes {
            let held = changes.values().flatten().map(|stored| stored.lease);
            let held: BTreeSet<Lease> = held.filter(|lease| *lease != 0).collect();
            held.into_iter().for_each(|lease| leases.entry(lease).or_default().push(*key));
        }
        leases.values_mut().for_each(|keys| keys.sort_unstable());
        leases
    }

    /// The lease that a key was attached to as of a revision.
    pub(super) fn lease_of(&self, key: Key, revision: i64) -> Lease {
        self.as_of(key, revision).map_or(0, |stored| stored.lease)
    }

    /// Whether a key was attached to a lease between two revisions: at some time, or always.
    pub(super) fn had_lease(&self, key: Key, first: i64, last: i64, lease: Lease, always: bool) -> bool {
        let of = |stored: &Option<Stored>| stored.map_or(0, |stored| stored.lease) == lease;
        let meanwhile =
            self.changes.get(&key).into_iter().flat_map(|changes| changes.range(first + 1..=last.max(first + 1)));
        let mut meanwhile = meanwhile.map(|(_, stored)| of(stored));
        let before = self.lease_of(key, first) == lease;
        if always { before && meanwhile.all(|was| was) } else { before || meanwhile.any(|was| was) }
    }

    /// The key's record as of a revision.
    pub(super) fn as_of(&self, key: Key, revision: i64) -> Option<Stored> {
        let (_, stored) = self.changes.get(&key)?.range(..=revision).next_back()?;
        *stored
    }

    /// Explains every revision from 2 on by one operation, and every answer by the past.
    pub(crate) fn check(&self, history: &[Op], facts: &Facts) -> Result<Explained, Violation> {
        self.consistent()?;
        let mut explained = Explained { unanswered: self.every_revision(history)?, compared: 0 };
        for op in history {
            self.kept(op)?;
            for (key, as_of, seen) in op.seen() {
                let expected = self.as_of(key, as_of);
                if expected != seen {
                    return Err(not_as_of(key, as_of, expected, seen, op));
                }
                explained.compared += 1;
            }
            self.condition_held(op)?;
            if op.outcome == Outcome::Unknown
                && let Some(revision) = facts.revealed(op)
            {
                self.has_changes(op, revision)?;
            }
        }
        Ok(explained)
    }

    /// Versions count up from every creation, and a record names its own revision.
    fn consistent(&self) -> Result<(), Violation> {
        for (key, changes) in &self.changes {
            let mut before: Option<Stored> = None;
            for (revision, stored) in changes {
                let right = match (before, stored) {
                    (None, None) => false,
                    (Some(_), None) => true,
                    (None, Some(new)) => (new.created, new.modified, new.version) == (*revision, *revision, 1),
                    (Some(old), Some(new)) => {
                        (new.created, new.modified, new.version) == (old.created, *revision, old.version + 1)
                    }
                };
                if !right {
                    return Err(Violation::Past(format!(
                        "key {key}, revision {revision}: {} follows {}",
                        shown(stored.as_ref()),
                        shown(before.as_ref())
                    )));
                }
                before = *stored;
            }
        }
        Ok(())
    }

    /// Each revision's changes are those of one operation, and no operation made two. Gives how many revisions were made
    /// without an answer.
    fn every_revision(&self, history: &[Op]) -> Result<usize, Violation> {
        let mut writers: HashMap<u64, &Op> = HashMap::new();
        let mut made: HashMap<i64, &Op> = HashMap::new();
        let mut deletions: HashMap<Key, usize> = HashMap::new();
        for op in history {
            made.extend(op.made().map(|revision| (revision, op)));
            for (key, write) in op.writes() {
                match write {
                    Write::Put(value) => _ = writers.insert(value, op),
                    Write::Delete if op.outcome == Outcome::Unknown => *deletions.entry(key).or_default() += 1,
                    Write::Delete => {}
                }
            }
        }
        let revisions = self.revisions();
        let mut doubled: HashMap<u64, i64> = HashMap::new();
        let mut unanswered = 0;
        for wanted in 2..=self.last {
            let Some(changes) = revisions.get(&wanted) else {
                return Err(Violation::Past(format!("nothing was changed by revision {wanted} of {}", self.last)));
            };
            for (key, stored) in changes {
                let answered = made.get(&wanted).copied();
                let writer = match stored {
                    Some(stored) => {
                        let writer = *writers.get(&stored.value).ok_or_else(|| {
                            let reader = format!("the store's past at revision {wanted}");
                            Violation::Invented { key: *key, value: stored.value, reader }
                        })?;
                        if let Some(first) = doubled.insert(stored.value, wanted) {
                            let writer = writer.to_string();
                            return Err(Violation::AppliedTwice { value: stored.value, first, second: wanted, writer });
                        }
                        Some(writer)
                    }
                    None => answered,
                };
                match (writer, answered) {
                    (Some(writer), Some(answered)) if std::ptr::eq(writer, answered) => {}
                    (Some(writer), Some(answered)) => {
                        let (first, second) = (answered.to_string(), writer.to_string());
                        return Err(Violation::RevisionTwice { revision: wanted, first, second });
                    }
                    (Some(writer), None) if writer.outcome == Outcome::Unknown => {}
                    (Some(writer), None) => {
                        let writer = writer.to_string();
                        return Err(Violation::RefusedTookEffect { revision: wanted, writer });
                    }
                    (None, _) => match deletions.get_mut(key).filter(|left| **left > 0) {
                        Some(left) => *left -= 1,
                        None => {
                            let why = format!("nobody deleted key {key}, which revision {wanted} did");
                            return Err(Violation::Past(why));
                        }
                    },
                }
            }
            unanswered += usize::from(!made.contains_key(&wanted));
        }
        Ok(unanswered)
    }

    /// An acknowledged change is there.
    fn kept(&self, op: &Op) -> Result<(), Violation> {
        op.made().map_or(Ok(()), |revision| self.has_changes(op, revision))
    }

    /// All changes of an operation are there, at its revision.
    fn has_changes(&self, op: &Op, revision: i64) -> Result<(), Violation> {
        for (key, write) in op.writes() {
            let found = self.changes.get(&key).and_then(|changes| changes.get(&revision));
            let there = match (write, found) {
                (Write::Put(value), Some(Some(stored))) => stored.value == value,
                (Write::Delete, Some(None)) => true,
                (Write::Put(_) | Write::Delete, _) => false,
            };
            if !there {
                let found = found.map_or_else(|| format!("no change of key {key}"), |stored| shown(stored.as_ref()));
                return Err(Violation::Lost { revision, found, op: op.to_string() });
            }
        }
        Ok(())
    }

    /// A swap that was done met what it asked for, one that was not did not.
    fn condition_held(&self, op: &Op) -> Result<(), Violation> {
        let Action::Swap { key, condition, .. } = &op.action else { return Ok(()) };
        let (as_of, wanted) = match op.outcome {
            Outcome::Swapped { revision } => (revision - 1, true),
            Outcome::NotSwapped { revision, .. } => (revision, false),
            _ => return Ok(()),
        };
        let stored = self.as_of(*key, as_of);
        if condition.holds(stored.as_ref()) == wanted {
            return Ok(());
        }
        let seen = format!("{} {condition:?}", if wanted { "one that meets" } else { "one that does not meet" });
        let (expected, op) = (shown(stored.as_ref()), op.to_string());
        Err(Violation::NotAsOf { key: *key, revision: as_of, expected, seen, op })
    }
}

fn not_as_of(key: Key, revision: i64, expected: Option<Stored>, seen: Option<Stored>, op: &Op) -> Violation {
    let (expected, seen) = (shown(expected.as_ref()), shown(seen.as_ref()));
    Violation::NotAsOf { key, revision, expected, seen, op: op.to_string() }
}

fn shown(stored: Option<&Stored>) -> String {
    stored.map_or_else(|| "nothing".to_owned(), |stored| format!("{stored:?}"))
}
