//! Members as replicated state: removed ids are used up for ever, a data directory is never exchanged, and records of older
//! versions open (promise 9; bug catalogue class F: ids that come back, members that lost their data).
#![allow(clippy::unwrap_used)]

mod common;

use common::{entry, open, put};
use tally_apply::{AlarmAction, AlarmCommand, AlarmKind, Applier, Command, Member, OpenError, Rejection, Reply};
use tally_backend::{Applied, Backend, Bucket, Config, Identity};

fn member(id: u64, name: &str, directory: u8) -> Member {
    let client_urls = vec![format!("http://{name}:2379")];
    Member { id, name: name.to_owned(), client_urls, directory: [directory; 16] }
}

fn set(id: u64, name: &str, directory: u8) -> Command {
    Command::SetMember(member(id, name, directory))
}

#[test]
fn a_removed_id_never_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let (backend, mut applier, reads) = open(dir.path());
    let log = [
        entry(1, &set(7, "a", 1)),
        entry(2, &set(9, "b", 2)),
        entry(3, &Command::RemoveMember { id: 7 }),
        entry(4, &set(7, "a", 1)),
        entry(5, &Command::RemoveMember { id: 5 }), // added and removed before it ever started
        entry(6, &set(5, "c", 3)),
    ];
    let outcomes = applier.apply(&log).unwrap();
    assert_eq!(outcomes[2].result, Ok(Reply::Done));
    assert_eq!(outcomes[3].result, Err(Rejection::MemberRemoved { id: 7 }));
    assert_eq!(outcomes[5].result, Err(Rejection::MemberRemoved { id: 5 }));
    assert_eq!(*reads.members(), [member(9, "b", 2)]);
    assert_eq!(*reads.removed_members(), [5, 7]);

    let before = reads.applied();
    backend.sync().unwrap();
    drop((backend, applier, reads));
    let (_backend, mut applier, reads) = open(dir.path());
    assert_eq!(reads.applied(), before);
    assert_eq!(*reads.removed_members(), [5, 7], "a tombstone survives a restart");
    let again = applier.apply(&[entry(7, &set(7, "a", 1))]).unwrap();
    assert_eq!(again[0].result, Err(Rejection::MemberRemoved { id: 7 }));
}

#[test]
fn removing_twice_is_once_and_each_removal_is_part_of_the_root() {
    let dir = tempfile::tempdir().unwrap();
    let (_backend, mut applier, reads) = open(dir.path());
    let mut roots = Vec::new();
    let log = [
        put("k", "v"),
        set(7, "a", 1),
        Command::RemoveMember { id: 7 },
        Command::RemoveMember { id: 7 },
        Command::RemoveMember { id: 8 },
    ];
    for (index, command) in (1..).zip(&log) {
        assert!(applier.apply(&[entry(index, command)]).unwrap()[0].result.is_ok());
        roots.push(reads.applied().root);
    }
    assert_eq!(roots[2], roots[3], "a second removal changes nothing");
    for (at, other) in [(0, 1), (1, 2), (0, 2), (3, 4)] {
        assert_ne!(roots[at], roots[other], "after {:?} and after {:?}", log[at], log[other]);
    }
}

#[test]
fn a_member_keeps_its_data_directory() {
    let dir = tempfile::tempdir().unwrap();
    let (_backend, mut applier, reads) = open(dir.path());
    let log = [
        entry(1, &set(7, "a", 0)), // a version that did not say
        entry(2, &set(7, "a", 1)),
        entry(3, &set(7, "renamed", 1)),
        entry(4, &set(7, "a", 2)), // wiped and restarted
        entry(5, &set(7, "a", 0)), // and one that does not say cannot take the record over either
    ];
    let outcomes = applier.apply(&log).unwrap();
    for accepted in &outcomes[..3] {
        assert_eq!(accepted.result, Ok(Reply::Done));
    }
    for refused in &outcomes[3..] {
        assert_eq!(refused.result, Err(Rejection::MemberDirectory { id: 7 }));
    }
    assert_eq!(*reads.members(), [member(7, "renamed", 1)]);
}

/// Alarms stop clients, not the administration that is needed to get out of them.
#[test]
fn members_come_and_go_under_every_alarm() {
    let dir = tempfile::tempdir().unwrap();
    let (_backend, mut applier, reads) = open(dir.path());
    let raise = |kind| Command::Alarm(AlarmCommand { action: AlarmAction::Activate, member_id: 7, kind });
    let log = [
        entry(1, &raise(AlarmKind::NoSpace)),
        entry(2, &raise(AlarmKind::Corrupt)),
        entry(3, &set(7, "a", 1)),
        entry(4, &Command::RemoveMember { id: 7 }),
    ];
    let outcomes = applier.apply(&log).unwrap();
    assert!(outcomes.iter().all(|outcome| outcome.result.is_ok()));
    assert_eq!(*reads.removed_members(), [7]);
}

