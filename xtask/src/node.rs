//! Servers under test: started on free ports and a directory of their own, waited for, stopped, killed, restarted.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::http::Client;
use crate::run;

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
    /// Holds the data directory and the server's log.
    pub(crate) dir: PathBuf,
    pub(crate) client: SocketAddr,
    pub(crate) peer: SocketAddr,
    pub(crate) flags: Vec<String>,
}

impl Plan {
    /// A plan with two ports that are free now. The directory is made, and must be new or empty.
    pub(crate) fn new(kind: Kind, binary: PathBuf, dir: PathBuf, flags: Vec<String>) -> Result<Plan> {
        fs::create_dir_all(&dir).map_err(Error::file("create", &dir))?;
        // Both are held until both are known, so they differ.
        let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(Error::network("find a free port"));
        let (client, peer) = (listen()?, listen()?);
        let address = |listener: &TcpListener| listener.local_addr().map_err(Error::network("find a free port"));
        Ok(Plan { kind, binary, client: address(&client)?, peer: address(&peer)?, dir, flags })
    }

    /// Where the server keeps its data.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Where the server's output goes.
    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("server.log")
    }

    /// Starts the server; it is not ready yet.
    pub(crate) fn start(&self) -> Result<Node> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log());
        let log = log.map_err(Error::file("open", &self.log()))?;
        let errors = log.try_clone().map_err(Error::file("open", &self.log()))?;
        let mut command = Command::new(&self.binary);
        let (client, peer) = (format!("http://{}", self.client), format!("http://{}", self.peer));
        command.arg("--name=node").arg(format!("--data-dir={}", self.data_dir().display()));
        command.arg(format!("--listen-client-urls={client}")).arg(format!("--advertise-client-urls={client}"));
        command.arg(format!("--listen-peer-urls={peer}")).arg(format!("--initial-advertise-peer-urls={peer}"));
        command.arg(format!("--initial-cluster=node={peer}")).args(&self.flags);
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        let started = Instant::now();
        let child = command.spawn();
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

    /// Waits until a linearizable read of `body` is answered, and gives the time since the start.
    pub(crate) fn wait_for_read(&mut self, body: &[u8]) -> Result<Duration> {
        let mut client = Client::new(self.plan.client, Duration::from_secs(10));
        loop {
            if let Ok((200, _)) = client.post("/v3/kv/range", body) {
                return Ok(self.started.elapsed());
            }
            if let Some(status) = self.child.try_wait().map_err(Error::network("wait for the server"))? {
                self.ended = true;
                let name = self.plan.kind.name();
                return Err(Error::Answer(format!("{name} ended ({status}); {}", self.plan.last_words())));
            }
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

    /// SIGKILL, as a power cut would be to the process.
    pub(crate) fn kill(&mut self) -> Result<()> {
        if self.ended {
            return Ok(());
        }
        // An unexpected end by itself is the server's fault and must not pass as our kill.
        if let Some(status) = self.child.try_wait().map_err(Error::network("wait for the server"))? {
            self.ended = true;
            return Err(Error::Answer(format!("the server ended by itself ({status}); {}", self.plan.last_words())));
        }
        self.child.kill().map_err(Error::network("kill the server"))?;
        self.child.wait().map_err(Error::network("wait for the server"))?;
        self.ended = true;
        Ok(())
    }

    /// SIGTERM; the server must end with status 0.
    pub(crate) fn stop(&mut self) -> Result<()> {
        run::captured(Command::new("kill").args(["-TERM", &self.pid().to_string()]))?;
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().map_err(Error::network("wait for the server"))? {
                self.ended = true;
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
