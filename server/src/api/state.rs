//! What the handlers share: handles to the rooms below, limits, figures. No logic.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tally_apply::{AlarmKind, Reads};
use tally_raftnode::{Node, Status};
use tokio::sync::{Semaphore, watch};

use crate::api::metrics::Metrics;
use crate::api::stream::Others;
use crate::api::watch::Watches;
use crate::error::{ApiError, Effect};
use crate::jobs::Lessor;
use crate::leadership::Leadership;
use crate::metrics::Sizes;
use crate::preflight::{self, Quota};
use crate::wire::{Header, Identity};

/// Range answers that are being sent in pieces at the same time; each keeps one view of the store.
const STREAMS_MAX: usize = 64;
/// Reads whose cost grows with the store that run at the same time; others wait.
const HEAVY_READS_MAX: usize = 4;

/// What requests may cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// The largest write request, in bytes of etcd's protobuf form (`max-request-bytes`).
    pub(crate) request_bytes_max: u64,
    /// Compares or operations in a transaction (`max-txn-ops`).
    pub(crate) txn_ops_max: usize,
    /// What the store may hold (`quota-backend-bytes`); `None` is no limit.
    pub(crate) quota_bytes: Option<u64>,
    /// The least time to live of a lease, in seconds; shorter ones are raised to it.
    pub(crate) lease_ttl_min_s: i64,
    /// After so long without a leader there is an election.
    pub(crate) election_timeout: Duration,
    /// How long a request may wait for consensus before its answer is that nobody knows (5 s + 2 × election timeout).
    pub(crate) request_timeout: Duration,
}

/// What a [`State`] is made of.
pub(crate) struct Parts {
    pub(crate) node: Node,
    pub(crate) leadership: Arc<Leadership>,
    pub(crate) lessor: Arc<Lessor>,
    /// The size of the store, which a job refreshes.
    pub(crate) sizes: Arc<Sizes>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) cluster_id: u64,
    pub(crate) member_id: u64,
    /// The etcd version whose API this is, as status tells it.
    pub(crate) version: &'static str,
    pub(crate) limits: Limits,
    pub(crate) watches: Arc<Watches>,
}

/// What the handlers share.
pub(crate) struct State {
    pub(crate) node: Node,
    pub(crate) lessor: Arc<Lessor>,
    pub(crate) leadership: Arc<Leadership>,
    pub(crate) sizes: Arc<Sizes>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) member_id: u64,
    pub(crate) version: &'static str,
    pub(crate) quota: Quota,
    pub(crate) status: watch::Receiver<Status>,
    pub(crate) streams: Arc<Semaphore>,
    pub(crate) heavy_reads: Arc<Semaphore>,
    pub(crate) others: Others,
    /// Whose turn it is to hash all keys. Who asks may ask again before that is done, and other reads go on meanwhile.
    pub(crate) hashing: Arc<Semaphore>,
    /// Whose turn it is to defragment.
    pub(crate) defragment: Arc<Semaphore>,
    pub(crate) request_bytes_max: usize,
    pub(crate) body_bytes_max: usize,
    pub(crate) txn_ops_max: usize,
    pub(crate) lease_ttl_min_s: i64,
    pub(crate) election_timeout: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) watches: Arc<Watches>,
    identity: Identity,
}

impl State {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { node, lessor, leadership, sizes, metrics, cluster_id, member_id, version, limits, watches } = parts;
        let request_bytes_max = usize::try_from(limits.request_bytes_max).unwrap_or(usize::MAX);
        Self {
            status: node.status(),
            node,
            lessor,
            leadership,
            sizes,
            metrics,
            member_id,
            version,
            quota: Quota::new(limits.quota_bytes),
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            others: Others::here(),
            heavy_reads: Arc::new(Semaphore::new(HEAVY_READS_MAX)),
            hashing: Arc::new(Semaphore::new(1)),
            defragment: Arc::new(Semaphore::new(1)),
            request_bytes_max,
            body_bytes_max: preflight::body_bytes_max(request_bytes_max),
            txn_ops_max: limits.txn_ops_max,
            lease_ttl_min_s: limits.lease_ttl_min_s,
            election_timeout: limits.election_timeout,
            request_timeout: limits.request_timeout,
            watches,
            identity: Identity::new(cluster_id, member_id),
        }
    }

    /// The header of a response at this revision.
    pub(crate) fn header(&self, revision: i64) -> Header<'_> {
        Header { identity: &self.identity, revision, term: self.status.borrow().term }
    }

    /// What has been applied here, to be asked for anew by every request: a state received from the leader replaces it.
    pub(crate) fn reads(&self) -> Reads {
        self.node.reads()
    }

    /// Whether this member knows a leader.
    pub(crate) fn has_leader(&self) -> bool {
        self.status.borrow().leader.is_some()
    }

    /// A learner is not asked by clients, but for what operators and backups need.
    pub(crate) fn refuse_if_learner(&self) -> Result<(), ApiError> {
        if self.status.borrow().is_learner { Err(ApiError::Learner) } else { Ok(()) }
    }

    /// What a request hears that began at `started` and took too long.
    pub(crate) fn timed_out(&self, started: Instant, effect: Effect) -> ApiError {
        ApiError::TimedOut(effect, self.leadership.cause(started))
    }

    /// Once replicas are known to differ, no data of theirs is handed out. (etcd goes on answering reads.)
    pub(crate) fn refuse_if_corrupt(&self) -> Result<(), ApiError> {
        if self.node.is_alarmed(AlarmKind::Corrupt) { Err(ApiError::CorruptCluster) } else { Ok(()) }
    }

    /// Bytes that the store has on disk and in memory tables; up to a second old.
    pub(crate) fn allocated_bytes(&self) -> u64 {
        self.sizes.allocated.load(Ordering::Relaxed)
    }

    /// Bytes that the store has, on disk or in memory, whichever is more: what the quota bounds. Up to a second old.
    pub(crate) fn occupied_bytes(&self) -> u64 {
        self.sizes.occupied()
    }

    /// Bytes of them that hold live data; up to a second old.
    pub(crate) fn in_use_bytes(&self) -> u64 {
        self.sizes.in_use.load(Ordering::Relaxed)
    }
}
