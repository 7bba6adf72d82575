//! What many runs add up to, on the screen and in `docs/torture.md`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use super::audit::Audited;
use super::nemesis::Done;
use super::observer::Seen;
use crate::error::{Error, Result};
use crate::linear::{Action, Op, Outcome};

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
- at every applied index at which two replicas could be compared they had the same state root (every node tells the roots of its
  last checkpoints all the time), no term had two leaders, and no applied index went back;
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
    failures: BTreeMap<String, u64>,
    counters: BTreeMap<&'static str, u64>,
    elections: u64,
    comparisons: u64,
    indexes: u64,
    samples: u64,
    recovery_max: Duration,
    audited: Audited,
}

impl Totals {
    /// Nothing yet.
    pub(crate) fn new(nodes: usize, notes: Vec<String>) -> Totals {
        Totals { nodes, notes, ..Totals::default() }
    }

    /// Adds a run that passed.
    pub(crate) fn add(
        &mut self,
        seed: u64,
        loaded: Duration,
        history: &[Op],
        done: &Done,
        seen: &Seen,
        audited: Audited,
    ) {
        self.seeds.push(seed);
        self.loaded += loaded;
        for op in history {
            *self.operations.entry(kind(op)).or_default() += 1;
        }
        done.faults.iter().for_each(|(name, count)| *self.faults.entry(name).or_default() += count);
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
    }

    /// Adds what requests failed with.
    pub(crate) fn add_failures(&mut self, failures: &BTreeMap<String, u64>) {
        failures.iter().for_each(|(why, count)| *self.failures.entry(why.clone()).or_default() += count);
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
        (_, Outcome::Refused) => "change that was refused",
        (Action::Put { .. }, _) => "put",
        (Action::Delete { .. }, _) => "delete",
        (Action::Swap { .. }, Outcome::Swapped { .. }) => "compare and swap, done",
        (Action::Swap { .. }, _) => "compare and swap, not done",
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
