//! Leases through the log: what is attached, what goes with a lease and in which order, and what every replica agrees on.
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{entry, open, put};
use tally_apply::{Applier, Body, Command, Committed, LeaseChange, OpenError, Outcome, Reads, Rejection, Reply};
use tally_backend::{Backend, Bucket};
use tally_lease::Lease;
use tally_mvcc::{
    Compare, CompareResult, CompareTarget, DeleteRequest, KeyRange, Op, PutRequest, RangeRequest, TxnRequest,
};

struct Replica {
    dir: tempfile::TempDir,
    backend: Backend,
    applier: Applier,
    reads: Reads,
}

impl Replica {
    fn new() -> Replica {
        let dir = tempfile::tempdir().unwrap();
        let (backend, applier, reads) = open(dir.path());
        Replica { dir, backend, applier, reads }
    }

    fn apply(&mut self, command: &Command) -> Outcome {
        let index = self.reads.applied_index() + 1;
        self.applier.apply(&[entry(index, command)]).unwrap().remove(0)
    }

    fn ok(&mut self, command: &Command) -> Reply {
        self.apply(command).result.unwrap()
    }

    fn keys(&self, id: i64) -> Vec<Bytes> {
        self.reads.leases().keys(id).collect()
    }

    fn reopened(self) -> Replica {
        let Replica { dir, backend, applier, reads } = self;
        backend.sync().unwrap();
        drop((backend, applier, reads));
        let (backend, applier, reads) = open(dir.path());
        Replica { dir, backend, applier, reads }
    }

    fn revisions(&self) -> Vec<(Vec<u8>, i64)> {
        let answer = self.reads.kv().view().range(&RangeRequest::latest(KeyRange::all())).unwrap();
        answer.kvs.iter().map(|kv| (kv.parts().key.to_vec(), kv.parts().lease)).collect()
    }
}

fn grant(id: i64) -> Command {
    Command::LeaseGrant { id, ttl_s: 60 }
}

fn leased(key: &str, lease: i64) -> PutRequest {
    PutRequest { lease, ..PutRequest::new(key.to_owned(), "v") }
}

fn put_leased(key: &str, lease: i64) -> Command {
    Command::Put(leased(key, lease))
}

fn delete(start: &'static str, end: &'static str) -> DeleteRequest {
    DeleteRequest { range: KeyRange::new(start.into(), end.into()).unwrap(), prev_kv: false }
}

#[test]
fn keys_go_where_their_last_write_says() {
    let mut replica = Replica::new();
    assert_eq!(replica.apply(&put_leased("a", 1)).result, Err(Rejection::Kv(tally_mvcc::Rejection::LeaseNotFound(1))));
    for id in [1, 2] {
        assert_eq!(replica.ok(&grant(id)), Reply::LeaseGrant { ttl_s: 60 });
    }
    for key in ["d", "b", "a", "c"] {
        replica.ok(&put_leased(key, 1));
    }
    assert_eq!(replica.keys(1), ["a", "b", "c", "d"]);
    replica.ok(&put_leased("a", 2));
    replica.ok(&put("b", "detached"));
    replica.ok(&Command::Put(PutRequest { ignore_lease: true, ..PutRequest::new("c", "kept") }));
    replica.ok(&Command::DeleteRange(delete("d", "")));
    assert_eq!((replica.keys(1), replica.keys(2)), (vec!["c".into()], vec!["a".into()]));
    let replica = replica.reopened();
    assert_eq!((replica.keys(1), replica.keys(2)), (vec!["c".into()], vec!["a".into()]));
}

#[test]
fn transactions_attach_and_detach_nested_ones_too() {
    let mut replica = Replica::new();
    [1, 2].iter().for_each(|id| drop(replica.ok(&grant(*id))));
    replica.ok(&put_leased("old", 1));
    let holds = Compare {
        range: KeyRange::single("old".into()).unwrap(),
        result: CompareResult::Equal,
        target: CompareTarget::Lease(1),
    };
    let nested = TxnRequest {
        compares: vec![holds],
        success: vec![Op::Put(leased("nested", 2)), Op::Delete(delete("old", "older"))],
        failure: vec![Op::Put(leased("never", 1))],
    };
    let txn =
        TxnRequest { success: vec![Op::Put(leased("outer", 1)), Op::Txn(nested.clone())], ..TxnRequest::default() };
    let revision = replica.apply(&Command::Txn(txn)).revision;
    assert_eq!((replica.keys(1), replica.keys(2)), (vec!["outer".into()], vec!["nested".into()]));
    // One unknown lease anywhere on the path taken, and nothing at all is done.
    let wrong = TxnRequest { failure: vec![Op::Put(leased("nested", 9))], ..nested };
    let txn = TxnRequest { success: vec![Op::Put(put_of("outer")), Op::Txn(wrong)], ..TxnRequest::default() };
    let outcome = replica.apply(&Command::Txn(txn));
    assert_eq!(outcome.result, Err(Rejection::Kv(tally_mvcc::Rejection::LeaseNotFound(9))));
    assert_eq!((outcome.revision, replica.keys(1)), (revision, vec!["outer".into()]));
}

