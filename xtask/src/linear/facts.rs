//! What revisions and values alone must satisfy. Revisions give all changes one order, so most lies show here already.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::history::{Key, Op, Outcome, Stored, Write};

/// How a history betrays that no single store produced it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Violation {
    /// Two changes were acknowledged with one revision.
    #[error("revision {revision} was given to two changes:\n  {first}\n  {second}")]
    RevisionTwice { revision: i64, first: String, second: String },
    /// A value took effect at two revisions, or at another than was acknowledged.
    #[error("value {value:x} took effect at revision {first} and at {second}; written by\n  {writer}")]
    AppliedTwice { value: u64, first: i64, second: i64, writer: String },
    /// A value that nobody wrote to this key.
    #[error("value {value:x} of key {key} was written by nobody; seen by\n  {reader}")]
    Invented { key: Key, value: u64, reader: String },
    /// The server said that it did nothing, and did it.
    #[error("a refused change took effect at revision {revision}:\n  {writer}")]
    RefusedTookEffect { revision: i64, writer: String },
    /// One revision of a key was described in two ways, or lies after the state that it was read from.
    #[error("a record that cannot be: {why}; seen by\n  {reader}")]
    BadRecord { why: String, reader: String },
    /// An operation does not know what was known before it began.
    #[error("stale: revision {known} was known before this began:\n  {op}\nknown from\n  {witness}")]
    Stale { known: i64, op: String, witness: String },
    /// What one connection to one node saw went back.
    #[error("one connection went back from revision {before} to {revision}:\n  {op}")]
    WentBack { before: i64, revision: i64, op: String },
    /// No order of the operations on this key explains their answers.
    #[error(
        "key {key} is not linearizable: after {done} of {of} operations the state is {state}, and this cannot follow:\n  {op}"
    )]
    NotLinearizable { key: Key, done: usize, of: usize, state: String, op: String },
    /// Too many ways to explain a key were tried.
    #[error("key {key}: no decision after {states} states with {maybes} operations of unknown outcome")]
    Undecided { key: Key, states: usize, maybes: usize },
    /// An acknowledged change is not in the store's past.
    #[error("lost: the store's past has {found} at revision {revision}, which acknowledged\n  {op}")]
    Lost { revision: i64, found: String, op: String },
    /// A read saw something else than the store's past as of its revision.
    #[error("key {key} as of revision {revision} was {expected}, but was seen as {seen} by\n  {op}")]
    NotAsOf { key: Key, revision: i64, expected: String, seen: String, op: String },
    /// The store's past contradicts itself or cannot be explained.
    #[error("the store's past: {0}")]
    Past(String),
}

/// What a history says about changes whose answers are missing.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// The revision at which each value was seen or acknowledged.
    pub(crate) written: HashMap<u64, i64>,
}

impl Facts {
    /// The revision of an operation without an answer, if one of its values was seen.
    pub(crate) fn revealed(&self, op: &Op) -> Option<i64> {
        op.writes().iter().find_map(|(_, write)| match write {
            Write::Put(value) => self.written.get(value).copied(),
            Write::Delete => None,
        })
    }
}

/// Checks everything that can be checked without searching.
pub(crate) fn check(history: &[Op]) -> Result<Facts, Violation> {
    let made = revisions_made(history)?;
    let facts = records_seen(history, &made)?;
    real_time(history, &facts)?;
    connections(history)?;
    Ok(facts)
}

/// Which operation made which revision: one each.
fn revisions_made(history: &[Op]) -> Result<HashMap<i64, usize>, Violation> {
    let mut made = HashMap::new();
    for (index, op) in history.iter().enumerate() {
        let Some(revision) = op.made() else { continue };
        if let Some(other) = made.insert(revision, index) {
            let (first, second) = (history[other].to_string(), op.to_string());
            return Err(Violation::RevisionTwice { revision, first, second });
        }
    }
    Ok(made)
}

