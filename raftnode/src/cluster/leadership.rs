//! Who leads, as those who have work for a leader need to know it.

use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::metrics::RaftServerMetrics;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::node::RaftHandle;
use crate::peer::Net;
use crate::types::TypeConfig;

/// How soon somebody who was told "not here" by a leader looks again, when nothing has changed meanwhile.
const RETRY: Duration = Duration::from_millis(10);

/// How often it is looked whether the leader still is one.
const LOOKS_PER_ELECTION: u32 = 10;

/// Who leads at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Leader {
    /// Nobody, as far as is known here.
    #[default]
    Nobody,
    /// This member, in this term.
    Here {
        /// The term.
        term: u64,
    },
    /// Another member.
    There {
        /// Which one.
        id: u64,
        /// The term that it leads in.
        term: u64,
    },
}

impl Leader {
    fn from_metrics(server: &RaftServerMetrics<TypeConfig>, member_id: u64) -> Leader {
        let term = server.vote.leader_id().term;
        match server.current_leader {
            None => Leader::Nobody,
            Some(_) if !server.vote.is_committed() => Leader::Nobody,
            Some(id) if id == member_id => Leader::Here { term },
            Some(id) => Leader::There { id, term },
        }
    }

    /// Which member leads.
    pub(crate) fn id(self, member_id: u64) -> Option<u64> {
        match self {
            Leader::Nobody => None,
            Leader::Here { .. } => Some(member_id),
            Leader::There { id, .. } => Some(id),
        }
    }
}

/// Finds out whether a leader still is one.
///
/// Consensus names the last leader until there is another one, and a leader that is cut off goes on to be it. So whoever
/// has heard nothing of it for an election timeout, or leads and has heard of no majority, takes it that nobody leads:
/// who asks is told so, and what is proposed waits.
struct Pulse {
    member_id: u64,
    net: Net,
    election: Duration,
    /// The leader that consensus names, and since when.
    named: (Leader, Instant),
}

impl Pulse {
    fn leader(&mut self, server: &RaftServerMetrics<TypeConfig>) -> Leader {
        let named = Leader::from_metrics(server, self.member_id);
        if named != self.named.0 {
            self.named = (named, Instant::now());
        }
        let fresh = self.named.1.elapsed() < self.election;
        let heard = |id: u64| self.net.last_contact(id).is_some_and(|at| at.elapsed() < self.election);
        let alive = match named {
            Leader::Nobody => true,
            Leader::There { id, .. } => heard(id),
            Leader::Here { .. } => server.membership_config.membership().get_joint_config().iter().all(|voters| {
                let heard = voters.iter().filter(|id| **id == self.member_id || heard(**id));
                heard.count() > voters.len() / 2
            }),
        };
        if alive || fresh { named } else { Leader::Nobody }
    }
}

/// Follows who leads. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Leadership {
    watched: watch::Receiver<Leader>,
}

impl Leadership {
    /// Starts following; ends with consensus.
    pub(crate) fn follow(raft: &RaftHandle, net: Net, member_id: u64, election: Duration) -> Leadership {
        let mut server = raft.server_metrics();
        let mut pulse = Pulse { member_id, net, election, named: (Leader::Nobody, Instant::now()) };
        let first = pulse.leader(&server.borrow_watched());
        let (sender, watched) = watch::channel(first);
        tokio::spawn(async move {
            let mut ticks = interval(election / LOOKS_PER_ELECTION);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while !sender.is_closed() {
                tokio::select! {
                    changed = server.changed() => if changed.is_err() { return },
                    _ = ticks.tick() => {}
                }
                let leader = pulse.leader(&server.borrow_watched());
                sender.send_if_modified(|known| std::mem::replace(known, leader) != leader);
            }
        });
        Leadership { watched }
    }

    pub(crate) fn now(&self) -> Leader {
        *self.watched.borrow()
    }

    /// Waits until leadership is not `than` any more. Never resolves once consensus has ended.
    pub(crate) async fn other(&mut self, than: Leader) -> Leader {
        match self.watched.wait_for(|leader| *leader != than).await.map(|leader| *leader) {
            Ok(leader) => leader,
            Err(_) => std::future::pending().await,
        }
    }

    /// Waits until leadership has changed from `than`, or, as `than` may be right and only not ready, for a moment.
    /// Whether `deadline` is still ahead.
    pub(crate) async fn retry(&mut self, than: Leader, deadline: Instant) -> bool {
        let pause = if than == Leader::Nobody { deadline } else { deadline.min(Instant::now() + RETRY) };
        // A timeout is one of the two things waited for.
        drop(tokio::time::timeout_at(pause, self.other(than)).await);
        Instant::now() < deadline
    }
}
