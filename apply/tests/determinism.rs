//! Promises 2, 3 and 5: applied once, the same everywhere, and proved by the root (bug catalogue rows 1, 3, 11, 13, 15, 17, 19).
#![allow(clippy::unwrap_used)]

mod common;

use common::{entry, open, put};
use proptest::prelude::*;
use tally_apply::{Applier, Body, Command, Committed, Fatal, OpenError, Reply};
use tally_backend::{Backend, Bucket, Config, Identity};
use tally_mvcc::{OpReply, RangeResult, TxnReply};

/// Applies `log` in chunks whose sizes cycle through `sizes`; reopens the store after each chunk if `reopen`.
fn replay(log: &[Committed], sizes: &[usize], reopen: bool) -> (Vec<tally_apply::Outcome>, u128) {
    let dir = tempfile::tempdir().unwrap();
    let (mut backend, mut applier, mut reads) = open(dir.path());
    let mut outcomes = Vec::new();
    let mut rest = log;
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (chunk, later) = rest.split_at((*size).min(rest.len()));
        outcomes.extend(applier.apply(chunk).unwrap());
        rest = later;
        if reopen {
            let before = reads.applied();
            backend.sync().unwrap();
            drop((backend, applier, reads));
            (backend, applier, reads) = open(dir.path());
            assert_eq!(reads.applied(), before);
        }
    }
    (outcomes, reads.applied().root)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(25))]

    #[test]
    fn outcomes_and_root_do_not_depend_on_chunks_or_restarts(
        commands in prop::collection::vec(common::command(), 1..80),
        sizes in prop::collection::vec(1usize..12, 1..5),
    ) {
        let log: Vec<_> = (1..).zip(&commands).map(|(index, command)| entry(index, command)).collect();
        let (outcomes, root) = replay(&log, &[1], false);
        prop_assert_eq!(&replay(&log, &sizes, false), &(outcomes.clone(), root));
        prop_assert_eq!(&replay(&log, &sizes, true), &(outcomes, root));
    }
}

/// What an outcome says beside what was read.
fn without_what_was_read(reply: &mut Reply) {
    let txn = |txn: &mut TxnReply| {
        for reply in &mut txn.replies {
            match reply {
                OpReply::Range(range) => *range = RangeResult { revision: range.revision, ..RangeResult::default() },
                OpReply::Put(put) => put.prev_kv = None,
                OpReply::Delete(delete) => delete.prev_kvs.clear(),
                // Its turn comes.
                OpReply::Txn(_) => {}
            }
        }
    };
    match reply {
        Reply::Put(put) => put.prev_kv = None,
        Reply::DeleteRange(delete) => delete.prev_kvs.clear(),
        Reply::Txn(reply) => nested(reply, &txn),
        _ => {}
    }
}

fn nested(reply: &mut TxnReply, change: &impl Fn(&mut TxnReply)) {
    change(reply);
    for reply in &mut reply.replies {
        if let OpReply::Txn(inner) = reply {
            nested(inner, change);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(25))]

    #[test]
    fn a_replica_that_nobody_asks_differs_in_nothing_but_what_it_reads(
        commands in prop::collection::vec(common::command(), 1..80),
    ) {
        let mut log: Vec<_> = (1..).zip(&commands).map(|(index, command)| entry(index, command)).collect();
        let (mut asked, root) = replay(&log, &[3], false);
        log.iter_mut().for_each(|entry| entry.asked = false);
        let (unasked, same_root) = replay(&log, &[3], false);
        prop_assert_eq!(root, same_root);
        for outcome in &mut asked {
            if let Ok(reply) = &mut outcome.result {
                without_what_was_read(reply);
            }
        }
        prop_assert_eq!(asked, unasked);
    }
}

/// Every kind of entry moves the index and the data in one write: after a crash at any point both are from the same moment.
#[test]
fn every_entry_kind_advances_the_persisted_index() {
    let dir = tempfile::tempdir().unwrap();
    let member = Command::SetMember(tally_apply::Member {
        id: 5,
        name: "five".to_owned(),
        client_urls: Vec::new(),
        directory: [5; 16],
    });
    let commands = [
        put("a", "1"),
        Command::DeleteRange(tally_mvcc::DeleteRequest {
            range: tally_mvcc::KeyRange::single("nothing".into()).unwrap(),
            prev_kv: false,
        }),
        Command::Txn(tally_mvcc::TxnRequest::default()),
        Command::Compact { revision: 2 },
        Command::Compact { revision: 2 }, // refused: compacted already
        Command::SetFeatureLevel { level: 1 },
        member.clone(),
        Command::RemoveMember { id: 5 },
        member, // refused: removed
        Command::LeaseGrant { id: 7, ttl_s: 10 },
        Command::LeaseGrant { id: 7, ttl_s: 10 }, // refused: exists
        Command::LeaseCheckpoint { term: 1, remaining: vec![(7, 5)] },
        Command::LeaseExpire { term: 2, ids: vec![7] }, // refused: another term
        Command::LeaseExpire { term: 1, ids: vec![7] },
        Command::LeaseRevoke { id: 7 }, // refused: gone
    ];
    let mut log: Vec<Committed> = (1..).zip(&commands).map(|(index, command)| entry(index, command)).collect();
    let next = log.len() as u64 + 1;
    log.push(Committed { index: next, term: 2, body: Body::Blank, asked: true });
    log.push(Committed { index: next + 1, term: 2, body: Body::Membership("voters".into()), asked: true });
    for item in &log {
        let (backend, mut applier, _reads) = open(dir.path());
        let outcomes = applier.apply(std::slice::from_ref(item)).unwrap();
        assert_eq!(outcomes.len(), 1);
        backend.sync().unwrap();
        drop((backend, applier, _reads));
        let (backend, applier, reads) = open(dir.path());
        assert_eq!((applier.applied().index, applier.applied().term), (item.index, item.term));
        assert_eq!(backend.applied(), reads.applied());
    }
    let (_, applier, _) = open(dir.path());
    assert_eq!(applier.applied().membership, "voters");
}

