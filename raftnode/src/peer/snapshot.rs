//! Sending a snapshot: the state of the store, set aside and streamed on a connection of its own.
//!
//! ```text
//! sender    Hello   Offer {vote}                                 the stream of the state, in no frames
//! receiver  Hello                                   Go                                             Installed {vote}
//! ```
//! The stream carries checksums of its own, of every piece. It begins only when the receiver has said that it takes it,
//! because the state that is set aside for it costs a flush, and disk space as long as it is there. Which state it is stands
//! in its manifest: newer than what was asked for, perhaps, never older.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes};
use openraft::errors::{NetworkError, ReplicationClosed, StreamingError, Unreachable};
use openraft::raft::SnapshotResponse;
use tally_backend::{Backend, ExportError, Frozen};
use tokio::sync::mpsc;

use super::body::{Input, put_vote};
use super::duplex::{Duplex, Receiving, Sending};
use super::frame::Kind;
use super::net::Net;
use super::observer::NetworkEvent;
use super::outgoing::Task;
use super::peers::Peer;
use super::serve;
use crate::background;
use crate::codec::CodecError;
use crate::snapshot::{Checkpoint, SetAside, incoming_dir};
use crate::types::{RaftVote, Snapshot, TypeConfig};

/// Bytes of the stream that are sent at a time, at most.
const PIECE_BYTES: usize = 1 << 20;
/// Pieces that have been read and not been sent.
const PIECES_AHEAD: usize = 4;
/// Before a receiver is asked again that receives, or puts in force, what another leader has sent it.
const BUSY_PAUSE: Duration = Duration::from_secs(2);
/// Before a receiver is sent the whole state again that could not take it: on a full disk it cannot the next time either.
const FAILED_PAUSE: Duration = Duration::from_secs(5);
/// Without any progress of the stream for so long, either side gives the other up. A disk may take its time for one fsync,
/// and to begin again costs more than to wait; whether the peer is there is found out by pings.
pub(super) const STALL_MAX: Duration = Duration::from_secs(120);

/// What the receiver answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Installed {
    /// The vote of the receiver; if it is not higher than the sender's, the snapshot is in force, or was not needed.
    Vote(RaftVote),
    /// Another snapshot is being received.
    Busy,
    /// It could not be taken.
    Failed(String),
}

