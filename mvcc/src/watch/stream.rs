//! A stream: many watchers with one reader, who polls.

use std::collections::VecDeque;
use std::sync::Arc;

use super::aside::Substitute;
use super::event::Event;
use super::hub::{Subscribed, key_bytes};
use super::progress::Progress;
use super::roster::Roster;
use super::signal::{Bits, Signal};
use super::spec::{CreateError, WatchLimits, WatchSpec};
use super::taken::PREV_READS_MAX;
use super::topic::Topic;
use super::watcher::{Group, Ids, Notes, Place, Watcher};
use crate::error::ReadError;
use crate::shared::Shared;
use crate::view::Reader;

/// Requests for progress that may wait for their answers; all would be answered with the same. A client that asks and asks
/// while its watchers read history would have the answers take any amount of memory.
pub const PROGRESS_REQUESTS_MAX: u32 = 64;

/// Watchers that share one way to their client. Drop it to end them all.
///
/// Call [`poll_next`](WatchStream::poll_next) whenever there is room for what it gives; do what its [`Step`]s say.
pub struct WatchStream {
    pub(super) shared: Arc<Shared>,
    pub(super) signal: Arc<Signal>,
    pub(super) limits: WatchLimits,
    pub(super) watchers: Roster<Watcher>,
    pub(super) groups: Vec<Option<Group>>,
    free: Vec<u32>,
    /// Of the keys of all groups.
    key_bytes: u64,
    next_id: i64,
    next_serial: u32,
    /// Groups that may have news, each once.
    pub(super) todo: VecDeque<u32>,
    /// Whether a group is in `todo`.
    pub(super) queued: Bits,
    /// Watchers that must read history, by id and serial; some of them may be gone.
    pub(super) behind: VecDeque<(i64, u32)>,
    /// Watchers that are not level.
    pub(super) lagging: usize,
    /// A piece of history is out.
    pub(super) reading: bool,
    pub(super) outbox: VecDeque<Delivery>,
    pub(super) progress: Progress,
    pub(super) tick_due: bool,
    /// Previous records that may still be read from the store by whoever polls.
    pub(super) prev_reads_left: u16,
    /// Who hands the changes on while the stream is aside.
    pub(super) substitute: Option<Arc<dyn Substitute>>,
}

/// What to do next.
#[derive(Debug)]
pub enum Step {
    /// Hand this on.
    Deliver(Delivery),
    /// Call [`History::read`](super::History::read) where it may block, and give the result to [`WatchStream::absorb`].
    /// Meanwhile go on polling.
    Read(super::History),
    /// The store is written no more: it was replaced, or stopped. [`WatchStream::attach`] the stream to the one in force,
    /// or drop it. Until then nothing else comes.
    Closed,
}

/// Tells a store from the one that replaces it, as long as something is attached to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StoreId(usize);

impl StoreId {
    fn of(shared: &Arc<Shared>) -> StoreId {
        StoreId(Arc::as_ptr(shared).addr())
    }
}

/// Something for the client.
#[derive(Debug)]
pub enum Delivery {
    /// Changes.
    Events(Batch),
    /// Every change up to `revision` has been delivered.
    Progress {
        /// The watcher that this is said of; `None` is all of the stream.
        id: Option<i64>,
        /// How far.
        revision: i64,
    },
    /// What the watcher needed next has been compacted. It is gone.
    Canceled {
        /// The watcher.
        id: i64,
        /// The oldest revision that can still be had.
        compact_revision: i64,
        /// The current revision.
        revision: i64,
    },
    /// The store could not be read: the stream cannot keep its promises any more. If it is corrupt, stop the process.
    Failed(ReadError),
}

/// Changes for one watcher: all that it wants of one revision, or of several. Never empty.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The watcher.
    pub id: i64,
    /// Every change up to this revision has been delivered with this batch.
    pub revision: i64,
    /// The changes, in order. Shared by the watchers of a stream that get the same.
    pub events: Arc<[Arc<Event>]>,
    /// The watcher asked for what its keys had before.
    pub prev_kv: bool,
    /// [`WatchSpec::mark`].
    pub mark: bool,
    pub(super) bytes: u64,
}

/// A watcher that was created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Created {
    /// Its id.
    pub id: i64,
    /// The current revision. A watcher from now on sees every revision after it.
    pub revision: i64,
}

impl Reader {
    /// A stream without watchers.
    pub fn watch_stream(&self, limits: WatchLimits) -> WatchStream {
        self.stream(limits, true)
    }

