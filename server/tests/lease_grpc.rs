//! Leases over gRPC: every call, its errors, and streams of renewals that stay open.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::cluster::{Cluster, eventually};
use common::grpc::pb::lease_client::LeaseClient;
use common::grpc::{block_on, clients, get, pb, put, refused};
use common::{Tally, directory, start};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Streaming};

/// A stream of renewals: where requests go, and where the answers come from.
struct Stream {
    ask: mpsc::Sender<pb::LeaseKeepAliveRequest>,
    answers: Streaming<pb::LeaseKeepAliveResponse>,
}

impl Stream {
    async fn open(client: &mut LeaseClient<Channel>) -> Stream {
        let (ask, requests) = mpsc::channel(16);
        // The head of the answer comes with the first message.
        let answers = client.lease_keep_alive(ReceiverStream::new(requests)).await.unwrap().into_inner();
        Stream { ask, answers }
    }

    async fn renew(&mut self, id: i64) -> pb::LeaseKeepAliveResponse {
        self.ask.send(pb::LeaseKeepAliveRequest { id }).await.unwrap();
        self.answers.next().await.unwrap().unwrap()
    }
}

fn client(tally: &Tally) -> LeaseClient<Channel> {
    LeaseClient::new(tally.channel())
}

async fn grant(client: &mut LeaseClient<Channel>, id: i64, ttl: i64) -> pb::LeaseGrantResponse {
    client.lease_grant(pb::LeaseGrantRequest { id, ttl }).await.unwrap().into_inner()
}

#[test]
fn every_call_answers_as_etcd_does() {
    let dir = directory();
    let tally = start(dir.path());
    block_on(async {
        let mut client = client(&tally);
        let granted = grant(&mut client, 7, 60).await;
        assert_eq!((granted.id, granted.ttl, granted.error.as_str()), (7, 60, ""));
        assert_eq!(granted.header.unwrap().revision, 1);
        let again = client.lease_grant(pb::LeaseGrantRequest { id: 7, ttl: 60 }).await;
        refused(again, Code::FailedPrecondition, "etcdserver: lease already exists");
        let large = client.lease_grant(pb::LeaseGrantRequest { id: 8, ttl: 9_000_000_001 }).await;
        refused(large, Code::OutOfRange, "etcdserver: too large lease TTL");
        let random = grant(&mut client, 0, 1).await;
        assert!(random.id > 0 && random.ttl == 2, "{random:?}");

        let mut kv = clients(&tally).kv;
        kv.put(pb::PutRequest { lease: 7, ..put("k", "v") }).await.unwrap();
        assert_eq!(kv.range(get("k")).await.unwrap().into_inner().kvs[0].lease, 7);
        let unknown = kv.put(pb::PutRequest { lease: 99, ..put("k", "v") }).await;
        refused(unknown, Code::NotFound, "etcdserver: requested lease not found");
        let left =
            client.lease_time_to_live(pb::LeaseTimeToLiveRequest { id: 7, keys: true }).await.unwrap().into_inner();
        assert_eq!((left.id, left.granted_ttl, left.keys), (7, 60, vec![bytes::Bytes::from("k")]));
        assert!((50..=60).contains(&left.ttl));
        let unknown = pb::LeaseTimeToLiveRequest { id: 99, keys: true };
        assert_eq!(client.lease_time_to_live(unknown).await.unwrap().into_inner().ttl, -1);
        let listed = client.lease_leases(pb::LeaseLeasesRequest {}).await.unwrap().into_inner();
        let mut ids: Vec<i64> = listed.leases.iter().map(|lease| lease.id).collect();
        ids.sort_unstable();
        assert_eq!(ids, [7, random.id]);
        let revoked = client.lease_revoke(pb::LeaseRevokeRequest { id: 7 }).await.unwrap().into_inner();
        assert_eq!(revoked.header.unwrap().revision, 3);
        assert!(kv.range(get("k")).await.unwrap().into_inner().kvs.is_empty());
        let again = client.lease_revoke(pb::LeaseRevokeRequest { id: 7 }).await;
        refused(again, Code::NotFound, "etcdserver: requested lease not found");
    });
    tally.stop();
}

