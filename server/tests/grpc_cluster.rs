//! gRPC on three members: what a call is told while there is no leader, and locks and elections across a change of it.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::cluster::Cluster;
use common::grpc::proto::health::HealthCheckRequest;
use common::grpc::proto::health::health_check_response::ServingStatus;
use common::grpc::proto::health::health_client::HealthClient;
use common::grpc::proto::v3electionpb::election_client::ElectionClient;
use common::grpc::proto::v3electionpb::{CampaignRequest, LeaderRequest, ResignRequest};
use common::grpc::proto::v3lockpb::lock_client::LockClient;
use common::grpc::proto::v3lockpb::{LockRequest, UnlockRequest};
use common::grpc::{Direct, block_on, clients, from, get, origin, pb, put, refused};
use tonic::{Code, Request};

/// A lease that outlives the test.
const LONG_S: i64 = 600;

/// A cluster of which one member is left, and which that is.
fn without_quorum() -> (Cluster, usize) {
    let mut cluster = Cluster::with(3, &["--heartbeat-interval=50", "--election-timeout=500"]);
    let kept = cluster.follower();
    (0..3).filter(|at| *at != kept).for_each(|at| cluster.kill(at));
    (cluster, kept)
}

/// A request with this line of metadata.
fn with<T>(message: T, name: &'static str, value: &'static str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(name, value.parse().unwrap());
    request
}

#[test]
fn a_write_without_a_quorum_ends_with_its_deadline_and_is_never_taken_for_done() {
    let (mut cluster, kept) = without_quorum();
    block_on(async {
        let mut kv = Direct::kv(cluster.node(kept)).await;
        let status = kv.put(with(put("late", "1"), "grpc-timeout", "400m")).await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
        let status = kv.range(with(get("late"), "grpc-timeout", "400m")).await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
        let status = kv.range_stream(with(get("late"), "grpc-timeout", "400m")).await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
        // What is not linearizable needs nobody else.
        let local = pb::RangeRequest { serializable: true, ..get("late") };
        assert_eq!(kv.range(local).await.unwrap().into_inner().count, 0);
    });
    (0..3).filter(|at| *at != kept).for_each(|at| cluster.restart(at));
    cluster.leader();
    block_on(async {
        // Done or not, once and not twice; and the next one counts.
        let mut kv = clients(cluster.node(kept)).kv;
        let last = kv.put(put("late", "2")).await.unwrap().into_inner().header.unwrap().revision;
        assert!((2..=3).contains(&last), "{last}");
    });
    cluster.same_state();
}

#[test]
fn who_wants_a_leader_hears_that_there_is_none() {
    let (mut cluster, kept) = without_quorum();
    block_on(async {
        let mut kv = clients(cluster.node(kept)).kv;
        // Until it has noticed, the call waits like any other.
        let text = loop {
            let status = kv.range(with(get("a"), "hasleader", "true")).await.unwrap_err();
            if status.code() == Code::Unavailable && status.message() == "etcdserver: no leader" {
                break status.message().to_owned();
            }
            assert_eq!(status.message(), "etcdserver: request timed out", "{status:?}");
        };
        let local = pb::RangeRequest { serializable: true, ..get("a") };
        refused(kv.range(with(local, "hasleader", "true")).await, Code::Unavailable, &text);
        // Who does not say so is served what needs no leader.
        kv.range(pb::RangeRequest { serializable: true, ..get("a") }).await.unwrap();
    });
    (0..3).filter(|at| *at != kept).for_each(|at| cluster.restart(at));
    cluster.leader();
    block_on(async {
        let mut kv = clients(cluster.node(kept)).kv;
        kv.range(with(get("a"), "hasleader", "true")).await.unwrap();
    });
}

