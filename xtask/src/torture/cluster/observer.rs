//! Looks at every node all the time: state roots at equal indexes, leaders, terms, applied indexes, snapshots.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use super::admin::{Status, status_of};
use super::clients::Shared;
use super::rpc::{Reply, Rpc};
use crate::error::{Error, Result};
use crate::node::Kind;

/// Between two looks at one node.
const PAUSE: Duration = Duration::from_millis(100);
/// Looks between two readings of a node's metrics.
const METRICS_EVERY: u64 = 5;
/// How long one answer may take.
const LIMIT: Duration = Duration::from_secs(1);
/// Indexes whose roots are remembered; what is older than all of them was compared or never will be.
const INDEXES_MAX: usize = 100_000;

/// What was seen, over all nodes.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// The root at each applied index, and the slots that had it (one bit each).
    roots: BTreeMap<u64, (String, u32)>,
    /// Roots of one node that were compared with another's at the same index.
    pub(crate) comparisons: u64,
    /// Indexes at which at least two nodes were compared.
    pub(crate) indexes: u64,
    /// The leader of each term.
    leaders: BTreeMap<u64, String>,
    /// Looks that were answered.
    pub(crate) samples: u64,
    /// Counters of the nodes, summed over all their processes.
    pub(crate) counters: BTreeMap<&'static str, u64>,
}

pub(crate) const SNAPSHOTS_RECEIVED: &str = "snapshots received";

/// The counters that are read: a name for people, the metric, and whether it is a gauge whose rises are counted.
const COUNTERS: [(&str, &str, bool); 4] = [
    ("snapshots sent", "etcd_network_snapshot_send_success", false),
    (SNAPSHOTS_RECEIVED, "etcd_network_snapshot_receive_success", false),
    ("log cuts", "tally_log_purged_index", true),
    ("rises of the number of streams told together", "tally_watch_crowd_streams", true),
];

impl Seen {
    /// Terms in which a leader was seen.
    pub(crate) fn elections(&self) -> u64 {
        self.leaders.len() as u64
    }

    /// Adds a root; an error if another was seen at this index.
    fn root(&mut self, slot: usize, index: u64, root: &str) -> Result<()> {
        let (known, slots) = self.roots.entry(index).or_insert_with(|| (root.to_owned(), 0));
        if known != root {
            let others: Vec<String> =
                (0..32).filter(|other| *slots & (1 << other) != 0).map(|other| format!("n{other}")).collect();
            let others = others.join(", ");
            return Err(Error::Check(format!(
                "the replicas differ: at applied index {index} the root is {root} on n{slot} and {known} on {others}"
            )));
        }
        if *slots & (1 << slot) == 0 {
            self.comparisons += u64::from(*slots != 0);
            self.indexes += u64::from(slots.count_ones() == 1);
            *slots |= 1 << slot;
        }
        if self.roots.len() > INDEXES_MAX {
            self.roots.pop_first();
        }
        Ok(())
    }

    /// Adds what a node says about its term; an error if a term has two leaders.
    fn status(&mut self, status: &Status, exact: bool) -> Result<()> {
        self.samples += 1;
        let Some(leader) = status.leader.as_ref() else { return Ok(()) };
        let known = self.leaders.entry(status.term).or_insert_with(|| leader.clone());
        if exact && known != leader {
            return Err(Error::Check(format!("term {} has two leaders: {known} and {leader}", status.term)));
        }
        Ok(())
    }
}

/// One node's observer.
struct Observer<'run> {
    shared: &'run Shared,
    seen: &'run Mutex<Seen>,
    slot: usize,
    rpc: Rpc,
    /// The connection on which the applied index was last seen, and the index.
    applied: (u32, u64),
    /// The last reading of every counter.
    readings: BTreeMap<&'static str, u64>,
}

/// Watches one node until the run ends.
pub(crate) fn watch(shared: &Shared, seen: &Mutex<Seen>, slot: usize, address: SocketAddr) -> Result<()> {
    let rpc = Rpc::new(shared.kind, address);
    let mut observer = Observer { shared, seen, slot, rpc, applied: (0, 0), readings: BTreeMap::new() };
    let mut looks = 0;
    while !shared.stop.load(Ordering::Relaxed) && !shared.has_failed() {
        if let Err(error) = observer.look(looks) {
            shared.failed.store(true, Ordering::Relaxed);
            return Err(error);
        }
        looks += 1;
        thread::sleep(PAUSE);
    }
    Ok(())
}

