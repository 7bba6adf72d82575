//! A harness that runs the real binary on free ports in directories of its own, and a small HTTP client.
#![allow(dead_code, clippy::unwrap_used, unreachable_pub, missing_docs)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

pub mod cluster;
pub mod frames;
pub mod grpc;
pub mod ports;
pub mod scraper;
pub mod watch;

/// How long anything may take before a test gives up. Nothing waits for it when all is well.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A running server.
pub struct Tally {
    child: Child,
    /// Behind a lock only so that threads may share a server.
    lines: Mutex<Receiver<String>>,
    /// Log lines read so far.
    pub log: Vec<String>,
    /// Where clients connect to.
    pub address: String,
}

/// A command line under construction.
pub struct Launch {
    command: Command,
}

/// What a process left when it ended.
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

pub fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// The binary without any flags and with an empty environment.
pub fn bare() -> Launch {
    program(Path::new(env!("CARGO_BIN_EXE_tally")))
}

/// Some server of the kind, Tally or etcd, without any flags and with an empty environment.
pub fn program(path: &Path) -> Launch {
    let mut command = Command::new(path);
    command.env_clear().stdin(Stdio::null());
    Launch { command }
}

/// The binary on free ports with this data directory.
pub fn launch(data: &Path) -> Launch {
    bare()
        .arg("--listen-client-urls=http://127.0.0.1:0")
        .arg("--listen-peer-urls=http://127.0.0.1:0")
        .arg(&format!("--data-dir={}", data.display()))
}

/// The same with at most so many open files.
pub fn limited(data: &Path, files: usize) -> Launch {
    under(data, &format!("-n {files}"))
}

/// The same under a limit that the shell sets.
pub fn under(data: &Path, limit: &str) -> Launch {
    let mut command = Command::new("sh");
    let script = format!("ulimit {limit}; exec \"$0\" \"$@\"");
    command.arg("-c").arg(script).arg(env!("CARGO_BIN_EXE_tally")).stdin(Stdio::null());
    Launch { command }
        .arg("--listen-client-urls=http://127.0.0.1:0")
        .arg("--listen-peer-urls=http://127.0.0.1:0")
        .arg(&format!("--data-dir={}", data.display()))
}

/// A running server with this data directory.
pub fn start(data: &Path) -> Tally {
    launch(data).start()
}

impl Launch {
    pub fn arg(mut self, arg: &str) -> Launch {
        self.command.arg(arg);
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Launch {
        self.command.env(name, value);
        self
    }

    pub fn cwd(mut self, directory: &Path) -> Launch {
        self.command.current_dir(directory);
        self
    }

    /// Starts and waits until clients are served.
    pub fn start(self) -> Tally {
        let mut tally = self.spawn();
        tally.ready();
        tally
    }

    /// Starts.
    pub fn spawn(mut self) -> Tally {
        let mut child = self.command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Tally { child, lines: Mutex::new(lines), log: Vec::new(), address: String::new() }
    }

    /// Runs until the end.
    pub fn run(mut self) -> Ended {
        let output = self.command.output().unwrap();
        Ended {
            status: output.status,
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Runs a command line that must fail, and returns what it says.
    pub fn fail(self) -> String {
        let ended = self.run();
        assert!(!ended.status.success(), "succeeded: {}{}", ended.stdout, ended.stderr);
        assert!(ended.status.code().is_some(), "killed by a signal: {}", ended.stderr);
        assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
        ended.stderr
    }
}

/// Sends a process a signal, such as `TERM`. The shell does it, which has a `kill` of its own: not every system has a
/// program of that name.
pub fn signal(pid: u32, name: &str) {
    let status = Command::new("sh").args(["-c", &format!("kill -{name} {pid}")]).status().unwrap();
    assert!(status.success(), "SIG{name} to process {pid}: {status}");
}

/// A field of a JSON log line.
pub fn field(line: &str, name: &str) -> String {
    let line: Value = serde_json::from_str(line).unwrap();
    match &line[name] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

impl Tally {
    /// Waits until clients are served.
    pub fn ready(&mut self) {
        let ready = self.wait_for("ready to serve client requests");
        self.note_address(&ready);
    }

    /// Tally tells where it serves; etcd does not, and is where it was told to be.
    fn note_address(&mut self, ready: &str) {
        let told = field(ready, "address");
        if told != "null" {
            self.address = told;
        }
    }

    /// Waits until clients are served, or the process ends: then its log is the error.
    pub fn try_ready(&mut self) -> Result<(), Vec<String>> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            match self.lines.get_mut().unwrap().recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.log.push(line.clone());
                    if line.contains("ready to serve client requests") {
                        self.note_address(&line);
                        return Ok(());
                    }
                }
                Err(_) => break,
            }
        }
        Err(std::mem::take(&mut self.log))
    }

