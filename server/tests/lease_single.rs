//! Leases on one node, over JSON: shapes, refusals, keys that go with a lease, expiry, and what a restart keeps.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::cluster::{eventually, refused};
use common::{Tally, base64, directory, launch, start};
use serde_json::{Value, json};

fn grant(tally: &Tally, id: i64, ttl_s: i64) -> i64 {
    let answer = tally.ok("/v3/lease/grant", &json!({"ID": id, "TTL": ttl_s}));
    answer["ID"].as_str().unwrap().parse().unwrap()
}

fn put_leased(tally: &Tally, key: &str, id: i64) {
    tally.ok("/v3/kv/put", &json!({"key": base64(key), "value": base64("v"), "lease": id}));
}

/// Seconds; -1 if there is no such lease.
fn time_to_live(tally: &Tally, id: i64) -> i64 {
    let answer = tally.ok("/v3/lease/timetolive", &json!({"ID": id}));
    answer["TTL"].as_str().map_or(0, |ttl| ttl.parse().unwrap())
}

fn leases(tally: &Tally) -> BTreeSet<i64> {
    let answer = tally.ok("/v3/lease/leases", &json!({}));
    let ids = answer["leases"].as_array().cloned().unwrap_or_default();
    ids.iter().map(|lease| lease["ID"].as_str().unwrap().parse().unwrap()).collect()
}

/// The results of a keepalive stream with these requests, whose client then closes its half.
fn keep_alive(tally: &Tally, ids: &[i64]) -> Vec<Value> {
    let body: String = ids.iter().map(|id| json!({"ID": id}).to_string()).collect();
    let answer = tally.post("/v3/lease/keepalive", &body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.body.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["result"].clone()).collect()
}

#[test]
fn leases_are_granted_listed_and_revoked_with_their_keys() {
    let dir = directory();
    let tally = start(dir.path());
    let granted = tally.ok("/v3/lease/grant", &json!({"TTL": "60", "ID": "7"}));
    assert_eq!(
        (&granted["ID"], &granted["TTL"], &granted["header"]["revision"]),
        (&json!("7"), &json!("60"), &json!("1"))
    );
    assert!(granted["header"]["member_id"].is_string() && granted["error"].is_null());
    let short = tally.ok("/v3/lease/grant", &json!({"TTL": -5, "ID": 8}));
    assert_eq!(short["TTL"], "2", "at least one and a half election timeouts");
    let random = grant(&tally, 0, 60);
    assert!(random > 0);
    assert_eq!(leases(&tally), BTreeSet::from([7, 8, random]));

    ["b", "a", "c"].iter().for_each(|key| put_leased(&tally, key, 7));
    tally.put("other", "stays");
    for path in ["/v3/lease/timetolive", "/v3/kv/lease/timetolive"] {
        let answer = tally.ok(path, &json!({"ID": "7", "keys": true}));
        assert_eq!(answer["grantedTTL"], "60");
        assert!((1..=60).contains(&answer["TTL"].as_str().unwrap().parse::<i64>().unwrap()), "{answer}");
        assert_eq!(answer["keys"], json!([base64("a"), base64("b"), base64("c")]));
        assert!(tally.ok(path, &json!({"ID": 7}))["keys"].is_null(), "only if asked for");
    }
    let unknown = tally.ok("/v3/lease/timetolive", &json!({"ID": 99, "keys": true}));
    assert_eq!((&unknown["ID"], &unknown["TTL"]), (&json!("99"), &json!("-1")));
    assert!(unknown["grantedTTL"].is_null() && unknown["keys"].is_null());

    let revision = tally.put("before", "v");
    let revoked = tally.ok("/v3/lease/revoke", &json!({"ID": 7}));
    assert_eq!(revoked["header"]["revision"], (revision + 1).to_string(), "one revision");
    assert_eq!([tally.value("a"), tally.value("b"), tally.value("c")], [None, None, None]);
    assert_eq!(tally.value("other").as_deref(), Some("stays"));
    tally.ok("/v3/kv/lease/revoke", &json!({"ID": random}));
    assert_eq!(tally.ok("/v3/kv/lease/leases", &json!({}))["leases"], json!([{"ID": "8"}]));
    assert_eq!(tally.metric("etcd_debugging_lease_granted_total"), 3.0);
    assert!(tally.metric("etcd_debugging_lease_revoked_total") >= 2.0);
    assert_eq!(tally.metric("etcd_debugging_lease_ttl_total_count"), 3.0);
    tally.stop();
}

