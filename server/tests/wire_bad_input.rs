//! Bad requests to a real server: a clear error each, with etcd's status and code, and the server serves on.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Answer, Client, Tally, base64, directory, start};
use serde_json::{Value, json};

const REQUEST_BYTES_MAX: usize = 1_572_864;

fn check(answer: &Answer, status: u16, code: u64, words: &str) {
    let body = answer.json();
    assert_eq!((answer.status, body["code"].as_u64().unwrap()), (status, code), "{}", answer.body);
    assert!(body["message"].as_str().unwrap().contains(words), "{words:?} is not in {}", answer.body);
    assert_eq!(body["error"], body["message"]);
    assert_eq!(answer.header("content-type"), Some("application/json"));
}

fn refused(tally: &Tally, path: &str, body: &str, words: &str) {
    check(&tally.post(path, body), 400, 3, words);
}

#[test]
fn bodies_that_are_no_requests() {
    let root = directory();
    let tally = start(&root.path().join("d"));
    let (range, put, txn) = ("/v3/kv/range", "/v3/kv/put", "/v3/kv/txn");
    for (path, body, words) in [
        (range, "", "key is not provided"),
        (range, "{", "unexpected EOF"),
        (range, "not json", "invalid character 'o' in literal null (expecting 'u')"),
        (range, r#"{"key":7}"#, "cannot unmarshal number"),
        (range, r#"{"key":"%%%"}"#, "illegal base64 data at input byte 0"),
        (range, r#"{"key":"YQ==","limit":"many"}"#, "invalid character 'm' looking for beginning of value"),
        (range, r#"{"key":"YQ==","limit":9223372036854775808}"#, "9223372036854775808 into Go value of type int64"),
        (
            range,
            r#"{"key":"YQ==","limit":1e-9223372036854775808}"#,
            "1e-9223372036854775808 into Go value of type int64",
        ),
        (range, r#"{"key":"YQ==","sort_order":"UPWARDS"}"#, "unknown value"),
        (range, r#"{"key":"YQ==","sort_target":77}"#, "invalid sort option"),
        (put, r#"{"value":"YQ=="}"#, "key is not provided"),
        (put, r#"{"key":"YQ==","ignore_value":true}"#, "key not found"),
        (put, r#"{"key":"YQ==","value":"YQ==","ignore_value":true}"#, "value is provided"),
        (txn, r#"{"success":[{}]}"#, "key not found"),
        (txn, r#"{"success":"x"}"#, "cannot unmarshal string"),
    ] {
        refused(&tally, path, body, words);
    }
    // Unknown fields, and whatever follows the first value, are not looked at.
    let answer = tally.post(range, r#"{"key":"YQ==","colour":["blue",{"shade":1e400}]} and so on"#);
    assert_eq!(answer.status, 200);
    assert_eq!(tally.put("a", "1"), 2, "a bad request changed something");
}

#[test]
fn requests_over_a_limit() {
    let root = directory();
    let tally = start(&root.path().join("d"));
    let put = |bytes: usize| json!({ "key": base64("big"), "value": base64(&"x".repeat(bytes)) }).to_string();
    assert_eq!(tally.post("/v3/kv/put", &put(REQUEST_BYTES_MAX - 26)).status, 200);
    refused(&tally, "/v3/kv/put", &put(REQUEST_BYTES_MAX - 25), "etcdserver: request is too large");
    refused(&tally, "/v3/kv/put", &put(REQUEST_BYTES_MAX + 1), "etcdserver: request is too large");
    check(&tally.post("/v3/kv/put", &put(REQUEST_BYTES_MAX + (512 << 10) + 1)), 429, 8, "message larger than max");
    // So long a body is not even kept while it arrives, yet its sender gets to read why.
    check(&tally.post("/v3/kv/put", &put(4 * REQUEST_BYTES_MAX)), 429, 8, "max-request-bytes");

    let ops =
        |count: usize| json!({ "success": vec![json!({ "request_range": { "key": "YQ==" } }); count] }).to_string();
    assert_eq!(tally.post("/v3/kv/txn", &ops(128)).status, 200);
    refused(&tally, "/v3/kv/txn", &ops(129), "etcdserver: too many operations in txn request");
    let nested =
        |depth: usize| [r#"{"success":[{"request_txn":"#.repeat(depth), "{}".into(), "}]}".repeat(depth)].concat();
    assert_eq!(tally.post("/v3/kv/txn", &nested(100)).status, 200);
    refused(&tally, "/v3/kv/txn", &nested(1_000), "etcdserver: too many operations in txn request");
    refused(&tally, "/v3/kv/txn", &nested(20_000), "exceeded max depth");
    refused(&tally, "/v3/kv/range", &"[".repeat(1 << 20), "exceeded max depth");
}

#[test]
fn a_nested_transaction_that_writes_is_carried_out_at_the_deepest_level() {
    let root = directory();
    let tally = start(&root.path().join("d"));
    let put = json!({ "request_put": { "key": base64("deep"), "value": base64("1") } });
    let txn = (1..127).fold(json!({ "success": [put] }), |txn, _| json!({ "success": [{ "request_txn": txn }] }));
    // (Too deep for this test's JSON parser to read.)
    let answer = tally.post("/v3/kv/txn", &txn.to_string());
    assert!(answer.status == 200 && answer.body.contains(r#"{"response_put":{"header":{"revision":"2"}}}"#));
    assert_eq!(tally.value("deep").as_deref(), Some("1"));
}

#[test]
fn revisions_that_cannot_be_read() {
    let root = directory();
    let tally = start(&root.path().join("d"));
    for n in 0..5 {
        tally.put("a", &n.to_string());
    }
    tally.ok("/v3/kv/compaction", &json!({ "revision": 4 }));
    let range = |revision: i64| tally.post("/v3/kv/range", &json!({ "key": "YQ==", "revision": revision }).to_string());
    check(&range(3), 400, 11, "etcdserver: mvcc: required revision has been compacted");
    check(&range(7), 400, 11, "etcdserver: mvcc: required revision is a future revision");
    assert_eq!((range(4).status, range(6).status, range(-1).status), (200, 200, 200));
    for (revision, words) in [(4, "has been compacted"), (7, "is a future revision")] {
        let body = json!({ "revision": revision }).to_string();
        check(&tally.post("/v3/kv/compaction", &body), 400, 11, words);
    }
    let leased = tally.post("/v3/kv/put", r#"{"key":"YQ==","lease":"5"}"#);
    check(&leased, 404, 5, "etcdserver: requested lease not found");
}

#[test]
fn wrong_paths_and_methods() {
    let root = directory();
    let tally = start(&root.path().join("d"));
    let ask = |method: &str, path: &str| tally.connect().request(method, path, "{}");
    for path in ["/v3/", "/v3/kv", "/v3/kv/range/", "/v3/KV/range", "/v3/kv/nothing", "/v3beta/kv/nothing"] {
        check(&ask("POST", path), 404, 5, "Not Found");
    }
    for path in ["/", "/v3", "/v2/keys", "/v3alpha/kv/range", "/nothing", "/%00", "/../etc/passwd"] {
        let answer = ask("POST", path);
        assert_eq!((answer.status, &*answer.body), (404, "404 page not found\n"), "{path}");
    }
    for method in ["GET", "PUT", "DELETE", "PATCH"] {
        check(&ask(method, "/v3/kv/range"), 501, 12, "Method Not Allowed");
    }
    let answer = tally.connect().request("POST", "/v3beta/kv/range?ignored=1", r#"{"key":"YQ=="}"#);
    assert_eq!((answer.status, answer.header("grpc-metadata-content-type")), (200, Some("application/grpc")));
}

/// One connection serves on after errors: a refusal leaves nothing of its body behind.
#[test]
fn a_connection_survives_refusals() {
    let root = directory();
    let tally = start(&root.path().join("d"));
    let mut client = Client::connect(&tally.address);
    for round in 0..20 {
        assert_eq!(client.request("POST", "/v3/kv/range", "{").status, 400);
        assert_eq!(client.request("POST", "/v3/kv/nothing", "{}").status, 404);
        let body = json!({ "key": base64("k"), "value": base64(&round.to_string()) }).to_string();
        let answer = client.request("POST", "/v3/kv/put", &body);
        assert_eq!(answer.json()["header"]["revision"], Value::from((round + 2).to_string()));
    }
}
