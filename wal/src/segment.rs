//! One segment: its name, walking its records, and judging what comes after the last good one.

use std::fmt;

use bytes::Bytes;

use crate::error::Damage;
use crate::record::{Chain, Frame, HEADER, Header, RecordView, SegmentHead, salt};
use crate::types::Metadata;

/// The bytes at the end of every segment that hold no records, but [`RECYCLED`] if the file had another life before.
pub(crate) const TRAILER: u64 = 8;
/// Written at the end of a file before it is reused, so that its old content is not reported as an interrupted write.
pub(crate) const RECYCLED: [u8; TRAILER as usize] = *b"RECYCLED";
/// A segment and one oversized record stay below this; offsets are 32 bits wide.
pub(crate) const FILE_BYTES_MAX: u64 = 4 << 30;
/// Ends the names of segments.
const SUFFIX: &str = ".wal";
/// Ends the names of files waiting to become segments.
const SPARE_SUFFIX: &str = ".spare";
/// The first segment of a log, while it is made.
pub(crate) const NEW_LOG: &str = "new.tmp";
/// The lock file.
pub(crate) const LOCK: &str = "LOCK";

/// The name of a segment file: `<sequence>-<first index>.wal`, both as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SegmentName {
    pub(crate) sequence: u64,
    pub(crate) first_index: u64,
}

impl SegmentName {
    pub(crate) fn parse(name: &str) -> Option<SegmentName> {
        let (sequence, first_index) = name.strip_suffix(SUFFIX)?.split_once('-')?;
        Some(SegmentName { sequence: hex(sequence)?, first_index: hex(first_index)? })
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:016x}{SUFFIX}", self.sequence, self.first_index)
    }
}

pub(crate) fn spare_name(number: u64) -> String {
    format!("{number:016x}{SPARE_SUFFIX}")
}

pub(crate) fn parse_spare(name: &str) -> Option<u64> {
    hex(name.strip_suffix(SPARE_SUFFIX)?)
}

fn hex(digits: &str) -> Option<u64> {
    let plain = digits.len() == 16 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    plain.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}

/// One record of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Located {
    pub(crate) offset: u64,
    /// Counted from 0 in the segment.
    pub(crate) record: u64,
    pub(crate) view: RecordView,
}

/// Where and why the records of a segment end. The reason need not be damage: unused space is no header either.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stop {
    pub(crate) offset: u64,
    pub(crate) record: u64,
    pub(crate) flaw: Damage,
}

/// Walks the records of one segment, in the bytes of its file. Never panics and allocates nothing, whatever the bytes.
#[derive(Debug)]
pub(crate) struct Walk {
    bytes: Bytes,
    head: SegmentHead,
    chain: Chain,
    offset: usize,
    record: u64,
    /// Where the group of the last record starts.
    group: u32,
}

impl Walk {
    /// Reads the first record.
    pub(crate) fn open(bytes: Bytes) -> Result<Walk, Stop> {
        let (frame, head) = Frame::first(&bytes).map_err(|flaw| Stop { offset: 0, record: 0, flaw })?;
        let chain = Chain { value: frame.prev, salt: salt(&head.directory_uuid, head.sequence) };
        Ok(Walk { bytes, head, chain, offset: 0, record: 0, group: 0 })
    }

    pub(crate) const fn head(&self) -> &SegmentHead {
        &self.head
    }

    pub(crate) const fn chain(&self) -> Chain {
        self.chain
    }

