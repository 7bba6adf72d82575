//! Proposals: a bounded queue in front, and one task that hands over what waits there as one batch.
//!
//! While a batch is made durable the next one grows by itself; there is no timer. A proposal whose asker has gone is
//! carried out all the same: it may be in the log already, and taking it back is not possible.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::StreamExt;
use openraft::base::BoxStream;
use openraft::errors::{ClientWriteError, Fatal};
use openraft::raft::WriteResult;
use tally_apply::Outcome;
use tokio::sync::{mpsc, oneshot};

use crate::command::EncodedCommand;
use crate::config::Config;
use crate::fatal::FatalError;
use crate::node::RaftHandle;
use crate::progress::Shared;
use crate::types::TypeConfig;

/// Why a proposal has no outcome.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ProposeError {
    /// There is no leader at the moment. The proposal was not accepted: trying again is safe.
    #[error("there is no leader; try again")]
    NoLeader,
    /// Another member leads. The proposal was not accepted here.
    #[error("member {leader:x} leads; ask it")]
    NotLeader {
        /// The leader.
        leader: u64,
    },
    /// The queue is full. The proposal was not accepted: trying again later is safe.
    #[error("too many requests: {queued} proposals of {bytes} bytes wait already")]
    TooManyRequests {
        /// Proposals waiting.
        queued: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// The command is larger than the log takes. It was not accepted.
    #[error("the command takes {bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// Leadership was lost while the proposal was under way: **it may or may not be carried out**.
    #[error("leadership was lost while the proposal was under way: its outcome is unknown")]
    Discarded,
    /// The node is stopping: **a proposal that was under way may or may not be carried out**.
    #[error("the node is stopping: the outcome of proposals under way is unknown")]
    Stopped,
    /// The node has failed: **a proposal that was under way may or may not be carried out**.
    #[error("the node has failed: the outcome of proposals under way is unknown")]
    Fatal(#[source] FatalError),
}

type Answer = Result<Outcome, ProposeError>;
type Outcomes = BoxStream<'static, Result<WriteResult<TypeConfig>, Fatal<TypeConfig>>>;

struct Proposal {
    command: EncodedCommand,
    answer: oneshot::Sender<Answer>,
}

/// The asking side; cheap to clone.
#[derive(Clone)]
pub(crate) struct Proposals {
    queue: mpsc::Sender<Proposal>,
    queued_bytes: Arc<AtomicU64>,
    queue_bytes_max: u64,
    command_bytes_max: usize,
    shared: Arc<Shared>,
}

/// The task's side.
pub(crate) struct Batcher {
    queue: mpsc::Receiver<Proposal>,
    queued_bytes: Arc<AtomicU64>,
    /// Taken from the queue and left over by a batch that was full of bytes.
    taken: VecDeque<Proposal>,
    in_flight: VecDeque<Batch>,
    limits: Config,
    raft: RaftHandle,
    shared: Arc<Shared>,
}

/// A batch under way: who waits for which outcome, in order.
struct Batch {
    outcomes: Outcomes,
    answers: VecDeque<oneshot::Sender<Answer>>,
}

/// Both sides of the queue.
pub(crate) fn batcher(config: &Config, raft: RaftHandle, shared: Arc<Shared>) -> (Proposals, Batcher) {
    let (sender, receiver) = mpsc::channel(config.queue_entries_max);
    let queued_bytes = Arc::new(AtomicU64::new(0));
    let proposals = Proposals {
        queue: sender,
        queued_bytes: Arc::clone(&queued_bytes),
        queue_bytes_max: config.queue_bytes_max,
        command_bytes_max: config.command_bytes_max,
        shared: Arc::clone(&shared),
    };
    let batcher = Batcher {
        queue: receiver,
        queued_bytes,
        taken: VecDeque::new(),
        in_flight: VecDeque::new(),
        limits: config.clone(),
        raft,
        shared,
    };
    (proposals, batcher)
}

impl Proposals {
    /// Queues a command; its outcome arrives at the receiver.
    pub(crate) fn submit(&self, command: EncodedCommand) -> Result<oneshot::Receiver<Answer>, ProposeError> {
        let bytes = command.bytes();
        if bytes > self.command_bytes_max {
            return Err(ProposeError::TooLarge { bytes, limit: self.command_bytes_max });
        }
        let queued = self.queued_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let refuse = |error| {
            self.queued_bytes.fetch_sub(bytes as u64, Ordering::Relaxed);
            Err(error)
        };
        let full =
            || ProposeError::TooManyRequests { queued: self.shared.pending.load(Ordering::Relaxed), bytes: queued };
        if queued > 0 && queued + bytes as u64 > self.queue_bytes_max {
            return refuse(full());
        }
        let (answer, receiver) = oneshot::channel();
        self.shared.pending.fetch_add(1, Ordering::Relaxed);
        match self.queue.try_send(Proposal { command, answer }) {
            Ok(()) => Ok(receiver),
            Err(error) => {
                self.shared.pending.fetch_sub(1, Ordering::Relaxed);
                refuse(match error {
                    mpsc::error::TrySendError::Full(_) => full(),
                    mpsc::error::TrySendError::Closed(_) => stopped(&self.shared),
                })
            }
        }
    }
}

/// What a proposal hears when the node no longer works.
pub(crate) fn stopped(shared: &Shared) -> ProposeError {
    shared.fatal.get().map_or(ProposeError::Stopped, ProposeError::Fatal)
}

impl Batcher {
    /// Runs until `stop` resolves and everything accepted has been answered, or until consensus has stopped.
    pub(crate) async fn run(mut self, stop: impl Future<Output = ()>) {
        tokio::pin!(stop);
        // Stopping: the queue takes no more. Drained: nothing is left in it either.
        let (mut stopping, mut drained) = (false, false);
        while !(drained && self.in_flight.is_empty()) {
            let room = self.in_flight.len() < self.limits.batches_in_flight_max;
            if room && self.fill() {
                if self.propose().await {
                    continue;
                }
                break;
            }
            tokio::select! {
                biased;
                alive = Self::answer_next(&mut self.in_flight, &self.shared), if !self.in_flight.is_empty() => {
                    if !alive {
                        break;
                    }
                    // Those just answered, and requests that have arrived meanwhile, get into the next batch.
                    tokio::task::yield_now().await;
                }
                received = self.queue.recv(), if room && !drained => match received {
                    Some(proposal) => self.taken.push_back(proposal),
                    None => drained = true,
                },
                () = &mut stop, if !stopping => {
                    stopping = true;
                    // What is in the queue by now is still carried out.
                    self.queue.close();
                }
            }
        }
        self.refuse_the_rest();
    }

    /// Takes what waits, without waiting. Whether there is anything to propose.
    fn fill(&mut self) -> bool {
        while self.taken.len() < self.limits.batch_entries_max {
            match self.queue.try_recv() {
                Ok(proposal) => self.taken.push_back(proposal),
                Err(_) => break,
            }
        }
        !self.taken.is_empty()
    }

    /// Hands one batch to consensus. Whether consensus still runs.
    async fn propose(&mut self) -> bool {
        let mut bytes = 0;
        let mut commands = Vec::with_capacity(self.taken.len().min(self.limits.batch_entries_max));
        let mut answers = VecDeque::with_capacity(commands.capacity());
        while commands.len() < self.limits.batch_entries_max
            && let Some(Proposal { command, answer }) = self
                .taken
                .pop_front_if(|next| bytes == 0 || bytes + next.command.bytes() <= self.limits.batch_bytes_max)
        {
            bytes += command.bytes();
            commands.push(command);
            answers.push_back(answer);
        }
        self.queued_bytes.fetch_sub(bytes as u64, Ordering::Relaxed);
        match self.raft.client_write_many(commands).await {
            Ok(outcomes) => {
                self.in_flight.push_back(Batch { outcomes, answers });
                true
            }
            Err(error) => {
                let error = fatal(&self.shared, &error);
                answers.into_iter().for_each(|answer| give(&self.shared, answer, Err(error.clone())));
                false
            }
        }
    }

    /// Passes on what has come of the oldest batch. Whether consensus still runs.
    async fn answer_next(in_flight: &mut VecDeque<Batch>, shared: &Shared) -> bool {
        let Some(batch) = in_flight.front_mut() else { return true };
        while !batch.answers.is_empty() {
            let result = batch.outcomes.next().await;
            let Some(answer) = batch.answers.pop_front() else { break };
            match result {
                Some(Ok(Ok(written))) => give(shared, answer, Ok(written.response)),
                Some(Ok(Err(refused))) => give(shared, answer, Err(refusal(refused))),
                Some(Err(error)) => {
                    give(shared, answer, Err(fatal(shared, &error)));
                    return false;
                }
                None => {
                    give(shared, answer, Err(stopped(shared)));
                    return false;
                }
            }
        }
        in_flight.pop_front();
        true
    }

    /// Answers everybody who is left when the task ends.
    fn refuse_the_rest(mut self) {
        self.queue.close();
        let error = stopped(&self.shared);
        let under_way = self.in_flight.drain(..).flat_map(|batch| batch.answers);
        let waiting = self.taken.drain(..).map(|proposal| proposal.answer);
        under_way.chain(waiting).for_each(|answer| give(&self.shared, answer, Err(error.clone())));
        while let Ok(proposal) = self.queue.try_recv() {
            give(&self.shared, proposal.answer, Err(error.clone()));
        }
    }
}

fn give(shared: &Shared, answer: oneshot::Sender<Answer>, result: Answer) {
    shared.pending.fetch_sub(1, Ordering::Relaxed);
    if result.is_err() {
        shared.failed.fetch_add(1, Ordering::Relaxed);
    }
    // The asker may have gone; the outcome stands all the same.
    drop(answer.send(result));
}

fn refusal(error: ClientWriteError<TypeConfig>) -> ProposeError {
    match error {
        ClientWriteError::ForwardToLeader(forward) => {
            forward.leader_id.map_or(ProposeError::NoLeader, |leader| ProposeError::NotLeader { leader })
        }
        ClientWriteError::LogEntryDiscarded(_)
        | ClientWriteError::ChangeMembershipError(_)
        | ClientWriteError::PreconditionFailed(_) => ProposeError::Discarded,
    }
}

fn fatal(shared: &Shared, error: &Fatal<TypeConfig>) -> ProposeError {
    match error {
        Fatal::Stopped => stopped(shared),
        Fatal::StorageError(_) | Fatal::Panicked => {
            ProposeError::Fatal(shared.fatal.set(FatalError::Consensus { reason: error.to_string() }))
        }
    }
}
