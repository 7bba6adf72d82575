//! `cargo xtask torture`: Debian's package index is loaded by many clients while the server is killed again and again;
//! afterwards everything that was acknowledged must be there, and nothing else.

mod check;
mod cluster;
mod killer;
mod packages;
mod writers;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::args::Args;
use crate::bench::tally;
use crate::error::{Error, Result};
use crate::node::{Kind, Node, Plan};
use crate::rng::Rng;
use crate::{cargo, run};
use killer::{Schedule, Toll};
use packages::Load;
use writers::{Attempt, Shared};

/// The options of this command.
pub(crate) const OPTIONS: &[&str] = &[
    "kills", "seconds", "clients", "seed", "tally", "index", "limit", "data", "pad", "nodes", "runs", "server", "out",
    "network", "faults", "lessees", "watchers",
];
/// The switches of this command.
pub(crate) const SWITCHES: &[&str] = &["keep", "snapshots"];

/// Bytes put between two kills, on average, when the log is to be cut: half as much again as the server waits for.
const CUT_GAP_BYTES: u64 = 48 << 20;
/// What values are padded to then, in bytes, so that so much is put in seconds.
const CUT_PAD_BYTES: usize = 8192;

/// The flag that says how many entries a cut leaves in the log.
const KEPT: &str = "snapshot-catchup-entries";

/// What to do.
#[derive(Debug)]
struct Setup {
    plan: Plan,
    load: Load,
    clients: usize,
    schedule: Schedule,
    seed: u64,
    /// Whether the log is never cut.
    whole_log: bool,
}

/// Loads, kills, checks, and prints what was found.
pub(crate) fn run(args: &Args) -> Result<()> {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64);
    if args.text("nodes").is_some() {
        return cluster::run(args, clock);
    }
    let seed = args.number("seed", clock)?;
    let clients = args.number("clients", 64_usize)?.clamp(1, 4096);
    let records = packages::load(args.text("index").map(Path::new), args.number("limit", usize::MAX)?)?;
    let snapshots = args.switch("snapshots");
    let load = Load::new(records, args.number("pad", if snapshots { CUT_PAD_BYTES } else { 0 })?);
    let kills = args.number("kills", 20_u64)?;
    let gap = if snapshots { CUT_GAP_BYTES / load.value_bytes_mean().max(1) } else { load.pass() / (kills + 1) };
    let least = Duration::from_secs_f64(args.number("seconds", 0.0_f64)?.clamp(0.0, 86_400.0));
    let schedule = Schedule { kills, least, gap: gap.max(1), cuts: snapshots };
    let binary = tally(args)?;
    let (pass, bytes) = (load.pass(), load.value_bytes_mean());
    println!("torture: seed {seed}; {pass} records of {bytes} bytes, {clients} clients, at least {kills} kills");
    let parent = args.text("data").map_or_else(|| cargo::target_dir().join("torture"), PathBuf::from);
    let dir = parent.join(std::process::id().to_string());
    let plan = Plan::new(Kind::Tally, binary, dir.clone(), flags(args.rest(), snapshots))?;
    let whole_log = !snapshots && !given(args.rest(), KEPT);
    let begun = Instant::now();
    match torture(&Setup { plan, load, clients, schedule, seed, whole_log }) {
        Ok(()) => {
            if args.switch("keep") {
                println!("torture: data kept in {}", dir.display());
            } else {
                fs::remove_dir_all(&dir).map_err(Error::file("remove", &dir))?;
            }
            println!("torture: passed in {:.0} s", begun.elapsed().as_secs_f64());
            Ok(())
        }
        Err(error) => {
            println!("torture: FAILED with --seed {seed}; data and log kept in {}", dir.display());
            Err(error)
        }
    }
}

/// The developer's flags, with room for everything that is written. Unless they choose how much of the log is kept, that
/// is next to nothing, or all of it, so that a fresh store can be built from it.
fn flags(rest: &[String], snapshots: bool) -> Vec<String> {
    let mut defaults = vec![("quota-backend-bytes", "17179869184")];
    if snapshots {
        defaults.extend([("snapshot-count", "500"), (KEPT, "100")]);
    } else {
        defaults.push((KEPT, "1000000000"));
    }
    let missing = defaults.iter().filter(|(name, _)| !given(rest, name));
    missing.map(|(name, value)| format!("--{name}={value}")).chain(rest.iter().cloned()).collect()
}

fn given(flags: &[String], name: &str) -> bool {
    flags.iter().filter_map(|flag| flag.strip_prefix("--")).any(|flag| flag.split('=').next() == Some(name))
}

fn torture(setup: &Setup) -> Result<()> {
    let plan = &setup.plan;
    let begun = Instant::now();
    let (mut node, toll, attempts) = load(setup)?;
    report_load(&toll, &attempts, begun.elapsed());
    if setup.schedule.cuts {
        report_cuts(&toll)?;
    }
    // Whatever the last moments left in memory must survive as well.
    node.kill()?;
    let mut node = plan.start()?;
    node.wait_ready()?;
    let found = check::run(plan.client, &setup.load, &attempts)?;
    println!("  every acknowledged put is there, with its revision and value");
    let extra = found.unacknowledged;
    println!("  {extra} puts took effect without an acknowledgement; no key has more versions than it was given");
    println!("  {} keys; revisions 2 to {} dense, one put each", found.keys, found.revision);
    node.stop()?;
    check_files(setup, &toll)
}

