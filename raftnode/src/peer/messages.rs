//! The bodies of calls and their answers, behind the id of the call.
//!
//! ```text
//! Vote, PreVote  vote | last position | transfer u8          Voted        vote | granted u8 | last position
//! Transfer       leader's vote | to u64 | last position      Transferred  0 | 1 expected vote, actual vote
//!                                                                           | 2 expected position, actual position
//! ReadIndex      (nothing)                                   ReadAt       0 index u64 | 1 no leader | 2 no quorum
//! Change         1 add: id u64, learner u8, URLs | 2 remove: id | 3 update: id, URLs | 4 promote: id
//! Ask            kind u8 | length u32 | bytes         Answer       0 not the leader | 1 length u32, bytes
//! Changed        0 | 1 u8 error, id u64, URL                  URLs         count u32, each a length u32 and UTF-8
//! ```

use bytes::{BufMut, Bytes, BytesMut};
use openraft::raft::{TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse};

use super::body::{Input, put_bytes, put_position, put_vote};
use crate::barrier::BarrierError;
use crate::codec::CodecError;
use crate::member::{ClusterView, MemberChange, MemberError, PeerMember};
use crate::types::TypeConfig;

pub(super) fn put_vote_request(out: &mut BytesMut, request: &VoteRequest<TypeConfig>) {
    put_vote(out, &request.vote);
    put_position(out, request.last_log_id.as_ref());
    out.put_u8(u8::from(request.leadership_transfer));
}

pub(super) fn vote_request(mut input: Input) -> Result<VoteRequest<TypeConfig>, CodecError> {
    let (vote, last_log_id) = (input.vote()?, input.position()?);
    let leadership_transfer = input.flag()?;
    input.end()?;
    Ok(VoteRequest { vote, last_log_id, leadership_transfer })
}

pub(super) fn put_vote_response(out: &mut BytesMut, response: &VoteResponse<TypeConfig>) {
    put_vote(out, &response.vote);
    out.put_u8(u8::from(response.vote_granted));
    put_position(out, response.last_log_id.as_ref());
}

pub(super) fn vote_response(mut input: Input) -> Result<VoteResponse<TypeConfig>, CodecError> {
    let (vote, vote_granted, last_log_id) = (input.vote()?, input.flag()?, input.position()?);
    input.end()?;
    Ok(VoteResponse { vote, vote_granted, last_log_id })
}

pub(super) fn put_transfer(out: &mut BytesMut, request: &TransferLeaderRequest<TypeConfig>) {
    put_vote(out, request.from_leader());
    out.put_u64(*request.to_node_id());
    put_position(out, request.last_log_id());
}

pub(super) fn transfer(mut input: Input) -> Result<TransferLeaderRequest<TypeConfig>, CodecError> {
    let (from, to, last) = (input.vote()?, input.u64()?, input.position()?);
    input.end()?;
    Ok(TransferLeaderRequest::new(from, to, last))
}

pub(super) fn put_transferred(out: &mut BytesMut, response: &TransferLeaderResponse<TypeConfig>) {
    match response {
        Ok(()) => out.put_u8(0),
        Err(TransferLeaderError::VoteChanged { expected, actual }) => {
            out.put_u8(1);
            put_vote(out, expected);
            put_vote(out, actual);
        }
        Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
            out.put_u8(2);
            put_position(out, expected.as_ref());
            put_position(out, actual.as_ref());
        }
    }
}

pub(super) fn transferred(mut input: Input) -> Result<TransferLeaderResponse<TypeConfig>, CodecError> {
    let response = match input.u8()? {
        0 => Ok(()),
        1 => Err(TransferLeaderError::VoteChanged { expected: input.vote()?, actual: input.vote()? }),
        2 => Err(TransferLeaderError::LogNotFlushed { expected: input.position()?, actual: input.position()? }),
        _ => return Err(input.malformed("an unknown result")),
    };
    input.end()?;
    Ok(response)
}

/// What is wrong with the peer that could not confirm an index is not the business of the one that asked: it has no
/// leader there, or no quorum.
pub(super) fn put_read_at(out: &mut BytesMut, result: &Result<u64, BarrierError>) {
    match result {
        Ok(index) => {
            out.put_u8(0);
            out.put_u64(*index);
        }
        Err(BarrierError::NoLeader | BarrierError::Stopped | BarrierError::Fatal(_)) => out.put_u8(1),
        Err(BarrierError::NoQuorum) => out.put_u8(2),
    }
}

pub(super) fn read_at(mut input: Input) -> Result<Result<u64, BarrierError>, CodecError> {
    let result = match input.u8()? {
        0 => Ok(input.u64()?),
        1 => Err(BarrierError::NoLeader),
        2 => Err(BarrierError::NoQuorum),
        _ => return Err(input.malformed("an unknown result")),
    };
    input.end()?;
    Ok(result)
}

pub(super) fn put_ask(out: &mut BytesMut, kind: u8, question: &[u8]) {
    out.put_u8(kind);
    put_bytes(out, question);
}

pub(super) fn ask(mut input: Input) -> Result<(u8, Bytes), CodecError> {
    let asked = (input.u8()?, input.bytes()?);
    input.end()?;
    Ok(asked)
}

pub(super) fn put_answer(out: &mut BytesMut, answer: Option<&Bytes>) {
    out.put_u8(u8::from(answer.is_some()));
    if let Some(answer) = answer {
        put_bytes(out, answer);
    }
}

