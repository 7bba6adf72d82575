//! The key-value service over gRPC, with generated clients.
#![allow(clippy::unwrap_used)]

mod common;

use common::grpc::{block_on, clients, from, get, pb, put, refused};
use common::{base64, directory, start};
use serde_json::json;
use tonic::Code::{InvalidArgument, OutOfRange, Unimplemented};

#[test]
fn a_session() {
    let root = directory();
    let tally = start(&root.path().join("d"));
    block_on(async {
        let mut kv = clients(&tally).kv;
        let first = kv.put(put("a", "1")).await.unwrap().into_inner();
        let header = first.header.unwrap();
        assert_eq!((header.revision, first.prev_kv), (2, None));
        assert!(header.cluster_id != 0 && header.member_id != 0 && header.raft_term > 0);
        let second = kv.put(pb::PutRequest { prev_kv: true, ..put("a", "2") }).await.unwrap().into_inner();
        let previous = second.prev_kv.unwrap();
        assert_eq!((&previous.key[..], &previous.value[..]), (&b"a"[..], &b"1"[..]));
        assert_eq!((previous.create_revision, previous.mod_revision, previous.version, previous.lease), (2, 2, 1, 0));
        kv.put(put("b", "")).await.unwrap();

        let all = kv.range(from("\0")).await.unwrap().into_inner();
        assert_eq!((all.count, all.more, all.kvs.len(), all.header.unwrap().revision), (2, false, 2, 4));
        assert_eq!((&all.kvs[0].value[..], all.kvs[0].version, all.kvs[1].value.len()), (&b"2"[..], 2, 0));
        let limited =
            kv.range(pb::RangeRequest { limit: 1, keys_only: true, ..from("\0") }).await.unwrap().into_inner();
        assert_eq!((limited.count, limited.more, limited.kvs.len(), limited.kvs[0].value.len()), (2, true, 1, 0));
        let old = kv.range(pb::RangeRequest { revision: 2, ..get("a") }).await.unwrap().into_inner();
        assert_eq!((&old.kvs[0].value[..], old.header.unwrap().revision), (&b"1"[..], 4));

        let deleted = pb::DeleteRangeRequest { key: "b".into(), prev_kv: true, ..Default::default() };
        let deleted = kv.delete_range(deleted).await.unwrap().into_inner();
        assert_eq!((deleted.deleted, deleted.prev_kvs.len(), deleted.header.unwrap().revision), (1, 1, 5));

        let compacted = kv.compact(pb::CompactionRequest { revision: 4, physical: true }).await.unwrap().into_inner();
        assert_eq!(compacted.header.unwrap().revision, 5);
        let text = "etcdserver: mvcc: required revision has been compacted";
        refused(kv.range(pb::RangeRequest { revision: 2, ..get("a") }).await, OutOfRange, text);
    });
}

#[test]
fn transactions() {
    use pb::compare::TargetUnion;
    use pb::request_op::Request;
    use pb::response_op::Response;
    let root = directory();
    let tally = start(&root.path().join("d"));
    let op = |request| pb::RequestOp { request: Some(request) };
    block_on(async {
        let mut kv = clients(&tally).kv;
        kv.put(put("a", "1")).await.unwrap();
        let nested =
            pb::TxnRequest { compare: vec![], success: vec![op(Request::RequestRange(get("c")))], failure: vec![] };
        let delete = pb::DeleteRangeRequest { key: "a".into(), prev_kv: true, ..Default::default() };
        let txn = pb::TxnRequest {
            compare: vec![pb::Compare {
                target: pb::compare::CompareTarget::Value as i32,
                key: "a".into(),
                target_union: Some(TargetUnion::Value("1".into())),
                ..Default::default()
            }],
            success: vec![
                op(Request::RequestPut(put("c", "3"))),
                op(Request::RequestDeleteRange(delete)),
                op(Request::RequestTxn(nested)),
            ],
            failure: vec![op(Request::RequestRange(get("a")))],
        };
        let answer = kv.txn(txn.clone()).await.unwrap().into_inner();
        assert!(answer.succeeded);
        assert_eq!(answer.header.unwrap().revision, 3);
        let responses: Vec<Response> = answer.responses.into_iter().map(|op| op.response.unwrap()).collect();
        let [Response::ResponsePut(put), Response::ResponseDeleteRange(deleted), Response::ResponseTxn(inner)] =
            &responses[..]
        else {
            panic!("{responses:?}")
        };
        assert_eq!(put.header.as_ref().unwrap().revision, 3);
        assert_eq!((deleted.deleted, &deleted.prev_kvs[0].value[..]), (1, &b"1"[..]));
        assert!(inner.succeeded && inner.header == Some(pb::ResponseHeader::default()));
        let again = kv.txn(txn).await.unwrap().into_inner();
        assert!(!again.succeeded);
        let empty = pb::TxnRequest { success: vec![pb::RequestOp { request: None }], ..Default::default() };
        refused(kv.txn(empty).await, InvalidArgument, "etcdserver: key not found");
    });
}

#[test]
fn a_record_has_the_same_bytes_in_both_forms() {
    let root = directory();
    let tally = start(&root.path().join("d"));
    let value: Vec<u8> = (0..=255).collect();
    block_on(async {
        let mut kv = clients(&tally).kv;
        let request = pb::PutRequest { key: value.clone().into(), value: value.clone().into(), ..Default::default() };
        kv.put(request).await.unwrap();
        let range = pb::RangeRequest { key: value.clone().into(), ..Default::default() };
        let over_grpc = kv.range(range).await.unwrap().into_inner();
        let key = base64_simd::STANDARD.encode_to_string(&value);
        let over_json = tally.ok("/v3/kv/range", &json!({"key": key}));
        assert_eq!((&over_grpc.kvs[0].key[..], &over_grpc.kvs[0].value[..]), (&value[..], &value[..]));
        assert_eq!(
            (over_json["kvs"][0]["key"].as_str(), over_json["kvs"][0]["value"].as_str()),
            (Some(&*key), Some(&*key))
        );
        let header = over_grpc.header.unwrap();
        assert_eq!(over_json["header"]["cluster_id"], header.cluster_id.to_string());
        assert_eq!(over_json["header"]["member_id"], header.member_id.to_string());
        assert_eq!(over_json["header"]["revision"], header.revision.to_string());
        assert_eq!(over_json["header"]["raft_term"], header.raft_term.to_string());
    });
}

