//! The lock service: whoever has the oldest key under a name has the lock, until the key or its lease is gone.
//!
//! A lock alone does not keep a client that was paused from acting after its lease has ended. The revision in the header of
//! the answer is a fencing token: it is greater than the token of everybody who had the lock before.

use std::sync::Arc;

use bytes::Bytes;
use tally_apply::{Command, Reply};
use tally_mvcc::{DeleteRequest, KeyRange};

use crate::api::kv::no_reply;
use crate::api::queue::Queue;
use crate::api::state::State;
use crate::error::ApiError;
use crate::wire::{LockMessage, UnlockMessage};

/// A lock that is held.
pub(crate) struct Locked {
    pub(crate) revision: i64,
    /// What has to be unlocked.
    pub(crate) key: Bytes,
}

/// Waits for a lock, for as long as the client does.
pub(crate) async fn lock(state: &Arc<State>, message: LockMessage) -> Result<Locked, ApiError> {
    acquire(state, message).await.map_err(ApiError::unclassified)
}

async fn acquire(state: &Arc<State>, message: LockMessage) -> Result<Locked, ApiError> {
    let queue = Queue::new(state, &message.name);
    let lease = queue.session(message.lease).await?;
    let entry = queue.enter(lease, Bytes::new()).await?;
    let leaving = queue.leave_unless_told(&entry);
    let revision = if entry.is_first {
        entry.revision
    } else {
        let (own, revision) = queue.turn(&entry).await?;
        own.ok_or(ApiError::SessionExpired)?;
        revision
    };
    leaving.stay();
    Ok(Locked { revision, key: entry.key })
}

/// Deletes the key of a lock, whoever has it; returns the revision of the store.
pub(crate) async fn unlock(state: &State, message: UnlockMessage) -> Result<i64, ApiError> {
    let range = KeyRange::single(message.key).map_err(|_| ApiError::EmptyKey.unclassified())?;
    let proposed = state.propose(&Command::DeleteRange(DeleteRequest { range, prev_kv: false }));
    match proposed.await.map_err(ApiError::unclassified)? {
        (_, Reply::DeleteRange(reply)) => Ok(reply.revision),
        (_, other) => Err(no_reply(&other)),
    }
}
