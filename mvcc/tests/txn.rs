//! Transactions: one revision, nested branches chosen before anything is written, refusals that change nothing.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Store, between, delete, get, put, single};
use tally_mvcc::{
    Answers, Compare, CompareResult, CompareTarget, DeleteRequest, Invalid, KeyRange, Op, OpReply, PutRequest,
    RangeOptions, RangeRequest, ReadError, Rejection, SortOrder, SortTarget, TxnReply, TxnRequest,
};

fn all(ops: Vec<Op>) -> TxnRequest {
    TxnRequest { success: ops, ..TxnRequest::default() }
}

fn compare(range: KeyRange, result: CompareResult, target: CompareTarget) -> Compare {
    Compare { range, result, target }
}

/// Whether a compare holds, asked through a read-only transaction and through the writer.
fn holds(store: &mut Store, compare: Compare) -> bool {
    let txn = TxnRequest { compares: vec![compare], ..TxnRequest::default() };
    let read = store.reader.view().txn(&txn).unwrap().succeeded;
    assert_eq!(store.txn(&txn).unwrap().succeeded, read);
    read
}

fn counts(reply: &TxnReply) -> Vec<(i64, i64)> {
    let figures = |reply: &OpReply| match reply {
        OpReply::Range(found) => Some((found.count, found.revision)),
        OpReply::Put(_) | OpReply::Delete(_) | OpReply::Txn(_) => None,
    };
    reply.replies.iter().filter_map(figures).collect()
}

#[test]
fn makes_one_revision_and_reads_its_own_writes() {
    let mut store = Store::new();
    store.set("a", "1");
    let everything = || get(KeyRange::all(), 0);
    let txn = all(vec![
        everything(),
        put("b", "1"),
        put("c", "1"),
        everything(),
        delete(single("a")),
        everything(),
        get(KeyRange::all(), 2),
    ]);
    let reply = store.txn(&txn).unwrap();
    assert_eq!(counts(&reply), [(1, 2), (3, 3), (2, 3), (1, 3)], "the last one reads the state before");
    assert_eq!((reply.revision, store.writer.revision(), store.reader.revision()), (3, 3, 2));
    store.commit();
    let found = store.get(KeyRange::all(), 0);
    assert!(found.kvs.iter().all(|record| record.mod_revision() == 3 && record.create_revision() == 3));
    assert_eq!(store.keys(), ["b", "c"]);
}

#[test]
fn what_changes_nothing_makes_no_revision() {
    let mut store = Store::new();
    store.set("a", "1");
    let root = store.writer.root();
    let nothing = store.txn(&all(vec![delete(single("x")), get(single("a"), 0)])).unwrap();
    assert_eq!((nothing.revision, counts(&nothing)), (2, vec![(1, 2)]));
    assert_eq!(store.delete(&tally_mvcc::DeleteRequest { range: between("b", "c"), prev_kv: true }).revision, 2);
    assert_eq!(store.writer.root(), root);
}

#[test]
fn all_compares_see_the_state_before() {
    let mut store = Store::new();
    store.set("a", "1");
    let a_is_old = compare(single("a"), CompareResult::Equal, CompareTarget::Value("1".into()));
    let inner =
        TxnRequest { compares: vec![a_is_old], success: vec![put("inner", "old")], failure: vec![put("inner", "new")] };
    let reply = store.txn(&all(vec![put("a", "2"), Op::Txn(inner)])).unwrap();
    let OpReply::Txn(inner) = &reply.replies[1] else { panic!("{reply:?}") };
    assert!(inner.succeeded, "the nested compare saw what its own transaction wrote");
}

#[test]
fn an_absent_key_compares_as_zero_except_by_value() {
    use CompareResult::{Equal, Greater, Less, NotEqual};
    let mut store = Store::new();
    store.set("k1", "v");
    store.set("k2", "v");
    let absent = || single("nothing");
    for target in [CompareTarget::Version(0), CompareTarget::Create(0), CompareTarget::Mod(0), CompareTarget::Lease(0)]
    {
        assert!(holds(&mut store, compare(absent(), Equal, target.clone())), "{target:?}");
        assert!(!holds(&mut store, compare(absent(), Greater, target.clone())));
        assert!(holds(&mut store, compare(between("x", "z"), Equal, target.clone())));
        assert!(holds(&mut store, compare(between("z", "x"), Equal, target)), "an inverted range holds no key");
    }
    for result in [Equal, NotEqual, Less, Greater] {
        assert!(!holds(&mut store, compare(absent(), result, CompareTarget::Value("".into()))), "{result:?}");
    }
    // Of a range, every key must satisfy it.
    assert!(holds(&mut store, compare(between("k", "l"), Equal, CompareTarget::Value("v".into()))));
    assert!(holds(&mut store, compare(between("k", "l"), Greater, CompareTarget::Mod(1))));
    assert!(!holds(&mut store, compare(between("k", "l"), Greater, CompareTarget::Mod(2))));
    store.set("k3", "w");
    assert!(!holds(&mut store, compare(between("k", "l"), Equal, CompareTarget::Value("v".into()))));
}

