//! `cargo xtask verify`: everything that can be said about the sources without running them; and `fix`.

use std::time::Instant;

use crate::error::{Error, Result};
use crate::{cargo, deny, edges, links, prereq, run, sources};

/// A check with its name.
type Check = (&'static str, fn() -> Result<()>);

/// Runs every check, also after one has failed, and names those that failed at the end.
pub(crate) fn run() -> Result<()> {
    prereq::ensure_build()?;
    let checks: [Check; 7] = [
        ("crate edges", check_edges),
        ("sources", check_sources),
        ("links", check_links),
        ("format", check_format),
        ("clippy", check_clippy),
        ("docs", check_docs),
        ("deny", deny::check),
    ];
    let mut failed = Vec::new();
    for (name, check) in checks {
        let begun = Instant::now();
        match check() {
            Ok(()) => println!("verify: {name}: ok ({:.1} s)", begun.elapsed().as_secs_f64()),
            Err(error) => {
                println!("verify: {name}: FAILED: {error}");
                failed.push(name);
            }
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(Error::Check(format!("verify failed: {}", failed.join(", ")))) }
}

/// Formats everything and lets clippy repair what it can.
pub(crate) fn fix() -> Result<()> {
    prereq::ensure_build()?;
    let clippy = ["clippy", "--fix", "--allow-dirty", "--allow-staged", "--release", "--workspace", "--all-targets"];
    run::visibly(&mut cargo::cargo(&clippy))?;
    run::visibly(&mut cargo::cargo(&["fmt", "--all"]))
}

fn check_edges() -> Result<()> {
    let packages = cargo::packages()?;
    let mut found = edges::problems(&packages);
    found.extend(sources::package_problems(&packages));
    report(&found)
}

fn check_sources() -> Result<()> {
    report(&sources::problems(&sources::read_all()?))
}

fn check_links() -> Result<()> {
    report(&links::problems(&cargo::root(), &sources::read_all()?))
}

fn check_format() -> Result<()> {
    run::visibly(&mut cargo::cargo(&["fmt", "--all", "--check"]))
}

fn check_clippy() -> Result<()> {
    let clippy = ["clippy", "--release", "--workspace", "--all-targets", "--", "-D", "warnings"];
    run::visibly(&mut cargo::cargo(&clippy))
}

fn check_docs() -> Result<()> {
    let mut doc = cargo::cargo(&["doc", "--release", "--workspace", "--no-deps"]);
    run::visibly(doc.env("RUSTDOCFLAGS", "-D warnings"))
}

fn report(problems: &[String]) -> Result<()> {
    for problem in problems {
        println!("  {problem}");
    }
    match problems.len() {
        0 => Ok(()),
        1 => Err(Error::Check("1 problem".to_owned())),
        count => Err(Error::Check(format!("{count} problems"))),
    }
}
