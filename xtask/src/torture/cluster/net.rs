//! The links between the nodes: a star of network namespaces around a router (the namespace of this process), which
//! drops what a rule tells it to drop, direction by direction.
//!
//! ```text
//!   n0 e0 ── v0 ┐             "iif v0 to <address of n1> blackhole": what n0 sends to n1 vanishes without a word,
//!   n1 e0 ── v1 ┼ router      and nothing else does
//!   n2 e0 ── v2 ┘             clients and the harness are in the router's namespace and reach every node
//! ```

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};

use super::sandbox::Sandbox;
use crate::error::{Error, Result};
use crate::{ports, run};

/// What a slow link does, in one direction, where the kernel can delay packets.
const DELAY: [&str; 4] = ["netem", "delay", "60ms", "30ms"];
/// What it does elsewhere: less than the nodes have to say to each other.
const RATE: [&str; 7] = ["tbf", "rate", "400kbit", "burst", "4kb", "latency", "300ms"];

/// What the kernel keeps of a connection for a client that does not read it: least, usual, most, in bytes.
const WINDOW: &str = "4096 16384 65536";

/// The nodes' network.
#[derive(Debug)]
pub(crate) struct Network {
    /// Client and peer address of every slot.
    addresses: Vec<(SocketAddr, SocketAddr)>,
    namespaces: bool,
    /// Whether links can be delayed; otherwise their rate is cut.
    delays: bool,
    cut: Vec<(usize, usize)>,
    slowed: Vec<usize>,
}

impl Network {
    /// A network for so many slots, all links up.
    pub(crate) fn new(sandbox: Sandbox, slots: usize) -> Result<Network> {
        let namespaces = sandbox == Sandbox::Inside;
        let addresses = if namespaces { in_namespaces(slots) } else { ports::free_pairs(slots)? };
        let mut network = Network { addresses, namespaces, delays: false, cut: Vec::new(), slowed: Vec::new() };
        if namespaces {
            network.build()?;
        }
        Ok(network)
    }

    fn build(&mut self) -> Result<()> {
        let mut lines = vec!["link set lo up".to_owned()];
        for slot in 0..self.addresses.len() {
            let net = slot + 1;
            run::captured(Command::new("ip").args(["netns", "add", &name(slot)]))?;
            lines.push(format!("link add v{slot} type veth peer name e0 netns {}", name(slot)));
            lines.push(format!("addr add 10.99.{net}.1/24 dev v{slot}"));
            lines.push(format!("link set v{slot} up"));
        }
        ip(&[], &lines)?;
        for slot in 0..self.addresses.len() {
            let net = slot + 1;
            let lines = [
                format!("addr add 10.99.{net}.2/24 dev e0"),
                "link set e0 up".to_owned(),
                "link set lo up".to_owned(),
                format!("route add default via 10.99.{net}.1"),
            ];
            ip(&["-n", &name(slot)], &lines)?;
        }
        let forward = std::path::Path::new("/proc/sys/net/ipv4/ip_forward");
        std::fs::write(forward, "1").map_err(Error::file("write", forward))?;
        // Clients are here: whoever does not read is felt by the server soon.
        let window = std::path::Path::new("/proc/sys/net/ipv4/tcp_rmem");
        std::fs::write(window, WINDOW).map_err(Error::file("write", window))?;
        self.delays = tc("v0", None, &DELAY).is_ok();
        if self.delays {
            untc("v0", None)?;
        }
        Ok(())
    }

    /// Whether links can be cut.
    pub(crate) fn can_cut(&self) -> bool {
        self.namespaces
    }

    /// How links are slowed down.
    pub(crate) fn slowness(&self) -> String {
        if self.delays { DELAY.join(" ") } else { format!("{} (no netem in this kernel)", RATE.join(" ")) }
    }

    /// Where a node serves clients.
    pub(crate) fn client(&self, slot: usize) -> SocketAddr {
        self.addresses[slot].0
    }

    /// Where a node serves its peers.
    pub(crate) fn peer(&self, slot: usize) -> SocketAddr {
        self.addresses[slot].1
    }

