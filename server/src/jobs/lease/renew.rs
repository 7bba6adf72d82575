//! Renewals and times to live: what is asked of any member, and answered by the leader.
//!
//! Everything that waits at one moment goes to the leader in one question, and shares one confirmation of leadership there.
//! What cannot be decided at once (a note has to be cleared through the log, a revocation is on its way) changes to a
//! second, slow lane, so that the others need not wait for it.

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tally_lease::Renewal;
use tally_raftnode::{AskError, BoxFuture, LeaderHandler};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep, timeout_at};

use super::Lessor;
use super::message::{
    RENEW, Renewed, TIME_TO_LIVE, integer, read_integer, read_renew_answer, read_renew_question, renew_answer,
    renew_question,
};

/// Renewals that may wait on this member.
const WAITING_MAX: usize = 100_000;
/// Renewals in one question.
const QUESTION_MAX: usize = 4_000;
/// How long the leader takes to find out what it cannot tell at once, before it has others ask again.
const WAIT: Duration = Duration::from_secs(1);
/// Until notes are tried to be cleared again that could not be.
const CLEAR_AGAIN: Duration = Duration::from_millis(50);

/// Why a lease was not renewed, or its time not found out. It may have been renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RenewError {
    #[error("there is no leader")]
    NoLeader,
    #[error("the leader did not answer in time")]
    TimedOut,
    #[error("more than {WAITING_MAX} renewals are waiting")]
    TooMany,
    #[error("this member is stopping")]
    Stopped,
}

impl From<AskError> for RenewError {
    fn from(error: AskError) -> Self {
        match error {
            AskError::NoLeader => Self::NoLeader,
            AskError::TimedOut | AskError::TooLarge { .. } => Self::TimedOut,
            AskError::Fatal(_) => Self::Stopped,
        }
    }
}

type Answer = oneshot::Sender<Result<i64, RenewError>>;

/// A renewal that is on its way. It resolves to the time to live in seconds, or to 0 if there is no such lease (any more); or to
/// the error, and when the renewal was asked for.
pub(crate) struct Renewing(Progress);

enum Progress {
    Done(i64),
    Asked(Instant, oneshot::Receiver<Result<i64, RenewError>>),
}

impl Future for Renewing {
    type Output = Result<i64, (RenewError, Instant)>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Progress::Done(seconds) => Poll::Ready(Ok(*seconds)),
            Progress::Asked(since, answer) => Pin::new(answer).poll(cx).map(|answer| {
                let renewed = answer.unwrap_or(Err(RenewError::Stopped));
                renewed.map_err(|error| (error, *since))
            }),
        }
    }
}

/// A renewal that waits for its turn.
struct Waiting {
    id: i64,
    since: Instant,
    answer: Answer,
}

impl Waiting {
    /// Itself, if anybody waits for it and has not waited for too long.
    fn unless_late(self, now: Instant, patience: Duration) -> Option<Waiting> {
        if now.duration_since(self.since) >= patience {
            let _ = self.answer.send(Err(RenewError::TimedOut));
            return None;
        }
        (!self.answer.is_closed()).then_some(self)
    }
}

/// Renewals on their way to the leader, one question at a time.
pub(super) struct Lane {
    waiting: Mutex<Vec<Waiting>>,
    begin: Notify,
    /// Has the leader wait for what decides.
    slow: bool,
}

