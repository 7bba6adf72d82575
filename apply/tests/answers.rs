//! What a command makes the asked replica read is bounded, however little the command says. The bound is no part of
//! what is replicated: effects, revisions and roots are the same with any of them.
#![allow(clippy::unwrap_used)]

mod common;

use common::{entry, open, put};
use proptest::prelude::*;
use tally_apply::{Applier, Command, Committed, Limits, Outcome, Reads, Rejection, Reply};
use tally_mvcc::{
    Compare, CompareResult, CompareTarget, DeleteRequest, HashKv, KeyRange, Op, OpReply, PutRequest, RangeOptions,
    RangeRequest, RangeResult, SortOrder, SortTarget, TxnReply, TxnRequest,
};

/// More keys than are read at a time, many times over.
const KEYS: usize = 2_000;
/// Records that are read at a time.
const PIECE: u64 = 128;

/// What a replica has in the end.
#[derive(Debug, PartialEq)]
struct State {
    root: u128,
    revision: i64,
    stored: RangeResult,
    hash: HashKv,
}

struct Replica {
    applier: Applier,
    reads: Reads,
    _dir: tempfile::TempDir,
}

impl Replica {
    /// One that reads so many bytes for a reply.
    fn new(answer_bytes: usize) -> Replica {
        let dir = tempfile::tempdir().unwrap();
        let (_, applier, reads) = open(dir.path());
        let applier = applier.with_limits(Limits { answer_bytes, ..Limits::default() });
        Replica { applier, reads, _dir: dir }
    }

    /// One that has [`KEYS`] keys.
    fn filled(answer_bytes: usize) -> Replica {
        let mut replica = Replica::new(answer_bytes);
        let puts: Vec<Command> = (0..KEYS).map(|key| put(&format!("{key:05}"), &"value".repeat(20))).collect();
        replica.apply(&puts);
        replica
    }

    /// Applies commands together, all asked for here.
    fn apply(&mut self, commands: &[Command]) -> Vec<Outcome> {
        let next = self.applier.applied().index + 1;
        let entries: Vec<Committed> = (next..).zip(commands).map(|(index, command)| entry(index, command)).collect();
        self.applier.apply(&entries).unwrap()
    }

    fn apply_one(&mut self, command: &Command) -> Outcome {
        self.apply(std::slice::from_ref(command)).remove(0)
    }

    /// How many records were read since the start, from wherever.
    fn fetched(&self) -> u64 {
        let metrics = self.reads.kv().metrics();
        metrics.cache_hits() + metrics.cache_misses()
    }

    fn state(&self) -> State {
        let kv = self.reads.kv();
        State {
            root: self.applier.applied().root,
            revision: kv.revision(),
            stored: kv.range(&RangeRequest::latest(KeyRange::all())).unwrap(),
            hash: kv.hash_kv(0).unwrap(),
        }
    }
}

fn txn(success: Vec<Op>) -> TxnRequest {
    TxnRequest { success, ..TxnRequest::default() }
}

fn range(from: &str, to: &str, options: RangeOptions) -> Op {
    let range = KeyRange::new(from.to_owned().into(), to.to_owned().into()).unwrap();
    Op::Range(RangeRequest { range, revision: 0, options })
}

fn everything() -> Op {
    Op::Range(RangeRequest::latest(KeyRange::all()))
}

/// Deletes a range, and wants to see what was there.
fn delete(from: &str, to: &str) -> DeleteRequest {
    DeleteRequest { range: KeyRange::new(from.to_owned().into(), to.to_owned().into()).unwrap(), prev_kv: true }
}

/// Puts a key, and wants to see what was there.
fn replace(key: &str, value: &str) -> PutRequest {
    PutRequest { prev_kv: true, ..PutRequest::new(key.to_owned(), value.to_owned()) }
}

/// A put with so many ranges over everything, half of them in a transaction inside.
fn greedy(ranges: usize) -> Command {
    let half = || (0..ranges / 2).map(|_| everything());
    let inner = txn(half().collect());
    let key = Op::Put(PutRequest::new("greedy", "value"));
    Command::Txn(txn(std::iter::once(key).chain(half()).chain([Op::Txn(inner)]).collect()))
}

fn bytes_of(result: &RangeResult) -> usize {
    result.kvs.iter().map(|record| record.bytes().len()).sum()
}