/// Runs the clients and the killer side by side.
fn load(setup: &Setup) -> Result<(Node, Toll, Vec<Attempt>)> {
    let shared = Shared {
        address: setup.plan.client,
        load: &setup.load,
        next: AtomicU64::new(0),
        acknowledged: AtomicU64::new(0),
        enough: AtomicBool::new(false),
        failed: AtomicBool::new(false),
    };
    thread::scope(|scope| {
        let writers: Vec<_> = (0..setup.clients).map(|_| scope.spawn(|| writers::write(&shared))).collect();
        let killed = killer::run(&setup.plan, &shared, setup.schedule, &mut Rng::new(setup.seed));
        if killed.is_err() {
            shared.failed.store(true, Ordering::Relaxed);
        }
        let mut attempts = Vec::new();
        let mut failed = None;
        for writer in writers {
            match writer.join().map_err(|_| Error::Check("a client panicked".to_owned()))? {
                Ok(tried) => attempts.extend(tried),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        let (node, toll) = killed?;
        failed.map_or(Ok((node, toll, attempts)), Err)
    })
}

fn report_load(toll: &Toll, attempts: &[Attempt], loading: Duration) {
    let acknowledged = attempts.iter().filter(|attempt| attempt.acknowledged.is_some()).count();
    let Toll { kills, early, samples, applied_max, .. } = toll;
    println!("  loading took {:.1} s with {kills} kills, {early} of them during a start", loading.as_secs_f64());
    let mean = toll.restart_sum.as_secs_f64() / (kills - early).max(1) as f64;
    println!("  restart to first read: {mean:.3} s on average, {:.3} s at most", toll.restart_max.as_secs_f64());
    println!("  {} attempts, {acknowledged} acknowledged", attempts.len());
    println!("  applied index looked at {samples} times, up to {applied_max}; it never went back");
}

/// A run that was to cut the log and did not has shown nothing.
fn report_cuts(toll: &Toll) -> Result<()> {
    if toll.cuts == 0 {
        return Err(Error::Check("the log was never cut while it was written".to_owned()));
    }
    println!("  the log was cut {} times meanwhile, up to index {}", toll.cuts, toll.purged_max);
    Ok(())
}

/// Checks the stopped server's files: the log's chain, and the state against its own root (which opening it does) and
/// against a fresh one built from that log.
fn check_files(setup: &Setup, toll: &Toll) -> Result<()> {
    let plan = &setup.plan;
    let wal = wal_dir(&plan.data_dir())
        .ok_or_else(|| Error::Missing(format!("no *.wal file under {}", plan.data_dir().display())))?;
    let verified = run::captured(Command::new(&plan.binary).args(["wal", "verify"]).arg(&wal))?;
    println!("  tally wal verify: {}", verified.lines().last().unwrap_or("ok").trim());
    let text = run::captured(Command::new(&plan.binary).arg("check").arg("--data-dir").arg(plan.data_dir()))?;
    let odd = |why: &str| Error::Check(format!("tally check: {why}: {}", text.trim()));
    let answer: Value = serde_json::from_str(&text).map_err(|_| odd("not JSON"))?;
    let applied = answer["applied"].as_u64().or_else(|| answer["applied"].as_str()?.parse().ok());
    if applied.ok_or_else(|| odd("no applied index"))? < toll.applied_max {
        return Err(odd(&format!("the applied index is below {}, which was seen", toll.applied_max)));
    }
    let root = answer["root"].as_str().filter(|root| !root.is_empty()).ok_or_else(|| odd("no root"))?;
    let purged = answer["wal"]["purged"]["index"].as_u64().unwrap_or(0);
    if setup.schedule.cuts && purged == 0 {
        return Err(odd("the log on disk is whole, though it was cut"));
    }
    match answer["replayed_root"].as_str() {
        Some(replayed) if replayed == root => {
            println!("  state root {root} equals that of a fresh store built from the same log");
            Ok(())
        }
        Some(_) => Err(odd("the root differs from that of a fresh store built from the same log")),
        None if setup.whole_log => Err(odd("the log is whole, but no root was computed from it")),
        None => {
            println!(
                "  state root {root} is that of the contents; the log is cut up to {purged}, so none can be built from it"
            );
            Ok(())
        }
    }
}

/// The directory that holds the log's segments.
fn wal_dir(below: &Path) -> Option<PathBuf> {
    let mut waiting = vec![below.to_path_buf()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.extension().is_some_and(|extension| extension == "wal") {
                return Some(dir);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::flags;

    #[test]
    fn flags_are_completed_not_doubled() {
        let quota = "--quota-backend-bytes=17179869184";
        let own = ["--snapshot-count=100".to_owned()];
        assert_eq!(flags(&own, false), [quota, "--snapshot-catchup-entries=1000000000", "--snapshot-count=100"]);
        assert_eq!(flags(&own, true), [quota, "--snapshot-catchup-entries=100", "--snapshot-count=100"]);
        assert_eq!(flags(&[], true).len(), 3);
    }
}
