//! Members that answer, but take less than is written.
//!
//! The log keeps what is on its way to a member, however much that becomes: openraft purges nothing that one of its streams
//! still has to read. So a member that lacks too much is given up: its stream ends with an error, once. openraft then
//! finds that what the member needs next is to be purged, purges it, and sends a snapshot instead.
//!
//! **Invariant.** Only what a snapshot holds is purged, and only a minority can lack it.

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::Fatal;
use tally_wal::{LogIndex, Reader};

use crate::config::Config;
use crate::node::RaftHandle;
use crate::peer::Net;
use crate::types::{TypeConfig, log_index};

/// What is looked at, and what is told.
pub(crate) struct Laggards {
    pub(crate) raft: RaftHandle,
    pub(crate) net: Net,
    pub(crate) log: Reader,
    pub(crate) catchup_entries: u64,
    pub(crate) lag_bytes_max: u64,
}

impl Laggards {
    pub(crate) fn new(config: &Config, raft: RaftHandle, net: Net, log: Reader) -> Laggards {
        let (catchup_entries, lag_bytes_max) = (config.catchup_entries, config.lag_bytes_max);
        Laggards { raft, net, log, catchup_entries, lag_bytes_max }
    }

    /// Gives up those who lack more than `lag_bytes_max` of the log, part of which could be purged. Nothing happens unless
    /// this member leads.
    pub(crate) async fn give_up(&self) -> Result<(), Fatal<TypeConfig>> {
        // In openraft's indexes, up to the end of the loop.
        let (floor, behind) = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            let (Some(replication), Some(snapshot)) = (&metrics.replication, &metrics.snapshot) else { return Ok(()) };
            let Some(floor) = snapshot.index.checked_sub(self.catchup_entries) else { return Ok(()) };
            if metrics.purged.as_ref().is_some_and(|purged| purged.index >= floor) {
                return Ok(());
            }
            let matched = replication.iter().filter_map(|(id, matched)| Some((*id, matched.as_ref()?.index)));
            let behind: Vec<(u64, u64)> =
                matched.filter(|(_, matched)| *matched < floor && self.lacks_too_much(*matched)).collect();
            (floor, behind)
        };
        if behind.is_empty() {
            return Ok(());
        }
        // It is decided by what is *to be* purged whether a snapshot is sent, so this comes first; and it has happened once
        // consensus answers anything that was asked for later.
        self.raft.trigger().purge_log(floor).await?;
        self.raft.with_raft_state(|_| ()).await?;
        for (id, matched) in behind {
            tracing::info!(
                member = format_args!("{id:x}"),
                matched = log_index(matched),
                "the member takes less than is written; it gets a snapshot instead of the log that it lacks"
            );
            self.net.give_up_below(id, log_index(floor));
        }
        Ok(())
    }

    fn lacks_too_much(&self, matched: u64) -> bool {
        self.log.bytes_after(LogIndex::new(log_index(matched))) > self.lag_bytes_max
    }
}
