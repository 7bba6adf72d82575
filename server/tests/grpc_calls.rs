//! What is the same for every RPC over gRPC: metadata, deadlines, sizes, refusals, many calls at once.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::grpc::proto::health::HealthCheckRequest;
use common::grpc::proto::health::health_client::HealthClient;
use common::grpc::proto::v3electionpb::LeaderRequest;
use common::grpc::proto::v3electionpb::election_client::ElectionClient;
use common::grpc::{Direct, block_on, clients, from, get, origin, pb, put, refused};
use common::{directory, launch, metric, start};
use tokio::task::JoinSet;
use tokio_stream::StreamExt as _;
use tonic::Code;
use tonic::client::Grpc;
use tonic::codec::CompressionEncoding;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;

/// Calls a path with an empty message.
async fn call(channel: tonic::transport::Channel, path: &'static str) -> Result<pb::StatusResponse, Status> {
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.unwrap();
    let codec = ProstCodec::<pb::StatusRequest, pb::StatusResponse>::default();
    let answer = grpc.unary(Request::new(pb::StatusRequest {}), PathAndQuery::from_static(path), codec).await?;
    Ok(answer.into_inner())
}

#[test]
fn unknown_names_are_unimplemented_and_the_connection_goes_on() {
    let root = directory();
    let tally = start(&root.path().join("d"));
    block_on(async {
        let channel = tally.channel();
        for (path, text) in [
            ("/etcdserverpb.KV/Nope", "unknown method Nope for service etcdserverpb.KV"),
            ("/etcdserverpb.Nope/Range", "unknown service etcdserverpb.Nope"),
            ("/nothing", "malformed method name: \"/nothing\""),
        ] {
            refused(call(channel.clone(), path).await, Code::Unimplemented, text);
        }
        call(channel, "/etcdserverpb.Maintenance/Status").await.unwrap();
    });
}

#[test]
fn requests_may_be_compressed() {
    let root = directory();
    let tally = start(&root.path().join("d"));
    block_on(async {
        let mut kv = clients(&tally).kv.send_compressed(CompressionEncoding::Gzip);
        let value = "v".repeat(100_000);
        kv.put(put("k", &value)).await.unwrap();
        assert_eq!(kv.range(get("k")).await.unwrap().into_inner().kvs[0].value, value);
        // As little of it goes in as without: the limit is that of what was meant.
        let status = kv.put(put("k", &"v".repeat(3 << 20))).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        let mut request = Request::new(get("k"));
        request.metadata_mut().insert("grpc-encoding", "snappy".parse().unwrap());
        let text = "grpc: Decompressor is not installed for grpc-encoding \"snappy\"";
        refused(clients(&tally).kv.range(request).await, Code::Unimplemented, text);
    });
}

