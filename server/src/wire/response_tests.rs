//! Responses beside what etcd 3.5.1 sent for the same content.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::Value;
use tally_mvcc::Record;

use super::*;
use crate::leadership::Cause;

/// A record as etcd encodes it; see the protobuf message `KeyValue`.
fn record(key: &[u8], [create, modified, version, lease]: [i64; 4], value: &[u8]) -> Record {
    fn varint(out: &mut Vec<u8>, mut number: u64) {
        while number >= 0x80 {
            out.push(number as u8 | 0x80);
            number >>= 7;
        }
        out.push(number as u8);
    }
    let mut out = Vec::new();
    for (tag, bytes, number) in [
        (0x0A, key, 0),
        (0x10, &b""[..], create),
        (0x18, b"", modified),
        (0x20, b"", version),
        (0x2A, value, 0),
        (0x30, b"", lease),
    ] {
        if !bytes.is_empty() {
            out.push(tag);
            varint(&mut out, bytes.len() as u64);
            out.extend_from_slice(bytes);
        } else if number != 0 {
            out.push(tag);
            varint(&mut out, number as u64);
        }
    }
    Record::decode(out.into()).unwrap()
}

fn foo() -> Record {
    record(b"foo", [2, 2, 1, 0], b"bar")
}

const CLUSTER: u64 = 15875391935852295136;
const MEMBER: u64 = 7383792418829112008;
const HEAD: &str = r#"{"header":{"cluster_id":"15875391935852295136","member_id":"7383792418829112008","#;

