//! Whether leases lived exactly as long as was promised, and took all their keys with them at once.
//!
//! Nobody requests an expiry, so the store's past tells which revisions were ends of leases; the answers tell when each
//! lease could end. Every time is one of the harness's clock. A renewal takes effect somewhere between its beginning and its
//! answer, so what it promises counts from its beginning.
//!
//! **Invariant**: an end is early only if it is early for every moment at which the renewals can have taken effect.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::history::{Action, Key, Lease, Op, Outcome, Write};
use super::timeline::Timeline;
use super::times::Times;

/// Nanoseconds of a second.
pub(crate) const SECOND: u64 = 1_000_000_000;

/// What was asked about a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    /// With this time to live, in seconds.
    Grant(i64),
    Renew,
    Look {
        /// Whether the attached keys are wanted as well.
        keys: bool,
    },
    Revoke,
}

/// What came back. Times to live are in seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Told {
    Granted(i64),
    Renewed(i64),
    Seen {
        remaining: i64,
        granted: i64,
        /// What is attached, if that was asked for.
        keys: Option<Vec<Key>>,
    },
    Revoked,
    /// There is no such lease.
    Gone,
    /// The server said that it did nothing.
    Refused,
    /// Nothing is known.
    Unknown,
}

/// One request about one lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LeaseOp {
    pub(crate) lease: Lease,
    pub(crate) client: u32,
    pub(crate) node: u32,
    /// Nanoseconds since the run began.
    pub(crate) invoked: u64,
    pub(crate) completed: u64,
    pub(crate) ask: Ask,
    pub(crate) told: Told,
}

/// How leases betray that somebody broke a promise.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// It ended before its time, and nobody had revoked it.
    #[error(
        "lease {lease} ended early: it was promised until {promised:.3} s and known to be gone at {gone:.3} s, from {from}"
    )]
    Early { lease: Lease, promised: f64, gone: f64, from: String },
    /// It was there after it had gone.
    #[error("lease {lease} came back: gone by {gone:.3} s, and then {from}")]
    Resurrected { lease: Lease, gone: f64, from: String },
    /// Its keys did not go in one revision.
    #[error("lease {lease} ended in parts: revision {revision} deleted keys {deleted:?}, attached were {attached:?}")]
    Split { lease: Lease, revision: i64, deleted: Vec<Key>, attached: Vec<Key> },
    /// It is gone, and keys are still attached to it.
    #[error("lease {lease} is gone and left keys {keys:?} behind")]
    Left { lease: Lease, keys: Vec<Key> },
    /// It should have ended long ago.
    #[error("lease {lease} outlived its time: due by {due:.3} s at the latest, and still there: {from}")]
    Overdue { lease: Lease, due: f64, from: String },
    /// Less time was told than was promised.
    #[error("lease {lease}: fewer than the {promised} s that are left by the last renewal: {from}")]
    Short { lease: Lease, promised: i64, from: String },
    /// More time was told than before, and nobody renewed it.
    #[error("lease {lease}: the time to live grew without a renewal, from\n  {before}\nto\n  {after}")]
    Grew { lease: Lease, before: String, after: String },
    /// The time to live is another than was asked for or granted.
    #[error("lease {lease}: another time to live than {wanted} s: {from}")]
    Ttl { lease: Lease, wanted: i64, from: String },
    /// The keys that were told are not those that were attached.
    #[error("lease {lease}: key {key} {how}: {from}")]
    Keys { lease: Lease, key: Key, how: &'static str, from: String },
}

/// How much a server may deviate, as it states.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// From when on nothing was broken any more.
    pub(crate) healed: u64,
    /// How long after its time a lease may still be there then, in nanoseconds.
    pub(crate) late_max: u64,
    /// How many seconds the told time to live may grow by without a renewal: what a new leader adds for the election.
    pub(crate) growth_max: i64,
    /// Whether there can have been new leaders, which know what was left only as of the last checkpoint: that is made when
    /// half of what was left at the one before is used up, or [`CHECKPOINT`] seconds.
    pub(crate) elections: bool,
}

/// The longest time between two checkpoints of a lease, in seconds.
const CHECKPOINT: i64 = 300;

/// What was checked.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Leased {
    pub(crate) granted: u64,
    pub(crate) renewed: u64,
    pub(crate) revoked: u64,
    /// Ended by themselves.
    pub(crate) expired: u64,
    /// Looks at the time that is left.
    pub(crate) looks: u64,
    /// Keys that went with a lease.
    pub(crate) keys: u64,
}

