//! Whether this member is the only voter and leads: then it need ask nobody.
//!
//! While one member is the only voter, no other can become leader or commit anything without its vote. So once it has been
//! confirmed as leader, and has applied what was committed by then, everything that is acknowledged from then on is applied
//! here before; and a read of what is applied here is linearizable without a round.
//!
//! - **Invariant**: a membership with another voter ends this before the entry is in the log, so before any other member can
//!   have it: whoever found this member to be the sole one did so while no other could have been elected.
//! - **Invariant**: a confirmation counts only for the voters that were in force when it began.
//!
//! The last membership *in the log* decides, committed or not, as in Raft itself (section 4.1 of Ongaro's dissertation). What
//! is taken back from the log, or replaced by a snapshot, ends this until the next membership is written.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Sole {
    /// Confirmed, and in force.
    leads: AtomicBool,
    voters: Mutex<Voters>,
}

/// What is known of the voters.
#[derive(Debug, Default)]
struct Voters {
    /// Counts the changes since the start.
    changes: u64,
    only_me: bool,
    /// Nothing will be confirmed any more.
    closed: bool,
}

/// The voters were this member alone when this was made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OnlyMe {
    changes: u64,
}

impl Sole {
    fn lock(&self) -> MutexGuard<'_, Voters> {
        self.voters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether what is applied here is everything that anybody has been told.
    pub(crate) fn leads(&self) -> bool {
        self.leads.load(Ordering::Acquire)
    }

    /// The voters that were found at the start; it does not count if others have been written since.
    pub(crate) fn found(&self, only_me: bool) {
        let mut voters = self.lock();
        if voters.changes == 0 {
            voters.only_me = only_me;
        }
    }

    /// A membership is about to be written to the log; or, with `false`, it is not known any more which one is in force.
    pub(crate) fn change(&self, only_me: bool) {
        let mut voters = self.lock();
        voters.changes += 1;
        voters.only_me = only_me;
        self.leads.store(false, Ordering::Release);
    }

    /// To be called before this member is confirmed as leader.
    pub(crate) fn begin(&self) -> Option<OnlyMe> {
        let voters = self.lock();
        voters.only_me.then_some(OnlyMe { changes: voters.changes })
    }

    /// This member has been confirmed as leader since, and has applied what was committed by then.
    pub(crate) fn confirm(&self, since: OnlyMe) {
        let voters = self.lock();
        if voters.changes == since.changes && !voters.closed {
            self.leads.store(true, Ordering::Release);
        }
    }

    /// The node is ending.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.leads.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn only_a_confirmation_of_the_voters_in_force_counts() {
        let sole = Sole::default();
        assert!(sole.begin().is_none() && !sole.leads(), "nothing is known yet");
        sole.found(true);
        let alone = sole.begin().unwrap();
        assert!(!sole.leads(), "not confirmed yet");
        sole.confirm(alone);
        assert!(sole.leads());

        sole.change(false);
        assert!(!sole.leads() && sole.begin().is_none());
        sole.confirm(alone);
        assert!(!sole.leads(), "what was confirmed before");
        sole.found(true);
        assert!(sole.begin().is_none(), "what was found before");

        sole.change(true);
        assert!(!sole.leads(), "others may have led since");
        sole.confirm(alone);
        assert!(!sole.leads(), "what was confirmed before");
        let alone = sole.begin().unwrap();
        sole.confirm(alone);
        assert!(sole.leads());
        sole.change(true);
        assert!(!sole.leads());

        let alone = sole.begin().unwrap();
        sole.close();
        sole.confirm(alone);
        assert!(!sole.leads());
    }
}
