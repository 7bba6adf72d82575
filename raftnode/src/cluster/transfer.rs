//! Handing leadership over.

use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use tokio::time::timeout;

use super::leadership::{Leader, Leadership};
use crate::member::TransferError;
use crate::node::RaftHandle;
use crate::peer::Net;

/// A successor must have been heard of within this time, or within that of an election if it is longer: where that is long,
/// so may be the time between two heartbeats.
const HEARD_WITHIN: Duration = Duration::from_secs(1);

/// Hands leadership over to a voter, and waits until it leads, for at most `patience`, an election timeout.
pub(crate) async fn hand_over(
    raft: &RaftHandle,
    net: &Net,
    mut leadership: Leadership,
    to: u64,
    patience: Duration,
) -> Result<(), TransferError> {
    let leader = leadership.now();
    let Leader::Here { .. } = leader else { return Err(TransferError::NotLeader) };
    let voters = raft.with_raft_state(|state| state.membership_state.effective().voter_ids().collect::<Vec<_>>());
    if !voters.await.map_err(|_| TransferError::Stopped)?.contains(&to) {
        return Err(TransferError::BadTarget { id: to });
    }
    if to == *raft.node_id() {
        return Ok(());
    }
    // From then on this member leads no more, whether the other is there or not.
    let within = HEARD_WITHIN.max(patience);
    if !is_heard(net, to, within) {
        return Err(TransferError::Unheard { id: to, within });
    }
    raft.trigger().transfer_leader(to).await.map_err(|_| TransferError::Stopped)?;
    let taken_over = async {
        let mut seen = leader;
        loop {
            seen = leadership.other(seen).await;
            match seen {
                Leader::There { id, .. } if id == to => return,
                Leader::There { .. } | Leader::Here { .. } | Leader::Nobody => {}
            }
        }
    };
    timeout(patience, taken_over).await.map_err(|_| TransferError::TimedOut { id: to })
}

/// The voter whose log is the longest among those that have been heard of just now.
pub(crate) async fn successor(raft: &RaftHandle, net: &Net, own: u64, election: Duration) -> Option<u64> {
    let replication = raft.metrics().borrow_watched().replication.clone()?;
    let voters = raft.with_raft_state(|state| state.membership_state.effective().voter_ids().collect::<Vec<_>>());
    let voters = voters.await.ok()?;
    voters
        .into_iter()
        .filter(|id| *id != own && is_heard(net, *id, HEARD_WITHIN.max(election)))
        .max_by_key(|id| replication.get(id).and_then(|matched| matched.as_ref().map(|matched| matched.index)))
}

fn is_heard(net: &Net, id: u64, within: Duration) -> bool {
    net.last_contact(id).is_some_and(|at| at.elapsed() < within)
}
