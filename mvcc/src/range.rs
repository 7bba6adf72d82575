//! Ranges: which revisions answer a range request, in which order, and how many of them.
//!
//! Follows etcd in every detail that a client can see:
//! - without a sort order and without filters, the limit is applied to the keys in order, *before* any sorting by a
//!   target other than the key; otherwise everything is gathered, filtered, sorted, and then cut;
//! - `count` is the number of keys in the range at that revision, whatever the limit and the filters leave.
//!
//! Filters and all sort targets but the value are decided on the index; only what is answered is read from disk.

use std::cmp::Ordering;
use std::ops::ControlFlow;

use crate::error::ReadError;
use crate::index::Rev;
use crate::keyrange::KeyRange;
use crate::record::Record;
use crate::records::{Afterwards, FetchError};
use crate::reply::{Allowance, RangeResult};
use crate::request::{RangeOptions, RangeRequest, SortOrder, SortTarget};
use crate::state::State;
use crate::view::View;

/// Records that are read at a time where all of them may be too much: no more than these are read in vain.
const WITHIN_PIECE: usize = 128;

/// The revisions that answer a range, sorted and cut unless the order depends on the values.
pub(crate) struct Gathered {
    pub(crate) revs: Vec<Rev>,
    pub(crate) count: i64,
    pub(crate) more: bool,
}

impl State<'_> {
    /// Answers a range at the revision `at`, which must be readable. O(log n + answer) by key at the newest revision;
    /// linear in the range for older revisions, filters and sorting.
    pub(crate) fn range(&self, request: &RangeRequest, at: i64) -> Result<RangeResult, FetchError> {
        self.range_by(request, at, |revs| self.fetch_many(revs, Afterwards::Keep))
    }

    /// The same as far as it may be read. If it may not, the answer holds no records, and is none.
    pub(crate) fn range_allowed(
        &self,
        request: &RangeRequest,
        at: i64,
        allowance: &mut Allowance,
    ) -> Result<RangeResult, FetchError> {
        if !allowance.is_open() {
            return Ok(self.leave_out());
        }
        self.range_by(request, at, |revs| self.fetch_allowed(revs, allowance))
    }

    fn range_by(
        &self,
        request: &RangeRequest,
        at: i64,
        fetch: impl FnOnce(&[Rev]) -> Result<Vec<Record>, FetchError>,
    ) -> Result<RangeResult, FetchError> {
        self.metrics.ranges.add(1);
        let options = &request.options;
        if options.count_only {
            let count = self.count(&request.range, at);
            return Ok(RangeResult { count, revision: self.revision, ..RangeResult::default() });
        }
        let Gathered { revs, count, mut more } = self.gather(&request.range, at, options);
        let mut kvs = fetch(&revs)?;
        if options.sort_target == SortTarget::Value {
            sort_by_value(&mut kvs, options.sort_order);
            more = cut(&mut kvs, options.limit);
        }
        if options.keys_only {
            kvs.iter_mut().for_each(|record| *record = record.without_value());
        }
        Ok(RangeResult { kvs, more, count, revision: self.revision })
    }

    /// Stands for the answer to a range that nobody waits for, or that may not be read.
    fn leave_out(&self) -> RangeResult {
        self.metrics.ranges.add(1);
        RangeResult { revision: self.revision, ..RangeResult::default() }
    }

    /// Finds the revisions that answer a range. If the order depends on the values, they are neither sorted nor cut.
    pub(crate) fn gather(&self, range: &KeyRange, at: i64, options: &RangeOptions) -> Gathered {
        let early = early_limit(options);
        // At older revisions the keys must be walked to be counted; at the newest the index knows their number.
        let walk_on = at < self.revision;
        let filtered = options.has_filters();
        let (mut revs, mut seen, mut cut_short) = (Vec::new(), 0, false);
        self.walk_range(range, at, |rev| {
            if early.is_some_and(|most| revs.len() >= most) {
                cut_short = true;
                if !walk_on {
                    return ControlFlow::Break(());
                }
            } else if !filtered || options.admits(rev.create, rev.at.main()) {
                revs.push(rev);
            }
            seen += 1;
            ControlFlow::Continue(())
        });
        let count = if cut_short && !walk_on { self.count(range, at) } else { seen };
        if options.sort_target == SortTarget::Value {
            return Gathered { revs, count, more: false };
        }
        sort_revs(&mut revs, options);
        let more = cut(&mut revs, options.limit);
        Gathered { revs, count, more }
    }
}

