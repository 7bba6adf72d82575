//! A member is added to a cluster with much data, once without other load and once while clients put.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use super::catchup::ASK_INTERVAL;
use super::{CLIENTS, KEYS};
use crate::bench::closed::Times;
use crate::bench::keys::{self, LARGE_VALUE_BYTES};
use crate::bench::load::{self, Length};
use crate::bench::sample::Sample;
use crate::bench::steady::{Load, Steady};
use crate::bench::work::{Kind, Work};
use crate::error::{Error, Result};
use crate::group::Group;
use crate::http::Client;
use crate::node::{Node, Plan};
use crate::{api, ports, procfs};

/// How long a new member may take.
const LIMIT: Duration = Duration::from_secs(600);
/// How long the cluster may refuse to be changed: it wants every member to have been connected for a while.
const CHANGE_LIMIT: Duration = Duration::from_secs(30);
/// The speed to reach, in MB/s, unless the disk is slower.
const SPEED_MB_S: f64 = 200.0;
const MB: f64 = 1e6;

/// The log must not hold everything: a new member is to need a snapshot.
pub(crate) const FLAGS: [&str; 1] = ["--snapshot-count=10000"];

/// Fills the cluster with `keys` keys, and adds a member twice.
pub(crate) fn measure(plans: Vec<Plan>, keys: u32, times: Times, seed: u64) -> Result<Sample> {
    let mut sample = Sample::default();
    let group = Group::start(plans)?;
    let data_mb = data_bytes(keys) as f64 / MB;
    sample.add("data_mb", data_mb);
    let mut work = Work::new(Kind::LoadLarge, keys, seed);
    let filled = load::run(&group.addresses(), CLIENTS, Length::Requests(u64::from(keys)), &mut work, || Ok(()))?;
    sample.add("fill_mb_s", data_mb / filled.took.as_secs_f64());
    let disk = procfs::write_speed(&group.plans()[0].dir)? / MB;
    sample.add("disk_mb_s", disk);

    let leader = group.leader()?;
    let joined = join(&group, leader, "node-idle", keys)?;
    let speed = data_mb / joined.took.as_secs_f64();
    sample.add("snapshot_s", joined.took.as_secs_f64());
    sample.add("snapshot_mb_s", speed);
    sample.add("snapshot_share", speed / disk.min(SPEED_MB_S));
    joined.leave(&group, leader)?;

    let leader = group.leader()?;
    let addresses = vec![group.plans()[leader].client];
    let server = group.plans()[leader].kind;
    let clients = Steady::start(Load { server, addresses, clients: CLIENTS, keys: KEYS, seed })?;
    thread::sleep(times.window / 5);
    let quiet = Instant::now();
    thread::sleep(times.window);
    let begun = Instant::now();
    let joined = join(&group, leader, "node-busy", keys)?;
    let ended = Instant::now();
    let timeline = clients.stop()?;
    sample.add("busy_snapshot_s", joined.took.as_secs_f64());
    let p99 = |from, to| timeline.latencies(from, to).quantile(0.99).as_secs_f64() * 1e6;
    let (before, meanwhile) = (p99(quiet, begun), p99(begun, ended));
    sample.add("put_p99", before);
    sample.add("busy_put_p99", meanwhile);
    sample.add("put_p99_ratio", meanwhile / before.max(1e-9));
    sample.add_failures(timeline.failures_after(quiet));
    joined.leave(&group, leader)?;
    group.stop_all()?;
    Ok(sample)
}

/// The bytes of that many keys and their values.
fn data_bytes(keys: u32) -> u64 {
    let mut key = Vec::new();
    (0..keys)
        .map(|index| {
            key.clear();
            keys::key(index, &mut key);
            (key.len() + LARGE_VALUE_BYTES) as u64
        })
        .sum()
}

/// A member that was added and has everything.
struct Joined {
    id: String,
    node: Node,
    plan: Plan,
    /// How long it took from its start.
    took: Duration,
}

impl Joined {
    /// Removes it from the cluster, and its data.
    fn leave(mut self, group: &Group, leader: usize) -> Result<()> {
        api::remove_member(&mut group.client(leader), &self.id)?;
        self.node.put_away()?;
        fs::remove_dir_all(&self.plan.dir).map_err(Error::file("remove", &self.plan.dir))
    }
}

/// Adds a learner, starts it on nothing, and waits until it has everything that the leader had then.
fn join(group: &Group, leader: usize, name: &str, keys: u32) -> Result<Joined> {
    let plan = group.plans()[leader].joiner(name, ports::free_pair()?)?;
    let id = add(group, leader, &plan)?;
    let wanted = group.status(leader)?.applied;
    let mut node = plan.start()?;
    let mut client = Client::new(plan.client, Duration::from_secs(10));
    loop {
        // Until it serves clients, it cannot be asked.
        let found = api::status(&mut client).map(|status| status.applied);
        let took = node.started().elapsed();
        if found.as_ref().is_ok_and(|applied| *applied >= wanted) {
            let count = api::count(&mut client)?;
            if count < u64::from(keys) {
                return Err(Error::Check(format!("a new member has {count} of at least {keys} keys")));
            }
            return Ok(Joined { id, node, plan, took });
        }
        node.check_alive()?;
        if took > LIMIT {
            return Err(Error::Answer(format!("a new member is not at {wanted} after {LIMIT:?}, but at {found:?}")));
        }
        thread::sleep(ASK_INTERVAL);
    }
}

fn add(group: &Group, leader: usize, plan: &Plan) -> Result<String> {
    let begun = Instant::now();
    let url = format!("http://{}", plan.peer);
    loop {
        match api::add_learner(&mut group.client(leader), &url) {
            Err(Error::Answer(said)) if said.contains("unhealthy cluster") && begun.elapsed() < CHANGE_LIMIT => {
                thread::sleep(Duration::from_millis(200));
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::data_bytes;

    #[test]
    fn data_is_keys_and_values() {
        let bytes = data_bytes(1000);
        assert!((1000 * (4096 + 8)..=1000 * (4096 + 64)).contains(&bytes), "{bytes}");
    }
}
