//! How much is looked at for what clients may ask for again and again: counted, not timed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use tally_backend::{Applied, Backend, Config, Identity};

use super::signal::Signal;
use super::topic::{Subscriber, Subscribers};
use super::watcher::Ids;
use super::{Delivery, Step, WatchLimits, WatchSpec, WatchStream};
use crate::{KeyRange, Options, PutRequest, Reader, Writer, open};

const MANY: i64 = 1_000;

struct Store {
    _dir: tempfile::TempDir,
    backend: Backend,
    writer: Writer,
    reader: Reader,
    index: u64,
}

impl Store {
    fn new() -> Store {
        let dir = tempfile::tempdir().expect("a directory");
        let backend = Backend::open(Config::new(dir.path(), Identity::default())).expect("a backend");
        let (writer, reader) = open(&backend, Options::default()).expect("a store");
        Store { _dir: dir, backend, writer, reader, index: 0 }
    }

    fn set(&mut self, key: &str) -> i64 {
        let revision = self.commit(key);
        self.writer.publish();
        revision
    }

    fn commit(&mut self, key: &str) -> i64 {
        let mut batch = self.backend.batch();
        let reply = self.writer.put(&PutRequest::new(key.to_owned(), "v"), &mut batch).expect("a put");
        self.writer.stage_meta(&mut batch);
        self.index += 1;
        let at = Applied { index: self.index, term: 1, root: self.writer.root(), ..Applied::default() };
        batch.commit(&at).expect("a commit");
        reply.revision
    }
}

fn spec(key: String) -> WatchSpec {
    WatchSpec::new(KeyRange::single(key.into()).expect("a key"))
}

fn drain(stream: &mut WatchStream) -> Vec<Delivery> {
    let mut all = Vec::new();
    while let Poll::Ready(step) = stream.poll_next(&mut Context::from_waker(Waker::noop())) {
        match step {
            Step::Deliver(delivery) => all.push(delivery),
            Step::Read(history) => stream.absorb(history.read()),
            Step::Closed => panic!("the store is closed"),
        }
    }
    all
}

#[test]
fn requests_for_progress_look_at_no_watcher() {
    let mut store = Store::new();
    let mut stream = store.reader.watch_stream(WatchLimits::default());
    for number in 0..MANY {
        stream.create(spec(number.to_string())).expect("a watcher");
    }
    assert!(drain(&mut stream).is_empty());
    stream.watchers.walked.set(0);
    let ask = |stream: &mut WatchStream| {
        stream.request_progress();
        match drain(stream)[..] {
            [] => None,
            [Delivery::Progress { id: None, revision }] => Some(revision),
            ref other => panic!("{other:?}"),
        }
    };
    for _ in 0..10 {
        let revision = store.set("other");
        assert_eq!([ask(&mut stream), ask(&mut stream)], [Some(revision); 2]);
        // One that comes and goes, and one that waits for what is not there yet.
        let comes = stream.create(spec("more".to_owned())).expect("a watcher").id;
        assert_eq!(ask(&mut stream), Some(revision));
        let waits = stream.create(WatchSpec { start: revision + 2, ..spec("more".to_owned()) }).expect("a watcher").id;
        assert_eq!([ask(&mut stream), ask(&mut stream)], [None; 2]);
        assert!(stream.cancel(comes) && stream.cancel(waits));
        assert_eq!(ask(&mut stream), Some(revision));
    }
    assert_eq!((stream.watchers(), stream.watchers.walked.get()), (MANY as usize, 0));
}

#[derive(Default)]
struct Bell(AtomicBool);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A stream that asks for progress while readers see a revision and the hub has not been told of it.
fn asked_before_told() -> (Store, WatchStream, i64) {
    let mut store = Store::new();
    let mut stream = store.reader.watch_stream(WatchLimits::default());
    store.set("key");
    let revision = store.commit("other");
    assert!(store.writer.show());
    stream.create(spec("key".to_owned())).expect("a watcher");
    stream.request_progress();
    (store, stream, revision)
}