impl Lane {
    pub(super) fn new(slow: bool) -> Lane {
        Lane { waiting: Mutex::default(), begin: Notify::new(), slow }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(&self, renewal: Waiting) {
        let mut waiting = self.lock();
        if waiting.len() >= WAITING_MAX {
            // Nobody waits for it if this fails; likewise below.
            let _ = renewal.answer.send(Err(RenewError::TooMany));
            return;
        }
        waiting.push(renewal);
        if waiting.len() == 1 {
            self.begin.notify_one();
        }
    }

    /// Whoever waits longest goes first.
    fn take(&self) -> Vec<Waiting> {
        let mut waiting = self.lock();
        let count = waiting.len().min(QUESTION_MAX);
        let rest = waiting.split_off(count);
        if !rest.is_empty() {
            self.begin.notify_one();
        }
        std::mem::replace(&mut *waiting, rest)
    }

    pub(super) async fn run(&self, lessor: &Lessor) {
        loop {
            self.begin.notified().await;
            // Whoever is about to run gets to join.
            tokio::task::yield_now().await;
            let now = Instant::now();
            let asking = self.take().into_iter();
            let asking: Vec<Waiting> = asking.filter_map(|one| one.unless_late(now, lessor.patience)).collect();
            if asking.is_empty() {
                continue;
            }
            let ids: Vec<i64> = asking.iter().map(|one| one.id).collect();
            match lessor.ask_renew(self.slow, &ids).await {
                Ok(renewed) => asking.into_iter().zip(renewed).for_each(|(one, renewed)| match renewed {
                    Renewed::For(seconds) => _ = one.answer.send(Ok(seconds)),
                    Renewed::Gone => _ = one.answer.send(Ok(0)),
                    Renewed::Later => lessor.slow.join(one),
                }),
                Err(error) => asking.into_iter().for_each(|one| _ = one.answer.send(Err(error))),
            }
        }
    }
}

impl Lessor {
    /// Renews a lease. Linearizable. Once it has been asked for it goes on, whoever waits for it.
    ///
    /// It fails by itself if it takes too long: a leader is asked for no longer than a request may take, and nobody who has
    /// waited for that long already is asked for.
    pub(crate) fn renew(&self, id: i64) -> Renewing {
        if let Some(seconds) = self.renew_at_once(id) {
            return Renewing(Progress::Done(seconds));
        }
        let since = Instant::now();
        let (answer, answered) = oneshot::channel();
        self.quick.join(Waiting { id, since, answer });
        Renewing(Progress::Asked(since, answered))
    }

    /// Renews here and now, where nobody else is to be asked and nothing to be waited for.
    fn renew_at_once(&self, id: i64) -> Option<i64> {
        let from_ms = self.clock.begin_ms();
        let term = self.node.leads_alone()?;
        let mut renewed = [Renewed::Later];
        self.renew_confirmed(term, from_ms, &[id], &mut renewed)?;
        match renewed {
            [Renewed::For(seconds)] => Some(seconds),
            [Renewed::Gone] => Some(0),
            [Renewed::Later] => None,
        }
    }

    /// What is left of a lease in seconds, rounded down; none if there is no such lease. Linearizable.
    ///
    /// # Errors
    /// [`RenewError`].
    pub(crate) async fn time_to_live(&self, id: i64) -> Result<Option<i64>, RenewError> {
        let _place = self.asking.acquire().await.map_err(|_| RenewError::Stopped)?;
        let answer = self.node.ask_leader(TIME_TO_LIVE, integer(id)).await?;
        let seconds = read_integer(&answer).ok_or(RenewError::TimedOut)?;
        Ok((seconds >= 0).then_some(seconds))
    }

    async fn ask_renew(&self, wait: bool, ids: &[i64]) -> Result<Vec<Renewed>, RenewError> {
        let answer = self.node.ask_leader(RENEW, renew_question(wait, ids)).await?;
        read_renew_answer(answer, ids.len()).ok_or_else(|| {
            tracing::error!("the leader's answer to a renewal of leases cannot be read");
            RenewError::TimedOut
        })
    }

    /// Renews here, on the leader; none if this member does not lead. With `wait`, what cannot be decided at once is waited
    /// for, a moment.
    async fn renew_here(&self, wait: bool, ids: &[i64]) -> Option<Vec<Renewed>> {
        let deadline = Instant::now() + WAIT;
        let mut turned = self.turned.subscribe();
        let mut renewed = vec![Renewed::Later; ids.len()];
        loop {
            turned.mark_unchanged();
            let (term, noted) = self.renew_once(ids, &mut renewed).await?;
            if !wait || !renewed.contains(&Renewed::Later) || Instant::now() >= deadline {
                return Some(renewed);
            }
            if !noted.is_empty() {
                // There may be no room for it in the log's queue: whoever asks again at once makes that no better.
                if !self.clear_notes(term, &noted).await && timeout_at(deadline, sleep(CLEAR_AGAIN)).await.is_err() {
                    return Some(renewed);
                }
            } else if !matches!(timeout_at(deadline, turned.changed()).await, Ok(Ok(()))) {
                return Some(renewed);
            }
        }
    }

