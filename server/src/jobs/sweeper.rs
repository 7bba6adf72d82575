//! The sweep: deletes, in small batches on a thread of its own, the records that compactions dropped.
//!
//! **Invariant**: the sweep changes nothing that anybody can read, so it may stop at any moment and goes on after a restart.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tally_mvcc::{Reader, SweepLimits, SweepProgress};

/// Time between two looks whether there was a compaction; each is a few loads.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Time between two looks whether old views have been dropped.
const WAIT_INTERVAL: Duration = Duration::from_millis(100);
/// How long old views are waited for; afterwards reads through them fail with a retryable error.
const PATIENCE: Duration = Duration::from_secs(60);
/// The first pause after a sweep that failed; each is twice the one before, up to the last.
const FAILED_PAUSE: Duration = Duration::from_secs(1);
const FAILED_PAUSE_MAX: Duration = Duration::from_secs(60);

/// How fast to sweep.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SweeperConfig {
    /// Records per batch.
    pub(crate) batch_records: usize,
    /// Pause between two batches.
    pub(crate) pause: Duration,
}

/// The thread. Dropping it stops the sweep after the batch under way.
pub(crate) struct Sweeper {
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Sweeper {
    /// Begins, with what an earlier run left. `reader` gives the store in force, which a state received from the leader
    /// replaces.
    pub(crate) fn start(reader: impl Fn() -> Reader + Send + 'static, config: SweeperConfig) -> io::Result<Sweeper> {
        let (stop, stopped) = sync_channel(1);
        let run = move || sweep(reader, config, &stopped);
        let thread = std::thread::Builder::new().name("tally-sweeper".into()).spawn(run)?;
        Ok(Sweeper { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // Full or disconnected: it has been told, or has ended.
            let (Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(()))) = stop.try_send(());
        }
        if let Some(thread) = self.thread.take() {
            // A panic aborts the process, so there is nothing to join but an end.
            let _ = thread.join();
        }
    }
}

fn sweep(reader: impl Fn() -> Reader, config: SweeperConfig, stopped: &Receiver<()>) {
    let mut waiting_since: Option<Instant> = None;
    let mut deleted_total = 0;
    let mut failed_pause = FAILED_PAUSE;
    loop {
        let patient = waiting_since.is_none_or(|since| since.elapsed() < PATIENCE);
        let limits = SweepLimits { records: config.batch_records, wait_for_views: patient };
        let pause = match reader().sweep(limits) {
            Ok(SweepProgress::Done) => {
                if deleted_total > 0 {
                    tracing::info!(deleted_records = deleted_total, "swept what compactions dropped");
                }
                (waiting_since, deleted_total, failed_pause) = (None, 0, FAILED_PAUSE);
                LOOK_INTERVAL
            }
            Ok(SweepProgress::Waiting { .. }) => {
                waiting_since.get_or_insert_with(Instant::now);
                WAIT_INTERVAL
            }
            Ok(SweepProgress::More { deleted, .. }) => {
                waiting_since = None;
                (deleted_total, failed_pause) = (deleted_total + deleted, FAILED_PAUSE);
                config.pause
            }
            Err(error) => {
                // A database that fails to write fails the next commit too, which ends the process. One that is damaged where
                // nobody else reads would be met for ever.
                let pause = failed_pause;
                failed_pause = (failed_pause * 2).min(FAILED_PAUSE_MAX);
                let again_s = pause.as_secs();
                tracing::error!(%error, again_s, "cannot sweep what compactions dropped; it will be tried again");
                pause
            }
        };
        match stopped.recv_timeout(pause) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
