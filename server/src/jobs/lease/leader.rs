//! The leader's side: taking office, ending what has ended, noting what is left.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tally_apply::{Command, Rejection, Reply};
use tally_lease::ExpiryQueue;
use tally_raftnode::EncodedCommand;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::{EXPIRIES_PER_SECOND_MAX, Lessor};

/// Between two looks at what has ended.
const TICK: Duration = Duration::from_millis(200);
/// Leases ended per tick.
const EXPIRIES_PER_TICK: usize = (EXPIRIES_PER_SECOND_MAX / 5) as usize;
/// Leases ended by one command: a put that comes behind it waits for no more than so many deletes.
const EXPIRIES_PER_COMMAND: usize = 100;
/// After this a revocation that failed is tried again; etcd's time.
const RETRY_MS: u64 = 3_000;
/// Notes per tick, and by one command.
const NOTES_PER_TICK: usize = 4_000;
const NOTES_PER_COMMAND: usize = 500;
/// Between two attempts to note something.
const NOTE_AGAIN: Duration = Duration::from_millis(200);
/// How long noting what is left of all leases may take before a hand-over goes on without.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(2);

impl Lessor {
    /// Keeps leases while this member leads, for ever.
    pub(super) async fn lead(self: &Arc<Self>) {
        let mut status = self.node.status();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                changed = status.wait_for(|status| status.is_leader != self.is_in_office()) => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
            let (leads, term) = {
                let status = status.borrow_and_update();
                (status.is_leader, status.term)
            };
            if !leads {
                self.leave_office();
                continue;
            }
            if self.lock().term() != Some(term) && !self.take_office().await {
                // Not confirmed yet, or no more: it is asked again at the next tick.
                ticks.tick().await;
                continue;
            }
            self.end_leases().await;
            self.note_leases().await;
        }
    }

    fn is_in_office(&self) -> bool {
        self.lock().office.is_some()
    }

    fn leave_office(&self) {
        let mut state = self.lock();
        state.queue.demote();
        let Some((_, reads)) = state.office.take() else { return };
        // Under the lock: whoever takes office after this is not kept from listening by it.
        reads.listen_to_leases(false);
        drop(state);
        self.turn();
    }

    /// Fills the queue from the table. Linear in the leases, so it is done beside the workers.
    async fn take_office(self: &Arc<Self>) -> bool {
        self.leave_office();
        let Ok(Some(term)) = self.node.confirm_leadership().await else { return false };
        let lessor = Arc::clone(self);
        let filled = tokio::task::spawn_blocking(move || {
            let reads = lessor.node.reads();
            // Before the look at the table: what happens between the two is heard as well.
            reads.listen_to_leases(true);
            let leases = reads.leases();
            // Not under the lock, for which renewals wait where they are answered.
            let mut queue = ExpiryQueue::new();
            queue.promote(leases.iter(), lessor.clock.begin_ms(), lessor.promotion);
            let mut state = lessor.lock();
            (state.queue, state.office) = (queue, Some((term, reads)));
            leases.len()
        });
        let Ok(leases) = filled.await else { return false };
        tracing::debug!(term, leases, "keeping leases as their leader");
        self.turn();
        true
    }

    /// Revokes what has ended, by commands that count in this term only.
    async fn end_leases(&self) {
        let now_ms = self.clock.now_ms();
        {
            let mut state = self.lock();
            state.follow(&self.clock);
            if !state.queue.any_expired(now_ms) {
                return;
            }
        }
        // After the clock was read: if another leader renewed something before this moment, this is found out here.
        let Ok(Some(term)) = self.node.confirm_leadership().await else { return };
        let ended = {
            let mut state = self.lock();
            if state.term() != Some(term) {
                return;
            }
            // By a clock read now: what was granted while leadership was confirmed has its whole time ahead.
            state.follow(&self.clock);
            state.queue.expired(now_ms, EXPIRIES_PER_TICK)
        };
        for ids in ended.chunks(EXPIRIES_PER_COMMAND) {
            // While the last ones were revoked, these may have been, by clients that have granted them anew.
            let ids: Vec<i64> = {
                let mut state = self.lock();
                state.follow(&self.clock);
                ids.iter().copied().filter(|id| state.queue.is_handed_out(*id)).collect()
            };
            if !ids.is_empty() {
                self.expire(term, ids).await;
            }
        }
        self.lock().follow(&self.clock);
        self.turn();
    }

    async fn expire(&self, term: u64, ids: Vec<i64>) {
        let command = Command::LeaseExpire { term, ids: ids.clone() };
        match self.node.propose(EncodedCommand::encode(&command)).await.map(|outcome| outcome.result) {
            Ok(Ok(Reply::LeaseExpire { revoked })) => {
                self.expired.fetch_add(revoked, Ordering::Relaxed);
                if revoked < ids.len() as u64 {
                    // Some were revoked by others meanwhile, or their keys are too many for one command.
                    let mut state = self.lock();
                    state.follow(&self.clock);
                    state.queue.retry(&ids, self.clock.now_ms());
                }
                return;
            }
            Ok(Ok(reply)) => tracing::error!(?reply, "the reply to another command than the expiry of leases"),
            // Somebody else leads, and decides.
            Ok(Err(Rejection::OtherTerm { .. })) => {}
            Ok(Err(rejection)) => tracing::warn!(%rejection, leases = ids.len(), "leases were not expired"),
            Err(error) => tracing::warn!(%error, leases = ids.len(), "leases were not expired; tried again"),
        }
        self.lock().queue.retry(&ids, self.clock.now_ms() + RETRY_MS);
    }

    /// Notes what is left of leases of which much has passed.
    async fn note_leases(&self) {
        let now_ms = self.clock.now_ms();
        let (term, due) = {
            let mut state = self.lock();
            let Some(term) = state.term() else { return };
            (term, state.queue.due_notes(now_ms, NOTES_PER_TICK))
        };
        for notes in due.chunks(NOTES_PER_COMMAND) {
            self.note(term, notes).await;
        }
    }

    /// Notes remainders, and waits until they are in the table or cannot get there any more: until then nobody renews these
    /// leases, because a new leader could find the note and forget the renewal.
    async fn note(&self, term: u64, notes: &[(i64, i64)]) {
        let command = Command::LeaseCheckpoint { term, remaining: notes.to_vec() };
        while self.lock().term() == Some(term) {
            match self.node.propose(EncodedCommand::encode(&command)).await {
                Ok(_) => break,
                Err(error) => {
                    tracing::warn!(%error, leases = notes.len(), "leases were not checkpointed; tried again");
                    sleep(NOTE_AGAIN).await;
                    if !self.node.status().borrow().is_leader {
                        self.leave_office();
                    }
                }
            }
        }
        {
            let mut state = self.lock();
            if state.term() == Some(term) {
                state.follow(&self.clock);
                state.queue.settle(notes.iter().map(|(id, _)| *id));
            }
        }
        self.turn();
    }

    /// Clears the notes of leases that are about to be renewed. Whether they are cleared now.
    pub(super) async fn clear_notes(&self, term: u64, ids: &[i64]) -> bool {
        let remaining = ids.iter().map(|id| (*id, 0)).collect();
        let command = Command::LeaseCheckpoint { term, remaining };
        matches!(self.node.propose(EncodedCommand::encode(&command)).await, Ok(outcome) if outcome.result.is_ok())
    }

    /// Notes what is left of every lease, for whoever leads next: to be called before leadership is handed over or the
    /// process ends. It takes a moment; if it takes too long, or nobody waits for it any more, the next leader starts from
    /// older notes.
    pub(crate) async fn note_all(self: &Arc<Self>) {
        let wanted = Arc::new(());
        let (lessor, still_wanted) = (Arc::clone(self), Arc::downgrade(&wanted));
        // Beside the caller, who may go at any moment: notes on their way have to be seen to their end, as nobody renews
        // these leases until then; unless the process ends, which must not wait for what no majority takes.
        let noting = tokio::spawn(async move {
            tokio::select! {
                () = lessor.stopped() => {}
                () = lessor.note_while(|| still_wanted.strong_count() > 0) => {}
            }
        });
        if timeout(HAND_OVER_PATIENCE, noting).await.is_err() {
            tracing::warn!("not all leases were checkpointed before handing leadership over");
        }
        drop(wanted);
    }

    /// Notes what is left of one lease after the other.
    async fn note_while(&self, wanted: impl Fn() -> bool) {
        let mut after = None;
        while wanted() {
            let now_ms = self.clock.now_ms();
            let (term, notes) = {
                let mut state = self.lock();
                let Some(term) = state.term() else { return };
                state.follow(&self.clock);
                (term, state.queue.all_notes(now_ms, after, NOTES_PER_COMMAND))
            };
            let Some((last, _)) = notes.last() else { return };
            after = Some(*last);
            self.note(term, &notes).await;
        }
    }
}