    /// Decides what can be decided now of those that are not decided yet. Returns the term, and the leases whose notes have
    /// to be cleared first.
    async fn renew_once(&self, ids: &[i64], renewed: &mut [Renewed]) -> Option<(u64, Vec<i64>)> {
        // The clock first: if leadership is confirmed after it, nobody else has ended anything by then.
        let from_ms = self.clock.begin_ms();
        let term = self.node.confirm_leadership().await.ok()??;
        Some((term, self.renew_confirmed(term, from_ms, ids, renewed)?))
    }

    /// The same once this member has been confirmed as leader in this term, after the time `from_ms`.
    fn renew_confirmed(&self, term: u64, from_ms: u64, ids: &[i64], renewed: &mut [Renewed]) -> Option<Vec<i64>> {
        let mut state = self.lock();
        if state.term() != Some(term) {
            return None;
        }
        state.follow(&self.clock);
        let leases = state.office.as_ref()?.1.leases();
        let (mut noted, mut count) = (Vec::new(), 0);
        for (id, one) in ids.iter().zip(renewed).filter(|(_, one)| **one == Renewed::Later) {
            // A lease that the table has no more is never renewed, whatever the queue has heard.
            let Some(lease) = leases.get(*id) else {
                *one = Renewed::Gone;
                continue;
            };
            match state.queue.renew(*id, lease, from_ms) {
                Renewal::Renewed { ttl_s } => {
                    *one = Renewed::For(ttl_s);
                    count += 1;
                }
                Renewal::Noted => noted.push(*id),
                // The one is settled, the other revoked, before long.
                Renewal::Noting | Renewal::Expired => {}
                Renewal::NotPrimary => return None,
            }
        }
        self.renewed.fetch_add(count, Ordering::Relaxed);
        Some(noted)
    }

    async fn time_here(&self, id: i64) -> Option<i64> {
        let now_ms = self.clock.now_ms();
        let term = self.node.confirm_leadership().await.ok()??;
        let mut state = self.lock();
        if state.term() != Some(term) {
            return None;
        }
        state.follow(&self.clock);
        let Some(lease) = state.office.as_ref()?.1.leases().get(id) else { return Some(-1) };
        // What the queue has not heard of was granted this very moment.
        Some(state.queue.time_to_live(id, now_ms).unwrap_or(lease.granted_s))
    }
}

/// A question holds the lessor only while it is answered, and the node knows it weakly, so neither keeps the other alive.
impl LeaderHandler for Lessor {
    fn answer(self: Arc<Self>, kind: u8, question: Bytes) -> BoxFuture<Option<Bytes>> {
        async move {
            match kind {
                RENEW => {
                    let (wait, ids) = read_renew_question(question)?;
                    Some(renew_answer(&self.renew_here(wait, &ids).await?))
                }
                TIME_TO_LIVE => Some(integer(self.time_here(read_integer(&question)?).await?)),
                _ => None,
            }
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn join(lane: &Lane, id: i64) -> oneshot::Receiver<Result<i64, RenewError>> {
        let (answer, answered) = oneshot::channel();
        lane.join(Waiting { id, since: Instant::now(), answer });
        answered
    }

    /// The first that the next question asks for, and how many it asks for, if the lane is told to ask one.
    fn next(lane: &Lane) -> Option<(i64, usize)> {
        lane.begin.notified().now_or_never()?;
        let asked = lane.take();
        Some((asked.first()?.id, asked.len()))
    }

    #[test]
    fn what_one_question_has_no_room_for_is_asked_for_by_the_next() {
        let lane = Lane::new(false);
        let _answers: Vec<_> = (0..=QUESTION_MAX as i64).map(|id| join(&lane, id)).collect();
        assert_eq!(next(&lane), Some((0, QUESTION_MAX)));
        assert_eq!(next(&lane), Some((QUESTION_MAX as i64, 1)));
        assert_eq!(next(&lane), None);
        let _later = join(&lane, 7);
        assert_eq!(next(&lane), Some((7, 1)));
    }
}