#[test]
fn a_refusal_changes_nothing() {
    let mut store = Store::new();
    store.set("a", "1");
    store.set("a", "2");
    store.compact_now(3);
    let root = store.writer.root();
    let future = Rejection::FutureRevision { requested: 4, current: 3 };
    let compacted = |requested| Rejection::Compacted { requested, compacted: 3 };
    let keep = |key: &str| Op::Put(PutRequest { ignore_value: true, ..PutRequest::new(key.to_owned(), "") });
    let cases = [
        // The revision that the transaction itself will make is still in the future.
        (vec![put("b", "1"), get(single("b"), 4)], future),
        (vec![put("b", "1"), get(single("b"), 2)], compacted(2)),
        (vec![put("b", "1"), get(single("b"), -1)], compacted(-1)),
        (vec![put("b", "1"), keep("x")], Rejection::KeyNotFound),
        // The first mistake counts, at whatever depth.
        (vec![get(single("b"), 2), Op::Txn(all(vec![keep("x")]))], compacted(2)),
        (vec![Op::Txn(all(vec![keep("x")])), get(single("b"), 2)], Rejection::KeyNotFound),
    ];
    for (ops, expected) in cases {
        assert_eq!(store.txn(&all(ops.clone())), Err(expected), "{ops:?}");
    }
    assert_eq!((store.writer.root(), store.writer.revision()), (root, 3));
    // What is not on the path taken is not checked.
    let untaken = TxnRequest { failure: vec![get(single("a"), 99), keep("x")], ..TxnRequest::default() };
    assert!(store.txn(&untaken).unwrap().succeeded);
}

#[test]
fn leases_are_judged_by_the_caller_in_order() {
    let mut store = Store::new();
    let leased = |lease| Op::Put(PutRequest { lease, ..PutRequest::new("k", "v") });
    let missing = PutRequest { ignore_value: true, ..PutRequest::new("x", "") };
    let known = |lease| lease == 7;
    let check = |store: &Store, ops| store.writer.check_with_leases(&all(ops), &known).map_err(common::rejected);
    assert!(check(&store, vec![leased(7)]).is_ok());
    assert_eq!(check(&store, vec![leased(8), Op::Put(missing.clone())]).unwrap_err(), Rejection::LeaseNotFound(8));
    assert_eq!(check(&store, vec![Op::Put(missing), leased(8)]).unwrap_err(), Rejection::KeyNotFound);
    assert_eq!(check(&store, vec![leased(8), get(single("k"), 99)]).unwrap_err(), Rejection::LeaseNotFound(8));
    // What is put keeps or takes the lease it says.
    store.txn(&all(vec![leased(7)])).unwrap();
    let keep = PutRequest { ignore_lease: true, ..PutRequest::new("k", "w") };
    store.put(&keep).unwrap();
    store.commit();
    let record = store.get(single("k"), 0).kvs.remove(0);
    assert_eq!((record.lease(), record.value(), record.version()), (7, &b"w"[..], 2));
    store.set("k", "x");
    assert_eq!(store.get(single("k"), 0).kvs[0].lease(), 0, "a put without a lease detaches the key");
}

/// As in etcd 3.6 and later: the lease comes first, alone and in a transaction.
#[test]
fn a_put_with_two_mistakes_is_told_the_one_that_etcd_finds_first() {
    let mut store = Store::new();
    let both = PutRequest { ignore_value: true, lease: 8, ..PutRequest::new("k", "") };
    let leased = PutRequest { lease: 7, ..both.clone() };
    let known = |lease| lease == 7;
    let alone = |store: &Store, put: &PutRequest| store.writer.check_put_with_leases(put, &known);
    let inside = |store: &Store, put: &PutRequest| {
        let plain = store.writer.check_with_leases(&all(vec![Op::Put(put.clone())]), &known).map(|_| ());
        let nested = all(vec![Op::Txn(all(vec![Op::Put(put.clone())]))]);
        let nested = store.writer.check_with_leases(&nested, &known).map(|_| ());
        let (plain, nested) = (plain.map_err(common::rejected), nested.map_err(common::rejected));
        assert_eq!(plain, nested);
        plain
    };
    assert_eq!(alone(&store, &both).map_err(common::rejected), Err(Rejection::LeaseNotFound(8)));
    assert_eq!(inside(&store, &both), Err(Rejection::LeaseNotFound(8)));
    assert_eq!(alone(&store, &leased).map_err(common::rejected), Err(Rejection::KeyNotFound));
    assert_eq!(inside(&store, &leased), Err(Rejection::KeyNotFound));
    store.set("k", "v");
    assert_eq!(alone(&store, &both).map_err(common::rejected), Err(Rejection::LeaseNotFound(8)));
    assert_eq!(inside(&store, &both), Err(Rejection::LeaseNotFound(8)));
    assert_eq!((alone(&store, &leased).is_ok(), inside(&store, &leased)), (true, Ok(())));
}