    /// A command that runs in a node's place and ends with the thread that starts it.
    pub(crate) fn command(&self, slot: usize, program: &std::path::Path) -> Command {
        let mut command = if self.namespaces {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net=/run/netns/{}", name(slot))).arg("setpriv");
            command
        } else {
            Command::new("setpriv")
        };
        command.args(["--pdeathsig", "KILL"]).arg(program);
        command
    }

    /// Drops everything from the first to the second of each pair.
    pub(crate) fn cut(&mut self, pairs: &[(usize, usize)]) -> Result<()> {
        let new: Vec<(usize, usize)> = pairs.iter().filter(|pair| !self.cut.contains(pair)).copied().collect();
        let lines = new.iter().map(|(from, to)| {
            let address = self.peer(*to).ip();
            format!("rule add pref {} iif v{from} to {address} blackhole", preference(*from, *to))
        });
        ip(&[], &lines.collect::<Vec<_>>())?;
        self.cut.extend(new);
        Ok(())
    }

    /// Lets everything through again.
    pub(crate) fn mend(&mut self) -> Result<()> {
        let lines = self.cut.drain(..).map(|(from, to)| format!("rule del pref {}", preference(from, to)));
        ip(&[], &lines.collect::<Vec<_>>())
    }

    /// Makes a node's link slow in both directions.
    pub(crate) fn slow(&mut self, slot: usize) -> Result<()> {
        if self.slowed.contains(&slot) {
            return Ok(());
        }
        let how: &[&str] = if self.delays { &DELAY } else { &RATE };
        tc(&format!("v{slot}"), None, how)?;
        tc("e0", Some(slot), how)?;
        self.slowed.push(slot);
        Ok(())
    }

    /// Makes all links fast again.
    pub(crate) fn hasten(&mut self) -> Result<()> {
        for slot in self.slowed.drain(..) {
            untc(&format!("v{slot}"), None)?;
            untc("e0", Some(slot))?;
        }
        Ok(())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if !self.namespaces {
            return;
        }
        // Whatever is left ends with this process anyway; but another run in it needs the names.
        let _ = self.mend();
        for slot in 0..self.addresses.len() {
            let _ = run::captured(Command::new("ip").args(["link", "del", &format!("v{slot}")]));
            let _ = run::captured(Command::new("ip").args(["netns", "del", &name(slot)]));
        }
    }
}

fn name(slot: usize) -> String {
    format!("n{slot}")
}

/// Each directed pair has a rule number of its own, before the main table's.
fn preference(from: usize, to: usize) -> usize {
    1000 + from * 32 + to
}

fn in_namespaces(slots: usize) -> Vec<(SocketAddr, SocketAddr)> {
    let address = |slot: usize, port: u16| SocketAddr::from((Ipv4Addr::new(10, 99, slot as u8 + 1, 2), port));
    (0..slots).map(|slot| (address(slot, 2379), address(slot, 2380))).collect()
}

/// Many `ip` commands in one process.
fn ip(options: &[&str], lines: &[String]) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let mut command = Command::new("ip");
    command.args(options).args(["-batch", "-"]);
    let failed = |source| Error::Start { program: "ip".to_owned(), source };
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        let text = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
        stdin.write_all(text.as_bytes()).map_err(failed)?;
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Status { command: format!("ip: {}", lines.join("; ")), status: said })
}

fn tc(device: &str, slot: Option<usize>, how: &[&str]) -> Result<()> {
    let mut command = Command::new("tc");
    if let Some(slot) = slot {
        command.args(["-n", &name(slot)]);
    }
    command.args(["qdisc", "add", "dev", device, "root"]).args(how);
    run::captured(&mut command).map(|_| ())
}

fn untc(device: &str, slot: Option<usize>) -> Result<()> {
    let mut command = Command::new("tc");
    if let Some(slot) = slot {
        command.args(["-n", &name(slot)]);
    }
    command.args(["qdisc", "del", "dev", device, "root"]);
    run::captured(&mut command).map(|_| ())
}
