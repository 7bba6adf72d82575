//! Starts both servers on free loopback ports with the same identity, and ends them by process id.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::http::{Client, Request};

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

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
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

impl Server {
    pub(crate) fn etcd(program: &Path) -> Self {
        // A port found free may be taken before etcd binds it: then etcd exits and another is tried.
        for _ in 0..5 {
            let dir = tempfile::tempdir().unwrap();
            let (client, peer) = (free_port(), free_port());
            let mut command = Command::new(program);
            command
                .args(common_flags(&dir.path().join("data")))
                .arg(format!("--listen-client-urls=http://127.0.0.1:{client}"))
                .arg(format!("--advertise-client-urls=http://127.0.0.1:{client}"))
                .arg(format!("--listen-peer-urls=http://127.0.0.1:{peer}"));
            if let Some((child, _)) = start(&mut command) {
                return Self { child, address: SocketAddr::from(([127, 0, 0, 1], client)), _dir: dir };
            }
        }
        panic!("{} did not become ready in 5 tries", program.display());
    }

    pub(crate) fn tally() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tally"));
        command
            .args(common_flags(&dir.path().join("data")))
            .arg("--listen-client-urls=http://127.0.0.1:0")
            .arg("--advertise-client-urls=http://127.0.0.1:2379")
            .arg("--listen-peer-urls=http://127.0.0.1:0");
        let (child, ready) = start(&mut command).expect("tally did not become ready");
        let ready: serde_json::Value = serde_json::from_str(&ready).unwrap();
        let address = ready["address"].as_str().unwrap_or_else(|| panic!("no address in {ready}"));
        Self { child, address: address.trim_start_matches("http://").parse().unwrap(), _dir: dir }
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

/// Starts the program and waits for its line that it is ready; `None` if it ended first.
fn start(command: &mut Command) -> Option<(Child, String)> {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let log = BufReader::new(child.stderr.take().unwrap());
    let (send, ready) = mpsc::channel();
    // The log is drained until the server ends, or it would block on a full pipe.
    std::thread::spawn(move || {
        for line in log.lines().map_while(Result::ok) {
            if line.contains("ready to serve client requests") {
                let _ = send.send(line);
            }
        }
    });
    let deadline = Instant::now() + Duration::from_secs(30);
    match ready.recv_timeout(deadline - Instant::now()) {
        Ok(line) => Some((child, line)),
        Err(_) => {
            let _ = child.kill();
            let _ = child.wait();
            None
        }
    }
}

/// The server's major and minor version, from `/version`.
pub(crate) fn version(client: &mut Client) -> (u32, u32) {
    let answer = client.send(&Request { method: "GET", path: "/version".to_owned(), body: Vec::new() });
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    let mut parts = body["etcdserver"].as_str().unwrap().split('.').map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap(), parts.next().unwrap())
}
