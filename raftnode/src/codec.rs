//! The bytes that this crate puts into the log and the backend. All numbers are big-endian.
//!
//! ```text
//! entry payload   kind u8 | body        1 blank: no body   2 command: the encoded command   3 membership: a membership
//!                                       4 proposal: origin u64 | seq u64 | term u64 | the encoded command
//! vote            version u8 = 1 | term u64 | member u64 | committed u8
//! membership      version u8 = 1 | fields          field: tag u8 | length u32 | value
//!                   tag 1  voters: u64 each        one field, or two while the membership is joint
//!                   tag 2  member: fields          tag 1 id: u64    tag 2 peer URL: UTF-8, one field per URL
//! in force        version u8 = 1 | index u64 | term u64 | membership
//! ```
//! *In force* is what the backend keeps beside the applied index: a membership with the log position it came from. An
//! unknown version, kind or tag is an error that asks for a newer program: guessing about who votes is not an option.
//! Kind 2 was written before members forwarded proposals; it is read, and no longer written.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, Bytes, BytesMut};

use crate::types::{Membership, Peer, RaftVote, StoredMembership, log_id, log_index, term};

pub(crate) const KIND_BLANK: u8 = 1;
pub(crate) const KIND_COMMAND: u8 = 2;
pub(crate) const KIND_MEMBERSHIP: u8 = 3;
pub(crate) const KIND_PROPOSAL: u8 = 4;

/// Bytes of a proposal in front of its command.
pub(crate) const PROPOSAL_HEADER: usize = 1 + 3 * 8;

const VERSION: u8 = 1;
const TAG_VOTERS: u8 = 1;
const TAG_MEMBER: u8 = 2;
const TAG_MEMBER_ID: u8 = 1;
const TAG_MEMBER_URL: u8 = 2;

/// Why bytes of the log or the backend are not what this crate writes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Written by a newer program.
    #[error("the {what} has version {found}, this program reads up to {VERSION}: run a newer version")]
    Version {
        /// What was being read.
        what: &'static str,
        /// The version found.
        found: u8,
    },
    /// A kind of entry that this program does not know.
    #[error("the log entry is of kind {found}, which this program does not know: run a newer version")]
    Kind {
        /// The kind found.
        found: u8,
    },
    /// A field that this program does not know.
    #[error("the {what} has a field {tag} that this program does not know: run a newer version")]
    Tag {
        /// What was being read.
        what: &'static str,
        /// The tag found.
        tag: u8,
    },
    /// The bytes end too early, go on too long, or hold an impossible value.
    #[error("the {what} is malformed: {detail}")]
    Malformed {
        /// What was being read.
        what: &'static str,
        /// What is wrong.
        detail: &'static str,
    },
}

/// Encodes a vote; 18 bytes.
pub(crate) fn encode_vote(vote: &RaftVote) -> Bytes {
    let mut out = BytesMut::with_capacity(18);
    out.put_u8(VERSION);
    out.put_u64(vote.leader_id().term);
    out.put_u64(vote.leader_id().voted_for);
    out.put_u8(u8::from(vote.is_committed()));
    out.freeze()
}

/// Decodes a vote. No bytes are no vote.
pub(crate) fn decode_vote(bytes: &[u8]) -> Result<Option<RaftVote>, CodecError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let mut input = Input::versioned("vote", bytes)?;
    let (term, member) = (input.u64()?, input.u64()?);
    let committed = match input.u8()? {
        0 => false,
        1 => true,
        _ => return Err(input.malformed("the committed flag is neither 0 nor 1")),
    };
    input.end()?;
    Ok(Some(if committed { RaftVote::new_committed(term, member) } else { RaftVote::new(term, member) }))
}

/// Appends a membership.
pub(crate) fn encode_membership(membership: &Membership, out: &mut BytesMut) {
    out.put_u8(VERSION);
    for voters in membership.get_joint_config() {
        out.put_u8(TAG_VOTERS);
        out.put_u32(8 * voters.len() as u32);
        voters.iter().for_each(|id| out.put_u64(*id));
    }
    for (id, peer) in membership.nodes() {
        let urls: usize = peer.urls.iter().map(|url| 5 + url.len()).sum();
        out.put_u8(TAG_MEMBER);
        out.put_u32((5 + 8 + urls) as u32);
        out.put_u8(TAG_MEMBER_ID);
        out.put_u32(8);
        out.put_u64(*id);
        for url in &peer.urls {
            out.put_u8(TAG_MEMBER_URL);
            out.put_u32(url.len() as u32);
            out.put_slice(url.as_bytes());
        }
    }
}

