//! A real package index is loaded by 64 clients while the server is killed again and again: nothing acknowledged is lost, nothing
//! is done twice, and the state is the one that the log says (promises 1, 2 and 5).
//!
//! The records come from Debian's package index where there is one, else they are made up. `TALLY_KILL_SEED` repeats a run;
//! `cargo xtask torture` is the same, larger.
#![allow(clippy::unwrap_used, dead_code)]

#[path = "differential/http.rs"]
mod http;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};

use base64_simd::STANDARD;
use http::{Client, Request, Response};
use serde_json::Value;

const RECORDS: usize = 6_000;
const CLIENTS: usize = 64;
const KILLS: u64 = 8;

/// The running server; restarted on a new port each time.
struct Server {
    child: Child,
    address: SocketAddr,
}

fn start(dir: &Path) -> Server {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tally"))
        .arg(format!("--data-dir={}", dir.display()))
        .arg("--listen-client-urls=http://127.0.0.1:0")
        .arg("--advertise-client-urls=http://127.0.0.1:2379")
        .arg("--listen-peer-urls=http://127.0.0.1:0")
        // The log is kept whole, so that a fresh store can be built from it.
        .args(["--snapshot-catchup-entries=100000000"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let mut said = Vec::new();
    let ready = log.by_ref().find(|line| {
        said.push(line.clone());
        line.contains("ready to serve client requests")
    });
    let ready = ready.unwrap_or_else(|| panic!("the server did not start:\n{}", said.join("\n")));
    std::thread::spawn(move || log.for_each(drop));
    let ready: Value = serde_json::from_str(&ready).unwrap();
    Server { child, address: ready["address"].as_str().unwrap().parse().unwrap() }
}

/// Name and control paragraph of each record.
fn records() -> Vec<(String, String)> {
    let real = debian_records().unwrap_or_default();
    if real.len() >= RECORDS / 2 {
        return real;
    }
    (0..RECORDS)
        .map(|n| (format!("made-up-{n}"), format!("Package: made-up-{n}\n{}", "x".repeat(n * 13 % 2000))))
        .collect()
}

fn debian_records() -> Option<Vec<(String, String)>> {
    let lists = std::fs::read_dir("/var/lib/apt/lists").ok()?.filter_map(Result::ok).map(|entry| entry.path());
    let index = lists
        .filter(|path| path.to_string_lossy().contains("_main_binary-") && path.to_string_lossy().contains("_Packages"))
        .max_by_key(|path| path.metadata().map_or(0, |meta| meta.len()))?;
    let text = Command::new("/usr/lib/apt/apt-helper").arg("cat-file").arg(index).output().ok()?.stdout;
    let text = String::from_utf8_lossy(&text);
    let mut records = BTreeMap::new();
    for paragraph in text.split("\n\n") {
        if let Some(name) = paragraph.lines().find_map(|line| line.strip_prefix("Package: ")) {
            records.insert(name.to_owned(), paragraph.to_owned());
        }
        if records.len() == RECORDS {
            break;
        }
    }
    Some(records.into_iter().collect())
}

/// What a client knows of its record.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// Puts sent, acknowledged or not.
    attempts: i64,
    /// The revision in the acknowledgement; 0 before it.
    revision: i64,
}

/// Where the server is, for clients that lost it.
struct Whereabouts {
    address: Mutex<Option<SocketAddr>>,
    changed: Condvar,
}

impl Whereabouts {
    fn set(&self, address: Option<SocketAddr>) {
        *self.address.lock().unwrap() = address;
        self.changed.notify_all();
    }

    fn get(&self) -> SocketAddr {
        let address = self.changed.wait_while(self.address.lock().unwrap(), |address| address.is_none()).unwrap();
        address.unwrap()
    }
}

fn json(response: &Response) -> Value {
    serde_json::from_slice(&response.body).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&response.body)))
}

fn number(value: &Value) -> i64 {
    value.as_str().map_or(0, |text| text.parse().unwrap())
}

fn request(path: &str, body: String) -> Request {
    Request::post(path.to_owned(), body)
}

fn key_of(name: &str) -> String {
    STANDARD.encode_to_string(format!("pkg/{name}"))
}

