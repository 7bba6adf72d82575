//! Locks and elections over gRPC.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;

use crate::api::election::Leader;
use crate::api::{Route, State, election, lock};
use crate::error::ApiError;
use crate::grpc::reply::Answers;
use crate::grpc::unary::decode;
use crate::grpc::write;
use crate::proto::{KeyValue, v3electionpb, v3lockpb};

/// Calls with one answer, which may be long in coming.
pub(super) async fn unary(state: &Arc<State>, route: Route, message: Bytes) -> Result<Bytes, ApiError> {
    let header = |revision| write::header(&state.header(revision));
    Ok(match route {
        Route::Lock => {
            let locked = lock::lock(state, decode::<v3lockpb::LockRequest>(message)?.into()).await?;
            write::message(&v3lockpb::LockResponse { header: header(locked.revision), key: locked.key })
        }
        Route::Unlock => {
            let revision = lock::unlock(state, decode::<v3lockpb::UnlockRequest>(message)?.into()).await?;
            write::message(&v3lockpb::UnlockResponse { header: header(revision) })
        }
        Route::Campaign => {
            let elected = election::campaign(state, decode::<v3electionpb::CampaignRequest>(message)?.into()).await?;
            let leader = Some(elected.leader.into());
            write::message(&v3electionpb::CampaignResponse { header: header(elected.revision), leader })
        }
        Route::Proclaim => {
            let revision = election::proclaim(state, decode::<v3electionpb::ProclaimRequest>(message)?.into()).await?;
            write::message(&v3electionpb::ProclaimResponse { header: header(revision) })
        }
        Route::Resign => {
            let revision = election::resign(state, decode::<v3electionpb::ResignRequest>(message)?.into()).await?;
            write::message(&v3electionpb::ResignResponse { header: header(revision) })
        }
        _ => {
            let leader = election::leader(state, decode::<v3electionpb::LeaderRequest>(message)?.into()).await?;
            leader_message(state, &leader)
        }
    })
}

/// Leaders, one after the other.
pub(super) fn observe(state: &Arc<State>, requires_leader: bool, request: v3electionpb::LeaderRequest) -> Answers {
    let seen = Arc::clone(state);
    Box::pin(
        election::observe(state, requires_leader, request.into())
            .map(move |leader| Ok(leader_message(&seen, &leader?))),
    )
}

fn leader_message(state: &State, leader: &Leader) -> Bytes {
    let header = write::header(&state.header(leader.revision));
    write::message(&v3electionpb::LeaderResponse { header, kv: Some(KeyValue::from(&leader.record)) })
}
