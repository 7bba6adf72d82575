//! Watching over gRPC, with the generated client.
#![allow(clippy::unwrap_used)]

mod common;

use common::cluster::Cluster;
use common::grpc::{block_on, clients, pb, put, refused};
use common::watch::JsonWatch;
use common::{Tally, base64, directory, launch, start};
use pb::watch_request::RequestUnion;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

struct Watch {
    requests: mpsc::Sender<pb::WatchRequest>,
    responses: Streaming<pb::WatchResponse>,
}

impl Watch {
    async fn open(channel: &Channel) -> Watch {
        Watch::try_open(channel, &[]).await.unwrap()
    }

    async fn try_open(channel: &Channel, metadata: &[(&'static str, &'static str)]) -> Result<Watch, Status> {
        let (requests, receiver) = mpsc::channel(16);
        let mut request = Request::new(ReceiverStream::new(receiver));
        for (name, value) in metadata {
            request.metadata_mut().insert(*name, value.parse().unwrap());
        }
        let mut client = pb::watch_client::WatchClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
        let responses = client.watch(request).await?.into_inner();
        Ok(Watch { requests, responses })
    }

    async fn send(&self, union: RequestUnion) {
        self.requests.send(pb::WatchRequest { request_union: Some(union) }).await.unwrap();
    }

    async fn create(&mut self, create: pb::WatchCreateRequest) -> pb::WatchResponse {
        self.send(RequestUnion::CreateRequest(create)).await;
        let created = self.next().await;
        assert!(created.created, "{created:?}");
        created
    }

    async fn next(&mut self) -> pb::WatchResponse {
        self.responses.message().await.unwrap().expect("the stream goes on")
    }
}

fn on(key: &str) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest { key: key.to_owned().into(), ..Default::default() }
}

/// Revision, key, value (none if deleted) and previous value of each change.
fn changes(response: &pb::WatchResponse) -> Vec<(i64, String, Option<String>, Option<String>)> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let change = |event: &common::grpc::proto::mvccpb::Event| {
        let kv = event.kv.as_ref().unwrap();
        let value = (event.r#type == 0).then(|| text(&kv.value));
        (kv.mod_revision, text(&kv.key), value, event.prev_kv.as_ref().map(|prev| text(&prev.value)))
    };
    response.events.iter().map(change).collect()
}

#[test]
fn a_stream_of_watchers() {
    let directory = directory();
    let tally = start(directory.path());
    block_on(async {
        let mut clients = clients(&tally);
        let mut watch = Watch::open(&clients.channel).await;
        let first = watch.create(on("k")).await;
        assert_eq!((first.watch_id, first.header.as_ref().unwrap().revision, first.canceled), (0, 1, false));
        let range = pb::WatchCreateRequest { range_end: "l".into(), prev_kv: true, watch_id: 7, ..on("k") };
        assert_eq!(watch.create(range).await.watch_id, 7);
        let header = clients.kv.put(put("k", "1")).await.unwrap().into_inner().header.unwrap();
        let change = |revision, value: Option<&str>, prev: Option<&str>| {
            vec![(revision, "k".to_owned(), value.map(str::to_owned), prev.map(str::to_owned))]
        };
        for id in [0, 7] {
            let response = watch.next().await;
            assert_eq!(response.header, Some(header));
            assert_eq!((response.watch_id, changes(&response)), (id, change(2, Some("1"), None)));
        }
        let delete = pb::DeleteRangeRequest { key: "k".into(), ..Default::default() };
        clients.kv.delete_range(delete).await.unwrap();
        let (one, other) = (watch.next().await, watch.next().await);
        assert_eq!(changes(&one), change(3, None, None), "it did not ask for what was before");
        assert_eq!(changes(&other), change(3, None, Some("1")));

        watch.send(RequestUnion::ProgressRequest(pb::WatchProgressRequest {})).await;
        let progress = watch.next().await;
        assert_eq!((progress.watch_id, progress.header.unwrap().revision, progress.events.len()), (-1, 3, 0));
        watch.send(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 7 })).await;
        let canceled = watch.next().await;
        assert_eq!((canceled.watch_id, canceled.canceled, &canceled.cancel_reason[..]), (7, true, ""));
        let twice = watch.create(pb::WatchCreateRequest { watch_id: 0, ..on("l") }).await;
        assert_eq!(twice.watch_id, 1);
        let refused = watch.create(pb::WatchCreateRequest { watch_id: 1, ..on("l") }).await;
        assert_eq!((refused.watch_id, refused.canceled), (-1, true));
        assert_eq!(refused.cancel_reason, "mvcc: duplicate watch ID provided on the WatchStream");

        // Half-closed, it goes on.
        let Watch { requests, mut responses } = watch;
        drop(requests);
        clients.kv.put(put("l", "2")).await.unwrap();
        let last = responses.message().await.unwrap().unwrap();
        assert_eq!((last.watch_id, last.events.len()), (1, 1));
    });
    assert!(tally.metric("etcd_debugging_mvcc_events_total") >= 5.0);
}

