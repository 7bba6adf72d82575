//! Walking all segments of a directory in order, read-only: what opening, verifying and dumping share.
//!
//! A segment that has a successor must be whole up to the very end which the successor's head records. Only the newest
//! segment may end in an unfinished write; see [`judge`](crate::segment::judge) for what counts as one.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::config::SEGMENT_BYTES_MIN;
use crate::error::{Damage, ScanError};
use crate::fs::{Access, Fs, read_full};
use crate::record::{Chain, RecordView};
use crate::segment::{FILE_BYTES_MAX, Located, SegmentName, Stop, Tail, Walk, check_metadata, judge_headless};
use crate::types::{Metadata, TornTail};

/// One record and where it is.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) file: Arc<str>,
    pub(crate) sequence: u64,
    pub(crate) located: Located,
}

/// How the newest segment ends.
#[derive(Clone, Debug)]
pub(crate) struct End {
    /// The segment that goes on. Not the newest file if that one is `unused`.
    pub(crate) name: SegmentName,
    pub(crate) offset: u64,
    pub(crate) chain: Chain,
    /// The bytes of the last group and where they start.
    pub(crate) last_group: (u64, Bytes),
    /// The end of the traces behind `offset` that must be erased before going on.
    pub(crate) traces_end: Option<u64>,
    /// The newest file, if it has no head yet: nothing in it was ever acknowledged.
    pub(crate) unused: Option<String>,
    pub(crate) torn: Option<TornTail>,
}

/// Yields every record of a directory, then how it ends.
#[derive(Debug)]
pub(crate) struct Scanner {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    waiting: VecDeque<SegmentName>,
    current: Option<Open>,
    metadata: Option<Metadata>,
    end: Option<End>,
    unused: Option<(String, Option<TornTail>)>,
}

#[derive(Debug)]
struct Open {
    name: SegmentName,
    file: Arc<str>,
    walk: Walk,
    /// Where the records ended; the segment stays open until its successor has confirmed that.
    stop: Option<Stop>,
}

/// The segment files of a directory in order; empty if there is no such directory.
pub(crate) fn segments(fs: &dyn Fs, dir: &Path) -> Result<Vec<SegmentName>, ScanError> {
    let mut names = list(fs, dir)?.iter().filter_map(|name| SegmentName::parse(name)).collect::<Vec<_>>();
    names.sort_unstable();
    Ok(names)
}

/// The names in a directory; none if there is no such directory.
pub(crate) fn list(fs: &dyn Fs, dir: &Path) -> Result<Vec<String>, ScanError> {
    match fs.list(dir) {
        Ok(names) => Ok(names),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(ScanError::io("list", dir)(error)),
    }
}

impl Scanner {
    pub(crate) fn new(fs: Arc<dyn Fs>, dir: &Path) -> Result<Scanner, ScanError> {
        let waiting = segments(&*fs, dir)?;
        for pair in waiting.windows(2) {
            if pair[0].sequence.checked_add(1) != Some(pair[1].sequence) {
                let sequence = pair[0].sequence.saturating_add(1);
                return Err(damaged(dir, &pair[1].to_string(), 0, 0, Damage::MissingSegment { sequence }));
            }
        }
        let (current, metadata, end, unused) = (None, None, None, None);
        Ok(Scanner { fs, dir: dir.to_owned(), waiting: waiting.into(), current, metadata, end, unused })
    }

    /// The next record; `None` when there is no more, and then [`Scanner::end`] is known.
    pub(crate) fn next(&mut self) -> Result<Option<Item>, ScanError> {
        loop {
            if let Some(open) = &mut self.current
                && open.stop.is_none()
            {
                match open.walk.next() {
                    Ok(located) => return self.admit(located).map(Some),
                    Err(stop) => open.stop = Some(stop),
                }
            }
            if self.end.is_some() || !self.advance()? {
                return Ok(None);
            }
        }
    }

    /// How the newest segment ends; `None` if there are no segments or the scan has not come that far.
    pub(crate) fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// The segment being walked: its file length in bytes and its end so far.
    pub(crate) fn current_length(&self) -> u64 {
        self.current.as_ref().map_or(0, |open| open.walk.length())
    }

    fn admit(&mut self, located: Located) -> Result<Item, ScanError> {
        let Some(open) = &self.current else { unreachable!("records come out of the current segment") };
        let item = Item { file: Arc::clone(&open.file), sequence: open.name.sequence, located };
        if let RecordView::Metadata(metadata) = &item.located.view {
            if metadata.format > Metadata::FORMAT || metadata.format == 0 {
                let (file, found) = (self.dir.join(&*item.file), metadata.format);
                return Err(ScanError::Format { file, found, supported: Metadata::FORMAT });
            }
            check_metadata(metadata, &open.walk.head().directory_uuid, self.metadata.as_ref())
                .map_err(|damage| damaged(&self.dir, &item.file, item.located.offset, item.located.record, damage))?;
            self.metadata = Some(*metadata);
        }
        Ok(item)
    }

    /// Goes to the next segment, or works out the end. False if there was nothing at all.
    fn advance(&mut self) -> Result<bool, ScanError> {
        let Some(name) = self.waiting.pop_front() else { return self.finish() };
        let file: Arc<str> = name.to_string().into();
        let bytes = read_file(&*self.fs, &self.dir.join(&*file))?;
        match open_segment(bytes.clone(), name) {
            Ok(walk) => {
                self.seal(&walk)?;
                self.current = Some(Open { name, file, walk, stop: None });
                Ok(true)
            }
            Err(stop) => self.headless(&file, name, &bytes, stop),
        }
    }

