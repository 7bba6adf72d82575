//! Starting a node: from opened storage to a running consensus.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use arc_swap::ArcSwap;
use openraft::Raft;
use openraft::errors::Fatal;
use tally_wal::Recovered;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use crate::codec::{CodecError, decode_vote};
use crate::config::{ApplyLimits, Config, ConfigError};
use crate::fatal::FatalError;
use crate::log_store::{Found, LogStore};
use crate::node::RaftHandle;
use crate::peer::{Local, Net};
use crate::progress::Shared;
use crate::proposals::{Unsent, Waiting};
use crate::replay::{ReplayError, replay};
use crate::state_machine::{Live, SharedLive, StateMachine};
use crate::storage::{DirectoryLock, Storage};
use crate::types::{Peer, RaftLogId, TypeConfig, log_id_at, log_index};

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting cannot work.
    #[error("the configuration cannot work")]
    Config(#[from] ConfigError),
    /// The data belongs to somebody else than the configuration says.
    #[error(
        "the storage is of cluster {found_cluster:x} member {found_member:x}, the configuration says cluster \
         {expected_cluster:x} member {expected_member:x}"
    )]
    Identity {
        /// The cluster of the storage.
        found_cluster: u64,
        /// The member of the storage.
        found_member: u64,
        /// The cluster configured.
        expected_cluster: u64,
        /// The member configured.
        expected_member: u64,
    },
    /// The vote in the log cannot be read.
    #[error("the vote in the log cannot be read")]
    Vote(#[source] CodecError),
    /// What was committed could not be applied again.
    #[error("cannot bring the store up to what the log says is committed")]
    Replay(#[from] ReplayError),
    /// The node failed while it started.
    #[error("the node failed while it started")]
    Fatal(#[source] FatalError),
    /// The cluster could not be founded.
    #[error("cannot found the cluster: {reason}")]
    Bootstrap {
        /// What consensus said.
        reason: String,
    },
}

/// A running consensus and what the node keeps beside it.
pub(crate) struct Started {
    pub(crate) raft: RaftHandle,
    pub(crate) net: Net,
    pub(crate) shared: Arc<Shared>,
    pub(crate) waiting: Arc<Waiting>,
    pub(crate) again: mpsc::UnboundedReceiver<Unsent>,
    pub(crate) log: LogStore,
    pub(crate) machine: oneshot::Receiver<Infallible>,
    pub(crate) live: SharedLive,
    pub(crate) lock: DirectoryLock,
}

pub(crate) async fn start(config: &Config, storage: Storage) -> Result<Started, StartError> {
    let consensus = Arc::new(config.consensus()?);
    check_identity(config, &storage.recovered)?;
    let directory = storage.recovered.metadata.directory_uuid;
    let Assembled { log, mut machine, shared, waiting, again, live, released, lock, replay_upto, pristine } =
        assemble(storage, config.apply)?;
    machine.observe(config.apply_observer.clone());
    let local =
        Local { cluster_id: config.cluster_id, member_id: config.member_id, directory, start_id: waiting.origin() };
    let net = Net::new(config.net(), local);
    let first = shared.applied.get() + 1;
    if first <= replay_upto {
        tracing::info!(first, last = replay_upto, "applying what was committed and is not in the store yet");
        replay(&mut machine, log.reader(), first, replay_upto, config.apply).await?;
    }
    let raft: RaftHandle = Raft::new(config.member_id, consensus, net.transport(), log.clone(), machine)
        .await
        .map_err(|error| failed(&shared, &error))?;
    if pristine && !config.founders.is_empty() {
        found_cluster(config, &raft, &shared).await?;
    } else {
        elect_if_alone(config.member_id, &raft, &shared).await.map_err(|error| failed(&shared, &error))?;
    }
    Ok(Started { raft, net, shared, waiting, again, log, machine: released, live, lock })
}

/// Every founder writes the same first entry, so it does not matter who does it first.
async fn found_cluster(config: &Config, raft: &RaftHandle, shared: &Shared) -> Result<(), StartError> {
    let founders = config.founders.iter().map(|founder| (founder.id, Peer { urls: founder.peer_urls.clone() }));
    raft.initialize(founders.collect::<BTreeMap<_, _>>()).await.map_err(|error| match error.fatal() {
        Some(fatal) => failed(shared, fatal),
        None => StartError::Bootstrap { reason: error.to_string() },
    })
}

/// Opened storage in the form in which openraft takes it.
pub(crate) struct Assembled {
    pub(crate) log: LogStore,
    pub(crate) machine: StateMachine,
    pub(crate) shared: Arc<Shared>,
    pub(crate) waiting: Arc<Waiting>,
    pub(crate) again: mpsc::UnboundedReceiver<Unsent>,
    pub(crate) live: SharedLive,
    pub(crate) released: oneshot::Receiver<Infallible>,
    pub(crate) lock: DirectoryLock,
    /// What the log says is committed.
    pub(crate) replay_upto: u64,
    /// Nothing has ever happened here.
    pub(crate) pristine: bool,
}

pub(crate) fn assemble(storage: Storage, limits: ApplyLimits) -> Result<Assembled, StartError> {
    let Storage { wal, recovered, backend, applier, reads, kv, lock } = storage;
    let found = found(&recovered)?;
    let pristine = found.last.is_none() && found.purged.is_none() && found.vote.is_none();
    let index = |id: Option<RaftLogId>| id.map_or(0, |id| log_index(id.index));
    let replay_upto = index(found.committed);
    let shared = Arc::new(Shared::new(
        index(found.last.or(found.purged)),
        replay_upto,
        applier.applied().index,
        backend.durable().index,
        index(found.purged),
    ));
    let store = backend.path().to_path_buf();
    let live = SharedLive::new(ArcSwap::from_pointee(Live { backend, reads, kv }));
    // Random, so that what an earlier process of this member proposed is not taken for this one's.
    let (origin, _) = Uuid::new_v4().as_u64_pair();
    let (waiting, again) = Waiting::new(origin, Arc::clone(&shared));
    let (machine, released) =
        StateMachine::new(applier, Arc::clone(&live), Arc::clone(&shared), Arc::clone(&waiting), limits);
    let log = LogStore::new(wal, found, Arc::clone(&shared), recovered.metadata.member_id, &store);
    Ok(Assembled { log, machine, shared, waiting, again, live, released, lock, replay_upto, pristine })
}

/// The only voter need not wait for an election timeout: nobody else can lead.
async fn elect_if_alone(member_id: u64, raft: &RaftHandle, shared: &Shared) -> Result<(), Fatal<TypeConfig>> {
    let found = move |state: &openraft::RaftState<TypeConfig>| {
        let membership = state.membership_state.effective();
        (membership.voter_ids().eq([member_id]), membership.nodes().map(|(id, _)| *id).eq([member_id]))
    };
    let (elects, alone) = raft.with_raft_state(found).await?;
    shared.sole.found(alone);
    if elects {
        raft.trigger().elect(false).await?;
    }
    Ok(())
}

fn check_identity(config: &Config, recovered: &Recovered) -> Result<(), StartError> {
    let found = &recovered.metadata;
    if (found.cluster_id, found.member_id) == (config.cluster_id, config.member_id) {
        return Ok(());
    }
    Err(StartError::Identity {
        found_cluster: found.cluster_id,
        found_member: found.member_id,
        expected_cluster: config.cluster_id,
        expected_member: config.member_id,
    })
}

fn found(recovered: &Recovered) -> Result<Found, StartError> {
    Ok(Found {
        vote: decode_vote(&recovered.state.vote).map_err(StartError::Vote)?,
        committed: recovered.state.committed.and_then(log_id_at),
        purged: recovered.purged.and_then(log_id_at),
        last: recovered.last.and_then(log_id_at),
    })
}

fn failed(shared: &Shared, error: &Fatal<TypeConfig>) -> StartError {
    let reason = error.to_string();
    StartError::Fatal(shared.fatal.get().unwrap_or(FatalError::Consensus { reason }))
}
