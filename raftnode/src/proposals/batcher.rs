//! Proposals: a bounded queue in front, and one task that hands over what waits there as one batch, to whoever leads.
//!
//! ```text
//!   submit ──► queue ──┐                                  ┌─► this member leads: into the log, with what
//!                      ├─► batcher ─ stamped (waiting) ───┤   others have forwarded
//!   proposed again ────┘                                  └─► another one leads: forwarded to it
//! ```
//!
//! Everything that has not been answered takes room here, whoever has it meanwhile: bytes as well as places.
//!
//! While a batch is made durable, or is on its way to the leader, the next one grows by itself; there is no timer. A
//! proposal whose asker has gone is carried out all the same once a leader has it: taking it back is not possible.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt};
use openraft::base::BoxStream;
use openraft::errors::{ClientWriteError, Fatal};
use openraft::raft::WriteResult;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::forwarded::{Forwarded, Theirs, forwarded};
use super::forwarder::{Event, Forwarder};
use super::waiting::{Answer, Room, Unsent, Waiting, answer, stopped};
use crate::cluster::{Leader, Leadership};
use crate::command::{EncodedCommand, LogPayload, Stamp};
use crate::config::Config;
use crate::fatal::FatalError;
use crate::node::RaftHandle;
use crate::peer::{ForwardRefusal, Net, RefusedSender};
use crate::progress::Shared;
use crate::types::TypeConfig;

/// How often proposals that nobody waits for are forgotten, and those without a leader for too long are answered.
const SWEEP_INTERVAL: Duration = Duration::from_millis(250);
/// Pause after a leader took nothing, unless leadership changes before.
const REFUSED_PAUSE: Duration = Duration::from_millis(5);

/// Why a proposal has no outcome.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ProposeError {
    /// There was no leader for as long as a request may wait. The proposal was not accepted: trying again is safe.
    #[error("there is no leader; try again")]
    NoLeader,
    /// The queue is full. The proposal was not accepted: trying again later is safe.
    #[error("too many requests: {queued} proposals of {bytes} bytes wait already")]
    TooManyRequests {
        /// Proposals waiting.
        queued: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// The command is larger than this member, or the leader, proposes. It was not accepted.
    #[error("the command takes {bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// A snapshot from the leader jumped over the place in the log where the proposal may be: **it may or may not have
    /// been carried out**.
    #[error(
        "this member was brought up to date by a snapshot while the proposal was under way: its outcome is unknown"
    )]
    Discarded,
    /// The node is stopping: **a proposal that was under way may or may not be carried out**.
    #[error("the node is stopping: the outcome of proposals under way is unknown")]
    Stopped,
    /// The node has failed: **a proposal that was under way may or may not be carried out**.
    #[error("the node has failed: the outcome of proposals under way is unknown")]
    Fatal(#[source] FatalError),
}

type Results = BoxStream<'static, Result<WriteResult<TypeConfig>, Fatal<TypeConfig>>>;

/// The asking side; cheap to clone.
#[derive(Clone)]
pub(crate) struct Proposals {
    queue: mpsc::Sender<Unsent>,
    /// Of everything that has not been answered.
    bytes: Arc<AtomicU64>,
    limits: Limits,
    shared: Arc<Shared>,
}

#[derive(Clone, Copy)]
struct Limits {
    bytes: u64,
    pending: u64,
    command_bytes: usize,
}

/// Whom a result concerns.
#[derive(Clone, Copy)]
enum Asker {
    Own(u64),
    /// One of [`Batch::others`].
    Other(usize, u64),
}

/// A batch that this member, as the leader, has handed to consensus.
struct Batch {
    term: u64,
    results: Results,
    askers: VecDeque<Asker>,
    others: Vec<Other>,
    /// Something of it was not taken.
    refused: bool,
}

/// Another member that has something in a batch.
struct Other {
    refused: RefusedSender,
    /// What was not taken and is to be told, together: its channel has room for a few frames, not for one each.
    untold: Vec<u64>,
}

