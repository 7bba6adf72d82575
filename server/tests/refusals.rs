//! What is answered when the server cannot do what it was asked for: under a CORRUPT alarm, and without a quorum.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::cluster::{Cluster, eventually};
use common::grpc::proto::v3electionpb::election_client::ElectionClient;
use common::grpc::proto::v3electionpb::{CampaignRequest, LeaderRequest};
use common::grpc::{block_on, pb, refused};
use common::watch::{JsonWatch, Socket, key};
use common::{Answer, Client, Tally, base64, directory, start};
use serde_json::{Value, json};
use tally_apply::{AlarmAction, AlarmCommand, AlarmKind, Command};
use tally_raftnode::{Config, EncodedCommand, Node, StorageOptions, open_storage};
use tokio_stream::StreamExt as _;
use tonic::Code;

/// Cluster and member id, as the server says them.
fn ids(tally: &Tally) -> (u64, u64) {
    let header = tally.ok("/v3/maintenance/status", &json!({}))["header"].clone();
    let id = |name: &str| header[name].as_str().unwrap().parse().unwrap();
    (id("cluster_id"), id("member_id"))
}

/// Puts one alarm command into the log of a server that is stopped, by running its node without a server.
fn corrupt(data: &Path, (cluster_id, member_id): (u64, u64), action: AlarmAction) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        // The directory has a UUID already: this one is not taken.
        let storage = open_storage(StorageOptions::new(data, cluster_id, member_id, [0; 16])).unwrap();
        let node = Node::start(Config { cluster_id, member_id, ..Config::default() }, storage).await.unwrap();
        node.ready().await.unwrap();
        let alarm = Command::Alarm(AlarmCommand { action, member_id, kind: AlarmKind::Corrupt });
        node.propose(EncodedCommand::encode(&alarm)).await.unwrap().result.unwrap();
        node.shutdown().await.unwrap();
    });
}

fn is_corrupt(answer: &Answer, what: &str) {
    assert_eq!(answer.status, 500, "{what}: {}", answer.body);
    let text = "etcdserver: corrupt cluster";
    assert_eq!(answer.json(), json!({"error": text, "code": 15, "message": text}), "{what}");
}

/// Every request that reads or writes keys.
fn requests() -> Vec<(&'static str, Value)> {
    let key = base64("k");
    let put = json!({"requestPut": {"key": key, "value": base64("other")}});
    let range = json!({"requestRange": {"key": key}});
    vec![
        ("/v3/kv/put", json!({"key": key, "value": base64("other")})),
        ("/v3/kv/deleterange", json!({"key": key})),
        ("/v3/kv/txn", json!({"success": [put, range]})),
        ("/v3/kv/txn", json!({"success": [range]})),
        ("/v3/kv/range", json!({"key": key})),
        ("/v3/kv/range", json!({"key": key, "serializable": true})),
        ("/v3/kv/range", json!({"key": key, "count_only": true})),
        ("/v3/kv/compaction", json!({"revision": "2"})),
    ]
}

