//! A real Prometheus scrapes a real node: the exposition is clean, and the figures that operators watch move.
//!
//! Prometheus and promtool are taken from `TALLY_TEST_PROMETHEUS` and `TALLY_TEST_PROMTOOL` (set by `cargo xtask test`), else from the
//! PATH; without them the tests say so and pass.
#![allow(clippy::unwrap_used, dead_code)]

mod common;
#[path = "differential/http.rs"]
mod http;
#[path = "differential/servers.rs"]
mod servers;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use common::ports;
use common::scraper::{Prometheus, find};
use http::{Client, Request};
use servers::Server;

fn post(client: &mut Client, path: &str, body: &str) {
    let request = Request::post(path.to_owned(), body.to_owned());
    let response = client.send(&request);
    assert_eq!(response.status, 200, "{}", String::from_utf8_lossy(&response.body));
}

/// One of each request that has a counter. As in etcd, a transaction counts as one if it has more than one operation.
fn work(client: &mut Client) {
    post(client, "/v3/kv/put", r#"{"key":"YQ==","value":"MQ=="}"#);
    post(client, "/v3/kv/range", r#"{"key":"YQ=="}"#);
    post(
        client,
        "/v3/kv/txn",
        r#"{"success":[{"request_put":{"key":"Yg==","value":"MQ=="}},{"request_put":{"key":"Yw==","value":"MQ=="}}]}"#,
    );
    post(client, "/v3/kv/deleterange", r#"{"key":"Yg=="}"#);
}

#[test]
fn promtool_finds_nothing_to_complain_about() {
    let Some(promtool) = find("TALLY_TEST_PROMTOOL", "promtool") else { return };
    let tally = Server::tally(None);
    let mut client = Client::new(tally.address());
    work(&mut client);
    let metrics =
        client.send(&Request { method: "GET", path: "/metrics".to_owned(), body: Vec::new(), corrupt: false });
    assert_eq!(metrics.status, 200);
    check(&promtool, &metrics.body);
}

#[test]
fn promtool_finds_nothing_to_complain_about_in_a_cluster() {
    let Some(promtool) = find("TALLY_TEST_PROMTOOL", "promtool") else { return };
    let mut cluster = common::cluster::Cluster::start(3);
    let (learner, id) = cluster.join_learner();
    let asked = cluster.leader();
    let body = serde_json::json!({"ID": id});
    common::cluster::eventually_ok(cluster.node(asked), "/v3/cluster/member/promote", &body);
    for at in [asked, learner] {
        let metrics = cluster.node(at).get("/metrics").body;
        assert!(metrics.contains("etcd_network_peer_round_trip_time_seconds_bucket{"), "{metrics}");
        check(&promtool, metrics.as_bytes());
    }
}

/// What the linter says of names that are etcd's: of their unit, which is in the name.
const NAMED_BY_ETCD: [&str; 2] = [
    "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds use base unit ",
    "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds use base unit ",
];

fn check(promtool: &Path, metrics: &[u8]) {
    let mut child = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(metrics).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    let complaints: Vec<&str> =
        said.lines().filter(|line| !NAMED_BY_ETCD.iter().any(|known| line.starts_with(known))).collect();
    // Its status for something to complain about.
    assert!(complaints.is_empty() && matches!(output.status.code(), Some(0 | 3)), "{}: {said}", output.status);
}

#[test]
fn prometheus_sees_totals_revision_and_applied_index_move() {
    let tally = Server::tally(None);
    let mut client = Client::new(tally.address());
    let Some(mut prometheus) = Prometheus::start(&[tally.address().to_string()]) else { return };
    prometheus.wait("up", |up| up == 1.0);
    const SERIES: [&str; 6] = [
        "etcd_mvcc_put_total",
        "etcd_mvcc_range_total",
        "etcd_mvcc_txn_total",
        "etcd_mvcc_delete_total",
        "etcd_debugging_mvcc_current_revision",
        "tally_applied_index",
    ];
    let before = SERIES.map(|series| prometheus.wait(series, |_| true));
    for _ in 0..25 {
        work(&mut client);
    }
    for (series, before) in SERIES.iter().zip(before) {
        // 25 rounds: 3 puts, 1 range, 1 transaction, 1 delete, and so 3 revisions and 3 log entries each.
        prometheus.wait(series, |value| value >= before + 25.0);
    }
    assert_eq!(prometheus.wait("etcd_server_has_leader", |_| true), 1.0);
    assert!(prometheus.wait("etcd_disk_wal_fsync_duration_seconds_count", |count| count > 0.0) > 0.0);
}
