//! What was asked, when, and what came back.

use std::fmt;

/// A key, as the recorder numbers it.
pub(crate) type Key = u32;

/// A lease, by its id; 0 is none.
pub(crate) type Lease = i64;

/// A key's record in an answer. Values are numbers that are never written twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Stored {
    pub(crate) value: u64,
    pub(crate) created: i64,
    pub(crate) modified: i64,
    pub(crate) version: i64,
    pub(crate) lease: Lease,
}

/// A change of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Write {
    Put(u64),
    Delete,
}

/// What a swap compares its key with, always for equality; 0 stands for a key that does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Condition {
    Modified(i64),
    Created(i64),
    Version(i64),
    Value(u64),
}

impl Condition {
    /// Whether it holds for what is stored.
    pub(crate) fn holds(self, stored: Option<&Stored>) -> bool {
        match self {
            Condition::Modified(wanted) => stored.map_or(0, |stored| stored.modified) == wanted,
            Condition::Created(wanted) => stored.map_or(0, |stored| stored.created) == wanted,
            Condition::Version(wanted) => stored.map_or(0, |stored| stored.version) == wanted,
            Condition::Value(wanted) => stored.is_some_and(|stored| stored.value == wanted),
        }
    }
}

/// What was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    Get {
        key: Key,
        serializable: bool,
    },
    /// `count` keys from `first` on, in one read.
    Range {
        first: Key,
        count: u32,
        serializable: bool,
    },
    /// Attaches the key to the lease, or to none.
    Put {
        key: Key,
        value: u64,
        lease: Lease,
    },
    Delete {
        key: Key,
    },
    /// If the condition holds for `key`, all writes in one revision; otherwise a read of `key`. One of the writes is to
    /// `key` itself, and every deletion is of a key that the condition says exists.
    Swap {
        key: Key,
        condition: Condition,
        writes: Vec<(Key, Write)>,
    },
    /// What no client did: a lease ended, and its keys went with it. The recorder learns of it from the store's past.
    End {
        lease: Lease,
        keys: Vec<Key>,
    },
}

/// What came back. `revision` is that of the answer's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Got {
        revision: i64,
        stored: Option<Stored>,
    },
    Ranged {
        revision: i64,
        found: Vec<(Key, Stored)>,
    },
    /// `previous` only where it was asked for.
    Put {
        revision: i64,
        previous: Option<Option<Stored>>,
    },
    /// `previous` is also how it is known whether there was anything to delete.
    Deleted {
        revision: i64,
        previous: Option<Stored>,
    },
    Swapped {
        revision: i64,
    },
    NotSwapped {
        revision: i64,
        stored: Option<Stored>,
    },
    Ended {
        revision: i64,
    },
    /// The server said that it did nothing.
    Refused,
    /// The server said that it did nothing because there is no such lease.
    NoLease,
    /// Nothing is known: it may take effect at any time, or never.
    Unknown,
}

/// One operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Op {
    pub(crate) client: u32,
    /// Counts the client's connections; each leads to one node.
    pub(crate) connection: u32,
    pub(crate) node: u32,
    /// Nanoseconds since the run began.
    pub(crate) invoked: u64,
    pub(crate) completed: u64,
    pub(crate) action: Action,
    pub(crate) outcome: Outcome,
}

impl Op {
    /// The revision in the answer's header.
    pub(crate) fn revision(&self) -> Option<i64> {
        match &self.outcome {
            Outcome::Got { revision, .. }
            | Outcome::Ranged { revision, .. }
            | Outcome::Put { revision, .. }
            | Outcome::Deleted { revision, .. }
            | Outcome::Swapped { revision }
            | Outcome::NotSwapped { revision, .. }
            | Outcome::Ended { revision } => Some(*revision),
            Outcome::Refused | Outcome::NoLease | Outcome::Unknown => None,
        }
    }

    /// The revision that this operation is known to have made.
    pub(crate) fn made(&self) -> Option<i64> {
        match &self.outcome {
            Outcome::Put { revision, .. }
            | Outcome::Deleted { revision, previous: Some(_) }
            | Outcome::Swapped { revision }
            | Outcome::Ended { revision } => Some(*revision),
            Outcome::Got { .. }
            | Outcome::Ranged { .. }
            | Outcome::Deleted { previous: None, .. }
            | Outcome::NotSwapped { .. }
            | Outcome::Refused
            | Outcome::NoLease
            | Outcome::Unknown => None,
        }
    }

    /// Whether it may be answered from one node's own, older state.
    pub(crate) fn serializable(&self) -> bool {
        matches!(self.action, Action::Get { serializable: true, .. } | Action::Range { serializable: true, .. })
    }

    /// The changes that it makes if it takes effect.
    pub(crate) fn writes(&self) -> Vec<(Key, Write)> {
        match &self.action {
            Action::Get { .. } | Action::Range { .. } => Vec::new(),
            Action::Put { key, value, .. } => vec![(*key, Write::Put(*value))],
            Action::Delete { key } => vec![(*key, Write::Delete)],
            Action::Swap { writes, .. } => writes.clone(),
            Action::End { keys, .. } => keys.iter().map(|key| (*key, Write::Delete)).collect(),
        }
    }

    /// The lease that it attaches its key to.
    pub(crate) fn lease(&self) -> Lease {
        if let Action::Put { lease, .. } = self.action { lease } else { 0 }
    }

    /// Whether it is known to have done nothing.
    pub(crate) fn refused(&self) -> bool {
        matches!(self.outcome, Outcome::Refused | Outcome::NoLease)
    }

    /// What it saw of keys, each with the revision as of which that was: its own for a read, the one before for what a
    /// change replaced.
    pub(crate) fn seen(&self) -> Vec<(Key, i64, Option<Stored>)> {
        match (&self.action, &self.outcome) {
            (Action::Get { key, .. }, Outcome::Got { revision, stored })
            | (Action::Swap { key, .. }, Outcome::NotSwapped { revision, stored }) => vec![(*key, *revision, *stored)],
            (Action::Range { first, count, .. }, Outcome::Ranged { revision, found }) => (*first..*first + *count)
                .map(|key| {
                    let stored = found.iter().find(|(other, _)| *other == key).map(|(_, stored)| *stored);
                    (key, *revision, stored)
                })
                .collect(),
            (Action::Put { key, .. }, Outcome::Put { revision, previous: Some(previous) }) => {
                vec![(*key, revision - 1, *previous)]
            }
            (Action::Delete { key }, Outcome::Deleted { revision, previous }) => {
                let as_of = if previous.is_some() { revision - 1 } else { *revision };
                vec![(*key, as_of, *previous)]
            }
            _ => Vec::new(),
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: u64| time as f64 / 1e6;
        write!(
            out,
            "[client {} on node {}, connection {}, {:.3} ms to {:.3} ms] {:?} -> {:?}",
            self.client,
            self.node,
            self.connection,
            ms(self.invoked),
            ms(self.completed),
            self.action,
            self.outcome
        )
    }
}
