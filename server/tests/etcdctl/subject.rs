//! A cluster, of Tally or of etcd, that an etcdctl is used on, and what the etcdctl says without what chance decides.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::common::cluster::Cluster;
use crate::common::signal;

/// Numbers after these depend on time, on how often somebody was elected, on the store's form or on the version.
const NUMBERS: &[&str] = &[
    "\"raft_term\":",
    "\"RaftTerm\" : ",
    "\"raftTerm\":",
    "\"raftIndex\":",
    "\"raftAppliedIndex\":",
    "\"dbSize\":",
    "\"dbSizeInUse\":",
    "\"dbSizeQuota\":",
    "\"ttl\":",
    "\"TTL\" : ",
    "remaining(",
];
/// And so does what follows these, up to the next blank, comma or quotation mark.
const WORDS: &[&str] = &["took = ", "took: ", "took ", "\"took\":\"", "\"version\":\"", "\"storageVersion\":\""];
/// Which member answers is decided by the client, where there are several.
const ANSWERING: &[&str] = &["\"member_id\":", "\"MemberID\" : "];
/// The longest that a command may take: a load of a minute, and what comes after it. Nothing waits for it when all is well.
const PATIENCE: Duration = Duration::from_secs(150);
/// Longer words of digits are ids; other numbers are not that large here.
const ID_DIGITS_MIN: usize = 13;

/// What one command came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

pub(crate) struct Subject {
    pub(crate) cluster: Cluster,
    /// A member that commands are not sent to.
    pub(crate) shunned: Option<usize>,
    etcdctl: PathBuf,
    /// What stands for `{name}` in a command line.
    variables: BTreeMap<&'static str, String>,
    /// Texts and what they are called in all clusters alike.
    names: Vec<(String, String)>,
    /// Ids that were drawn by chance, in the order of their first appearance: the n-th one of both clusters is the same thing.
    ids: Vec<Vec<u64>>,
}

impl Subject {
    pub(crate) fn new(etcdctl: &Path, program: &Path, size: usize) -> Subject {
        let cluster = Cluster::of(program, size, &["--heartbeat-interval=100", "--election-timeout=1000"]);
        cluster.leader();
        let (mut names, mut variables) = (Vec::new(), BTreeMap::new());
        let status = cluster.status(0);
        let mut id = |id: &str, name: String| {
            let number: u64 = id.parse().unwrap();
            names.extend([(format!("{number:x}"), name.clone()), (number.to_string(), name)]);
            format!("{number:x}")
        };
        id(status["header"]["cluster_id"].as_str().unwrap(), "CLUSTER".to_owned());
        let ids = (0..size).map(|at| id(&cluster.id(at), format!("MEMBER{at}"))).collect::<Vec<_>>();
        for (at, (member, id)) in cluster.members.iter().zip(ids).enumerate() {
            names.push((format!("127.0.0.1:{}", member.client), format!("CLIENT{at}")));
            names.push((format!("127.0.0.1:{}", member.peer), format!("PEER{at}")));
            variables.insert(["id0", "id1", "id2"][at], id);
            variables.insert(["peer0", "peer1", "peer2"][at], member.peer_url());
        }
        // No name is part of a longer one that comes after it.
        names.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
        let etcdctl = etcdctl.to_owned();
        Subject { cluster, shunned: None, etcdctl, variables, names, ids: Vec::new() }
    }

    /// Where clients connect to, as in `--endpoints`.
    pub(crate) fn endpoints(&self) -> String {
        let members = self.cluster.members.iter().enumerate();
        let asked = members.filter(|(at, member)| Some(*at) != self.shunned && member.is_running());
        asked.map(|(_, member)| format!("127.0.0.1:{}", member.client)).collect::<Vec<_>>().join(",")
    }

    pub(crate) fn set(&mut self, name: &'static str, value: String) {
        self.variables.insert(name, value);
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(&self.etcdctl);
        command.env_clear().env("ETCDCTL_API", "3").env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.arg(format!("--endpoints={}", self.endpoints()));
        for word in words(line) {
            let filled =
                self.variables.iter().fold(word, |word, (name, value)| word.replace(&format!("{{{name}}}"), value));
            command.arg(filled);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs a command that ends by itself.
    pub(crate) fn run(&mut self, line: &str, stdin: &str) -> Said {
        let mut running = self.start(line, stdin);
        drop(running.child.stdin.take());
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = running.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "`{line}` does not end: {:?}", running.rest());
            std::thread::sleep(Duration::from_millis(5));
        };
        let (stdout, stderr) = running.rest();
        self.learn(&stdout);
        // What its client library logs is its own affair.
        let stderr: Vec<&str> = stderr.lines().filter(|line| !line.starts_with('{')).collect();
        Said { code: status.code(), stdout: self.plain(&stdout), stderr: self.plain(&stderr.join("\n")) }
    }

