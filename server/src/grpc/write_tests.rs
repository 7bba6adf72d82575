//! What is written by hand beside what prost writes for the same content.
#![allow(clippy::unwrap_used)]

use bytes::Buf;
use proptest::prelude::*;

use super::*;
use crate::proto::KeyValue;
use crate::wire::Identity;

fn record(key: &[u8], value: &[u8]) -> Record {
    let mut out = Vec::new();
    for (tag, bytes) in [(0x0A, key), (0x2A, value)] {
        if tag == 0x2A {
            out.extend_from_slice(&[0x10, 3, 0x18, 4, 0x20, 1]);
        }
        if !bytes.is_empty() {
            out.push(tag);
            encode_varint(bytes.len() as u64, &mut out);
            out.extend_from_slice(bytes);
        }
    }
    Record::decode(out.into()).unwrap()
}

fn records() -> impl Strategy<Value = Vec<Record>> {
    let bytes = |min| prop::collection::vec(any::<u8>(), min..300);
    let one = (bytes(1), bytes(0)).prop_map(|(key, value)| record(&key, &value));
    prop::collection::vec(one, 0..5)
}

fn ranges() -> impl Strategy<Value = RangeResult> {
    (records(), any::<bool>(), 0..i64::MAX, 1..i64::MAX).prop_map(|(kvs, more, count, revision)| RangeResult {
        kvs,
        more,
        count,
        revision,
    })
}

fn puts() -> impl Strategy<Value = PutReply> {
    (records(), 0..1_000_i64).prop_map(|(kvs, revision)| PutReply { prev_kv: kvs.into_iter().next(), revision })
}

fn deletes() -> impl Strategy<Value = DeleteReply> {
    (records(), 0..3_i64, 1..1_000_i64).prop_map(|(prev_kvs, deleted, revision)| DeleteReply {
        deleted,
        prev_kvs,
        revision,
    })
}

fn txns() -> impl Strategy<Value = TxnReply> {
    let leaf = prop_oneof![
        ranges().prop_map(OpReply::Range),
        puts().prop_map(OpReply::Put),
        deletes().prop_map(OpReply::Delete),
    ];
    let op = leaf.prop_recursive(4, 16, 4, |op| {
        (any::<bool>(), prop::collection::vec(op, 0..4))
            .prop_map(|(succeeded, replies)| OpReply::Txn(TxnReply { succeeded, replies, revision: 7 }))
    });
    (any::<bool>(), prop::collection::vec(op, 0..4), 1..1_000_i64).prop_map(|(succeeded, replies, revision)| TxnReply {
        succeeded,
        replies,
        revision,
    })
}

fn kvs(records: &[Record]) -> Vec<KeyValue> {
    records.iter().map(KeyValue::from).collect()
}

fn revision(revision: i64) -> Option<pb::ResponseHeader> {
    Some(pb::ResponseHeader { revision, ..pb::ResponseHeader::default() })
}

fn range_message(header: Option<pb::ResponseHeader>, result: &RangeResult) -> pb::RangeResponse {
    pb::RangeResponse { header, kvs: kvs(&result.kvs), more: result.more, count: result.count }
}

fn put_message(header: Option<pb::ResponseHeader>, reply: &PutReply) -> pb::PutResponse {
    pb::PutResponse { header, prev_kv: reply.prev_kv.as_ref().map(KeyValue::from) }
}

fn delete_message(header: Option<pb::ResponseHeader>, reply: &DeleteReply) -> pb::DeleteRangeResponse {
    pb::DeleteRangeResponse { header, deleted: reply.deleted, prev_kvs: kvs(&reply.prev_kvs) }
}

fn txn_message(header: Option<pb::ResponseHeader>, reply: &TxnReply) -> pb::TxnResponse {
    use pb::response_op::Response;
    let op = |reply: &OpReply| pb::ResponseOp {
        response: Some(match reply {
            OpReply::Range(result) => Response::ResponseRange(range_message(revision(result.revision), result)),
            OpReply::Put(reply) => Response::ResponsePut(put_message(revision(reply.revision), reply)),
            OpReply::Delete(reply) => Response::ResponseDeleteRange(delete_message(revision(reply.revision), reply)),
            OpReply::Txn(reply) => Response::ResponseTxn(txn_message(revision(0), reply)),
        }),
    };
    pb::TxnResponse { header, succeeded: reply.succeeded, responses: reply.replies.iter().map(op).collect() }
}

/// What prost makes of a message, with its prefix.
fn expected(message: &impl Message) -> Vec<u8> {
    let mut out = vec![0];
    out.extend_from_slice(&u32::try_from(message.encoded_len()).unwrap().to_be_bytes());
    out.extend_from_slice(&message.encode_to_vec());
    out
}

