//! `cargo xtask torture --nodes N`: a cluster of real servers, clients on all nodes that record everything, a nemesis, and
//! the question whether what was recorded is what one correct store would have done.

mod admin;
mod api;
mod audit;
mod clients;
mod crew;
mod disk;
mod ending;
mod epilogue;
mod fleet;
mod lessees;
mod nemesis;
mod net;
mod observer;
mod rpc;
mod sandbox;
mod stream;
mod totals;
mod watchers;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::args::Args;
use crate::bench::tally;
use crate::error::{Error, Result};
use crate::node::Kind;
use crate::{cargo, run as programs};
use audit::Audited;
use clients::Shared;
use crew::Recorded;
use fleet::Fleet;
use nemesis::Fault;
use net::Network;
use observer::Seen;
use sandbox::Sandbox;
use totals::Totals;

/// Clients per node.
const CLIENTS_PER_NODE: usize = 4;
/// Clients per node that have leases.
const LESSEES_PER_NODE: usize = 2;
/// Watchers that are open at a time, on all nodes together.
const WATCHERS: usize = 2000;

/// What to do.
#[derive(Debug)]
struct Setup {
    kind: Kind,
    binary: PathBuf,
    flags: Vec<String>,
    nodes: usize,
    clients: usize,
    lessees: usize,
    watchers: usize,
    seconds: Duration,
    faults: Vec<Fault>,
    dir: PathBuf,
    sandbox: Sandbox,
    keep: bool,
}

/// What one run leaves behind.
struct Outcome {
    recorded: Recorded,
    audited: Audited,
}

/// Runs as many seeds as wanted, one after another, and prints what they add up to.
pub(crate) fn run(args: &Args, clock: u64) -> Result<()> {
    if args.text("faults") == Some("list") {
        nemesis::list();
        return Ok(());
    }
    let nodes = args.number("nodes", 3_usize)?;
    if !(1..=9).contains(&nodes) {
        return Err(Error::Usage("--nodes takes 1 to 9".to_owned()));
    }
    let sandbox = sandbox::choose(args.text(sandbox::OPTION))?;
    let binary = args.text("server").map_or_else(|| tally(args), |given| Ok(given.into()))?;
    if let Sandbox::Possible { user } = sandbox {
        return sandbox::again(user, &binary);
    }
    let seed = args.number("seed", clock % 1_000_000_000)?;
    let runs = args.number("runs", 1_u64)?.max(1);
    let setup = Setup::new(args, nodes, binary, sandbox)?;
    let mut totals = Totals::new(nodes, notes(&setup)?);
    for run in 0..runs {
        let seed = seed + run;
        let shared = Shared::new(setup.kind);
        let seen = Mutex::new(Seen::default());
        println!("torture: run {} of {runs}, {nodes} nodes, seed {seed}, {:?}", run + 1, setup.seconds);
        let dir = setup.dir.join(seed.to_string());
        let outcome = torture(&setup, seed, &dir, &shared, &seen).inspect_err(|_| {
            println!("torture: FAILED with --nodes {nodes} --seed {seed}; data and logs kept in {}", dir.display());
        })?;
        let seen = seen.into_inner().unwrap_or_else(PoisonError::into_inner);
        if setup.kind == Kind::Tally && seen.comparisons == 0 {
            return Err(Error::Check("no state roots could be compared, so nothing was shown".to_owned()));
        }
        report(&outcome, &seen);
        totals.add(seed, &outcome.recorded, &seen, outcome.audited);
        totals.add_failures(&shared.failures.lock().unwrap_or_else(PoisonError::into_inner));
        if !setup.keep {
            fs::remove_dir_all(&dir).map_err(Error::file("remove", &dir))?;
        }
    }
    if !setup.keep {
        fs::remove_dir_all(&setup.dir).map_err(Error::file("remove", &setup.dir))?;
    }
    println!("\n{}", totals.section());
    totals.check()?;
    if let Some(out) = args.text("out") {
        let out = cargo::root().join(out);
        totals.write(&out)?;
        println!("written to {}", out.display());
    }
    println!("torture: passed");
    Ok(())
}

impl Setup {
    fn new(args: &Args, nodes: usize, binary: PathBuf, sandbox: Sandbox) -> Result<Setup> {
        let etcd = binary.file_name().is_some_and(|name| name.to_string_lossy().contains("etcd"));
        let kind = if etcd { Kind::Etcd } else { Kind::Tally };
        let parent = args.text("data").map_or_else(|| cargo::target_dir().join("torture"), PathBuf::from);
        let dir = parent.join(format!("cluster-{}", std::process::id()));
        fs::create_dir_all(&dir).map_err(Error::file("create", &dir))?;
        let seconds = args.number("seconds", 60.0_f64)?.clamp(1.0, 86_400.0);
        Ok(Setup {
            kind,
            binary,
            flags: flags(kind, args.rest()),
            nodes,
            clients: args.number("clients", nodes * CLIENTS_PER_NODE)?.clamp(nodes, 256),
            lessees: args.number("lessees", nodes * LESSEES_PER_NODE)?.min(256),
            watchers: args.number("watchers", WATCHERS)?.min(20_000),
            seconds: Duration::from_secs_f64(seconds),
            faults: nemesis::chosen(args.text("faults"))?,
            dir: dir.canonicalize().map_err(Error::file("find", &dir))?,
            sandbox,
            keep: args.switch("keep"),
        })
    }
}

