//! Looking into a log without opening it: nothing is locked, changed or repaired.
//!
//! Made for a copy of a directory, also of one that was being written while it was copied: the newest segment may then
//! end in the middle of a record, which is reported as a torn tail and is no error. A copy is taken file by file, so one
//! taken across the moment in which a segment was begun may lack the end of the segment before it, and then shows as
//! damaged there; take it again.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::error::{Damage, ScanError};
use crate::fs::{Fs, RealFs};
use crate::replay::Sum;
use crate::scan::Scanner;
use crate::segment::{Tail, Walk};
use crate::types::{LogIndex, LogPosition, Metadata, State, TornTail};

pub use crate::record::{RecordType, RecordView, SegmentHead};
pub use crate::replay::SegmentReport;

/// What to show.
#[derive(Clone, Debug, Default)]
pub struct ScanOptions {
    /// No entries before this index. Other records are not affected.
    pub from: Option<LogIndex>,
    /// No entries after this index. Other records are not affected.
    pub to: Option<LogIndex>,
    /// Only records of these types; all if empty.
    pub types: Vec<RecordType>,
}

/// One record and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScannedRecord {
    /// The name of the segment file.
    pub file: Arc<str>,
    /// Where in it the record starts.
    pub offset: u64,
    /// Which record of the segment it is, from 0.
    pub record: u64,
    /// What it says.
    pub view: RecordView,
}

/// The records of a directory in the order they were written, dropped entries included. Ends after the first error.
#[derive(Debug)]
pub struct Scan {
    scanner: Scanner,
    options: ScanOptions,
    done: bool,
}

/// Starts reading the records of the log in `dir`.
///
/// # Errors
/// If the directory cannot be listed, or a segment between others is missing.
pub fn scan(dir: &Path, options: ScanOptions) -> Result<Scan, ScanError> {
    scan_on(Arc::new(RealFs), dir, options)
}

/// [`scan`] on a file system of choice.
///
/// # Errors
/// As [`scan`].
pub fn scan_on(fs: Arc<dyn Fs>, dir: &Path, options: ScanOptions) -> Result<Scan, ScanError> {
    Ok(Scan { scanner: Scanner::new(fs, dir)?, options, done: false })
}

impl Scan {
    /// The unfinished write at the end; known once the iterator has ended.
    pub fn torn(&self) -> Option<&TornTail> {
        self.scanner.end().and_then(|end| end.torn.as_ref())
    }
}

