//! Watching on three members: leaders that change, states that are replaced, members that lose their quorum.
#![allow(clippy::unwrap_used)]

mod common;

use common::base64;
use common::cluster::{Cluster, eventually};
use common::watch::{JsonWatch, key, number};
use serde_json::json;

/// More than the windows and socket buffers of a connection between members.
const IN_FLIGHT_MIB: usize = 40;
/// More than make a crowd.
const CROWD: usize = 20;

/// Writes until the log is cut beyond all that can be on its way to a member that has been paused.
fn cut_off(cluster: &Cluster, leader: usize, value: &str) {
    let node = cluster.node(leader);
    for _ in 0..IN_FLIGHT_MIB {
        node.put("big", value);
    }
    let goal = cluster.applied(leader) as f64;
    eventually("the log is cut beyond what the member has", || {
        node.put("big", value);
        (node.metric("tally_log_purged_index") >= goal).then_some(())
    });
}

/// A MiB of text that takes a MiB on disk as well.
fn incompressible() -> String {
    let mut state = 1_u64;
    let mut letter = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b' ' + (state >> 58) as u8)
    };
    (0..1 << 20).map(|_| letter()).collect()
}

#[test]
fn a_change_of_the_leader_is_not_felt_by_watchers() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    let others: Vec<usize> = (0..3).filter(|at| *at != leader).collect();
    let mut watches: Vec<JsonWatch> =
        others.iter().map(|at| JsonWatch::on(&cluster.node(*at).address, key("k"))).collect();
    for value in 0..10 {
        cluster.node(leader).put("k", &value.to_string());
    }
    cluster.kill(leader);
    for value in 10..20 {
        cluster.node(others[0]).put("k", &value.to_string());
    }
    for watch in &mut watches {
        let seen = watch.changes(20);
        let all: Vec<_> = (0..20).map(|value| (value + 2, "k".to_owned(), Some(value.to_string()))).collect();
        assert_eq!(seen, all);
    }
}

/// Rows 34 and 38 of the catalogue: a member that gets a snapshot while it is being watched.
#[test]
fn a_state_that_is_received_takes_the_watchers_over() {
    let cluster = Cluster::with(3, &["--snapshot-count=10", "--snapshot-catchup-entries=1"]);
    let (leader, behind) = (cluster.leader(), cluster.follower());
    let node = cluster.node(behind);
    let mut watch = JsonWatch::on(&node.address, key("k"));
    watch.send(&json!({"create_request": {"key": base64("k"), "range_end": base64("l"), "prev_kv": true}}));
    assert_eq!(watch.result()["created"], true);
    let mut future = JsonWatch::on(&node.address, json!({"key": base64("k"), "start_revision": 1_000_000}));
    let mut quiet = JsonWatch::on(&node.address, key("quiet"));
    // Many that wait for the same are told of it together.
    let mut crowd: Vec<JsonWatch> = (0..CROWD).map(|_| JsonWatch::on(&node.address, key("k"))).collect();
    // Who waits for a lock, or observes an election, watches as well.
    for id in [7, 8] {
        cluster.node(leader).ok("/v3/lease/grant", &json!({"ID": id, "TTL": 600}));
    }
    let held = cluster.node(leader).ok("/v3/lock/lock", &json!({"name": base64("l"), "lease": 7}));
    let campaign = json!({"name": base64("e"), "lease": 7, "value": base64("one")});
    let elected = cluster.node(leader).ok("/v3/election/campaign", &campaign);
    let (mut waits, mut observes) = (node.connect(), node.connect());
    waits.ask("POST", "/v3/lock/lock", &[], &json!({"name": base64("l"), "lease": 8}).to_string());
    observes.ask("POST", "/v3/election/observe", &[], &json!({"name": base64("e")}).to_string());
    assert_eq!(observes.object()["result"]["kv"]["value"], base64("one"));
    eventually("both of them watch, beside the others", || {
        (node.metric("etcd_debugging_mvcc_watcher_total") == (6 + CROWD) as f64).then_some(())
    });
    let mut revisions = vec![cluster.node(leader).put("k", "seen before")];
    for _ in 0..2 {
        assert_eq!(number(&watch.result()["header"]["revision"]), revisions[0]);
    }
    for watch in &mut crowd {
        assert_eq!(watch.changes(1), [(revisions[0], "k".to_owned(), Some("seen before".to_owned()))]);
    }
    eventually("there is a crowd", || (node.metric("tally_watch_crowd_streams") == CROWD as f64).then_some(()));
    node.signal("STOP");
    revisions.push(cluster.node(leader).put("k", "missed"));
    cut_off(&cluster, leader, &incompressible());
    revisions.push(cluster.node(leader).put("k", "missed, too"));
    node.signal("CONT");
    cluster.wait_level(behind);
    // The state is in force a moment before its receipt is counted.
    eventually("it came back by a snapshot", || {
        (node.metric_total("etcd_network_snapshot_receive_success") >= 1.0).then_some(())
    });
    revisions.push(cluster.node(leader).put("k", "after"));
    let values = ["missed", "missed, too", "after"];
    let expected: Vec<_> = revisions[1..]
        .iter()
        .zip(values)
        .map(|(revision, value)| (*revision, "k".to_owned(), Some(value.to_owned())))
        .collect();
    let (mut single, mut range) = (Vec::new(), Vec::new());
    while single.len() < 3 || range.len() < 3 {
        let result = watch.result();
        let to = if result["watch_id"].is_null() { &mut single } else { &mut range };
        to.extend(common::watch::changes(&result));
    }
    assert_eq!((single, range), (expected.clone(), expected.clone()));
    for watch in &mut crowd {
        assert_eq!(watch.changes(3), expected);
    }
    let last = cluster.node(leader).put("quiet", "now");
    assert_eq!(quiet.changes(1), [(last, "quiet".to_owned(), Some("now".to_owned()))]);
    cluster.node(leader).ok("/v3/lock/unlock", &json!({"key": held["key"]}));
    let locked = waits.answer(false).unwrap();
    assert_eq!((locked.status, &locked.json()["key"]), (200, &json!(base64("l/8"))), "{}", locked.body);
    let proclaim = json!({"leader": elected["leader"], "value": base64("two")});
    cluster.node(leader).ok("/v3/election/proclaim", &proclaim);
    let told = observes.object();
    assert_eq!(told["result"]["kv"]["value"], base64("two"), "{told}");
    // The one that waits for the future has been told nothing, and is told nothing now.
    future.send(&json!({"cancel_request": {}}));
    assert_eq!(future.result()["canceled"], true);
}