/// Clients that were given a name and a password ask for a token, and go on without one.
#[test]
fn without_users_nobody_has_to_be_authenticated() {
    let root = directory();
    let tally = start(&root.path().join("d"));
    let text = "etcdserver: authentication is not enabled";
    block_on(async {
        let mut auth = pb::auth_client::AuthClient::new(tally.channel());
        let request = pb::AuthenticateRequest { name: "root".into(), password: "secret".into() };
        refused(auth.authenticate(request).await, Code::FailedPrecondition, text);
        let status = auth.auth_status(pb::AuthStatusRequest {}).await.unwrap().into_inner();
        assert!(!status.enabled && status.auth_revision == 1 && status.header.unwrap().revision == 1);
    });
    let answer = tally.post("/v3/auth/authenticate", r#"{"name":"root","password":"secret"}"#);
    common::cluster::refused(&answer, 400, 9, text);
    let status = tally.ok("/v3/auth/status", &serde_json::json!({}));
    assert_eq!((&status["authRevision"], &status["enabled"]), (&"1".into(), &serde_json::Value::Null), "{status}");
    assert_eq!(tally.post("/v3/auth/enable", "{}").status, 404, "there are no users");
}

#[test]
fn a_thousand_calls_at_once_on_one_connection() {
    let root = directory();
    let tally = start(&root.path().join("d"));
    block_on(async {
        let kv = clients(&tally).kv;
        let mut calls = JoinSet::new();
        for number in 0..1_000 {
            let mut kv = kv.clone();
            calls.spawn(async move {
                let key = format!("k{number:04}");
                kv.put(put(&key, &key)).await.unwrap();
                let found = kv.range(get(&key)).await.unwrap().into_inner();
                assert_eq!(found.kvs[0].value, key);
            });
        }
        while let Some(done) = calls.join_next().await {
            done.unwrap();
        }
        let mut kv = kv;
        assert_eq!(kv.range(from("k")).await.unwrap().into_inner().count, 1_000);
    });
    assert_eq!(tally.metric("tally_connections_accepted_total") as u64, 2, "one for gRPC, one for the metrics");
}

#[test]
fn sizes_have_the_limits_of_etcd() {
    let root = directory();
    let tally = start(&root.path().join("d"));
    block_on(async {
        let mut kv = clients(&tally).kv;
        let big =
            |bytes: usize| pb::PutRequest { key: "big".into(), value: vec![b'x'; bytes].into(), ..Default::default() };
        // The borders are those found by trying with etcd.
        kv.put(big(1_572_838)).await.unwrap();
        refused(kv.put(big(1_572_839)).await, Code::InvalidArgument, "etcdserver: request is too large");
        let text = "grpc: received message larger than max (2097163 vs. 2097152)";
        refused(kv.put(big(2_097_153)).await, Code::ResourceExhausted, text);
        for number in 0..8 {
            let key = format!("many{number}");
            kv.put(pb::PutRequest { key: key.into(), ..big(1_500_000) }).await.unwrap();
        }
        // Twelve megabytes in one message.
        let all = kv.range(from("big")).await.unwrap().into_inner();
        assert_eq!((all.count, all.kvs.len(), all.kvs[8].value.len()), (9, 9, 1_500_000));
        let mut stream = kv.range_stream(from("big")).await.unwrap().into_inner();
        let mut streamed = 0;
        while let Some(chunk) = stream.message().await.unwrap() {
            streamed += chunk.range_response.unwrap().kvs.len();
        }
        assert_eq!(streamed, 9);
    });
}

#[test]
fn smaller_limits_are_kept_too() {
    let root = directory();
    let tally = launch(&root.path().join("d")).arg("--max-request-bytes=1000").start();
    block_on(async {
        let mut kv = clients(&tally).kv;
        refused(kv.put(put("a", &"x".repeat(1_000))).await, Code::InvalidArgument, "etcdserver: request is too large");
        kv.put(put("a", &"x".repeat(900))).await.unwrap();
    });
}

#[test]
fn deadlines_are_kept_and_wrong_ones_refused() {
    let root = directory();
    let tally = start(&root.path().join("d"));
    block_on(async {
        let mut kv = Direct::kv(&tally).await;
        let mut request = Request::new(get("a"));
        request.metadata_mut().insert("grpc-timeout", "0n".parse().unwrap());
        let status = kv.range(request).await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded);
        let mut request = Request::new(get("a"));
        request.metadata_mut().insert("grpc-timeout", "soon".parse().unwrap());
        let status = kv.range(request).await.unwrap_err();
        assert_eq!(status.code(), Code::Internal, "{status:?}");
        assert!(status.message().starts_with("malformed grpc-timeout"), "{status:?}");
        let mut request = Request::new(get("a"));
        request.set_timeout(Duration::from_secs(30));
        kv.range(request).await.unwrap();
    });
}

/// With what a stream ends that nobody ends, whatever it says before.
async fn end<T>(mut answers: Streaming<T>) -> Code {
    loop {
        match answers.message().await {
            Ok(Some(_)) => {}
            Ok(None) => return Code::Ok,
            Err(status) => return status.code(),
        }
    }
}

