//! `cargo xtask bench`: Tally and a real etcd side by side, in one run, under the same load.
//!
//! The servers take turns within every row and round, each time with a fresh directory and free ports, so that whatever
//! else the machine does meets both. Latencies come from the clients, CPU time and memory from the kernel.

mod closed;
mod cluster;
mod connection;
mod grpc;
mod hist;
mod keys;
mod large;
mod load;
mod report;
mod rows;
mod sample;
mod single;
mod steady;
mod timeline;
mod work;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::args::Args;
use crate::error::{Error, Result};
use crate::node::{Kind, Plan};
use crate::{cargo, etcd, ports, prereq, procfs, run};
use closed::Times;
use report::Results;
use rows::Suite;
use sample::Sample;

/// The options of this command.
pub(crate) const OPTIONS: &[&str] =
    &["etcd", "tally", "nodes", "wire", "seconds", "rounds", "keys", "entries", "kills", "rows", "only", "data", "out"];

/// Flags for both servers: no log line per slow request, and room for everything that is written.
const FLAGS: [&str; 2] = ["--log-level=error", "--quota-backend-bytes=17179869184"];

/// What to measure.
#[derive(Debug)]
struct Setup {
    suite: &'static Suite,
    servers: Vec<(Kind, PathBuf)>,
    nodes: usize,
    rows: Vec<&'static str>,
    rounds: usize,
    times: Times,
    /// Keys of the row that is about much data.
    keys: u32,
    /// Entries that a follower misses.
    entries: u64,
    /// Kills of a leader in all rounds together.
    kills: usize,
    data: PathBuf,
}

/// Measures and reports.
pub(crate) fn run(args: &Args) -> Result<()> {
    let nodes = nodes(args)?;
    let suite = suite(args.text("wire"), nodes)?;
    if args.text("rows") == Some("list") {
        suite.rows.iter().for_each(|row| println!("{:<11} {}", row.name, row.title));
        suite.events.iter().for_each(|event| println!("{:<11} {}", event.name, event.title));
        return Ok(());
    }
    let setup = Setup::new(args, suite, nodes)?;
    let machine = procfs::machine(&setup.data)?;
    machine.iter().for_each(|line| println!("{line}"));
    let begun = Instant::now();
    let mut results = Results::new(suite);
    for round in 0..setup.rounds {
        for row in &setup.rows {
            // Who goes first changes, so that neither always meets the warmer machine.
            let turn = (0..setup.servers.len()).map(|index| (index + round) % setup.servers.len());
            for (kind, binary) in turn.map(|index| &setup.servers[index]) {
                let sample = measure(&setup, row, *kind, binary, round)?;
                println!("{}/{} {row:<9} {:<6} {}", round + 1, setup.rounds, kind.name(), sample.shown());
                results.add(row, *kind, sample);
            }
        }
    }
    fs::remove_dir_all(&setup.data).map_err(Error::file("remove", &setup.data))?;
    let page = page(&setup, &machine, &results, begun.elapsed())?;
    println!("\n{page}");
    match args.text("out").or(setup.complete().then_some(suite.out)) {
        Some(out) => {
            let out = cargo::root().join(out);
            fs::write(&out, page).map_err(Error::file("write", &out))?;
            println!("written to {}", out.display());
        }
        None => println!("not a complete run, so no report was written; name one with --out"),
    }
    Ok(())
}

/// What is measured.
fn suite(wire: Option<&str>, nodes: usize) -> Result<&'static Suite> {
    match (wire.unwrap_or("json"), nodes) {
        ("json", 1) => Ok(&single::SUITE),
        ("json", _) => Ok(&cluster::SUITE),
        ("grpc", 1) => Ok(&grpc::SUITE),
        ("grpc", _) => Err(Error::Usage("--wire grpc has a row on three nodes, and takes no --nodes".to_owned())),
        (other, _) => Err(Error::Usage(format!("--wire takes json or grpc, not {other}"))),
    }
}