    /// Starts a command that goes on, or waits for more input.
    pub(crate) fn start(&self, line: &str, stdin: &str) -> Running {
        let mut child = self.command(line).spawn().unwrap();
        let _ = child.stdin.as_mut().unwrap().write_all(stdin.as_bytes());
        let (stdout, stderr) = (lines(child.stdout.take().unwrap()), lines(child.stderr.take().unwrap()));
        Running { child, stdout, stderr, line: line.to_owned() }
    }

    /// Remembers the lease or the member that a command has made.
    fn learn(&mut self, stdout: &str) {
        let mut words = stdout.split_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some("lease"), Some(id), Some("granted")) => _ = self.variables.insert("lease", id.to_owned()),
            (Some("Member"), Some(id), Some("added")) => _ = self.variables.insert("added", id.to_owned()),
            _ => {}
        }
    }

    /// A text without what chance decides.
    pub(crate) fn plain(&mut self, text: &str) -> String {
        let named = self.names.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to));
        let masked = NUMBERS.iter().fold(named, |text, prefix| mask(&text, prefix, |letter| !letter.is_ascii_digit()));
        let ends = |letter: char| letter.is_whitespace() || matches!(letter, ',' | '"' | ';');
        let mut masked = WORDS.iter().fold(masked, |text, prefix| mask(&text, prefix, ends));
        if self.cluster.members.len() > 1 {
            let ends = |letter: char| !letter.is_ascii_alphanumeric();
            masked = ANSWERING.iter().fold(masked, |text, prefix| mask(&text, prefix, ends));
        }
        // Ids of fewer digits are made wider with blanks, and tables are drawn around them.
        for filling in ["  ", "--"] {
            while masked.contains(filling) {
                masked = masked.replace(filling, &filling[1..]);
            }
        }
        self.without_ids(&masked)
    }

    fn without_ids(&mut self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while !rest.is_empty() {
            let begin = rest.find(|letter: char| letter.is_ascii_alphanumeric()).unwrap_or(rest.len());
            out.push_str(&rest[..begin]);
            rest = &rest[begin..];
            let end = rest.find(|letter: char| !letter.is_ascii_alphanumeric()).unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            if word.len() >= ID_DIGITS_MIN && word.chars().all(|letter| matches!(letter, '0'..='9' | 'a'..='f')) {
                out.push_str(&format!("ID{}", self.number(word)));
            } else {
                out.push_str(word);
            }
            rest = after;
        }
        out
    }

    /// The how-manieth id it is; as hexadecimal and as decimal number it is the same one.
    fn number(&mut self, word: &str) -> usize {
        let values: Vec<u64> = [u64::from_str_radix(word, 16).ok(), word.parse().ok()].into_iter().flatten().collect();
        let known = self.ids.iter().position(|id| id.iter().any(|value| values.contains(value)));
        known.unwrap_or_else(|| {
            self.ids.push(values);
            self.ids.len() - 1
        })
    }
}

/// A command that runs, ended when dropped.
pub(crate) struct Running {
    child: Child,
    stdout: Receiver<String>,
    stderr: Receiver<String>,
    line: String,
}

impl Running {
    /// The next lines that it prints.
    pub(crate) fn lines(&mut self, count: usize) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut said = String::new();
        for _ in 0..count {
            match self.stdout.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => said.push_str(&line),
                Err(_) => {
                    let rest = self.rest();
                    panic!("`{}` says no more than:\n{said}\nand: {rest:?}", self.line);
                }
            }
        }
        said
    }

    pub(crate) fn write(&mut self, text: &str) {
        self.child.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// Ends it as Ctrl-C does.
    pub(crate) fn interrupt(mut self) {
        signal(self.child.id(), "INT");
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "`{}` does not end at Ctrl-C; is SIGINT ignored here?", self.line);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// All that it has said, after its end.
    fn rest(&mut self) -> (String, String) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        (self.stdout.iter().collect(), self.stderr.iter().collect())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What comes out of a pipe, each line with its end.
fn lines(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        while pipe.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
            line.clear();
        }
    });
    receiver
}

/// The words of a command line; blanks between single quotation marks part nothing.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), None, false);
    for letter in line.chars() {
        match letter {
            '\'' => {
                quoted = !quoted;
                word.get_or_insert_with(String::new);
            }
            ' ' if !quoted => words.extend(word.take()),
            _ => word.get_or_insert_with(String::new).push(letter),
        }
    }
    words.extend(word);
    words
}

/// What follows each `prefix`, up to where it `ends`, is left out.
fn mask(text: &str, prefix: &str, ends: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(prefix) {
        let after = at + prefix.len();
        out.push_str(&rest[..after]);
        out.push('…');
        let end = rest[after..].find(&ends).unwrap_or(rest.len() - after);
        rest = &rest[after + end..];
    }
    out.push_str(rest);
    out
}