#[test]
fn streams_end_with_their_deadline_although_nothing_happens() {
    const DEADLINE: Duration = Duration::from_millis(300);
    fn brief<T>(message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(DEADLINE);
        request
    }
    let root = directory();
    let tally = start(&root.path().join("d"));
    block_on(async {
        let (direct, origin) = (Direct::connect(&tally).await, origin(&tally));
        let began = Instant::now();
        let create = pb::WatchCreateRequest { key: "k".into(), ..Default::default() };
        let union = Some(pb::watch_request::RequestUnion::CreateRequest(create));
        let requests = tokio_stream::once(pb::WatchRequest { request_union: union }).chain(tokio_stream::pending());
        let mut watches = pb::watch_client::WatchClient::with_origin(direct.clone(), origin.clone());
        let watch = watches.watch(brief(requests)).await.unwrap().into_inner();
        let mut leases = pb::lease_client::LeaseClient::with_origin(direct.clone(), origin.clone());
        let renewals = leases.lease_keep_alive(brief(tokio_stream::pending())).await.unwrap().into_inner();
        let mut elections = ElectionClient::with_origin(direct.clone(), origin.clone());
        let observed = elections.observe(brief(LeaderRequest { name: "e".into() })).await.unwrap().into_inner();
        let mut health = HealthClient::with_origin(direct, origin);
        let told = health.watch(brief(HealthCheckRequest::default())).await.unwrap().into_inner();
        let ends = [end(watch).await, end(renewals).await, end(observed).await, end(told).await];
        assert_eq!(ends, [Code::DeadlineExceeded; 4]);
        assert!(began.elapsed() >= DEADLINE, "{:?}", began.elapsed());
    });
}

