//! Servers under test: started on free ports and a directory of their own, waited for, stopped, killed, restarted.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::http::Client;
use crate::{ports, run};

/// How long a server may take until it answers, and until it has stopped.
const PATIENCE: Duration = Duration::from_secs(120);

/// Which program a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Tally,
    Etcd,
}

impl Kind {
    /// The name in tables and options.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Tally => "tally",
            Kind::Etcd => "etcd",
        }
    }
}

/// How a server is started; the same for every start of one data directory.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) kind: Kind,
    pub(crate) binary: PathBuf,
    /// The member's name.
    pub(crate) name: String,
    /// Holds the data directory and the server's log.
    pub(crate) dir: PathBuf,
    pub(crate) client: SocketAddr,
    pub(crate) peer: SocketAddr,
    /// Every member of the cluster, as `--initial-cluster` takes them.
    pub(crate) cluster: String,
    /// Whether the cluster runs already and this member has been added to it.
    pub(crate) joining: bool,
    pub(crate) flags: Vec<String>,
}

impl Plan {
    /// A cluster of one, with two ports that are free now. The directory is made, and must be new or empty.
    pub(crate) fn new(kind: Kind, binary: PathBuf, dir: PathBuf, flags: Vec<String>) -> Result<Plan> {
        fs::create_dir_all(&dir).map_err(Error::file("create", &dir))?;
        let (client, peer) = ports::free_pair()?;
        let name = "node".to_owned();
        let cluster = founder(&name, peer);
        Ok(Plan { kind, binary, name, dir, client, peer, cluster, joining: false, flags })
    }

    /// A cluster with a member `node1`, `node2` … for each pair of addresses (for clients, for peers), each with a
    /// directory of its own below `dir`.
    pub(crate) fn cluster(
        kind: Kind,
        binary: &Path,
        dir: &Path,
        addresses: &[(SocketAddr, SocketAddr)],
        flags: &[String],
    ) -> Result<Vec<Plan>> {
        let named = || addresses.iter().zip(1..).map(|(pair, number)| (format!("node{number}"), *pair));
        let cluster: Vec<String> = named().map(|(name, (_, peer))| founder(&name, peer)).collect();
        let plans = named().map(|(name, (client, peer))| {
            let dir = dir.join(&name);
            fs::create_dir_all(&dir).map_err(Error::file("create", &dir))?;
            let (binary, cluster, flags) = (binary.to_path_buf(), cluster.join(","), flags.to_vec());
            Ok(Plan { kind, binary, name, dir, client, peer, cluster, joining: false, flags })
        });
        plans.collect()
    }

    /// One more member for a cluster like this plan's, on free ports; it must have been added before it is started.
    pub(crate) fn joiner(&self, name: &str, addresses: (SocketAddr, SocketAddr)) -> Result<Plan> {
        let dir = self.dir.with_file_name(name);
        fs::create_dir_all(&dir).map_err(Error::file("create", &dir))?;
        let (client, peer) = addresses;
        let cluster = format!("{},{}", self.cluster, founder(name, peer));
        Ok(Plan { name: name.to_owned(), dir, client, peer, cluster, joining: true, ..self.clone() })
    }

    /// Where the server keeps its data.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Where the server's output goes.
    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("server.log")
    }

    /// The command line that starts the server; where its output goes is up to the caller.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        let (client, peer) = (format!("http://{}", self.client), format!("http://{}", self.peer));
        command.arg(format!("--name={}", self.name)).arg(format!("--data-dir={}", self.data_dir().display()));
        command.arg(format!("--listen-client-urls={client}")).arg(format!("--advertise-client-urls={client}"));
        command.arg(format!("--listen-peer-urls={peer}")).arg(format!("--initial-advertise-peer-urls={peer}"));
        command.arg(format!("--initial-cluster={}", self.cluster));
        if self.joining {
            command.arg("--initial-cluster-state=existing");
        }
        command.args(&self.flags).stdin(Stdio::null());
        command
    }

    /// Starts the server; it is not ready yet.
    pub(crate) fn start(&self) -> Result<Node> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log());
        let log = log.map_err(Error::file("open", &self.log()))?;
        let errors = log.try_clone().map_err(Error::file("open", &self.log()))?;
        let started = Instant::now();
        let child = self.command().stdout(log).stderr(errors).spawn();
        let child = child.map_err(|source| Error::Start { program: self.binary.display().to_string(), source })?;
        Ok(Node { plan: self.clone(), child, started, ended: false })
    }

    /// The last lines of the server's output, for error messages.
    fn last_words(&self) -> String {
        let text = fs::read(self.log()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text[text.len().saturating_sub(2000)..]).into_owned();
        format!("{} ends with:\n{text}", self.log().display())
    }
}

/// One member of `--initial-cluster`.
fn founder(name: &str, peer: SocketAddr) -> String {
    format!("{name}=http://{peer}")
}

/// A running server. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Node {
    plan: Plan,
    child: Child,
    started: Instant,
    ended: bool,
}