fn check(write: impl FnOnce(&Header<'_>) -> Vec<u8>, revision: i64, rest: &str) {
    let identity = Identity::new(CLUSTER, MEMBER);
    let body = String::from_utf8(write(&Header { identity: &identity, revision, term: 2 })).unwrap();
    assert_eq!(body, format!("{HEAD}{rest}"));
    serde_json::from_str::<Value>(&body).unwrap();
}

#[test]
fn ranges() {
    let result = RangeResult { kvs: vec![foo()], more: false, count: 1, revision: 2 };
    check(
        |header| range(header, &result),
        2,
        r#""revision":"2","raft_term":"2"},"kvs":[{"key":"Zm9v","create_revision":"2","mod_revision":"2","version":"1","value":"YmFy"}],"count":"1"}"#,
    );
    let result = RangeResult::default();
    check(|header| range(header, &result), 2, r#""revision":"2","raft_term":"2"}}"#);
    let leased = record(b"a", [3, 9, 2, 77], b"");
    let result = RangeResult { kvs: vec![leased, foo()], more: true, count: 5, revision: 9 };
    check(
        |header| range(header, &result),
        9,
        r#""revision":"9","raft_term":"2"},"kvs":[{"key":"YQ==","create_revision":"3","mod_revision":"9","version":"2","lease":"77"},{"key":"Zm9v","create_revision":"2","mod_revision":"2","version":"1","value":"YmFy"}],"more":true,"count":"5"}"#,
    );
}

#[test]
fn pieces_make_the_same_answer_as_a_whole() {
    let identity = Identity::new(CLUSTER, MEMBER);
    let header = Header { identity: &identity, revision: 9, term: 2 };
    for count in [0, 1, 5] {
        let result = RangeResult { kvs: vec![foo(); count], more: count == 5, count: count as i64, revision: 9 };
        let mut writer = RangeWriter::new(&header);
        let mut pieces = Vec::new();
        for record in &result.kvs {
            writer.push(record);
            pieces.extend(writer.take());
        }
        pieces.extend(writer.finish(result.more, result.count));
        assert_eq!(pieces, range(&header, &result));
    }
}

#[test]
fn puts_and_deletes() {
    check(|header| put(header, &PutReply::default()), 3, r#""revision":"3","raft_term":"2"}}"#);
    let reply = PutReply { prev_kv: Some(record(b"foo", [2, 5, 3, 0], b"")), revision: 6 };
    check(
        |header| put(header, &reply),
        6,
        r#""revision":"6","raft_term":"2"},"prev_kv":{"key":"Zm9v","create_revision":"2","mod_revision":"5","version":"3"}}"#,
    );
    let reply = DeleteReply { deleted: 1, prev_kvs: vec![record(b"foo", [2, 6, 4, 0], b"")], revision: 7 };
    check(
        |header| delete_range(header, &reply),
        7,
        r#""revision":"7","raft_term":"2"},"deleted":"1","prev_kvs":[{"key":"Zm9v","create_revision":"2","mod_revision":"6","version":"4"}]}"#,
    );
    check(|header| delete_range(header, &DeleteReply::default()), 7, r#""revision":"7","raft_term":"2"}}"#);
    check(header_only, 8, r#""revision":"8","raft_term":"2"}}"#);
}

#[test]
fn transactions() {
    let ops = vec![
        OpReply::Range(RangeResult { kvs: vec![foo()], more: false, count: 1, revision: 9 }),
        OpReply::Put(PutReply { prev_kv: None, revision: 10 }),
        OpReply::Delete(DeleteReply { deleted: 1, prev_kvs: vec![], revision: 10 }),
        OpReply::Txn(TxnReply { succeeded: true, replies: vec![], revision: 10 }),
    ];
    let reply = TxnReply { succeeded: true, replies: ops, revision: 10 };
    check(
        |header| txn(header, &reply),
        10,
        concat!(
            r#""revision":"10","raft_term":"2"},"succeeded":true,"responses":["#,
            r#"{"response_range":{"header":{"revision":"9"},"kvs":[{"key":"Zm9v","create_revision":"2","mod_revision":"2","version":"1","value":"YmFy"}],"count":"1"}},"#,
            r#"{"response_put":{"header":{"revision":"10"}}},"#,
            r#"{"response_delete_range":{"header":{"revision":"10"},"deleted":"1"}},"#,
            r#"{"response_txn":{"header":{},"succeeded":true}}]}"#,
        ),
    );
    check(|header| txn(header, &TxnReply::default()), 14, r#""revision":"14","raft_term":"2"}}"#);
}

#[test]
fn status_and_hashes() {
    let answer = Status {
        revision: 8,
        version: "3.6.0",
        db_size: 20480,
        db_size_in_use: 16384,
        db_size_quota: 2147483648,
        leader: MEMBER,
        raft_index: 27,
        raft_term: 2,
        raft_applied_index: 27,
        errors: vec!["memberID:7 alarm:NOSPACE ".into(), "x".into()],
        is_learner: false,
    };
    check(
        |header| status(header, &answer),
        8,
        concat!(
            r#""revision":"8","raft_term":"2"},"version":"3.6.0","dbSize":"20480","leader":"7383792418829112008","#,
            r#""raftIndex":"27","raftTerm":"2","raftAppliedIndex":"27","errors":["memberID:7 alarm:NOSPACE ","x"],"#,
            r#""dbSizeInUse":"16384","storageVersion":"3.6.0","dbSizeQuota":"2147483648","downgradeInfo":{}}"#,
        ),
    );
    check(|header| hash(header, 3453095233), 8, r#""revision":"8","raft_term":"2"},"hash":3453095233}"#);
    check(
        |header| hash_kv(header, &HashKv { hash: 1, compact_revision: -1, hash_revision: 8, revision: 8 }),
        8,
        r#""revision":"8","raft_term":"2"},"hash":1,"compact_revision":"-1","hash_revision":"8"}"#,
    );
}

#[test]
fn alarms_are_listed() {
    use tally_apply::AlarmKind::{Corrupt, NoSpace};
    let both = [Alarm { member_id: MEMBER, kind: NoSpace }, Alarm { member_id: 0, kind: Corrupt }];
    check(
        |header| alarms(header, &both),
        8,
        concat!(
            r#""revision":"8","raft_term":"2"},"alarms":[{"memberID":"7383792418829112008","alarm":"NOSPACE"},"#,
            r#"{"alarm":"CORRUPT"}]}"#
        ),
    );
    check(|header| alarms(header, &[]), 8, r#""revision":"8","raft_term":"2"}}"#);
}

#[test]
fn errors_have_the_keys_of_both_generations() {
    let text = |error: &ApiError| String::from_utf8(super::error(error)).unwrap();
    assert_eq!(
        text(&ApiError::EmptyKey),
        r#"{"error":"etcdserver: key is not provided","code":3,"message":"etcdserver: key is not provided"}"#
    );
    assert_eq!(text(&ApiError::UnknownPath), r#"{"error":"Not Found","code":5,"message":"Not Found"}"#);
    assert_eq!(
        text(&ApiError::WrongMethod),
        r#"{"error":"Method Not Allowed","code":12,"message":"Method Not Allowed"}"#
    );
    assert_eq!(
        text(&ApiError::TimedOut(Effect::Unknown, Cause::Unknown)),
        r#"{"error":"etcdserver: request timed out","code":14,"message":"etcdserver: request timed out","outcome":"unknown"}"#
    );
    let done = text(&ApiError::AnswerLeftOut { limit: 9 });
    assert!(done.starts_with(r#"{"error":"the write was done, but "#), "{done}");
    assert!(done.ends_with(r#" more than 9 bytes: do not repeat it, read in pieces","outcome":"done"}"#), "{done}");
}

/// Members as etcd 3.7.3 showed them.
#[test]
fn members_are_listed_with_and_without_one_that_was_added() {
    let member = |id: u64, name: &str, port: u16, is_learner| Member {
        id,
        name: name.to_owned(),
        peer_urls: vec![format!("http://127.0.0.1:{port}")],
        client_urls: if name.is_empty() { vec![] } else { vec!["http://127.0.0.1:34700".to_owned()] },
        is_learner,
    };
    let (learner, voter) = (member(2792582537802098741, "", 9, true), member(5894494690950802029, "a", 34701, false));
    let learner_json = r#"{"ID":"2792582537802098741","peerURLs":["http://127.0.0.1:9"],"isLearner":true}"#;
    let voter_json = r#"{"ID":"5894494690950802029","name":"a","peerURLs":["http://127.0.0.1:34701"],"clientURLs":["http://127.0.0.1:34700"]}"#;
    let both = vec![learner.clone(), voter.clone()];
    let rest = format!(r#""raft_term":"2"}},"member":{learner_json},"members":[{learner_json},{voter_json}]}}"#);
    check(|header| members(header, &Members { added: Some(learner), members: both }), 0, &rest);
    check(
        |header| members(header, &Members::new(vec![voter])),
        0,
        &format!(r#""raft_term":"2"}},"members":[{voter_json}]}}"#),
    );
    check(|header| members(header, &Members::new(vec![])), 0, r#""raft_term":"2"}}"#);
}

#[test]
fn statuses_are_those_of_the_current_gateway() {
    for (error, code, status) in [
        (ApiError::EmptyKey, 3, 400),
        (ApiError::Compacted, 11, 400),
        (ApiError::LeaseNotFound, 5, 404),
        (ApiError::NoSpace, 8, 429),
        (ApiError::AnswerLeftOut { limit: 9 }, 8, 429),
        (ApiError::TooManyRequests, 8, 429),
        (ApiError::NoLeader, 14, 503),
        (ApiError::CorruptCluster, 15, 500),
        (ApiError::WrongMethod, 12, 501),
        (ApiError::UnknownPath, 5, 404),
        (ApiError::MemberNotFound, 5, 404),
        (ApiError::PeerUrlExists, 9, 400),
        (ApiError::Learner, 9, 400),
        (ApiError::BadMemberUrls, 3, 400),
        (ApiError::Unhealthy, 14, 503),
        (ApiError::TransferTimedOut, 2, 500),
    ] {
        assert_eq!((error.code() as u16, error.status().as_u16()), (code, status), "{error}");
    }
}

proptest! {
    #[test]
    fn any_record_is_written_as_json_says(key in prop::collection::vec(any::<u8>(), 1..20), value: Vec<u8>, figures in prop::array::uniform4(1_i64..)) {
        let figures = [figures[0].min(figures[1]), figures[1], figures[2], figures[3]];
        let mut out = Vec::new();
        kv(&mut out, &record(&key, figures, &value));
        let json: Value = serde_json::from_slice(&out).unwrap();
        let bytes = |name: &str| crate::wire::base64::decode(json[name].as_str().unwrap_or("").as_bytes()).unwrap();
        prop_assert_eq!(bytes("key"), key);
        prop_assert_eq!(bytes("value"), value);
        for (name, figure) in ["create_revision", "mod_revision", "version", "lease"].into_iter().zip(figures) {
            prop_assert_eq!(json[name].as_str().unwrap(), figure.to_string());
        }
    }
}