#[test]
fn a_stream_renews_many_leases_and_ends_with_its_client() {
    let dir = directory();
    let tally = start(dir.path());
    block_on(async {
        let mut client = client(&tally);
        for id in 1..=20 {
            grant(&mut client, id, 60).await;
        }
        let mut stream = Stream::open(&mut client).await;
        for round in 0..5 {
            for id in 1..=20 {
                let answer = stream.renew(id).await;
                assert_eq!((answer.id, answer.ttl, answer.header.unwrap().revision), (id, 60, 1), "round {round}");
            }
            assert_eq!(stream.renew(99).await.ttl, 0, "no error");
        }
        // All at once: the answers come in the order of the requests.
        let Stream { ask, mut answers } = stream;
        for id in (1..=15).rev() {
            ask.send(pb::LeaseKeepAliveRequest { id }).await.unwrap();
        }
        for id in (1..=15).rev() {
            assert_eq!(answers.next().await.unwrap().unwrap().id, id);
        }
        drop(ask);
        assert!(answers.next().await.is_none(), "the end of the requests is the end of the answers");
    });
    assert_eq!(tally.metric("etcd_debugging_lease_renewed_total"), 115.0);
    tally.stop();
}

#[test]
fn many_streams_keep_their_leases_alive_together() {
    let dir = directory();
    let tally = start(dir.path());
    block_on(async {
        let channel = tally.channel();
        let mut lives = tokio::task::JoinSet::new();
        for id in 1..=200 {
            let mut client = LeaseClient::new(channel.clone());
            lives.spawn(async move {
                grant(&mut client, id, 2).await;
                let mut stream = Stream::open(&mut client).await;
                for _ in 0..12 {
                    assert_eq!(stream.renew(id).await.ttl, 2, "lease {id}");
                    tokio::time::sleep(Duration::from_millis(250)).await;
                }
            });
        }
        while let Some(life) = lives.join_next().await {
            life.unwrap();
        }
    });
    // Nobody renews them any more.
    eventually("all have ended", || (tally.metric("etcd_debugging_server_lease_expired_total") >= 200.0).then_some(()));
    tally.stop();
}

#[test]
fn streams_do_not_hold_up_a_stop() {
    let dir = directory();
    let tally = start(dir.path());
    block_on(async {
        let mut client = client(&tally);
        grant(&mut client, 1, 60).await;
        let mut stream = Stream::open(&mut client).await;
        stream.renew(1).await;
        tally.signal("TERM");
        let ended = stream.answers.next().await.unwrap().unwrap_err();
        assert_eq!((ended.code(), ended.message()), (Code::Unavailable, "etcdserver: server stopped"));
    });
    drop(tally);
}

#[test]
fn a_stream_that_wants_a_leader_is_refused_without_one_and_others_go_on() {
    let cluster = Cluster::with(2, &["--heartbeat-interval=50", "--election-timeout=500"]);
    let (left, other) = (cluster.leader(), cluster.follower());
    block_on(async {
        let mut client = client(cluster.node(left));
        grant(&mut client, 1, 60).await;
        let mut patient = Stream::open(&mut client).await;
        assert_eq!(patient.renew(1).await.ttl, 60);
        let (ask, requests) = mpsc::channel(16);
        let mut request = Request::new(ReceiverStream::new(requests));
        request.metadata_mut().insert("hasleader", "true".parse().unwrap());
        let mut answers = client.lease_keep_alive(request).await.unwrap().into_inner();
        ask.send(pb::LeaseKeepAliveRequest { id: 1 }).await.unwrap();
        assert_eq!(answers.next().await.unwrap().unwrap().ttl, 60);
        cluster.node(other).signal("STOP");
        let ended = answers.next().await.unwrap().unwrap_err();
        assert_eq!((ended.code(), ended.message()), (Code::Unavailable, "etcdserver: no leader"));
        cluster.node(other).signal("CONT");
        cluster.leader();
        assert_eq!(patient.renew(1).await.ttl, 60, "it did not ask to hear of it");
    });
}
