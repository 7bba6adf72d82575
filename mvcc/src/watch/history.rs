//! Reading what a watcher lacks from the store, in bounded pieces, away from whoever writes.
//!
//! A watcher of one key asks the index which revisions the key had. Watchers of ranges are served together by one scan of
//! the records, which are stored by revision, from the lowest cursor among them.
//!
//! **Invariant**: a piece ends between two revisions, and what it says of a watcher is all that the watcher's range had
//! from its cursor to there. **Invariant**: the sweep takes nothing that a piece needs without the piece noticing: the
//! compaction is looked at again after the records have been pinned.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use tally_backend::Bucket;

use super::event::Event;
use super::spec::Filters;
use super::topic::Topic;
use crate::error::{Corruption, ReadError, Rejection};
use crate::index::Revision;
use crate::record::{self, Record};
use crate::records::Afterwards;
use crate::shared::Shared;
use crate::view::View;

/// A piece of history to be read for the watchers of one stream. Reading it may block on the disk.
pub struct History {
    pub(super) shared: Arc<Shared>,
    pub(super) cursors: Vec<Cursor>,
    pub(super) events_max: usize,
    pub(super) bytes_max: usize,
    pub(super) records_max: usize,
}

impl History {
    /// Where it begins: everything before has been handed out to the watchers that it is for, or they do not want it.
    pub fn start(&self) -> i64 {
        self.cursors.iter().map(|cursor| cursor.next).min().unwrap_or_default()
    }
}

/// What was read, for [`WatchStream::absorb`](super::WatchStream::absorb).
pub struct HistoryRead(pub(super) Vec<(Cursor, Outcome)>);

/// A watcher that reads.
pub(super) struct Cursor {
    pub(super) id: i64,
    /// Tells the watcher from a later one with its id.
    pub(super) serial: u32,
    pub(super) next: i64,
    pub(super) topic: Arc<Topic>,
    pub(super) filters: Filters,
    pub(super) prev_kv: bool,
}

/// How it went for one watcher.
pub(super) enum Outcome {
    /// All that it wants from its cursor up to, and not including, `next`.
    Read {
        events: Vec<Arc<Event>>,
        next: i64,
        /// The revision that the batch may be said to reach.
        revision: i64,
    },
    /// The piece was full before its turn came.
    NotYet,
    /// Its next revision is gone.
    Compacted { compact: i64, current: i64 },
    /// The store could not be read.
    Failed(ReadError),
}

/// Counts what a piece gathers.
struct Budget {
    events: usize,
    bytes: usize,
}

impl Budget {
    fn take(&mut self, record: &Record) {
        self.events = self.events.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(record.bytes().len());
    }

    fn is_spent(&self) -> bool {
        self.events == 0 || self.bytes == 0
    }
}

impl History {
    /// Reads the piece. Bounded by the limits of the stream, but for a revision that is larger than they are.
    pub fn read(self) -> HistoryRead {
        let view = View { shared: Arc::clone(&self.shared), at: self.shared.published.load_full() };
        let (ranges, singles): (Vec<_>, Vec<_>) = self.cursors.into_iter().partition(|one| !one.topic.is_single());
        let mut budget = Budget { events: self.events_max.max(1), bytes: self.bytes_max.max(1) };
        let mut all: Vec<(Cursor, Outcome)> = Vec::with_capacity(ranges.len() + singles.len());
        for cursor in singles {
            let outcome = if budget.is_spent() { Outcome::NotYet } else { read_key(&view, &cursor, &mut budget) };
            all.push((cursor, outcome));
        }
        if !ranges.is_empty() {
            match budget.is_spent() {
                true => all.extend(ranges.into_iter().map(|cursor| (cursor, Outcome::NotYet))),
                false => all.extend(read_ranges(&view, ranges, budget, self.records_max.max(1))),
            }
        }
        for (cursor, outcome) in &mut all {
            if let Outcome::Read { events, .. } = outcome
                && cursor.prev_kv
                && let Err(error) = events.iter().try_for_each(|event| event.find_prev(&self.shared))
            {
                *outcome = Outcome::Failed(error);
            }
        }
        HistoryRead(all)
    }
}

/// What the index knows of the key. O(log n), and a lookup for each revision.
fn read_key(view: &View, cursor: &Cursor, budget: &mut Budget) -> Outcome {
    let (current, compact) = (view.revision(), view.compact_revision());
    if cursor.next < compact {
        return Outcome::Compacted { compact, current };
    }
    let (mut events, mut reached, mut main) = (Vec::new(), current, 0);
    let history = view.at.tree.get(cursor.topic.start());
    for rev in history.iter().flat_map(|history| history.since(cursor.next)) {
        // One revision may change a key twice, so it is the next revision that ends the piece.
        if rev.at.main() != main && main != 0 && budget.is_spent() {
            reached = rev.at.main() - 1;
            break;
        }
        main = rev.at.main();
        let record = match view.state().fetch_many(&[rev], Afterwards::Forget) {
            Ok(mut records) => records.remove(0),
            // Of this revision itself a compaction at it may have dropped the record.
            Err(error) => return lost(view, cursor, view.explain(error, rev.at.main() - 1)),
        };
        budget.take(&record);
        if cursor.filters.lets(rev.is_tombstone()) {
            events.push(Arc::new(Event::new(rev.at, record)));
        }
    }
    Outcome::Read { events, next: reached + 1, revision: reached }
}

