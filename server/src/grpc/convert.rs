//! From protobuf requests to the messages that both wire forms share. Bytes move; nothing is copied or judged.

use crate::proto::{etcdserverpb as pb, v3electionpb, v3lockpb};
use crate::wire::{
    AlarmMessage, CampaignMessage, CompactionMessage, CompareMessage, DeleteRangeMessage, EmptyMessage, Figure,
    HashKvMessage, LeaderKey, LeaderMessage, LockMessage, MemberAddMessage, MemberListMessage, MemberMessage,
    MemberUpdateMessage, OpMessage, ProclaimMessage, PutMessage, RangeMessage, ResignMessage, TransferMessage,
    TxnMessage, UnlockMessage,
};

impl From<pb::RangeRequest> for RangeMessage {
    fn from(request: pb::RangeRequest) -> Self {
        Self {
            key: request.key,
            range_end: request.range_end,
            limit: request.limit,
            revision: request.revision,
            sort_order: request.sort_order,
            sort_target: request.sort_target,
            serializable: request.serializable,
            keys_only: request.keys_only,
            count_only: request.count_only,
            min_mod_revision: request.min_mod_revision,
            max_mod_revision: request.max_mod_revision,
            min_create_revision: request.min_create_revision,
            max_create_revision: request.max_create_revision,
        }
    }
}

impl From<pb::PutRequest> for PutMessage {
    fn from(request: pb::PutRequest) -> Self {
        let pb::PutRequest { key, value, lease, prev_kv, ignore_value, ignore_lease } = request;
        Self { key, value, lease, prev_kv, ignore_value, ignore_lease }
    }
}

impl From<pb::DeleteRangeRequest> for DeleteRangeMessage {
    fn from(request: pb::DeleteRangeRequest) -> Self {
        let pb::DeleteRangeRequest { key, range_end, prev_kv } = request;
        Self { key, range_end, prev_kv }
    }
}

/// Recursion: as deep as the decoder of the request let it be, which is bounded.
impl From<pb::TxnRequest> for TxnMessage {
    fn from(request: pb::TxnRequest) -> Self {
        let ops = |ops: Vec<pb::RequestOp>| ops.into_iter().map(OpMessage::from).collect();
        Self {
            compare: request.compare.into_iter().map(CompareMessage::from).collect(),
            success: ops(request.success),
            failure: ops(request.failure),
        }
    }
}

impl From<pb::RequestOp> for OpMessage {
    fn from(op: pb::RequestOp) -> Self {
        use pb::request_op::Request;
        match op.request {
            None => Self::Empty,
            Some(Request::RequestRange(request)) => Self::Range(request.into()),
            Some(Request::RequestPut(request)) => Self::Put(request.into()),
            Some(Request::RequestDeleteRange(request)) => Self::DeleteRange(request.into()),
            Some(Request::RequestTxn(request)) => Self::Txn(request.into()),
        }
    }
}

impl From<pb::Compare> for CompareMessage {
    fn from(compare: pb::Compare) -> Self {
        use pb::compare::TargetUnion;
        let figure = match compare.target_union {
            None => Figure::Missing,
            Some(TargetUnion::Version(number)) => Figure::Version(number),
            Some(TargetUnion::CreateRevision(number)) => Figure::Create(number),
            Some(TargetUnion::ModRevision(number)) => Figure::Mod(number),
            Some(TargetUnion::Value(value)) => Figure::Value(value),
            Some(TargetUnion::Lease(number)) => Figure::Lease(number),
        };
        let pb::Compare { result, target, key, range_end, .. } = compare;
        Self { result, target, key, range_end, figure }
    }
}

impl From<pb::CompactionRequest> for CompactionMessage {
    fn from(request: pb::CompactionRequest) -> Self {
        Self { revision: request.revision, physical: request.physical }
    }
}

impl From<pb::HashKvRequest> for HashKvMessage {
    fn from(request: pb::HashKvRequest) -> Self {
        Self { revision: request.revision }
    }
}

