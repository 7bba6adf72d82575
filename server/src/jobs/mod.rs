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

/// What a lease without keys takes in memory, in bytes; a round figure. It stands for the entry in the table, the
/// leader's entry in the expiry queue, and that one's places among the ends and among the notes.
const LEASE_MEMORY_BYTES: u64 = 256;

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

/// What is in memory whole, however little it takes on disk: the keys, and the leases.
fn memory_bytes(key_bytes: u64, leases: usize) -> u64 {
    key_bytes.saturating_add((leases as u64).saturating_mul(LEASE_MEMORY_BYTES))
}

/// Looks at the size once.
pub(crate) fn refresh_sizes(node: &Node, sizes: &Sizes) {
    let reads = node.reads();
    sizes.keys.store(memory_bytes(reads.kv().view().key_bytes(), reads.leases().len()), Relaxed);
    match node.store_size() {
        Ok(size) => {
            sizes.allocated.store(size.allocated, Relaxed);
            sizes.in_use.store(size.in_use, Relaxed);
        }
        Err(error) => tracing::warn!(%error, "cannot read the size of the database"),
    }
}

#[cfg(test)]
mod tests {
    use super::memory_bytes;

    #[test]
    fn leases_count_beside_keys() {
        assert_eq!(memory_bytes(7, 0), 7);
        // Without a single key, five million leases are more than a gibibyte.
        assert!(memory_bytes(0, 5_000_000) > 1 << 30);
        assert_eq!(memory_bytes(7, 3) - memory_bytes(0, 3), 7);
    }
}
