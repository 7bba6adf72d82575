//! The first thing that went wrong for good, kept where everybody can see it.

use std::sync::Arc;

use tokio::sync::watch;

use crate::codec::CodecError;

/// Why a node stopped and its process has to end with a non-zero status. Nothing is acknowledged after it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FatalError {
    /// The log could not be written or made durable.
    #[error("the log cannot be written: entries that were not acknowledged may be lost; check the disk, then restart")]
    LogWrite(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// The log could not be read.
    #[error("the log cannot be read; check the disk, then restart, or rebuild this member from the others")]
    LogRead(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// The log or the backend holds bytes that this program does not understand.
    #[error("the log or the store holds something that this program cannot read")]
    Undecodable(#[from] CodecError),
    /// A committed entry could not be applied.
    #[error("a committed entry cannot be applied: this replica can no longer follow its log")]
    Apply(#[source] Arc<tally_apply::Fatal>),
    /// The backend could not be made durable.
    #[error("the store cannot be made durable; check the disk, then restart")]
    Snapshot(#[source] Arc<tally_backend::StorageError>),
    /// A snapshot received from the leader could not be put in place.
    #[error("the snapshot received from the leader cannot be installed")]
    Install(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// The other members will have nothing to do with this one any more.
    #[error("member {by:x} refuses this one: {reason}")]
    Refused {
        /// Who said so.
        by: u64,
        /// Why, and what to do.
        reason: String,
    },
    /// Consensus stopped by itself.
    #[error("consensus stopped: {reason}")]
    Consensus {
        /// What it said.
        reason: String,
    },
}

/// Holds the first fatal error; later ones are consequences and are not kept.
#[derive(Debug)]
pub(crate) struct FatalCell {
    cell: watch::Sender<Option<FatalError>>,
}

impl FatalCell {
    pub(crate) fn new() -> FatalCell {
        FatalCell { cell: watch::Sender::new(None) }
    }

    /// Keeps `error`, if it is the first, and returns the first.
    pub(crate) fn set(&self, error: FatalError) -> FatalError {
        let first = self.cell.send_if_modified(|cell| {
            let first = cell.is_none();
            if first {
                *cell = Some(error.clone());
            }
            first
        });
        if first { error } else { self.get().unwrap_or(error) }
    }

    pub(crate) fn get(&self) -> Option<FatalError> {
        self.cell.borrow().clone()
    }

    /// Waits for the first fatal error.
    pub(crate) async fn wait(&self) -> FatalError {
        let mut receiver = self.cell.subscribe();
        loop {
            let found = receiver.borrow_and_update().clone();
            match found {
                Some(error) => return error,
                // The sender lives in `self`, so waiting cannot fail while this runs; looping is right in either case.
                None => drop(receiver.changed().await),
            }
        }
    }
}