#[test]
fn a_state_whose_compaction_is_beyond_the_watcher_cancels_it() {
    let cluster = Cluster::with(3, &["--snapshot-count=10", "--snapshot-catchup-entries=1"]);
    let (leader, behind) = (cluster.leader(), cluster.follower());
    let node = cluster.node(behind);
    cluster.node(leader).put("k", "0");
    cluster.wait_level(behind);
    let mut watch = JsonWatch::on(&node.address, key("k"));
    node.signal("STOP");
    let value = incompressible();
    // None of what follows is on its way to it already.
    cut_off(&cluster, leader, &value);
    cluster.node(leader).put("k", "missed");
    let revision = cluster.node(leader).put("k", "kept");
    cluster.node(leader).ok("/v3/kv/compaction", &json!({"revision": revision}));
    cut_off(&cluster, leader, &value);
    node.signal("CONT");
    let canceled = watch.result();
    assert_eq!((&canceled["canceled"], number(&canceled["compact_revision"])), (&json!(true), revision), "{canceled}");
}

#[test]
fn who_wants_a_leader_hears_that_there_is_none_and_others_go_on() {
    let mut cluster = Cluster::with(3, &["--heartbeat-interval=50", "--election-timeout=500"]);
    let kept = cluster.follower();
    let address = cluster.node(kept).address.clone();
    let request = json!({"create_request": key("k")});
    let mut wants = JsonWatch::open_with(&address, "grpc-metadata-hasleader: true\r\n", &request);
    assert_eq!(wants.result()["created"], true);
    let mut other = JsonWatch::on(&address, key("k"));
    let gone: Vec<usize> = (0..3).filter(|at| *at != kept).collect();
    gone.iter().for_each(|at| cluster.kill(*at));
    let error = wants.error();
    assert_eq!((&error["code"], &error["message"]), (&json!(14), &json!("etcdserver: no leader")));
    // While there is none, such a stream is refused at once.
    let headers = [("grpc-metadata-hasleader", "true")];
    let answer = cluster.node(kept).connect().request_with("POST", "/v3/watch", &headers, &request.to_string());
    common::cluster::refused(&answer, 503, 14, "etcdserver: no leader");
    gone.iter().for_each(|at| cluster.spawn(*at));
    let revision = cluster.node(kept).put("k", "1");
    assert_eq!(other.changes(1), [(revision, "k".to_owned(), Some("1".to_owned()))]);
    // What is over is not held against streams that come later.
    let mut later = JsonWatch::open_with(&address, "grpc-metadata-hasleader: true\r\n", &request);
    assert_eq!(later.result()["created"], true);
    let revision = cluster.node(kept).put("k", "2");
    assert_eq!(later.changes(1), [(revision, "k".to_owned(), Some("2".to_owned()))]);
}

#[test]
fn a_learner_is_not_watched() {
    let mut cluster = Cluster::start(1);
    let (learner, _) = cluster.join_learner();
    let answer = cluster.node(learner).post("/v3/watch", &json!({"create_request": key("k")}).to_string());
    common::cluster::refused(&answer, 400, 9, "etcdserver: rpc not supported for learner");
}
