//! What readers see: where every entry is, the newest entries themselves, and the open segment files.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::fs::FsFile;
use crate::types::{Entry, LogIndex, LogPosition};

/// Where an entry record is: 8 bytes per entry, for every entry in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    /// The segment. 2^32 segments of the smallest useful size are more than any disk lives to write.
    pub(crate) sequence: u32,
    pub(crate) offset: u32,
}

/// An open segment.
#[derive(Clone, Debug)]
pub(crate) struct SegmentFile {
    pub(crate) sequence: u32,
    pub(crate) name: Arc<str>,
    pub(crate) file: Arc<dyn FsFile>,
}

/// The log as it is now. Behind a mutex that is never held during I/O.
///
/// **Invariant**: `locations` are those of the entries `first..first + locations.len()`; `tail` holds the last of these
/// entries, all that are not durable among them; the segment of every other one is in `segments`.
#[derive(Debug, Default)]
pub(crate) struct View {
    purged: Option<LogPosition>,
    first: u64,
    locations: VecDeque<Location>,
    /// Runs of equal terms: the first index of the run, and the term. Starts at or before `first`.
    terms: VecDeque<(u64, u64)>,
    tail: VecDeque<Entry>,
    tail_bytes: usize,
    segments: VecDeque<SegmentFile>,
    closed: bool,
}

impl View {
    /// One past the last entry; what `first` is if there is none.
    fn end(&self) -> u64 {
        self.first + self.locations.len() as u64
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.locations.is_empty()
    }

    pub(crate) fn first(&self) -> Option<LogIndex> {
        (!self.is_empty()).then(|| LogIndex::new(self.first))
    }

    pub(crate) fn last(&self) -> Option<LogPosition> {
        let (_, term) = *self.terms.back()?;
        (!self.is_empty()).then(|| LogPosition { index: LogIndex::new(self.end() - 1), term })
    }

    pub(crate) fn purged(&self) -> Option<LogPosition> {
        self.purged
    }

    pub(crate) fn closed(&self) -> bool {
        self.closed
    }

    pub(crate) fn close(&mut self) {
        self.closed = true;
    }

    pub(crate) fn term_of(&self, index: LogIndex) -> Option<u64> {
        if let Some(purged) = self.purged
            && purged.index == index
        {
            return Some(purged.term);
        }
        let index = index.get();
        if self.is_empty() || index < self.first || index >= self.end() {
            return None;
        }
        let run = self.terms.partition_point(|(start, _)| *start <= index);
        run.checked_sub(1).and_then(|run| self.terms.get(run)).map(|(_, term)| *term)
    }

    /// About how many bytes come after the entry at `index`, in segments of `segment_bytes`; O(1).
    pub(crate) fn bytes_after(&self, index: LogIndex, segment_bytes: u64) -> u64 {
        let first = usize::try_from(index.next().get().saturating_sub(self.first)).unwrap_or(usize::MAX);
        let (Some(from), Some(last)) = (self.locations.get(first), self.locations.back()) else { return 0 };
        let segments = u64::from(last.sequence.wrapping_sub(from.sequence));
        (segments * segment_bytes + u64::from(last.offset)).saturating_sub(u64::from(from.offset))
    }

    /// Adds an entry that is durable and stays on disk.
    pub(crate) fn place(&mut self, at: LogPosition, location: Location) {
        if self.is_empty() {
            self.first = at.index.get();
            self.terms.clear();
        }
        if self.terms.back().is_none_or(|(_, term)| *term != at.term) {
            self.terms.push_back((at.index.get(), at.term));
        }
        self.locations.push_back(location);
    }

    /// Adds an entry that is not durable yet.
    pub(crate) fn push(&mut self, entry: &Entry, location: Location) {
        self.place(entry.position(), location);
        self.tail_bytes += entry_bytes(entry);
        self.tail.push_back(entry.clone());
    }

    /// Drops the entries after `after`, or all.
    pub(crate) fn truncate_after(&mut self, after: Option<LogIndex>) {
        let keep = after.map_or(0, |after| after.next().get().saturating_sub(self.first));
        let keep = usize::try_from(keep).unwrap_or(usize::MAX).min(self.locations.len());
        let dropped = self.locations.len() - keep;
        self.locations.truncate(keep);
        for _ in 0..dropped.min(self.tail.len()) {
            if let Some(entry) = self.tail.pop_back() {
                self.tail_bytes -= entry_bytes(&entry);
            }
        }
        let end = self.end();
        while self.terms.back().is_some_and(|(start, _)| *start >= end) {
            self.terms.pop_back();
        }
    }

    /// Drops the entries up to `position`. Their segments stay until [`View::drop_segments`].
    pub(crate) fn purge(&mut self, position: LogPosition) {
        self.purged = Some(position);
        let end = position.index.next().get();
        let gone = usize::try_from(end.saturating_sub(self.first)).unwrap_or(usize::MAX).min(self.locations.len());
        let in_tail = gone.saturating_sub(self.locations.len() - self.tail.len());
        for entry in self.tail.drain(..in_tail) {
            self.tail_bytes -= entry_bytes(&entry);
        }
        self.locations.drain(..gone);
        self.first = if self.is_empty() { end.max(self.first) } else { self.first + gone as u64 };
        while self.terms.get(1).is_some_and(|(start, _)| *start <= self.first) {
            self.terms.pop_front();
        }
    }

