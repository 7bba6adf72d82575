//! What is wrong with what peers send, logged once per kind and peer.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::sync::{Mutex, PoisonError};

/// Complaints that are remembered. Once that many were made, no new one is: whoever causes more of them is the same one.
const COMPLAINTS_MAX: usize = 1_024;

/// What there is to complain about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Complaint {
    /// Something else than a member speaks to the peer port.
    NotAPeer,
    /// Bytes that are no frame, or a frame in the wrong place.
    BadFrame,
    /// The sender is refused for what it is.
    Refused,
    /// The receiver refuses this member.
    RefusedHere,
    /// It cannot be reached.
    Unreachable,
    /// An answer to nothing that was asked.
    StrayAnswer,
    /// A snapshot could not be taken.
    Snapshot,
    /// More channels than a cluster needs.
    TooMany,
}

/// Remembers what has been logged.
#[derive(Default)]
pub(super) struct Complaints {
    made: Mutex<BTreeSet<(Complaint, u64)>>,
}

impl Complaints {
    /// Logs the first complaint of this kind about this peer (0 where it is not known which one).
    pub(super) fn make(&self, complaint: Complaint, peer: u64, detail: &dyn Display) {
        let first = {
            let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
            made.len() < COMPLAINTS_MAX && made.insert((complaint, peer))
        };
        if first {
            let peer = format_args!("{peer:x}");
            tracing::warn!(%peer, ?complaint, "{detail}; more of this kind from this peer will not be logged");
        }
    }

    /// Allows it to be logged again: it was over in between.
    pub(super) fn settle(&self, complaint: Complaint, peer: u64) {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).remove(&(complaint, peer));
    }
}
