//! The maintenance service: status, alarms, hashes, defragmentation, and handing leadership over.

use std::sync::Arc;
use std::time::Instant;

use tally_apply::{Alarm, AlarmAction, AlarmCommand, AlarmKind, Command, Reply};
use tally_mvcc::{HashKv, ReadError};
use tally_raftnode::TransferError;

use crate::api::range::blocking_in_turn;
use crate::api::state::State;
use crate::error::{ApiError, Effect};
use crate::jobs;
use crate::wire::{AlarmMessage, EmptyMessage, HashKvMessage, Status, TransferMessage};

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

/// What a client does to alarms; etcd's numbers.
const ACTIVATE: i32 = 1;
const DEACTIVATE: i32 = 2;

/// The revision, and the alarms that are raised (of one kind, or all), or the one that was changed.
pub(crate) async fn alarm(state: &State, message: AlarmMessage) -> Result<(i64, Vec<Alarm>), ApiError> {
    let AlarmMessage { action, member_id, alarm } = message;
    let kind = u8::try_from(alarm).ok().and_then(AlarmKind::from_number);
    let (action, kind) = match (action, kind) {
        (ACTIVATE, Some(kind)) => (AlarmAction::Activate, kind),
        (DEACTIVATE, Some(kind)) => (AlarmAction::Deactivate, kind),
        // As in etcd, no kind is no alarm.
        (ACTIVATE | DEACTIVATE, None) => return Ok((state.reads().kv().revision(), Vec::new())),
        _ => return raised(state, alarm).await,
    };
    match state.propose(&Command::Alarm(AlarmCommand { action, member_id, kind })).await? {
        (revision, Reply::Alarm(changed)) => Ok((revision, changed.into_iter().collect())),
        _ => Err(ApiError::Defect { what: "a command was answered with the reply to another" }),
    }
}

async fn raised(state: &State, alarm: i32) -> Result<(i64, Vec<Alarm>), ApiError> {
    state.barrier().await?;
    let wanted = |raised: &&Alarm| alarm == 0 || i32::from(raised.kind.number()) == alarm;
    let reads = state.reads();
    Ok((reads.kv().revision(), reads.alarms().iter().filter(wanted).copied().collect()))
}

/// Gives space back on this member, one request at a time; others wait. Reads and writes go on meanwhile.
pub(crate) async fn defragment(state: &State, EmptyMessage: EmptyMessage) -> Result<(), ApiError> {
    let turn = Arc::clone(&state.defragment).acquire_owned().await.map_err(|_| ApiError::Stopped(Effect::None))?;
    let running = state.metrics.defragmenting();
    let node = state.node.clone();
    let rewrite = move || {
        // Held by the work, not by the client: one that goes does not start a second one beside it.
        let _held = (turn, running);
        node.defragment()
    };
    tracing::info!(size_bytes = state.allocated_bytes(), "defragmenting");
    let done = tokio::task::spawn_blocking(rewrite).await;
    let done = done.map_err(|_| ApiError::Defect { what: "a defragmentation panicked" })?;
    jobs::refresh_sizes(&state.node, &state.sizes);
    tracing::info!(size_bytes = state.allocated_bytes(), "defragmented");
    Ok(done?)
}

/// Hands leadership over; only the leader does, and only to a voter.
pub(crate) async fn move_leader(state: &State, message: TransferMessage) -> Result<(), ApiError> {
    let target = message.target_id;
    if !state.status.borrow().is_leader {
        return Err(ApiError::NotLeader);
    }
    if target != state.member_id {
        // Before the leases are noted, which makes the next renewal of each dearer.
        if !state.node.members().iter().any(|member| member.id == target && !member.is_learner) {
            return Err(ApiError::BadTransferee);
        }
        state.lessor.note_all().await;
        state.node.transfer_leader(target).await.map_err(|error| match error {
            TransferError::NotLeader => ApiError::NotLeader,
            TransferError::BadTarget { .. } | TransferError::Unheard { .. } => ApiError::BadTransferee,
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
    let began = Instant::now();
    let reads = state.reads();
    let (revision, root) = (reads.kv().revision(), reads.applied().root);
    let hash = (0..4).fold(0, |hash, part| hash ^ (root >> (32 * part)) as u32);
    state.metrics.hashed(began.elapsed());
    Ok((revision, hash))
}

pub(crate) async fn hash_kv(state: &State, message: HashKvMessage) -> Result<HashKv, ApiError> {
    let (reader, metrics) = (state.reads().kv().clone(), Arc::clone(&state.metrics));
    blocking_in_turn(state, &state.hashing, move || {
        let mut attempt = 1;
        loop {
            let began = Instant::now();
            match reader.hash_kv(message.revision) {
                Err(ReadError::Overtaken { .. }) if attempt < HASH_ATTEMPTS => attempt += 1,
                answer => {
                    let hashed = answer?;
                    metrics.hashed_revision(began.elapsed());
                    return Ok(hashed);
                }
            }
        }
    })
    .await
}
