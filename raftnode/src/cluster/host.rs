//! What requests of peers are answered from.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use openraft::async_runtime::watch::WatchReceiver as _;

use super::changes::Changes;
use super::leadership::{Leader, Leadership};
use crate::ask::Answering;
use crate::barrier::{Barrier, BarrierError};
use crate::fatal::FatalError;
use crate::member::{ClusterView, MemberChange, MemberError, PeerMember};
use crate::node::RaftHandle;
use crate::peer::{BoxFuture, ForwardRefusal, Host, RefusedSender, Standing, Verdict};
use crate::progress::Shared;
use crate::proposals::Forwarded;
use crate::state_machine::{Live, SharedLive};
use crate::status::RemovedSignal;
use crate::types::Membership;

/// The node, as its peers see it.
pub(crate) struct Inside {
    pub(crate) cluster_id: u64,
    pub(crate) member_id: u64,
    pub(crate) raft: RaftHandle,
    pub(crate) barrier: Arc<Barrier>,
    pub(crate) leadership: Leadership,
    pub(crate) changes: Arc<Changes>,
    pub(crate) answering: Answering,
    pub(crate) forwarded: Forwarded,
    pub(crate) shared: Arc<Shared>,
    pub(crate) live: SharedLive,
    pub(crate) removed: RemovedSignal,
    pub(crate) twin: Told,
}

/// The members of a membership.
pub(crate) fn peer_members(membership: &Membership) -> Vec<PeerMember> {
    let voters: Vec<u64> = membership.voter_ids().collect();
    membership
        .nodes()
        .map(|(id, peer)| PeerMember { id: *id, peer_urls: peer.urls.clone(), is_learner: !voters.contains(id) })
        .collect()
}

/// The membership in force. That may be one which is not committed yet: a cluster of one that has added a second voter
/// cannot commit that before the second one runs, which has to find itself among the members to start.
pub(crate) fn effective_members(raft: &RaftHandle) -> Vec<PeerMember> {
    peer_members(raft.server_metrics().borrow_watched().membership_config.membership())
}

/// A process that has just been started in place of one that ended is taken for a twin for a moment. One that hears so
/// for longer, and never of a leader meanwhile, is one.
const TWIN_AFTER: Duration = Duration::from_secs(10);

/// Since when this process has been told that another one runs as this member, and when it was told so last.
pub(crate) type Told = Mutex<Option<(Instant, Instant)>>;

impl Inside {
    fn told_of_twin(&self, by: u64) {
        let now = Instant::now();
        let mut told = self.twin.lock().unwrap_or_else(PoisonError::into_inner);
        let lately = |(_, last): &(Instant, Instant)| now.duration_since(*last) < TWIN_AFTER;
        let since = told.filter(lately).map_or(now, |(since, _)| since);
        if self.leadership.now() != Leader::Nobody {
            *told = None;
            return;
        }
        *told = Some((since, now));
        if now.duration_since(since) >= TWIN_AFTER {
            drop(self.shared.fatal.set(FatalError::Refused { by, reason: Verdict::Twin.to_string() }));
        }
    }
}

impl Host for Inside {
    fn raft(&self) -> RaftHandle {
        self.raft.clone()
    }

    fn standing(&self, member: u64) -> Standing {
        let reads = &self.live.load().reads;
        if reads.removed_members().contains(&member) {
            return Standing::Removed;
        }
        let record = reads.members().iter().find(|record| record.id == member).map(|record| record.directory);
        match record {
            Some(directory) => Standing::Known { directory: Some(directory).filter(|uuid| *uuid != [0; 16]) },
            None => Standing::Unknown,
        }
    }

    fn log_last(&self) -> u64 {
        self.shared.last.load(Ordering::Acquire)
    }

    fn applied(&self) -> u64 {
        self.shared.applied.get()
    }

    fn told(&self, verdict: Verdict, by: u64) {
        match verdict {
            Verdict::Removed => {
                tracing::warn!(by = format!("{by:x}"), "a peer says that this member was removed from the cluster");
                self.removed.send_replace(true);
            }
            verdict @ (Verdict::DirectoryReplaced | Verdict::Behind { .. }) => {
                let reason = verdict.to_string();
                drop(self.shared.fatal.set(FatalError::Refused { by, reason }));
            }
            Verdict::Twin => self.told_of_twin(by),
            // Configured wrongly on one side or the other, which may be mended while this runs.
            Verdict::WrongCluster { .. } | Verdict::WrongReceiver { .. } | Verdict::Version { .. } => {}
        }
    }

    fn read_index(&self) -> BoxFuture<Result<u64, BarrierError>> {
        let here = matches!(self.leadership.now(), Leader::Here { .. });
        let barrier = Arc::clone(&self.barrier);
        async move { if here { barrier.index_for_member().await } else { Err(BarrierError::NoLeader) } }.boxed()
    }

    fn change_members(&self, change: MemberChange) -> BoxFuture<Result<(), MemberError>> {
        let changes = Arc::clone(&self.changes);
        async move { changes.carry_out_for_member(change).await }.boxed()
    }

    fn ask(&self, kind: u8, question: Bytes) -> BoxFuture<Option<Bytes>> {
        let (answering, leadership) = (self.answering.clone(), self.leadership.clone());
        async move { answering.answer(&leadership, kind, question).await }.boxed()
    }

    fn forwarded(&self, from: u64, payloads: Vec<Bytes>, refused: RefusedSender) -> Result<(), ForwardRefusal> {
        self.forwarded.accept(from, payloads, refused)
    }

    fn view(&self) -> ClusterView {
        let reads = self.live.load().reads.clone();
        let (records, removed) = (reads.members(), reads.removed_members().to_vec());
        let name = |id: u64| records.iter().find(|record| record.id == id).map(|record| record.name.clone());
        let members = effective_members(&self.raft);
        let leader = self.leadership.now().id(self.member_id);
        let members = members.into_iter().map(|member| {
            let name = name(member.id).unwrap_or_default();
            (member, name)
        });
        ClusterView {
            cluster_id: self.cluster_id,
            member_id: self.member_id,
            leader,
            members: members.collect(),
            removed,
        }
    }

    fn live(&self) -> Arc<Live> {
        self.live.load_full()
    }
}
