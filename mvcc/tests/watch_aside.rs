//! Streams that step aside: whoever hands their changes on, and whenever they come back, each client gets everything once.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use common::watching::{Change, Watching, changes, narrow, put_of, store_with_window};
use common::{Store, between, single, small_cache};
use proptest::prelude::*;
use tally_mvcc::{Delivery, Filters, KeyRange, Options, PutRequest, Step, Substitute, WatchSpec, open};

/// Says where the stream goes on, and counts how often it is asked.
#[derive(Default)]
struct Stand {
    next: AtomicI64,
    recalled: AtomicUsize,
}

impl Substitute for Stand {
    fn recall(&self) -> i64 {
        self.recalled.fetch_add(1, SeqCst);
        self.next.load(SeqCst)
    }
}

/// Streams at rest with one watcher each.
fn resting(store: &Store, range: &KeyRange, count: usize) -> Vec<Watching> {
    let rest = |_| {
        let mut watching = Watching::new(&store.reader);
        watching.create(range.clone(), 0);
        assert!(watching.drain().is_empty());
        watching
    };
    (0..count).map(rest).collect()
}

/// Has a stream step aside, whose changes from then on are left to nobody.
fn aside(watching: &mut Watching) -> Option<Arc<Stand>> {
    let stand = Arc::new(Stand::default());
    let find = |spec: WatchSpec| {
        stand.next.store(spec.start, SeqCst);
        Some(Arc::clone(&stand) as Arc<dyn Substitute>)
    };
    watching.stream.step_aside(2, find).then_some(stand)
}

#[test]
fn who_is_aside_hears_nothing_and_goes_on_from_where_it_is_said_to() {
    let mut store = Store::new();
    for range in [single("k"), between("j", "l")] {
        for handed_on in 0..=3 {
            let mut streams = resting(&store, &range, 3);
            let stand = aside(&mut streams[0]).unwrap();
            let first = store.reader.revision() + 1;
            assert_eq!(stand.next.load(SeqCst), first);
            let puts: Vec<Change> = (0..3).map(|_| put_of(store.set("k", "1"), "k", "1")).collect();
            assert_eq!((streams[0].woken(), streams[1].woken()), (0, 1));
            stand.next.store(first + handed_on as i64, SeqCst);
            assert_eq!(streams[0].changes(0), puts[handed_on..]);
            assert_eq!(stand.recalled.load(SeqCst), 1);
            assert_eq!(streams[1].changes(0), puts);
            // As if it had never been away.
            let put = put_of(store.set("k", "2"), "k", "2");
            assert_eq!((streams[0].woken(), streams[0].changes(0)), (1, vec![put]));
            assert_eq!(stand.recalled.load(SeqCst), 1);
        }
    }
}

/// Between its leaving the range and its coming back nobody wakes it.
#[test]
fn who_finds_no_substitute_is_woken_if_something_came_meanwhile() {
    for comes in [true, false] {
        let mut store = Store::new();
        let mut streams = resting(&store, &single("k"), 2);
        let mut put = Vec::new();
        assert!(!streams[0].stream.step_aside(2, |_| {
            put.push(put_of(store.set(if comes { "k" } else { "other" }, "1"), "k", "1"));
            None
        }));
        assert_eq!(streams[0].woken(), usize::from(comes));
        assert_eq!(streams[0].changes(0), if comes { put } else { vec![] });
        assert_eq!(store.reader.watch_figures().aside(), 0);
        let woken = streams[0].woken();
        store.set("k", "2");
        assert_eq!(streams[0].woken(), woken + 1);
    }
}

