//! A member that comes back with less than it has acknowledged, or as somebody else, is refused, with the reason and what to
//! do; never a silent rejoin with lost votes.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::cluster::{Cluster, copy};
use serde_json::json;

fn remove(path: &Path) {
    std::fs::remove_dir_all(path).unwrap();
}

/// It runs again with what it should have.
fn returns(cluster: &mut Cluster, at: usize) {
    cluster.restart(at);
    cluster.wait_level(at);
    cluster.same_state();
}

#[test]
fn flags_of_another_cluster_are_refused() {
    let mut cluster = Cluster::start(3);
    cluster.node(0).put("k", "v");
    cluster.stop(1);
    let error = cluster.launch(1).arg("--initial-cluster-token=other").fail();
    assert!(error.contains("belongs to member") && error.contains("--initial-cluster-token"), "{error}");
    // A directory that another member has used.
    cluster.stop(2);
    let (own, other) = (cluster.members[1].data.clone(), cluster.members[2].data.clone());
    cluster.members[1].data = other;
    let error = cluster.launch(1).fail();
    assert!(error.contains("belongs to member") && error.contains("--data-dir"), "{error}");
    cluster.members[1].data = own;
    cluster.restart(2);
    returns(&mut cluster, 1);
}

#[test]
fn a_wiped_member_does_not_come_back_by_itself() {
    let mut cluster = Cluster::start(3);
    cluster.node(0).put("k", "v");
    let at = cluster.follower();
    let asked = cluster.leader();
    let id = cluster.id(at);
    cluster.kill(at);
    let (data, aside) = (cluster.members[at].data.clone(), cluster.root.path().join("aside"));
    std::fs::rename(&data, &aside).unwrap();
    for state in ["new", "existing"] {
        let error = cluster.launch(at).arg(&format!("--initial-cluster-state={state}")).fail();
        assert!(error.contains("has run in cluster") && error.contains("remove the member"), "{state}: {error}");
    }
    // With its data it may.
    let _ = std::fs::remove_dir_all(&data);
    std::fs::rename(&aside, &data).unwrap();
    returns(&mut cluster, at);
    // And without, as another member.
    cluster.kill(at);
    remove(&data);
    cluster.node(asked).ok("/v3/cluster/member/remove", &json!({"ID": id}));
    cluster.add(asked, at, false);
    let process = cluster.launch_joining(at).spawn();
    cluster.run(at, process);
    cluster.members[at].process().ready();
    assert_eq!(cluster.node(at).value("k").as_deref(), Some("v"));
}

/// The others notice it even if the member itself could not ask them.
#[test]
fn a_directory_made_anew_under_an_old_identity_is_refused() {
    let mut cluster = Cluster::start(3);
    cluster.node(0).put("k", "v");
    let at = cluster.follower();
    cluster.kill(at);
    remove(&cluster.members[at].data);
    // Founded by itself, with nobody there to say that the cluster runs already.
    let others: Vec<usize> = (0..3).filter(|other| *other != at).collect();
    others.iter().for_each(|other| cluster.node(*other).signal("STOP"));
    cluster.spawn(at);
    cluster.members[at].process().wait_for("serving peer traffic");
    others.iter().for_each(|other| cluster.node(*other).signal("CONT"));
    let (code, log) = cluster.ended(at);
    assert_eq!(code, Some(1), "{}", log.join("\n"));
    let said = log.join("\n");
    assert!(said.contains("directory"), "{said}");
    cluster.node(others[0]).put("k", "w");
}

#[test]
fn a_wiped_log_or_store_is_refused_or_rebuilt() {
    let mut cluster = Cluster::start(3);
    cluster.node(0).put("k", "v");
    let at = cluster.follower();
    cluster.stop(at);
    let member = cluster.members[at].data.join("member");
    let (wal, aside) = (member.join("wal"), cluster.root.path().join("wal"));
    std::fs::rename(&wal, &aside).unwrap();
    let error = cluster.launch(at).fail();
    assert!(error.contains("log was removed"), "{error}");
    let _ = std::fs::remove_dir_all(&wal);
    std::fs::rename(&aside, &wal).unwrap();
    // A log that reaches back to its beginning can build the store again.
    remove(&member.join("db"));
    returns(&mut cluster, at);
}

