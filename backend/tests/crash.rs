//! Kills a process that commits, at random moments, and looks at what it left.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::*;
use tally_backend::Backend;

const DIRECTORY: &str = "TALLY_BACKEND_TEST_DIRECTORY";
const SYNCING: &str = "TALLY_BACKEND_TEST_SYNCING";
const VALUE_BYTES: usize = 700;

/// The body of the child process: commits until it is killed, and says how far it is. Where it is told to, another thread
/// syncs all the while and says how far that is durable.
#[test]
#[ignore = "run by the tests of this file, in a process of its own"]
fn child_commits_until_killed() {
    let Ok(path) = std::env::var(DIRECTORY) else { return };
    let backend = open(Path::new(&path));
    let first = check(&backend, VALUE_BYTES) + 1;
    if std::env::var(SYNCING).is_ok() {
        let backend = backend.clone();
        std::thread::spawn(move || {
            loop {
                let durable = backend.sync().unwrap().index;
                writeln!(std::io::stdout(), "durable {durable}").unwrap();
            }
        });
    }
    for index in first.. {
        commit(&backend, index, VALUE_BYTES);
        writeln!(std::io::stdout(), "committed {index}").unwrap();
    }
}

fn child(path: &Path, syncing: bool) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["child_commits_until_killed", "--exact", "--ignored", "--nocapture"]).env(DIRECTORY, path);
    if syncing {
        command.env(SYNCING, "1");
    }
    command.stdout(Stdio::piped()).spawn().unwrap()
}

#[test]
fn effects_and_position_are_never_apart_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let (mut found, mut lost) = (0, 0);
    for round in 0..12u64 {
        let mut process = child(&path, round % 2 == 1);
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let (mut committed, mut durable) = (0, found);
        // Killed after a number of reports; then what it still could say in the meantime is read to the end.
        let enough = 5 + round * 977 % 4000;
        let mut reports = 0;
        while let Some(Ok(line)) = lines.next() {
            match line.split_once(' ') {
                Some(("committed", index)) => committed = index.parse().unwrap_or(committed),
                Some(("durable", index)) => durable = index.parse().unwrap_or(durable),
                _ => continue,
            }
            reports += 1;
            if reports == enough {
                process.kill().unwrap();
            }
        }
        process.wait().unwrap();
        assert!(committed > found, "round {round}: the child did not get on");
        let backend = open(&path);
        found = check(&backend, VALUE_BYTES);
        assert!(found >= durable, "round {round}: durable {durable}, found {found}");
        assert!(found <= committed + 1, "round {round}: committed {committed}, found {found}");
        assert_eq!(backend.durable().index, found);
        assert_eq!(generations(&path).len(), 1);
        lost += committed.saturating_sub(found);
    }
    assert!(found > 0 && lost > 0, "only a kill that loses something shows anything");
}

#[test]
fn a_kill_before_any_commit_leaves_a_backend_that_opens() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let mut process = child(&path, false);
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    // The first line is printed by the test harness, when the child may be anywhere in making the directory.
    lines.next().unwrap().unwrap();
    process.kill().unwrap();
    process.wait().unwrap();
    let backend = Backend::open(small(&path)).unwrap();
    check(&backend, VALUE_BYTES);
}
