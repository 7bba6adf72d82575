//! How members talk to each other: binary frames over HTTP/2 on the peer port.
//!
//! ```text
//!   openraft ── PeerLink ── append  ═══════╗   one connection each: log, heartbeat, snapshot
//!               (one per task)  snapshot ══╬═►  serve ─► Raft::stream_append, install_full_snapshot
//!   votes, read index, changes ─ control ══╣   one shared connection per peer, calls matched by id
//!   batcher ──────────────────── forward ══╝   one connection to the leader
//!   nobody's member yet ──────── members ──►   unary
//! ```
//!
//! - **Invariant**: the first frame in each direction is a Hello, and nothing else is believed before both sides have
//!   found the other to be who it should be (see [`hello`]): no vote is counted and no entry acknowledged otherwise.
//! - **Invariant**: an answer is matched to the very request it answers, or dropped; it is never taken for another's.
//! - **Invariant**: every queue, frame and number of connections is bounded, whatever the other side sends.
//!
//! Everything that this module needs from the node is the [`Host`]; everything the node needs from it is [`Net`].

mod body;
mod calls;
mod complaints;
mod connect;
mod control;
mod discover;
mod duplex;
mod flow;
mod forward;
mod frame;
mod hello;
mod inbound;
mod link;
mod messages;
mod net;
mod observer;
mod outgoing;
mod peers;
mod serve;
mod sessions;
mod snapshot;
mod transfer;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::barrier::BarrierError;
use crate::member::{ClusterView, MemberChange, MemberError};
use crate::node::RaftHandle;
use crate::state_machine::Live;

pub(crate) use control::CHANGE_TIMEOUT;
pub use discover::{DiscoverError, discover};
pub(crate) use forward::{ForwardReceiver, ForwardRefusal, ForwardReply, ForwardSender, RefusedSender};
pub(crate) use hello::Verdict;
pub(crate) use link::Transport;
pub(crate) use net::Net;
pub use observer::{NetworkEvent, NetworkObserver};

/// A boxed future.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send + 'static>>;

/// Who this member is, as it tells its peers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Local {
    pub(crate) cluster_id: u64,
    pub(crate) member_id: u64,
    /// The UUID of its data directory.
    pub(crate) directory: [u8; 16],
    /// Random per start of the process.
    pub(crate) start_id: u64,
}

/// What this member knows of another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Never heard of it: it may be newer than what has been applied here.
    Unknown,
    /// A member, or one to be; with the UUID of its data directory once it has published it.
    Known {
        /// None until published.
        directory: Option<[u8; 16]>,
    },
    /// It was removed from the cluster, for ever.
    Removed,
}

/// What the transport asks of the node: the seam at which a test's double takes the node's place.
///
/// None of the plain methods may block: they are called on the tasks that carry heartbeats.
pub(crate) trait Host: Send + Sync + 'static {
    /// Consensus.
    fn raft(&self) -> RaftHandle;
    /// What is known of a member.
    fn standing(&self, member: u64) -> Standing;
    /// The last entry of this member's log, durable or not; indexes count from 1. Never below what this member has
    /// acknowledged and the leader has committed.
    fn log_last(&self) -> u64;
    /// The last entry applied here, which is therefore committed, and durable in this member's own log: what it tells its
    /// peers so that they notice if an older directory comes back in its place.
    fn applied(&self) -> u64;
    /// A peer will never speak to this member again, for this reason.
    fn told(&self, verdict: Verdict, by: u64);
    /// The index of a read, confirmed by a quorum round that begins now; only on the leader.
    fn read_index(&self) -> BoxFuture<Result<u64, BarrierError>>;
    /// Carries out a change of the membership; only on the leader.
    fn change_members(&self, change: MemberChange) -> BoxFuture<Result<(), MemberError>>;
    /// The answer to a question to the leader; none if this member does not lead, or nobody here answers.
    fn ask(&self, kind: u8, question: Bytes) -> BoxFuture<Option<Bytes>>;
    /// Takes a batch of proposals (log entry payloads) of `from` into the queue, all or none. What is given up later,
    /// before it got into the log, is told through `refused`.
    fn forwarded(&self, from: u64, payloads: Vec<Bytes>, refused: RefusedSender) -> Result<(), ForwardRefusal>;
    /// The cluster, for somebody who is not a member yet.
    fn view(&self) -> ClusterView;
    /// The state in force.
    fn live(&self) -> Arc<Live>;
}

/// The limits of the transport.
#[derive(Clone)]
pub(crate) struct NetConfig {
    /// For a connection to be made, up to both Hellos.
    pub(crate) connect_timeout: Duration,
    /// For an answer while one is outstanding.
    pub(crate) read_timeout: Duration,
    /// For the peer to take any byte.
    pub(crate) write_timeout: Duration,
    /// For a ping to be answered before the connection is given up. Pings are answered whatever the disk does.
    pub(crate) ping_timeout: Duration,
    /// For each answer to a snapshot: that it is taken, and that it is installed; and for its first byte to come.
    pub(crate) install_timeout: Duration,
    /// Bytes per second of a snapshot that is sent; 0 for no limit.
    pub(crate) snapshot_rate_bytes_max: u64,
    /// Who counts.
    pub(crate) observer: Option<Arc<dyn NetworkObserver>>,
}

impl Default for NetConfig {
    fn default() -> NetConfig {
        NetConfig {
            connect_timeout: Duration::from_millis(1_000),
            read_timeout: Duration::from_millis(5_000),
            write_timeout: Duration::from_millis(5_000),
            ping_timeout: Duration::from_millis(1_500),
            install_timeout: Duration::from_secs(10 * 60),
            snapshot_rate_bytes_max: 0,
            observer: None,
        }
    }
}

impl fmt::Debug for NetConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetConfig")
            .field("connect_timeout", &self.connect_timeout)
            .field("read_timeout", &self.read_timeout)
            .field("write_timeout", &self.write_timeout)
            .finish_non_exhaustive()
    }
}

/// Why a peer did not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CallError {
    /// The request did not leave this member: trying again is safe.
    #[error("member {peer:x} cannot be reached: {reason}")]
    NotSent {
        /// Who was called.
        peer: u64,
        /// What went wrong.
        reason: String,
    },
    /// The request left, and no answer came: **it may have been carried out**.
    #[error("member {peer:x} did not answer: {reason}")]
    Unclear {
        /// Who was called.
        peer: u64,
        /// What went wrong.
        reason: String,
    },
}

#[cfg(test)]
#[path = "../tests/peer.rs"]
mod tests;
