//! Proposals on their way to the leader: batches in order, each accepted into the leader's queue or refused.
//!
//! What becomes of an accepted proposal is not told here: it comes back to its origin with the log. Only those that the
//! leader gives up before they got into its log are named later, so that they need not wait for a timeout.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{BufMut, Bytes};
use tokio::sync::{Notify, mpsc};

use super::CallError;
use super::body::Input;
use super::duplex::{Duplex, Receiving, Sending};
use super::frame::{Address, Kind, encode};
use super::net::Net;
use super::serve::Served;
use crate::codec::CodecError;

/// Sequence numbers in one frame of refusals.
const SEQS_MAX: usize = 8_192;

/// Why the peer did not take a batch. Nothing of it was proposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ForwardRefusal {
    /// It does not lead.
    #[error("the member does not lead")]
    NotLeader,
    /// Its queue is full.
    #[error("the leader's queue is full")]
    Busy,
    /// It is stopping, or has failed.
    #[error("the leader is stopping")]
    Stopped,
    /// It could not read a proposal.
    #[error("the leader could not read a proposal")]
    Malformed,
    /// A proposal is larger than it proposes by its own settings.
    #[error("a proposal is larger than the {limit} bytes that the leader proposes")]
    TooLarge {
        /// Bytes that one may have.
        limit: u64,
    },
}

/// What the leader says about what it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ForwardReply {
    /// The batch is in the leader's queue.
    Accepted {
        /// Which batch.
        batch: u64,
    },
    /// Nothing of the batch was taken.
    Refused {
        /// Which batch.
        batch: u64,
        /// Why.
        reason: ForwardRefusal,
    },
    /// Accepted proposals that were given up before they got into the log.
    GivenUp {
        /// Their sequence numbers.
        seqs: Vec<u64>,
    },
}

/// The sending half of a forward channel.
pub(crate) struct ForwardSender {
    sending: Sending,
}

/// The receiving half of a forward channel. The channel is closed when both halves are gone.
pub(crate) struct ForwardReceiver {
    receiving: Receiving,
}

/// On the leader: tells the origin of proposals that they were given up. Cheap to clone; never blocks.
#[derive(Clone)]
pub(crate) struct RefusedSender {
    /// Weak: the channel ends when it is no longer served, whoever still could refuse something.
    out: mpsc::WeakSender<Bytes>,
    address: Address,
    broken: Arc<Broken>,
}

/// Raised when the other side cannot be told something: then the channel is closed, which tells it that anything may have
/// happened.
#[derive(Default)]
struct Broken {
    flag: AtomicBool,
    raised: Notify,
}

impl ForwardSender {
    /// Sends a batch; waits while the peer takes nothing. Batches arrive in the order in which they are sent.
    ///
    /// # Errors
    /// [`CallError::NotSent`] if the channel was closed before; once it has been handed over, only a reply, or the end of
    /// the channel, says more.
    pub(crate) async fn send(&self, batch: u64, payloads: &[Bytes]) -> Result<(), CallError> {
        let bytes: usize = payloads.iter().map(|payload| 4 + payload.len()).sum();
        self.sending
            .send(Kind::Forward, 12 + bytes, |out| {
                out.put_u64(batch);
                out.put_u32(payloads.len() as u32);
                for payload in payloads {
                    out.put_u32(payload.len() as u32);
                    out.put_slice(payload);
                }
            })
            .await
    }
}

impl ForwardReceiver {
    /// The next reply; none when the channel has ended. Cancel safe.
    pub(crate) async fn recv(&mut self) -> Option<ForwardReply> {
        let frame = self.receiving.next().await?;
        let reply = match frame.kind {
            Kind::Forwarded => decode_reply(frame.body),
            Kind::GivenUp => decode_given_up(frame.body),
            _ => Err(CodecError::Malformed { what: "reply to a batch", detail: "a frame of another kind" }),
        };
        reply.map_err(|error| self.receiving.broken(&error)).ok()
    }
}

impl RefusedSender {
    /// To whoever reads the other end of `out`.
    #[cfg(test)]
    pub(crate) fn to(out: &mpsc::Sender<Bytes>) -> RefusedSender {
        let address = Address { cluster: 1, from: 1, to: 2 };
        RefusedSender { out: out.downgrade(), address, broken: Arc::default() }
    }