    pub(crate) fn length(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The bytes of the last group, from its start to the end of the last good record.
    pub(crate) fn last_group(&self) -> (u64, Bytes) {
        let start = (self.group as usize).min(self.offset);
        (start as u64, self.bytes.slice(start..self.offset))
    }

    /// The next record, or why there is none.
    pub(crate) fn next(&mut self) -> Result<Located, Stop> {
        let stop = |flaw| Stop { offset: self.offset as u64, record: self.record, flaw };
        let (frame, view) = self.step().map_err(stop)?;
        let located = Located { offset: self.offset as u64, record: self.record, view };
        self.chain.value = frame.crc;
        self.offset = frame.end;
        self.record += 1;
        self.group = frame.group;
        Ok(located)
    }

    fn step(&self) -> Result<(Frame, RecordView), Damage> {
        let frame = Frame::at(&self.bytes, self.offset, self.chain.salt)?;
        if frame.prev != self.chain.value {
            return Err(Damage::Chain { stored: frame.prev, chain: self.chain.value });
        }
        let view = frame.decode()?;
        // The head is the same in every format, so that a newer one is recognised as such and not as damage.
        match (self.record, &view) {
            (0, RecordView::Crc(_)) | (1, RecordView::Metadata(_)) => Ok((frame, view)),
            (0, _) => Err(Damage::Malformed { what: "a segment must start with a crc record" }),
            (1, _) => Err(Damage::Malformed { what: "the second record of a segment must be metadata" }),
            (_, RecordView::Crc(_)) => Err(Damage::Malformed { what: "a crc record must come first" }),
            (_, RecordView::Metadata(_)) => Err(Damage::Malformed { what: "a metadata record must come second" }),
            (_, RecordView::State(_) | RecordView::Truncate { .. }) => Ok((frame, view)),
            (_, RecordView::Snapshot(_) | RecordView::Entry { .. }) => Ok((frame, view)),
        }
    }

    /// What is after the last good record, supposing that this is the newest segment.
    pub(crate) fn judge(&self, stop: &Stop) -> Tail {
        judge(&self.bytes, self.chain.salt, stop)
    }
}

/// What was found after the last good record of the newest segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Tail {
    /// Unused space.
    Clean,
    /// Traces of a write that was never acknowledged, up to the offset.
    Torn { end: u64 },
    /// Not a torn write: bytes that had been made durable are damaged.
    Damaged(Damage),
}

/// Tells a torn write from damage.
///
/// Writes of one group may reach the disk in any order and in any part, so after a crash good records may follow bad
/// ones. But a group is written only after the one before it was made durable. So a header anywhere behind `stop` whose
/// group starts behind `stop` proves that the bytes at `stop` had been durable: that is damage. If there is none, the
/// bytes at `stop` belong to the last group ever written, and nothing tells an unfinished write from a finished one.
pub(crate) fn judge(bytes: &Bytes, salt: u32, stop: &Stop) -> Tail {
    match &stop.flaw {
        Damage::Header | Damage::Checksum | Damage::Short => {}
        // Whole records that do not belong where they are were not left by an interrupted write.
        other => return Tail::Damaged(other.clone()),
    }
    // A walk stops within the bytes, so the offset fits.
    let start = usize::try_from(stop.offset).unwrap_or(usize::MAX);
    let mut torn = start;
    let mut at = start;
    while at + HEADER <= bytes.len() {
        let Some(header) = Header::at(bytes, at, salt) else {
            at += 8;
            continue;
        };
        if header.group as usize > start {
            return Tail::Damaged(Damage::Acknowledged { flaw: Box::new(stop.flaw.clone()), proof: at as u64 });
        }
        // No other record starts inside of this one, so what its data looks like does not matter.
        at = at.saturating_add(header.framed());
        torn = at.min(bytes.len());
    }
    // Also behind the last header that was found: of a record behind it the header alone may be what is missing.
    if !recycled(bytes) {
        let written = bytes[start.min(bytes.len())..].iter().rposition(|byte| *byte != 0);
        torn = torn.max(written.map_or(start, |last| start + last + 1));
    }
    if torn > start { Tail::Torn { end: torn as u64 } } else { Tail::Clean }
}

fn recycled(bytes: &[u8]) -> bool {
    bytes.ends_with(&RECYCLED)
}

/// Whether the file holds anything of the segment it is named after, supposing that its head is unreadable.
pub(crate) fn judge_headless(bytes: &Bytes, uuid: &[u8; 16], name: SegmentName, stop: &Stop) -> Tail {
    let flaw = match &stop.flaw {
        // A head of another sequence is what a recycled file has until its first write.
        Damage::Name { .. } => Damage::Header,
        other => other.clone(),
    };
    let stop = Stop { offset: 0, record: 0, flaw };
    match judge(bytes, salt(uuid, name.sequence), &stop) {
        Tail::Damaged(Damage::Acknowledged { proof, .. }) => {
            Tail::Damaged(Damage::Acknowledged { flaw: Box::new(stop.flaw), proof })
        }
        other => other,
    }
}

/// Whether a metadata record may be in this log.
pub(crate) fn check_metadata(metadata: &Metadata, uuid: &[u8; 16], known: Option<&Metadata>) -> Result<(), Damage> {
    let foreign = metadata.directory_uuid != *uuid || known.is_some_and(|known| known != metadata);
    if foreign { Err(Damage::Foreign { found: Box::new(*metadata) }) } else { Ok(()) }
}