impl Batch {
    fn tell_refused(&mut self) {
        for other in self.others.iter_mut().filter(|other| !other.untold.is_empty()) {
            other.refused.send(&std::mem::take(&mut other.untold));
        }
    }
}

/// What has become of a batch.
enum BatchEnd {
    Taken,
    Refused,
    /// Consensus has stopped.
    Stopped,
}

/// What the batcher works with.
pub(crate) struct Parts {
    pub(crate) raft: RaftHandle,
    pub(crate) net: Net,
    pub(crate) leadership: Leadership,
    pub(crate) waiting: Arc<Waiting>,
    pub(crate) again: mpsc::UnboundedReceiver<Unsent>,
    pub(crate) shared: Arc<Shared>,
}

/// The task's side.
pub(crate) struct Batcher {
    queue: mpsc::Receiver<Unsent>,
    again: mpsc::UnboundedReceiver<Unsent>,
    theirs: mpsc::Receiver<Theirs>,
    bytes: Arc<AtomicU64>,
    /// Taken from the queues and not handed to a leader yet.
    taken: VecDeque<Unsent>,
    in_flight: VecDeque<Batch>,
    forwarder: Forwarder,
    /// Nothing is handed over before this: a leader has just refused everything.
    not_before: Option<Instant>,
    config: Config,
    raft: RaftHandle,
    leadership: Leadership,
    waiting: Arc<Waiting>,
    shared: Arc<Shared>,
}

/// The three sides of the queue.
pub(crate) fn batcher(config: &Config, parts: Parts) -> (Proposals, Forwarded, Batcher) {
    let Parts { raft, net, leadership, waiting, again, shared } = parts;
    let (sender, queue) = mpsc::channel(config.queue_entries_max);
    let (forwarded, theirs) = forwarded(config, leadership.clone());
    let bytes = Arc::new(AtomicU64::new(0));
    let limits = Limits {
        bytes: config.queue_bytes_max,
        pending: config.queue_entries_max as u64,
        command_bytes: config.command_bytes_max,
    };
    let proposals = Proposals { queue: sender, bytes: Arc::clone(&bytes), limits, shared: Arc::clone(&shared) };
    let batcher = Batcher {
        queue,
        again,
        theirs,
        bytes,
        taken: VecDeque::new(),
        in_flight: VecDeque::new(),
        forwarder: Forwarder::new(net),
        not_before: None,
        config: config.clone(),
        raft,
        leadership,
        waiting,
        shared,
    };
    (proposals, forwarded, batcher)
}

impl Proposals {
    /// Queues a command; its outcome arrives at the receiver.
    pub(crate) fn submit(&self, command: EncodedCommand) -> Result<oneshot::Receiver<Answer>, ProposeError> {
        let bytes = command.bytes();
        if bytes > self.limits.command_bytes {
            return Err(ProposeError::TooLarge { bytes, limit: self.limits.command_bytes });
        }
        let waiting = self.bytes.load(Ordering::Relaxed);
        let pending = self.shared.pending.fetch_add(1, Ordering::Relaxed);
        let refuse = |error| {
            self.shared.pending.fetch_sub(1, Ordering::Relaxed);
            Err(error)
        };
        let full = || ProposeError::TooManyRequests { queued: pending, bytes: waiting };
        let Some(room) = Room::take(&self.bytes, bytes, self.limits.bytes).filter(|_| pending < self.limits.pending)
        else {
            return refuse(full());
        };
        let (answer, receiver) = oneshot::channel();
        match self.queue.try_send(Unsent::new(command, answer, room)) {
            Ok(()) => Ok(receiver),
            Err(mpsc::error::TrySendError::Full(_)) => refuse(full()),
            Err(mpsc::error::TrySendError::Closed(_)) => refuse(stopped(&self.shared)),
        }
    }
}