/// Alone it cannot know whether somebody else has been elected.
#[test]
fn a_member_without_a_quorum_does_not_tell_who_was_elected() {
    let mut cluster = Cluster::with(2, &["--heartbeat-interval=50", "--election-timeout=500"]);
    let (leader, kept) = (cluster.leader(), cluster.follower());
    let named = || LeaderRequest { name: "e".into() };
    block_on(async {
        let mut elections = ElectionClient::new(cluster.node(kept).channel());
        let campaign = CampaignRequest { name: "e".into(), lease: 0, value: "v".into() };
        elections.campaign(campaign).await.unwrap();
        assert_eq!(elections.leader(named()).await.unwrap().into_inner().kv.unwrap().value, "v");
        let mut wants_leader = elections.observe(with(named(), "hasleader", "true")).await.unwrap().into_inner();
        assert_eq!(wants_leader.message().await.unwrap().unwrap().kv.unwrap().value, "v");
        cluster.kill(leader);
        let node = cluster.node(kept);
        refused(wants_leader.message().await, Code::Unavailable, "etcdserver: no leader");
        let mut elections = ElectionClient::with_origin(Direct::connect(node).await, origin(node));
        let status = elections.leader(with(named(), "grpc-timeout", "400m")).await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
        let observed = elections.observe(with(named(), "grpc-timeout", "400m")).await.unwrap();
        let status = observed.into_inner().message().await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    });
}

#[test]
fn health_tells_whether_there_is_a_leader() {
    let mut cluster = Cluster::with(3, &["--heartbeat-interval=50", "--election-timeout=500"]);
    let kept = cluster.follower();
    let others: Vec<usize> = (0..3).filter(|at| *at != kept).collect();
    block_on(async {
        let mut health = HealthClient::new(cluster.node(kept).channel());
        let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
        let mut told = async || watch.message().await.unwrap().unwrap().status();
        assert_eq!(told().await, ServingStatus::Serving);
        others.iter().for_each(|at| cluster.kill(*at));
        assert_eq!(told().await, ServingStatus::NotServing);
        let checked = health.check(HealthCheckRequest::default()).await.unwrap().into_inner();
        assert_eq!(checked.status(), ServingStatus::NotServing);
        others.iter().for_each(|at| cluster.spawn(*at));
        assert_eq!(told().await, ServingStatus::Serving);
    });
}

async fn granted(cluster: &Cluster, at: usize) -> i64 {
    let mut leases = pb::lease_client::LeaseClient::new(cluster.node(at).channel());
    leases.lease_grant(pb::LeaseGrantRequest { ttl: LONG_S, id: 0 }).await.unwrap().into_inner().id
}

