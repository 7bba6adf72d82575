//! Watching against a model: whatever is written, compacted, swept, polled slowly, canceled or replaced, each watcher sees
//! just what the history has for it.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;

use bytes::Bytes;
use common::watching::Watching;
use common::{Store, small_cache};
use proptest::prelude::*;
use tally_mvcc::{
    Batch, DeleteRequest, Delivery, Filters, History, HistoryRead, KeyRange, Op, Options, PutRequest, Step,
    SweepLimits, TxnRequest, WatchLimits, WatchSpec, open,
};

#[derive(Clone, Debug)]
enum Write {
    Put(Bytes, u8),
    Delete(KeyRange),
    Txn(Vec<Write>),
    /// At this share, in percent, of the current revision.
    Compact(i64),
}

#[derive(Clone, Debug)]
enum Action {
    Write(Write),
    /// Publishes what was written on the store that is watched.
    Publish,
    Sweep,
    Poll(usize),
    /// Range, start as a distance from the current revision (none is now), filters, prev_kv, notify.
    Create(KeyRange, Option<i64>, bool, bool, bool, bool),
    Cancel(usize),
    Progress,
    Tick,
    /// The other replica takes the place of the one that is watched.
    Replace,
}

fn key() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(b'a'..=b'c', 1..=2).prop_map(Bytes::from)
}

fn range() -> impl Strategy<Value = KeyRange> {
    let end = prop_oneof![3 => Just(Bytes::new()), 1 => Just(Bytes::from_static(b"\0")), 3 => key()];
    let range = (key(), end).prop_map(|(key, end)| KeyRange::new(key, end).unwrap());
    prop_oneof![5 => range, 1 => Just(KeyRange::all())].prop_filter("holds keys", |range| !range.is_empty())
}

fn write() -> impl Strategy<Value = Write> {
    let one = prop_oneof![
        4 => (key(), any::<u8>()).prop_map(|(key, value)| Write::Put(key, value)),
        1 => range().prop_map(Write::Delete),
    ];
    let txn = prop::collection::vec(one.clone(), 2..5).prop_map(Write::Txn);
    prop_oneof![6 => one, 2 => txn, 1 => (0..=100i64).prop_map(Write::Compact)]
}

fn action() -> impl Strategy<Value = Action> {
    let start = prop_oneof![2 => Just(None), 3 => (-12..4i64).prop_map(Some)];
    let rarely = || prop::bool::weighted(0.2);
    let create = (range(), start, rarely(), rarely(), any::<bool>(), any::<bool>()).prop_map(
        |(range, start, no_put, no_delete, prev, notify)| Action::Create(range, start, no_put, no_delete, prev, notify),
    );
    prop_oneof![
        12 => write().prop_map(Action::Write),
        5 => Just(Action::Publish),
        1 => Just(Action::Sweep),
        6 => (0..12usize).prop_map(Action::Poll),
        3 => create,
        1 => any::<usize>().prop_map(Action::Cancel),
        1 => Just(Action::Progress),
        1 => Just(Action::Tick),
        1 => Just(Action::Replace),
    ]
}

/// One change of the history that every replica has.
#[derive(Clone, Debug)]
struct Change {
    revision: i64,
    key: Bytes,
    value: Option<u8>,
    prev: Option<u8>,
}

/// A replica: a store, and how much of the writes it has done.
struct Replica {
    store: Store,
    done: usize,
    /// How often it was opened. The stores that it was before have the same backend.
    opened: usize,
}

fn tiny() -> Options {
    Options { watch_window_events: 5, ..small_cache() }
}

impl Replica {
    fn new() -> Replica {
        let mut replica = Replica { store: Store::new(), done: 0, opened: 0 };
        replica.reopen();
        replica
    }

    fn reopen(&mut self) {
        self.store.commit();
        (self.store.writer, self.store.reader) = open(&self.store.backend, tiny()).unwrap();
        self.opened += 1;
    }