impl Batcher {
    /// Runs until `stop` resolves and everybody who waits here has been answered, or until consensus has stopped.
    ///
    /// Batches in flight need not end first: without a majority they never do, and whoever still cares for something in
    /// them waits here, or hears from the log of another member.
    pub(crate) async fn run(mut self, stop: impl Future<Output = ()>) {
        tokio::pin!(stop);
        let mut sweep = interval(SWEEP_INTERVAL);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Stopping: the queue takes no more. Drained: nothing is left in it either.
        let (mut stopping, mut drained) = (false, false);
        while !(drained && self.waiting.is_empty() && self.taken.is_empty() && self.again.is_empty()) {
            let leader = self.leadership.now();
            if leader == Leader::Nobody && stopping {
                self.refuse_taken(&ProposeError::NoLeader);
            }
            let room = match self.hand_over(leader).await {
                Ok(room) => room,
                Err(()) => break,
            };
            let pause = self.not_before;
            tokio::select! {
                biased;
                end = Self::answer_next(&mut self.in_flight, &self.waiting, &self.shared), if !self.in_flight.is_empty() => {
                    match end {
                        BatchEnd::Taken => {}
                        // A leader that has lost touch with its majority takes nothing until it has found it again.
                        BatchEnd::Refused => self.not_before = Some(Instant::now() + REFUSED_PAUSE),
                        BatchEnd::Stopped => break,
                    }
                    // Those just answered, and requests that have arrived meanwhile, get into the next batch.
                    tokio::task::yield_now().await;
                }
                event = self.forwarder.next(), if self.forwarder.is_open() => self.on_forward_event(event),
                Some(unsent) = self.again.recv() => self.take_again(Some(unsent)),
                received = self.queue.recv(), if (room || stopping) && !drained => match received {
                    Some(unsent) => self.taken.push_back(unsent),
                    None => drained = true,
                },
                Some(theirs) = self.theirs.recv(), if room => {
                    if !self.propose(Some(theirs)).await {
                        break;
                    }
                }
                _ = self.leadership.other(leader) => self.not_before = None,
                () = until(pause), if pause.is_some() => self.not_before = None,
                _ = sweep.tick() => self.sweep(),
                () = &mut stop, if !stopping => {
                    stopping = true;
                    // What is in the queue by now is still carried out.
                    self.queue.close();
                }
            }
        }
        self.refuse_the_rest();
    }

    /// Hands what waits to whoever leads, as far as there is room. Whether more can be taken from the queues; an error
    /// if consensus has stopped.
    async fn hand_over(&mut self, leader: Leader) -> Result<bool, ()> {
        if self.not_before.is_some() {
            return Ok(false);
        }
        match leader {
            Leader::Nobody => Ok(false),
            Leader::Here { .. } => {
                let room = self.in_flight.len() < self.config.batches_in_flight_max;
                if room && self.fill() {
                    return if self.propose(None).await {
                        Ok(self.in_flight.len() < self.config.batches_in_flight_max)
                    } else {
                        Err(())
                    };
                }
                Ok(room)
            }
            Leader::There { id, term } => {
                let ready = self.forwarder.ready(id, term);
                if ready && self.fill() {
                    self.forward(term).await;
                    return Ok(self.forwarder.ready(id, term));
                }
                Ok(ready)
            }
        }
    }

    /// Takes what waits, without waiting. Whether there is anything to hand over.
    fn fill(&mut self) -> bool {
        self.take_again(None);
        while self.taken.len() < self.config.batch_entries_max {
            match self.queue.try_recv() {
                Ok(unsent) => self.taken.push_back(unsent),
                Err(_) => break,
            }
        }
        !self.taken.is_empty()
    }

    /// Takes what has to be proposed again, ahead of everything else; what is there by now in the order in which it comes,
    /// `first` before the others.
    fn take_again(&mut self, first: Option<Unsent>) {
        let mut again: Vec<Unsent> = first.into_iter().collect();
        again.extend(std::iter::from_fn(|| self.again.try_recv().ok()));
        again.into_iter().rev().for_each(|unsent| self.taken.push_front(unsent));
    }

