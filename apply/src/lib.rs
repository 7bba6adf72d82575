//! Deterministic, fail-stop application of replicated commands to a Tally store.
//!
//! Raft makes logs agree. This crate is where the *states* built from them are kept equal: it takes committed entries in
//! log order and turns each into effects and an [`Outcome`], the same on every replica.
//!
//! It **is** the state machine: the commands and their encoding, the gate that alarms close, alarms, members, leases with the
//! keys that go with them, the feature level, the state root, and one atomic commit of effects and index. It **is not** consensus (it never sees a vote), not a
//! server (no clock, random number, network or thread), and not the key-value store (that is `tally-mvcc`).
//!
//! ```text
//!   Committed entries ──► decode ──► gate ──► check ──► act ──┐   each entry sees what the earlier ones staged
//!                                                             ▼
//!                            one WriteBatch ──► commit(&Applied) ──► publish to readers ──► Outcomes
//! ```
//!
//! A batch that has grown large is committed between two entries: how much entries do is not seen by how long they are.
//!
//! - **Invariant**: the effects of an entry and its index are one atomic write, for every kind of entry.
//! - **Invariant**: an outcome depends on the replicated state and the entry alone. Refusals are outcomes.
//! - **Invariant**: what a command reads for its reply is no part of that. It is left out where nobody asked
//!   ([`Committed::asked`]) and where it is too much ([`Limits::answer_bytes`]); effects, revisions and roots are the
//!   same.
//! - **Invariant**: `check` foresees every refusal; `act` cannot refuse, so no entry is ever half applied.
//! - **Invariant**: anything else that goes wrong is [`Fatal`]; nothing is skipped, and no later call succeeds.
//! - **Invariant**: the root found at open equals the root stored with the applied index.
//!
//! ```
//! use bytes::Bytes;
//! use tally_apply::{Applier, Body, Command, Committed};
//! use tally_backend::{Backend, Config, Identity};
//! use tally_mvcc::PutRequest;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let dir = tempfile::tempdir()?;
//! let identity = Identity { cluster_id: 1, member_id: 2, directory_uuid: [3; 16] };
//! let backend = Backend::open(Config::new(dir.path(), identity))?;
//! let (mut applier, reads) = Applier::open(backend, tally_mvcc::Options::default())?;
//!
//! let put = Command::Put(PutRequest { key: Bytes::from("k"), value: Bytes::from("v"), ..PutRequest::default() });
//! let outcomes = applier.apply(&[Committed { index: 1, term: 1, body: Body::Command(put.to_bytes()), asked: true }])?;
//! assert_eq!(outcomes[0].revision, 2); // a new store is at revision 1
//! assert_eq!(reads.applied_index(), 1);
//! # Ok(())
//! # }
//! ```

mod alarm;
mod applier;
mod aside;
mod checkpoints;
mod codec;
mod command;
mod decode;
mod encode;
mod gate;
mod lease_feed;
mod member;
mod outcome;
mod reads;
mod root;

pub use alarm::{Alarm, AlarmAction, AlarmCommand, AlarmKind};
pub use applier::{ANSWER_BYTES_MAX, Applier, Body, Committed, FEATURE_LEVEL, Fatal, Limits, OpenError};
pub use aside::{Aside, InPlace};
pub use checkpoints::CHECKPOINT_INTERVAL;
pub use command::{CODEC_VERSION, Command, DecodeError, TXN_DEPTH_MAX};
pub use lease_feed::{ChangesLost, LeaseChange};
pub use member::Member;
pub use outcome::{Outcome, Rejection, Reply};
pub use reads::Reads;