#[test]
fn bad_requests_have_the_codes_and_texts_of_etcd() {
    let root = directory();
    let tally = start(&root.path().join("d"));
    block_on(async {
        let mut kv = clients(&tally).kv;
        let no_key = "etcdserver: key is not provided";
        refused(kv.put(put("", "1")).await, InvalidArgument, no_key);
        refused(kv.range(get("")).await, InvalidArgument, no_key);
        refused(kv.delete_range(pb::DeleteRangeRequest::default()).await, InvalidArgument, no_key);
        let sorted = pb::RangeRequest { sort_order: 9, ..get("a") };
        refused(kv.range(sorted).await, InvalidArgument, "etcdserver: invalid sort option");
        let future = pb::RangeRequest { revision: 9, ..get("a") };
        refused(kv.range(future).await, OutOfRange, "etcdserver: mvcc: required revision is a future revision");
        let value = pb::PutRequest { ignore_value: true, ..put("a", "1") };
        refused(kv.put(value).await, InvalidArgument, "etcdserver: value is provided");
        let missing = pb::PutRequest { ignore_value: true, ..put("a", "") };
        refused(kv.put(missing).await, InvalidArgument, "etcdserver: key not found");
        let compaction = pb::CompactionRequest { revision: 99, physical: false };
        refused(kv.compact(compaction).await, OutOfRange, "etcdserver: mvcc: required revision is a future revision");
        let ops = vec![pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put("a", "1"))) }; 2];
        let twice = pb::TxnRequest { success: ops.clone(), ..Default::default() };
        refused(kv.txn(twice).await, InvalidArgument, "etcdserver: duplicate key given in txn request");
        let many = pb::TxnRequest { success: vec![ops[0].clone(); 129], ..Default::default() };
        refused(kv.txn(many).await, InvalidArgument, "etcdserver: too many operations in txn request");
    });
    assert_eq!(tally.value("a"), None);
}

#[test]
fn a_range_is_streamed_in_growing_chunks_from_one_state() {
    let root = directory();
    let tally = start(&root.path().join("d"));
    block_on(async {
        let mut kv = clients(&tally).kv;
        for number in 0..100 {
            kv.put(put(&format!("k{number:03}"), "v")).await.unwrap();
        }
        let mut chunks = Vec::new();
        let mut stream = kv.range_stream(from("k")).await.unwrap().into_inner();
        while let Some(chunk) = stream.message().await.unwrap() {
            chunks.push(chunk.range_response.unwrap());
            // What is written meanwhile is not seen.
            kv.put(put(&format!("k{:03}", 200 + chunks.len()), "v")).await.unwrap();
        }
        let sizes: Vec<usize> = chunks.iter().map(|chunk| chunk.kvs.len()).collect();
        assert_eq!(sizes, [10, 20, 40, 30]);
        let last = chunks.pop().unwrap();
        assert_eq!((last.header.unwrap().revision, last.count, last.more), (101, 100, false));
        assert!(chunks.iter().all(|chunk| chunk.header.is_none() && chunk.count == 0 && !chunk.more));
        let keys: Vec<_> = chunks.iter().flat_map(|chunk| &chunk.kvs).map(|kv| kv.key.clone()).collect();
        assert!(keys.is_sorted() && keys.len() == 70);

        let mut one = async |request: pb::RangeRequest| {
            let mut stream = kv.range_stream(request).await?.into_inner();
            let mut chunks = Vec::new();
            while let Some(chunk) = stream.message().await? {
                chunks.push(chunk.range_response.unwrap());
            }
            Ok::<_, tonic::Status>(chunks)
        };
        let counted = one(pb::RangeRequest { count_only: true, ..from("k") }).await.unwrap();
        assert_eq!((counted.len(), counted[0].count, counted[0].kvs.len()), (1, 104, 0));
        assert!(counted[0].header.is_some());
        let limited = one(pb::RangeRequest { limit: 15, ..from("k") }).await.unwrap();
        assert_eq!(limited.iter().map(|chunk| chunk.kvs.len()).collect::<Vec<_>>(), [10, 5]);
        assert_eq!((limited[1].count, limited[1].more), (104, true));
        let none = one(from("z")).await.unwrap();
        assert_eq!((none.len(), none[0].count, none[0].kvs.len()), (1, 0, 0));
        let old = one(pb::RangeRequest { revision: 5, ..from("k") }).await.unwrap();
        assert_eq!((old[0].count, old[0].header.unwrap().revision), (4, 105));
        let sorted = pb::RangeRequest { sort_order: 2, ..from("k") };
        refused(one(sorted).await, Unimplemented, "RangeStream does not support custom sort orders");
        let filtered = pb::RangeRequest { min_mod_revision: 2, ..from("k") };
        refused(one(filtered).await, Unimplemented, "RangeStream does not support revision filters");
        refused(one(get("")).await, InvalidArgument, "etcdserver: key is not provided");
    });
    assert_eq!(tally.ok("/v3/kv/range", &json!({"key": base64("k000")}))["count"], "1");
}
