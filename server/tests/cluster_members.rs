//! Members come, vote, move and go. F56, F57, F59 and F61 are rows of the catalogue of etcd's bugs.
#![allow(clippy::unwrap_used)]

mod common;

use common::cluster::{Cluster, eventually, eventually_ok, refused};
use common::{Tally, base64};
use serde_json::{Value, json};

fn change(node: &Tally, what: &str, body: &Value) -> common::Answer {
    node.post(&format!("/v3/cluster/member/{what}"), &body.to_string())
}

fn is_learner(cluster: &Cluster, asked: usize, id: &str) -> bool {
    let members = cluster.list(asked);
    let member = members.iter().find(|member| member["ID"] == id).unwrap_or_else(|| panic!("no {id} in {members:?}"));
    member["isLearner"] == true
}

#[test]
fn changes_that_make_no_sense_are_refused_as_in_etcd() {
    let mut cluster = Cluster::start(3);
    let at = cluster.follower();
    let node = cluster.node(at);
    for urls in [json!([]), json!(["nonsense"]), json!(["http://127.0.0.1:1", "ftp://h:1"])] {
        let answer = change(node, "add", &json!({"peerURLs": urls}));
        refused(&answer, 400, 3, "etcdserver: given member URLs are invalid");
    }
    let taken = change(node, "add", &json!({"peerURLs": [cluster.members[2].peer_url()]}));
    refused(&taken, 400, 9, "etcdserver: Peer URLs already exists");
    for what in ["remove", "promote", "update"] {
        let answer = change(node, what, &json!({"ID": "12345", "peerURLs": ["http://127.0.0.1:1"]}));
        refused(&answer, 404, 5, "etcdserver: member not found");
    }
    let id = cluster.id(0);
    refused(&change(node, "promote", &json!({"ID": id})), 400, 9, "etcdserver: can only promote a learner member");
    let taken = change(node, "update", &json!({"ID": id, "peerURLs": [cluster.members[1].peer_url()]}));
    refused(&taken, 400, 9, "etcdserver: Peer URLs already exists");
    let bad = change(node, "update", &json!({"ID": id, "peerURLs": ["junk"]}));
    refused(&bad, 400, 3, "etcdserver: given member URLs are invalid");
    assert_eq!(change(node, "add", &json!({"peerURLs": "x"})).status, 400);
    assert_eq!(node.get("/v3/cluster/member/list").status, 501);
    assert_eq!(cluster.list(at).len(), 3);
    cluster.stop(at);
}

#[test]
fn a_learner_joins_serves_a_little_and_is_promoted() {
    let mut cluster = Cluster::start(3);
    cluster.node(0).put("k", "v");
    let asked = cluster.follower();
    let added = cluster.grow();
    let id = cluster.add(asked, added, true);
    let unstarted = cluster.list(asked).into_iter().find(|member| member["ID"] == id.as_str()).unwrap();
    let expected = json!({"ID": id, "peerURLs": [cluster.members[added].peer_url()], "isLearner": true});
    assert_eq!(unstarted, expected, "who has not started has neither name nor client URLs");
    // F59: what does not run is not promoted.
    let node = cluster.node(asked);
    let early = change(node, "promote", &json!({"ID": id}));
    refused(&early, 400, 9, "etcdserver: can only promote a learner member which is in sync with leader");
    let second = change(node, "add", &json!({"peerURLs": ["http://127.0.0.1:1"], "isLearner": true}));
    refused(&second, 400, 9, "etcdserver: too many learner members in cluster");

    let process = cluster.launch_joining(added).spawn();
    cluster.run(added, process);
    cluster.members[added].process().ready();
    let learner = cluster.node(added);
    let range = |serializable: bool| {
        learner.post("/v3/kv/range", &json!({"key": base64("k"), "serializable": serializable}).to_string())
    };
    eventually("the learner has the data", || {
        (range(true).json()["kvs"][0]["value"] == base64("v").as_str()).then_some(())
    });
    const LEARNER: &str = "etcdserver: rpc not supported for learner";
    refused(&range(false), 400, 9, LEARNER);
    refused(&learner.post("/v3/kv/put", &json!({"key": base64("k")}).to_string()), 400, 9, LEARNER);
    for path in
        ["kv/deleterange", "kv/txn", "kv/compaction", "maintenance/hash", "maintenance/hashkv", "cluster/member/list"]
    {
        refused(&learner.post(&format!("/v3/{path}"), "{}"), 400, 9, LEARNER);
    }
    assert_eq!(cluster.status(added)["isLearner"], true);
    assert_eq!(learner.metric("etcd_server_is_learner"), 1.0);
    assert_eq!(learner.get("/health?serializable=true").status, 200);
    let ready = learner.get("/readyz");
    assert_eq!(ready.status, 503);
    assert!(ready.body.contains("[-]non_learner failed: not supported for learner"), "{}", ready.body);
    let transfer = json!({"targetID": id}).to_string();
    let transferred = cluster.node(cluster.leader()).post("/v3/maintenance/transfer-leadership", &transfer);
    refused(&transferred, 400, 9, "etcdserver: bad leader transferee");

    // F57: a learner that moves stays a learner.
    let node = cluster.node(asked);
    let moved = change(
        node,
        "update",
        &json!({"ID": id, "peerURLs": [cluster.members[added].peer_url(), "http://127.0.0.1:1"]}),
    );
    assert_eq!(moved.status, 200, "{}", moved.body);
    assert!(is_learner(&cluster, asked, &id));
    let back = change(node, "update", &json!({"ID": id, "peerURLs": [cluster.members[added].peer_url()]}));
    assert_eq!(back.status, 200, "{}", back.body);

    let promoted = eventually_ok(node, "/v3/cluster/member/promote", &json!({"ID": id}));
    let shown = promoted["members"].as_array().unwrap().iter().find(|member| member["ID"] == id.as_str()).unwrap();
    assert!(shown["isLearner"].is_null(), "{promoted}");
    assert_eq!(node.metric("etcd_server_learner_promote_successes"), 1.0);
    assert!(node.metric("etcd_server_learner_promote_failures") >= 1.0);
    eventually("it votes", || cluster.status(added)["isLearner"].is_null().then_some(()));
    cluster.node(added).put("k", "from the new voter");
    assert_eq!(cluster.node(added).get("/readyz").status, 200);
    // F56: it is a voter after a restart as well.
    cluster.stop(added);
    let process = cluster.launch_joining(added).spawn();
    cluster.run(added, process);
    cluster.members[added].process().ready();
    assert!(!is_learner(&cluster, added, &id));
    cluster.same_state();
}