/// A record is missing: its compaction may be newer than the view.
fn lost(view: &View, cursor: &Cursor, error: ReadError) -> Outcome {
    let now = view.shared.published.load();
    let swept = matches!(error, ReadError::Overtaken { .. } | ReadError::Rejected(Rejection::Compacted { .. }));
    if swept && cursor.next < now.compact {
        return Outcome::Compacted { compact: now.compact, current: now.revision };
    }
    // The compaction is at this very revision, of which what it keeps may still be watched: another view shows that.
    if swept && cursor.next == now.compact && view.compact_revision() < now.compact {
        return Outcome::NotYet;
    }
    Outcome::Failed(error)
}

/// One scan for all watchers of ranges.
fn read_ranges(view: &View, cursors: Vec<Cursor>, budget: Budget, records_max: usize) -> Vec<(Cursor, Outcome)> {
    let current = view.revision();
    let pinned = view.shared.records.backend.read();
    // After the pin: nothing that this compaction needs can have been swept from what is pinned.
    let compact = view.shared.published.load().compact;
    let mut all: Vec<(Cursor, Outcome)> = Vec::with_capacity(cursors.len());
    let mut scan =
        RangeScan { view, compact, matched: Vec::new(), budget, records_left: records_max, main: 0, cut: None };
    for cursor in cursors {
        if cursor.next < compact {
            all.push((cursor, Outcome::Compacted { compact, current: current.max(compact) }));
        } else {
            scan.matched.push((cursor, Vec::new()));
        }
    }
    let Some(from) = scan.matched.iter().map(|(cursor, _)| cursor.next).min() else { return all };
    let (start, end) = (Revision::new(from, 0).to_key(), Revision::new(current + 1, 0).to_key());
    let mut corrupt = None;
    let scanned = pinned.for_each(Bucket::Kv, &start, Some(&end), |key, value| match scan.visit(key, value) {
        Ok(flow) => flow,
        Err(corruption) => {
            corrupt = Some(corruption);
            ControlFlow::Break(())
        }
    });
    drop(pinned);
    let failed = match (scanned, corrupt) {
        (Err(error), _) => Some(ReadError::Storage(error)),
        (Ok(()), Some(corruption)) => Some(ReadError::Corrupt(corruption)),
        (Ok(()), None) => None,
    };
    let reached = scan.cut.unwrap_or(current);
    all.extend(scan.matched.into_iter().map(|(cursor, events)| {
        let outcome = match &failed {
            Some(error) => Outcome::Failed(error.clone()),
            // A scan that was cut short below the cursor says nothing of it.
            None if scan.cut.is_some() && cursor.next > reached => Outcome::NotYet,
            None => Outcome::Read { events, next: cursor.next.max(reached + 1), revision: reached },
        };
        (cursor, outcome)
    }));
    all
}

struct RangeScan<'v> {
    view: &'v View,
    compact: i64,
    matched: Vec<(Cursor, Vec<Arc<Event>>)>,
    budget: Budget,
    records_left: usize,
    /// The revision that is being read.
    main: i64,
    /// The last revision read whole, if the scan did not come to the end.
    cut: Option<i64>,
}

impl RangeScan<'_> {
    fn visit(&mut self, key: &[u8], value: &[u8]) -> Result<ControlFlow<()>, Corruption> {
        let at = Revision::from_key(key).ok_or(Corruption::BadRevisionKey { length: key.len() })?;
        if at.main() != self.main {
            if self.main != 0 && (self.records_left == 0 || self.budget.is_spent()) {
                self.cut = Some(at.main() - 1);
                return Ok(ControlFlow::Break(()));
            }
            self.main = at.main();
        }
        self.records_left = self.records_left.saturating_sub(1);
        let (main, sub) = (at.main(), at.sub());
        let undecodable = |source| Corruption::Undecodable { main, sub, source };
        let parts = record::parse(value).map_err(undecodable)?;
        if parts.mod_revision != main {
            return Err(Corruption::Misplaced { main, sub, found: parts.mod_revision });
        }
        // What a compaction drops is not told, whether it has been swept or not.
        if main <= self.compact
            && self
                .view
                .at
                .tree
                .get(parts.key)
                .and_then(|history| history.at(self.compact))
                .is_none_or(|kept| kept.at != at)
        {
            return Ok(ControlFlow::Continue(()));
        }
        let mut shared = None;
        for (cursor, events) in &mut self.matched {
            if cursor.next > main || !cursor.topic.contains(parts.key) || !cursor.filters.lets(parts.version == 0) {
                continue;
            }
            let event = match &shared {
                Some(event) => event,
                None => {
                    let record = Record::decode(Bytes::copy_from_slice(value)).map_err(undecodable)?;
                    shared.insert(Arc::new(Event::new(at, record)))
                }
            };
            self.budget.take(event.record());
            events.push(Arc::clone(event));
        }
        Ok(ControlFlow::Continue(()))
    }
}

impl std::fmt::Debug for History {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("History").field("watchers", &self.cursors.len()).finish_non_exhaustive()
    }
}