    /// The next batch of what was taken, within the limits.
    fn next_batch(&mut self) -> Vec<Unsent> {
        let (mut bytes, mut batch) = (0, Vec::with_capacity(self.taken.len().min(self.config.batch_entries_max)));
        while batch.len() < self.config.batch_entries_max
            && let Some(unsent) =
                self.taken.pop_front_if(|next| bytes == 0 || bytes + next.bytes() <= self.config.batch_bytes_max)
        {
            // No leader has it, so that it can be dropped without a trace.
            if unsent.is_abandoned() {
                answer(&self.shared, unsent, Err(ProposeError::NoLeader));
            } else {
                bytes += unsent.bytes();
                batch.push(unsent);
            }
        }
        batch
    }

    /// Stamps a batch for the leader of a term. Nothing, if that term is over.
    fn stamped(&mut self, term: u64) -> Vec<LogPayload> {
        let batch = self.next_batch();
        match self.waiting.send(term, batch) {
            Ok(payloads) => payloads,
            Err(batch) => {
                batch.into_iter().rev().for_each(|unsent| self.taken.push_front(unsent));
                self.not_before = Some(Instant::now() + REFUSED_PAUSE);
                Vec::new()
            }
        }
    }

    async fn forward(&mut self, term: u64) {
        let payloads = self.stamped(term);
        if let Err(seqs) = self.forwarder.send(term, payloads).await {
            self.waiting.refused(term, &seqs);
            self.not_before = Some(Instant::now() + REFUSED_PAUSE);
        }
    }

    fn on_forward_event(&mut self, event: Event) {
        match event {
            Event::Progress => {}
            Event::Refused { term, seqs, reason: ForwardRefusal::Busy } => {
                let bytes = self.bytes.load(Ordering::Relaxed);
                let queued = self.shared.pending.load(Ordering::Relaxed);
                self.waiting.fail(term, &seqs, &ProposeError::TooManyRequests { queued, bytes });
            }
            Event::Refused { term, seqs, reason: ForwardRefusal::TooLarge { limit } } => {
                self.waiting.too_large(term, &seqs, usize::try_from(limit).unwrap_or(usize::MAX));
                self.not_before = Some(Instant::now() + REFUSED_PAUSE);
            }
            Event::Refused { term, seqs, .. } => {
                self.waiting.refused(term, &seqs);
                self.not_before = Some(Instant::now() + REFUSED_PAUSE);
            }
            // What was sent on it may have arrived or not: the log says which, or a later term does.
            Event::Closed => self.not_before = Some(Instant::now() + REFUSED_PAUSE),
        }
    }

    /// Hands one batch to consensus: what was taken here, and what others have forwarded. Whether consensus still runs.
    async fn propose(&mut self, first: Option<Theirs>) -> bool {
        let Leader::Here { term } = self.leadership.now() else {
            if let Some(theirs) = first {
                theirs.give_up();
            }
            return true;
        };
        let own = self.stamped(term);
        let mut commands = Vec::with_capacity(own.len());
        let (mut askers, mut others) = (VecDeque::with_capacity(own.len()), Vec::new());
        let mut bytes = 0;
        for payload in own {
            bytes += payload.as_bytes().len();
            askers.extend(payload.stamp().map(|stamp| Asker::Own(stamp.seq)));
            commands.push(payload);
        }
        let mut next = first.or_else(|| self.theirs.try_recv().ok());
        while let Some(theirs) = next.take() {
            if theirs.term != term {
                theirs.give_up();
            } else {
                for payload in theirs.payloads {
                    bytes += payload.len();
                    let seq = Stamp::read(&payload).map_or(0, |stamp| stamp.seq);
                    askers.push_back(Asker::Other(others.len(), seq));
                    commands.push(LogPayload::new(payload));
                }
                others.push(Other { refused: theirs.refused, untold: Vec::new() });
            }
            if commands.len() < self.config.batch_entries_max && bytes < self.config.batch_bytes_max {
                next = self.theirs.try_recv().ok();
            }
        }
        if commands.is_empty() {
            return true;
        }
        match self.raft.client_write_many(commands).await {
            Ok(results) => {
                self.in_flight.push_back(Batch { term, results, askers, others, refused: false });
                true
            }
            Err(error) => {
                note_fatal(&self.shared, &error);
                false
            }
        }
    }

