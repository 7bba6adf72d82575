//! openraft's network: one [`PeerLink`] per task that speaks to a peer, each with a connection of its own.

use std::future::Future;
use std::iter;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{Stream, StreamExt, stream};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{RaftNetworkFactory, RaftNetworkV2};

use super::duplex::{Duplex, OpenError};
use super::flow::Flow;
use super::frame::Kind;
use super::net::Net;
use super::outgoing::Task;
use super::peers::Peer;
use super::{CallError, control, serve, snapshot};
use crate::snapshot::Checkpoint;
use crate::types::{Peer as PeerNode, RaftVote, Snapshot, TypeConfig};

/// The first pause of a task that cannot reach its peer; doubled up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(20);
/// The longest pause. Attempts to connect have a pause of their own ([`Peer::pause`]), which ends as soon as the peer
/// shows that it is there; this one comes on top.
const BACKOFF_MAX: Duration = Duration::from_millis(100);

/// Makes the links.
pub(crate) struct Transport {
    net: Net,
}

impl Transport {
    pub(super) fn new(net: Net) -> Transport {
        Transport { net }
    }

    fn link(&self, target: u64, node: &PeerNode, role: Role) -> PeerLink {
        let peer = self.net.peer(target);
        peer.set_urls(&node.urls);
        PeerLink { net: self.net.clone(), peer, role, session: 0, channel: Channel::Closed }
    }
}

impl RaftNetworkFactory<TypeConfig> for Transport {
    type Network = PeerLink;

    async fn new_client(&mut self, target: u64, node: &PeerNode) -> PeerLink {
        self.link(target, node, Role::Log)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &PeerNode) -> PeerLink {
        self.link(target, node, Role::Heartbeat)
    }
}

/// What a link is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Entries, votes or a snapshot.
    Log,
    /// Heartbeats only.
    Heartbeat,
}

/// One task's way to one peer.
pub(crate) struct PeerLink {
    pub(super) net: Net,
    pub(super) peer: Arc<Peer>,
    pub(super) role: Role,
    /// Counts the streams of appends. A result of an earlier one is never taken for one of a later one.
    pub(super) session: u64,
    pub(super) channel: Channel,
}

/// The channel of a link, kept from one stream of appends to the next.
pub(super) enum Channel {
    Closed,
    /// Goes on when the stream that wanted it has been given up, for the next one.
    Opening(Task<Result<Duplex, OpenError>>),
    Open(Box<Live>),
}

/// An open channel.
pub(super) struct Live {
    pub(super) duplex: Duplex,
    /// Since when a request waits and nothing has come.
    pub(super) unanswered_since: Option<Instant>,
}

impl PeerLink {
    /// Opens the channel, unless it is open. Cancel safe: opening goes on, and the next call waits for it.
    pub(super) async fn open(&mut self) -> Result<(), RPCError<TypeConfig>> {
        if matches!(self.channel, Channel::Closed) {
            let (net, peer) = (self.net.clone(), Arc::clone(&self.peer));
            self.channel = Channel::Opening(Task::spawn(async move { Duplex::open(&net, &peer, serve::APPEND).await }));
        }
        if let Channel::Opening(task) = &mut self.channel {
            let opened = task.result().await;
            self.channel = Channel::Closed;
            let duplex = match opened {
                Ok(Ok(duplex)) => duplex,
                Ok(Err(error)) => return Err(self.unreachable(&error)),
                Err(_) => return Err(self.unreachable(&"the runtime is stopping")),
            };
            self.channel = Channel::Open(Box::new(Live { duplex, unanswered_since: None }));
        }
        Ok(())
    }

    /// The peer cannot be reached; openraft pauses before it tries again.
    pub(super) fn unreachable(&self, reason: &dyn std::fmt::Display) -> RPCError<TypeConfig> {
        Unreachable::from_string(format!("member {:x}: {reason}", self.peer.id)).into()
    }

    fn failed(error: &CallError) -> RPCError<TypeConfig> {
        match error {
            CallError::NotSent { .. } => Unreachable::new(error).into(),
            CallError::Unclear { .. } => NetworkError::new(error).into(),
        }
    }
}

impl RaftNetworkV2<TypeConfig> for PeerLink {
    type SnapshotData = Checkpoint;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let unanswered = self.unreachable(&"the channel ended without an answer");
        let mut results = self.stream_append(Box::pin(stream::once(async { rpc })), option).await?;
        results.next().await.unwrap_or(Err(unanswered)).map(AppendEntriesResponse::from)
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>, RPCError<TypeConfig>>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        let flow = Flow::new(self, input);
        let results = stream::unfold(flow, |mut flow| async move {
            let result = flow.next().await?;
            Some((result, flow))
        });
        let results: BoxStream<'s, _> = Box::pin(results);
        Box::pin(async move { Ok(results) })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let answer = control::vote(&self.net, &self.peer, Kind::Vote, &rpc, option.hard_ttl()).await;
        answer.map_err(|error| PeerLink::failed(&error))
    }

    /// Never openraft's default, which grants what nobody was asked.
    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let answer = control::vote(&self.net, &self.peer, Kind::PreVote, &rpc, option.hard_ttl()).await;
        answer.map_err(|error| PeerLink::failed(&error))
    }

    async fn full_snapshot(
        &mut self,
        vote: RaftVote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        snapshot::send(&self.net, &self.peer, vote, snapshot, cancel).await
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let answer = control::transfer(&self.net, &self.peer, &req, option.hard_ttl()).await;
        answer.map_err(|error| PeerLink::failed(&error))
    }

    fn backoff(&self) -> Option<Backoff> {
        let pauses = iter::successors(Some(BACKOFF_MIN), |pause| Some((*pause * 2).min(BACKOFF_MAX)));
        Some(Backoff::new(pauses))
    }
}