#[test]
fn an_undecodable_committed_entry_stops_the_replica_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let (_backend, mut applier, reads) = open(dir.path());
    applier.apply(&[entry(1, &put("a", "1"))]).unwrap();
    let bad = Committed { index: 3, term: 1, body: Body::Command(vec![1, 250].into()), asked: true };
    let error = applier.apply(&[entry(2, &put("b", "2")), bad]).unwrap_err();
    assert!(matches!(error, Fatal::Decode { index: 3, .. }), "{error}");
    assert!(matches!(applier.apply(&[entry(2, &put("b", "2"))]).unwrap_err(), Fatal::Stopped));
    assert_eq!(reads.applied_index(), 1);
    assert_eq!(reads.kv().revision(), 2);
}

#[test]
fn entries_out_of_order_stop_the_replica() {
    for index in [1, 3] {
        let dir = tempfile::tempdir().unwrap();
        let (_backend, mut applier, _reads) = open(dir.path());
        applier.apply(&[entry(1, &put("a", "1"))]).unwrap();
        let error = applier.apply(&[entry(index, &put("b", "2"))]).unwrap_err();
        assert!(matches!(error, Fatal::Order { applied: 1, .. }), "{error}");
    }
}

/// Data changed behind the applied index is found at open: the root does not lie.
#[test]
fn state_that_does_not_match_its_root_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (backend, mut applier, reads) = open(dir.path());
    let outcomes = applier.apply(&[entry(1, &put("a", "1")), entry(2, &put("b", "2"))]).unwrap();
    assert!(matches!(outcomes[1].result, Ok(Reply::Put(_))));
    let mut planted = backend.batch();
    let key = tally_mvcc::Revision::new(3, 0).to_key();
    let record = backend.get(Bucket::Kv, &key).unwrap().unwrap();
    let changed: Vec<u8> = record.iter().map(|byte| if *byte == b'2' { b'3' } else { *byte }).collect();
    assert_ne!(&changed[..], &record[..]);
    planted.put(Bucket::Kv, &key, &changed);
    planted.commit_housekeeping().unwrap();
    backend.sync().unwrap();
    drop((backend, applier, reads));
    let identity = Identity { cluster_id: 1, member_id: 2, directory_uuid: [3; 16] };
    let backend = Backend::open(Config::new(dir.path(), identity)).unwrap();
    let Err(error) = Applier::open(backend, tally_mvcc::Options::default()) else { panic!("opened") };
    assert!(matches!(error, OpenError::Root { index: 2, .. }), "{error}");
}

#[test]
fn checkpoints_do_not_depend_on_how_entries_are_chunked() {
    let commands: Vec<_> = (1..=450_u32)
        .map(|number| match number % 5 {
            0 => Command::DeleteRange(tally_mvcc::DeleteRequest {
                range: tally_mvcc::KeyRange::new(format!("k{}", number % 37).into(), Default::default()).unwrap(),
                prev_kv: false,
            }),
            _ => put(&format!("k{}", number % 37), &number.to_string()),
        })
        .collect();
    let entries: Vec<Committed> = (1..).zip(&commands).map(|(index, command)| entry(index, command)).collect();
    let checkpoints = |chunk: usize| {
        let dir = tempfile::tempdir().unwrap();
        let (_backend, mut applier, reads) = open(dir.path());
        entries.chunks(chunk).for_each(|chunk| drop(applier.apply(chunk).unwrap()));
        reads.checkpoints()
    };
    let one_by_one = checkpoints(1);
    assert_eq!(one_by_one.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [100, 200, 300, 400]);
    assert!(one_by_one.windows(2).all(|pair| pair[0].1 != pair[1].1));
    for chunk in [7, 100, 450] {
        assert_eq!(checkpoints(chunk), one_by_one, "chunks of {chunk}");
    }
}
