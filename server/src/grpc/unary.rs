//! Calls of one message and one answer.

use std::sync::Arc;

use bytes::Bytes;
use hyper::Response;
use prost::Message;
use tally_apply::Alarm;
use tally_mvcc::{OpReply, TxnReply};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout_at;

use crate::api::{ANSWER_BYTES_MAX, Route, State, Whole, auth, cluster, kv, maintenance};
use crate::error::{ApiError, Effect};
use crate::grpc::error::ProtocolError;
use crate::grpc::messages::PREFIX_BYTES;
use crate::grpc::reply::{self, Reply};
use crate::grpc::{Call, concurrency, health, lease, write};
use crate::proto::etcdserverpb as pb;
use crate::wire::Members;

/// Answers that are longer are made as they are sent.
const WHOLE_BYTES_MAX: usize = 256 * 1024;

/// What hears who writes, and has asked for more than may be sent.
const LEFT_OUT: ApiError = ApiError::AnswerLeftOut { limit: ANSWER_BYTES_MAX };

/// A result.
enum Answer {
    Whole(Bytes),
    Large(Box<Large>),
}

/// A result that is made in pieces.
struct Large {
    pieces: Box<dyn Iterator<Item = Bytes> + Send>,
    /// Of all pieces.
    bytes: usize,
    permit: Option<OwnedSemaphorePermit>,
}

pub(super) async fn answer(state: &Arc<State>, mut call: Call) -> Response<Reply> {
    let result = match call.head.deadline {
        None => run(state, &mut call).await,
        // What it has proposed by then is carried out or not: nobody knows.
        Some(deadline) => Box::pin(timeout_at(deadline, run(state, &mut call)))
            .await
            .unwrap_or(Err(ApiError::DeadlineExceeded(Effect::Unknown))),
    };
    let result = result.and_then(sendable);
    call.running.end(result.as_ref().err());
    call.messages.closed().await;
    match result {
        Ok(Answer::Whole(message)) => {
            state.metrics.sent(call.route, message.len());
            reply::message(message)
        }
        Ok(Answer::Large(large)) => {
            state.metrics.sent(call.route, large.bytes);
            reply::large(large.pieces, large.permit)
        }
        Err(error) => reply::refusal(&error),
    }
}

/// Whatever it answers, and however that was made: nothing is sent whose prefix does not say how long it is.
fn sendable(answer: Answer) -> Result<Answer, ApiError> {
    write::sendable(match &answer {
        Answer::Whole(message) => message.len().saturating_sub(PREFIX_BYTES),
        Answer::Large(large) => large.bytes,
    })?;
    Ok(answer)
}

async fn run(state: &Arc<State>, call: &mut Call) -> Result<Answer, ApiError> {
    call.admit(state)?;
    let message = call.messages.next().await?.ok_or(ProtocolError::NoMessage)?;
    state.metrics.received(call.route, message.len());
    if let Some(patience) = call.patience.take() {
        patience.begin();
    }
    match call.route {
        Route::Range => {
            let whole = kv::range(state, decode::<pb::RangeRequest>(message)?.into()).await?;
            range(state, whole)
        }
        Route::Put => {
            let reply = kv::put(state, decode::<pb::PutRequest>(message)?.into()).await?;
            let message = write::put(&state.header(reply.revision), &reply);
            Ok(Answer::Whole(message.map_err(|_| LEFT_OUT)?))
        }
        Route::DeleteRange => {
            let reply = kv::delete_range(state, decode::<pb::DeleteRangeRequest>(message)?.into()).await?;
            let message = write::delete_range(&state.header(reply.revision), &reply);
            Ok(Answer::Whole(message.map_err(|_| LEFT_OUT)?))
        }
        Route::Txn => {
            let reply = kv::txn(state, decode::<pb::TxnRequest>(message)?.into()).await?;
            let message = write::txn(&state.header(reply.revision), &reply);
            Ok(Answer::Whole(message.map_err(|error| if has_written(&reply) { LEFT_OUT } else { error.into() })?))
        }
        // Every call's future is as large as the largest of them; these need not be part of it.
        route => Box::pin(rarer(state, route, message)).await.map(Answer::Whole),
    }
}

