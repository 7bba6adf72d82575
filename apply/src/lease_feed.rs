//! What happens to the lease table, told to the one who keeps time on it.
//!
//! Only a leader needs it, so nothing is kept until somebody listens. Changes are told after readers can see them: whoever
//! has heard of one finds it in [`Reads::leases`](crate::Reads::leases).

use std::sync::{Mutex, MutexGuard, PoisonError};

use tally_lease::Lease;

/// Changes that may wait to be taken (about 32 bytes each). With more, the listener has to read the whole table again.
const CHANGES_MAX: usize = 200_000;

/// One change of the lease table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseChange {
    /// A lease was granted.
    Granted {
        /// Its id.
        id: i64,
        /// The lease.
        lease: Lease,
    },
    /// A lease was revoked, by a client or because it had expired.
    Revoked {
        /// Its id.
        id: i64,
    },
    /// Another remainder is noted of a lease than before.
    Noted {
        /// Its id.
        id: i64,
        /// What is left of it in seconds; 0: all of it.
        remaining_s: i64,
    },
}

/// Why changes cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {CHANGES_MAX} changes of leases were waiting, some were dropped: read the table again")]
pub struct ChangesLost;

/// The changes that wait for the listener.
#[derive(Debug, Default)]
pub(crate) struct LeaseFeed {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
enum State {
    /// Nobody listens.
    #[default]
    Off,
    On(Vec<LeaseChange>),
    Lost,
}

impl LeaseFeed {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn listen(&self, listens: bool) {
        *self.lock() = if listens { State::On(Vec::new()) } else { State::Off };
    }

    /// Tells changes in their order; leaves `changes` empty.
    pub(crate) fn tell(&self, changes: &mut Vec<LeaseChange>) {
        if changes.is_empty() {
            return;
        }
        let mut state = self.lock();
        match &mut *state {
            State::On(waiting) if waiting.len() + changes.len() <= CHANGES_MAX => waiting.append(changes),
            State::On(_) => *state = State::Lost,
            State::Off | State::Lost => {}
        }
        changes.clear();
    }

    pub(crate) fn take(&self) -> Result<Vec<LeaseChange>, ChangesLost> {
        let mut state = self.lock();
        match &mut *state {
            State::On(waiting) => Ok(std::mem::take(waiting)),
            State::Off => Ok(Vec::new()),
            State::Lost => {
                *state = State::On(Vec::new());
                Err(ChangesLost)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_lost_and_said_to_be() {
        let feed = LeaseFeed::default();
        let change = LeaseChange::Revoked { id: 1 };
        feed.tell(&mut vec![change]);
        assert_eq!(feed.take(), Ok(vec![]), "nobody listened");
        feed.listen(true);
        feed.tell(&mut vec![change; CHANGES_MAX]);
        feed.tell(&mut vec![change]);
        assert_eq!(feed.take(), Err(ChangesLost));
        feed.tell(&mut vec![change]);
        assert_eq!(feed.take(), Ok(vec![change]));
        feed.listen(false);
        feed.tell(&mut vec![change]);
        assert_eq!(feed.take(), Ok(vec![]));
    }
}
