//! Why something was refused, or could not be read.

use tally_backend::StorageError;

use crate::lease::TTL_MAX_S;

/// Why a lease is not granted or revoked. Every replica refuses alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// There is no such lease.
    #[error("there is no lease {0}")]
    NotFound(i64),
    /// The id is in use.
    #[error("lease {0} exists already")]
    Exists(i64),
    /// The time to live is beyond [`TTL_MAX_S`].
    #[error("a lease of {asked_s} s is too long, the longest is {TTL_MAX_S} s")]
    TtlTooLarge {
        /// What was asked for, in seconds.
        asked_s: i64,
    },
}

/// Why the leases of a store do not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The backend failed.
    #[error("cannot read the leases")]
    Storage(#[from] StorageError),
    /// A record is none that this program writes.
    #[error("the lease record under key {key:02x?} is damaged: restore this member from a snapshot or a backup")]
    Corrupt {
        /// Its key.
        key: Vec<u8>,
    },
    /// A key is attached to a lease that there is not.
    #[error(
        "key {key:02x?} is attached to lease {lease}, which there is not: restore this member from a snapshot or a backup"
    )]
    Dangling {
        /// The key.
        key: Vec<u8>,
        /// The lease that its record names.
        lease: i64,
    },
}