    pub(super) fn stream(&self, limits: WatchLimits, is_counted: bool) -> WatchStream {
        let (signal, _) = self.shared.hub.join(is_counted);
        WatchStream {
            shared: Arc::clone(&self.shared),
            signal,
            limits,
            watchers: Roster::new(),
            groups: Vec::new(),
            free: Vec::new(),
            key_bytes: 0,
            next_id: 0,
            next_serial: 0,
            todo: VecDeque::new(),
            queued: Bits::default(),
            behind: VecDeque::new(),
            lagging: 0,
            reading: false,
            outbox: VecDeque::new(),
            progress: Progress::default(),
            tick_due: false,
            prev_reads_left: PREV_READS_MAX,
            substitute: None,
        }
    }

    /// What watching counted since the store was opened.
    pub fn watch_figures(&self) -> &super::WatchFigures {
        &self.shared.hub.figures
    }
}

impl WatchStream {
    /// Adds a watcher. O(log n); the past that it may want is read later.
    ///
    /// # Errors
    /// [`CreateError`]; the stream and its other watchers are as before.
    pub fn create(&mut self, spec: WatchSpec) -> Result<Created, CreateError> {
        self.come_back();
        if spec.start < 0 {
            return Err(CreateError::BadStart(spec.start));
        }
        if spec.range.is_empty() {
            return Err(CreateError::EmptyRange);
        }
        if self.watchers.len() >= self.limits.watchers_max {
            return Err(CreateError::TooMany { max: self.limits.watchers_max });
        }
        if spec.id != 0 && self.watchers.contains(spec.id) {
            return Err(CreateError::DuplicateId(spec.id));
        }
        let offered = self.free.last().copied().unwrap_or(self.groups.len() as u32);
        let Subscribed { topic, group, .. } = self.shared.hub.subscribe(&spec.range, &self.signal, offered);
        if group == offered
            && let Some(max) = self.key_bytes_limit(&topic)
        {
            self.shared.hub.unsubscribe(&topic, &self.signal);
            return Err(CreateError::TooMany { max });
        }
        let id = if spec.id == 0 { self.free_id() } else { spec.id };
        // After the subscription: what is published from here on is in the log.
        let revision = self.shared.published.load().revision;
        let next = if spec.start == 0 { revision + 1 } else { spec.start };
        let serial = self.next_serial;
        self.next_serial = serial.wrapping_add(1);
        if group == offered {
            self.add_group(group, Group { topic, watchers: Ids::One(id), cursor: next });
        } else {
            self.group_mut(group).watchers.add(id);
        }
        let watcher = Watcher {
            next,
            serial,
            group,
            place: Place::Level,
            filters: spec.filters,
            prev_kv: spec.prev_kv,
            mark: spec.mark,
            notes: if spec.progress_notify { Notes::Quiet } else { Notes::Unwanted },
            early: spec.start > 0,
        };
        self.progress.begin(&watcher);
        self.watchers.insert(id, watcher);
        self.shared.hub.figures.watchers.add(self.counted(1));
        self.take_progress_back();
        // The past is read from history even if a log still has it: what is compacted is compacted, whoever else watches.
        if next <= revision {
            self.fall_behind(id);
        } else {
            self.come_level(id);
        }
        Ok(Created { id, revision })
    }

    /// Ends a watcher; false if there is none with this id. Nothing more comes for it. O(log n), and what is to be handed out.
    pub fn cancel(&mut self, id: i64) -> bool {
        self.come_back();
        let Some(watcher) = self.watchers.remove(id) else { return false };
        self.progress.end(id, &watcher);
        let figures = &self.shared.hub.figures;
        figures.watchers.sub(self.counted(1));
        if watcher.place != Place::Level {
            self.lagging -= 1;
            figures.slow.sub(self.counted(1));
        }
        let group = self.group_mut(watcher.group);
        if group.watchers.remove(id) {
            let topic = Arc::clone(&group.topic);
            self.key_bytes -= key_bytes(&topic);
            self.shared.hub.unsubscribe(&topic, &self.signal);
            self.groups[watcher.group as usize] = None;
            self.free.push(watcher.group);
            self.todo.retain(|one| *one != watcher.group);
            self.queued.clear(watcher.group);
        }
        let mut outbox = std::mem::take(&mut self.outbox);
        outbox.retain(|delivery| {
            let of_this = match delivery {
                Delivery::Events(batch) => batch.id == id,
                Delivery::Progress { id: told, .. } => *told == Some(id),
                Delivery::Canceled { .. } | Delivery::Failed(_) => false,
            };
            if of_this {
                self.discount(delivery);
            }
            !of_this
        });
        self.outbox = outbox;
        true
    }

