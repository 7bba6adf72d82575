//! Client libraries of other languages, unmodified, do real work against Tally, on one node and on three.
//!
//! The workers are in `clients/`: etcd's own Go client with its concurrency package, the npm package etcd3 and the Java client jetcd over
//! gRPC, and the PyPI package etcd3gw over nothing but HTTP and JSON. What they need comes by `TALLY_TEST_GO_WORKER`,
//! `TALLY_TEST_NODE_MODULES`, `TALLY_TEST_JAVA_WORKER` and `TALLY_TEST_PYTHON`, which `cargo xtask test` sets; without them a test says so and passes.
//! `TALLY_TEST_SUBJECT` names an etcd to be used in Tally's place, to try the workers themselves.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use common::cluster::Cluster;

/// How long one worker may take in all. It takes a few seconds when all is well.
const LIMIT: Duration = Duration::from_secs(120);
/// How long a server is away while a worker works on. What happens then is judged by what the worker has seen, so any length is right;
/// this one is long enough for another leader.
const AWAY: Duration = Duration::from_millis(500);

#[test]
fn go_on_one_node() {
    work(go(), 1);
}

#[test]
fn go_on_three_nodes() {
    work(go(), 3);
}

#[test]
fn node_on_one_node() {
    work(node(), 1);
}

#[test]
fn node_on_three_nodes() {
    work(node(), 3);
}

#[test]
fn java_on_one_node() {
    work(java(), 1);
}

#[test]
fn java_on_three_nodes() {
    work(java(), 3);
}

#[test]
fn python_over_json_on_one_node() {
    work(python(), 1);
}

#[test]
fn python_over_json_on_three_nodes() {
    work(python(), 3);
}

fn go() -> Option<Command> {
    given("TALLY_TEST_GO_WORKER").map(Command::new)
}

fn node() -> Option<Command> {
    let modules = given("TALLY_TEST_NODE_MODULES")?;
    let mut command = Command::new("node");
    command.arg(source("node/worker.js")).env("NODE_PATH", modules);
    Some(command)
}

fn java() -> Option<Command> {
    let home = given("TALLY_TEST_JAVA_WORKER")?;
    let mut command = Command::new("java");
    command.arg("-cp").arg(format!("{0}/classes:{0}/lib/*", home.display())).arg("Worker");
    Some(command)
}

fn python() -> Option<Command> {
    let mut command = Command::new(given("TALLY_TEST_PYTHON")?);
    command.args(["-B".as_ref(), source("python/worker.py").as_os_str()]);
    Some(command)
}

fn given(variable: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from).filter(|path| path.exists());
    if path.is_none() {
        eprintln!("SKIPPED: {variable} is not set; `cargo xtask peers` fetches what it names");
    }
    path
}

fn source(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(file)
}

/// Runs a worker against a cluster of its own until it says that all is as it should be.
fn work(command: Option<Command>, size: usize) {
    let Some(command) = command else { return };
    let subject = std::env::var_os("TALLY_TEST_SUBJECT");
    let program = subject.as_ref().map_or(Path::new(env!("CARGO_BIN_EXE_tally")), Path::new);
    let mut cluster = Cluster::of(program, size, &[]);
    cluster.leader();
    let mut worker = Worker::start(command, &cluster);
    loop {
        let line = worker.line();
        if line == "RESTART" {
            restart(&mut cluster);
            worker.child.stdin.as_mut().unwrap().write_all(b"done\n").unwrap();
        } else if line.ends_with(" checks passed") {
            break;
        }
        assert!(!line.starts_with("FAILED"), "{}", worker.rest());
    }
    if size > 1 && subject.is_none() {
        cluster.same_state();
    }
}

/// The leader goes away at once, in the middle of the work, and comes back.
fn restart(cluster: &mut Cluster) {
    let leader = cluster.leader();
    cluster.kill(leader);
    std::thread::sleep(AWAY);
    cluster.restart(leader);
    cluster.leader();
}

/// A worker that runs, ended when dropped.
struct Worker {
    child: Child,
    lines: Receiver<String>,
    said: Vec<String>,
    begun: Instant,
}

impl Worker {
    fn start(mut command: Command, cluster: &Cluster) -> Worker {
        let ports = cluster.members.iter().map(|member| format!("http://127.0.0.1:{}", member.client));
        command.arg(ports.collect::<Vec<_>>().join(","));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let output: [Box<dyn std::io::Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for output in output {
            let sender = sender.clone();
            std::thread::spawn(move || {
                BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
            });
        }
        Worker { child, lines, said: Vec::new(), begun: Instant::now() }
    }

    /// The next line that it prints.
    fn line(&mut self) -> String {
        match self.lines.recv_timeout(LIMIT.saturating_sub(self.begun.elapsed())) {
            Ok(line) => {
                self.said.push(line.clone());
                line
            }
            Err(RecvTimeoutError::Timeout) => panic!("not done after {} s: {}", LIMIT.as_secs(), self.rest()),
            Err(RecvTimeoutError::Disconnected) => panic!("it ended: {}", self.rest()),
        }
    }

    /// All that it has said, also after its end.
    fn rest(&mut self) -> String {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.said.extend(self.lines.iter());
        self.said.join("\n")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
