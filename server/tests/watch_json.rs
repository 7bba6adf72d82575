//! Watching over plain HTTP: `/v3/watch` with JSON objects in, lines out.
#![allow(clippy::unwrap_used)]

mod common;

use common::watch::{JsonWatch, changes, key, number};
use common::{base64, directory, launch, start};
use serde_json::{Value, json};

#[test]
fn a_watch_is_created_sees_its_changes_and_is_canceled() {
    let directory = directory();
    let tally = start(directory.path());
    tally.put("a", "0");
    let mut watch = JsonWatch::open(&tally.address, &json!({"create_request": {"key": base64("a")}}));
    assert!(watch.head.starts_with("HTTP/1.1 200 "), "{}", watch.head);
    assert!(watch.head.contains("content-type: application/json"), "{}", watch.head);
    let created = watch.result();
    let status = tally.ok("/v3/maintenance/status", &json!({}));
    let mut header = status["header"].clone();
    header["revision"] = "2".into();
    assert_eq!(created, json!({"header": header, "created": true}), "zero fields are left out");

    tally.put("b", "not watched");
    tally.put("a", "1");
    header["revision"] = "4".into();
    let kv =
        json!({"key": base64("a"), "create_revision": "2", "mod_revision": "4", "version": "2", "value": base64("1")});
    assert_eq!(watch.result(), json!({"header": header, "events": [{"kv": kv}]}));

    tally.ok("/v3/kv/deleterange", &key("a"));
    header["revision"] = "5".into();
    let gone = json!({"type": "DELETE", "kv": {"key": base64("a"), "mod_revision": "5"}});
    assert_eq!(watch.result(), json!({"header": header, "events": [gone]}));

    watch.send(&json!({"cancel_request": {"watch_id": "0"}}));
    assert_eq!(watch.result(), json!({"header": header, "canceled": true}));
    // Unknown ids are passed over; the stream lives on.
    watch.send(&json!({"cancel_request": {"watch_id": "77"}}));
    watch.send(&json!({"create_request": {"key": base64("a"), "watch_id": "9"}}));
    assert_eq!(watch.result(), json!({"header": header, "watch_id": "9", "created": true}));
    tally.put("a", "2");
    assert_eq!(watch.result()["watch_id"], "9");
    tally.stop();
}

#[test]
fn the_end_of_the_requests_does_not_end_the_watch() {
    let directory = directory();
    let tally = start(directory.path());
    let mut watch = JsonWatch::on(&tally.address, key("k"));
    watch.finish();
    for value in ["1", "2"] {
        let revision = tally.put("k", value);
        assert_eq!(changes(&watch.result()), [(revision, "k".to_owned(), Some(value.to_owned()))]);
    }
    // Where nothing is watched and nothing can be asked for, there is nothing to wait for.
    let empty = tally.post("/v3/watch", "");
    assert_eq!((empty.status, &empty.body[..]), (200, ""));
    let refused = tally.post("/v3/watch", &json!({"create_request": {"key": "Yg==", "range_end": "YQ=="}}).to_string());
    assert!(refused.body.contains("\"canceled\":true") && refused.body.lines().count() == 1, "{}", refused.body);
}

#[test]
fn history_live_changes_and_transactions_come_in_order_and_whole() {
    let directory = directory();
    let tally = start(directory.path());
    for value in 1..=3 {
        tally.put("k1", &value.to_string());
    }
    let txn = json!({"success": [
        {"request_put": {"key": base64("k2"), "value": base64("x")}},
        {"request_delete_range": {"key": base64("k1")}},
        {"request_put": {"key": base64("other"), "value": base64("x")}},
    ]});
    tally.ok("/v3/kv/txn", &txn);
    let mut watch = JsonWatch::on(
        &tally.address,
        json!({"key": base64("k"), "range_end": base64("l"), "start_revision": 3, "prev_kv": true}),
    );
    let history = watch.result();
    let change = |revision, key: &str, value: Option<&str>| (revision, key.to_owned(), value.map(str::to_owned));
    assert_eq!(
        changes(&history),
        [change(3, "k1", Some("2")), change(4, "k1", Some("3")), change(5, "k2", Some("x")), change(5, "k1", None)]
    );
    let prev = |at: usize| history["events"][at]["prev_kv"]["value"].as_str().map(common::unbase64);
    assert_eq!((0..4).map(prev).collect::<Vec<_>>(), [Some("1".into()), Some("2".into()), None, Some("3".into())]);
    tally.ok("/v3/kv/txn", &txn);
    let live = watch.result();
    assert_eq!(changes(&live), [change(6, "k2", Some("x"))], "k1 is gone already");
    assert_eq!(number(&live["header"]["revision"]), 6);
    assert_eq!(live["events"][0]["prev_kv"]["mod_revision"], "5");
}

