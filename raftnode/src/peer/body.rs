//! What stands in the bodies of frames, and the codec of entries and their results.
//!
//! ```text
//! position  index u64 | term u64                       index 0: nothing yet; indexes count from 1
//! vote      term u64 | member u64 | committed u8
//! Append    session u64 | vote | prev position | committed position | count u32 | entries
//! entry     index u64 | term u64 | length u32 | payload, as it stands in the log
//! Appended  session u64 | result u8 | ...              1 matching position   2 conflicting position   3 higher vote
//!                                                      4 the member is stopping
//! ```

use bytes::{BufMut, Bytes, BytesMut};
use openraft::raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult};
use tally_wal::{Entry as WalEntry, LogIndex};

use crate::codec::CodecError;
use crate::entry::{from_wal, to_wal};
use crate::types::{RaftLogId, RaftVote, TypeConfig, log_id, log_index, term};

/// No term is higher: that would take an election in every nanosecond of a century.
const TERM_MAX: u64 = 1 << 62;

/// Bytes of a position.
const POSITION_BYTES: usize = 16;
/// Bytes of a vote.
const VOTE_BYTES: usize = 17;
/// Bytes of an append in front of its entries.
const APPEND_BYTES: usize = 8 + VOTE_BYTES + 2 * POSITION_BYTES + 4;
/// Bytes of an entry in front of its payload.
const ENTRY_BYTES: usize = 20;

const RESULT_MATCHING: u8 = 1;
const RESULT_CONFLICT: u8 = 2;
const RESULT_HIGHER_VOTE: u8 = 3;
const RESULT_STOPPING: u8 = 4;

/// A cursor over a body that knows what it is reading. What it takes out shares the body's memory.
pub(super) struct Input {
    what: &'static str,
    rest: Bytes,
}

impl Input {
    pub(super) fn new(what: &'static str, rest: Bytes) -> Input {
        Input { what, rest }
    }

    pub(super) fn malformed(&self, detail: &'static str) -> CodecError {
        CodecError::Malformed { what: self.what, detail }
    }

    pub(super) fn take(&mut self, count: usize) -> Result<Bytes, CodecError> {
        if count > self.rest.len() {
            return Err(self.malformed("it ends too early"));
        }
        Ok(self.rest.split_to(count))
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let array = self.rest.first_chunk::<N>().copied().ok_or_else(|| self.malformed("it ends too early"))?;
        self.rest = self.rest.slice(N..);
        Ok(array)
    }

    pub(super) fn u8(&mut self) -> Result<u8, CodecError> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, CodecError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, CodecError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    pub(super) fn flag(&mut self) -> Result<bool, CodecError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.malformed("a flag is neither 0 nor 1")),
        }
    }

    /// Bytes behind their length.
    pub(super) fn bytes(&mut self) -> Result<Bytes, CodecError> {
        let length = self.u32()? as usize;
        self.take(length)
    }

    pub(super) fn text(&mut self) -> Result<String, CodecError> {
        let bytes = self.bytes()?;
        String::from_utf8(bytes.to_vec()).map_err(|_| self.malformed("a text is not UTF-8"))
    }

    /// A number of things that take at least `least` bytes each: never more than can follow.
    pub(super) fn count(&mut self, least: usize) -> Result<usize, CodecError> {
        let count = self.u32()? as usize;
        if count > self.rest.len() / least {
            return Err(self.malformed("it counts more than it holds"));
        }
        Ok(count)
    }

    pub(super) fn position(&mut self) -> Result<Option<RaftLogId>, CodecError> {
        let (index, term) = (self.u64()?, self.u64()?);
        if index > LogIndex::MAX.get() {
            return Err(self.malformed("an index that no entry can have"));
        }
        self.credible(term)?;
        Ok(log_id(index, term))
    }

    pub(super) fn vote(&mut self) -> Result<RaftVote, CodecError> {
        let (term, member) = (self.u64()?, self.u64()?);
        self.credible(term)?;
        Ok(if self.flag()? { RaftVote::new_committed(term, member) } else { RaftVote::new(term, member) })
    }

    /// Refuses what no number of elections gets to: a term is adopted, written down, and counted on from.
    fn credible(&self, term: u64) -> Result<(), CodecError> {
        if term > TERM_MAX { Err(self.malformed("a term that no election can have")) } else { Ok(()) }
    }

    pub(super) fn end(self) -> Result<(), CodecError> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.malformed("it goes on too long")) }
    }
}

pub(super) fn put_position(out: &mut BytesMut, id: Option<&RaftLogId>) {
    out.put_u64(id.map_or(0, |id| log_index(id.index)));
    out.put_u64(id.map_or(0, term));
}

pub(super) fn put_vote(out: &mut BytesMut, vote: &RaftVote) {
    out.put_u64(vote.leader_id().term);
    out.put_u64(vote.leader_id().voted_for);
    out.put_u8(u8::from(vote.is_committed()));
}

