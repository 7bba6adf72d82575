//! Linearizable reads: everybody who waits at one moment shares one confirmation of leadership.
//!
//! A reader joins the round that has *not yet begun*; the task begins it after that, asks whoever leads for the read
//! index (a quorum round that starts now), waits until this replica has applied that far, and lets the whole round go. A
//! round under way takes nobody in: a confirmation that began before a read cannot prove anything to it. A confirmation
//! that failed changed nothing, so it is asked for again, of whoever leads then, until the round's time is over.
//!
//! On a leader the rounds of other members join in: all of them share one heartbeat to a quorum.
//!
//! Joining is one short lock and one reference count; no channel and no allocation per reader. Where this member is the only
//! voter (see `sole`), what is applied is what a read has to see, and no round is held.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use openraft::ReadPolicy;
use openraft::errors::{LinearizableReadError, RaftError};
use tokio::sync::{Notify, oneshot};
use tokio::task::coop::poll_proceed;
use tokio::time::Instant;

use crate::cluster::{Leader, Leadership};
use crate::fatal::FatalError;
use crate::node::RaftHandle;
use crate::peer::Net;
use crate::progress::Shared;
use crate::sole::OnlyMe;
use crate::types::log_index;

/// A confirmation that takes longer is counted as slow; etcd's limit.
const SLOW: Duration = Duration::from_millis(500);

/// Why a read cannot be linearizable now.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BarrierError {
    /// There was no leader for as long as a request may wait.
    #[error("there is no leader; try again")]
    NoLeader,
    /// A leader is known, but a majority did not confirm it for as long as a request may wait.
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

/// An index that has been confirmed, and whether this member was the only member when that began.
type Answer = Result<(u64, Option<OnlyMe>), BarrierError>;

/// A round whose confirmation is under way.
type Asked = Option<(Arc<Round>, Pin<Box<dyn Future<Output = Answer> + Send>>)>;

/// A round that has been confirmed, and ends when its index is applied.
struct Ending {
    index: u64,
    only_me: Option<OnlyMe>,
    round: Arc<Round>,
    /// When it was confirmed.
    since: Instant,
}

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
    /// Other members, who want the index and apply it themselves.
    members: Vec<oneshot::Sender<Confirmed>>,
}

impl Round {
    fn lock(&self) -> MutexGuard<'_, RoundState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn confirm(&self, index: &Confirmed) {
        let members = std::mem::take(&mut self.lock().members);
        // One that does not wait any more asks again.
        members.into_iter().for_each(|member| drop(member.send(index.clone())));
    }

    fn finish(&self, result: Confirmed) {
        self.confirm(&result);
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
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// For nothing.
    Ready(u64),
    /// For a round, once it has been polled at this place among those who do.
    Round(Arc<Round>, Option<usize>),
}

impl std::fmt::Debug for Round {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Round")
    }
}

