//! Opening a store: the index is rebuilt from all records in the backend.
//!
//! ```text
//!  records by revision ── slices ──> threads: decode, fingerprint, sort by key ──> merge ── compact ──> index
//! ```
//!
//! **Invariant**: the result does not depend on how far the sweep came. What is left of swept keys is newer than what
//! was swept, and the logical compaction is applied again while loading, so dead records leave no trace.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use tally_backend::{Backend, Bucket};

use crate::cache::RecordCache;
use crate::error::{Corruption, OpenError};
use crate::fingerprint::fingerprint;
use crate::index::{Rev, Revision, Tree};
use crate::merge::{Part, merge, show_leases};
use crate::meta::{self, Figures};
use crate::record;
use crate::records::Records;
use crate::reply::Allowance;
use crate::shared::{Dropped, Epoch, Published, Shared};
use crate::sweep::{SweepObserver, Sweeper};
use crate::view::Reader;
use crate::watch::Window;
use crate::writer::Writer;

/// Slices of the revisions per thread, so that threads finish at about the same time.
const SLICES_PER_THREAD: i64 = 8;
/// The most threads used to open.
const THREADS_MAX: u64 = 64;

/// How a store is opened. Nothing here changes what it answers.
#[derive(Clone, Debug)]
pub struct Options {
    /// Memory for records read or written lately, in bytes. Default 64 MiB.
    pub record_cache_bytes: u64,
    /// Threads that load the index. Default 2.
    pub open_threads: u64,
    /// Events kept in memory for watchers that have not taken them yet, once for each watched range that they touch.
    /// Whoever is further behind reads them from the backend. Default 16,384.
    pub watch_window_events: u64,
    /// What these events may take in memory, in bytes, encodings included. Default 32 MiB.
    pub watch_window_bytes: u64,
    /// Told when the sweep of a compaction begins and ends. Default none.
    pub sweep_observer: Option<Arc<dyn SweepObserver>>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            record_cache_bytes: 64 << 20,
            open_threads: 2,
            watch_window_events: 16_384,
            watch_window_bytes: 32 << 20,
            sweep_observer: None,
        }
    }
}

impl Options {
    /// Checks that every option is within its bounds.
    pub fn validate(&self) -> Result<(), OpenError> {
        let within = |name, given: u64, least: u64, most: u64| match given < least || given > most {
            true => Err(OpenError::BadOption { name, given, least, most }),
            false => Ok(()),
        };
        within("record_cache_bytes", self.record_cache_bytes, 1 << 20, 1 << 40)?;
        within("open_threads", self.open_threads, 1, THREADS_MAX)?;
        within("watch_window_events", self.watch_window_events, 1, 1 << 30)?;
        within("watch_window_bytes", self.watch_window_bytes, 1, 1 << 40)
    }
}

/// Opens the store that lives in `backend`, making an empty one if there is none.
///
/// Reads every record: linear in the data, about a second for a million small records. It holds about 120 bytes per
/// record beside the index while it loads. Compare [`Writer::root`] with the root that was stored with the applied
/// index: if they are equal, the records are the ones that were written.
pub fn open(backend: &Backend, options: Options) -> Result<(Writer, Reader), OpenError> {
    open_with_leases(backend, options, |_, _| {})
}

/// As [`open`], and shows `attached` every key that is there and has a lease, with that lease; in no particular order.
/// Whoever keeps the leases needs not read the records a second time.
pub fn open_with_leases(
    backend: &Backend,
    options: Options,
    attached: impl FnMut(&[u8], i64),
) -> Result<(Writer, Reader), OpenError> {
    options.validate()?;
    let figures = meta::read(backend)?;
    let tree = load(backend, figures, options.open_threads as usize, attached)?;
    let epoch = Arc::new(Epoch);
    let Figures { revision, compact, swept } = figures;
    let first = Published { tree: tree.clone(), revision, compact, epoch: Arc::clone(&epoch) };
    let records = Records { backend: backend.clone(), cache: RecordCache::new(options.record_cache_bytes) };
    let window = Window { events: options.watch_window_events as usize, bytes: options.watch_window_bytes as usize };
    let shared = Arc::new(Shared::new(records, first, Sweeper::new(swept, options.sweep_observer), window));
    let writer = Writer {
        shared: Arc::clone(&shared),
        tree,
        revision,
        compact,
        staged: Vec::new(),
        dropped: Dropped::none(),
        epoch,
        // A store that never wrote has none stored, and the revision assumed then changes with the first write.
        persisted: revision,
        allowance: Allowance::Bytes(usize::MAX),
        allowed: usize::MAX,
    };
    Ok((writer, Reader { shared }))
}