/// The bytes of all records in a reply.
fn answered(reply: &Reply) -> usize {
    fn in_txn(reply: &TxnReply) -> usize {
        reply.replies.iter().map(in_op).sum()
    }
    fn in_op(reply: &OpReply) -> usize {
        match reply {
            OpReply::Range(result) => bytes_of(result),
            OpReply::Put(reply) => reply.prev_kv.iter().map(|record| record.bytes().len()).sum(),
            OpReply::Delete(reply) => reply.prev_kvs.iter().map(|record| record.bytes().len()).sum(),
            OpReply::Txn(reply) => in_txn(reply),
        }
    }
    match reply {
        Reply::Put(reply) => in_op(&OpReply::Put(reply.clone())),
        Reply::DeleteRange(reply) => in_op(&OpReply::Delete(reply.clone())),
        Reply::Txn(reply) => in_txn(reply),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_small_transaction_does_not_make_a_replica_read_without_end() {
    const LIMIT: usize = 50_000;
    let (mut limited, mut free) = (Replica::filled(LIMIT), Replica::filled(usize::MAX));
    let (before, free_before) = (limited.fetched(), free.fetched());
    let command = greedy(20);
    let (cut, whole) = (limited.apply_one(&command), free.apply_one(&command));
    assert_eq!(
        cut,
        Outcome { revision: whole.revision, result: Ok(Reply::AnswerTooLarge { limit: LIMIT, wrote: true }) }
    );
    let whole = whole.result.unwrap();
    assert_eq!(free.fetched() - free_before, 20 * (KEYS as u64 + 1), "it is as greedy as it looks");
    let record = (answered(&whole) / (20 * (KEYS + 1))) as u64;
    let read = limited.fetched() - before;
    assert!(read > 0 && read <= LIMIT as u64 / record + PIECE, "{read} records of some {record} bytes");
    assert_eq!(limited.state(), free.state());
}

#[test]
fn a_range_in_an_order_of_its_own_is_not_read_as_a_whole_either() {
    let backwards = RangeOptions { sort_order: SortOrder::Descend, ..RangeOptions::default() };
    let by_value = RangeOptions { sort_target: SortTarget::Value, limit: 1, ..backwards.clone() };
    let keys_only = RangeOptions { keys_only: true, ..RangeOptions::default() };
    let filtered = RangeOptions { min_mod_revision: 2, ..RangeOptions::default() };
    let mut replica = Replica::filled(1_000);
    for options in [by_value, keys_only, backwards, filtered] {
        let before = replica.fetched();
        let command = Command::Txn(txn(vec![
            Op::Put(PutRequest::new("k", "value")),
            range("0", "1", options.clone()),
            range("0", "1", options.clone()),
        ]));
        let outcome = replica.apply_one(&command);
        assert_eq!(outcome.result, Ok(Reply::AnswerTooLarge { limit: 1_000, wrote: true }), "{options:?}");
        assert_eq!(replica.fetched() - before, PIECE, "{options:?}");
    }
}

#[test]
fn what_is_deleted_is_not_read_without_end() {
    let (mut limited, mut free) = (Replica::filled(1_000), Replica::filled(usize::MAX));
    let before = limited.fetched();
    let commands = [
        Command::DeleteRange(delete("00000", "01000")),
        Command::Txn(txn(vec![Op::Delete(delete("01000", "01500")), Op::Delete(delete("01500", "01999"))])),
    ];
    let (cut, whole) = (limited.apply(&commands), free.apply(&commands));
    assert_eq!(limited.fetched() - before, 2 * PIECE, "for each of them until it is too much");
    for (cut, whole) in cut.iter().zip(&whole) {
        assert_eq!(cut.result, Ok(Reply::AnswerTooLarge { limit: 1_000, wrote: true }));
        assert_eq!(cut.revision, whole.revision);
    }
    assert!(matches!(&whole[0].result, Ok(Reply::DeleteRange(reply)) if reply.prev_kvs.len() == 1_000));
    assert_eq!(limited.state(), free.state());
    assert_eq!(limited.state().stored.count, 1, "all is deleted but one key");
}

/// Whatever a put has to know to write what it writes, it reads all the same.
#[test]
fn what_a_put_keeps_is_no_part_of_its_answer() {
    let (mut limited, mut free) = (Replica::filled(0), Replica::filled(usize::MAX));
    let keeps = PutRequest { ignore_value: true, ..replace("00007", "") };
    let (cut, whole) = (limited.apply_one(&Command::Put(keeps.clone())), free.apply_one(&Command::Put(keeps)));
    assert_eq!(cut.result, Ok(Reply::AnswerTooLarge { limit: 0, wrote: true }));
    assert!(matches!(&whole.result, Ok(Reply::Put(reply)) if reply.prev_kv.is_some()));
    let state = limited.state();
    assert_eq!(state.stored.kvs[7].value(), "value".repeat(20).as_bytes());
    assert_eq!(state.stored.kvs[7].version(), 2);
    assert_eq!(state, free.state());
}

/// Commands that read something, in every place where something can be read.
fn readers() -> Vec<Command> {
    let few = RangeOptions { limit: 300, ..RangeOptions::default() };
    let newest = RangeOptions { limit: 3, sort_order: SortOrder::Descend, sort_target: SortTarget::Mod, ..few.clone() };
    let count = RangeOptions { count_only: true, ..RangeOptions::default() };
    let inner = txn(vec![range("0", "1", newest), Op::Put(replace("00001", "inner")), range("0", "1", count)]);
    vec![
        Command::Put(replace("00000", "first")),
        Command::Txn(txn(vec![range("0", "1", few), Op::Txn(inner), Op::Delete(delete("00100", "00400"))])),
        Command::DeleteRange(delete("00500", "01000")),
        Command::Put(replace("00000", "second")),
    ]
}

#[test]
fn nothing_is_cut_of_what_is_within_the_limit() {
    let mut free = Replica::filled(usize::MAX);
    let whole: Vec<Outcome> = readers().iter().map(|command| free.apply_one(command)).collect();
    let needs: Vec<usize> = whole.iter().map(|outcome| answered(outcome.result.as_ref().unwrap())).collect();
    assert!(needs.iter().all(|bytes| *bytes > 0), "{needs:?}");
    // Each command has all of it to itself, also where several are applied together.
    let most = *needs.iter().max().unwrap();
    let mut limited = Replica::filled(most);
    assert_eq!(limited.apply(&readers()), whole);
    assert_eq!(limited.state(), free.state());
    // To the byte.
    for need in &needs {
        let limit = need - 1;
        let mut limited = Replica::filled(limit);
        let cut: Result<Reply, Rejection> = Ok(Reply::AnswerTooLarge { limit, wrote: true });
        for ((found, bytes), whole) in limited.apply(&readers()).iter().zip(&needs).zip(&whole) {
            let expected = if *bytes > limit { &cut } else { &whole.result };
            assert_eq!((found.revision, &found.result), (whole.revision, expected), "{bytes} bytes of {limit}");
        }
        assert_eq!(limited.state(), free.state());
    }
}

#[test]
fn who_has_written_nothing_is_told_so() {
    let mut replica = Replica::filled(1_000);
    let compares = vec![Compare {
        range: KeyRange::single("00000".into()).unwrap(),
        result: CompareResult::Equal,
        target: CompareTarget::Version(7),
    }];
    let success = vec![Op::Put(PutRequest::new("taken", "value"))];
    let command = Command::Txn(TxnRequest { compares, success, failure: vec![everything()] });
    assert_eq!(replica.apply_one(&command).result, Ok(Reply::AnswerTooLarge { limit: 1_000, wrote: false }));
}

#[test]
fn answers_that_are_kept_together_share_a_limit() {
    let mut free = Replica::filled(usize::MAX);
    let whole = free.apply_one(&greedy(2));
    let one = answered(whole.result.as_ref().unwrap());
    let mut limited = Replica::filled(usize::MAX);
    let limits = Limits { answers_bytes: 2 * one + one / 2, ..Limits::default() };
    limited.applier = limited.applier.with_limits(limits);
    let is_cut = |outcome: &Outcome| matches!(outcome.result, Ok(Reply::AnswerTooLarge { wrote: true, .. }));
    for _ in 0..2 {
        let outcomes = limited.apply(&[greedy(2), greedy(2), greedy(2), put("small", "value"), greedy(2)]);
        let cut: Vec<bool> = outcomes.iter().map(is_cut).collect();
        assert_eq!(cut, [false, false, true, false, true]);
    }
}

#[test]
fn a_replica_that_nobody_asks_reads_nothing_and_has_nothing_to_say() {
    let mut replica = Replica::filled(0);
    let before = replica.fetched();
    let index = replica.applier.applied().index + 1;
    let unasked = Committed { asked: false, ..entry(index, &greedy(20)) };
    let outcomes = replica.applier.apply(&[unasked]).unwrap();
    assert!(matches!(&outcomes[0].result, Ok(Reply::Txn(reply)) if reply.succeeded), "{:?}", outcomes[0].result);
    assert_eq!(replica.fetched(), before);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(25))]

    #[test]
    fn a_limit_cuts_answers_and_changes_nothing_else(
        commands in prop::collection::vec(common::command(), 1..80),
        limit in 0_usize..150,
    ) {
        let (mut limited, mut free) = (Replica::new(limit), Replica::new(usize::MAX));
        let (found, whole) = (limited.apply(&commands), free.apply(&commands));
        prop_assert_eq!(limited.state(), free.state());
        for (found, whole) in found.iter().zip(&whole) {
            prop_assert_eq!(found.revision, whole.revision);
            if !matches!(found.result, Ok(Reply::AnswerTooLarge { limit: told, .. }) if told == limit) {
                prop_assert_eq!(found, whole);
            }
        }
    }
}
