//! What became of an entry. A refusal is as much a replicated value as a reply: every replica computes the same one.
//! Only the records in a reply are no part of that: they are read for whoever asked, and by nobody else.

use tally_mvcc::{DeleteReply, PutReply, TxnReply};

use crate::alarm::Alarm;

/// What applying one entry answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The store's revision after the entry: what the response header carries.
    pub revision: i64,
    /// The reply, or the refusal.
    pub result: Result<Reply, Rejection>,
}

/// The answer to an accepted command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// To a put.
    Put(PutReply),
    /// To a delete.
    DeleteRange(DeleteReply),
    /// To a transaction.
    Txn(TxnReply),
    /// To a compaction.
    Compact,
    /// To an alarm command: the alarm it named, if that is raised now, or was cleared by this very command.
    Alarm(Option<Alarm>),
    /// To a lease that was granted.
    LeaseGrant {
        /// Its time to live in seconds.
        ttl_s: i64,
    },
    /// To leases that had expired.
    LeaseExpire {
        /// How many of them there still were, and were revoked.
        revoked: u64,
    },
    /// To a command that was carried out like any other, in place of a reply for which more would have to be read than
    /// may be. Only the replica that was asked says so: the others read nothing.
    AnswerTooLarge {
        /// What may be read, in bytes ([`Limits::answer_bytes`](crate::Limits::answer_bytes)).
        limit: usize,
        /// Whether the command changed anything.
        wrote: bool,
    },
    /// To an entry with nothing to say: a blank one, membership, a member set or removed, a feature level, a
    /// lease revoked or checkpointed.
    Done,
}

/// Why a command was refused, changing nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The key-value store refuses it.
    #[error(transparent)]
    Kv(#[from] tally_mvcc::Rejection),
    /// The lease table refuses it.
    #[error(transparent)]
    Lease(#[from] tally_lease::Rejection),
    /// The command was meant for one term and came to the log in another: who proposed it leads no more.
    #[error("the command was meant for term {meant} alone, and this is term {found}")]
    OtherTerm {
        /// The term it was meant for.
        meant: u64,
        /// The term of its entry.
        found: u64,
    },
    /// The command deletes more than one atomic write may hold.
    #[error("the command deletes keys of more than {limit} bytes: delete them in several steps")]
    RemovesTooMuch {
        /// What a command may write by deleting ([`Limits::removed_bytes`](crate::Limits::removed_bytes)).
        limit: u64,
    },
    /// The NOSPACE alarm is raised.
    #[error("the NOSPACE alarm is raised: only reads, deletes and compactions are accepted")]
    NoSpace,
    /// The CORRUPT alarm is raised.
    #[error("the CORRUPT alarm is raised: replicas differ, nothing is accepted")]
    Corrupt,
    /// The command asks for a feature level below the current one.
    #[error("feature level {requested} is below the current {current}")]
    FeatureLevel {
        /// The level asked for.
        requested: u32,
        /// The level in force.
        current: u32,
    },
    /// The member was removed: its id is never used again.
    #[error("member {id:x} was removed from the cluster for good: it can come back only under a new id")]
    MemberRemoved {
        /// The member's id.
        id: u64,
    },
    /// The member is known with another data directory.
    #[error(
        "member {id:x} is known with another data directory: this one is new, restored or copied; remove the member and \
         add it again"
    )]
    MemberDirectory {
        /// The member's id.
        id: u64,
    },
}
