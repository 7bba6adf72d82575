//! What can be proposed: the commands, and the envelope around their encoding.
//!
//! An encoded command is the codec version (1 byte), the command's tag (1 byte) and its fields (see `codec`). Those bytes are
//! what the log stores and what peers receive. Whatever is random or timed was fixed by the proposer and travels inside.
//!
//! | tag | command | since |
//! |---|---|---|
//! | 1 | put | 0.1 |
//! | 2 | delete range | 0.1 |
//! | 3 | transaction | 0.1 |
//! | 4 | compact | 0.1 |
//! | 5 | alarm | 0.1 |
//! | 6 | set feature level | 0.1 |
//! | 7 | set member | 0.1 |
//! | 8 | remove member | 0.1 |
//! | 9 | grant a lease | 0.1 |
//! | 10 | revoke a lease | 0.1 |
//! | 11 | checkpoint leases | 0.1 |
//! | 12 | expire leases | 0.1 |

use bytes::{BufMut, Bytes, BytesMut};
use tally_mvcc::{DeleteRequest, PutRequest, TxnRequest};

use crate::alarm::AlarmCommand;
use crate::member::Member;

/// The version of the encoding that this program writes and reads.
pub const CODEC_VERSION: u8 = 1;

/// How deep transactions may nest inside a command; the server's limit on a request is lower or equal.
pub const TXN_DEPTH_MAX: usize = tally_mvcc::MAX_TXN_DEPTH;

/// One replicated command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Set one key.
    Put(PutRequest),
    /// Delete a key or a range of keys.
    DeleteRange(DeleteRequest),
    /// Compare, then do one of two lists of operations, as one revision.
    Txn(TxnRequest),
    /// Forget the history below a revision.
    Compact {
        /// The lowest revision that stays readable.
        revision: i64,
    },
    /// Raise or clear an alarm.
    Alarm(AlarmCommand),
    /// Move the cluster to a feature level: what commands *mean* is chosen by it, never by a program's version.
    SetFeatureLevel {
        /// The new level; lower than the current one is refused.
        level: u32,
    },
    /// Record what a member says about itself: its name, client URLs and data directory.
    SetMember(Member),
    /// Forget a member and leave a tombstone, so that its id is never used again.
    RemoveMember {
        /// Which one; it need not have said anything about itself yet.
        id: u64,
    },
    /// Grant a lease.
    LeaseGrant {
        /// Its id, not 0.
        id: i64,
        /// Its time to live in seconds; at least 1 is granted.
        ttl_s: i64,
    },
    /// Revoke a lease and delete the keys attached to it, as one revision.
    LeaseRevoke {
        /// Which one.
        id: i64,
    },
    /// Note what is left of leases. Who is deposed has no say in it any more: it counts in one term only.
    LeaseCheckpoint {
        /// The term of the leader that says so.
        term: u64,
        /// Ids, and what is left in seconds (0: all of it). Leases that there are not are passed over.
        remaining: Vec<(i64, i64)>,
    },
    /// Revoke leases that have expired, each in a revision of its own. It counts in one term only: a leader that was stuck
    /// while another one renewed them must not end them.
    LeaseExpire {
        /// The term of the leader that says so.
        term: u64,
        /// Which ones. Leases that there are not are passed over.
        ids: Vec<i64>,
    },
}

/// Why bytes are not a command that this program can apply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The envelope's version is newer than this program.
    #[error("command encoding version {found} needs a newer program: this one reads up to {CODEC_VERSION}")]
    Version {
        /// The version found.
        found: u8,
    },
    /// The tag names no command known here.
    #[error("command tag {tag} is unknown: it needs a version newer than {}", env!("CARGO_PKG_VERSION"))]
    UnknownCommand {
        /// The tag found.
        tag: u8,
    },
    /// A field is not known here, and skipping it could change what the command does.
    #[error("field {number} of {command} is unknown: it needs a version newer than {}", env!("CARGO_PKG_VERSION"))]
    UnknownField {
        /// The command or part of a command.
        command: &'static str,
        /// The field number found.
        number: u8,
    },
    /// A field has another type or a value outside its range.
    #[error("field {number} of {command} has a wrong type or value")]
    WrongType {
        /// The command or part of a command.
        command: &'static str,
        /// The field number.
        number: u8,
    },
    /// A field that must be there is not.
    #[error("{command} lacks field {number}")]
    Missing {
        /// The command or part of a command.
        command: &'static str,
        /// The field number.
        number: u8,
    },
    /// Transactions nest deeper than [`TXN_DEPTH_MAX`].
    #[error("transactions nest deeper than {TXN_DEPTH_MAX}")]
    TooDeep,
    /// The bytes end inside a field.
    #[error("the command ends inside a field")]
    Truncated,
    /// The bytes break the encoding itself.
    #[error("the command is malformed: {what}")]
    Malformed {
        /// What is wrong.
        what: &'static str,
    },
}

impl Command {
    /// Appends the encoded command to `out`.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u8(CODEC_VERSION);
        out.put_u8(self.tag());
        crate::encode::body(self, out);
    }

    /// The encoded command in a buffer of its own.
    pub fn to_bytes(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(crate::encode::size_hint(self));
        self.encode(&mut out);
        out.freeze()
    }

    /// Decodes a command; keys and values are slices of `encoded`, not copies.
    ///
    /// # Errors
    /// [`DecodeError`] says what is wrong. For a *committed* entry that is fatal: another replica may understand it.
    pub fn decode(encoded: &Bytes) -> Result<Self, DecodeError> {
        let [version, tag, ..] = encoded[..] else { return Err(DecodeError::Truncated) };
        if version != CODEC_VERSION {
            return Err(DecodeError::Version { found: version });
        }
        crate::decode::body(tag, encoded.slice(2..))
    }

    /// The command's tag, which also orders the table above.
    fn tag(&self) -> u8 {
        match self {
            Self::Put(_) => 1,
            Self::DeleteRange(_) => 2,
            Self::Txn(_) => 3,
            Self::Compact { .. } => 4,
            Self::Alarm(_) => 5,
            Self::SetFeatureLevel { .. } => 6,
            Self::SetMember(_) => 7,
            Self::RemoveMember { .. } => 8,
            Self::LeaseGrant { .. } => 9,
            Self::LeaseRevoke { .. } => 10,
            Self::LeaseCheckpoint { .. } => 11,
            Self::LeaseExpire { .. } => 12,
        }
    }

    /// The one term in which it counts, if there is only one.
    pub(crate) fn only_in_term(&self) -> Option<u64> {
        match self {
            Self::LeaseCheckpoint { term, .. } | Self::LeaseExpire { term, .. } => Some(*term),
            Self::Put(_) | Self::DeleteRange(_) | Self::Txn(_) | Self::Compact { .. } => None,
            Self::Alarm(_) | Self::SetFeatureLevel { .. } | Self::SetMember(_) | Self::RemoveMember { .. } => None,
            Self::LeaseGrant { .. } | Self::LeaseRevoke { .. } => None,
        }
    }

    /// Whether it may change alarms, members or the feature level.
    pub(crate) fn changes_small_state(&self) -> bool {
        match self {
            Self::Alarm(_) | Self::SetFeatureLevel { .. } | Self::SetMember(_) | Self::RemoveMember { .. } => true,
            Self::Put(_) | Self::DeleteRange(_) | Self::Txn(_) | Self::Compact { .. } => false,
            Self::LeaseGrant { .. } | Self::LeaseRevoke { .. } => false,
            Self::LeaseCheckpoint { .. } | Self::LeaseExpire { .. } => false,
        }
    }
}