#[test]
fn both_forms_see_the_same() {
    let directory = directory();
    let tally = start(directory.path());
    block_on(async {
        let clients = clients(&tally);
        // Each form with and without what was before: their encodings are four.
        let (mut watches, mut lines) = (Vec::new(), Vec::new());
        for prev_kv in [false, true] {
            let mut watch = Watch::open(&clients.channel).await;
            watch.create(pb::WatchCreateRequest { prev_kv, ..on("k") }).await;
            watches.push(watch);
            lines.push(JsonWatch::on(&tally.address, json!({"key": base64("k"), "prev_kv": prev_kv})));
        }
        for (value, before) in [("1", None), ("2", Some("1"))] {
            clients.kv.clone().put(put("k", value)).await.unwrap();
            for (at, before) in [None, before].into_iter().enumerate() {
                let over_grpc = changes(&watches[at].next().await);
                assert_eq!(over_grpc[0].3.as_deref(), before);
                let over_json = lines[at].result();
                assert_eq!(over_json["events"][0]["prev_kv"]["value"].as_str(), before.map(base64).as_deref());
                let over_grpc: Vec<_> =
                    over_grpc.into_iter().map(|(revision, key, value, _)| (revision, key, value)).collect();
                assert_eq!(common::watch::changes(&over_json), over_grpc);
            }
        }
    });
}

#[test]
fn fragments() {
    let directory = directory();
    let tally = launch(directory.path()).arg("--max-request-bytes=1000").start();
    let value = "v".repeat(700);
    for number in 0..1_000 {
        tally.put(&format!("k{number:04}"), &value);
    }
    block_on(async {
        let mut clients = clients(&tally);
        let mut watch = Watch::open(&clients.channel).await;
        let all = pb::WatchCreateRequest { range_end: "l".into(), prev_kv: true, fragment: true, ..on("k") };
        watch.create(all).await;
        let delete = pb::DeleteRangeRequest { key: "k".into(), range_end: "l".into(), ..Default::default() };
        clients.kv.delete_range(delete).await.unwrap();
        let mut events = 0;
        let limit = 1_000 + 512 * 1024;
        loop {
            let part = watch.next().await;
            assert!(prost::Message::encoded_len(&part) <= limit, "a fragment is as long as a message may be");
            events += part.events.len();
            if !part.fragment {
                break;
            }
        }
        assert_eq!(events, 1_000);
    });
}

#[test]
fn a_stop_is_told_in_the_status() {
    let directory = directory();
    let tally = start(directory.path());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let channel = runtime.block_on(async { tally.channel() });
    let mut watch = runtime.block_on(Watch::open(&channel));
    runtime.block_on(watch.create(on("k")));
    let ended = runtime.spawn(async move { watch.responses.message().await });
    tally.stop();
    let status = runtime.block_on(ended).unwrap().unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "etcdserver: server stopped"));
}

#[test]
fn who_wants_a_leader_hears_that_there_is_none_and_others_go_on() {
    let mut cluster = Cluster::with(2, &["--heartbeat-interval=50", "--election-timeout=500"]);
    let (leader, kept) = (cluster.leader(), cluster.follower());
    block_on(async {
        let channel = cluster.node(kept).channel();
        let wants_leader = [("hasleader", "true")];
        let mut wants = Watch::try_open(&channel, &wants_leader).await.unwrap();
        wants.create(on("k")).await;
        let mut other = Watch::open(&channel).await;
        other.create(on("k")).await;
        cluster.kill(leader);
        let text = "etcdserver: no leader";
        refused(wants.responses.message().await, Code::Unavailable, text);
        // While there is none, such a stream is refused at once.
        refused(Watch::try_open(&channel, &wants_leader).await.map(drop), Code::Unavailable, text);
        other.create(on("l")).await;
    });
}

#[test]
fn bad_requests() {
    let directory = directory();
    let tally: Tally = start(directory.path());
    block_on(async {
        let clients = clients(&tally);
        let mut watch = Watch::open(&clients.channel).await;
        // An empty request is passed over.
        watch.requests.send(pb::WatchRequest { request_union: None }).await.unwrap();
        let range = pb::WatchCreateRequest { range_end: "a".into(), ..on("b") };
        let refused = watch.create(range).await;
        assert_eq!((refused.watch_id, &refused.cancel_reason[..]), (-1, "mvcc: watcher range is empty"));
        let negative = watch.create(pb::WatchCreateRequest { start_revision: -5, ..on("b") }).await;
        assert_eq!(negative.cancel_reason, "etcdserver: mvcc: required revision has been compacted");
        // The smallest key, and all after it.
        let all = watch.create(pb::WatchCreateRequest { range_end: vec![0].into(), ..on("") }).await;
        assert!(!all.canceled);
        clients.kv.clone().put(put("x", "1")).await.unwrap();
        assert_eq!(watch.next().await.events.len(), 1);
    });
}
