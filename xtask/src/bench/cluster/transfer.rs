//! The leader hands over under load: because it is asked to, and because it is told to stop.

use std::thread;
use std::time::{Duration, Instant};

use super::{CLIENTS, KEYS};
use crate::api;
use crate::bench::sample::Sample;
use crate::bench::steady::{Load, Steady};
use crate::error::Result;
use crate::group::Group;
use crate::node::Plan;
use crate::rng::Rng;

/// How often each is done in one round.
const TIMES: usize = 5;
/// How long the load runs before; the last second of it shows how long writes pause when nothing happens.
const WARMUP: Duration = Duration::from_secs(2);
const QUIET: Duration = Duration::from_secs(1);
/// How long a pause is looked for after the new leader has been chosen, or the old one has gone.
const AFTERMATH: Duration = Duration::from_secs(1);
/// Handovers fall anywhere between two heartbeats.
const JITTER_MICROS: u64 = 200_000;

/// Does both in turn, with clients on all members.
pub(crate) fn measure(plans: Vec<Plan>, seed: u64) -> Result<Sample> {
    let mut sample = Sample::default();
    let mut rng = Rng::new(seed);
    let mut group = Group::start(plans)?;
    for _ in 0..TIMES {
        let handed = under_load(&mut group, &mut rng, &mut sample, |group, leader| {
            let to = group.status((leader + 1) % group.plans().len())?.member;
            api::transfer_leadership(&mut group.client(leader), &to)
        })?;
        sample.add("move_gap_ms", handed.gap_ms);
        sample.add("move_unclear", handed.unclear);
        let mut gone = None;
        let handed = under_load(&mut group, &mut rng, &mut sample, |group, leader| {
            gone = Some(leader);
            group.stop(leader)
        })?;
        sample.add("term_gap_ms", handed.gap_ms);
        sample.add("term_unclear", handed.unclear);
        if let Some(gone) = gone {
            group.launch(gone)?.wait_ready()?;
        }
    }
    group.stop_all()?;
    Ok(sample)
}

/// What clients noticed.
struct Handover {
    gap_ms: f64,
    unclear: f64,
}

fn under_load(
    group: &mut Group,
    rng: &mut Rng,
    sample: &mut Sample,
    hand_over: impl FnOnce(&mut Group, usize) -> Result<()>,
) -> Result<Handover> {
    let leader = group.leader()?;
    let load = Load {
        server: group.plans()[leader].kind,
        addresses: group.addresses(),
        clients: CLIENTS,
        keys: KEYS,
        seed: rng.next(),
    };
    let clients = Steady::start(load)?;
    thread::sleep(WARMUP + Duration::from_micros(rng.below(JITTER_MICROS)));
    let begun = Instant::now();
    hand_over(group, leader)?;
    thread::sleep(AFTERMATH);
    let ended = Instant::now();
    let timeline = clients.stop()?;
    let millis = |from, to| timeline.longest_gap(from, to).as_secs_f64() * 1e3;
    sample.add("quiet_gap_ms", millis(begun.checked_sub(QUIET).unwrap_or(begun), begun));
    sample.add_failures(timeline.failures_after(begun));
    Ok(Handover { gap_ms: millis(begun, ended), unclear: timeline.unclear_after(begun) as f64 })
}
