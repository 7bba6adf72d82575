//! What needs a time or a size of its own: leases that expire, and events that fill more than one response.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::http::Request;
use crate::peer::{self, Peer};
use crate::schema::{Schema, base64};
use crate::servers::find_etcd;
use crate::watch::{Form, Streams};

/// How long leases may outlive their time.
const LATE: Duration = Duration::from_secs(30);

fn peers() -> Option<[Peer; 2]> {
    let Some(etcd) = find_etcd() else {
        eprintln!("SKIPPED: no etcd found; set TALLY_TEST_ETCD to one, or let `cargo xtask test` fetch it");
        return None;
    };
    Some([Peer::etcd(&etcd), Peer::subject()])
}

/// Asks both over JSON.
fn both(schema: &Schema, peers: &mut [Peer; 2], path: &str, body: &Value) -> [Value; 2] {
    let request = Request::post(format!("/v3{path}"), body.to_string());
    peers.each_mut().map(|peer| {
        let answer = peer.ask(schema, &request, peer::Form::Json);
        let mut body: Value = serde_json::from_slice(&answer.body).unwrap();
        if let Some(header) = body["header"].as_object_mut() {
            header.remove("raft_term");
        }
        body
    })
}

/// Asks both, and both must answer the same.
fn alike(schema: &Schema, peers: &mut [Peer; 2], path: &str, body: &Value) -> Value {
    let [etcd, tally] = both(schema, peers, path, body);
    assert_eq!(etcd, tally, "{path} {body}");
    etcd
}

fn text(text: &str) -> String {
    base64(text.as_bytes(), false)
}

#[test]
fn leases_expire_with_their_keys_in_one_revision_each() {
    let Some(mut peers) = peers() else { return };
    let schema = Schema::new();
    let mut streams = Streams::new();
    let everything = json!({"create_request": {"key": "AA==", "range_end": "AA==", "prev_kv": true}});
    let later = json!({"create_request": {"key": text("k"), "range_end": text("l"), "filters": ["NOPUT"]}});
    for form in [Form::Grpc, Form::Socket, Form::Lines] {
        streams.open_with(&schema, &mut peers, form, &[everything.clone(), later.clone()]).unwrap();
    }
    for (id, ttl) in [(1, 2), (2, 5), (3, 600)] {
        alike(&schema, &mut peers, "/lease/grant", &json!({"ID": id.to_string(), "TTL": ttl.to_string()}));
        for key in ["z", "a", "m"] {
            let key = text(&format!("k{key}{id}"));
            alike(&schema, &mut peers, "/kv/put", &json!({"key": key, "value": key, "lease": id.to_string()}));
        }
    }
    // One that has let go of its lease, one that has moved to another, one that was deleted.
    alike(&schema, &mut peers, "/kv/put", &json!({"key": text("ka1"), "value": "eA=="}));
    alike(&schema, &mut peers, "/kv/put", &json!({"key": text("ka2"), "value": "eA==", "lease": "3"}));
    alike(&schema, &mut peers, "/kv/deleterange", &json!({"key": text("km1")}));
    let begun = Instant::now();
    for left in [2, 1] {
        loop {
            let leases = both(&schema, &mut peers, "/lease/leases", &json!({}));
            let counts = leases.map(|answer| answer["leases"].as_array().map_or(0, Vec::len));
            if counts == [left, left] {
                break;
            }
            assert!(begun.elapsed() < LATE, "there are {counts:?} leases, where there should be {left}");
            std::thread::sleep(Duration::from_millis(20));
        }
        let all = alike(&schema, &mut peers, "/kv/range", &json!({"key": text("k"), "range_end": text("l")}));
        println!("{left} leases left, {} keys", all["count"]);
        streams.settle(&schema, &mut peers).unwrap();
    }
    let gone = json!({"ID": "2", "keys": true});
    assert_eq!(alike(&schema, &mut peers, "/lease/timetolive", &gone)["TTL"], "-1");
    assert!(streams.events > 40, "{}", streams.events);
}

#[test]
fn events_that_fill_more_than_one_response_are_all_told() {
    let Some(mut peers) = peers() else { return };
    let schema = Schema::new();
    let mut streams = Streams::new();
    let value = base64(&[7; 450_000], false);
    for round in 0..3 {
        let puts: Vec<Value> = (0..3)
            .map(|key| json!({"request_put": {"key": text(&format!("big{key}")), "value": value, "lease": "0"}}))
            .collect();
        let answer = alike(&schema, &mut peers, "/kv/txn", &json!({"success": puts}));
        assert_eq!(answer["succeeded"], true, "{round}");
    }
    let watch = |fragment: bool| {
        json!({"create_request":
            {"key": text("big"), "range_end": text("bih"), "start_revision": "2", "prev_kv": true, "fragment": fragment}})
    };
    streams.open_with(&schema, &mut peers, Form::Grpc, &[watch(true), watch(false)]).unwrap();
    streams.open_with(&schema, &mut peers, Form::Socket, &[watch(true)]).unwrap();
    streams.open_with(&schema, &mut peers, Form::Lines, &[watch(false)]).unwrap();
    streams.settle(&schema, &mut peers).unwrap();
    let puts: Vec<Value> =
        (0..3).map(|key| json!({"request_put": {"key": text(&format!("big{key}")), "value": value}})).collect();
    alike(&schema, &mut peers, "/kv/txn", &json!({"success": puts}));
    streams.settle(&schema, &mut peers).unwrap();
    assert_eq!(streams.events, 4 * (9 + 3));
}