/// Waits until so many keys are under `prefix/`.
async fn queued(cluster: &Cluster, at: usize, prefix: &str, count: i64) {
    let mut kv = clients(cluster.node(at)).kv;
    let range_end = Bytes::from(format!("{prefix}0"));
    let wanted = pb::RangeRequest { range_end, count_only: true, ..from(&format!("{prefix}/")) };
    while kv.range(wanted.clone()).await.unwrap().into_inner().count != count {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn a_lock_and_its_queue_outlive_the_leader() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    let others: Vec<usize> = (0..3).filter(|at| *at != leader).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (held, waiting) = runtime.block_on(async {
        let lease = granted(&cluster, others[0]).await;
        let mut locks = LockClient::new(cluster.node(others[0]).channel());
        let held = locks.lock(LockRequest { name: "l".into(), lease }).await.unwrap().into_inner();
        let lease = granted(&cluster, others[1]).await;
        let mut locks = LockClient::new(cluster.node(others[1]).channel());
        let waiting = tokio::spawn(async move { locks.lock(LockRequest { name: "l".into(), lease }).await });
        queued(&cluster, others[0], "l", 2).await;
        (held, waiting)
    });
    cluster.kill(leader);
    runtime.block_on(async {
        let next = async {
            // Another leader is at work, and the lock is still held.
            let mut kv = clients(cluster.node(others[1])).kv;
            while kv.put(put("other", "1")).await.is_err() {}
            assert!(!waiting.is_finished(), "two hold the lock");
            let mut locks = LockClient::new(cluster.node(others[0]).channel());
            locks.unlock(UnlockRequest { key: held.key }).await.unwrap();
            waiting.await.unwrap().unwrap().into_inner()
        };
        let next = tokio::time::timeout(common::PATIENCE, next).await.expect("the lock is not handed on");
        assert!(next.header.unwrap().revision > held.header.unwrap().revision, "fencing tokens grow");
    });
    cluster.restart(leader);
    cluster.same_state();
}

/// What is left of the leases is on its way to the log when the client that wants another leader goes.
#[test]
fn a_hand_over_that_is_given_up_leaves_leases_that_can_be_renewed() {
    // Nobody else is elected while the others are silent for a moment.
    let cluster = Cluster::with(3, &["--election-timeout=3000"]);
    let leader = cluster.leader();
    let others: Vec<usize> = (0..3).filter(|at| *at != leader).collect();
    block_on(async {
        let node = cluster.node(leader);
        let lease = granted(&cluster, leader).await;
        let mut leases = pb::lease_client::LeaseClient::new(node.channel());
        let time = pb::LeaseTimeToLiveRequest { id: lease, keys: false };
        // Less is not worth a note.
        while leases.lease_time_to_live(time).await.unwrap().into_inner().ttl >= LONG_S - 1 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let mut clients = clients(node);
        let target_id = cluster.id(others[0]).parse().unwrap();
        others.iter().for_each(|at| cluster.node(*at).signal("STOP"));
        let moved = clients.maintenance.move_leader(pb::MoveLeaderRequest { target_id });
        let moved = tokio::time::timeout(Duration::from_millis(500), moved).await;
        // Behind this, on the same connection, the server has heard that the client waits no more.
        let local = pb::RangeRequest { serializable: true, ..get("k") };
        clients.kv.range(local).await.unwrap();
        others.iter().for_each(|at| cluster.node(*at).signal("CONT"));
        assert!(moved.is_err(), "nothing can be done without the others: {moved:?}");
        let renewal = tokio_stream::once(pb::LeaseKeepAliveRequest { id: lease });
        let renewed = leases.lease_keep_alive(renewal).await.unwrap().into_inner().message().await;
        assert_eq!(renewed.unwrap().unwrap().ttl, LONG_S);
        assert_eq!(cluster.leader(), leader);
        // A target that there is not is refused before anything is noted.
        let refusal = clients.maintenance.move_leader(pb::MoveLeaderRequest { target_id: 1 }).await;
        refused(refusal, Code::FailedPrecondition, "etcdserver: bad leader transferee");
    });
    cluster.same_state();
}

#[test]
fn an_election_is_observed_and_won_across_a_change_of_the_leader() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    let others: Vec<usize> = (0..3).filter(|at| *at != leader).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let campaign = |value: &'static str, lease| CampaignRequest { name: "e".into(), lease, value: value.into() };
    let (first, second, mut observed) = runtime.block_on(async {
        let lease = granted(&cluster, others[0]).await;
        let mut elections = ElectionClient::new(cluster.node(others[0]).channel());
        let first = elections.campaign(campaign("one", lease)).await.unwrap().into_inner().leader;
        let mut observed = elections.observe(LeaderRequest { name: "e".into() }).await.unwrap().into_inner();
        assert_eq!(observed.message().await.unwrap().unwrap().kv.unwrap().value, "one");
        let lease = granted(&cluster, others[1]).await;
        let mut elections = ElectionClient::new(cluster.node(others[1]).channel());
        let second = tokio::spawn(async move { elections.campaign(campaign("two", lease)).await });
        queued(&cluster, others[0], "e", 2).await;
        (first, second, observed)
    });
    cluster.kill(leader);
    runtime.block_on(async {
        let next = async {
            let mut elections = ElectionClient::new(cluster.node(others[0]).channel());
            while elections.resign(ResignRequest { leader: first.clone() }).await.is_err() {}
            second.await.unwrap().unwrap();
            assert_eq!(observed.message().await.unwrap().unwrap().kv.unwrap().value, "two");
        };
        tokio::time::timeout(common::PATIENCE, next).await.expect("the second is not elected");
    });
}