    /// Asks how far the stream is: answered once for each call, when all watchers are level and everything before has been
    /// delivered. Not answered if there is no watcher, or one that waits for a revision that is not there yet; and of many
    /// that wait for their answer, only [`PROGRESS_REQUESTS_MAX`] get one each. The answer costs O(log n).
    pub fn request_progress(&mut self) {
        self.progress.request(1);
    }

    /// Says that a notify interval is over. Watchers that asked for it, had no event since the last one and are level are
    /// told how far they are. O(watchers).
    pub fn tick(&mut self) {
        for (_, watcher) in self.watchers.iter_mut() {
            watcher.notes = match watcher.notes {
                Notes::Unwanted => Notes::Unwanted,
                Notes::Busy => Notes::Quiet,
                Notes::Quiet | Notes::Due => Notes::Due,
            };
            self.tick_due |= watcher.notes == Notes::Due;
        }
    }

    /// The current revision of the store that the stream is attached to.
    pub fn revision(&self) -> i64 {
        self.shared.published.load().revision
    }

    /// Which store the stream is attached to.
    pub fn store(&self) -> StoreId {
        StoreId::of(&self.shared)
    }

    /// How many watchers there are.
    pub fn watchers(&self) -> usize {
        self.watchers.len()
    }

    /// True if some watcher asked for progress notifications.
    pub fn wants_ticks(&self) -> bool {
        self.watchers.values().any(|watcher| watcher.notes != Notes::Unwanted)
    }

    /// Goes on with another store, each watcher from its next revision: what it has seen does not come again, even if the
    /// other store is not as far. False, and nothing changed, if that one is closed too.
    pub fn attach(&mut self, reader: &Reader) -> bool {
        let (signal, is_open) = reader.shared.hub.join(self.signal.is_counted());
        if !is_open {
            return false;
        }
        self.come_back();
        self.settle();
        self.detach();
        (self.shared, self.signal) = (Arc::clone(&reader.shared), signal);
        let figures = &self.shared.hub.figures;
        figures.watchers.add(self.counted(self.watchers.len()));
        self.outbox.iter().for_each(|delivery| count(figures, delivery));
        (self.todo, self.queued, self.behind) = (VecDeque::new(), Bits::default(), VecDeque::new());
        let reading = self.watchers.values().filter(|watcher| watcher.place == Place::Reading).count();
        self.lagging = reading;
        figures.slow.add(self.counted(reading));
        for at in 0..self.groups.len() {
            let Some(group) = &mut self.groups[at] else { continue };
            let sub = self.shared.hub.subscribe(&group.topic.range(), &self.signal, at as u32);
            (group.topic, group.cursor) = (sub.topic, i64::MAX);
            for id in group.watchers.iter().collect::<Vec<_>>() {
                let watcher = self.watchers.get_mut(id).expect("a group's watchers exist");
                if watcher.place != Place::Reading {
                    watcher.place = Place::Level;
                    let next = watcher.next;
                    if next < sub.floor { self.fall_behind(id) } else { self.come_level(id) }
                }
            }
        }
        true
    }

    /// Moves the cursors of level watchers up to the first event that waits for them, or to what the hub was told of.
    /// Otherwise a watcher of quiet keys would have to read all history since it was created, or find it compacted.
    fn settle(&mut self) {
        let told = self.shared.hub.notified();
        let mut marked = Vec::new();
        if let Some(since) = self.signal.unmark(&mut marked) {
            self.enqueue_marked(&mut marked, since);
        }
        for (at, group) in (0..).zip(&self.groups) {
            let Some(group) = group else { continue };
            let waits = self.queued.has(at).then(|| group.topic.log().first_from(group.cursor)).flatten();
            let next = waits.unwrap_or(told + 1);
            for id in group.watchers.iter() {
                if let Some(watcher) = self.watchers.get_mut(id).filter(|watcher| watcher.place == Place::Level) {
                    self.progress.advance(id, watcher, next);
                }
            }
        }
    }

    /// What was to be said of all watchers has not been said yet, and is not true of the one that is new.
    fn take_progress_back(&mut self) {
        let before = self.outbox.len();
        self.outbox.retain(|delivery| !matches!(delivery, Delivery::Progress { id: None, .. }));
        let taken_back = u32::try_from(before - self.outbox.len()).unwrap_or(u32::MAX);
        self.progress.request(taken_back);
    }

