//! One Raft member: consensus over the Tally log and state machine, and its transport between members.
//!
//! It **is** where proposals become committed entries and reach `tally-apply`, whoever leads. No openraft type leaves it,
//! and its formats are its own. It **is not** the log nor the state, and knows no client protocol.
//!
//! ```text
//!   propose ─► queue ─► batcher ─► openraft ─► log_store ─► wal ─► fsync ─► callback
//!                  (or forwarded)  ▲  ▲ ▼ committed
//!        peer: frames over HTTP/2 ◄┘  └─state_machine (after its own fsync) ─► one commit per chunk ─► waiting ─► outcome
//!   ask_leader ─► whoever leads ─► its LeaderHandler ─► answer (nothing of it is in the log)
//!   read_barrier ─► one shared round per moment, at the leader ─► read index ─► applied here ─► read
//! ```
//!
//! - **Invariant**: an outcome is answered only after its entry is fsynced on a majority and applied here.
//! - **Invariant**: applied is only what this member's own log has fsynced, purged only what the store has made durable.
//! - **Invariant**: nothing is proposed a second time that could still be applied from the first.
//! - **Invariant**: the first failed write, fsync or apply is final: [`Node::fatal`] resolves, and no answer follows it.
//! - **Invariant**: log and store open together only if they are of one member and the store stands on the log.
//! ```
//! use tally_apply::{Command, Reply};
//! use tally_raftnode::{Config, EncodedCommand, Founder, Node, StorageOptions, open_storage};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
//! let storage = open_storage(StorageOptions::new(dir.path(), 1, 2, [3; 16]))?; // cluster, member, a random UUID
//! let founders = vec![Founder { id: 2, peer_urls: Vec::new() }]; // a cluster of one
//! let node = Node::start(Config { cluster_id: 1, member_id: 2, founders, ..Config::default() }, storage).await?;
//! node.ready().await?;
//!
//! let put = Command::Put(tally_mvcc::PutRequest { key: "k".into(), value: "v".into(), ..Default::default() });
//! let outcome = node.propose(EncodedCommand::encode(&put)).await?; // durable, applied and visible
//! assert!(matches!(outcome.result, Ok(Reply::Put(_))));
//! node.read_barrier().await?; // what follows is a linearizable read
//! # Ok::<_, Box<dyn std::error::Error>>(node.shutdown().await?)
//! # })
//! # }
//! ```

mod ask;
mod background;
mod barrier;
mod cluster;
mod codec;
mod command;
mod config;
mod entry;
mod fatal;
mod laggards;
mod log_reader;
mod log_store;
mod member;
mod node;
mod peer;
mod policy;
mod progress;
mod proposals;
mod replay;
mod snapshot;
mod sole;
mod start;
mod state_machine;
mod status;
mod storage;
#[cfg(test)]
mod tests;
mod types;
mod watermark;

pub use ask::{AskError, LeaderHandler};
pub use config::{ApplyLimits, COMMAND_BYTES_MAX, Config, ConfigError, Founder};
pub use entry::{EntryView, MembershipView, describe_entry};
pub use member::{ClusterView, MemberChange, MemberError, PeerMember, TransferError};
pub use node::{Node, ShutdownError};
pub use peer::{BoxFuture, DiscoverError, NetworkEvent, NetworkObserver, discover};
pub use state_machine::ApplyObserver;
pub use storage::{OpenError, Storage, StorageOptions, StoredIdentity, open_storage, stored_identity};
pub use {barrier::BarrierError, codec::CodecError, command::EncodedCommand, fatal::FatalError, progress::Progress};
pub use {proposals::ProposeError, replay::ReplayError, start::StartError, status::Status};