impl From<pb::HashRequest> for EmptyMessage {
    fn from(_: pb::HashRequest) -> Self {
        Self
    }
}

impl From<pb::AuthStatusRequest> for EmptyMessage {
    fn from(_: pb::AuthStatusRequest) -> Self {
        Self
    }
}

impl From<pb::AuthenticateRequest> for EmptyMessage {
    fn from(_: pb::AuthenticateRequest) -> Self {
        Self
    }
}

impl From<pb::DefragmentRequest> for EmptyMessage {
    fn from(_: pb::DefragmentRequest) -> Self {
        Self
    }
}

impl From<pb::AlarmRequest> for AlarmMessage {
    fn from(request: pb::AlarmRequest) -> Self {
        Self { action: request.action, member_id: request.member_id, alarm: request.alarm }
    }
}

impl From<v3lockpb::LockRequest> for LockMessage {
    fn from(request: v3lockpb::LockRequest) -> Self {
        Self { name: request.name, lease: request.lease }
    }
}

impl From<v3lockpb::UnlockRequest> for UnlockMessage {
    fn from(request: v3lockpb::UnlockRequest) -> Self {
        Self { key: request.key }
    }
}

impl From<v3electionpb::CampaignRequest> for CampaignMessage {
    fn from(request: v3electionpb::CampaignRequest) -> Self {
        Self { name: request.name, lease: request.lease, value: request.value }
    }
}

impl From<v3electionpb::LeaderKey> for LeaderKey {
    fn from(leader: v3electionpb::LeaderKey) -> Self {
        let v3electionpb::LeaderKey { name, key, rev, lease } = leader;
        Self { name, key, rev, lease }
    }
}

impl From<LeaderKey> for v3electionpb::LeaderKey {
    fn from(leader: LeaderKey) -> Self {
        let LeaderKey { name, key, rev, lease } = leader;
        Self { name, key, rev, lease }
    }
}

impl From<v3electionpb::ProclaimRequest> for ProclaimMessage {
    fn from(request: v3electionpb::ProclaimRequest) -> Self {
        Self { leader: request.leader.map(LeaderKey::from), value: request.value }
    }
}

impl From<v3electionpb::LeaderRequest> for LeaderMessage {
    fn from(request: v3electionpb::LeaderRequest) -> Self {
        Self { name: request.name }
    }
}

impl From<v3electionpb::ResignRequest> for ResignMessage {
    fn from(request: v3electionpb::ResignRequest) -> Self {
        Self { leader: request.leader.map(LeaderKey::from) }
    }
}

impl From<pb::StatusRequest> for EmptyMessage {
    fn from(_: pb::StatusRequest) -> Self {
        Self
    }
}

impl From<pb::MoveLeaderRequest> for TransferMessage {
    fn from(request: pb::MoveLeaderRequest) -> Self {
        Self { target_id: request.target_id }
    }
}

impl From<pb::MemberAddRequest> for MemberAddMessage {
    fn from(request: pb::MemberAddRequest) -> Self {
        Self { peer_urls: request.peer_ur_ls, is_learner: request.is_learner }
    }
}

impl From<pb::MemberRemoveRequest> for MemberMessage {
    fn from(request: pb::MemberRemoveRequest) -> Self {
        Self { id: request.id }
    }
}

impl From<pb::MemberPromoteRequest> for MemberMessage {
    fn from(request: pb::MemberPromoteRequest) -> Self {
        Self { id: request.id }
    }
}

impl From<pb::MemberUpdateRequest> for MemberUpdateMessage {
    fn from(request: pb::MemberUpdateRequest) -> Self {
        Self { id: request.id, peer_urls: request.peer_ur_ls }
    }
}

impl From<pb::MemberListRequest> for MemberListMessage {
    fn from(request: pb::MemberListRequest) -> Self {
        Self { linearizable: request.linearizable }
    }
}
