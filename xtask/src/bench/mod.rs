//! `cargo xtask bench`: Tally and a real etcd side by side, in one run, under the same load.
//!
//! The servers take turns within every row and round, each time with a fresh directory and free ports, so that whatever
//! else the machine does meets both. Latencies come from the clients, CPU time and memory from the kernel.

mod closed;
mod hist;
mod keys;
mod large;
mod load;
mod report;
mod rows;
mod work;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::args::Args;
use crate::error::{Error, Result};
use crate::node::{Kind, Plan};
use crate::{cargo, etcd, prereq, procfs, run};
use closed::Times;
use report::Results;
use rows::{LARGE, ROWS, Sample};

/// The options of this command.
pub(crate) const OPTIONS: &[&str] = &["etcd", "tally", "seconds", "rounds", "keys", "rows", "only", "data", "out"];

/// Flags for both servers: no log line per slow request, and room for everything that is written.
const FLAGS: [&str; 2] = ["--log-level=error", "--quota-backend-bytes=17179869184"];

/// What to measure.
#[derive(Debug)]
struct Setup {
    servers: Vec<(Kind, PathBuf)>,
    rows: Vec<&'static str>,
    rounds: usize,
    keys: u32,
    times: Times,
    data: PathBuf,
}

/// Measures and reports.
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.text("rows") == Some("list") {
        ROWS.iter().for_each(|row| println!("{:<10} {}", row.name, row.title));
        println!("{LARGE:<10} count, list, restart, memory, puts during a list");
        return Ok(());
    }
    let setup = Setup::new(args)?;
    let machine = procfs::machine(&setup.data)?;
    machine.iter().for_each(|line| println!("{line}"));
    let begun = Instant::now();
    let mut results = Results::default();
    for round in 0..setup.rounds {
        for row in &setup.rows {
            // Who goes first changes, so that neither always meets the warmer machine.
            let turn = (0..setup.servers.len()).map(|index| (index + round) % setup.servers.len());
            for (kind, binary) in turn.map(|index| &setup.servers[index]) {
                let sample = measure(&setup, row, *kind, binary, round)?;
                println!("{}/{} {row:<9} {:<6} {}", round + 1, setup.rounds, kind.name(), shown(&sample));
                results.add(row, *kind, sample);
            }
        }
    }
    fs::remove_dir_all(&setup.data).map_err(Error::file("remove", &setup.data))?;
    let page = page(&setup, &machine, &results, begun.elapsed())?;
    println!("\n{page}");
    let complete = setup.servers.len() == 2 && setup.rows.len() == ROWS.len() + 1;
    match args.text("out").or(complete.then_some("docs/benchmarks.md")) {
        Some(out) => {
            let out = cargo::root().join(out);
            fs::write(&out, page).map_err(Error::file("write", &out))?;
            println!("written to {}", out.display());
        }
        None => println!("not a complete run, so no report was written; name one with --out"),
    }
    Ok(())
}

impl Setup {
    fn new(args: &Args) -> Result<Setup> {
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
        let all = ROWS.iter().map(|row| row.name).chain([LARGE]);
        let wanted = args.text("rows").map(|text| text.split(',').collect::<Vec<_>>());
        let rows: Vec<&str> = all.filter(|name| wanted.as_ref().is_none_or(|list| list.contains(name))).collect();
        if let Some(strange) = wanted.iter().flatten().find(|name| !rows.contains(name)) {
            return Err(Error::Usage(format!("--rows: there is no row `{strange}`; see --rows list")));
        }
        let window = Duration::from_secs_f64(args.number("seconds", 10.0_f64)?.clamp(0.5, 3600.0));
        let parent = args.text("data").map_or_else(|| cargo::target_dir().join("bench"), PathBuf::from);
        let data = parent.join(std::process::id().to_string());
        fs::create_dir_all(&data).map_err(Error::file("create", &data))?;
        Ok(Setup {
            servers,
            rows,
            rounds: args.number("rounds", 3_usize)?.max(1),
            keys: args.number("keys", 1_000_000_u32)?.max(1000),
            times: Times { window, ticks_per_second: procfs::ticks_per_second() },
            data: data.canonicalize().map_err(Error::file("find", &data))?,
        })
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
    let flags = FLAGS.iter().map(|flag| (*flag).to_owned()).collect();
    let plan = Plan::new(kind, binary.to_path_buf(), dir.clone(), flags)?;
    let seed = round as u64 + 1;
    let sample = match ROWS.iter().find(|known| known.name == row) {
        Some(row) => closed::measure(row, &plan, setup.times, seed)?,
        None => large::measure(&plan, setup.keys, setup.times, seed)?,
    };
    fs::remove_dir_all(&dir).map_err(Error::file("remove", &dir))?;
    Ok(sample)
}

fn shown(sample: &Sample) -> String {
    let numbers: Vec<String> =
        sample.iter().map(|(name, value)| format!("{name} {}", report::amount(*value))).collect();
    numbers.join("  ")
}

/// The whole report in Markdown.
fn page(setup: &Setup, machine: &[String], results: &Results, took: Duration) -> Result<String> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let mut out = String::from("# Benchmarks\n\nWritten by `cargo xtask bench`; do not edit.\n\n");
    out += &format!("Command: `cargo xtask {}` ({:.0} minutes)\n\n", words.join(" "), took.as_secs_f64() / 60.0);
    for (kind, binary) in &setup.servers {
        let version = run::captured(Command::new(binary).arg("--version"))?;
        out += &format!("- {}: {}\n", kind.name(), version.lines().next().unwrap_or("unknown version"));
    }
    machine.iter().for_each(|line| out += &format!("- {line}\n"));
    out += &format!(
        "\nOne node, fsync on, JSON over HTTP/1.1 with keep-alive, closed loops from one load generator thread on the \
         same cores. Keys of 8 to 64 bytes, values of 256 random bytes. {} s per measurement after a warm-up, {} rounds, \
         the servers in turn, each on fresh data; medians. CPU is the server's, user and system, from the kernel. The \
         large store holds {} keys.\n\n",
        setup.times.window.as_secs_f64(),
        setup.rounds,
        report::amount(f64::from(setup.keys)),
    );
    let (reached, known) = results.reached();
    out += &format!("## Goals\n\n{}\n{reached} of {known} goals reached.\n\n", results.goals());
    out += &format!("## Details\n\n{}\n{}", results.details(), results.large());
    Ok(out)
}
