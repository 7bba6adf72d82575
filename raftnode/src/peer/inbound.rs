//! The receiving half of a channel: frames out of the body of a request or of a response.

use std::sync::{Mutex, PoisonError};

use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt;

use super::frame::{Address, Decoder, Frame, FrameError, Limits};

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

    /// Takes only frames with this address from now on.
    pub(super) fn expect(&mut self, address: Address) {
        self.expected = Some(address);
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
