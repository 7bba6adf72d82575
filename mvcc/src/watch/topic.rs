//! A topic: one watched range, the newest events in it, and the streams that want them.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;

use super::event::Event;
use super::hub::Hub;
use super::roster::Roster;
use super::signal::Signal;
use crate::keyrange::{KeyRange, RangeEnd};
use crate::shared::lock;

/// A watched range with what was published in it lately.
pub(super) struct Topic {
    /// In buffers of its own: those of a request may hold much more than the key.
    start: Box<[u8]>,
    end: End,
    log: Mutex<Log>,
}

/// Where a topic's range ends. The order is that of the ranges' upper bounds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum End {
    Single,
    /// In a box of its own, so that single keys, which are watched most, take less.
    Before(Box<Box<[u8]>>),
    Unbounded,
}

/// The newest events of a topic.
///
/// **Invariant**: `events` are all events of the range with revisions from `floor` to the last that the hub was told of.
///
/// It is small while nothing happens: there is one for each watched range.
pub(super) struct Log {
    tail: Option<Box<Tail>>,
    pub(super) floor: i64,
    pub(super) subscribers: Subscribers,
}

/// What a topic keeps while it has events, or is about to have some.
#[derive(Default)]
pub(super) struct Tail {
    pub(super) events: VecDeque<Arc<Event>>,
    /// While the hub publishes: one more than the topic's place in its list of touched topics.
    pub(super) place: u32,
}

/// The streams that watch a topic, by their numbers; mostly one.
#[derive(Default)]
pub(super) enum Subscribers {
    #[default]
    None,
    One(Subscriber),
    /// In a box, so that a topic with one stream takes less.
    Many(Box<Many>),
}

/// The streams of a topic that has several, or had.
pub(super) struct Many {
    pub(super) streams: Roster<Subscriber>,
    /// How many more are aside.
    aside: usize,
}

/// A stream that watches a topic, and which of its groups does.
pub(super) struct Subscriber {
    pub(super) signal: Arc<Signal>,
    pub(super) group: u32,
}

impl End {
    pub(super) fn of(range: &KeyRange) -> End {
        match range.end() {
            RangeEnd::Single => End::Single,
            RangeEnd::Before(end) => End::Before(Box::new(end.into())),
            RangeEnd::Unbounded => End::Unbounded,
        }
    }

    /// True if a key at or after the start is in the range.
    pub(super) fn is_after(&self, key: &[u8]) -> bool {
        match self {
            End::Single => false,
            End::Before(end) => key < &***end,
            End::Unbounded => true,
        }
    }
}

impl Topic {
    pub(super) fn new(range: &KeyRange, floor: i64) -> Topic {
        let log = Log { tail: None, floor, subscribers: Subscribers::default() };
        Topic { start: range.start().into(), end: End::of(range), log: Mutex::new(log) }
    }

    pub(super) fn start(&self) -> &[u8] {
        &self.start
    }

    pub(super) fn end(&self) -> &End {
        &self.end
    }

    pub(super) fn is_single(&self) -> bool {
        self.end == End::Single
    }

    pub(super) fn contains(&self, key: &[u8]) -> bool {
        match self.end {
            End::Single => *key == *self.start,
            End::Before(_) | End::Unbounded => key >= self.start() && self.end.is_after(key),
        }
    }

    /// The range again, for another store's hub.
    pub(super) fn range(&self) -> KeyRange {
        let end = match &self.end {
            End::Single => Bytes::new(),
            End::Before(end) => Bytes::copy_from_slice(end),
            End::Unbounded => Bytes::from_static(b"\0"),
        };
        KeyRange::new(Bytes::copy_from_slice(&self.start), end).expect("a topic is made of a range, which has a start")
    }

    pub(super) fn log(&self) -> MutexGuard<'_, Log> {
        lock(&self.log)
    }

    /// Leaves a stream out from now on, unless it has news or fewer than so many are there. Everything before the revision that
    /// is returned has been put where the stream finds it.
    pub(super) fn step_aside(&self, hub: &Hub, signal: &Signal, streams_min: usize) -> Option<i64> {
        let mut log = self.log();
        let steps = log.subscribers.len() >= streams_min && !signal.has_news() && log.subscribers.step_aside(signal);
        // Under the lock: what is published meanwhile is put into this log before the hub says so.
        steps.then(|| hub.notified() + 1)
    }

    /// The opposite. Where the topic's log begins, and whether it has something from `next` on.
    pub(super) fn come_back(&self, one: Subscriber, next: i64) -> (i64, bool) {
        let mut log = self.log();
        log.subscribers.come_back(one);
        (log.floor, log.first_from(next).is_some())
    }
}

impl Log {
    /// Forgets the `count` oldest events; together they must be whole revisions.
    pub(super) fn forget(&mut self, count: usize) {
        let Some(tail) = &mut self.tail else { return };
        if let Some(last) = tail.events.drain(..count.min(tail.events.len())).next_back() {
            self.floor = last.revision() + 1;
        }
        if tail.events.is_empty() {
            self.tail = None;
        }
    }

