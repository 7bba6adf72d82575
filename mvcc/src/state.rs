//! One state of the store to read from: the writer's working state, or a published one. All reading goes through here.

use std::ops::ControlFlow;

use crate::error::Rejection;
use crate::index::{Key, KeyHistory, Rev, Tree};
use crate::keyrange::{KeyRange, RangeEnd};
use crate::metrics::Metrics;
use crate::record::Record;
use crate::records::{Afterwards, FetchError, Records, Staged};
use crate::reply::Allowance;

/// Records that are read at a time where all of them may be too much: no more than these are read in vain.
const ALLOWED_PIECE: usize = 128;

/// A state that can be read: the index, the revisions it stands at, and where its records are.
#[derive(Clone, Copy)]
pub(crate) struct State<'a> {
    pub(crate) tree: &'a Tree,
    /// The newest revision in the tree.
    pub(crate) revision: i64,
    /// Revisions below this one cannot be read any more.
    pub(crate) compact: i64,
    pub(crate) records: &'a Records,
    pub(crate) staged: &'a Staged,
    pub(crate) metrics: &'a Metrics,
}

impl<'a> State<'a> {
    /// The revision that a plain range reads: anything not positive means the newest.
    pub(crate) fn resolve(&self, requested: i64) -> Result<i64, Rejection> {
        match requested {
            ..=0 => Ok(self.revision),
            _ => self.check_readable(requested).map(|()| requested),
        }
    }

    /// What a range inside a transaction may ask for: zero, or a revision that is there. A negative one is taken
    /// for the revision it says, which only a store that was never compacted can bear.
    pub(crate) fn check_readable(&self, requested: i64) -> Result<(), Rejection> {
        let (current, compacted) = (self.revision, self.compact);
        if requested == 0 {
            Ok(())
        } else if requested > current {
            Err(Rejection::FutureRevision { requested, current })
        } else if requested < compacted {
            Err(Rejection::Compacted { requested, compacted })
        } else {
            Ok(())
        }
    }

    /// The revision of a key that was in force at `at`, unless the key was absent.
    pub(crate) fn visible(&self, history: KeyHistory<'_>, at: i64) -> Option<Rev> {
        let found = if at >= self.revision { Some(history.newest()) } else { history.at(at) };
        found.filter(|rev| !rev.is_tombstone())
    }

    /// The revision of one key in force at `at`.
    pub(crate) fn lookup(&self, key: &[u8], at: i64) -> Option<Rev> {
        self.tree.get(key).and_then(|history| self.visible(history, at))
    }

    /// Shows the keys of a range of several keys that are there at `at`, in order, from `start` on.
    /// O(log n) to begin, then O(1) per key that has a history, deleted ones included; at the newest revision those that are
    /// deleted cost only where others are among them, in the same leaf of the index.
    pub(crate) fn walk(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
        at: i64,
        mut show: impl FnMut(Key<'a>, Rev) -> ControlFlow<()>,
    ) {
        if end.is_some_and(|end| end <= start) {
            return;
        }
        let keys = if at >= self.revision { self.tree.range_live(start, end) } else { self.tree.range(start, end) };
        for (key, history) in keys {
            if let Some(rev) = self.visible(history, at)
                && show(key, rev).is_break()
            {
                return;
            }
        }
    }

    /// Shows the revisions of a range, of one key or several, that are there at `at`, in key order.
    pub(crate) fn walk_range(&self, range: &KeyRange, at: i64, mut show: impl FnMut(Rev) -> ControlFlow<()>) {
        match range.end() {
            RangeEnd::Single => {
                if let Some(rev) = self.lookup(range.start(), at) {
                    let _ = show(rev);
                }
            }
            RangeEnd::Before(_) | RangeEnd::Unbounded => {
                self.walk(range.start(), range.upper(), at, |_, rev| show(rev));
            }
        }
    }

    /// How many keys of a range are there at `at`. O(log n) at the newest revision, linear at older ones.
    pub(crate) fn count(&self, range: &KeyRange, at: i64) -> i64 {
        let counted = match range.end() {
            RangeEnd::Single => u64::from(self.lookup(range.start(), at).is_some()),
            RangeEnd::Before(_) | RangeEnd::Unbounded if range.is_empty() => 0,
            RangeEnd::Before(_) | RangeEnd::Unbounded if at >= self.revision => {
                self.tree.count_live(range.start(), range.upper())
            }
            RangeEnd::Before(_) | RangeEnd::Unbounded => {
                let mut counted = 0;
                self.walk(range.start(), range.upper(), at, |_, _| {
                    counted += 1;
                    ControlFlow::Continue(())
                });
                counted
            }
        };
        counted.cast_signed()
    }

    pub(crate) fn fetch(&self, rev: Rev) -> Result<Record, FetchError> {
        self.records.get(rev.at, self.staged, self.metrics)
    }

    pub(crate) fn fetch_many(&self, revs: &[Rev], afterwards: Afterwards) -> Result<Vec<Record>, FetchError> {
        if let [rev] = revs {
            return Ok(vec![self.fetch(*rev)?]);
        }
        let revisions: Vec<_> = revs.iter().map(|rev| rev.at).collect();
        self.records.get_many(&revisions, self.staged, self.metrics, afterwards)
    }

    /// As [`State::fetch_many`], if that many may be read. If not, it stops there, and gives none.
    pub(crate) fn fetch_allowed(&self, revs: &[Rev], allowance: &mut Allowance) -> Result<Vec<Record>, FetchError> {
        let mut records = Vec::new();
        if !allowance.is_open() {
            return Ok(records);
        }
        for piece in revs.chunks(ALLOWED_PIECE) {
            let read = self.fetch_many(piece, Afterwards::Keep)?;
            if !allowance.take(read.iter().map(|record| record.bytes().len()).sum()) {
                return Ok(Vec::new());
            }
            // What fits into one piece, which is nearly everything, is not moved about.
            if records.is_empty() {
                records = read;
            } else {
                records.extend(read);
            }
        }
        Ok(records)
    }
}
