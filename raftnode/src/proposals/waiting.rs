//! Who waits for which proposal. Outcomes come from this member's own state machine, whoever leads.
//!
//! A proposal is handed to the leader of one term, and can be applied in that term only (see `entry`). So each of them
//! ends in exactly one of these ways:
//!
//! - its entry is applied here: its outcome is the answer;
//! - the leader says that it did not take it: it is proposed again, or the refusal is the answer;
//! - an entry of a later term is applied here and it was not: it never will be, so it is proposed again;
//! - a snapshot jumps over the place where it may have been: nobody here can know, and that is the answer.
//!
//! Invariant: nothing is proposed again that could still be applied, so nothing is applied twice.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tally_apply::Outcome;
use tokio::sync::{mpsc, oneshot};

use super::batcher::ProposeError;
use crate::command::{EncodedCommand, LogPayload, Stamp};
use crate::progress::Shared;

pub(crate) type Answer = Result<Outcome, ProposeError>;

/// Room for bytes, given back when this is dropped.
pub(crate) struct Room {
    bytes: u64,
    taken: Arc<AtomicU64>,
}

impl Room {
    /// Takes room, if there is as much within `limit`; what is larger than that gets it when nothing else has any.
    pub(crate) fn take(taken: &Arc<AtomicU64>, bytes: usize, limit: u64) -> Option<Room> {
        let bytes = bytes as u64;
        let others = taken.fetch_add(bytes, Ordering::Relaxed);
        let room = Room { bytes, taken: Arc::clone(taken) };
        (others == 0 || others + bytes <= limit).then_some(room)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A command that no leader has at the moment.
pub(crate) struct Unsent {
    command: Form,
    answer: oneshot::Sender<Answer>,
    /// When it was submitted.
    since: Instant,
    room: Room,
}

enum Form {
    /// Never sent.
    New(EncodedCommand),
    /// Sent to a leader who did not, or can no longer, make anything of it.
    Again(LogPayload, Stamp),
}

impl Unsent {
    pub(crate) fn new(command: EncodedCommand, answer: oneshot::Sender<Answer>, room: Room) -> Unsent {
        Unsent { command: Form::New(command), answer, since: Instant::now(), room }
    }

    /// Bytes it takes in the log.
    pub(crate) fn bytes(&self) -> usize {
        match &self.command {
            Form::New(command) => command.bytes(),
            Form::Again(payload, _) => payload.as_bytes().len(),
        }
    }

    /// How long it has waited for its outcome.
    pub(crate) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// Nobody waits for it any more. As no leader has it, it need not be carried out either.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.answer.is_closed()
    }
}

/// A command that a leader has, as far as is known here.
struct Sent {
    payload: LogPayload,
    stamp: Stamp,
    answer: oneshot::Sender<Answer>,
    since: Instant,
    room: Room,
}

struct Table {
    next: u64,
    sent: HashMap<u64, Sent>,
    /// The latest term of which an entry is applied: what was meant for an earlier one is decided.
    term: u64,
}

/// The proposals that are under way.
pub(crate) struct Waiting {
    origin: u64,
    table: Mutex<Table>,
    /// Where those go that have to be proposed again.
    again: mpsc::UnboundedSender<Unsent>,
    shared: Arc<Shared>,
}

impl Waiting {
    /// The receiver gets what has to be proposed again; it is bounded by what is under way.
    pub(crate) fn new(origin: u64, shared: Arc<Shared>) -> (Arc<Waiting>, mpsc::UnboundedReceiver<Unsent>) {
        let (again, receiver) = mpsc::unbounded_channel();
        let table = Table { next: 1, sent: HashMap::new(), term: 0 };
        (Arc::new(Waiting { origin, table: Mutex::new(table), again, shared }), receiver)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This process, as the stamps of its proposals name it.
    pub(crate) fn origin(&self) -> u64 {
        self.origin
    }

    /// Notes that proposals go to the leader of `term`, and makes payloads of them.
    ///
    /// Gives them back if an entry of a later term is applied already: that leader leads no more.
    pub(crate) fn send(&self, term: u64, unsent: Vec<Unsent>) -> Result<Vec<LogPayload>, Vec<Unsent>> {
        let mut table = self.lock();
        if term < table.term {
            return Err(unsent);
        }
        let payloads = unsent.into_iter().map(|Unsent { command, answer, since, room }| {
            let (stamp, payload) = match command {
                Form::New(command) => {
                    let stamp = Stamp { origin: self.origin, seq: table.next, term };
                    table.next += 1;
                    (stamp, command.stamp(stamp))
                }
                Form::Again(payload, old) => {
                    let stamp = Stamp { term, ..old };
                    (stamp, payload.restamped(stamp))
                }
            };
            table.sent.insert(stamp.seq, Sent { payload: payload.clone(), stamp, answer, since, room });
            payload
        });
        Ok(payloads.collect())
    }

    /// Answers those whose entries have been applied.
    pub(crate) fn complete(&self, outcomes: impl Iterator<Item = (Stamp, Outcome)>) {
        let mut table = self.lock();
        for (stamp, outcome) in outcomes {
            if let Some(sent) = table.sent.remove(&stamp.seq) {
                give(&self.shared, sent.answer, Ok(outcome));
            }
        }
    }

    /// An entry of `term` is applied: what was meant for an earlier one and is still here is proposed again.
    pub(crate) fn decided(&self, term: u64) {
        let mut table = self.lock();
        if term <= table.term {
            return;
        }
        table.term = term;
        self.propose_again(&mut table, |sent| sent.stamp.term < term);
    }

    /// The leader of `term` did not take these.
    pub(crate) fn refused(&self, term: u64, seqs: &[u64]) {
        let mut table = self.lock();
        for seq in seqs {
            if table.sent.get(seq).is_some_and(|sent| sent.stamp.term == term)
                && let Some(sent) = table.sent.remove(seq)
            {
                self.again(sent);
            }
        }
    }

    /// The leader of `term` did not take these, and will not: `error` is the answer.
    pub(crate) fn fail(&self, term: u64, seqs: &[u64], error: &ProposeError) {
        let mut table = self.lock();
        for seq in seqs {
            if table.sent.get(seq).is_some_and(|sent| sent.stamp.term == term)
                && let Some(sent) = table.sent.remove(seq)
            {
                give(&self.shared, sent.answer, Err(error.clone()));
            }
        }
    }

    /// The leader of `term` took none of these, because it proposes nothing larger than `limit`: that is the answer to
    /// those that are, and the others are proposed again.
    pub(crate) fn too_large(&self, term: u64, seqs: &[u64], limit: usize) {
        let mut table = self.lock();
        for seq in seqs {
            if table.sent.get(seq).is_some_and(|sent| sent.stamp.term == term)
                && let Some(sent) = table.sent.remove(seq)
            {
                let bytes = sent.payload.as_bytes().len();
                if bytes > limit {
                    give(&self.shared, sent.answer, Err(ProposeError::TooLarge { bytes, limit }));
                } else {
                    self.again(sent);
                }
            }
        }
    }

    /// Nobody can know here any more what has become of those under way.
    pub(crate) fn lose_all(&self, error: &ProposeError) {
        let sent = std::mem::take(&mut self.lock().sent);
        sent.into_values().for_each(|sent| give(&self.shared, sent.answer, Err(error.clone())));
    }

    /// Forgets those that nobody waits for; they may be applied all the same.
    pub(crate) fn forget_abandoned(&self) {
        let mut table = self.lock();
        let gone = table.sent.extract_if(|_, sent| sent.answer.is_closed());
        gone.for_each(|(_, sent)| give(&self.shared, sent.answer, Err(ProposeError::Discarded)));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lock().sent.is_empty()
    }

    fn propose_again(&self, table: &mut Table, which: impl Fn(&Sent) -> bool) {
        let mut overtaken: Vec<Sent> = table.sent.extract_if(|_, sent| which(sent)).map(|(_, sent)| sent).collect();
        // In the order in which they were proposed first.
        overtaken.sort_unstable_by_key(|sent| sent.stamp.seq);
        overtaken.into_iter().for_each(|sent| self.again(sent));
    }

    fn again(&self, sent: Sent) {
        let Sent { payload, stamp, answer: asker, since, room } = sent;
        let unsent = Unsent { command: Form::Again(payload, stamp), answer: asker, since, room };
        if let Err(mpsc::error::SendError(unsent)) = self.again.send(unsent) {
            answer(&self.shared, unsent, Err(stopped(&self.shared)));
        }
    }
}

/// Answers a proposal that no leader has.
pub(crate) fn answer(shared: &Shared, unsent: Unsent, result: Answer) {
    give(shared, unsent.answer, result);
}

/// What a proposal hears when the node no longer works.
pub(crate) fn stopped(shared: &Shared) -> ProposeError {
    shared.fatal.get().map_or(ProposeError::Stopped, ProposeError::Fatal)
}

fn give(shared: &Shared, answer: oneshot::Sender<Answer>, result: Answer) {
    shared.pending.fetch_sub(1, Ordering::Relaxed);
    if result.is_err() {
        shared.failed.fetch_add(1, Ordering::Relaxed);
    }
    // The asker may have gone; the outcome stands all the same.
    drop(answer.send(result));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;
    use tally_apply::Reply;

    use super::*;

    type Again = mpsc::UnboundedReceiver<Unsent>;

    fn table() -> (Arc<Waiting>, Again, Arc<Shared>) {
        let shared = Arc::new(Shared::new(0, 0, 0, 0, 0));
        let (waiting, again) = Waiting::new(7, Arc::clone(&shared));
        (waiting, again, shared)
    }

    fn room() -> Room {
        Room::take(&Arc::default(), 1, 1).unwrap()
    }

    fn unsent(shared: &Shared) -> (Unsent, oneshot::Receiver<Answer>) {
        let (answer, receiver) = oneshot::channel();
        shared.pending.fetch_add(1, Ordering::Relaxed);
        (Unsent::new(EncodedCommand::from(Bytes::from_static(b"c")), answer, room()), receiver)
    }

    fn sent(waiting: &Waiting, shared: &Shared, term: u64) -> (Stamp, oneshot::Receiver<Answer>) {
        let (proposal, receiver) = unsent(shared);
        let payloads = waiting.send(term, vec![proposal]).ok().unwrap();
        (payloads[0].stamp().unwrap(), receiver)
    }

    fn outcome() -> Outcome {
        Outcome { revision: 5, result: Ok(Reply::Done) }
    }

    /// Wherever a proposal is, until it is answered.
    #[test]
    fn a_proposal_takes_room_until_it_is_answered() {
        let (waiting, mut again, shared) = table();
        let taken = Arc::new(AtomicU64::new(0));
        let (answer, _receiver) = oneshot::channel();
        let room = Room::take(&taken, 10, 12).unwrap();
        assert!(Room::take(&taken, 3, 12).is_none() && Room::take(&taken, 2, 12).is_some());
        shared.pending.fetch_add(1, Ordering::Relaxed);
        let unsent = Unsent::new(EncodedCommand::from(Bytes::from_static(b"c")), answer, room);
        waiting.send(2, vec![unsent]).ok().unwrap();
        waiting.decided(3);
        let payloads = waiting.send(3, vec![again.try_recv().unwrap()]).ok().unwrap();
        assert_eq!(taken.load(Ordering::Relaxed), 10);
        waiting.complete([(payloads[0].stamp().unwrap(), outcome())].into_iter());
        assert_eq!(taken.load(Ordering::Relaxed), 0);
        assert!(Room::take(&taken, 13, 12).is_some(), "a single one, if nothing else is there");
    }

    #[test]
    fn an_applied_proposal_has_its_outcome_once() {
        let (waiting, _again, shared) = table();
        let (stamp, mut receiver) = sent(&waiting, &shared, 2);
        waiting.complete([(stamp, outcome()), (stamp, outcome())].into_iter());
        assert_eq!(receiver.try_recv().unwrap().unwrap().revision, 5);
        assert_eq!(shared.pending.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_later_term_decides_what_was_not_applied() {
        let (waiting, mut again, shared) = table();
        let (first, _first_answer) = sent(&waiting, &shared, 2);
        let (_, _later_answer) = sent(&waiting, &shared, 3);
        waiting.decided(2);
        assert!(again.try_recv().is_err(), "term 2 may still apply it");
        waiting.decided(3);
        let unsent = again.try_recv().unwrap();
        assert!(again.try_recv().is_err(), "what was meant for term 3 is not decided");
        assert!(waiting.send(2, vec![unsent]).is_err(), "the leader of term 2 leads no more");
        assert_eq!(first.term, 2);
    }

    #[test]
    fn proposing_again_keeps_the_number_and_renews_the_term() {
        let (waiting, mut again, shared) = table();
        let (first, mut receiver) = sent(&waiting, &shared, 2);
        waiting.refused(1, &[first.seq]);
        assert!(again.try_recv().is_err(), "another term's refusal says nothing");
        waiting.refused(2, &[first.seq]);
        let payloads = waiting.send(4, vec![again.try_recv().unwrap()]).ok().unwrap();
        assert_eq!(payloads[0].stamp(), Some(Stamp { term: 4, ..first }));
        assert_eq!(payloads[0].command(), Bytes::from_static(b"c"));
        waiting.complete([(Stamp { term: 4, ..first }, outcome())].into_iter());
        assert!(receiver.try_recv().unwrap().is_ok());
    }

    #[test]
    fn of_a_batch_that_is_refused_for_its_size_only_what_is_too_large_fails() {
        let (waiting, mut again, shared) = table();
        let (answer, mut large) = oneshot::channel();
        shared.pending.fetch_add(1, Ordering::Relaxed);
        let large_one = Unsent::new(EncodedCommand::from(Bytes::from(vec![b'c'; 100])), answer, room());
        let large_bytes = large_one.bytes();
        let (small_one, mut small) = unsent(&shared);
        let small_bytes = small_one.bytes();
        let payloads = waiting.send(2, vec![small_one, large_one]).ok().unwrap();
        let seqs: Vec<u64> = payloads.iter().map(|payload| payload.stamp().unwrap().seq).collect();
        waiting.too_large(1, &seqs, small_bytes);
        assert!(again.try_recv().is_err() && large.try_recv().is_err(), "another term's refusal says nothing");
        waiting.too_large(2, &seqs, small_bytes);
        let refused = large.try_recv().unwrap();
        let (bytes, limit) = (large_bytes, small_bytes);
        assert!(matches!(refused, Err(ProposeError::TooLarge { bytes: b, limit: l }) if (b, l) == (bytes, limit)));
        assert_eq!(again.try_recv().unwrap().bytes(), small_bytes);
        assert!(again.try_recv().is_err() && small.try_recv().is_err());
        assert!(waiting.is_empty());
    }

    #[test]
    fn who_cannot_know_says_so_and_who_has_gone_is_forgotten() {
        let (waiting, _again, shared) = table();
        let (_, mut receiver) = sent(&waiting, &shared, 2);
        waiting.lose_all(&ProposeError::Discarded);
        assert!(matches!(receiver.try_recv().unwrap(), Err(ProposeError::Discarded)));
        let (_, gone) = sent(&waiting, &shared, 2);
        drop(gone);
        waiting.forget_abandoned();
        assert!(waiting.is_empty());
        assert_eq!(shared.pending.load(Ordering::Relaxed), 0);
    }
}
