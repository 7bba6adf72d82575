//! Leases on three nodes: asked of any member, kept by whoever leads, and never by one that only thinks so.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::cluster::{Cluster, eventually};
use common::{Tally, base64};
use serde_json::{Value, json};

fn grant(tally: &Tally, id: i64, ttl_s: i64) {
    tally.ok("/v3/lease/grant", &json!({"ID": id, "TTL": ttl_s}));
}

fn put_leased(tally: &Tally, key: &str, id: i64) {
    tally.ok("/v3/kv/put", &json!({"key": base64(key), "value": base64("v"), "lease": id}));
}

fn time_to_live(tally: &Tally, id: i64) -> i64 {
    let answer = tally.ok("/v3/lease/timetolive", &json!({"ID": id}));
    answer["TTL"].as_str().map_or(0, |ttl| ttl.parse().unwrap())
}

/// The seconds that a renewal answers with; 0 if there is no such lease.
fn keep_alive(tally: &Tally, id: i64) -> i64 {
    let answer = tally.post("/v3/lease/keepalive", &json!({"ID": id}).to_string());
    assert_eq!(answer.status, 200, "{}", answer.body);
    let line: Value = serde_json::from_str(answer.body.lines().next().unwrap()).unwrap();
    assert!(line["error"].is_null(), "{line}");
    line["result"]["TTL"].as_str().map_or(0, |ttl| ttl.parse().unwrap())
}

#[test]
fn every_member_takes_every_request() {
    let cluster = Cluster::start(3);
    for at in 0..3 {
        let (one, next, last) = (cluster.node(at), cluster.node((at + 1) % 3), cluster.node((at + 2) % 3));
        let id = 10 + at as i64;
        grant(one, id, 60);
        put_leased(next, &format!("k{at}"), id);
        assert_eq!(keep_alive(last, id), 60);
        for node in [one, next, last] {
            let answer = node.ok("/v3/lease/timetolive", &json!({"ID": id, "keys": true}));
            assert_eq!(answer["keys"], json!([base64(&format!("k{at}"))]));
            assert!((1..=60).contains(&answer["TTL"].as_str().unwrap().parse::<i64>().unwrap()), "{answer}");
            assert_eq!(keep_alive(node, 99), 0);
            assert_eq!(time_to_live(node, 99), -1);
        }
        last.ok("/v3/lease/revoke", &json!({"ID": id}));
        for node in [one, next, last] {
            assert_eq!((keep_alive(node, id), time_to_live(node, id), node.value(&format!("k{at}"))), (0, -1, None));
        }
    }
    cluster.same_state();
}

#[test]
fn leases_end_on_all_members_alike() {
    let cluster = Cluster::start(3);
    for id in 1..=50 {
        grant(cluster.node(id as usize % 3), id, 2);
        put_leased(cluster.node((id as usize + 1) % 3), &format!("k{id}"), id);
    }
    eventually("all leases end", || {
        let listed = cluster.node(0).ok("/v3/lease/leases", &json!({}));
        listed["leases"].is_null().then_some(())
    });
    cluster.same_state();
    let expired: f64 = (0..3).map(|at| cluster.node(at).metric("etcd_debugging_server_lease_expired_total")).sum();
    assert_eq!(expired, 50.0, "the leader alone ends leases");
    for at in 0..3 {
        assert_eq!(cluster.node(at).metric("etcd_debugging_lease_revoked_total"), 50.0);
    }
}

/// The last of them leads nobody, and its note of what is left of the lease is never committed.
#[test]
fn members_stop_cleanly_one_after_another() {
    let mut cluster = Cluster::start(3);
    grant(cluster.node(0), 7, 60);
    eventually("a second of it passes", || (time_to_live(cluster.node(0), 7) < 59).then_some(()));
    while let Some(at) = cluster.running().first().copied() {
        // Whoever leads goes last.
        let at = if cluster.running().len() > 1 { cluster.follower() } else { at };
        cluster.stop(at);
    }
}