#[test]
fn what_cannot_be_watched_is_created_and_canceled_at_once() {
    let directory = directory();
    let tally = start(directory.path());
    let mut watch = JsonWatch::on(&tally.address, json!({"key": base64("k"), "watch_id": 3}));
    let mut refused = |create: Value| {
        watch.send(&json!({ "create_request": create }));
        let result = watch.result();
        assert_eq!((&result["created"], &result["canceled"]), (&json!(true), &json!(true)), "{result}");
        assert_eq!((&result["watch_id"], &result["compact_revision"]), (&json!("-1"), &Value::Null), "{result}");
        result["cancel_reason"].as_str().unwrap().to_owned()
    };
    let range = json!({"key": base64("b"), "range_end": base64("a")});
    assert_eq!(refused(range), "mvcc: watcher range is empty");
    let taken = json!({"key": base64("b"), "watch_id": "3"});
    assert_eq!(refused(taken), "mvcc: duplicate watch ID provided on the WatchStream");
    let negative = json!({"key": base64("b"), "start_revision": -1});
    assert_eq!(refused(negative), "etcdserver: mvcc: required revision has been compacted");
    // An empty key is the smallest there is.
    watch.send(&json!({"create_request": {"range_end": base64("\0")}}));
    assert_eq!(watch.result()["watch_id"], Value::Null);
    tally.put("anything", "1");
    assert_eq!(changes(&watch.result()).len(), 1);
}

#[test]
fn a_compacted_start_is_canceled_with_the_revision_to_start_from() {
    let directory = directory();
    let tally = start(directory.path());
    for value in 0..5 {
        tally.put("k", &value.to_string());
    }
    tally.ok("/v3/kv/deleterange", &key("k"));
    tally.ok("/v3/kv/compaction", &json!({"revision": 7, "physical": true}));
    let mut watch = JsonWatch::on(&tally.address, json!({"key": base64("k"), "start_revision": 6}));
    let canceled = watch.result();
    assert_eq!((&canceled["canceled"], &canceled["compact_revision"]), (&json!(true), &json!("7")), "{canceled}");
    assert_eq!((&canceled["cancel_reason"], &canceled["header"]["revision"]), (&Value::Null, &Value::Null));
    // The delete at the very revision of the compaction is still there.
    let mut at = JsonWatch::on(&tally.address, json!({"key": base64("k"), "start_revision": 7}));
    assert_eq!(at.changes(1), [(7, "k".to_owned(), None)]);
}

#[test]
fn filters_and_progress() {
    let directory = directory();
    let tally = launch(directory.path()).arg("--watch-progress-notify-interval=100ms").start();
    let mut watch = JsonWatch::on(&tally.address, json!({"key": base64("k"), "filters": ["NOPUT"]}));
    tally.put("k", "1");
    tally.ok("/v3/kv/deleterange", &key("k"));
    assert_eq!(watch.changes(1), [(3, "k".to_owned(), None)]);
    watch.send(&json!({"progress_request": {}}));
    let progress = watch.result();
    assert_eq!((&progress["watch_id"], &progress["events"]), (&json!("-1"), &Value::Null), "{progress}");
    assert_eq!(number(&progress["header"]["revision"]), 3);
    watch.send(&json!({"create_request": {"key": base64("quiet"), "progress_notify": true}}));
    assert_eq!(watch.result()["created"], true);
    let told = watch.result();
    assert_eq!((&told["watch_id"], &told["created"], &told["events"]), (&json!("1"), &Value::Null, &Value::Null));
    assert_eq!(number(&told["header"]["revision"]), 3);
}

