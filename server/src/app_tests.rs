//! What becomes of the connections of a real server whose time is made to pass.
#![allow(clippy::unwrap_used)]

use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::config::Invocation;

/// No test takes so long.
const PATIENCE: Duration = Duration::from_secs(60);
/// Answers in pieces that there may be at a time.
const STREAMS: usize = 64;
/// `l`, in base64 and as the only field of a message over gRPC.
const NAME: &str = "bA==";
const NAME_MESSAGE: &[u8] = b"\0\0\0\0\x03\x0a\x01l";

async fn start() -> (TempDir, Server) {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(Config::local(directory.path().join("d")).unwrap()).await.unwrap();
    (directory, server)
}

/// A client that takes so many bytes of an answer, and the end of its connection.
async fn connect(server: &Server, window_bytes: u32) -> (SendRequest<Body>, JoinHandle<()>) {
    let socket = TcpStream::connect(server.client_addresses()[0]).await.unwrap();
    let mut builder = Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(window_bytes);
    let (client, connection) = builder.handshake(TokioIo::new(socket)).await.unwrap();
    let ended = tokio::spawn(async move { drop(connection.await) });
    (client, ended)
}

fn request(path: &str, content_type: &str, body: Body) -> Request<Body> {
    Request::post(format!("http://h{path}")).header("content-type", content_type).body(body).unwrap()
}

fn json_request(path: &str, body: &Value) -> Request<Body> {
    request(path, "application/json", body.to_string().into())
}

async fn send(client: &mut SendRequest<Body>, request: Request<Body>) -> Response<Incoming> {
    timeout(PATIENCE, client.send_request(request)).await.expect("it is answered").unwrap()
}

/// Asks over a connection of its own.
async fn ask(server: &Server, request: Request<Body>) -> (StatusCode, Bytes) {
    let (mut client, _) = connect(server, 1 << 20).await;
    let response = send(&mut client, request).await;
    (response.status(), response.into_body().collect().await.unwrap().to_bytes())
}

async fn ask_json(server: &Server, path: &str, body: &Value) -> Value {
    let (status, answer) = ask(server, json_request(path, body)).await;
    assert_eq!(status, StatusCode::OK, "{answer:?}");
    serde_json::from_slice(&answer).unwrap()
}

