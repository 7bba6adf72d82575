//! `cargo xtask`: the developer commands of the Tally workspace.
//!
//! *Is* the one place that knows how this repository is built, checked, measured and tortured. *Is not* part of the
//! product: it depends on no other crate of the workspace and talks to the server as any client would.

mod api;
mod args;
mod bench;
mod cargo;
mod clients;
mod cluster;
mod deny;
mod edges;
mod error;
mod etcd;
mod group;
mod grpc;
mod http;
mod linear;
mod links;
mod node;
mod peers;
mod ports;
mod prereq;
mod procfs;
mod rng;
mod run;
mod serve;
mod sources;
mod suite;
mod torture;
mod verify;

use std::process::ExitCode;

use args::Args;
use error::{Error, Result};

const HELP: &str = "\
cargo xtask <command>

  serve [-- FLAGS]   build the server and run one node on 127.0.0.1:2379 with ./tally-data
  cluster [-- FLAGS] build the server and run a cluster on 127.0.0.1 (clients: ports 2379, 22379, 32379 …) until Ctrl-C
      --nodes N          members, 1 to 5 (default 3, or as many as the directory holds)
      --dir DIR          where their data goes, and stays (default ./tally-cluster)
      --tally PATH       tally to run (default: built here)
  test               everything CI runs: prerequisites, verify, all tests, packages, examples
  verify             fmt, clippy, crate edges, file heads and lengths, docs, links, deny
  peers              build or fetch the programs that tests use, and print the variables for `cargo test`
  fix                rustfmt and the fixes clippy can make itself
  bench              Tally and etcd side by side
      --etcd PATH        etcd to compare with (default: $TALLY_TEST_ETCD, PATH, the cached 3.5.1)
      --tally PATH       tally to measure (default: built here)
      --nodes N          nodes of each server: 1, 3 or 5 (default 1); clusters have rows of their own
      --wire json|grpc   how clients talk to one node (default json); gRPC, watchers and leases have rows of their own
      --seconds N        length of one measurement after a warm-up of N/5 (default 10)
      --rounds N         rounds, the two servers in turn; medians are shown (default 3)
      --keys N           keys of the large store (default 1000000), or of the cluster's snapshot (default 250000)
      --entries N        entries that a follower is to catch up (default 100000)
      --kills N          kills of a leader, all rounds together (default 20)
      --rows A,B         only these rows; --rows list names them
      --only tally|etcd  measure one server
      --data DIR         where data directories go; must be a real disk (default: under the target directory)
      --out FILE         where the report goes (default docs/benchmarks.md, -cluster.md or -grpc.md, and only after a complete
                         run)
  torture            load Debian's package index while the server is killed again and again
      --kills N          SIGKILLs at least (default 20)
      --seconds N        go on for at least this long (default: until the kills are done and all is loaded)
      --clients N        concurrent clients (default 64)
      --seed N           repeats the choice of moments (default: from the clock, printed)
      --tally PATH       tally to torture (default: built here)
      --index FILE       a package index instead of those under /var/lib/apt/lists
      --limit N          only the first N records
      --data DIR         where the data directory goes (default: under the target directory)
      --keep             keep it
      --snapshots        cut the log all the time: small --snapshot-count and --snapshot-catchup-entries, padded values,
                         and every other kill right after a cut
      --pad BYTES        pad values to at least this many bytes (default: 0; 8192 with --snapshots)
      [-- FLAGS]         more flags for the server
  torture --nodes N  a cluster of 3 or 5 (or 1) under clients that record everything, killed, paused, cut off, slowed down and
                     rebuilt; what was recorded must be linearizable, and all replicas equal
      --seconds N        length of the faults in one run (default 60)
      --runs N           runs one after another, each with the next seed (default 1)
      --seed N           repeats the choice of faults and operations (default: from the clock, printed)
      --clients N        concurrent clients (default 4 per node)
      --lessees N        clients that have leases (default 2 per node)
      --watchers N       watchers at a time, on all nodes together (default 2000)
      --faults A,B       only these faults; --faults list names them, none leaves them all out
      --network WHAT     namespaces or loopback (default: namespaces where they can be made, as root or not)
      --server PATH      tally or etcd to torture (default: tally, built here)
      --out FILE         put the totals into this page, such as docs/torture.md
      --data DIR, --keep, [-- FLAGS]  as above
";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let command = words.next().unwrap_or_else(|| "help".to_owned());
    match dispatch(&command, words.collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask {command}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: &str, words: Vec<String>) -> Result<()> {
    match command {
        "serve" => serve::run(Args::parse(words, &[], &[])?),
        "cluster" => cluster::run(&Args::parse(words, cluster::OPTIONS, &[])?),
        "test" => Args::parse(words, &[], &[])?.none().and_then(|()| suite::run()),
        "peers" => Args::parse(words, &[], &[])?.none().map(|()| peers::print()),
        "verify" => Args::parse(words, &[], &[])?.none().and_then(|()| verify::run()),
        "fix" => Args::parse(words, &[], &[])?.none().and_then(|()| verify::fix()),
        "bench" => bench::run(&Args::parse(words, bench::OPTIONS, &[])?),
        "torture" => torture::run(&Args::parse(words, torture::OPTIONS, torture::SWITCHES)?),
        "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(())
        }
        other => Err(Error::Usage(format!("unknown command `{other}`"))),
    }
}