#[test]
fn refusals_are_etcds() {
    let dir = directory();
    let tally = start(dir.path());
    grant(&tally, 7, 60);
    refused(&tally.post("/v3/lease/grant", r#"{"ID":7,"TTL":60}"#), 400, 9, "etcdserver: lease already exists");
    let large = tally.post("/v3/lease/grant", r#"{"ID":9,"TTL":9000000001}"#);
    refused(&large, 400, 11, "etcdserver: too large lease TTL");
    refused(&tally.post("/v3/lease/revoke", r#"{"ID":9}"#), 404, 5, "etcdserver: requested lease not found");
    let put = json!({"key": base64("k"), "lease": 9}).to_string();
    refused(&tally.post("/v3/kv/put", &put), 404, 5, "etcdserver: requested lease not found");
    let txn = json!({"success": [{"request_put": {"key": base64("k"), "lease": 9}}]}).to_string();
    refused(&tally.post("/v3/kv/txn", &txn), 404, 5, "etcdserver: requested lease not found");
    for body in ["[]", r#"{"ID":"x"}"#, r#"{"ID":1"#, "{\"ID\":1}{\"ID\":"] {
        let answer = tally.post("/v3/lease/keepalive", body);
        assert!(answer.status == 400 || answer.body.contains("\"error\""), "{body}: {answer:?}");
    }
    // Nothing was done.
    assert_eq!((leases(&tally), tally.value("k")), (BTreeSet::from([7]), None));
    tally.stop();
}

#[test]
fn keepalives_answer_in_order_and_end_with_the_requests() {
    let dir = directory();
    let tally = start(dir.path());
    grant(&tally, 7, 60);
    grant(&tally, 8, 30);
    assert!(keep_alive(&tally, &[]).is_empty());
    let results = keep_alive(&tally, &[7, 99, 8, 7]);
    let seen: Vec<(&str, Option<&str>)> =
        results.iter().map(|result| (result["ID"].as_str().unwrap(), result["TTL"].as_str())).collect();
    assert_eq!(seen, [("7", Some("60")), ("99", None), ("8", Some("30")), ("7", Some("60"))]);
    assert!(results.iter().all(|result| result["header"]["revision"] == "1"), "{results:?}");
    assert_eq!(tally.metric("etcd_debugging_lease_renewed_total"), 3.0);
    tally.stop();
}

#[test]
fn keys_go_when_their_lease_ends_and_not_before() {
    let dir = directory();
    let tally = start(dir.path());
    grant(&tally, 7, 2);
    grant(&tally, 8, 2);
    put_leased(&tally, "forgotten", 7);
    put_leased(&tally, "kept", 8);
    eventually("a lease ends", || {
        assert_eq!(keep_alive(&tally, &[8])[0]["TTL"], "2");
        (time_to_live(&tally, 7) == -1).then_some(())
    });
    assert_eq!((tally.value("forgotten"), tally.value("kept").as_deref()), (None, Some("v")));
    eventually("the other one ends", || (time_to_live(&tally, 8) == -1).then_some(()));
    assert_eq!(tally.value("kept"), None);
    assert_eq!(tally.metric("etcd_debugging_server_lease_expired_total"), 2.0);
    tally.stop();
}

/// Bug catalogue row 53: whoever is told that a lease was renewed finds it there, also at the moment at which it ends.
#[test]
fn row_53_a_renewal_at_the_moment_of_expiry_tells_the_truth() {
    let dir = directory();
    let tally = start(dir.path());
    let renewals = std::thread::scope(|scope| {
        let lives: Vec<_> = (0..16)
            .map(|number| {
                let tally = &tally;
                scope.spawn(move || {
                    let id = grant(tally, 100 + number, 2);
                    let key = format!("k{number}");
                    put_leased(tally, &key, id);
                    let mut renewals = 0;
                    // Around its end, each of them at another distance from it.
                    let mut pause = Duration::from_millis(1_880 + 15 * number as u64);
                    loop {
                        std::thread::sleep(pause);
                        match keep_alive(tally, &[id])[0]["TTL"].as_str() {
                            Some("2") => {
                                renewals += 1;
                                assert!(time_to_live(tally, id) >= 0, "renewed, and not there");
                                pause += Duration::from_millis(7);
                            }
                            None => {
                                assert_eq!((time_to_live(tally, id), tally.value(&key)), (-1, None), "gone is gone");
                                return renewals;
                            }
                            other => panic!("{other:?}"),
                        }
                        if renewals == 12 {
                            return renewals;
                        }
                    }
                })
            })
            .collect();
        lives.into_iter().map(|life| life.join().unwrap()).sum::<i32>()
    });
    assert!(renewals > 0, "none was in time");
    tally.stop();
}

/// Bug catalogue row 54: nothing that uses a lease while it is being granted or revoked is half done.
#[test]
fn row_54_keepalives_and_puts_race_grants_and_revokes() {
    let dir = directory();
    let tally = start(dir.path());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..200 {
                grant(&tally, 7, 60);
                tally.ok("/v3/lease/revoke", &json!({"ID": 7}));
            }
            stop.store(true, Ordering::Relaxed);
        });
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let result = keep_alive(&tally, &[7]).remove(0);
                assert!(matches!(result["TTL"].as_str(), None | Some("60")), "{result}");
            }
        });
        scope.spawn(|| {
            let body = json!({"key": base64("k"), "value": base64("v"), "lease": 7}).to_string();
            while !stop.load(Ordering::Relaxed) {
                let answer = tally.post("/v3/kv/put", &body);
                assert!(answer.status == 200 || answer.body.contains("requested lease not found"), "{}", answer.body);
            }
        });
    });
    assert_eq!((leases(&tally), tally.value("k")), (BTreeSet::new(), None), "no key outlives its lease");
    tally.stop();
}

