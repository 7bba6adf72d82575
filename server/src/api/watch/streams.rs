//! All watch streams of a server: their number, and what ends them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tally_apply::AlarmKind;
use tally_raftnode::Node;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::crowd::Crowds;
use crate::error::{ApiError, Effect};

/// Watch streams that are open at the same time; further ones are refused.
const STREAMS_MAX: usize = 100_000;
/// Pieces of history that are read at the same time.
const HISTORY_READS_MAX: usize = 4;
/// Time between two looks for the CORRUPT alarm while nothing is delivered.
const ALARM_INTERVAL: Duration = Duration::from_millis(500);
/// For so many election timeouts a stream that wants a leader goes on without one.
const LEADERLESS_ELECTIONS: u32 = 3;

/// What the watch streams of a server share.
pub(crate) struct Watches {
    open: Mutex<BTreeMap<u64, Arc<AtomicWaker>>>,
    next: AtomicU64,
    stopped: AtomicBool,
    leaderless: AtomicBool,
    corrupt: AtomicBool,
    pub(super) history_reads: Arc<Semaphore>,
    pub(super) crowds: Crowds,
    /// Time between two notifications of progress, before the jitter.
    pub(super) progress_interval: Duration,
}

/// A stream's place among all.
pub(crate) struct Place {
    all: Arc<Watches>,
    number: u64,
    waker: Arc<AtomicWaker>,
}

impl Watches {
    /// # Panics
    /// Outside of a runtime; that one is home.
    pub(crate) fn new(progress_interval: Duration) -> Watches {
        Watches {
            open: Mutex::default(),
            next: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            leaderless: AtomicBool::new(false),
            corrupt: AtomicBool::new(false),
            history_reads: Arc::new(Semaphore::new(HISTORY_READS_MAX)),
            crowds: Crowds::here(),
            progress_interval,
        }
    }

    /// Ends every stream, and takes no more.
    pub(crate) fn stop(&self) {
        self.raise(&self.stopped);
    }

    pub(crate) fn admit(self: &Arc<Self>) -> Result<Place, ApiError> {
        let mut open = self.lock();
        if self.stopped.load(Ordering::Acquire) {
            return Err(ApiError::Stopped(Effect::None));
        }
        if open.len() >= STREAMS_MAX {
            return Err(ApiError::TooManyRequests);
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let waker = Arc::new(AtomicWaker::new());
        open.insert(number, Arc::clone(&waker));
        drop(open);
        Ok(Place { all: Arc::clone(self), number, waker })
    }

    fn raise(&self, flag: &AtomicBool) {
        if flag.swap(true, Ordering::AcqRel) {
            return;
        }
        let wakers: Vec<Waker> = self.lock().values().filter_map(|waker| waker.take()).collect();
        wakers.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<AtomicWaker>>> {
        // Every change is one insertion or removal, so a panic leaves the map whole.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Why the stream has to end, if it has to; otherwise `waker` is called when that changes. `is_corrupt` tells whether
    /// there is a CORRUPT alarm now: what is noted of it here may be of before a stream began.
    pub(crate) fn ending(
        &self,
        requires_leader: bool,
        is_corrupt: impl FnOnce() -> bool,
        waker: &Waker,
    ) -> Option<ApiError> {
        self.waker.register(waker);
        // After the registration: whoever raises a flag wakes afterwards.
        let raised = |flag: &AtomicBool| flag.load(Ordering::Acquire);
        if raised(&self.all.stopped) {
            Some(ApiError::Stopped(Effect::None))
        } else if raised(&self.all.corrupt) && is_corrupt() {
            Some(ApiError::CorruptCluster)
        } else if requires_leader && raised(&self.all.leaderless) {
            Some(ApiError::NoLeader)
        } else {
            None
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.all.lock().remove(&self.number);
    }
}

/// Looks for what ends streams, for ever: a CORRUPT alarm, and no leader for three election timeouts.
pub(crate) async fn monitor(watches: Arc<Watches>, node: Node, election: Duration) {
    let mut status = node.status();
    let mut lost: Option<Instant> = None;
    loop {
        match node.is_alarmed(AlarmKind::Corrupt) {
            true => watches.raise(&watches.corrupt),
            false => watches.corrupt.store(false, Ordering::Release),
        }
        if status.borrow_and_update().leader.is_some() {
            lost = None;
            watches.leaderless.store(false, Ordering::Release);
        } else {
            let since = *lost.get_or_insert_with(Instant::now);
            if since.elapsed() >= election * LEADERLESS_ELECTIONS {
                watches.raise(&watches.leaderless);
            }
        }
        let again = Instant::now() + ALARM_INTERVAL;
        let given_up = lost.map(|since| since + election * LEADERLESS_ELECTIONS).filter(|at| *at > Instant::now());
        match timeout_at(given_up.map_or(again, |at| at.min(again)), status.changed()).await {
            Ok(Ok(())) | Err(_) => {}
            // The node is gone, and the server with it.
            Ok(Err(_)) => return,
        }
    }
}
