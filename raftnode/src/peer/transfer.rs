//! Receiving a snapshot: streamed to disk, checked, and handed to consensus, which puts it in force.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::body::Body;
use bytes::{Buf, Bytes};
use http_body_util::BodyExt;
use tally_backend::{Export, ExportError};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::body::Input;
use super::complaints::Complaint;
use super::frame::{Address, Kind, encode};
use super::net::Net;
use super::observer::NetworkEvent;
use super::outgoing::Task;
use super::serve::Served;
use super::snapshot::{Installed, STALL_MAX, put_installed};
use crate::background;
use crate::codec::{CodecError, decode_in_force};
use crate::snapshot::{Checkpoint, InstallError, OwnedExport, Prepared, Received, incoming_dir};
use crate::types::{RaftVote, Snapshot, SnapshotMeta, log_id};

/// Pieces of the stream that have come and are not written yet.
const PIECES_AHEAD: usize = 4;

/// Why a snapshot was not taken.
#[derive(Debug, thiserror::Error)]
enum ReceiveError {
    #[error("the sender has gone")]
    Gone,
    #[error(transparent)]
    Export(#[from] ExportError),
    #[error("it is of cluster {found:x}, this is cluster {expected:x}")]
    Cluster { found: u64, expected: u64 },
    #[error("it is of term {found}, but its sender leads only in term {leads}")]
    Term { found: u64, leads: u64 },
    #[error("its membership cannot be read: {0}")]
    Membership(#[from] CodecError),
    #[error("it cannot be put in force")]
    Install(#[from] InstallError),
    #[error("this member is stopping, or has failed")]
    Stopping,
    #[error(transparent)]
    Thread(#[from] background::Ended),
}

/// Takes one snapshot.
pub(super) async fn serve(mut served: Served) {
    let Some(frame) = served.next().await else { return };
    let vote = match (frame.kind, Input::new("offer of a snapshot", frame.body).vote()) {
        (Kind::Offer, Ok(vote)) if vote.is_committed() => vote,
        (Kind::Offer, Err(error)) => return served.complain(&error),
        _ => return served.complain(&"something else than the offer of a leader's snapshot"),
    };
    let (net, peer, address, out) = (served.net.clone(), Arc::clone(&served.peer), served.address, served.out.clone());
    let answer = |installed: Installed| answer(address, &out, installed);
    let Some(_turn) = Turn::take(&net) else { return answer(Installed::Busy).await };
    if out.send(encode(address, Kind::Go, 0, |_| {})).await.is_err() {
        return;
    }
    let began = Instant::now();
    peer.observe(NetworkEvent::SnapshotReceiveStarted { from: peer.id });
    match receive(served, vote).await {
        Ok(vote) => {
            peer.observe(NetworkEvent::SnapshotReceived { from: peer.id, elapsed: began.elapsed() });
            net.inner.complaints.settle(Complaint::Snapshot, peer.id);
            answer(Installed::Vote(vote)).await;
        }
        Err(error) => {
            peer.observe(NetworkEvent::SnapshotReceiveFailed { from: peer.id });
            net.inner.complaints.make(Complaint::Snapshot, peer.id, &error);
            answer(Installed::Failed(error.to_string())).await;
        }
    }
}

async fn answer(address: Address, out: &mpsc::Sender<Bytes>, installed: Installed) {
    // If the sender has gone, it does not matter.
    let _ = out.send(encode(address, Kind::Installed, 64, |out| put_installed(out, &installed))).await;
}

/// Whose turn it is to send a snapshot: one at a time, each takes as much disk as the store.
struct Turn {
    net: Net,
}

impl Turn {
    fn take(net: &Net) -> Option<Turn> {
        let taken = net.inner.receiving.swap(true, Ordering::AcqRel);
        (!taken).then(|| Turn { net: net.clone() })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.net.inner.receiving.store(false, Ordering::Release);
    }
}

/// Receives the stream and has it installed; the vote of this member after that.
async fn receive(served: Served, vote: RaftVote) -> Result<RaftVote, ReceiveError> {
    let Served { net, host, peer, inbound, .. } = served;
    let (pieces, queue) = mpsc::channel(PIECES_AHEAD);
    let live = host.live();
    let dir = incoming_dir(live.backend.path());
    // Whatever fails, nothing is left behind.
    let receive = move || Export::receive(&mut Pieces { queue, piece: Bytes::new() }, &dir).map(OwnedExport::new);
    let mut writing = Task::spawn(background::run("tally-receive", receive));
    let (rest, mut body) = inbound.into_raw();
    // The first byte may take as long as a flush there.
    let first = net.inner.config.install_timeout.max(STALL_MAX);
    let fed = feed(rest, &mut body, &pieces, first, |bytes| peer.heard(bytes)).await;
    drop(pieces);
    let written = writing.result().await.map_err(|_| ReceiveError::Stopping)??;
    let export = match (fed, written) {
        (Ok(()), Ok(export)) => export,
        // It broke because the stream did.
        (Err(error), _) => return Err(error),
        (Ok(()), Err(error)) => return Err(error.into()),
    };
    let applied = export.export().applied();
    let (found, expected) = (export.export().cluster_id(), net.inner.local.cluster_id);
    if found != expected {
        return Err(ReceiveError::Cluster { found, expected });
    }
    // Consensus relies on it: no leader has entries of later terms than its own.
    let leads = vote.leader_id().term;
    if applied.term > leads {
        return Err(ReceiveError::Term { found: applied.term, leads });
    }
    let meta = SnapshotMeta {
        last_log_id: log_id(applied.index, applied.term),
        last_membership: decode_in_force(&applied.membership)?,
    };
    let snapshot = if applied.index <= host.applied() {
        // Everything in it has come another way.
        Checkpoint::Received(Received::known())
    } else {
        let prepare = move || Prepared::new(&live.backend, &export, live.kv.clone());
        let mut preparing = Task::spawn(background::run("tally-prepare", prepare));
        preparing.result().await.map_err(|_| ReceiveError::Stopping)???.received()
    };
    let snapshot = Snapshot { meta, snapshot };
    let response = host.raft().install_full_snapshot(vote, snapshot).await;
    Ok(response.map_err(|_| ReceiveError::Stopping)?.vote)
}

/// Hands the pieces of the stream over, as fast as they are written.
async fn feed(
    rest: Bytes,
    body: &mut Body,
    pieces: &mpsc::Sender<Bytes>,
    first: Duration,
    heard: impl Fn(u64),
) -> Result<(), ReceiveError> {
    let (mut piece, mut patience) = (Some(rest), first);
    loop {
        if let Some(piece) = piece.take().filter(|piece| !piece.is_empty()) {
            patience = STALL_MAX;
            heard(piece.len() as u64);
            if pieces.send(piece).await.is_err() {
                // The writer has found the end, or something wrong: it says which.
                return Ok(());
            }
        }
        match timeout(patience, body.frame()).await {
            Ok(Some(Ok(frame))) => piece = frame.into_data().ok(),
            Ok(None) => return Ok(()),
            Ok(Some(Err(_))) | Err(_) => return Err(ReceiveError::Gone),
        }
    }
}

/// The pieces as something that can be read, on a thread that may block. What has come is read where it lies.
struct Pieces {
    queue: mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl BufRead for Pieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.piece.is_empty() {
            match self.queue.blocking_recv() {
                Some(piece) => self.piece = piece,
                None => break,
            }
        }
        Ok(&self.piece)
    }

    fn consume(&mut self, count: usize) {
        self.piece.advance(count);
    }
}

impl Read for Pieces {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let there = self.fill_buf()?;
        let count = out.len().min(there.len());
        out[..count].copy_from_slice(&there[..count]);
        self.consume(count);
        Ok(count)
    }
}
