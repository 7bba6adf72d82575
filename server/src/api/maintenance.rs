//! The maintenance service: status, hashes, and handing leadership over.

use tally_mvcc::{HashKv, ReadError};
use tally_raftnode::TransferError;

use crate::api::range::blocking;
use crate::api::state::State;
use crate::error::{ApiError, Effect};
use crate::wire::{EmptyMessage, HashKvMessage, Status, TransferMessage};

/// How often a hash starts anew because the sweep overtook it.
const HASH_ATTEMPTS: usize = 3;

pub(crate) fn status(state: &State, EmptyMessage: EmptyMessage) -> Status {
    let (leader, term, is_learner) = {
        let status = state.status.borrow();
        (status.leader.unwrap_or(0), status.term, status.is_learner)
    };
    let mut errors = Vec::new();
    if leader == 0 {
        errors.push(ApiError::NoLeader.to_string());
    }
    // The form in which Go prints an alarm, blank at the end included.
    errors.extend(
        state.reads().alarms().iter().map(|alarm| format!("memberID:{} alarm:{} ", alarm.member_id, alarm.kind.name())),
    );
    let progress = state.node.progress();
    Status {
        revision: state.reads().kv().revision(),
        version: state.version,
        db_size: state.allocated_bytes(),
        db_size_in_use: state.in_use_bytes(),
        db_size_quota: state.quota.reported(),
        leader,
        raft_index: progress.committed,
        raft_term: term,
        raft_applied_index: progress.applied,
        errors,
        is_learner,
    }
}

/// Hands leadership over; only the leader does, and only to a voter.
pub(crate) async fn move_leader(state: &State, message: TransferMessage) -> Result<(), ApiError> {
    let target = message.target_id;
    if !state.status.borrow().is_leader {
        return Err(ApiError::NotLeader);
    }
    if target != state.member_id {
        state.node.transfer_leader(target).await.map_err(|error| match error {
            TransferError::NotLeader => ApiError::NotLeader,
            TransferError::BadTarget { .. } => ApiError::BadTransferee,
            TransferError::TimedOut { .. } => ApiError::TransferTimedOut,
            TransferError::Stopped => ApiError::Stopped(Effect::Unknown),
        })?;
    }
    Ok(())
}

/// The revision, and a fingerprint of everything: the state root, folded to 32 bits. (etcd's depends on its file format.)
pub(crate) async fn hash(state: &State, EmptyMessage: EmptyMessage) -> Result<(i64, u32), ApiError> {
    state.barrier().await?;
    state.refuse_if_corrupt()?;
    let reads = state.reads();
    let (revision, root) = (reads.kv().revision(), reads.applied().root);
    let hash = (0..4).fold(0, |hash, part| hash ^ (root >> (32 * part)) as u32);
    Ok((revision, hash))
}

pub(crate) async fn hash_kv(state: &State, message: HashKvMessage) -> Result<HashKv, ApiError> {
    let reader = state.reads().kv().clone();
    blocking(state, move || {
        let mut attempt = 1;
        loop {
            match reader.hash_kv(message.revision) {
                Err(ReadError::Overtaken { .. }) if attempt < HASH_ATTEMPTS => attempt += 1,
                answer => return Ok(answer?),
            }
        }
    })
    .await
}