/// Why a snapshot was not sent.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error(transparent)]
    Closed(#[from] ReplicationClosed),
    #[error("the snapshot was cancelled: it is of a term after that of its sender")]
    Deposed,
    #[error("the state cannot be set aside, or read")]
    Export(#[from] ExportError),
    #[error("member {peer:x}: {reason}")]
    Unreachable { peer: u64, reason: String },
    #[error("member {peer:x} did not take the snapshot: {reason}")]
    Refused { peer: u64, reason: String },
    #[error(transparent)]
    Thread(#[from] background::Ended),
}

/// A snapshot that is being sent, counted as long as this lives.
struct Counted {
    net: Net,
}

impl Counted {
    fn new(net: &Net) -> Counted {
        net.inner.sending.fetch_add(1, Ordering::AcqRel);
        Counted { net: net.clone() }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.net.inner.sending.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Sends a snapshot and waits until it is in force there.
pub(super) async fn send(
    net: &Net,
    peer: &Arc<Peer>,
    vote: RaftVote,
    snapshot: Snapshot,
    cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
    let began = Instant::now();
    let _counted = Counted::new(net);
    peer.observe(NetworkEvent::SnapshotSendStarted { to: peer.id });
    let sent = tokio::select! {
        closed = cancel => Err(SendError::Closed(closed)),
        () = net.closed() => Err(SendError::Closed(ReplicationClosed::new("the member is stopping"))),
        sent = transmit(net, peer, vote, snapshot.snapshot) => sent,
    };
    match sent {
        Ok(vote) => {
            peer.observe(NetworkEvent::SnapshotSent { to: peer.id, elapsed: began.elapsed() });
            Ok(SnapshotResponse::new(vote))
        }
        Err(error) => {
            peer.observe(NetworkEvent::SnapshotSendFailed { to: peer.id });
            tracing::warn!(
                peer = format_args!("{:x}", peer.id),
                error = &error as &dyn std::error::Error,
                "a snapshot was not sent"
            );
            Err(match error {
                SendError::Closed(closed) => closed.into(),
                SendError::Deposed => ReplicationClosed::new(error).into(),
                SendError::Refused { .. } | SendError::Unreachable { .. } => Unreachable::new(&error).into(),
                SendError::Export(_) | SendError::Thread(_) => NetworkError::new(&error).into(),
            })
        }
    }
}

async fn transmit(net: &Net, peer: &Arc<Peer>, vote: RaftVote, checkpoint: Checkpoint) -> Result<RaftVote, SendError> {
    let unreachable = |reason: String| SendError::Unreachable { peer: peer.id, reason };
    let opened = Duplex::open(net, peer, serve::SNAPSHOT).await;
    let (sending, mut receiving) = opened.map_err(|error| unreachable(error.to_string()))?.split();
    let offered = sending.send(Kind::Offer, 64, |out| put_vote(out, &vote)).await;
    offered.map_err(|error| unreachable(error.to_string()))?;
    match in_time(net, answer(&mut receiving)).await.map_err(unreachable)? {
        Answer::Go => {}
        Answer::Installed(installed) => return conclude(peer, installed).await,
    }
    let frozen = freeze(net, checkpoint).await?;
    // A leader that has been deposed may have applied what a later one committed: that is not its to send, and the
    // receiver could not tell whose it is.
    if frozen.state().applied().term > vote.leader_id().term {
        return Err(SendError::Deposed);
    }
    if let Some(installed) = stream(net, &sending, &mut receiving, frozen).await? {
        return conclude(peer, installed).await;
    }
    // That nothing more comes is how the receiver knows that the stream is whole; its checksums say so, too.
    drop(sending);
    match in_time(net, answer(&mut receiving)).await.map_err(unreachable)? {
        Answer::Installed(installed) => conclude(peer, installed).await,
        Answer::Go => Err(unreachable("it asks for the snapshot twice".to_owned())),
    }
}

/// Waits for an answer, but not for ever. What is bounded is each wait and not the whole: a large state at a low rate takes as
/// long as it takes, and from the beginning it would take no less.
async fn in_time(net: &Net, answer: impl Future<Output = Result<Answer, String>>) -> Result<Answer, String> {
    let limit = net.inner.config.install_timeout;
    let answered = tokio::time::timeout(limit, answer).await;
    answered.unwrap_or_else(|_| Err(format!("no answer within {} s", limit.as_secs())))
}

/// What came of it. Consensus tries again at once what was refused, so that takes a while.
async fn conclude(peer: &Peer, installed: Installed) -> Result<RaftVote, SendError> {
    let (pause, reason) = match installed {
        Installed::Vote(vote) => return Ok(vote),
        Installed::Busy => (BUSY_PAUSE, "it is receiving another one".to_owned()),
        Installed::Failed(reason) => (FAILED_PAUSE, reason),
    };
    tokio::time::sleep(pause).await;
    Err(SendError::Refused { peer: peer.id, reason })
}

/// The state, set aside until it has been sent.
async fn freeze(net: &Net, checkpoint: Checkpoint) -> Result<SetAside, SendError> {
    let backend: Backend = match checkpoint {
        Checkpoint::Live(backend) => backend,
        Checkpoint::Received(_) => return Err(ReplicationClosed::new("this snapshot is not in force here yet").into()),
    };
    let host = net.host().ok_or_else(|| ReplicationClosed::new("the member is stopping"))?;
    let dir = incoming_dir(host.live().backend.path());
    let frozen = background::run("tally-freeze", move || backend.freeze(&dir).map(SetAside::new)).await;
    Ok(frozen??)
}

/// Sends the stream of the state. If the receiver answers before this is known to be all, that is returned.
async fn stream(
    net: &Net,
    sending: &Sending,
    receiving: &mut Receiving,
    frozen: SetAside,
) -> Result<Option<Installed>, SendError> {
    let peer = sending.peer();
    let (pieces, mut queue) = mpsc::channel(PIECES_AHEAD);
    let rate = net.inner.config.snapshot_rate_bytes_max;
    // Ends when the queue is dropped, at the latest after the piece it is reading.
    let mut reader =
        Task::spawn(background::run("tally-send", move || read_pieces(frozen.state(), piece_bytes(rate), &pieces)));
    let mut pace = Pace::new(rate);
    loop {
        let next = async {
            let Some(piece) = queue.recv().await else { return Ok(false) };
            pace.wait(piece.len() as u64).await;
            sending.send_bytes_within(piece, STALL_MAX).await.map(|()| true)
        };
        tokio::select! {
            biased;
            early = answer(receiving) => {
                let reason = match early {
                    Ok(Answer::Installed(installed)) => return Ok(Some(installed)),
                    Ok(Answer::Go) => "it asks for the snapshot twice".to_owned(),
                    Err(reason) => reason,
                };
                return Err(SendError::Unreachable { peer: peer.id, reason });
            }
            sent = next => match sent {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => return Err(SendError::Unreachable { peer: peer.id, reason: error.to_string() }),
            },
        }
    }
    reader.result().await.map_err(|_| ReplicationClosed::new("the runtime is stopping"))???;
    Ok(None)
}

/// At a low rate pieces are small: who receives has to see that something comes.
fn piece_bytes(bytes_per_second: u64) -> usize {
    match usize::try_from(bytes_per_second) {
        Ok(0) | Err(_) => PIECE_BYTES,
        Ok(rate) => rate.min(PIECE_BYTES),
    }
}

fn read_pieces(frozen: &Frozen, piece_bytes: usize, pieces: &mpsc::Sender<Bytes>) -> Result<(), ExportError> {
    let mut reader = frozen.reader();
    while let Some(mut frame) = reader.next_piece()? {
        // Evenly: a frame is a little more than a power of two, and a last piece of a few bytes costs as much as a large one.
        let even = frame.len().div_ceil(frame.len().div_ceil(piece_bytes).max(1));
        while !frame.is_empty() {
            let piece = frame.split_to(frame.len().min(even));
            if pieces.blocking_send(piece).is_err() {
                // If nobody wants it, the one who did knows why.
                return Ok(());
            }
        }
    }
    Ok(())
}

enum Answer {
    Go,
    Installed(Installed),
}

/// What the receiver says next. Cancel safe.
async fn answer(receiving: &mut Receiving) -> Result<Answer, String> {
    let frame = receiving.next().await.ok_or_else(|| "the connection was lost".to_owned())?;
    match frame.kind {
        Kind::Go => Ok(Answer::Go),
        Kind::Installed => decode_installed(frame.body).map(Answer::Installed).map_err(|error| error.to_string()),
        found => Err(format!("a frame of kind {found:?} instead of an answer")),
    }
}

pub(super) fn put_installed(out: &mut bytes::BytesMut, installed: &Installed) {
    match installed {
        Installed::Vote(vote) => {
            out.put_u8(1);
            put_vote(out, vote);
        }
        Installed::Busy => out.put_u8(2),
        Installed::Failed(reason) => {
            // Cut so that the frame stays small; the whole reason is in the receiver's log.
            let reason: String = reason.chars().take(200).collect();
            out.put_u8(3);
            super::body::put_bytes(out, reason.as_bytes());
        }
    }
}

fn decode_installed(body: Bytes) -> Result<Installed, CodecError> {
    let mut input = Input::new("answer to a snapshot", body);
    let installed = match input.u8()? {
        1 => Installed::Vote(input.vote()?),
        2 => Installed::Busy,
        3 => Installed::Failed(input.text()?),
        _ => return Err(input.malformed("an unknown answer")),
    };
    input.end()?;
    Ok(installed)
}

/// Keeps to a rate: bytes that are ahead of their time wait.
struct Pace {
    bytes_per_second: u64,
    began: Instant,
    bytes: u64,
}

impl Pace {
    /// Zero: no limit.
    fn new(bytes_per_second: u64) -> Pace {
        Pace { bytes_per_second, began: Instant::now(), bytes: 0 }
    }

    async fn wait(&mut self, bytes: u64) {
        if self.bytes_per_second == 0 {
            return;
        }
        let due = Duration::from_secs_f64(self.bytes as f64 / self.bytes_per_second as f64);
        self.bytes += bytes;
        tokio::time::sleep_until((self.began + due).into()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::{PIECE_BYTES, piece_bytes};

    #[test]
    fn something_is_sent_every_second_at_any_rate() {
        assert_eq!([0, 1, 1_000].map(piece_bytes), [PIECE_BYTES, 1, 1_000]);
        assert_eq!([1 << 20, u64::MAX].map(piece_bytes), [PIECE_BYTES; 2]);
    }
}
