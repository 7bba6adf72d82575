//! What commands write is bounded, however little they say: large batches are committed between two entries, and a command
//! that deletes too much is refused, alike wherever chunks begin and end.
#![allow(clippy::unwrap_used)]

mod common;

use common::{entry, open};
use tally_apply::{Applier, Command, Committed, Limits, Reads, Rejection, Reply};
use tally_mvcc::{DeleteRequest, KeyRange, Op, PutRequest, TxnRequest};

const KEYS: usize = 100;
const KEY_BYTES: usize = 1_000;
/// What deleting one of the keys counts for.
const EACH: u64 = KEY_BYTES as u64 + 64;

fn limited(applier: Applier) -> Applier {
    applier.with_limits(Limits { batch_bytes: 10 * EACH, removed_bytes: 60 * EACH, ..Limits::default() })
}

fn delete(from: &str, to: &str) -> DeleteRequest {
    DeleteRequest { range: KeyRange::new(from.to_owned().into(), to.to_owned().into()).unwrap(), prev_kv: false }
}

fn key(n: usize) -> String {
    format!("{n:03}").repeat(KEY_BYTES.div_ceil(3))[..KEY_BYTES].to_owned()
}

/// Puts of the keys, all on one lease, and deletes of much and of too much.
fn commands() -> Vec<Command> {
    let txn = |success| Command::Txn(TxnRequest { success, ..TxnRequest::default() });
    let mut commands = vec![Command::LeaseGrant { id: 7, ttl_s: 100 }];
    let leased = |n| Command::Put(PutRequest { lease: 7, ..PutRequest::new(key(n), "value") });
    commands.extend((0..KEYS).map(leased));
    commands.extend([
        Command::LeaseRevoke { id: 7 },
        Command::DeleteRange(delete("000", "\0")),
        txn(vec![Op::Delete(delete("000", "035")), Op::Delete(delete("035", "070"))]),
        Command::DeleteRange(delete("000", "050")),
        txn(vec![Op::Delete(delete("000", "060")), Op::Delete(delete("060", "070"))]),
        Command::DeleteRange(delete("000", "\0")),
        Command::LeaseRevoke { id: 7 },
    ]);
    commands
}

/// Applies everything in chunks of so many entries; gives what came of it and the root in the end.
fn applied(chunk: usize) -> (Vec<Result<Reply, Rejection>>, u128) {
    let dir = tempfile::tempdir().unwrap();
    let (backend, applier, reads) = open(dir.path());
    let mut applier = limited(applier);
    let entries: Vec<Committed> = (1..).zip(&commands()).map(|(index, command)| entry(index, command)).collect();
    let mut results = Vec::new();
    for entries in entries.chunks(chunk) {
        results.extend(applier.apply(entries).unwrap().into_iter().map(|outcome| outcome.result));
        // However many commits it took, all of it has been shown.
        assert_eq!(reads.applied_index(), entries.last().unwrap().index);
        assert_eq!(backend.applied().index, entries.last().unwrap().index);
    }
    let root = applier.applied().root;
    drop((applier, reads));
    let reopened: (Applier, Reads) = Applier::open(backend, tally_mvcc::Options::default()).unwrap();
    assert_eq!(reopened.0.applied().root, root);
    (results, root)
}

#[test]
fn what_deletes_too_much_is_refused_and_all_else_is_done_wherever_chunks_end() {
    let (results, root) = applied(1);
    let refused: Result<Reply, Rejection> = Err(Rejection::RemovesTooMuch { limit: 60 * EACH });
    assert_eq!(results[KEYS + 1], refused, "nor is a lease revoked with too many keys");
    let tail = &results[KEYS + 2..];
    let deleted = |result: &Result<Reply, Rejection>| match result {
        Ok(Reply::DeleteRange(reply)) => reply.deleted,
        other => panic!("{other:?}"),
    };
    assert_eq!(tail[0], refused);
    assert_eq!(tail[1], refused);
    assert_eq!(deleted(&tail[2]), 50);
    assert!(matches!(&tail[3], Ok(Reply::Txn(reply)) if reply.replies.len() == 2));
    assert_eq!(deleted(&tail[4]), 30);
    assert_eq!(tail[5], Ok(Reply::Done));
    for chunk in [2, 7, 40, results.len()] {
        assert_eq!(applied(chunk), (results.clone(), root), "chunks of {chunk}");
    }
}

#[test]
fn a_large_batch_is_committed_between_two_entries() {
    let dir = tempfile::tempdir().unwrap();
    let (backend, applier, _reads) = open(dir.path());
    let mut applier = limited(applier);
    let before = backend.metrics().commits();
    let entries: Vec<Committed> = (1..).zip(&commands()).map(|(index, command)| entry(index, command)).collect();
    applier.apply(&entries).unwrap();
    let commits = backend.metrics().commits() - before;
    // Each hundred puts of a kilobyte are ten batches, and each of the deletes that were done is more than one by itself.
    assert!((11..=16).contains(&commits), "{commits} commits");
}

/// Whatever its keys take, a lease that is over comes to its end: by several commands.
#[test]
fn what_expires_with_too_many_keys_goes_in_several_steps() {
    let dir = tempfile::tempdir().unwrap();
    let (_backend, applier, reads) = open(dir.path());
    let mut applier = limited(applier);
    let mut index = 0;
    let mut apply = |command: Command| {
        index += 1;
        applier.apply(&[entry(index, &command)]).unwrap().remove(0).result.unwrap()
    };
    for (lease, keys) in [(7, 0..50), (8, 50..KEYS)] {
        apply(Command::LeaseGrant { id: lease, ttl_s: 100 });
        for n in keys {
            apply(Command::Put(PutRequest { lease, ..PutRequest::new(key(n), "value") }));
        }
    }
    let expire = || Command::LeaseExpire { term: 1, ids: vec![7, 8] };
    assert_eq!(apply(expire()), Reply::LeaseExpire { revoked: 1 });
    assert_eq!(reads.kv().keys_live(), 40, "ten of the other one's are gone");
    assert_eq!(apply(expire()), Reply::LeaseExpire { revoked: 1 });
    assert_eq!((reads.kv().keys_live(), reads.leases().len()), (0, 0));
    assert_eq!(apply(expire()), Reply::LeaseExpire { revoked: 0 });
}
