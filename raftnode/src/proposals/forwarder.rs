//! The channel to the leader for proposals, opened when there is one that is not this member.
//!
//! At most a few batches are on their way to the leader's queue at a time, so that the next one grows meanwhile. Only a
//! leader that says that it took nothing has taken nothing: a channel that breaks says nothing.

use std::collections::VecDeque;
use std::pin::Pin;

use bytes::Bytes;

use crate::command::LogPayload;
use crate::peer::{CallError, ForwardReceiver, ForwardRefusal, ForwardReply, ForwardSender, Net};

/// Batches on their way to the leader's queue.
const UNACCEPTED_BATCHES_MAX: usize = 2;

type Opening = Pin<Box<dyn Future<Output = Result<(ForwardSender, ForwardReceiver), CallError>> + Send>>;

/// What the leader, or the way to it, has to say.
pub(crate) enum Event {
    /// The channel was opened, or a batch was accepted: there may be room now.
    Progress,
    /// These are in no log of that leader in that term.
    Refused {
        /// The term that they were meant for.
        term: u64,
        /// Which ones.
        seqs: Vec<u64>,
        /// Why.
        reason: ForwardRefusal,
    },
    /// The channel ended, or could not be opened.
    Closed,
}

/// The channel to one leader in one term, or the attempt to open it.
struct Channel {
    leader: u64,
    term: u64,
    state: State,
    /// Batches that the leader has not acknowledged, oldest first.
    unaccepted: VecDeque<(u64, Vec<u64>)>,
    next_batch: u64,
}

enum State {
    Opening(Opening),
    Open(ForwardSender, ForwardReceiver),
}

pub(crate) struct Forwarder {
    net: Net,
    channel: Option<Channel>,
}

impl Forwarder {
    pub(crate) fn new(net: Net) -> Forwarder {
        Forwarder { net, channel: None }
    }

    /// Whether a batch for this leader of this term can be sent now. If there is no channel, one is being opened then.
    pub(crate) fn ready(&mut self, leader: u64, term: u64) -> bool {
        let channel = match &mut self.channel {
            Some(channel) if (channel.leader, channel.term) == (leader, term) => channel,
            other => {
                let net = self.net.clone();
                let opening: Opening = Box::pin(async move { net.open_forward(leader).await });
                let state = State::Opening(opening);
                other.insert(Channel { leader, term, state, unaccepted: VecDeque::new(), next_batch: 1 })
            }
        };
        matches!(channel.state, State::Open(..)) && channel.unaccepted.len() < UNACCEPTED_BATCHES_MAX
    }

    /// There is something to wait for.
    pub(crate) fn is_open(&self) -> bool {
        self.channel.is_some()
    }

    /// Sends a batch. If it certainly did not leave, its sequence numbers come back.
    pub(crate) async fn send(&mut self, term: u64, payloads: Vec<LogPayload>) -> Result<(), Vec<u64>> {
        if payloads.is_empty() {
            return Ok(());
        }
        let seqs = payloads.iter().filter_map(|payload| payload.stamp()).map(|stamp| stamp.seq).collect();
        let Some(channel) = self.channel.as_mut().filter(|channel| channel.term == term) else { return Err(seqs) };
        let State::Open(sender, _) = &channel.state else { return Err(seqs) };
        let payloads: Vec<Bytes> = payloads.into_iter().map(LogPayload::into_bytes).collect();
        let batch = channel.next_batch;
        channel.next_batch += 1;
        match sender.send(batch, &payloads).await {
            Ok(()) => {
                channel.unaccepted.push_back((batch, seqs));
                Ok(())
            }
            Err(CallError::NotSent { .. }) => {
                self.channel = None;
                Err(seqs)
            }
            Err(CallError::Unclear { .. }) => {
                self.channel = None;
                Ok(())
            }
        }
    }

    /// What happens next. Cancel safe. Must not be called unless there is something to wait for.
    pub(crate) async fn next(&mut self) -> Event {
        let Some(channel) = &mut self.channel else { return std::future::pending().await };
        match &mut channel.state {
            State::Opening(opening) => match opening.await {
                Ok((sender, receiver)) => {
                    channel.state = State::Open(sender, receiver);
                    Event::Progress
                }
                Err(error) => {
                    tracing::debug!(%error, "no channel to the leader");
                    self.channel = None;
                    Event::Closed
                }
            },
            State::Open(_, receiver) => match receiver.recv().await {
                Some(ForwardReply::Accepted { batch }) => {
                    channel.settle(batch);
                    Event::Progress
                }
                Some(ForwardReply::Refused { batch, reason }) => {
                    let seqs = channel.settle(batch);
                    Event::Refused { term: channel.term, seqs, reason }
                }
                Some(ForwardReply::GivenUp { seqs }) => {
                    Event::Refused { term: channel.term, seqs, reason: ForwardRefusal::NotLeader }
                }
                None => {
                    self.channel = None;
                    Event::Closed
                }
            },
        }
    }
}

impl Channel {
    /// The sequence numbers of a batch that the leader has spoken about.
    fn settle(&mut self, batch: u64) -> Vec<u64> {
        let place = self.unaccepted.iter().position(|(number, _)| *number == batch);
        place.and_then(|place| self.unaccepted.remove(place)).map_or_else(Vec::new, |(_, seqs)| seqs)
    }
}