#[test]
fn fragments_are_cut_at_the_size_of_a_request() {
    let directory = directory();
    let tally = launch(directory.path()).arg("--max-request-bytes=1000").start();
    // etcd allows a message half a MiB more than a request.
    let value = "v".repeat(700);
    for number in 0..1_200 {
        tally.put(&format!("k{number:04}"), &value);
    }
    let all = json!({"key": base64("k"), "range_end": base64("l"), "prev_kv": true});
    let mut whole = JsonWatch::on(&tally.address, all.clone());
    let mut cut = all;
    cut["fragment"] = true.into();
    let mut cut = JsonWatch::on(&tally.address, cut);
    tally.ok("/v3/kv/deleterange", &json!({"key": base64("k"), "range_end": base64("l")}));
    let at_once = whole.result();
    assert_eq!((at_once["events"].as_array().unwrap().len(), &at_once["fragment"]), (1_200, &Value::Null));
    let (first, second) = (cut.result(), cut.result());
    assert_eq!((&first["fragment"], &second["fragment"]), (&json!(true), &Value::Null));
    let events = |part: &Value| part["events"].as_array().unwrap().clone();
    assert_eq!([events(&first), events(&second)].concat(), events(&at_once));
}

#[test]
fn requests_that_make_no_sense() {
    let directory = directory();
    let tally = start(directory.path());
    for bad in ["x", "[]", "{\"create_request\":1}", "{\"create_request\":{\"key\":\"!\"}}", "{\"a\":"] {
        let answer = tally.post("/v3/watch", bad);
        assert_eq!((answer.status, answer.json()["code"].as_u64()), (400, Some(3)), "{bad}: {}", answer.body);
    }
    // Later on it is an error in the stream, which is the end of it.
    let mut watch = JsonWatch::on(&tally.address, key("k"));
    watch.send_text("{\"cancel_request\":{\"watch_id\":\"x\"}}");
    assert_eq!(watch.error()["code"], 3);
    // Unknown fields and empty requests are passed over.
    let mut watch = JsonWatch::on(&tally.address, key("k"));
    watch.send_text("{} {\"unknown\":{\"a\":[1]}}\n{\"progress_request\":{}}");
    assert_eq!(watch.result()["watch_id"], "-1");
    let get = tally.get("/v3/watch");
    assert_eq!((get.status, get.json()["code"].as_u64()), (501, Some(12)));
    assert_eq!(tally.put("k", "1"), 2);
}

#[test]
fn a_stop_ends_every_stream_with_a_reason() {
    let directory = directory();
    let tally = start(directory.path());
    let mut idle = JsonWatch::on(&tally.address, key("k"));
    let mut open = JsonWatch::open(&tally.address, &json!({}));
    let lines = std::thread::spawn(move || (idle.error(), open.error()));
    tally.stop();
    let (one, other) = lines.join().unwrap();
    for error in [one, other] {
        assert_eq!((&error["code"], &error["message"]), (&json!(14), &json!("etcdserver: server stopped")));
    }
}

#[test]
fn figures_of_watching() {
    let directory = directory();
    let tally = start(directory.path());
    let mut watch = JsonWatch::on(&tally.address, key("k"));
    watch.send(&json!({"create_request": key("l")}));
    watch.result();
    tally.put("k", "1");
    watch.changes(1);
    assert_eq!(tally.metric("etcd_debugging_mvcc_watcher_total"), 2.0);
    assert_eq!(tally.metric("etcd_debugging_mvcc_watch_stream_total"), 1.0);
    assert_eq!(tally.metric("etcd_debugging_mvcc_events_total"), 1.0);
    assert_eq!(tally.metric("etcd_debugging_mvcc_slow_watcher_total"), 0.0);
    assert_eq!(tally.metric("etcd_debugging_mvcc_pending_events_total"), 0.0);
    drop(watch);
    common::cluster::eventually("the stream is gone", || {
        (tally.metric("etcd_debugging_mvcc_watch_stream_total") == 0.0).then_some(())
    });
}