fn put_of(key: &'static str) -> PutRequest {
    PutRequest::new(key, "v")
}

/// Bug catalogue row 20: the keys of a lease are deleted in ascending order, as one revision.
#[test]
fn row_20_a_revoke_deletes_in_key_order_as_one_revision() {
    let mut replica = Replica::new();
    replica.ok(&grant(1));
    let keys = ["m", "z", "a", "q", "b"];
    keys.iter().for_each(|key| drop(replica.ok(&put_leased(key, 1))));
    replica.ok(&put("other", "stays"));
    let before = replica.reads.kv().revision();
    let outcome = replica.apply(&Command::LeaseRevoke { id: 1 });
    assert_eq!((outcome.revision, outcome.result), (before + 1, Ok(Reply::Done)));
    let mut order = Vec::new();
    for sub in 0..keys.len() as u32 {
        let record = replica.backend.get(Bucket::Kv, &tally_mvcc::Revision::new(before + 1, sub).to_key()).unwrap();
        let record = tally_mvcc::Record::decode(record.unwrap()).unwrap();
        assert!(record.parts().version == 0, "a tombstone");
        order.push(String::from_utf8(record.parts().key.to_vec()).unwrap());
    }
    assert_eq!(order, ["a", "b", "m", "q", "z"]);
    assert_eq!(replica.revisions(), [(b"other".to_vec(), 0)]);
    assert!(replica.reads.leases().is_empty());
    assert_eq!(replica.apply(&Command::LeaseRevoke { id: 1 }).result, Err(tally_lease::Rejection::NotFound(1).into()));
}

#[test]
fn revoking_a_lease_without_keys_makes_no_revision() {
    let mut replica = Replica::new();
    replica.ok(&grant(1));
    assert_eq!(replica.apply(&Command::LeaseRevoke { id: 1 }).revision, 1);
}

#[test]
fn refusals_are_replicated_values() {
    let mut replica = Replica::new();
    let mut refused = |command| match replica.apply(&command).result {
        Err(Rejection::Lease(rejection)) => rejection,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(Command::LeaseGrant { id: 0, ttl_s: 1 }), tally_lease::Rejection::NotFound(0));
    let asked_s = tally_lease::TTL_MAX_S + 1;
    assert_eq!(refused(Command::LeaseGrant { id: 1, ttl_s: asked_s }), tally_lease::Rejection::TtlTooLarge { asked_s });
    replica.ok(&grant(1));
    assert_eq!(replica.apply(&grant(1)).result, Err(tally_lease::Rejection::Exists(1).into()));
}

/// Bug catalogue row 51: what a deposed leader decided by its clock has no effect, whenever it gets into the log.
#[test]
fn row_51_expiry_and_checkpoints_of_another_term_do_nothing() {
    let mut replica = Replica::new();
    replica.ok(&grant(1));
    replica.ok(&put_leased("k", 1));
    let (index, root) = (replica.reads.applied_index(), replica.reads.applied().root);
    let stale =
        [Command::LeaseExpire { term: 1, ids: vec![1] }, Command::LeaseCheckpoint { term: 1, remaining: vec![(1, 5)] }];
    for (index, command) in (index + 1..).zip(&stale) {
        let entry = Committed { index, term: 2, body: Body::Command(command.to_bytes()), asked: true };
        let outcome = replica.applier.apply(&[entry]).unwrap().remove(0);
        assert_eq!(outcome.result, Err(Rejection::OtherTerm { meant: 1, found: 2 }));
    }
    assert_eq!(replica.reads.applied().root, root);
    let meant = Command::LeaseExpire { term: 2, ids: vec![9, 1, 1] };
    let entry = Committed { index: index + 3, term: 2, body: Body::Command(meant.to_bytes()), asked: true };
    assert_eq!(replica.applier.apply(&[entry]).unwrap()[0].result, Ok(Reply::LeaseExpire { revoked: 1 }));
    assert!(replica.revisions().is_empty());
}