impl Iterator for Scan {
    type Item = Result<ScannedRecord, ScanError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.done {
            match self.scanner.next() {
                Ok(Some(item)) if self.options.shows(&item.located.view) => {
                    let (offset, record, view) = (item.located.offset, item.located.record, item.located.view);
                    return Some(Ok(ScannedRecord { file: item.file, offset, record, view }));
                }
                Ok(Some(_)) => {}
                Ok(None) => self.done = true,
                Err(error) => {
                    self.done = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

impl ScanOptions {
    fn shows(&self, view: &RecordView) -> bool {
        let wanted = self.types.is_empty() || self.types.contains(&view.record_type());
        match view {
            RecordView::Entry { position: LogPosition { index, .. }, .. } => {
                let below = self.from.is_some_and(|from| *index < from);
                let above = self.to.is_some_and(|to| *index > to);
                wanted && !below && !above
            }
            RecordView::Crc(_)
            | RecordView::Metadata(_)
            | RecordView::State(_)
            | RecordView::Truncate { .. }
            | RecordView::Snapshot(_) => wanted,
        }
    }
}

/// What a log holds and whether it is whole.
#[derive(Debug)]
pub struct Report {
    /// The directory.
    pub dir: PathBuf,
    /// Whose log it is; `None` if no segment could be read.
    pub metadata: Option<Metadata>,
    /// The segments, as far as they could be read.
    pub segments: Vec<SegmentReport>,
    /// The state saved last.
    pub state: State,
    /// The purge point.
    pub purged: Option<LogPosition>,
    /// The first entry.
    pub first: Option<LogIndex>,
    /// The last entry.
    pub last: Option<LogPosition>,
    /// An unfinished write at the end, which is no damage.
    pub torn: Option<TornTail>,
    /// Why the log would not open. What is after it has not been read.
    pub problem: Option<ScanError>,
}

impl Report {
    /// Whether the log would open.
    pub fn is_sound(&self) -> bool {
        self.problem.is_none() && self.metadata.is_some()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { dir, metadata, segments, state, purged, first, last, torn, problem } = self;
        writeln!(f, "{}", dir.display())?;
        match metadata {
            Some(metadata) => writeln!(f, "  format {}, {metadata}", metadata.format)?,
            None => writeln!(f, "  no readable segment")?,
        }
        for SegmentReport { file, records, entries, length, .. } in segments {
            writeln!(f, "  {file}: {records} records, {entries} of them entries, {length} bytes")?;
        }
        match (first, last) {
            (Some(first), Some(last)) => writeln!(f, "  entries from index {first} to {last}")?,
            (_, _) => writeln!(f, "  no entries")?,
        }
        if let Some(purged) = purged {
            writeln!(f, "  purged up to {purged}")?;
        }
        if let Some(committed) = state.committed {
            writeln!(f, "  committed up to {committed}")?;
        }
        if let Some(torn) = torn {
            writeln!(f, "  torn tail (harmless): {torn}")?;
        }
        match problem {
            Some(problem) => writeln!(f, "  NOT SOUND: {problem}"),
            None if metadata.is_some() => writeln!(f, "  sound"),
            None => Ok(()),
        }
    }
}

/// Reads the whole log in `dir`, checks every checksum, the chain and the order of entries, and says what it found.
///
/// # Errors
/// Only if the directory cannot be listed; everything else is in the report.
pub fn verify(dir: &Path) -> Result<Report, ScanError> {
    verify_on(Arc::new(RealFs), dir)
}

/// [`verify`] on a file system of choice.
///
/// # Errors
/// As [`verify`].
pub fn verify_on(fs: Arc<dyn Fs>, dir: &Path) -> Result<Report, ScanError> {
    fs.list(dir).map_err(ScanError::io("list", dir))?;
    let mut sum = Sum::default();
    let (torn, problem) = match sum.read(&fs, dir) {
        Ok(end) => (end.and_then(|end| end.torn), None),
        Err(problem) => (None, Some(problem)),
    };
    let (purged, first, last) = (sum.view.purged(), sum.view.first(), sum.view.last());
    let Sum { metadata, segments, state, .. } = sum;
    Ok(Report { dir: dir.to_owned(), metadata, segments, state, purged, first, last, torn, problem })
}

/// What [`parse_segment`] found in some bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedSegment {
    /// How many good records there are from the start.
    pub records: u64,
    /// Where they end.
    pub end: u64,
    /// Whether what is behind them could be an unfinished write (or nothing), supposing that this is the newest segment.
    pub torn_tail_at_most: bool,
    /// Why the records end there.
    pub flaw: Damage,
}

/// Decodes bytes as if they were a segment and hands every good record to `each`. Whatever the bytes are, this does not
/// panic, and it needs no more memory than they do: what a fuzzer calls.
pub fn parse_segment(bytes: &[u8], mut each: impl FnMut(u64, &RecordView)) -> ParsedSegment {
    let mut walk = match Walk::open(Bytes::copy_from_slice(bytes)) {
        Ok(walk) => walk,
        Err(stop) => return ParsedSegment { records: 0, end: 0, torn_tail_at_most: false, flaw: stop.flaw },
    };
    let stop = loop {
        match walk.next() {
            Ok(located) => each(located.offset, &located.view),
            Err(stop) => break stop,
        }
    };
    let torn_tail_at_most = !matches!(walk.judge(&stop), Tail::Damaged(_));
    ParsedSegment { records: stop.record, end: stop.offset, torn_tail_at_most, flaw: stop.flaw }
}