const CLUSTER: u64 = 15875391935852295136;

fn check(header_revision: i64, term: u64, write: impl FnOnce(&Header<'_>) -> Vec<(Bytes, Vec<u8>)>) {
    let identity = Identity::new(CLUSTER, 3);
    let header = Header { identity: &identity, revision: header_revision, term };
    for (written, expected) in write(&header) {
        assert_eq!(&written[..], &expected[..]);
    }
}

fn full(header: &Header<'_>) -> Option<pb::ResponseHeader> {
    Some(pb::ResponseHeader { cluster_id: CLUSTER, member_id: 3, revision: header.revision, raft_term: header.term })
}

proptest! {
    #[test]
    fn responses_are_those_of_prost(
        range_result in ranges(),
        put_reply in puts(),
        delete_reply in deletes(),
        txn_reply in txns(),
        (id, ttl) in any::<(i64, i64)>(),
        header_revision in 0..i64::MAX,
        term in any::<u64>(),
    ) {
        check(header_revision, term, |header| vec![
            (range(header, &range_result), expected(&range_message(full(header), &range_result))),
            (put(header, &put_reply).unwrap(), expected(&put_message(full(header), &put_reply))),
            (delete_range(header, &delete_reply).unwrap(), expected(&delete_message(full(header), &delete_reply))),
            (txn(header, &txn_reply).unwrap(), expected(&txn_message(full(header), &txn_reply))),
            (
                kept_alive(header, &KeptAlive { revision: header.revision, id, ttl_s: ttl }),
                expected(&pb::LeaseKeepAliveResponse { header: full(header), id, ttl }),
            ),
            (
                message(&pb::CompactionResponse { header: super::header(header) }),
                expected(&pb::CompactionResponse { header: full(header) }),
            ),
            (
                range_chunk(&range_result.kvs, None).unwrap(),
                expected(&pb::RangeStreamResponse {
                    range_response: Some(pb::RangeResponse { kvs: kvs(&range_result.kvs), ..Default::default() }),
                }),
            ),
            (
                range_chunk(&range_result.kvs, Some((header, range_result.more, range_result.count))).unwrap(),
                expected(&pb::RangeStreamResponse { range_response: Some(range_message(full(header), &range_result)) }),
            ),
        ]);
    }
}

/// The records are one and the same, so that these answers take no memory unless they are made.
#[test]
fn an_answer_that_no_client_would_take_is_not_made() {
    let one = record(b"k", &vec![7; 1 << 20]);
    let identity = Identity::new(CLUSTER, 3);
    let header = Header { identity: &identity, revision: 9, term: 2 };
    // Over what may be sent, and over what a prefix can say.
    for records in [2_048, 4_097] {
        let reply = DeleteReply { deleted: 1, prev_kvs: vec![one.clone(); records], revision: 9 };
        let least = records << 20;
        let too_large = |made: Result<Bytes, ProtocolError>| match made {
            Err(ProtocolError::AnswerTooLarge { bytes, limit }) => bytes > least && limit == ANSWER_BYTES_MAX,
            Err(_) | Ok(_) => false,
        };
        assert!(too_large(delete_range(&header, &reply)));
        let inner = TxnReply { succeeded: true, replies: vec![OpReply::Delete(reply)], revision: 9 };
        let outer = TxnReply { succeeded: true, replies: vec![OpReply::Txn(inner)], revision: 9 };
        assert!(too_large(txn(&header, &outer)));
    }
    assert!(sendable(ANSWER_BYTES_MAX).is_ok() && sendable(ANSWER_BYTES_MAX + 1).is_err());
}

#[test]
fn a_large_answer_in_pieces_is_the_whole_answer() {
    let kvs: Vec<Record> = (0..700).map(|number| record(&[7; 40], &vec![9; number])).collect();
    let result = RangeResult { count: 700, kvs, more: true, revision: 5 };
    check(9, 2, |header| {
        let pieces: Vec<Bytes> = range_in_pieces(header, result.clone()).collect();
        assert!(pieces.len() > 3 && pieces.iter().all(|piece| piece.len() < PIECE_BYTES + 1_000));
        let joined: Vec<u8> = pieces.iter().flat_map(|piece| piece.chunk().to_vec()).collect();
        vec![(range(header, &result), joined)]
    });
    let empty = RangeResult { revision: 5, ..RangeResult::default() };
    check(9, 2, |header| {
        let joined = range_in_pieces(header, empty.clone()).flat_map(Vec::from).collect();
        vec![(range(header, &empty), joined)]
    });
}