    /// Whether the process has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Reads log lines until one contains `text`.
    pub fn wait_for(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.get_mut().unwrap().recv_timeout(left) {
                Ok(line) => {
                    self.log.push(line.clone());
                    if line.contains(text) {
                        return line;
                    }
                }
                Err(error) => {
                    let status = self.child.try_wait();
                    panic!("no log line with {text:?}: {error}; process: {status:?}; log:\n{}", self.log.join("\n"))
                }
            }
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            // The end of the log is the end of the process.
            if let Ok(line) = self.lines.get_mut().unwrap().recv_timeout(Duration::from_millis(100)) {
                self.log.push(line);
                continue;
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                self.log.extend(self.lines.get_mut().unwrap().try_iter());
                return status;
            }
        }
        panic!("the server does not end; log:\n{}", self.log.join("\n"));
    }

    /// Asks it to stop and waits until it has.
    pub fn stop(mut self) -> Vec<String> {
        self.signal("TERM");
        let status = self.wait();
        assert_eq!(status.code(), Some(0), "log:\n{}", self.log.join("\n"));
        std::mem::take(&mut self.log)
    }

    /// Ends it at once, as a power cut would.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn connect(&self) -> Client {
        Client::connect(&self.address)
    }

    pub fn get(&self, path: &str) -> Answer {
        self.connect().request("GET", path, "")
    }

    pub fn post(&self, path: &str, body: &str) -> Answer {
        self.connect().request("POST", path, body)
    }

    /// A request that must succeed.
    pub fn ok(&self, path: &str, body: &Value) -> Value {
        let answer = self.post(path, &body.to_string());
        assert_eq!(answer.status, 200, "{path} {body}: {}", answer.body);
        answer.json()
    }

    pub fn put(&self, key: &str, value: &str) -> i64 {
        let answer = self.ok("/v3/kv/put", &serde_json::json!({"key": base64(key), "value": base64(value)}));
        answer["header"]["revision"].as_str().unwrap().parse().unwrap()
    }

    /// The value of a key.
    pub fn value(&self, key: &str) -> Option<String> {
        let answer = self.ok("/v3/kv/range", &serde_json::json!({"key": base64(key)}));
        answer["kvs"][0]["value"].as_str().map(unbase64)
    }

    /// The first sample of a metric, whatever its labels.
    pub fn metric(&self, name: &str) -> f64 {
        metric(&self.get("/metrics").body, name).unwrap_or_else(|| panic!("no metric {name}"))
    }

    /// All samples of a metric together, such as one of each peer; 0 without any.
    pub fn metric_total(&self, name: &str) -> f64 {
        samples(&self.get("/metrics").body, name).sum()
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn metric(text: &str, name: &str) -> Option<f64> {
    samples(text, name).next()
}

fn samples<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = f64> + 'a {
    let of_it = move |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
    text.lines().filter(of_it).filter_map(|line| line.rsplit(' ').next()?.parse().ok())
}

pub fn base64(text: &str) -> String {
    base64_simd::STANDARD.encode_to_string(text.as_bytes())
}

pub fn unbase64(text: &str) -> String {
    String::from_utf8(base64_simd::STANDARD.decode_to_vec(text.as_bytes()).unwrap()).unwrap()
}

/// A keep-alive connection.
pub struct Client {
    pub stream: BufReader<TcpStream>,
}

/// A response.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }
}

impl Client {
    pub fn connect(address: &str) -> Client {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Client { stream: BufReader::new(stream) }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).unwrap();
    }

    pub fn request(&mut self, method: &str, path: &str, body: &str) -> Answer {
        self.request_with(method, path, &[], body)
    }

    pub fn request_with(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        self.ask(method, path, headers, body);
        self.answer(method == "HEAD").unwrap()
    }

    /// Sends a request whose answer is read later.
    pub fn ask(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) {
        let mut head = format!("{method} {path} HTTP/1.1\r\n");
        if !headers.iter().any(|(name, _)| *name == "host") {
            head.push_str("host: localhost\r\n");
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
        self.send(head.as_bytes());
        self.send(body.as_bytes());
    }

    /// Reads one response; `None` if the server closed the connection instead.
    pub fn answer(&mut self, bodiless: bool) -> Option<Answer> {
        let mut line = String::new();
        if self.stream.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let status = line.split(' ').nth(1).unwrap_or_else(|| panic!("{line:?}")).parse().unwrap();
        let mut headers = Vec::new();
        loop {
            line.clear();
            self.stream.read_line(&mut line).unwrap();
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut answer = Answer { status, headers, body: String::new() };
        let body = match answer.header("content-length") {
            _ if bodiless => Vec::new(),
            Some(length) => {
                let mut body = vec![0; length.parse().unwrap()];
                self.stream.read_exact(&mut body).unwrap();
                body
            }
            None if answer.header("transfer-encoding") == Some("chunked") => self.chunks(),
            None => Vec::new(),
        };
        answer.body = String::from_utf8(body).unwrap();
        Some(answer)
    }

    /// The next line of an answer that consists of objects, whatever stands between them: a head, lengths of chunks.
    pub fn object(&mut self) -> Value {
        let mut line = String::new();
        while !line.starts_with('{') {
            line.clear();
            assert!(self.stream.read_line(&mut line).unwrap() > 0, "the connection was closed");
        }
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    fn chunks(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line).unwrap();
            let length = usize::from_str_radix(line.trim(), 16).unwrap();
            let start = body.len();
            body.resize(start + length + 2, 0);
            self.stream.read_exact(&mut body[start..]).unwrap();
            body.truncate(start + length);
            if length == 0 {
                return body;
            }
        }
    }

    /// Waits until the server closes the connection; returns what it sent before.
    pub fn closed(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
            Err(error) => panic!("the connection is not closed: {error}"),
        }
        rest
    }
}

/// Every file below a directory.
pub fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}
