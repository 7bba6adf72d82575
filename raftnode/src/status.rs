//! What a node says about itself: leadership as it changes, counters a few times a second.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::metrics::RaftServerMetrics;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use crate::cluster::{Leader, Leadership};
use crate::entry::MembershipView;
use crate::fatal::FatalError;
use crate::node::RaftHandle;
use crate::peer::Net;
use crate::progress::{Progress, Shared};
use crate::types::TypeConfig;

/// How old the counters of a [`Status`] may be; [`Node::progress`](crate::Node::progress) has them as they are.
const COUNTER_INTERVAL: Duration = Duration::from_millis(100);

/// What a node says about itself.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// The leader, if this member knows one.
    pub leader: Option<u64>,
    /// The term this member is in.
    pub term: u64,
    /// This member leads.
    pub is_leader: bool,
    /// This member does not vote.
    pub is_learner: bool,
    /// Leaders seen since the start, the first one included.
    pub leader_changes: u64,
    /// The membership in force.
    pub membership: MembershipView,
    /// How far the log and the state are.
    pub progress: Progress,
    /// Why the node has failed, if it has.
    pub fatal: Option<FatalError>,
    /// The term of the leader seen last.
    led: Option<u64>,
}

impl Status {
    fn update(&mut self, server: &RaftServerMetrics<TypeConfig>, leader: Leader, member_id: u64) {
        let (leader, term) = in_one_term(leader, server.vote.leader_id().term);
        self.term = term;
        self.leader = leader.id(member_id);
        self.is_leader = matches!(leader, Leader::Here { .. });
        // A leader that was out of reach for a while is not another one.
        if let Leader::Here { term } | Leader::There { term, .. } = leader
            && self.led != Some(term)
        {
            self.led = Some(term);
            self.leader_changes += 1;
        }
        self.is_learner = server.state.is_learner();
        self.membership = MembershipView::new(server.membership_config.membership());
    }
}

/// The leader and the term to tell together. They come from two places that change at different moments, and the leader
/// of an older term must not be told as that of the term this member has just voted in.
fn in_one_term(leader: Leader, term: u64) -> (Leader, u64) {
    match leader {
        Leader::Here { term: led } | Leader::There { term: led, .. } if led < term => (Leader::Nobody, term),
        Leader::Here { term: led } | Leader::There { term: led, .. } => (leader, led),
        Leader::Nobody => (leader, term),
    }
}

/// Resolves, for whoever watches, when this member has left the cluster for good.
pub(crate) type RemovedSignal = Arc<watch::Sender<bool>>;

/// Notices that a committed membership no longer holds this member, after one that did.
struct Belonging {
    member_id: u64,
    was_member: bool,
    removed: RemovedSignal,
}

impl Belonging {
    fn update(&mut self, server: &RaftServerMetrics<TypeConfig>) {
        let committed = &server.committed_membership_config;
        if committed.log_id().is_none() {
            return;
        }
        let is_member = committed.membership().get_node(&self.member_id).is_some();
        self.was_member |= is_member;
        // A leader that removed itself goes on until the others know, and has handed over, before it goes.
        if self.was_member && !is_member && !server.state.is_leader() {
            self.removed.send_replace(true);
        }
    }
}

/// Tells the transport where the members are.
fn tell_addresses(net: &Net, server: &RaftServerMetrics<TypeConfig>) {
    for (id, peer) in server.membership_config.membership().nodes() {
        net.set_addresses(*id, &peer.urls);
    }
}

/// What the task below looks after.
pub(crate) struct Follower {
    pub(crate) status: watch::Sender<Status>,
    pub(crate) raft: RaftHandle,
    pub(crate) leadership: Leadership,
    pub(crate) member_id: u64,
    pub(crate) shared: Arc<Shared>,
    pub(crate) net: Net,
    pub(crate) removed: RemovedSignal,
}

/// Keeps `status` true until `stop` resolves, and makes a consensus that stopped by itself fatal.
pub(crate) async fn run(follower: Follower, stop: impl Future<Output = ()>) {
    let Follower { status, raft, mut leadership, member_id, shared, net, removed } = follower;
    let mut belonging = Belonging { member_id, was_member: false, removed };
    let fatal = shared.fatal.wait();
    tokio::pin!(stop, fatal);
    let mut server = raft.server_metrics();
    let mut ticks = interval(COUNTER_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let seen = server.borrow_watched().clone();
    let mut leader = leadership.now();
    status.send_modify(|status| status.update(&seen, leader, member_id));
    tell_addresses(&net, &seen);
    belonging.update(&seen);
    loop {
        tokio::select! {
            biased;
            () = &mut stop => return,
            fatal = &mut fatal => {
                status.send_modify(|status| status.fatal = Some(fatal));
                return;
            }
            changed = server.changed() => {
                if changed.is_err() {
                    let reason = "its task ended".to_owned();
                    shared.fatal.set(FatalError::Consensus { reason });
                    continue;
                }
                let seen = server.borrow_watched().clone();
                tell_addresses(&net, &seen);
                belonging.update(&seen);
                status.send_modify(|status| {
                    status.update(&seen, leader, member_id);
                    status.progress = shared.progress();
                });
            }
            other = leadership.other(leader) => {
                leader = other;
                let seen = server.borrow_watched().clone();
                status.send_modify(|status| status.update(&seen, leader, member_id));
            }
            _ = ticks.tick() => {
                let progress = shared.progress();
                status.send_if_modified(|status| {
                    let changed = status.progress != progress;
                    status.progress = progress;
                    changed
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_is_told_with_its_own_term_only() {
        let there = Leader::There { id: 7, term: 5 };
        assert_eq!(in_one_term(there, 6), (Leader::Nobody, 6), "voted in a later term");
        assert_eq!(in_one_term(there, 5), (there, 5));
        assert_eq!(in_one_term(there, 4), (there, 5), "the term is heard of after its leader");
        assert_eq!(in_one_term(Leader::Here { term: 5 }, 6), (Leader::Nobody, 6));
        assert_eq!(in_one_term(Leader::Nobody, 6), (Leader::Nobody, 6));
    }
}
