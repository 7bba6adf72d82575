//! cargo-deny: licences, bans, sources and known vulnerabilities of everything we depend on.

use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::{cargo, run};

/// The version that is installed where there is none; `--locked`, so its own dependencies are fixed as well.
const VERSION: &str = "0.20.2";

/// Runs cargo-deny. Where it can be neither found nor installed, CI fails, and a developer is told.
pub(crate) fn check() -> Result<()> {
    let tool = match find_or_install() {
        Ok(tool) => tool,
        Err(error) if in_ci() => return Err(error),
        Err(error) => {
            println!("deny: SKIPPED, the dependencies' licences and sources were not checked: {error}");
            return Ok(());
        }
    };
    let fetch = run::captured(deny(&tool).args(["fetch", "db"]));
    let mut check = deny(&tool);
    check.args(["check", "--hide-inclusion-graph"]);
    match fetch {
        Ok(_) => println!("deny: the advisory database was fetched; checking advisories too"),
        Err(error) => {
            println!("deny: advisories NOT checked, their database cannot be fetched here: {error}");
            check.args(["licenses", "bans", "sources"]);
        }
    }
    run::visibly(&mut check)
}

/// Whether this runs in CI, where nothing may be left out.
pub(crate) fn in_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false")
}

fn deny(tool: &PathBuf) -> std::process::Command {
    let mut command = std::process::Command::new(tool);
    command.current_dir(cargo::root()).args(["--workspace", "--log-level", "warn"]);
    command
}

fn find_or_install() -> Result<PathBuf> {
    if let Some(found) = run::on_path("cargo-deny") {
        return Ok(found);
    }
    let tools = cargo::cache_dir().join("tools");
    let tool = tools.join("bin/cargo-deny");
    if tool.is_file() {
        return Ok(tool);
    }
    println!("deny: installing cargo-deny {VERSION} under {} (a few minutes, once)", tools.display());
    let scratch = tools.join("target");
    let mut install = cargo::cargo(&["install", "cargo-deny", "--locked", "--version", VERSION, "--root"]);
    // A target directory of its own: its dependencies must not disturb the workspace's builds.
    install.arg(&tools).env("CARGO_TARGET_DIR", &scratch).current_dir(std::env::temp_dir());
    // Its own release profile optimises the link for minutes; nobody waits for this tool's last percent.
    install.env("CARGO_PROFILE_RELEASE_LTO", "false").env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
    install.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1");
    run::visibly(&mut install)?;
    // Only the binary is wanted; that the scratch space cannot be removed is no reason to fail.
    let _ = std::fs::remove_dir_all(&scratch);
    if tool.is_file() { Ok(tool) } else { Err(Error::Missing(format!("no cargo-deny at {}", tool.display()))) }
}