/// Bug catalogue row 52: another leader, killed or asked to go, does not give leases their whole time again.
#[test]
fn row_52_a_new_leader_starts_from_what_was_left() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    grant(cluster.node(leader), 7, 10);
    grant(cluster.node(leader), 8, 60);
    put_leased(cluster.node(leader), "k", 7);
    // Half of it has passed, which is noted.
    std::thread::sleep(Duration::from_millis(5_700));
    cluster.kill(leader);
    let next = cluster.follower();
    // Half of ten seconds, and the election timeout that a new leader adds.
    assert!(time_to_live(cluster.node(next), 7) <= 5 + 1);

    let leader = cluster.leader();
    let target = cluster.follower();
    let before = time_to_live(cluster.node(leader), 8);
    std::thread::sleep(Duration::from_secs(4));
    let body = json!({"targetID": cluster.id(target)});
    common::cluster::eventually_ok(cluster.node(leader), "/v3/maintenance/transfer-leadership", &body);
    assert_eq!(cluster.leader(), target);
    assert!(time_to_live(cluster.node(target), 8) <= before - 4 + 2, "handing over notes what is left");
    eventually("the short one ends", || (time_to_live(cluster.node(target), 7) == -1).then_some(()));
    assert_eq!(cluster.node(target).value("k"), None);
    assert_eq!(keep_alive(cluster.node(target), 8), 60);
    cluster.same_state();
}

/// Bug catalogue row 51: a leader that was paused, while others renewed its leases, neither ends nor renews any when it
/// comes back.
#[test]
fn row_51_a_paused_leader_ends_nothing_when_it_comes_back() {
    let cluster = Cluster::start(3);
    let old = cluster.leader();
    let other = cluster.follower();
    for id in 1..=20 {
        grant(cluster.node(old), id, 3);
        put_leased(cluster.node(old), &format!("k{id}"), id);
    }
    let alive = |rounds: usize| {
        for _ in 0..rounds {
            for id in 1..=20 {
                assert_eq!(keep_alive(cluster.node(other), id), 3, "lease {id}");
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    };
    alive(1);
    cluster.node(old).signal("STOP");
    // By the clock of the old leader all of them are over when it wakes up.
    alive(20);
    cluster.node(old).signal("CONT");
    alive(10);
    for id in 1..=20 {
        assert_eq!(cluster.node(old).value(&format!("k{id}")).as_deref(), Some("v"));
        assert_eq!(keep_alive(cluster.node(old), id), 3, "asked of the old leader, answered by the new one");
    }
    cluster.wait_level(old);
    assert_eq!(cluster.node(old).metric("etcd_debugging_server_lease_expired_total"), 0.0);
    cluster.same_state();
}

#[test]
fn without_a_leader_there_are_errors_and_never_a_lease_that_is_gone_or_an_old_list() {
    let mut cluster = Cluster::start(3);
    let left = cluster.leader();
    grant(cluster.node(left), 7, 600);
    for at in (0..3).filter(|at| *at != left) {
        cluster.kill(at);
    }
    let node = cluster.node(left);
    // All at once, as each takes as long as a request may.
    let answers = std::thread::scope(|scope| {
        [("keepalive", r#"{"ID":7}"#), ("timetolive", r#"{"ID":7}"#), ("leases", "{}")]
            .map(|(call, body)| scope.spawn(move || node.post(&format!("/v3/lease/{call}"), body)))
            .map(|call| call.join().unwrap())
    });
    // None of them asked to hear that there is no leader.
    assert!(answers.iter().all(|answer| answer.body.contains("etcdserver: request timed out")), "{answers:#?}");
    let [renewed, left_of_it, listed] = answers;
    assert!(!renewed.body.contains("result"), "{renewed:?}");
    assert_eq!((left_of_it.status, listed.status), (503, 503));
}
