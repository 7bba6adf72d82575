//! Replay: what was committed when the process ended and is not in the store yet, applied before anything is served.
//!
//! openraft would do it too, sixty-four entries at a time; here a commit covers as much as it does in operation.

use tally_wal::{LogIndex, Reader};

use crate::codec::CodecError;
use crate::config::ApplyLimits;
use crate::entry::replayed;
use crate::state_machine::StateMachine;

/// Bytes of log read at a time.
const READ_BYTES_MAX: usize = 4 << 20;

/// Why what was committed cannot be applied again.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The log could not be read.
    #[error("cannot read log entry {index}")]
    Read {
        /// The first entry of the part that was to be read.
        index: u64,
        /// What is wrong.
        source: tally_wal::ReadError,
    },
    /// The log ends before what it says is committed.
    #[error("log entry {index} is said to be committed, but the log does not hold it")]
    Missing {
        /// The first entry missing.
        index: u64,
    },
    /// An entry is not one that this program writes.
    #[error("log entry {index} or one soon after cannot be read")]
    Entry {
        /// The first entry of the part that was read.
        index: u64,
        /// What is wrong.
        source: CodecError,
    },
    /// The state machine failed.
    #[error("cannot apply log entries from {index} on")]
    Apply {
        /// The first entry of the chunk.
        index: u64,
        /// What is wrong; the fatal error of the state machine is its source.
        source: std::io::Error,
    },
}

/// Applies the entries `first..=last`.
pub(crate) async fn replay(
    machine: &mut StateMachine,
    log: &Reader,
    first: u64,
    last: u64,
    limits: ApplyLimits,
) -> Result<(), ReplayError> {
    let mut next = first;
    while next <= last {
        let read = log.read(LogIndex::new(next)..LogIndex::new(last + 1), READ_BYTES_MAX);
        let entries = read.map_err(|source| ReplayError::Read { index: next, source })?;
        if entries.is_empty() {
            return Err(ReplayError::Missing { index: next });
        }
        let count = entries.len() as u64;
        let entries: Result<Vec<_>, CodecError> = entries.into_iter().map(replayed).collect();
        for chunk in entries.map_err(|source| ReplayError::Entry { index: next, source })?.chunks(limits.entries_max) {
            machine.commit(chunk).map_err(|source| ReplayError::Apply { index: chunk[0].index, source })?;
            tokio::task::yield_now().await;
        }
        next += count;
    }
    Ok(())
}