    /// Does the writes up to `upto`; returns what the last one changed, as the store has it.
    fn catch_up(&mut self, writes: &[Write], upto: usize) {
        for write in &writes[self.done..upto] {
            let done = match write {
                Write::Put(key, value) => self.store.put(&put(key, *value)).map(drop),
                Write::Delete(range) => {
                    self.store.delete(&delete(range));
                    Ok(())
                }
                Write::Txn(writes) => self.store.txn(&txn(writes)).map(drop),
                Write::Compact(percent) => {
                    let at = self.store.writer.revision() * percent / 100;
                    // A compaction that comes too late is refused by every replica.
                    let _ = self.store.compact(at);
                    Ok(())
                }
            };
            done.unwrap();
        }
        self.done = upto;
    }
}

fn put(key: &Bytes, value: u8) -> PutRequest {
    PutRequest::new(key.clone(), vec![value])
}

fn delete(range: &KeyRange) -> DeleteRequest {
    DeleteRequest { range: range.clone(), prev_kv: false }
}

fn txn(writes: &[Write]) -> TxnRequest {
    let op = |write: &Write| match write {
        Write::Put(key, value) => Op::Put(put(key, *value)),
        Write::Delete(range) => Op::Delete(delete(range)),
        Write::Txn(_) | Write::Compact(_) => unreachable!("not generated inside a transaction"),
    };
    TxnRequest { success: writes.iter().map(op).collect(), ..TxnRequest::default() }
}

/// The history, and the keys as they are.
#[derive(Default)]
struct Model {
    changes: Vec<Change>,
    keys: BTreeMap<Bytes, u8>,
    revision: i64,
}

impl Model {
    fn run(&mut self, write: &Write) {
        let (before, revision) = (self.keys.clone(), self.revision + 1);
        let count = self.changes.len();
        let writes = match write {
            Write::Txn(writes) => writes.clone(),
            Write::Compact(_) => return,
            one => vec![one.clone()],
        };
        for write in writes {
            match write {
                Write::Put(key, value) => {
                    // A key that its own transaction deleted first is created anew, and had nothing before.
                    let prev = self.keys.get(&key).and(before.get(&key)).copied();
                    self.keys.insert(key.clone(), value);
                    self.changes.push(Change { revision, key, value: Some(value), prev });
                }
                Write::Delete(range) => {
                    let gone: Vec<Bytes> = self.keys.keys().filter(|key| range.contains(key)).cloned().collect();
                    for key in gone {
                        self.keys.remove(&key);
                        let prev = before.get(&key).copied();
                        self.changes.push(Change { revision, key, value: None, prev });
                    }
                }
                Write::Txn(_) | Write::Compact(_) => {}
            }
        }
        if self.changes.len() > count {
            self.revision = revision;
        }
    }
}

/// Only transactions that a server lets through, and of these none that puts a key into a range that it deletes: etcd lets
/// that through for ranges without an end, and a compaction at its revision keeps only the last of the key's two changes.
fn is_valid(write: &Write) -> bool {
    let is_deleted = |writes: &[Write], key: &Bytes| {
        writes.iter().any(|write| matches!(write, Write::Delete(range) if range.contains(key)))
    };
    match write {
        Write::Txn(writes) => {
            let twice = writes.iter().any(|write| matches!(write, Write::Put(key, _) if is_deleted(writes, key)));
            !twice && txn(writes).validate(128).is_ok()
        }
        Write::Put(..) | Write::Delete(_) | Write::Compact(_) => true,
    }
}

/// What the model knows of a watcher.
struct Seen {
    range: KeyRange,
    filters: Filters,
    prev_kv: bool,
    /// Everything before this revision has been seen, or is not wanted.
    next: i64,
    start: i64,
    told: i64,
}

struct Check {
    model: Model,
    watchers: BTreeMap<i64, Seen>,
}

impl Check {
    fn wanted<'a>(&'a self, seen: &'a Seen, upto: i64) -> impl Iterator<Item = &'a Change> {
        self.model.changes.iter().filter(move |change| {
            change.revision >= seen.next
                && change.revision <= upto
                && seen.range.contains(&change.key)
                && if change.value.is_some() { !seen.filters.no_put } else { !seen.filters.no_delete }
        })
    }

