//! Leases: keys that go when their owner has not been heard of for a while.
//!
//! It *is* two things. [`Leases`] is the replicated table: which leases there are, what they were granted, what is left as
//! far as it was noted, and which keys are attached to which; the same on every replica. [`ExpiryQueue`] is what a leader
//! alone has: when each lease ends. It *is not* a clock (every time is an argument), a timer, consensus or the key-value
//! store: the caller revokes what has ended and deletes the keys, through its log.
//!
//! ```text
//!  grant, revoke, checkpoint ──► Leases ──► batch (lease bucket: id -> record)
//!  records written ───────────►  │   └────► LeaseView (persistent: readers keep it as long as they like)
//!                                ▼ changes
//!  renew ───────────────────► ExpiryQueue ──► expired (to be revoked), due notes (to be checkpointed)
//! ```
//!
//! - **Invariant**: the table is a function of the commands, in their order, alone; its sum tells equal tables.
//! - **Invariant**: keys of a lease come in ascending order, so that replicas delete them in the same one.
//! - **Invariant**: the queue never expires earlier than it promised, also from one leader to the next.
//! - **Invariant**: views never change, never block the writer and are never blocked by it.
//!
//! ```
//! use tally_backend::{Backend, Config, Identity};
//! use tally_lease::{ExpiryQueue, Leases, Promotion, Renewal};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! let backend = Backend::open(Config::new(dir.path(), Identity::default()))?;
//! let (mut leases, mut batch) = (Leases::load(&backend.read())?, backend.batch());
//! leases.check_grant(7, 10)?;
//! let lease = leases.grant(7, 10, &mut batch);
//! leases.attach("session/7".into(), 7);
//!
//! let mut queue = ExpiryQueue::new();
//! queue.promote(leases.view().iter(), 0, Promotion { extend_ms: 1_000, ends_per_second_max: 750 });
//! assert_eq!(queue.renew(7, lease, 5_000), Renewal::Renewed { ttl_s: 10 });
//! assert_eq!(queue.expired(14_999, 100), []);
//! for id in queue.expired(15_000, 100) {
//!     assert_eq!(leases.keys(id), ["session/7"]); // to be deleted, as one revision
//!     leases.revoke(id, &mut batch);
//! }
//! # Ok(())
//! # }
//! ```

mod error;
mod lease;
mod map;
mod metrics;
mod queue;
mod table;
mod view;

pub use error::{OpenError, Rejection};
pub use lease::{Lease, TTL_MAX_S};
pub use metrics::Metrics;
pub use queue::{ExpiryQueue, NOTE_INTERVAL_MS, Promotion, Renewal};
pub use table::Leases;
pub use view::LeaseView;
