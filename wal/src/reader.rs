//! Reading entries, from memory or from the segments, without ever holding up the appender.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use crate::error::{Damage, ReadError};
use crate::fs::{FsFile, read_full};
use crate::queue::lock;
use crate::record::{ENTRY_HEADER, Frame, HEADER, Header, RecordView, salt};
use crate::types::{Entry, LogIndex, LogPosition};
use crate::view::{SegmentFile, View};

/// The most bytes one read of a segment takes, unless one record has more.
const CHUNK_BYTES: u64 = 1 << 20;

/// Reads the log while it is written. Cheap to clone; holds a lock only to look up where entries are, never for I/O.
#[derive(Clone, Debug)]
pub struct Reader {
    view: Arc<Mutex<View>>,
    dir: Arc<Path>,
    directory_uuid: [u8; 16],
    segment_bytes: u64,
}

/// Neighbouring entries of one segment, to be read at once.
#[derive(Debug)]
struct Span {
    segment: SegmentFile,
    first: u64,
    offsets: Vec<u32>,
    /// Where the last record ends at the latest, if that is known and near.
    end: Option<u32>,
}

#[derive(Debug, Default)]
struct Plan {
    spans: Vec<Span>,
    /// The entries after the spans.
    memory: Vec<Entry>,
}

impl Reader {
    pub(crate) fn new(view: Arc<Mutex<View>>, dir: PathBuf, directory_uuid: [u8; 16], segment_bytes: u64) -> Reader {
        Reader { view, dir: dir.into(), directory_uuid, segment_bytes }
    }

    /// The first index in the log; `None` if it has no entries.
    pub fn first(&self) -> Option<LogIndex> {
        lock(&self.view).first()
    }

    /// The last entry in the log; `None` if it has none.
    pub fn last(&self) -> Option<LogPosition> {
        lock(&self.view).last()
    }

    /// The last position that was purged.
    pub fn purged(&self) -> Option<LogPosition> {
        lock(&self.view).purged()
    }

    /// The term of the entry at `index`, also at the purge point. Costs the logarithm of the number of term changes.
    pub fn term_of(&self, index: LogIndex) -> Option<u64> {
        lock(&self.view).term_of(index)
    }

    /// About how many bytes of the log come after the entry at `index`: of all of it, if `index` comes before its first. A
    /// segment counts as if it was full. O(1).
    pub fn bytes_after(&self, index: LogIndex) -> u64 {
        lock(&self.view).bytes_after(index, self.segment_bytes)
    }

    /// The entries of `range` in order, without holes: as many as have payloads of at most `bytes_max` bytes together,
    /// but at least one if there is any. What lies beyond the end of the log is left out.
    ///
    /// # Errors
    /// [`ReadError::BelowFirst`] if the range starts before the log does. Every record read from disk is checked against
    /// its checksum.
    pub fn read(&self, range: Range<LogIndex>, bytes_max: usize) -> Result<Vec<Entry>, ReadError> {
        let plan = self.plan(range, bytes_max)?;
        if plan.spans.is_empty() {
            // The plan has kept to the limit.
            return Ok(plan.memory);
        }
        let mut entries = Vec::with_capacity(plan.spans.iter().map(|span| span.offsets.len()).sum());
        let mut left = bytes_max;
        for span in &plan.spans {
            for entry in self.read_span(span)? {
                if entry.payload.len() > left && !entries.is_empty() {
                    return Ok(entries);
                }
                left = left.saturating_sub(entry.payload.len());
                entries.push(entry);
            }
        }
        for entry in plan.memory {
            if entry.payload.len() > left && !entries.is_empty() {
                break;
            }
            left = left.saturating_sub(entry.payload.len());
            entries.push(entry);
        }
        Ok(entries)
    }

    /// Looks everything up at one moment, so that a truncation meanwhile cannot mix old entries with new ones.
    fn plan(&self, range: Range<LogIndex>, bytes_max: usize) -> Result<Plan, ReadError> {
        let view = lock(&self.view);
        if view.closed() {
            return Err(ReadError::Closed);
        }
        let mut plan = Plan::default();
        let (start, end) = (range.start.get(), range.end.get().min(view.read_end()));
        if range.start >= range.end {
            return Ok(plan);
        }
        if start < view.start() {
            return Err(ReadError::BelowFirst { asked: range.start, first: LogIndex::new(view.start()) });
        }
        let mut left = bytes_max;
        let mut index = start;
        while index < end.min(view.tail_start()) && (left > 0 || index == start) {
            let Some(span) = Span::plan(&view, index, end.min(view.tail_start()), left) else { return Ok(plan) };
            index += span.offsets.len() as u64;
            left = left.saturating_sub(span.payload_bytes_max());
            plan.spans.push(span);
        }
        if index < end && index >= view.tail_start() {
            for entry in view.tail_from(index).take_while(|entry| entry.index.get() < end) {
                if entry.payload.len() > left && !(plan.memory.is_empty() && plan.spans.is_empty()) {
                    break;
                }
                left = left.saturating_sub(entry.payload.len());
                plan.memory.push(entry.clone());
            }
        }
        Ok(plan)
    }

