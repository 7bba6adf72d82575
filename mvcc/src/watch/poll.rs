//! What a stream hands out, and when.
//!
//! The order in which things are looked at is what makes the promises hold: what is ready goes out first, then the logs of
//! marked groups are taken up, then a piece of history is asked for, and only when nothing of this is left does the
//! stream say how far it is: with the revision that the hub had been told of *before* it was found that nothing is left.

use std::sync::Arc;
use std::task::{Context, Poll};

use super::history::{Cursor, History, HistoryRead, Outcome};
use super::signal::News;
use super::stream::{Batch, Delivery, Step, WatchStream};
use super::taken::{PREV_READS_MAX, Selection, Taken};
use super::watcher::{Ids, Notes, Place};

/// Watchers for which a piece of history is read together.
const READ_TOGETHER: usize = 64;

impl WatchStream {
    /// The next thing to do. `Pending` if there is nothing; the waker is called when there is.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        self.come_back();
        let mut marked = Vec::new();
        loop {
            if let Some(delivery) = self.outbox.pop_front() {
                self.hand_out(&delivery);
                return Poll::Ready(Step::Deliver(delivery));
            }
            if let Some(group) = self.todo.pop_front() {
                self.take_up(group);
                continue;
            }
            let told = self.shared.hub.notified();
            match self.signal.look(&mut marked, None) {
                News::Closed => return Poll::Ready(Step::Closed),
                News::Groups(since) => {
                    self.enqueue_marked(&mut marked, since);
                    continue;
                }
                News::None => self.prev_reads_left = PREV_READS_MAX,
            }
            if let Some(history) = self.history() {
                return Poll::Ready(Step::Read(history));
            }
            self.tell_progress(told);
            if !self.outbox.is_empty() {
                continue;
            }
            match self.signal.look(&mut marked, Some(cx.waker())) {
                News::None if self.hub_has_caught_up(told) => {}
                News::None => return Poll::Pending,
                News::Closed => return Poll::Ready(Step::Closed),
                News::Groups(since) => self.enqueue_marked(&mut marked, since),
            }
        }
    }

    /// True if what was taken up has been handed out.
    pub fn is_drained(&self) -> bool {
        self.outbox.is_empty()
    }

    /// Takes what was read from history.
    pub fn absorb(&mut self, read: HistoryRead) {
        self.reading = false;
        for (cursor, outcome) in read.0 {
            let Some(watcher) = self.watchers.get_mut(cursor.id) else { continue };
            if watcher.serial != cursor.serial || watcher.place != Place::Reading {
                continue;
            }
            match outcome {
                Outcome::NotYet => self.fall_behind(cursor.id),
                Outcome::Compacted { compact, current } => {
                    self.cancel(cursor.id);
                    self.post(Delivery::Canceled { id: cursor.id, compact_revision: compact, revision: current });
                }
                Outcome::Failed(error) => {
                    self.fall_behind(cursor.id);
                    self.post(Delivery::Failed(error));
                }
                Outcome::Read { events, next, revision } => {
                    self.progress.advance(cursor.id, watcher, next);
                    let group = watcher.group;
                    if !events.is_empty() {
                        self.give(cursor.id, &Selection::of(events.into()), revision);
                    }
                    let floor = self.group_mut(group).topic.log().floor;
                    if next < floor { self.fall_behind(cursor.id) } else { self.come_level(cursor.id) }
                }
            }
        }
    }

    /// Takes up what a group's log has for its watchers, up to the limits of a batch.
    fn take_up(&mut self, at: u32) {
        let (events_max, bytes_max) = self.batch_limits();
        self.queued.clear(at);
        let Some(Some(group)) = self.groups.get_mut(at as usize) else { return };
        let mut taken = Taken::from(&group.topic, group.cursor, events_max, bytes_max);
        group.cursor = group.cursor.max(taken.last + 1);
        // Put back below: serving them needs the stream, and leaves the group alone.
        let watchers = std::mem::replace(&mut group.watchers, Ids::One(0));
        watchers.iter().for_each(|id| self.serve(id, &mut taken));
        self.group_mut(at).watchers = watchers;
        if taken.more {
            // Whoever else has news goes first. This group is in the list from here on: it is not all that was marked.
            self.queued.set(at);
            let mut marked = Vec::new();
            if let News::Groups(since) = self.signal.look(&mut marked, None) {
                self.enqueue_marked(&mut marked, since);
            }
            self.todo.push_back(at);
        }
    }

    /// Gives one watcher of a group its share of what was taken up.
    fn serve(&mut self, id: i64, taken: &mut Taken) {
        let Some(watcher) = self.watchers.get_mut(id).filter(|watcher| watcher.place == Place::Level) else { return };
        let next = watcher.next.max(taken.cursor);
        if next < taken.floor {
            // From where it is: what was before may be compacted by now, and would have to be gone through.
            self.progress.advance(id, watcher, next);
            return self.fall_behind(id);
        }
        if next > taken.last {
            return;
        }
        let (last, prev_kv) = (taken.last, watcher.prev_kv);
        let selection = taken.select(next, watcher.filters);
        if prev_kv && let Some(first) = selection.events.first() {
            let first = first.revision();
            match selection.find_prevs(&self.shared, &mut self.prev_reads_left) {
                Ok(true) => {}
                Ok(false) => {
                    self.progress.advance(id, watcher, first);
                    return self.fall_behind(id);
                }
                Err(error) => return self.post(Delivery::Failed(error)),
            }
        }
        self.progress.advance(id, watcher, last + 1);
        if !selection.events.is_empty() {
            self.give(id, selection, last);
        }
    }

    fn give(&mut self, id: i64, selection: &Selection, revision: i64) {
        let Some(watcher) = self.watchers.get_mut(id) else { return };
        if watcher.notes != Notes::Unwanted {
            watcher.notes = Notes::Busy;
        }
        let (prev_kv, mark) = (watcher.prev_kv, watcher.mark);
        let (events, bytes) = (Arc::clone(&selection.events), selection.bytes);
        self.post(Delivery::Events(Batch { id, revision, events, prev_kv, mark, bytes }));
    }

    /// A piece of history to read, if some watcher is behind and none is being read.
    fn history(&mut self) -> Option<History> {
        if self.reading {
            return None;
        }
        let mut cursors = Vec::new();
        while cursors.len() < READ_TOGETHER
            && let Some((id, serial)) = self.behind.pop_front()
        {
            let Some(watcher) = self.watchers.get_mut(id) else { continue };
            if watcher.serial != serial || watcher.place != Place::Behind {
                continue;
            }
            watcher.place = Place::Reading;
            let (next, filters, prev_kv, group) = (watcher.next, watcher.filters, watcher.prev_kv, watcher.group);
            let topic = Arc::clone(&self.group_mut(group).topic);
            cursors.push(Cursor { id, serial, next, topic, filters, prev_kv });
        }
        if cursors.is_empty() {
            return None;
        }
        self.reading = true;
        let (events_max, bytes_max) = self.batch_limits();
        let records_max = self.limits.history_records;
        Some(History { shared: Arc::clone(&self.shared), cursors, events_max, bytes_max, records_max })
    }

    /// When much is pending, as little as can be is taken up at a time.
    fn batch_limits(&self) -> (usize, usize) {
        match self.shared.hub.figures.pending_bytes.get() > self.limits.pending_bytes {
            true => (1, 1),
            false => (self.limits.batch_events.max(1), self.limits.batch_bytes.max(1)),
        }
    }

    fn hand_out(&self, delivery: &Delivery) {
        self.discount(delivery);
        if let Delivery::Events(batch) = delivery {
            self.shared.hub.figures.count_events(self.counted(batch.events.len()));
        }
    }
}
