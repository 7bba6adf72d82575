//! openraft's type parameters, and the one place where its positions become ours.
//!
//! openraft counts log entries from 0, while everything else in Tally (log files, backend, metrics, headers) counts
//! them from 1, as etcd does, and keeps 0 for "nothing yet". The shift happens in the functions below and nowhere else.
//! Ids are those of standard Raft: one leader per term, so an entry is identified by its term and index alone.

use openraft::impls::leader_id_std::LeaderId;
use openraft::impls::{BoxedErrorSource, InlineBatch, ProgressResponder, TokioRuntime};
use openraft::vote::RaftLeaderId;
use openraft::{Entry, EntryPayload, LogId, OptionalSend, RaftTypeConfig};
use tally_wal::{LogIndex, LogPosition};

use crate::command::LogPayload;
use crate::snapshot::Checkpoint;

/// The types openraft is built over.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Ord, PartialOrd)]
pub(crate) struct TypeConfig;

impl RaftTypeConfig for TypeConfig {
    type D = LogPayload;
    /// Outcomes do not travel through openraft: each member's own state machine answers those who wait there.
    type R = ();
    type NodeId = u64;
    type Node = Peer;
    type Term = u64;
    type LeaderId = LeaderId<u64, u64>;
    type Vote = openraft::Vote<Self::LeaderId>;
    type Payload = EntryPayload<Self::D, Self::NodeId, Self::Node>;
    type Entry = Entry<CommittedLeaderId, Self::Payload>;
    type AsyncRuntime = TokioRuntime;
    type Responder<T>
        = ProgressResponder<Self, T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = BoxedErrorSource;
}

/// What consensus knows of a member beyond its id. Names and client URLs live in the replicated state, not here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Where its peers reach it.
    pub(crate) urls: Vec<String>,
}

pub(crate) type CommittedLeaderId = <LeaderId<u64, u64> as RaftLeaderId>::Committed;
pub(crate) type RaftLogId = LogId<CommittedLeaderId>;
pub(crate) type RaftVote = openraft::Vote<LeaderId<u64, u64>>;
pub(crate) type RaftEntry = Entry<CommittedLeaderId, EntryPayload<LogPayload, u64, Peer>>;
pub(crate) type Membership = openraft::Membership<u64, Peer>;
pub(crate) type StoredMembership = openraft::StoredMembership<CommittedLeaderId, u64, Peer>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<CommittedLeaderId, u64, Peer>;
pub(crate) type Snapshot = openraft::Snapshot<CommittedLeaderId, u64, Peer, Checkpoint>;

/// The log index of openraft's index.
pub(crate) fn log_index(raft_index: u64) -> u64 {
    raft_index + 1
}

/// openraft's id of the entry at a log index, or none for index 0, "nothing yet".
pub(crate) fn log_id(index: u64, term: u64) -> Option<RaftLogId> {
    let raft_index = index.checked_sub(1)?;
    Some(LogId::new(CommittedLeaderId::new(term), raft_index))
}

/// openraft's id of the entry at a position of the log.
pub(crate) fn log_id_at(position: LogPosition) -> Option<RaftLogId> {
    log_id(position.index.get(), position.term)
}

/// The position of openraft's id.
pub(crate) fn position(id: &RaftLogId) -> LogPosition {
    LogPosition { index: LogIndex::new(log_index(id.index)), term: term(id) }
}

/// The term of openraft's id.
pub(crate) fn term(id: &RaftLogId) -> u64 {
    *id.leader_id
}