    fn batch(&mut self, batch: &Batch, compact: i64) {
        let seen = &self.watchers[&batch.id];
        let last = batch.events.last().unwrap().revision();
        assert!(last <= batch.revision, "a batch tells of events after the revision that it reaches");
        let expected: Vec<&Change> = self.wanted(seen, last).collect();
        assert_eq!(batch.events.len(), expected.len(), "{batch:?} for {expected:?} of {}", batch.id);
        for (event, change) in batch.events.iter().zip(expected) {
            let value = change.value.map_or(vec![], |value| vec![value]);
            let record = event.record();
            assert_eq!((event.revision(), record.key()), (change.revision, &change.key[..]));
            assert_eq!((event.is_delete(), record.value()), (change.value.is_none(), &value[..]));
            if seen.prev_kv {
                let prev = event.prev_kv().map(|record| record.value()[0]);
                let absent = prev.is_none() && change.revision - 1 < compact;
                assert!(absent || prev == change.prev, "{event:?} has {prev:?} instead of {:?}", change.prev);
            }
        }
        assert_eq!(self.wanted(seen, batch.revision).count(), batch.events.len(), "{batch:?} is not all up to there");
        let next = batch.revision + 1;
        let seen = self.watchers.get_mut(&batch.id).unwrap();
        seen.next = next;
    }

    fn progress(&mut self, id: Option<i64>, revision: i64) {
        let ids: Vec<i64> = id.map_or_else(|| self.watchers.keys().copied().collect(), |id| vec![id]);
        for id in ids {
            let seen = &self.watchers[&id];
            assert_eq!(self.wanted(seen, revision).count(), 0, "progress {revision} of {id} before its events");
            assert!(revision + 1 >= seen.next && revision >= seen.start && revision >= seen.told);
            self.watchers.get_mut(&id).unwrap().told = revision;
        }
    }

    fn canceled(&mut self, id: i64, compact: i64) {
        let seen = self.watchers.remove(&id).unwrap();
        let lost = self.wanted(&seen, i64::MAX).map(|change| change.revision).min();
        assert!(seen.next < compact, "canceled at {compact} although it is at {}; next event {lost:?}", seen.next);
    }
}

struct Run {
    writes: Vec<Write>,
    replicas: [Replica; 2],
    watched: usize,
    watching: Watching,
    /// The store that the stream is attached to: which replica, and how often that had been opened.
    attached: (usize, usize),
    out: Option<Out>,
    /// The store that what is out is read from.
    out_of: (usize, usize),
    check: Check,
}

/// A piece of history that is out: not read yet, or read and not absorbed.
enum Out {
    Unread(History),
    Read(HistoryRead),
}

impl Run {
    fn new() -> Run {
        let replicas = [Replica::new(), Replica::new()];
        let limits = WatchLimits { batch_events: 3, history_records: 4, ..WatchLimits::default() };
        let watching = Watching::with(&replicas[0].store.reader, limits);
        let model = Model { revision: 1, ..Model::default() };
        let check = Check { model, watchers: BTreeMap::new() };
        let attached = (0, replicas[0].opened);
        Run { writes: Vec::new(), replicas, watched: 0, watching, attached, out: None, out_of: attached, check }
    }

    fn store(&mut self) -> &mut Store {
        &mut self.replicas[self.watched].store
    }

    fn publish(&mut self) {
        let upto = self.writes.len();
        self.replicas[self.watched].catch_up(&self.writes, upto);
        self.store().commit();
    }

    /// One step, if there is anything; history goes `late` ways.
    fn step(&mut self) -> bool {
        match self.watching.step() {
            None => false,
            Some(Step::Closed) => {
                assert!(self.watching.stream.attach(&self.replicas[self.watched].store.reader));
                self.attached = (self.watched, self.replicas[self.watched].opened);
                true
            }
            Some(Step::Read(history)) => {
                assert!(self.out.is_none());
                self.out = Some(Out::Unread(history));
                self.out_of = self.attached;
                true
            }
            Some(Step::Deliver(Delivery::Events(batch))) => {
                // What a key had before may have been looked up in the replica that was watched before.
                let compact = self.replicas.iter().map(|replica| replica.store.reader.compact_revision());
                let compact = compact.max().unwrap();
                self.check.batch(&batch, compact);
                true
            }
            Some(Step::Deliver(Delivery::Progress { id, revision })) => {
                self.check.progress(id, revision);
                true
            }
            Some(Step::Deliver(Delivery::Canceled { id, compact_revision, .. })) => {
                self.check.canceled(id, compact_revision);
                true
            }
            Some(Step::Deliver(Delivery::Failed(error))) => panic!("{error}"),
        }
    }