/// Two histories that end in the same members have the same root, however the records came to be.
#[test]
fn the_root_is_of_the_members_not_of_their_history() {
    let root = |commands: &[Command]| {
        let dir = tempfile::tempdir().unwrap();
        let (_backend, mut applier, reads) = open(dir.path());
        let log: Vec<_> = (1..).zip(commands).map(|(index, command)| entry(index, command)).collect();
        applier.apply(&log).unwrap();
        reads.applied().root
    };
    let direct = root(&[set(1, "a", 1), Command::RemoveMember { id: 2 }]);
    let detour = root(&[
        set(2, "b", 2),
        set(1, "old", 0),
        Command::RemoveMember { id: 2 },
        set(1, "a", 1),
        set(1, "x", 9), // refused
    ]);
    assert_eq!(direct, detour);
    assert_ne!(direct, root(&[set(1, "a", 1)]));
}

/// What version 0.1 stored before peer URLs left the record: the record, and the root that it kept with index 1.
const OLD_COMMAND: &str = include_str!("golden/commands-1.hex");
const OLD_ROOT: u128 = 0x615f_6601_ee53_17fd_ff71_60bb_219f_766c;

fn old_command() -> Vec<u8> {
    let line = OLD_COMMAND.lines().nth(7).unwrap();
    (0..line.len()).step_by(2).map(|at| u8::from_str_radix(&line[at..at + 2], 16).unwrap()).collect()
}

fn plant(path: &std::path::Path, record: &[u8], root: u128) {
    let identity = Identity { cluster_id: 1, member_id: 2, directory_uuid: [3; 16] };
    let backend = Backend::open(Config::new(path, identity)).unwrap();
    let mut batch = backend.batch();
    batch.put(Bucket::Member, &u64::MAX.to_be_bytes(), record);
    batch.commit(&Applied { index: 1, term: 1, root, membership: "voters".into() }).unwrap();
    backend.sync().unwrap();
}

#[test]
fn a_record_with_peer_urls_opens_and_counts_as_one_without() {
    let dir = tempfile::tempdir().unwrap();
    // The record was the command's fields, without its version and tag.
    plant(dir.path(), &old_command()[2..], OLD_ROOT);
    let (backend, mut applier, reads) = open(dir.path());
    let expected =
        Member { id: u64::MAX, name: "m1".into(), client_urls: vec!["http://a:2379".into()], directory: [0; 16] };
    assert_eq!(*reads.members(), std::slice::from_ref(&expected).to_vec()[..]);

    // A replica that applies the same old entry only now agrees with the one that had applied it before the change.
    let other = tempfile::tempdir().unwrap();
    let (_other_backend, mut late, late_reads) = open(other.path());
    let old_entry = tally_apply::Committed {
        index: 1,
        term: 1,
        body: tally_apply::Body::Command(old_command().into()),
        asked: false,
    };
    late.apply(&[old_entry]).unwrap();
    assert_eq!(late_reads.members(), reads.members());
    assert_eq!(late_reads.applied().root, reads.applied().root);

    // It goes on, and opens again while the record is still stored in its old form, and after it was written anew.
    for (index, command) in [(2, put("k", "v")), (3, Command::SetMember(Member { directory: [4; 16], ..expected }))] {
        applier.apply(&[entry(index, &command)]).unwrap();
        late.apply(&[entry(index, &command)]).unwrap();
        assert_eq!(late_reads.applied().root, reads.applied().root);
    }
    let applied = reads.applied();
    backend.sync().unwrap();
    drop((backend, applier, reads));
    let (_backend, _applier, reads) = open(dir.path());
    assert_eq!(reads.applied(), applied);
    assert_eq!(reads.members()[0].directory, [4; 16]);
}

/// Accepting the old form must not accept anything else.
#[test]
fn a_changed_record_of_either_form_is_refused() {
    let identity = Identity { cluster_id: 1, member_id: 2, directory_uuid: [3; 16] };
    let old = old_command()[2..].to_vec();
    for (from, to) in [(b"a:2379", b"c:2379"), (b"a:2380", b"c:2380")] {
        let at = old.windows(6).position(|window| window == from).unwrap();
        let mut changed = old.clone();
        changed[at..at + 6].copy_from_slice(to);
        let dir = tempfile::tempdir().unwrap();
        plant(dir.path(), &changed, OLD_ROOT);
        let backend = Backend::open(Config::new(dir.path(), identity)).unwrap();
        let Err(error) = Applier::open(backend, tally_mvcc::Options::default()) else { panic!("opened") };
        assert!(matches!(error, OpenError::Root { index: 1, .. }), "{error}");
    }
    // A tombstone under another id.
    let dir = tempfile::tempdir().unwrap();
    plant(dir.path(), &[6 << 2, 9], OLD_ROOT);
    let backend = Backend::open(Config::new(dir.path(), identity)).unwrap();
    let Err(error) = Applier::open(backend, tally_mvcc::Options::default()) else { panic!("opened") };
    assert!(matches!(error, OpenError::Corrupt { what: "member record", .. }), "{error}");
}
