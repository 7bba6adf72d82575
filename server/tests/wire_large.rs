//! Answers that are sent in pieces: the same as in pages, at any place they may break off.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Tally, base64, directory, start};
use serde_json::{Value, json};

const KEYS: usize = 5_000;

fn fill(tally: &Tally, keys: usize) {
    for from in (0..keys).step_by(100) {
        let put = |n: usize| {
            let (key, value) = (format!("k/{n:06}"), format!("{n}-{}", "v".repeat(n % 700)));
            json!({ "request_put": { "key": base64(&key), "value": base64(&value) } })
        };
        tally.ok("/v3/kv/txn", &json!({ "success": (from..from + 100).map(put).collect::<Vec<_>>() }));
    }
}

fn range(tally: &Tally, options: &Value) -> Value {
    let mut body = json!({ "key": base64("k/"), "range_end": base64("k0") });
    body.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
    tally.ok("/v3/kv/range", &body)
}

fn records(answer: &Value) -> &[Value] {
    answer["kvs"].as_array().unwrap()
}

/// All records, read one page after the other at one revision.
fn pages(tally: &Tally, size: usize) -> Vec<Value> {
    let mut all: Vec<Value> = Vec::new();
    loop {
        let after =
            all.last().map_or_else(|| "k/".to_owned(), |last| common::unbase64(last["key"].as_str().unwrap()) + "\0");
        let body = json!({ "key": base64(&after), "range_end": base64("k0"), "limit": size });
        let answer = tally.ok("/v3/kv/range", &body);
        all.extend_from_slice(records(&answer));
        if answer["more"] != true {
            return all;
        }
    }
}

#[test]
fn a_large_answer_is_the_sum_of_its_pages() {
    let root = directory();
    let tally = start(&root.path().join("d"));
    fill(&tally, KEYS);
    let answer = tally.post("/v3/kv/range", &json!({ "key": base64("k/"), "range_end": base64("k0") }).to_string());
    assert_eq!(answer.header("transfer-encoding"), Some("chunked"), "the answer was not sent in pieces");
    let labels = r#"grpc_method="Range",grpc_service="etcdserverpb.KV",grpc_type="unary""#;
    assert_eq!(tally.metric(&format!("grpc_server_msg_sent_total{{{labels}}}")), 1.0);
    let whole = answer.json();
    assert_eq!((records(&whole).len(), &whole["count"], &whole["more"]), (KEYS, &json!("5000"), &Value::Null));
    for size in [100, 128, 129, 500, 1_000, 1_001, 4_999] {
        assert_eq!(pages(&tally, size), records(&whole), "pages of {size}");
    }
    let limited = range(&tally, &json!({ "limit": 4_000 }));
    assert_eq!((records(&limited), &limited["more"]), (&records(&whole)[..4_000], &json!(true)));

    let mut reversed = records(&range(&tally, &json!({ "sort_order": "DESCEND" }))).to_vec();
    reversed.reverse();
    assert_eq!(reversed, records(&whole));
    let by_version = range(&tally, &json!({ "sort_target": "CREATE", "sort_order": "ASCEND" }));
    assert_eq!(records(&by_version).len(), KEYS);
    let keys_only = range(&tally, &json!({ "keys_only": true }));
    for (with, without) in records(&whole).iter().zip(records(&keys_only)) {
        assert_eq!((&with["key"], &without["value"]), (&without["key"], &Value::Null));
    }

    // An old revision is read the same way, whatever has happened since.
    tally.ok("/v3/kv/deleterange", &json!({ "key": base64("k/"), "range_end": base64("k0") }));
    let old = range(&tally, &json!({ "revision": 51 }));
    assert_eq!(records(&old), records(&whole));
    assert_eq!(range(&tally, &json!({}))["count"], Value::Null);
}

#[test]
fn a_large_transaction_that_only_reads_is_the_sum_of_its_ranges() {
    let root = directory();
    let tally = start(&root.path().join("d"));
    fill(&tally, 300);
    let range = |from: usize, to: usize, revision: i64| {
        let (key, end) = (format!("k/{from:06}"), format!("k/{to:06}"));
        json!({ "request_range": { "key": base64(&key), "range_end": base64(&end), "revision": revision } })
    };
    let counts = |answer: &Value| -> Vec<Value> {
        let replies = answer["responses"].as_array().unwrap();
        replies.iter().map(|reply| reply["response_range"]["count"].clone()).collect()
    };
    let absent = json!({ "key": base64("none"), "target": "VERSION", "version": 1 });
    let nested =
        json!({ "compare": [absent], "success": [range(0, 1, 0)], "failure": [range(7, 10, 0), range(0, 300, 3)] });
    let success = [range(0, 200, 0), json!({ "request_txn": nested }), range(299, 300, 0)];
    let txn = json!({ "success": success, "failure": [range(0, 5, 0)] });
    let answer = tally.ok("/v3/kv/txn", &txn);
    assert_eq!((&answer["succeeded"], &answer["header"]["revision"]), (&json!(true), &json!("4")));
    assert_eq!(counts(&answer), [json!("200"), Value::Null, json!("1")]);
    assert_eq!(records(&answer["responses"][0]["response_range"]).len(), 200);
    let inner = &answer["responses"][1]["response_txn"];
    assert_eq!((&inner["succeeded"], counts(inner)), (&Value::Null, vec![json!("3"), json!("200")]));
    // What cannot be read refuses the whole.
    tally.ok("/v3/kv/compaction", &json!({ "revision": 3 }));
    for (revision, text) in [(2, "compacted"), (-1, "compacted"), (5, "future")] {
        let txn = json!({ "success": [range(0, 300, 0), range(0, 1, revision)] });
        let answer = tally.post("/v3/kv/txn", &txn.to_string());
        assert!(answer.status == 400 && answer.body.contains(text), "{}", answer.body);
    }
}

#[test]
fn clients_that_go_in_the_middle_of_an_answer_leave_no_trace() {
    let root = directory();
    let tally = start(&root.path().join("d"));
    fill(&tally, KEYS);
    let body = json!({ "key": base64("k/"), "range_end": base64("k0") }).to_string();
    let head = format!("POST /v3/kv/range HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    // More often than answers may be sent in pieces at the same time.
    for _ in 0..200 {
        let mut client = tally.connect();
        client.send(head.as_bytes());
        client.send(body.as_bytes());
    }
    let mut answers = 0;
    while answers < 3 {
        // Connections that were dropped are noticed when their answer is written; until then they count.
        answers += usize::from(tally.post("/v3/kv/range", &body).status == 200);
    }
    assert_eq!(tally.put("after", "1"), 52);
}
