//! The node: a handle over openraft and the tasks around it.

use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use openraft::Raft;
use tally_apply::{AlarmKind, Outcome, Reads};
use tally_backend::{Size, StorageError};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::ask::{Answering, AskError, LeaderHandler, ask_leader};
use crate::background;
use crate::barrier::{Barrier, BarrierError, IndexSource};
use crate::cluster::{self, Changes, Inside, Leader, Leadership, effective_members};
use crate::command::EncodedCommand;
use crate::config::Config;
use crate::fatal::FatalError;
use crate::log_store::LogStore;
use crate::member::{MemberChange, MemberError, PeerMember, TransferError};
use crate::peer::Net;
use crate::policy;
use crate::progress::{Progress, Shared};
use crate::proposals::{Parts, Proposals, ProposeError, batcher};
use crate::start::{StartError, Started, start};
use crate::state_machine::{SharedLive, StateMachine};
use crate::status::{self, Follower, RemovedSignal, Status};
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
    member_id: u64,
    raft: RaftHandle,
    net: Net,
    proposals: Proposals,
    barrier: Arc<Barrier>,
    changes: Arc<Changes>,
    answering: Answering,
    leadership: Leadership,
    request_timeout: Duration,
    election_timeout: Duration,
    status: watch::Receiver<Status>,
    shared: Arc<Shared>,
    log: LogStore,
    live: SharedLive,
    removed: RemovedSignal,
    stop_proposals: watch::Sender<bool>,
    stop: watch::Sender<bool>,
    ending: Mutex<Option<Ending>>,
    /// How it ended. Apart from the rest, which is gone, and with it the lock of the directory, when this is told.
    ended: Arc<watch::Sender<Option<Result<(), ShutdownError>>>>,
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
    /// Starts a node: applies what was committed, founds its cluster or waits to be contacted, and serves from then on.
    ///
    /// Returns as soon as consensus runs, which may be before there is a leader: see [`ready`](Node::ready). Its
    /// [`peer_router`](Node::peer_router) must be served before that. Must be called inside a tokio runtime with time
    /// and I/O enabled.
    ///
    /// # Errors
    /// [`StartError`]: settings that cannot work, or data that cannot be read or applied.
    pub async fn start(config: Config, storage: Storage) -> Result<Node, StartError> {
        let Started { raft, net, shared, waiting, again, log, machine, live, lock } = start(&config, storage).await?;
        let member_id = config.member_id;
        for member in effective_members(&raft) {
            net.set_addresses(member.id, &member.peer_urls);
        }
        let wal = log.reader().clone();
        let (stop_proposals, stop) = (watch::Sender::new(false), watch::Sender::new(false));
        let election_timeout = Duration::from_millis(config.election_ms);
        let leadership = Leadership::follow(&raft, net.clone(), member_id, election_timeout);
        let timeout = Duration::from_millis(config.request_timeout_ms);
        let parts = Parts {
            raft: raft.clone(),
            net: net.clone(),
            leadership: leadership.clone(),
            waiting,
            again,
            shared: Arc::clone(&shared),
        };
        let (proposals, forwarded, task) = batcher(&config, parts);
        let batcher = tokio::spawn(task.run(raised(stop_proposals.subscribe())));

        let barrier = Arc::new(Barrier::new(Arc::clone(&shared)));
        let source = IndexSource {
            raft: raft.clone(),
            net: net.clone(),
            leadership: leadership.clone(),
            shared: Arc::clone(&shared),
            timeout,
        };
        tokio::spawn(Arc::clone(&barrier).run(source, raised(stop.subscribe())));

        let (status_sender, status) = watch::channel(Status::default());
        let removed = RemovedSignal::new(watch::Sender::new(false));
        let follower = Follower {
            status: status_sender,
            raft: raft.clone(),
            leadership: leadership.clone(),
            member_id,
            shared: Arc::clone(&shared),
            net: net.clone(),
            removed: Arc::clone(&removed),
        };
        tokio::spawn(status::run(follower, raised(stop.subscribe())));

        let changes = Arc::new(Changes {
            member_id,
            max_learners: config.max_learners,
            strict: config.strict_reconfig,
            timeout,
            raft: raft.clone(),
            net: net.clone(),
            barrier: Arc::clone(&barrier),
            proposals: proposals.clone(),
            leadership: leadership.clone(),
            shared: Arc::clone(&shared),
            live: Arc::clone(&live),
            turn: Arc::default(),
        });
        let (finishing, stopping) = (Arc::clone(&changes).finish_what_was_begun(), raised(stop.subscribe()));
        tokio::spawn(async move {
            tokio::select! {
                () = finishing => {}
                () = stopping => {}
            }
        });
        let answering = Answering::default();
        net.set_host(Arc::new(Inside {
            cluster_id: config.cluster_id,
            member_id,
            raft: raft.clone(),
            barrier: Arc::clone(&barrier),
            leadership: leadership.clone(),
            changes: Arc::clone(&changes),
            answering: answering.clone(),
            forwarded,
            shared: Arc::clone(&shared),
            live: Arc::clone(&live),
            removed: Arc::clone(&removed),
            twin: Mutex::default(),
        }));
        tokio::spawn(policy::run(
            config,
            raft.clone(),
            net.clone(),
            wal,
            Arc::clone(&shared),
            raised(stop.subscribe()),
        ));
        let inner = Inner {
            member_id,
            raft,
            net,
            proposals,
            barrier,
            changes,
            answering,
            leadership,
            request_timeout: timeout,
            election_timeout,
            status,
            shared,
            log,
            live,
            removed,
            stop_proposals,
            stop,
            ending: Mutex::new(Some(Ending { batcher, machine })),
            ended: Arc::new(watch::Sender::new(None)),
            _lock: lock,
        };
        Ok(Node { inner: Arc::new(inner) })
    }

    /// Waits until this member can serve: a leader has been confirmed, and everything committed by then is applied here.
    ///
    /// Without a quorum this waits for one, however long that takes.
    ///
    /// # Errors
    /// The fatal error, if the node fails, or [`BarrierError::Stopped`].
    pub async fn ready(&self) -> Result<(), BarrierError> {
        let others = self.members().into_iter().map(|member| member.id).filter(|id| *id != self.inner.member_id);
        self.inner.net.knock(others);
        loop {
            match self.read_barrier().await {
                Ok(_) => return Ok(()),
                Err(error @ (BarrierError::Stopped | BarrierError::Fatal(_))) => return Err(error),
                Err(BarrierError::NoLeader | BarrierError::NoQuorum) => {}
            }
        }
    }

    /// Proposes a command, whoever leads. The future resolves to its outcome once it is durable on a majority, and
    /// durable and applied here; dropping the future takes the proposal back only while no leader has it.
    ///
    /// An election is a pause: what the old leader can no longer carry out is proposed to the new one, once.
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
    /// call, and everything committed by then is applied here. The only member need not wait. Resolves to an applied index.
    ///
    /// # Errors
    /// [`BarrierError`]; nothing was read, so trying again is safe.
    pub fn read_barrier(&self) -> impl Future<Output = Result<u64, BarrierError>> + Send + 'static {
        self.inner.barrier.join()
    }

    /// Confirms that this member leads, by a quorum round that begins after this call, and waits until everything committed
    /// by then is applied here. Resolves to the term it leads in; to none if it does not lead.
    ///
    /// Another leader may follow at any moment: what depends on this one's term has to name it.
    ///
    /// # Errors
    /// [`BarrierError`]: nobody knows who leads.
    pub async fn confirm_leadership(&self) -> Result<Option<u64>, BarrierError> {
        let leader = self.inner.leadership.now();
        let Leader::Here { term } = leader else { return Ok(None) };
        self.read_barrier().await?;
        Ok((self.inner.leadership.now() == leader).then_some(term))
    }

    /// The term in which this member leads if it is the only member, and then what [`Node::confirm_leadership`] would find out
    /// is known: no other member can lead, and everything committed is applied here.
    pub fn leads_alone(&self) -> Option<u64> {
        match self.inner.leadership.now() {
            Leader::Here { term } if self.inner.shared.sole.leads() => Some(term),
            _ => None,
        }
    }

    /// Has `handler` answer what members ask of this one while it leads, for as long as the caller keeps it. There is one
    /// handler: a later one takes the place of an earlier one.
    pub fn answer_as_leader(&self, handler: &Arc<impl LeaderHandler>) {
        let handler = Arc::downgrade(handler);
        self.inner.answering.set(handler);
    }

    /// Puts a question of some kind to whoever leads, this member included, and to the next leader if that one is deposed.
    /// It may be heard more than once.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn ask_leader(&self, kind: u8, question: Bytes) -> Result<Bytes, AskError> {
        let Inner { answering, net, shared, leadership, request_timeout, .. } = &*self.inner;
        ask_leader((answering, net, shared), leadership.clone(), *request_timeout, kind, question).await
    }

    /// The members, as of the last membership in this member's log; one that was just asked for may not be committed yet.
    pub fn members(&self) -> Vec<PeerMember> {
        effective_members(&self.inner.raft)
    }

    /// Changes the membership. May be asked of any member; the leader carries it out, one change at a time: this waits
    /// for those of others as long as a request may wait. A change that was begun goes on if nobody waits for it any
    /// more.
    ///
    /// # Errors
    /// [`MemberError`]; after all but [`MemberError::Unclear`], [`MemberError::Stopped`] and [`MemberError::Fatal`] nothing was
    /// changed.
    pub async fn change_members(&self, change: MemberChange) -> Result<(), MemberError> {
        self.inner.changes.change(change).await
    }

    /// Hands leadership over to another voter. Resolves when it leads.
    ///
    /// # Errors
    /// [`TransferError`]; this member then leads on, or somebody else is elected.
    pub async fn transfer_leader(&self, to: u64) -> Result<(), TransferError> {
        self.inner.hand_over(to).await
    }

    /// Hands leadership over to the voter that is the most up to date, if this member leads others; what is proposed here
    /// from then on waits for the next leader. For a planned stop. Returns when somebody else leads, or nobody can.
    pub async fn hand_over(&self) {
        self.inner.leave_leadership().await;
    }

    /// How big the store is.
    ///
    /// # Errors
    /// The store cannot say, or has failed.
    pub fn store_size(&self) -> Result<Size, StorageError> {
        self.inner.live.load().backend.size()
    }

    /// Rewrites the store of this member so that deleted data takes no more space. Blocks; see [`Backend::defragment`].
    ///
    /// # Errors
    /// The store has failed.
    ///
    /// [`Backend::defragment`]: tally_backend::Backend::defragment
    pub fn defragment(&self) -> Result<(), StorageError> {
        let live = self.inner.live.load_full();
        live.backend.defragment()
    }

    /// Resolves when this member has left the cluster for good: the process must then stop. Its data is of no use to
    /// anybody any more.
    pub async fn removed(&self) {
        raised(self.inner.removed.subscribe()).await;
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

    /// The newest revision that [`Node::reads`] has, for those who ask for nothing else.
    pub fn revision(&self) -> i64 {
        self.inner.live.load().reads.kv().revision()
    }

    /// Whether [`Node::reads`] has an alarm of this kind, for those who ask for nothing else.
    pub fn is_alarmed(&self, kind: AlarmKind) -> bool {
        self.inner.live.load().reads.alarmed(kind)
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

    /// Routes for other members, to be served where the peer URLs of this one lead.
    pub fn peer_router(&self) -> Router {
        self.inner.net.router()
    }

    /// Hands leadership over if this member leads others, stops taking proposals, answers those under way, and leaves
    /// everything durable and closed. It goes on if nobody waits for it any more. Idempotent: later calls, also concurrent
    /// ones, have the result of the first.
    ///
    /// # Errors
    /// [`ShutdownError`] if it was not clean.
    pub async fn shutdown(&self) -> Result<(), ShutdownError> {
        let ended = Arc::clone(&self.inner.ended);
        let mut end = ended.subscribe();
        if let Some(ending) = self.inner.ending.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let inner = Arc::clone(&self.inner);
            let stopping = tokio::spawn(async move { inner.stop(ending).await });
            tokio::spawn(async move {
                let result = stopping.await.unwrap_or(Err(ShutdownError::Task));
                ended.send_replace(Some(result));
            });
        }
        let result = end.wait_for(Option::is_some).await;
        result.ok().and_then(|result| result.clone()).unwrap_or(Err(ShutdownError::Task))
    }
}

