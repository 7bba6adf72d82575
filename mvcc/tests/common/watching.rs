//! A stream with somebody who polls it.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use tally_mvcc::{Batch, Delivery, KeyRange, Options, Reader, Step, WatchLimits, WatchSpec, WatchStream, open};

use super::{Store, small_cache};

/// Counts how often it is woken.
#[derive(Default)]
pub struct Bell(AtomicUsize);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

pub struct Watching {
    pub stream: WatchStream,
    pub bell: Arc<Bell>,
}

/// One change, as a test says it: revision, key, value (none if deleted).
pub type Change = (i64, String, Option<String>);

impl Watching {
    pub fn new(reader: &Reader) -> Watching {
        Watching::with(reader, WatchLimits::default())
    }

    pub fn with(reader: &Reader, limits: WatchLimits) -> Watching {
        Watching { stream: reader.watch_stream(limits), bell: Arc::default() }
    }

    pub fn create(&mut self, range: KeyRange, start: i64) -> i64 {
        self.stream.create(WatchSpec { start, ..WatchSpec::new(range) }).unwrap().id
    }

    pub fn woken(&self) -> usize {
        self.bell.0.load(Ordering::SeqCst)
    }

    pub fn step(&mut self) -> Option<Step> {
        let waker = Waker::from(Arc::clone(&self.bell));
        match pin!(&mut self.stream).poll_next(&mut Context::from_waker(&waker)) {
            Poll::Ready(step) => Some(step),
            Poll::Pending => None,
        }
    }

    /// Everything there is, history read at once.
    pub fn drain(&mut self) -> Vec<Delivery> {
        let mut all = Vec::new();
        while let Some(step) = self.step() {
            match step {
                Step::Deliver(delivery) => all.push(delivery),
                Step::Read(history) => self.stream.absorb(history.read()),
                Step::Closed => panic!("the store is closed"),
            }
        }
        all
    }

    /// Everything there is, which must be batches.
    pub fn batches(&mut self) -> Vec<Batch> {
        let batch = |delivery| match delivery {
            Delivery::Events(batch) => batch,
            other => panic!("{other:?}"),
        };
        self.drain().into_iter().map(batch).collect()
    }

    /// All changes for one watcher, in one list.
    pub fn changes(&mut self, id: i64) -> Vec<Change> {
        self.batches().iter().filter(|batch| batch.id == id).flat_map(changes).collect()
    }
}

pub fn changes(batch: &Batch) -> Vec<Change> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    batch
        .events
        .iter()
        .map(|event| {
            let record = event.record();
            let value = (!event.is_delete()).then(|| text(record.value()));
            (event.revision(), text(record.key()), value)
        })
        .collect()
}

pub fn put_of(revision: i64, key: &str, value: &str) -> Change {
    (revision, key.to_owned(), Some(value.to_owned()))
}

pub fn delete_of(revision: i64, key: &str) -> Change {
    (revision, key.to_owned(), None)
}

/// A store whose window is so small that watchers fall behind at once.
pub fn narrow(events: u64) -> Options {
    Options { watch_window_events: events, ..small_cache() }
}

pub fn store_with_window(events: u64) -> Store {
    let mut store = Store::new();
    (store.writer, store.reader) = open(&store.backend, narrow(events)).unwrap();
    store
}
