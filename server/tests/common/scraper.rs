//! A real Prometheus, taken from `TALLY_TEST_PROMETHEUS` (set by `cargo xtask test`) or the PATH.

use std::fmt::Write;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::{Client, PATIENCE, directory};

/// A Prometheus that scrapes its targets every 200 ms under the job name `tally-etcd`, ended when dropped.
pub struct Prometheus {
    child: Child,
    client: Client,
    _dir: TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program that a variable names, or that is on the PATH.
pub fn find(variable: &str, program: &str) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Some(PathBuf::from(path));
    }
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file());
    if found.is_none() {
        eprintln!("SKIPPED: no {program} found; set {variable} to one, or let `cargo xtask test` install it");
    }
    found
}

impl Prometheus {
    /// Starts one, if there is a program, and waits until it can be asked.
    pub fn start(targets: &[String]) -> Option<Prometheus> {
        let program = find("TALLY_TEST_PROMETHEUS", "prometheus")?;
        let dir = directory();
        let config = dir.path().join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}\nscrape_configs:\n  - job_name: tally-etcd\n    \
             static_configs: [{{targets: [{}]}}]\n",
            targets.join(", ")
        );
        std::fs::write(&config, text).unwrap();
        let mut child = Command::new(program)
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg("--web.listen-address=127.0.0.1:0")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = Vec::new();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let mut wait_for = |text: &str| {
            let found = log.by_ref().inspect(|line| said.push(line.clone())).find(|line| line.contains(text));
            found.unwrap_or_else(|| panic!("prometheus ended without {text:?}:\n{}", said.join("\n")))
        };
        let listening = wait_for("Listening on");
        let address = listening.split("address=").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().to_owned();
        wait_for("Server is ready to receive web requests");
        std::thread::spawn(move || log.for_each(drop));
        Some(Prometheus { child, client: Client::connect(&address), _dir: dir })
    }

    /// The result of an expression now: one object per series.
    pub fn query(&mut self, expression: &str) -> Vec<Value> {
        let mut body = String::from("query=");
        expression.bytes().for_each(|byte| write!(body, "%{byte:02X}").unwrap());
        let headers = [("content-type", "application/x-www-form-urlencoded")];
        let answer = self.client.request_with("POST", "/api/v1/query", &headers, &body).json();
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
        answer["data"]["result"].as_array().unwrap_or_else(|| panic!("{expression}: {answer}")).clone()
    }

    /// The newest value of the first of these series, if it was scraped.
    pub fn value(&mut self, expression: &str) -> Option<f64> {
        self.query(expression).first()?["value"][1].as_str()?.parse().ok()
    }

    /// Waits until an expression's value satisfies the condition; Prometheus can only be asked, so this asks again and again.
    pub fn wait(&mut self, expression: &str, holds: impl Fn(f64) -> bool) -> f64 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.value(expression) {
                Some(value) if holds(value) => return value,
                other => assert!(Instant::now() < deadline, "{expression} is still {other:?}"),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
