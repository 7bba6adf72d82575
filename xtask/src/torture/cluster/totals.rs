//! What many runs add up to, on the screen and in `docs/torture.md`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use super::audit::Audited;
use super::crew::Recorded;
use super::nemesis::{Fault, describe};
use super::observer::{SNAPSHOTS_RECEIVED, Seen};
use crate::error::{Error, Result};
use crate::linear::leases::{Ask, LeaseOp, Told};
use crate::linear::{Action, Op, Outcome};

/// A fault that was tried so often must have had an effect.
const VAIN_MAX: u64 = 3;

/// What is said before the sections of the page.
const HEAD: &str = "\
# Torture of a cluster

Written by `cargo xtask torture --nodes N --out docs/torture.md`; do not edit.

Real servers, each in a network namespace of its own, are loaded by clients on all nodes while they are killed, paused, cut
off, slowed down, replaced and moved about. Every operation is recorded with its beginning, its end and its answer; an
operation without an answer may take effect at any time, or never. A run passes only if

- the answers of every key, linearizable reads, writes, deletions and swaps, can be brought into one order that respects real time
  (a Wing and Gong search, in `xtask/src/linear`, whose own tests plant stale reads, lost writes and double applies);
- revisions agree with real time: nothing that began after a revision was known anywhere shows an older one, no two changes have
  one revision, and on one connection to one node not even a serializable read goes back;
- the store's own past, read back revision by revision at the end, has no gap, holds every acknowledged change, nothing that was
  refused and nothing twice, and is what every answer showed as of its revision, serializable reads included;
- leases live as long as they were promised: none ends before its last acknowledged renewal (counted from when that was sent) is a
  time to live old unless somebody revoked it, none is late once nothing is broken, none comes back, all its keys go in one revision
  and in order, and the time that is told to be left only falls unless somebody renews it (but for the second that a new leader may
  add); an end is a deletion that nobody requested, and the only kind there may be;
- watchers are told the store's past, all of it from their start to the last revision or progress they were told, and nothing else:
  in order, once, all events of a revision in one message (or in fragments), with the right record and the right one before it,
  none at or below a revision that they had been told to have all of; whoever reconnects, mostly to another node, goes on where he
  was. At the end all must have been told everything, those who follow all keys without asking and without a new connection, half of
  those who follow some without asking, and
  after a compaction those who need what is gone are cancelled, no others, and nobody else unless a node serves no watches;
- at every applied index at which two replicas could be compared they had the same state root (every node tells the roots of its
  last checkpoints all the time, and at the end that of all it has applied), no term had two leaders, and no applied index went
  back;
- every kind of fault that was tried several times had its effect: the leader moved, the log was cut under who was away;
- no server ended that was not told to, removed members ended by themselves with status 0, and after every fault that was healed all
  nodes answered again.

To repeat a run: `cargo xtask torture --nodes 3 --seed SEED --seconds SECONDS`. The seed fixes the faults, their victims and
lengths, and what every client does; threads and packets still race, so no two runs are the same. As root, or where users may
make network namespaces, links are cut and slowed; elsewhere only processes are killed and paused.
";

/// Sums over runs.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    nodes: usize,
    /// What was tortured, and what the machine allowed.
    notes: Vec<String>,
    seeds: Vec<u64>,
    loaded: Duration,
    operations: BTreeMap<&'static str, u64>,
    faults: BTreeMap<&'static str, u64>,
    vain: BTreeMap<&'static str, u64>,
    failures: BTreeMap<String, u64>,
    counters: BTreeMap<&'static str, u64>,
    elections: u64,
    comparisons: u64,
    indexes: u64,
    samples: u64,
    recovery_max: Duration,
    audited: Audited,
    streams: u64,
    watchers: u64,
    /// Watchers that their clients cancelled.
    cancelled: u64,
    /// Answers to questions for progress.
    answers: u64,
}

impl Totals {
    /// Nothing yet.
    pub(crate) fn new(nodes: usize, notes: Vec<String>) -> Totals {
        Totals { nodes, notes, ..Totals::default() }
    }