/// Everything about one lease.
#[derive(Debug, Default)]
struct Life<'run> {
    ops: Vec<&'run LeaseOp>,
    /// Puts that attached a key to it, or were refused because it was gone.
    puts: Vec<&'run Op>,
    /// The revision that ended it, and the keys that went.
    end: Option<(i64, Vec<Key>)>,
}

/// Checks all leases; gives their ends as operations, for the checks of the keys.
pub(crate) fn check(
    ops: &[LeaseOp],
    history: &[Op],
    past: &Timeline,
    times: &Times,
    rules: Rules,
) -> Result<(Vec<Op>, Leased), Broken> {
    let mut lives: BTreeMap<Lease, Life<'_>> = BTreeMap::new();
    ops.iter().for_each(|op| lives.entry(op.lease).or_default().ops.push(op));
    lives.values_mut().for_each(|life| life.ops.sort_by_key(|op| op.invoked));
    for put in history.iter().filter(|op| op.lease() != 0) {
        lives.entry(put.lease()).or_default().puts.push(put);
    }
    for (lease, end) in ends(history, past, &lives, times)? {
        lives.entry(lease).or_default().end = Some(end);
    }
    let mut leased = Leased::default();
    let mut found = Vec::new();
    for (lease, life) in &lives {
        life.check(*lease, past, times, rules)?;
        life.count(&mut leased);
        found.extend(life.end.as_ref().map(|(revision, keys)| Op {
            client: u32::MAX,
            // No two of them have anything to do with each other.
            connection: found.len() as u32,
            node: u32::MAX,
            invoked: life.may_end(),
            completed: u64::MAX,
            action: Action::End { lease: *lease, keys: keys.clone() },
            outcome: Outcome::Ended { revision: *revision },
        }));
    }
    Ok((found, leased))
}

/// The revision that ended each lease, and its keys.
fn ends(
    history: &[Op],
    past: &Timeline,
    lives: &BTreeMap<Lease, Life<'_>>,
    times: &Times,
) -> Result<HashMap<Lease, (i64, Vec<Key>)>, Broken> {
    let made: BTreeSet<i64> = history.iter().filter_map(Op::made).collect();
    // Deletions without an answer may be the reason as well.
    let maybe: BTreeSet<Key> = (history.iter().filter(|op| op.outcome == Outcome::Unknown))
        .flat_map(Op::writes)
        .filter(|(_, write)| *write == Write::Delete)
        .map(|(key, _)| key)
        .collect();
    let mut deleted: BTreeMap<Lease, Vec<(i64, Vec<Key>)>> = BTreeMap::new();
    for (revision, keys) in past.only_deletions() {
        let leases: BTreeSet<Lease> = keys.iter().map(|key| past.lease_of(*key, revision - 1)).collect();
        let (Some(lease), 1) = (leases.first(), leases.len()) else { continue };
        if !made.contains(&revision) && *lease != 0 {
            deleted.entry(*lease).or_default().push((revision, keys));
        }
    }
    let attached = past.leases();
    let mut ends = HashMap::new();
    for (lease, mut parts) in deleted {
        let deletion = |keys: &[Key]| matches!(keys, [key] if maybe.contains(key));
        let Some((revision, keys)) = parts.pop() else { continue };
        let ever = attached.get(&lease).map_or(&[][..], Vec::as_slice);
        let all: Vec<Key> = ever.iter().copied().filter(|key| past.lease_of(*key, revision - 1) == lease).collect();
        let life = lives.get(&lease);
        let end = times.latest(revision);
        let due = life.is_some_and(|life| life.promised(end).min(life.revoked()) <= end && !life.seen_after(end));
        let whole = keys == all;
        if deletion(&keys) && !(whole && due) {
            continue;
        }
        let earlier = parts.into_iter().find(|(_, keys)| !deletion(keys));
        if let Some((revision, deleted)) = earlier.or_else(|| (!whole).then(|| (revision, keys.clone()))) {
            return Err(Broken::Split { lease, revision, deleted, attached: all });
        }
        ends.insert(lease, (revision, keys));
    }
    Ok(ends)
}

fn seconds(time: u64) -> f64 {
    time as f64 / SECOND as f64
}

