//! What a build needs beyond rustup, and Debian packages in general: looked for, then installed where that is allowed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Error, Result};
use crate::run;

/// Where apt keeps its package lists.
pub(crate) const APT_LISTS: &str = "/var/lib/apt/lists";

/// Makes sure that RocksDB can be built: a C++ compiler, and libclang for its bindings.
pub(crate) fn ensure_build() -> Result<()> {
    let missing = missing_packages();
    if missing.is_empty() {
        return Ok(());
    }
    println!("missing for the build: {}", missing.join(", "));
    install(&missing)?;
    let still = missing_packages();
    if still.is_empty() {
        return Ok(());
    }
    Err(Error::Missing(format!("still missing after the installation: {}", still.join(", "))))
}

fn missing_packages() -> Vec<&'static str> {
    let mut missing = Vec::new();
    if ["cc", "c++", "ar"].iter().any(|tool| run::on_path(tool).is_none()) {
        missing.push("build-essential");
    }
    if !libclang_found() {
        missing.extend(["clang", "libclang-dev"]);
    }
    missing
}

/// Whether there is a libclang that can read headers. Who says where it is, or what else it is to read, is believed.
fn libclang_found() -> bool {
    if std::env::var_os("LIBCLANG_PATH").is_some_and(|dir| has_libclang(&[PathBuf::from(dir)])) {
        return true;
    }
    let mut dirs: Vec<PathBuf> = Vec::new();
    for parent in ["/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib"] {
        dirs.push(parent.into());
        // One level down: multi-arch directories, and /usr/lib/llvm-*/lib.
        for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
            dirs.extend([entry.path(), entry.path().join("lib")]);
        }
    }
    has_libclang(&dirs) && (has_clang_headers(&dirs) || std::env::var_os("BINDGEN_EXTRA_CLANG_ARGS").is_some())
}

fn has_libclang(dirs: &[PathBuf]) -> bool {
    let is_libclang = |name: &str| {
        (name.starts_with("libclang.so") || name.starts_with("libclang-"))
            && name.contains(".so")
            && !name.contains("cpp")
    };
    dirs.iter()
        .flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten())
        .any(|entry| entry.file_name().to_str().is_some_and(is_libclang))
}

/// Whether clang's own headers are there. Debian's libclang1, which other packages bring along, comes without them: it can
/// be loaded, and then does not find `stddef.h`.
fn has_clang_headers(dirs: &[PathBuf]) -> bool {
    dirs.iter()
        .flat_map(|dir| fs::read_dir(dir.join("clang")).into_iter().flatten().flatten())
        .any(|version| version.path().join("include/stddef.h").is_file())
}

/// Installs Debian packages with apt-get if this user may, else says what to type.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let line = format!("apt-get update && apt-get install -y --no-install-recommends {}", packages.join(" "));
    let refused = |why: &str| Error::Missing(format!("{why}; as root, run: {line}"));
    if run::on_path("apt-get").is_none() {
        return Err(Error::Missing(format!(
            "there is no apt-get here; install what Debian calls {} with this system's package manager",
            packages.join(" ")
        )));
    }
    let Some(mut update) = apt_get() else { return Err(refused("not root, and sudo would ask for a password")) };
    run::visibly(update.args(["-q", "update"])).map_err(|error| refused(&error.to_string()))?;
    let mut install = apt_get().unwrap_or_else(|| Command::new("apt-get"));
    install.args(["-q", "install", "-y", "--no-install-recommends"]).args(packages);
    run::visibly(&mut install).map_err(|error| refused(&error.to_string()))
}

/// Makes sure that apt's package lists are there: the torture test loads them, and downloads are looked up in them.
pub(crate) fn ensure_apt_lists() -> Result<()> {
    if has_package_lists(Path::new(APT_LISTS)) {
        return Ok(());
    }
    match apt_get() {
        Some(mut command) => run::visibly(command.args(["-q", "update"])),
        None => Err(Error::Missing(format!("no package lists under {APT_LISTS}; as root, run: apt-get update"))),
    }
}

/// Makes sure that the torture of clusters can cut and slow links between nodes: in network namespaces, with `ip`.
pub(crate) fn ensure_network_tools() -> Result<()> {
    let needed = [("ip", "iproute2"), ("unshare", "util-linux")];
    let missing: Vec<&str> =
        needed.iter().filter(|(tool, _)| run::on_path(tool).is_none()).map(|(_, package)| *package).collect();
    if missing.is_empty() { Ok(()) } else { install(&missing) }
}

/// Whether a directory holds package indexes.
fn has_package_lists(dir: &Path) -> bool {
    fs::read_dir(dir).into_iter().flatten().flatten().any(|entry| is_package_list(&entry.file_name().to_string_lossy()))
}

/// Whether a file of that name is a package index, compressed or not.
pub(crate) fn is_package_list(name: &str) -> bool {
    name.split_once("_Packages").is_some_and(|(_, rest)| matches!(rest, "" | ".lz4" | ".gz" | ".xz" | ".zst" | ".bz2"))
}

/// apt-get as somebody who may use it: root, or through a sudo that asks nothing.
fn apt_get() -> Option<Command> {
    run::on_path("apt-get")?;
    let mut command = if is_root() {
        Command::new("apt-get")
    } else {
        let quiet = Command::new("sudo").args(["-n", "true"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !quiet.is_ok_and(|status| status.success()) {
            return None;
        }
        let mut sudo = Command::new("sudo");
        sudo.args(["-n", "env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]);
        sudo
    };
    command.env("DEBIAN_FRONTEND", "noninteractive");
    Some(command)
}

fn is_root() -> bool {
    run::captured(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::{has_clang_headers, has_libclang, is_package_list};
    use std::fs;

    #[test]
    fn a_libclang_without_headers_is_known() {
        let dir = std::env::temp_dir().join(format!("tally-xtask-libclang-{}", std::process::id()));
        let headers = dir.join("clang/14/include");
        fs::create_dir_all(&headers).unwrap();
        let dirs = [dir.clone()];
        fs::write(dir.join("libclang-cpp.so.14"), "").unwrap();
        assert!(!has_libclang(&dirs));
        fs::write(dir.join("libclang-14.so.1"), "").unwrap();
        assert!(has_libclang(&dirs) && !has_clang_headers(&dirs));
        fs::write(headers.join("stddef.h"), "").unwrap();
        assert!(has_clang_headers(&dirs));
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn package_lists_are_known_by_name() {
        assert!(is_package_list("deb.debian.org_debian_dists_bookworm_main_binary-amd64_Packages.lz4"));
        assert!(is_package_list("deb.debian.org_debian_dists_bookworm_main_binary-amd64_Packages"));
        assert!(!is_package_list("deb.debian.org_debian_dists_bookworm_InRelease"));
        assert!(!is_package_list("x_Packages.diff_Index"));
    }
}
