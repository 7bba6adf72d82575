//! Random operations against the naive model: every answer equal, through chunks, compactions, sweeps and reopenings.
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::model::{Answer, Kv, Model};
use common::{Store, small_cache};
use proptest::prelude::*;
use tally_mvcc::{
    Compare, CompareResult, CompareTarget, DeleteReply, DeleteRequest, KeyRange, Op, OpReply, PutReply, PutRequest,
    RangeOptions, RangeRequest, RangeResult, ReadError, SortOrder, SortTarget, SweepLimits, TxnReply, TxnRequest, open,
};

#[derive(Clone, Debug)]
enum Step {
    Put(PutRequest),
    Delete(DeleteRequest),
    Txn(TxnRequest),
    /// Compact at this share (of 100) of the current revision, or right at it.
    Compact(i64),
    Commit,
    Sweep(usize),
    Reopen,
    Read(RangeRequest),
}

fn key() -> impl Strategy<Value = Bytes> {
    let byte = prop_oneof![6 => b'a'..=b'd', 1 => Just(0u8), 1 => Just(0xff)];
    prop::collection::vec(byte, 1..=2).prop_map(Bytes::from)
}

fn range() -> impl Strategy<Value = KeyRange> {
    let end = prop_oneof![2 => Just(Bytes::new()), 2 => Just(Bytes::from_static(b"\0")), 3 => key()];
    let range = (key(), end).prop_map(|(key, end)| KeyRange::new(key, end).unwrap());
    prop_oneof![4 => range, 1 => Just(KeyRange::all())]
}

fn options() -> impl Strategy<Value = RangeOptions> {
    let order = prop_oneof![3 => Just(SortOrder::None), 1 => Just(SortOrder::Ascend), 1 => Just(SortOrder::Descend)];
    let target = prop_oneof![
        2 => Just(SortTarget::Key),
        1 => Just(SortTarget::Version),
        1 => Just(SortTarget::Create),
        1 => Just(SortTarget::Mod),
        1 => Just(SortTarget::Value),
    ];
    let bound = || prop_oneof![5 => Just(0i64), 2 => 1..60i64, 1 => Just(-3i64)];
    let bounds = (bound(), bound(), bound(), bound());
    (order, target, -1..6i64, any::<bool>(), prop::bool::weighted(0.1), bounds).prop_map(
        |(sort_order, sort_target, limit, keys_only, count_only, bounds)| RangeOptions {
            limit,
            sort_order,
            sort_target,
            keys_only,
            count_only,
            min_mod_revision: bounds.0,
            max_mod_revision: bounds.1,
            min_create_revision: bounds.2,
            max_create_revision: bounds.3,
        },
    )
}

fn read() -> impl Strategy<Value = RangeRequest> {
    let revision = prop_oneof![4 => Just(0i64), 4 => 1..120i64, 1 => -3..0i64];
    (range(), revision, options()).prop_map(|(range, revision, options)| RangeRequest { range, revision, options })
}

fn put() -> impl Strategy<Value = PutRequest> {
    let value = prop::collection::vec(b'x'..=b'z', 0..4).prop_map(Bytes::from);
    let keep = || prop::bool::weighted(0.15);
    (key(), value, 0..3i64, any::<bool>(), keep(), keep()).prop_map(
        |(key, value, lease, prev_kv, ignore_value, ignore_lease)| PutRequest {
            key,
            value: if ignore_value { Bytes::new() } else { value },
            lease: if ignore_lease { 0 } else { lease },
            prev_kv,
            ignore_value,
            ignore_lease,
        },
    )
}

fn delete() -> impl Strategy<Value = DeleteRequest> {
    (range(), any::<bool>()).prop_map(|(range, prev_kv)| DeleteRequest { range, prev_kv })
}

fn compare() -> impl Strategy<Value = Compare> {
    let result = prop_oneof![
        Just(CompareResult::Equal),
        Just(CompareResult::Greater),
        Just(CompareResult::Less),
        Just(CompareResult::NotEqual)
    ];
    let target = prop_oneof![
        (0..4i64).prop_map(CompareTarget::Version),
        (0..60i64).prop_map(CompareTarget::Create),
        (0..60i64).prop_map(CompareTarget::Mod),
        prop::collection::vec(b'x'..=b'z', 0..3).prop_map(|value| CompareTarget::Value(value.into())),
        (0..3i64).prop_map(CompareTarget::Lease),
    ];
    (range(), result, target).prop_map(|(range, result, target)| Compare { range, result, target })
}

fn txn() -> impl Strategy<Value = TxnRequest> {
    let op = prop_oneof![
        3 => read().prop_map(Op::Range), 3 => put().prop_map(Op::Put), 2 => delete().prop_map(Op::Delete)
    ];
    op.prop_recursive(3, 24, 4, |op| {
        let ops = || prop::collection::vec(op.clone(), 0..4);
        (prop::collection::vec(compare(), 0..3), ops(), ops())
            .prop_map(|(compares, success, failure)| Op::Txn(TxnRequest { compares, success, failure }))
    })
    .prop_map(|op| match op {
        Op::Txn(txn) => txn,
        op => TxnRequest { success: vec![op], ..TxnRequest::default() },
    })
    .prop_filter("validated, as the server does", |txn| txn.validate(128).is_ok())
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => put().prop_map(Step::Put),
        3 => delete().prop_map(Step::Delete),
        6 => txn().prop_map(Step::Txn),
        2 => (0..=100i64).prop_map(Step::Compact),
        1 => Just(Step::Compact(100)),
        4 => Just(Step::Commit),
        3 => (1..12usize).prop_map(Step::Sweep),
        1 => Just(Step::Reopen),
        8 => read().prop_map(Step::Read),
    ]
}