impl View {
    /// As [`View::range`], if the records that are read for it have no more than `bytes_max` encoded bytes together. If
    /// they have more it stops there, and the answer is `None`.
    ///
    /// Where only keys are wanted values do not count, except where they decide the order: then all records of the
    /// range count whole, however few are answered.
    pub fn range_within(&self, request: &RangeRequest, bytes_max: usize) -> Result<Option<RangeResult>, ReadError> {
        let (state, options) = (self.state(), &request.options);
        let at = state.resolve(request.revision)?;
        let mut allowance = Allowance::Bytes(bytes_max);
        let answer = state.range_by(request, at, |revs| {
            let mut records = Vec::new();
            for piece in revs.chunks(WITHIN_PIECE) {
                let mut read = state.fetch_many(piece, Afterwards::Keep)?;
                if options.keys_only && options.sort_target != SortTarget::Value {
                    // At once, so that values that nobody wants are not held until all is read.
                    read.iter_mut().for_each(|record| *record = record.without_value());
                }
                if !allowance.take(read.iter().map(|record| record.bytes().len()).sum()) {
                    return Ok(Vec::new());
                }
                records.extend(read);
            }
            Ok(records)
        });
        let answer = answer.map_err(|error| self.explain(error, at))?;
        Ok(allowance.is_open().then_some(answer))
    }

    /// The same for a range of a transaction that only reads, where no revision but zero means the newest.
    pub fn txn_range_within(&self, range: &RangeRequest, bytes_max: usize) -> Result<Option<RangeResult>, ReadError> {
        self.state().check_readable(range.revision)?;
        self.range_within(range, bytes_max)
    }
}

/// How many keys to gather at most: one more than the limit, to know whether there are more. `None` is all of them.
pub(crate) fn early_limit(options: &RangeOptions) -> Option<usize> {
    let unsorted = options.sort_order == SortOrder::None;
    let limited = options.limit > 0;
    (unsorted && limited && !options.has_filters())
        .then(|| usize::try_from(options.limit).map_or(usize::MAX, |limit| limit.saturating_add(1)))
}

/// Keeps the first `limit` items; true if that cut any off.
fn cut<T>(items: &mut Vec<T>, limit: i64) -> bool {
    match usize::try_from(limit) {
        Ok(limit) if limit > 0 && limit < items.len() => {
            items.truncate(limit);
            true
        }
        Ok(_) | Err(_) => false,
    }
}

/// Sorts by what the index knows. `revs` come by key ascending, and equal ones stay so.
fn sort_revs(revs: &mut [Rev], options: &RangeOptions) {
    let figure = match options.sort_target {
        SortTarget::Version => |rev: &Rev| rev.version,
        SortTarget::Create => |rev: &Rev| rev.create,
        SortTarget::Mod => |rev: &Rev| rev.at.main(),
        SortTarget::Key if options.sort_order == SortOrder::Descend => return revs.reverse(),
        SortTarget::Key | SortTarget::Value => return,
    };
    revs.sort_by(|one, other| in_order(options.sort_order, figure(one).cmp(&figure(other))));
}

fn sort_by_value(records: &mut [Record], order: SortOrder) {
    records.sort_by(|one, other| in_order(order, one.value().cmp(other.value())));
}

/// A target other than the key without an order means ascending.
fn in_order(order: SortOrder, found: Ordering) -> Ordering {
    match order {
        SortOrder::None | SortOrder::Ascend => found,
        SortOrder::Descend => found.reverse(),
    }
}
