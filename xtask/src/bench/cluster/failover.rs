//! The leader is killed under load, again and again.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use super::{CLIENTS, KEYS};
use crate::bench::sample::Sample;
use crate::bench::steady::{Load, Steady};
use crate::error::Result;
use crate::group::Group;
use crate::node::Plan;
use crate::rng::Rng;

/// How long the load runs before a kill.
const WARMUP: Duration = Duration::from_secs(1);
/// Kills fall anywhere in the leader's rhythm of heartbeats: they are put off by up to this.
const JITTER_MICROS: u64 = 500_000;
/// How long the load runs after the first acknowledged write.
const AFTERMATH: Duration = Duration::from_millis(500);
/// How long a cluster may be without writes.
const LIMIT: Duration = Duration::from_secs(60);

/// Kills the leader so many times, with clients on the other members; each time the killed one comes back before the next.
pub(crate) fn measure(plans: Vec<Plan>, kills: usize, seed: u64) -> Result<Sample> {
    let mut sample = Sample::default();
    let mut rng = Rng::new(seed);
    let mut group = Group::start(plans)?;
    for _ in 0..kills {
        let leader = group.leader()?;
        let load = Load {
            server: group.plans()[leader].kind,
            addresses: group.addresses_without(leader),
            clients: CLIENTS,
            keys: KEYS,
            seed: rng.next(),
        };
        let begun = Instant::now();
        let clients = Steady::start(load)?;
        thread::sleep(WARMUP + Duration::from_micros(rng.below(JITTER_MICROS)));
        let killed = Instant::now();
        group.kill(leader)?;
        // Whatever is sent once the process is gone can only be acknowledged by another leader.
        let gone = Instant::now();
        let first = clients.wait_for_write_after(gone, LIMIT)?;
        thread::sleep(AFTERMATH);
        let timeline = clients.stop()?;
        sample.add("failover_ms", first.duration_since(killed).as_secs_f64() * 1e3);
        // A cluster serves again, and these were forgotten.
        let hanging = timeline.hanging_since(gone);
        sample.add("unclear", (timeline.unclear_after(killed) + hanging) as f64);
        let before = timeline.latencies(begun, killed).count() as f64;
        sample.add("rate", before / killed.duration_since(begun).as_secs_f64());
        sample.add_failures(timeline.failures_after(killed));
        if hanging > 0 {
            let told = format!("no answer even {AFTERMATH:?} after the first new write (outcome unclear)");
            sample.add_failures(BTreeMap::from([(told, hanging)]));
        }
        group.launch(leader)?.wait_ready()?;
    }
    group.stop_all()?;
    Ok(sample)
}
