//! What this member can know about why a request took too long: etcd's clients are told more than that it did.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tally_raftnode::Node;

use crate::metrics::Network;

/// Why a request timed out, as etcd words it behind "request timed out".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Nothing more is known.
    Unknown,
    /// It began while leadership was being lost.
    LeaderFailed,
    /// The leader, or the members that a leader needs, could not be reached all the time.
    ConnectionLost,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Cause::Unknown => "",
            Cause::LeaderFailed => ", possibly due to previous leader failure",
            Cause::ConnectionLost => ", possibly due to connection lost",
        })
    }
}

/// Remembers when leaders came.
pub(crate) struct Leadership {
    node: Node,
    network: Arc<Network>,
    member_id: u64,
    election: Duration,
    elected: Mutex<Option<Instant>>,
}

impl Leadership {
    pub(crate) fn new(node: Node, network: Arc<Network>, member_id: u64, election: Duration) -> Leadership {
        Leadership { node, network, member_id, election, elected: Mutex::new(None) }
    }

    /// Watches leaders come and go, for ever.
    pub(crate) async fn follow(self: Arc<Self>) {
        let mut status = self.node.status();
        let mut leader = None;
        loop {
            let now = status.borrow_and_update().leader;
            if now.is_some() && now != leader {
                *self.elected.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            }
            leader = now;
            if status.changed().await.is_err() {
                return;
            }
        }
    }

    /// Why a request that began at `started` may have timed out now; etcd's judgement.
    pub(crate) fn cause(&self, started: Instant) -> Cause {
        let elected = *self.elected.lock().unwrap_or_else(PoisonError::into_inner);
        if elected.is_some_and(|elected| began_without_leader(started, elected, self.election)) {
            return Cause::LeaderFailed;
        }
        let leader = self.node.status().borrow().leader;
        let connected = match leader {
            None => true,
            Some(leader) if leader == self.member_id => self.has_quorum_since(started),
            Some(leader) => self.network.is_connected_since(leader, started),
        };
        if connected { Cause::Unknown } else { Cause::ConnectionLost }
    }

    fn has_quorum_since(&self, started: Instant) -> bool {
        let voters: Vec<u64> = self.node.members().iter().filter(|m| !m.is_learner).map(|m| m.id).collect();
        let connected = |id: &u64| *id == self.member_id || self.network.is_connected_since(*id, started);
        voters.iter().filter(|id| connected(id)).count() > voters.len() / 2
    }
}

/// The leader before is thought to have been lost two election timeouts before the next one came.
fn began_without_leader(started: Instant, elected: Instant, election: Duration) -> bool {
    started < elected && elected - started < 2 * election
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_began_between_two_leaders_suffered_from_the_first_ones_failure() {
        let elected = Instant::now() + Duration::from_secs(100);
        let election = Duration::from_secs(1);
        let began = |before_ms| began_without_leader(elected - Duration::from_millis(before_ms), elected, election);
        assert!(began(1) && began(1_999));
        assert!(!began(2_000) && !began(0));
        assert!(!began_without_leader(elected + Duration::from_millis(1), elected, election));
    }

    #[test]
    fn causes_are_worded_as_etcd_words_them() {
        let texts = [Cause::Unknown, Cause::LeaderFailed, Cause::ConnectionLost].map(|cause| cause.to_string());
        assert_eq!(texts, ["", ", possibly due to previous leader failure", ", possibly due to connection lost"]);
    }
}
