//! What the server does by itself: the quota and its alarm, automatic compaction, the sweep.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::{Client, PATIENCE, base64, directory, launch};
use serde_json::json;
use tally_server::{AutoCompaction, Config, Server};

#[test]
fn over_the_quota_writes_are_refused_until_the_alarm_is_cleared() {
    let root = directory();
    let data = root.path().join("d");
    let start = || launch(&data).arg("--quota-backend-bytes=1000000").start();
    let tally = start();
    let body = json!({"key": base64("k"), "value": base64(&"x".repeat(20_000))}).to_string();
    let deadline = Instant::now() + PATIENCE;
    let refused = loop {
        let answer = tally.post("/v3/kv/put", &body);
        if answer.status != 200 {
            break answer;
        }
        assert!(Instant::now() < deadline, "the quota is never reached");
    };
    assert_eq!(refused.status, 429, "{}", refused.body);
    assert!(refused.body.contains("etcdserver: mvcc: database space exceeded"), "{}", refused.body);
    let expect = |tally: &common::Tally| {
        let small = tally.post("/v3/kv/put", &json!({"key": base64("k"), "value": base64("x")}).to_string());
        assert_eq!(small.status, 429, "{}", small.body);
        let health = tally.get("/health");
        assert_eq!((health.status, health.body.trim()), (503, r#"{"health":"false","reason":"ALARM NOSPACE"}"#));
        assert_eq!(tally.get("/health?exclude=NOSPACE").status, 200);
        assert_eq!(tally.get("/readyz").status, 200);
        assert!(tally.get("/metrics").body.contains("alarm_type=\"NOSPACE\""));
        assert!(tally.value("k").is_some());
    };
    expect(&tally);
    tally.ok("/v3/kv/deleterange", &json!({"key": base64("other")}));
    tally.stop();
    let tally = start();
    expect(&tally);
    tally.stop();
}

/// Keys are in memory whole, and what they take there is no more than the quota however well they are compressed on disk.
#[test]
fn keys_that_are_nearly_nothing_on_disk_count_for_the_quota() {
    let root = directory();
    let quota = 2_000_000;
    let tally = launch(&root.path().join("d")).arg(&format!("--quota-backend-bytes={quota}")).start();
    let mut keys = 0;
    let refused = common::cluster::eventually("the quota is reached", || {
        keys += 1;
        // So that nothing is counted as it is in the tables in memory.
        tally.ok("/v3/maintenance/defragment", &json!({}));
        let body = json!({"key": base64(&format!("{}{keys}", "0".repeat(100_000))), "value": base64("v")}).to_string();
        Some(tally.post("/v3/kv/put", &body)).filter(|answer| answer.status != 200)
    });
    assert!(refused.body.contains("etcdserver: mvcc: database space exceeded"), "{}", refused.body);
    common::cluster::eventually("on disk it is little", || {
        let on_disk = tally.metric("etcd_mvcc_db_total_size_in_bytes");
        (on_disk < f64::from(quota) / 2.0).then_some(())
    });
    assert!(keys >= 20, "after {keys} keys of 100 kB");
    tally.stop();
}

fn post(client: &mut Client, path: &str, body: &serde_json::Value) -> common::Answer {
    client.request("POST", path, &body.to_string())
}

#[test]
fn history_is_compacted_by_revision_and_swept() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let root = directory();
    let mut config = Config::local(root.path().join("d")).unwrap();
    config.auto_compaction = AutoCompaction::Revision(10);
    config.auto_compaction_check_ms = 20;
    let server = runtime.block_on(Server::start(config)).unwrap();
    let mut client = Client::connect(&server.client_addresses()[0].to_string());
    for n in 0..100 {
        let answer = post(&mut client, "/v3/kv/put", &json!({"key": base64("k"), "value": base64(&n.to_string())}));
        assert_eq!(answer.status, 200);
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let metrics = client.request("GET", "/metrics", "").body;
        let metric = |name| common::metric(&metrics, name).unwrap();
        // The store is at revision 101: 91 is compacted away, and the 89 puts below it are swept.
        if metric("etcd_debugging_mvcc_compact_revision") == 91.0
            && metric("etcd_debugging_mvcc_db_compaction_keys_total") == 89.0
        {
            break;
        }
        assert!(Instant::now() < deadline, "{metrics}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let old = post(&mut client, "/v3/kv/range", &json!({"key": base64("k"), "revision": 90}));
    assert_eq!(old.status, 400, "{}", old.body);
    let kept = post(&mut client, "/v3/kv/range", &json!({"key": base64("k"), "revision": 91}));
    assert_eq!(kept.json()["kvs"][0]["value"], base64("89"));
    runtime.block_on(server.shutdown()).unwrap();
}

#[test]
fn history_is_compacted_by_age() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let root = directory();
    let mut config = Config::local(root.path().join("d")).unwrap();
    config.auto_compaction = AutoCompaction::Periodic(Duration::from_millis(200));
    let server = runtime.block_on(Server::start(config)).unwrap();
    let mut client = Client::connect(&server.client_addresses()[0].to_string());
    let deadline = Instant::now() + PATIENCE;
    loop {
        post(&mut client, "/v3/kv/put", &json!({"key": base64("k"), "value": base64("v")}));
        let metrics = client.request("GET", "/metrics", "").body;
        let metric = |name| common::metric(&metrics, name).unwrap();
        let compacted = metric("etcd_debugging_mvcc_compact_revision");
        assert!(compacted < metric("etcd_debugging_mvcc_current_revision"));
        if compacted > 2.0 {
            break;
        }
        assert!(Instant::now() < deadline, "{metrics}");
    }
    runtime.block_on(server.shutdown()).unwrap();
}

#[test]
fn two_servers_live_in_one_process() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let root = directory();
    let start = |name| {
        let config = Config::local(root.path().join(name)).unwrap();
        runtime.block_on(Server::start(config)).unwrap()
    };
    let servers = [start("a"), start("b")];
    for (n, server) in servers.iter().enumerate() {
        let mut client = Client::connect(&server.client_addresses()[0].to_string());
        for _ in 0..=n {
            post(&mut client, "/v3/kv/put", &json!({"key": base64("k"), "value": base64("v")}));
        }
        let metrics = client.request("GET", "/metrics", "").body;
        assert_eq!(common::metric(&metrics, "etcd_mvcc_put_total"), Some(n as f64 + 1.0));
    }
    servers.into_iter().for_each(|server| runtime.block_on(server.shutdown()).unwrap());
}
