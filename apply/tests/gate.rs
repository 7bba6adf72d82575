//! Alarms close the gate by replicated state alone, survive a restart, and are part of the root.
#![allow(clippy::unwrap_used)]

mod common;

use common::{entry, open, put};
use tally_apply::{AlarmAction, AlarmCommand, AlarmKind, Command, Rejection, Reply};
use tally_mvcc::{DeleteRequest, KeyRange, Op, PutRequest, TxnRequest};

fn alarm(action: AlarmAction, kind: AlarmKind) -> Command {
    Command::Alarm(AlarmCommand { action, member_id: 7, kind })
}

fn delete(key: &'static str) -> Command {
    Command::DeleteRange(DeleteRequest { range: KeyRange::single(key.into()).unwrap(), prev_kv: false })
}

#[test]
fn no_space_refuses_what_adds_data_and_lets_deletes_through() {
    let dir = tempfile::tempdir().unwrap();
    let (backend, mut applier, reads) = open(dir.path());
    let nested = TxnRequest { failure: vec![Op::Put(PutRequest::new("n", "v"))], ..TxnRequest::default() };
    let txn = Command::Txn(TxnRequest { success: vec![Op::Txn(nested)], ..TxnRequest::default() });
    let commands = [
        put("a", "1"),
        alarm(AlarmAction::Activate, AlarmKind::NoSpace),
        put("b", "2"),
        txn,
        delete("a"),
        Command::Compact { revision: 2 },
        Command::LeaseGrant { id: 1, ttl_s: 9 },
        Command::LeaseCheckpoint { term: 1, remaining: Vec::new() },
        Command::LeaseExpire { term: 1, ids: Vec::new() },
    ];
    let log: Vec<_> = (1..).zip(&commands).map(|(index, command)| entry(index, command)).collect();
    let outcomes = applier.apply(&log).unwrap();
    let accepted: Vec<bool> = outcomes.iter().map(|outcome| outcome.result.is_ok()).collect();
    assert_eq!(accepted, [true, true, false, false, true, true, false, true, true]);
    assert_eq!(outcomes[6].result, Err(Rejection::NoSpace));
    assert_eq!(outcomes[2].result, Err(Rejection::NoSpace));
    assert_eq!(outcomes[2].revision, 2, "a refusal carries the revision and changes nothing");

    let root = reads.applied().root;
    backend.sync().unwrap();
    drop((backend, applier, reads));
    let (_backend, mut applier, reads) = open(dir.path());
    assert!(reads.alarmed(AlarmKind::NoSpace), "an alarm survives a restart");
    let clear = alarm(AlarmAction::Deactivate, AlarmKind::NoSpace);
    let outcomes = applier.apply(&[entry(10, &clear), entry(11, &put("b", "2")), entry(12, &clear)]).unwrap();
    assert!(matches!(outcomes[0].result, Ok(Reply::Alarm(Some(_)))), "it is cleared by this one");
    assert!(outcomes[1].result.is_ok());
    assert_eq!(outcomes[2].result, Ok(Reply::Alarm(None)), "and not by this one");
    assert!(reads.alarms().is_empty());
    assert_ne!(reads.applied().root, root);
}

#[test]
fn corrupt_refuses_every_client_command_but_not_its_own_clearing() {
    let dir = tempfile::tempdir().unwrap();
    let (_backend, mut applier, reads) = open(dir.path());
    let commands = [
        put("a", "1"),
        alarm(AlarmAction::Activate, AlarmKind::Corrupt),
        put("b", "2"),
        delete("a"),
        Command::Txn(TxnRequest::default()),
        Command::Compact { revision: 2 },
        Command::LeaseGrant { id: 1, ttl_s: 9 },
        Command::LeaseRevoke { id: 1 },
        Command::LeaseExpire { term: 1, ids: Vec::new() },
        alarm(AlarmAction::Deactivate, AlarmKind::Corrupt),
        put("b", "2"),
    ];
    let log: Vec<_> = (1..).zip(&commands).map(|(index, command)| entry(index, command)).collect();
    let outcomes = applier.apply(&log).unwrap();
    for refused in &outcomes[2..9] {
        assert_eq!(refused.result, Err(Rejection::Corrupt));
    }
    assert!(outcomes[10].result.is_ok());
    assert_eq!(reads.kv().revision(), 3);
}

#[test]
fn an_alarm_raised_twice_is_one_and_cleared_leaves_the_root_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (_backend, mut applier, reads) = open(dir.path());
    applier.apply(&[entry(1, &put("a", "1"))]).unwrap();
    let root = reads.applied().root;
    for index in 2..4 {
        applier.apply(&[entry(index, &alarm(AlarmAction::Activate, AlarmKind::NoSpace))]).unwrap();
        assert_eq!(reads.alarms().len(), 1);
        assert_ne!(reads.applied().root, root);
    }
    applier.apply(&[entry(4, &alarm(AlarmAction::Deactivate, AlarmKind::NoSpace))]).unwrap();
    assert_eq!(reads.applied().root, root);
}
