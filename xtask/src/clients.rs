//! Programs of other languages that tests drive: workers over unmodified client libraries.
//!
//! The workers' own source is in `server/tests/clients`; what they need from the registries of Go, npm, PyPI and Maven is fetched
//! into the cache directory, pinned to versions, and made anew only when those change.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, Result};
use crate::{cargo, run};

/// How long one step may take. Each takes about a minute at most where the registries answer.
const STEP_SECONDS_MAX: &str = "300";

/// The Go worker, compiled: the path of the program.
pub(crate) fn go_worker() -> Result<PathBuf> {
    needed("go")?;
    let source = source("go");
    let home = home("go");
    fs::create_dir_all(&home).map_err(Error::file("create", &home))?;
    let worker = home.join("worker");
    let mut go = within("go");
    // Go knows by itself what has changed.
    go.current_dir(&source)
        .env("GOFLAGS", "-mod=readonly -buildvcs=false")
        .env("GOWORK", "off")
        .env("CGO_ENABLED", "0");
    go.env_remove("GOOS").env_remove("GOARCH");
    run::captured(go.args(["build", "-trimpath", "-o"]).arg(&worker).arg("."))?;
    Ok(worker)
}

/// What the Node worker imports: the path of a `node_modules`.
pub(crate) fn node_modules() -> Result<PathBuf> {
    ["node", "npm"].into_iter().try_for_each(needed)?;
    let source = source("node");
    let home = home("node");
    let modules = home.join("node_modules");
    let lock = read(&source.join("package-lock.json"))?;
    made_for(&home, &lock, || {
        for file in ["package.json", "package-lock.json"] {
            fs::copy(source.join(file), home.join(file)).map_err(Error::file("copy", &source.join(file)))?;
        }
        let mut npm = within("npm");
        npm.current_dir(&home).args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]);
        run::captured(&mut npm).map(drop)
    })?;
    Ok(modules)
}

/// A Python that has what the Python worker imports: the path of its interpreter.
pub(crate) fn python() -> Result<PathBuf> {
    needed("python3")?;
    let requirements = source("python").join("requirements.txt");
    let home = home("python");
    let python = home.join("venv/bin/python");
    made_for(&home, &read(&requirements)?, || {
        run::captured(within("python3").args(["-m", "venv", "--clear"]).arg(home.join("venv")))?;
        let mut pip = within(&python);
        run::captured(pip.args(["-m", "pip", "install", "-q", "--no-deps", "-r"]).arg(&requirements)).map(drop)
    })?;
    Ok(python)
}

/// The Java worker, compiled: the path of a directory with its `classes`, and its `lib` of what it needs.
pub(crate) fn java_worker() -> Result<PathBuf> {
    ["java", "javac", "mvn"].into_iter().try_for_each(needed)?;
    let (project, worker) = (source("java").join("pom.xml"), source("java").join("Worker.java"));
    let home = home("java");
    made_for(&home, &(read(&project)? + &read(&worker)?), || {
        let mut mvn = within("mvn");
        mvn.args(["-q", "-B", "-f"]).arg(&project).args(["dependency:copy-dependencies", "-DincludeScope=runtime"]);
        run::captured(mvn.arg(format!("-DoutputDirectory={}", home.join("lib").display())))?;
        let mut javac = within("javac");
        javac.arg("-cp").arg(home.join("lib/*")).arg("-d").arg(home.join("classes")).arg(&worker);
        run::captured(&mut javac).map(drop)
    })?;
    Ok(home)
}

/// A program that is ended, with all that it has started, when it is not done in time: a registry may be there and not answer.
fn within(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("timeout");
    command.args(["-k", "10", STEP_SECONDS_MAX]).arg(program);
    command
}

fn source(language: &str) -> PathBuf {
    cargo::root().join("server/tests/clients").join(language)
}

fn home(language: &str) -> PathBuf {
    cargo::cache_dir().join("clients").join(language)
}

fn needed(program: &str) -> Result<()> {
    match run::on_path(program) {
        Some(_) => Ok(()),
        None => Err(Error::Missing(format!("there is no `{program}` on the PATH"))),
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(Error::file("read", path))
}

/// Makes a directory's content unless it was made, whole, for the same pins.
fn made_for(home: &Path, pins: &str, make: impl FnOnce() -> Result<()>) -> Result<()> {
    let stamp = home.join("made-for");
    if fs::read_to_string(&stamp).is_ok_and(|made| made == pins) {
        return Ok(());
    }
    if home.exists() {
        fs::remove_dir_all(home).map_err(Error::file("remove", home))?;
    }
    fs::create_dir_all(home).map_err(Error::file("create", home))?;
    make()?;
    // Last: what an interrupted run left is made anew.
    fs::write(&stamp, pins).map_err(Error::file("write", &stamp))
}