    fn free_id(&mut self) -> i64 {
        while self.watchers.contains(self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }

    /// The limit that is passed with one more topic, which has been subscribed to: that of the stream, or that of all.
    fn key_bytes_limit(&self, topic: &Topic) -> Option<usize> {
        let WatchLimits { key_bytes_max, all_key_bytes_max, .. } = self.limits;
        if self.key_bytes + key_bytes(topic) > key_bytes_max as u64 {
            return Some(key_bytes_max);
        }
        (self.shared.hub.figures.key_bytes() > all_key_bytes_max as u64).then_some(all_key_bytes_max)
    }

    fn add_group(&mut self, at: u32, group: Group) {
        self.key_bytes += key_bytes(&group.topic);
        match self.free.pop() {
            Some(free) => self.groups[free as usize] = Some(group),
            None => {
                // Most streams have one group.
                self.groups.reserve_exact(usize::from(self.groups.is_empty()));
                self.groups.push(Some(group));
            }
        }
        debug_assert!(self.groups[at as usize].is_some(), "the group is where the hub was told");
    }

    pub(super) fn group_mut(&mut self, group: u32) -> &mut Group {
        self.groups[group as usize].as_mut().expect("a watcher's group exists")
    }

    /// The watcher has to read history.
    pub(super) fn fall_behind(&mut self, id: i64) {
        let Some(watcher) = self.watchers.get_mut(id) else { return };
        if watcher.place == Place::Level {
            self.lagging += 1;
            self.shared.hub.figures.slow.add(u64::from(self.signal.is_counted()));
        }
        watcher.place = Place::Behind;
        self.behind.push_back((id, watcher.serial));
    }

    /// The watcher goes on with its topic's log.
    pub(super) fn come_level(&mut self, id: i64) {
        let Some(watcher) = self.watchers.get_mut(id) else { return };
        if watcher.place != Place::Level {
            self.lagging -= 1;
            self.shared.hub.figures.slow.sub(u64::from(self.signal.is_counted()));
        }
        watcher.place = Place::Level;
        self.progress.join(id, watcher);
        let (group, next) = (watcher.group, watcher.next);
        let one = self.group_mut(group);
        one.cursor = one.cursor.min(next);
        self.enqueue(group);
    }

    pub(super) fn enqueue(&mut self, group: u32) {
        if self.groups.get(group as usize).is_some_and(Option::is_some) && self.queued.set(group) {
            self.todo.push_back(group);
        }
    }

    /// Takes up groups that were marked, with news from revision `since` on.
    pub(super) fn enqueue_marked(&mut self, marked: &mut Vec<u32>, since: i64) {
        for at in marked.drain(..) {
            let Some(Some(group)) = self.groups.get_mut(at as usize) else { continue };
            if self.queued.set(at) {
                self.todo.push_back(at);
                // Nothing was left, so what is new is all there is.
                group.cursor = group.cursor.max(since);
            }
        }
    }

    /// Puts something into the outbox.
    pub(super) fn post(&mut self, delivery: Delivery) {
        count(&self.shared.hub.figures, &delivery);
        self.outbox.push_back(delivery);
    }

    /// Takes something out of the figures of what is pending.
    pub(super) fn discount(&self, delivery: &Delivery) {
        if let Delivery::Events(batch) = delivery {
            let figures = &self.shared.hub.figures;
            figures.pending_events.sub(batch.events.len() as u64);
            figures.pending_bytes.sub(batch.bytes);
        }
    }

    /// What so many are in the figures.
    pub(super) fn counted(&self, count: usize) -> u64 {
        if self.signal.is_counted() { count as u64 } else { 0 }
    }

    /// Leaves the hub, and its figures.
    fn detach(&mut self) {
        let hub = &self.shared.hub;
        for group in self.groups.iter().flatten() {
            hub.unsubscribe(&group.topic, &self.signal);
        }
        self.outbox.iter().for_each(|delivery| self.discount(delivery));
        hub.figures.watchers.sub(self.counted(self.watchers.len()));
        hub.figures.slow.sub(self.counted(self.lagging));
        hub.leave(&self.signal);
    }
}

fn count(figures: &super::WatchFigures, delivery: &Delivery) {
    if let Delivery::Events(batch) = delivery {
        figures.pending_events.add(batch.events.len() as u64);
        figures.pending_bytes.add(batch.bytes);
    }
}

impl Drop for WatchStream {
    fn drop(&mut self) {
        self.come_back();
        self.detach();
    }
}

impl std::fmt::Debug for WatchStream {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("WatchStream")
            .field("watchers", &self.watchers.len())
            .field("lagging", &self.lagging)
            .field("pending", &self.outbox.len())
            .finish_non_exhaustive()
    }
}
