//! A short torture of three nodes: what `cargo xtask torture --nodes 3` does for as long as one likes, with a fixed seed.
//!
//! The server is `$TALLY_TEST_BINARY`, or the one beside this program; without either the test says so and is skipped.
//! Where network namespaces cannot be made, the run says so and leaves out partitions and slow links.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

/// How long the faults go on; starting, recovering and checking come on top.
const SECONDS: &str = "25";
/// Any seed will do; a fixed one makes a failure easier to repeat.
const SEED: &str = "3";

fn server() -> Option<PathBuf> {
    if let Some(given) = std::env::var_os("TALLY_TEST_BINARY") {
        let given = PathBuf::from(given);
        assert!(given.is_file(), "TALLY_TEST_BINARY is {}, and no such file", given.display());
        return Some(given);
    }
    let built = Path::new(env!("CARGO_BIN_EXE_xtask")).parent()?.join("tally");
    built.is_file().then_some(built)
}

#[test]
fn three_nodes_survive_a_short_torture() {
    let Some(server) = server() else {
        println!("skipped: no server; build it with `cargo build --release -p tally-server` or set TALLY_TEST_BINARY");
        return;
    };
    let data = Path::new(env!("CARGO_TARGET_TMPDIR")).join("torture");
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(["torture", "--nodes", "3", "--seconds", SECONDS, "--seed", SEED]);
    command.arg("--server").arg(&server).arg("--data").arg(&data);
    let output = command.output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{said}");
    assert!(output.status.success(), "{}", output.status);
    // A run without operations, faults or elections would have shown nothing.
    assert!(said.contains("torture: passed"));
    let shown = [
        "operations recorded",
        "faults",
        "terms with a leader",
        "state roots compared between nodes",
        "leases that expired",
        "lease renewals",
        "events checked",
        "times progress was told",
        "watchers cancelled by a compaction",
    ];
    for what in shown {
        let row = said.lines().find(|line| line.starts_with(&format!("| {what}")));
        let count = row.and_then(|line| line.rsplit('|').nth(1)).map(|text| text.trim().replace(',', ""));
        let count: u64 = count.and_then(|digits| digits.parse().ok()).unwrap_or(0);
        assert!(count > 0, "no {what}");
    }
}

/// Three servers that know nothing of each other answer everything, fast, and are no store.
#[test]
fn servers_that_do_not_agree_are_caught() {
    let Some(server) = server() else {
        println!("skipped: no server; build it with `cargo build --release -p tally-server` or set TALLY_TEST_BINARY");
        return;
    };
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("torture-strangers");
    std::fs::create_dir_all(&dir).unwrap();
    // The same server, told that it is alone.
    let alone = dir.join("tally-alone");
    let script = format!(
        "#!/bin/sh\nfor word; do shift; case $word in --initial-cluster=*) word=\"--initial-cluster=$name=$url\";;\n\
         --name=*) name=${{word#*=}};; --initial-advertise-peer-urls=*) url=${{word#*=}};; esac\n\
         set -- \"$@\" \"$word\"; done\nexec '{}' \"$@\"\n",
        server.display()
    );
    std::fs::write(&alone, script).unwrap();
    std::fs::set_permissions(&alone, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(["torture", "--nodes", "3", "--seconds", "1", "--seed", SEED, "--faults", "none"]);
    command.arg("--server").arg(&alone).arg("--data").arg(&dir);
    let output = command.output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{said}");
    assert!(!output.status.success(), "three strangers passed for a cluster");
    let reasons = ["was given to two changes", "stale:", "not linearizable", "the replicas differ", "has two leaders"];
    assert!(reasons.iter().any(|reason| said.contains(reason)), "it failed for another reason");
}
