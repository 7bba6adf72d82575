//! Linearizable reads: everybody who waits at one moment shares one confirmation of leadership.
//!
//! A reader joins the round that has *not yet begun*; the task begins it after that, asks openraft for the read index
//! (a quorum round that starts now), waits until this replica has applied that far, and lets the whole round go. A
//! round under way takes nobody in: a confirmation that began before a read cannot prove anything to it.
//!
//! Joining is one short lock and one reference count; no channel and no allocation per reader.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use openraft::ReadPolicy;
use openraft::errors::{LinearizableReadError, RaftError};
use tokio::sync::Notify;

use crate::fatal::FatalError;
use crate::node::RaftHandle;
use crate::progress::Shared;
use crate::types::log_index;

/// Why a read cannot be linearizable now.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BarrierError {
    /// There is no leader at the moment.
    #[error("there is no leader; try again")]
    NoLeader,
    /// Another member leads.
    #[error("member {leader:x} leads; ask it")]
    NotLeader {
        /// The leader.
        leader: u64,
    },
    /// A majority did not answer in time.
    #[error("a majority of the members did not confirm the leader in time; try again")]
    NoQuorum,
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopped,
    /// The node has failed.
    #[error("the node has failed")]
    Fatal(#[source] FatalError),
}

/// The index that was confirmed and is applied.
type Confirmed = Result<u64, BarrierError>;

/// A round whose confirmation is under way.
type Asked = Option<(Arc<Round>, Pin<Box<dyn Future<Output = Confirmed> + Send>>)>;

/// The readers' side.
pub(crate) struct Barrier {
    next: Mutex<NextRound>,
    begin: Notify,
    shared: Arc<Shared>,
}

struct NextRound {
    round: Arc<Round>,
    /// Somebody has joined it, so it has to be held.
    wanted: bool,
    /// No round will be held any more.
    closed: Option<BarrierError>,
}

#[derive(Default)]
struct Round {
    state: Mutex<RoundState>,
}

#[derive(Default)]
struct RoundState {
    result: Option<Confirmed>,
    wakers: Vec<Waker>,
}

impl Round {
    fn lock(&self) -> MutexGuard<'_, RoundState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(&self, result: Confirmed) {
        let wakers = {
            let mut state = self.lock();
            state.result = Some(result);
            std::mem::take(&mut state.wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// One reader waiting for its round.
#[derive(Debug)]
#[must_use = "a read is linearizable only after this has been awaited"]
pub(crate) struct Waiting {
    round: Arc<Round>,
    slot: Option<usize>,
}

impl std::fmt::Debug for Round {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Round")
    }
}

impl Future for Waiting {
    type Output = Confirmed;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Confirmed> {
        let round = Arc::clone(&self.round);
        let mut state = round.lock();
        if let Some(result) = &state.result {
            return Poll::Ready(result.clone());
        }
        match self.slot {
            Some(slot) => state.wakers[slot].clone_from(context.waker()),
            None => {
                self.slot = Some(state.wakers.len());
                state.wakers.push(context.waker().clone());
            }
        }
        Poll::Pending
    }
}

impl Barrier {
    pub(crate) fn new(shared: Arc<Shared>) -> Barrier {
        let next = NextRound { round: Arc::default(), wanted: false, closed: None };
        Barrier { next: Mutex::new(next), begin: Notify::new(), shared }
    }

    fn lock(&self) -> MutexGuard<'_, NextRound> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins the next round.
    pub(crate) fn join(&self) -> Waiting {
        let mut next = self.lock();
        let round = Arc::clone(&next.round);
        if let Some(error) = &next.closed {
            round.finish(Err(error.clone()));
        } else if !next.wanted {
            next.wanted = true;
            self.begin.notify_one();
        }
        Waiting { round, slot: None }
    }

    /// Takes the round that readers have joined so far; from here on they join another one.
    fn take(&self) -> Option<Arc<Round>> {
        let mut next = self.lock();
        if !std::mem::take(&mut next.wanted) {
            return None;
        }
        Some(std::mem::take(&mut next.round))
    }

    fn close(&self) {
        let error = self.shared.fatal.get().map_or(BarrierError::Stopped, BarrierError::Fatal);
        let round = {
            let mut next = self.lock();
            next.closed = Some(error.clone());
            Arc::clone(&next.round)
        };
        round.finish(Err(error));
    }

    /// Holds rounds until `stop` resolves or the node fails; then everybody who waits, or will, hears so.
    pub(crate) async fn run(self: Arc<Self>, raft: RaftHandle, stop: impl Future<Output = ()>) {
        let fatal = self.shared.fatal.wait();
        tokio::pin!(stop, fatal);
        // Confirmed rounds whose index is not applied yet; indexes never fall from one to the next.
        let mut confirmed: VecDeque<(u64, Arc<Round>)> = VecDeque::new();
        let mut asked: Asked = None;
        loop {
            let front = confirmed.front().map_or(0, |(index, _)| *index);
            tokio::select! {
                biased;
                () = &mut stop => break,
                _ = &mut fatal => break,
                reached = self.shared.applied.reach(front), if front > 0 => {
                    if reached.is_err() {
                        break;
                    }
                }
                result = confirmation(&mut asked), if asked.is_some() => {
                    let Some((round, _)) = asked.take() else { continue };
                    match result {
                        Ok(index) => confirmed.push_back((index, round)),
                        Err(error) => round.finish(Err(error)),
                    }
                }
                () = self.begin.notified(), if asked.is_none() => {
                    // Readers that are about to run get to join: without this a busy worker passes the turn back and
                    // forth between this task and one reader, and every round has one.
                    tokio::task::yield_now().await;
                    let raft = raft.clone();
                    asked = self.take().map(|round| (round, Box::pin(read_index(raft)) as Pin<Box<_>>));
                }
            }
            self.release(&mut confirmed);
        }
        self.close();
        let error = self.shared.fatal.get().map_or(BarrierError::Stopped, BarrierError::Fatal);
        let left = confirmed.into_iter().map(|(_, round)| round).chain(asked.map(|(round, _)| round));
        left.for_each(|round| round.finish(Err(error.clone())));
    }

    /// Lets go every round whose index is applied.
    fn release(&self, confirmed: &mut VecDeque<(u64, Arc<Round>)>) {
        let applied = self.shared.applied.get();
        while let Some((index, round)) = confirmed.pop_front_if(|(index, _)| *index <= applied) {
            round.finish(Ok(applied.max(index)));
        }
    }
}

async fn confirmation(asked: &mut Asked) -> Confirmed {
    match asked {
        Some((_, answer)) => answer.await,
        None => std::future::pending().await,
    }
}

/// Confirms leadership by a quorum round that begins now; the index that a read has to see.
async fn read_index(raft: RaftHandle) -> Confirmed {
    match raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
        Ok(linearizer) => Ok(log_index(linearizer.read_log_id().index())),
        Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
            Err(forward.leader_id.map_or(BarrierError::NoLeader, |leader| BarrierError::NotLeader { leader }))
        }
        Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => Err(BarrierError::NoQuorum),
        Err(RaftError::Fatal(_)) => Err(BarrierError::Stopped),
    }
}
