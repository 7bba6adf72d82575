//! The lease service over gRPC: unary calls, and the stream of renewals.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::try_unfold;
use prost::Message;

use crate::api::{Route, State, lease};
use crate::error::ApiError;
use crate::grpc::error::ProtocolError;
use crate::grpc::messages::Messages;
use crate::grpc::reply::Answers;
use crate::grpc::write;
use crate::proto::etcdserverpb as pb;
use crate::wire::{LeaseGrantMessage, LeaseMessage, LeaseTimeToLiveMessage};

fn decode<M: Message + Default>(message: Bytes) -> Result<M, ApiError> {
    Ok(M::decode(message).map_err(ProtocolError::from)?)
}

/// A call of one message.
pub(super) async fn unary(state: &State, route: Route, message: Bytes) -> Result<Bytes, ApiError> {
    let header = |revision| write::header(&state.header(revision));
    Ok(match route {
        Route::LeaseGrant => {
            let pb::LeaseGrantRequest { ttl, id } = decode(message)?;
            let granted = lease::grant(state, LeaseGrantMessage { id, ttl }).await?;
            write::message(&pb::LeaseGrantResponse {
                header: header(granted.revision),
                id: granted.id,
                ttl: granted.ttl_s,
                error: String::new(),
            })
        }
        Route::LeaseRevoke => {
            let pb::LeaseRevokeRequest { id } = decode(message)?;
            let revision = lease::revoke(state, LeaseMessage { id }).await?;
            write::message(&pb::LeaseRevokeResponse { header: header(revision) })
        }
        Route::LeaseTimeToLive => {
            let pb::LeaseTimeToLiveRequest { id, keys } = decode(message)?;
            let left = lease::time_to_live(state, LeaseTimeToLiveMessage { id, keys }).await?;
            write::message(&pb::LeaseTimeToLiveResponse {
                header: header(left.revision),
                id: left.id,
                ttl: left.ttl_s,
                granted_ttl: left.granted_s,
                keys: left.keys,
            })
        }
        Route::LeaseLeases => {
            let pb::LeaseLeasesRequest {} = decode(message)?;
            let (revision, ids) = lease::list(state).await?;
            let leases = ids.into_iter().map(|id| pb::LeaseStatus { id }).collect();
            write::message(&pb::LeaseLeasesResponse { header: header(revision), leases })
        }
        _ => return Err(ApiError::Defect { what: "another call than the lease service's was taken for one" }),
    })
}

struct Stream {
    state: Arc<State>,
    messages: Messages,
    ends: Pin<Box<dyn Future<Output = ApiError> + Send>>,
}

/// Renewals, one after the other, until the client closes its half.
pub(super) fn keep_alive(state: &Arc<State>, requires_leader: bool, messages: Messages) -> Answers {
    let ends = Box::pin(lease::stream_ends(Arc::clone(state), requires_leader));
    let stream = Stream { state: Arc::clone(state), messages, ends };
    Box::pin(try_unfold(stream, |mut stream| async move {
        let answer = {
            let Stream { state, messages, ends } = &mut stream;
            tokio::select! {
                biased;
                error = ends => return Err(error),
                answer = renewed(state, messages) => answer?,
            }
        };
        Ok(answer.map(|answer| (answer, stream)))
    }))
}

/// The answer to the next request; none after the last.
async fn renewed(state: &State, messages: &mut Messages) -> Result<Option<Bytes>, ApiError> {
    let Some(message) = messages.next().await? else { return Ok(None) };
    state.metrics.received(Route::LeaseKeepAlive, message.len());
    let pb::LeaseKeepAliveRequest { id } = decode(message)?;
    let kept = lease::keep_alive(state, LeaseMessage { id }).await?;
    let header = write::header(&state.header(kept.revision));
    Ok(Some(write::message(&pb::LeaseKeepAliveResponse { header, id: kept.id, ttl: kept.ttl_s })))
}