    fn read_span(&self, span: &Span) -> Result<Vec<Entry>, ReadError> {
        let path = self.dir.join(&*span.segment.name);
        let salt = salt(&self.directory_uuid, u64::from(span.segment.sequence));
        let damaged = |at: usize, damage| ReadError::Damaged {
            path: path.clone(),
            offset: u64::from(span.offsets[at]),
            index: LogIndex::new(span.first + at as u64),
            damage,
        };
        let io = |source| ReadError::Io { path: path.clone(), source };
        let (start, last) = (span.offsets[0], span.offsets[span.offsets.len() - 1]);
        let end = match span.end {
            Some(end) => u64::from(end),
            None => {
                let end = record_end(&*span.segment.file, last, salt).map_err(io)?;
                end.ok_or_else(|| damaged(span.offsets.len() - 1, Damage::Header))?
            }
        };
        let length = usize::try_from(end.saturating_sub(u64::from(start))).unwrap_or(usize::MAX);
        let mut buffer = vec![0; length];
        let read = read_full(&*span.segment.file, &mut buffer, u64::from(start)).map_err(io)?;
        buffer.truncate(read);
        let bytes = Bytes::from(buffer);
        let decode = |(at, offset): (usize, &u32)| {
            let index = LogIndex::new(span.first + at as u64);
            decode_entry(&bytes, (offset - start) as usize, salt, index).map_err(|damage| damaged(at, damage))
        };
        span.offsets.iter().enumerate().map(decode).collect()
    }
}

impl Span {
    /// As many entries from `index` on as are in one segment, near each other, and not clearly beyond `bytes_max`.
    fn plan(view: &View, index: u64, end: u64, bytes_max: usize) -> Option<Span> {
        let first = view.location(index)?;
        let segment = view.segment(first.sequence)?.clone();
        let mut span = Span { segment, first: index, offsets: vec![first.offset], end: None };
        for next in index + 1.. {
            // The entry after the last one is only looked at to see where that one ends.
            let location = view.location(next).filter(|location| location.sequence == first.sequence);
            let near = location.filter(|location| u64::from(location.offset - first.offset) <= CHUNK_BYTES);
            let Some(near) = near else { break };
            span.end = Some(near.offset);
            if next >= end || span.payload_bytes_max() >= bytes_max {
                break;
            }
            span.offsets.push(near.offset);
            span.end = None;
        }
        Some(span)
    }

    /// No fewer bytes than the payloads whose end is known.
    fn payload_bytes_max(&self) -> usize {
        let end = self.end.unwrap_or(self.offsets[self.offsets.len() - 1]);
        ((end - self.offsets[0]) as usize).saturating_sub(ENTRY_HEADER * self.offsets.len())
    }
}

/// Reads where the record at `offset` ends; `None` if there is no header.
fn record_end(file: &dyn FsFile, offset: u32, salt: u32) -> std::io::Result<Option<u64>> {
    let mut header = [0; HEADER];
    let read = read_full(file, &mut header, u64::from(offset))?;
    Ok(Header::at(&header[..read], 0, salt).map(|header| u64::from(offset) + header.framed() as u64))
}

fn decode_entry(bytes: &Bytes, offset: usize, salt: u32, index: LogIndex) -> Result<Entry, Damage> {
    match Frame::at(bytes, offset, salt)?.decode()? {
        RecordView::Entry { position, payload } if position.index == index => {
            Ok(Entry { index, term: position.term, payload })
        }
        RecordView::Entry { position, .. } => Err(Damage::Order { expected: index, found: position.index }),
        RecordView::Crc(_)
        | RecordView::Metadata(_)
        | RecordView::State(_)
        | RecordView::Truncate { .. }
        | RecordView::Snapshot(_) => Err(Damage::Malformed { what: "an entry was here" }),
    }
}
