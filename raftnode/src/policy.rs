//! When to make the store durable, and so how much of the log may go.
//!
//! A snapshot is a flush of the store: it costs table files that have to be merged later. Entries alone say little (ten
//! thousand small puts are a sixth of a second at full speed), so bytes or time have to agree. openraft then drops the
//! log up to `catchup_entries` behind what is durable, never more.
//!
//! **Invariant.** While a snapshot is being sent, the log keeps what comes after it, up to `lag_bytes_max`: else a member
//! that takes long to receive one would need the next one as soon as it has it, for ever. Nor does it keep more for a member
//! that is being sent the log itself (`laggards`).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tally_wal::{LogIndex, Reader};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::config::Config;
use crate::laggards::Laggards;
use crate::node::RaftHandle;
use crate::peer::Net;
use crate::progress::Shared;

/// How often the rule below is looked at.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// What has happened since the last snapshot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Since {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
    pub(crate) elapsed: Duration,
    /// A snapshot is on its way to a member, which will need the log that comes after it.
    pub(crate) sending: bool,
}

/// Whether a snapshot is due.
pub(crate) fn is_due(config: &Config, since: Since) -> bool {
    let worth_it =
        since.bytes >= config.snapshot_bytes_min || since.elapsed >= Duration::from_millis(config.snapshot_interval_ms);
    let many = since.entries >= config.snapshot_count;
    let bytes_max = if since.sending { config.lag_bytes_max } else { config.snapshot_bytes_max };
    since.entries > 0 && ((many && worth_it && !since.sending) || since.bytes >= bytes_max)
}

/// Asks for snapshots until `stop` resolves.
pub(crate) async fn run(
    config: Config,
    raft: RaftHandle,
    net: Net,
    log: Reader,
    shared: Arc<Shared>,
    stop: impl Future<Output = ()>,
) {
    // What an earlier run has left in the log counts: it may have stopped before anything was due.
    let found_bytes = log.bytes_after(LogIndex::new(0));
    let laggards = Laggards::new(&config, raft.clone(), net.clone(), log);
    let ask = async {
        let mut ticks = interval(CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut bytes_then, mut asked_at) = (0, Instant::now());
        loop {
            ticks.tick().await;
            let bytes_now = found_bytes + shared.appended_bytes.load(Ordering::Relaxed);
            let since = Since {
                entries: shared.applied.get().saturating_sub(shared.durable.load(Ordering::Acquire)),
                bytes: bytes_now - bytes_then,
                elapsed: asked_at.elapsed(),
                sending: net.is_sending_snapshots(),
            };
            if is_due(&config, since) {
                // A request made while another snapshot is being built is dropped; the rule asks again later.
                if raft.trigger().snapshot().await.is_err() {
                    return;
                }
                (bytes_then, asked_at) = (bytes_now, Instant::now());
            }
            if laggards.give_up().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = ask => {}
        () = stop => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(entries: u64, bytes: u64, seconds: u64) -> bool {
        let elapsed = Duration::from_secs(seconds);
        is_due(&Config::default(), Since { entries, bytes, elapsed, sending: false })
    }

    #[test]
    fn many_entries_also_need_bytes_or_time() {
        assert!(!due(10_000, 1 << 20, 1));
        assert!(due(10_000, 32 << 20, 1));
        assert!(due(10_000, 1 << 20, 30));
        assert!(!due(9_999, 32 << 20, 3_600));
    }

    #[test]
    fn a_log_of_few_large_entries_is_bounded_too() {
        assert!(!due(100, 255 << 20, 3_600));
        assert!(due(100, 256 << 20, 1));
        assert!(!due(0, 1 << 40, 3_600));
    }

    #[test]
    fn the_log_waits_for_a_snapshot_under_way_but_not_without_a_bound() {
        let since = |bytes, sending| Since { entries: 50_000, bytes, elapsed: Duration::from_secs(60), sending };
        let due = |since| is_due(&Config::default(), since);
        assert!(due(since(255 << 20, false)));
        assert!(!due(since(255 << 20, true)));
        assert!(!due(since(511 << 20, true)));
        assert!(due(since(512 << 20, true)));
    }
}
