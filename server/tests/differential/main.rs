//! The same random requests, good and bad, over JSON and over gRPC, to a real etcd and to Tally: the answers must be the same,
//! field by field, and so must be what watchers are told.
//!
//! etcd is taken from `TALLY_TEST_ETCD` (set by `cargo xtask test`), else from the PATH; without one the test says so and passes.
//! `TALLY_DIFF_REQUESTS` and `TALLY_DIFF_SEED` change the length of the run and its seed; `TALLY_DIFF_SUBJECT` names a program to
//! compare instead of the Tally of this build, such as another etcd, to see what this test itself finds. What is allowed to differ is in
//! `compare.rs`, each with the section of `docs/differences.md` that explains it.
#![allow(clippy::unwrap_used)]

mod compare;
mod episodes;
mod generate;
mod grpc;
mod http;
mod lines;
mod malformed;
mod peer;
#[path = "../common/ports.rs"]
mod ports;
mod schema;
mod servers;
mod socket;
mod watch;

use std::time::{Duration, Instant};

use compare::Verdict;
use generate::{Generator, Rng};
use http::{Request, Response};
use peer::{Form, Peer};
use schema::Schema;
use watch::Streams;

/// Requests per run unless `TALLY_DIFF_REQUESTS` says otherwise.
const REQUESTS: u64 = 50_000;
/// One in so many is something about watch streams.
const WATCH_SHARE: u64 = 25;

/// How many differences to collect before giving up.
const DIFFERENCES_MAX: usize = 12;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name}={value}: not a number")))
}

/// What a run has counted.
#[derive(Debug, Default)]
struct Counts {
    same: u64,
    explained: u64,
    refused: u64,
    over_grpc: u64,
}

#[test]
fn tally_answers_as_etcd_does() {
    let Some(etcd) = servers::find_etcd() else {
        eprintln!("SKIPPED: no etcd found; set TALLY_TEST_ETCD to one, or let `cargo xtask test` fetch it");
        return;
    };
    let (requests, seed) = (setting("TALLY_DIFF_REQUESTS", REQUESTS), setting("TALLY_DIFF_SEED", 20_261_121));
    let schema = Schema::new();
    let mut peers = [Peer::etcd(&etcd), Peer::subject()];
    let version = servers::version(peers[0].json());
    let mut generator = Generator::new(Rng::new(seed), version >= (3, 6));
    println!("comparing with etcd {}.{}", version.0, version.1);
    let (mut differences, mut counts, mut streams) = (Vec::new(), Counts::default(), Streams::new());
    let began = Instant::now();
    for number in 0..requests {
        if differences.len() == DIFFERENCES_MAX {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(1200), "gave up after 20 minutes at request {number}");
        if !generator.busy() && generator.rng().below(WATCH_SHARE) == 0 {
            if let Err(why) = streams.step(&schema, &mut generator, &mut peers) {
                differences.push(format!("request {number}: {why}"));
                streams.reset();
            }
            continue;
        }
        let request = generator.next();
        // Differences, "CORRUPT stops reads too": watches end.
        if request.corrupt {
            streams.reset();
        }
        // Watchers that lag would be told of what is compacted, or not, by chance.
        if request.path.ends_with("/compaction")
            && let Err(why) = streams.catch_up(&schema, &mut peers)
        {
            differences.push(format!("before request {number}: {why}"));
            streams.reset();
        }
        if let Err(why) = compare(&schema, &mut generator, &mut peers, &request, &mut counts) {
            differences.push(format!("request {number}: {why}"));
        }
    }
    if let Err(why) = streams.settle(&schema, &mut peers) {
        differences.push(format!("at the end: {why}"));
    }
    println!(
        "seed {seed}: {} same, {} explained, {} of them refused by etcd, {} over gRPC; {} things asked of watch streams, \
         {} events; {:?}",
        counts.same,
        counts.explained,
        counts.refused,
        counts.over_grpc,
        streams.asked,
        streams.events,
        began.elapsed()
    );
    assert!(differences.is_empty(), "seed {seed}: {} differences\n{}", differences.len(), differences.join("\n\n"));
    let few = requests >= 1000;
    assert!(!few || counts.refused > requests / 50, "too few bad requests to mean anything: {}", counts.refused);
    assert!(!few || counts.over_grpc > requests / 4, "too few requests over gRPC: {}", counts.over_grpc);
    assert!(!few || streams.events > requests / 4, "too few events: {}", streams.events);
}

/// Sends a request to both and compares the answers.
fn compare(
    schema: &Schema,
    generator: &mut Generator,
    peers: &mut [Peer; 2],
    request: &Request,
    counts: &mut Counts,
) -> Result<(), String> {
    let streamed = request.path.ends_with("/rangestream");
    let fit = peer::messages(schema, request).is_some();
    if streamed && (!fit || peer::repeats(request)) {
        return Ok(());
    }
    let form = if fit && (streamed || generator.rng().chance(50)) { Form::Grpc } else { Form::Json };
    let [etcd, tally] = peers;
    let (expected, found) = std::thread::scope(|scope| {
        let expected = scope.spawn(|| etcd.ask(schema, request, form));
        let found = tally.ask(schema, request, form);
        (expected.join().unwrap(), found)
    });
    generator.learn(&expected);
    counts.over_grpc += u64::from(form == Form::Grpc);
    counts.refused += u64::from(expected.status >= 400);
    let verdict = compare::judge(request, &expected, &found);
    if request.path.ends_with("/lease/grant") && compare::grants_any(request) {
        for (peer, answer) in peers.iter_mut().zip([&expected, &found]) {
            revoke(schema, peer, answer);
        }
    }
    match verdict {
        Verdict::Same => counts.same += 1,
        Verdict::Explained => counts.explained += 1,
        Verdict::Different(why) => {
            return Err(format!(
                "{form:?} {} {}\n{}\n  {why}\n  etcd : {} {}\n  tally: {} {}",
                request.method,
                request.path,
                clip(&request.body),
                expected.status,
                clip(&expected.body),
                found.status,
                clip(&found.body)
            ));
        }
    }
    Ok(())
}

/// Revokes the lease that a server has made up an id for, so that both have the same again.
fn revoke(schema: &Schema, peer: &mut Peer, granted: &Response) {
    let granted: serde_json::Value = serde_json::from_slice(&granted.body).unwrap_or_default();
    if let Some(id) = granted["ID"].as_str() {
        let request = Request::post("/v3/lease/revoke".to_owned(), format!(r#"{{"ID":"{id}"}}"#));
        peer.ask(schema, &request, Form::Json);
    }
}

fn clip(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    match text.char_indices().nth(1500) {
        None => text.into_owned(),
        Some((at, _)) => format!("{}… ({} bytes)", &text[..at], bytes.len()),
    }
}
