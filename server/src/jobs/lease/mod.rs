//! Leases as a server keeps them: the leader's clock over the replicated table.
//!
//! ```text
//!   keepalive ─► lane: what waits at one moment, together ─► leader (here, or over the peer port) ─► renewed
//!       └─► of the only member: renewed at once, with nobody to ask
//!   leader:  read the clock ─► confirm leadership by a quorum ─► renew, or hand out what has ended ─► log: expire in this term
//!            what is left of leases that nobody renews ─► log: checkpoint in this term
//! ```
//!
//! **Invariant**: only a leader whose leadership was confirmed after the clock was read renews or ends anything; and what it
//! ends or notes counts only in its term. So a process that was paused, or stuck in an fsync, ends and promises nothing.
//!
//! **Invariant**: what a client was told about a lease is kept by the next leader (see `tally_lease::ExpiryQueue`).
//!
//! - `clock`: time that goes on while the machine sleeps.
//! - `leader`: taking office, ending leases, noting what is left of them.
//! - `renew`: renewals and times to live, asked of the leader by any member.
//! - `message`: the bytes between members.

mod clock;
mod leader;
mod message;
mod renew;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tally_apply::{LeaseChange, Reads};
use tally_lease::{ExpiryQueue, Promotion};
use tally_raftnode::Node;
use tokio::sync::{Semaphore, watch};

use clock::Clock;
use renew::Lane;
pub(crate) use renew::{RenewError, Renewing};

/// Leases that are ended per second at most. Each is a revision of its own with its deletes.
const EXPIRIES_PER_SECOND_MAX: u64 = 4_000;
/// Times to live that are asked of the leader at the same time.
const TIMES_ASKED_MAX: usize = 8;

/// A server's leases. There is one per node; whoever holds it keeps it answering other members.
pub(crate) struct Lessor {
    node: Node,
    clock: Clock,
    promotion: Promotion,
    state: Mutex<State>,
    /// Counts up whenever something that a renewal may wait for has happened: an office taken or left, leases ended, notes
    /// settled.
    turned: watch::Sender<u64>,
    quick: Lane,
    slow: Lane,
    asking: Semaphore,
    /// How long a request may take.
    patience: Duration,
    stopping: watch::Sender<bool>,
    renewed: AtomicU64,
    expired: AtomicU64,
}

/// What the leader has.
#[derive(Default)]
struct State {
    queue: ExpiryQueue,
    /// The term that the queue is of, and the table under it.
    office: Option<(u64, Reads)>,
}

impl State {
    /// Brings the queue up to date with the table; what is new in it begins now.
    fn follow(&mut self, clock: &Clock) {
        let Some((_, reads)) = &self.office else { return };
        let Ok(changes) = reads.take_lease_changes() else {
            self.queue.resync(reads.leases().iter(), clock.begin_ms());
            return;
        };
        if changes.is_empty() {
            return;
        }
        let from_ms = clock.begin_ms();
        for change in changes {
            match change {
                LeaseChange::Granted { id, lease } => self.queue.granted(id, lease, from_ms),
                LeaseChange::Revoked { id } => self.queue.revoked(id),
                LeaseChange::Noted { id, remaining_s } => self.queue.noted(id, remaining_s),
            }
        }
    }

    fn term(&self) -> Option<u64> {
        self.office.as_ref().map(|(term, _)| *term)
    }
}

impl Lessor {
    /// The lessor of a node with this election timeout, and requests that may take `patience`. To be kept running by
    /// [`Lessor::run`].
    pub(crate) fn new(node: Node, election_ms: u64, patience: Duration) -> Arc<Lessor> {
        let promotion = Promotion { extend_ms: election_ms, ends_per_second_max: EXPIRIES_PER_SECOND_MAX / 4 * 3 };
        let lessor = Arc::new(Lessor {
            node,
            clock: Clock::new(),
            promotion,
            state: Mutex::default(),
            turned: watch::Sender::new(0),
            quick: Lane::new(false),
            slow: Lane::new(true),
            asking: Semaphore::new(TIMES_ASKED_MAX),
            patience,
            stopping: watch::Sender::new(false),
            renewed: AtomicU64::new(0),
            expired: AtomicU64::new(0),
        });
        lessor.node.answer_as_leader(&lessor);
        lessor
    }

    /// Keeps leases while this member leads, and renewals on their way, for ever.
    pub(crate) async fn run(self: Arc<Self>) {
        tokio::join!(self.lead(), self.quick.run(&self), self.slow.run(&self));
    }

    /// Ends every stream of renewals: the server stops.
    pub(crate) fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Resolves when the server stops.
    pub(crate) async fn stopped(&self) {
        // The sender is part of `self`: an error is not possible, and would mean the same.
        let _ = self.stopping.subscribe().wait_for(|stopping| *stopping).await;
    }

    /// Whether the server stops.
    pub(crate) fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Renewals that succeeded here, on the leader.
    pub(crate) fn renewed_total(&self) -> u64 {
        self.renewed.load(Ordering::Relaxed)
    }

    /// Leases that ended here, on the leader.
    pub(crate) fn expired_total(&self) -> u64 {
        self.expired.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self) {
        self.turned.send_modify(|turns| *turns += 1);
    }
}
