//! Calls with more than one message or answer.
//!
//! A stream's function takes its request messages and returns its answers; what is left is the same for all: metadata,
//! refusals before the first answer, metrics, the deadline and the status at the end.

use std::sync::Arc;

use hyper::Response;
use prost::Message;

use crate::api::deadline::until;
use crate::api::{Route, State};
use crate::error::{ApiError, Effect};
use crate::grpc::error::ProtocolError;
use crate::grpc::reply::{self, Answers, Reply};
use crate::grpc::{Call, Messages, concurrency, health, lease, range_stream, watch};

pub(super) async fn answer(state: &Arc<State>, call: Call) -> Response<Reply> {
    let admitted = call.admit(state);
    let Call { route, head, messages, running, .. } = call;
    let answers = match admitted {
        Ok(()) => {
            let begun = begin(state, route, head.requires_leader, messages);
            match head.deadline {
                None => begun.await,
                Some(deadline) => {
                    let begun = tokio::time::timeout_at(deadline, begun).await;
                    begun.unwrap_or(Err(ApiError::DeadlineExceeded(Effect::None)))
                }
            }
        }
        Err(error) => Err(error),
    };
    match answers {
        Ok(answers) => reply::stream(until(head.deadline, answers), Arc::clone(&state.metrics), route, running),
        Err(error) => {
            running.end(Some(&error));
            reply::refusal(&error)
        }
    }
}

async fn begin(
    state: &Arc<State>,
    route: Route,
    requires_leader: bool,
    messages: Messages,
) -> Result<Answers, ApiError> {
    match route {
        Route::RangeStream => range_stream::answers(state, single(state, route, messages).await?).await,
        Route::Watch => watch::answers(state, requires_leader, messages),
        Route::LeaseKeepAlive => Ok(lease::keep_alive(state, requires_leader, messages)),
        Route::Observe => Ok(concurrency::observe(state, requires_leader, single(state, route, messages).await?)),
        Route::HealthWatch => Ok(health::watch(state, &single(state, route, messages).await?)),
        _ => Err(ApiError::Defect { what: "a unary RPC was called as a stream" }),
    }
}

/// The only message of a call that has one.
async fn single<M: Message + Default>(state: &State, route: Route, mut messages: Messages) -> Result<M, ApiError> {
    let message = messages.next().await?.ok_or(ProtocolError::NoMessage)?;
    state.metrics.received(route, message.len());
    if messages.next().await?.is_some() {
        return Err(ProtocolError::SeveralMessages.into());
    }
    Ok(M::decode(message).map_err(ProtocolError::from)?)
}