#[test]
fn only_who_has_nothing_else_to_do_steps_aside() {
    let mut store = Store::new();
    let spec = || WatchSpec::new(single("k"));
    let mut others = resting(&store, &single("k"), 1);
    let wanted = [
        spec(),
        WatchSpec { prev_kv: true, ..spec() },
        WatchSpec { filters: Filters { no_put: true, no_delete: false }, ..spec() },
        WatchSpec { mark: true, id: 7, ..spec() },
    ];
    for wanted in wanted {
        let mut watching = Watching::new(&store.reader);
        watching.stream.create(wanted.clone()).unwrap();
        watching.drain();
        let mut found = None;
        assert!(!watching.stream.step_aside(2, |spec| {
            found = Some(spec);
            None
        }));
        let found = found.unwrap();
        let what = |spec: &WatchSpec| (spec.range.clone(), spec.id, spec.filters, spec.prev_kv, spec.mark);
        assert_eq!((what(&found), found.start), (what(&wanted), store.reader.revision() + 1));
    }
    let never = |watching: &mut Watching| {
        assert!(!watching.stream.step_aside(2, |_| panic!("it has something else to do")));
    };
    // There is news; it has not taken what there is; it is asked how far it is.
    let mut watching = resting(&store, &single("k"), 1).remove(0);
    store.set("k", "1");
    never(&mut watching);
    assert_eq!(watching.drain().len(), 1);
    watching.stream.request_progress();
    never(&mut watching);
    assert_eq!(watching.drain().len(), 1);
    assert!(aside(&mut watching).is_some());
    never(&mut watching);
    // It reads history, waits for what is not there yet, wants to be told how far it is, has two watchers or none.
    let starts = [store.reader.revision(), store.reader.revision() + 2];
    for spec in starts
        .map(|start| WatchSpec { start, ..spec() })
        .into_iter()
        .chain([WatchSpec { progress_notify: true, ..spec() }])
    {
        let mut watching = Watching::new(&store.reader);
        never(&mut watching);
        watching.stream.create(spec).unwrap();
        watching.step();
        never(&mut watching);
    }
    let mut two = resting(&store, &single("k"), 1).remove(0);
    two.create(single("k"), 0);
    two.drain();
    never(&mut two);
    // The other is the only one of its range.
    drop((watching, two));
    let other = &mut others[0];
    other.drain();
    never(other);
}

/// Whatever is asked of a stream that is aside, it comes back first, and once.
#[test]
fn who_is_asked_for_something_comes_back() {
    type Ask = fn(&mut Watching, &mut Store);
    let asks: [(Ask, bool); 6] = [
        (|watching, _| assert!(watching.step().is_none()), true),
        (|watching, _| watching.stream.come_back(), true),
        (|watching, _| assert!(watching.stream.cancel(0)), false),
        (|watching, _| assert_eq!(watching.create(single("k"), 0), 1), true),
        (
            |watching, store| {
                store.reopen();
                assert_eq!(watching.woken(), 1);
                assert!(watching.stream.attach(&store.reader));
            },
            true,
        ),
        (
            |watching, _| {
                watching.stream.request_progress();
                assert!(matches!(watching.step(), Some(Step::Deliver(Delivery::Progress { id: None, .. }))));
            },
            true,
        ),
    ];
    for (ask, goes_on) in asks {
        let mut store = Store::new();
        let _other = resting(&store, &single("k"), 1);
        let mut watching = resting(&store, &single("k"), 1).remove(0);
        let stand = aside(&mut watching).unwrap();
        ask(&mut watching, &mut store);
        assert_eq!(stand.recalled.load(SeqCst), 1);
        let put = put_of(store.set("k", "1"), "k", "1");
        assert_eq!(watching.changes(0), if goes_on { vec![put] } else { vec![] });
        assert_eq!(stand.recalled.load(SeqCst), 1);
    }
    let store = Store::new();
    let mut streams = resting(&store, &single("k"), 2);
    let stands: Vec<_> = streams.iter_mut().map(|watching| aside(watching).unwrap()).collect();
    drop(streams);
    assert!(stands.iter().all(|stand| stand.recalled.load(SeqCst) == 1));
    assert_eq!(store.reader.watch_figures().watchers(), 0);
}

