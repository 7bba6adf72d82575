//! The node: a handle over openraft and the tasks around it.

use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use openraft::Raft;
use tally_apply::{Outcome, Reads};
use tokio::sync::{OnceCell, oneshot, watch};
use tokio::task::JoinHandle;

use crate::barrier::{Barrier, BarrierError};
use crate::batcher::{Proposals, ProposeError, batcher};
use crate::command::EncodedCommand;
use crate::config::Config;
use crate::fatal::FatalError;
use crate::log_store::LogStore;
use crate::policy;
use crate::progress::{Progress, Shared};
use crate::start::{StartError, Started, start};
use crate::state_machine::{SharedLive, StateMachine};
use crate::status::{self, Status};
use crate::storage::{DirectoryLock, Storage};
use crate::types::{TypeConfig, log_id};

pub(crate) type RaftHandle = Raft<TypeConfig, StateMachine>;

/// How long a shutdown waits for proposals under way; without a quorum they never end.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// One Raft member over its storage. Cheap to clone; all clones are the same node.
///
/// The data directory stays locked, and the store open, until [`shutdown`](Node::shutdown) has ended and the last clone
/// is gone.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    raft: RaftHandle,
    proposals: Proposals,
    barrier: Arc<Barrier>,
    status: watch::Receiver<Status>,
    shared: Arc<Shared>,
    log: LogStore,
    live: SharedLive,
    stop_proposals: watch::Sender<bool>,
    stop: watch::Sender<bool>,
    stopped: OnceCell<Result<(), ShutdownError>>,
    ending: Mutex<Option<Ending>>,
    _lock: DirectoryLock,
}

/// What a shutdown waits for.
struct Ending {
    batcher: JoinHandle<()>,
    machine: oneshot::Receiver<Infallible>,
}

/// Why a shutdown was not clean. What was acknowledged is durable all the same.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ShutdownError {
    /// The node had failed before, or failed while it was stopped.
    #[error("the node has failed")]
    Fatal(#[from] FatalError),
    /// Proposals were still under way; their outcome is unknown.
    #[error("{pending} proposals were still under way after {} s: their outcome is unknown", DRAIN_MAX.as_secs())]
    Pending {
        /// How many.
        pending: u64,
    },
    /// A task of the node ended by a panic.
    #[error("a task of the node ended by a panic")]
    Task,
}

/// Resolves when the flag is raised, or when nobody is left to raise it.
pub(crate) async fn raised(mut flag: watch::Receiver<bool>) {
    while !*flag.borrow_and_update() {
        if flag.changed().await.is_err() {
            return;
        }
    }
}

impl Node {
    /// Starts a node: applies what was committed, joins or founds its cluster, and serves from then on.
    ///
    /// Returns as soon as consensus runs, which may be before there is a leader: see [`ready`](Node::ready). Must be
    /// called inside a tokio runtime with time enabled.
    ///
    /// # Errors
    /// [`StartError`]: settings that cannot work, or data that cannot be read or applied.
    pub async fn start(config: Config, storage: Storage) -> Result<Node, StartError> {
        let Started { raft, shared, log, machine, live, lock } = start(&config, storage).await?;
        let (stop_proposals, stop) = (watch::Sender::new(false), watch::Sender::new(false));
        let (proposals, task) = batcher(&config, raft.clone(), Arc::clone(&shared));
        let batcher = tokio::spawn(task.run(raised(stop_proposals.subscribe())));
        let barrier = Arc::new(Barrier::new(Arc::clone(&shared)));
        tokio::spawn(Arc::clone(&barrier).run(raft.clone(), raised(stop.subscribe())));
        let (status_sender, status) = watch::channel(Status::default());
        let stopping = raised(stop.subscribe());
        tokio::spawn(status::run(status_sender, raft.clone(), config.member_id, Arc::clone(&shared), stopping));
        tokio::spawn(policy::run(config, raft.clone(), Arc::clone(&shared), raised(stop.subscribe())));
        let ending = Mutex::new(Some(Ending { batcher, machine }));
        let stopped = OnceCell::new();
        let inner = Inner {
            raft,
            proposals,
            barrier,
            status,
            shared,
            log,
            live,
            stop_proposals,
            stop,
            stopped,
            ending,
            _lock: lock,
        };
        Ok(Node { inner: Arc::new(inner) })
    }

    /// Waits until this member has a leader and can serve: as the leader it has then applied everything that was
    /// committed before it was elected.
    ///
    /// # Errors
    /// The fatal error, if the node fails, or [`BarrierError::Stopped`].
    pub async fn ready(&self) -> Result<(), BarrierError> {
        let mut status = self.inner.status.clone();
        loop {
            let led = status.wait_for(|status| status.leader.is_some() || status.fatal.is_some()).await;
            // What is borrowed here keeps the status from being written, so it must not be kept.
            led.map(drop).map_err(|_| BarrierError::Stopped)?;
            match self.read_barrier().await {
                Ok(_) | Err(BarrierError::NotLeader { .. }) => return Ok(()),
                Err(error @ (BarrierError::Stopped | BarrierError::Fatal(_))) => return Err(error),
                // Leadership has just changed hands: a moment later it is known who has it.
                Err(BarrierError::NoLeader | BarrierError::NoQuorum) => tokio::time::sleep(READY_RETRY).await,
            }
        }
    }