impl Node {
    /// The process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// When it was started.
    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// Waits until a linearizable read of `body` is answered, and gives the time since the start.
    pub(crate) fn wait_for_read(&mut self, body: &[u8]) -> Result<Duration> {
        let mut client = Client::new(self.plan.client, Duration::from_secs(10));
        loop {
            if let Ok((200, _)) = client.post("/v3/kv/range", body) {
                return Ok(self.started.elapsed());
            }
            self.check_alive()?;
            if self.started.elapsed() > PATIENCE {
                let name = self.plan.kind.name();
                return Err(Error::Answer(format!(
                    "{name} is not ready after {PATIENCE:?}; {}",
                    self.plan.last_words()
                )));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until the server answers reads.
    pub(crate) fn wait_ready(&mut self) -> Result<Duration> {
        self.wait_for_read(br#"{"key":"AA=="}"#)
    }

    /// An error, with the server's last words, if it has ended by itself.
    pub(crate) fn check_alive(&mut self) -> Result<()> {
        match self.try_wait()? {
            None => Ok(()),
            Some(status) => {
                let name = self.plan.kind.name();
                Err(Error::Answer(format!("{name} ended by itself ({status}); {}", self.plan.last_words())))
            }
        }
    }

    /// SIGKILL, as a power cut would be to the process. It is gone when this returns.
    pub(crate) fn kill(&mut self) -> Result<()> {
        if self.ended {
            return Ok(());
        }
        // An unexpected end by itself is the server's fault and must not pass as our kill.
        self.check_alive()?;
        self.child.kill().map_err(Error::network("kill the server"))?;
        self.child.wait().map_err(Error::network("wait for the server"))?;
        self.ended = true;
        Ok(())
    }

    /// SIGTERM; the server must end with status 0.
    pub(crate) fn stop(&mut self) -> Result<()> {
        self.terminate()?;
        self.wait_end()
    }

    /// SIGTERM; the server is still at work when this returns.
    pub(crate) fn terminate(&mut self) -> Result<()> {
        run::signal(self.pid(), "TERM")
    }

    /// Waits until a server that was told to stop has ended, which it must with status 0.
    pub(crate) fn wait_end(&mut self) -> Result<()> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.try_wait()? {
                // etcd re-raises the signal once it has shut down.
                let expected = status.success() || self.plan.kind == Kind::Etcd;
                return if expected {
                    Ok(())
                } else {
                    Err(Error::Answer(format!("SIGTERM ended with {status}; {}", self.plan.last_words())))
                };
            }
            if begun.elapsed() > PATIENCE {
                return Err(Error::Answer(format!("no end {PATIENCE:?} after SIGTERM; {}", self.plan.last_words())));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends a server that may have ended already, as one does that was removed from its cluster.
    pub(crate) fn put_away(&mut self) -> Result<()> {
        self.child.kill().map_err(Error::network("kill the server"))?;
        self.child.wait().map_err(Error::network("wait for the server"))?;
        self.ended = true;
        Ok(())
    }

    fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        let status = self.child.try_wait().map_err(Error::network("wait for the server"))?;
        self.ended |= status.is_some();
        Ok(status)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if !self.ended {
            // Only on the way out of an error; there is nobody left to tell.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::{Kind, Plan};
    use std::path::Path;

    fn words(plan: &Plan) -> Vec<String> {
        plan.command().get_args().map(|word| word.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn members_know_each_other_and_a_joiner_knows_all() {
        let dir = std::env::temp_dir().join(format!("tally-xtask-plans-{}", std::process::id()));
        let pairs = [1, 2, 3].map(|number: u16| {
            let address = |port: u16| std::net::SocketAddr::from(([127, 0, 0, 1], port + number));
            (address(2000), address(3000))
        });
        let plans = Plan::cluster(Kind::Tally, Path::new("tally"), &dir, &pairs, &["--x".to_owned()]).unwrap();
        let all =
            "--initial-cluster=node1=http://127.0.0.1:3001,node2=http://127.0.0.1:3002,node3=http://127.0.0.1:3003";
        for (plan, number) in plans.iter().zip(1..) {
            let words = words(plan);
            assert!(words.contains(&format!("--name=node{number}")), "{words:?}");
            assert!(words.contains(&all.to_owned()) && words.contains(&"--x".to_owned()), "{words:?}");
            assert!(words.contains(&format!("--listen-client-urls=http://127.0.0.1:200{number}")), "{words:?}");
            assert!(plan.dir.is_dir());
        }
        let joiner = plans[2].joiner("node4", ("127.0.0.1:2004".parse().unwrap(), "127.0.0.1:3004".parse().unwrap()));
        let words = words(&joiner.unwrap());
        assert!(words.contains(&format!("{all},node4=http://127.0.0.1:3004")), "{words:?}");
        assert!(words.contains(&"--initial-cluster-state=existing".to_owned()), "{words:?}");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
