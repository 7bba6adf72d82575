//! The receiving half of a channel: frames out of the body of a request or of a response.

use std::fmt::Display;
use std::sync::{Mutex, PoisonError};

use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt;

use super::complaints::Complaint;
use super::frame::{Address, Decoder, Frame, FrameError, Kind, Limits};
use super::hello::{Verdict, refused_here};
use super::net::Net;
use super::observer::NetworkEvent;
use super::peers::Peer;

/// Reads frames.
pub(super) struct Inbound {
    /// Never locked: a body may be used by one thread at a time only, and this says so to the compiler.
    body: Mutex<Body>,
    decoder: Decoder,
    /// What every frame must carry, once it is known who speaks.
    expected: Option<Address>,
}

/// Why no further frame can be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum InboundError {
    /// The other side sent something that no member would send.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(#[source] axum::Error),
    /// The other side ended the channel.
    #[error("the channel was closed by the other side")]
    Ended,
}

impl Inbound {
    pub(super) fn new(body: Body, limits: Limits) -> Inbound {
        Inbound { body: Mutex::new(body), decoder: Decoder::new(limits), expected: None }
    }

    /// Takes only frames with this address from now on, and as large as those of a member may be.
    pub(super) fn expect(&mut self, address: Address) {
        self.expected = Some(address);
        self.decoder.admit();
    }

    /// The next frame. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Frame, InboundError> {
        loop {
            if let Some(frame) = self.decoder.next()? {
                return match self.expected {
                    Some(expected) if expected != frame.address => {
                        Err(FrameError::Address { found: frame.address }.into())
                    }
                    Some(_) | None => Ok(frame),
                };
            }
            match self.body.get_mut().unwrap_or_else(PoisonError::into_inner).frame().await {
                // Trailers mean nothing here.
                Some(Ok(frame)) => self.decoder.push(frame.into_data().unwrap_or_default()),
                Some(Err(error)) => return Err(InboundError::Broken(error)),
                None => {
                    self.decoder.finish()?;
                    return Err(InboundError::Ended);
                }
            }
        }
    }

    /// The rest of the body, which is no longer frames: what has been read of it, and what comes.
    pub(super) fn into_raw(self) -> (Bytes, Body) {
        (self.decoder.into_rest(), self.body.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The next frame of a peer that is known, on either side of a channel: none when the channel has ended, or must be
/// ended. Cancel safe.
pub(super) async fn next_from(net: &Net, peer: &Peer, inbound: &mut Inbound) -> Option<Frame> {
    match inbound.next().await {
        Ok(frame) if frame.kind == Kind::Reject => {
            match Verdict::decode(frame.body) {
                Ok(verdict) => refused_here(net, peer.id, verdict),
                Err(error) => not_understood(net, peer, &error),
            }
            None
        }
        Ok(frame) => {
            peer.heard(frame.bytes());
            Some(frame)
        }
        Err(InboundError::Frame(error)) => {
            not_understood(net, peer, &error);
            None
        }
        Err(InboundError::Broken(_) | InboundError::Ended) => None,
    }
}

/// Logs, once per peer, that what it sent could not be understood.
pub(super) fn not_understood(net: &Net, peer: &Peer, detail: &dyn Display) {
    net.inner.complaints.make(Complaint::BadFrame, peer.id, detail);
    peer.observe(NetworkEvent::ReceiveFailed { from: peer.id });
}
