//! Streams that step aside while somebody else hands their changes on.
//!
//! What very many streams wait for with one watcher each is the same for all of them. To wake each, and to find out anew
//! with each what there is, takes longer than to send it. So a stream that has nothing to do but to wait may step aside:
//! another stream with the same watcher ([`Reader::relay`]) takes its place in the topic, and a [`Substitute`] remembers how
//! far its client is.
//!
//! **Invariant**: a stream that is aside is at rest: of its only watcher's range, everything before the revision that the
//! substitute began with has been handed out, and everything from there on is left to the substitute.
//! **Invariant**: it comes back before anything is done with it that depends on where it is. So nobody else has to know that
//! it is aside.

use std::sync::Arc;

use super::spec::{WatchLimits, WatchSpec};
use super::stream::WatchStream;
use super::topic::Subscriber;
use super::watcher::Notes;
use crate::view::Reader;

/// Hands changes on to the client of a stream that is aside.
pub trait Substitute: Send + Sync {
    /// Ends that, as the stream comes back. Returns the revision where it goes on: every change before it has been handed on, and
    /// none from it on has been or will be. Called once.
    fn recall(&self) -> i64;
}

impl Reader {
    /// A stream whose changes are handed on to the clients of streams that are aside. Those are counted among the streams,
    /// watchers and events, and this one is not: see [`WatchStream::count_handed_on`].
    pub fn relay(&self, limits: WatchLimits) -> WatchStream {
        self.stream(limits, false)
    }
}

impl WatchStream {
    /// Steps aside, if it has nothing to do but to wait for changes of the range of its only watcher, for which `streams_min`
    /// streams wait at least, and if `find` finds a substitute that begins with the revision [`WatchSpec::start`]. True if it
    /// has; then the waker of the last poll is called only when the store is closed. If not, it goes on as before.
    pub fn step_aside(
        &mut self,
        streams_min: usize,
        find: impl FnOnce(WatchSpec) -> Option<Arc<dyn Substitute>>,
    ) -> bool {
        let is_at_rest = self.outbox.is_empty() && self.todo.is_empty() && self.lagging == 0 && !self.tick_due;
        if self.substitute.is_some() || !is_at_rest || self.progress.is_asked() || self.watchers.len() != 1 {
            return false;
        }
        let Some((id, watcher)) = self.watchers.iter().next() else { return false };
        if watcher.early || watcher.notes != Notes::Unwanted {
            return false;
        }
        let (filters, prev_kv, mark) = (watcher.filters, watcher.prev_kv, watcher.mark);
        let Some(Some(group)) = self.groups.get(watcher.group as usize) else { return false };
        let (topic, next) = (Arc::clone(&group.topic), watcher.next.max(group.cursor));
        let Some(told) = topic.step_aside(&self.shared.hub, &self.signal, streams_min) else { return false };
        // It may have been given what the hub is about to say that it has told: from history, or from the log.
        let start = told.max(next);
        let spec = WatchSpec { range: topic.range(), start, id, filters, prev_kv, progress_notify: false, mark };
        self.substitute = find(spec);
        if self.substitute.is_some() {
            self.shared.hub.figures.aside.add(1);
            return true;
        }
        // What came in between has woken nobody.
        if self.go_on_from(start)
            && let Some(waker) = self.signal.ring()
        {
            waker.wake();
        }
        false
    }

    /// Comes back if it is aside. Its next poll gives what there is since.
    pub fn come_back(&mut self) {
        if let Some(substitute) = self.substitute.take() {
            self.shared.hub.figures.aside.sub(1);
            self.go_on_from(substitute.recall());
        }
    }

    /// Notes that events of a batch of this stream, a relay, have been handed on: once for each event and client.
    pub fn count_handed_on(&self, events: u64) {
        self.shared.hub.figures.count_events(events);
    }

    /// Hears of its range again. True if there is something for it already.
    fn go_on_from(&mut self, next: i64) -> bool {
        let Some((id, watcher)) = self.watchers.iter_mut().next() else { return false };
        let at = watcher.group;
        self.progress.advance(id, watcher, next);
        let group = self.groups[at as usize].as_mut().expect("a watcher's group exists");
        group.cursor = next;
        let subscriber = Subscriber { signal: Arc::clone(&self.signal), group: at };
        let (floor, is_due) = group.topic.come_back(subscriber, next);
        if next < floor {
            self.fall_behind(id)
        } else {
            self.come_level(id)
        }
        is_due
    }
}
