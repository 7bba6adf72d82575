//! A follower comes back after it has missed many entries.

use std::time::{Duration, Instant};

use super::KEYS;
use crate::api;
use crate::bench::load::{self, Length};
use crate::bench::sample::Sample;
use crate::bench::work::{Kind, Work};
use crate::error::{Error, Result};
use crate::group::Group;
use crate::node::Plan;

/// Clients that write what it misses.
const CLIENTS: usize = 256;
/// How long it may take.
const LIMIT: Duration = Duration::from_secs(300);
/// How often it is asked how far it is.
pub(crate) const ASK_INTERVAL: Duration = Duration::from_millis(2);

/// The log must still hold what the follower has missed: this row is about entries, not about snapshots.
pub(crate) const FLAGS: [&str; 1] = ["--snapshot-count=10000000"];

/// Stops a follower, writes, starts it again, and waits until it has applied what the leader had.
pub(crate) fn measure(plans: Vec<Plan>, entries: u64, seed: u64) -> Result<Sample> {
    let mut sample = Sample::default();
    let mut group = Group::start(plans)?;
    let leader = group.leader()?;
    let follower = (leader + 1) % group.plans().len();
    let before = group.status(follower)?.applied;
    group.stop(follower)?;
    let mut work = Work::new(Kind::Put, KEYS, seed);
    load::run(&group.addresses(), CLIENTS, Length::Requests(entries), &mut work, || Ok(()))?;
    let applied = group.status(leader)?.applied;
    sample.add("entries", applied.saturating_sub(before) as f64);
    group.launch(follower)?;
    let took = wait_until_level(&mut group, follower, applied)?;
    sample.add("catchup_s", took.as_secs_f64());
    group.stop_all()?;
    Ok(sample)
}

fn wait_until_level(group: &mut Group, follower: usize, applied: u64) -> Result<Duration> {
    let mut client = group.client(follower);
    let node = group.node(follower)?;
    loop {
        // Until it serves clients, it cannot be asked.
        let found = api::status(&mut client).map(|status| status.applied);
        let now = Instant::now();
        if found.as_ref().is_ok_and(|found| *found >= applied) {
            return Ok(now.duration_since(node.started()));
        }
        node.check_alive()?;
        if now.duration_since(node.started()) > LIMIT {
            return Err(Error::Answer(format!("a follower is not at {applied} after {LIMIT:?}, but at {found:?}")));
        }
        std::thread::sleep(ASK_INTERVAL);
    }
}