#[test]
fn a_removed_member_stops_for_good() {
    let mut cluster = Cluster::start(3);
    let (leader, gone) = (cluster.leader(), cluster.follower());
    let id = cluster.id(gone);
    let answer = change(cluster.node(leader), "remove", &json!({"ID": id}));
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.json()["members"].as_array().unwrap().len(), 2);
    let (code, log) = cluster.ended(gone);
    assert_eq!(code, Some(0), "{}", log.join("\n"));
    assert!(log.iter().any(|line| line.contains("permanently removed")), "{}", log.join("\n"));
    refused(&change(cluster.node(leader), "remove", &json!({"ID": id})), 404, 5, "etcdserver: member not found");
    cluster.node(leader).put("k", "v");
    // Started again, it learns it again.
    cluster.spawn(gone);
    let (code, log) = cluster.ended(gone);
    assert_eq!(code, Some(0), "{}", log.join("\n"));
    assert!(log.iter().any(|line| line.contains("permanently removed")), "{}", log.join("\n"));
    // Without its data it is refused as well, and says why.
    std::fs::remove_dir_all(&cluster.members[gone].data).unwrap();
    let error = cluster.launch(gone).fail();
    assert!(error.contains("was removed from cluster"), "{error}");

    // Added again, it is another member.
    let new_id = cluster.add(leader, gone, false);
    assert_ne!(new_id, id);
    let process = cluster.launch_joining(gone).spawn();
    cluster.run(gone, process);
    cluster.members[gone].process().ready();
    assert_eq!(cluster.node(gone).value("k").as_deref(), Some("v"));
    cluster.same_state();
}

#[test]
fn the_leader_removes_itself() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    let id = cluster.id(leader);
    cluster.node(leader).put("k", "v");
    let answer = change(cluster.node(leader), "remove", &json!({"ID": id}));
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(answer.json()["members"].as_array().unwrap().iter().all(|member| member["ID"] != id.as_str()));
    let (code, log) = cluster.ended(leader);
    assert_eq!(code, Some(0), "{}", log.join("\n"));
    let next = cluster.leader();
    assert_ne!(next, leader);
    assert_eq!(cluster.node(next).value("k").as_deref(), Some("v"));
    cluster.node(next).put("k", "w");
    assert_eq!(cluster.list(next).len(), 2);
}

#[test]
fn a_single_member_grows_to_three() {
    let mut cluster = Cluster::start(1);
    cluster.node(0).put("k", "v");
    for _ in 0..2 {
        let at = cluster.grow();
        cluster.add(0, at, false);
        let process = cluster.launch_joining(at).spawn();
        cluster.run(at, process);
        cluster.members[at].process().ready();
        assert_eq!(cluster.node(at).value("k").as_deref(), Some("v"));
    }
    let names: Vec<Value> = cluster.list(2).iter().map(|member| member["name"].clone()).collect();
    assert_eq!(names.len(), 3);
    cluster.kill(0);
    cluster.node(1).put("k", "without the founder");
    assert_eq!(cluster.node(2).value("k").as_deref(), Some("without the founder"));
}

