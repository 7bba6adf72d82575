//! Three members are one store: every one of them takes every request, and the loss of any one is a pause.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::cluster::{Cluster, eventually, refused};
use common::{Client, base64};
use serde_json::json;

fn put_body(key: &str, value: &str) -> String {
    json!({"key": base64(key), "value": base64(value)}).to_string()
}

#[test]
fn every_member_takes_writes_and_reads() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    let mut revision = 1;
    for writer in 0..3 {
        let key = format!("k{writer}");
        revision += 1;
        assert_eq!(cluster.node(writer).put(&key, "v"), revision, "revisions are of one store");
        for reader in 0..3 {
            assert_eq!(cluster.node(reader).value(&key).as_deref(), Some("v"), "written at {writer}, read at {reader}");
        }
    }
    let swap = |from: &str, to: &str| {
        json!({
            "compare": [{"key": base64("k0"), "target": "VALUE", "value": base64(from)}],
            "success": [{"request_put": {"key": base64("k0"), "value": base64(to)}}],
        })
    };
    assert_eq!(cluster.node(0).ok("/v3/kv/txn", &swap("v", "w"))["succeeded"], true);
    assert!(cluster.node(1).ok("/v3/kv/txn", &swap("v", "x"))["succeeded"].is_null());
    let deleted = cluster.node(2).ok("/v3/kv/deleterange", &json!({"key": base64("k1")}));
    assert_eq!(deleted["deleted"], "1");
    assert_eq!(cluster.node(0).value("k1"), None);

    let ids: Vec<String> = (0..3).map(|at| cluster.id(at)).collect();
    for at in 0..3 {
        let status = cluster.status(at);
        assert_eq!(status["leader"], ids[leader].as_str());
        assert!(status["errors"].is_null() && status["isLearner"].is_null(), "{status}");
        let members = cluster.list(at);
        assert_eq!(members.len(), 3);
        for member in &members {
            let of = ids.iter().position(|id| member["ID"] == id.as_str()).unwrap();
            assert_eq!(member["name"], format!("n{of}"));
            assert_eq!(member["peerURLs"], json!([cluster.members[of].peer_url()]));
            assert_eq!(member["clientURLs"], json!([format!("http://127.0.0.1:{}", cluster.members[of].client)]));
        }
        let node = cluster.node(at);
        assert_eq!(node.metric("etcd_server_has_leader"), 1.0);
        assert_eq!(node.metric("etcd_server_is_leader"), f64::from(u8::from(at == leader)));
        assert_eq!(node.metric("etcd_server_is_learner"), 0.0);
        assert_eq!(node.get("/health").status, 200);
        assert_eq!(node.get("/readyz").status, 200);
        let metrics = node.get("/metrics").body;
        assert_eq!(metrics.lines().filter(|line| line.starts_with("etcd_network_known_peers{")).count(), 3);
    }
    let metrics = cluster.node(leader).get("/metrics").body;
    for name in [
        "etcd_network_active_peers",
        "etcd_network_peer_sent_bytes_total",
        "etcd_network_peer_received_bytes_total",
        "etcd_network_peer_round_trip_time_seconds_count",
    ] {
        let samples = metrics.lines().filter(|line| line.starts_with(name));
        let moved = samples.filter(|line| !line.ends_with(" 0")).count();
        assert_eq!(moved, 2, "{name} in\n{metrics}");
    }
    cluster.same_state();
    for at in 0..3 {
        cluster.stop(at);
    }
    for at in 0..3 {
        cluster.spawn(at);
    }
    for at in 0..3 {
        cluster.members[at].process().ready();
        assert_eq!(cluster.node(at).value("k0").as_deref(), Some("w"));
    }
}

#[test]
fn clients_on_every_member_at_once_see_one_order() {
    const CLIENTS: usize = 6;
    const ROUNDS: usize = 50;
    let cluster = Cluster::start(3);
    let seen = std::sync::Mutex::new(std::collections::BTreeMap::new());
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (cluster, seen) = (&cluster, &seen);
            scope.spawn(move || {
                let mut writer = cluster.node(number % 3).connect();
                let mut reader = cluster.node((number + 1) % 3).connect();
                for round in 0..ROUNDS {
                    let key = format!("c{number}");
                    let answer = writer.request("POST", "/v3/kv/put", &put_body(&key, &round.to_string()));
                    assert_eq!(answer.status, 200, "{}", answer.body);
                    let revision: i64 = answer.json()["header"]["revision"].as_str().unwrap().parse().unwrap();
                    assert!(seen.lock().unwrap().insert(revision, key.clone()).is_none(), "{revision} was given twice");
                    let body = json!({"key": base64(&key)}).to_string();
                    let answer = reader.request("POST", "/v3/kv/range", &body).json();
                    assert_eq!(answer["kvs"][0]["value"], base64(&round.to_string()), "a stale read");
                    assert!(answer["header"]["revision"].as_str().unwrap().parse::<i64>().unwrap() >= revision);
                }
            });
        }
    });
    roots_agree(&cluster);
    let seen = seen.into_inner().unwrap();
    let dense: Vec<i64> = (2..).take(CLIENTS * ROUNDS).collect();
    assert_eq!(seen.into_keys().collect::<Vec<_>>(), dense);
    cluster.same_state();
}

