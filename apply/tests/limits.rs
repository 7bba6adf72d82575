//! What commands write is bounded, however little they say: large batches are committed between two entries, and a command
//! that deletes too much is refused, alike wherever chunks begin and end.
#![allow(clippy::unwrap_used)]

mod common;

use common::{entry, open, put};
use tally_apply::{Applier, Command, Committed, Limits, Reads, Rejection, Reply};
use tally_mvcc::{DeleteRequest, KeyRange, Op, TxnRequest};

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

/// Puts of the keys, of which some belong to a lease, and deletes of much and of too much.
fn commands() -> Vec<Command> {
    let key = |n: usize| format!("{n:03}").repeat(KEY_BYTES.div_ceil(3))[..KEY_BYTES].to_owned();
    let txn = |success| Command::Txn(TxnRequest { success, ..TxnRequest::default() });
    let mut commands = vec![Command::LeaseGrant { id: 7, ttl_s: 100 }];
    commands.extend((0..KEYS).map(|n| put(&key(n), "value")));
    commands.extend([
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
    let tail = &results[KEYS + 1..];
    let refused = |of: u64| Err(Rejection::RemovesTooMuch { bytes: of * EACH, limit: 60 * EACH });
    let deleted = |result: &Result<Reply, Rejection>| match result {
        Ok(Reply::DeleteRange(reply)) => reply.deleted,
        other => panic!("{other:?}"),
    };
    assert_eq!(tail[0], refused(100));
    assert_eq!(tail[1], refused(70));
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