#[test]
fn a_put_does_not_keep_what_its_transaction_deletes() {
    let keep = Op::Put(PutRequest { ignore_value: true, ..PutRequest::new("a", "") });
    let txn = all(vec![delete(between("a", "\0")), keep]);
    assert_eq!(txn.validate(128), Err(Invalid::DuplicateKey));
    assert_eq!(txn.check_overlap(), Err(Invalid::DuplicateKey));
}

#[test]
fn a_view_does_not_write() {
    let store = Store::new();
    let view = store.reader.view();
    assert!(matches!(view.txn(&all(vec![put("a", "1")])), Err(ReadError::NotReadOnly)));
    assert!(matches!(view.txn(&all(vec![Op::Txn(all(vec![delete(single("a"))]))])), Err(ReadError::NotReadOnly)));
}

#[test]
#[should_panic(expected = "acted on before anything else")]
fn a_stale_plan_is_not_acted_on() {
    let mut store = Store::new();
    let txn = all(vec![put("a", "1")]);
    let plan = store.writer.check(&txn).unwrap();
    store.set("b", "1");
    let mut batch = store.backend.batch();
    let _ = store.writer.act(plan, &txn, &mut batch);
}

/// Values too large for the cache are found among the staged records until they are committed, and on disk afterwards.
#[test]
fn staged_records_that_no_cache_holds_are_read() {
    let mut store = Store::new();
    let large = |byte: &str| byte.repeat(100_000);
    let chained = |value: String| PutRequest { prev_kv: true, ..PutRequest::new("k", value) };
    store.put(&chained(large("1"))).unwrap();
    let second = store.put(&chained(large("2"))).unwrap();
    assert_eq!(second.prev_kv.unwrap().value(), large("1").as_bytes());
    let is_second = compare(single("k"), CompareResult::Equal, CompareTarget::Value(large("2").into()));
    let txn = TxnRequest { compares: vec![is_second], success: vec![get(single("k"), 2)], failure: vec![] };
    let reply = store.txn(&txn).unwrap();
    let OpReply::Range(found) = &reply.replies[0] else { panic!("the compare failed") };
    assert_eq!(found.kvs[0].value(), large("1").as_bytes());
    store.commit();
    assert_eq!(store.get(single("k"), 0).kvs[0].value(), large("2").as_bytes());
    assert_eq!(store.get(single("k"), 2).kvs[0].value(), large("1").as_bytes());
    assert!(store.reader.metrics().cache_misses() >= 2);
}

/// What is read for one reply has one limit, wherever it is read; to keep within it is to notice nothing.
#[test]
fn what_a_command_reads_for_its_reply_is_limited() {
    let mut store = Store::new();
    for key in 0..1_000 {
        store.put(&PutRequest::new(format!("k{key:04}"), "value")).unwrap();
    }
    store.commit();
    let fetched = |store: &Store| store.reader.metrics().cache_hits() + store.reader.metrics().cache_misses();
    let by_value =
        RangeOptions { sort_order: SortOrder::Descend, sort_target: SortTarget::Value, ..Default::default() };
    let sorted = RangeRequest { range: between("k02", "k04"), revision: 0, options: by_value };
    let seen = Op::Put(PutRequest { prev_kv: true, ..PutRequest::new("k0500", "value") });
    let command = all(vec![
        get(between("k00", "k02"), 0),
        seen,
        Op::Txn(all(vec![Op::Range(sorted), Op::Delete(DeleteRequest { range: between("k08", "l"), prev_kv: true })])),
        get(between("k04", "k08"), 0),
    ]);
    // Of a thousand records, which are about equally long.
    let bytes = store.get(between("k", "l"), 0).kvs.iter().map(|record| record.bytes().len()).sum::<usize>();

    let before = fetched(&store);
    store.writer.answer(Answers::UpTo(2 * bytes));
    let whole = store.txn(&command).unwrap();
    assert!(!store.writer.answer_was_cut());
    assert_eq!(fetched(&store) - before, 200 + 1 + 200 + 200 + 400);
    let OpReply::Txn(inner) = &whole.replies[2] else { panic!("{whole:?}") };
    let OpReply::Delete(deleted) = &inner.replies[1] else { panic!("{inner:?}") };
    assert_eq!((deleted.deleted, deleted.prev_kvs.len()), (200, 200));

    // There is nothing left to delete, so this wants 801 records, and may have five hundred.
    store.writer.answer(Answers::UpTo(bytes / 2));
    let before = fetched(&store);
    let cut = store.txn(&command).unwrap();
    assert!(store.writer.answer_was_cut());
    let read = fetched(&store) - before;
    assert!((400..=700).contains(&read), "{read} records were read");
    assert_eq!((cut.succeeded, cut.revision), (true, whole.revision + 1));
    // It is so until the next command, and not longer.
    store.writer.answer(Answers::LeftOut);
    let before = fetched(&store);
    assert_eq!(store.txn(&command).unwrap().revision, whole.revision + 2);
    assert_eq!((fetched(&store) - before, store.writer.answer_was_cut()), (0, false));
}