/// How many nodes each server has: one, or a cluster that can lose one.
fn nodes(args: &Args) -> Result<usize> {
    match args.number("nodes", 1_usize)? {
        nodes @ (1 | 3 | 5) => Ok(nodes),
        other => Err(Error::Usage(format!("--nodes takes 1, 3 or 5, not {other}"))),
    }
}

impl Setup {
    fn new(args: &Args, suite: &'static Suite, nodes: usize) -> Result<Setup> {
        let rows = chosen(suite, args.text("rows"))?;
        let mut servers = Vec::new();
        let only = args.text("only");
        if only.is_none_or(|only| only == "etcd") {
            let given = args.text("etcd").map(PathBuf::from).or_else(|| run::on_path("etcd"));
            servers.push((Kind::Etcd, given.map_or_else(etcd::measured, Ok)?));
        }
        if only.is_none_or(|only| only == "tally") {
            servers.push((Kind::Tally, tally(args)?));
        }
        if servers.is_empty() {
            return Err(Error::Usage("--only takes tally or etcd".to_owned()));
        }
        let window = Duration::from_secs_f64(args.number("seconds", 10.0_f64)?.clamp(0.5, 3600.0));
        let parent = args.text("data").map_or_else(|| cargo::target_dir().join("bench"), PathBuf::from);
        let data = parent.join(std::process::id().to_string());
        fs::create_dir_all(&data).map_err(Error::file("create", &data))?;
        Ok(Setup {
            suite,
            servers,
            nodes,
            rows,
            rounds: args.number("rounds", 3_usize)?.max(1),
            times: Times { window, ticks_per_second: procfs::ticks_per_second() },
            keys: args.number("keys", if nodes == 1 { 1_000_000_u32 } else { 250_000 })?.max(1000),
            entries: args.number("entries", 100_000_u64)?.max(1),
            kills: args.number("kills", 20_usize)?.max(1),
            data: data.canonicalize().map_err(Error::file("find", &data))?,
        })
    }

    /// Whether everything is measured that the suite's report is about.
    fn complete(&self) -> bool {
        self.servers.len() == 2 && self.rows.len() == self.suite.names().count() && matches!(self.nodes, 1 | 3)
    }

    /// Fresh servers.
    fn plans(&self, nodes: usize, kind: Kind, binary: &Path, dir: &Path, more: &[&str]) -> Result<Vec<Plan>> {
        let flags: Vec<String> = FLAGS.iter().chain(more).map(|flag| (*flag).to_owned()).collect();
        if nodes == 1 {
            return Ok(vec![Plan::new(kind, binary.to_path_buf(), dir.to_path_buf(), flags)?]);
        }
        Plan::cluster(kind, binary, dir, &ports::free_pairs(nodes)?, &flags)
    }
}

/// The suite's rows that are wanted, in the suite's order.
fn chosen(suite: &Suite, wanted: Option<&str>) -> Result<Vec<&'static str>> {
    let wanted = wanted.map(|text| text.split(',').collect::<Vec<_>>());
    let rows: Vec<&str> = suite.names().filter(|name| wanted.as_ref().is_none_or(|list| list.contains(name))).collect();
    match wanted.iter().flatten().find(|name| !rows.contains(name)) {
        Some(strange) => Err(Error::Usage(format!("--rows: there is no row `{strange}`; see --rows list"))),
        None => Ok(rows),
    }
}

/// The server given, or built from this tree.
pub(crate) fn tally(args: &Args) -> Result<PathBuf> {
    if let Some(given) = args.text("tally") {
        return Ok(given.into());
    }
    prereq::ensure_build()?;
    cargo::build_server()
}