/// The range stays watched, and its log bounded, for those who are aside alone.
#[test]
fn what_comes_while_all_are_aside_is_found_in_the_log_or_in_history() {
    for window in [2, 100] {
        let mut store = store_with_window(window);
        let mut streams = resting(&store, &single("k"), 2);
        let mut ways = Vec::new();
        for watching in &mut streams {
            ways.push(aside(watching).unwrap());
        }
        let puts: Vec<Change> = (0..5).map(|_| put_of(store.set("k", "1"), "k", "1")).collect();
        for watching in &mut streams {
            let first = watching.step().unwrap();
            assert_eq!(matches!(first, Step::Read(_)), window == 2, "{first:?}");
            let mut seen = Vec::new();
            match first {
                Step::Deliver(Delivery::Events(batch)) => seen.extend(changes(&batch)),
                Step::Read(history) => watching.stream.absorb(history.read()),
                other => panic!("{other:?}"),
            }
            seen.extend(watching.changes(0));
            assert_eq!(seen, puts);
        }
    }
}

#[test]
fn a_relay_is_not_in_the_figures_and_its_clients_are() {
    let mut store = Store::new();
    let mut streams = resting(&store, &single("k"), 2);
    let mut relay = Watching { stream: store.reader.relay(Default::default()), bell: Arc::default() };
    relay.create(single("k"), 0);
    let stands: Vec<_> = streams.iter_mut().map(|watching| aside(watching).unwrap()).collect();
    let all = |store: &Store| {
        let figures = store.reader.watch_figures();
        assert_eq!((figures.slow_watchers(), figures.pending_events()), (0, 0));
        (figures.streams(), figures.watchers(), figures.events(), figures.aside())
    };
    assert_eq!(all(&store), (2, 2, 0, 2));
    let revision = store.set("k", "1");
    assert_eq!(relay.changes(0).len(), 1);
    assert_eq!(all(&store), (2, 2, 0, 2));
    stands.iter().for_each(|stand| stand.next.store(revision + 1, SeqCst));
    relay.stream.count_handed_on(2);
    assert_eq!(all(&store), (2, 2, 2, 2));
    store.reopen();
    assert!(relay.stream.attach(&store.reader));
    for watching in &mut streams {
        assert!(watching.stream.attach(&store.reader));
    }
    assert_eq!(all(&store), (2, 2, 0, 0));
    assert!(relay.stream.cancel(0));
    drop(relay);
    assert_eq!(all(&store), (2, 2, 0, 0));
    drop(streams);
    assert_eq!(all(&store), (0, 0, 0, 0));
}

#[derive(Clone, Debug)]
enum Action {
    /// One of the keys: those of the range and others.
    Put(u8),
    Publish,
    /// One of the streams gives what it has.
    Poll(usize),
    /// One of the streams steps aside.
    Rest(usize),
    /// The relay hands a batch on, but not to those whose bit is not set: they go on by themselves.
    HandOn(u8),
    Compact,
    /// Another store takes the place of this one.
    Replace,
}

const CLIENTS: usize = 4;

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => (0..4u8).prop_map(Action::Put),
        4 => Just(Action::Publish),
        6 => (0..CLIENTS).prop_map(Action::Poll),
        6 => (0..CLIENTS).prop_map(Action::Rest),
        6 => prop_oneof![4 => Just(u8::MAX), 1 => any::<u8>()].prop_map(Action::HandOn),
        1 => Just(Action::Compact),
        1 => Just(Action::Replace),
    ]
}

/// How far the client of a stream that is aside is; `None` once it is not.
type Place = Arc<Mutex<Option<i64>>>;

struct Member(Place);

impl Substitute for Member {
    fn recall(&self) -> i64 {
        self.0.lock().unwrap().take().unwrap()
    }
}

/// Clients of a range, and the relay of those that are aside.
struct Run {
    store: Store,
    clients: Vec<(Watching, Place, Vec<i64>)>,
    relay: Option<(Watching, i64)>,
    written: Vec<i64>,
}