fn load(
    backend: &Backend,
    figures: Figures,
    threads: usize,
    attached: impl FnMut(&[u8], i64),
) -> Result<Tree, OpenError> {
    let Some(first) = first_main(backend)? else { return Ok(Tree::new()) };
    // Records beyond the current revision are found by the last slice, which has no end.
    let slices = SLICES_PER_THREAD * threads as i64;
    let length = ((figures.revision - first).max(0) / slices) + 1;
    let next_slice = AtomicI64::new(0);
    let work = || -> Result<Part, OpenError> {
        let mut part = Part::default();
        loop {
            let slice = next_slice.fetch_add(1, Ordering::Relaxed);
            if slice >= slices {
                part.sort();
                return Ok(part);
            }
            let start = first + slice * length;
            let end = (slice + 1 < slices).then(|| start + length);
            load_slice(backend, start, end, figures.revision, &mut part)?;
        }
    };
    let parts = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut parts = vec![work()];
        parts.extend(
            others.into_iter().map(|other| other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))),
        );
        parts.into_iter().collect::<Result<Vec<Part>, OpenError>>()
    })?;
    let tree = merge(&parts, figures.compact)?;
    show_leases(&parts, &tree, attached);
    Ok(tree)
}

/// Reads the records of a slice of revisions into `part`.
fn load_slice(backend: &Backend, start: i64, end: Option<i64>, current: i64, part: &mut Part) -> Result<(), OpenError> {
    let start = Revision::new(start, 0).to_key();
    let end = end.map(|end| Revision::new(end, 0).to_key());
    let mut failed = None;
    backend.read().for_each(Bucket::Kv, &start, end.as_ref().map(|end| &end[..]), |key, value| {
        match load_record(key, value, current, part) {
            Ok(()) => ControlFlow::Continue(()),
            Err(corruption) => {
                failed = Some(corruption);
                ControlFlow::Break(())
            }
        }
    })?;
    failed.map_or(Ok(()), |corruption| Err(corruption.into()))
}

fn load_record(key: &[u8], value: &[u8], current: i64, part: &mut Part) -> Result<(), Corruption> {
    let at = Revision::from_key(key).ok_or(Corruption::BadRevisionKey { length: key.len() })?;
    let (main, sub) = (at.main(), at.sub());
    let parts = record::parse(value).map_err(|source| Corruption::Undecodable { main, sub, source })?;
    if parts.mod_revision != main {
        return Err(Corruption::Misplaced { main, sub, found: parts.mod_revision });
    }
    if main > current {
        return Err(Corruption::BeyondCurrent { main, current });
    }
    let print = fingerprint(parts.key, at, parts.create_revision, parts.version, parts.lease, parts.value);
    part.push(parts.key, Rev { at, create: parts.create_revision, version: parts.version, print }, parts.lease);
    Ok(())
}

fn first_main(backend: &Backend) -> Result<Option<i64>, OpenError> {
    let mut first = None;
    backend.read().for_each(Bucket::Kv, &[], None, |key, _| {
        first = Some(Revision::from_key(key).map(Revision::main).ok_or(key.len()));
        ControlFlow::Break(())
    })?;
    match first {
        None => Ok(None),
        Some(Ok(main)) => Ok(Some(main)),
        Some(Err(length)) => Err(Corruption::BadRevisionKey { length }.into()),
    }
}
