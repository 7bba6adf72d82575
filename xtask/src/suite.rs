//! `cargo xtask test`: everything CI runs, in one order, with one summary.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::cargo::Package;
use crate::edges::STORAGE;
use crate::error::{Error, Result};
use crate::peers::Peers;
use crate::{cargo, deny, peers, prereq, run, verify};

/// How long one example may run.
const EXAMPLE_LIMIT: Duration = Duration::from_secs(300);

/// Lines of what a failed test said that the summary repeats.
const SAID_LINES_MAX: usize = 12;

/// What the test runners' closing lines add up to, and why tests failed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Totals {
    passed: u64,
    failed: u64,
    ignored: u64,
    lines: Vec<String>,
    /// What every panic of a failed test said, from the line that tells where it was.
    panics: Vec<Vec<String>>,
    /// Whether the last of them goes on.
    panicking: bool,
}

/// Runs every step, also after one has failed; any failure makes the whole run fail.
pub(crate) fn run() -> Result<()> {
    let begun = Instant::now();
    prereq::ensure_build()?;
    if let Err(error) = prereq::ensure_apt_lists() {
        println!("test: {error}; the test with Debian's package index will be skipped");
    }
    if let Err(error) = prereq::ensure_network_tools() {
        println!("test: {error}; clusters will be tortured without partitions");
    }
    let peers = peers::ensure();
    let mut totals = Totals::default();
    let mut steps: Vec<(&str, Duration, Result<()>)> = Vec::new();
    let mut step = |name: &'static str, work: &mut dyn FnMut() -> Result<()>| {
        println!("\n== {name}");
        let begun = Instant::now();
        let result = work();
        if let Err(error) = &result {
            println!("== {name} FAILED: {error}");
        }
        steps.push((name, begun.elapsed(), result));
    };
    step("verify", &mut verify::run);
    step("tests", &mut || tests(&peers, &mut totals));
    step("packages", &mut check_packages);
    step("examples", &mut run_examples);
    summary(&steps, &peers, &totals, begun.elapsed())
}

/// The whole workspace's tests, doc tests included. One selection of packages for all cargo commands of a run, so that
/// features are unified in one way and RocksDB is built once.
fn tests(peers: &Peers, totals: &mut Totals) -> Result<()> {
    let mut command = cargo::cargo(&["test", "--release", "--workspace", "--no-fail-fast"]);
    command.envs(peers.variables.iter().map(|(name, path)| (name, path)));
    let succeeded = run::watched(&mut command, |line| totals.note(line))?;
    if !succeeded {
        return Err(Error::Check(format!("cargo test failed ({} failed tests)", totals.failed)));
    }
    if totals.passed == 0 { Err(Error::Check("no test ran".to_owned())) } else { Ok(()) }
}

impl Totals {
    /// Reads one line of output: of a runner's closing line or of a panic, or of no interest.
    fn note(&mut self, line: &str) {
        if line.starts_with("thread '") && line.contains(" panicked at ") {
            self.panics.push(Vec::new());
            self.panicking = true;
        }
        if let Some(said) = self.panics.last_mut().filter(|_| self.panicking) {
            let ends = line.is_empty() || line.starts_with("stack backtrace:") || line.starts_with("note: run with");
            self.panicking = !ends && said.len() < SAID_LINES_MAX;
            if self.panicking {
                said.push(line.to_owned());
                return;
            }
        }
        let Some(counts) = line.strip_prefix("test result: ") else { return };
        let count = |what: &str| -> u64 {
            let mut words =
                counts.split([' ', ';', '.']).filter(|word| !word.is_empty()).collect::<Vec<_>>().into_iter();
            let mut last = "";
            for word in words.by_ref() {
                if word == what {
                    return last.parse().unwrap_or(0);
                }
                last = word;
            }
            0
        };
        self.passed += count("passed");
        self.failed += count("failed");
        self.ignored += count("ignored");
        self.lines.push(line.to_owned());
    }
}

/// Every storage crate can be packaged for somebody who wants it alone. All in one command, so that cargo resolves the
/// edges between them among themselves. What is in them was just built and tested, so they are not built again.
fn check_packages() -> Result<()> {
    let mut command = cargo::cargo(&["package", "--no-verify", "--allow-dirty"]);
    for name in STORAGE {
        command.args(["-p", name]);
    }
    run::visibly(&mut command)
}