impl Life<'_> {
    /// Until when the renewal or the grant promised it to be there.
    fn promise(op: &LeaseOp) -> Option<u64> {
        match op.told {
            Told::Granted(ttl) | Told::Renewed(ttl) => Some(op.invoked + ttl.unsigned_abs() * SECOND),
            _ => None,
        }
    }

    /// Until when it was promised by what began before this time.
    fn promised(&self, before: u64) -> u64 {
        let earlier = self.ops.iter().filter(|op| op.invoked < before);
        earlier.filter_map(|op| Self::promise(op)).max().unwrap_or(0)
    }

    /// When somebody first asked to revoke it.
    fn revoked(&self) -> u64 {
        let asked = self.ops.iter().filter(|op| op.ask == Ask::Revoke && op.told != Told::Refused);
        asked.map(|op| op.invoked).min().unwrap_or(u64::MAX)
    }

    /// It cannot end before.
    fn may_end(&self) -> u64 {
        self.promised(u64::MAX).min(self.revoked())
    }

    /// The seconds that it was granted, if that is known.
    fn ttl(&self) -> Option<i64> {
        self.ops.iter().find_map(|op| if let Told::Granted(ttl) = op.told { Some(ttl) } else { None })
    }

    /// Whether it was there for a request that began after this time.
    fn seen_after(&self, time: u64) -> bool {
        let there =
            |told: &Told| matches!(told, Told::Granted(_) | Told::Renewed(_) | Told::Seen { .. } | Told::Revoked);
        self.ops.iter().any(|op| op.invoked > time && there(&op.told))
            || self.puts.iter().any(|put| put.invoked > time && put.made().is_some())
    }

    fn check(&self, lease: Lease, past: &Timeline, times: &Times, rules: Rules) -> Result<(), Broken> {
        self.ttls(lease)?;
        self.gone(lease, past, times)?;
        self.remaining(lease, rules)?;
        self.overdue(lease, rules)?;
        self.told_keys(lease, past, times)
    }

    /// What was granted is what was asked for (or a longest minimum), and what every answer names.
    fn ttls(&self, lease: Lease) -> Result<(), Broken> {
        let granted = self.ttl();
        for op in &self.ops {
            let wanted = match (&op.ask, &op.told) {
                (Ask::Grant(asked), Told::Granted(given)) if given < asked => *asked,
                (_, Told::Renewed(given)) if granted.is_some_and(|granted| granted != *given) => granted.unwrap_or(0),
                (_, Told::Seen { granted: given, .. }) if granted.is_some_and(|granted| granted != *given) => {
                    granted.unwrap_or(0)
                }
                _ => continue,
            };
            return Err(Broken::Ttl { lease, wanted, from: shown(op) });
        }
        Ok(())
    }

    /// It was not gone before its time, and never came back.
    fn gone(&self, lease: Lease, past: &Timeline, times: &Times) -> Result<(), Broken> {
        let told = self.ops.iter().filter(|op| op.told == Told::Gone).map(|op| (op.completed, shown(op)));
        let refused = self.puts.iter().filter(|put| put.outcome == Outcome::NoLease);
        let refused = refused.map(|put| (put.completed, put.to_string()));
        let seen = self.end.iter().map(|(revision, keys)| {
            (times.latest(*revision), format!("revision {revision}, which deleted its keys {keys:?}"))
        });
        // An end that was answered counts for what comes back, not for what is early.
        let revoked = self.ops.iter().filter(|op| op.told == Told::Revoked).map(|op| (op.completed, shown(op)));
        let Some((first, from)) = told.chain(refused).chain(seen).chain(revoked).min() else { return Ok(()) };
        let promised = self.promised(first);
        if first < promised.min(self.revoked()) {
            let (promised, gone) = (seconds(promised), seconds(first));
            return Err(Broken::Early { lease, promised, gone, from });
        }
        let back = |from: String| Broken::Resurrected { lease, gone: seconds(first), from };
        for op in self.ops.iter().filter(|op| op.invoked > first) {
            if matches!(op.told, Told::Granted(_) | Told::Renewed(_) | Told::Seen { .. } | Told::Revoked) {
                return Err(back(shown(op)));
            }
        }
        let attached = self.puts.iter().filter(|put| put.made().is_some());
        for put in attached {
            let late = |(revision, _): &(i64, Vec<Key>)| put.made() > Some(*revision);
            if put.invoked > first || self.end.as_ref().is_some_and(late) {
                return Err(back(put.to_string()));
            }
        }
        let mut keys: Vec<Key> = self.puts.iter().flat_map(|put| put.writes()).map(|(key, _)| key).collect();
        keys.retain(|key| past.lease_of(*key, past.last) == lease);
        keys.sort_unstable();
        keys.dedup();
        if keys.is_empty() { Ok(()) } else { Err(Broken::Left { lease, keys }) }
    }

    /// The time that is told to be left: not less than was promised, and more only by a renewal.
    fn remaining(&self, lease: Lease, rules: Rules) -> Result<(), Broken> {
        let mut before: Option<(&LeaseOp, i64)> = None;
        for op in &self.ops {
            let Told::Seen { remaining, granted, .. } = op.told else { continue };
            let renewed = self.ops.iter().filter(|renewal| renewal.completed < op.invoked);
            let promised = renewed.filter_map(|renewal| Self::promise(renewal)).max().unwrap_or(0);
            let left = (promised.saturating_sub(op.completed) / SECOND) as i64;
            if remaining < left {
                return Err(Broken::Short { lease, promised: left, from: shown(op) });
            }
            let grew = |than: &LeaseOp| Broken::Grew { lease, before: shown(than), after: shown(op) };
            if remaining > granted + rules.growth_max {
                return Err(grew(op));
            }
            if let Some((earlier, known)) = before
                && earlier.completed < op.invoked
                && !self.may_be_renewed(earlier.invoked, op.completed)
            {
                // Both are whole seconds of something between.
                let passed = ((op.invoked - earlier.completed) / SECOND) as i64;
                let left = (known - passed).max(0) + 1;
                let checkpointed = if rules.elections { (2 * (known + 1)).min(known + 1 + CHECKPOINT) } else { left };
                if remaining > left.max(checkpointed) + rules.growth_max {
                    return Err(grew(earlier));
                }
            }
            before = Some((op, remaining));
        }
        Ok(())
    }

    /// Whether a renewal can have taken effect in this time. One without an answer may at any time after it began.
    fn may_be_renewed(&self, from: u64, to: u64) -> bool {
        self.ops.iter().any(|op| {
            let done = if op.told == Told::Unknown { u64::MAX } else { op.completed };
            matches!(op.ask, Ask::Grant(_) | Ask::Renew) && op.told != Told::Refused && op.invoked < to && done > from
        })
    }

    /// Once nothing is broken, it ends when its time is over.
    fn overdue(&self, lease: Lease, rules: Rules) -> Result<(), Broken> {
        let Some(ttl) = self.ttl() else { return Ok(()) };
        let renewals = self.ops.iter().filter(|op| matches!(op.ask, Ask::Grant(_) | Ask::Renew));
        let last = renewals.filter(|op| op.told != Told::Refused).map(|op| op.completed).max().unwrap_or(0);
        // Somebody who came to lead in the last moment may have begun from the whole.
        let due = last.max(rules.healed) + ttl.unsigned_abs() * SECOND + rules.late_max;
        let seen = self.ops.iter().find(|op| matches!(op.told, Told::Seen { .. }) && op.invoked > due);
        seen.map_or(Ok(()), |op| Err(Broken::Overdue { lease, due: seconds(due), from: shown(op) }))
    }

    /// The keys that a look told: each attached at some moment of it, and none missing that was attached all the time.
    fn told_keys(&self, lease: Lease, past: &Timeline, times: &Times) -> Result<(), Broken> {
        for op in &self.ops {
            let Told::Seen { keys: Some(keys), .. } = &op.told else { continue };
            let (first, last) = (times.at_least(op.invoked), times.at_most(op.completed).min(past.last));
            let strange = keys.iter().find(|key| !past.had_lease(**key, first, last, lease, false));
            let wrong = |key: Key, how| Broken::Keys { lease, key, how, from: shown(op) };
            if let Some(key) = strange {
                return Err(wrong(*key, "was not attached"));
            }
            let attached = self.puts.iter().flat_map(|put| put.writes()).map(|(key, _)| key);
            for key in attached {
                if !keys.contains(&key) && past.had_lease(key, first, last, lease, true) {
                    return Err(wrong(key, "was attached all the time, and not told"));
                }
            }
        }
        Ok(())
    }

    fn count(&self, leased: &mut Leased) {
        let many = |wanted: fn(&Told) -> bool| self.ops.iter().filter(|op| wanted(&op.told)).count() as u64;
        leased.granted += many(|told| matches!(told, Told::Granted(_)));
        leased.renewed += many(|told| matches!(told, Told::Renewed(_)));
        leased.looks += many(|told| matches!(told, Told::Seen { .. } | Told::Gone));
        let revoked = many(|told| *told == Told::Revoked);
        leased.revoked += revoked;
        let gone = self.end.is_some() || many(|told| *told == Told::Gone) > 0;
        leased.expired += u64::from(gone && revoked == 0 && self.revoked() == u64::MAX);
        leased.keys += self.end.as_ref().map_or(0, |(_, keys)| keys.len() as u64);
    }
}

fn shown(op: &LeaseOp) -> String {
    let LeaseOp { client, node, invoked, completed, ask, told, .. } = op;
    let (begun, done) = (seconds(*invoked), seconds(*completed));
    format!("[client {client} on node {node}, {begun:.3} s to {done:.3} s] {ask:?} -> {told:?}")
}