/// Compares the roots of nodes that stand still; gives how many nodes had one at the highest index.
pub(crate) fn compare_now(kind: Kind, seen: &Mutex<Seen>, nodes: &[(usize, SocketAddr)]) -> Result<u32> {
    for (slot, address) in nodes {
        let page = Rpc::new(kind, *address).page("/tally/roots", Duration::from_secs(10));
        let page = page.ok_or_else(|| Error::Answer(format!("n{slot} does not answer /tally/roots")))?;
        add_roots(&mut seen.lock().unwrap_or_else(PoisonError::into_inner), *slot, &page)?;
    }
    let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(seen.roots.last_key_value().map_or(0, |(_, (_, slots))| slots.count_ones()))
}

/// Lines of an applied index and a root.
fn add_roots(seen: &mut Seen, slot: usize, page: &str) -> Result<()> {
    for line in page.lines().filter(|line| !line.trim().is_empty()) {
        let mut words = line.split_ascii_whitespace();
        let index = words.next().and_then(|digits| digits.parse().ok());
        let (Some(index), Some(root)) = (index, words.next()) else {
            return Err(Error::Answer(format!("a strange line of /tally/roots on n{slot}: {line}")));
        };
        seen.root(slot, index, root)?;
    }
    Ok(())
}

impl Observer<'_> {
    fn look(&mut self, number: u64) -> Result<()> {
        // A node that is down, paused or new is simply not seen.
        let Reply::Done(answer) = self.rpc.call("/v3/maintenance/status", "{}", LIMIT) else { return Ok(()) };
        let Some(status) = status_of(&answer) else { return Ok(()) };
        let (connection, before) = self.applied;
        if connection == self.rpc.connection && status.applied < before {
            let (slot, now) = (self.slot, status.applied);
            return Err(Error::Check(format!("the applied index of n{slot} went back from {before} to {now}")));
        }
        self.applied = (self.rpc.connection, status.applied);
        let exact = self.shared.kind == Kind::Tally;
        self.locked().status(&status, exact)?;
        if !exact {
            return self.metrics(number);
        }
        if let Some(page) = self.rpc.page("/tally/roots", LIMIT) {
            add_roots(&mut self.locked(), self.slot, &page)?;
        }
        self.metrics(number)
    }

    fn metrics(&mut self, number: u64) -> Result<()> {
        if !number.is_multiple_of(METRICS_EVERY) {
            return Ok(());
        }
        let Some(page) = self.rpc.page("/metrics", LIMIT) else { return Ok(()) };
        for (name, metric, gauge) in COUNTERS {
            let now = sum(&page, metric);
            let before = self.readings.insert(name, now).unwrap_or(0);
            let more = match (gauge, now > before) {
                (true, risen) => u64::from(risen),
                (false, true) => now - before,
                // A new process counts from nothing.
                (false, false) if now < before => now,
                (false, false) => 0,
            };
            *self.locked().counters.entry(name).or_default() += more;
        }
        Ok(())
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A metric's values, added up over its labels.
pub(crate) fn sum(page: &str, metric: &str) -> u64 {
    let samples = page.lines().filter_map(|line| line.strip_prefix(metric));
    let values = samples.filter(|rest| rest.starts_with(['{', ' '])).filter_map(|rest| rest.rsplit_once(' '));
    values.filter_map(|(_, value)| value.parse::<f64>().ok()).sum::<f64>() as u64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::{Seen, Status, add_roots, sum};

    #[test]
    fn roots_are_compared_at_equal_indexes() {
        let mut seen = Seen::default();
        add_roots(&mut seen, 0, "1000 aa\n2000 bb\n").unwrap();
        add_roots(&mut seen, 1, "1000 aa\n1500 cc\n").unwrap();
        add_roots(&mut seen, 2, "1000 aa\n").unwrap();
        add_roots(&mut seen, 2, "1000 aa\n").unwrap();
        assert_eq!((seen.comparisons, seen.indexes), (2, 1));
        let found = add_roots(&mut seen, 2, "2000 bc\n").unwrap_err().to_string();
        assert!(found.contains("index 2000") && found.contains("n0"), "{found}");
        assert!(add_roots(&mut seen, 2, "nonsense\n").is_err());
    }

    #[test]
    fn a_term_has_one_leader() {
        let mut seen = Seen::default();
        let status =
            |leader: &str, term| Status { member: "1".to_owned(), leader: Some(leader.to_owned()), term, applied: 1 };
        seen.status(&status("1", 2), true).unwrap();
        seen.status(&status("2", 3), true).unwrap();
        assert!(seen.status(&status("2", 2), true).is_err());
        assert_eq!(seen.elections(), 2);
    }

    #[test]
    fn metrics_are_added_up() {
        let page = "# TYPE x counter\nx{To=\"1\"} 2\nx{To=\"2\"} 3\nx_total 9\nxy 4\n";
        assert_eq!((sum(page, "x"), sum(page, "xy"), sum(page, "z")), (5, 4, 0));
    }
}