async fn metric(server: &Server, name: &str, method: &str) -> f64 {
    let (_, text) = ask(server, Request::get("http://h/metrics").body(Body::empty()).unwrap()).await;
    let text = String::from_utf8(text.to_vec()).unwrap();
    let is_it = |line: &&str| line.starts_with(name) && line.contains(&format!("grpc_method=\"{method}\""));
    let line = text.lines().find(is_it).unwrap_or_else(|| panic!("no {name} of {method}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

fn pass(server: &Server, seconds: u64) {
    const STEP_S: u64 = 5;
    (0..seconds / STEP_S).for_each(|_| server.clients.connections.tick(Duration::from_secs(STEP_S)));
}

/// Lets time pass until a connection ends.
async fn pass_until(server: &Server, mut ended: JoinHandle<()>) {
    let passing = async {
        while !ended.is_finished() {
            pass(server, 5);
            tokio::task::yield_now().await;
        }
        (&mut ended).await.unwrap();
    };
    timeout(PATIENCE, passing).await.expect("the connection is closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_nobody_takes_are_given_up_and_others_have_their_places() {
    let (_directory, server) = start().await;
    // So large that it is sent in pieces.
    let value = "A".repeat(1 << 20);
    ask_json(&server, "/v3/kv/put", &json!({ "key": NAME, "value": value })).await;
    let range = || json_request("/v3/kv/range", &json!({ "key": NAME, "range_end": "bQ==" }));
    let (mut deaf, ended) = connect(&server, 0).await;
    let mut answers = Vec::new();
    for _ in 0..STREAMS {
        answers.push(send(&mut deaf, range()).await);
        assert_eq!(answers.last().unwrap().status(), StatusCode::OK);
    }
    assert_eq!(ask(&server, range()).await.0, StatusCode::TOO_MANY_REQUESTS);
    pass_until(&server, ended).await;
    let served = async { while ask(&server, range()).await.0 != StatusCode::OK {} };
    timeout(PATIENCE, served).await.expect("there is a place again");
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_may_wait_for_its_client_as_long_as_it_likes() {
    let (_directory, server) = start().await;
    let (mut deaf, ended) = connect(&server, 0).await;
    let create = json!({ "create_request": { "key": NAME } });
    let watch = send(&mut deaf, json_request("/v3/watch", &create)).await;
    assert_eq!(watch.status(), StatusCode::OK);
    let told = async { while metric(&server, "grpc_server_msg_sent_total", "Watch").await < 1.0 {} };
    timeout(PATIENCE, told).await.expect("it is told that it watches");
    pass(&server, 3_600);
    let (head, _) = (send(&mut deaf, Request::get("http://h/version").body(Body::empty()).unwrap()).await, &watch);
    assert_eq!(head.status(), StatusCode::OK);
    assert!(!ended.is_finished());
    drop((watch, head, deaf));
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_lock_may_do_so_for_long_and_who_does_not_say_for_which_may_not() {
    let (_directory, server) = start().await;
    let mut started = 0.0;
    for (path, content_type, message) in [
        ("/v3/lock/lock", "application/json", Bytes::from(json!({ "name": NAME }).to_string())),
        ("/v3lockpb.Lock/Lock", "application/grpc", Bytes::from_static(NAME_MESSAGE)),
    ] {
        let (mut silent, ended) = connect(&server, 1 << 20).await;
        let never = Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::convert::Infallible>>());
        let unread = silent.send_request(request(path, content_type, never));
        started += 1.0;
        let begun = async { while metric(&server, "grpc_server_started_total", "Lock").await < started {} };
        timeout(PATIENCE, begun).await.expect("the server waits for the body");
        pass_until(&server, ended).await;
        assert!(unread.await.is_err());

        let held = ask_json(&server, "/v3/lock/lock", &json!({ "name": NAME })).await;
        let (mut waits, ended) = connect(&server, 1 << 20).await;
        let locked = tokio::spawn(waits.send_request(request(path, content_type, message.into())));
        started += 2.0;
        let keys = json!({ "key": "bC8=", "range_end": "bDA=", "count_only": true });
        let waiting = async { while ask_json(&server, "/v3/kv/range", &keys).await["count"] != "2" {} };
        timeout(PATIENCE, waiting).await.expect("it waits for the lock");
        pass(&server, 3_600);
        ask_json(&server, "/v3/lock/unlock", &json!({ "key": held["key"] })).await;
        let response = timeout(PATIENCE, locked).await.expect("the lock is passed on").unwrap().unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert!(!ended.is_finished());
        drop((response, waits));
        let freed = json!({ "key": "bC8=", "range_end": "bDA=" });
        ask_json(&server, "/v3/kv/deleterange", &freed).await;
    }
    server.shutdown().await.unwrap();
}

/// Members may have been given different limits, and each takes what any other one lets through.
#[test]
fn the_largest_request_that_can_be_allowed_is_a_command_that_every_member_takes() {
    const LARGEST: u64 = 256 << 20;
    let with_limit = |bytes: u64| {
        let args = [format!("--max-request-bytes={bytes}")];
        Config::from_args(&args, std::iter::empty()).map(|invocation| match invocation {
            Invocation::Serve(config) => config,
            Invocation::Print(text) => panic!("{text}"),
        })
    };
    let config = with_limit(LARGEST).unwrap();
    assert!(entry_bytes(&config) <= tally_raftnode::COMMAND_BYTES_MAX as u64);
    with_limit(LARGEST + 1).unwrap_err();
}