/// Whether a transaction changed anything, by what it answers.
fn has_written(reply: &TxnReply) -> bool {
    reply.replies.iter().any(|reply| match reply {
        OpReply::Range(_) => false,
        OpReply::Put(_) => true,
        OpReply::Delete(reply) => reply.deleted > 0,
        OpReply::Txn(reply) => has_written(reply),
    })
}

pub(super) fn decode<M: Message + Default>(message: Bytes) -> Result<M, ApiError> {
    Ok(M::decode(message).map_err(ProtocolError::from)?)
}

async fn rarer(state: &Arc<State>, route: Route, message: Bytes) -> Result<Bytes, ApiError> {
    Ok(match route {
        Route::Compact => {
            let revision = kv::compact(state, decode::<pb::CompactionRequest>(message)?.into()).await?;
            write::message(&pb::CompactionResponse { header: write::header(&state.header(revision)) })
        }
        Route::Alarm => {
            let (revision, alarms) = maintenance::alarm(state, decode::<pb::AlarmRequest>(message)?.into()).await?;
            let member =
                |alarm: Alarm| pb::AlarmMember { member_id: alarm.member_id, alarm: alarm.kind.number().into() };
            let alarms = alarms.into_iter().map(member).collect();
            write::message(&pb::AlarmResponse { header: write::header(&state.header(revision)), alarms })
        }
        Route::Defragment => {
            maintenance::defragment(state, decode::<pb::DefragmentRequest>(message)?.into()).await?;
            // etcd's answer has no header.
            write::message(&pb::DefragmentResponse { header: None })
        }
        Route::Status => status(state, decode::<pb::StatusRequest>(message)?),
        Route::Hash => {
            let (revision, hash) = maintenance::hash(state, decode::<pb::HashRequest>(message)?.into()).await?;
            write::message(&pb::HashResponse { header: write::header(&state.header(revision)), hash })
        }
        Route::HashKv => {
            let hashed = maintenance::hash_kv(state, decode::<pb::HashKvRequest>(message)?.into()).await?;
            write::message(&pb::HashKvResponse {
                header: write::header(&state.header(hashed.revision)),
                hash: hashed.hash,
                compact_revision: hashed.compact_revision,
                hash_revision: hashed.hash_revision,
            })
        }
        Route::MoveLeader => {
            maintenance::move_leader(state, decode::<pb::MoveLeaderRequest>(message)?.into()).await?;
            // etcd's answer has no header.
            write::message(&pb::MoveLeaderResponse { header: None })
        }
        Route::AuthStatus => {
            let status = auth::status(state, decode::<pb::AuthStatusRequest>(message)?.into());
            write::message(&pb::AuthStatusResponse {
                header: write::header(&state.header(status.revision)),
                enabled: status.is_enabled,
                auth_revision: status.auth_revision,
            })
        }
        Route::Authenticate => return Err(auth::authenticate(decode::<pb::AuthenticateRequest>(message)?.into())),
        Route::MemberAdd | Route::MemberRemove | Route::MemberUpdate | Route::MemberList | Route::MemberPromote => {
            members(state, route, message).await?
        }
        Route::LeaseGrant | Route::LeaseRevoke | Route::LeaseTimeToLive | Route::LeaseLeases => {
            lease::unary(state, route, message).await?
        }
        Route::Lock | Route::Unlock | Route::Campaign | Route::Proclaim | Route::Leader | Route::Resign => {
            concurrency::unary(state, route, message).await?
        }
        Route::HealthCheck => health::check(state, &decode(message)?)?,
        Route::Range
        | Route::Put
        | Route::DeleteRange
        | Route::Txn
        | Route::Watch
        | Route::RangeStream
        | Route::LeaseKeepAlive
        | Route::Observe
        | Route::HealthWatch => {
            return Err(ApiError::Defect { what: "a call was answered as another" });
        }
    })
}

