//! Members as consensus sees them: ids, peer URLs, who votes; and the changes that can be asked for.

use std::time::Duration;

use crate::fatal::FatalError;

/// A member of the cluster, as consensus sees it. Its name and client URLs are replicated state
/// (`tally_apply::Reads::members`), which it publishes itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerMember {
    /// Never used again once removed.
    pub id: u64,
    /// Where its peers reach it.
    pub peer_urls: Vec<String>,
    /// It receives the log but does not vote.
    pub is_learner: bool,
}

/// One change of the membership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// A new member, voting or not.
    Add {
        /// Its id, which no member had before.
        id: u64,
        /// Where its peers will reach it; no other member's.
        peer_urls: Vec<String>,
        /// It does not vote.
        is_learner: bool,
    },
    /// A member leaves; its id is never used again.
    Remove {
        /// Which one.
        id: u64,
    },
    /// A member moves to other peer URLs.
    Update {
        /// Which one.
        id: u64,
        /// Where its peers reach it from now on.
        peer_urls: Vec<String>,
    },
    /// A learner that is in step with the leader becomes a voter.
    Promote {
        /// Which one.
        id: u64,
    },
}

/// Why the membership was not changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum MemberError {
    /// No such member, or it was removed.
    #[error("there is no member {id:x}")]
    NotFound {
        /// The id asked for.
        id: u64,
    },
    /// The id is a member's, or was.
    #[error("member {id:x} exists already, or did and was removed: ids are never used again")]
    IdExists {
        /// The id.
        id: u64,
    },
    /// A peer URL is another member's.
    #[error("peer URL {url} is used by another member already")]
    PeerUrlExists {
        /// The URL.
        url: String,
    },
    /// The cluster has as many learners as it may have.
    #[error("the cluster has {limit} learners already, which is the limit")]
    TooManyLearners {
        /// The limit.
        limit: usize,
    },
    /// Only a learner can be promoted.
    #[error("member {id:x} is not a learner")]
    NotLearner {
        /// Which one.
        id: u64,
    },
    /// The learner is too far behind to vote.
    #[error("learner {id:x} is not in step with the leader yet: try again later")]
    LearnerNotReady {
        /// Which one.
        id: u64,
    },
    /// The change would leave too few started members for a quorum.
    #[error("too few voters have been started for a quorum after this change")]
    NotEnoughStarted,
    /// A voter has not been heard of for a while.
    #[error("a voter has not been heard of for an election timeout: the cluster is not healthy enough to change")]
    Unhealthy,
    /// Another change is under way, for as long as a request may wait; nothing was changed.
    #[error("another membership change is under way: try again")]
    Busy,
    /// There is no leader at the moment; nothing was changed.
    #[error("there is no leader; try again")]
    NoLeader,
    /// Leadership was lost while the change was under way, or its end was not heard of in time: **it may have
    /// happened**.
    #[error("the change was begun and its end was not seen: list the members to see whether it happened")]
    Unclear,
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopped,
    /// The node has failed.
    #[error("the node has failed")]
    Fatal(#[source] FatalError),
}

/// Why leadership was not handed over.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TransferError {
    /// Only the leader hands over.
    #[error("this member does not lead")]
    NotLeader,
    /// The target does not vote, or is no member.
    #[error("member {id:x} is not a voter")]
    BadTarget {
        /// Who was named.
        id: u64,
    },
    /// Nothing has been heard of the target for a while: it could not take over, and until somebody else is elected nobody would
    /// lead. This member leads on.
    #[error("nothing has been heard of member {id:x} for {} s", .within.as_secs())]
    Unheard {
        /// Who was named.
        id: u64,
        /// For how long.
        within: Duration,
    },
    /// The target did not take over in time. This member has given up leading, and somebody else is elected.
    #[error("member {id:x} did not take over in time")]
    TimedOut {
        /// Who was named.
        id: u64,
    },
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopped,
}

/// What a cluster says about itself to somebody who is not a member yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterView {
    /// The cluster.
    pub cluster_id: u64,
    /// Who answered.
    pub member_id: u64,
    /// Its leader, if it knows one.
    pub leader: Option<u64>,
    /// The members, with the names that they have published (empty for those that have not started).
    pub members: Vec<(PeerMember, String)>,
    /// Members that were removed.
    pub removed: Vec<u64>,
}