/// Bug catalogue row 52: what is left of a lease survives restarts, and with it changes of the leader.
#[test]
fn row_52_checkpoints_are_replicated_and_survive() {
    let mut replica = Replica::new();
    [1, 2].iter().for_each(|id| drop(replica.ok(&grant(*id))));
    let fresh = replica.reads.applied().root;
    replica.ok(&Command::LeaseCheckpoint { term: 1, remaining: vec![(2, 41), (1, 7), (8, 1)] });
    assert_ne!(replica.reads.applied().root, fresh, "the root covers it");
    let mut replica = replica.reopened();
    assert_eq!(replica.reads.leases().get(1), Some(Lease { granted_s: 60, remaining_s: 7 }));
    assert_eq!(replica.reads.leases().get(2), Some(Lease { granted_s: 60, remaining_s: 41 }));
    replica.ok(&Command::LeaseCheckpoint { term: 1, remaining: vec![(2, 0), (1, 0)] });
    assert_eq!(replica.reads.applied().root, fresh);
}

#[test]
fn each_expired_lease_has_a_revision_of_its_own() {
    let mut replica = Replica::new();
    for id in 1..=3 {
        replica.ok(&grant(id));
        replica.ok(&put_leased(&format!("a{id}"), id));
        replica.ok(&put_leased(&format!("b{id}"), id));
    }
    let before = replica.reads.kv().revision();
    let outcome = replica.apply(&Command::LeaseExpire { term: 1, ids: vec![3, 1, 2] });
    assert_eq!((outcome.revision, outcome.result), (before + 3, Ok(Reply::LeaseExpire { revoked: 3 })));
}

#[test]
fn a_store_without_leases_has_the_root_of_older_data() {
    let mut replica = Replica::new();
    replica.ok(&put("a", "1"));
    // What versions before leases store for the same command on a new store.
    assert_eq!(format!("{:032x}", replica.reads.applied().root), ROOT_BEFORE_LEASES);
    let root = replica.reads.applied().root;
    replica.ok(&grant(1));
    assert_ne!(replica.reads.applied().root, root);
    replica.ok(&Command::LeaseRevoke { id: 1 });
    assert_eq!(replica.reads.applied().root, root);
}

const ROOT_BEFORE_LEASES: &str = "4c05b51d36a06651c7571fada0981226";

#[test]
fn the_root_covers_leases_at_open() {
    let mut replica = Replica::new();
    replica.ok(&grant(1));
    let mut planted = replica.backend.batch();
    planted.put(Bucket::Lease, &1i64.to_be_bytes(), &Lease::granted(61).encode());
    planted.commit_housekeeping().unwrap();
    let Err(error) = Applier::open(replica.backend.clone(), tally_mvcc::Options::default()) else { panic!("opened") };
    assert!(matches!(error, OpenError::Root { .. }), "{error}");
    let mut planted = replica.backend.batch();
    planted.delete(Bucket::Lease, &1i64.to_be_bytes());
    planted.commit_housekeeping().unwrap();
    replica.ok(&put_leased("k", 1));
    let Err(error) = Applier::open(replica.backend.clone(), tally_mvcc::Options::default()) else { panic!("opened") };
    assert!(matches!(error, OpenError::Leases(tally_lease::OpenError::Dangling { lease: 1, .. })), "{error}");
}

#[test]
fn changes_are_told_to_who_listens_once_they_can_be_seen() {
    let mut replica = Replica::new();
    replica.ok(&grant(1));
    assert_eq!(replica.reads.take_lease_changes(), Ok(vec![]), "nobody listened");
    replica.reads.listen_to_leases(true);
    replica.ok(&grant(2));
    replica.ok(&Command::LeaseCheckpoint { term: 1, remaining: vec![(1, 99), (2, 0)] });
    replica.ok(&Command::LeaseExpire { term: 1, ids: vec![1] });
    replica.apply(&Command::LeaseRevoke { id: 9 });
    let told = replica.reads.take_lease_changes().unwrap();
    let lease = Lease::granted(60);
    let expected = [
        LeaseChange::Granted { id: 2, lease },
        LeaseChange::Noted { id: 1, remaining_s: 60 },
        LeaseChange::Revoked { id: 1 },
    ];
    assert_eq!(told, expected);
    assert_eq!((replica.reads.lease_metrics().granted_total(), replica.reads.lease_metrics().revoked_total()), (2, 1));
}
