//! The bytes written by format version 1, for ever, and what is refused.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};
use openraft::EntryPayload;
use tally_apply::Body;

use crate::codec::{
    CodecError, decode_in_force, decode_membership, decode_vote, encode_in_force, encode_membership, encode_vote,
};
use crate::command::{LogPayload, Stamp};
use crate::entry::{EntryView, describe_entry, from_wal, to_committed, to_wal};
use crate::types::{Membership, Peer, RaftEntry, RaftVote, StoredMembership, log_id};

fn membership() -> Membership {
    let peer = |url: &str| Peer { urls: vec![url.to_owned()] };
    let members = BTreeMap::from([(1, peer("http://a:1")), (2, Peer::default())]);
    Membership::new(vec![BTreeSet::from([1]), BTreeSet::from([1, 2])], members).unwrap()
}

fn encoded(membership: &Membership) -> Vec<u8> {
    let mut out = BytesMut::new();
    encode_membership(membership, &mut out);
    out.to_vec()
}

/// Membership, version 1: joint voters {1} and {1, 2}; member 1 at http://a:1; member 2 without URLs.
#[rustfmt::skip]
const MEMBERSHIP_1: &[u8] = &[
    1,
    1, 0, 0, 0, 8,   0, 0, 0, 0, 0, 0, 0, 1,
    1, 0, 0, 0, 16,  0, 0, 0, 0, 0, 0, 0, 1,  0, 0, 0, 0, 0, 0, 0, 2,
    2, 0, 0, 0, 28,  1, 0, 0, 0, 8,  0, 0, 0, 0, 0, 0, 0, 1,  2, 0, 0, 0, 10,  b'h', b't', b't', b'p', b':', b'/', b'/', b'a', b':', b'1',
    2, 0, 0, 0, 13,  1, 0, 0, 0, 8,  0, 0, 0, 0, 0, 0, 0, 2,
];

#[test]
fn a_membership_has_the_bytes_it_always_had() {
    assert_eq!(encoded(&membership()), MEMBERSHIP_1);
    assert_eq!(decode_membership(MEMBERSHIP_1), Ok(membership()));
}

#[test]
fn a_vote_has_the_bytes_it_always_had() {
    let vote = RaftVote::new_committed(3, 0x0102);
    let bytes = [1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 1, 2, 1];
    assert_eq!(encode_vote(&vote), &bytes[..]);
    assert_eq!(decode_vote(&bytes), Ok(Some(vote)));
    assert_eq!(decode_vote(&[]), Ok(None));
    assert_eq!(decode_vote(&encode_vote(&RaftVote::new(3, 4))), Ok(Some(RaftVote::new(3, 4))));
}

#[test]
fn the_membership_in_force_keeps_its_position() {
    let stored = StoredMembership::new(log_id(9, 2), membership());
    let bytes = encode_in_force(&stored);
    assert_eq!(&bytes[..17], &[1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 2]);
    assert_eq!(&bytes[17..], MEMBERSHIP_1);
    assert_eq!(decode_in_force(&bytes), Ok(stored));
    assert_eq!(decode_in_force(&encode_in_force(&StoredMembership::default())), Ok(StoredMembership::default()));
}

#[test]
fn every_kind_of_entry_comes_back_and_can_be_described() {
    let old = LogPayload::new(Bytes::from_static(b"\x02command"));
    let stamp = Stamp { origin: 7, seq: 8, term: 5 };
    let command = crate::EncodedCommand::from(Bytes::from_static(b"command")).stamp(stamp);
    let payloads = [
        EntryPayload::Blank,
        EntryPayload::Normal(old),
        EntryPayload::Membership(membership()),
        EntryPayload::Normal(command),
    ];
    for (index, payload) in (1..).zip(payloads) {
        let entry = RaftEntry { log_id: log_id(index, 5).unwrap(), payload };
        let stored = to_wal(RaftEntry { log_id: entry.log_id, payload: entry.payload.clone() });
        assert_eq!((stored.index.get(), stored.term), (index, 5), "the log counts from 1");
        match describe_entry(&stored.payload) {
            EntryView::Blank => assert_eq!(index, 1),
            EntryView::Command(bytes) => assert_eq!((index, bytes), (2, &b"command"[..])),
            EntryView::Proposal { term, command } => assert_eq!((index, term, command), (4, 5, &b"command"[..])),
            EntryView::Membership(view) => {
                assert_eq!((index, view.voters), (3, vec![vec![1], vec![1, 2]]));
                assert_eq!(view.members, vec![(1, vec!["http://a:1".to_owned()]), (2, vec![])]);
            }
            EntryView::Unreadable(error) => panic!("{error}"),
        }
        assert_eq!(from_wal(stored).unwrap().payload, entry.payload);
    }
}

#[test]
fn a_proposal_does_something_only_in_the_term_that_it_was_meant_for() {
    let command = || crate::EncodedCommand::from(Bytes::from_static(b"c"));
    for (term, applied) in [(4, false), (5, true), (6, false)] {
        let payload = EntryPayload::Normal(command().stamp(Stamp { origin: 7, seq: 8, term: 5 }));
        let (committed, stamp) = to_committed(RaftEntry { log_id: log_id(3, term).unwrap(), payload });
        assert_eq!((matches!(committed.body, Body::Command(_)), stamp.is_some()), (applied, applied), "term {term}");
    }
}

#[test]
fn the_header_of_a_proposal_is_as_it_always_was() {
    let payload = crate::EncodedCommand::from(Bytes::from_static(b"c")).stamp(Stamp { origin: 1, seq: 2, term: 3 });
    let golden: &[u8] = b"\x04\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03c";
    assert_eq!(payload.into_bytes(), golden);
}

#[test]
fn what_is_newer_or_cut_short_is_refused_without_a_panic() {
    assert_eq!(decode_membership(&[2]), Err(CodecError::Version { what: "membership", found: 2 }));
    assert_eq!(decode_membership(&[1, 9, 0, 0, 0, 0]), Err(CodecError::Tag { what: "membership", tag: 9 }));
    assert_eq!(describe_entry(&[9]), EntryView::Unreadable(CodecError::Kind { found: 9 }));
    assert!(matches!(describe_entry(&[4; 24]), EntryView::Unreadable(CodecError::Malformed { .. })));
    assert!(matches!(describe_entry(&[]), EntryView::Unreadable(CodecError::Malformed { .. })));
    for cut in 0..MEMBERSHIP_1.len() {
        // A cut between two members would lose one, but no cut may lose a voter: they come first and need their member.
        let decoded = decode_membership(&MEMBERSHIP_1[..cut]);
        assert!(decoded.is_err(), "{cut} bytes: {decoded:?}");
    }
    for cut in 1..18 {
        assert!(decode_vote(&encode_vote(&RaftVote::new(3, 4))[..cut]).is_err());
    }
}