    /// Proposes a command. The future resolves to its outcome once it is durable on a majority, and durable and applied
    /// here; dropping the future does not take the proposal back.
    ///
    /// # Errors
    /// [`ProposeError`] says for each case whether the command may still be carried out.
    pub fn propose(
        &self,
        command: impl Into<EncodedCommand>,
    ) -> impl Future<Output = Result<Outcome, ProposeError>> + Send + 'static {
        let submitted = self.inner.proposals.submit(command.into());
        async move { submitted?.await.unwrap_or(Err(ProposeError::Stopped)) }
    }

    /// Waits until a read here is linearizable: leadership has been confirmed by a quorum round that began after this
    /// call, and everything committed by then is applied. Resolves to an applied index.
    ///
    /// # Errors
    /// [`BarrierError`]; nothing was read, so trying again is safe.
    pub fn read_barrier(&self) -> impl Future<Output = Result<u64, BarrierError>> + Send + 'static {
        self.inner.barrier.join()
    }

    /// What the node says about itself: leadership as it changes, counters a few times a second.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.inner.status.clone()
    }

    /// How far the node is, now. A few atomic loads.
    pub fn progress(&self) -> Progress {
        self.inner.shared.progress()
    }

    /// Committed entries that are not applied yet. Two atomic loads: cheap enough to ask before every put.
    pub fn apply_gap(&self) -> u64 {
        self.inner.shared.apply_gap()
    }

    /// The readers' side of the state machine. Ask for it anew for every request: a snapshot received from the leader
    /// replaces it.
    pub fn reads(&self) -> Reads {
        self.inner.live.load().reads.clone()
    }

    /// Waits for the error after which the process must end with a non-zero status. Nothing is acknowledged after it.
    pub async fn fatal(&self) -> FatalError {
        self.inner.shared.fatal.wait().await
    }

    /// Makes the store durable and drops what the log need not keep, as the policy would do at some time. Resolves when
    /// the store is durable.
    ///
    /// # Errors
    /// The fatal error, if the node fails or has stopped.
    pub async fn snapshot(&self) -> Result<u64, FatalError> {
        let applied = self.inner.shared.applied.get();
        let stopped = |error: &dyn std::fmt::Display| {
            let reason = format!("no snapshot was made: {error}");
            self.inner.shared.fatal.get().unwrap_or(FatalError::Consensus { reason })
        };
        let upto = log_id(applied, 0).map(|id| id.index);
        let mut progress = self.inner.raft.watch_snapshot_progress();
        while progress.get().map(|id| id.index) < upto {
            // Dropped if one is being built already; that one ends with a change, and then this is asked again.
            self.inner.raft.trigger().snapshot().await.map_err(|error| stopped(&error))?;
            progress.changed().await.map_err(|error| stopped(&error))?;
        }
        Ok(self.inner.shared.durable.load(Ordering::Acquire))
    }

    /// Routes for other members. A cluster of one has none: every request is refused.
    pub fn peer_router(&self) -> Router {
        Router::new().fallback(|| async {
            (StatusCode::NOT_FOUND, "this cluster has one member: there is nothing for peers here\n")
        })
    }

    /// Stops taking proposals, answers those under way, and leaves everything durable and closed. Idempotent: later
    /// calls, also concurrent ones, have the result of the first.
    ///
    /// # Errors
    /// [`ShutdownError`] if it was not clean.
    pub async fn shutdown(&self) -> Result<(), ShutdownError> {
        self.inner.stopped.get_or_init(|| self.inner.stop()).await.clone()
    }
}

/// How long [`Node::ready`] waits when leadership has just changed hands.
const READY_RETRY: Duration = Duration::from_millis(5);

impl Inner {
    async fn stop(&self) -> Result<(), ShutdownError> {
        let ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Ending { batcher, machine }) = ending else { return Ok(()) };
        self.stop_proposals.send_replace(true);
        let drained = tokio::time::timeout(DRAIN_MAX, batcher).await;
        self.stop.send_replace(true);
        let pending = self.shared.pending.load(Ordering::Relaxed);
        let consensus = self.raft.shutdown().await;
        // Resolves, with an error, when the state machine is dropped: nothing is applied after that.
        drop(machine.await);
        if let Some(error) = self.shared.fatal.get() {
            return Err(error.into());
        }
        let (log, backend) = (self.log.clone(), self.live.load().backend.clone());
        let closed = tokio::task::spawn_blocking(move || {
            log.close()?;
            backend.sync().map(drop).map_err(|error| FatalError::Snapshot(Arc::new(error)))
        });
        closed.await.map_err(|_| ShutdownError::Task)??;
        match (drained, consensus) {
            (Ok(Ok(())), Ok(())) => Ok(()),
            (Err(_), _) => Err(ShutdownError::Pending { pending }),
            (Ok(_), _) => Err(ShutdownError::Task),
        }
    }
}
