//! What the records of a directory add up to. Read-only: opening repairs afterwards, verifying only reports.

use std::path::Path;
use std::sync::Arc;

use crate::error::{Damage, ScanError};
use crate::fs::Fs;
use crate::record::RecordView;
use crate::scan::{End, Item, Scanner, damaged};
use crate::segment::SegmentName;
use crate::types::{LogIndex, LogPosition, Metadata, State};
use crate::view::{Location, View};

/// What one segment holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentReport {
    /// Its file name.
    pub file: String,
    /// Its number.
    pub sequence: u64,
    /// How many records it holds, its head included.
    pub records: u64,
    /// How many of these are entries, dropped ones included.
    pub entries: u64,
    /// Where its last record starts, in bytes.
    pub last_record_offset: u64,
    /// The length of the file in bytes.
    pub length: u64,
}

/// A log, read from its first record to its last.
#[derive(Debug)]
pub(crate) struct Replay {
    pub(crate) metadata: Metadata,
    pub(crate) state: State,
    /// The entries, and the purge point.
    pub(crate) view: View,
    /// The index the next entry must have; `None` if any will do.
    pub(crate) next: Option<u64>,
    pub(crate) end: End,
    pub(crate) segments: Vec<SegmentReport>,
}

/// The running sum.
#[derive(Debug, Default)]
pub(crate) struct Sum {
    pub(crate) metadata: Option<Metadata>,
    pub(crate) state: State,
    pub(crate) view: View,
    pub(crate) next: Option<u64>,
    pub(crate) segments: Vec<SegmentReport>,
}

/// Reads the whole log. `None` if the directory has no segment.
pub(crate) fn replay(fs: &Arc<dyn Fs>, dir: &Path) -> Result<Option<Replay>, ScanError> {
    let mut sum = Sum::default();
    let Some(end) = sum.read(fs, dir)? else { return Ok(None) };
    let Sum { metadata: Some(metadata), state, view, next, segments } = sum else {
        unreachable!("a segment opens only with its metadata record");
    };
    Ok(Some(Replay { metadata, state, view, next, end, segments }))
}

impl Sum {
    /// Reads the whole log. What was read before an error stays in `self`.
    pub(crate) fn read(&mut self, fs: &Arc<dyn Fs>, dir: &Path) -> Result<Option<End>, ScanError> {
        let mut scanner = Scanner::new(Arc::clone(fs), dir)?;
        while let Some(item) = scanner.next()? {
            self.count(&item, scanner.current_length());
            self.apply(&item)
                .map_err(|damage| damaged(dir, &item.file, item.located.offset, item.located.record, damage))?;
        }
        let Some(end) = scanner.end().cloned() else { return Ok(None) };
        self.check_start().map_err(|damage| {
            let file = self.segments.first().map_or(String::new(), |segment| segment.file.clone());
            damaged(dir, &file, 0, 0, damage)
        })?;
        Ok(Some(end))
    }

    fn count(&mut self, item: &Item, length: u64) {
        if self.segments.last().is_none_or(|segment| segment.sequence != item.sequence) {
            let (file, sequence) = (item.file.to_string(), item.sequence);
            let report = SegmentReport { file, sequence, records: 0, entries: 0, last_record_offset: 0, length };
            self.segments.push(report);
        }
        if let Some(segment) = self.segments.last_mut() {
            segment.records += 1;
            segment.entries += u64::from(matches!(item.located.view, RecordView::Entry { .. }));
            segment.last_record_offset = item.located.offset;
        }
    }

    fn apply(&mut self, item: &Item) -> Result<(), Damage> {
        match &item.located.view {
            RecordView::Crc(head) => {
                if self.metadata.is_none() {
                    // The oldest segment left: what came before it has been purged, or was never there.
                    self.next = (head.first_index != 0).then_some(head.first_index);
                } else {
                    self.expect(LogIndex::new(head.first_index), self.next.unwrap_or(0))?;
                }
            }
            RecordView::Metadata(metadata) => self.metadata = Some(*metadata),
            RecordView::State(state) => self.state = state.clone(),
            RecordView::Truncate { after } => {
                if let (Some(after), Some(next)) = (after, self.next)
                    && after.next().get() > next
                {
                    return Err(order(next, *after));
                }
                self.view.truncate_after(*after);
                self.next = match after {
                    Some(after) => Some(after.next().get()),
                    None => self.view.purged().map(|purged| purged.index.next().get()),
                };
            }
            RecordView::Snapshot(position) => {
                self.view.purge(*position);
                self.next = Some(self.next.unwrap_or(0).max(position.index.next().get()));
            }
            RecordView::Entry { position, .. } => {
                self.expect(position.index, self.next.unwrap_or(position.index.get()))?;
                self.place(item, *position)?;
                self.next = Some(position.index.next().get());
            }
        }
        Ok(())
    }

    fn place(&mut self, item: &Item, position: LogPosition) -> Result<(), Damage> {
        let what = "a segment number or offset above 2^32";
        let narrow = |value: u64| u32::try_from(value).map_err(|_| Damage::Malformed { what });
        let location = Location { sequence: narrow(item.sequence)?, offset: narrow(item.located.offset)? };
        self.view.place(position, location);
        Ok(())
    }

    fn expect(&self, found: LogIndex, expected: u64) -> Result<(), Damage> {
        if found.get() == expected { Ok(()) } else { Err(order(expected, found)) }
    }

    /// The oldest segment must reach back to the purge point, or to the very beginning.
    fn check_start(&self) -> Result<(), Damage> {
        let oldest = self.segments.first().map_or(1, |segment| segment.sequence);
        match (self.view.purged(), self.view.first()) {
            (None, _) if oldest > 1 => Err(Damage::MissingSegment { sequence: oldest - 1 }),
            (Some(purged), Some(first)) if first > purged.index.next() => {
                Err(Damage::MissingEntries { from: purged.index.next(), first })
            }
            (None | Some(_), _) => Ok(()),
        }
    }
}

fn order(expected: u64, found: LogIndex) -> Damage {
    Damage::Order { expected: LogIndex::new(expected), found }
}

impl Replay {
    /// The segment files that hold the log, in order: all but one without a head.
    pub(crate) fn names(&self) -> impl Iterator<Item = SegmentName> {
        self.segments.iter().filter_map(|segment| SegmentName::parse(&segment.file))
    }
}
