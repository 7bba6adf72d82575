//! Ranges in pieces, for answers too large to be built at once.

use std::ops::ControlFlow;

use crate::error::ReadError;
use crate::index::Rev;
use crate::keyrange::KeyRange;
use crate::range::{Gathered, early_limit};
use crate::record::Record;
use crate::records::Afterwards;
use crate::request::{RangeRequest, SortTarget};
use crate::view::View;

/// Records read from the backend at once at first; doubled while pieces stay small.
const FIRST_GROUP: usize = 16;
/// The most records read from the backend at once: by so many, each as large as a request may be, a piece can go over its limit.
const LARGEST_GROUP: usize = 64;

/// Records of a range of up to so many keys are cached when they have been read: whoever wants all of it may want it again.
pub(crate) const KEPT_MAX: i64 = 1_000;

/// A range that is answered piece by piece, from one unchanging state. Made by [`View::scan`].
pub struct Scan {
    view: View,
    at: i64,
    keys_only: bool,
    count: i64,
    more: bool,
    source: Source,
}

enum Source {
    /// In key order: what is left of the range begins at `from`.
    Keys { from: Vec<u8>, range: KeyRange, left: usize },
    /// Sorted or filtered: found already, not read yet.
    Found(std::vec::IntoIter<Rev>),
    /// Sorted by value: read already.
    Read(std::vec::IntoIter<Record>),
}

impl View {
    /// Answers a range in pieces. The figures of the answer are known at once; the records are read as they are asked
    /// for. In key order it costs O(log n) to begin (linear in the range at older revisions, where keys must be
    /// counted) and holds one piece at a time. Filtered or sorted, it gathers 64 bytes per key first; sorted by value,
    /// the records themselves.
    pub fn scan(&self, request: &RangeRequest) -> Result<Scan, ReadError> {
        Ok(self.scan_within(request, usize::MAX)?.expect("no machine holds records of more bytes than it can count"))
    }

    /// The same, unless it had to begin with records of more than `bytes_max` encoded bytes in memory, which happens
    /// only if they are to be sorted by value: then `None`.
    pub fn scan_within(&self, request: &RangeRequest, bytes_max: usize) -> Result<Option<Scan>, ReadError> {
        let (state, options) = (self.state(), &request.options);
        let at = state.resolve(request.revision)?;
        let in_key_order = options.sort_target == SortTarget::Key
            && !options.count_only
            && !options.has_filters()
            && (early_limit(options).is_some() || options.limit <= 0)
            && options.sort_order != crate::SortOrder::Descend;
        let scan =
            |count, more, source| Scan { view: self.clone(), at, keys_only: options.keys_only, count, more, source };
        if options.count_only || options.sort_target == SortTarget::Value {
            let Some(answer) = self.range_within(request, bytes_max)? else { return Ok(None) };
            return Ok(Some(scan(answer.count, answer.more, Source::Read(answer.kvs.into_iter()))));
        }
        self.shared.metrics.ranges.add(1);
        if in_key_order && !request.range.is_single() {
            let count = state.count(&request.range, at);
            let limit = if options.limit > 0 { options.limit.min(count) } else { count };
            let left = usize::try_from(limit).unwrap_or(usize::MAX);
            let (from, range) = (request.range.start().to_vec(), request.range.clone());
            return Ok(Some(scan(count, limit < count, Source::Keys { from, range, left })));
        }
        let Gathered { revs, count, more } = state.gather(&request.range, at, options);
        Ok(Some(scan(count, more, Source::Found(revs.into_iter()))))
    }
}

impl Scan {
    /// How many keys the range has, whatever limit and filters say.
    pub fn count(&self) -> i64 {
        self.count
    }

    /// True if the limit cuts records off.
    pub fn more(&self) -> bool {
        self.more
    }

    /// The revision of the state that is read: etcd's header revision.
    pub fn revision(&self) -> i64 {
        self.view.revision()
    }

    /// The next records: at least one, at most `records_max`, and no more after `bytes_max` encoded bytes are reached.
    /// `None` at the end.
    pub fn next_piece(&mut self, records_max: usize, bytes_max: usize) -> Result<Option<Vec<Record>>, ReadError> {
        let mut piece = Vec::new();
        let (mut bytes, mut group) = (0, FIRST_GROUP);
        while piece.len() < records_max.max(1) && bytes < bytes_max.max(1) {
            let before = piece.len();
            for record in self.next_group(group.min(records_max.max(1) - before))? {
                bytes += record.bytes().len();
                piece.push(record);
            }
            if piece.len() == before {
                break;
            }
            if bytes < bytes_max / 4 {
                group = (group * 2).min(LARGEST_GROUP);
            }
        }
        Ok((!piece.is_empty()).then_some(piece))
    }

    /// Reads up to `most` records.
    fn next_group(&mut self, most: usize) -> Result<Vec<Record>, ReadError> {
        let state = self.view.state();
        let revs: Vec<Rev> = match &mut self.source {
            Source::Read(records) => return Ok(records.take(most).collect()),
            Source::Found(revs) => revs.take(most).collect(),
            Source::Keys { from, range, left } => {
                let most = most.min(*left);
                let mut revs = Vec::with_capacity(most);
                let mut resume = None;
                state.walk(from, range.upper(), self.at, |key, rev| {
                    if revs.len() == most {
                        resume = Some(key.to_vec());
                        return ControlFlow::Break(());
                    }
                    revs.push(rev);
                    ControlFlow::Continue(())
                });
                *left = if resume.is_some() { *left - revs.len() } else { 0 };
                *from = resume.unwrap_or_default();
                revs
            }
        };
        let afterwards = if self.count <= KEPT_MAX { Afterwards::Keep } else { Afterwards::Forget };
        let mut records = state.fetch_many(&revs, afterwards).map_err(|error| self.view.explain(error, self.at))?;
        if self.keys_only {
            records.iter_mut().for_each(|record| *record = record.without_value());
        }
        Ok(records)
    }
}

impl std::fmt::Debug for Scan {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Scan").field("view", &self.view).field("at", &self.at).field("count", &self.count).finish()
    }
}