fn measure(setup: &Setup, row: &str, kind: Kind, binary: &Path, round: usize) -> Result<Sample> {
    let dir = setup.data.join(format!("{row}-{}-{round}", kind.name()));
    let seed = round as u64 + 1;
    let plans = |more: &[&str]| setup.plans(setup.nodes, kind, binary, &dir, more);
    let plan = || setup.plans(1, kind, binary, &dir, &[]).map(|mut plans| plans.remove(0));
    let sample = match row {
        single::LARGE => large::measure(&plan()?, setup.keys, setup.times, seed)?,
        // Together, the rounds make the kills.
        cluster::FAILOVER => cluster::failover::measure(plans(&[])?, setup.kills.div_ceil(setup.rounds), seed)?,
        cluster::TRANSFER => cluster::transfer::measure(plans(&[])?, seed)?,
        cluster::CATCHUP => cluster::catchup::measure(plans(&cluster::catchup::FLAGS)?, setup.entries, seed)?,
        cluster::SNAPSHOT => {
            cluster::snapshot::measure(plans(&cluster::snapshot::FLAGS)?, setup.keys, setup.times, seed)?
        }
        grpc::FAN_OUT => grpc::fan_out(plan()?, false, setup.times)?,
        grpc::FAN_OUT_JSON => grpc::fan_out(plan()?, true, setup.times)?,
        grpc::IDLE => grpc::idle(plan()?, seed)?,
        grpc::KEEP_ALIVE => grpc::keep_alive(plan()?, setup.times)?,
        grpc::EXPIRY => grpc::expire(plan()?, setup.times, seed)?,
        name => {
            let row = setup.suite.rows.iter().find(|known| known.name == name);
            let row = row.ok_or_else(|| Error::Usage(format!("there is no row `{name}`")))?;
            let plans = setup.plans(row.nodes.unwrap_or(setup.nodes), kind, binary, &dir, &[])?;
            closed::measure(row, plans, setup.times, seed)?
        }
    };
    fs::remove_dir_all(&dir).map_err(Error::file("remove", &dir))?;
    Ok(sample)
}

/// The whole report in Markdown.
fn page(setup: &Setup, machine: &[String], results: &Results, took: Duration) -> Result<String> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let mut out = format!("# {}\n\nWritten by `cargo xtask bench`; do not edit.\n\n", setup.suite.title);
    // Reports are committed, and say nothing of one machine's home directory.
    let home = std::env::var("HOME").unwrap_or_default();
    let command = words.join(" ");
    let command = if home.len() > 1 { command.replace(&home, "~") } else { command };
    out += &format!("Command: `cargo xtask {command}` ({:.0} minutes)\n\n", took.as_secs_f64() / 60.0);
    for (kind, binary) in &setup.servers {
        let version = run::captured(Command::new(binary).arg("--version"))?;
        out += &format!("- {}: {}\n", kind.name(), version.lines().next().unwrap_or("unknown version"));
    }
    machine.iter().for_each(|line| out += &format!("- {line}\n"));
    let method = match setup.suite.out {
        out if out == grpc::SUITE.out => grpc_method(setup),
        _ if setup.nodes == 1 => single_method(setup),
        _ => cluster_method(setup),
    };
    out += &format!("\n{method}\n\n");
    let (reached, known) = results.reached();
    out += &format!("## Goals\n\n{}\n{reached} of {known} goals reached.\n\n", results.goals());
    out += &format!("## Details\n\n{}\n{}", results.details(), results.events());
    Ok(out)
}

/// How one node is measured.
fn single_method(setup: &Setup) -> String {
    format!(
        "One node, fsync on, JSON over HTTP/1.1 with keep-alive, closed loops from one load generator thread on the same \
         cores. Keys of 8 to 64 bytes, values of 256 random bytes. {} s per measurement after a warm-up, {} rounds, the \
         servers in turn, each on fresh data; medians. CPU is the server's, user and system, from the kernel. The large \
         store holds {} keys; puts without a list and beside one are measured by turns.",
        setup.times.window.as_secs_f64(),
        setup.rounds,
        report::amount(f64::from(setup.keys)),
    )
}