    /// Adds a run that passed.
    pub(crate) fn add(&mut self, seed: u64, recorded: &Recorded, seen: &Seen, audited: Audited) {
        let done = &recorded.done;
        self.seeds.push(seed);
        self.loaded += recorded.loaded;
        for op in &recorded.history {
            *self.operations.entry(kind(op)).or_default() += 1;
        }
        for op in &recorded.leases {
            *self.operations.entry(lease_kind(op)).or_default() += 1;
        }
        for watch in &recorded.watches {
            self.streams += watch.connections;
            self.watchers += watch.watchers;
            self.cancelled += watch.cancelled;
            self.answers += watch.answers;
        }
        done.faults.iter().for_each(|(name, count)| *self.faults.entry(name).or_default() += count);
        done.vain.iter().for_each(|(name, count)| *self.vain.entry(name).or_default() += count);
        seen.counters.iter().for_each(|(name, count)| *self.counters.entry(name).or_default() += count);
        self.elections += seen.elections();
        self.comparisons += seen.comparisons;
        self.indexes += seen.indexes;
        self.samples += seen.samples;
        self.recovery_max = self.recovery_max.max(done.recovery_max);
        let (sum, new) = (&mut self.audited, audited);
        sum.searched.keys += new.searched.keys;
        sum.searched.operations += new.searched.operations;
        sum.searched.maybes += new.searched.maybes;
        sum.searched.states += new.searched.states;
        sum.revision += new.revision;
        sum.unanswered += new.unanswered;
        sum.compared += new.compared;
        sum.applied += new.applied;
        let (sum, new) = (&mut self.audited.leased, audited.leased);
        sum.granted += new.granted;
        sum.renewed += new.renewed;
        sum.revoked += new.revoked;
        sum.expired += new.expired;
        sum.looks += new.looks;
        sum.keys += new.keys;
        let (sum, new) = (&mut self.audited.watched, audited.watched);
        sum.segments += new.segments;
        sum.events += new.events;
        sum.previous += new.previous;
        sum.progress += new.progress;
        sum.fragments += new.fragments;
        sum.several += new.several;
        sum.complete += new.complete;
        sum.cancelled += new.cancelled;
    }

    /// Adds what requests failed with.
    pub(crate) fn add_failures(&mut self, failures: &BTreeMap<String, u64>) {
        failures.iter().for_each(|(why, count)| *self.failures.entry(why.clone()).or_default() += count);
    }

    /// Whether what was tried was there at all: what never had an effect has shown nothing.
    pub(crate) fn check(&self) -> Result<()> {
        for (fault, tried) in &self.vain {
            if *tried >= VAIN_MAX && !self.faults.contains_key(fault) {
                return Err(Error::Check(format!("\"{fault}\" was tried {tried} times and never had an effect")));
            }
        }
        let away = self.faults.get(describe(Fault::Away)).copied().unwrap_or(0);
        let received = self.counters.get(SNAPSHOTS_RECEIVED).copied().unwrap_or(0);
        if away >= VAIN_MAX && received == 0 {
            return Err(Error::Check(format!("the log was cut {away} times under a node, and none got a snapshot")));
        }
        Ok(())
    }

    /// The section of these runs.
    pub(crate) fn section(&self) -> String {
        let minutes = self.loaded.as_secs_f64() / 60.0;
        let mut out = format!("## {} nodes\n\n", self.nodes);
        self.notes.iter().for_each(|note| out += &format!("- {note}\n"));
        let seeds: Vec<String> = self.seeds.iter().map(u64::to_string).collect();
        out += &format!(
            "- {} runs, {minutes:.1} minutes under load, no violation; seeds {}\n\n",
            self.seeds.len(),
            seeds.join(", ")
        );
        let operations: u64 = self.operations.values().sum();
        let faults: u64 = self.faults.values().sum();
        let audited = &self.audited;
        let rows = [
            ("operations recorded", operations),
            ("faults", faults),
            ("terms with a leader", self.elections),
            ("revisions, each explained by one operation", audited.revision.unsigned_abs()),
            ("revisions made by operations without an answer", audited.unanswered),
            ("keys searched for an order", audited.searched.keys as u64),
            ("operations in those searches", audited.searched.operations as u64),
            ("of these, of unknown outcome and never seen", audited.searched.maybes as u64),
            ("records in answers compared with the store's past", audited.compared),
            ("leases granted", audited.leased.granted),
            ("leases that expired", audited.leased.expired),
            ("leases revoked", audited.leased.revoked),
            ("lease renewals", audited.leased.renewed),
            ("looks at the time a lease has left", audited.leased.looks),
            ("keys that went with their lease, all in one revision", audited.leased.keys),
            ("watch streams", self.streams),
            ("watchers", self.watchers),
            ("connections of watchers checked against the store's past", audited.watched.segments),
            ("of these, still there at the end and told everything", audited.watched.complete),
            ("events checked", audited.watched.events),
            ("of these, with the record before them", audited.watched.previous),
            ("events that came with another of their revision", audited.watched.several),
            ("messages that were fragments", audited.watched.fragments),
            ("times progress was told to a watcher", audited.watched.progress),
            ("answers to questions for progress", self.answers),
            ("watchers cancelled by their clients", self.cancelled),
            ("watchers cancelled by a compaction", audited.watched.cancelled),
            ("state roots compared between nodes at one index", self.comparisons),
            ("indexes at which they were compared", self.indexes),
            ("looks at a node's term, leader and applied index", self.samples),
        ];
        out += "| what | how many |\n|---|--:|\n";
        rows.iter().for_each(|(name, count)| out += &format!("| {name} | {} |\n", grouped(*count)));
        self.counters.iter().for_each(|(name, count)| out += &format!("| {name} (at least) | {} |\n", grouped(*count)));
        out += &format!(
            "\nThe longest time from the end of a fault until every node answered linearizable reads: {:.1} s.\n\n",
            self.recovery_max.as_secs_f64()
        );
        out += "| fault | times |\n|---|--:|\n";
        self.faults.iter().for_each(|(name, count)| out += &format!("| {name} | {count} |\n"));
        self.vain.iter().for_each(|(name, count)| out += &format!("| {name}: without effect | {count} |\n"));
        out += "\n| operation | times |\n|---|--:|\n";
        self.operations.iter().for_each(|(name, count)| out += &format!("| {name} | {} |\n", grouped(*count)));
        out += "\n| requests that failed while faults were active | times |\n|---|--:|\n";
        self.failures.iter().for_each(|(why, count)| out += &format!("| {why} | {} |\n", grouped(*count)));
        out
    }