pub(super) fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32(bytes.len() as u32);
    out.put_slice(bytes);
}

/// An append whose entries have the form of the log.
pub(super) struct Append {
    session: u64,
    vote: RaftVote,
    prev: Option<RaftLogId>,
    committed: Option<RaftLogId>,
    entries: Vec<WalEntry>,
}

impl Append {
    pub(super) fn new(session: u64, request: AppendEntriesRequest<TypeConfig>) -> Append {
        let AppendEntriesRequest { vote, prev_log_id, entries, leader_commit } = request;
        let entries = entries.into_iter().map(to_wal).collect();
        Append { session, vote, prev: prev_log_id, committed: leader_commit, entries }
    }

    /// How far the log of a member that takes it reaches, at least.
    pub(super) fn last(&self) -> u64 {
        let prev = self.prev.as_ref().map_or(0, |id| log_index(id.index));
        self.entries.last().map_or(prev, |entry| entry.index.get())
    }

    /// Bytes of the body.
    pub(super) fn bytes(&self) -> usize {
        APPEND_BYTES + self.entries.iter().map(|entry| ENTRY_BYTES + entry.payload.len()).sum::<usize>()
    }

    pub(super) fn encode(&self, out: &mut BytesMut) {
        out.put_u64(self.session);
        put_vote(out, &self.vote);
        put_position(out, self.prev.as_ref());
        put_position(out, self.committed.as_ref());
        out.put_u32(self.entries.len() as u32);
        for entry in &self.entries {
            out.put_u64(entry.index.get());
            out.put_u64(entry.term);
            put_bytes(out, &entry.payload);
        }
    }
}

/// Reads an append, and checks what consensus takes for granted: it comes from a leader, and its entries follow each
/// other without a gap.
pub(super) fn decode_append(body: Bytes) -> Result<(u64, AppendEntriesRequest<TypeConfig>), CodecError> {
    let mut input = Input::new("append", body);
    let (session, vote) = (input.u64()?, input.vote()?);
    let (prev_log_id, leader_commit) = (input.position()?, input.position()?);
    let ahead = |id: &Option<RaftLogId>| id.as_ref().is_some_and(|id| term(id) > vote.leader_id().term);
    if !vote.is_committed() || ahead(&prev_log_id) || ahead(&leader_commit) {
        return Err(input.malformed("it does not come from a leader of its term"));
    }
    let count = input.count(ENTRY_BYTES)?;
    let mut entries = Vec::with_capacity(count);
    let mut last = (prev_log_id.as_ref().map_or(0, |id| log_index(id.index)), prev_log_id.as_ref().map_or(0, term));
    for _ in 0..count {
        let (index, term) = (input.u64()?, input.u64()?);
        if index > LogIndex::MAX.get() || index != last.0 + 1 || term < last.1 || term > vote.leader_id().term {
            return Err(input.malformed("its entries do not follow each other"));
        }
        last = (index, term);
        entries.push(from_wal(WalEntry { index: LogIndex::new(index), term, payload: input.bytes()? })?);
    }
    input.end()?;
    Ok((session, AppendEntriesRequest { vote, prev_log_id, entries, leader_commit }))
}

/// What the follower says to one append.
pub(super) type Appended = Result<StreamAppendResult<TypeConfig>, Stopping>;

/// The follower is stopping, or has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the member is stopping")]
pub(super) struct Stopping;

pub(super) fn put_appended(out: &mut BytesMut, session: u64, result: &Appended) {
    out.put_u64(session);
    match result {
        Ok(Ok(matching)) => {
            out.put_u8(RESULT_MATCHING);
            put_position(out, matching.as_ref());
        }
        Ok(Err(StreamAppendError::Conflict(id))) => {
            out.put_u8(RESULT_CONFLICT);
            put_position(out, Some(id));
        }
        Ok(Err(StreamAppendError::HigherVote(vote))) => {
            out.put_u8(RESULT_HIGHER_VOTE);
            put_vote(out, vote);
        }
        Err(Stopping) => out.put_u8(RESULT_STOPPING),
    }
}

pub(super) fn decode_appended(body: Bytes) -> Result<(u64, Appended), CodecError> {
    let mut input = Input::new("result of an append", body);
    let session = input.u64()?;
    let result = match input.u8()? {
        RESULT_MATCHING => Ok(Ok(input.position()?)),
        RESULT_CONFLICT => {
            let id = input.position()?.ok_or_else(|| input.malformed("nothing cannot conflict"))?;
            Ok(Err(StreamAppendError::Conflict(id)))
        }
        RESULT_HIGHER_VOTE => Ok(Err(StreamAppendError::HigherVote(input.vote()?))),
        RESULT_STOPPING => Err(Stopping),
        _ => return Err(input.malformed("an unknown result")),
    };
    input.end()?;
    Ok((session, result))
}