    /// Waits for the oldest batch. Those that consensus did not take are proposed again.
    async fn answer_next(in_flight: &mut VecDeque<Batch>, waiting: &Waiting, shared: &Shared) -> BatchEnd {
        let Some(batch) = in_flight.front_mut() else { return BatchEnd::Taken };
        while let Some(asker) = batch.askers.front().copied() {
            let result = match batch.results.next().now_or_never() {
                Some(result) => result,
                None => {
                    batch.tell_refused();
                    batch.results.next().await
                }
            };
            match result {
                // The state machine has answered, or the log will decide: see `waiting`.
                Some(Ok(Ok(_) | Err(ClientWriteError::LogEntryDiscarded(_)))) => {}
                Some(Ok(Err(
                    ClientWriteError::ForwardToLeader(_)
                    | ClientWriteError::ChangeMembershipError(_)
                    | ClientWriteError::PreconditionFailed(_),
                ))) => {
                    batch.refused = true;
                    match asker {
                        Asker::Own(seq) => waiting.refused(batch.term, &[seq]),
                        Asker::Other(at, seq) => batch.others[at].untold.push(seq),
                    }
                }
                Some(Err(error)) => {
                    note_fatal(shared, &error);
                    return BatchEnd::Stopped;
                }
                None => return BatchEnd::Stopped,
            }
            batch.askers.pop_front();
        }
        batch.tell_refused();
        let refused = batch.refused;
        in_flight.pop_front();
        if refused { BatchEnd::Refused } else { BatchEnd::Taken }
    }

    /// Once in a while: who has gone is forgotten, and who has waited for a leader for too long is told, before whoever
    /// asked gives up by itself without knowing that nothing will come of it.
    fn sweep(&mut self) {
        self.waiting.forget_abandoned();
        if matches!(self.leadership.now(), Leader::Here { .. }) {
            return;
        }
        while let Ok(unsent) = self.queue.try_recv() {
            self.taken.push_back(unsent);
        }
        let limit = Duration::from_millis(self.config.request_timeout_ms).saturating_sub(2 * SWEEP_INTERVAL);
        for unsent in std::mem::take(&mut self.taken) {
            if unsent.age() < limit {
                self.taken.push_back(unsent);
            } else {
                answer(&self.shared, unsent, Err(ProposeError::NoLeader));
            }
        }
    }

    fn refuse_taken(&mut self, error: &ProposeError) {
        for unsent in std::mem::take(&mut self.taken) {
            answer(&self.shared, unsent, Err(error.clone()));
        }
    }

    /// Answers everybody who is left when the task ends.
    fn refuse_the_rest(mut self) {
        self.queue.close();
        self.theirs.close();
        let error = stopped(&self.shared);
        self.refuse_taken(&error);
        self.waiting.lose_all(&error);
        self.again.close();
        while let Ok(unsent) = self.again.try_recv() {
            answer(&self.shared, unsent, Err(error.clone()));
        }
        while let Ok(unsent) = self.queue.try_recv() {
            answer(&self.shared, unsent, Err(error.clone()));
        }
        while let Ok(theirs) = self.theirs.try_recv() {
            theirs.give_up();
        }
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

fn note_fatal(shared: &Shared, error: &Fatal<TypeConfig>) {
    match error {
        Fatal::Stopped => {}
        Fatal::StorageError(_) | Fatal::Panicked => {
            shared.fatal.set(FatalError::Consensus { reason: error.to_string() });
        }
    }
}

#[cfg(test)]
#[path = "batcher_tests.rs"]
mod tests;
