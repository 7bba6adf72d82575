//! One Raft member: consensus over the Tally log and state machine.
//!
//! It **is** where proposals become committed entries and reach `tally-apply`: batching, linearizable reads, snapshots,
//! log purge, identity checks. No openraft type leaves it, and its on-disk formats are its own. It **is not** the log
//! (`tally-wal`), not the state (`tally-apply`), and knows no client protocol.
//!
//! ```text
//!   propose ─► queue ─► batcher ─► openraft ─► log_store ─► wal ─► fsync ┐
//!                                     ▲ ▼ committed                     │ callback
//!                                     └─┼─────────────────────────────────┘
//!                                     ▼
//!   outcome ◄──────────────── state_machine (waits for its own fsynced log) ─► one commit per chunk
//!
//!   read_barrier ─► one shared round per moment ─► read index ─► applied far enough ─► read
//! ```
//!
//! - **Invariant**: an outcome is answered only after its entry is fsynced on a majority and applied here.
//! - **Invariant**: applied is only what this member's own log has fsynced, purged only what the store has made durable.
//! - **Invariant**: the first failed write, fsync or apply is final: [`Node::fatal`] resolves, and no answer follows it.
//! - **Invariant**: log and store open together only if they are of one member and the store stands on the log.
//!
//! ```
//! use tally_apply::{Command, Reply};
//! use tally_raftnode::{Config, EncodedCommand, Node, StorageOptions, open_storage};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
//! let storage = open_storage(StorageOptions::new(dir.path(), 1, 2, [3; 16]))?; // cluster, member, a random UUID
//! let node = Node::start(Config { cluster_id: 1, member_id: 2, ..Config::default() }, storage).await?;
//! node.ready().await?;
//!
//! let put = Command::Put(tally_mvcc::PutRequest { key: "k".into(), value: "v".into(), ..Default::default() });
//! let outcome = node.propose(EncodedCommand::encode(&put)).await?; // durable, applied and visible
//! assert!(matches!(outcome.result, Ok(Reply::Put(_))));
//! node.read_barrier().await?; // what follows is a linearizable read
//! node.shutdown().await?;
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! # })
//! # }
//! ```

mod barrier;
mod batcher;
mod codec;
mod command;
mod config;
mod entry;
mod fatal;
mod log_reader;
mod log_store;
mod node;
mod policy;
mod progress;
mod replay;
mod snapshot;
mod start;
mod state_machine;
mod status;
mod storage;
#[cfg(test)]
mod tests;
mod transport;
mod types;
mod watermark;

pub use barrier::BarrierError;
pub use batcher::ProposeError;
pub use codec::CodecError;
pub use command::EncodedCommand;
pub use config::{ApplyLimits, Config, ConfigError};
pub use entry::{EntryView, MembershipView, describe_entry};
pub use fatal::FatalError;
pub use node::{Node, ShutdownError};
pub use progress::Progress;
pub use replay::ReplayError;
pub use start::StartError;
pub use status::Status;
pub use storage::{OpenError, Storage, StorageOptions, open_storage};
