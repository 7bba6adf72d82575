//! `grpc.health.v1.Health`: whether this member can serve. As in etcd there is one service, the whole, which has no name.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::unfold;
use tally_apply::AlarmKind;
use tokio::time::timeout;

use crate::api::State;
use crate::error::ApiError;
use crate::grpc::error::ProtocolError;
use crate::grpc::reply::Answers;
use crate::grpc::write;
use crate::proto::health::health_check_response::ServingStatus;
use crate::proto::health::{HealthCheckRequest, HealthCheckResponse};

/// An alarm is noticed by those who watch within this time; the loss of the leader at once.
const ALARM_INTERVAL: Duration = Duration::from_secs(5);

fn status(state: &State) -> ServingStatus {
    let can_serve = state.has_leader() && !state.reads().alarmed(AlarmKind::Corrupt);
    if can_serve { ServingStatus::Serving } else { ServingStatus::NotServing }
}

fn message(status: ServingStatus) -> Bytes {
    write::message(&HealthCheckResponse { status: status as i32 })
}

pub(super) fn check(state: &State, request: &HealthCheckRequest) -> Result<Bytes, ApiError> {
    if request.service.is_empty() { Ok(message(status(state))) } else { Err(ProtocolError::NoSuchService.into()) }
}

/// The status now, and whenever it has changed; not serving is the last that is heard of a server that stops.
pub(super) fn watch(state: &Arc<State>, request: &HealthCheckRequest) -> Answers {
    let known = request.service.is_empty();
    let (state, changes) = (Arc::clone(state), state.status.clone());
    Box::pin(unfold((state, changes, None), move |(state, mut changes, told)| async move {
        loop {
            let stopping = state.lessor.is_stopping();
            let now = match known {
                false => ServingStatus::ServiceUnknown,
                true if stopping => ServingStatus::NotServing,
                true => status(&state),
            };
            if told != Some(now) {
                return Some((Ok(message(now)), (state, changes, Some(now))));
            }
            if stopping {
                return None;
            }
            tokio::select! {
                // An error is the end of the server.
                changed = timeout(ALARM_INTERVAL, changes.changed()), if known => if let Ok(Err(_)) = changed {
                    return None;
                },
                () = state.lessor.stopped() => {}
            }
        }
    }))
}
