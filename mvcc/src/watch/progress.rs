//! How far a stream may say that all its watchers are.
//!
//! Clients may ask for it at any time, thousands of times in one packet, and a stream may have very many watchers: so
//! neither an answer nor a refusal looks at each. What all of them have is known without: whoever is level has been given
//! everything that the hub was told of once nothing is left to take up. It remains who would hear of less than it has
//! seen, or of less than it waits for.
//!
//! **Invariant**: a revision that is told of all is never below one that some watcher has seen or was told of, nor below
//! the start of one that waits.

use std::collections::BTreeSet;

use super::stream::{Delivery, PROGRESS_REQUESTS_MAX, WatchStream};
use super::watcher::{Notes, Place, Watcher};

/// Requests for progress, and what their answers depend on.
#[derive(Default)]
pub(super) struct Progress {
    /// Requests that wait.
    requests: u32,
    /// The greatest revision that a watcher has seen, or was told of.
    seen: i64,
    /// Start and id of each level watcher whose start has not come, as far as is known. In a box, as few streams have any.
    #[expect(clippy::box_collection, reason = "most streams have none, and there may be 100,000 of them")]
    waiting: Option<Box<BTreeSet<(i64, i64)>>>,
}

impl Progress {
    pub(super) fn request(&mut self, more: u32) {
        self.requests = self.requests.saturating_add(more).min(PROGRESS_REQUESTS_MAX);
    }

    /// Whether requests wait for their answers.
    pub(super) fn is_asked(&self) -> bool {
        self.requests > 0
    }

    /// A watcher is created; `next` has been set.
    pub(super) fn begin(&mut self, watcher: &Watcher) {
        if !watcher.early {
            self.seen = self.seen.max(watcher.next - 1);
        }
    }

    /// A watcher is level from here on.
    pub(super) fn join(&mut self, id: i64, watcher: &Watcher) {
        if watcher.early {
            self.waiting.get_or_insert_default().insert((watcher.next, id));
        }
    }

    /// A watcher is gone.
    pub(super) fn end(&mut self, id: i64, watcher: &Watcher) {
        if watcher.early
            && let Some(waiting) = &mut self.waiting
        {
            waiting.remove(&(watcher.next, id));
            if waiting.is_empty() {
                self.waiting = None;
            }
        }
    }

    /// Everything before `next` has been given to the watcher, or is not wanted.
    pub(super) fn advance(&mut self, id: i64, watcher: &mut Watcher, next: i64) {
        if next > watcher.next {
            self.end(id, watcher);
            watcher.next = next;
            watcher.early = false;
            self.seen = self.seen.max(next - 1);
        }
    }

    /// Whether some watcher waits for a revision beyond this one. O(log n).
    fn is_waited_for(&self, revision: i64) -> bool {
        self.waiting.as_ref().and_then(|waiting| waiting.last()).is_some_and(|(start, _)| *start > revision)
    }
}

impl WatchStream {
    /// Answers those who want to know how far they are. Nothing is left to hand out up to `told`, but to those who read
    /// history. Whoever is told goes on from there, also with a store that is not as far: what was said is never taken back.
    pub(super) fn tell_progress(&mut self, told: i64) {
        if std::mem::take(&mut self.tick_due) {
            let mut due = Vec::new();
            for (id, watcher) in self.watchers.iter_mut() {
                if watcher.notes != Notes::Due {
                    continue;
                }
                watcher.notes = Notes::Quiet;
                if watcher.place == Place::Level && watcher.may_be_told(told) {
                    self.progress.advance(id, watcher, told + 1);
                    due.push(id);
                }
            }
            due.into_iter().for_each(|id| self.post(Delivery::Progress { id: Some(id), revision: told }));
        }
        if self.progress.requests == 0 || self.lagging > 0 || self.sees_more_than(told) {
            return;
        }
        let requests = std::mem::take(&mut self.progress.requests);
        if !self.watchers.is_empty() && !self.progress.is_waited_for(told) {
            self.progress.seen = told;
            (0..requests).for_each(|_| self.post(Delivery::Progress { id: None, revision: told }));
        }
    }

    /// Whether somebody has seen more than the hub was told of: history shows a revision a moment before its events are in
    /// the logs, and a store that replaces another one may not be as far.
    fn sees_more_than(&self, told: i64) -> bool {
        !self.watchers.is_empty() && self.progress.seen > told
    }

    /// Whether requests are left only because the hub has got so far since it was found to be at `told`; if they have to
    /// wait for that, it will wake this stream, which no event may do.
    pub(super) fn hub_has_caught_up(&self, told: i64) -> bool {
        let waits = self.progress.requests > 0 && self.lagging == 0 && self.sees_more_than(told);
        waits && self.shared.hub.wakes_at(self.progress.seen, &self.signal)
    }
}