    /// Puts the section into a page, in the place of an older one for as many nodes.
    pub(crate) fn write(&self, file: &Path) -> Result<()> {
        let old = fs::read_to_string(file).unwrap_or_default();
        fs::write(file, page(&old, self.nodes, &self.section())).map_err(Error::file("write", file))
    }
}

/// The page with a section replaced or added, in the order of node counts.
fn page(old: &str, nodes: usize, section: &str) -> String {
    let mut sections: BTreeMap<usize, String> = BTreeMap::new();
    for text in old.split("\n## ").skip(1) {
        let known = text.split(' ').next().and_then(|digits| digits.parse().ok());
        sections.extend(known.map(|known: usize| (known, format!("## {}\n", text.trim_end()))));
    }
    sections.insert(nodes, format!("{}\n", section.trim_end()));
    let sections: Vec<String> = sections.into_values().collect();
    format!("{HEAD}\n{}", sections.join("\n"))
}

fn kind(op: &Op) -> &'static str {
    match (&op.action, &op.outcome) {
        (Action::Get { serializable: false, .. }, _) => "get, linearizable",
        (Action::Get { serializable: true, .. }, _) => "get, serializable",
        (Action::Range { serializable: false, .. }, _) => "range, linearizable",
        (Action::Range { serializable: true, .. }, _) => "range, serializable",
        (_, Outcome::Unknown) => "change of unknown outcome",
        (_, Outcome::NoLease) => "put that was refused because its lease is gone",
        (_, Outcome::Refused) => "change that was refused",
        (Action::Put { lease: 0, .. }, _) => "put",
        (Action::Put { .. }, _) => "put with a lease",
        (Action::End { .. }, _) => "end of a lease",
        (Action::Delete { .. }, _) => "delete",
        (Action::Swap { .. }, Outcome::Swapped { .. }) => "compare and swap, done",
        (Action::Swap { .. }, _) => "compare and swap, not done",
    }
}

fn lease_kind(op: &LeaseOp) -> &'static str {
    match (op.ask, &op.told) {
        (_, Told::Unknown) => "lease request of unknown outcome",
        (_, Told::Refused) => "lease request that was refused",
        (Ask::Grant(_), _) => "lease grant",
        (Ask::Renew, Told::Gone) => "lease renewal, gone",
        (Ask::Renew, _) => "lease renewal",
        (Ask::Look { .. }, Told::Gone) => "lease look, gone",
        (Ask::Look { .. }, _) => "lease look",
        (Ask::Revoke, Told::Gone) => "lease revocation, gone",
        (Ask::Revoke, _) => "lease revocation",
    }
}

fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap_or_default()).collect();
    groups.join(",")
}

#[cfg(test)]
mod tests {
    use super::{HEAD, grouped, page};

    #[test]
    fn sections_are_replaced_and_kept_in_order() {
        let five = page("", 5, "## 5 nodes\n\nold\n");
        let both = page(&five, 3, "## 3 nodes\n\nx\n");
        assert_eq!(both, format!("{HEAD}\n## 3 nodes\n\nx\n\n## 5 nodes\n\nold\n"));
        let again = page(&both, 5, "## 5 nodes\n\nnew\n");
        assert_eq!(again, format!("{HEAD}\n## 3 nodes\n\nx\n\n## 5 nodes\n\nnew\n"));
    }

    #[test]
    fn thousands() {
        assert_eq!([0, 999, 1000, 1234567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
