//! A whole session with the real binary: write, read, compact, restart, stop.
#![allow(clippy::unwrap_used)]

mod common;

use common::{base64, directory, start};
use serde_json::json;

#[test]
fn a_session_as_with_curl() {
    let root = directory();
    let tally = start(&root.path().join("d"));
    assert_eq!(tally.put("a", "1"), 2);
    assert_eq!(tally.put("a", "2"), 3);
    assert_eq!(tally.put("b", "3"), 4);
    assert_eq!(tally.value("a").as_deref(), Some("2"));

    let all = tally.ok("/v3/kv/range", &json!({"key": "AA==", "range_end": "AA=="}));
    assert_eq!(all["count"], "2");
    assert_eq!(all["kvs"][0]["version"], "2");
    let old = tally.ok("/v3/kv/range", &json!({"key": base64("a"), "revision": "2"}));
    assert_eq!(old["kvs"][0]["value"], base64("1"));

    let txn = json!({
        "compare": [{"key": base64("a"), "target": "VALUE", "value": base64("2")}],
        "success": [{"request_put": {"key": base64("c"), "value": base64("4")}}],
        "failure": [{"request_delete_range": {"key": base64("a")}}],
    });
    assert_eq!(tally.ok("/v3/kv/txn", &txn)["succeeded"], true);
    assert_eq!(tally.value("c").as_deref(), Some("4"));

    let deleted = tally.ok("/v3/kv/deleterange", &json!({"key": base64("b"), "prev_kv": true}));
    assert_eq!(deleted["deleted"], "1");
    assert_eq!(tally.value("b"), None);

    tally.ok("/v3/kv/compaction", &json!({"revision": "4", "physical": true}));
    let gone = tally.post("/v3/kv/range", &json!({"key": base64("a"), "revision": "2"}).to_string());
    assert_eq!(gone.status, 400);
    assert!(gone.body.contains("required revision has been compacted"), "{}", gone.body);

    let status = tally.ok("/v3/maintenance/status", &json!({}));
    assert_eq!(status["leader"], status["header"]["member_id"]);
    tally.stop();
}

#[test]
fn what_was_acknowledged_is_there_after_stop_and_after_kill() {
    let root = directory();
    let data = root.path().join("d");
    let tally = start(&data);
    for n in 0..50 {
        tally.put(&format!("k{n}"), &format!("v{n}"));
    }
    let log = tally.stop();
    assert!(log.iter().any(|line| line.contains("\"msg\":\"stopped\"")));

    let tally = start(&data);
    assert_eq!(tally.value("k49").as_deref(), Some("v49"));
    assert_eq!(tally.put("after", "stop"), 52);
    tally.kill();

    let tally = start(&data);
    assert_eq!(tally.value("k0").as_deref(), Some("v0"));
    assert_eq!(tally.value("after").as_deref(), Some("stop"));
    assert_eq!(tally.put("after", "kill"), 53);
    tally.stop();
}

#[test]
fn several_listeners_serve_and_log_that_they_do() {
    let root = directory();
    let socket = root.path().join("s");
    let mut tally = common::launch(&root.path().join("d"))
        .arg(&format!("--listen-client-urls=http://127.0.0.1:0,unix://{}", socket.display()))
        .arg("--listen-metrics-urls=http://127.0.0.1:0")
        .start();
    tally.wait_for("ready to serve client requests");
    let metrics = tally.log.iter().find(|line| line.contains("serving metrics")).unwrap();
    let mut metrics = common::Client::connect(&common::field(metrics, "address"));
    assert!(metrics.request("GET", "/metrics", "").body.contains("etcd_server_has_leader 1"));
    assert_eq!(metrics.request("GET", "/health", "").status, 200);
    assert_eq!(metrics.request("POST", "/v3/kv/range", r#"{"key":"YQ=="}"#).status, 404);

    use std::io::{Read, Write};
    let mut unix = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    unix.write_all(b"GET /version HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    unix.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    tally.stop();
    assert!(!socket.exists());
}

#[test]
fn a_stop_answers_the_requests_under_way() {
    let root = directory();
    let mut tally = start(&root.path().join("d"));
    let mut client = tally.connect();
    let body = r#"{"key":"YQ==","value":"Yg=="}"#;
    let head = format!("POST /v3/kv/put HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    client.send(head.as_bytes());
    client.send(&body.as_bytes()[..5]);
    // A second request on another connection proves that the first one's head has been taken in.
    tally.put("other", "x");
    tally.signal("TERM");
    tally.wait_for("stopping");
    client.send(&body.as_bytes()[5..]);
    let answer = client.answer(false).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(tally.wait().code(), Some(0));
}

#[test]
fn a_second_signal_ends_at_once() {
    let root = directory();
    let mut tally = start(&root.path().join("d"));
    let mut client = tally.connect();
    client.send(b"POST /v3/kv/put HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{");
    tally.put("other", "x");
    tally.signal("INT");
    tally.wait_for("stopping");
    tally.signal("INT");
    assert_eq!(tally.wait().code(), Some(1));
}
