//! Kills the server at random moments, starts it again, and watches its applied index.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::writers::Shared;
use crate::error::{Error, Result};
use crate::http::Client;
use crate::node::{Node, Plan};
use crate::rng::Rng;

/// How long no put may be acknowledged while the server runs.
const STALL: Duration = Duration::from_secs(60);
/// How long the log may stay whole while puts go on and it is to be cut; twice the server's longest interval.
const UNCUT: Duration = Duration::from_secs(60);
/// How often the log's beginning is looked at.
const CUT_SAMPLE: Duration = Duration::from_millis(20);

/// How often and how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    pub(crate) kills: u64,
    pub(crate) least: Duration,
    /// Acknowledged puts between two kills, on average.
    pub(crate) gap: u64,
    /// Whether the log is cut on the way: then half of the kills wait for a cut.
    pub(crate) cuts: bool,
}

/// What a kill waits for.
#[derive(Debug, Clone, Copy)]
struct Moment {
    acknowledged: u64,
    /// That the log has been cut since the server was started.
    cut: bool,
}

/// What happened.
#[derive(Debug, Default)]
pub(crate) struct Toll {
    pub(crate) kills: u64,
    /// Kills while the server was still starting.
    pub(crate) early: u64,
    /// Applied indexes looked at.
    pub(crate) samples: u64,
    pub(crate) applied_max: u64,
    /// Cuts of the log that were seen, and how far it was cut.
    pub(crate) cuts: u64,
    pub(crate) purged_max: u64,
    pub(crate) restart_max: Duration,
    pub(crate) restart_sum: Duration,
}

/// Runs the schedule to its end; the server runs when this returns, and every record of the last pass is put.
pub(crate) fn run(plan: &Plan, shared: &Shared<'_>, schedule: Schedule, rng: &mut Rng) -> Result<(Node, Toll)> {
    let mut toll = Toll::default();
    let begun = Instant::now();
    let mut node = plan.start()?;
    node.wait_ready()?;
    loop {
        let acknowledged = shared.acknowledged.load(Ordering::Relaxed) + schedule.gap / 2 + rng.below(schedule.gap);
        let moment = Moment { acknowledged, cut: schedule.cuts && rng.below(2) == 0 };
        let alive = wait(plan, shared, schedule, moment, &mut toll)?;
        if !alive {
            return Ok((node, toll));
        }
        // Not at the moment of an acknowledgement, but at any.
        thread::sleep(Duration::from_micros(rng.below(20_000)));
        kill(&mut node, &mut toll)?;
        node = plan.start()?;
        while rng.below(4) == 0 {
            thread::sleep(Duration::from_micros(rng.below(300_000)));
            kill(&mut node, &mut toll)?;
            toll.early += 1;
            node = plan.start()?;
        }
        let took = node.wait_ready()?;
        toll.restart_max = toll.restart_max.max(took);
        toll.restart_sum += took;
        sample(plan, &mut toll)?;
        if toll.kills >= schedule.kills && begun.elapsed() >= schedule.least {
            shared.enough.store(true, Ordering::Relaxed);
        }
    }
}

fn kill(node: &mut Node, toll: &mut Toll) -> Result<()> {
    toll.kills += 1;
    node.kill()
}

/// Waits for a moment, looking at the applied index and the log's beginning meanwhile. False once all is put.
fn wait(plan: &Plan, shared: &Shared<'_>, schedule: Schedule, moment: Moment, toll: &mut Toll) -> Result<bool> {
    let cuts_before = toll.cuts;
    let (mut last, mut looked, begun) = ((0, Instant::now()), Instant::now(), Instant::now());
    loop {
        let acknowledged = shared.acknowledged.load(Ordering::Relaxed);
        if shared.finished() || shared.failed.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let cut = !moment.cut || toll.cuts > cuts_before;
        if acknowledged >= moment.acknowledged && cut {
            return Ok(true);
        }
        if acknowledged != last.0 {
            last = (acknowledged, Instant::now());
        } else if last.1.elapsed() > STALL {
            return Err(Error::Check(format!("no put was acknowledged for {STALL:?} while the server runs")));
        }
        if !cut && begun.elapsed() > UNCUT {
            return Err(Error::Check(format!("the log was not cut in {UNCUT:?} of puts; look at the snapshot flags")));
        }
        sample(plan, toll)?;
        if schedule.cuts && looked.elapsed() >= CUT_SAMPLE {
            looked = Instant::now();
            sample_log(plan, toll)?;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Looks at where the log begins: never after what is durable in the database, or a kill would lose what is between.
fn sample_log(plan: &Plan, toll: &mut Toll) -> Result<()> {
    let purged = metric(plan, "tally_log_purged_index")?;
    let durable = metric(plan, "tally_durable_index")?;
    if purged > durable {
        return Err(Error::Check(format!("the log was cut up to {purged}, but only {durable} entries are durable")));
    }
    if purged > toll.purged_max {
        toll.purged_max = purged;
        toll.cuts += 1;
    }
    Ok(())
}

/// A whole number of the server's metrics.
fn metric(plan: &Plan, name: &str) -> Result<u64> {
    let mut client = Client::new(plan.client, Duration::from_secs(10));
    let (code, page) = client.get("/metrics").map_err(Error::network("read the metrics"))?;
    let page = String::from_utf8_lossy(page);
    let sample = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let number = sample.and_then(|text| text.trim().parse::<u64>().ok());
    number.ok_or_else(|| Error::Answer(format!("/metrics was answered with {code} and has no whole {name}")))
}

/// Looks at the applied index of a server that answers reads: it must never be below one that was seen before.
fn sample(plan: &Plan, toll: &mut Toll) -> Result<()> {
    let status = status(plan)?;
    let applied = status["raftAppliedIndex"].as_str().and_then(|digits| digits.parse().ok());
    let applied: u64 = applied.ok_or_else(|| Error::Answer(format!("status without raftAppliedIndex: {status}")))?;
    if applied < toll.applied_max {
        let before = toll.applied_max;
        return Err(Error::Check(format!("the applied index went back from {before} to {applied}")));
    }
    toll.applied_max = applied;
    toll.samples += 1;
    Ok(())
}

fn status(plan: &Plan) -> Result<Value> {
    let mut client = Client::new(plan.client, Duration::from_secs(10));
    let (code, body) = client.post("/v3/maintenance/status", b"{}").map_err(Error::network("ask for the status"))?;
    let shown = || Error::Answer(format!("status was answered with {code}: {}", String::from_utf8_lossy(body)));
    if code == 200 { serde_json::from_slice(body).map_err(|_| shown()) } else { Err(shown()) }
}
