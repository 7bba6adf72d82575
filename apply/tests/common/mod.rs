//! Shared by the tests of this crate: stores in temporary directories and random commands.
#![allow(dead_code, clippy::unwrap_used)]

use std::path::Path;

use bytes::Bytes;
use proptest::prelude::*;
use tally_apply::{AlarmAction, AlarmCommand, AlarmKind, Applier, Body, Command, Committed, Member, Reads};
use tally_backend::{Backend, Config, Identity};
use tally_mvcc::{
    Compare, CompareResult, CompareTarget, DeleteRequest, KeyRange, Op, Options, PutRequest, RangeOptions,
    RangeRequest, SortOrder, SortTarget, TxnRequest,
};

pub(crate) fn open(path: &Path) -> (Backend, Applier, Reads) {
    let identity = Identity { cluster_id: 1, member_id: 2, directory_uuid: [3; 16] };
    let backend = Backend::open(Config::new(path, identity)).unwrap();
    let (applier, reads) = Applier::open(backend.clone(), Options::default()).unwrap();
    (backend, applier, reads)
}

pub(crate) fn entry(index: u64, command: &Command) -> Committed {
    Committed { index, term: 1, body: Body::Command(command.to_bytes()), asked: true }
}

pub(crate) fn put(key: &str, value: &str) -> Command {
    Command::Put(PutRequest::new(key.to_owned(), value.to_owned()))
}

fn key() -> impl Strategy<Value = Bytes> {
    (0u8..12).prop_map(|n| Bytes::from(format!("k{n:02}")))
}

fn range() -> impl Strategy<Value = KeyRange> {
    let end = prop_oneof![Just(Bytes::new()), Just(Bytes::from_static(b"\0")), key()];
    (key(), end).prop_map(|(start, end)| KeyRange::new(start, end).unwrap())
}

fn put_request() -> impl Strategy<Value = PutRequest> {
    let flags = (any::<bool>(), prop::bool::weighted(0.1), prop::bool::weighted(0.1));
    let lease = prop_oneof![4 => Just(0i64), 1 => 1i64..5];
    (key(), prop::collection::vec(any::<u8>(), 0..20), lease, flags).prop_map(|(key, value, lease, flags)| PutRequest {
        key,
        value: Bytes::from(value),
        lease: if flags.2 { 0 } else { lease },
        prev_kv: flags.0,
        ignore_value: flags.1,
        ignore_lease: flags.2,
    })
}

fn delete_request() -> impl Strategy<Value = DeleteRequest> {
    (range(), any::<bool>()).prop_map(|(range, prev_kv)| DeleteRequest { range, prev_kv })
}

fn range_request() -> impl Strategy<Value = RangeRequest> {
    let order = prop_oneof![Just(SortOrder::None), Just(SortOrder::Ascend), Just(SortOrder::Descend)];
    let target = prop_oneof![
        Just(SortTarget::Key),
        Just(SortTarget::Version),
        Just(SortTarget::Create),
        Just(SortTarget::Mod),
        Just(SortTarget::Value)
    ];
    let flags = (any::<bool>(), any::<bool>());
    (range(), -1i64..30, 0i64..5, order, target, flags, 0i64..9).prop_map(
        |(range, revision, limit, sort_order, sort_target, (keys_only, count_only), bound)| RangeRequest {
            range,
            revision,
            options: RangeOptions {
                limit,
                sort_order,
                sort_target,
                keys_only,
                count_only,
                min_mod_revision: bound,
                max_mod_revision: bound * 3,
                min_create_revision: bound / 2,
                max_create_revision: bound * 2,
            },
        },
    )
}

fn compare() -> impl Strategy<Value = Compare> {
    let result = prop_oneof![
        Just(CompareResult::Equal),
        Just(CompareResult::Greater),
        Just(CompareResult::Less),
        Just(CompareResult::NotEqual)
    ];
    let target = prop_oneof![
        (0i64..4).prop_map(CompareTarget::Version),
        (-1i64..20).prop_map(CompareTarget::Create),
        (0i64..20).prop_map(CompareTarget::Mod),
        prop::collection::vec(any::<u8>(), 0..3).prop_map(|value| CompareTarget::Value(Bytes::from(value))),
        (0i64..2).prop_map(CompareTarget::Lease)
    ];
    (range(), result, target).prop_map(|(range, result, target)| Compare { range, result, target })
}

fn txn_request(depth: u32) -> BoxedStrategy<TxnRequest> {
    let leaf = prop_oneof![
        put_request().prop_map(Op::Put),
        delete_request().prop_map(Op::Delete),
        range_request().prop_map(Op::Range)
    ];
    let op = if depth == 0 {
        leaf.boxed()
    } else {
        prop_oneof![4 => leaf, 1 => txn_request(depth - 1).prop_map(Op::Txn)].boxed()
    };
    let ops = || prop::collection::vec(op.clone(), 0..4);
    (prop::collection::vec(compare(), 0..3), ops(), ops())
        .prop_map(|(compares, success, failure)| TxnRequest { compares, success, failure })
        .boxed()
}

pub(crate) fn command() -> impl Strategy<Value = Command> {
    let action = prop_oneof![1 => Just(AlarmAction::Activate), 3 => Just(AlarmAction::Deactivate)];
    let kind = prop_oneof![4 => Just(AlarmKind::NoSpace), 1 => Just(AlarmKind::Corrupt)];
    prop_oneof![
        20 => put_request().prop_map(Command::Put),
        6 => delete_request().prop_map(Command::DeleteRange),
        8 => txn_request(2).prop_filter("structurally valid", |txn| txn.validate(128).is_ok()).prop_map(Command::Txn),
        3 => (-1i64..60).prop_map(|revision| Command::Compact { revision }),
        1 => (action, 0u64..3, kind)
            .prop_map(|(action, member_id, kind)| Command::Alarm(AlarmCommand { action, member_id, kind })),
        1 => Just(Command::SetFeatureLevel { level: 1 }),
        2 => (1u64..4, "[a-z]{0,4}", 0u8..3).prop_map(|(id, name, directory)| Command::SetMember(Member {
            id,
            name,
            client_urls: vec!["http://127.0.0.1:2379".to_owned()],
            directory: [directory; 16],
        })),
        1 => (1u64..4).prop_map(|id| Command::RemoveMember { id }),
        6 => (0i64..5, -1i64..100).prop_map(|(id, ttl_s)| Command::LeaseGrant { id, ttl_s }),
        2 => (0i64..5).prop_map(|id| Command::LeaseRevoke { id }),
        2 => (1u64..3, prop::collection::vec((0i64..5, 0i64..100), 0..4))
            .prop_map(|(term, remaining)| Command::LeaseCheckpoint { term, remaining }),
        2 => (1u64..3, prop::collection::vec(0i64..5, 0..4)).prop_map(|(term, ids)| Command::LeaseExpire { term, ids }),
    ]
}
