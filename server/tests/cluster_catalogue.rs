//! Rows of the catalogue of etcd's bugs (`docs/bug-catalogue.md`) that take real processes. The names carry the rows.
#![allow(clippy::unwrap_used)]

mod common;

use common::cluster::{Cluster, eventually, refused};
use common::{base64, directory, launch};
use serde_json::json;

/// A MiB of digits that takes about half of that on disk.
fn large() -> String {
    let mut state = 7_u32;
    let digits = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        char::from(b'0' + (state % 64) as u8)
    });
    digits.take(1 << 20).collect()
}

#[test]
fn row_04_restart_right_after_a_snapshot_install() {
    let mut cluster = Cluster::with(3, &["--snapshot-count=10", "--snapshot-catchup-entries=1"]);
    cluster.node(0).put("before", "v");
    let behind = cluster.follower();
    let (leader, behind_at) = (cluster.leader(), cluster.applied(behind));
    cluster.kill(behind);
    let value = large();
    eventually("the log is cut beyond what the member has", || {
        cluster.node(leader).put("large", &value);
        (cluster.node(leader).metric("tally_log_purged_index") > behind_at as f64).then_some(())
    });
    cluster.node(leader).put("after", "w");
    let goal = cluster.applied(leader);

    // Once while the snapshot comes in or is being installed.
    let incoming = cluster.members[behind].data.join("member/incoming");
    let comes_in = || std::fs::read_dir(&incoming).is_ok_and(|mut files| files.next().is_some());
    assert!(!comes_in());
    cluster.spawn(behind);
    eventually("a snapshot comes in", || comes_in().then_some(()));
    cluster.kill(behind);
    // And then as soon as it is installed.
    let received = |cluster: &Cluster| cluster.node(behind).metric_total("etcd_network_snapshot_receive_success");
    cluster.restart(behind);
    assert!(cluster.applied(behind) >= goal);
    cluster.kill(behind);
    for _ in 0..2 {
        cluster.restart(behind);
        assert!(cluster.applied(behind) >= goal, "the position of the snapshot is its own now");
        assert_eq!(received(&cluster), 0.0, "its log goes on behind the snapshot");
        assert_eq!(cluster.node(behind).value("before").as_deref(), Some("v"));
        assert_eq!(cluster.node(behind).value("after").as_deref(), Some("w"));
        assert_eq!(cluster.node(behind).value("large").as_ref(), Some(&value));
        cluster.node(behind).put("after", "w");
        cluster.same_state();
        cluster.kill(behind);
    }
}

#[test]
fn row_11_a_range_at_a_compacted_revision_in_a_txn_is_refused_whoever_is_asked() {
    let cluster = Cluster::start(3);
    let old = cluster.node(0).put("k", "old");
    let newest = cluster.node(1).put("k", "new");
    cluster.node(2).ok("/v3/kv/compaction", &json!({"revision": newest}));
    let txn = json!({"success": [
        {"requestPut": {"key": base64("x"), "value": base64("v")}},
        {"requestRange": {"key": base64("k"), "revision": old}},
    ]});
    for at in 0..3 {
        let answer = cluster.node(at).post("/v3/kv/txn", &txn.to_string());
        refused(&answer, 400, 11, "etcdserver: mvcc: required revision has been compacted");
    }
    for at in 0..3 {
        assert_eq!(cluster.node(at).value("x"), None);
    }
    assert_eq!(cluster.node(0).put("k", "next"), newest + 1, "none of them made a revision");
    cluster.same_state();
}

/// Without fsync a power cut may cost data, but what is acknowledged has been handed to the system: a killed process loses
/// nothing.
#[test]
fn row_27_without_fsync_everything_is_written_all_the_same() {
    let root = directory();
    let data = root.path().join("d");
    let start = || launch(&data).arg("--unsafe-no-fsync").start();
    for round in 0..3 {
        let tally = start();
        for number in 0..50 {
            tally.put(&format!("k{round}/{number}"), "v");
        }
        tally.kill();
    }
    let tally = start();
    for round in 0..3 {
        for number in 0..50 {
            assert_eq!(tally.value(&format!("k{round}/{number}")).as_deref(), Some("v"));
        }
    }
    tally.stop();
}

#[test]
fn row_60_one_member_does_not_make_itself_the_cluster() {
    let mut cluster = Cluster::start(3);
    cluster.node(0).put("k", "v");
    let at = cluster.follower();
    cluster.stop(at);
    let error = cluster.launch(at).arg("--force-new-cluster").fail();
    assert!(error.contains("--force-new-cluster") && error.contains("not in this version"), "{error}");
    cluster.restart(at);
    assert_eq!(cluster.list(at).len(), 3);
    cluster.wait_level(at);
    assert_eq!(cluster.node(at).value("k").as_deref(), Some("v"));
    cluster.same_state();
}
