//! Log entries: openraft's form, the log's form, and a form for people.

use bytes::{BufMut, Bytes, BytesMut};
use openraft::EntryPayload;
use tally_apply::{Body, Committed};
use tally_wal::{Entry as WalEntry, LogIndex};

use crate::codec::{
    CodecError, KIND_BLANK, KIND_COMMAND, KIND_MEMBERSHIP, KIND_PROPOSAL, PROPOSAL_HEADER, decode_membership,
    encode_in_force, encode_membership,
};
use crate::command::{LogPayload, Stamp};
use crate::types::{Membership, RaftEntry, RaftLogId, StoredMembership, log_id, log_index, term};

const BLANK: &[u8] = &[KIND_BLANK];

/// openraft's entry as the log stores it. A command's bytes are shared, not copied.
pub(crate) fn to_wal(entry: RaftEntry) -> WalEntry {
    let (index, term) = (LogIndex::new(log_index(entry.log_id.index)), term(&entry.log_id));
    let payload = match entry.payload {
        EntryPayload::Blank => Bytes::from_static(BLANK),
        EntryPayload::Normal(command) => command.into_bytes(),
        EntryPayload::Membership(membership) => {
            let mut payload = BytesMut::with_capacity(128);
            payload.put_u8(KIND_MEMBERSHIP);
            encode_membership(&membership, &mut payload);
            payload.freeze()
        }
    };
    WalEntry { index, term, payload }
}

/// The log's entry as openraft wants it.
pub(crate) fn from_wal(entry: WalEntry) -> Result<RaftEntry, CodecError> {
    let zero = CodecError::Malformed { what: "log entry", detail: "its index is 0" };
    let log_id = log_id(entry.index.get(), entry.term).ok_or(zero)?;
    let payload = match kind(&entry.payload)? {
        KIND_BLANK => EntryPayload::Blank,
        KIND_COMMAND => EntryPayload::Normal(LogPayload::new(entry.payload)),
        KIND_PROPOSAL => {
            proposed(&entry.payload)?;
            EntryPayload::Normal(LogPayload::new(entry.payload))
        }
        KIND_MEMBERSHIP => EntryPayload::Membership(decode_membership(&entry.payload[1..])?),
        found => return Err(CodecError::Kind { found }),
    };
    Ok(RaftEntry { log_id, payload })
}

/// openraft's entry as the state machine applies it, and who waits for its outcome, if it says so: whether that is
/// somebody here is for the caller to see.
///
/// Invariant: a command that was meant for another term than its entry's does nothing, on every replica alike. So once
/// an entry of a later term is applied, whoever proposed it for an earlier term knows that it never will be.
pub(crate) fn to_committed(entry: RaftEntry) -> (Committed, Option<Stamp>) {
    let (index, term) = (log_index(entry.log_id.index), term(&entry.log_id));
    let (body, stamp) = match entry.payload {
        EntryPayload::Blank => (Body::Blank, None),
        EntryPayload::Normal(command) => match command.stamp() {
            Some(stamp) if stamp.term != term => (Body::Blank, None),
            stamp => (Body::Command(command.command()), stamp),
        },
        EntryPayload::Membership(membership) => (Body::Membership(in_force(entry.log_id, membership)), None),
    };
    (Committed { index, term, body, asked: false }, stamp)
}

/// The log's entry as the state machine applies it, for replay.
pub(crate) fn replayed(entry: WalEntry) -> Result<Committed, CodecError> {
    from_wal(entry).map(|entry| to_committed(entry).0)
}

fn in_force(id: RaftLogId, membership: Membership) -> Bytes {
    encode_in_force(&StoredMembership::new(Some(id), membership))
}

fn kind(payload: &[u8]) -> Result<u8, CodecError> {
    payload.first().copied().ok_or(CodecError::Malformed { what: "log entry", detail: "it has no payload" })
}

/// The command of a proposal.
fn proposed(payload: &[u8]) -> Result<&[u8], CodecError> {
    let detail = "it is a proposal and ends inside its header";
    payload.get(PROPOSAL_HEADER..).ok_or(CodecError::Malformed { what: "log entry", detail })
}

/// A log entry's payload, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryView<'a> {
    /// A new leader's first entry.
    Blank,
    /// An encoded command; `tally_apply::Command::decode` reads it.
    Command(&'a [u8]),
    /// An encoded command that does something only in an entry of the term that it was meant for.
    Proposal {
        /// The term that it was meant for.
        term: u64,
        /// The encoded command.
        command: &'a [u8],
    },
    /// Who votes from here on.
    Membership(MembershipView),
    /// Something this program cannot read, and why.
    Unreadable(CodecError),
}

/// A consensus membership, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MembershipView {
    /// The voters; two sets while the membership is changing, and then a majority of both must agree.
    pub voters: Vec<Vec<u64>>,
    /// Every member, voting or not, with its peer URLs.
    pub members: Vec<(u64, Vec<String>)>,
}

impl MembershipView {
    pub(crate) fn new(membership: &Membership) -> MembershipView {
        MembershipView {
            voters: membership.get_joint_config().iter().map(|set| set.iter().copied().collect()).collect(),
            members: membership.nodes().map(|(id, peer)| (*id, peer.urls.clone())).collect(),
        }
    }
}

/// Reads the payload of a log entry, as `tally wal dump` shows it.
///
/// ```
/// use tally_raftnode::{EntryView, describe_entry};
/// assert_eq!(describe_entry(&[1]), EntryView::Blank);
/// assert!(matches!(describe_entry(&[99]), EntryView::Unreadable(_)));
/// ```
pub fn describe_entry(payload: &[u8]) -> EntryView<'_> {
    match kind(payload) {
        Ok(KIND_BLANK) => EntryView::Blank,
        Ok(KIND_COMMAND) => EntryView::Command(&payload[1..]),
        Ok(KIND_PROPOSAL) => match (Stamp::read(payload), proposed(payload)) {
            (Some(Stamp { term, .. }), Ok(command)) => EntryView::Proposal { term, command },
            (_, Err(error)) => EntryView::Unreadable(error),
            (None, Ok(_)) => EntryView::Unreadable(CodecError::Kind { found: KIND_PROPOSAL }),
        },
        Ok(KIND_MEMBERSHIP) => match decode_membership(&payload[1..]) {
            Ok(membership) => EntryView::Membership(MembershipView::new(&membership)),
            Err(error) => EntryView::Unreadable(error),
        },
        Ok(found) => EntryView::Unreadable(CodecError::Kind { found }),
        Err(error) => EntryView::Unreadable(error),
    }
}
