//! Health, version and metrics of the real binary.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use common::{directory, launch, start};
use serde_json::json;

#[test]
fn health_endpoints_answer_as_etcd_does() {
    let root = directory();
    let tally = start(&root.path().join("d"));
    for path in ["/health", "/health?serializable=true", "/health?exclude=NOSPACE"] {
        let answer = tally.get(path);
        assert_eq!((answer.status, answer.body.as_str()), (200, r#"{"health":"true","reason":""}"#), "{path}");
    }
    for (path, body) in [
        ("/livez", "ok\n"),
        ("/livez?verbose", "[+]serializable_read ok\nok\n"),
        ("/livez/serializable_read", "ok\n"),
        ("/livez?exclude=serializable_read&verbose", "ok\n"),
        ("/readyz", "ok\n"),
        (
            "/readyz?verbose",
            "[+]data_corruption ok\n[+]serializable_read ok\n[+]linearizable_read ok\n[+]non_learner ok\nok\n",
        ),
        (
            "/readyz?verbose&exclude=data_corruption&exclude=non_learner",
            "[+]serializable_read ok\n[+]linearizable_read ok\nok\n",
        ),
        ("/readyz/linearizable_read?verbose", "[+]linearizable_read ok\nok\n"),
    ] {
        let answer = tally.get(path);
        assert_eq!((answer.status, answer.body.as_str()), (200, body), "{path}");
        assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
    }
    let version = tally.get("/version");
    assert_eq!(version.json(), json!({"etcdserver": "3.7.0", "etcdcluster": "3.7.0", "storage": "3.7.0"}));
    for path in ["/health", "/livez", "/readyz", "/version"] {
        let answer = tally.post(path, "");
        assert_eq!((answer.status, answer.body.as_str()), (405, "Method Not Allowed\n"), "{path}");
        assert_eq!(answer.header("allow"), Some("GET"));
    }
    for path in ["/livez/nosuch", "/nosuch", "/"] {
        assert_eq!(tally.get(path).status, 404, "{path}");
    }
    tally.stop();
}

#[test]
fn metrics_carry_the_names_and_types_of_etcd() {
    let root = directory();
    let tally = launch(&root.path().join("d")).arg("--metrics=extensive").start();
    assert_eq!(
        tally.metric("etcd_server_leader_changes_seen_total"),
        1.0,
        "the first leader counts, as it does for etcd"
    );
    for n in 0..3 {
        tally.put(&format!("k{n}"), "v");
    }
    tally.value("k0");
    tally.get("/health");
    let text = tally.get("/metrics").body;
    let typed = [
        ("etcd_mvcc_put_total", "counter"),
        ("etcd_mvcc_delete_total", "counter"),
        ("etcd_mvcc_txn_total", "counter"),
        ("etcd_mvcc_range_total", "counter"),
        ("etcd_debugging_mvcc_current_revision", "gauge"),
        ("etcd_debugging_mvcc_compact_revision", "gauge"),
        ("etcd_server_proposals_pending", "gauge"),
        ("etcd_server_proposals_failed_total", "counter"),
        ("etcd_server_has_leader", "gauge"),
        ("etcd_server_is_leader", "gauge"),
        ("etcd_server_is_learner", "gauge"),
        ("etcd_server_leader_changes_seen_total", "counter"),
        ("etcd_server_id", "gauge"),
        ("etcd_server_version", "gauge"),
        ("etcd_cluster_version", "gauge"),
        ("etcd_server_quota_backend_bytes", "gauge"),
        ("etcd_server_slow_read_indexes_total", "counter"),
        ("etcd_server_read_indexes_failed_total", "counter"),
        ("etcd_server_heartbeat_send_failures_total", "counter"),
        ("etcd_network_known_peers", "gauge"),
        ("etcd_server_slow_apply_total", "counter"),
        ("etcd_disk_wal_fsync_duration_seconds", "histogram"),
        ("etcd_disk_wal_write_duration_seconds", "histogram"),
        ("etcd_server_apply_duration_seconds", "histogram"),
        ("etcd_debugging_mvcc_db_compaction_last", "gauge"),
        ("etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds", "histogram"),
        ("etcd_debugging_mvcc_db_compaction_total_duration_milliseconds", "histogram"),
        ("etcd_mvcc_hash_duration_seconds", "histogram"),
        ("etcd_mvcc_hash_rev_duration_seconds", "histogram"),
        ("etcd_disk_backend_commit_duration_seconds", "histogram"),
        ("etcd_mvcc_db_total_size_in_bytes", "gauge"),
        ("etcd_mvcc_db_total_size_in_use_in_bytes", "gauge"),
        ("etcd_server_request_duration_seconds", "histogram"),
        ("process_resident_memory_bytes", "gauge"),
        ("os_fd_used", "gauge"),
        ("os_fd_limit", "gauge"),
        ("tally_applied_index", "gauge"),
        ("tally_durable_index", "gauge"),
        ("tally_quota_used_bytes", "gauge"),
        ("tally_watch_crowd_streams", "gauge"),
        ("tally_build_info", "gauge"),
        ("tally_unsafe_no_fsync", "gauge"),
    ];
    for (name, kind) in typed {
        assert!(text.contains(&format!("# TYPE {name} {kind}\n")), "{name} is no {kind} in\n{text}");
        assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help");
    }
    // etcd's types contradict etcd's names here, which Prometheus' linter objects to: they are left undeclared.
    for name in [
        "etcd_debugging_mvcc_keys_total",
        "etcd_disk_wal_write_bytes_total",
        "etcd_server_health_failures",
        "etcd_server_health_success",
        "etcd_server_proposals_applied_total",
        "etcd_server_proposals_committed_total",
        "etcd_server_learner_promote_successes",
        "etcd_server_snapshot_apply_in_progress_total",
    ] {
        assert!(!text.contains(&format!("# TYPE {name} ")), "{name} has a type");
        assert!(text.contains(&format!("\n{name} ")), "{name} is missing");
    }
    for (name, value) in [
        ("etcd_mvcc_put_total", 3.0),
        ("etcd_debugging_mvcc_current_revision", 4.0),
        ("etcd_debugging_mvcc_keys_total", 3.0),
        ("etcd_server_has_leader", 1.0),
        ("etcd_server_health_success", 1.0),
        ("etcd_server_quota_backend_bytes", 2147483648.0),
        ("tally_unsafe_no_fsync", 0.0),
    ] {
        assert_eq!(common::metric(&text, name), Some(value), "{name}");
    }
    let applied = common::metric(&text, "tally_applied_index");
    assert_eq!(applied, common::metric(&text, "etcd_server_proposals_applied_total"));
    assert!(text.contains("etcd_disk_wal_fsync_duration_seconds_bucket{le=\"0.001\"}"));
    tally.stop();
}

#[test]
fn figures_of_the_log_of_applying_of_compaction_and_of_hashes_move() {
    const DURATIONS: [&str; 6] = [
        "etcd_disk_wal_write_duration_seconds",
        "etcd_server_apply_duration_seconds",
        "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds",
        "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds",
        "etcd_mvcc_hash_duration_seconds",
        "etcd_mvcc_hash_rev_duration_seconds",
    ];
    let root = directory();
    let tally = start(&root.path().join("d"));
    let read = |suffix: &str| DURATIONS.map(|name| tally.metric(&format!("{name}_{suffix}")));
    let now_s = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as f64;
    let (counts, sums, began, began_s) = (read("count"), read("sum"), Instant::now(), now_s());
    assert_eq!(counts[2..], [0.0; 4]);
    assert_eq!(tally.metric("etcd_debugging_mvcc_db_compaction_last"), 0.0);
    for n in 0..5 {
        tally.put("k", &n.to_string());
    }
    tally.ok("/v3/kv/compaction", &json!({"revision": 4, "physical": true}));
    tally.ok("/v3/maintenance/hash", &json!({}));
    tally.ok("/v3/maintenance/hashkv", &json!({}));
    let refused = tally.post("/v3/maintenance/hashkv", &json!({"revision": 3}).to_string());
    assert_eq!(refused.status, 400, "{}", refused.body);
    let more = read("count");
    // Each request waited for the one before it, and so had a group of the log and a chunk to itself.
    assert!(more[0] >= counts[0] + 6.0 && more[1] >= counts[1] + 6.0, "{counts:?} {more:?}");
    // Two records were dropped, in one batch. What is refused is not hashed.
    assert_eq!(more[2..], [1.0; 4]);
    let elapsed_s = began.elapsed().as_secs_f64();
    let units_s = [1.0, 1.0, 1e-3, 1e-3, 1.0, 1.0];
    for (((name, sum), before), unit_s) in DURATIONS.iter().zip(read("sum")).zip(sums).zip(units_s) {
        let took_s = (sum - before) * unit_s;
        assert!(took_s > 0.0 && took_s <= elapsed_s, "{name}: {took_s} s of {elapsed_s} s");
    }
    let last_s = tally.metric("etcd_debugging_mvcc_db_compaction_last");
    assert!((began_s..=now_s()).contains(&last_s), "{last_s} {began_s}");
    let labels = r#"etcd_server_apply_duration_seconds_count{op="chunk",success="true",version="v3"} "#;
    assert!(tally.get("/metrics").body.contains(labels));
    tally.stop();
}

#[test]
fn browsers_and_foreign_host_names() {
    let root = directory();
    let tally = launch(&root.path().join("d"))
        .arg("--host-whitelist=localhost,example.org")
        .arg("--cors=http://good.example")
        .arg("--listen-metrics-urls=http://127.0.0.1:0")
        .start();
    let get = |headers: &[(&str, &str)]| tally.connect().request_with("GET", "/version", headers, "");
    assert_eq!(get(&[("host", "example.org:2379")]).status, 200);
    assert_eq!(get(&[("host", "evil.example")]).status, 421);
    let good = get(&[("origin", "http://good.example")]);
    assert_eq!(good.header("access-control-allow-origin"), Some("http://good.example"));
    assert_eq!(get(&[("origin", "http://evil.example")]).header("access-control-allow-origin"), None);
    // Probes and scrapers come by whatever address they know.
    let metrics = tally.log.iter().find(|line| line.contains("serving metrics")).unwrap();
    let mut metrics = common::Client::connect(&common::field(metrics, "address"));
    for path in ["/health", "/metrics"] {
        assert_eq!(metrics.request_with("GET", path, &[("host", "127.0.0.1")], "").status, 200, "{path}");
    }
    let preflight = tally.connect().request_with("OPTIONS", "/v3/kv/put", &[("origin", "http://good.example")], "");
    assert_eq!(preflight.status, 200);
    assert!(preflight.header("access-control-allow-methods").unwrap().contains("POST"));
    tally.stop();
}