/// Readers see a revision before its events are distributed, which may take a while; who asks in between asks only once.
#[test]
fn who_asks_while_a_revision_is_told_is_answered_when_it_was() {
    let (mut store, mut stream, revision) = asked_before_told();
    let bell = Arc::new(Bell::default());
    let waker = Waker::from(Arc::clone(&bell));
    for _ in 0..2 {
        assert!(stream.poll_next(&mut Context::from_waker(&waker)).is_pending());
        assert!(!bell.0.load(Ordering::Relaxed));
    }
    store.writer.tell();
    assert!(bell.0.load(Ordering::Relaxed), "nothing else may wake it");
    assert!(matches!(drain(&mut stream)[..], [Delivery::Progress { id: None, revision: told }] if told == revision));
    assert!(drain(&mut stream).is_empty());
}

/// As above, but it is told just after the stream has looked how far that is, and nobody is to be woken yet.
#[test]
fn who_asks_while_a_revision_is_told_is_answered_even_if_that_ends_meanwhile() {
    let (mut store, mut stream, revision) = asked_before_told();
    let told = stream.shared.hub.notified();
    stream.tell_progress(told);
    store.writer.tell();
    assert!(stream.hub_has_caught_up(told), "nobody wakes it any more");
    assert!(matches!(drain(&mut stream)[..], [Delivery::Progress { id: None, revision: told }] if told == revision));
}

/// What it has read of history is not handed on to it again, though the hub does not say that it is told yet.
#[test]
fn who_steps_aside_while_a_revision_is_told_goes_on_after_what_it_has() {
    let mut store = Store::new();
    let first = store.set("key");
    let mut streams: Vec<_> = (0..2).map(|_| store.reader.watch_stream(WatchLimits::default())).collect();
    for (stream, start) in streams.iter_mut().zip([first, 0]) {
        stream.create(WatchSpec { start, ..spec("key".to_owned()) }).expect("a watcher");
    }
    let revision = store.commit("key");
    assert!(store.writer.show());
    let seen = drain(&mut streams[0]);
    assert!(matches!(&seen[..], [Delivery::Events(batch)] if batch.events.len() == 2), "{seen:?}");
    // Another that is created meanwhile is told that it is created at the new revision.
    let mut new = store.reader.watch_stream(WatchLimits::default());
    assert_eq!(new.create(spec("key".to_owned())).expect("a watcher").revision, revision);
    assert!(drain(&mut new).is_empty());
    for stream in [&mut streams[0], &mut new] {
        let mut start = 0;
        assert!(!stream.step_aside(2, |spec| {
            start = spec.start;
            None
        }));
        assert_eq!(start, revision + 1);
    }
    store.writer.tell();
    assert!(drain(&mut streams[0]).is_empty() && drain(&mut new).is_empty());
    assert_eq!(drain(&mut streams[1]).len(), 1);
}

#[test]
fn streams_of_a_topic_come_and_go_without_a_look_at_the_others() {
    let signals: Vec<_> = (0..MANY).map(|number| Arc::new(Signal::new(number, true))).collect();
    let mut subscribers = Subscribers::default();
    for (group, signal) in (0..).zip(&signals) {
        assert_eq!(subscribers.group_of(signal), None);
        subscribers.add(Subscriber { signal: Arc::clone(signal), group });
    }
    assert!(subscribers.iter().map(|one| one.signal.number()).eq(0..MANY));
    let Subscribers::Many(many) = &subscribers else { panic!("there are many") };
    many.streams.walked.set(0);
    // The newest first, as a connection may drop them, then from the other end.
    for (group, signal) in (0..MANY as u32).zip(&signals).rev().take(MANY as usize / 2) {
        assert_eq!(subscribers.group_of(signal), Some(group));
        subscribers.remove(signal);
        assert_eq!(subscribers.group_of(signal), None);
    }
    for signal in &signals[..MANY as usize / 2 - 1] {
        subscribers.remove(signal);
        subscribers.remove(signal);
    }
    let Subscribers::Many(many) = &subscribers else { panic!("one is left") };
    assert_eq!((many.streams.len(), many.streams.walked.get()), (1, 0));
    subscribers.remove(&signals[MANY as usize / 2 - 1]);
    assert!(subscribers.is_empty() && subscribers.iter().next().is_none());
}

#[test]
fn watchers_of_a_range_are_canceled_without_a_look_at_the_others() {
    let mut ids = Ids::One(0);
    (1..MANY).for_each(|id| ids.add(id));
    for id in (1..MANY).rev() {
        assert!(!ids.remove(id));
    }
    let Ids::Many(all) = &ids else { panic!("there were many") };
    assert_eq!((all.len(), all.walked.get()), (1, 0));
    assert!(ids.iter().eq([0]) && ids.remove(0));
}