/// How gRPC is measured.
fn grpc_method(setup: &Setup) -> String {
    format!(
        "One node (three where the row says so), fsync on, gRPC over HTTP/2 without TLS, closed loops from one load \
         generator thread on the same cores, which writes its messages by hand. Keys of 8 to 64 bytes, values of 256 \
         random bytes. {} s per measurement after a warm-up, {} rounds, the servers in turn, each on fresh data; medians. \
         CPU is the servers', user and system, from the kernel.\n\n\
         *One put to 1,000 watchers*: the next put is made when all have heard of the last; the time is that from sending \
         the put until its event has been read for the last of them, and every watcher must see every put once. *Idle \
         watchers* watch a key each to which nothing happens; what they cost is the growth of the server's resident memory \
         while they are made, two seconds later. *Keepalives*: each of 64 streams waits for an answer before it asks again. \
         *Leases that expire* are granted so that their times end evenly within one minute, and each has one key; the puts \
         are to other keys. They are counted when that minute is over.",
        setup.times.window.as_secs_f64(),
        setup.rounds,
    )
}

/// How a cluster is measured.
fn cluster_method(setup: &Setup) -> String {
    format!(
        "{} nodes on loopback, default heartbeats and election timeouts (100 and 1,000 ms), fsync on, JSON over HTTP/1.1 \
         with keep-alive, closed loops from one load generator thread, spread evenly over all nodes; everything shares the \
         same cores. Keys of 8 to 64 bytes, values of 256 random bytes. {} s per measurement after a warm-up, {} rounds, \
         the servers in turn, each on fresh data; medians (least–most). CPU, memory and fsyncs are sums over all nodes.\n\n\
         *Leader killed*, {} times in all: 64 closed loops on the two followers, and beside them a put every 10 ms that \
         waits for none before it; the time from just before SIGKILL until the first answer to a put that was sent after \
         the process was gone. *Leader hands over*: the same load on all nodes; the longest time between two acknowledged \
         puts from the request (or SIGTERM) until a second after it was answered (or the process has ended). Clients that \
         fail, or wait 3 s, go on at the next node. *Unclear* is a failure after which a client cannot know whether its \
         write took effect: it lost the connection while it waited, waited too long, or was told so. *Follower restarts \
         behind*: it was stopped while {} puts were made. *New member*: a learner is added to a cluster with {} keys of \
         4 KiB whose log has been cut, so that it needs a snapshot; everything has arrived once its applied index is where \
         the leader's was when it was started.",
        setup.nodes,
        setup.times.window.as_secs_f64(),
        setup.rounds,
        setup.kills.div_ceil(setup.rounds) * setup.rounds,
        report::amount(setup.entries as f64),
        report::amount(f64::from(setup.keys)),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::{OPTIONS, chosen, cluster, grpc, nodes, single, suite};
    use crate::args::Args;

    fn args(line: &str) -> Args {
        Args::parse(line.split_whitespace().map(str::to_owned).collect(), OPTIONS, &[]).unwrap()
    }

    #[test]
    fn clusters_have_a_majority_to_lose_a_node() {
        assert_eq!(nodes(&args("")).unwrap(), 1);
        assert_eq!(nodes(&args("--nodes 3")).unwrap(), 3);
        assert_eq!(nodes(&args("--nodes=5")).unwrap(), 5);
        for odd in ["--nodes 0", "--nodes 2", "--nodes 7", "--nodes three"] {
            assert!(nodes(&args(odd)).is_err(), "{odd}");
        }
    }

    #[test]
    fn rows_are_chosen_by_name_in_the_suites_order() {
        assert_eq!(chosen(&cluster::SUITE, Some("failover,put-64")).unwrap(), ["put-64", "failover"]);
        assert!(chosen(&cluster::SUITE, Some("large")).is_err());
        assert_eq!(chosen(&single::SUITE, None).unwrap().len(), 8);
        assert_eq!(chosen(&cluster::SUITE, None).unwrap().len(), 10);
        assert_eq!(chosen(&grpc::SUITE, None).unwrap().len(), 11);
    }

    #[test]
    fn the_wire_and_the_nodes_choose_the_suite() {
        assert_eq!(suite(None, 1).unwrap().title, single::SUITE.title);
        assert_eq!(suite(Some("json"), 3).unwrap().title, cluster::SUITE.title);
        assert_eq!(suite(Some("grpc"), 1).unwrap().title, grpc::SUITE.title);
        assert!(suite(Some("grpc"), 3).is_err() && suite(Some("soap"), 1).is_err());
    }
}
