//! HashKV gives the figures of a real etcd after the same operations.
//!
//! Needs an etcd and the etcdctl beside it: `TALLY_TEST_ETCD=/path/to/etcd`, else the one on PATH. Skipped, saying so,
//! if there is none.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use common::{Store, between, single};
use tally_mvcc::{DeleteRequest, KeyRange, PutRequest, ReadError, Rejection};

struct Etcd {
    process: Child,
    etcdctl: PathBuf,
    endpoint: String,
    _dir: tempfile::TempDir,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn find() -> Option<PathBuf> {
    let named = std::env::var_os("TALLY_TEST_ETCD").map(PathBuf::from);
    let on_path = || {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|dir| dir.join("etcd")).find(|file| file.is_file())
    };
    named.or_else(on_path).filter(|etcd| etcd.is_file() && etcd.with_file_name("etcdctl").is_file())
}

/// Lines of etcd's log that are shown if it does not come up.
const LAST_WORDS: usize = 20;

/// Starts etcd on ports that the kernel chooses; its log says which. Nobody connects to the peer URL that it claims.
fn start(etcd: &Path) -> Etcd {
    let dir = tempfile::tempdir().unwrap();
    let (any, claimed) = ("http://127.0.0.1:0", "http://127.0.0.1:12380");
    let mut process = Command::new(etcd)
        .args(["--name", "one", "--logger", "zap", "--data-dir"])
        .arg(dir.path())
        .args(["--listen-client-urls", any, "--advertise-client-urls", claimed])
        .args(["--listen-peer-urls", any, "--initial-advertise-peer-urls", claimed])
        .args(["--initial-cluster", &format!("one={claimed}")])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(process.stderr.take().unwrap()).lines().map_while(Result::ok);
    let mut said = Vec::new();
    let address = lines.by_ref().find_map(|line| {
        let address = line.contains("serving client traffic").then(|| text_field(&line, "address")).flatten();
        said.push(line);
        address
    });
    let Some(address) = address else {
        let status = process.wait().unwrap();
        let last = said[said.len().saturating_sub(LAST_WORDS)..].join("\n");
        panic!("etcd ended ({status}) before it served clients:\n{last}");
    };
    // Somebody has to read on, or etcd would stop at a full pipe.
    std::thread::spawn(move || lines.for_each(drop));
    Etcd { process, etcdctl: etcd.with_file_name("etcdctl"), endpoint: format!("http://{address}"), _dir: dir }
}

/// A field of a JSON log line whose text needs no escapes.
fn text_field(line: &str, name: &str) -> Option<String> {
    let (_, rest) = line.split_once(&format!("\"{name}\":\""))?;
    Some(rest.split('"').next()?.to_owned())
}

impl Etcd {
    fn run(&self, args: &[&str]) -> Output {
        let endpoints = format!("--endpoints={}", self.endpoint);
        Command::new(&self.etcdctl).env("ETCDCTL_API", "3").arg(endpoints).args(args).output().unwrap()
    }

    fn ok(&self, args: &[&str]) {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// The hash up to a revision, or what etcd says instead.
    fn hash(&self, revision: i64) -> Result<u32, String> {
        let output = self.run(&["endpoint", "hashkv", "-w", "json", "--rev", &revision.to_string()]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        match text.split_once("\"hash\":") {
            Some((_, rest)) => Ok(rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()),
            None => Err(format!("{text}{}", String::from_utf8_lossy(&output.stderr))),
        }
    }
}

/// Compares the hash of every revision, refusals included.
fn compare(store: &Store, etcd: &Etcd, compactions: &[i64]) {
    for revision in 0..=store.reader.revision() + 1 {
        match (store.reader.hash_kv(revision), etcd.hash(revision)) {
            (Ok(ours), Ok(theirs)) => assert_eq!(ours.hash, theirs, "revision {revision}: {ours:?}"),
            (Err(ReadError::Rejected(Rejection::Compacted { .. })), Err(message)) => {
                assert!(message.contains("compacted"), "{message}");
            }
            // Since 3.6, etcd keeps the hashes that it computed at its last compactions (docs/differences.md).
            (Err(ReadError::Rejected(Rejection::Compacted { compacted, .. })), Ok(_)) => {
                assert!(compactions.contains(&revision), "revision {revision}, compacted at {compacted}");
            }
            (Err(ReadError::Rejected(Rejection::FutureRevision { .. })), Err(message)) => {
                assert!(message.contains("future"), "{message}");
            }
            (ours, theirs) => panic!("revision {revision}: {ours:?} but etcd {theirs:?}"),
        }
    }
}

fn delete(store: &mut Store, range: KeyRange) {
    store.delete(&DeleteRequest { range, prev_kv: false });
    store.commit();
}

#[test]
fn hashes_equal_etcds() {
    let Some(etcd) = find() else {
        eprintln!("skipped: no etcd with an etcdctl beside it; set TALLY_TEST_ETCD to one");
        return;
    };
    let (etcd, mut store) = (start(&etcd), Store::new());
    compare(&store, &etcd, &[]);
    let long = "v".repeat(300);
    for (key, value) in [("a", "1"), ("b", ""), ("a", "2"), ("c/x", long.as_str()), ("c/y", "1"), ("d", "1")] {
        store.put(&PutRequest::new(key.to_owned(), value.to_owned())).unwrap();
        store.commit();
        etcd.ok(&["put", "--", key, value]);
    }
    delete(&mut store, single("b"));
    etcd.ok(&["del", "b"]);
    delete(&mut store, between("c", "d"));
    etcd.ok(&["del", "c", "d"]);
    store.set("b", "again");
    etcd.ok(&["put", "b", "again"]);
    compare(&store, &etcd, &[]);
    let mut compactions = Vec::new();
    // Below, at, and above tombstones; two of them are of one revision.
    for compact in [4, 8, 9, 10] {
        store.compact_now(compact);
        compactions.push(compact);
        etcd.ok(&["compact", "--physical", &compact.to_string()]);
        compare(&store, &etcd, &compactions);
        store.sweep_all();
        compare(&store, &etcd, &compactions);
        store.set("e", &compact.to_string());
        etcd.ok(&["put", "e", &compact.to_string()]);
        compare(&store, &etcd, &compactions);
    }
    // Nothing is left but tombstones.
    delete(&mut store, between("a", "z"));
    etcd.ok(&["del", "a", "z"]);
    compare(&store, &etcd, &compactions);
    let last = store.reader.revision();
    store.compact_now(last);
    compactions.push(last);
    etcd.ok(&["compact", "--physical", &last.to_string()]);
    store.set("f", "1");
    etcd.ok(&["put", "f", "1"]);
    compare(&store, &etcd, &compactions);
}