#[test]
fn a_corrupt_alarm_refuses_reads_and_writes_until_it_is_cleared() {
    let root = directory();
    let data = root.path().join("d");
    let tally = start(&data);
    tally.put("k", "v");
    let revision = tally.put("k", "v");
    let ids = ids(&tally);
    tally.stop();
    corrupt(&data, ids, AlarmAction::Activate);

    // It holds across restarts: only its clearing ends it.
    for _ in 0..2 {
        let tally = start(&data);
        for (path, body) in requests() {
            is_corrupt(&tally.post(path, &body.to_string()), &format!("{path} {body}"));
        }
        // Health tells, and what an operator needs to find out why still works.
        let health = tally.get("/health");
        assert_eq!((health.status, health.body.trim()), (503, r#"{"health":"false","reason":"ALARM CORRUPT"}"#));
        let ready = tally.get("/readyz");
        assert_eq!(ready.status, 503);
        assert!(ready.body.contains("[-]data_corruption failed: alarm activated: CORRUPT"), "{}", ready.body);
        assert_eq!(tally.get("/livez").status, 200, "restarting it would not help");
        let metrics = tally.get("/metrics").body;
        assert!(metrics.contains("alarm_type=\"CORRUPT\""), "{metrics}");
        let status = tally.ok("/v3/maintenance/status", &json!({}));
        assert!(status["errors"].to_string().contains("CORRUPT"), "{status}");
        tally.stop();
    }

    corrupt(&data, ids, AlarmAction::Deactivate);
    let tally = start(&data);
    assert_eq!(tally.get("/health").status, 200);
    assert_eq!(tally.value("k").as_deref(), Some("v"), "a refused write was carried out");
    assert_eq!(tally.put("k", "w"), revision + 1, "a refused request took a revision");
    tally.stop();
}

/// Whoever waits asks nothing that could be refused, so the alarm itself has to be heard.
#[test]
fn a_corrupt_alarm_ends_streams_on_which_nothing_happens() {
    let root = directory();
    let tally = start(&root.path().join("d"));
    // Over a connection of its own: nothing comes to those of the streams.
    let alarm = |action: &str| {
        tally.ok("/v3/maintenance/alarm", &json!({"action": action, "memberID": "1", "alarm": "CORRUPT"}))
    };
    let mut lines = JsonWatch::on(&tally.address, key("k"));
    let mut socket = Socket::open(&tally.address);
    socket.send(&json!({"create_request": key("k")}));
    assert_eq!(socket.json()["result"]["created"], true);
    let text = "etcdserver: corrupt cluster";
    block_on(async {
        let channel = tally.channel();
        let create = pb::WatchCreateRequest { key: "k".into(), ..Default::default() };
        let union = Some(pb::watch_request::RequestUnion::CreateRequest(create));
        let requests = tokio_stream::once(pb::WatchRequest { request_union: union }).chain(tokio_stream::pending());
        let mut watches = pb::watch_client::WatchClient::new(channel.clone());
        let mut watch = watches.watch(requests).await.unwrap().into_inner();
        assert!(watch.message().await.unwrap().unwrap().created);
        let mut elections = ElectionClient::new(channel);
        let campaign = CampaignRequest { name: "e".into(), lease: 0, value: "v".into() };
        elections.campaign(campaign).await.unwrap();
        let mut observed = elections.observe(LeaderRequest { name: "e".into() }).await.unwrap().into_inner();
        assert_eq!(observed.message().await.unwrap().unwrap().kv.unwrap().value, "v");
        alarm("ACTIVATE");
        refused(watch.message().await, Code::DataLoss, text);
        refused(observed.message().await, Code::Unknown, text);
    });
    for error in [lines.error(), socket.json()["error"].clone()] {
        assert_eq!((&error["code"], &error["message"]), (&json!(15), &json!(text)));
    }
    // Those that come after it are not ended by it.
    alarm("DEACTIVATE");
    let mut lines = JsonWatch::on(&tally.address, key("k"));
    let revision = tally.put("k", "1");
    assert_eq!(lines.changes(1), [(revision, "k".to_owned(), Some("1".to_owned()))]);
    tally.stop();
}

/// Long enough that a leader that has just lost its majority still takes proposals when the test gets there.
const ELECTION_TIMEOUT: &str = "--election-timeout=3000";

/// A cluster of two, in which both are needed for everything: the cluster, its leader and the other one.
fn two() -> (Cluster, usize, usize) {
    let cluster = Cluster::with(2, &[ELECTION_TIMEOUT]);
    let leader = cluster.leader();
    (cluster, leader, 1 - leader)
}

/// A put that has reached the log but not a majority is neither refused nor acknowledged: its client is told that it may have
/// happened. It happens once, when the majority is back.
#[test]
fn a_put_without_a_majority_times_out_with_an_unknown_outcome() {
    let (mut cluster, leader, follower) = two();
    let before = cluster.node(leader).put("k", "before");
    // Everything up to here is known to both: what the follower misses from now on is the put alone.
    assert_eq!(cluster.node(follower).value("k").as_deref(), Some("before"));

    cluster.node(follower).signal("STOP");
    let body = json!({"key": base64("k"), "value": base64("maybe")}).to_string();
    let answer = cluster.node(leader).post("/v3/kv/put", &body);
    cluster.node(follower).signal("CONT");
    assert_eq!(answer.status, 503, "{}", answer.body);
    let text = "etcdserver: request timed out";
    assert_eq!(answer.json(), json!({"error": text, "code": 14, "message": text, "outcome": "unknown"}));

    // With the majority back the cluster goes on, and the put has happened once or not at all.
    let body = json!({"key": base64("next"), "value": base64("v")}).to_string();
    let next = eventually("the cluster goes on", || {
        let answer = cluster.node(leader).post("/v3/kv/put", &body);
        let revision = |answer: Value| answer["header"]["revision"].as_str().unwrap().parse::<i64>().unwrap();
        (answer.status == 200).then(|| revision(answer.json()))
    });
    for member in [leader, follower] {
        let found = cluster.node(member).ok("/v3/kv/range", &json!({"key": base64("k")}));
        let (value, at) = (&found["kvs"][0]["value"], &found["kvs"][0]["mod_revision"]);
        let happened = *value == json!(base64("maybe"));
        let revision = if happened { before + 1 } else { before };
        assert_eq!(*at, json!(revision.to_string()), "{found}");
        assert!(happened || *value == json!(base64("before")), "{found}");
        assert!(next > revision, "{found}");
    }
    cluster.same_state();
    cluster.stop(follower);
}

/// A read without a majority is never answered from what this member happens to have.
#[test]
fn a_read_without_a_majority_is_refused_and_a_serializable_one_is_served() {
    let (cluster, leader, follower) = two();
    cluster.node(leader).put("k", "v");
    cluster.node(follower).signal("STOP");
    let range = |serializable: bool| json!({"key": base64("k"), "serializable": serializable});
    let answer = cluster.node(leader).post("/v3/kv/range", &range(false).to_string());
    let local = cluster.node(leader).ok("/v3/kv/range", &range(true));
    cluster.node(follower).signal("CONT");
    assert_eq!(answer.status, 503, "{}", answer.body);
    let error = answer.json()["error"].as_str().unwrap().to_owned();
    assert!(error.starts_with("etcdserver: request timed out") || error == "etcdserver: no leader", "{error}");
    assert_eq!(answer.json()["outcome"], Value::Null, "a read has no effect that could be unknown");
    assert_eq!(local["kvs"][0]["value"], json!(base64("v")));
    cluster.same_state();
}

/// `grpc-timeout`, as etcd's gateway takes it.
#[test]
fn a_json_request_has_the_time_that_its_client_gives_it() {
    let root = directory();
    let tally = start(&root.path().join("d"));
    let ask = |timeout: &str, path: &str, body: Value| -> Client {
        let mut client = tally.connect();
        client.ask("POST", path, &[("grpc-timeout", timeout)], &body.to_string());
        client
    };
    let answer = |timeout: &str, path: &str, body: Value| ask(timeout, path, body).answer(false).unwrap();
    let late = "context deadline exceeded";
    let lock = json!({"name": base64("l")});
    assert_eq!(answer("8S", "/v3/lock/lock", lock.clone()).status, 200);
    common::cluster::refused(&answer("300m", "/v3/lock/lock", lock.clone()), 504, 4, late);
    let put = json!({"key": base64("k"), "value": base64("v")});
    for bad in ["x", "S", "5s", "1.5S"] {
        let text = format!("invalid grpc-timeout: {bad}");
        for path in ["/v3/kv/put", "/v3/watch", "/v3/lease/keepalive", "/v3/election/observe"] {
            common::cluster::refused(&answer(bad, path, put.clone()), 400, 3, &text);
        }
    }
    common::cluster::refused(&answer("-1S", "/v3/kv/put", put.clone()), 504, 4, late);
    assert_eq!(tally.value("k"), None);
    assert_eq!(answer("0S", "/v3/kv/put", put).status, 200, "no time is no limit");
    // Streams end with it.
    let error = json!({"error": {
        "grpc_code": 4, "http_code": 504, "code": 4, "message": late, "http_status": "Gateway Timeout",
    }});
    let create = json!({"create_request": key("k")});
    let mut watch = JsonWatch::open_with(&tally.address, "grpc-timeout: 2000m\r\n", &create);
    assert_eq!(watch.result()["created"], true);
    assert_eq!(watch.error(), error["error"]);
    tally.ok("/v3/election/campaign", &json!({"name": base64("e"), "value": base64("v")}));
    let mut observer = ask("2000m", "/v3/election/observe", json!({"name": base64("e")}));
    assert_eq!(observer.object()["result"]["kv"]["value"], base64("v"));
    assert_eq!(observer.object(), error);
    // The client goes on sending, so nothing else ends this one.
    let mut renewals = tally.connect();
    let head =
        "POST /v3/lease/keepalive HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\ngrpc-timeout: 2000m\r\n\r\n";
    renewals.send(format!("{head}8\r\n{{\"ID\":7}}\r\n").as_bytes());
    assert_eq!(renewals.object()["result"]["ID"], "7");
    assert_eq!(renewals.object(), error);
    tally.stop();
}
