//! What is remembered of a peer as long as the process lives.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::control::Control;
use super::observer::{NetworkEvent, NetworkObserver};

/// Pause after the first attempt to connect that failed; doubled by each further one.
const RETRY_MIN: Duration = Duration::from_millis(20);
/// The longest pause: a peer that has come back is found after that.
const RETRY_MAX: Duration = Duration::from_millis(500);

/// One peer.
pub(super) struct Peer {
    pub(super) id: u64,
    /// The calls to it.
    pub(super) control: Control,
    observer: Option<Arc<dyn NetworkObserver>>,
    state: Mutex<State>,
    /// The pause is over: the peer has shown that it is there.
    retry: Notify,
    /// Entries up to here are in its log for ever, as it has told.
    kept: AtomicU64,
    /// It is not sent entries up to here any more.
    floor: AtomicU64,
    channels: AtomicUsize,
}

#[derive(Default)]
struct State {
    urls: Vec<String>,
    /// Which of the URLs to try first.
    first: usize,
    pause: Duration,
    not_before: Option<Instant>,
    last_contact: Option<Instant>,
    /// The start id of the process that speaks for it.
    process: Option<u64>,
}

impl Peer {
    pub(super) fn new(id: u64, observer: Option<Arc<dyn NetworkObserver>>) -> Peer {
        Peer {
            id,
            control: Control::default(),
            observer,
            state: Mutex::default(),
            retry: Notify::new(),
            kept: AtomicU64::new(0),
            floor: AtomicU64::new(0),
            channels: AtomicUsize::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_urls(&self, urls: &[String]) {
        let mut state = self.lock();
        if state.urls != urls {
            state.urls = urls.to_vec();
            state.first = 0;
            drop(state);
            self.is_there();
        }
    }

    /// Where it is reached, the one that worked last in front.
    pub(super) fn urls(&self) -> Vec<String> {
        let state = self.lock();
        let mut urls = state.urls.clone();
        if !urls.is_empty() {
            urls.rotate_left(state.first % state.urls.len());
        }
        urls
    }

    /// Waits until it may be tried to connect again.
    pub(super) async fn pause(&self) {
        loop {
            let retry = self.retry.notified();
            tokio::pin!(retry);
            retry.as_mut().enable();
            let Some(until) = self.lock().not_before.filter(|until| *until > Instant::now()) else { return };
            tokio::select! {
                () = tokio::time::sleep_until(until.into()) => return,
                () = retry => {}
            }
        }
    }

    /// An attempt to connect has failed.
    pub(super) fn failed(&self) {
        let mut state = self.lock();
        let now = Instant::now();
        // Channels that are tried at the same time fail at the same time, and that counts once.
        if state.not_before.is_none_or(|until| until <= now) {
            state.pause = (state.pause * 2).clamp(RETRY_MIN, RETRY_MAX);
            state.not_before = Some(now + state.pause);
        }
        state.first = state.first.wrapping_add(1);
        drop(state);
        self.observe(NetworkEvent::SendFailed { to: self.id });
    }

    /// It is reached, or has spoken by itself: whoever waits to try again need not wait longer.
    pub(super) fn is_there(&self) {
        let mut state = self.lock();
        state.pause = Duration::ZERO;
        if state.not_before.take().is_some() {
            drop(state);
            self.retry.notify_waiters();
        }
    }

    /// Counts a frame from it.
    pub(super) fn heard(&self, bytes: u64) {
        self.lock().last_contact = Some(Instant::now());
        self.observe(NetworkEvent::Received { from: self.id, bytes });
    }

    pub(super) fn last_contact(&self) -> Option<Instant> {
        self.lock().last_contact
    }

    /// Whether this is the process that speaks for it.
    pub(super) fn is_process(&self, start_id: u64) -> bool {
        self.lock().process == Some(start_id)
    }

    /// Whether this process may speak for it: not while another one has spoken for it within `window`. Two processes with
    /// copies of one data directory would vote twice in one term.
    pub(super) fn admits(&self, start_id: u64, window: Duration) -> bool {
        let mut state = self.lock();
        let another = state.process.is_some_and(|known| known != start_id);
        if another && state.last_contact.is_some_and(|at| at.elapsed() < window) {
            return false;
        }
        state.process = Some(start_id);
        true
    }

    /// Remembers that its log holds, durably, committed entries up to `index`.
    pub(super) fn keeps(&self, index: u64) {
        self.kept.fetch_max(index, Ordering::AcqRel);
    }

    /// Up to where its log can never lack an entry again.
    pub(super) fn kept(&self) -> u64 {
        self.kept.load(Ordering::Acquire)
    }

    pub(super) fn give_up_below(&self, floor: u64) {
        self.floor.fetch_max(floor, Ordering::AcqRel);
    }

    /// Whether a stream must not go on that has got so far: what it would send next is to be purged.
    pub(super) fn is_given_up_at(&self, matched: u64) -> bool {
        matched < self.floor.load(Ordering::Acquire)
    }

    /// A channel to it has been opened.
    pub(super) fn connected(&self) {
        if self.channels.fetch_add(1, Ordering::AcqRel) == 0 {
            self.observe(NetworkEvent::Connected { to: self.id });
        }
    }

    /// Whether there is a channel to it.
    pub(super) fn is_connected(&self) -> bool {
        self.channels.load(Ordering::Acquire) > 0
    }

    /// A channel to it has been closed.
    pub(super) fn disconnected(&self) {
        if self.channels.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.observe(NetworkEvent::Disconnected { to: self.id });
        }
    }

    pub(super) fn observe(&self, event: NetworkEvent) {
        if let Some(observer) = &self.observer {
            observer.observe(event);
        }
    }
}