/// Every example of every storage crate runs to its end by itself.
fn run_examples() -> Result<()> {
    run::visibly(&mut cargo::cargo(&["build", "--release", "--workspace", "--examples"]))?;
    let built = cargo::target_dir().join("release/examples");
    let mut failed = Vec::new();
    for package in cargo::packages()?.iter().filter(|package| STORAGE.contains(&package.name.as_str())) {
        for example in &package.examples {
            if let Err(error) = run_example(&built, package, example) {
                println!("  {} {example}: {error}", package.name);
                failed.push(example.clone());
            }
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(Error::Check(format!("examples failed: {}", failed.join(", ")))) }
}

fn run_example(built: &Path, package: &Package, example: &str) -> Result<()> {
    // Somewhere to litter that is not the source tree.
    let dir = std::env::temp_dir().join(format!("tally-example-{}-{example}", std::process::id()));
    std::fs::create_dir_all(&dir).map_err(Error::file("create", &dir))?;
    let begun = Instant::now();
    let result = run::bounded(Command::new(built.join(example)).current_dir(&dir), EXAMPLE_LIMIT);
    if result.is_ok() {
        println!("  {} {example}: ok ({:.1} s)", package.name, begun.elapsed().as_secs_f64());
    }
    std::fs::remove_dir_all(&dir).map_err(Error::file("remove", &dir))?;
    result
}

fn summary(steps: &[(&str, Duration, Result<()>)], peers: &Peers, totals: &Totals, took: Duration) -> Result<()> {
    println!("\n== closing lines of the test runners");
    for line in &totals.lines {
        println!("{line}");
    }
    if !totals.panics.is_empty() {
        println!("\n== what failed tests said");
        for line in totals.panics.iter().flatten() {
            println!("{line}");
        }
    }
    println!("\n== summary ({:.0} s{})", took.as_secs_f64(), if deny::in_ci() { ", CI" } else { "" });
    for (name, took, result) in steps {
        let outcome = result.as_ref().map_or_else(|error| format!("FAILED: {error}"), |()| "ok".to_owned());
        println!("{name:<10} {:>6.0} s  {outcome}", took.as_secs_f64());
    }
    for line in &peers.skipped {
        println!("skipped: {line}");
    }
    println!("{} passed, {} failed, {} skipped", totals.passed, totals.failed, totals.ignored);
    let failed: Vec<&str> = steps.iter().filter(|(_, _, result)| result.is_err()).map(|(name, _, _)| *name).collect();
    if failed.is_empty() { Ok(()) } else { Err(Error::Check(format!("failed: {}", failed.join(", ")))) }
}

#[cfg(test)]
mod tests {
    use super::Totals;

    #[test]
    fn panics_are_repeated_without_their_backtraces() {
        let mut totals = Totals::default();
        let said = "running 1 test\ntest one ... FAILED\n\n---- one stdout ----\nsome log\n\nthread 'one' (7) panicked at a/b.rs:1:2:\n\
                    assertion failed\n  left: 1\nstack backtrace:\n   0: std\n\nthread 'two' panicked at c.rs:3:4:\ngone\nnote: run with \
                    `RUST_BACKTRACE=1`\ntest result: FAILED. 0 passed; 1 failed; 0 ignored";
        said.lines().for_each(|line| totals.note(line));
        let one = ["thread 'one' (7) panicked at a/b.rs:1:2:", "assertion failed", "  left: 1"];
        let two = ["thread 'two' panicked at c.rs:3:4:", "gone"];
        assert_eq!(totals.panics, [one.map(str::to_owned).to_vec(), two.map(str::to_owned).to_vec()]);
        assert_eq!(totals.failed, 1);
    }

    #[test]
    fn closing_lines_add_up() {
        let mut totals = Totals::default();
        totals.note("running 3 tests");
        totals.note("test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s");
        totals.note("test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.2s");
        assert_eq!((totals.passed, totals.failed, totals.ignored, totals.lines.len()), (7, 2, 1, 2));
    }
}