impl Inner {
    async fn hand_over(&self, to: u64) -> Result<(), TransferError> {
        cluster::hand_over(&self.raft, &self.net, self.leadership.clone(), to, self.election_timeout).await
    }

    /// What clients wait for goes on under the next leader, so a planned stop costs them no more than a moment.
    async fn leave_leadership(&self) {
        if !matches!(self.leadership.now(), Leader::Here { .. }) || self.shared.fatal.get().is_some() {
            return;
        }
        let Some(to) = cluster::successor(&self.raft, &self.net, self.member_id, self.election_timeout).await else {
            return;
        };
        if let Err(error) = self.hand_over(to).await {
            tracing::warn!(%error, "leadership was not handed over; the others elect somebody");
        }
    }

    async fn stop(&self, Ending { batcher, machine }: Ending) -> Result<(), ShutdownError> {
        self.leave_leadership().await;
        self.stop_proposals.send_replace(true);
        let drained = tokio::time::timeout(DRAIN_MAX, batcher).await;
        self.stop.send_replace(true);
        let pending = self.shared.pending.load(Ordering::Relaxed);
        let consensus = self.raft.shutdown().await;
        self.net.close();
        // Resolves, with an error, when the state machine is dropped: nothing is applied after that.
        drop(machine.await);
        // Whoever opens the directory next must find it closed.
        let _left = tokio::task::spawn_blocking(background::settle).await;
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

#[cfg(test)]
#[path = "tests/membership.rs"]
mod tests;