/// The state roots that two members have kept of the same index are equal.
fn roots_agree(cluster: &Cluster) {
    let mut known = std::collections::BTreeMap::new();
    let mut compared = 0;
    for at in cluster.running() {
        let text = cluster.node(at).get("/tally/roots").body;
        for line in text.lines() {
            let (index, root) = line.split_once(' ').unwrap();
            assert_eq!(root.len(), 32, "{line}");
            if let Some(other) = known.insert(index.parse::<u64>().unwrap(), root.to_owned()) {
                assert_eq!(other, root, "the states differ after entry {index}");
                compared += 1;
            }
        }
    }
    assert!(compared > 2, "{known:?}");
}

/// Puts through the members `at` until `stop`, and counts those that were acknowledged. None may fail in a way that says
/// nothing about its outcome.
fn write_on(cluster: &Cluster, at: usize, stop: &AtomicBool, acknowledged: &AtomicU64) {
    let mut client = cluster.node(at).connect();
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let answer = client.request("POST", "/v3/kv/put", &put_body(&format!("w{at}"), &number.to_string()));
        assert_eq!(answer.status, 200, "an election is a pause, not a failure: {}", answer.body);
        number += 1;
        acknowledged.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn writes_go_on_when_the_leader_is_killed() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    let others: Vec<usize> = (0..3).filter(|at| *at != leader).collect();
    let (stop, acknowledged) = (AtomicBool::new(false), AtomicU64::new(0));
    let pid = cluster.node(leader).pid();
    std::thread::scope(|scope| {
        for at in &others {
            scope.spawn(|| write_on(&cluster, *at, &stop, &acknowledged));
        }
        eventually("some writes", || (acknowledged.load(Ordering::Relaxed) > 20).then_some(()));
        common::signal(pid, "KILL");
        let before = acknowledged.load(Ordering::Relaxed);
        eventually("writes under the next leader", || {
            (acknowledged.load(Ordering::Relaxed) > before + 200).then_some(())
        });
        stop.store(true, Ordering::Relaxed);
    });
    cluster.kill(leader);
    assert_ne!(cluster.leader(), leader);
    for at in &others {
        assert!(cluster.node(*at).metric("etcd_server_leader_changes_seen_total") >= 1.0);
    }
    cluster.restart(leader);
    cluster.wait_level(leader);
    cluster.same_state();
}

#[test]
fn a_leader_that_is_stopped_hands_over_and_nobody_fails() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    let term = cluster.term(leader);
    let (stop, acknowledged) = (AtomicBool::new(false), AtomicU64::new(0));
    let others: Vec<usize> = (0..3).filter(|at| *at != leader).collect();
    std::thread::scope(|scope| {
        for at in &others {
            scope.spawn(|| write_on(&cluster, *at, &stop, &acknowledged));
        }
        eventually("some writes", || (acknowledged.load(Ordering::Relaxed) > 20).then_some(()));
        cluster.node(leader).signal("TERM");
        let before = acknowledged.load(Ordering::Relaxed);
        eventually("writes under the next leader", || {
            (acknowledged.load(Ordering::Relaxed) > before + 200).then_some(())
        });
        stop.store(true, Ordering::Relaxed);
    });
    let (code, log) = cluster.ended(leader);
    assert_eq!(code, Some(0), "{}", log.join("\n"));
    let next = cluster.leader();
    assert_ne!(next, leader);
    assert_eq!(cluster.term(next), term + 1, "one election was enough");
}

#[test]
fn clients_of_a_leader_that_is_stopped_are_told_to_go() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    let mut clients: Vec<Client> = (0..4).map(|_| cluster.node(leader).connect()).collect();
    for client in &mut clients {
        assert_eq!(client.request("POST", "/v3/kv/put", &put_body("k", "v")).status, 200);
    }
    let mut told = 0;
    std::thread::scope(|scope| {
        let gone: Vec<_> = clients
            .into_iter()
            .map(|mut client| {
                scope.spawn(move || {
                    loop {
                        let body = put_body("k", "w");
                        let request = format!(
                            "POST /v3/kv/put HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{body}",
                            body.len()
                        );
                        client.send(request.as_bytes());
                        let answer = client.answer(false).expect("an answer to what was sent");
                        assert_eq!(answer.status, 200, "{}", answer.body);
                        if answer.header("connection") == Some("close") {
                            return;
                        }
                    }
                })
            })
            .collect();
        cluster.node(leader).signal("TERM");
        for client in gone {
            client.join().unwrap();
            told += 1;
        }
    });
    assert_eq!(told, 4);
    let (code, log) = cluster.ended(leader);
    assert_eq!(code, Some(0), "{}", log.join("\n"));
}