/// Every record in an answer was written once, by somebody who was not refused, at the revision that it names.
fn records_seen(history: &[Op], made: &HashMap<i64, usize>) -> Result<Facts, Violation> {
    let mut writers: HashMap<u64, (Key, usize)> = HashMap::new();
    let mut facts = Facts::default();
    for (index, op) in history.iter().enumerate() {
        for (key, write) in op.writes() {
            let Write::Put(value) = write else { continue };
            writers.insert(value, (key, index));
            if let Some(revision) = op.made() {
                facts.written.insert(value, revision);
            }
        }
    }
    let mut records: HashMap<(Key, i64), Stored> = HashMap::new();
    for op in history {
        for (key, as_of, stored) in op.seen() {
            let Some(stored) = stored else { continue };
            let writer = writers.get(&stored.value).filter(|(written, _)| *written == key);
            let Some((_, writer)) = writer else {
                return Err(Violation::Invented { key, value: stored.value, reader: op.to_string() });
            };
            seen_once(history, *writer, &stored, &mut facts)?;
            if history[*writer].lease() != stored.lease {
                let why = format!("it was attached to lease {}: {stored:?}", history[*writer].lease());
                return Err(Violation::BadRecord { why, reader: op.to_string() });
            }
            if let Some(other) = made.get(&stored.modified).filter(|other| *other != writer) {
                let (first, second) = (history[*other].to_string(), history[*writer].to_string());
                return Err(Violation::RevisionTwice { revision: stored.modified, first, second });
            }
            let bad = |why: &str| Violation::BadRecord { why: format!("{why}: {stored:?}"), reader: op.to_string() };
            if stored.modified > as_of {
                return Err(bad(&format!("it is newer than the state of revision {as_of} that it was read from")));
            }
            if history[*writer].invoked > op.completed {
                return Err(bad("it was seen before it was written"));
            }
            if stored.created > stored.modified || stored.version < 1 {
                return Err(bad("its figures contradict each other"));
            }
            match records.entry((key, stored.modified)) {
                Entry::Vacant(empty) => _ = empty.insert(stored),
                Entry::Occupied(known) if *known.get() == stored => {}
                Entry::Occupied(known) => return Err(bad(&format!("somebody else saw {:?}", known.get()))),
            }
        }
    }
    Ok(facts)
}

/// A value belongs to one revision, and only if its writer was not refused.
fn seen_once(history: &[Op], writer: usize, stored: &Stored, facts: &mut Facts) -> Result<(), Violation> {
    let writer = &history[writer];
    if writer.refused() || matches!(writer.outcome, Outcome::NotSwapped { .. }) {
        return Err(Violation::RefusedTookEffect { revision: stored.modified, writer: writer.to_string() });
    }
    let first = *facts.written.entry(stored.value).or_insert(stored.modified);
    // All changes of one transaction have one revision, so its other values are pinned as well.
    for (_, write) in writer.writes() {
        let Write::Put(value) = write else { continue };
        let first = *facts.written.entry(value).or_insert(stored.modified);
        if first != stored.modified {
            let (second, writer) = (stored.modified, writer.to_string());
            return Err(Violation::AppliedTwice { value, first, second, writer });
        }
    }
    if first == stored.modified {
        return Ok(());
    }
    let (second, writer) = (stored.modified, writer.to_string());
    Err(Violation::AppliedTwice { value: stored.value, first, second, writer })
}

/// Whatever began after a revision was known to somebody, on any node, must know it too.
fn real_time(history: &[Op], facts: &Facts) -> Result<(), Violation> {
    let mut invoked: Vec<&Op> = history.iter().collect();
    invoked.sort_unstable_by_key(|op| op.invoked);
    let mut completed: Vec<(&Op, i64)> = history.iter().filter_map(|op| Some((op, op.revision()?))).collect();
    completed.sort_unstable_by_key(|(op, _)| op.completed);
    let mut completed = completed.into_iter().peekable();
    let mut known: Option<(i64, &Op)> = None;
    for op in invoked {
        while let Some((done, revision)) = completed.next_if(|(done, _)| done.completed < op.invoked) {
            if known.is_none_or(|(most, _)| revision > most) {
                known = Some((revision, done));
            }
        }
        let Some((most, witness)) = known else { continue };
        if op.serializable() {
            continue;
        }
        // A change must come after what was known; a revision revealed later counts as well.
        let new = op.made().or_else(|| facts.revealed(op));
        let stale = new.map_or_else(|| op.revision().is_some_and(|seen| seen < most), |made| made <= most);
        if stale {
            return Err(Violation::Stale { known: most, op: op.to_string(), witness: witness.to_string() });
        }
    }
    Ok(())
}

/// On one connection, and so on one node, nothing goes back: serializable reads included.
fn connections(history: &[Op]) -> Result<(), Violation> {
    let mut ordered: Vec<(&Op, i64)> = history.iter().filter_map(|op| Some((op, op.revision()?))).collect();
    ordered.sort_unstable_by_key(|(op, _)| (op.client, op.connection, op.invoked));
    for pair in ordered.windows(2) {
        let [(earlier, before), (op, revision)] = pair else { continue };
        let same = (earlier.client, earlier.connection) == (op.client, op.connection);
        if same && revision < before {
            return Err(Violation::WentBack { before: *before, revision: *revision, op: op.to_string() });
        }
    }
    Ok(())
}