    /// Whether something will be read from a store that the watched replica was before it was opened again. A server's store
    /// that is replaced keeps its files to itself; here the one that takes its place must not sweep them.
    fn reads_a_former_store(&self) -> bool {
        let is_former = |of: (usize, usize)| of.0 == self.watched && of.1 != self.replicas[of.0].opened;
        is_former(self.attached) || (matches!(self.out, Some(Out::Unread(_))) && is_former(self.out_of))
    }

    /// Takes what is out one stage further.
    fn further(&mut self) -> bool {
        match self.out.take() {
            None => false,
            Some(Out::Unread(history)) => {
                self.out = Some(Out::Read(history.read()));
                true
            }
            Some(Out::Read(read)) => {
                self.watching.stream.absorb(read);
                true
            }
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Write(write) if is_valid(&write) => {
                self.check.model.run(&write);
                self.writes.push(write);
            }
            Action::Write(_) => {}
            Action::Publish => self.publish(),
            Action::Sweep if self.reads_a_former_store() => {}
            Action::Sweep => {
                let limits = SweepLimits { records: 5, wait_for_views: false };
                self.store().reader.sweep(limits).unwrap();
            }
            Action::Poll(steps) => {
                self.further();
                (0..steps).for_each(|_| {
                    self.step();
                });
            }
            Action::Create(range, start, no_put, no_delete, prev_kv, progress_notify) => {
                let filters = Filters { no_put, no_delete };
                let current = self.store().reader.revision();
                let start = start.map_or(0, |distance| (current + distance).max(1));
                let spec = WatchSpec { start, filters, prev_kv, progress_notify, ..WatchSpec::new(range.clone()) };
                let created = self.watching.stream.create(spec).unwrap();
                let next = if start == 0 { created.revision + 1 } else { start };
                let seen = Seen { range, filters, prev_kv, next, start, told: 0 };
                assert!(self.check.watchers.insert(created.id, seen).is_none());
            }
            Action::Cancel(which) => {
                let ids: Vec<i64> = self.check.watchers.keys().copied().collect();
                if !ids.is_empty() {
                    let id = ids[which % ids.len()];
                    // Compaction may have ended it already, without this having been told yet.
                    if self.watching.stream.cancel(id) {
                        self.check.watchers.remove(&id);
                    }
                }
            }
            Action::Progress => self.watching.stream.request_progress(),
            Action::Tick => self.watching.stream.tick(),
            Action::Replace => {
                // What is replaced closes; what takes its place may be further, or not as far.
                self.replicas[self.watched].reopen();
                self.watched = 1 - self.watched;
            }
        }
    }

    /// Everybody gets everything.
    fn end(&mut self) {
        self.publish();
        while self.step() || self.further() {}
        let revision = self.check.model.revision;
        assert_eq!(self.store().reader.revision(), revision);
        for (id, seen) in &self.check.watchers {
            assert_eq!(self.check.wanted(seen, revision).count(), 0, "watcher {id} lacks events");
        }
        assert_eq!(self.watching.stream.watchers(), self.check.watchers.len());
        // All are level now, so progress is told, unless somebody waits for what is not there yet.
        self.watching.stream.request_progress();
        let told = self.watching.drain();
        let early = self.check.watchers.values().any(|seen| seen.start > revision);
        let expected = usize::from(!early && !self.check.watchers.is_empty());
        assert_eq!(told.len(), expected, "{told:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_watcher_sees_just_its_history(actions in prop::collection::vec(action(), 1..120)) {
        let mut run = Run::new();
        actions.into_iter().for_each(|action| run.act(action));
        run.end();
    }
}