/// Bug catalogue row 55, small: many leases end together while puts go on.
#[test]
fn row_55_many_leases_end_together_beside_puts() {
    const LEASES: i64 = 6_000;
    let dir = directory();
    let tally = start(dir.path());
    std::thread::scope(|scope| {
        for worker in 0..8 {
            let tally = &tally;
            scope.spawn(move || {
                let mut client = tally.connect();
                for id in (1..=LEASES).filter(|id| id % 8 == worker) {
                    let grant = json!({"ID": id, "TTL": 3}).to_string();
                    assert_eq!(client.request("POST", "/v3/lease/grant", &grant).status, 200);
                    let put = json!({"key": base64(&format!("k{id}")), "lease": id}).to_string();
                    // On a slow machine the first ones have ended before the last ones are granted.
                    let status = client.request("POST", "/v3/kv/put", &put).status;
                    assert!(status == 200 || status == 404, "{status}");
                }
            });
        }
    });
    let mut puts = 0;
    eventually("all leases have ended", || {
        puts += 1;
        tally.put("beside", "v");
        leases(&tally).is_empty().then_some(())
    });
    let left = tally.ok("/v3/kv/range", &json!({"key": base64("k"), "range_end": base64("l"), "count_only": true}));
    assert!(left["count"].is_null(), "{left}");
    assert_eq!(tally.metric("etcd_debugging_server_lease_expired_total"), LEASES as f64);
    assert!(puts > 0);
    tally.stop();
}

#[test]
fn a_restart_keeps_leases_their_keys_and_what_was_left_of_them() {
    // One command notes what is left of 500.
    const MORE: RangeInclusive<i64> = 1_001..=1_520;
    let dir = directory();
    let tally = start(dir.path());
    let mut client = tally.connect();
    for id in MORE {
        let body = json!({"ID": id, "TTL": 60}).to_string();
        assert_eq!(client.request("POST", "/v3/lease/grant", &body).status, 200);
    }
    drop(client);
    grant(&tally, 7, 60);
    grant(&tally, 8, 60);
    put_leased(&tally, "k", 7);
    std::thread::sleep(Duration::from_secs(7));
    assert_eq!(keep_alive(&tally, &[8])[0]["TTL"], "60");
    let asked = Instant::now();
    tally.stop();
    let tally = start(dir.path());
    // Seven seconds have passed, and a new leader adds an election timeout; on a busy machine it may have heard of the
    // grant late.
    for id in [7, *MORE.end()] {
        let left = time_to_live(&tally, id);
        assert!((0..=60 - 7 + 1 + 3).contains(&left), "{left} s are left of lease {id}");
    }
    assert!(time_to_live(&tally, 8) >= 60 - asked.elapsed().as_secs() as i64 - 1);
    assert_eq!(keep_alive(&tally, &[7])[0]["TTL"], "60", "what was noted is cleared");
    assert!(time_to_live(&tally, 7) >= 55);
    tally.kill();
    let tally = start(dir.path());
    assert!(time_to_live(&tally, 7) >= 55, "a renewal is not forgotten for an older note");
    tally.ok("/v3/lease/revoke", &json!({"ID": 7}));
    assert_eq!(tally.value("k"), None, "attached as before");
    tally.stop();
}

#[test]
fn a_lease_that_may_not_end_under_an_alarm_ends_after_it() {
    let dir = directory();
    let mut tally = start(dir.path());
    grant(&tally, 7, 2);
    put_leased(&tally, "k", 7);
    let alarm = |tally: &Tally, action: &str| {
        tally.ok("/v3/maintenance/alarm", &json!({"action": action, "memberID": "1", "alarm": "CORRUPT"}))
    };
    alarm(&tally, "ACTIVATE");
    tally.wait_for("leases were not expired");
    alarm(&tally, "DEACTIVATE");
    eventually("it ends all the same", || (time_to_live(&tally, 7) == -1).then_some(()));
    assert_eq!(tally.value("k"), None);
    tally.stop();
}

#[test]
fn no_lease_is_granted_over_the_quota() {
    let dir = directory();
    let tally = launch(dir.path()).arg("--quota-backend-bytes=1000000").start();
    let value = base64(&"x".repeat(200_000));
    eventually("the quota is reached", || {
        let put = json!({"key": base64("k"), "value": value}).to_string();
        (tally.post("/v3/kv/put", &put).status != 200).then_some(())
    });
    let answer = tally.post("/v3/lease/grant", r#"{"ID":7,"TTL":60}"#);
    refused(&answer, 429, 8, "etcdserver: mvcc: database space exceeded");
    refused(&tally.post("/v3/lease/revoke", r#"{"ID":7}"#), 404, 5, "etcdserver: requested lease not found");
    tally.stop();
}