impl Future for Waiting {
    type Output = Confirmed;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Confirmed> {
        let (round, slot) = match &mut self.kind {
            Kind::Ready(index) => {
                // Who never waits still has to let others run: a task that reads in a loop would keep its thread.
                ready!(poll_proceed(context)).made_progress();
                return Poll::Ready(Ok(*index));
            }
            Kind::Round(round, slot) => (round, slot),
        };
        let mut state = round.lock();
        if let Some(result) = &state.result {
            return Poll::Ready(result.clone());
        }
        match slot {
            Some(slot) => state.wakers[*slot].clone_from(context.waker()),
            None => {
                *slot = Some(state.wakers.len());
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

    /// Joins the next round, unless none is needed.
    pub(crate) fn join(&self) -> Waiting {
        if self.shared.sole.leads() {
            return Waiting { kind: Kind::Ready(self.shared.applied.get()) };
        }
        let mut next = self.lock();
        let round = Arc::clone(&next.round);
        if let Some(error) = &next.closed {
            round.finish(Err(error.clone()));
        } else {
            self.want(&mut next);
        }
        Waiting { kind: Kind::Round(round, None) }
    }

    /// Joins the next round on behalf of another member: the index, as soon as it is confirmed.
    pub(crate) async fn index_for_member(&self) -> Confirmed {
        let (sender, receiver) = oneshot::channel();
        {
            let mut next = self.lock();
            if let Some(error) = &next.closed {
                return Err(error.clone());
            }
            next.round.lock().members.push(sender);
            self.want(&mut next);
        }
        receiver.await.unwrap_or(Err(BarrierError::Stopped))
    }

    fn want(&self, next: &mut NextRound) {
        if !next.wanted {
            next.wanted = true;
            self.begin.notify_one();
        }
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
        self.shared.sole.close();
        let error = self.shared.fatal.get().map_or(BarrierError::Stopped, BarrierError::Fatal);
        let round = {
            let mut next = self.lock();
            next.closed = Some(error.clone());
            Arc::clone(&next.round)
        };
        round.finish(Err(error));
    }

    /// Holds rounds until `stop` resolves or the node fails; then everybody who waits, or will, hears so.
    pub(crate) async fn run(self: Arc<Self>, source: IndexSource, stop: impl Future<Output = ()>) {
        let fatal = self.shared.fatal.wait();
        tokio::pin!(stop, fatal);
        // Confirmed rounds whose index is not applied yet. A leader that is deposed may have named an index that is never
        // reached, and the next one names a lower one.
        let mut confirmed: VecDeque<Ending> = VecDeque::new();
        let mut asked: Asked = None;
        let patience = source.timeout.max(Duration::from_millis(1));
        let mut looks = tokio::time::interval(patience);
        loop {
            let least = confirmed.iter().map(|ending| ending.index).min().unwrap_or(0);
            tokio::select! {
                biased;
                () = &mut stop => break,
                _ = &mut fatal => break,
                reached = self.shared.applied.reach(least), if least > 0 => {
                    if reached.is_err() {
                        break;
                    }
                }
                result = confirmation(&mut asked), if asked.is_some() => {
                    let Some((round, _)) = asked.take() else { continue };
                    match result {
                        Ok((index, only_me)) => {
                            round.confirm(&Ok(index));
                            confirmed.push_back(Ending { index, only_me, round, since: Instant::now() });
                        }
                        Err(error) => round.finish(Err(error)),
                    }
                }
                () = self.begin.notified(), if asked.is_none() => {
                    // Readers that are about to run get to join: without this a busy worker passes the turn back and
                    // forth between this task and one reader, and every round has one.
                    tokio::task::yield_now().await;
                    let source = source.clone();
                    asked = self.take().map(|round| (round, Box::pin(source.read_index()) as Pin<Box<_>>));
                }
                _ = looks.tick() => give_up(&mut confirmed, patience),
            }
            self.release(&mut confirmed);
        }
        self.close();
        let error = self.shared.fatal.get().map_or(BarrierError::Stopped, BarrierError::Fatal);
        let left = confirmed.into_iter().map(|ending| ending.round).chain(asked.map(|(round, _)| round));
        left.for_each(|round| round.finish(Err(error.clone())));
    }

    /// Lets go every round whose index is applied.
    fn release(&self, confirmed: &mut VecDeque<Ending>) {
        let applied = self.shared.applied.get();
        confirmed.retain(|Ending { index, only_me, round, .. }| {
            let waits = *index > applied;
            if !waits {
                if let Some(only_me) = only_me {
                    self.shared.sole.confirm(*only_me);
                }
                round.finish(Ok(applied));
            }
            waits
        });
    }
}

/// Ends the rounds that have waited for so long.
fn give_up(confirmed: &mut VecDeque<Ending>, patience: Duration) {
    while let Some(ending) = confirmed.pop_front_if(|first| first.since.elapsed() >= patience) {
        ending.round.finish(Err(BarrierError::NoQuorum));
    }
}

async fn confirmation(asked: &mut Asked) -> Answer {
    match asked {
        Some((_, answer)) => answer.await,
        None => std::future::pending().await,
    }
}

/// Where read indexes come from: from here while this member leads, else from the leader.
#[derive(Clone)]
pub(crate) struct IndexSource {
    pub(crate) raft: RaftHandle,
    pub(crate) net: Net,
    pub(crate) leadership: Leadership,
    pub(crate) shared: Arc<Shared>,
    /// How long a round may take, failed confirmations included.
    pub(crate) timeout: Duration,
}

impl IndexSource {
    /// Asks this leader once. A late answer to an attempt that was given up is never taken for the answer to another one.
    async fn ask(&self, leader: Leader) -> Result<u64, Attempt> {
        match leader {
            Leader::Nobody => Err(Attempt::Again(BarrierError::NoLeader)),
            Leader::Here { .. } => local_index(&self.raft).await,
            Leader::There { id, .. } => match self.net.read_index(id).await {
                Ok(Ok(index)) => Ok(index),
                Ok(Err(_)) | Err(_) => Err(Attempt::Again(BarrierError::NoQuorum)),
            },
        }
    }

    /// An index that a quorum round which begins now has confirmed.
    async fn read_index(mut self) -> Answer {
        let began = Instant::now();
        let deadline = began + self.timeout;
        let result = loop {
            let leader = self.leadership.now();
            let mut watched = self.leadership.clone();
            let only_me = self.shared.sole.begin().filter(|_| matches!(leader, Leader::Here { .. }));
            // A leader that steps down may never answer what it was asked before: nothing is lost by asking the next one.
            let error = tokio::select! {
                biased;
                attempt = self.ask(leader) => match attempt {
                    Ok(index) => break Ok((index, only_me)),
                    Err(Attempt::Final(error)) => break Err(error),
                    Err(Attempt::Again(error)) => error,
                },
                _ = watched.other(leader) => BarrierError::NoLeader,
            };
            if !self.leadership.retry(leader, deadline).await {
                break Err(error);
            }
        };
        if result.is_err() {
            self.shared.read_indexes_failed.fetch_add(1, Ordering::Relaxed);
        } else if began.elapsed() > SLOW {
            self.shared.read_indexes_slow.fetch_add(1, Ordering::Relaxed);
        }
        result
    }
}

/// Why one attempt got no index.
enum Attempt {
    /// It may be had later, or from somebody else.
    Again(BarrierError),
    /// It will not be had.
    Final(BarrierError),
}

/// Confirms this member's leadership by a quorum round that begins now; the index that a read has to see.
async fn local_index(raft: &RaftHandle) -> Result<u64, Attempt> {
    match raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
        Ok(linearizer) => Ok(log_index(linearizer.read_log_id().index())),
        Err(RaftError::APIError(
            LinearizableReadError::ForwardToLeader(_) | LinearizableReadError::QuorumNotEnough(_),
        )) => Err(Attempt::Again(BarrierError::NoQuorum)),
        Err(RaftError::Fatal(_)) => Err(Attempt::Final(BarrierError::Stopped)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use futures_util::FutureExt as _;

    use super::*;

    /// A leader may name an index that is never reached, and be deposed; what the next one names is lower.
    #[test]
    fn a_round_does_not_wait_for_the_index_of_another() {
        let shared = Arc::new(Shared::new(10, 10, 10, 10, 0));
        let barrier = Barrier::new(Arc::clone(&shared));
        let mut confirmed = VecDeque::new();
        let mut round = |index| {
            let waiting = barrier.join();
            let ending = Ending { index, only_me: None, round: barrier.take().unwrap(), since: Instant::now() };
            confirmed.push_back(ending);
            waiting
        };
        let (mut beyond, now, mut next) = (round(1_000), round(10), round(11));
        barrier.release(&mut confirmed);
        assert_eq!(now.now_or_never().unwrap().unwrap(), 10);
        assert!((&mut next).now_or_never().is_none() && (&mut beyond).now_or_never().is_none());
        shared.applied.advance(11);
        barrier.release(&mut confirmed);
        assert_eq!(next.now_or_never().unwrap().unwrap(), 11);
        give_up(&mut confirmed, Duration::from_secs(60));
        assert!((&mut beyond).now_or_never().is_none());
        give_up(&mut confirmed, Duration::ZERO);
        assert!(matches!(beyond.now_or_never(), Some(Err(BarrierError::NoQuorum))));
        assert!(confirmed.is_empty());
    }
}