    /// The segment of the first entry.
    pub(crate) fn oldest_segment(&self) -> Option<u32> {
        self.locations.front().map(|location| location.sequence)
    }

    pub(crate) fn add_segment(&mut self, segment: SegmentFile) {
        self.segments.push_back(segment);
    }

    /// Takes the segments before `keep` out, so that no reader can get hold of them any more.
    pub(crate) fn drop_segments(&mut self, keep: u32) -> Vec<SegmentFile> {
        let count = self.segments.iter().take_while(|segment| segment.sequence < keep).count();
        self.segments.drain(..count).collect()
    }

    pub(crate) fn segment(&self, sequence: u32) -> Option<&SegmentFile> {
        let at = self.segments.partition_point(|segment| segment.sequence < sequence);
        self.segments.get(at).filter(|segment| segment.sequence == sequence)
    }

    /// Takes durable entries out of memory until at most `bytes_max` bytes are there, for the caller to drop unlocked.
    pub(crate) fn evict(&mut self, durable_end: u64, bytes_max: usize) -> Vec<Entry> {
        let mut evicted = Vec::new();
        while self.tail_bytes > bytes_max
            && let Some(entry) = self.tail.pop_front_if(|entry| entry.index.get() < durable_end)
        {
            self.tail_bytes -= entry_bytes(&entry);
            evicted.push(entry);
        }
        evicted
    }

    /// The first index that readers may ask for: that of the first entry, or where the log goes on.
    pub(crate) fn start(&self) -> u64 {
        if self.is_empty() { self.purged.map_or(0, |purged| purged.index.next().get()) } else { self.first }
    }

    /// One past the last index there is.
    pub(crate) fn read_end(&self) -> u64 {
        if self.is_empty() { 0 } else { self.end() }
    }

    /// The index of the first entry in memory; one past the last entry if there is none.
    pub(crate) fn tail_start(&self) -> u64 {
        self.end() - self.tail.len() as u64
    }

    pub(crate) fn location(&self, index: u64) -> Option<Location> {
        let at = usize::try_from(index.checked_sub(self.first)?).ok()?;
        self.locations.get(at).copied()
    }

    /// The entries in memory from `index` on.
    pub(crate) fn tail_from(&self, index: u64) -> impl Iterator<Item = &Entry> {
        let skip = usize::try_from(index.saturating_sub(self.tail_start())).unwrap_or(usize::MAX);
        self.tail.range(skip.min(self.tail.len())..)
    }

    #[cfg(test)]
    pub(crate) fn tail_bytes(&self) -> usize {
        self.tail_bytes
    }
}

/// What an entry in memory is counted as.
fn entry_bytes(entry: &Entry) -> usize {
    entry.payload.len() + size_of::<Entry>()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;

    use super::*;

    fn at(index: u64, term: u64) -> LogPosition {
        LogPosition { index: LogIndex::new(index), term }
    }

    fn view(entries: &[(u64, u64)]) -> View {
        let mut view = View::default();
        for (index, term) in entries {
            let entry = Entry { index: LogIndex::new(*index), term: *term, payload: Bytes::from_static(b"0123456789") };
            view.push(&entry, Location { sequence: 1, offset: u32::try_from(*index * 64).unwrap() });
        }
        view
    }

    #[test]
    fn terms_follow_truncation_and_purge() {
        let mut view = view(&[(5, 1), (6, 1), (7, 2), (8, 2), (9, 4)]);
        assert_eq!(view.term_of(LogIndex::new(8)), Some(2));
        view.truncate_after(Some(LogIndex::new(7)));
        assert_eq!(view.last(), Some(at(7, 2)));
        assert_eq!(view.term_of(LogIndex::new(8)), None);
        view.purge(at(6, 1));
        assert_eq!((view.first(), view.term_of(LogIndex::new(6))), (Some(LogIndex::new(7)), Some(1)));
        assert_eq!(view.term_of(LogIndex::new(5)), None);
        view.purge(at(40, 9));
        assert_eq!((view.first(), view.last(), view.start()), (None, None, 41));
        assert_eq!(view.tail_bytes(), 0);
    }

    #[test]
    fn only_durable_entries_leave_memory() {
        let mut view = view(&[(0, 1), (1, 1), (2, 1), (3, 1)]);
        assert_eq!(view.evict(2, 0).len(), 2);
        assert_eq!(view.tail_start(), 2);
        assert_eq!(view.tail_from(0).count(), 2);
        view.truncate_after(Some(LogIndex::new(0)));
        assert_eq!((view.tail_start(), view.tail_bytes(), view.location(0).is_some()), (1, 0, true));
    }
}