/// Puts one record until it is acknowledged, however often the server goes away in between.
fn load(record: &(String, String), client: &mut (SocketAddr, Client), whereabouts: &Whereabouts) -> Known {
    let value = STANDARD.encode_to_string(&record.1);
    let put = request("/v3/kv/put", format!(r#"{{"key":"{}","value":"{value}"}}"#, key_of(&record.0)));
    let mut known = Known::default();
    loop {
        let address = whereabouts.get();
        if client.0 != address {
            *client = (address, Client::new(address));
        }
        known.attempts += 1;
        match client.1.try_send(&put) {
            Ok(response) if response.status == 200 => {
                known.revision = number(&json(&response)["header"]["revision"]);
                return known;
            }
            // The outcome is unknown: the connection broke, or the server said that it is stopping.
            Ok(response) => assert_eq!(response.status, 503, "{}", String::from_utf8_lossy(&response.body)),
            Err(_) => {}
        }
    }
}

fn applied_index(client: &mut Client) -> i64 {
    let status = client.send(&request("/v3/maintenance/status", "{}".to_owned()));
    number(&json(&status)["raftAppliedIndex"])
}

/// Kills the server when so many records are acknowledged, and starts it again.
fn torment(
    dir: &Path,
    seed: u64,
    total: usize,
    acknowledged: &(Mutex<usize>, Condvar),
    whereabouts: &Whereabouts,
) -> Server {
    let mut server = start(dir);
    whereabouts.set(Some(server.address));
    let mut applied = 0;
    for kill in 0..KILLS {
        // Anywhere within this kill's share of the records.
        let share = total as u64 / (KILLS + 1);
        let moment = kill * share + seed.wrapping_mul(kill * 2 + 7).wrapping_add(0x9e37_79b9) % share;
        let reached = acknowledged.1.wait_while(acknowledged.0.lock().unwrap(), |count| (*count as u64) < moment);
        drop(reached.unwrap());
        applied = applied_index(&mut Client::new(server.address)).max(applied);
        whereabouts.set(None);
        server.child.kill().unwrap();
        server.child.wait().unwrap();
        server = start(dir);
        let now = applied_index(&mut Client::new(server.address));
        assert!(now >= applied, "kill {kill}: the applied index went back from {applied} to {now}");
        whereabouts.set(Some(server.address));
    }
    server
}

#[test]
fn nothing_acknowledged_is_lost_and_nothing_is_done_twice() {
    let seed = std::env::var("TALLY_KILL_SEED").map_or(20_261_121, |seed| seed.parse().unwrap());
    println!("seed {seed}");
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let records = records();
    let known: Vec<Mutex<Known>> = records.iter().map(|_| Mutex::default()).collect();
    let (next, acknowledged) = (AtomicUsize::new(0), (Mutex::new(0), Condvar::new()));
    let whereabouts = Whereabouts { address: Mutex::new(None), changed: Condvar::new() };
    let mut server = std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut client =
                    (SocketAddr::from(([127, 0, 0, 1], 0)), Client::new(SocketAddr::from(([127, 0, 0, 1], 0))));
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(record) = records.get(number) else { return };
                    *known[number].lock().unwrap() = load(record, &mut client, &whereabouts);
                    *acknowledged.0.lock().unwrap() += 1;
                    acknowledged.1.notify_all();
                }
            });
        }
        torment(&data, seed, records.len(), &acknowledged, &whereabouts)
    });
    check_every_record(&records, &known, &mut Client::new(server.address));
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    check_root(&data);
}

fn check_every_record(records: &[(String, String)], known: &[Mutex<Known>], client: &mut Client) {
    let mut puts = 0;
    let mut seen = BTreeMap::new();
    let mut revision = 0;
    for ((name, paragraph), known) in records.iter().zip(known) {
        let known = *known.lock().unwrap();
        let answer = json(&client.send(&request("/v3/kv/range", format!(r#"{{"key":"{}"}}"#, key_of(name)))));
        let kv = &answer["kvs"][0];
        assert!(kv.is_object(), "{name} was acknowledged at {} and is gone", known.revision);
        assert_eq!(kv["value"].as_str().unwrap(), STANDARD.encode_to_string(paragraph), "{name}");
        assert_eq!(number(&kv["mod_revision"]), known.revision, "{name}");
        let version = number(&kv["version"]);
        assert!((1..=known.attempts).contains(&version), "{name}: version {version} of {} puts", known.attempts);
        assert!(seen.insert(known.revision, name).is_none(), "revision {} was given twice", known.revision);
        puts += version;
        revision = number(&answer["header"]["revision"]);
    }
    // A new store is at revision 1, and every put makes exactly one.
    assert_eq!(puts, revision - 1, "revisions are not dense");
    println!("{} records, {puts} puts, of which {} were not acknowledged", records.len(), puts - records.len() as i64);
}

fn check_root(data: &Path) {
    let output = Command::new(env!("CARGO_BIN_EXE_tally")).args(["check", "--data-dir"]).arg(data).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["replayed_root"].is_string(), "the log could not be replayed: {report}");
    assert_eq!(report["root"], report["replayed_root"], "{report}");
}