#[test]
fn calls_are_counted_by_code_and_client_version() {
    let root = directory();
    let tally = launch(&root.path().join("d")).arg("--metrics=extensive").start();
    block_on(async {
        let mut kv = clients(&tally).kv;
        let mut request = Request::new(put("a", "1"));
        request.metadata_mut().insert("client-api-version", "3.6".parse().unwrap());
        request.metadata_mut().insert("hasleader", "true".parse().unwrap());
        kv.put(request).await.unwrap();
        kv.put(put("", "1")).await.unwrap_err();
        let mut stream = kv.range_stream(from("a")).await.unwrap().into_inner();
        while stream.message().await.unwrap().is_some() {}
    });
    let text = tally.get("/metrics").body;
    for line in [
        r#"grpc_server_started_total{grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"} 2"#,
        r#"grpc_server_handled_total{grpc_code="OK",grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"} 1"#,
        r#"grpc_server_handled_total{grpc_code="InvalidArgument",grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"} 1"#,
        r#"grpc_server_handled_total{grpc_code="OK",grpc_method="RangeStream",grpc_service="etcdserverpb.KV",grpc_type="server_stream"} 1"#,
        r#"grpc_server_msg_received_total{grpc_method="RangeStream",grpc_service="etcdserverpb.KV",grpc_type="server_stream"} 1"#,
        r#"grpc_server_msg_sent_total{grpc_method="RangeStream",grpc_service="etcdserverpb.KV",grpc_type="server_stream"} 1"#,
        r#"grpc_server_handling_seconds_count{grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"} 2"#,
        r#"etcd_server_client_requests_total{client_api_version="3.6",type="unary"} 1"#,
        r#"etcd_server_client_requests_total{client_api_version="unknown",type="stream"} 1"#,
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    assert!(metric(&text, "etcd_network_client_grpc_received_bytes_total").unwrap() > 10.0);
    assert!(metric(&text, "etcd_network_client_grpc_sent_bytes_total").unwrap() > 10.0);
}

#[test]
fn a_call_that_the_client_gives_up_counts_as_canceled() {
    let root = directory();
    let tally = start(&root.path().join("d"));
    block_on(async {
        let mut health = HealthClient::new(tally.channel());
        let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
        assert_eq!(watch.message().await.unwrap().unwrap().status, 1);
        drop(watch);
        let line = r#"grpc_server_handled_total{grpc_code="Canceled",grpc_method="Watch",grpc_service="grpc.health.v1.Health",grpc_type="server_stream"} 1"#;
        while !tally.get("/metrics").body.contains(line) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

#[test]
fn streams_whose_messages_cannot_be_read_are_counted() {
    let root = directory();
    let tally = start(&root.path().join("d"));
    let failures = |api: &str| {
        let name = "etcd_network_server_stream_failures_total";
        let line = format!("{name}{{API=\"{api}\",Type=\"receive\"}} ");
        tally.get("/metrics").body.lines().find_map(|text| text.strip_prefix(&line).map(str::to_owned))
    };
    block_on(async {
        let create = pb::WatchCreateRequest { key: vec![b'k'; 2_097_153].into(), ..Default::default() };
        let union = Some(pb::watch_request::RequestUnion::CreateRequest(create));
        let mut watch = pb::watch_client::WatchClient::new(tally.channel());
        let sent = tokio_stream::once(pb::WatchRequest { request_union: union });
        let refusal = match watch.watch(sent).await {
            Ok(stream) => stream.into_inner().message().await.map(drop),
            Err(status) => Err(status),
        };
        assert_eq!(refusal.unwrap_err().code(), Code::ResourceExhausted);
        // Renewals that are sent to the wrong place: such a message is none of a lease.
        let mut keep_alive = Grpc::new(tally.channel());
        keep_alive.ready().await.unwrap();
        let codec = ProstCodec::<pb::PutRequest, pb::LeaseKeepAliveResponse>::default();
        let path = PathAndQuery::from_static("/etcdserverpb.Lease/LeaseKeepAlive");
        let sent = Request::new(tokio_stream::once(put("not", "a number")));
        let refusal = match keep_alive.streaming(sent, path, codec).await {
            Ok(stream) => stream.into_inner().message().await.map(drop),
            Err(status) => Err(status),
        };
        assert_eq!(refusal.unwrap_err().code(), Code::Internal);
        // One that just goes away is no failure.
        let mut lease = pb::lease_client::LeaseClient::new(tally.channel());
        let sent = tokio_stream::once(pb::LeaseKeepAliveRequest { id: 5 });
        let mut answers = lease.lease_keep_alive(sent).await.unwrap().into_inner();
        assert_eq!(answers.message().await.unwrap().unwrap().ttl, 0);
        drop(answers);
    });
    assert_eq!(["watch", "lease-keepalive"].map(failures), [Some("1".to_owned()), Some("1".to_owned())]);
}

#[test]
fn who_follows_the_health_of_a_server_hears_that_it_stops_and_does_not_hold_it_up() {
    let root = directory();
    let mut tally = start(&root.path().join("d"));
    block_on(async {
        let mut health = HealthClient::new(tally.channel());
        let mut whole = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
        assert_eq!(whole.message().await.unwrap().unwrap().status, 1);
        let other = HealthCheckRequest { service: "etcdserverpb.KV".into() };
        let mut other = health.watch(other).await.unwrap().into_inner();
        assert_eq!(other.message().await.unwrap().unwrap().status, 3);
        tally.signal("TERM");
        assert_eq!(whole.message().await.unwrap().unwrap().status, 2);
        assert!(whole.message().await.unwrap().is_none() && other.message().await.unwrap().is_none());
    });
    assert_eq!(tally.wait().code(), Some(0));
    assert!(!tally.log.iter().any(|line| line.contains("did not end in time")), "{}", tally.log.join("\n"));
}

#[test]
fn health_tells_that_it_serves() {
    let root = directory();
    let tally = start(&root.path().join("d"));
    block_on(async {
        let mut health = HealthClient::new(tally.channel());
        let whole = health.check(HealthCheckRequest::default()).await.unwrap().into_inner();
        assert_eq!(whole.status, 1);
        let other = HealthCheckRequest { service: "etcdserverpb.KV".into() };
        refused(health.check(other.clone()).await, Code::NotFound, "unknown service");
        let mut watch = health.watch(other).await.unwrap().into_inner();
        assert_eq!(watch.message().await.unwrap().unwrap().status, 3);
    });
}