pub(super) fn answer(mut input: Input) -> Result<Option<Bytes>, CodecError> {
    let answer = if input.flag()? { Some(input.bytes()?) } else { None };
    input.end()?;
    Ok(answer)
}

fn put_urls(out: &mut BytesMut, urls: &[String]) {
    out.put_u32(urls.len() as u32);
    urls.iter().for_each(|url| put_bytes(out, url.as_bytes()));
}

fn urls(input: &mut Input) -> Result<Vec<String>, CodecError> {
    let count = input.count(4)?;
    (0..count).map(|_| input.text()).collect()
}

pub(super) fn put_change(out: &mut BytesMut, change: &MemberChange) {
    match change {
        MemberChange::Add { id, peer_urls, is_learner } => {
            out.put_u8(1);
            out.put_u64(*id);
            out.put_u8(u8::from(*is_learner));
            put_urls(out, peer_urls);
        }
        MemberChange::Remove { id } => {
            out.put_u8(2);
            out.put_u64(*id);
        }
        MemberChange::Update { id, peer_urls } => {
            out.put_u8(3);
            out.put_u64(*id);
            put_urls(out, peer_urls);
        }
        MemberChange::Promote { id } => {
            out.put_u8(4);
            out.put_u64(*id);
        }
    }
}

pub(super) fn change(mut input: Input) -> Result<MemberChange, CodecError> {
    let (tag, id) = (input.u8()?, input.u64()?);
    let change = match tag {
        1 => {
            let is_learner = input.flag()?;
            MemberChange::Add { id, is_learner, peer_urls: urls(&mut input)? }
        }
        2 => MemberChange::Remove { id },
        3 => MemberChange::Update { id, peer_urls: urls(&mut input)? },
        4 => MemberChange::Promote { id },
        _ => return Err(input.malformed("an unknown change")),
    };
    input.end()?;
    Ok(change)
}

pub(super) fn put_changed(out: &mut BytesMut, result: &Result<(), MemberError>) {
    let Err(error) = result else { return out.put_u8(0) };
    let (code, number, url) = match error {
        MemberError::NotFound { id } => (1, *id, ""),
        MemberError::IdExists { id } => (2, *id, ""),
        MemberError::PeerUrlExists { url } => (3, 0, url.as_str()),
        MemberError::TooManyLearners { limit } => (4, *limit as u64, ""),
        MemberError::NotLearner { id } => (5, *id, ""),
        MemberError::LearnerNotReady { id } => (6, *id, ""),
        MemberError::NotEnoughStarted => (7, 0, ""),
        MemberError::Unhealthy => (8, 0, ""),
        MemberError::Busy => (9, 0, ""),
        MemberError::NoLeader => (10, 0, ""),
        // A leader that stops in the middle does not know what becomes of the change.
        MemberError::Unclear | MemberError::Stopped | MemberError::Fatal(_) => (11, 0, ""),
    };
    out.put_u8(1);
    out.put_u8(code);
    out.put_u64(number);
    put_bytes(out, url.as_bytes());
}

pub(super) fn changed(mut input: Input) -> Result<Result<(), MemberError>, CodecError> {
    if !input.flag()? {
        input.end()?;
        return Ok(Ok(()));
    }
    let (code, id, url) = (input.u8()?, input.u64()?, input.text()?);
    let error = match code {
        1 => MemberError::NotFound { id },
        2 => MemberError::IdExists { id },
        3 => MemberError::PeerUrlExists { url },
        4 => MemberError::TooManyLearners { limit: usize::try_from(id).unwrap_or(usize::MAX) },
        5 => MemberError::NotLearner { id },
        6 => MemberError::LearnerNotReady { id },
        7 => MemberError::NotEnoughStarted,
        8 => MemberError::Unhealthy,
        9 => MemberError::Busy,
        10 => MemberError::NoLeader,
        11 => MemberError::Unclear,
        _ => return Err(input.malformed("an unknown error")),
    };
    input.end()?;
    Ok(Err(error))
}

/// The view of a cluster: cluster u64, member u64, leader (flag u8, id u64), members, removed ids; a member is id u64,
/// learner u8, URLs, name.
pub(super) fn put_view(out: &mut BytesMut, view: &ClusterView) {
    out.put_u64(view.cluster_id);
    out.put_u64(view.member_id);
    out.put_u8(u8::from(view.leader.is_some()));
    out.put_u64(view.leader.unwrap_or(0));
    out.put_u32(view.members.len() as u32);
    for (member, name) in &view.members {
        out.put_u64(member.id);
        out.put_u8(u8::from(member.is_learner));
        put_urls(out, &member.peer_urls);
        put_bytes(out, name.as_bytes());
    }
    out.put_u32(view.removed.len() as u32);
    view.removed.iter().for_each(|id| out.put_u64(*id));
}

pub(super) fn view(body: Bytes) -> Result<ClusterView, CodecError> {
    let mut input = Input::new("view of a cluster", body);
    let (cluster_id, member_id) = (input.u64()?, input.u64()?);
    let (has_leader, leader) = (input.flag()?, input.u64()?);
    let mut members = Vec::new();
    for _ in 0..input.count(17)? {
        let (id, is_learner, peer_urls) = (input.u64()?, input.flag()?, urls(&mut input)?);
        members.push((PeerMember { id, peer_urls, is_learner }, input.text()?));
    }
    let removed = (0..input.count(8)?).map(|_| input.u64()).collect::<Result<_, _>>()?;
    input.end()?;
    Ok(ClusterView { cluster_id, member_id, leader: has_leader.then_some(leader), members, removed })
}
