//! The servers: one slot per node, each with its place in the network, its directory and, most of the time, a process.
//!
//! **Invariant**: a process that ends without having been told to is a failure of the run, whenever it is noticed.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::disk::Disks;
use super::net::Network;
use crate::error::{Error, Result};
use crate::node::Kind;
use crate::run;

/// How long a server may take to end by itself.
const END: Duration = Duration::from_secs(40);

/// How a server comes into its cluster.
#[derive(Debug, Clone)]
pub(crate) enum Entry {
    /// As a founder.
    New,
    /// Into a running cluster: its members' names and peer URLs.
    Existing(String),
}

/// One slot.
#[derive(Debug)]
struct Server {
    dir: PathBuf,
    entry: Entry,
    child: Option<Child>,
    paused: bool,
    /// Whether it should be running once everything is healed.
    member: bool,
    /// Whether it is being removed, and so will end by itself.
    leaving: bool,
}

/// All slots.
#[derive(Debug)]
pub(crate) struct Fleet {
    pub(crate) kind: Kind,
    binary: PathBuf,
    flags: Vec<String>,
    founders: usize,
    pub(crate) network: Network,
    pub(crate) disks: Option<Disks>,
    servers: Vec<Server>,
}

impl Fleet {
    /// `founders` servers that make up the cluster, and places for more.
    pub(crate) fn new(
        kind: Kind,
        binary: &Path,
        flags: &[String],
        dir: &Path,
        founders: usize,
        slots: usize,
        network: Network,
    ) -> Result<Fleet> {
        fs::create_dir_all(dir).map_err(Error::file("create", dir))?;
        let servers = (0..slots).map(|slot| Server {
            dir: dir.join(format!("n{slot}")),
            entry: Entry::New,
            child: None,
            paused: false,
            member: slot < founders,
            leaving: false,
        });
        let servers: Vec<Server> = servers.collect();
        for server in &servers {
            fs::create_dir_all(&server.dir).map_err(Error::file("create", &server.dir))?;
        }
        let disks = Disks::new(dir, slots);
        let (binary, flags) = (binary.to_path_buf(), flags.to_vec());
        Ok(Fleet { kind, binary, flags, founders, network, disks, servers })
    }

    /// All slots.
    pub(crate) fn slots(&self) -> usize {
        self.servers.len()
    }

    /// The slots that are members.
    pub(crate) fn members(&self) -> Vec<usize> {
        (0..self.servers.len()).filter(|slot| self.servers[*slot].member).collect()
    }

    /// A slot that is no member.
    pub(crate) fn spare(&self) -> Option<usize> {
        (0..self.servers.len()).find(|slot| !self.servers[*slot].member)
    }

    /// Where a slot's node serves clients.
    pub(crate) fn client(&self, slot: usize) -> SocketAddr {
        self.network.client(slot)
    }

    /// A slot's name in the cluster.
    pub(crate) fn name(slot: usize) -> String {
        format!("n{slot}")
    }

    /// A slot's peer URL.
    pub(crate) fn peer_url(&self, slot: usize) -> String {
        format!("http://{}", self.network.peer(slot))
    }

    /// Where a slot keeps its data.
    pub(crate) fn data_dir(&self, slot: usize) -> PathBuf {
        self.servers[slot].dir.join("data")
    }

    /// The server's program, for its other commands.
    pub(crate) fn offline(&self) -> Command {
        Command::new(&self.binary)
    }

    /// Starts a slot's process unless it runs.
    pub(crate) fn start(&mut self, slot: usize) -> Result<()> {
        if self.servers[slot].child.is_some() {
            return Ok(());
        }
        let server = &self.servers[slot];
        let log = server.dir.join("server.log");
        let output = fs::OpenOptions::new().create(true).append(true).open(&log).map_err(Error::file("open", &log))?;
        let errors = output.try_clone().map_err(Error::file("open", &log))?;
        let (client, peer) = (format!("http://{}", self.network.client(slot)), self.peer_url(slot));
        let mut command = self.network.command(slot, &self.binary);
        command.arg(format!("--name={}", Self::name(slot)));
        command.arg(format!("--data-dir={}", self.data_dir(slot).display()));
        command.arg(format!("--listen-client-urls={client}")).arg(format!("--advertise-client-urls={client}"));
        command.arg(format!("--listen-peer-urls={peer}")).arg(format!("--initial-advertise-peer-urls={peer}"));
        let (state, cluster) = match &server.entry {
            Entry::New => ("new", self.founding_cluster()),
            Entry::Existing(cluster) => ("existing", cluster.clone()),
        };
        command.arg(format!("--initial-cluster={cluster}")).arg(format!("--initial-cluster-state={state}"));
        command.args(&self.flags).stdin(Stdio::null()).stdout(output).stderr(errors);
        let program = self.binary.display().to_string();
        let child = command.spawn().map_err(|source| Error::Start { program, source })?;
        if let Some(disks) = &self.disks {
            disks.adopt(slot, child.id())?;
        }
        let server = &mut self.servers[slot];
        (server.child, server.paused) = (Some(child), false);
        Ok(())
    }