    /// A segment without a readable head: allowed only as the newest, and only if nothing in it was acknowledged.
    fn headless(&mut self, file: &str, name: SegmentName, bytes: &Bytes, stop: Stop) -> Result<bool, ScanError> {
        let damage = |flaw| Err(damaged(&self.dir, file, stop.offset, stop.record, flaw));
        let Some(before) = self.current.as_ref() else { return damage(stop.flaw.clone()) };
        if !self.waiting.is_empty() {
            return damage(Damage::NotLast { flaw: Box::new(stop.flaw.clone()) });
        }
        // A file gets the name of a segment at its full length; shorter than any head it can only have become.
        if (bytes.len() as u64) < SEGMENT_BYTES_MIN {
            return damage(Damage::Shortened { length: bytes.len() as u64, allocated: SEGMENT_BYTES_MIN });
        }
        let torn = match judge_headless(bytes, &before.walk.head().directory_uuid, name, &stop) {
            Tail::Damaged(flaw) => return damage(flaw),
            Tail::Torn { end } => Some(TornTail { file: file.to_owned(), offset: 0, bytes: end }),
            Tail::Clean => None,
        };
        self.unused = Some((file.to_owned(), torn));
        Ok(true)
    }

    /// The successor says where the segment before it ended and on which chain value.
    fn seal(&self, next: &Walk) -> Result<(), ScanError> {
        let Some(Open { file, walk, stop: Some(stop), .. }) = &self.current else { return Ok(()) };
        let end = next.head().previous_end;
        let damage = |flaw| Err(damaged(&self.dir, file, stop.offset, stop.record, flaw));
        if next.head().directory_uuid != walk.head().directory_uuid {
            let what = "two neighbouring segments belong to different directories";
            return damage(Damage::Malformed { what });
        }
        if stop.offset < end {
            return damage(Damage::EndsEarly { flaw: Box::new(stop.flaw.clone()), end });
        }
        if stop.offset > end {
            return damage(Damage::EndsLate { end });
        }
        if next.chain().value != walk.chain().value {
            return damage(Damage::Chain { stored: next.chain().value, chain: walk.chain().value });
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<bool, ScanError> {
        let Some(Open { name, file, walk, stop: Some(stop) }) = &self.current else { return Ok(false) };
        let (unused, headless_torn) = match self.unused.take() {
            Some((name, torn)) => (Some(name), torn),
            None => (None, None),
        };
        let damage = |flaw| Err(damaged(&self.dir, file, stop.offset, stop.record, flaw));
        let traces_end = match walk.judge(stop) {
            Tail::Clean => None,
            Tail::Damaged(flaw) => return damage(flaw),
            // A successor is only made once its predecessor is durable to the end, so this was no unfinished write.
            Tail::Torn { .. } if unused.is_some() => {
                return damage(Damage::NotLast { flaw: Box::new(stop.flaw.clone()) });
            }
            Tail::Torn { end } => Some(end),
        };
        let torn =
            traces_end.map(|end| TornTail { file: file.to_string(), offset: stop.offset, bytes: end - stop.offset });
        let (name, offset, chain, last_group) = (*name, stop.offset, walk.chain(), walk.last_group());
        self.end = Some(End { name, offset, chain, last_group, traces_end, unused, torn: torn.or(headless_torn) });
        Ok(false)
    }
}

/// Opens a segment if its head is complete.
fn open_segment(bytes: Bytes, name: SegmentName) -> Result<Walk, Stop> {
    let walk = Walk::open(bytes.clone())?;
    let head = *walk.head();
    if (SegmentName { sequence: head.sequence, first_index: head.first_index }) != name {
        let flaw = Damage::Name { sequence: head.sequence, first_index: head.first_index };
        return Err(Stop { offset: 0, record: 0, flaw });
    }
    let length = bytes.len() as u64;
    if length < head.allocated {
        let flaw = Damage::Shortened { length, allocated: head.allocated };
        return Err(Stop { offset: length, record: 0, flaw });
    }
    let mut probe = Walk::open(bytes)?;
    for _ in 0..head.head_records {
        let located = probe.next()?;
        // The rest of the head of a newer format need not be readable for it to be refused as such.
        if matches!(&located.view, RecordView::Metadata(metadata) if metadata.format != Metadata::FORMAT) {
            break;
        }
    }
    Ok(walk)
}

pub(crate) fn read_file(fs: &dyn Fs, path: &Path) -> Result<Bytes, ScanError> {
    let file = fs.open(path, Access::Read).map_err(ScanError::io("open", path))?;
    let length = file.len().map_err(ScanError::io("measure", path))?;
    if length >= FILE_BYTES_MAX {
        let damage = Damage::TooLong { length };
        return Err(ScanError::Damaged { file: path.to_owned(), offset: 0, record: 0, damage });
    }
    let mut buffer = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
    let read = read_full(&*file, &mut buffer, 0).map_err(ScanError::io("read", path))?;
    buffer.truncate(read);
    Ok(buffer.into())
}

pub(crate) fn damaged(dir: &Path, file: &str, offset: u64, record: u64, damage: Damage) -> ScanError {
    ScanError::Damaged { file: dir.join(file), offset, record, damage }
}
