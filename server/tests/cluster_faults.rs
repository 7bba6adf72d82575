//! Members that pause, fall behind and come back.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::cluster::{Cluster, eventually, refused};
use serde_json::json;

/// Longer than a follower waits before it would stand for election.
const LONGER_THAN_AN_ELECTION: Duration = Duration::from_secs(3);

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
fn a_paused_follower_comes_back_without_disturbing_the_leader() {
    let cluster = Cluster::start(3);
    let (leader, paused) = (cluster.leader(), cluster.follower());
    let term = cluster.term(leader);
    cluster.node(paused).signal("STOP");
    for number in 0..20 {
        cluster.node(leader).put("k", &number.to_string());
    }
    std::thread::sleep(LONGER_THAN_AN_ELECTION);
    cluster.node(paused).signal("CONT");
    cluster.wait_level(paused);
    assert_eq!(cluster.node(paused).value("k").as_deref(), Some("19"));
    // If it had stood for election, this is when the others would have followed it.
    std::thread::sleep(LONGER_THAN_AN_ELECTION);
    assert_eq!(cluster.leader(), leader);
    let terms: Vec<u64> = (0..3).map(|at| cluster.term(at)).collect();
    assert_eq!(terms, [term; 3]);
    cluster.same_state();
}

#[test]
fn a_paused_leader_is_replaced_and_follows_when_it_comes_back() {
    let cluster = Cluster::start(3);
    let old = cluster.leader();
    let others: Vec<usize> = (0..3).filter(|at| *at != old).collect();
    cluster.node(old).signal("STOP");
    cluster.node(others[0]).put("k", "under the next leader");
    cluster.node(old).signal("CONT");
    // Read at the old leader: it must not believe that it still leads.
    assert_eq!(cluster.node(old).value("k").as_deref(), Some("under the next leader"));
    assert_ne!(cluster.leader(), old);
    cluster.wait_level(old);
    cluster.same_state();
}

/// A leader that hands over leads no more, whether there is somebody or not.
#[test]
fn leadership_is_not_given_to_a_member_that_is_not_there() {
    let mut cluster = Cluster::start(3);
    let gone = cluster.follower();
    let target = json!({"targetID": cluster.id(gone)}).to_string();
    cluster.kill(gone);
    // Until then it may just be slow.
    std::thread::sleep(LONGER_THAN_AN_ELECTION);
    let answer = eventually("the leader is asked", || {
        let answer = cluster.node(cluster.leader()).post("/v3/maintenance/transfer-leadership", &target);
        // On a busy machine somebody else may lead meanwhile.
        (!answer.body.contains("not leader")).then_some(answer)
    });
    refused(&answer, 400, 9, "etcdserver: bad leader transferee");
    cluster.node(cluster.leader()).put("k", "v");
}

#[test]
fn a_member_behind_the_log_gets_the_state_and_keeps_it() {
    let mut cluster = Cluster::with(3, &["--snapshot-count=10", "--snapshot-catchup-entries=1"]);
    cluster.node(0).put("before", "v");
    let behind = cluster.follower();
    let (leader, behind_at) = (cluster.leader(), cluster.applied(behind));
    cluster.kill(behind);
    let value = incompressible();
    eventually("the log is cut beyond what the member has", || {
        cluster.node(leader).put("big", &value);
        (cluster.node(leader).metric("tally_log_purged_index") > behind_at as f64).then_some(())
    });
    cluster.node(leader).put("after", "w");
    cluster.restart(behind);
    cluster.wait_level(behind);
    let check = |cluster: &Cluster| {
        let node = cluster.node(behind);
        assert_eq!(node.value("before").as_deref(), Some("v"));
        assert_eq!(node.value("after").as_deref(), Some("w"));
        assert!(node.value("big").is_some());
        assert_eq!(cluster.list(behind).iter().filter(|member| member["name"].is_string()).count(), 3);
    };
    check(&cluster);
    let sent = |at: usize, name: &str| cluster.node(at).metric_total(name);
    eventually("the snapshot is counted on both sides", || {
        let senders = (0..3).filter(|at| *at != behind);
        let success = senders.map(|at| sent(at, "etcd_network_snapshot_send_success")).sum::<f64>();
        let done = sent(behind, "etcd_server_snapshot_apply_in_progress_total") == 0.0;
        let received = sent(behind, "etcd_network_snapshot_receive_success");
        (success >= 1.0 && received >= 1.0 && done).then_some(())
    });
    // What was installed is what it serves, writes and figures included.
    cluster.node(behind).put("later", "x");
    eventually("the size is that of the new store", || {
        (cluster.status(behind)["dbSize"].as_str().unwrap().parse::<u64>().unwrap() > 1 << 20).then_some(())
    });
    cluster.same_state();
    cluster.kill(behind);
    cluster.restart(behind);
    cluster.wait_level(behind);
    check(&cluster);
    cluster.same_state();
    for at in 0..3 {
        cluster.stop(at);
    }
}

/// C: compactions and their sweep go on after a state was installed.
#[test]
fn history_is_compacted_on_every_member_and_swept_also_after_a_snapshot() {
    let mut cluster = Cluster::with(3, &["--snapshot-count=10", "--snapshot-catchup-entries=1"]);
    let behind = cluster.follower();
    let (leader, behind_at) = (cluster.leader(), cluster.applied(behind));
    cluster.kill(behind);
    let value = incompressible();
    eventually("the log is cut beyond what the member has", || {
        cluster.node(leader).put("big", &value);
        (cluster.node(leader).metric("tally_log_purged_index") > behind_at as f64).then_some(())
    });
    cluster.restart(behind);
    cluster.wait_level(behind);
    let revision = cluster.node(leader).put("k", "v");
    cluster.node(behind).ok("/v3/kv/compaction", &json!({"revision": revision}));
    for at in 0..3 {
        eventually("every member sweeps what was compacted", || {
            let node = cluster.node(at);
            let compacted = node.metric("etcd_debugging_mvcc_compact_revision") == revision as f64;
            (compacted && node.metric("etcd_debugging_mvcc_db_compaction_keys_total") > 0.0).then_some(())
        });
    }
    cluster.same_state();
}