impl Run {
    fn options() -> Options {
        Options { watch_window_events: 4, ..small_cache() }
    }

    fn poll(&mut self, at: usize) -> bool {
        let (watching, _, got) = &mut self.clients[at];
        match watching.step() {
            None => return false,
            Some(Step::Deliver(Delivery::Events(batch))) => {
                got.extend(batch.events.iter().map(|event| event.revision()))
            }
            Some(Step::Read(history)) => watching.stream.absorb(history.read()),
            Some(Step::Closed) => assert!(watching.stream.attach(&self.store.reader)),
            Some(Step::Deliver(other)) => panic!("{other:?}"),
        }
        true
    }

    fn rest(&mut self, at: usize) {
        let Run { store, clients, relay, .. } = self;
        let (watching, place, _) = &mut clients[at];
        watching.stream.step_aside(2, |spec| {
            let (_, next) = relay.get_or_insert_with(|| {
                let mut relay = Watching { stream: store.reader.relay(Default::default()), bell: Arc::default() };
                let created = relay.stream.create(WatchSpec::new(spec.range)).unwrap();
                (relay, created.revision + 1)
            });
            if spec.start < *next {
                return None;
            }
            *place.lock().unwrap() = Some(spec.start);
            Some(Arc::new(Member(Arc::clone(place))))
        });
    }

    fn hand_on(&mut self, to: u8) {
        let Some((relay, next)) = &mut self.relay else { return };
        match relay.step() {
            None => {}
            Some(Step::Read(history)) => relay.stream.absorb(history.read()),
            Some(Step::Deliver(Delivery::Events(batch))) => {
                let revisions: Vec<i64> = batch.events.iter().map(|event| event.revision()).collect();
                *next = batch.revision + 1;
                for (at, (watching, place, got)) in self.clients.iter_mut().enumerate() {
                    let mut place = place.lock().unwrap();
                    let Some(next) = place.as_mut().filter(|next| **next <= batch.revision) else { continue };
                    if *next <= revisions[0] && to >> at & 1 == 1 {
                        got.extend(&revisions);
                        *next = batch.revision + 1;
                    } else {
                        drop(place);
                        watching.stream.come_back();
                    }
                }
            }
            Some(Step::Closed | Step::Deliver(_)) => {
                self.relay = None;
                self.clients.iter_mut().for_each(|(watching, ..)| watching.stream.come_back());
            }
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Put(key) => {
                let put = PutRequest::new(vec![b'j' + key], "v");
                let revision = self.store.put(&put).unwrap().revision;
                if (b'k'..b'm').contains(&(b'j' + key)) {
                    self.written.push(revision);
                }
            }
            Action::Publish => self.store.commit(),
            Action::Poll(at) => drop(self.poll(at)),
            Action::Rest(at) => self.rest(at),
            Action::HandOn(to) => self.hand_on(to),
            Action::Compact => {
                // Only what everybody has: what a client lacks would be canceled.
                for at in 0..CLIENTS {
                    while self.poll(at) {}
                }
                let at = self.store.reader.revision();
                if self.store.compact(at).is_ok() {
                    self.store.commit();
                }
            }
            Action::Replace => {
                self.store.commit();
                (self.store.writer, self.store.reader) = open(&self.store.backend, Run::options()).unwrap();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn each_client_gets_everything_once_and_in_order(actions in prop::collection::vec(action(), 1..150)) {
        let mut store = Store::new();
        (store.writer, store.reader) = open(&store.backend, narrow(4)).unwrap();
        let clients = resting(&store, &between("k", "m"), CLIENTS);
        let clients = clients.into_iter().map(|watching| (watching, Place::default(), Vec::new())).collect();
        let mut run = Run { store, clients, relay: None, written: Vec::new() };
        actions.into_iter().for_each(|action| run.act(action));
        run.store.commit();
        for at in 0..CLIENTS {
            while run.poll(at) {}
            prop_assert_eq!(&run.clients[at].2, &run.written, "client {}", at);
        }
    }
}