/// Decodes a membership and checks that every voter is a member.
pub(crate) fn decode_membership(bytes: &[u8]) -> Result<Membership, CodecError> {
    let mut input = Input::versioned("membership", bytes)?;
    let (mut configs, mut members) = (Vec::new(), BTreeMap::new());
    while let Some((tag, value)) = input.field()? {
        match tag {
            TAG_VOTERS => configs.push(decode_voters(value)?),
            TAG_MEMBER => {
                let (id, peer) = decode_member(value)?;
                members.insert(id, peer);
            }
            tag => return Err(CodecError::Tag { what: "membership", tag }),
        }
    }
    if !(1..=2).contains(&configs.len()) || configs.iter().any(BTreeSet::is_empty) {
        return Err(input.malformed("it has no voters, or more than two sets of them"));
    }
    Membership::new(configs, members)
        .map_err(|_| CodecError::Malformed { what: "membership", detail: "a voter is not a member" })
}

fn decode_voters(bytes: &[u8]) -> Result<BTreeSet<u64>, CodecError> {
    let mut input = Input { what: "list of voters", rest: bytes };
    let mut voters = BTreeSet::new();
    while !input.rest.is_empty() {
        voters.insert(input.u64()?);
    }
    Ok(voters)
}

fn decode_member(bytes: &[u8]) -> Result<(u64, Peer), CodecError> {
    let mut input = Input { what: "member", rest: bytes };
    let (mut id, mut peer) = (None, Peer::default());
    while let Some((tag, value)) = input.field()? {
        match tag {
            TAG_MEMBER_ID => id = Some(Input { what: "member id", rest: value }.u64()?),
            TAG_MEMBER_URL => peer.urls.push(
                String::from_utf8(value.to_vec())
                    .map_err(|_| CodecError::Malformed { what: "member", detail: "a URL is not UTF-8" })?,
            ),
            tag => return Err(CodecError::Tag { what: "member", tag }),
        }
    }
    let id = id.ok_or(CodecError::Malformed { what: "member", detail: "it has no id" })?;
    Ok((id, peer))
}

/// Encodes the membership in force, for the backend.
pub(crate) fn encode_in_force(stored: &StoredMembership) -> Bytes {
    let Some(id) = stored.log_id() else { return Bytes::new() };
    let mut out = BytesMut::with_capacity(128);
    out.put_u8(VERSION);
    out.put_u64(log_index(id.index));
    out.put_u64(term(id));
    encode_membership(stored.membership(), &mut out);
    out.freeze()
}

/// Decodes the membership in force. No bytes: none has been applied yet.
pub(crate) fn decode_in_force(bytes: &[u8]) -> Result<StoredMembership, CodecError> {
    if bytes.is_empty() {
        return Ok(StoredMembership::default());
    }
    let mut input = Input::versioned("membership in force", bytes)?;
    let (index, term) = (input.u64()?, input.u64()?);
    let id = log_id(index, term).ok_or_else(|| input.malformed("it comes from log index 0"))?;
    Ok(StoredMembership::new(Some(id), decode_membership(input.rest)?))
}

/// A cursor over bytes that knows what it is reading.
struct Input<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    fn versioned(what: &'static str, rest: &'a [u8]) -> Result<Input<'a>, CodecError> {
        let mut input = Input { what, rest };
        match input.u8()? {
            VERSION => Ok(input),
            found => Err(CodecError::Version { what, found }),
        }
    }

    fn malformed(&self, detail: &'static str) -> CodecError {
        CodecError::Malformed { what: self.what, detail }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], CodecError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or_else(|| self.malformed("it ends too early"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, CodecError> {
        Ok(self.take(1)?[0])
    }

    fn u64(&mut self) -> Result<u64, CodecError> {
        let bytes = self.take(8)?;
        Ok(bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn field(&mut self) -> Result<Option<(u8, &'a [u8])>, CodecError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.u8()?;
        let length = self.take(4)?.iter().fold(0, |number, byte| number << 8 | usize::from(*byte));
        Ok(Some((tag, self.take(length)?)))
    }

    fn end(self) -> Result<(), CodecError> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.malformed("it goes on too long")) }
    }
}