/// F61: what counts is whether those who run are a quorum after the change. Two are none of four voters; four are one of
/// six, and of seven.
#[test]
fn the_quorum_is_protected() {
    let mut cluster = Cluster::start(3);
    let (leader, down) = (cluster.leader(), cluster.follower());
    let third = (0..3).find(|at| *at != leader && *at != down).unwrap();
    let third_id = cluster.id(third);
    let down_id = cluster.id(down);
    cluster.kill(down);
    notices_who_is_gone(&cluster, leader);
    let node = cluster.node(leader);
    let added = change(node, "add", &json!({"peerURLs": ["http://127.0.0.1:1"]}));
    refused(&added, 503, 14, "etcdserver: unhealthy cluster");
    let removed = change(node, "remove", &json!({"ID": third_id}));
    refused(&removed, 503, 14, "etcdserver: unhealthy cluster");
    // Nothing has changed, and what was there goes on.
    node.put("k", "v");
    assert_eq!(cluster.node(third).value("k").as_deref(), Some("v"));
    // A learner costs nothing; while it does not run it is not promoted.
    let learner = change(node, "add", &json!({"peerURLs": ["http://127.0.0.1:1"], "isLearner": true}));
    assert_eq!(learner.status, 200, "{}", learner.body);
    let removed = change(node, "remove", &json!({"ID": down_id}));
    assert_eq!(removed.status, 200, "{}", removed.body);
}

#[test]
fn with_one_of_five_down_a_member_can_be_added() {
    let mut cluster = Cluster::start(5);
    let (leader, down) = (cluster.leader(), cluster.follower());
    cluster.kill(down);
    notices_who_is_gone(&cluster, leader);
    let node = cluster.node(leader);
    let added = change(node, "add", &json!({"peerURLs": ["http://127.0.0.1:1"]}));
    assert_eq!(added.status, 200, "{}", added.body);
    node.put("k", "four of six");
    let another = change(node, "add", &json!({"peerURLs": ["http://127.0.0.1:2"]}));
    assert_eq!(another.status, 200, "{}", another.body);
    let too_many = change(node, "add", &json!({"peerURLs": ["http://127.0.0.1:3"]}));
    refused(&too_many, 503, 14, "etcdserver: unhealthy cluster");
    node.put("k", "four of seven");
}

/// A learner that has caught up and is down would count among the voters and vote for nothing.
#[test]
fn a_learner_that_is_down_is_not_promoted() {
    let mut cluster = Cluster::start(1);
    let (learner, id) = cluster.join_learner();
    // So many that it does not matter whether the leader has heard of the last ones.
    for number in 0..40 {
        cluster.node(0).put("k", &number.to_string());
    }
    cluster.wait_level(learner);
    cluster.kill(learner);
    notices_who_is_gone(&cluster, 0);
    let promoted = change(cluster.node(0), "promote", &json!({"ID": id}));
    refused(&promoted, 503, 14, "etcdserver: unhealthy cluster");
    cluster.node(0).put("k", "w");
}

/// Waits until the leader is connected only to those who run.
fn notices_who_is_gone(cluster: &Cluster, leader: usize) {
    let others = cluster.running().len() - 1;
    let connected = || cluster.node(leader).metric_total("etcd_network_active_peers");
    eventually("the leader notices who is gone", || (connected() == others as f64).then_some(()));
}

#[test]
fn a_member_moves_to_another_peer_url() {
    let mut cluster = Cluster::start(3);
    let at = cluster.follower();
    let asked = cluster.leader();
    let id = cluster.id(at);
    cluster.stop(at);
    let port = common::cluster::free_ports(1)[0];
    let new = format!("http://127.0.0.1:{port}");
    let body = json!({"ID": id, "peerURLs": [new]});
    let answer = eventually_ok(cluster.node(asked), "/v3/cluster/member/update", &body);
    assert!(answer["members"].as_array().unwrap().iter().any(|member| member["peerURLs"] == json!([new])), "{answer}");
    cluster.members[at].peer = port;
    cluster.node(asked).put("k", "v");
    // Its first flags no longer derive its ids: it says so, and what to do.
    let founders = cluster.founders.clone();
    cluster.founders = cluster.members.iter().map(|member| member.named_url()).collect::<Vec<_>>().join(",");
    let error = cluster.launch(at).fail();
    assert!(error.contains("--initial-cluster-state=existing"), "{error}");
    let process = cluster.launch(at).arg("--initial-cluster-state=existing").spawn();
    cluster.run(at, process);
    cluster.members[at].process().ready();
    assert_eq!(cluster.node(at).value("k").as_deref(), Some("v"));
    cluster.founders = founders;
}
