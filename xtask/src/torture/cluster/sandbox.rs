//! A network of its own for one run: this program starts itself again in fresh network and mount namespaces, so nothing
//! of a run can touch the machine's network, and all of it is gone when the last process ends, however it ends.

use std::path::Path;
use std::process::Command;

use crate::error::{Error, Result};
use crate::run;

/// The option that says which network a run uses, and what it says inside of the namespaces.
pub(crate) const OPTION: &str = "network";
const INSIDE: &str = "inside";

/// Named namespaces are kept in a place that only this mount namespace sees.
const PREPARE: &str = "mount --make-rprivate / && \
    if [ -d /run/netns ]; then mount -t tmpfs tmpfs /run/netns; \
    else mount -t tmpfs tmpfs /run && mkdir /run/netns; fi && exec \"$@\"";

/// What a run can do to the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sandbox {
    /// Already inside of the namespaces.
    Inside,
    /// Namespaces can be made; this process is still outside.
    Possible {
        /// Whether a user namespace has to be made first, because this is not root.
        user: bool,
    },
    /// All nodes share the loopback, which cannot be cut.
    Loopback,
}

/// What the command line and this machine allow; says why if namespaces are wanted and impossible.
pub(crate) fn choose(wanted: Option<&str>) -> Result<Sandbox> {
    match wanted {
        Some(INSIDE) => return Ok(Sandbox::Inside),
        Some("loopback") => return Ok(Sandbox::Loopback),
        Some("namespaces") | None => {}
        Some(other) => return Err(Error::Usage(format!("--{OPTION} takes namespaces or loopback, not `{other}`"))),
    }
    let mut reasons = Vec::new();
    for user in [false, true] {
        match probe(user) {
            Ok(()) => return Ok(Sandbox::Possible { user }),
            Err(error) => reasons.push(error.to_string()),
        }
    }
    let reason = reasons.join("; ");
    if wanted.is_some() {
        return Err(Error::Missing(format!("network namespaces cannot be made here: {reason}")));
    }
    println!("torture: network namespaces cannot be made here, so no link is cut or slowed: {reason}");
    Ok(Sandbox::Loopback)
}

/// Makes namespaces, a link and a rule, all of which end with the shell that made them.
fn probe(user: bool) -> Result<()> {
    for tool in ["ip", "tc", "unshare", "nsenter", "setpriv"] {
        if run::on_path(tool).is_none() && !Path::new("/usr/sbin").join(tool).is_file() {
            return Err(Error::Missing(format!("there is no `{tool}` (Debian: iproute2, util-linux)")));
        }
    }
    let script = "ip netns add probe && ip link add v0 type veth peer name e0 netns probe && \
        ip rule add pref 9 iif v0 to 10.99.1.2 blackhole && echo 1 > /proc/sys/net/ipv4/ip_forward";
    run::captured(&mut enter(user, &["sh", "-c", script])).map(|_| ())
}

/// Runs this program again with the same words, inside of the namespaces and with a server that is built already.
pub(crate) fn again(user: bool, server: &Path) -> Result<()> {
    let program = std::env::current_exe().map_err(Error::file("find", Path::new("/proc/self/exe")))?;
    let mut line: Vec<String> = std::env::args().collect();
    line[0] = program.display().to_string();
    // The last one given counts, and what follows `--` is the server's.
    let end = line.iter().position(|word| word == "--").unwrap_or(line.len());
    line.splice(end..end, [format!("--server={}", server.display()), format!("--{OPTION}={INSIDE}")]);
    let words: Vec<&str> = line.iter().map(String::as_str).collect();
    let mut command = enter(user, &words);
    let status = command.status().map_err(|source| Error::Start { program: "setpriv".to_owned(), source })?;
    if status.success() { Ok(()) } else { Err(Error::Check("the run in its own network namespaces failed".to_owned())) }
}

/// A command in namespaces of its own, which ends when this process does.
fn enter(user: bool, line: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "unshare"]);
    if user {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--net", "--mount", "--", "sh", "-c", PREPARE, "sh"]).args(line);
    command
}