#[test]
fn a_store_whose_log_has_been_cut_cannot_be_wiped() {
    let mut cluster = Cluster::with(3, &["--snapshot-count=10", "--snapshot-catchup-entries=1"]);
    let at = cluster.follower();
    let value = "x".repeat(1 << 20);
    common::cluster::eventually("the log is cut", || {
        cluster.node(at).put("k", &value);
        (cluster.node(at).metric("tally_log_purged_index") > 0.0).then_some(())
    });
    cluster.stop(at);
    let db = cluster.members[at].data.join("member/db");
    let aside = cluster.root.path().join("db");
    std::fs::rename(&db, &aside).unwrap();
    let error = cluster.launch(at).fail();
    assert!(error.contains("no store") && error.contains("rebuild this member"), "{error}");
    let _ = std::fs::remove_dir_all(&db);
    std::fs::rename(&aside, &db).unwrap();
    returns(&mut cluster, at);
}

#[test]
fn an_older_copy_of_a_directory_is_refused() {
    let mut cluster = Cluster::start(3);
    cluster.node(0).put("k", "old");
    let at = cluster.follower();
    cluster.wait_level(at);
    cluster.stop(at);
    let (data, old, new) =
        (cluster.members[at].data.clone(), cluster.root.path().join("old"), cluster.root.path().join("new"));
    copy(&data, &old);
    cluster.restart(at);
    for number in 0..50 {
        cluster.node(at).put("k", &number.to_string());
    }
    cluster.wait_level(at);
    cluster.stop(at);
    std::fs::rename(&data, &new).unwrap();
    copy(&old, &data);
    cluster.spawn(at);
    let (code, log) = cluster.ended(at);
    let said = log.join("\n");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("acknowledged"), "{said}");
    remove(&data);
    std::fs::rename(&new, &data).unwrap();
    returns(&mut cluster, at);
}

#[test]
fn joining_as_nobody_or_beside_the_truth_is_refused() {
    let mut cluster = Cluster::start(3);
    let at = cluster.grow();
    let named = |members: &[usize], cluster: &Cluster| {
        members.iter().map(|at| cluster.members[*at].named_url()).collect::<Vec<_>>().join(",")
    };
    let join = |cluster: &Cluster, members: &[usize]| {
        cluster.members[at]
            .launch()
            .arg(&format!("--initial-cluster={}", named(members, cluster)))
            .arg("--initial-cluster-state=existing")
            .fail()
    };
    let error = join(&cluster, &[0, 1, 2, 3]);
    assert!(error.contains("member add"), "{error}");
    let leader = cluster.leader();
    cluster.add(leader, at, true);
    let error = join(&cluster, &[0, 1, 3]);
    assert!(error.contains("names 3 members") && error.contains("has 4"), "{error}");
    let elsewhere = format!("x=http://127.0.0.1:1,{}", named(&[0, 1, 3], &cluster));
    let error = cluster.members[at]
        .launch()
        .arg(&format!("--initial-cluster={elsewhere}"))
        .arg("--initial-cluster-state=existing")
        .fail();
    assert!(error.contains("x=http://127.0.0.1:1"), "{error}");
    assert!(!cluster.members[at].data.join("member").exists(), "nothing was begun");
    let process = cluster.launch_joining(at).spawn();
    cluster.run(at, process);
    cluster.members[at].process().ready();
}

/// The copy speaks with the member's name and the UUID of its directory, but has less than the member has acknowledged.
#[test]
fn a_copied_directory_is_refused_while_the_member_runs() {
    let mut cluster = Cluster::start(3);
    cluster.node(0).put("k", "v");
    let at = cluster.follower();
    cluster.wait_level(at);
    cluster.stop(at);
    let copied = cluster.root.path().join("copy");
    copy(&cluster.members[at].data, &copied);
    cluster.restart(at);
    for number in 0..50 {
        cluster.node(at).put("k", &number.to_string());
    }
    cluster.wait_level(at);
    let ports = common::cluster::free_ports(2);
    let ended = cluster
        .launch(at)
        .arg(&format!("--data-dir={}", copied.display()))
        .arg(&format!("--listen-client-urls=http://127.0.0.1:{}", ports[0]))
        .arg(&format!("--listen-peer-urls=http://127.0.0.1:{}", ports[1]))
        .run();
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("acknowledged"), "{}", ended.stderr);
    assert_eq!(cluster.node(at).put("k", "goes on"), 53);
    cluster.same_state();
}
