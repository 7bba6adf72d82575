//! The hub: from published records to the topics they touch, and to the streams that watch those.
//!
//! Locks are taken in the order hub, topic, signal, and wakers are called under none of them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Waker;

use super::event::Event;
use super::figures::WatchFigures;
use super::intervals::Intervals;
use super::signal::Signal;
use super::topic::{ByKey, End, Subscriber, Topic};
use crate::index::Revision;
use crate::keyrange::KeyRange;
use crate::record::Record;
use crate::shared::lock;

/// What the logs of all topics keep together: a stream that is polled less often than this many events pass reads history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// Events, once for each topic that they touch.
    pub(crate) events: usize,
    /// What they may take in memory, encodings included.
    pub(crate) bytes: usize,
}

/// The watch hub of one store.
pub(crate) struct Hub {
    index: Mutex<Index>,
    /// Every event up to this revision stands in the log of its topics.
    notified: AtomicI64,
    window: Window,
    pub(super) figures: WatchFigures,
}

struct Index {
    exact: BTreeSet<ByKey>,
    ranges: Intervals,
    /// What the logs keep, in the order it was published.
    kept: VecDeque<Kept>,
    kept_events: usize,
    kept_bytes: usize,
    /// Every attached stream, by a number of its own.
    streams: BTreeMap<i64, Arc<Signal>>,
    next_stream: i64,
    /// Streams to be woken by the next publication whatever it touches.
    behind: BTreeSet<i64>,
    closed: bool,
    /// Kept to be used again.
    touched: Vec<Touched>,
}

/// What one publication put into one topic: whole revisions.
struct Kept {
    topic: Arc<Topic>,
    events: usize,
    bytes: usize,
}

/// A topic that a publication touches.
struct Touched {
    topic: Arc<Topic>,
    events: Vec<Arc<Event>>,
}

/// A stream's share in a topic.
pub(super) struct Subscribed {
    pub(super) topic: Arc<Topic>,
    /// The stream's group for the topic: the one offered, unless it had one already.
    pub(super) group: u32,
    pub(super) floor: i64,
}

/// Bytes of the keys that a topic keeps.
pub(super) fn key_bytes(topic: &Topic) -> u64 {
    let end = match topic.end() {
        End::Before(end) => end.len(),
        End::Single | End::Unbounded => 0,
    };
    (topic.start().len() + end) as u64
}

impl Hub {
    pub(crate) fn new(revision: i64, window: Window) -> Hub {
        let index = Index {
            exact: BTreeSet::new(),
            ranges: Intervals::new(),
            kept: VecDeque::new(),
            kept_events: 0,
            kept_bytes: 0,
            streams: BTreeMap::new(),
            next_stream: 0,
            behind: BTreeSet::new(),
            closed: false,
            touched: Vec::new(),
        };
        Hub { index: Mutex::new(index), notified: AtomicI64::new(revision), window, figures: WatchFigures::default() }
    }

    /// Every event up to this revision has been put where its watchers find it.
    pub(super) fn notified(&self) -> i64 {
        self.notified.load(Ordering::Acquire)
    }

    /// Wakes a stream when the hub has got further, unless it is at `revision` already: then true.
    pub(super) fn wakes_at(&self, revision: i64, signal: &Signal) -> bool {
        let mut index = lock(&self.index);
        let is_there = self.notified() >= revision;
        if !is_there {
            index.behind.insert(signal.number());
        }
        is_there
    }

