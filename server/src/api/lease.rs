//! The lease service. What is granted and revoked goes through the log; when leases end is asked of the leader.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tally_apply::{Command, Reply};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use crate::api::state::State;
use crate::error::{ApiError, Effect};
use crate::jobs::{RenewError, Renewing};
use crate::wire::{LeaseGrantMessage, LeaseMessage, LeaseTimeToLiveMessage};

/// How often an id is drawn that is in use already, before that is taken for something else than chance.
const DRAWS_MAX: usize = 3;
/// For so many election timeouts a stream that wants a leader goes on without one; as in etcd.
const LEADERLESS_ELECTIONS: u32 = 3;

/// A lease that was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Granted {
    pub(crate) revision: i64,
    pub(crate) id: i64,
    pub(crate) ttl_s: i64,
}

/// What a renewal came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeptAlive {
    /// The store's before the renewal began: a lease that was revoked at a revision is never seen renewed at a later one.
    pub(crate) revision: i64,
    pub(crate) id: i64,
    /// 0 if there is no such lease (any more).
    pub(crate) ttl_s: i64,
}

/// What is left of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TimeToLive {
    pub(crate) revision: i64,
    pub(crate) id: i64,
    /// -1 if there is no such lease.
    pub(crate) ttl_s: i64,
    pub(crate) granted_s: i64,
    /// The keys attached, ascending, if asked for.
    pub(crate) keys: Vec<Bytes>,
}

/// Grants a lease. Its id, if the client leaves it to the server, and its least time to live are settled here, before the
/// log: every replica grants the same.
pub(crate) async fn grant(state: &State, message: LeaseGrantMessage) -> Result<Granted, ApiError> {
    let LeaseGrantMessage { id: wanted, ttl } = message;
    let ttl_s = ttl.max(state.lease_ttl_min_s);
    let mut draws = 1;
    loop {
        let id = if wanted == 0 { random_id() } else { wanted };
        match state.propose(&Command::LeaseGrant { id, ttl_s }).await {
            Ok((revision, Reply::LeaseGrant { ttl_s })) => return Ok(Granted { revision, id, ttl_s }),
            Ok(_) => return Err(ApiError::Defect { what: "a command was answered with the reply to another" }),
            Err(ApiError::LeaseExists) if wanted == 0 && draws < DRAWS_MAX => draws += 1,
            Err(error) => return Err(error),
        }
    }
}

/// A positive number of 63 bits.
fn random_id() -> i64 {
    let (high, low) = Uuid::new_v4().as_u64_pair();
    // Of the two halves together no bit is fixed by the form of a UUID.
    (((high ^ low.rotate_left(32)) >> 1) as i64).max(1)
}

/// Revokes a lease and deletes its keys. Returns the revision of the store.
pub(crate) async fn revoke(state: &State, message: LeaseMessage) -> Result<i64, ApiError> {
    let (revision, _) = state.propose(&Command::LeaseRevoke { id: message.id }).await?;
    Ok(revision)
}

/// What is left of a lease, by the leader's clock; its keys from this member, which has everything by then.
pub(crate) async fn time_to_live(state: &State, message: LeaseTimeToLiveMessage) -> Result<TimeToLive, ApiError> {
    let LeaseTimeToLiveMessage { id, keys } = message;
    let started = Instant::now();
    let asked = timeout(state.request_timeout, state.lessor.time_to_live(id)).await;
    let left = asked.unwrap_or(Err(RenewError::TimedOut)).map_err(|error| error_of(state, error, started))?;
    state.barrier().await?;
    state.refuse_if_corrupt()?;
    let reads = state.reads();
    let (revision, leases) = (reads.kv().revision(), reads.leases());
    let (Some(ttl_s), Some(lease)) = (left, leases.get(id)) else {
        return Ok(TimeToLive { revision, id, ttl_s: -1, granted_s: 0, keys: Vec::new() });
    };
    let keys = if keys { leases.keys(id).collect() } else { Vec::new() };
    Ok(TimeToLive { revision, id, ttl_s, granted_s: lease.granted_s, keys })
}

/// The ids of all leases, ascending, and the revision of the store.
pub(crate) async fn list(state: &State) -> Result<(i64, Vec<i64>), ApiError> {
    state.barrier().await?;
    state.refuse_if_corrupt()?;
    let reads = state.reads();
    let (revision, leases) = (reads.kv().revision(), reads.leases());
    Ok((revision, leases.iter().map(|(id, _)| id).collect()))
}

/// A renewal that is on its way.
pub(crate) struct KeepAlive {
    id: i64,
    revision: i64,
    renewing: Renewing,
}

impl KeepAlive {
    pub(crate) fn begin(state: &State, message: LeaseMessage) -> KeepAlive {
        let LeaseMessage { id } = message;
        let revision = state.node.revision();
        KeepAlive { id, revision, renewing: state.lessor.renew(id) }
    }

    /// Not to be polled again once it is ready.
    pub(crate) fn poll(&mut self, state: &State, cx: &mut Context<'_>) -> Poll<Result<KeptAlive, ApiError>> {
        let KeepAlive { id, revision, renewing } = self;
        Pin::new(renewing).poll(cx).map(|renewed| match renewed {
            Ok(ttl_s) => Ok(KeptAlive { revision: *revision, id: *id, ttl_s }),
            Err((error, since)) => Err(error_of(state, error, since)),
        })
    }
}

/// Renews a lease.
pub(crate) async fn keep_alive(state: &State, message: LeaseMessage) -> Result<KeptAlive, ApiError> {
    let mut renewal = KeepAlive::begin(state, message);
    poll_fn(|cx| renewal.poll(state, cx)).await
}

fn error_of(state: &State, error: RenewError, started: Instant) -> ApiError {
    match error {
        RenewError::NoLeader | RenewError::TimedOut => state.timed_out(started.into_std(), Effect::None),
        RenewError::TooMany => ApiError::TooManyRequests,
        RenewError::Stopped => ApiError::Stopped(Effect::None),
    }
}

/// Resolves when a stream of renewals has to end, with the reason: the server stops, or, for a client that wants a leader,
/// there has been none for a while.
pub(crate) async fn stream_ends(state: Arc<State>, requires_leader: bool) -> ApiError {
    let leaderless = async {
        let mut status = state.node.status();
        loop {
            if status.wait_for(|status| status.leader.is_none()).await.is_err() {
                return;
            }
            let patience = state.election_timeout * LEADERLESS_ELECTIONS;
            if timeout(patience, status.wait_for(|status| status.leader.is_some())).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = state.lessor.stopped() => ApiError::Stopped(Effect::None),
        () = leaderless, if requires_leader => ApiError::NoLeader,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ids_are_positive_and_differ() {
        let ids: std::collections::BTreeSet<i64> = (0..1_000).map(|_| random_id()).collect();
        assert!(ids.len() == 1_000 && ids.iter().all(|id| *id > 0));
        // Every bit but the sign is drawn.
        assert_eq!(ids.iter().fold(0, |bits, id| bits | id), i64::MAX);
        assert_eq!(ids.iter().fold(i64::MAX, |bits, id| bits & id), 0);
    }
}