fn range_answer(found: RangeResult) -> Answer {
    let kvs = found.kvs.iter().map(Kv::from).collect();
    Answer::Range { kvs, more: found.more, count: found.count, revision: found.revision }
}

fn put_answer(reply: PutReply) -> Answer {
    Answer::Put { prev: reply.prev_kv.as_ref().map(Kv::from), revision: reply.revision }
}

fn delete_answer(reply: DeleteReply) -> Answer {
    let prevs = reply.prev_kvs.iter().map(Kv::from).collect();
    Answer::Delete { deleted: reply.deleted, prevs, revision: reply.revision }
}

fn txn_answer(reply: TxnReply) -> Answer {
    let answer = |reply| match reply {
        OpReply::Range(found) => range_answer(found),
        OpReply::Put(reply) => put_answer(reply),
        OpReply::Delete(reply) => delete_answer(reply),
        OpReply::Txn(reply) => txn_answer(reply),
    };
    let answers = reply.replies.into_iter().map(answer).collect();
    Answer::Txn { succeeded: reply.succeeded, answers, revision: reply.revision }
}

/// Everything that a view answers about `request`, in one go and in pieces, equals the model's answer.
fn check_read(store: &Store, model: &Model, request: &RangeRequest) -> Result<(), TestCaseError> {
    let view = store.reader.view();
    match (view.range(request), model.range(request)) {
        (Ok(found), Ok(expected)) => {
            prop_assert_eq!(range_answer(found.clone()), expected);
            let mut scan = view.scan(request).unwrap();
            let (count, more, mut kvs) = (scan.count(), scan.more(), Vec::new());
            while let Some(piece) = scan.next_piece(2, 64).unwrap() {
                prop_assert!(!piece.is_empty() && piece.len() <= 2);
                kvs.extend(piece);
            }
            let scanned = RangeResult { kvs, more, count, revision: scan.revision() };
            prop_assert_eq!(scanned, found);
        }
        (Err(ReadError::Rejected(rejection)), Err(expected)) => prop_assert_eq!(rejection, expected),
        (found, expected) => prop_assert!(false, "{found:?} instead of {expected:?}"),
    }
    Ok(())
}

/// Reads everything at every readable revision.
fn check_all(store: &Store, model: &Model) -> Result<(), TestCaseError> {
    for revision in model.compact.max(0)..=model.revision {
        let options = RangeOptions::default();
        check_read(store, model, &RangeRequest { range: KeyRange::all(), revision, options })?;
    }
    Ok(())
}

fn run(steps: Vec<Step>) -> Result<(), TestCaseError> {
    // The twin gets the same operations, one batch each, but is never swept or reopened.
    let (mut store, mut twin, mut model) = (Store::new(), Store::new(), Model::new());
    for step in steps {
        match step {
            Step::Put(put) => {
                let answer = store.put(&put).map(put_answer);
                prop_assert_eq!(&answer, &model.put(&put));
                prop_assert_eq!(&answer, &twin.put(&put).map(put_answer));
            }
            Step::Delete(delete) => {
                let answer = delete_answer(store.delete(&delete));
                prop_assert_eq!(&answer, &model.delete(&delete));
                prop_assert_eq!(&answer, &delete_answer(twin.delete(&delete)));
            }
            Step::Txn(txn) => {
                if txn.is_read_only() {
                    store.commit();
                    let answer = match store.reader.view().txn(&txn) {
                        Ok(reply) => Ok(txn_answer(reply)),
                        Err(ReadError::Rejected(rejection)) => Err(rejection),
                        Err(error) => panic!("{error:?}"),
                    };
                    prop_assert_eq!(&answer, &model.clone().txn(&txn));
                }
                let answer = store.txn(&txn).map(txn_answer);
                prop_assert_eq!(&answer, &model.txn(&txn));
                prop_assert_eq!(&answer, &twin.txn(&txn).map(txn_answer));
            }
            Step::Compact(share) => {
                let revision = model.revision * share / 100;
                let answer = store.compact(revision);
                prop_assert_eq!(&answer, &model.compact(revision));
                prop_assert_eq!(&answer, &twin.compact(revision));
            }
            Step::Commit => store.commit(),
            Step::Sweep(records) => {
                store.commit();
                store.reader.sweep(SweepLimits { records, wait_for_views: true }).unwrap();
            }
            Step::Reopen => store.reopen(),
            Step::Read(read) => {
                store.commit();
                check_read(&store, &model, &read)?;
            }
        }
        twin.commit();
        prop_assert_eq!((store.writer.revision(), store.writer.compact_revision()), (model.revision, model.compact));
        prop_assert_eq!(store.writer.root(), twin.writer.root(), "the roots of the two stores differ");
    }
    store.commit();
    check_all(&store, &model)?;
    prop_assert_eq!(store.reader.hash_kv(0).unwrap(), twin.reader.hash_kv(0).unwrap());
    store.reopen();
    check_all(&store, &model)?;
    store.sweep_all();
    prop_assert_eq!(store.records(), model.records());
    prop_assert_eq!(store.reader.hash_kv(0).unwrap(), twin.reader.hash_kv(0).unwrap());
    store.reopen();
    check_all(&store, &model)?;
    let (reopened, _) = open(&twin.backend, small_cache()).unwrap();
    prop_assert_eq!(reopened.root(), store.writer.root());
    prop_assert_eq!(store.reader.view().root_of(&KeyRange::all()), twin.reader.view().root_of(&KeyRange::all()));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn answers_what_the_model_answers(steps in prop::collection::vec(step(), 1..300)) {
        run(steps)?;
    }
}
