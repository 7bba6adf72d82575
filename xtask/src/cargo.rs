//! The workspace as cargo sees it: its root, its target directory, its packages, and cargo commands run inside it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::run;

/// Asks for the workspace's packages and directories.
const METADATA: [&str; 4] = ["metadata", "--no-deps", "--format-version", "1"];

/// The repository's root directory: that of the `cargo xtask` that runs this. What was compiled in may be another checkout's
/// if the two share a target directory.
pub(crate) fn root() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    here.parent().map_or_else(|| here.clone(), Path::to_path_buf)
}

/// Where cargo puts what it builds. It is asked, once, because several variables and configuration files have a say in
/// that.
pub(crate) fn target_dir() -> PathBuf {
    static TARGET_DIR: OnceLock<PathBuf> = OnceLock::new();
    TARGET_DIR.get_or_init(|| told_target_dir().unwrap_or_else(usual_target_dir)).clone()
}

/// What cargo says, if it says anything.
fn told_target_dir() -> Option<PathBuf> {
    // Not by `cargo` below, which needs to know the answer.
    let text = run::captured(Command::new(program()).args(METADATA).current_dir(root())).ok()?;
    parse_target_dir(&text)
}

fn parse_target_dir(text: &str) -> Option<PathBuf> {
    let value: Value = serde_json::from_str(text).ok()?;
    value["target_directory"].as_str().map(PathBuf::from)
}

/// Where it is if nobody has configured anything.
fn usual_target_dir() -> PathBuf {
    root().join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// The cargo that runs this, or the one on PATH.
fn program() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Where tools and test peers are kept between runs: `$XDG_CACHE_HOME/tally` or `$HOME/.cache/tally`.
pub(crate) fn cache_dir() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    cache.or(home).map_or_else(target_dir, |dir| dir.join("tally"))
}

/// A cargo command in the workspace's root.
///
/// `cargo run` gave this process variables of its own (the package's name, a library path). They are taken out again,
/// because some build scripts watch their environment: a build started here and one started by hand must be the same
/// build, or RocksDB would be compiled twice.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(args).current_dir(root());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") || text == "CARGO" {
            command.env_remove(&name);
        }
    }
    if let Some(paths) = std::env::var_os("LD_LIBRARY_PATH") {
        let target = target_dir();
        let foreign = |dir: &PathBuf| !dir.starts_with(&target) && !dir.to_string_lossy().contains("/.rustup/");
        let kept: Vec<PathBuf> =
            std::env::split_paths(&paths).filter(foreign).filter(|dir| dir.as_os_str() != "").collect();
        match std::env::join_paths(&kept) {
            Ok(joined) if !kept.is_empty() => command.env("LD_LIBRARY_PATH", joined),
            _ => command.env_remove("LD_LIBRARY_PATH"),
        };
    }
    command
}

/// Builds the server and gives the path of its binary.
pub(crate) fn build_server() -> Result<PathBuf> {
    run::visibly(&mut cargo(&["build", "--release", "-p", "tally-server"]))?;
    let binary = target_dir().join("release/tally");
    if binary.is_file() {
        return Ok(binary);
    }
    Err(Error::Missing(format!(
        "no binary at {} after the build; if cargo's configuration sets build.target, it is elsewhere: unset that",
        binary.display()
    )))
}

/// One dependency as a manifest names it.
#[derive(Debug)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    /// `normal`, `dev` or `build`.
    pub(crate) kind: String,
}

/// One package of the workspace.
#[derive(Debug)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) dir: PathBuf,
    pub(crate) dependencies: Vec<Dependency>,
    pub(crate) examples: Vec<String>,
    /// Names of the publishing fields that are empty.
    pub(crate) unpublished_fields: Vec<&'static str>,
}

/// The packages of the workspace.
pub(crate) fn packages() -> Result<Vec<Package>> {
    let text = run::captured(&mut cargo(&METADATA))?;
    parse_metadata(&text)
}

fn parse_metadata(text: &str) -> Result<Vec<Package>> {
    let odd = |what: &str| Error::Answer(format!("cargo metadata: {what}"));
    let value: Value = serde_json::from_str(text).map_err(|error| odd(&error.to_string()))?;
    let packages = value["packages"].as_array().ok_or_else(|| odd("no packages"))?;
    packages.iter().map(|package| parse_package(package).ok_or_else(|| odd("a package without a name"))).collect()
}

fn parse_package(package: &Value) -> Option<Package> {
    let texts = |value: &Value| value.as_str().map(str::to_owned);
    let empty = |field: &&str| match &package[*field] {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    };
    let dependencies = package["dependencies"].as_array()?.iter().filter_map(|dependency| {
        let kind = dependency["kind"].as_str().unwrap_or("normal").to_owned();
        Some(Dependency { name: texts(&dependency["name"])?, kind })
    });
    let targets = package["targets"].as_array()?.iter();
    let examples = targets
        .filter(|target| target["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "example")));
    Some(Package {
        name: texts(&package["name"])?,
        dir: Path::new(package["manifest_path"].as_str()?).parent()?.to_path_buf(),
        dependencies: dependencies.collect(),
        examples: examples.filter_map(|target| texts(&target["name"])).collect(),
        unpublished_fields: ["description", "license", "repository", "readme", "keywords", "categories"]
            .into_iter()
            .filter(empty)
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::{parse_metadata, parse_target_dir};
    use std::path::PathBuf;

    #[test]
    fn metadata_is_read() {
        let text = r#"{"packages":[{"name":"tally-wal","manifest_path":"/x/wal/Cargo.toml","description":"d",
            "license":"Apache-2.0","repository":"r","readme":null,"keywords":["k"],"categories":[],
            "dependencies":[{"name":"crc","kind":null},{"name":"proptest","kind":"dev"}],
            "targets":[{"name":"tally_wal","kind":["lib"]},{"name":"append","kind":["example"]}]}]}"#;
        let packages = parse_metadata(text).unwrap();
        assert_eq!(packages.len(), 1);
        assert_eq!(packages[0].examples, ["append"]);
        assert_eq!(packages[0].unpublished_fields, ["readme", "categories"]);
        let kinds: Vec<_> = packages[0].dependencies.iter().map(|found| (&*found.name, &*found.kind)).collect();
        assert_eq!(kinds, [("crc", "normal"), ("proptest", "dev")]);
        assert!(parse_metadata("{}").is_err());
    }

    #[test]
    fn the_target_directory_is_read() {
        let text = r#"{"packages":[],"target_directory":"/elsewhere/target","version":1}"#;
        assert_eq!(parse_target_dir(text), Some(PathBuf::from("/elsewhere/target")));
        assert_eq!(parse_target_dir("{}"), None);
        assert_eq!(parse_target_dir("error: no such command"), None);
    }
}
