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

/// How often and how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    pub(crate) kills: u64,
    pub(crate) least: Duration,
    /// Acknowledged puts between two kills, on average.
    pub(crate) gap: u64,
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
        let target = shared.acknowledged.load(Ordering::Relaxed) + schedule.gap / 2 + rng.below(schedule.gap);
        let alive = wait(plan, shared, target, &mut toll)?;
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

/// Waits until so many puts are acknowledged, looking at the applied index meanwhile. False once all is put.
fn wait(plan: &Plan, shared: &Shared<'_>, target: u64, toll: &mut Toll) -> Result<bool> {
    let mut last = (0, Instant::now());
    loop {
        let acknowledged = shared.acknowledged.load(Ordering::Relaxed);
        if shared.finished() || shared.failed.load(Ordering::Relaxed) {
            return Ok(false);
        }
        if acknowledged >= target {
            return Ok(true);
        }
        if acknowledged != last.0 {
            last = (acknowledged, Instant::now());
        } else if last.1.elapsed() > STALL {
            return Err(Error::Check(format!("no put was acknowledged for {STALL:?} while the server runs")));
        }
        sample(plan, toll)?;
        thread::sleep(Duration::from_millis(5));
    }
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
