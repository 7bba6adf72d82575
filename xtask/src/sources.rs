//! House rules that can be read off the files: heads, lengths, and nothing that is true on one machine only.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cargo::Package;
use crate::error::{Error, Result};
use crate::{cargo, run};

/// The longest a source file may be, in lines.
const FILE_LINES_MAX: usize = 600;
/// The longest a library's front page may be, in lines.
const LIB_LINES_MAX: usize = 79;
/// The crates whose clippy bans (clock, randomness, file system, …) must be in force.
const BANNED: &[&str] = &["tally-wal", "tally-mvcc", "tally-lease", "tally-auth", "tally-apply"];

/// A text file of the repository.
#[derive(Debug)]
pub(crate) struct Source {
    /// Relative to the repository's root.
    pub(crate) path: PathBuf,
    pub(crate) text: String,
}

/// Every text file that is, or would be, under version control.
pub(crate) fn read_all() -> Result<Vec<Source>> {
    let root = cargo::root();
    let mut git = Command::new("git");
    git.current_dir(&root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let names = run::captured(&mut git)?;
    let mut sources = Vec::new();
    for name in names.split('\0').filter(|name| !name.is_empty()) {
        let file = root.join(name);
        // A file that was deleted but not yet committed is still listed.
        if !file.is_file() {
            continue;
        }
        let bytes = fs::read(&file).map_err(Error::file("read", &file))?;
        if let Ok(text) = String::from_utf8(bytes) {
            sources.push(Source { path: name.into(), text });
        }
    }
    Ok(sources)
}

/// What is wrong with these files.
pub(crate) fn problems(sources: &[Source]) -> Vec<String> {
    sources.iter().flat_map(|source| rust_problems(source).into_iter().chain(machine_paths(source))).collect()
}

/// What each package's directory lacks.
pub(crate) fn package_problems(packages: &[Package]) -> Vec<String> {
    let mut found = Vec::new();
    for package in packages {
        let manifest = fs::read_to_string(package.dir.join("Cargo.toml")).unwrap_or_default();
        let inherits = manifest.split("[lints]").nth(1).is_some_and(|rest| rest.trim_start().starts_with("workspace"));
        if !inherits {
            found.push(format!("{}: Cargo.toml does not take the workspace's lints", package.name));
        }
        if !package.dir.join("README.md").is_file() {
            found.push(format!("{}: no README.md", package.name));
        }
        if BANNED.contains(&package.name.as_str()) && !package.dir.join("clippy.toml").is_file() {
            found.push(format!("{}: no clippy.toml with this crate's bans", package.name));
        }
    }
    found
}

fn rust_problems(source: &Source) -> Vec<String> {
    let shown = source.path.display();
    let mut found = Vec::new();
    if source.path.extension().is_none_or(|extension| extension != "rs") {
        return found;
    }
    if !source.text.starts_with("//!") {
        found.push(format!("{shown}:1: a source file begins with a `//!` head"));
    }
    let lines = source.text.lines().count();
    if lines > FILE_LINES_MAX {
        found.push(format!("{shown}: {lines} lines; at most {FILE_LINES_MAX}"));
    }
    let is_front = source.path.ends_with("src/lib.rs");
    if is_front && lines > LIB_LINES_MAX {
        found.push(format!("{shown}: {lines} lines; a front page has at most {LIB_LINES_MAX}"));
    }
    found
}

/// Places that name a directory of somebody's machine.
fn machine_paths(source: &Source) -> Vec<String> {
    // Put together here, or this file would find itself.
    let patterns = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/")];
    let mut found = Vec::new();
    for (number, line) in source.text.lines().enumerate() {
        for pattern in patterns {
            let at_start = |at: usize| {
                let before = line[..at].chars().next_back();
                before.is_none_or(|sign| !sign.is_alphanumeric() && !matches!(sign, '.' | '-' | '_' | '}' | '>'))
            };
            if line.match_indices(pattern).any(|(at, _)| at_start(at)) {
                let place = Path::new(&source.path).display();
                found.push(format!("{place}:{}: names a path of one machine ({pattern})", number + 1));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{Source, problems};

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.into(), text: text.to_owned() }
    }

    #[test]
    fn sound_files_pass() {
        let sound = [source("a/src/lib.rs", "//! Head.\n"), source("b.md", "see https://example.org/network/root\n")];
        assert_eq!(problems(&sound), Vec::<String>::new());
    }

    #[test]
    fn heads_lengths_and_machine_paths_are_found() {
        let long = format!("//! Head.\n{}", "x\n".repeat(600));
        let front = format!("//! Head.\n{}", "x\n".repeat(79));
        let path = concat!("see /ho", "me/me/x\n");
        let found = problems(&[
            source("a.rs", "use x;\n"),
            source("b.rs", &long),
            source("c/src/lib.rs", &front),
            source("d.md", path),
        ]);
        assert_eq!(found.len(), 4, "{found:?}");
    }
}
