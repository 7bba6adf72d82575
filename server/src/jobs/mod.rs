//! What a server does by itself: automatic compaction, the sweep after compactions, keeping leases, and looking at sizes.

mod compactor;
mod lease;
mod sweeper;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tally_apply::{Command, Rejection};
use tally_raftnode::{EncodedCommand, Node};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

pub(crate) use compactor::Schedule;
pub(crate) use lease::{Lessor, RenewError, Renewing};
pub(crate) use sweeper::{Sweeper, SweeperConfig};

use crate::metrics::Sizes;

/// Time between two looks at the size of the database.
const SIZE_INTERVAL: Duration = Duration::from_secs(1);

/// Compacts by the schedule as long as this member leads.
pub(crate) async fn compact(mut schedule: Schedule, node: Node) {
    let started = Instant::now();
    let mut ticks = interval_at(started, schedule.interval());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(revision) = schedule.look(started.elapsed(), node.reads().kv().revision()) else { continue };
        if !node.status().borrow().is_leader {
            continue;
        }
        let command = Command::Compact { revision };
        match node.propose(EncodedCommand::encode(&command)).await {
            Ok(outcome) => match outcome.result {
                Ok(_) => {
                    tracing::info!(revision, "automatic compaction done");
                    schedule.done(started.elapsed(), revision);
                }
                Err(Rejection::Kv(tally_mvcc::Rejection::Compacted { .. })) => {
                    schedule.done(started.elapsed(), revision);
                }
                Err(rejection) => tracing::warn!(revision, %rejection, "automatic compaction was refused"),
            },
            Err(error) => tracing::warn!(revision, %error, "automatic compaction failed; it will be tried again"),
        }
    }
}

/// Keeps the size of the database up to date, for the quota and the metrics.
pub(crate) async fn watch_sizes(node: Node, sizes: Arc<Sizes>) {
    let mut ticks = tokio::time::interval(SIZE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        refresh_sizes(&node, &sizes);
    }
}

/// Looks at the size once.
pub(crate) fn refresh_sizes(node: &Node, sizes: &Sizes) {
    sizes.keys.store(node.reads().kv().view().key_bytes(), Relaxed);
    match node.store_size() {
        Ok(size) => {
            sizes.allocated.store(size.allocated, Relaxed);
            sizes.in_use.store(size.in_use, Relaxed);
        }
        Err(error) => tracing::warn!(%error, "cannot read the size of the database"),
    }
}