#[test]
fn leadership_is_handed_over_on_request() {
    let cluster = Cluster::start(3);
    let leader = cluster.leader();
    let (from, to) = (cluster.node(leader), cluster.follower());
    let transfer = |node: &common::Tally, target: &str| {
        node.post("/v3/maintenance/transfer-leadership", &json!({"targetID": target}).to_string())
    };
    refused(&transfer(cluster.node(to), &cluster.id(to)), 400, 9, "etcdserver: not leader");
    refused(&transfer(from, "12345"), 400, 9, "etcdserver: bad leader transferee");
    assert_eq!(transfer(from, &cluster.id(leader)).body, "{}");
    assert_eq!(cluster.leader(), leader);
    let answer = transfer(from, &cluster.id(to));
    assert_eq!((answer.status, answer.body.as_str()), (200, "{}"));
    assert_eq!(cluster.leader(), to);
    from.put("k", "through the old leader");
}

#[test]
fn without_a_quorum_clients_are_told() {
    let mut cluster = Cluster::with(3, &["--election-timeout=500"]);
    cluster.node(0).put("k", "v");
    let survivor = cluster.follower();
    cluster.wait_level(survivor);
    for at in (0..3).filter(|at| *at != survivor).collect::<Vec<_>>() {
        cluster.kill(at);
    }
    let node = cluster.node(survivor);
    eventually("the loss of the leader is noticed", || (node.metric("etcd_server_has_leader") == 0.0).then_some(()));
    let serializable = json!({"key": base64("k"), "serializable": true}).to_string();
    let header = |name: &str| {
        let headers = [(name, "true")];
        node.connect().request_with("POST", "/v3/kv/range", &headers, &serializable)
    };
    for name in ["Grpc-Metadata-hasleader", "hasleader"] {
        let started = Instant::now();
        refused(&header(name), 503, 14, "etcdserver: no leader");
        assert!(started.elapsed() < Duration::from_secs(3), "told at once");
    }
    assert_eq!(header("other").json()["kvs"][0]["value"], base64("v"));
    let status = cluster.status(survivor);
    assert_eq!((&status["errors"], &status["leader"]), (&json!(["etcdserver: no leader"]), &json!(null)));
    let health = node.get("/health");
    assert_eq!((health.status, health.body.trim()), (503, r#"{"health":"false","reason":"RAFT NO LEADER"}"#));
    assert_eq!(node.get("/livez").status, 200);
    std::thread::scope(|scope| {
        let ready = scope.spawn(|| node.get("/readyz"));
        let read = scope.spawn(|| node.post("/v3/kv/range", &json!({"key": base64("k")}).to_string()));
        let write = node.post("/v3/kv/put", &put_body("k", "w"));
        for answer in [write, read.join().unwrap()] {
            assert_eq!(answer.status, 503, "{}", answer.body);
            let message = answer.json()["message"].as_str().unwrap().to_owned();
            assert!(message.starts_with("etcdserver: request timed out"), "{message}");
            // No leader had it, so it has no effect, ever.
            assert!(answer.json()["outcome"].is_null(), "{}", answer.body);
        }
        let ready = ready.join().unwrap();
        assert_eq!(ready.status, 503);
        assert!(ready.body.contains("[-]linearizable_read failed: etcdserver: request timed out"), "{}", ready.body);
    });
    // Stopped without a quorum, it ends cleanly all the same.
    cluster.stop(survivor);
}

#[test]
fn a_member_waits_for_the_others_and_can_be_stopped_meanwhile() {
    let mut cluster = Cluster::prepare(3, &[]);
    cluster.spawn(0);
    cluster.members[0].process().wait_for("serving peer traffic");
    assert!(std::net::TcpStream::connect(("127.0.0.1", cluster.members[0].client)).is_err(), "clients are not served");
    cluster.members[0].process().wait_for("waiting for a leader");
    cluster.stop(0);
    // What it began then is gone on with.
    for at in 0..3 {
        cluster.spawn(at);
    }
    for at in 0..3 {
        cluster.members[at].process().ready();
    }
    cluster.node(1).put("k", "v");
}

#[test]
fn two_of_three_found_a_cluster() {
    let mut cluster = Cluster::prepare(3, &[]);
    cluster.spawn(0);
    cluster.spawn(1);
    cluster.members[0].process().ready();
    cluster.members[1].process().ready();
    cluster.node(0).put("k", "v");
    let names: Vec<bool> = cluster.list(0).iter().map(|member| member["name"].is_string()).collect();
    assert_eq!(names.iter().filter(|named| **named).count(), 2, "who has not started has no name");
    cluster.restart(2);
    assert_eq!(cluster.node(2).value("k").as_deref(), Some("v"));
}