/// The cluster service. As in etcd, its headers have no revision.
async fn members(state: &State, route: Route, message: Bytes) -> Result<Bytes, ApiError> {
    let header = || write::header(&state.header(0));
    let listed = |members: Members| members.members.into_iter().map(pb::Member::from).collect();
    Ok(match route {
        Route::MemberAdd => {
            let mut members = cluster::add(state, decode::<pb::MemberAddRequest>(message)?.into()).await?;
            let member = members.added.take().map(pb::Member::from);
            write::message(&pb::MemberAddResponse { header: header(), member, members: listed(members) })
        }
        Route::MemberRemove => {
            let members = cluster::remove(state, decode::<pb::MemberRemoveRequest>(message)?.into()).await?;
            write::message(&pb::MemberRemoveResponse { header: header(), members: listed(members) })
        }
        Route::MemberUpdate => {
            let members = cluster::update(state, decode::<pb::MemberUpdateRequest>(message)?.into()).await?;
            write::message(&pb::MemberUpdateResponse { header: header(), members: listed(members) })
        }
        Route::MemberPromote => {
            let members = cluster::promote(state, decode::<pb::MemberPromoteRequest>(message)?.into()).await?;
            write::message(&pb::MemberPromoteResponse { header: header(), members: listed(members) })
        }
        _ => {
            let members = cluster::list(state, decode::<pb::MemberListRequest>(message)?.into()).await?;
            write::message(&pb::MemberListResponse { header: header(), members: listed(members) })
        }
    })
}

fn status(state: &State, request: pb::StatusRequest) -> Bytes {
    let status = maintenance::status(state, request.into());
    write::message(&pb::StatusResponse {
        header: write::header(&state.header(status.revision)),
        version: status.version.to_owned(),
        db_size: i64::try_from(status.db_size).unwrap_or(i64::MAX),
        leader: status.leader,
        raft_index: status.raft_index,
        raft_term: status.raft_term,
        raft_applied_index: status.raft_applied_index,
        errors: status.errors,
        db_size_in_use: i64::try_from(status.db_size_in_use).unwrap_or(i64::MAX),
        is_learner: status.is_learner,
        storage_version: status.version.to_owned(),
        db_size_quota: status.db_size_quota,
        downgrade_info: Some(pb::DowngradeInfo::default()),
    })
}

fn range(state: &State, whole: Whole) -> Result<Answer, ApiError> {
    let Whole { result, permit } = whole;
    let header = state.header(result.revision);
    let bytes = write::range_bytes(&header, &result);
    if bytes > ANSWER_BYTES_MAX {
        return Err(ProtocolError::AnswerTooLarge { bytes, limit: ANSWER_BYTES_MAX }.into());
    }
    if bytes <= WHOLE_BYTES_MAX {
        return Ok(Answer::Whole(write::range(&header, &result)));
    }
    let pieces = Box::new(write::range_in_pieces(&header, result));
    Ok(Answer::Large(Box::new(Large { pieces, bytes, permit })))
}

#[cfg(test)]
mod tests {
    use tally_mvcc::{DeleteReply, PutReply, RangeResult};

    use super::*;

    #[test]
    fn a_transaction_has_written_if_anything_in_it_has() {
        let txn = |replies| TxnReply { succeeded: true, replies, revision: 7 };
        let range = || OpReply::Range(RangeResult::default());
        let delete = |deleted| OpReply::Delete(DeleteReply { deleted, ..DeleteReply::default() });
        assert!(!has_written(&txn(vec![])));
        assert!(!has_written(&txn(vec![range(), delete(0), OpReply::Txn(txn(vec![range()]))])));
        assert!(has_written(&txn(vec![range(), delete(1)])));
        assert!(has_written(&txn(vec![OpReply::Txn(txn(vec![range(), OpReply::Put(PutReply::default())])), range()])));
    }

    #[test]
    fn what_is_longer_than_may_be_sent_is_refused_however_it_is_made() {
        let large = |bytes| {
            let pieces = Box::new(std::iter::empty::<Bytes>());
            Answer::Large(Box::new(Large { pieces, bytes, permit: None }))
        };
        assert!(sendable(Answer::Whole(Bytes::new())).is_ok());
        assert!(sendable(large(ANSWER_BYTES_MAX)).is_ok());
        let refused = sendable(large(ANSWER_BYTES_MAX + 1));
        assert!(matches!(refused, Err(ApiError::Grpc(ProtocolError::AnswerTooLarge { limit: ANSWER_BYTES_MAX, .. }))));
    }
}
