//! The same random requests, good and bad, to a real etcd and to Tally: the answers must be the same, field by field.
//!
//! etcd is taken from `TALLY_TEST_ETCD` (set by `cargo xtask test`), else from the PATH; without one the test says so and passes.
//! `TALLY_DIFF_REQUESTS` and `TALLY_DIFF_SEED` change the length of the run and its seed. What is allowed to differ is in
//! `compare.rs`, each with the section of `docs/differences.md` that explains it.
#![allow(clippy::unwrap_used)]

mod compare;
mod generate;
mod http;
#[path = "../common/ports.rs"]
mod ports;
mod servers;

use std::time::{Duration, Instant};

use compare::Verdict;
use generate::{Generator, Rng};
use http::Client;
use servers::Server;

/// Requests per run unless `TALLY_DIFF_REQUESTS` says otherwise.
const REQUESTS: u64 = 20_000;

/// How many differences to collect before giving up.
const DIFFERENCES_MAX: usize = 12;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name}={value}: not a number")))
}

#[test]
fn tally_answers_as_etcd_does() {
    let Some(etcd) = servers::find_etcd() else {
        eprintln!("SKIPPED: no etcd found; set TALLY_TEST_ETCD to one, or let `cargo xtask test` fetch it");
        return;
    };
    let (requests, seed) = (setting("TALLY_DIFF_REQUESTS", REQUESTS), setting("TALLY_DIFF_SEED", 20_261_121));
    let (etcd, tally) = (Server::etcd(&etcd), Server::tally());
    let (mut to_etcd, mut to_tally) = (Client::new(etcd.address()), Client::new(tally.address()));
    let version = servers::version(&mut to_etcd);
    let mut generator = Generator::new(Rng::new(seed), version >= (3, 6));
    println!("comparing with etcd {}.{}", version.0, version.1);
    let mut differences = Vec::new();
    let (mut same, mut explained, mut refused) = (0u64, 0u64, 0u64);
    let began = Instant::now();
    for number in 0..requests {
        let request = generator.next();
        let expected = to_etcd.send(&request);
        let found = to_tally.send(&request);
        generator.learn(&expected);
        refused += u64::from(expected.status >= 400);
        match compare::judge(&request, &expected, &found) {
            Verdict::Same => same += 1,
            Verdict::Explained => explained += 1,
            Verdict::Different(why) => {
                differences.push(format!(
                    "request {number}: {} {}\n{}\n  {why}\n  etcd : {} {}\n  tally: {} {}",
                    request.method,
                    request.path,
                    clip(&request.body),
                    expected.status,
                    clip(&expected.body),
                    found.status,
                    clip(&found.body)
                ));
                if differences.len() == DIFFERENCES_MAX {
                    break;
                }
            }
        }
        assert!(began.elapsed() < Duration::from_secs(1200), "gave up after 20 minutes at request {number}");
    }
    println!(
        "seed {seed}: {same} same, {explained} explained, {refused} of them refused by etcd, {:?}",
        began.elapsed()
    );
    assert!(differences.is_empty(), "seed {seed}: {} differences\n{}", differences.len(), differences.join("\n\n"));
    assert!(requests < 1000 || refused > requests / 50, "too few bad requests to mean anything: {refused}");
}

fn clip(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    match text.char_indices().nth(1500) {
        None => text.into_owned(),
        Some((at, _)) => format!("{}… ({} bytes)", &text[..at], bytes.len()),
    }
}
