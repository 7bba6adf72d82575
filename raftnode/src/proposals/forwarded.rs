//! Proposals of other members: a bounded queue in front of the batcher of the member that leads.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::waiting::Room;
use crate::cluster::{Leader, Leadership};
use crate::command::{LogPayload, Stamp};
use crate::config::Config;
use crate::peer::{ForwardRefusal, RefusedSender};

/// Batches of other members that wait for this one to propose them. More are refused.
const FORWARDED_BATCHES_MAX: usize = 256;

/// Where other members' proposals come in; cheap to clone.
#[derive(Clone)]
pub(crate) struct Forwarded {
    queue: mpsc::Sender<Theirs>,
    leadership: Leadership,
    command_bytes_max: usize,
    /// Of what waits to be proposed.
    bytes: Arc<AtomicU64>,
    bytes_max: u64,
}

/// A batch of another member.
pub(crate) struct Theirs {
    pub(crate) payloads: Vec<Bytes>,
    pub(crate) term: u64,
    pub(crate) refused: RefusedSender,
    _room: Room,
}

/// Both sides of the queue.
pub(crate) fn forwarded(config: &Config, leadership: Leadership) -> (Forwarded, mpsc::Receiver<Theirs>) {
    let (queue, theirs) = mpsc::channel(FORWARDED_BATCHES_MAX);
    let (command_bytes_max, bytes_max) = (config.command_bytes_max, config.queue_bytes_max);
    (Forwarded { queue, leadership, command_bytes_max, bytes: Arc::default(), bytes_max }, theirs)
}

impl Forwarded {
    /// Takes a batch of another member, all or none.
    ///
    /// Invariant: a proposal that is not taken here, or is refused later, is in no log; its origin may propose it again.
    pub(crate) fn accept(&self, from: u64, payloads: Vec<Bytes>, refused: RefusedSender) -> Result<(), ForwardRefusal> {
        let Leader::Here { term } = self.leadership.now() else { return Err(ForwardRefusal::NotLeader) };
        for payload in &payloads {
            match Stamp::read(payload) {
                None => return Err(ForwardRefusal::Malformed),
                Some(_) if payload.len() > self.command_bytes_max => {
                    return Err(ForwardRefusal::TooLarge { limit: self.command_bytes_max as u64 });
                }
                Some(stamp) if stamp.term != term => return Err(ForwardRefusal::NotLeader),
                // Once it is in the log, every member would end by it.
                Some(_) if LogPayload::new(payload.clone()).decode().is_err() => return Err(ForwardRefusal::Malformed),
                Some(_) => {}
            }
        }
        let busy = || {
            tracing::debug!(from = format!("{from:x}"), "refused a forwarded batch: too many wait already");
            ForwardRefusal::Busy
        };
        let bytes = payloads.iter().map(Bytes::len).sum();
        let room = Room::take(&self.bytes, bytes, self.bytes_max).ok_or_else(busy)?;
        self.queue.try_send(Theirs { payloads, term, refused, _room: room }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => busy(),
            mpsc::error::TrySendError::Closed(_) => ForwardRefusal::Stopped,
        })
    }
}

impl Theirs {
    /// Tells the origin that nothing of the batch got into the log.
    pub(crate) fn give_up(self) {
        let seqs: Vec<u64> =
            self.payloads.iter().filter_map(|payload| Stamp::read(payload)).map(|stamp| stamp.seq).collect();
        self.refused.send(&seqs);
    }
}
