//! The place of the transport between members. A cluster of one has nobody to talk to, so every call says
//! *unreachable*: a vote or a pre-vote that was not asked for is never granted, and leadership that cannot be handed
//! over stays.

use std::future::Future;

use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::{RaftNetworkFactory, RaftNetworkV2};

use crate::snapshot::Checkpoint;
use crate::types::{Peer, RaftVote, Snapshot, TypeConfig};

/// Makes the connections to peers.
pub(crate) struct Transport;

/// The connection to one peer.
pub(crate) struct PeerLink {
    target: u64,
    urls: Vec<String>,
}

/// Why a peer could not be called.
#[derive(Debug, thiserror::Error)]
#[error("member {target:x} at {urls:?} cannot be reached: no peer transport, this cluster has one member")]
struct NoTransport {
    target: u64,
    urls: Vec<String>,
}

impl PeerLink {
    fn unreachable(&self) -> Unreachable<TypeConfig> {
        Unreachable::new(&NoTransport { target: self.target, urls: self.urls.clone() })
    }
}

impl RaftNetworkFactory<TypeConfig> for Transport {
    type Network = PeerLink;

    async fn new_client(&mut self, target: u64, node: &Peer) -> PeerLink {
        PeerLink { target, urls: node.urls.clone() }
    }
}

impl RaftNetworkV2<TypeConfig> for PeerLink {
    type SnapshotData = Checkpoint;

    async fn append_entries(
        &mut self,
        _rpc: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        Err(self.unreachable().into())
    }

    async fn vote(
        &mut self,
        _rpc: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        Err(self.unreachable().into())
    }

    /// Never openraft's default, which grants what nobody was asked.
    async fn pre_vote(
        &mut self,
        _rpc: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        Err(self.unreachable().into())
    }

    async fn full_snapshot(
        &mut self,
        _vote: RaftVote,
        _snapshot: Snapshot,
        _cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        Err(self.unreachable().into())
    }

    async fn transfer_leader(
        &mut self,
        _req: TransferLeaderRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        Err(self.unreachable().into())
    }
}