    /// Tells watchers of what was just published: `staged`, in order, up to `revision`.
    pub(crate) fn publish(&self, staged: &[(Revision, Record)], revision: i64) {
        let mut wakers = Vec::new();
        // One revision that the window has no room for, such as the deletion of very many keys.
        let vast = staged
            .get(self.window.events..)
            .is_some_and(|later| staged.iter().zip(later).any(|((first, _), (later, _))| first.main() == later.main()));
        {
            let mut index = lock(&self.index);
            if vast && let Some((first, _)) = staged.first() {
                index.pass_over(staged, first.main(), revision, &mut wakers);
            } else if !index.is_idle() {
                index.distribute(staged);
                index.deliver(&mut wakers);
                index.trim(self.window);
            }
            // Under the lock, so that a topic made next begins with the revision after this one.
            self.notified.store(revision, Ordering::Release);
            let Index { behind, streams, .. } = &mut *index;
            wakers.extend(std::mem::take(behind).iter().filter_map(|number| streams.get(number)?.ring()));
        }
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Takes a stream in, under a number that no other has. Its bell, and whether the store is still written; if it is not,
    /// the bell says so too.
    pub(super) fn join(&self, is_counted: bool) -> (Arc<Signal>, bool) {
        let mut index = lock(&self.index);
        let signal = Arc::new(Signal::new(index.next_stream, is_counted));
        index.next_stream += 1;
        if index.closed {
            // Nobody sleeps by it yet.
            let _ = signal.close();
            return (signal, false);
        }
        index.streams.insert(signal.number(), Arc::clone(&signal));
        self.figures.streams.add(u64::from(is_counted));
        (signal, true)
    }

    pub(super) fn leave(&self, signal: &Signal) {
        let mut index = lock(&self.index);
        index.behind.remove(&signal.number());
        if index.streams.remove(&signal.number()).is_some() {
            self.figures.streams.sub(u64::from(signal.is_counted()));
        }
    }

    /// Makes a stream hear of a range, under `group` unless it has a group for it.
    pub(super) fn subscribe(&self, range: &KeyRange, signal: &Arc<Signal>, group: u32) -> Subscribed {
        let mut index = lock(&self.index);
        let topic = index.topic(range, self.notified());
        let mut log = topic.log();
        let group = match log.subscribers.group_of(signal) {
            Some(known) => known,
            None => {
                // A topic that nobody watches is new.
                if log.subscribers.is_empty() {
                    self.figures.key_bytes.add(key_bytes(&topic));
                }
                log.subscribers.add(Subscriber { signal: Arc::clone(signal), group });
                group
            }
        };
        let floor = log.floor;
        drop(log);
        Subscribed { topic, group, floor }
    }

    /// The opposite; the last to leave takes the topic away. O(log n).
    pub(super) fn unsubscribe(&self, topic: &Arc<Topic>, signal: &Signal) {
        let mut index = lock(&self.index);
        let mut log = topic.log();
        log.subscribers.remove(signal);
        if log.subscribers.is_empty() {
            // Its events go now; the window's books are put right when their turn comes.
            log.clear();
            drop(log);
            index.remove(topic);
            self.figures.key_bytes.sub(key_bytes(topic));
        }
    }

    /// The store will not be written any more: every stream is told, and looks for another.
    pub(crate) fn close(&self) {
        let wakers: Vec<Waker> = {
            let mut index = lock(&self.index);
            index.closed = true;
            index.streams.values().filter_map(|signal| signal.close()).collect()
        };
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Index {
    fn is_idle(&self) -> bool {
        self.exact.is_empty() && self.ranges.is_empty()
    }

    fn topic(&mut self, range: &KeyRange, notified: i64) -> Arc<Topic> {
        if range.is_single() {
            if let Some(known) = self.exact.get(range.start()) {
                return Arc::clone(&known.0);
            }
            let topic = Arc::new(Topic::new(range, notified + 1));
            self.exact.insert(ByKey(Arc::clone(&topic)));
            return topic;
        }
        if let Some(known) = self.ranges.get(range.start(), &End::of(range)) {
            return Arc::clone(known);
        }
        let topic = Arc::new(Topic::new(range, notified + 1));
        self.ranges.insert(Arc::clone(&topic));
        topic
    }

    fn remove(&mut self, topic: &Topic) {
        if topic.is_single() {
            self.exact.remove(topic.start());
        } else {
            self.ranges.remove(topic);
        }
    }

    /// Finds the topics of each record. Nothing is visible to streams yet: a revision must appear as a whole.
    fn distribute(&mut self, staged: &[(Revision, Record)]) {
        let Index { exact, ranges, touched, .. } = self;
        for (at, record) in staged {
            let key = record.key();
            let mut event = None;
            let mut touch = |topic: &Arc<Topic>| {
                let event = event.get_or_insert_with(|| Arc::new(Event::new(*at, record.clone())));
                let mut log = topic.log();
                let place = &mut log.tail().place;
                if *place == 0 {
                    touched.push(Touched { topic: Arc::clone(topic), events: Vec::new() });
                    *place = touched.len() as u32;
                }
                touched[*place as usize - 1].events.push(Arc::clone(event));
            };
            if let Some(topic) = exact.get(key) {
                touch(&topic.0);
            }
            ranges.holding(key, &mut touch);
        }
    }

    /// Leaves revisions to be read from history by those whom they concern, without making an event of anything: it would all be
    /// forgotten at once.
    fn pass_over(&mut self, staged: &[(Revision, Record)], first: i64, last: i64, wakers: &mut Vec<Waker>) {
        let Index { exact, ranges, touched, kept, kept_events, kept_bytes, .. } = self;
        let mut touch = |topic: &Arc<Topic>| {
            let mut log = topic.log();
            let place = &mut log.tail().place;
            if *place == 0 {
                *place = 1;
                touched.push(Touched { topic: Arc::clone(topic), events: Vec::new() });
            }
        };
        for (_, record) in staged {
            if let Some(topic) = exact.get(record.key()) {
                touch(&topic.0);
            }
            ranges.holding(record.key(), &mut touch);
        }
        kept.retain(|kept| {
            let stays = !kept.topic.log().has_place();
            if !stays {
                *kept_events -= kept.events;
                *kept_bytes -= kept.bytes;
            }
            stays
        });
        for Touched { topic, .. } in touched.drain(..) {
            let mut log = topic.log();
            log.skip(last);
            log.subscribers.iter().for_each(|one| wakers.extend(one.signal.mark(one.group, first)));
        }
    }

    /// Appends to the logs and rings the bells.
    fn deliver(&mut self, wakers: &mut Vec<Waker>) {
        for Touched { topic, events } in self.touched.drain(..) {
            let Some(first) = events.first().map(|event| event.revision()) else { continue };
            let bytes = events.iter().map(|event| event.weight()).sum();
            self.kept_events += events.len();
            self.kept_bytes += bytes;
            let count = events.len();
            let mut log = topic.log();
            let tail = log.tail();
            tail.place = 0;
            tail.events.extend(events);
            // By its own loop: an iterator of wakers finds its place among the chunks anew for each.
            log.subscribers.iter().for_each(|one| wakers.extend(one.signal.mark(one.group, first)));
            drop(log);
            self.kept.push_back(Kept { topic, events: count, bytes });
        }
    }

    /// Has the logs forget what the window has no room for.
    fn trim(&mut self, window: Window) {
        while self.kept_events > window.events || self.kept_bytes > window.bytes {
            let Some(oldest) = self.kept.pop_front() else { return };
            self.kept_events -= oldest.events;
            self.kept_bytes -= oldest.bytes;
            let mut log = oldest.topic.log();
            // A topic that nobody watches any more has forgotten everything already.
            if !log.subscribers.is_empty() {
                log.forget(oldest.events);
            }
        }
    }
}
