//! Watching over a WebSocket on the path of the JSON form.
#![allow(clippy::unwrap_used)]

mod common;

use common::watch::{Socket, changes, key};
use common::{base64, directory, launch, start};
use serde_json::json;

#[test]
fn messages_are_requests_and_responses() {
    let directory = directory();
    let tally = start(directory.path());
    let mut socket = Socket::open(&tally.address);
    socket.send(&json!({"create_request": {"key": base64("k"), "watch_id": "5"}}));
    let created = socket.json();
    assert_eq!((&created["result"]["created"], &created["result"]["watch_id"]), (&json!(true), &json!("5")));
    let revision = tally.put("k", "1");
    assert_eq!(changes(&socket.json()["result"]), [(revision, "k".to_owned(), Some("1".to_owned()))]);
    // A request in binary, two in one message, and a ping in between.
    socket.frame(0x82, b"{\"progress_request\":{}}");
    assert_eq!(socket.json()["result"]["watch_id"], "-1");
    socket.frame(0x89, b"ping");
    assert_eq!(socket.message().unwrap(), (0x8a, b"ping".to_vec()));
    socket.frame(0x81, b"{\"cancel_request\":{\"watch_id\":5}} {\"create_request\":{\"key\":\"aw==\"}}");
    assert_eq!(socket.json()["result"]["canceled"], true);
    assert_eq!(socket.json()["result"]["created"], true);
    // The farewell is answered.
    socket.frame(0x88, &1_000_u16.to_be_bytes());
    assert_eq!(socket.message().unwrap().0, 0x88);
    assert!(socket.message().is_none());
}

#[test]
fn pages_that_may_not_read_answers_get_no_socket() {
    let directory = directory();
    let tally = launch(directory.path()).arg("--cors=http://good.example").start();
    let open = |origin: &str| {
        let headers = [
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("origin", origin),
        ];
        tally.connect().request_with("GET", "/v3/watch", &headers, "")
    };
    let refused = open("http://bad.example");
    assert_eq!((refused.status, refused.body.contains("--cors")), (403, true), "{}", refused.body);
    assert_eq!(open("http://good.example").status, 101);
}

#[test]
fn nonsense_ends_the_stream_with_an_error() {
    let directory = directory();
    let tally = start(directory.path());
    let mut socket = Socket::open(&tally.address);
    socket.frame(0x81, b"nonsense");
    assert_eq!(socket.json()["error"]["code"], 3);
    assert_eq!(socket.message().unwrap().0, 0x88);
    assert_eq!(tally.put("k", "1"), 2);
}

#[test]
fn a_stop_is_told() {
    let directory = directory();
    let tally = start(directory.path());
    let mut socket = Socket::open(&tally.address);
    socket.send(&json!({"create_request": key("k")}));
    assert_eq!(socket.json()["result"]["created"], true);
    let reader = std::thread::spawn(move || (socket.json(), socket.message().map(|message| message.0)));
    tally.stop();
    let (error, farewell) = reader.join().unwrap();
    assert_eq!(error["error"]["message"], "etcdserver: server stopped");
    assert_eq!(farewell, Some(0x88));
}