    /// Names proposals that were given up. If they cannot be told, the channel is closed.
    pub(crate) fn send(&self, seqs: &[u64]) {
        for seqs in seqs.chunks(SEQS_MAX) {
            let frame = encode(self.address, Kind::GivenUp, 4 + 8 * seqs.len(), |out| {
                out.put_u32(seqs.len() as u32);
                seqs.iter().for_each(|seq| out.put_u64(*seq));
            });
            let Some(out) = self.out.upgrade() else { return };
            if out.try_send(frame).is_err() {
                self.broken.flag.store(true, Ordering::Release);
                self.broken.raised.notify_one();
                return;
            }
        }
    }
}

impl Net {
    /// Opens a channel to the leader for proposals.
    ///
    /// # Errors
    /// [`CallError::NotSent`].
    pub(crate) async fn open_forward(&self, to: u64) -> Result<(ForwardSender, ForwardReceiver), CallError> {
        let peer = self.peer(to);
        let opened = Duplex::open(self, &peer, super::serve::FORWARD).await;
        let duplex = opened.map_err(|error| CallError::NotSent { peer: to, reason: error.to_string() })?;
        let (sending, receiving) = duplex.split();
        Ok((ForwardSender { sending }, ForwardReceiver { receiving }))
    }
}

/// Takes batches until the channel ends.
pub(super) async fn serve(mut served: Served) {
    let broken = Arc::new(Broken::default());
    let refused = RefusedSender { out: served.out.downgrade(), address: served.address, broken: Arc::clone(&broken) };
    loop {
        let frame = tokio::select! {
            biased;
            () = broken.raised.notified() => return,
            frame = served.next() => frame,
        };
        let Some(frame) = frame else { return };
        let (batch, payloads) = match decode_batch(frame.kind, frame.body) {
            Ok(decoded) => decoded,
            Err(error) => return served.complain(&error),
        };
        // It may have been removed since it said Hello.
        if served.refused() {
            return;
        }
        let taken = served.host.forwarded(served.peer.id, payloads, refused.clone());
        let reply = encode(served.address, Kind::Forwarded, 17, |out| {
            out.put_u64(batch);
            match taken {
                Ok(()) => out.put_u8(0),
                Err(ForwardRefusal::NotLeader) => out.put_u8(1),
                Err(ForwardRefusal::Busy) => out.put_u8(2),
                Err(ForwardRefusal::Stopped) => out.put_u8(3),
                Err(ForwardRefusal::Malformed) => out.put_u8(4),
                Err(ForwardRefusal::TooLarge { limit }) => {
                    out.put_u8(5);
                    out.put_u64(limit);
                }
            }
        });
        if served.out.send(reply).await.is_err() {
            return;
        }
    }
}

fn decode_batch(kind: Kind, body: Bytes) -> Result<(u64, Vec<Bytes>), CodecError> {
    let mut input = Input::new("batch of proposals", body);
    if kind != Kind::Forward {
        return Err(input.malformed("a frame of another kind among batches"));
    }
    let batch = input.u64()?;
    let count = input.count(4)?;
    let payloads = (0..count).map(|_| input.bytes()).collect::<Result<_, _>>()?;
    input.end()?;
    Ok((batch, payloads))
}

fn decode_reply(body: Bytes) -> Result<ForwardReply, CodecError> {
    let mut input = Input::new("reply to a batch", body);
    let batch = input.u64()?;
    let reason = match input.u8()? {
        0 => None,
        1 => Some(ForwardRefusal::NotLeader),
        2 => Some(ForwardRefusal::Busy),
        3 => Some(ForwardRefusal::Stopped),
        4 => Some(ForwardRefusal::Malformed),
        5 => Some(ForwardRefusal::TooLarge { limit: input.u64()? }),
        _ => return Err(input.malformed("an unknown reply")),
    };
    input.end()?;
    Ok(reason.map_or(ForwardReply::Accepted { batch }, |reason| ForwardReply::Refused { batch, reason }))
}

fn decode_given_up(body: Bytes) -> Result<ForwardReply, CodecError> {
    let mut input = Input::new("list of proposals given up", body);
    let count = input.count(8)?;
    let seqs = (0..count).map(|_| input.u64()).collect::<Result<_, _>>()?;
    input.end()?;
    Ok(ForwardReply::GivenUp { seqs })
}
