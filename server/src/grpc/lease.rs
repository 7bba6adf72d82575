//! The lease service over gRPC: unary calls, and the stream of renewals.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use prost::Message;

use crate::api::lease::{self, KeepAlive};
use crate::api::{Route, State};
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

/// Renewals, one after the other, until the client closes its half.
pub(super) fn keep_alive(state: &Arc<State>, requires_leader: bool, messages: Messages) -> Answers {
    let ends = Box::pin(lease::stream_ends(Arc::clone(state), requires_leader));
    Box::pin(Renewals { state: Arc::clone(state), messages, renewal: None, ends })
}

/// By hand, as there are very many of them, and each is short.
struct Renewals {
    state: Arc<State>,
    messages: Messages,
    renewal: Option<KeepAlive>,
    ends: Pin<Box<dyn Future<Output = ApiError> + Send>>,
}

impl Stream for Renewals {
    type Item = Result<Bytes, ApiError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Renewals { state, messages, renewal, ends } = self.get_mut();
        loop {
            if let Some(running) = renewal {
                let Poll::Ready(kept) = running.poll(state, cx) else { break };
                *renewal = None;
                return Poll::Ready(Some(kept.map(|kept| write::kept_alive(&state.header(kept.revision), &kept))));
            }
            let Poll::Ready(message) = messages.poll_next(cx) else { break };
            let id = message.and_then(|message| message.map(|message| lease_id(state, message)).transpose());
            match id.inspect_err(|error| state.metrics.not_received("lease-keepalive", error))? {
                Some(id) => *renewal = Some(KeepAlive::begin(state, LeaseMessage { id })),
                None => return Poll::Ready(None),
            }
        }
        ends.as_mut().poll(cx).map(|error| Some(Err(error)))
    }
}

/// The lease that a message is about.
fn lease_id(state: &State, message: Bytes) -> Result<i64, ApiError> {
    state.metrics.received(Route::LeaseKeepAlive, message.len());
    let pb::LeaseKeepAliveRequest { id } = decode(message)?;
    Ok(id)
}