    /// Forgets everything up to a revision, also what has not been put in yet.
    pub(super) fn skip(&mut self, upto: i64) {
        self.tail = None;
        self.floor = upto + 1;
    }

    /// Forgets everything, because nobody is left to tell.
    pub(super) fn clear(&mut self) {
        self.tail = None;
    }

    /// Whether the topic has a place among those touched.
    pub(super) fn has_place(&self) -> bool {
        self.tail.as_ref().is_some_and(|tail| tail.place != 0)
    }

    pub(super) fn tail(&mut self) -> &mut Tail {
        self.tail.get_or_insert_default()
    }

    /// The revision of the first event from `next` on, if there is one; `next` itself if the log does not go back so far.
    pub(super) fn first_from(&self, next: i64) -> Option<i64> {
        if next < self.floor {
            return Some(next);
        }
        let events = &self.tail.as_ref()?.events;
        Some(events.get(events.partition_point(|event| event.revision() < next))?.revision())
    }

    /// Events with revisions from `next` on, up to the end of the revision with which one of the limits is reached, and
    /// whether more follow. `next` must not be below the floor.
    pub(super) fn from(&self, next: i64, events_max: usize, bytes_max: usize) -> (Vec<Arc<Event>>, bool) {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        let Some(Tail { events, .. }) = self.tail.as_deref() else { return (taken, false) };
        let first = events.partition_point(|event| event.revision() < next);
        for event in events.range(first..) {
            let full = taken.len() >= events_max || bytes >= bytes_max;
            if full && taken.last().is_some_and(|last: &Arc<Event>| last.revision() != event.revision()) {
                return (taken, true);
            }
            bytes += event.record().bytes().len();
            taken.push(Arc::clone(event));
        }
        (taken, false)
    }
}

impl Subscribers {
    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Subscribers::None)
    }

    /// In the order of the streams' numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Subscriber> {
        let (one, many) = match self {
            Subscribers::None => (None, None),
            Subscribers::One(one) => (Some(one), None),
            Subscribers::Many(all) => (None, Some(all)),
        };
        one.into_iter().chain(many.into_iter().flat_map(|many| many.streams.values()))
    }

    /// The group under which a stream watches. O(log n).
    pub(super) fn group_of(&self, signal: &Signal) -> Option<u32> {
        let known = match self {
            Subscribers::None => None,
            Subscribers::One(one) => Some(one).filter(|one| one.signal.number() == signal.number()),
            Subscribers::Many(many) => many.streams.get(signal.number()),
        };
        known.map(|one| one.group)
    }

    /// Adds a stream that does not watch the topic yet. O(log n).
    pub(super) fn add(&mut self, one: Subscriber) {
        *self = match std::mem::take(self) {
            Subscribers::None => Subscribers::One(one),
            Subscribers::One(first) => {
                let mut both = Box::new(Many { streams: Roster::new(), aside: 0 });
                both.streams.insert(first.signal.number(), first);
                both.streams.insert(one.signal.number(), one);
                Subscribers::Many(both)
            }
            Subscribers::Many(mut many) => {
                many.streams.insert(one.signal.number(), one);
                Subscribers::Many(many)
            }
        };
    }

    /// O(log n): a connection may take very many streams of one topic with it.
    pub(super) fn remove(&mut self, signal: &Signal) {
        let none_is_left = match self {
            Subscribers::None => true,
            Subscribers::One(one) => one.signal.number() == signal.number(),
            Subscribers::Many(many) => {
                many.streams.remove(signal.number());
                many.streams.is_empty() && many.aside == 0
            }
        };
        if none_is_left {
            *self = Subscribers::None;
        }
    }

    /// Those that are aside among them.
    fn len(&self) -> usize {
        match self {
            Subscribers::None => 0,
            Subscribers::One(_) => 1,
            Subscribers::Many(many) => many.streams.len() + many.aside,
        }
    }

    /// Leaves a stream out from now on, for whose sake the topic stays. False if it is the only one, or not among them. O(log n).
    fn step_aside(&mut self, signal: &Signal) -> bool {
        let Subscribers::Many(many) = self else { return false };
        let is_there = many.streams.remove(signal.number()).is_some();
        many.aside += usize::from(is_there);
        is_there
    }

    /// The opposite. O(log n).
    fn come_back(&mut self, one: Subscriber) {
        if let Subscribers::Many(many) = self {
            many.aside -= 1;
        }
        self.add(one);
    }
}

/// A topic of a single key, in the order of its key.
pub(super) struct ByKey(pub(super) Arc<Topic>);

impl Borrow<[u8]> for ByKey {
    fn borrow(&self) -> &[u8] {
        self.0.start()
    }
}

impl PartialEq for ByKey {
    fn eq(&self, other: &ByKey) -> bool {
        self.0.start() == other.0.start()
    }
}

impl Eq for ByKey {}

impl PartialOrd for ByKey {
    fn partial_cmp(&self, other: &ByKey) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByKey {
    fn cmp(&self, other: &ByKey) -> Ordering {
        self.0.start().cmp(other.0.start())
    }
}
