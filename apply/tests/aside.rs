//! Commands that touch very many keys are carried out aside, with the commit of what they did; others are not.
#![allow(clippy::unwrap_used)]

mod common;

use std::cell::Cell;

use common::{entry, open, put};
use tally_apply::{Applier, Aside, Command, Reply};
use tally_mvcc::{DeleteRequest, KeyRange, Op, PutRequest, TxnRequest};

/// Counts what is done aside.
#[derive(Default)]
struct Counted(Cell<u32>);

impl Aside for Counted {
    fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        self.0.set(self.0.get() + 1);
        work()
    }
}

struct Replica {
    applier: Applier,
    counted: Counted,
}

impl Replica {
    /// How often something was done aside for these commands, and what came of the last.
    fn asides(&mut self, commands: &[Command]) -> (u32, Reply) {
        let first = self.applier.applied().index + 1;
        let entries: Vec<_> = (first..).zip(commands).map(|(index, command)| entry(index, command)).collect();
        let outcomes = self.applier.apply_aside(&entries, &self.counted).unwrap();
        (self.counted.0.take(), outcomes.into_iter().next_back().unwrap().result.unwrap())
    }

    fn fill(&mut self, prefix: &str, keys: u32, lease: i64) {
        let put = |n| PutRequest { lease, ..PutRequest::new(format!("{prefix}{n:05}"), "value") };
        let puts: Vec<_> = (0..keys).map(|n| Command::Put(put(n))).collect();
        assert_eq!(self.asides(&puts).0, 0);
    }
}

fn delete(from: &str, to: &str) -> DeleteRequest {
    DeleteRequest { range: KeyRange::new(from.to_owned().into(), to.to_owned().into()).unwrap(), prev_kv: false }
}

#[test]
fn what_touches_thousands_of_keys_is_done_aside() {
    const MANY: u32 = 5_000;
    let dir = tempfile::tempdir().unwrap();
    let (_backend, applier, _reads) = open(dir.path());
    let mut replica = Replica { applier, counted: Counted::default() };
    replica.fill("a", MANY, 0);
    replica.fill("b", MANY, 0);
    replica.fill("few", 100, 0);
    let few = Command::DeleteRange(delete("few", "fex"));
    let (asides, reply) = replica.asides(&[few, put("one", "value")]);
    assert!(matches!((asides, reply), (0, Reply::Put(_))));
    // The command, and the commit of the whole chunk.
    let (asides, reply) = replica.asides(&[put("one", "more"), Command::DeleteRange(delete("a", "b"))]);
    assert!(
        matches!((asides, &reply), (2, Reply::DeleteRange(deleted)) if deleted.deleted == i64::from(MANY)),
        "{reply:?}"
    );
    let inner = TxnRequest { success: vec![Op::Delete(delete("b", "c"))], ..TxnRequest::default() };
    let txn = TxnRequest { success: vec![Op::Txn(inner)], ..TxnRequest::default() };
    assert_eq!(replica.asides(&[Command::Txn(txn.clone())]).0, 2);
    // It is all gone.
    assert_eq!(replica.asides(&[Command::Txn(txn)]).0, 0);
    assert_eq!(replica.asides(&[Command::Compact { revision: 2 }]).0, 2);
}

#[test]
fn leases_with_thousands_of_keys_end_aside() {
    const MANY: u32 = 5_000;
    let dir = tempfile::tempdir().unwrap();
    let (_backend, applier, _reads) = open(dir.path());
    let mut replica = Replica { applier, counted: Counted::default() };
    for id in 1..=4 {
        assert_eq!(replica.asides(&[Command::LeaseGrant { id, ttl_s: 60 }]).0, 0);
    }
    replica.fill("a", MANY, 1);
    replica.fill("b", MANY / 2, 2);
    replica.fill("c", MANY / 2, 3);
    replica.fill("d", 100, 4);
    assert_eq!(replica.asides(&[Command::LeaseRevoke { id: 4 }]).0, 0);
    assert_eq!(replica.asides(&[Command::LeaseRevoke { id: 1 }]).0, 2);
    let (asides, reply) = replica.asides(&[Command::LeaseExpire { term: 1, ids: vec![2, 3] }]);
    assert!(matches!((asides, reply), (2, Reply::LeaseExpire { revoked: 2 })));
}
