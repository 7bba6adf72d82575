//! Starts both servers on free loopback ports with the same identity, and ends them by process id.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::http::{Client, Request};
use crate::ports::free_ports;

/// Both servers claim this peer URL, from which etcd derives cluster and member id: so even those must be equal.
const PEER_URL: &str = "http://127.0.0.1:12380";

/// A running server, ended when dropped.
pub(crate) struct Server {
    child: Child,
    address: SocketAddr,
    _dir: tempfile::TempDir,
}

/// The etcd to compare with, if there is one.
pub(crate) fn find_etcd() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("TALLY_TEST_ETCD") {
        return Some(PathBuf::from(path));
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join("etcd")).find(|file| file.is_file())
}

fn common_flags(dir: &Path) -> Vec<String> {
    [
        ("name", "m1".to_owned()),
        ("data-dir", dir.display().to_string()),
        ("initial-advertise-peer-urls", PEER_URL.to_owned()),
        ("initial-cluster", format!("m1={PEER_URL}")),
        ("initial-cluster-token", "differential".to_owned()),
        ("snapshot-count", "5000".to_owned()),
    ]
    .iter()
    .map(|(name, value)| format!("--{name}={value}"))
    .collect()
}

/// How often another port is tried for a server whose port was taken after it was found free.
const ATTEMPTS: usize = 5;

impl Server {
    /// etcd, whose JSON gateway calls the port that it was given: so the kernel cannot be left to choose that one.
    pub(crate) fn etcd(program: &Path) -> Self {
        let mut said = String::new();
        for _ in 0..ATTEMPTS {
            let dir = tempfile::tempdir().unwrap();
            let client = format!("http://127.0.0.1:{}", free_ports(1)[0]);
            let mut command = Command::new(program);
            command
                .args(common_flags(&dir.path().join("data")))
                .arg("--logger=zap")
                // Nothing here is about etcd's durability, and most of its time would go there.
                .arg("--unsafe-no-fsync")
                .arg(format!("--listen-client-urls={client}"))
                .arg(format!("--advertise-client-urls={client}"))
                .arg("--listen-peer-urls=http://127.0.0.1:0");
            match start(&mut command, "serving client traffic") {
                Ok((child, line)) => return Self { child, address: address(&line), _dir: dir },
                Err(words) if words.contains("address already in use") => said = words,
                Err(words) => panic!("{words}"),
            }
        }
        panic!("no port stayed free in {ATTEMPTS} tries; at last: {said}");
    }

    /// Tally, the one built with this test or another.
    pub(crate) fn tally(program: Option<&Path>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(program.unwrap_or(Path::new(env!("CARGO_BIN_EXE_tally"))));
        command
            .args(common_flags(&dir.path().join("data")))
            .arg("--listen-client-urls=http://127.0.0.1:0")
            .arg("--advertise-client-urls=http://127.0.0.1:2379")
            .arg("--listen-peer-urls=http://127.0.0.1:0");
        let started = start(&mut command, "ready to serve client requests");
        let (child, line) = started.unwrap_or_else(|words| panic!("{words}"));
        Self { child, address: address(&line), _dir: dir }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The address in a line of a JSON log.
fn address(line: &str) -> SocketAddr {
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    let address = line["address"].as_str().unwrap_or_else(|| panic!("no address in {line}"));
    address.trim_start_matches("http://").parse().unwrap()
}

/// How long a server may take until it serves clients.
const PATIENCE: Duration = Duration::from_secs(60);
/// Lines of its log that are shown if it does not.
const LAST_WORDS: usize = 20;

/// Starts the program and waits for the line that contains `serving`. If there is none, it is ended; the error is its last words.
pub(crate) fn start(command: &mut Command, serving: &str) -> Result<(Child, String), String> {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let log = BufReader::new(child.stderr.take().unwrap());
    let (send, lines) = mpsc::channel();
    // The log is drained until the server ends, or it would block on a full pipe.
    std::thread::spawn(move || {
        for line in log.lines().map_while(Result::ok) {
            let _ = send.send(line);
        }
    });
    let deadline = Instant::now() + PATIENCE;
    let mut said = Vec::new();
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) if line.contains(serving) => return Ok((child, line)),
            Ok(line) => said.push(line),
            Err(error) => {
                let _ = child.kill();
                let status = child.wait();
                let last = said[said.len().saturating_sub(LAST_WORDS)..].join("\n");
                return Err(format!("{command:?} does not serve ({error}; {status:?}):\n{last}"));
            }
        }
    }
}

/// The server's major and minor version, from `/version`.
pub(crate) fn version(client: &mut Client) -> (u32, u32) {
    let answer = client.send(&Request { method: "GET", ..Request::post("/version".to_owned(), String::new()) });
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    let mut parts = body["etcdserver"].as_str().unwrap().split('.').map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap(), parts.next().unwrap())
}
