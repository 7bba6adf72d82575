//! Whether this member is the only one and leads: then it need ask nobody.
//!
//! While there is no other member, none can become leader, commit anything, or answer for what is committed. So once this one
//! has been confirmed as leader, and has applied what was committed by then, everything that is acknowledged from then on is
//! applied here before; and a read of what is applied here is linearizable without a round. A learner is a member: it may have
//! applied, and shown, what the leader has committed and not applied yet.
//!
//! - **Invariant**: a membership with another member ends this before the entry is in the log, so before any other member can
//!   have it: whoever found this member to be the sole one did so while no other could have been elected or asked.
//! - **Invariant**: a confirmation counts only for the members that were in force when it began.
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
    members: Mutex<Members>,
}

/// What is known of the members.
#[derive(Debug, Default)]
struct Members {
    /// Counts the changes since the start.
    changes: u64,
    only_me: bool,
    /// Nothing will be confirmed any more.
    closed: bool,
}

/// The members were this one alone when this was made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OnlyMe {
    changes: u64,
}

impl Sole {
    fn lock(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether what is applied here is everything that anybody has been told.
    pub(crate) fn leads(&self) -> bool {
        self.leads.load(Ordering::Acquire)
    }

    /// The members that were found at the start; it does not count if others have been written since.
    pub(crate) fn found(&self, only_me: bool) {
        let mut members = self.lock();
        if members.changes == 0 {
            members.only_me = only_me;
        }
    }

    /// A membership is about to be written to the log; or, with `false`, it is not known any more which one is in force.
    pub(crate) fn change(&self, only_me: bool) {
        let mut members = self.lock();
        members.changes += 1;
        members.only_me = only_me;
        self.leads.store(false, Ordering::Release);
    }

    /// To be called before this member is confirmed as leader.
    pub(crate) fn begin(&self) -> Option<OnlyMe> {
        let members = self.lock();
        members.only_me.then_some(OnlyMe { changes: members.changes })
    }

    /// This member has been confirmed as leader since, and has applied what was committed by then.
    pub(crate) fn confirm(&self, since: OnlyMe) {
        let members = self.lock();
        if members.changes == since.changes && !members.closed {
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
    fn only_a_confirmation_of_the_members_in_force_counts() {
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
