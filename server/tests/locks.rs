//! Locks and elections, over gRPC and JSON.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::grpc::proto::v3electionpb::election_client::ElectionClient;
use common::grpc::proto::v3electionpb::{CampaignRequest, LeaderKey, LeaderRequest, ProclaimRequest, ResignRequest};
use common::grpc::proto::v3lockpb::lock_client::LockClient;
use common::grpc::proto::v3lockpb::{LockRequest, LockResponse, UnlockRequest};
use common::grpc::{block_on, clients, from, pb, put, refused};
use common::{Tally, base64, directory, start};
use serde_json::json;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// With a lease of its own, which nobody keeps alive.
fn lock_request(name: &str) -> LockRequest {
    LockRequest { name: name.to_owned().into(), lease: 0 }
}

/// Waits until so many keys are under a prefix that ends in a slash; the keys in the order of their creation.
async fn keys(tally: &Tally, prefix: &str, count: usize) -> Vec<Bytes> {
    let mut kv = clients(tally).kv;
    let range_end = Bytes::from(prefix.replace('/', "0"));
    loop {
        let range = pb::RangeRequest { range_end: range_end.clone(), sort_order: 1, sort_target: 2, ..from(prefix) };
        let found = kv.range(range).await.unwrap().into_inner().kvs;
        if found.len() == count {
            return found.into_iter().map(|record| record.key).collect();
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// What the end of its lease does to a key.
async fn delete(tally: &Tally, key: &Bytes) {
    let request = pb::DeleteRangeRequest { key: key.clone(), ..Default::default() };
    assert_eq!(clients(tally).kv.delete_range(request).await.unwrap().into_inner().deleted, 1);
}

type Waiting = JoinHandle<Result<LockResponse, Status>>;

/// Waits for a lock in the background; returns once its key is the last of so many.
async fn wait(tally: &Tally, locks: &LockClient<Channel>, count: usize) -> (Waiting, Bytes) {
    wait_with(tally, locks, 0, count).await
}

/// The same with a lease that there is already.
async fn wait_with(tally: &Tally, locks: &LockClient<Channel>, lease: i64, count: usize) -> (Waiting, Bytes) {
    let mut locks = locks.clone();
    let request = LockRequest { lease, ..lock_request("l") };
    let waiting = tokio::spawn(async move { Ok(locks.lock(request).await?.into_inner()) });
    let key = keys(tally, "l/", count).await.pop().unwrap();
    (waiting, key)
}

#[test]
fn a_lock_goes_from_hand_to_hand_in_the_order_of_arrival() {
    let root = directory();
    let tally = start(&root.path().join("d"));
    block_on(async {
        let mut locks = LockClient::new(tally.channel());
        let first = locks.lock(lock_request("l")).await.unwrap().into_inner();
        assert_eq!(keys(&tally, "l/", 1).await, std::slice::from_ref(&first.key));
        // The same lease has it already.
        let text = String::from_utf8(first.key.to_vec()).unwrap();
        let lease = i64::from_str_radix(text.strip_prefix("l/").unwrap(), 16).unwrap();
        let again = locks.lock(LockRequest { lease, ..lock_request("l") }).await.unwrap().into_inner();
        assert_eq!(again.key, first.key);

        let (second, second_key) = wait(&tally, &locks, 2).await;
        let (third, third_key) = wait(&tally, &locks, 3).await;
        assert!(!second.is_finished() && !third.is_finished());
        // Whoever has it gets a token that is newer than the keys of those who wait, and still older than their tokens.
        clients(&tally).kv.put(put("other", "1")).await.unwrap();
        let newer = locks.lock(LockRequest { lease, ..lock_request("l") }).await.unwrap().into_inner();
        assert_eq!(newer.key, first.key);
        locks.unlock(UnlockRequest { key: first.key.clone() }).await.unwrap();
        let second = second.await.unwrap().unwrap();
        assert_eq!(second.key, second_key);
        assert!(!third.is_finished());
        delete(&tally, &second_key).await;
        let third = third.await.unwrap().unwrap();
        assert_eq!(third.key, third_key);
        let tokens = [first, newer, second, third].map(|locked| locked.header.unwrap().revision);
        assert!(tokens.windows(2).all(|pair| pair[0] < pair[1]), "fencing tokens grow: {tokens:?}");
    });
}

#[test]
fn who_loses_its_lease_while_it_waits_does_not_get_the_lock() {
    let root = directory();
    let tally = start(&root.path().join("d"));
    block_on(async {
        let mut locks = LockClient::new(tally.channel());
        let held = locks.lock(lock_request("l")).await.unwrap().into_inner();
        let (waiting, key) = wait(&tally, &locks, 2).await;
        delete(&tally, &key).await;
        locks.unlock(UnlockRequest { key: held.key }).await.unwrap();
        refused(waiting.await.unwrap(), Code::Unknown, "mutex: session is expired");
        keys(&tally, "l/", 0).await;
    });
}

#[test]
fn who_waits_does_not_take_a_younger_key_of_the_same_name_for_its_own() {
    let root = directory();
    let tally = start(&root.path().join("d"));
    block_on(async {
        let mut leases = pb::lease_client::LeaseClient::new(tally.channel());
        let lease = leases.lease_grant(pb::LeaseGrantRequest { ttl: 600, id: 0 }).await.unwrap().into_inner().id;
        let mut locks = LockClient::new(tally.channel());
        let held = locks.lock(lock_request("l")).await.unwrap().into_inner();
        let (lost, key) = wait_with(&tally, &locks, lease, 2).await;
        delete(&tally, &key).await;
        let (next, next_key) = wait(&tally, &locks, 2).await;
        let (last, last_key) = wait_with(&tally, &locks, lease, 3).await;
        assert_eq!(last_key, key);
        locks.unlock(UnlockRequest { key: held.key }).await.unwrap();
        refused(lost.await.unwrap(), Code::Unknown, "mutex: session is expired");
        assert_eq!(next.await.unwrap().unwrap().key, next_key);
        // Who lost its key has left that of the other request alone.
        assert_eq!(keys(&tally, "l/", 2).await, [next_key.clone(), key.clone()]);
        assert!(!last.is_finished(), "two hold the lock");
        locks.unlock(UnlockRequest { key: next_key }).await.unwrap();
        assert_eq!(last.await.unwrap().unwrap().key, key);
    });
}

#[test]
fn who_stops_waiting_leaves_the_queue() {
    let root = directory();
    let tally = start(&root.path().join("d"));
    block_on(async {
        let mut locks = LockClient::new(tally.channel());
        let held = locks.lock(lock_request("l")).await.unwrap().into_inner();
        let (given_up, _) = wait(&tally, &locks, 2).await;
        let (waiting, key) = wait(&tally, &locks, 3).await;
        given_up.abort();
        keys(&tally, "l/", 2).await;
        locks.unlock(UnlockRequest { key: held.key }).await.unwrap();
        assert_eq!(waiting.await.unwrap().unwrap().key, key);
    });
}

#[test]
fn bad_locks_are_refused_in_the_words_of_etcd() {
    let root = directory();
    let tally = start(&root.path().join("d"));
    block_on(async {
        let mut locks = LockClient::new(tally.channel());
        let text = "etcdserver: requested lease not found";
        let leased = LockRequest { lease: 12345, ..lock_request("l") };
        refused(locks.lock(leased).await, Code::Unknown, text);
        refused(locks.unlock(UnlockRequest::default()).await, Code::Unknown, "etcdserver: key is not provided");
        // What is not locked can be unlocked.
        locks.unlock(UnlockRequest { key: "nothing".into() }).await.unwrap();
    });
    let refused = tally.post("/v3/lock/lock", &json!({"name": base64("l"), "lease": "12345"}).to_string());
    assert_eq!((refused.status, refused.json()["code"].as_i64()), (500, Some(2)));
    // Without a lease it gets one.
    let locked = tally.ok("/v3/lock/lock", &json!({"name": base64("l")}));
    let key = common::unbase64(locked["key"].as_str().unwrap());
    let lease = i64::from_str_radix(key.strip_prefix("l/").unwrap(), 16).unwrap();
    let found = tally.ok("/v3/kv/range", &json!({"key": locked["key"]}));
    assert_eq!(found["kvs"][0]["lease"], lease.to_string());
    let unlocked = tally.ok("/v3/lock/unlock", &json!({"key": locked["key"]}));
    assert_eq!(unlocked["header"]["revision"], "3");
}

#[test]
fn leaders_follow_one_another() {
    let root = directory();
    let tally = start(&root.path().join("d"));
    block_on(async {
        let mut elections = ElectionClient::new(tally.channel());
        let named = || LeaderRequest { name: "e".into() };
        let campaign =
            |lease: i64, value: &str| CampaignRequest { name: "e".into(), lease, value: value.to_owned().into() };
        refused(elections.leader(named()).await, Code::Unknown, "election: no leader");
        let mut observed = elections.observe(named()).await.unwrap().into_inner();

        let elected = elections.campaign(campaign(0, "v")).await.unwrap().into_inner();
        let leader = elected.leader.unwrap();
        assert_eq!((&leader.name[..], &leader.key[..]), (&b"e"[..], format!("e/{:x}", leader.lease).as_bytes()));
        assert_eq!(leader.rev, elected.header.unwrap().revision);
        let mut told = async || {
            let answer = observed.message().await.unwrap().unwrap();
            let kv = answer.kv.unwrap();
            // Whatever it says, it goes when its lease does.
            assert_eq!(kv.key, format!("e/{:x}", kv.lease));
            (String::from_utf8(kv.value.to_vec()).unwrap(), answer.header.unwrap().revision)
        };
        assert_eq!(told().await, ("v".to_owned(), leader.rev));
        // Another campaign of the same lease changes what it says.
        let again = elections.campaign(campaign(leader.lease, "w")).await.unwrap().into_inner().leader.unwrap();
        assert_eq!(again.rev, leader.rev);
        assert_eq!(told().await.0, "w");
        let says = |leader: &LeaderKey, value: &str| ProclaimRequest {
            leader: Some(leader.clone()),
            value: value.to_owned().into(),
        };
        elections.proclaim(says(&leader, "x")).await.unwrap();
        assert_eq!(told().await.0, "x");
        let now = elections.leader(named()).await.unwrap().into_inner().kv.unwrap();
        assert_eq!((&now.key[..], &now.value[..], now.create_revision), (&leader.key[..], &b"x"[..], leader.rev));

        let mut other = elections.clone();
        let waiting = tokio::spawn(async move { other.campaign(campaign(0, "second")).await });
        keys(&tally, "e/", 2).await;
        let stale = LeaderKey { rev: leader.rev + 1, ..leader.clone() };
        refused(elections.proclaim(says(&stale, "y")).await, Code::Unknown, "election: not leader");
        // Without effect.
        elections.resign(ResignRequest { leader: Some(stale) }).await.unwrap();
        assert!(!waiting.is_finished());
        elections.resign(ResignRequest { leader: Some(leader.clone()) }).await.unwrap();
        let second = waiting.await.unwrap().unwrap().into_inner().leader.unwrap();
        assert!(second.rev > leader.rev, "fencing tokens grow");
        assert_eq!(told().await.0, "second");
        refused(elections.proclaim(says(&leader, "z")).await, Code::Unknown, "election: not leader");

        let text = "\"leader\" field must be provided";
        refused(elections.proclaim(ProclaimRequest::default()).await, Code::Unknown, text);
        refused(elections.resign(ResignRequest::default()).await, Code::Unknown, text);
        let text = "etcdserver: requested lease not found";
        refused(elections.campaign(campaign(5, "v")).await, Code::Unknown, text);
    });
    let over_json = tally.ok("/v3/election/leader", &json!({"name": base64("e")}));
    assert_eq!(over_json["kv"]["value"], base64("second"));
}

#[test]
fn a_candidate_that_loses_its_lease_is_not_elected() {
    let root = directory();
    let tally = start(&root.path().join("d"));
    block_on(async {
        let mut elections = ElectionClient::new(tally.channel());
        let campaign = || CampaignRequest { name: "e".into(), lease: 0, value: "v".into() };
        let leader = elections.campaign(campaign()).await.unwrap().into_inner().leader.unwrap();
        let mut other = elections.clone();
        let waiting = tokio::spawn(async move { other.campaign(campaign()).await });
        let key = keys(&tally, "e/", 2).await.pop().unwrap();
        delete(&tally, &key).await;
        elections.resign(ResignRequest { leader: Some(leader) }).await.unwrap();
        refused(waiting.await.unwrap(), Code::Unknown, "election: not leader");
    });
}

#[test]
fn a_candidate_that_stops_waiting_leaves_the_queue() {
    let root = directory();
    let tally = start(&root.path().join("d"));
    block_on(async {
        let mut elections = ElectionClient::new(tally.channel());
        let campaign = || CampaignRequest { name: "e".into(), lease: 0, value: "v".into() };
        let leader = elections.campaign(campaign()).await.unwrap().into_inner().leader;
        let stand = async |count| {
            let mut elections = elections.clone();
            let waiting = tokio::spawn(async move { elections.campaign(campaign()).await });
            (waiting, keys(&tally, "e/", count).await.pop().unwrap())
        };
        let (given_up, _) = stand(2).await;
        let (waiting, key) = stand(3).await;
        given_up.abort();
        keys(&tally, "e/", 2).await;
        elections.resign(ResignRequest { leader }).await.unwrap();
        assert_eq!(waiting.await.unwrap().unwrap().into_inner().leader.unwrap().key, key);
    });
}

#[test]
fn an_election_is_observed_over_json_line_by_line() {
    let root = directory();
    let mut tally = start(&root.path().join("d"));
    let mut observer = tally.connect();
    observer.ask("POST", "/v3/election/observe", &[], &json!({"name": base64("e")}).to_string());
    tally.ok("/v3/election/campaign", &json!({"name": base64("e"), "value": base64("v")}));
    assert_eq!(observer.object()["result"]["kv"]["value"], base64("v"));
    let labels = r#"grpc_method="Observe",grpc_service="v3electionpb.Election",grpc_type="server_stream""#;
    assert_eq!(tally.metric(&format!("grpc_server_msg_sent_total{{{labels}}}")), 1.0);
    tally.signal("TERM");
    let error = json!({
        "grpc_code": 2, "http_code": 500, "code": 2,
        "message": "etcdserver: server stopped", "http_status": "Internal Server Error",
    });
    assert_eq!(observer.object(), json!({ "error": error }));
    assert_eq!(tally.wait().code(), Some(0));
}

#[test]
fn a_server_that_stops_does_not_wait_for_those_who_wait() {
    let root = directory();
    let mut tally = start(&root.path().join("d"));
    block_on(async {
        let mut locks = LockClient::new(tally.channel());
        locks.lock(lock_request("l")).await.unwrap();
        let (waiting, _) = wait(&tally, &locks, 2).await;
        tally.signal("TERM");
        refused(waiting.await.unwrap(), Code::Unknown, "etcdserver: server stopped");
    });
    assert_eq!(tally.wait().code(), Some(0));
}