/// Quick elections, and a log that is cut so early that whoever was away needs a snapshot; what the developer gives wins.
fn flags(kind: Kind, rest: &[String]) -> Vec<String> {
    let mut defaults = vec![
        ("heartbeat-interval", "50"),
        ("election-timeout", "500"),
        ("snapshot-count", "300"),
        ("quota-backend-bytes", "8589934592"),
    ];
    // Not every etcd has it.
    if kind == Kind::Tally {
        defaults.push(("snapshot-catchup-entries", "100"));
        defaults.push(("watch-progress-notify-interval", "300ms"));
    }
    let given = |name: &str| {
        rest.iter().any(|flag| flag.strip_prefix("--").is_some_and(|flag| flag.split('=').next() == Some(name)))
    };
    let missing = defaults.iter().filter(|(name, _)| !given(name));
    missing.map(|(name, value)| format!("--{name}={value}")).chain(rest.iter().cloned()).collect()
}

fn notes(setup: &Setup) -> Result<Vec<String>> {
    let version = programs::captured(Command::new(&setup.binary).arg("--version"))?;
    let versions: Vec<&str> = version.lines().filter(|line| line.contains("Version")).map(str::trim).collect();
    let network = match setup.sandbox {
        Sandbox::Loopback => "loopback (no partitions, no slow links)",
        Sandbox::Inside | Sandbox::Possible { .. } => "one namespace per node",
    };
    Ok(vec![
        format!("server: {}; flags: `{}`", versions.join(", "), setup.flags.join(" ")),
        format!(
            "{} clients, {} lessees, {} watchers at a time; network: {network}",
            setup.clients, setup.lessees, setup.watchers
        ),
    ])
}

/// One run from the first start to the last check.
fn torture(setup: &Setup, seed: u64, dir: &Path, shared: &Shared, seen: &Mutex<Seen>) -> Result<Outcome> {
    let slots = setup.nodes + 1;
    let network = Network::new(setup.sandbox, slots)?;
    let (kind, nodes) = (setup.kind, setup.nodes);
    let mut fleet = Fleet::new(kind, &setup.binary, &setup.flags, dir, nodes, slots, network)?;
    println!(
        "  slow links: {}; slow disks: {}",
        if fleet.network.can_cut() { fleet.network.slowness() } else { "no".to_owned() },
        if fleet.disks.is_some() { "yes" } else { "no (no control group for them)" }
    );
    fleet.heal()?;
    fleet.settle()?;
    let recorded = crew::run(setup, seed, &mut fleet, shared, seen)?;
    let audited = audit::run(&mut fleet, seen, &recorded)?;
    for slot in fleet.members() {
        fleet.terminate(slot)?;
        check_files(&fleet, slot)?;
    }
    Ok(Outcome { recorded, audited })
}

/// The stopped server's files: opening them checks the state against its own root.
fn check_files(fleet: &Fleet, slot: usize) -> Result<()> {
    if fleet.kind == Kind::Etcd {
        return Ok(());
    }
    let mut command = fleet.offline();
    programs::captured(command.arg("check").arg("--data-dir").arg(fleet.data_dir(slot))).map(|_| ())
}

fn report(Outcome { recorded, audited }: &Outcome, seen: &Seen) {
    let Audited { searched, revision, unanswered, compared, applied, leased, watched } = audited;
    let faults: u64 = recorded.done.faults.values().sum();
    println!(
        "  {} operations, {faults} faults, {} terms with a leader, {} root comparisons at {} indexes",
        recorded.history.len(),
        seen.elections(),
        seen.comparisons,
        seen.indexes
    );
    println!(
        "  {} keys linearizable ({} operations, {} of unknown outcome, {} states)",
        searched.keys, searched.operations, searched.maybes, searched.states
    );
    println!(
        "  revisions 2 to {revision} dense, {unanswered} of them without an answer; {compared} answers as of their revision; \
         all nodes at applied index {applied}"
    );
    println!(
        "  {} leases: {} expired, {} revoked; {} renewals, {} looks, {} keys that went with them",
        leased.granted, leased.expired, leased.revoked, leased.renewed, leased.looks, leased.keys
    );
    println!(
        "  {} watchers on {} connections: {} events, {} with the record before, {} times progress, {} fragments",
        recorded.watches.iter().map(|watch| watch.watchers).sum::<u64>(),
        recorded.watches.iter().map(|watch| watch.connections).sum::<u64>(),
        watched.events,
        watched.previous,
        watched.progress,
        watched.fragments
    );
    println!(
        "  {} watchers followed to the end; {} of {} streams reached the cap of {} events",
        watched.complete,
        recorded.watches.iter().filter(|watch| watch.capped).count(),
        recorded.watches.len(),
        watchers::EVENTS_MAX
    );
}

#[cfg(test)]
mod tests {
    use super::flags;
    use crate::node::Kind;

    #[test]
    fn flags_are_completed_not_doubled() {
        let own = ["--election-timeout=2000".to_owned()];
        let flags = flags(Kind::Tally, &own);
        assert_eq!(flags.iter().filter(|flag| flag.starts_with("--election-timeout")).count(), 1);
        assert!(flags.contains(&"--snapshot-catchup-entries=100".to_owned()));
    }
}