    fn founding_cluster(&self) -> String {
        let founders: Vec<String> =
            (0..self.founders).map(|slot| format!("{}={}", Self::name(slot), self.peer_url(slot))).collect();
        founders.join(",")
    }

    /// SIGKILL, if it runs.
    pub(crate) fn kill(&mut self, slot: usize) -> Result<()> {
        self.alive(slot)?;
        if let Some(mut child) = self.servers[slot].child.take() {
            child.kill().map_err(Error::network("kill a server"))?;
            child.wait().map_err(Error::network("wait for a server"))?;
        }
        Ok(())
    }

    /// SIGSTOP, if it runs.
    pub(crate) fn pause(&mut self, slot: usize) -> Result<()> {
        self.alive(slot)?;
        if self.servers[slot].child.is_some() && !self.servers[slot].paused {
            self.signal(slot, "STOP")?;
            self.servers[slot].paused = true;
        }
        Ok(())
    }

    /// SIGCONT, if it is paused.
    pub(crate) fn resume(&mut self, slot: usize) -> Result<()> {
        if self.servers[slot].child.is_some() && self.servers[slot].paused {
            self.signal(slot, "CONT")?;
        }
        self.servers[slot].paused = false;
        Ok(())
    }

    /// SIGTERM, and the end that follows from it.
    pub(crate) fn terminate(&mut self, slot: usize) -> Result<()> {
        self.resume(slot)?;
        self.alive(slot)?;
        self.signal(slot, "TERM")?;
        let status = self.wait_end(slot)?;
        // etcd re-raises the signal once it has shut down.
        match status {
            Some(status) if status.success() || self.kind == Kind::Etcd => Ok(()),
            Some(status) => Err(self.wrong(slot, &format!("SIGTERM ended with {status}"))),
            None => Err(self.wrong(slot, &format!("no end {END:?} after SIGTERM"))),
        }
    }

    /// Expects a slot's process to end by itself from now on, because its member is being removed.
    pub(crate) fn expect_end(&mut self, slot: usize) {
        self.servers[slot].leaving = true;
    }

    /// Waits for a removed member to end by itself.
    pub(crate) fn end_removed(&mut self, slot: usize) -> Result<()> {
        let status = self.wait_end(slot)?;
        let server = &mut self.servers[slot];
        (server.member, server.leaving) = (false, false);
        match (status, self.kind) {
            (Some(status), _) if status.success() => Ok(()),
            (Some(status), Kind::Tally) => Err(self.wrong(slot, &format!("a removed member ended with {status}"))),
            (None, Kind::Tally) => Err(self.wrong(slot, &format!("a removed member still runs after {END:?}"))),
            (Some(_), Kind::Etcd) => Ok(()),
            (None, Kind::Etcd) => self.kill(slot),
        }
    }

    fn wait_end(&mut self, slot: usize) -> Result<Option<ExitStatus>> {
        let begun = Instant::now();
        let Some(child) = self.servers[slot].child.as_mut() else { return Ok(None) };
        while begun.elapsed() < END {
            if let Some(status) = child.try_wait().map_err(Error::network("wait for a server"))? {
                self.servers[slot].child = None;
                return Ok(Some(status));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(None)
    }

    /// Empties a slot whose process has ended, and makes it a member-to-be.
    pub(crate) fn renew(&mut self, slot: usize, entry: Entry) -> Result<()> {
        let data = self.data_dir(slot);
        if data.exists() {
            fs::remove_dir_all(&data).map_err(Error::file("remove", &data))?;
        }
        let server = &mut self.servers[slot];
        (server.entry, server.member) = (entry, true);
        Ok(())
    }

    /// Undoes whatever was done to links, disks and processes.
    pub(crate) fn heal(&mut self) -> Result<()> {
        self.network.mend()?;
        self.network.hasten()?;
        if let Some(disks) = &self.disks {
            disks.hasten()?;
        }
        for slot in self.members() {
            self.resume(slot)?;
            self.start(slot)?;
        }
        Ok(())
    }

    /// Nothing has ended by itself.
    pub(crate) fn all_alive(&mut self) -> Result<()> {
        (0..self.servers.len()).try_for_each(|slot| self.alive(slot))
    }

    fn alive(&mut self, slot: usize) -> Result<()> {
        let server = &mut self.servers[slot];
        let Some(child) = server.child.as_mut().filter(|_| !server.leaving) else { return Ok(()) };
        match child.try_wait().map_err(Error::network("wait for a server"))? {
            None => Ok(()),
            Some(status) => {
                self.servers[slot].child = None;
                Err(self.wrong(slot, &format!("ended by itself ({status})")))
            }
        }
    }

    fn signal(&self, slot: usize, signal: &str) -> Result<()> {
        let Some(child) = &self.servers[slot].child else { return Ok(()) };
        run::signal(child.id(), signal)
    }

    /// An error with the last words of a server.
    pub(crate) fn wrong(&self, slot: usize, what: &str) -> Error {
        let log = self.servers[slot].dir.join("server.log");
        let text = fs::read(&log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text[text.len().saturating_sub(3000)..]).into_owned();
        Error::Check(format!("n{slot}: {what}; {} ends with:\n{text}", log.display()))
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // On the way out there is nobody left to tell.
        for server in &mut self.servers {
            if let Some(child) = &mut server.child {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}
